"""What `Maest.forward` takes, as the network computes with it: checked log-mel spectrograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import SAMPLE_RATE, n_frames
from maest.helpers.patches import seconds
from maest.models.sizes import grid_size

if TYPE_CHECKING:
    from maest.models.maest import Maest


def as_floats(net: Maest, x: Tensor | np.ndarray, pcm: bool) -> Tensor:
    """A tensor of floats; an array goes to where the network is, and 16-bit PCM to -1..1."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
        x = torch.from_numpy(np.ascontiguousarray(x, x.dtype.newbyteorder("=")))
        x = x.to(net.cls_token.device)
    if not isinstance(x, Tensor):
        what = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"x is of type {what}: expected a tensor or an array of floats")
    if x.dtype == torch.int16 and x.ndim <= 2 and pcm:
        x = x.float() / 32768
    if not x.is_floating_point():
        raise TypeError(f"x is of type {x.dtype}: expected floats, or waveforms of 16-bit PCM")
    empty = x.numel() == 0 and x.ndim > 0
    if empty or not 1 <= x.ndim <= 4:
        raise InputError(
            f"it {'is empty' if empty else f'has {x.ndim} dimensions'} (shape {list(x.shape)})",
            kind="empty" if empty else "invalid",
            hint="Give a waveform [samples], waveforms [B, samples], or log-mel spectrograms "
            "[F, T], [B, F, T] or [B, 1, F, T].",
            setting="x",
        )
    return x.float() if x.dtype == torch.float64 else x


def as_log_mel(net: Maest, x: Tensor | np.ndarray, is_mel: bool) -> Tensor:
    """Normalised log-mel: [F, T] of one track, of any length, or a batch [B, F, T] of patches."""
    x = as_floats(net, x, pcm=not is_mel)
    if (x.ndim == 1 and is_mel) or (x.ndim == 4 and x.shape[1] != 1):
        raise InputError(
            f"its shape is {list(x.shape)}, and log-mels are [F, T], [B, F, T] or [B, 1, F, T]",
            hint="Give [B, 1, F, T], or for a waveform leave melspectrogram_input out.",
            setting="x",
        )
    if x.ndim == 2 and not is_mel:
        _check_waveforms(net, x)
    if x.ndim == 4:
        x = x[:, 0]
    elif x.ndim <= 2 and not is_mel:
        x = net.normalise(net.frontend(x))
    if x.shape[-2] != net.input_f:
        hint = " Is it transposed?" if x.shape[-1] == net.input_f else ""
        raise InputError(
            f"a spectrogram of {x.shape[-2]} bands x {x.shape[-1]} frames",
            kind="mismatch",
            hint=f"The model takes {net.input_f} bands, [..., F, T].{hint}",
            setting="x",
        )
    columns, positions = grid_size(x.shape[-1]), net.time_new_pos_embed.shape[-1]
    if x.ndim == 3 and columns > positions:
        raise InputError(
            f"{x.shape[-1]} frames make {columns} patch columns, and the model has positions for "
            f"{positions} (input_t = {net.input_t} frames)",
            hint="Cut it, or give one track as [samples] or [F, T], which is cut into patches.",
            setting="x",
        )
    looked_at = not net.training and not torch.compiler.is_compiling()
    if looked_at and not torch.isfinite(x).all():
        raise InputError(
            "it has NaN or infinite values",
            kind="corrupt",
            hint="Look for what made them; np.nan_to_num replaces them.",
            setting="x",
        )
    return x


def _check_waveforms(net: Maest, x: Tensor) -> None:
    """Raise InputError for [B, samples] that can only be meant as something else."""
    batch, samples = x.shape
    hint = None
    if samples <= 8 < batch:
        hint = "Audio of several channels, [samples, channels]? Mix it down to one: x.mean(1)."
    elif batch == net.input_f and samples < SAMPLE_RATE:
        hint = (
            "A log-mel spectrogram [F, T]? Give melspectrogram_input=True. (For so many short "
            "waveforms: model(model.melspectrogram(x)).)"
        )
    elif samples == net.input_f < batch:
        hint = "A log-mel spectrogram [T, F]? Give x.T and melspectrogram_input=True."
    elif grid_size(n_frames(samples)) > net.time_new_pos_embed.shape[-1]:
        hint = "Cut them, or give one track as [samples], which is cut into patches."
        if 1 < batch <= 8:
            hint = f"Audio of several channels? Mix it down to one: x.mean(0). {hint}"
    if hint:
        raise InputError(
            f"its shape is {list(x.shape)}, which would be {batch} waveforms of "
            f"{samples / SAMPLE_RATE:.3g} s, of at most {seconds(net.input_t):.3g} s each",
            hint=hint,
            setting="x",
        )
