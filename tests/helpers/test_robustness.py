"""Augmentation of power, against plain loops and the front end; and sounds that are no music."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from maest.helpers.audio.mel import front_end
from maest.helpers.training import blank as no_music
from maest.helpers.training import robustness
from maest.helpers.training.blank import blank
from maest.helpers.training.robustness import distorted

RATE = 16_000
FRAME = 256 / RATE  # seconds
EACH = {
    "gain": 6.0,
    "tilt": 12.0,
    "band_limit_share": 1.0,
    "noise_share": 1.0,
    "reverb_share": 1.0,
    "pitch_shift": 2.0,
    "tempo_shift": 0.1,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def sine(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    """Its log-mel, [1, T, 96]."""
    time = torch.arange(round(seconds * RATE)) / RATE
    return front_end()(0.3 * torch.sin(2 * np.pi * hertz * time)).T[None]


def random_power(clips: int = 3, frames: int = 40) -> torch.Tensor:
    return 1000 * torch.rand(clips, frames, 96) ** 4


def to_power(mel: torch.Tensor) -> np.ndarray:
    return 10 ** mel.double().numpy() - 1


def by_clip(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def reading(values: np.ndarray, at: float) -> np.ndarray:
    """Between two rows, and nothing beyond them."""
    below, share = int(np.floor(at)), at % 1
    padded = np.concatenate([np.zeros_like(values[:1]), values, np.zeros_like(values[:1])])
    if not -1 <= below < len(values):
        return np.zeros_like(values[0])
    return (1 - share) * padded[below + 1] + share * padded[below + 2]


def test_off_gives_the_same_tensor_and_draws_nothing():
    mel, targets = torch.rand(2, 20, 96), torch.rand(2, 3)
    before = torch.get_rng_state()
    assert distorted(mel, noise_snr=20) is mel
    same = blank(mel, targets, 0)
    assert same[0] is mel
    assert same[1] is targets
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("on", [*({name: value} for name, value in EACH.items()), EACH])
def test_each_changes_every_clip_in_its_own_way_repeatably(on, dtype):
    mel = torch.cat([sine(440)] * 3).to(dtype)
    before = mel.clone()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(distorted(mel, **on))
    first, again, other = results
    assert (first.shape, first.dtype) == (mel.shape, dtype)
    assert torch.equal(mel, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not any(torch.equal(a, b) for a, b in zip(first, first.roll(1, 0), strict=True))
    assert torch.isfinite(first).all()
    assert (first >= 0).all()


def test_silence_stays_silence():
    silence = torch.zeros(2, 20, 96)
    assert torch.equal(distorted(silence, **EACH), silence)


def test_half_precision_does_not_reach_the_power():
    mel = (5 * torch.rand(2, 70, 96)).half()

    def run(half: bool) -> torch.Tensor:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return distorted(mel, **EACH)

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("name", ["noise_share", "reverb_share", "band_limit_share"])
def test_a_share_of_the_clips(name):
    mel = torch.cat([sine(440, 0.1)] * 400)
    changed = ((distorted(mel, **{name: 0.25}) - mel).abs() > 0.001).any(2).any(1)
    # Both filters, or one of them, at 0.25 each
    expected = 1 - 0.75**2 if name == "band_limit_share" else 0.25
    assert changed.float().mean() == pytest.approx(expected, abs=0.08)


def test_gain_is_in_decibels_of_the_sound():
    mel = torch.cat([sine(1000)] * 200)
    loud = mel[0, 20] > 1
    louder = 10 * np.log10(to_power(distorted(mel, gain=6)) / (to_power(mel) + 1e-9))[:, 20, loud]
    np.testing.assert_allclose(louder, louder[:, :1].repeat(louder.shape[1], 1), atol=0.01)
    assert -6 <= louder.min() < -5 < 5 < louder.max() <= 6
    time = torch.arange(RATE) / RATE
    heard = front_end()(0.6 * torch.sin(2 * np.pi * 1000 * time)).T[20, loud]  # twice as loud
    np.testing.assert_allclose(to_power(heard) / to_power(mel[0, 20, loud]), 4, rtol=1e-3)


def test_tilt_is_linear_in_bands_and_no_gain_in_the_middle():
    mel = torch.full((200, 2, 96), 3.0)
    tilted = 10 * np.log10(to_power(distorted(mel, tilt=12)) / to_power(mel))[:, 0]
    np.testing.assert_allclose(np.diff(tilted), np.diff(tilted)[:, :1].repeat(95, 1), atol=2e-3)
    np.testing.assert_allclose(tilted[:, 47] + tilted[:, 48], 0, atol=2e-3)
    rise = tilted[:, -1] - tilted[:, 0]
    assert -12 <= rise.min() < -10 < 10 < rise.max() <= 12


def test_filters_fall_to_their_depth():
    taken = robustness.band_limit(by_clip(80, 10), by_clip(8, -4), by_clip(40, 20)).numpy()
    for band in range(96):
        low_pass = 40 * min(1, max(0, band - 80) / 8)
        high_pass = 20 * min(1, max(0, 10 - band) / 4)
        np.testing.assert_allclose(taken[:, band], [low_pass, high_pass], rtol=1e-6)


def test_band_limits_leave_the_middle():
    mel = torch.full((400, 1, 96), 5.0)
    limited = 10 * np.log10(to_power(distorted(mel, band_limit_share=1)) / to_power(mel))[:, 0]
    low, high = (float(robustness.band_at(by_clip(hertz))) for hertz in (400, 3500))
    middle = slice(int(np.ceil(low)), int(high) + 1)
    assert np.abs(limited[:, middle]).max() < 1e-3
    assert (np.diff(limited[:, middle.start :]) < 1e-3).all()  # falls outwards
    assert (np.diff(limited[:, : middle.stop]) > -1e-3).all()
    for edge in (limited[:, -1], limited[:, 0]):
        assert -60.01 < edge.min() < -40
        assert edge.max() < 0


def test_bands_are_where_the_front_end_has_them():
    for band in (0, 3, 40, 70, 95):
        hertz = float(robustness.hertz_at(torch.tensor(float(band))))
        assert sine(hertz)[0, 20].argmax() == band
        assert float(robustness.band_at(by_clip(hertz))) == pytest.approx(band, abs=1e-3)


def test_pitch_by_a_loop():
    power, ratios = random_power(), (0.8, 1.0, 1.3)
    moved = robustness.pitch_shifted(power, by_clip(*ratios)).numpy()
    for clip, ratio in enumerate(ratios):
        for band in range(96):
            hertz = robustness.hertz_at(torch.tensor(float(band))) / ratio
            at = float(robustness.band_at(hertz))
            expected = reading(power[clip].numpy().T, at)
            np.testing.assert_allclose(moved[clip, :, band], expected, rtol=1e-3, atol=0.05)
    assert moved[0, :, 95].max() == 0  # of 10 kHz nothing is known


def test_tempo_by_a_loop():
    power, speeds = random_power(), (0.9, 1.0, 1.25)
    changed = robustness.tempo_changed(power, by_clip(*speeds)).numpy()
    assert np.array_equal(changed[1], power[1].numpy())
    for clip, speed in enumerate(speeds):
        endless = np.concatenate([power[clip].numpy()] * 2)
        for frame in range(40):
            expected = reading(endless, frame * speed)
            np.testing.assert_allclose(changed[clip, frame], expected, rtol=1e-3, atol=0.01)


def test_reverberation_by_a_loop():
    power, rt60, wet = random_power(frames=90), (0.1, 0.3, 0.8), (0.5, 0.0, 0.7)
    fading = robustness.reverberated(power, by_clip(*rt60), by_clip(*wet)).numpy()
    assert np.array_equal(fading[1], power[1].numpy())
    for clip in range(3):
        decay, tail = 10 ** (-6 * FRAME / rt60[clip]), np.zeros(96)
        for frame in range(90):
            tail = decay * tail + (1 - decay) * power[clip, frame].numpy()
            expected = (1 - wet[clip]) * power[clip, frame].numpy() + wet[clip] * tail
            np.testing.assert_allclose(fading[clip, frame], expected, rtol=1e-4, atol=1e-4)


def test_drawn_ratios_lie_between_the_lowest_and_40_decibels():
    mel = torch.log10(1 + random_power(200, 100))
    signal, both = to_power(mel), to_power(distorted(mel, noise_share=1, noise_snr=5))
    ratio = 10 * np.log10(signal.mean((1, 2)) / (both - signal).mean((1, 2)))
    assert 4.5 < ratio.min() < 8 < 37 < ratio.max() < 40.5


def test_white_noise_is_as_the_front_end_hears_it():
    heard = to_power(front_end()(torch.randn(60 * RATE)).T)[2:-2]
    drawn = robustness.noise(by_clip(0), len(heard))[0].double().numpy()
    heard /= heard.mean()
    np.testing.assert_allclose(drawn.mean(0), heard.mean(0), atol=0.08)
    np.testing.assert_allclose(drawn.std(0), heard.std(0), rtol=0.15)


def test_coloured_noise_rises_by_its_slope():
    drawn = robustness.noise(by_clip(-30), 5_000)[0].double().numpy().mean(0)
    white = robustness.noise(by_clip(0), 5_000)[0].double().numpy().mean(0)
    decibels = 10 * np.log10(drawn / white)
    rise = np.polyfit(np.linspace(0, 1, 96), decibels, 1)[0]
    assert rise == pytest.approx(-30, abs=0.5)
    assert drawn.mean() == pytest.approx(1, abs=0.02)


def test_no_music_has_no_targets_not_even_unknown_ones():
    mel, targets = torch.rand(8, 30, 96).half(), torch.full((8, 3), torch.nan)
    new, none = blank(mel, targets, 0.5)
    assert (new.dtype, new.shape) == (mel.dtype, mel.shape)
    assert torch.equal(new[4:], mel[4:])
    assert not any(torch.equal(a, b) for a, b in zip(new[:4], mel[:4], strict=True))
    assert (none[:4] == 0).all()
    assert none[4:].isnan().all()
    assert targets.isnan().all()


def test_of_a_fraction_of_a_clip_chance_decides():
    mel, targets = torch.rand(4, 2, 96), torch.ones(4, 1)
    replaced = [4 - blank(mel, targets, 0.1)[1].sum() for _ in range(500)]
    assert set(map(int, replaced)) == {0, 1}
    assert np.mean(replaced) == pytest.approx(0.4, abs=0.1)


SILENCE, TONES, CLICKS, NOISE = range(4)


@pytest.fixture
def power_of(monkeypatch) -> Callable[[int], torch.Tensor]:
    """Draw 100 clips of one kind: power [N, 300, 96] of those that are not silent."""

    def draw(kind: int) -> torch.Tensor:
        monkeypatch.setattr(torch, "randint", lambda high, size, device: torch.full(size, kind))
        mels = no_music.no_music(100, 300, torch.device("cpu"))
        assert torch.isfinite(mels).all()
        assert (mels >= 0).all()
        return 10 ** mels[mels.any(2).any(1)].double() - 1

    return draw


def spectra(power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each clip the loudest frame [N, 96], and the level of each frame beside it [N, 300]."""
    loudest = power.sum(2).argmax(1)
    spectrum = power[torch.arange(len(power)), loudest]
    level = power.sum(2) / spectrum.sum(1, keepdim=True)
    return spectrum, level


@pytest.mark.parametrize("kind", [TONES, CLICKS])
def test_tones_and_clicks_have_one_spectrum_and_change_in_level_only(power_of, kind):
    power = power_of(kind)
    spectrum, level = spectra(power)
    expected = level[..., None] * spectrum[:, None]
    torch.testing.assert_close(power, expected, rtol=1e-2, atol=1e-2)
    assert 4 < torch.log10(1 + spectrum.amax(1)).max() < 5.0001


def test_tones_are_steady_or_beep(power_of):
    spectrum, level = spectra(power_of(TONES))
    assert set(level.round(decimals=4).unique().tolist()) == {0, 1}
    steady = (level > 0.5).all(1).double().mean()  # a beep's share of its period: 0.1 to 2
    assert 1 / 1.9 - 0.2 < steady < 1 / 1.9 + 0.2
    narrow = (spectrum > 0.01 * spectrum.amax(1, keepdim=True)).sum(1) < 12
    assert 0.3 < narrow.double().mean() < 0.9  # half are pure


def test_clicks_have_all_bands_and_silence_between_them(power_of):
    spectrum, level = spectra(power_of(CLICKS))
    heard = spectrum.amax(1) > 100  # below, log10(1 + power) hides the slope in rounding
    slopes = 10 * torch.log10(spectrum[heard] / spectrum[heard].roll(1, 1))[:, 1:]
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), rtol=0, atol=0.05)
    assert ((level > 0).double().mean(1) < 0.5).all()
    counts = (level[heard] > 0).sum(1)
    assert counts.min() >= 1
    assert counts.max() > 20


def test_noise_changes_in_every_frame_and_band(power_of):
    power = power_of(NOISE)
    deviation = power.std(1) / power.mean(1)
    assert (deviation[power.mean((1, 2)) > 1] > 0.2).all()


def test_a_quarter_is_silent():
    mels = no_music.no_music(400, 300, torch.device("cpu"))
    assert 0.15 < (~mels.any(2).any(1)).float().mean() < 0.4  # and some irregular clicks


@pytest.mark.parametrize("hertz", [55.0, 440.0, 1234.0, 4000.0])
def test_tones_are_as_the_front_end_hears_them(hertz):
    time = torch.arange(RATE) / RATE
    harmonics = [(k, k**-1.0) for k in range(1, 17) if k * hertz < 7_900]
    for fall, sound in ((torch.inf, [(1, 1.0)]), (2.0, harmonics)):
        wave = sum(a * torch.sin(2 * np.pi * k * hertz * time) for k, a in sound)
        heard = to_power(front_end()(wave).T)[10:50].mean(0)
        made = no_music.tone(by_clip(hertz), by_clip(fall))[0].numpy()
        loud = heard > 1e-3 * heard.max()
        np.testing.assert_allclose(made[loud], (heard / heard.max())[loud], rtol=0.1, atol=2e-3)
