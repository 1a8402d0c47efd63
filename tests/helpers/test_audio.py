"""Audio files: formats, mixing, resampling, and the central part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from maest.helpers.audio import decoding
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.audio.reading import AudioError, read_audio
from maest.helpers.errors import InputError

RATE = 44_100


def music(seconds: float, rate: int = RATE, channels: int = 2, seed: int = 0) -> np.ndarray:
    """[frames, channels] float32: chords that change twice a second, over noise; it fades in."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    t = np.arange(n) / rate
    chords = rng.integers(40, 80, (int(2 * seconds) + 1, 3))
    tones = 440 * 2 ** ((chords[(2 * t).astype(int)] - 69) / 12)
    phase = 2 * np.pi * np.cumsum(tones, axis=0) / rate
    sound = 0.15 * (np.sin(phase) + 0.3 * np.sin(3 * phase)).sum(axis=1)
    parts = [sound + 0.02 * rng.standard_normal(n) for _ in range(channels)]
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.1) if n else t
    return (np.stack(parts, axis=1) * fade[:, None]).astype(np.float32)


def write_encoded(
    path: Path,
    sound: np.ndarray,
    codec: str,
    muxer: dict | None = None,
    rate: int = 0,
    **options: str,
) -> None:
    """Encode with FFmpeg: what soundfile does not write."""
    import av

    with av.open(str(path), "w", options=muxer or {}) as container:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[1]]
        stream = container.add_stream(codec, rate=rate or RATE, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", layout)
        frame.sample_rate, frame.pts = rate or RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


def resampled(sound: np.ndarray, rate: int = RATE) -> np.ndarray:
    return soxr.resample(sound.mean(axis=1), rate, 16_000, quality="HQ")


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_lossless_formats_give_the_mean_of_the_channels_at_16_khz(tmp_path, suffix):
    sound = music(3)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound, RATE, subtype="PCM_24")
    found = read_audio(path)
    assert found.dtype == np.float32
    assert found.shape == (48_000,)
    np.testing.assert_allclose(found, resampled(sound), atol=1e-6)


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "m4a"])
def test_lossy_formats_are_in_place(tmp_path, suffix):
    sound = music(5)
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        write_encoded(path, sound, "aac", bit_rate="192000")
    else:
        soundfile.write(path, sound, RATE)
    found, expected = read_audio(path), resampled(sound)
    assert abs(len(found) - len(expected)) <= 400  # AAC: the last frame of 1,024 is filled up
    n = min(len(found), len(expected))
    assert np.corrcoef(found[:n], expected[:n])[0, 1] > 0.99
    # A quarter of a millisecond aside it is another signal.
    assert np.corrcoef(found[4:n], expected[: n - 4])[0, 1] < 0.98


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_are_averaged(tmp_path, channels):
    sound = music(0.5, 16_000, channels)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sound.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [2.0, 3.37])
def test_central_part_is_that_of_the_whole(tmp_path, rate, seconds):
    path = tmp_path / "a.flac"
    soundfile.write(path, music(7.123, rate), rate)
    whole, part = read_audio(path), read_audio(path, seconds)
    keep = round(seconds * 16_000)
    start = (len(whole) - keep) // 2
    assert len(part) == keep
    np.testing.assert_allclose(part, whole[start : start + keep], atol=1e-6)


@pytest.mark.parametrize(
    "suffix", ["wav", "aiff", "au", "caf", "w64", "mp3", "ogg", "opus", "m4a", "mka"]
)
def test_central_part_of_other_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix in ("m4a", "mka"):
        write_encoded(path, music(12), "aac", bit_rate="192000")
    elif suffix == "opus":
        soundfile.write(path, music(12, 48_000), 48_000, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, music(12), RATE)
    whole, part = read_audio(path), read_audio(path, 3.0)
    start = (len(whole) - 48_000) // 2
    assert len(part) == 48_000
    atol = 0.02 if suffix == "m4a" else 1e-6  # AAC's noise (PNS) is another where it begins
    np.testing.assert_allclose(part, whole[start : start + 48_000], atol=atol)


@pytest.mark.parametrize("priming", [0, 1024, 2112])
def test_central_part_of_an_m4a_whose_edit_list_drops_its_priming(tmp_path, priming):
    path = tmp_path / "a.m4a"
    write_encoded(path, music(12), "aac", bit_rate="192000")
    content = path.read_bytes()
    at = content.find(b"elst") + 16  # behind version, flags, number of edits, duration
    assert content[at : at + 4] == (1024).to_bytes(4, "big")
    path.write_bytes(content[:at] + priming.to_bytes(4, "big") + content[at + 4 :])
    whole, part = read_audio(path), read_audio(path, 3.0)
    start = (len(whole) - 48_000) // 2
    errors = [np.std(part - whole[start + i : start + i + 48_000]) for i in (-1, 0, 1)]
    assert np.argmin(errors) == 1
    assert errors[1] < 0.01


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a"])
def test_no_more_than_the_central_part_and_the_end_are_decoded(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        write_encoded(path, music(30), "aac")
    else:
        soundfile.write(path, music(30), RATE)
    decoded = []

    class Counting(decoding._Sound):
        def frames(self):
            for frame in super().frames():
                decoded.append(frame.samples)
                yield frame

    monkeypatch.setattr(decoding, "_Sound", Counting)
    assert len(read_audio(path, 5.0)) == 80_000
    assert 5 * RATE <= sum(decoded) <= 9 * RATE


def test_a_file_shorter_than_the_part_is_read_as_a_whole(tmp_path):
    sound = music(2, 16_000, 1)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 2.5), sound[:, 0])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 2.0), sound[:, 0])


def test_mel_is_that_of_essentia_and_its_loader(tmp_path):
    """Up to 7 kHz; above, the two resamplers roll off differently."""
    import essentia

    essentia.log.infoActive = essentia.log.warningActive = False
    from essentia.standard import FrameGenerator, MonoLoader, TensorflowInputMusiCNN

    path = tmp_path / "a.wav"
    soundfile.write(path, music(6), RATE)
    loaded = MonoLoader(filename=str(path), sampleRate=16_000)()
    bands = TensorflowInputMusiCNN()
    frames = FrameGenerator(loaded, frameSize=512, hopSize=256, startFromZero=False)
    expected = np.array([bands(frame) for frame in frames])
    found = MelSpectrogram()(torch.from_numpy(read_audio(path))).T.numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[:, :85], expected[:, :85], atol=2e-3)


def test_floats_on_the_scale_of_integers_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, 32768 * music(1), RATE, subtype="FLOAT")
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert caught.value.kind == "invalid"
    soundfile.write(path, 10 * music(1), RATE, subtype="FLOAT")
    assert np.abs(read_audio(path)).max() > 2


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mov", "aac"), ("mkv", "aac"), ("m4v", "aac"), ("avi", "mp2")]
)
def test_the_sound_of_films(tmp_path, suffix, codec):
    path = tmp_path / f"a.{suffix}"
    write_encoded(path, music(3), codec)
    found = read_audio(path)
    assert abs(len(found) - 48_000) < 400
    assert len(read_audio(path, 1.0)) == 16_000


def test_the_content_counts_where_the_suffix_is_wrong(tmp_path):
    write_encoded(tmp_path / "a.m4a", music(2), "aac")
    (tmp_path / "b.mp3").write_bytes((tmp_path / "a.m4a").read_bytes())
    (tmp_path / "c.wav").write_bytes((tmp_path / "a.m4a").read_bytes())
    expected = read_audio(tmp_path / "a.m4a")
    np.testing.assert_array_equal(read_audio(tmp_path / "b.mp3"), expected)
    np.testing.assert_array_equal(read_audio(tmp_path / "c.wav"), expected)


def test_a_name_need_not_be_text(tmp_path):
    for suffix in (b".wav", b".m4a"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + suffix))
        if suffix == b".wav":
            soundfile.write(tmp_path / "a.wav", music(1), RATE)
            (tmp_path / "a.wav").rename(path)
        else:
            write_encoded(tmp_path / "a.m4a", music(1), "aac")
            (tmp_path / "a.m4a").rename(path)
        assert len(read_audio(path)) >= 16_000


def test_one_sample_and_silence(tmp_path):
    soundfile.write(tmp_path / "one.wav", np.array([0.5], np.float32), 16_000, subtype="FLOAT")
    assert read_audio(tmp_path / "one.wav").tolist() == [0.5]
    soundfile.write(tmp_path / "silence.wav", np.zeros((RATE, 2)), RATE)
    assert not read_audio(tmp_path / "silence.wav").any()


@pytest.mark.parametrize("rate", [1, 100, 1_999])
def test_rates_that_no_music_has_are_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(4_000), rate)
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / "a.wav")
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 0),
        ("DOUBLE", 0),
        ("ULAW", 0.02),
        ("ALAW", 0.02),
        ("IMA_ADPCM", 0.1),
    ],
)
def test_kinds_of_samples(tmp_path, subtype, step):
    sound = music(1, 16_000, 1)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype=subtype)
    found = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(found[:16_000], sound[:, 0], atol=step + 1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "m4a", "ac3"])
def test_a_mix_of_six_channels_does_not_depend_on_the_format(tmp_path, suffix):
    sound = music(2, 48_000, 6)
    path = tmp_path / f"a.{suffix}"
    if suffix in ("m4a", "ac3"):
        codec = {"m4a": "aac", "ac3": "ac3"}[suffix]
        write_encoded(path, sound, codec, rate=48_000, bit_rate="448000")
    else:
        soundfile.write(path, sound, 48_000)
    found, expected = read_audio(path), resampled(sound, 48_000)
    delays = range(100 if suffix == "ac3" else 1)  # AC-3 does not tell its encoder's, of 256
    assert max(np.corrcoef(found[d:][:30_000], expected[:30_000])[0, 1] for d in delays) > 0.98
    assert np.std(found) == pytest.approx(np.std(expected), rel=0.1)


def test_nothing_is_written_to_the_terminal(tmp_path, capfd):
    """Libraries do not name the file that they complain about."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, music(5), RATE)
    content = path.read_bytes()
    half = len(content) // 2
    for damaged in (content[:half] + bytes(5000) + content[half + 5000 :], b"no music" * 1000):
        path.write_bytes(damaged)
        with suppress(AudioError):
            read_audio(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_length_out_of_range(tmp_path, seconds):
    with pytest.raises(InputError) as caught:
        read_audio(tmp_path / "a.wav", seconds)
    assert caught.value.setting == "seconds"
