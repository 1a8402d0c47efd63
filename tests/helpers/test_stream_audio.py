"""Audio block by block: what the whole is, in flat memory, with the same refusals, files closed."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_audio import RATE, music, write_encoded
from test_audio_damage import numbers

from maest.helpers.audio import decoding
from maest.helpers.audio.blocks import mel_warnings, regrouped
from maest.helpers.audio.reading import AudioError, read_audio, stream_audio

LONGEST = 70_000  # samples of a block, as the docstring says


def drain(path: Path) -> list[np.ndarray]:
    return list(stream_audio(path))


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return any(link.exists() and link.samefile(path) for link in links)


def write(path: Path, sound: np.ndarray, rate: int) -> None:
    """Encode as the suffix says."""
    if path.suffix in (".m4a", ".mkv"):
        write_encoded(path, sound, "aac")
    else:
        soundfile.write(path, sound, rate)


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("a.wav", 2_000, 1),
        ("a.wav", 8_000, 1),
        ("a.wav", 16_000, 1),
        ("a.wav", RATE, 2),
        ("a.wav", 192_000, 1),
        ("a.wav", 48_000, 8),
        ("a.flac", RATE, 2),
        ("a.mp3", RATE, 2),
        ("a.ogg", RATE, 2),
        ("a.m4a", RATE, 2),
        ("a.mkv", RATE, 1),
    ],
)
def test_the_blocks_are_the_whole(tmp_path, name, rate, channels):
    seconds = 75 if rate == 2_000 else 9.3
    sound = music(seconds, rate, channels)
    write(tmp_path / name, sound, rate)
    blocks = drain(tmp_path / name)
    assert len(blocks) > 2
    assert all(b.dtype == np.float32 and b.ndim == 1 and 0 < len(b) <= LONGEST for b in blocks)
    found = np.concatenate(blocks)
    np.testing.assert_array_equal(found, read_audio(tmp_path / name))
    assert abs(len(found) - seconds * 16_000) < 800  # AAC: the last frame is filled up
    assert np.abs(found).max() > 0.1


def test_blocks_that_were_handed_on_do_not_change(tmp_path):
    soundfile.write(tmp_path / "a.wav", music(20, 16_000, 1), 16_000)
    stream = stream_audio(tmp_path / "a.wav")
    first = next(stream)
    before = first.copy()
    next(stream)
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("size", [1, 7, 10, 64, 1000])
def test_regrouped_blocks(size):
    samples = np.arange(100, dtype=np.float32)
    pieces = np.split(samples, [0, 3, 4, 40, 40, 99])
    blocks = list(regrouped(pieces, size))
    np.testing.assert_array_equal(np.concatenate(blocks), samples)
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size


def truncated_flac(path: Path) -> None:
    soundfile.write(path, music(5), RATE)
    path.write_bytes(path.read_bytes()[:100_000])


def with_nan(path: Path) -> None:
    soundfile.write(path, np.full(RATE, np.nan), RATE, subtype="FLOAT")


def promises_more(path: Path) -> None:
    """The end of a WAV is missing."""
    soundfile.write(path, music(60, 16_000, 1), 16_000)
    path.write_bytes(path.read_bytes()[:1_000_000])


def too_loud(path: Path) -> None:
    soundfile.write(path, 32768 * music(1), RATE, subtype="FLOAT")


def opposed_infinities(path: Path) -> None:
    """Their mean is NaN."""
    soundfile.write(path, np.tile(np.float32([np.inf, -np.inf]), (99, 1)), 16_000, subtype="FLOAT")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "make", "kinds"),
    [
        ("gone.wav", lambda path: None, "missing"),
        ("dangling.wav", lambda path: path.symlink_to("nowhere"), "missing"),
        ("loop.wav", lambda path: path.symlink_to(path.name), "missing"),
        ("folder.mp3", lambda path: path.mkdir(), "invalid"),
        ("pipe.wav", lambda path: os.mkfifo(path), "invalid"),
        ("empty.mp3", lambda path: path.touch(), "empty"),
        ("header.wav", lambda path: soundfile.write(path, np.zeros(0), RATE), "empty"),
        ("text.flac", lambda path: path.write_text("no music" * 1000), ("corrupt", "empty")),
        ("noise.m4a", lambda path: path.write_bytes(os.urandom(5000)), ("corrupt", "empty")),
        ("cut.flac", truncated_flac, "corrupt"),
        ("promises.wav", promises_more, "corrupt"),
        ("nan.wav", with_nan, "invalid"),
        ("infinite.wav", opposed_infinities, "invalid"),
        ("loud.wav", too_loud, "invalid"),
        ("short.wav", lambda path: soundfile.write(path, [0.5], RATE), "empty"),
    ],
)
@pytest.mark.parametrize("read", [read_audio, drain, lambda path: read_audio(path, 0.5)])
def test_what_cannot_be_read(tmp_path, name, make, kinds, read):
    path = tmp_path / name
    make(path)
    with pytest.raises(AudioError) as caught:
        read(path)
    assert caught.value.kind in kinds
    assert caught.value.path == path
    assert caught.value.hint
    # Even while somebody holds the error, and with its traceback all that was under way.
    assert caught.value.__traceback__
    assert not path.is_file() or not is_open(path)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile song.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsong.wav\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
)
def test_a_playlist_opens_no_other_file_and_no_address(tmp_path, text):
    soundfile.write(tmp_path / "song.wav", music(0.1), RATE)
    (tmp_path / "list.mp3").write_text(text)
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / "list.mp3")
    assert caught.value.kind == "corrupt"


@pytest.mark.parametrize("read", [read_audio, drain])
def test_no_permission(tmp_path, monkeypatch, read):
    soundfile.write(tmp_path / "a.wav", music(0.1), RATE)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError) as caught:
        read(tmp_path / "a.wav")
    assert caught.value.kind == "access"


def test_a_disk_that_fails_midway(tmp_path, monkeypatch):
    """It is no damage to the file."""
    soundfile.write(tmp_path / "a.wav", music(60), RATE)
    stream = stream_audio(tmp_path / "a.wav")
    next(stream)

    def fail(frame):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(decoding, "_channels", fail)
    with pytest.raises(AudioError) as caught:
        list(stream)
    assert caught.value.kind == "access"


def test_missing_bytes_are_told_before_the_first_block(tmp_path):
    promises_more(tmp_path / "a.wav")
    with pytest.raises(AudioError) as caught:
        next(stream_audio(tmp_path / "a.wav"))
    assert numbers(caught.value) == [31.2, 60.0]


@pytest.mark.parametrize("rate", [16_000, RATE])
def test_nan_is_told_where_it_is(tmp_path, rate):
    sound = music(30, rate, 1)
    sound[20 * rate] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    blocks = []
    with pytest.raises(AudioError) as caught:
        blocks.extend(stream_audio(tmp_path / "a.wav"))
    assert numbers(caught.value) == [pytest.approx(20, abs=0.2)]
    seconds = sum(len(block) for block in blocks) / 16_000
    assert 15 < seconds < 20  # what comes before it had been handed on


def test_one_sample(tmp_path):
    """One at 16 kHz or less gives at least one; at a higher rate it depends on rounding."""
    for rate, found in ((8_000, 2), (16_000, 1), (22_050, 1)):
        soundfile.write(tmp_path / "a.wav", [0.5], rate)
        assert len(read_audio(tmp_path / "a.wav")) == found
        assert [len(block) for block in drain(tmp_path / "a.wav")] == [found]
    assert len(read_audio(tmp_path / "a.wav", 1.0)) == 1
    soundfile.write(tmp_path / "a.wav", [0.5] * 2, RATE)
    assert len(read_audio(tmp_path / "a.wav")) == 1


@pytest.mark.parametrize("suffix", [".wav", ".m4a", ".ogg"])
@pytest.mark.parametrize(
    "name",
    [
        b"two\nlines",
        b"caf\xe9",
        "\uc138\uc0c1\uc5d0 \u4e16\u754c".encode(),
        "\N{MUSICAL SCORE} cafe\u0301".encode(),
        b"a 'b' \"c\" [d] (e) & f; $g `h` %d{0}$ #1 *?",
        b"...dots.",
        b"-rf",
        b"x" * 204,
        b"http:",
    ],
)
def test_any_name(tmp_path, name, suffix):
    write(tmp_path / f"a{suffix}", music(1), RATE)
    path = tmp_path / (os.fsdecode(name) + suffix)
    (tmp_path / f"a{suffix}").rename(path)
    found = np.concatenate(drain(path))
    assert len(found) >= 16_000
    np.testing.assert_array_equal(found, read_audio(str(path)))


@pytest.mark.parametrize("suffix", [".flac", ".m4a"])
def test_the_file_is_open_no_longer_than_the_iterator(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, music(12), RATE)
    stream = stream_audio(path)
    assert not is_open(path)
    next(stream)
    assert is_open(path)
    stream.close()
    assert not is_open(path)
    with pytest.raises(StopIteration):
        next(stream)
    stream = stream_audio(path)
    assert sum(len(block) for block in stream) >= 192_000
    assert not is_open(path)


@pytest.mark.parametrize(
    ("codec", "suffix", "first", "second"),
    [
        ("aac", "aac", (RATE, 2), (48_000, 2)),
        ("mp2", "ac3", (RATE, 2), (48_000, 2)),
        ("mp2", "ac3", (RATE, 1), (RATE, 2)),
        ("ac3", "ac3", (48_000, 2), (RATE, 1)),
    ],
)
def test_pieces_of_different_make_in_one_stream(
    tmp_path, monkeypatch, codec, suffix, first, second
):
    """As in recordings of a radio stream: rate and channels change midway; FFmpeg is to read it."""
    content = b""
    for i, (rate, channels) in enumerate((first, second)):
        monkeypatch.setattr("test_audio.RATE", rate)
        t = np.arange(2 * rate) / rate
        tone = 0.5 * np.sin(2 * np.pi * 1000 * t)[:, None].astype(np.float32)
        piece = tmp_path / f"{i}.{codec}"
        write_encoded(piece, np.tile(tone, (1, channels)), codec)
        content += piece.read_bytes()
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(content)
    found = np.concatenate(drain(path))
    np.testing.assert_array_equal(found, read_audio(path))
    assert abs(len(found) - 64_000) < 1_600
    for start in (8_000, 40_000):  # the tone is where it was, in both
        spectrum = np.abs(np.fft.rfft(found[start : start + 16_000]))
        assert spectrum.argmax() == 1000


@pytest.mark.parametrize("suffix", [".wav", ".mka"])
def test_memory_is_flat(tmp_path, suffix):
    """20 minutes: 77 MB as samples. A name for FFmpeg has FFmpeg read it."""
    rate, path = 32_000, tmp_path / f"a{suffix}"
    second = (10_000 * music(1, rate, 1)).astype(np.int16)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="WAV") as file:
        for _ in range(20):
            file.write(np.tile(second, (60, 1)))
    tracemalloc.start()
    try:
        samples = sum(len(block) for block in stream_audio(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert samples == 20 * 60 * 16_000
    assert peak < 4e6


PEAK = """
import sys
import av
from maest.helpers.audio.reading import stream_audio

def peak():  # of this program alone, in MB; getrusage's is its parent's too
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before = peak()
samples = sum(len(block) for block in stream_audio(sys.argv[1]))
print(samples, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".flac", ".mka"])
def test_ten_hours_take_no_more_memory_than_one_block(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    minute = np.tile(np.arange(-8_000, 8_000, dtype=np.int16), 60)
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(600):
            file.write(minute)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    samples, growth = done.stdout.split()
    assert int(samples) == 36_000 * 16_000
    assert float(growth) < 30  # MB; as samples it would be 2,300


@pytest.mark.parametrize(
    ("sound", "expected"),
    [
        (music(1.5), []),
        (np.zeros((2 * RATE, 2)), ["silent"]),
        (music(1.5, channels=1) * [1, -1], ["channels cancel"]),
        (music(1.5, channels=1) * [1, -0.5], []),
        (music(1.5) * [1, 0], []),
        (music(0.1), ["0.1 s only"]),
        (music(0.999), ["0.99 s only"]),
        (np.zeros((RATE // 2, 2)), ["silent", "0.5 s only"]),
    ],
)
def test_warnings_are_complete_after_the_last_block(tmp_path, sound, expected):
    soundfile.write(tmp_path / "a.wav", sound, RATE)
    stream = stream_audio(tmp_path / "a.wav")
    next(stream)
    samples = sum(len(block) for block in stream)
    assert samples < len(sound)
    assert stream.warnings == expected
    stream = stream_audio(tmp_path / "a.wav")
    assert list(stream)
    assert stream.warnings == expected


@pytest.mark.parametrize(
    ("frames", "peak", "expected"),
    [
        (64, 0.1, []),
        (64, 0, ["silent"]),
        (26, 0.1, ["0.4 s only"]),
        (2, 0, ["silent", "0.02 s only"]),
    ],
)
def test_warnings_of_a_log_mel(frames, peak, expected):
    assert mel_warnings(frames, peak) == expected
