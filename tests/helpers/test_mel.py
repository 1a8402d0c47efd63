"""The front end, held against the real Essentia, and what must not change it."""

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
from folders import peak_memory

from maest.helpers.audio import constants
from maest.helpers.audio.log_mel import log_mel, log_mel_pieces
from maest.helpers.audio.mel import MelSpectrogram, n_frames, slaney_filter_bank

essentia.log.warningActive = False

BOUND = 5e-4  # largest error on the log10 scale
RATE = 16_000


def essentia_log_mel(signal: np.ndarray) -> np.ndarray:
    """What the released models were trained on: [96 bands, T frames]."""
    signal, bands = np.ascontiguousarray(signal, np.float32), TensorflowInputMusiCNN()
    frames = FrameGenerator(signal, frameSize=512, hopSize=256, startFromZero=False)
    return np.stack([bands(frame) for frame in frames], axis=1)


def ours(signal: np.ndarray) -> np.ndarray:
    return MelSpectrogram()(torch.from_numpy(signal)).numpy()


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def sine(hertz: float | np.ndarray, n: int) -> np.ndarray:
    """A sine, of a frequency that may change over time."""
    phase = np.cumsum(np.broadcast_to(hertz, (n,))) / RATE
    return np.sin(2 * np.pi * phase).astype(np.float32)


def impulse(at: int) -> np.ndarray:
    return (np.arange(3000) == at).astype(np.float32)


def music() -> np.ndarray:
    """Six seconds of a fiddle tune, performed by a SoundFont."""
    tunes = Path(music21.__file__).parent / "corpus" / "ryansMammoth"
    tune = sorted(tunes.glob("*Reel.abc"))[0].read_text("utf-8")
    font = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")
    synthesizer = symusic.Synthesizer(sf_path=str(font), sample_rate=RATE, quality=2)
    audio = synthesizer.render(symusic.Score.from_abc(tune), stereo=False)[0][: 6 * RATE]
    return (0.9 * audio / np.abs(audio).max()).astype(np.float32)


SWEEP = np.geomspace(20, 8000, 40_001)
SIGNALS = {
    "music": music(),
    "noise": noise(40_001),
    "faint noise": 1e-3 * noise(40_001),
    "noise burst": np.concatenate([np.zeros(9000), noise(700), np.zeros(9301)]).astype(np.float32),
    "square wave": np.sign(sine(441.0, 40_001)),
    "chirp": 0.1 * sine(SWEEP, 40_001),
    "loud chirp": sine(SWEEP, 40_001),
    "linear loud chirp": sine(np.linspace(0, 8000, 40_001), 40_001),
    **{f"impulse at {at}": impulse(at) for at in (0, 1400, 2999)},
    "constant": np.ones(3000, np.float32),
    "silence": np.zeros(3000, np.float32),
    # Clipping tones on the edges of bands
    **{
        f"{edge:.0f} Hz": np.clip(1.5 * sine(edge, 4000), -1, 1)
        for edge in librosa.mel_frequencies(98, fmin=0, fmax=8000)[1:-1]
    },
    **{f"{n} samples": noise(n, n) for n in (1, 2, 255, 256, 257, 511, 512, 513, 16_000, 160_000)},
}


@pytest.mark.parametrize("name", SIGNALS)
def test_the_front_end_is_essentias(name):
    signal = SIGNALS[name]
    expected, found = essentia_log_mel(signal), ours(signal)
    assert found.shape == expected.shape == (96, 1 + -(-len(signal) // 256))
    assert n_frames(len(signal)) == found.shape[1]
    assert np.abs(found - expected).max() < BOUND
    assert name == "silence" or expected.max() > 0.02, "the signal is no test"


def test_the_filter_bank_is_the_slaney_bank():
    expected = librosa.filters.mel(sr=RATE, n_fft=512, n_mels=96, fmin=0, fmax=8000, norm="slaney")
    found = slaney_filter_bank()
    assert (found.dtype, found.shape) == (torch.float32, (257, 96))
    assert np.abs(found.numpy() - expected.T).max() <= 4e-7


def test_the_constants_are_those_of_the_released_models():
    assert (constants.NORM_MEAN, constants.NORM_STD) == (2.06755686098554, 1.268292820667291)
    assert (constants.SAMPLE_RATE, constants.N_FFT) == (16_000, 512)
    assert (constants.HOP_LENGTH, constants.N_MELS) == (256, 96)


def test_a_batch_is_its_members_one_by_one():
    batch = torch.from_numpy(np.stack([noise(5001, seed) for seed in range(6)]))
    before, module = batch.clone(), MelSpectrogram()
    found = module(batch)
    assert torch.equal(batch, before)
    assert found.shape == (6, 96, 21)
    for one, alone in zip(found, batch, strict=True):
        torch.testing.assert_close(one, module(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(module(batch.view(2, 3, -1)), found.view(2, 3, 96, -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_it_computes_in_float32_whatever_the_types(dtype):
    signal = torch.from_numpy(0.5 * noise(5000)).to(dtype)
    expected = MelSpectrogram()(signal.float())
    torch.set_default_dtype(dtype)
    try:
        found = [MelSpectrogram()(signal)]
    finally:
        torch.set_default_dtype(torch.float32)
    found += [torch.nn.Sequential(MelSpectrogram()).to(dtype)(signal)]
    if dtype != torch.float64:
        with torch.autocast("cpu", dtype=dtype):
            found += [MelSpectrogram()(signal), MelSpectrogram()(signal.float())]
    for mel in found:
        assert mel.dtype == torch.float32
        assert torch.equal(mel, expected)


def test_the_constants_move_with_the_module_and_are_not_saved():
    module = MelSpectrogram()
    assert module.state_dict() == {}
    moved = torch.nn.Sequential(module).to("meta", torch.float16)[0]
    assert [(b.device.type, b.dtype) for b in moved.buffers()] == 2 * [("meta", torch.float32)]


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_an_empty_signal_is_refused(shape):
    with pytest.raises(ValueError, match="empty"):
        MelSpectrogram()(torch.zeros(shape))


@pytest.mark.parametrize("samples", [1, 256, 257, 262_144, 262_145, 600_001])
def test_pieces_do_not_show_whatever_the_blocks(samples):
    waveform = noise(samples)
    found = log_mel(waveform)
    assert (found.dtype, len(found)) == (np.float16, n_frames(samples))
    for block in (9_999, 700_000):
        blocks = [waveform[i : i + block] for i in range(0, samples, block)]
        pieces = list(log_mel_pieces(blocks))
        assert max(map(len, pieces)) <= 1_024
        np.testing.assert_array_equal(np.concatenate(pieces), found)
    np.testing.assert_allclose(found, ours(waveform).T, atol=2e-3)  # float16


def test_the_pieces_of_four_minutes_do_not_show():
    signal, module = torch.from_numpy(noise(256 * 16_400)), MelSpectrogram()
    whole = module(signal)
    first = 16_374  # ten frames before a piece ends
    part = signal[256 * first - 256 : 256 * (first + 20) + 256]
    torch.testing.assert_close(whole[:, first : first + 21], module.of_padded(part))


def test_memory_of_pieces_does_not_grow_with_the_length():
    """Twenty minutes have 77 MB; a piece at a time is in memory."""
    block = noise(RATE)
    pieces = log_mel_pieces(block for _ in range(1_200))
    frames, peak = peak_memory(lambda: sum(map(len, pieces)))
    assert frames == 75_001
    assert peak < 1e7
    assert not list(log_mel_pieces([]))
