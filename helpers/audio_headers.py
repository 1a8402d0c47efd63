"""What the headers of audio files say of their length, without decoding anything.

For files whose end is missing, which the decoders take for shorter files; and for MP3s that do not
say how long they are. An Ogg does not say it either, but marks its last page (RFC 3533).
"""

from __future__ import annotations

import math
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

import soundfile

_LENGTH_TAGS = (b"Xing", b"Info")
_OGG_PAGE = re.compile(rb"OggS\0[\0-\x07]")  # version 0, and a page's flags
_OGG_LAST = 4  # the flag of the last page of a stream
_OGG_TAIL = 65_536  # bytes; a page has 65,307 at most
_NO_SIZE = 0x7FFF_0000  # bytes, or more, that stand for "not known" in a WAV or AIFF


def seconds_by_bytes(path: Path, file: soundfile.SoundFile) -> tuple[float, float]:
    """How many seconds of audio there are, and how many the header promises, by their bytes.

    Args:
        path: the file.
        file: the same, as libsndfile opened it.

    Returns:
        (found, promised); the same number twice where bytes are not told, or none is missing.
    """
    seconds = file.frames / file.samplerate
    with path.open("rb") as raw:
        start = raw.read(12)
        if start[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):  # `seconds` are of what is there
            promised, there = _chunk_bytes(raw, "<" if start[:4] in (b"RIFF", b"RF64") else ">")
            known = promised < _NO_SIZE or start[:4] == b"RF64"
            if known and 0 < there < promised:
                return seconds, seconds * promised / there
        elif file.format == "MP3":  # of what is promised
            promised, there = _xing_bytes(raw)
            if there < promised:
                return seconds * there / promised, seconds
    return seconds, seconds


def ogg_without_end(file: BinaryIO) -> bool:
    """Whether a file is an Ogg (Vorbis, Opus, FLAC, …), and its last page is not the last.

    Of streams one after the other, or side by side, it is the last page of all that counts. What
    stands behind it, such as a tag, does not. No more than the end of the file is read.
    """
    if not _behind_id3(file)[1].startswith(b"OggS"):
        return False
    page = _last_ogg_page(file)
    if not page:  # something long stands behind the last one
        return False
    # RFC 3533, section 6: 27 bytes, the last of which counts the lengths that follow, of the rest.
    count = page[26] if len(page) > 26 else math.inf
    whole = 27 + count <= len(page) and 27 + count + sum(page[27 : 27 + count]) <= len(page)
    return not (whole and page[5] & _OGG_LAST)


def ogg_chained(path: Path) -> bool:
    """Whether an Ogg ends with another stream than it begins with.

    libsndfile may stop after the first one; FFmpeg reads them all.
    """
    with path.open("rb") as file:
        serial = _behind_id3(file)[1][14:18]
        page = _last_ogg_page(file)
    return len(page) > 17 and page[14:18] != serial


def _last_ogg_page(file: BinaryIO) -> bytes:
    """From the last page's first byte to the end of the file; nothing if no page begins there."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _OGG_TAIL))
    tail = file.read(_OGG_TAIL)
    starts = [page.start() for page in _OGG_PAGE.finditer(tail)]
    return tail[starts[-1] :] if starts else b""


def mp3_without_length(path: Path) -> bool:
    """Whether an MP3 does not say how long it is.

    libsndfile goes by an estimate then, and would stop there; FFmpeg reads on to the end.
    """
    with path.open("rb") as file:
        start = _behind_id3(file)[1]
    return not any(tag in start for tag in _LENGTH_TAGS)


def _behind_id3(file: BinaryIO) -> tuple[int, bytes]:
    """Where an MP3's frames or an Ogg's pages begin, and the first bytes of them."""
    file.seek(0)
    head, first = file.read(10), 0
    if len(head) == 10 and head.startswith(b"ID3"):
        first = 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(head[6:])))
    file.seek(first)
    return first, file.read(4096)


def _xing_bytes(file: BinaryIO) -> tuple[int, int]:
    """How many bytes of frames an MP3's Xing header promises (0: it does not), and there are."""
    first, start = _behind_id3(file)
    there = file.seek(0, os.SEEK_END) - first
    found = re.search(rb"(?:Xing|Info)\0\0\0([\x02\x03\x06\x07\x0a\x0b\x0e\x0f])", start)
    if not found:
        return 0, there
    at = found.end() + (4 if found[1][0] & 1 else 0)  # behind the number of frames
    return int.from_bytes(start[at : at + 4], "big"), there


def _chunk_bytes(file: BinaryIO, order: str) -> tuple[int, int]:
    """How many bytes of audio a WAV or AIFF promises (0: no such chunk), and there are."""
    end, long_size = file.seek(0, os.SEEK_END), 0
    at = 12
    while at + 8 <= end:
        file.seek(at)
        name, size = struct.unpack(f"{order}4sI", file.read(8))
        if name == b"ds64":  # RF64: the sizes that need 64 bits
            long_size = struct.unpack("<8xQ", file.read(16))[0]
        if name in (b"data", b"SSND"):
            return (long_size if size == 0xFFFF_FFFF and long_size else size), end - at - 8
        at += 8 + size + size % 2
    return 0, 0
