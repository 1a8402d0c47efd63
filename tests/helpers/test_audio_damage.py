"""Audio files with damage, and with what looks like it: what is read, what refused, and where."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_audio import RATE, music, write_encoded

from maest.helpers.audio.reading import AudioError, read_audio, stream_audio


def numbers(error: AudioError) -> list[float]:
    """The seconds in a message: where the damage is (none: at the end), decoded, of how many."""
    return [float(number) for number in re.findall(r"\d+\.\d+", error.message)]


def refusal(path: Path, seconds: float | None = None) -> list[float]:
    with pytest.raises(AudioError) as caught:
        read_audio(path, seconds)
    assert caught.value.kind == "corrupt"
    assert caught.value.path == path
    return numbers(caught.value)


def sweep(seconds: float, rate: int = RATE, start: float = 300, channels: int = 2) -> np.ndarray:
    """A tone that rises by 200 Hz a second: its pitch tells where in it one is."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (start * t + 100 * t * t))
    return np.tile(tone[:, None], (1, channels)).astype(np.float32)


def pitch(samples: np.ndarray, second: float) -> float:
    """The mean pitch of the tenth of a second from there on, in Hz."""
    part = samples[int(second * 16_000) :][:1_600] * np.hanning(1_600)
    return np.abs(np.fft.rfft(part, 16_000)).argmax()


def mp3(path: Path, seconds: float = 6, vbr: bool = True, header: bool = True, **tone) -> bytes:
    """An MP3; without a header it is its frames only, which tell no length."""
    rate = tone.pop("rate", RATE)
    mode = "VARIABLE" if vbr else "CONSTANT"
    sound = sweep(seconds, rate, **tone)
    soundfile.write(path, sound, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    content = path.read_bytes()
    if not header:
        tag = max(content.find(b"Xing"), content.find(b"Info"))
        content = content[content.find(content[:2], tag) :]
        path.write_bytes(content)
    return content


def id3(body: bytes) -> bytes:
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + body


def encoded(path: Path, seconds: float = 6) -> bytes:
    """A file in the format of the suffix."""
    codec = {
        ".aac": "aac",
        ".m4a": "aac",
        ".mka": "aac",
        ".mp2": "mp2",
        ".ac3": "ac3",
        ".eac3": "eac3",
        ".wv": "wavpack",
        ".tta": "tta",
    }.get(path.suffix)
    if path.suffix == ".mp3":
        return mp3(path, seconds)
    if path.suffix == ".opus":
        soundfile.write(path, sweep(seconds, 48_000), 48_000, format="OGG", subtype="OPUS")
    elif codec is None:
        soundfile.write(path, sweep(seconds), RATE)
    else:
        muxer = {"movflags": "faststart"} if path.suffix == ".m4a" else {}
        write_encoded(path, sweep(seconds), codec, muxer)
    return path.read_bytes()


# ---- what is no damage ---------------------------------------------------------------------------


TAILS = {
    "ID3v1": b"TAG" + b"x" * 125,
    "ID3v2": id3(b"TXXX" + bytes(900)),
    "APE": b"APETAGEX" + struct.pack("<4I8x", 2000, 300, 1, 0xA0000000) + b"x" * 300,
    "Lyrics3": b"LYRICSBEGIN" + b"x" * 4000 + b"004000LYRICS200",
    "zeros": bytes(3000),
    "padding": b"\xaa" * 4000,
    "a web page": b"<html><body>" * 500,
}
FORMATS = [".mp3", ".flac", ".wav", ".ogg", ".opus", ".m4a", ".mka", ".aac", ".mp2", ".ac3"]


@pytest.mark.parametrize("suffix", [*FORMATS, ".eac3", ".wv", ".tta"])
def test_what_stands_behind_the_last_frame_is_no_damage(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    content = encoded(path)
    expected = read_audio(path)
    for name, tail in TAILS.items():
        path.write_bytes(content + tail)
        found = read_audio(path)
        assert abs(len(found) - len(expected)) < 800, name  # AC-3: less its last frame
        assert len(read_audio(path, 2.0)) == 32_000, name


@pytest.mark.parametrize("vbr", [True, False])
@pytest.mark.parametrize("tail", TAILS)
def test_what_stands_behind_an_mp3_that_does_not_tell_its_length(tmp_path, vbr, tail):
    path = tmp_path / "a.mp3"
    content = mp3(path, vbr=vbr, header=False)
    expected = len(read_audio(path))
    path.write_bytes(content + TAILS[tail])
    assert abs(len(read_audio(path)) - expected) < 500


@pytest.mark.parametrize(
    "junk", [bytes(1), bytes(70_000), b"\xaa" * 5_000, id3(bytes(8192)), id3(b"a") + id3(b"b")]
)
@pytest.mark.parametrize("header", [True, False])
def test_what_stands_before_the_first_frame(tmp_path, junk, header):
    path = tmp_path / "a.mp3"
    content = mp3(path, header=header)
    for cut in (0, 137):  # a first frame that is cut in two
        path.write_bytes(junk + content[cut:])
        assert abs(len(read_audio(path)) - 96_000) < 1_600


@pytest.mark.parametrize("word", [b"More Information", b"Xing", bytes(6000) + b"Info"])
def test_a_tag_is_not_taken_for_a_length(tmp_path, word):
    """A variable bit rate, of which the first frames give a bad estimate."""
    path = tmp_path / "a.mp3"
    content = mp3(path, 12, header=False)
    path.write_bytes(id3(b"a") + id3(word) + content)
    assert abs(len(read_audio(path)) - 192_000) < 1_600


def test_pictures_in_a_tag(tmp_path):
    path = tmp_path / "a.mp3"
    content = mp3(path)
    frame = content[len(content) // 2 :][:4000]
    for picture in (np.random.default_rng(0).bytes(300_000), frame * 50):
        path.write_bytes(id3(b"APIC" + picture) + content)
        assert abs(len(read_audio(path)) - 96_000) < 100


def test_tags_without_audio(tmp_path):
    path = tmp_path / "a.mp3"
    for content in (id3(bytes(3000)), id3(bytes(3000)) + TAILS["ID3v1"], TAILS["ID3v1"]):
        path.write_bytes(content)
        with pytest.raises(AudioError) as caught:
            read_audio(path)
        assert caught.value.kind in ("corrupt", "empty")


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("header", [True, False])
def test_tiny_mp3s(tmp_path, seconds, header):
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(path, seconds, header=header) + TAILS["ID3v1"])
    stream = stream_audio(path)
    assert abs(sum(len(block) for block in stream) - seconds * 16_000) < 1_000
    assert len(stream.warnings) == 1


# ---- lengths in headers --------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 115, 230])
@pytest.mark.parametrize("vbr", [True, False])
def test_a_wrong_number_of_frames_ends_nothing(tmp_path, frames, vbr):
    path = tmp_path / "a.mp3"
    content = mp3(path, vbr=vbr)
    assert content[36:40] in (b"Xing", b"Info")
    path.write_bytes(content[:44] + frames.to_bytes(4, "big") + content[48:])
    assert abs(len(read_audio(path)) - 96_000) < 500
    centre = read_audio(path, 2.0)
    assert pitch(centre, 1.0) == pytest.approx(300 + 200 * 3.05, abs=30)


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
    part, start = read_audio(path, 4.0), (len(found) - 64_000) // 2
    np.testing.assert_allclose(part, found[start : start + 64_000], atol=1e-6)


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "pcm_f32le"])
def test_a_matroska_that_was_streamed_does_not_tell_its_length(tmp_path, codec):
    """Silence first: FFmpeg's estimate from the first frames is far off."""
    sound = music(20)
    sound[: 10 * RATE] = 0
    quality = {"flags": "+qscale", "q": "2"} if codec == "libmp3lame" else {}
    write_encoded(tmp_path / "a.mka", sound, codec, {"live": "1"}, **quality)
    assert abs(len(read_audio(tmp_path / "a.mka")) - 320_000) < 800


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0])
def test_a_wav_that_was_streamed_does_not_tell_its_length(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, music(3, channels=1), RATE, subtype="PCM_16")
    content = path.read_bytes()
    expected = read_audio(path)
    assert content[36:40] == b"data"
    path.write_bytes(content[:40] + size.to_bytes(4, "little") + content[44:])
    np.testing.assert_array_equal(read_audio(path), expected)
    assert len(read_audio(path, 2.0)) == 32_000


@pytest.mark.parametrize(
    ("name", "chunk", "size"),
    [
        ("a.aiff", b"SSND", 0xFFFF_FFFF),
        ("a.aiff", b"SSND", 0x7FFF_FFFF),
        ("a.aiff", b"SSND", 0),
        ("a.aiff", b"FORM", 0),
        ("a.aiff", b"COMM\0\0\0\x12\0\x02", 0),
        ("a.aiff", b"COMM\0\0\0\x12\0\x02", 0xFFFF_FFFF),
        ("a.au", b".snd\0\0\0\x18", 0xFFFF_FFFF),
    ],
)
def test_an_aiff_or_au_that_was_streamed(tmp_path, name, chunk, size):
    path = tmp_path / name
    soundfile.write(path, music(3), RATE, subtype="PCM_16")
    content = path.read_bytes()
    at = content.find(chunk) + len(chunk)
    expected = read_audio(path)
    path.write_bytes(content[:at] + size.to_bytes(4, "big") + content[at + 4 :])
    np.testing.assert_array_equal(read_audio(path), expected)
    assert len(read_audio(path, 2.0)) == 32_000


@pytest.mark.parametrize("seconds", [None, 2.0])
def test_a_caf_with_a_tag_behind_it_is_whole_and_one_that_is_cut_off_is_not(
    tmp_path, capfd, seconds
):
    path = tmp_path / "a.caf"
    soundfile.write(path, music(5), RATE, subtype="PCM_16")
    expected, content = read_audio(path, seconds), path.read_bytes()
    path.write_bytes(content + b"TAG" + b"x" * 125)  # a chunk of more bytes than a file can have
    np.testing.assert_array_equal(read_audio(path, seconds), expected)
    assert not capfd.readouterr().err
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError) as refused:
        read_audio(path, seconds)
    assert refused.value.kind == "corrupt"


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
    np.testing.assert_allclose(read_audio(path, seconds), expected, atol=1e-6)


# ---- joined files --------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["", "ID3v1", "ID3v2", "picture", "APE"])
@pytest.mark.parametrize("header", [True, False])
def test_joined_mp3s_are_read_whole(tmp_path, between, header):
    path = tmp_path / "a.mp3"
    picture = id3(b"APIC" + np.random.default_rng(1).bytes(300_000))
    tag = {"": b"", "picture": TAILS["ID3v1"] + picture}.get(between) or TAILS.get(between, b"")
    first, second = mp3(path, header=header), mp3(path, header=header, start=2_000)
    path.write_bytes(first + tag + second)
    found = read_audio(path)
    assert abs(len(found) - 192_000) < 2_400
    assert pitch(found, 5) == pytest.approx(300 + 200 * 5, abs=40)
    assert pitch(found, 11) == pytest.approx(2_000 + 200 * 5, abs=40)
    start = (len(found) - 32_000) // 2
    np.testing.assert_allclose(read_audio(path, 2.0), found[start : start + 32_000], atol=1e-6)


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
    content = encoded(path)
    path.write_bytes(content + content)
    found = read_audio(path)
    assert abs(len(found) - 192_000) < 2_000
    assert pitch(found, len(found) / 16_000 - 2) == pytest.approx(300 + 200 * 4, abs=40)


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.aiff", "a.mp3", "tagged.mp3", "c.mp3"])
def test_a_missing_end_is_told(tmp_path, name, share):
    path = tmp_path / name
    soundfile.write(path, music(10), RATE, subtype=None if "mp3" in name else "PCM_16")
    content = path.read_bytes()
    if name == "tagged.mp3":
        content = id3(bytes(8192)) + content
    if name == "c.mp3":  # frames only, no bytes: Xing's flags are 15
        assert content[36:44] == b"Xing\0\0\0\x0f"
        content = content[:43] + b"\x01" + content[44:]
    path.write_bytes(content)
    assert abs(len(read_audio(path)) - 160_000) < 2_000
    path.write_bytes(content[: int(len(content) * share)])
    for seconds in (None, 2.0):
        found, promised = refusal(path, seconds)
        assert found == pytest.approx(10 * share, abs=1)
        assert promised == pytest.approx(10, abs=0.1)
    # A frame or two are not what anybody misses.
    path.write_bytes(content[: int(len(content) * 0.97)])
    assert abs(len(read_audio(path)) - 155_000) < 2_500
    assert len(read_audio(path, 2.0)) == 32_000


@pytest.mark.parametrize("suffix", [".flac", ".m4a", ".mka", ".tta", ".au"])
def test_a_missing_end_in_other_formats(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    content = encoded(path)
    path.write_bytes(content[: int(len(content) * 0.6)])
    for seconds in (None, 2.0):
        found, promised = refusal(path, seconds)
        assert found == pytest.approx(3.6, abs=0.6)
        assert promised == pytest.approx(6, abs=0.1)


def test_a_film_whose_end_is_missing(tmp_path):
    """Its index, at the start, tells the length; PCM has no packet that a cut breaks."""
    path = tmp_path / "a.mov"
    write_encoded(path, music(10), "pcm_f32le", {"movflags": "faststart"})
    content = path.read_bytes()
    assert len(read_audio(path)) == 160_000
    path.write_bytes(content[: len(content) // 2])
    assert refusal(path)[-1] == 10


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("name", ["vbr.mp3", "cbr.mp3", "raw.mp3", "a.flac", "a.m4a", "a.ac3"])
def test_damage_in_the_middle_is_told_there(tmp_path, name, noise):
    path = tmp_path / name
    if name.endswith(".mp3"):
        content = mp3(path, vbr=name != "cbr.mp3", header=name != "raw.mp3")
    else:
        content = encoded(path)
    half, hole = len(content) // 2, len(content) // 4
    junk = np.random.default_rng(0).bytes(hole) if noise else bytes(hole)
    path.write_bytes(content[:half] + junk + content[half + hole :])
    where, found, promised = refusal(path)
    assert where == pytest.approx(3, abs=0.3)
    assert found == pytest.approx(4.5, abs=0.4)
    assert promised == pytest.approx(6, abs=0.6)


def test_a_frame_that_is_missing_is_not_damage(tmp_path):
    """Twenty zeros in one header."""
    path = tmp_path / "a.mp3"
    content = bytearray(mp3(path, vbr=False))
    content[len(content) // 2 :][:20] = bytes(20)
    path.write_bytes(content)
    assert abs(len(read_audio(path)) - 96_000) < 4_000


def test_damaged_frames_give_no_noise(tmp_path):
    path = tmp_path / "a.flac"
    content = bytearray(encoded(path))
    content[len(content) // 2] ^= 0x5A
    path.write_bytes(content)
    found = read_audio(path)
    assert len(found) > 94_000
    assert np.abs(found).max() < 0.31


# ---- Ogg -----------------------------------------------------------------------------------------


def write_in_ogg(path: Path, sound: np.ndarray) -> None:
    """FLAC in Ogg, by FFmpeg."""
    import av

    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("flac", rate=RATE, layout="stereo", format="s16")
        integers = (sound.reshape(1, -1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(integers, "s16", "stereo")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


def ogg(path: Path, subtype: str, seconds: float, **sound) -> bytes:
    rate, level = sound.pop("rate", 48_000), sound.pop("level", 0.4)
    if subtype == "FLAC":
        write_in_ogg(path, sweep(seconds, RATE, **sound))
    else:
        samples = sweep(seconds, rate, **sound)
        kwargs = {"format": "OGG", "subtype": subtype, "compression_level": level}
        soundfile.write(path, samples, rate, **kwargs)
    return path.read_bytes()


def pages(content: bytes) -> list[bytes]:
    found = []
    while content:
        size = 27 + content[26] + sum(content[27 : 27 + content[26]])
        found.append(content[:size])
        content = content[size:]
    return found


def changed(page: bytes, at: int, value: bytes) -> bytes:
    """A page with other bytes in its header, and the checksum of that (RFC 3533, section 6)."""
    page = page[:at] + value + page[at + len(value) :]
    page, crc = page[:22] + bytes(4) + page[26:], 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x104C11DB7 if crc & 0x8000_0000 else 0)
    return page[:22] + crc.to_bytes(4, "little") + page[26:]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS", "FLAC"])
def test_an_ogg_whose_last_page_is_cut_off(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content = ogg(path, subtype, 6)
    *_, last = pages(content)
    for size in (100, len(content) // 2 + 1, -len(last) + 3, -len(last) + 5, -len(last) + 20, -1):
        path.write_bytes(content[:size])
        refusal(path)
        refusal(path, 2.0)
        with pytest.raises(AudioError):
            next(stream_audio(path))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS", "FLAC"])
def test_an_end_of_stream_mark_may_be_missing(tmp_path, subtype):
    """As recorders leave it that were stopped: the last page is not marked, or is not there."""
    path = tmp_path / "a.ogg"
    content = ogg(path, subtype, 6)
    expected = read_audio(path)
    *others, last = pages(content)
    assert last[5] & 4
    path.write_bytes(b"".join(others) + changed(last, 5, bytes([last[5] & ~4])))
    found = read_audio(path)  # with what an encoder adds to fill its last frame
    np.testing.assert_allclose(found[: len(expected) - 100], expected[:-100], atol=1e-6)
    path.write_bytes(b"".join(others))
    assert 48_000 < len(read_audio(path)) <= len(expected)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_what_may_stand_behind_an_ogg_or_before_it(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content, other = ogg(path, subtype, 4), ogg(path, subtype, 3, start=2_000)
    tag = id3(bytes(2048))
    for whole, seconds in (
        (content + TAILS["ID3v1"], 4),
        (content + np.random.default_rng(0).bytes(3000), 4),
        (content + bytes(70_000), 4),
        (tag + content, 4),
        (content + other, 7),
        (tag + content + TAILS["ID3v1"] + tag + other, 7),
    ):
        path.write_bytes(whole)
        assert abs(len(read_audio(path)) - seconds * 16_000) < 400
        assert sum(len(block) for block in stream_audio(path)) == len(read_audio(path))
        assert len(read_audio(path, 2.0)) == 32_000
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
    start = (len(found) - 48_000) // 2
    np.testing.assert_array_equal(read_audio(path, 3.0), found[start : start + 48_000])


def test_a_piece_without_sound_is_refused_in_words(tmp_path):
    path = tmp_path / "a.ogg"
    first, *rest = pages(ogg(path, "VORBIS", 2))
    unknown = first.replace(b"vorbis", b"violin")
    path.write_bytes(first + b"".join(rest) + changed(unknown, 5, bytes([2])))
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert caught.value.kind in ("empty", "corrupt")


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


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_recording_that_began_in_the_middle_of_a_stream(tmp_path, subtype):
    """Its positions count from the start of the stream."""
    path = tmp_path / "a.ogg"
    found = pages(ogg(path, subtype, 12))
    path.write_bytes(b"".join(found[:2] + found[6:]))
    assert 6 * 16_000 < len(read_audio(path)) < 9 * 16_000


def test_many_words_that_look_like_pages(tmp_path):
    path = tmp_path / "a.ogg"
    content = ogg(path, "VORBIS", 2)
    path.write_bytes(content + b"OggS" * 5000)
    assert abs(len(read_audio(path)) - 32_000) < 100
