"""Damaged audio files, and files that only look damaged."""

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from made_up import refuses
from sounds import RATE, centre_of, chords, pitch, sweep, write

from maest.helpers.audio.reading import AudioError, read_audio, stream_audio


def refusal(path: Path, seconds: float | None = None) -> list[float]:
    """The seconds in a refusal: where the damage is (none: at the end), decoded, of how many."""
    with refuses("corrupt", path.name) as caught:
        read_audio(path, seconds)
    return [float(number) for number in re.findall(r"\d+\.\d+", caught.value.message)]


def length(path: Path, seconds: float | None = None) -> float:
    return len(read_audio(path, seconds)) / 16_000


def mp3(path: Path, seconds: float = 6, vbr: bool = True, header: bool = True, **tone) -> bytes:
    """An MP3; without a header it is its frames only, which tell no length."""
    mode = {"bitrate_mode": "VARIABLE" if vbr else "CONSTANT", "compression_level": 0.5}
    sound = sweep(seconds, **tone)
    content = write(path, sound, tone.get("rate", RATE), format="MP3", **mode)
    if not header:
        tag = max(content.find(b"Xing"), content.find(b"Info"))
        content = content[content.find(content[:2], tag) :]
    path.write_bytes(content)
    return content


def encoded(path: Path, seconds: float = 6) -> bytes:
    """A rising tone in the format of the suffix; for MP3 see the stem."""
    if path.suffix == ".mp3":
        return mp3(path, seconds, vbr="cbr" not in path.stem, header="raw" not in path.stem)
    rate = 48_000 if path.suffix == ".opus" else RATE
    pcm = {"codec": "pcm_f32le"} if path.suffix == ".mov" else {}
    index_first = {"movflags": "faststart"} if path.suffix in (".m4a", ".mov") else None
    return write(path, sweep(seconds, rate), rate, muxer=index_first, **pcm)


def id3(body: bytes) -> bytes:
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + body


PICTURE = id3(b"APIC" + np.random.default_rng(0).bytes(300_000))
TAILS = {
    "ID3v1": b"TAG" + b"x" * 125,
    "ID3v2": id3(b"TXXX" + bytes(900)),
    "APE": b"APETAGEX" + struct.pack("<4I8x", 2000, 300, 1, 0xA0000000) + b"x" * 300,
    "Lyrics3": b"LYRICSBEGIN" + b"x" * 4000 + b"004000LYRICS200",
    "zeros": bytes(3000),
    "padding": b"\xaa" * 4000,
    "a web page": b"<html><body>" * 500,
}
FORMATS = ["a.mp3", "raw.mp3", "raw cbr.mp3", "a.flac", "a.wav", "a.ogg", "a.opus", "a.m4a"]
FORMATS += ["a.mka", "a.aac", "a.mp2", "a.ac3", "a.eac3", "a.wv", "a.tta"]


@pytest.mark.parametrize("name", FORMATS)
def test_tails_are_ignored(tmp_path, name):
    path = tmp_path / name
    content = encoded(path)
    expected = length(path)
    for kind, tail in TAILS.items():
        path.write_bytes(content + tail)
        assert length(path) == pytest.approx(expected, abs=0.05), kind  # AC-3: less a last frame
        assert length(path, 2.0) == 2, kind


BEFORE = [bytes(1), bytes(70_000), b"\xaa" * 5_000, PICTURE]
BEFORE += [id3(bytes(8192)), id3(b"a") + id3(b"b")]
# Words that an MP3's header has, too
BEFORE += [id3(b"a") + id3(w) for w in (b"More Information", b"Xing", bytes(6000) + b"Info")]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("before", range(len(BEFORE) + 1))
def test_tags_before_the_first_frame(tmp_path, before, header):
    path = tmp_path / "a.mp3"
    content = mp3(path, header=header)
    frames = id3(b"APIC" + content[len(content) // 2 :][:4000] * 50)  # a picture of frames
    for cut in (0, 137):  # a first frame that is cut in two
        path.write_bytes([*BEFORE, frames][before] + content[cut:])
        assert length(path) == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize("content", [id3(bytes(3000)), PICTURE + TAILS["ID3v1"], TAILS["ID3v1"]])
def test_tags_without_audio(tmp_path, content):
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / "a.mp3")
    assert caught.value.kind in ("corrupt", "empty")


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("header", [True, False])
def test_tiny_mp3s(tmp_path, seconds, header):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(path, seconds, header=header) + TAILS["ID3v1"])
    assert length(path) == pytest.approx(seconds, abs=0.06)


@pytest.mark.parametrize("frames", [0, 115, 230])
@pytest.mark.parametrize("vbr", [True, False])
def test_a_wrong_number_of_frames_ends_nothing(tmp_path, frames, vbr):
    path = tmp_path / "a.mp3"
    content = mp3(path, vbr=vbr)
    assert content[36:40] in (b"Xing", b"Info")
    path.write_bytes(content[:44] + frames.to_bytes(4, "big") + content[48:])
    assert length(path) == pytest.approx(6, abs=0.03)
    assert pitch(read_audio(path, 2.0), 1.0) == pytest.approx(300 + 200 * 3.05, abs=30)


VBR = {"flags": "+qscale", "q": "2"}


@pytest.mark.parametrize(
    ("name", "muxer", "options"),
    [
        ("a.mp3", {"write_xing": "0"}, {"codec": "libmp3lame"} | VBR),
        ("a.mka", {"live": "1"}, {"codec": "libmp3lame"} | VBR),
        ("a.mka", {"live": "1"}, {"codec": "aac"}),
        ("a.mka", {"live": "1"}, {"codec": "pcm_f32le"}),
    ],
)
def test_a_file_without_a_length_is_read_to_its_end(tmp_path, name, muxer, options):
    """It begins with silence, so that FFmpeg's estimate of its length is far off."""
    sound, path = chords(20), tmp_path / name
    sound[: 10 * RATE] = 0
    content = write(path, sound, muxer=muxer, **options)
    assert not any(tag in content for tag in (b"Xing", b"Info\0"))
    found = read_audio(path)
    assert len(found) == pytest.approx(320_000, abs=2_000)
    assert np.abs(found[: 9 * 16_000]).max() < 1e-3
    assert np.std(found[19 * 16_000 : int(19.8 * 16_000)]) > 0.05
    np.testing.assert_allclose(read_audio(path, 4.0), centre_of(found, 4.0), atol=1e-6)


def field(chunk: bytes, value: int, order: str = "big"):
    """What sets the four bytes behind a chunk's name."""

    def change(content: bytes) -> bytes:
        at = content.find(chunk) + len(chunk)
        return content[:at] + value.to_bytes(4, order) + content[at + 4 :]

    return change


COMM = b"COMM\0\0\0\x12\0\x02"
LARGEST = 0xFFFF_FFFF
# Left by interrupted recorders, and by programs that write to a pipe
NO_LENGTH = [
    *[("a.wav", field(b"data", n, "little")) for n in (LARGEST, 0x7FFF_FFFF, 0x7FFF_F000, 0)],
    *[("a.aiff", field(b"SSND", size)) for size in (LARGEST, 0x7FFF_FFFF, 0)],
    *[("a.aiff", field(chunk, n)) for chunk, n in ((b"FORM", 0), (COMM, 0), (COMM, LARGEST))],
    ("a.au", field(b".snd\0\0\0\x18", LARGEST)),
    ("a.flac", lambda c: c[:21] + bytes([c[21] & 0xF0, 0, 0, 0, 0]) + c[26:]),
    ("a.caf", lambda c: c + TAILS["ID3v1"]),  # a chunk of more bytes than a file can have
]


@pytest.mark.parametrize("seconds", [None, 2.0])
@pytest.mark.parametrize(("name", "change"), NO_LENGTH)
def test_a_header_without_a_length(tmp_path, capfd, name, change, seconds):
    content = write(tmp_path / name, chords(4), subtype="PCM_16")
    expected = read_audio(tmp_path / name, seconds)
    (tmp_path / name).write_bytes(change(content))
    np.testing.assert_allclose(read_audio(tmp_path / name, seconds), expected, atol=1e-6)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("between", [b"", *[TAILS[tag] for tag in ("ID3v1", "ID3v2", "APE")], None])
@pytest.mark.parametrize("header", [True, False])
def test_joined_mp3s_are_read_whole(tmp_path, between, header):
    path = tmp_path / "a.mp3"
    first, second = mp3(path, header=header), mp3(path, header=header, start=2_000)
    path.write_bytes(first + (TAILS["ID3v1"] + PICTURE if between is None else between) + second)
    found = read_audio(path)
    assert len(found) == pytest.approx(192_000, abs=2_400)
    assert pitch(found, 5) == pytest.approx(300 + 200 * 5, abs=40)
    assert pitch(found, 11) == pytest.approx(2_000 + 200 * 5, abs=40)
    np.testing.assert_allclose(read_audio(path, 2.0), centre_of(found, 2.0), atol=1e-6)


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (22_050, 1), (8_000, 1)])
@pytest.mark.parametrize("header", [True, False])
def test_the_rate_of_an_mp3_changes(tmp_path, rate, channels, header):
    path = tmp_path / "a.mp3"
    first = mp3(path, header=header)
    second = mp3(path, header=header, rate=rate, channels=channels, start=1_000)
    for content, pitches in ((first + second, (300, 1_000)), (second + first, (1_000, 300))):
        path.write_bytes(content)
        found = read_audio(path)
        assert abs(len(found) - 192_000) < 8_000  # encoders' delays, at 8 kHz
        assert pitch(found, 3) == pytest.approx(pitches[0] + 200 * 3, abs=60)
        assert pitch(found, len(found) / 16_000 - 3) == pytest.approx(pitches[1] + 200 * 3, abs=60)


@pytest.mark.parametrize("suffix", [".flac", ".aac", ".mp2"])
def test_other_joined_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(path) * 2)
    assert length(path) == pytest.approx(12, abs=0.12)
    assert pitch(read_audio(path), length(path) - 2) == pytest.approx(300 + 200 * 4, abs=40)


PCM = ["a.wav", "a.rf64", "a.aiff", "a.mp3", "tagged.mp3", "count.mp3"]
OTHERS = ["a.flac", "a.m4a", "a.mka", "a.tta", "a.au", "a.caf", "a.mov"]


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", [*PCM, *OTHERS])
def test_a_missing_end_is_refused(tmp_path, name, share):
    path = tmp_path / name
    content = encoded(path, 10)
    if name == "tagged.mp3":
        content = id3(bytes(8192)) + content
    if name == "count.mp3":  # frames only, no bytes: Xing's flags are 15
        assert content[36:44] == b"Xing\0\0\0\x0f"
        content = content[:43] + b"\x01" + content[44:]
    path.write_bytes(content)
    assert length(path) == pytest.approx(10, abs=0.1)
    path.write_bytes(content[: int(len(content) * share)])
    for seconds in (None, 2.0):
        found, promised = refusal(path, seconds)
        assert found == pytest.approx(10 * share, abs=1.2)
        assert promised == pytest.approx(10, abs=0.1)
    if name in PCM:  # a few missing frames are accepted
        path.write_bytes(content[: int(len(content) * 0.97)])
        assert length(path) == pytest.approx(9.7, abs=0.15)
        assert length(path, 2.0) == 2


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("name", ["a.mp3", "cbr.mp3", "raw.mp3", "a.flac", "a.m4a", "a.ac3"])
def test_damage_in_the_middle_is_located(tmp_path, capfd, name, noise):
    path = tmp_path / name
    content = encoded(path)
    half, hole = len(content) // 2, len(content) // 4
    junk = np.random.default_rng(0).bytes(hole) if noise else bytes(hole)
    path.write_bytes(content[:half] + junk + content[half + hole :])
    where, found, promised = refusal(path)
    assert where == pytest.approx(3, abs=0.3)
    assert found == pytest.approx(4.5, abs=0.4)
    assert promised == pytest.approx(6, abs=0.6)
    assert capfd.readouterr() == ("", "")


def test_a_frame_that_is_missing_is_not_damage(tmp_path):
    """Twenty zeros in one header."""
    path = tmp_path / "a.mp3"
    content = bytearray(mp3(path, vbr=False))
    at = content.find(content[:2], len(content) // 2)
    content[at : at + 20] = bytes(20)
    path.write_bytes(content)
    assert length(path) == pytest.approx(6, abs=0.25)


def test_damaged_frames_give_no_noise(tmp_path):
    path = tmp_path / "a.flac"
    content = bytearray(encoded(path))
    content[len(content) // 2] ^= 0x5A
    path.write_bytes(content)
    found = read_audio(path)
    assert len(found) > 94_000
    assert np.abs(found).max() < 0.31


def ogg(path: Path, subtype: str, seconds: float, level: float = 0.4, **sound) -> bytes:
    tone = {"rate": RATE if subtype == "FLAC" else 48_000} | sound
    samples = sweep(seconds, **tone)
    if subtype == "FLAC":  # soundfile writes it without an end
        return write(path, samples, codec="flac")
    kind = {"format": "OGG", "subtype": subtype, "compression_level": level}
    return write(path, samples, tone["rate"], **kind)


def pages(content: bytes) -> list[bytes]:
    found = []
    while content:
        size = 27 + content[26] + sum(content[27 : 27 + content[26]])
        found.append(content[:size])
        content = content[size:]
    return found


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS", "FLAC"])
def test_an_ogg_whose_last_page_is_cut_off(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content = ogg(path, subtype, 6)
    expected, last = len(read_audio(path)), len(pages(content)[-1])
    for size in (100, len(content) // 2 + 1, -last + 3, -last + 5, -last + 20, -1):
        path.write_bytes(content[:size])
        refusal(path)
        refusal(path, 2.0)
        with refuses("corrupt", "a.ogg"):
            next(stream_audio(path))
    path.write_bytes(b"".join(pages(content)[:-1]))  # a stopped recorder writes no last page
    assert 48_000 < len(read_audio(path)) <= expected


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_tags_and_padding_around_an_ogg(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content, other = ogg(path, subtype, 4), ogg(path, subtype, 3, start=2_000)
    tag = id3(bytes(2048))
    for whole, seconds in (
        (content + TAILS["ID3v1"], 4),
        (content + np.random.default_rng(0).bytes(3000), 4),
        (content + bytes(70_000), 4),
        (content + b"OggS" * 5000, 4),
        (tag + content, 4),
        (content + other, 7),
        (tag + content + TAILS["ID3v1"] + tag + other, 7),
    ):
        path.write_bytes(whole)
        assert length(path) == pytest.approx(seconds, abs=0.02)
        assert sum(map(len, stream_audio(path))) == len(read_audio(path))
        assert length(path, 2.0) == 2
    for cut in ((content + other)[:-10_000], (tag + content)[:-5000], content[:-9000] + other):
        path.write_bytes(cut)
        refusal(path)


A = {"subtype": "VORBIS", "seconds": 4}
B = A | {"start": 1_500}


@pytest.mark.parametrize(
    "pieces",
    [
        [A, B],
        [A, B | {"level": 0.9}],
        [A | {"level": 0.9}, B],
        [A, B | {"rate": 22_050}],
        [A, B | {"channels": 1}],
        [A, B | {"subtype": "OPUS"}],
        [A | {"subtype": "FLAC"}, B],
        [A | {"subtype": "OPUS"}, B | {"subtype": "OPUS", "channels": 1}],
        [A, B, A],
        [A, A],
    ],
)
def test_each_piece_of_a_chain_is_a_stream_of_its_own(tmp_path, pieces):
    path = tmp_path / "a.ogg"
    path.write_bytes(b"".join(ogg(tmp_path / "piece.ogg", **piece) for piece in pieces))
    found = read_audio(path)
    assert abs(len(found) - 4 * len(pieces) * 16_000) < 800
    for i, piece in enumerate(pieces):
        expected = piece.get("start", 300) + 200 * 2
        assert pitch(found, 4 * i + 2) == pytest.approx(expected, abs=40)
        part = found[(4 * i + 1) * 16_000 :][:32_000]
        assert np.sqrt(np.mean(part**2)) == pytest.approx(0.3 / 2**0.5, rel=0.05)
    np.testing.assert_array_equal(read_audio(path, 3.0), centre_of(found, 3.0))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_lost_pages(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    found = pages(ogg(path, subtype, 12))
    lost = b"".join(found[5:8])
    for junk in (b"", os.urandom(len(lost)), lost[:500]):
        path.write_bytes(b"".join(found[:5]) + junk + b"".join(found[8:]))
        where, decoded, promised = refusal(path)
        assert 2 < where < 5
        assert decoded == pytest.approx(8.7, abs=0.7)
        assert promised == pytest.approx(12, abs=0.1)
    # A recording began in the middle of a stream: its positions count from the stream's start.
    path.write_bytes(b"".join(found[:2] + found[6:]))
    assert 6 < length(path) < 9
