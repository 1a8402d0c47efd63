"""From music to embeddings, logits and activations: file → waveform → patches → outputs.

>>> from maest.models.extraction import Extractor
>>> extract = Extractor("exp_logs/latest/model", blocks=[7])  # or "maest-tiny-scores"
>>> embedding = extract("song.mp3").embeddings[7]  # [3, D]: cls token, dist token, mean of others

The same, rung by rung:

>>> waveform = read_audio("song.mp3")  # helpers.audio: float32 [samples], mono, 16 kHz
>>> chunks = extract.patches(waveform)  # helpers.chunks.Chunk, as many patches as are held at once
>>> result = extract.outputs(chunks)  # helpers.chunks.TrackResult

For many tracks, `models.batching.Batcher` lets patches of different tracks share a pass.
Neither Sacred nor Lightning is needed. Shapes are those of `models/maest.py`; P patches.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maest.helpers.audio import AudioError, stream_audio
from maest.helpers.audio_blocks import Meter
from maest.helpers.chunks import Chunk, Cutting, TrackResult, chosen_blocks, stream_patches
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import SAMPLE_RATE
from maest.helpers.patches import FRAMES_PER_SECOND, PATCH_SIZE, TAILS, seconds
from maest.helpers.settings import check_choice
from maest.models import Maest, get_maest
from maest.models.batching import Batcher, Encoder, Failure, Wanted
from maest.models.blocks import sharing_copy
from maest.models.cpu import speed_up
from maest.models.maest import grid_size, inference

log = logging.getLogger(__name__)

PATCHES_PER_CHUNK = 8  # of a track, read at once
_DTYPES = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Extractor:
    """Embeddings, logits and activations of music, track by track.

    Args:
        model: a network, which is left as it is (a copy shares its weights, and is not compiled);
            a model folder or checkpoint file; or the name of an arch with weights.
        blocks: whose embeddings are wanted: a number from 0, or -1 for the one after the final
            norm; several of them; "all"; or None for block 7 (of a shallower network, the last).
        logits, activations, pool: as in :class:`Wanted`.
        patch_seconds: length of a patch; the model's, if None.
        hop_seconds: from one patch to the next; ``patch_seconds`` if None.
        tail: what becomes of a remainder: "keep", "drop" or "pad" (`helpers.patches.cut`).
        patches_per_pass: see :class:`Batcher`.
        quantize: "int8" (CPU); None for the weights as they are.
        device: to compute on. None: a network's own; of a model by its name, a GPU where there is
            one, as the commands do.
        precision: "32-true", "16-mixed" or "bf16-mixed". None, as in the commands: fp16 on CUDA,
            and float32 elsewhere.

    Attributes:
        labels: of the model's C classes, if known.

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
        if isinstance(model, Maest):
            own = model.cls_token.device
            device = own if device is None else torch.device(device)
            # Moving a copy that shares its parameters would move the network itself.
            net = sharing_copy(model) if device == own else copy.deepcopy(model)
        else:
            net = get_maest(model, pretrained=True)
            device = _best_device() if device is None else torch.device(device)
        self.net = net.eval().to(device)
        self.labels = net.labels
        self.wanted = Wanted(chosen_blocks(blocks, net.depth), logits, activations, pool)
        self.cutting = cutting(self.net, patch_seconds, hop_seconds, tail)
        self.autocast = _autocast(device.type, precision)
        if device.type == "cpu":
            speed_up(self.net)
        self.encoder = Encoder(self.net, self.wanted, quantize)
        self.patches_per_pass = patches_per_pass

    def __call__(self, track: str | Path | np.ndarray | Tensor) -> TrackResult:
        """The result of a file, or of a waveform (see :meth:`patches`).

        A file's length is no question of memory.

        Raises:
            AudioError: (an InputError) it cannot be read, or is too short for ``tail="drop"``.
        """
        if not isinstance(track, str | Path):
            return self.outputs(self.patches(track))
        try:
            return self.outputs(self._cut(stream_audio(track), str(track)))
        except AudioError as error:
            error.path = error.path or track
            raise

    def patches(
        self, waveform: np.ndarray | Tensor | Iterable[np.ndarray], key: str = ""
    ) -> Iterator[Chunk]:
        """Cut a waveform into patches.

        Args:
            waveform: [samples], mono at 16 kHz: floats, or int16, whose full scale is 32768; or
                consecutive pieces of one.
            key: what the track is called.

        Raises:
            InputError: it has another shape or type, or NaN or infinite samples.
        """
        if isinstance(waveform, np.ndarray | Tensor):
            waveform = [_samples(waveform)]
        return self._cut(_Pieces(waveform), key)

    def _cut(self, blocks: Iterable[np.ndarray], key: str) -> Iterator[Chunk]:
        return stream_patches(blocks, self.cutting, PATCHES_PER_CHUNK, key, 0)

    def outputs(self, chunks: Iterable[Chunk]) -> TrackResult:
        """The result of one track's chunks.

        Raises:
            AudioError: there is none.
        """
        batcher, device = Batcher(self.encoder, self.patches_per_pass), self.net.cls_token.device
        with inference(self.net), self.autocast:
            found = [result for chunk in chunks for result in batcher.feed(chunk.to(device))]
            found += batcher.flush()
        if not found:
            raise AudioError(
                "there is no patch in it", kind="empty", hint="Give all chunks of one track."
            )
        if isinstance(found[0], Failure):
            raise AudioError(found[0].reason, hint="Give a longer track, or tail=keep.")
        return found[0]


class _Pieces:
    """Pieces of a waveform, checked as they go through, and what can be said of its sound."""

    def __init__(self, pieces: Iterable[np.ndarray]) -> None:
        self._pieces = pieces
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        meter = Meter()
        for piece in self._pieces:
            samples = _samples(piece)
            meter.mix(samples[:, None])
            yield samples
        self.warnings = meter.warnings(meter.frames / SAMPLE_RATE)


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


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _autocast(device: str, precision: str | None) -> torch.autocast:
    """What a pass is computed in; it changes nothing for float32."""
    if precision is None:
        precision = "16-mixed" if device == "cuda" else "32-true"
    check_choice("precision", precision, _DTYPES)
    if device == "cpu" and precision == "16-mixed":
        raise InputError(
            "float16 on a CPU is slower and less exact than float32",
            kind="unsupported",
            hint="Give precision=bf16-mixed, or none.",
            setting="precision",
        )
    dtype = _DTYPES[precision]
    return torch.autocast(device, dtype, enabled=dtype is not None)


def cutting(
    net: Maest, patch_seconds: float | None, hop_seconds: float | None, tail: str
) -> Cutting:
    """How tracks are cut for a network, in frames.

    Raises:
        InputError: a patch that the network has no positions for, a hop of no frame, no such tail.
    """
    longest = net.input_t
    if patch_seconds is not None:
        longest = int(patch_seconds * FRAMES_PER_SECOND + 1e-6)  # of whole frames, all of them
    hop = None if hop_seconds is None else round(hop_seconds * FRAMES_PER_SECOND)
    if longest < PATCH_SIZE or grid_size(longest) > net.time_new_pos_embed.shape[-1]:
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
    if hop is not None and hop > longest:
        log.warning(
            "patches of %g s every %g s: what lies between them is not heard",
            seconds(longest),
            seconds(hop),
        )
    check_choice("tail", tail, TAILS)
    return Cutting(longest, hop, tail)
