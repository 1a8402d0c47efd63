"""Audio files: formats, mixing, resampling, the central part, and what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from helpers import audio
from helpers.audio import AudioError, read_audio, stream_audio
from helpers.melspectrogram import MelSpectrogram

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
    path: Path, sound: np.ndarray, codec: str, muxer: dict | None = None, **options: str
) -> None:
    """Encode with FFmpeg: what soundfile does not write."""
    import av

    with av.open(str(path), "w", options=muxer or {}) as container:
        layout = {1: "mono", 2: "stereo"}[sound.shape[1]]
        stream = container.add_stream(codec, rate=RATE, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", layout)
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


def write_in_ogg(path: Path, sound: np.ndarray) -> None:
    """FLAC in Ogg, by FFmpeg."""
    import av

    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("flac", rate=RATE, layout="stereo", format="s16")
        integers = (sound.reshape(1, -1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(integers, "s16", "stereo")
        frame.sample_rate, frame.pts = RATE, 0
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


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "m4a"])
def test_central_part_of_compressed_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        write_encoded(path, music(12), "aac", bit_rate="192000")
    else:
        soundfile.write(path, music(12), RATE)
    whole, part = read_audio(path), read_audio(path, 3.0)
    assert len(part) == 48_000
    start = (len(whole) - 48_000) // 2
    if suffix == "m4a":  # its last frame of 1,024 is filled up, and the whole that much longer
        around = range(start - 400, start + 1)
        start = min(around, key=lambda i: np.abs(whole[i : i + 48_000] - part).max())
    np.testing.assert_allclose(part, whole[start : start + 48_000], atol=0.02)


def test_no_more_than_the_central_part_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.mp3"
    soundfile.write(path, music(30), RATE)
    decoded = []

    class Counting(soundfile.SoundFile):
        def read(self, *args, **kwargs):
            block = super().read(*args, **kwargs)
            decoded.append(len(block))
            return block

    monkeypatch.setattr(audio.soundfile, "SoundFile", Counting)
    assert len(read_audio(path, 5.0)) == 80_000
    assert 5 * RATE <= sum(decoded) <= 5.6 * RATE


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


def test_an_mp3_that_does_not_tell_its_length_is_read_to_its_end(tmp_path):
    """Silence first: the estimate from the first frames' size is far off."""
    sound = music(20)
    sound[: 10 * RATE] = 0
    path = tmp_path / "a.mp3"
    write_encoded(path, sound, "libmp3lame", {"write_xing": "0"}, flags="+qscale", q="2")
    assert not any(tag in path.read_bytes() for tag in (b"Xing", b"Info"))
    found = read_audio(path)
    assert abs(len(found) - 320_000) < 2_000
    assert np.abs(found[: 9 * 16_000]).max() < 1e-3
    assert np.sqrt(np.mean(found[19 * 16_000 : int(19.8 * 16_000)] ** 2)) > 0.05
    tagged = tmp_path / "tagged.mp3"  # an ID3 tag longer than where the length would be looked for
    tagged.write_bytes(b"ID3\x04\x00\x00\x00\x00\x40\x00" + b"\0" * 8192 + path.read_bytes())
    assert len(read_audio(tagged)) == len(found)
    assert len(read_audio(path, 4.0)) == 64_000


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.aiff", "a.mp3", "tagged.mp3", "c.mp3"])
def test_a_missing_end_is_told(tmp_path, name, share):
    path = tmp_path / name
    soundfile.write(path, music(10), RATE, subtype=None if "mp3" in name else "PCM_16")
    content = path.read_bytes()
    if name == "tagged.mp3":
        content = b"ID3\x04\x00\x00\x00\x00\x40\x00" + b"\0" * 8192 + content
    if name == "c.mp3":  # frames only, no bytes: Xing's flags are 15
        assert content[36:44] == b"Xing\0\0\0\x0f"
        content = content[:43] + b"\x01" + content[44:]
    path.write_bytes(content)
    assert abs(len(read_audio(path)) - 160_000) < 2_000
    path.write_bytes(content[: int(len(content) * share)])
    for seconds in (None, 2.0):
        if seconds and share == 0.9 and name == "c.mp3":
            continue  # its centre is there, and nothing tells without decoding the rest
        with pytest.raises(AudioError, match=r"end is missing: .* promises 10\.0 s"):
            read_audio(path, seconds)
    # A frame or two are not what anybody misses.
    path.write_bytes(content[: int(len(content) * 0.97)])
    assert abs(len(read_audio(path)) - 155_000) < 2_500
    assert len(read_audio(path, 2.0)) == 32_000


def ogg(path: Path, subtype: str, seconds: float, seed: int = 0) -> bytes:
    soundfile.write(path, music(seconds, 48_000, 1, seed), 48_000, format="OGG", subtype=subtype)
    return path.read_bytes()


OGG_END = r"^its end is missing: the last page of the Ogg stream is not there$"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_its_last_page(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content = ogg(path, subtype, 10)
    last = content.rfind(b"OggS")
    assert abs(len(read_audio(path)) - 160_000) < 100
    cuts = [100, 20_000, len(content) // 2, last, last + 3, last + 5, last + 20, last + 27]
    for size in (*cuts, len(content) - 1):
        path.write_bytes(content[:size])
        for read in (read_audio, lambda p: read_audio(p, 2.0), lambda p: next(stream_audio(p))):
            with pytest.raises(AudioError, match=OGG_END):
                read(path)
    path.rename(tmp_path / "a.spx")  # a name for FFmpeg
    with pytest.raises(AudioError, match=OGG_END):
        read_audio(tmp_path / "a.spx")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_what_may_stand_behind_an_ogg_or_before_it(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content, other = ogg(path, subtype, 4), ogg(path, subtype, 3, seed=1)
    id3 = b"ID3\x04\x00\x00\x00\x00\x10\x00" + b"\0" * 2048
    for whole, seconds in (
        (content + b"TAG" + b"\0" * 125, 4),
        (content + os.urandom(3000), 4),
        (content + b"\0" * 70_000, 4),
        (id3 + content, 4),
        (content + other, 7),
    ):
        path.write_bytes(whole)
        assert abs(len(read_audio(path)) - seconds * 16_000) < 400
        assert sum(len(block) for block in stream_audio(path)) == len(read_audio(path))
        assert len(read_audio(path, 2.0)) == 32_000
    for cut in ((content + other)[:-10_000], (id3 + content)[:-5000]):
        path.write_bytes(cut)
        with pytest.raises(AudioError, match=OGG_END):
            read_audio(path)


def test_flac_in_ogg(tmp_path):
    path = tmp_path / "a.oga"
    write_in_ogg(path, music(5))
    assert len(read_audio(path)) == 80_000
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=OGG_END):
        read_audio(path)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0])
def test_a_wav_that_was_streamed_does_not_tell_its_length(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, music(3, channels=1), RATE, subtype="PCM_16")
    content = path.read_bytes()
    assert content[36:40] == b"data"
    path.write_bytes(content[:40] + size.to_bytes(4, "little") + content[44:])
    if size:
        assert len(read_audio(path)) == 48_000
    else:
        with pytest.raises(AudioError, match="no audio"):
            read_audio(path)


def test_a_film_whose_end_is_missing(tmp_path):
    """Its index, at the start, tells the length; PCM has no packet that a cut breaks."""
    path = tmp_path / "a.mov"
    write_encoded(path, music(10), "pcm_f32le", {"movflags": "faststart"})
    content = path.read_bytes()
    assert len(read_audio(path)) == 160_000
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError):
        read_audio(path)


@pytest.mark.parametrize("seconds", [None, 2.0])
def test_a_flac_without_its_length_is_read_to_its_end(tmp_path, seconds):
    """As it is when FLAC is written to a pipe: 36 bits of STREAMINFO are 0."""
    path = tmp_path / "a.flac"
    soundfile.write(path, music(5), RATE)
    expected = read_audio(path, seconds)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert soundfile.SoundFile(path).frames > 2**62
    np.testing.assert_allclose(read_audio(path, seconds), expected, atol=1e-6)


def test_floats_on_the_scale_of_integers_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, 32768 * music(1), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"up to 1\.\d+e\+04.*16-bit integers"):
        read_audio(path)
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


def truncated_flac(path: Path) -> None:
    soundfile.write(path, music(5), RATE)
    path.write_bytes(path.read_bytes()[:100_000])


def with_nan(path: Path) -> None:
    sound = music(1, 16_000, 1)
    sound[7] = np.nan
    soundfile.write(path, sound, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("gone.wav", lambda path: None, "no such file"),
        ("dangling.wav", lambda path: path.symlink_to("nowhere"), "no such file"),
        ("folder.mp3", lambda path: path.mkdir(), "is a folder, not a file"),
        ("empty.mp3", lambda path: path.touch(), "empty"),
        ("header.wav", lambda path: soundfile.write(path, np.zeros(0), RATE), "no audio"),
        ("text.flac", lambda path: path.write_text("no music" * 1000), "cannot decode|no audio"),
        ("noise.m4a", lambda path: path.write_bytes(os.urandom(5000)), "cannot decode|no audio"),
        ("cut.flac", truncated_flac, "damaged"),
        ("nan.wav", with_nan, "1 of 16000 samples are NaN"),
    ],
)
@pytest.mark.parametrize("seconds", [None, 0.5])
def test_what_cannot_be_read_says_why(tmp_path, name, make, reason, seconds):
    make(tmp_path / name)
    with pytest.raises(AudioError, match=reason):
        read_audio(tmp_path / name, seconds if name != "nan.wav" else None)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_length_out_of_range(tmp_path, seconds):
    with pytest.raises(ValueError, match="positive"):
        read_audio(tmp_path / "a.wav", seconds)
