"""Lengths by the headers of audio files, to see whether an end is missing; streams of an Ogg."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from maest.helpers.audio.blocks import DAMAGED, AudioError
from maest.helpers.files.pieces import Pieces

Range = tuple[int, int]  # offsets in a file: first byte, end (exclusive)

_OGG_PAGE = re.compile(rb"OggS\0[\0-\x07]")  # version 0, and a page's flags
_OGG_FIRST = 2  # the flag of a stream's first page
_SEARCHED = 65_536  # bytes at a time
_NO_SIZE = 0x7FFF_0000  # bytes, or more, that stand for "not known" in a WAV or AIFF
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def behind_id3(file: BinaryIO) -> int:
    """Return the offset behind all ID3v2 tags, where an MP3's frames or an Ogg's pages begin."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(10)
        if len(head) < 10 or not head.startswith(b"ID3"):
            return at
        at += 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(head[6:])))
        at += 10 if head[5] & 0x10 else 0  # a footer


def mp3_seconds(file: BinaryIO) -> float | None:
    """Return an MP3's length by the Xing or Info header in its first frame; None without one."""
    # http://gabriel.mp3-tech.org/mp3infotag.html
    file.seek(behind_id3(file))
    frame = file.read(48)
    header = int.from_bytes(frame[:4], "big")
    version, layer, rate = header >> 19 & 3, header >> 17 & 3, header >> 10 & 3
    if len(frame) < 48 or header >> 21 != 0x7FF or layer != 1 or version == 1 or rate == 3:
        return None
    mono = header >> 6 & 3 == 3
    tag = frame[4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17)) :]
    if tag[:4] not in (b"Xing", b"Info") or not tag[7] & 1:  # 1: it has the number of frames
        return None
    samples = 1152 if version == 3 else 576
    return int.from_bytes(tag[8:12], "big") * samples / _MP3_RATES[version][rate]


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a WAV or AIFF: name, offset and bytes of the content."""
    end, at = file.seek(0, os.SEEK_END), 12
    file.seek(0)
    kind = file.read(4)
    while kind in (b"RIFF", b"RIFX", b"RF64", b"FORM") and at + 8 <= end:
        file.seek(at)
        name, size = struct.unpack("<4sI" if kind in (b"RIFF", b"RF64") else ">4sI", file.read(8))
        yield name, at + 8, size
        at += 8 + size + size % 2


def chunk_bytes(file: BinaryIO) -> tuple[int, int]:
    """Count the bytes of audio in a WAV or AIFF, and those missing by its header; else 0, 0."""
    long_size = 0
    for name, at, size in _chunks(file):
        if name == b"ds64":  # RF64: the sizes that need 64 bits
            file.seek(at)
            long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        if name in (b"data", b"SSND"):
            found = file.seek(0, os.SEEK_END) - at
            return found, max(0, (long_size if size >= _NO_SIZE else size) - found)
    return 0, 0


def sound_pieces(file: BinaryIO) -> list[Pieces]:
    """Return a file as FFmpeg shall read it: whole or, for a chained Ogg, each stream.

    `Pieces` let FFmpeg seek beyond the system's largest offset. Raises AudioError if the last page
    of an Ogg stream is cut off.
    """
    streams = _ogg_streams(file)
    return [Pieces([(file, *part) for part in parts]) for parts in streams] or [_mended_aiff(file)]


def _mended_aiff(file: BinaryIO) -> Pieces:
    """Return the whole file; an AIFF whose recording was cut off gets sizes that FFmpeg takes."""
    # Sizes of 0 become the largest; an impossible number of frames, such as -1, becomes 0.
    changes: dict[int, int] = {}
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        if head[4:8] == b"\0\0\0\0":
            changes[4] = _NO_SIZE
        for name, at, size in _chunks(file):
            file.seek(at + 2)
            if name == b"COMM" and file.read(1) >= b"\x80":
                changes[at + 2] = 0
            if name == b"SSND":
                if not size:
                    changes[at - 4] = _NO_SIZE
                break
    pieces: list[tuple[BinaryIO, int, int]] = []
    done = 0
    for at, value in sorted(changes.items()):
        pieces += [(file, done, at), (io.BytesIO(value.to_bytes(4, "big")), 0, 4)]
        done = at + 4
    return Pieces([*pieces, (file, done, file.seek(0, os.SEEK_END))])


def _ogg_streams(file: BinaryIO) -> list[list[Range]]:
    """Return the byte ranges of each stream of a chained Ogg; none for another file.

    A stream is its whole pages (RFC 3533), without anything between them; streams that run side by
    side, such as a film's sound and pictures, count as one.
    """
    streams: list[list[Range]] = []
    size, at = file.seek(0, os.SEEK_END), behind_id3(file)
    cut = was_first = False
    page: int | None = at if _is_page(file, at) else None
    while page is not None:
        file.seek(page)
        head = file.read(27 + 255)  # byte 26 counts the lengths that follow, of the rest
        sizes = head[27 : 27 + head[26]] if len(head) > 26 else b""
        end = page + 27 + len(sizes) + sum(sizes) if len(head) > 26 else size + 1
        following = end if _is_page(file, end) else _find_page(file, page + 4)
        is_first = bool(head[5] & _OGG_FIRST)
        if is_first and not was_first:
            streams.append([])
        if end > (size if following is None else following):
            cut |= following is None or _is_page(file, following, first=True)
        elif streams:
            joins = streams[-1] and streams[-1][-1][1] == page
            start = streams[-1].pop()[0] if joins else page
            streams[-1].append((start, end))
            if following is None:
                file.seek(end)
                rest = file.read(5)
                cut |= bool(rest) and b"OggS\0".startswith(rest)
        page, was_first = following, is_first
    if cut:
        what = "its end is missing: a page of the Ogg stream is cut off"
        raise AudioError(what, kind="corrupt", hint=DAMAGED)
    return streams


def _is_page(file: BinaryIO, at: int, first: bool = False) -> bool:
    file.seek(at)
    head = file.read(6)
    return bool(_OGG_PAGE.match(head)) and (not first or bool(head[5] & _OGG_FIRST))


def _find_page(file: BinaryIO, at: int) -> int | None:
    while True:
        file.seek(at)
        block = file.read(_SEARCHED)
        if found := _OGG_PAGE.search(block):
            return at + found.start()
        if len(block) < _SEARCHED:
            return None
        at += _SEARCHED - 5
