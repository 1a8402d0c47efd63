"""Augmentation for other recordings than those trained on: level, colour, noise, rooms, pitch.

It works on log-mels as stored, log10(1 + 10000 x), by way of the power x: of one clip another
recording of the same music, so targets stay. Each function takes its amounts by clip, float32 [B];
`distorted` draws them. Power is float32 [B, T, F], here in units of 1/10000.
"""

import functools
import math

import torch
from torch import Tensor

from maest.helpers.audio.constants import HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE
from maest.helpers.audio.mel import MelSpectrogram

# Ranges that are drawn from, uniformly
LOW_PASS, HIGH_PASS = (3_500.0, 7_500.0), (50.0, 400.0)  # Hz, where the filter begins to take
LOW_PASS_WIDTH, HIGH_PASS_WIDTH = (1.0, 20.0), (1.0, 6.0)  # bands until it takes all of
DEPTH = (12.0, 60.0)  # dB
HIGHEST_SNR = 40.0  # dB
NOISE_SLOPE = (-40.0, 10.0)  # dB from the lowest band to the highest; pink noise: about -20
RT60, WET = (0.1, 0.8), (0.1, 0.7)  # seconds to fall by 60 dB; share of the power
_TAIL = 64  # frames, 1.02 s: a power of 2, and more than the longest RT60
# Of the Slaney mel scale: where it turns logarithmic, and from one band's centre to the next
_MEL_1000, _PER_OCTAVE = 15.0, 27 * math.log(2) / math.log(6.4)
_STEP = (_MEL_1000 + 3 * _PER_OCTAVE) / (N_MELS + 1)


def distorted(
    mel: Tensor,
    *,
    gain: float = 0,
    tilt: float = 0,
    band_limit_share: float = 0,
    noise_share: float = 0,
    noise_snr: float = 10,
    reverb_share: float = 0,
    pitch_shift: float = 0,
    tempo_shift: float = 0,
) -> Tensor:
    """Change each clip of log-mels [B, T, 96], drawn per clip; the same tensor if all are 0.

    ``gain`` and ``tilt`` in ± dB, ``pitch_shift`` in ± semitones, ``tempo_shift`` in ± share of the
    speed; ``…_share`` is the share of the clips; ``noise_snr`` the lowest, in dB.
    """
    if not any((gain, tilt, band_limit_share, noise_share, reverb_share, pitch_shift, tempo_shift)):
        return mel

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(len(mel), device=mel.device).uniform_(low, high)

    def some(share: float) -> Tensor:
        return (draw(0, 1) < share).float()

    with torch.autocast(mel.device.type, enabled=False):  # half precision has no quiet power
        power = torch.expm1(mel.float() * math.log(10))
        if pitch_shift:
            power = pitch_shifted(power, 2 ** (draw(-pitch_shift, pitch_shift) / 12))
        if tempo_shift:
            power = tempo_changed(power, 1 + draw(-tempo_shift, tempo_shift))
        if reverb_share:
            power = reverberated(power, draw(*RT60), draw(*WET) * some(reverb_share))
        if noise_share:
            level = 10 ** (-draw(noise_snr, HIGHEST_SNR) / 10) * some(noise_share)
            power = with_noise(power, level, draw(*NOISE_SLOPE))
        decibels = torch.zeros(len(mel), N_MELS, device=mel.device)
        if gain:
            decibels += draw(-gain, gain)[:, None]
        if tilt:
            decibels += slope(draw(-tilt, tilt))
        if band_limit_share:
            for begin, width, upward in (
                (LOW_PASS, LOW_PASS_WIDTH, 1),
                (HIGH_PASS, HIGH_PASS_WIDTH, -1),
            ):
                first = draw(*band_at(torch.tensor(begin)).tolist())
                depth = draw(*DEPTH) * some(band_limit_share)
                decibels -= band_limit(first, upward * draw(*width), depth)
        if gain or tilt or band_limit_share:
            power = power * (10 ** (decibels / 10))[:, None]
        return (torch.log1p(power) / math.log(10)).to(mel.dtype)


def band_at(hertz: Tensor) -> Tensor:
    """Where a frequency lies among the bands' centres, 0 to 95; a fraction between two of them."""
    above = _MEL_1000 + _PER_OCTAVE * torch.log2(hertz / 1000)
    return torch.where(hertz < 1000, hertz * (_MEL_1000 / 1000), above) / _STEP - 1


def hertz_at(band: Tensor) -> Tensor:
    """The inverse of `band_at`."""
    mel = (band + 1) * _STEP
    above = 1000 * 2 ** ((mel - _MEL_1000) / _PER_OCTAVE)
    return torch.where(mel < _MEL_1000, mel * (1000 / _MEL_1000), above)


def slope(decibels: Tensor) -> Tensor:
    """dB of each band, [B, 96], that rise by so many [B] over all of them; 0 in the middle."""
    return decibels[:, None] * torch.linspace(-0.5, 0.5, N_MELS, device=decibels.device)


def band_limit(first: Tensor, width: Tensor, depth: Tensor) -> Tensor:
    """dB that a filter takes of each band, [B, 96]: from 0 at band ``first`` to ``depth``.

    It does so over ``width`` bands, negative for a high-pass; beyond them it takes ``depth``.
    """
    bands = torch.arange(N_MELS, device=first.device)
    return depth[:, None] * ((bands - first[:, None]) / width[:, None]).clamp(0, 1)


def pitch_shifted(power: Tensor, ratio: Tensor) -> Tensor:
    """Multiply all frequencies: a band is read where f / ratio is, between two bands' centres.

    Harmonics stay harmonics, as no shift by a number of bands would leave them. Where nothing can
    be read, beyond the last band, is silence.
    """
    bands = torch.arange(N_MELS, device=power.device)
    read = band_at(hertz_at(bands) / ratio[:, None])
    weights = (1 - (read[:, None] - bands[:, None]).abs()).clamp(min=0)  # [B, read from, band]
    return power @ weights


def tempo_changed(power: Tensor, speed: Tensor) -> Tensor:
    """Read time at a speed, between two frames; a clip that is too short begins again.

    Reversed, as a mirror would have it, it would have sounds that swell and stop.
    """
    frames = power.shape[1]
    read = torch.arange(frames, device=power.device) * speed[:, None]  # [B, T]
    before = read.long()
    clip = torch.arange(len(power), device=power.device)[:, None]
    earlier, later = (power[clip, at % frames] for at in (before, before + 1))
    return torch.lerp(earlier, later, (read - before)[..., None])


def reverberated(power: Tensor, rt60: Tensor, wet: Tensor) -> Tensor:
    """Let a share ``wet`` of the power fade exponentially, by 60 dB in ``rt60`` seconds."""
    decay = (10 ** (-6 * HOP_LENGTH / SAMPLE_RATE / rt60))[:, None, None]
    tail, frames = power, 1
    while frames < _TAIL:  # (1 + dz)(1 + d²z²)(1 + d⁴z⁴)… is the sum of all powers of dz
        longer = tail.clone()
        longer[:, frames:].addcmul_(tail[:, :-frames], decay**frames)
        tail, frames = longer, 2 * frames
    return torch.lerp(power, tail * (1 - decay), wet[:, None, None])


def with_noise(power: Tensor, level: Tensor, slopes: Tensor) -> Tensor:
    """Add noise of ``level`` times the clip's mean power over frames and bands.

    ``slopes``: dB by which its density rises over the bands; 0 is white noise.
    """
    noisy = level > 0
    if not noisy.any():
        return power
    level = (level * power.mean(dim=(1, 2)))[noisy, None, None]
    power = power.clone()
    power[noisy] += level * noise(slopes[noisy], power.shape[1])
    return power


def noise(slopes: Tensor, frames: int) -> Tensor:
    """Power of noise, float32 [B, T, 96], each clip's mean 1: white noise by way of the front end.

    ``slopes`` [B] as in `with_noise`.
    """
    samples = (frames - 1) * HOP_LENGTH + N_FFT
    white = _mel_spectrogram(slopes.device).of_padded(
        torch.randn(len(slopes), samples, device=slopes.device)
    )
    power = torch.expm1(white.mT * math.log(10)) * (10 ** (slope(slopes) / 10))[:, None]
    return power / power.mean(dim=(1, 2), keepdim=True)


@functools.cache
def _mel_spectrogram(device: torch.device) -> MelSpectrogram:
    return MelSpectrogram().to(device)
