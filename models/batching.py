"""Many tracks through one network: log-mel → patches → batches across tracks → results.

Shapes are those of `models/maest.py`; P patches of a track.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maest.helpers.errors import InputError
from maest.helpers.names import check_choice
from maest.helpers.patches import PATCH_SIZE, PatchPlan, WeightedMean, new_frames, seconds, times
from maest.helpers.tracks import Track, TrackResult, overview
from maest.models.engines import Engine, create
from maest.models.maest import Maest
from maest.models.sizes import STRIDE, grid_size

POOLS = ("mean", "none")
# On a CPU, a pass of so many tokens is as good as a larger one, and needs less memory.
_CPU_TOKENS = 4096
_GPU_PATCHES = 32
_PASSES = 4  # of whole patches, that a group of tracks has at least


@dataclass(frozen=True)
class OutputSpec:
    """What is computed of each patch, and what becomes of a track's patches.

    Attributes:
        blocks: whose embeddings: numbers from 0, and -1 for the final one.
        logits: whether logits are wanted.
        activations: whether `Maest.activations` are, of the track and of each patch.
        pool: "mean" over a track's patches, weighted by the seconds that each newly covers, or
            "none": each patch by itself (embeddings and logits).
        pictures: whether `helpers.tracks.overview` of the track is.
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


@dataclass(frozen=True)
class Failure:
    """A track without a result, and why."""

    key: str
    index: int
    reason: str


Name = int | Literal["logits", "activations"]  # of an output; a number is a block's embedding


@dataclass
class Extraction:
    """Many tracks through one network; patches of different tracks share a batch.

    What else is in a batch does not matter for a track's result, but for rounding.

    Attributes:
        net: the network, for all but the passes themselves.
        engine: computes the passes.
        plan: how tracks are cut.
        spec: what is computed.
        patches_per_pass: patches in a batch, at most; None: 32 on a GPU, and on a CPU as many as
            make 4,096 tokens.
        on_pass: called with the frames that each pass newly covers.
    """

    net: Maest
    engine: Engine
    plan: PatchPlan
    spec: OutputSpec
    patches_per_pass: int | None = None
    on_pass: Callable[[int], None] = lambda frames: None

    def results(self, tracks: Iterable[Track]) -> Iterator[TrackResult | Failure]:
        """The result of each track, in order. Memory holds those of one group at a time."""
        for group in self._groups(tracks):
            yield from self._extract(group)

    def _groups(self, tracks: Iterable[Track]) -> Iterator[list[Track]]:
        """Tracks in a row that have patches for some passes."""
        enough = _PASSES * self._batch_size(grid_size(self.plan.length))
        group: list[Track] = []
        patches = 0
        for track in tracks:
            group.append(track)
            patches += max(1, len(self._spans(track)))
            if patches >= enough:
                yield group
                group, patches = [], 0
        if group:
            yield group

    def _spans(self, track: Track) -> list[tuple[int, int]]:
        return self.plan.spans(len(track.mel)) if len(track.mel) else []

    def _extract(self, group: list[Track]) -> Iterator[TrackResult | Failure]:
        done: list[_Patches | Failure] = []
        by_columns: dict[int, list[tuple[_Patches, int]]] = defaultdict(list)
        for track in group:
            patches = _Patches(track, self._spans(track))
            columns = [grid_size(self.plan.patch_frames(span)) for span in patches.spans]
            if problem := track.error or self._problem(columns):
                done.append(Failure(track.key, track.index, problem))
                continue
            done.append(patches)
            for number, count in enumerate(columns):
                by_columns[count].append((patches, number))
        # From the longest on: so a track's own are in order, as only its last may be shorter.
        for count in sorted(by_columns, reverse=True):
            same, size = by_columns[count], self._batch_size(count)
            for first in range(0, len(same), size):
                self._pass(same[first : first + size], _frames(count))
        for one in done:
            yield one if isinstance(one, Failure) else one.result(self.spec)

    def _problem(self, columns: list[int]) -> str | None:
        """Why patches of so many columns cannot be computed."""
        if not columns:
            length = f"{seconds(self.plan.length):g} s"
            return f"shorter than a patch ({length}) and inference.tail=drop leaves such out"
        if self._tokens(min(columns)) <= 2:
            return f"patchout leaves nothing of a patch of {seconds(_frames(min(columns))):.2f} s"
        return None

    def _tokens(self, columns: int) -> int:
        return self.net.n_tokens(_frames(columns), training=False)

    def _batch_size(self, columns: int) -> int:
        if self.patches_per_pass is not None:
            return self.patches_per_pass
        if self.engine.device.type != "cpu":
            return _GPU_PATCHES
        return max(1, _CPU_TOKENS // self._tokens(columns))

    def _pass(self, patches: list[tuple[_Patches, int]], frames: int) -> None:
        """One batch through the network; ``frames`` of each patch are in its patch embeddings."""
        taken = [self.plan.take(of.track.mel, of.spans[number])[:frames] for of, number in patches]
        stacked = torch.from_numpy(np.stack(taken))
        with torch.inference_mode():
            mel = self.net.normalise(stacked.to(self.engine.device).float()).transpose(1, 2)
            outputs = self.engine(mel)
            values: dict[Name, Tensor] = dict(outputs.embeddings.items())
            if outputs.logits is not None and self.spec.logits:
                values["logits"] = outputs.logits
            if outputs.logits is not None and self.spec.activations:
                values["activations"] = self.net.activations(outputs.logits)
            arrays = {name: tensor.float().cpu().numpy() for name, tensor in values.items()}
        for row, (of, number) in enumerate(patches):
            for name, array in arrays.items():
                of.add(number, name, array[row], self.spec)
        self.on_pass(sum(of.weights[number] for of, number in patches))


def _frames(columns: int) -> int:
    """Frames under so many patch columns: those of a patch beyond them are in none."""
    return (columns - 1) * STRIDE + PATCH_SIZE


class _Patches:
    """A track's patches, and what has been computed of them."""

    def __init__(self, track: Track, spans: list[tuple[int, int]]) -> None:
        self.track, self.spans, self.weights = track, spans, new_frames(spans)
        self._means: dict[Name, WeightedMean] = defaultdict(WeightedMean)
        self._rows: dict[Name, list[np.ndarray]] = defaultdict(list)

    def add(self, number: int, name: Name, values: np.ndarray, spec: OutputSpec) -> None:
        """Add what was computed of a patch; those of a track come in order."""
        if spec.pool == "mean" or name == "activations":
            self._means[name].add(values, self.weights[number])
        if spec.pool == "none" or name == "activations":
            self._rows[name].append(values.copy())

    def result(self, spec: OutputSpec) -> TrackResult:
        track, frames = self.track, len(self.track.mel)
        means = {name: mean.mean() for name, mean in self._means.items()}
        rows = {name: np.stack(values) for name, values in self._rows.items()}
        chosen = rows if spec.pool == "none" else means
        return TrackResult(
            track.key,
            track.index,
            seconds(max(1, frames - 1)),
            np.array(times(self.spans, frames)),
            {block: chosen[block] for block in spec.blocks},
            chosen.get("logits"),
            means.get("activations"),
            rows.get("activations"),
            overview(track.mel) if spec.pictures else None,
            track.warnings,
        )


def create_engine(
    net: Maest,
    spec: OutputSpec,
    *,
    device: torch.device | str,
    precision: str | None = None,
    **options: Any,
) -> Engine:
    """The engine that computes what is asked for: see `models.engines.create`.

    Of None, the precision is float16 on CUDA and float32 elsewhere.
    """
    if precision is None:
        precision = "16-mixed" if torch.device(device).type == "cuda" else "32-true"
    logits = spec.logits or spec.activations
    return create(
        net, device=device, precision=precision, blocks=spec.blocks, logits=logits, **options
    )
