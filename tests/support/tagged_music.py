"""Short music files of each container, with tags of many kinds that others may have put there."""

from __future__ import annotations

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import soundfile
from mutagen import File
from mutagen.aiff import AIFF
from mutagen.flac import FLAC, MetadataBlock, Picture
from mutagen.id3 import APIC, CHAP, COMM, GEOB, ID3, POPM, PRIV, TIT2, TPE1, TXXX, UFID, Frame
from mutagen.mp4 import MP4, MP4Cover, MP4FreeForm
from mutagen.ogg import OggPage
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from maest.file_tags import Change, Options, Skip, plan

TAGS = [
    ("Electronic---Techno", 0.9),
    ("Mood---Dark", 0.8),
    ("Genre---Électro", 0.7),
    ("Mood---Sad", 0.6),
    ("Instrument---Violin", 0.5),
]
#: file name → ID3 version, 0 where it has other tags
FILES = {
    "v23.mp3": 3,
    "v24.mp3": 4,
    "a.flac": 0,
    "a.ogg": 0,
    "a.opus": 0,
    "a.m4a": 0,
    "fast.m4a": 0,  # tags before the sound, which moves
    "a.wav": 3,
    "a.aiff": 4,
}
_SUBTYPES = {".ogg": "VORBIS", ".opus": "OPUS", ".mp3": "MPEG_LAYER_III"}
_FORMATS = {".opus": "OGG"}
_PICTURE = b"\xff\xd8\xff" + bytes(range(256)) * 20  # no picture that anybody decodes


def write_plain(path: Path) -> Path:
    """Half a second of sound without tags, in the format of the suffix."""
    sound = 0.1 * np.random.default_rng(0).standard_normal((24_000, 1))
    if path.suffix == ".m4a":
        flags = {"movflags": "faststart"} if path.stem == "fast" else {}
        with av.open(str(path), "w", options=flags) as container:
            stream = container.add_stream("aac", rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(sound.T.astype(np.float32), "fltp", "mono")
            frame.sample_rate = 48_000
            container.mux([*stream.encode(frame), *stream.encode(None)])
        path.write_bytes(path.read_bytes().replace(b"udta", b"free"))  # the encoder's name
    else:
        name = path.suffix.lower()
        soundfile.write(path, sound, 48_000, _SUBTYPES.get(name), format=_FORMATS.get(name))
    return path


def write_tagged(path: Path) -> list[bytes]:
    """A file of FILES with tags of others; return their bytes, which all must stay in the file."""
    write_plain(path)
    if version := FILES[path.name]:
        return _write_id3(path, version)
    if path.suffix == ".m4a":
        return _write_mp4(path)
    return _write_vorbis(path)


def _write_id3(path: Path, version: int) -> list[bytes]:
    chapter = CHAP("c1", 0, 250, sub_frames=[TIT2(encoding=1, text="Intro")])
    frames: list[Frame] = [
        TIT2(encoding=1, text="Tïtle"),
        TPE1(encoding=0, text="Artist"),
        GEOB(encoding=0, mime="application/octet-stream", desc="Serato Markers2", data=b"\1\1cue"),
        PRIV(owner="TRAKTOR4", data=b"beat\0grid" * 9),
        POPM(email="me@home", rating=196, count=3),
        UFID(owner="http://musicbrainz.org", data=b"1-2-3"),
        APIC(encoding=0, mime="image/jpeg", type=3, desc="", data=_PICTURE),
        TXXX(encoding=0, desc="initialkey", text="8A"),
        COMM(encoding=0, lang="eng", desc="", text="a note"),
        chapter,
    ]
    raw = [raw_frame(frame, version) for frame in frames]
    raw.append(struct.pack(">4sIH", b"TSIZ", 3, 0x4000) + b"\x00ab")  # flags, an older frame
    raw.append(struct.pack(">4sIH", b"XHD3", 4, 0) + b"\x00\x01\x02\x03")  # nobody's
    others: list[bytes] = []
    audio = {".wav": WAVE, ".aiff": AIFF}.get(path.suffix)
    if audio is None:
        content = b"".join(raw) + bytes(32)
        path.write_bytes(id3_header(version, len(content)) + content + path.read_bytes())
    else:
        if path.suffix == ".wav":
            add_chunk(path, b"acid", bytes(range(24)))
            others.append(struct.pack("<4sI", b"acid", 24) + bytes(range(24)))
        opened = audio(path)
        opened.add_tags()
        opened.tags.unknown_frames, opened.tags._unknown_v2_version = raw, version
        opened.tags.save(path, v2_version=version)
    return [*others, *(entry for entry in raw if entry[:4] != b"COMM")]


def add_chunk(path: Path, name: bytes, body: bytes) -> None:
    """Add a chunk to a WAV or AIFF file."""
    content = path.read_bytes()
    sized = "<4sI" if content[:4] == b"RIFF" else ">4sI"
    content = content[8:] + struct.pack(sized, name, len(body)) + body + bytes(len(body) % 2)
    path.write_bytes(struct.pack(sized, path.read_bytes()[:4], len(content)) + content)


def raw_frame(frame: Frame, version: int) -> bytes:
    buffer, tag = BytesIO(), ID3()
    tag.add(frame)
    tag.save(buffer, v1=0, v2_version=version, padding=lambda _: 0)
    return buffer.getvalue()[10:]


def id3_header(version: int, size: int, flags: int = 0) -> bytes:
    parts = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return struct.pack(">3sBBB4s", b"ID3", version, 0, flags, parts)


def _write_vorbis(path: Path) -> list[bytes]:
    picture = Picture()
    picture.type, picture.mime, picture.data = 3, "image/jpeg", _PICTURE
    kind = {".flac": FLAC, ".ogg": OggVorbis, ".opus": OggOpus}[path.suffix]
    audio = kind(path)
    comments = [("Title", "Tïtle"), ("artist", "One"), ("ARTIST", "Two"), ("Comment", "a note")]
    if audio.tags is None:
        audio.add_tags()
    audio.tags[:] = [*comments, ("SERATO_MARKERS_V2", "Y3Vl" * 40_000)]  # several pages of Ogg
    raw = [f"{key}={text}".encode() for key, text in audio.tags if key != "Comment"]
    if path.suffix == ".flac":
        block = MetadataBlock(b"ABCDan application's")
        block.code = 2
        audio.metadata_blocks.append(block)
        audio.add_picture(picture)
        raw += [picture.write(), block.data]
    audio.save()
    return raw


def _write_mp4(path: Path) -> list[bytes]:
    audio = MP4(path)
    audio.add_tags()
    tags = {"©nam": ["Tïtle"], "trkn": [(3, 9)], "tmpo": [128], "©cmt": ["a note"], "cpil": True}
    audio.tags.update(tags)
    audio.tags["covr"] = [MP4Cover(_PICTURE, MP4Cover.FORMAT_JPEG)]
    audio.tags["----:com.serato.dj:markersv2"] = [MP4FreeForm(b"cue\0points", 0)]
    audio.save()
    kept = ("©nam", "trkn", "tmpo", "cpil", "covr", "----:com.serato.dj:markersv2")
    return [audio.tags._render(key, audio.tags[key]) for key in kept]


def content(path: Path) -> bytes:
    """The bytes of a file; an Ogg file's without the headers of its pages."""
    if path.suffix not in (".ogg", ".opus"):
        return path.read_bytes()
    pages = []
    with path.open("rb") as file, suppress(EOFError):
        while True:
            pages.append(OggPage(file))
    return b"".join(OggPage.to_packets(pages))


def packets(path: Path) -> list[bytes]:
    """All packets of the file, by FFmpeg."""
    with av.open(str(path), metadata_errors="replace") as container:
        return [bytes(packet) for packet in container.demux() if packet.size]


def metadata(path: Path) -> dict[str, str]:
    """What FFmpeg says about the file, names in upper case."""
    with av.open(str(path), metadata_errors="replace") as container:
        pairs = {**container.streams.audio[0].metadata, **container.metadata}
    return {name.upper(): text for name, text in pairs.items()}


def planned(path: Path, tags=TAGS, **options) -> Change:
    change = plan(path, tags, Options(**options))
    assert isinstance(change, Change), change
    return change


def skipped(path: Path, tags=TAGS, **options) -> str:
    skip = plan(path, tags, Options(**options))
    assert isinstance(skip, Skip)
    assert skip.reason
    return skip.kind


def texts(path: Path) -> dict[str, list[str]]:
    """Genre, style and mood by mutagen."""
    tags = File(path).tags or {}
    names = {
        "genre": ("TCON", "genre", "©gen"),
        "style": ("TXXX:STYLE", "style", "----:com.apple.iTunes:STYLE"),
        "mood": ("TMOO", "TXXX:MOOD", "mood", "----:com.apple.iTunes:MOOD"),
    }
    found = {}
    for meaning, keys in names.items():
        values = next((tags[key] for key in keys if _has(tags, key)), [])
        found[meaning] = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return found


def _has(tags, key: str) -> bool:
    try:
        return key in tags
    except ValueError:  # a key that Vorbis cannot have
        return False
