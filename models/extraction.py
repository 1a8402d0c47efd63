"""From music to embeddings, logits and activations, in Python.

>>> from maest import Extractor
>>> extract = Extractor("exp_logs/latest/model", blocks=[7])  # or "maest-tiny-scores"
>>> embedding = extract("song.mp3").embeddings[7]  # [3, D]: cls token, dist token, mean of others

The same, rung by rung:

>>> waveform = read_audio("song.mp3")  # helpers.audio: float32 [samples], mono, 16 kHz
>>> track = extract.log_mel(waveform)  # helpers.tracks.Track: float16 [T, 96]
>>> result = extract.outputs(track)  # helpers.tracks.TrackResult

`models.batching.Extraction` does many tracks, whose patches share batches. Neither Sacred nor
Lightning is needed. Shapes are those of `models/maest.py`; P patches.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maest.helpers.audio import AudioError
from maest.helpers.audio_blocks import Meter
from maest.helpers.blocks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.log_mel import log_mel_pieces
from maest.helpers.mel_constants import SAMPLE_RATE
from maest.helpers.names import check_choice
from maest.helpers.patches import FRAMES_PER_SECOND, PATCH_SIZE, TAILS, PatchPlan, seconds
from maest.helpers.tracks import Track, TrackResult, read_audio_mel
from maest.models import Maest, get_maest
from maest.models.batching import Extraction, Failure, OutputSpec, create_engine
from maest.models.engines import best_device
from maest.models.sizes import grid_size

log = logging.getLogger(__name__)


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
        device: to compute on. None: a network's own; of a model by its name, a GPU where there is
            one, as the commands do.
        precision: "32-true", "16-mixed" or "bf16-mixed". None, as in the commands: fp16 on CUDA,
            and float32 elsewhere.

    Attributes:
        labels: of the model's C classes, if known.
        extraction: what does it; its engine's ``similarity`` says how close int8 is.

    Raises:
        InputError: of `get_maest`, and for options that are none.
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
        self.labels = net.labels
        spec = OutputSpec(chosen_blocks(blocks, net.depth), logits, activations, pool)
        plan = patch_plan(net, patch_seconds, hop_seconds, tail)
        engine = create_engine(net, spec, device=device, precision=precision, quantize=quantize)
        self.extraction = Extraction(net, engine, plan, spec, patches_per_pass)

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
        if isinstance(waveform, np.ndarray | Tensor):
            waveform = [_samples(waveform)]
        meter = Meter()
        pieces = list(log_mel_pieces(_metered(waveform, meter)))
        if not pieces:
            raise AudioError("no samples", kind="empty", hint="Give one or more.")
        warnings = meter.warnings(meter.frames / SAMPLE_RATE)
        return Track(key, mel=np.concatenate(pieces), warnings=warnings)

    def outputs(self, track: Track) -> TrackResult:
        """The result of a track's log-mel. AudioError: it is too short for ``tail="drop"``."""
        (result,) = self.extraction.results([track])
        if isinstance(result, Failure):
            raise AudioError(result.reason, hint="Give a longer track, or tail=keep.")
        return result


def _metered(pieces: Iterable[np.ndarray], meter: Meter) -> Iterator[np.ndarray]:
    for piece in pieces:
        samples = _samples(piece)
        meter.mix(samples[:, None])
        yield samples


def _samples(waveform: np.ndarray | Tensor) -> np.ndarray:
    """A waveform, or a piece of one, as float32 [samples]."""
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not (samples.dtype.kind == "f" or samples.dtype == np.int16):
        raise InputError(
            f"{samples.dtype} {list(samples.shape)}: expected [samples], floats or int16",
            kind="invalid",
            hint="Mix channels down to one, x.mean(0), and resample to 16 kHz.",
            setting="waveform",
        )
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise AudioError(
            "NaN or infinite samples", kind="corrupt", hint="Replace them, or leave the track out."
        )
    return samples


def patch_plan(
    net: Maest, patch_seconds: float | None, hop_seconds: float | None, tail: str
) -> PatchPlan:
    """How tracks are cut for a network, in frames."""
    length = net.input_t
    if patch_seconds is not None:
        length = int(patch_seconds * FRAMES_PER_SECOND + 1e-6)  # of whole frames, all of them
    hop = None if hop_seconds is None else round(hop_seconds * FRAMES_PER_SECOND)
    if length < PATCH_SIZE or grid_size(length) > net.time_new_pos_embed.shape[-1]:
        raise InputError(
            f"{patch_seconds} is no length of a patch",
            hint=f"The model takes {seconds(PATCH_SIZE):.2f} to {seconds(net.input_t):g} s.",
            setting="patch_seconds",
        )
    if hop is not None and hop < 1:
        raise InputError(
            f"{hop_seconds} s from one patch to the next are no frame",
            hint="Give 0.016 (a frame) or more.",
            setting="hop_seconds",
        )
    if hop is not None and hop > length:
        log.warning(
            "patches of %g s every %g s: what lies between them is not heard",
            seconds(length),
            seconds(hop),
        )
    check_choice("tail", tail, TAILS)
    return PatchPlan(length, hop, tail)
