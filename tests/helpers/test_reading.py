"""Audio files: formats, mixing, resampling, the central part, block by block; and refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from made_up import refuses
from music import noise
from sounds import RATE, at_16_khz, centre_of, chords, write

from maest.helpers.audio import decoding
from maest.helpers.audio.blocks import Meter, mel_warnings
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.audio.patches import PatchPlan
from maest.helpers.audio.reading import AudioError, read_audio, stream_audio
from maest.helpers.results import tracks as results
from maest.helpers.results.tracks import read_audio_mel


def drain(path: Path) -> np.ndarray:
    return np.concatenate(list(stream_audio(path)))


def read_part(path: Path) -> np.ndarray:
    return read_audio(path, 0.5)


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return any(link.exists() and link.samefile(path) for link in links)


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [
        *[("wav", rate, 1) for rate in (2_000, 8_000, 11_025, 16_000, 22_050, 48_000, 192_000)],
        *[(suffix, RATE, 2) for suffix in ("wav", "flac", "aiff", "au", "caf", "w64", "rf64")],
        *[("wav", 48_000, 6), ("flac", 48_000, 6), ("wav", 48_000, 8)],
    ],
)
def test_lossless_formats_give_the_mean_of_the_channels_at_16_khz(tmp_path, suffix, rate, channels):
    sound, path = chords(5.3, rate, channels), tmp_path / f"a.{suffix}"
    write(path, sound, rate, subtype="PCM_24")
    blocks = list(stream_audio(path))
    whole = read_audio(path)
    assert {(block.dtype, block.ndim) for block in blocks} == {(np.dtype(np.float32), 1)}
    assert 0 < min(map(len, blocks)) <= max(map(len, blocks)) < 100_000
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_allclose(whole, at_16_khz(sound, rate), atol=1e-6)
    np.testing.assert_allclose(read_audio(path, 2.37), centre_of(whole, 2.37), atol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [
        *[(suffix, 2) for suffix in ("mp3", "ogg", "opus", "m4a", "mka", "mov", "m4v", "avi")],
        *[("mkv", 1), ("ogg", 6), ("m4a", 6), ("ac3", 6)],
    ],
)
def test_lossy_formats_are_in_place(tmp_path, suffix, channels):
    sound, path = chords(5, 48_000, channels), tmp_path / f"a.{suffix}"
    rates = {"bit_rate": "448000"} if suffix in ("m4a", "mka", "ac3") else {}
    write(path, sound, 48_000, **rates)
    whole, expected = read_audio(path), at_16_khz(sound, 48_000)
    np.testing.assert_array_equal(drain(path), whole)
    assert abs(len(whole) - 80_000) <= 800  # the last frame is filled up
    # AC-3 and MP2 do not tell their encoders' delays.
    delays = range(500) if suffix in ("ac3", "avi") else range(1)
    likeness = [np.corrcoef(whole[d:][:78_000], expected[:78_000])[0, 1] for d in delays]
    assert max(likeness) > 0.98
    # A quarter of a millisecond aside it is another signal.
    late = likeness.index(max(likeness)) + 4
    assert np.corrcoef(whole[late:][:78_000], expected[:78_000])[0, 1] < 0.98
    assert np.std(whole) == pytest.approx(np.std(expected), rel=0.1)
    atol = 0.04 if suffix in ("m4a", "m4v", "mov") else 1e-6  # AAC's noise (PNS) is made anew
    np.testing.assert_allclose(read_audio(path, 3.0), centre_of(whole, 3.0), atol=atol)


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        *[("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-24)],
        *[("FLOAT", 0), ("DOUBLE", 0), ("ULAW", 0.02), ("ALAW", 0.02), ("IMA_ADPCM", 0.1)],
    ],
)
def test_kinds_of_samples(tmp_path, subtype, step):
    sound = chords(1, 16_000, 1)
    write(tmp_path / "a.wav", sound, 16_000, subtype=subtype)
    found = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(found[:16_000], sound[:, 0], atol=step + 1e-7)


def test_mel_is_that_of_essentia_and_its_loader(tmp_path):
    """Up to 7 kHz; above, the two resamplers roll off differently."""
    import essentia

    essentia.log.infoActive = essentia.log.warningActive = False
    from essentia.standard import FrameGenerator, MonoLoader, TensorflowInputMusiCNN

    path = tmp_path / "a.wav"
    write(path, chords(6))
    loaded = MonoLoader(filename=str(path), sampleRate=16_000)()
    bands = TensorflowInputMusiCNN()
    frames = FrameGenerator(loaded, frameSize=512, hopSize=256, startFromZero=False)
    expected = np.array([bands(frame) for frame in frames])
    found = MelSpectrogram()(torch.from_numpy(read_audio(path))).T.numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[:, :85], expected[:, :85], atol=2e-3)


NAMES = ["two\nlines.wav", "-rf.mp3", "http:.flac", "...dots", "\u4e16 cafe\u0301.wav", "x" * 240]
NAMES += [os.fsdecode(b"caf\xe9.wav"), "a 'b' \"c\" [d] (e) & f; $g `h` %d{0}$ #1 *?.ogg"]


def test_neither_name_nor_suffix_counts(tmp_path):
    content = write(tmp_path / "a.m4a", chords(0.2))
    expected = read_audio(tmp_path / "a.m4a")
    for name in NAMES:
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_audio(str(tmp_path / name)), expected)


def test_one_sample(tmp_path):
    """One at 16 kHz or less gives at least one; at a higher rate it depends on rounding."""
    for rate, samples, found in ((8_000, 1, 2), (16_000, 1, 1), (22_050, 1, 1), (RATE, 2, 1)):
        write(tmp_path / "a.wav", np.full(samples, 0.5), rate)
        for seconds in (None, 1.0):
            assert len(read_audio(tmp_path / "a.wav", seconds)) == found


@pytest.mark.parametrize(
    ("codec", "suffix", "first", "second"),
    [
        ("aac", "aac", (RATE, 2), (48_000, 2)),
        ("mp2", "ac3", (RATE, 2), (48_000, 2)),
        ("mp2", "ac3", (RATE, 1), (RATE, 2)),
        ("ac3", "ac3", (48_000, 2), (RATE, 1)),
    ],
)
def test_rate_and_channels_may_change_midway(tmp_path, codec, suffix, first, second):
    """As in recordings of a radio stream."""
    path, content = tmp_path / f"joined.{suffix}", b""
    for rate, channels in (first, second):
        tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate)
        tones = np.tile(tone[:, None], (1, channels)).astype(np.float32)
        content += write(tmp_path / f"piece.{codec}", tones, rate)
    path.write_bytes(content)
    found = read_audio(path)
    np.testing.assert_array_equal(drain(path), found)
    assert abs(len(found) - 64_000) < 1_600
    for start in (8_000, 40_000):  # the tone is where it was, in both
        assert np.abs(np.fft.rfft(found[start : start + 16_000])).argmax() == 1000


@pytest.mark.parametrize("priming", [0, 1024, 2112])
def test_the_central_part_of_an_m4a_whose_edit_list_drops_its_priming(tmp_path, priming):
    path = tmp_path / "a.m4a"
    content = write(path, chords(12), bit_rate="192000")
    at = content.find(b"elst") + 16  # behind version, flags, number of edits, duration
    assert content[at : at + 4] == (1024).to_bytes(4, "big")
    path.write_bytes(content[:at] + priming.to_bytes(4, "big") + content[at + 4 :])
    whole, part = read_audio(path), read_audio(path, 3.0)
    start = (len(whole) - 48_000) // 2
    errors = [np.std(part - whole[start + i : start + i + 48_000]) for i in (-1, 0, 1)]
    assert np.argmin(errors) == 1
    assert errors[1] < 0.01


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The samples of each frame that is decoded."""
    samples = []

    class Counting(decoding.Sound):
        def frames(self):
            for frame in super().frames():
                samples.append(frame.samples)
                yield frame

    monkeypatch.setattr(decoding, "Sound", Counting)
    return samples


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a"])
def test_no_more_than_the_central_part_and_the_end_are_decoded(tmp_path, decoded, suffix):
    path = tmp_path / f"a.{suffix}"
    write(path, chords(30))
    assert len(read_audio(path, 5.0)) == 80_000
    assert 5 * RATE <= sum(decoded) <= 9 * RATE


def test_a_file_shorter_than_the_part_is_read_as_a_whole(tmp_path):
    sound = noise(2)
    write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    for seconds in (2.0, 2.5):
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", seconds), sound[:, 0])


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_length_out_of_range(tmp_path, seconds):
    with refuses("invalid", setting="seconds"):
        read_audio(tmp_path / "a.wav", seconds)


def cut_off(path: Path) -> None:
    content = write(path, chords(5))
    path.write_bytes(content[: len(content) // 2])


def samples(*values: float, rate: int = 16_000):
    """What writes a file of these samples, a second long at most."""
    return lambda path: write(path, np.tile(np.float32(values), (rate, 1)), rate, subtype="FLOAT")


def playlist(*lines: str):
    return lambda path: path.write_text("\n".join([*lines, ""]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "make", "kinds"),
    [
        ("gone.wav", lambda path: None, "missing"),
        ("dangling.wav", lambda path: path.symlink_to("nowhere"), "missing"),
        ("loop.wav", lambda path: path.symlink_to(path.name), "missing"),
        ("folder.mp3", Path.mkdir, "invalid"),
        ("pipe.wav", os.mkfifo, "invalid"),
        ("empty.mp3", Path.touch, "empty"),
        ("header.wav", lambda path: write(path, np.zeros(0)), "empty"),
        ("short.wav", lambda path: write(path, np.ones(1)), "empty"),
        ("text.flac", lambda path: path.write_text("no music" * 1000), ("corrupt", "empty")),
        ("noise.m4a", lambda path: path.write_bytes(os.urandom(5000)), ("corrupt", "empty")),
        ("cut.flac", cut_off, "corrupt"),
        ("cut.wav", cut_off, "corrupt"),
        ("nan.wav", samples(np.nan), "invalid"),
        ("opposed.wav", samples(np.inf, -np.inf), "invalid"),  # their mean is NaN
        ("integers.wav", samples(9_000), "invalid"),
        ("1 Hz.wav", samples(0, rate=1), "unsupported"),
        ("slow.wav", samples(0, rate=1_999), "unsupported"),
        # A playlist opens no other file and no address.
        ("a.mp3", playlist("ffconcat version 1.0", f"file {__file__}"), "corrupt"),
        ("b.mp3", playlist("#EXTM3U", "#EXT-X-TARGETDURATION:9", "#EXTINF:9,", "a"), "corrupt"),
        ("c.mp3", playlist("v=0", "c=IN IP4 127.0.0.1", "m=audio 5004 RTP/AVP 0"), "corrupt"),
    ],
)
@pytest.mark.parametrize("read", [read_audio, drain, read_part])
def test_what_cannot_be_read(tmp_path, capfd, name, make, kinds, read):
    path = tmp_path / name
    make(path)
    with pytest.raises(AudioError) as caught:
        read(path)
    assert caught.value.kind in kinds
    assert (caught.value.path, caught.value.hint[-1]) == (path, ".")
    # Even while somebody holds the error, and with its traceback all that was under way.
    assert caught.value.__traceback__
    assert not path.is_file() or not is_open(path)
    assert capfd.readouterr() == ("", "")  # libraries do not name the file


@pytest.mark.parametrize(("owner", "name"), [(Path, "open"), (decoding, "_channels")])
def test_errors_of_the_disk_are_no_damage_to_the_file(tmp_path, monkeypatch, owner, name):
    write(tmp_path / "a.wav", chords(1))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(owner, name, fail)
    with refuses("access", "a.wav"):
        read_audio(tmp_path / "a.wav")


def test_loud_floats_are_read(tmp_path):
    write(tmp_path / "a.wav", 10 * chords(1), subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "a.wav")).max() > 2


def test_a_missing_end_is_refused_before_the_first_block(tmp_path):
    content = write(tmp_path / "a.wav", chords(60, 16_000), 16_000)
    (tmp_path / "a.wav").write_bytes(content[:1_000_000])
    with refuses("corrupt", "a.wav"):
        next(stream_audio(tmp_path / "a.wav"))


@pytest.mark.parametrize("rate", [16_000, RATE])
def test_what_precedes_nan_is_handed_on(tmp_path, rate):
    sound = chords(30, rate, 1)
    sound[20 * rate] = np.nan
    write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    blocks = []
    with refuses("invalid", "a.wav"):
        blocks.extend(stream_audio(tmp_path / "a.wav"))
    assert 15 < sum(map(len, blocks)) / 16_000 < 20


@pytest.mark.parametrize("suffix", [".flac", ".m4a"])
def test_the_file_is_open_no_longer_than_the_iterator(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, chords(12))
    stream = stream_audio(path)
    assert not is_open(path)
    next(stream)
    assert is_open(path)
    stream.close()
    assert not is_open(path)
    assert list(stream) == []
    assert len(drain(path)) >= 192_000
    assert not is_open(path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mka"])
def test_memory_is_flat(tmp_path, suffix):
    """An hour: 230 MB as samples. The content is WAV's or FLAC's."""
    path, kind = tmp_path / f"a{suffix}", "FLAC" if suffix == ".flac" else "WAV"
    minute = np.tile(np.arange(-8_000, 8_000, dtype=np.int16), 60)
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16", format=kind) as file:
        for _ in range(60):
            file.write(minute)

    def memory(name: str) -> float:  # MB
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present
    before = memory("VmRSS")
    assert sum(map(len, stream_audio(path))) == 3600 * 16_000
    assert memory("VmHWM") - before < 30


@pytest.mark.parametrize(
    ("sound", "expected"),
    [
        (chords(1.5), []),
        (np.zeros((2 * RATE, 2)), ["silent"]),
        (chords(1.5, channels=1) * [1, -1], ["channels cancel"]),
        (chords(1.5, channels=1) * [1, -0.5], []),
        (chords(1.5) * [1, 0], []),
        (chords(0.1), ["0.1 s only"]),
        (chords(0.999), ["0.99 s only"]),
        (np.zeros((RATE // 2, 2)), ["silent", "0.5 s only"]),
    ],
)
def test_warnings_after_the_last_block(tmp_path, sound, expected):
    write(tmp_path / "a.wav", sound)
    meter = Meter()
    assert list(stream_audio(tmp_path / "a.wav", None, meter))
    assert meter.warnings() == expected


def test_warnings_of_a_log_mel():
    assert mel_warnings(64, 0.1) == []
    assert mel_warnings(64, 0) == ["silent"]
    assert mel_warnings(26, 0.1) == ["0.4 s only"]
    assert mel_warnings(2, 0) == ["silent", "0.02 s only"]


# ---- a few windows -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus", "m4a", "aiff", "mka"])
def test_a_few_windows_are_those_of_the_whole_file(tmp_path, decoded, suffix):
    path, plan = tmp_path / f"a.{suffix}", PatchPlan(62, most=3)
    write(path, chords(30.2, 48_000), 48_000)
    whole, _ = read_audio_mel(path, tmp_path)
    decoded.clear()
    few, warnings = read_audio_mel(path, tmp_path, plan=plan)
    assert (len(few), few.dtype, warnings) == (len(whole), np.float16, [])
    heard = np.zeros(len(whole), bool)
    for first, last in plan.spans(len(whole)):
        heard[first:last] = True
    errors = np.abs(few[heard].astype(float) - whole[heard])
    assert errors.max() < (1 if suffix == "m4a" else 0.01)  # AAC's noise (PNS) is made anew
    assert errors.mean() < 0.01
    if suffix != "mka":  # FFmpeg finds no exact position there
        assert not few[~heard].any()
        assert sum(decoded) < 12 * 48_000


@pytest.mark.parametrize("frames_in_memory", [10, 10_000])
def test_windows_at_both_ends(tmp_path, monkeypatch, frames_in_memory):
    monkeypatch.setattr(results, "FRAMES_IN_MEMORY", frames_in_memory)
    path = tmp_path / "a.wav"
    write(path, chords(12.83), RATE)
    whole, _ = read_audio_mel(path, tmp_path)
    spans = [(0, 40), (1, 30), (700, len(whole))]
    monkeypatch.setattr(PatchPlan, "spans", lambda plan, frames: spans)
    few, _ = read_audio_mel(path, tmp_path, plan=PatchPlan(40, most=3))
    for first, last in spans:
        np.testing.assert_allclose(few[first:last], whole[first:last], atol=2e-3)
    assert isinstance(few, np.memmap) == (frames_in_memory == 10)


def test_a_file_that_is_hardly_longer_than_its_windows_is_read_as_a_whole(tmp_path):
    write(tmp_path / "a.wav", chords(3), RATE)
    few, _ = read_audio_mel(tmp_path / "a.wav", tmp_path, plan=PatchPlan(62, most=2))
    assert (few.max(axis=1) > 0).all()
