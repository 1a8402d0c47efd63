"""From music to embeddings, logits and activations, in Python.

>>> from maest import Extractor
>>> extract = Extractor("exp_logs/latest/model", blocks=[7])  # or "maest-tiny-scores"
>>> embedding = extract("song.mp3").embeddings[7]  # [3, D]: cls token, dist token, mean of others

The same, rung by rung:

>>> waveform = read_audio("song.mp3")  # helpers.audio: float32 [samples], mono, 16 kHz
>>> track = extract.log_mel(waveform)  # helpers.tracks.Track: float16 [T, 96]
>>> result = extract.outputs(track)  # helpers.tracks.TrackResult

`Extraction` does many tracks. Shapes are those of `models/maest.py`; P patches of a track.
"""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from maest.helpers import patches
from maest.helpers.audio import AudioError
from maest.helpers.audio_blocks import Meter
from maest.helpers.blocks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.log_mel import log_mel_pieces
from maest.helpers.mel_constants import SAMPLE_RATE
from maest.helpers.names import check_choice
from maest.helpers.patches import PATCH_SIZE, PatchPlan, WeightedMean, seconds
from maest.helpers.tracks import Track, TrackResult, overview, read_audio_mel
from maest.models import Maest, get_maest
from maest.models.engines import best_device, create
from maest.models.inputs import as_waveforms
from maest.models.sizes import STRIDE, grid_size

log = logging.getLogger(__name__)

# On a CPU, a pass of so many tokens is as good as a larger one, and needs less memory.
_CPU_TOKENS = 4096
_GPU_PATCHES = 32
_PASSES = 4  # of whole patches, that a group of tracks has at least


# ---- one track -----------------------------------------------------------------------------------


class Extractor:
    """Embeddings, logits and activations of music, track by track.

    Args:
        model: a network, which is not changed; a model folder or checkpoint file; or the name of an
            arch with weights.
        blocks: whose embeddings are wanted: a number from 0, or -1 for the one after the final
            norm; several of them; "all"; or None for block 7 (of a shallower network, the last).
        logits, activations, pool: as in :class:`OutputSpec`.
        patch_seconds: length of a patch; the model's, if None.
        hop_seconds: from one patch to the next; ``patch_seconds`` if None.
        tail: what becomes of a remainder: "keep", "drop" or "pad" (`helpers.patches.cut`).
        patches_per_pass: see :class:`Extraction`.
        quantize: "int8" (CPU); None for the weights as they are.
        device: None is a network's own; of a model by its name, a GPU where there is one.
        precision: "32-true", "16-mixed" or "bf16-mixed"; None is fp16 on CUDA, else float32.

    Attributes:
        labels: of the model's C classes, if known.
        extraction: computes the results; its engine's ``similarity`` says how close int8 is.

    Raises:
        InputError: of `get_maest`, and for options that do not exist or do not go together.
    """

    def __init__(
        self,
        model: Maest | str | Path,
        *,
        blocks: int | Sequence[int] | str | None = None,
        logits: bool = False,
        activations: bool = False,
        pool: str = "mean",
        patch_seconds: float | None = None,
        hop_seconds: float | None = None,
        tail: str = "keep",
        patches_per_pass: int | None = None,
        quantize: str | None = None,
        device: torch.device | str | None = None,
        precision: str | None = None,
    ) -> None:
        net = model if isinstance(model, Maest) else get_maest(model, pretrained=True)
        if device is None:
            device = net.cls_token.device if net is model else best_device()
        engine = {"device": device, "precision": precision, "quantize": quantize}
        spec = OutputSpec(chosen_blocks(blocks, net.depth), logits, activations, pool)
        plan = patch_plan(net, patch_seconds, hop_seconds, tail)
        self.labels = net.labels
        self.extraction = Extraction(net, plan, spec, patches_per_pass, **engine)

    def __call__(self, track: str | Path | np.ndarray | Tensor) -> TrackResult:
        """The result of a file, or of a waveform (see :meth:`log_mel`).

        AudioError (an InputError): it cannot be read, or is too short for ``tail="drop"``.
        """
        if not isinstance(track, str | Path):
            return self.outputs(self.log_mel(track))
        try:
            with tempfile.TemporaryDirectory(prefix="maest-") as scratch:
                mel, warnings = read_audio_mel(Path(track), Path(scratch))
                return self.outputs(Track(str(track), mel=mel, warnings=warnings))
        except AudioError as error:
            error.path = error.path or track
            raise

    def log_mel(self, waveform: np.ndarray | Tensor | Iterable[np.ndarray], key: str = "") -> Track:
        """The log-mel of a waveform; ``key`` names the track.

        It is [samples], mono at 16 kHz: floats, or int16, whose full scale is 32768; or consecutive
        pieces of one. InputError: another shape or type, NaN or infinite samples, or none.
        """
        meter = Meter()
        pieces = [waveform] if isinstance(waveform, np.ndarray | Tensor) else waveform
        waves = (as_waveforms(piece, 1, "waveform").detach().cpu().float() for piece in pieces)
        mels = list(log_mel_pieces(meter.mix(wave[:, None].numpy()) for wave in waves))
        if not mels:
            raise AudioError("the waveform has no samples", kind="empty", hint="Give one or more.")
        return Track(key, 0, np.concatenate(mels), meter.warnings(meter.frames / SAMPLE_RATE))

    def outputs(self, track: Track) -> TrackResult:
        """The result of a track's log-mel. AudioError: it is too short for ``tail="drop"``."""
        (result,) = self.extraction.results([track])
        if isinstance(result, Track):
            raise AudioError(result.error or "", hint="Give a longer track, or tail=keep.")
        return result


def patch_plan(
    net: Maest, patch_seconds: float | None, hop_seconds: float | None, tail: str
) -> PatchPlan:
    """How tracks are cut for a network, in frames."""
    length, hop = net.input_t, None
    if patch_seconds is not None:  # all of its whole frames
        length = int(patch_seconds * patches.FRAMES_PER_SECOND + 1e-6)
    if hop_seconds is not None:
        hop = round(hop_seconds * patches.FRAMES_PER_SECOND)
    if length < PATCH_SIZE or grid_size(length) > net.time_new_pos_embed.shape[-1]:
        bounds = f"{seconds(PATCH_SIZE):.2f} to {seconds(net.input_t):g} s"
        hint, message = f"The model takes {bounds}.", f"{patch_seconds} is no length of a patch"
        raise InputError(message, hint=hint, setting="patch_seconds")
    if hop is not None and hop < 1:
        hint, message = "Give 0.016 (a frame) or more.", f"{hop_seconds} s are no whole frame"
        raise InputError(message, hint=hint, setting="hop_seconds")
    if hop is not None and hop > length:
        every = seconds(length), seconds(hop)
        log.warning("patches of %g s every %g s: what lies between them is not heard", *every)
    return PatchPlan(length, hop, tail)


# ---- many tracks ---------------------------------------------------------------------------------

Name = int | Literal["logits", "activations"]  # of an output; a number is a block's embedding


@dataclass(frozen=True)
class OutputSpec:
    """What is computed of each patch, and what becomes of a track's patches."""

    blocks: tuple[int, ...] = ()  # whose embeddings: numbers from 0, and -1 for the final one
    logits: bool = False
    activations: bool = False  # `Maest.activations`, of the track and of each patch
    # "mean" over a track's patches, weighted by the seconds that each newly covers; "none": each
    # patch by itself (embeddings and logits)
    pool: str = "mean"
    pictures: bool = False  # `helpers.tracks.overview` of the track

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("mean", "none"))
        if not (self.blocks or self.logits or self.activations):
            hint = "Name blocks, or ask for logits or activations."
            raise InputError("nothing is asked for", kind="empty", hint=hint, setting="blocks")


class Extraction:
    """Many tracks through one network; patches of different tracks share a batch.

    What else is in a batch does not matter for a track's result, but for rounding.

    Args:
        net, plan, spec: the network, how tracks are cut, and what is computed.
        patches_per_pass: patches in a batch, at most; None: 32 on a GPU, and on a CPU as many as
            make 4,096 tokens.
        engine: further arguments of `models.engines.create`.

    Attributes:
        on_pass: called with the frames that each pass newly covers.
    """

    def __init__(
        self,
        net: Maest,
        plan: PatchPlan,
        spec: OutputSpec,
        patches_per_pass: int | None = None,
        **engine: Any,
    ) -> None:
        self.net, self.plan, self.spec, self._at_once = net, plan, spec, patches_per_pass
        logits = spec.logits or spec.activations
        self.engine = create(net, blocks=spec.blocks, logits=logits, **engine)
        self.on_pass: Callable[[int], None] = lambda frames: None

    def results(self, tracks: Iterable[Track]) -> Iterator[TrackResult | Track]:
        """The result of each track, in order; or the track, with the ``error`` that prevents one.

        Memory holds a few tracks at a time, which have patches for some passes.
        """
        enough = _PASSES * self._batch_size(grid_size(self.plan.length))
        group: list[_Patches] = []
        waiting = 0
        for track in tracks:
            group.append(self._patches(track))
            waiting += max(1, len(group[-1].spans))
            if waiting >= enough:
                yield from self._extract(group)
                group, waiting = [], 0
        yield from self._extract(group)

    def _patches(self, track: Track) -> _Patches:
        """The patches of a track; none if it, or any of them, cannot be computed."""
        spans = self.plan.spans(len(track.mel)) if len(track.mel) else []
        columns = min(map(self._columns, spans), default=0)
        error = track.error
        if error is None and not spans:
            length = f"{seconds(self.plan.length):g} s"
            error = f"shorter than a patch ({length}), and tail=drop leaves such out"
        elif error is None and self.net.n_tokens(_frames(columns), training=False) <= 2:
            length = f"{seconds(_frames(columns)):.2f} s"
            error = f"patchout leaves nothing of a patch of {length}"
        return _Patches(track, spans) if error is None else _Patches(replace(track, error=error))

    def _columns(self, span: tuple[int, int]) -> int:
        return grid_size(self.plan.patch_frames(span))

    def _batch_size(self, columns: int) -> int:
        if self._at_once is not None:
            return self._at_once
        if self.engine.device.type != "cpu":
            return _GPU_PATCHES
        return max(1, _CPU_TOKENS // self.net.n_tokens(_frames(columns), training=False))

    def _extract(self, group: list[_Patches]) -> Iterator[TrackResult | Track]:
        by_columns: dict[int, list[tuple[_Patches, int]]] = defaultdict(list)
        for track in group:
            for number, span in enumerate(track.spans):
                by_columns[self._columns(span)].append((track, number))
        # From the longest on: so a track's own are in order, as only its last may be shorter.
        for columns in sorted(by_columns, reverse=True):
            same, size = by_columns[columns], self._batch_size(columns)
            for first in range(0, len(same), size):
                self._pass(same[first : first + size], _frames(columns))
        for track in group:
            yield track.result(self.spec)

    def _pass(self, batch: list[tuple[_Patches, int]], frames: int) -> None:
        """One batch through the network; ``frames`` of each patch are in its patch embeddings."""
        taken = [self.plan.take(of.track.mel, of.spans[number])[:frames] for of, number in batch]
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
        for row, (of, number) in enumerate(batch):
            for name, array in arrays.items():
                if self.spec.pool == "mean" or name == "activations":
                    of.means[name].add(array[row], of.weights[number])
                if self.spec.pool == "none" or name == "activations":
                    of.rows[name].append(array[row].copy())
        self.on_pass(sum(of.weights[number] for of, number in batch))


def _frames(columns: int) -> int:
    """Frames under so many patch columns: those of a patch beyond them are in none."""
    return (columns - 1) * STRIDE + PATCH_SIZE


class _Patches:
    """A track's patches, and what has been computed of them: means, or a row for each, in order."""

    def __init__(self, track: Track, spans: Sequence[tuple[int, int]] = ()) -> None:
        self.track, self.spans, self.weights = track, spans, patches.new_frames(spans)
        self.means: dict[Name, WeightedMean] = defaultdict(WeightedMean)
        self.rows: dict[Name, list[np.ndarray]] = defaultdict(list)

    def result(self, spec: OutputSpec) -> TrackResult | Track:
        track, frames = self.track, len(self.track.mel)
        if track.error is not None:
            return track
        means = {name: mean.mean() for name, mean in self.means.items()}
        rows = {name: np.stack(values) for name, values in self.rows.items()}
        chosen = rows if spec.pool == "none" else means
        return TrackResult(
            track.key,
            track.index,
            seconds(max(1, frames - 1)),
            np.array(patches.times(self.spans, frames)),
            {block: chosen[block] for block in spec.blocks},
            chosen.get("logits"),
            means.get("activations"),
            rows.get("activations"),
            overview(track.mel) if spec.pictures else None,
            track.warnings,
        )
