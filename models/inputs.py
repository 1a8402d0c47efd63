"""Checks of waveforms and spectrograms: type, shape and values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maest.helpers.audio.constants import SAMPLE_RATE, n_frames
from maest.helpers.audio.patches import seconds
from maest.helpers.errors import InputError, Kind
from maest.models.sizes import Sizes, grid_size

_SHAPES = (
    "Give a waveform [samples] or waveforms [B, samples]; or log-mel spectrograms [F, T] (with "
    "melspectrogram_input=True), [B, F, T] or [B, 1, F, T]."
)


class InputTypeError(InputError, TypeError):
    """Not a tensor or array of floats, or of 16-bit PCM."""


def as_floats(x: Any, setting: str, device: torch.device | None = None, pcm: bool = True) -> Tensor:
    """Convert to floats, float32 unless they are of 16 bits; arrays go to ``device``.

    int16 PCM waveforms become -1..1, unless ``pcm=False``. InputTypeError: another type.
    """
    if isinstance(x, np.ndarray):  # torch takes neither other byte orders nor negative strides
        x = torch.from_numpy(np.asarray(x, x.dtype.newbyteorder("="), order="C")).to(device)
    if isinstance(x, Tensor) and x.dtype == torch.int16 and pcm and x.ndim <= 2:
        x = x.float() / 32768
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        hint = "Give a tensor or an array of floats, or a waveform of 16-bit PCM (int16)."
        raise InputTypeError(f"it is of type {kind}", hint=hint, setting=setting)
    return x.float() if x.dtype == torch.float64 else x


def as_waveforms(x: Any, ndim: int, setting: str) -> Tensor:
    """Convert to finite floats, [samples] (``ndim`` 1) or [B, samples] (2); else InputError."""
    waves = as_floats(x, setting)
    if waves.ndim != ndim or (ndim == 2 and not waves.numel()):
        names = "[samples]" if ndim == 1 else "[B, samples]"
        message = f"its shape is {list(waves.shape)}, not {names}"
        hint = "Mix channels down to one, x.mean(0); a batch of one is x[None]."
        raise InputError(message, hint=hint, setting=setting)
    check_finite(waves, setting)
    return waves


def check_finite(x: Tensor, setting: str) -> None:
    if not torch.isfinite(x).all():
        message = "it has NaN or infinite values"
        hint = "Look for what made them; np.nan_to_num replaces them."
        raise InputError(message, kind="corrupt", hint=hint, setting=setting)


def check_shape(shape: Sequence[int], is_mel: bool, sizes: Sizes) -> None:
    """Raise InputError for a shape that `Maest.forward` does not take, or would misread."""
    kind: Kind = "invalid"
    hint, dims, (rows, last) = "", len(shape), (1, 1, *shape)[-2:]  # waveforms are rows, too
    if dims == 0 or dims > 4 or 0 in shape or (dims == 4 and shape[1] != 1):
        kind, hint = "empty" if 0 in shape else "invalid", _SHAPES
    elif dims == 1:
        hint = _SHAPES if is_mel else ""
    elif is_mel or dims > 2:
        if rows != sizes.input_f:
            kind, hint = "mismatch", f"The model takes {sizes.input_f} bands, [..., F, T]."
            hint += " Is it transposed?" if last == sizes.input_f else ""
        elif dims > 2 and grid_size(last) > sizes.positions:
            hint = f"The model has positions for {sizes.positions} patch columns ({sizes.input_t} "
            hint += "frames): cut it, or give one track as [samples] or [F, T], which is cut."
    # [B, samples] that can only be meant as something else
    elif last <= 8 < rows:
        hint = "Audio of several channels, [samples, channels]? Mix it down to one: x.mean(1)."
    elif rows == sizes.input_f and last < SAMPLE_RATE:
        hint = "A log-mel spectrogram [F, T]? Give melspectrogram_input=True. (For so many short "
        hint += "waveforms: model(model.melspectrogram(x)).)"
    elif last == sizes.input_f < rows:
        hint = "A log-mel spectrogram [T, F]? Give x.T and melspectrogram_input=True."
    elif grid_size(n_frames(last)) > sizes.positions:
        hint = "Audio of several channels? Mix it down to one: x.mean(0). " * (1 < rows <= 8)
        hint += f"Of a batch of waveforms, each has at most {seconds(sizes.input_t):.3g} s: cut "
        hint += "them, or give one track as [samples], which is cut into patches."
    if hint:
        raise InputError(f"its shape is {list(shape)}", kind=kind, hint=hint, setting="x")
