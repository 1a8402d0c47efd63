"""The front end: 16 kHz waveform to log-mel bands, as the released MAEST models were trained on.

It equals Essentia's ``TensorflowInputMusiCNN`` (tested), on any device.
"""

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.audio.constants import HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE, n_frames

# Frames per transform (about four minutes): an hour's complex spectrum would need much memory.
_FRAMES_PER_PIECE = 16_384


def slaney_filter_bank() -> Tensor:
    """Return area-normalised triangles on the Slaney mel scale, float32 [257 bins, 96 bands].

    The scale (M. Slaney, Auditory Toolbox, 1998) is linear below 1 kHz, logarithmic above. float32,
    and band edges by repeated addition, follow Essentia: `librosa.filters.mel`, in float64, differs
    by at most 3e-7, or 2e-3 in the logarithm where a strong tone sits on the edge of a band.
    """
    f32 = np.float32
    hertz_per_mel, log_step = f32(200 / 3), np.log(f32(6.4)) / f32(27)  # below, above 15 mel
    highest = f32(15) + np.log(f32(SAMPLE_RATE / 2000)) / log_step
    mels = np.cumsum(np.full(N_MELS + 1, highest / f32(N_MELS + 1)), dtype=f32)
    mels = np.concatenate([np.zeros(1, f32), mels])
    above = f32(1000) * np.exp(log_step * (mels - f32(15)))
    edges = np.where(mels < 15, mels * hertz_per_mel, above)
    bins = np.arange(N_FFT // 2 + 1, dtype=f32) * f32(SAMPLE_RATE / N_FFT)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    triangles = np.maximum(f32(0), np.minimum(rising, falling)) * (f32(2) / (upper - lower))
    return torch.tensor(triangles, dtype=torch.float32)


class MelSpectrogram(nn.Module):
    """Log-mel spectrogram: ``log10(1 + 10000 · mel power)``, not normalised.

    Frames of 512 samples (symmetric Hann window) are centred on multiples of 256; the signal counts
    as zero beyond its ends. The constants are no part of the state dict, and stay float32 when a
    model is cast: in half precision the bands would be noise.
    """

    window: Tensor
    filter_bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        # On the meta device, PyTorch would import hundreds of modules to make it.
        window = torch.hann_window(N_FFT, periodic=False, dtype=torch.float32, device="cpu")
        window = window.to(torch.get_default_device())
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filter_bank", slaney_filter_bank(), persistent=False)

    def _apply(self, fn, recurse: bool = True):
        constants = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, constant in constants.items():
            setattr(self, name, constant.to(getattr(self, name).device))
        return self

    def forward(self, waveform: Tensor) -> Tensor:
        """Map mono [..., samples] at 16 kHz to float32 [..., 96 bands, 1 + ceil(samples / 256)].

        It computes in float32 for any type, also under autocast. Raises ValueError without samples.
        """
        samples = waveform.shape[-1] if waveform.ndim else 0
        if samples == 0:
            raise ValueError(f"the waveform is empty, of shape {tuple(waveform.shape)}")
        # From half a frame before the first centre to half a frame after the last.
        end = (n_frames(samples) - 1) * HOP_LENGTH + N_FFT // 2
        return self.of_padded(F.pad(waveform.to(torch.float32), (N_FFT // 2, end - samples)))

    def of_padded(self, signal: Tensor) -> Tensor:
        """Map float32 [..., 256 (T - 1) + 512], part of a longer signal, to [..., 96 bands, T]."""
        frames, pieces = (signal.shape[-1] - N_FFT) // HOP_LENGTH + 1, []
        for first in range(0, frames, _FRAMES_PER_PIECE):
            last = min(first + _FRAMES_PER_PIECE, frames)
            piece = signal[..., first * HOP_LENGTH : (last - 1) * HOP_LENGTH + N_FFT]
            pieces.append(self._log_mel(piece))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def _log_mel(self, signal: Tensor) -> Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            frames = signal.unfold(-1, N_FFT, HOP_LENGTH) * self.window
            spectrum = torch.fft.rfft(frames)
            power = spectrum.real.square() + spectrum.imag.square()
            return torch.log10(1 + 10_000 * (power @ self.filter_bank)).transpose(-1, -2)


@functools.cache
def front_end() -> MelSpectrogram:
    """Return this process's shared front end, on the CPU."""
    return MelSpectrogram()
