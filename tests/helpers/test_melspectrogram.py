"""The front end, held against the real Essentia, and what must not change it."""

import tracemalloc
from pathlib import Path

import essentia
import librosa
import music21
import numpy as np
import pretty_midi
import pytest
import symusic
import torch
from essentia.standard import FrameGenerator, TensorflowInputMusiCNN

from maest.helpers.audio import constants as mel_constants
from maest.helpers.audio import log_mel as module
from maest.helpers.audio import mel as melspectrogram
from maest.helpers.audio.log_mel import log_mel, log_mel_pieces
from maest.helpers.audio.mel import (
    MelSpectrogram,
    n_frames,
    slaney_filter_bank,
)

essentia.log.warningActive = False

BOUND = 5e-4  # largest error on the log10 scale
LENGTHS = (1, 2, 255, 256, 257, 511, 512, 513, 16_000, 160_000)
SECOND = 16_000


def essentia_log_mel(signal: np.ndarray) -> np.ndarray:
    """What the released models were trained on: [96 bands, T frames]."""
    bands = TensorflowInputMusiCNN()
    frames = FrameGenerator(
        np.ascontiguousarray(signal, np.float32), frameSize=512, hopSize=256, startFromZero=False
    )
    return np.stack([bands(frame) for frame in frames], axis=1)


def ours(signal: np.ndarray) -> np.ndarray:
    return MelSpectrogram()(torch.from_numpy(signal)).numpy()


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def sine(hertz: float | np.ndarray, n: int) -> np.ndarray:
    """A sine, of a frequency that may change over time."""
    phase = np.cumsum(np.broadcast_to(hertz, (n,))) / SECOND
    return np.sin(2 * np.pi * phase).astype(np.float32)


def impulse(n: int, at: int) -> np.ndarray:
    signal = np.zeros(n, np.float32)
    signal[at] = 1
    return signal


SWEEP = np.geomspace(20, 8000, 40_001)
SIGNALS = {
    "noise": noise(40_001),
    "faint noise": 1e-3 * noise(40_001),
    "noise burst": np.concatenate([np.zeros(9000), noise(700), np.zeros(9301)]).astype(np.float32),
    "square wave": np.sign(sine(441.0, 40_001)),
    "chirp": 0.1 * sine(SWEEP, 40_001),
    "loud chirp": sine(SWEEP, 40_001),
    "linear loud chirp": sine(np.linspace(0, 8000, 40_001), 40_001),
    "impulse at the start": impulse(3000, 0),
    "impulse inside": impulse(3000, 1400),
    "impulse at the end": impulse(3000, 2999),
    "constant": np.ones(3000, np.float32),
    "silence": np.zeros(3000, np.float32),
}


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    """Six seconds of a fiddle tune, performed by a SoundFont."""
    tunes = Path(music21.__file__).parent / "corpus" / "ryansMammoth"
    tune = sorted(tunes.glob("*Reel.abc"))[0].read_text("utf-8")
    font = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")
    synthesizer = symusic.Synthesizer(sf_path=str(font), sample_rate=SECOND, quality=2)
    audio = synthesizer.render(symusic.Score.from_abc(tune), stereo=False)[0][: 6 * SECOND]
    assert len(audio) == 6 * SECOND
    assert np.abs(audio).max() > 0
    return (0.9 * audio / np.abs(audio).max()).astype(np.float32)


# ------------------------------------------------------------------ the same as Essentia


@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_agrees_with_essentia(n):
    for signal in (noise(n, seed=n), np.ones(n, np.float32), 0.2 * sine(1234.5, n)):
        expected = essentia_log_mel(signal)
        found = ours(signal)
        assert found.shape == expected.shape == (96, 1 + -(-n // 256))
        assert n_frames(n) == expected.shape[1]
        assert np.abs(found - expected).max() < BOUND


@pytest.mark.parametrize("name", SIGNALS)
def test_every_kind_of_signal_agrees_with_essentia(name):
    expected = essentia_log_mel(SIGNALS[name])
    found = ours(SIGNALS[name])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < BOUND
    if name != "silence":
        assert expected.max() > 0.05, "the signal is no test"


def test_clipping_tones_on_the_edges_of_bands_agree_with_essentia():
    for edge in librosa.mel_frequencies(98, fmin=0, fmax=8000)[1:]:
        tone = np.clip(1.5 * sine(edge, 4000), -1, 1)
        error = np.abs(ours(tone) - essentia_log_mel(tone)).max()
        assert error < BOUND, f"{edge} Hz: {error}"


def test_real_music_agrees_with_essentia(music):
    expected = essentia_log_mel(music)
    assert expected.shape == (96, 376)
    assert np.abs(ours(music) - expected).max() < BOUND


@pytest.mark.parametrize(
    ("periodic", "padding", "too_far", "where"),
    [
        (True, "constant", 0.01, slice(2, -2)),  # the wrong window shows inside
        (False, "reflect", 0.1, slice(None)),  # the wrong padding shows at the ends
    ],
)
def test_the_usual_shortcuts_would_not_agree(music, periodic, padding, too_far, where):
    signal = music[: 256 * 300]
    spectrum = torch.stft(
        torch.from_numpy(signal),
        n_fft=512,
        hop_length=256,
        window=torch.hann_window(512, periodic=periodic),
        center=True,
        pad_mode=padding,
        return_complex=True,
    )
    bank = torch.from_numpy(librosa.filters.mel(sr=16_000, n_fft=512, n_mels=96))
    log_mel = torch.log10(1 + 10_000 * bank @ spectrum.abs().square()).numpy()
    expected = essentia_log_mel(signal)
    assert log_mel.shape == expected.shape
    assert np.abs(log_mel - expected)[:, where].max() > too_far
    assert np.abs(ours(signal) - expected).max() < BOUND


def test_the_filter_bank_is_the_slaney_bank():
    bank = slaney_filter_bank()
    expected = librosa.filters.mel(
        sr=16_000, n_fft=512, n_mels=96, fmin=0, fmax=8000, htk=False, norm="slaney"
    )
    assert bank.dtype == torch.float32
    assert bank.shape == (257, 96)
    assert np.abs(bank.numpy() - expected.T).max() <= 4e-7
    assert bank.sum(dim=0).min() > 0, "a band without a bin"


def test_the_constants_are_those_of_the_released_models():
    assert mel_constants.NORM_MEAN == 2.06755686098554
    assert mel_constants.NORM_STD == 1.268292820667291
    assert (mel_constants.SAMPLE_RATE, mel_constants.N_FFT) == (16_000, 512)
    assert (mel_constants.HOP_LENGTH, mel_constants.N_MELS) == (256, 96)


# ------------------------------------------------------------------ batches, pieces, types


def test_a_batch_is_its_members_one_by_one():
    batch = torch.from_numpy(np.stack([noise(5001, seed) for seed in range(6)]))
    module = MelSpectrogram()
    found = module(batch)
    assert found.shape == (6, 96, 21)
    for one, alone in zip(found, batch, strict=True):
        torch.testing.assert_close(one, module(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(module(batch.view(2, 3, -1)), found.view(2, 3, 96, -1))


@pytest.mark.parametrize("n", [1, 256 * 6, 256 * 7 - 1, 256 * 7, 256 * 7 + 1, 256 * 14, 40_001])
def test_a_long_signal_is_computed_in_pieces_that_do_not_show(monkeypatch, n):
    batch = torch.from_numpy(np.stack([noise(n, seed) for seed in range(2)]))
    whole = MelSpectrogram()(batch)
    monkeypatch.setattr(melspectrogram, "_FRAMES_PER_PIECE", 7)
    pieces = MelSpectrogram()(batch)
    assert pieces.shape == whole.shape == (2, 96, 1 + -(-n // 256))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_computed_in_float32(dtype):
    signal = torch.from_numpy(0.5 * noise(5000)).to(dtype)
    found = MelSpectrogram()(signal)
    assert found.dtype == torch.float32
    assert torch.equal(found, MelSpectrogram()(signal.float()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_constants_stay_when_the_module_is_cast(dtype):
    signal = torch.from_numpy(noise(5000))
    module = torch.nn.Sequential(MelSpectrogram()).to(dtype)
    found = module(signal)
    assert found.dtype == torch.float32
    assert torch.equal(found, MelSpectrogram()(signal))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_of_torch_does_not_reach_the_constants(dtype):
    signal = torch.from_numpy(noise(5000))
    expected = MelSpectrogram()(signal)
    torch.set_default_dtype(dtype)
    try:
        found = MelSpectrogram()(signal)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_autocast_does_not_reach_the_front_end():
    signal = torch.from_numpy(noise(5000))
    module = MelSpectrogram()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(signal)
        half = module(signal.bfloat16())
    assert torch.equal(found, module(signal))
    assert torch.equal(half, module(signal.bfloat16().float()))


def test_the_constants_move_with_the_module_and_are_not_saved():
    module = MelSpectrogram()
    assert module.state_dict() == {}
    moved = torch.nn.Sequential(module).to("meta", torch.float16)[0]
    assert {(b.device.type, b.dtype) for b in moved.buffers()} == {("meta", torch.float32)}
    assert len(list(moved.buffers())) == 2


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_an_empty_signal_is_refused(shape):
    with pytest.raises(ValueError, match="empty"):
        MelSpectrogram()(torch.zeros(shape))


def test_the_signal_is_left_as_it_is():
    signal = torch.from_numpy(noise(3000))
    before = signal.clone()
    MelSpectrogram()(signal)
    assert torch.equal(signal, before)


@pytest.mark.parametrize("block", [777, 100_000])
@pytest.mark.parametrize("samples", [1, 256, 257, 16_001, 70_001])
def test_pieces_are_the_same_whatever_the_blocks(monkeypatch, samples, block):
    monkeypatch.setattr(module, "_FRAMES_PER_PIECE", 60)
    waveform = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    blocks = (waveform[i : i + block] for i in range(0, samples, block))
    pieces = list(log_mel_pieces(blocks))
    assert {len(piece) for piece in pieces[:-1]} <= {60}
    found = np.concatenate(pieces)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, log_mel(waveform))
    whole = MelSpectrogram()(torch.from_numpy(waveform)).T.numpy()
    assert found.shape == whole.shape
    assert np.abs(found - whole).max() < 2e-3  # float16


def test_memory_of_pieces_does_not_grow_with_the_length():
    """Of twenty minutes, 77 MB, no more is held than a piece."""
    block = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    tracemalloc.start()
    try:
        frames = sum(len(piece) for piece in log_mel_pieces(block for _ in range(1_200)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames == 75_001
    assert peak < 6e7
    assert not list(log_mel_pieces([]))
