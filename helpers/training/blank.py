"""Sounds that are no music, from which a model learns to give no label."""

import math

import torch
from torch import Tensor

from maest.helpers.audio.constants import N_FFT, N_MELS, SAMPLE_RATE
from maest.helpers.audio.mel import slaney_filter_bank
from maest.helpers.training.robustness import NOISE_SLOPE, noise, slope

# Ranges that are drawn from
PEAK = (1.0, 5.0)  # log-mel of the loudest band on average
PITCH = (50.0, 5_000.0)  # Hz
_HARMONICS = 16
_PERIOD = (6.0, 120.0)  # frames from a click or a beep to the next: 0.1 to 1.9 s


def blank(mel: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Replace a share of the clips [B, T, 96] by no music, and their targets [B, C] by 0.

    They are the first clips: the order of a batch is random. Of a fraction of a clip, chance makes
    one or none. Unknown targets (NaN) become 0 too: nothing is heard. 0 gives the same tensors.
    """
    if not share:
        return mel, targets
    clips = int(share * len(mel) + torch.rand(()))  # on the CPU: no wait for the device
    if not clips:
        return mel, targets
    sounds = no_music(clips, mel.shape[1], mel.device).to(mel.dtype)
    none = torch.zeros_like(targets[:clips])
    return torch.cat((sounds, mel[clips:])), torch.cat((none, targets[clips:]))


def no_music(clips: int, frames: int, device: torch.device) -> Tensor:
    """Draw log-mels, float32 [B, T, 96]: silence, tones, clicks or noise, each as likely.

    A tone is pure or harmonic, steady or beeping; clicks are regular or not; noise has any colour.
    """

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(clips, *(shape or (1, 1)), device=device).uniform_(low, high)

    with torch.autocast(device.type, enabled=False):
        period = draw(*_PERIOD)
        cycle = (torch.arange(frames, device=device)[:, None] / period + draw(0, 1)) % 1
        beeps = (cycle < draw(0.1, 2)).float()  # above 1: steady
        regular = (cycle < 1 / period).float()
        at_random = (draw(0, 1, frames, 1) < 10 ** draw(-2.5, -0.5)) * draw(0, 1, frames, 1)
        hits = torch.where(draw(0, 1) < 0.5, regular, at_random)
        slopes = draw(*NOISE_SLOPE, 1)[:, 0]
        hertz = PITCH[0] * (PITCH[1] / PITCH[0]) ** draw(0, 1, 1)[:, 0]
        pure = draw(0, 1, 1)[:, 0] < 0.5
        fall = torch.where(pure, torch.inf, draw(0, 4, 1)[:, 0])
        kinds = (
            torch.zeros(clips, frames, N_MELS, device=device),
            beeps * tone(hertz, fall)[:, None],
            hits * _to_peak(10 ** (slope(slopes) / 10))[:, None],
            noise(slopes, frames),
        )
        kind = torch.randint(len(kinds), (clips, 1, 1), device=device)
        power = sum(sound * (kind == k) for k, sound in enumerate(kinds))
        return torch.log1p(power * 10 ** draw(*PEAK)) / math.log(10)


def tone(hertz: Tensor, fall: Tensor) -> Tensor:
    """Power of tones of a pitch [B] in the bands, [B, 96], the loudest of them 1.

    Harmonic k has k ** -fall of the first one's power; infinite: there is none.
    """
    number = torch.arange(1, _HARMONICS + 1, device=hertz.device)
    loudness = number ** -fall[:, None]
    frequency = hertz[:, None] * number
    bins = torch.arange(N_FFT // 2 + 1, device=hertz.device)
    distance = bins - frequency[..., None] * (N_FFT / SAMPLE_RATE)  # [B, harmonic, bin]
    # The spectrum of a Hann window
    lobe = torch.sinc(distance) + (torch.sinc(distance - 1) + torch.sinc(distance + 1)) / 2
    spectrum = (loudness[:, None] @ lobe.square())[:, 0]
    return _to_peak(spectrum @ slaney_filter_bank().to(hertz.device))


def _to_peak(power: Tensor) -> Tensor:
    return power / power.amax(dim=-1, keepdim=True)
