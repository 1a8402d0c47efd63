"""Patches of many tracks through the network: which go together, and what becomes of them.

Shapes are those of `models/maest.py`; P patches of a track.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maest.helpers.chunks import Chunk, TrackResult, chosen_blocks, log_mel_of
from maest.helpers.errors import InputError
from maest.helpers.patches import PATCH_SIZE, seconds, times
from maest.helpers.settings import check_choice
from maest.helpers.thumbnail import Thumbnail
from maest.models.maest import STRIDE, Maest, grid_size
from maest.models.quantization import Int8Encoder, similarity

POOLS = ("mean", "none")
QUANTIZATIONS = ("int8",)
# On a CPU, a pass of so many tokens is as good as a larger one, and needs less memory.
_CPU_TOKENS = 4096
_GPU_PATCHES = 32
# A patch that is shorter than others waits for its like while so many passes go before it.
_PATIENCE = 8
_WAITING = 8  # passes that all waiting patches together are enough for, at most
_COMPARED = 8  # patches on which int8 is compared with fp32


@dataclass(frozen=True)
class Wanted:
    """What is computed of each patch, and what becomes of a track's patches.

    Attributes:
        blocks: whose embeddings: numbers from 0, and -1 for the final one.
        logits: whether logits are wanted.
        activations: whether `Maest.activations` are, of the track and of each patch.
        pool: "mean" over a track's patches, weighted by the seconds that each newly covers, or
            "none": each patch by itself (embeddings and logits).
        pictures: whether a small log-mel of the track is.
    """

    blocks: tuple[int, ...] = ()
    logits: bool = False
    activations: bool = False
    pool: str = "mean"
    pictures: bool = False

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, POOLS)
        if not (self.blocks or self.logits or self.activations):
            raise InputError(
                "nothing is asked for",
                kind="empty",
                hint="Name blocks, or ask for logits or activations.",
                setting="blocks",
            )


class Failure(NamedTuple):
    """A track of which there is no result.

    Attributes:
        key, index: of the track.
        reason: why.
    """

    key: str
    index: int
    reason: str


class Encoder(nn.Module):
    """Patches in, everything that is wanted of them out, in one pass of the network.

    Args:
        net: the network, in eval mode.
        wanted: what.
        quantize: "int8" for Linear layers in 8 bits, on a CPU; None for the network as it is.
        threads: of int8; None for all that there are.

    Attributes:
        similarity: with int8, by output ("block 7", "logits"): the lowest cosine similarity to fp32
            on the first patches; None before these.

    Raises:
        InputError: int8 where it cannot be had, or no such block.
    """

    def __init__(
        self, net: Maest, wanted: Wanted, quantize: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__()
        chosen_blocks(wanted.blocks, net.depth)
        if quantize is not None:
            check_choice("quantize", quantize, QUANTIZATIONS)
        self.net, self.wanted = net, wanted
        self.similarity: dict[str, float] | None = None
        self._logits = wanted.logits or wanted.activations
        self._int8 = None
        if quantize:
            self._int8 = Int8Encoder(net, wanted.blocks, self._logits, threads)

    def forward(self, mel: Tensor) -> tuple[Tensor | None, dict[int, Tensor]]:
        """[B, T frames, 96] float32 log-mel as on disk → logits [B, C], embeddings by block."""
        x = self.net.normalise(mel).transpose(1, 2)
        if self._int8 is None:
            return self.net.outputs(x, self.wanted.blocks, self._logits)
        logits, embeddings = self._int8.encode(x)
        if self.similarity is None:
            some = slice(_COMPARED)
            exact_logits, exact = self.net.outputs(x[some], self.wanted.blocks, self._logits)
            pairs = {f"block {b}": (exact[b], embeddings[b][some]) for b in exact}
            if exact_logits is not None:
                pairs["logits"] = (exact_logits, logits[some])
            self.similarity = {name: similarity(*pair) for name, pair in pairs.items()}
        return logits, embeddings


@dataclass
class _Track:
    """What is known of a track so far."""

    key: str
    index: int
    attempt: int
    frames: int | None = None  # once its last chunk has come
    waiting: int = 0  # patches that have not been computed yet
    spans: list[tuple[int, int]] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    sums: dict[object, np.ndarray] = field(default_factory=dict)  # of weight · values, float64
    rows: dict[object, dict[int, np.ndarray]] = field(default_factory=dict)  # by patch
    picture: Thumbnail | None = None
    warnings: list[str] = field(default_factory=list)


class _Patch(NamedTuple):
    track: _Track
    number: int
    mel: Tensor  # [T, 96]


class Batcher:
    """Takes chunks of tracks, in any mixture, and gives each track's result once it is complete.

    Whole patches of different tracks share a pass; those of one shorter length do too, and wait
    for one another a while. What a batch has in it does not matter for the result, but for
    rounding.

    Args:
        encoder: computes the patches.
        patches_per_pass: how many at once, at most; None: 32 on a GPU, and on a CPU as many as make
            4,096 tokens.
    """

    def __init__(self, encoder: Encoder, patches_per_pass: int | None = None) -> None:
        self.encoder = encoder
        self.wanted = encoder.wanted
        self._per_pass = patches_per_pass
        self._tracks: dict[int, _Track] = {}
        self._void: dict[int, int] = {}  # tracks that failed before their end, by attempt
        self._groups: dict[int, list[_Patch]] = {}  # by patch columns
        self._since: dict[int, int] = {}  # when its oldest patch came, in passes
        self._passes = 0

    @torch.no_grad()
    def feed(self, chunk: Chunk) -> list[TrackResult | Failure]:
        """Take a chunk; what has become complete by it."""
        if self._void.get(chunk.index) == chunk.attempt:  # it has failed, and was told
            return []
        track = self._track(chunk)
        if chunk.error is not None:
            return [self._fail(track, chunk.error)]
        if problem := self._take(track, chunk):
            if not chunk.last:
                self._void[chunk.index] = chunk.attempt
            return [self._fail(track, problem)]
        track.frames, track.warnings = chunk.frames, chunk.warnings
        complete: list[TrackResult | Failure] = []
        for columns in list(self._groups):
            while len(self._groups.get(columns, ())) >= self._limit(columns):
                complete += self._run(columns)
        for columns, since in list(self._since.items()):
            if self._passes - since >= _PATIENCE:
                complete += self._run(columns)
        while self._waits_for_too_long():
            complete += self._run(max(self._groups, key=lambda columns: len(self._groups[columns])))
        if (
            track.frames is not None
            and not track.waiting
            and self._tracks.get(track.index) is track
        ):
            complete.append(self._complete(track))
        return complete

    @torch.no_grad()
    def flush(self) -> list[TrackResult | Failure]:
        """Compute what still waits: no more chunks come."""
        complete: list[TrackResult | Failure] = []
        while self._groups:
            complete += self._run(next(iter(self._groups)))
        return complete

    def _track(self, chunk: Chunk) -> _Track:
        track = self._tracks.get(chunk.index)
        if track is not None and track.attempt != chunk.attempt:  # read again, from its start
            self._forget(track)
            track = None
        if track is None:
            track = _Track(chunk.key, chunk.index, chunk.attempt)
            track.picture = Thumbnail() if self.wanted.pictures else None
            self._tracks[chunk.index] = track
        return track

    def _forget(self, track: _Track) -> None:
        del self._tracks[track.index]
        for columns, group in list(self._groups.items()):
            self._groups[columns] = [patch for patch in group if patch.track is not track]
            if not self._groups[columns]:
                del self._groups[columns], self._since[columns]

    def _waits_for_too_long(self) -> bool:
        """Whether more patches wait, in groups that are not full, than there should."""
        passes = sum(len(group) / self._limit(columns) for columns, group in self._groups.items())
        return passes > _WAITING

    def _fail(self, track: _Track, reason: str) -> Failure:
        self._forget(track)
        return Failure(track.key, track.index, reason)

    def _take(self, track: _Track, chunk: Chunk) -> str | None:
        """Put a chunk's patches to those that wait; the reason why they cannot be computed."""
        mels = chunk.patches
        if mels is None:
            return None
        if mels.ndim == 2:
            mels = log_mel_of(mels, self.encoder.net.frontend)
        columns = grid_size(mels.shape[1])
        used = (columns - 1) * STRIDE + PATCH_SIZE  # frames beyond are in no patch embedding
        if self.encoder.net.n_tokens(used, training=False) <= 2:
            return f"patchout leaves nothing of a patch of {seconds(mels.shape[1]):.2f} s"
        if columns not in self._groups:
            self._groups[columns], self._since[columns] = [], self._passes
        for mel, span, new in zip(mels, chunk.spans.tolist(), chunk.fresh.tolist(), strict=True):
            self._groups[columns].append(_Patch(track, len(track.spans), mel[:used]))
            track.spans.append(tuple(span))
            track.weights.append(new)
            track.waiting += 1
            if track.picture is not None:
                own = mel[: span[1] - span[0]][-new:]
                track.picture.add(own.float().cpu().numpy(), span[1] - new)
        return None

    def _limit(self, columns: int) -> int:
        """Patches of so many columns that make a pass."""
        if self._per_pass is not None:
            return self._per_pass
        net = self.encoder.net
        if net.cls_token.device.type != "cpu":
            return _GPU_PATCHES
        tokens = net.n_tokens((columns - 1) * STRIDE + PATCH_SIZE, training=False)
        return max(1, _CPU_TOKENS // tokens)

    def _run(self, columns: int) -> list[TrackResult | Failure]:
        """One pass of the oldest patches of a group."""
        group, limit = self._groups[columns], self._limit(columns)
        patches, rest = group[:limit], group[limit:]
        if rest:
            self._groups[columns], self._since[columns] = rest, self._passes
        else:
            del self._groups[columns], self._since[columns]
        self._passes += 1
        logits, embeddings = self.encoder(torch.stack([patch.mel.float() for patch in patches]))
        values: dict[object, Tensor] = dict(embeddings)
        if self.wanted.logits:
            values["logits"] = logits
        if self.wanted.activations:
            values["activations"] = self.encoder.net.activations(logits)
        complete: list[TrackResult | Failure] = []
        for name, tensor in values.items():
            for patch, row in zip(patches, tensor.float().cpu().numpy(), strict=True):
                self._add(patch, name, row)
        for patch in patches:
            patch.track.waiting -= 1
        for track in {id(patch.track): patch.track for patch in patches}.values():
            if track.frames is not None and not track.waiting:
                complete.append(self._complete(track))
        return complete

    def _add(self, patch: _Patch, name: object, row: np.ndarray) -> None:
        track = patch.track
        if self.wanted.pool == "none" or name == "activations":
            track.rows.setdefault(name, {})[patch.number] = row
        if self.wanted.pool == "mean" or name == "activations":
            weighted = track.weights[patch.number] * row.astype(np.float64)
            track.sums[name] = track.sums[name] + weighted if name in track.sums else weighted

    def _complete(self, track: _Track) -> TrackResult | Failure:
        del self._tracks[track.index]
        if not track.spans:
            return Failure(track.key, track.index, "empty, or too short for a patch of this kind")
        total = sum(track.weights)
        means = {name: (sums / total).astype(np.float32) for name, sums in track.sums.items()}
        rows = {
            name: np.stack([by_patch[i] for i in range(len(by_patch))])
            for name, by_patch in track.rows.items()
        }
        chosen = rows if self.wanted.pool == "none" else means
        return TrackResult(
            track.key,
            track.index,
            seconds(max(1, track.frames - 1)),
            np.array(times(track.spans, track.frames)),
            {block: chosen[block] for block in self.wanted.blocks},
            chosen.get("logits"),
            means.get("activations"),
            rows.get("activations"),
            track.picture.columns(track.frames) if track.picture is not None else None,
            track.warnings,
        )
