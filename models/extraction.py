"""From music to embeddings, logits and activations, in Python.

>>> from maest import Extractor
>>> extract = Extractor("exp_logs/latest/model", blocks=[7])  # or "maest-tiny-music"
>>> embedding = extract("song.mp3").embeddings[7]  # [3, D]: cls token, dist token, mean of others

Step by step:

>>> waveform = read_audio("song.mp3")  # helpers.audio.reading: float32 [samples], mono, 16 kHz
>>> track = extract.log_mel(waveform)  # helpers.results.tracks.Track: float16 [T, 96]
>>> result = extract.outputs(track)  # helpers.results.tracks.TrackResult

`Extraction` takes many tracks. Shapes are those of `models/maest.py`.
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

from maest.helpers.audio import patches
from maest.helpers.audio.blocks import Meter
from maest.helpers.audio.log_mel import log_mel_pieces
from maest.helpers.audio.patches import PATCH_SIZE, PatchPlan, WeightedMean, seconds
from maest.helpers.audio.reading import AudioError
from maest.helpers.blocks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice
from maest.helpers.results.predictions import best, label_names
from maest.helpers.results.tracks import Track, TrackResult, overview, read_audio_mel
from maest.models import Maest, get_maest
from maest.models.engines import best_device, create
from maest.models.inputs import as_waveforms
from maest.models.learned import Learned, is_learned, load_base, load_learned
from maest.models.sizes import STRIDE, grid_size

log = logging.getLogger(__name__)

# On a CPU, larger passes are no faster and need more memory.
_CPU_TOKENS = 4096
_GPU_PATCHES = 32
_PASSES = 4  # that a group of tracks fills, at least, with whole patches


# ---- one track -----------------------------------------------------------------------------------


class Extractor:
    """Embeddings, logits and activations of music, track by track.

    ``labels`` has the names of the C classes, if they are known. ``thresholds`` has those of the
    model, if any: a number for each label, or None for a label that is never a tag (:meth:`tags`).
    ``extraction.engine.similarity`` says how close int8 is to float32.

    Args:
        model: the name of a model with weights (`list_models`); a model folder, also one that
            ``maest learn`` has written; a checkpoint file; or a network, which stays unchanged.
        blocks: blocks to embed: a number from 0, or -1 for the embedding after the final norm;
            several of them; "all"; or None for block 7 (of a shallower network, the last).
        logits: add the logits, before the sigmoid.
        activations: add the activations of the track and of each patch.
        pool: "mean" over a track's patches, each weighted by the seconds that no patch before it
            covers; or "none", for the embeddings and logits of each patch.
        pictures: add a picture of the log-mel.
        patch_seconds: the length of a patch; None: the model's.
        hop_seconds: from the start of one patch to that of the next; None: ``patch_seconds``.
        tail: what becomes of a last patch that is shorter, if it has a second or more: "keep",
            "drop", or "pad" it with silence.
        max_windows: use at most so many patches of a track, spread evenly over it; None: all.
        patches_per_pass: patches that go through the network at once; None: 32 on a GPU, and 4,096
            tokens on a CPU.
        quantize: "int8" for Linear layers in 8 bits, on a CPU; or None.
        device: such as "cpu" or "cuda"; None: the network's own, or a GPU if there is one.
        precision: "32-true", "16-mixed" or "bf16-mixed"; None: float16 on CUDA, else float32.

    Raises:
        InputError: as `get_maest`, or options that do not exist or do not go together.
    """

    def __init__(
        self,
        model: Maest | str | Path,
        *,
        blocks: int | Sequence[int] | str | None = None,
        logits: bool = False,
        activations: bool = False,
        pool: str = "mean",
        pictures: bool = False,
        patch_seconds: float | None = None,
        hop_seconds: float | None = None,
        tail: str = "keep",
        max_windows: int | None = None,
        patches_per_pass: int | None = None,
        quantize: str | None = None,
        device: torch.device | str | None = None,
        precision: str | None = None,
    ) -> None:
        learned = load_learned(model) if is_learned(model) else None
        if learned:
            net = load_base(learned, str(model))
        else:
            net = model if isinstance(model, Maest) else get_maest(model, pretrained=True)
        if device is None:
            device = net.cls_token.device if net is model else best_device()
        engine = {"device": device, "precision": precision, "quantize": quantize}
        spec = OutputSpec(chosen_blocks(blocks, net.depth), logits, activations, pool, pictures)
        plan = patch_plan(net, patch_seconds, hop_seconds, tail, max_windows)
        self.extraction = Extraction(net, plan, spec, patches_per_pass, learned, **engine)
        head = self.extraction.head
        self.labels, self.thresholds, self._task = head.labels, head.thresholds, head.task

    def __call__(self, track: str | Path | np.ndarray | Tensor) -> TrackResult:
        """Compute the result of a file, or of a waveform (see :meth:`log_mel`).

        Raises:
            AudioError: (an InputError) the track cannot be read, or is too short for
                ``tail="drop"``.
        """
        if not isinstance(track, str | Path):
            return self.outputs(self.log_mel(track))
        try:
            with tempfile.TemporaryDirectory(prefix="maest-") as scratch:
                mel, warnings = read_audio_mel(
                    Path(track), Path(scratch), None, self.extraction.plan
                )
                return self.outputs(Track(str(track), mel=mel, warnings=warnings))
        except AudioError as error:
            error.path = error.path or track
            raise

    def log_mel(self, waveform: np.ndarray | Tensor | Iterable[np.ndarray], key: str = "") -> Track:
        """Compute the log-mel of a waveform. ``key`` is the name of the track.

        ``waveform`` is [samples], mono at 16 kHz, floats or int16 (full scale 32768); or an
        iterable of consecutive pieces of one.

        Raises:
            InputError: a wrong shape or type, no samples, or NaN or infinite ones.
        """
        meter = Meter()
        pieces = [waveform] if isinstance(waveform, np.ndarray | Tensor) else waveform
        waves = (as_waveforms(piece, 1, "waveform").detach().cpu().float() for piece in pieces)
        mels = list(log_mel_pieces(meter.mix(wave[:, None].numpy()) for wave in waves))
        if not mels:
            raise AudioError("the waveform has no samples", kind="empty", hint="Give one or more.")
        meter.samples = meter.frames
        return Track(key, 0, np.concatenate(mels), meter.warnings())

    def outputs(self, track: Track) -> TrackResult:
        """Compute the result of a log-mel. AudioError: it is too short for ``tail="drop"``."""
        (result,) = self.extraction.results([track])
        if isinstance(result, Track):
            raise AudioError(result.error or "", hint="Give a longer track, or tail=keep.")
        return result

    def tags(self, result: TrackResult, top: int = 5) -> dict[str, float]:
        """Return a result's tags and their activations, the highest first, ``top`` at most.

        A tag is a label at or above its threshold; there may be none. Of a model without
        thresholds, the top labels are tags; of a regression, all values.

        Raises:
            InputError: the result has no activations.
        """
        if result.activations is None:
            hint = "Give the Extractor activations=True."
            raise InputError("not asked for", kind="missing", hint=hint, setting="activations")
        names = label_names(self.labels, len(result.activations))
        chosen = best(result.activations, top, self._task, self.thresholds)
        return {names[i]: float(result.activations[i]) for i in chosen}


def patch_plan(
    net: Maest,
    patch_seconds: float | None,
    hop_seconds: float | None,
    tail: str,
    max_windows: int | None = None,
) -> PatchPlan:
    """Plan how to cut tracks, in frames. InputError: a value is out of bounds."""
    if max_windows is not None and max_windows < 1:
        hint, message = "Give 1 or more, or leave it out.", f"{max_windows} windows"
        raise InputError(message, hint=hint, setting="max_windows")
    length, hop = net.input_t, None
    if patch_seconds is not None:  # rounded down to whole frames
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
    return PatchPlan(length, hop, tail, max_windows)


# ---- many tracks ---------------------------------------------------------------------------------

# An output; a number is a block's embedding
Name = int | Literal["logits", "activations", "learned"]


@dataclass(frozen=True)
class OutputSpec:
    """What to compute of each patch, and how to pool a track's patches."""

    blocks: tuple[int, ...] = ()  # to embed: numbers from 0, -1 for the final embedding
    logits: bool = False
    activations: bool = False  # `Maest.activations`, of the track and of each patch
    # "mean" over a track's patches, weighted by the seconds that each newly covers; "none": each
    # patch by itself (embeddings and logits)
    pool: str = "mean"
    pictures: bool = False  # `helpers.results.tracks.overview` of the track

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("mean", "none"))
        if not (self.blocks or self.logits or self.activations):
            hint = "Name blocks, or ask for logits or activations."
            raise InputError("nothing is asked for", kind="empty", hint=hint, setting="blocks")


class Extraction:
    """Runs many tracks through one network; patches of different tracks share a batch.

    A track's result does not depend on the rest of a batch, but for rounding. Memory holds a few
    tracks at a time. ``patches_per_pass`` limits a batch; None: 32 on a GPU, 4,096 tokens on a CPU.
    Logits and activations are those of ``learned``, if given, in place of the network's head; who
    gives them is ``head``. ``engine`` holds further arguments of `models.engines.create`.
    """

    def __init__(
        self,
        net: Maest,
        plan: PatchPlan,
        spec: OutputSpec,
        patches_per_pass: int | None = None,
        learned: Learned | None = None,
        **engine: Any,
    ) -> None:
        self.net, self.plan, self.spec, self._at_once = net, plan, spec, patches_per_pass
        self.head: Maest | Learned = learned or net
        self._learned, blocks, logits = learned, spec.blocks, spec.logits or spec.activations
        if learned and logits:
            blocks, logits = tuple(dict.fromkeys((*blocks, learned.block))), False
        self.engine = create(net, blocks=blocks, logits=logits, **engine)
        # Called after each pass with the number of frames that it newly covers.
        self.on_pass: Callable[[int], None] = lambda frames: None

    def results(self, tracks: Iterable[Track]) -> Iterator[TrackResult | Track]:
        """Yield each track's result, in order, or the track with its ``error``."""
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
        """Cut a track; a patch that cannot be computed leaves no spans, and an ``error``."""
        spans = self.plan.spans(len(track.mel)) if len(track.mel) else []
        columns = min(map(self._columns, spans), default=0)
        error = track.error
        if error is None and not spans:
            length = f"{seconds(self.plan.length):g} s"
            error = f"shorter than a patch ({length}), and tail=drop leaves such out"
        elif error is None and self.net.n_tokens(_frames(columns), training=False) <= 2:
            error = f"patchout leaves nothing of a patch of {seconds(_frames(columns)):.2f} s"
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
        # Longest first: a track's patches stay in order, as only its last may be shorter.
        for columns in sorted(by_columns, reverse=True):
            same, size = by_columns[columns], self._batch_size(columns)
            for first in range(0, len(same), size):
                self._pass(same[first : first + size], _frames(columns))
        for track in group:
            yield track.result(self.spec, self._learned)

    def _pass(self, batch: list[tuple[_Patches, int]], frames: int) -> None:
        """Run one batch; patch columns cover the first ``frames`` of each patch."""
        taken = [self.plan.take(of.track.mel, of.spans[number])[:frames] for of, number in batch]
        stacked = torch.from_numpy(np.stack(taken))
        with torch.inference_mode():
            mel = self.net.normalise(stacked.to(self.engine.device).float()).transpose(1, 2)
            outputs = self.engine(mel)
            values: dict[Name, Tensor] = {b: outputs.embeddings[b] for b in self.spec.blocks}
            logits = outputs.logits
            if self._learned and (self.spec.logits or self.spec.activations):
                logits = self._learned.logits(outputs.embeddings[self._learned.block])
                values["learned"] = logits
            if logits is not None and self.spec.logits:
                values["logits"] = logits
            if logits is not None and self.spec.activations:
                values["activations"] = self.head.activations(logits)
            arrays = {name: tensor.float().cpu().numpy() for name, tensor in values.items()}
        for row, (of, number) in enumerate(batch):
            for name, array in arrays.items():
                if self.spec.pool == "mean" or name in ("activations", "learned"):
                    of.means[name].add(array[row], of.weights[number])
                if self.spec.pool == "none" or name == "activations":
                    of.rows[name].append(array[row].copy())
        self.on_pass(sum(of.weights[number] for of, number in batch))


def _frames(columns: int) -> int:
    return (columns - 1) * STRIDE + PATCH_SIZE  # that so many patch columns cover


class _Patches:
    """A track's patches, and their outputs so far: means, or a row per patch, in order."""

    def __init__(self, track: Track, spans: Sequence[tuple[int, int]] = ()) -> None:
        self.track, self.spans, self.weights = track, spans, patches.new_frames(spans)
        self.means: dict[Name, WeightedMean] = defaultdict(WeightedMean)
        self.rows: dict[Name, list[np.ndarray]] = defaultdict(list)

    def result(self, spec: OutputSpec, learned: Learned | None = None) -> TrackResult | Track:
        track, frames = self.track, len(self.track.mel)
        if track.error is not None:
            return track
        means = {name: mean.mean() for name, mean in self.means.items()}
        rows = {name: np.stack(values) for name, values in self.rows.items()}
        chosen = rows if spec.pool == "none" else means
        if learned and spec.activations:  # learned on the embedding of whole tracks
            logits = torch.from_numpy(means["learned"])
            means["activations"] = learned.activations(logits).numpy()
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
