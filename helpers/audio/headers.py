"""Lengths by the headers of audio files, to see whether an end is missing; streams of an Ogg."""

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from maest.helpers.audio.blocks import DAMAGED, AudioError
from maest.helpers.files.pieces import Pieces

_OGG_PAGE = re.compile(rb"OggS\0[\0-\x07]")  # version 0, and a page's flags
_OGG_FIRST = 2  # the flag of a stream's first page
_SEARCHED = 8_192  # bytes at a time
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


def mp3_seconds(file: BinaryIO) -> float:
    """Return an MP3's length by the Xing or Info header in its first frame; 0 without one."""
    # http://gabriel.mp3-tech.org/mp3infotag.html
    file.seek(behind_id3(file))
    frame = file.read(48).ljust(48, b"\0")
    version, rate = frame[1] >> 3 & 3, frame[2] >> 2 & 3
    for at in (36, 21, 13):  # behind the side information of MPEG 1 or 2, stereo or mono
        tag, flags = frame[at : at + 4], frame[at + 7]
        if tag in (b"Xing", b"Info") and flags & 1 and version in _MP3_RATES and rate < 3:
            samples = 1152 if version == 3 else 576
            count = int.from_bytes(frame[at + 8 : at + 12], "big")  # flag 1: it has this number
            return count * samples / _MP3_RATES[version][rate]
    return 0.0


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a WAV or AIFF up to its audio: name, offset and bytes of the content."""
    end, at = file.seek(0, os.SEEK_END), 12
    file.seek(0)
    kind = file.read(4)
    while kind in (b"RIFF", b"RIFX", b"RF64", b"FORM") and at + 8 <= end:
        file.seek(at)
        name, size = struct.unpack("<4sI" if kind in (b"RIFF", b"RF64") else ">4sI", file.read(8))
        yield name, at + 8, size
        if name in (b"data", b"SSND"):
            return
        at += 8 + size + size % 2


def chunk_bytes(file: BinaryIO) -> tuple[int, int]:
    """Count the bytes of audio in a WAV or AIFF, and those missing by its header; else 0, 0."""
    long_size = 0
    for name, at, size in _chunks(file):
        if name == b"ds64":  # RF64: the sizes that need 64 bits
            file.seek(at)
            long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        if name in (b"data", b"SSND"):
            present = file.seek(0, os.SEEK_END) - at
            return present, max(0, (long_size if size >= _NO_SIZE else size) - present)
    return 0, 0


def sound_pieces(file: BinaryIO) -> list[Pieces]:
    """Return a file as FFmpeg shall read it: whole or, for a chained Ogg, each stream.

    `Pieces` let FFmpeg seek beyond the system's largest offset. Raises AudioError if the last page
    of an Ogg stream is cut off.
    """
    streams = [Pieces([(file, *part) for part in parts]) for parts in _ogg_streams(file)]
    if streams:
        return streams
    head = _mended_aiff(file)
    size = file.seek(0, os.SEEK_END)
    return [Pieces([(io.BytesIO(head), 0, len(head)), (file, len(head), size)])]


def _mended_aiff(file: BinaryIO) -> bytes:
    """Return what precedes an AIFF's audio, with sizes that FFmpeg takes; b"" of another file."""
    offsets = {name: at for name, at, _ in _chunks(file)}
    file.seek(0)
    head = bytearray(file.read(offsets.get(b"SSND", 0)))
    if head:
        # A recording was cut off: sizes of 0 become the largest, an impossible number of frames 0.
        for at in (4, len(head) - 4):
            head[at : at + 4] = head[at : at + 4].replace(bytes(4), _NO_SIZE.to_bytes(4, "big"))
        frames = offsets.get(b"COMM", len(head)) + 2
        if head[frames : frames + 1] >= b"\x80":
            head[frames : frames + 4] = bytes(4)
    return bytes(head)


def _ogg_streams(file: BinaryIO) -> list[list[tuple[int, int]]]:
    """Return the byte ranges of each stream of a chained Ogg; none for another file.

    A stream is its whole pages (RFC 3533), without anything between them; streams that run side by
    side, such as a film's sound and pictures, count as one.
    """
    streams: list[list[tuple[int, int]]] = []
    page: int | None = behind_id3(file)
    size, end = file.seek(0, os.SEEK_END), 0
    cut = broken = was_first = False  # broken: a page is longer than what is there of it
    file.seek(page or 0)
    if not _OGG_PAGE.match(file.read(6)):
        return []
    while page is not None:
        file.seek(page)
        head = file.read(27 + 255).ljust(27, b"\xff")  # byte 26 counts the lengths that follow
        sizes, is_first = head[27 : 27 + head[26]], bool(head[5] & _OGG_FIRST)
        end = page + 27 + head[26] + sum(sizes)
        cut |= broken and is_first
        if is_first and not was_first:
            streams.append([])
        following = _find_page(file, end)
        if following != end:
            following = _find_page(file, page + 4)
        broken = end > (size if following is None else following)
        if streams and not broken:
            joins = streams[-1] and streams[-1][-1][1] == page
            streams[-1].append((streams[-1].pop()[0] if joins else page, end))
        page, was_first = following, is_first
    file.seek(end)
    rest = file.read(5)
    if cut or broken or (rest and b"OggS\0".startswith(rest)):
        what = "its end is missing: a page of the Ogg stream is cut off"
        raise AudioError(what, kind="corrupt", hint=DAMAGED)
    return streams


def _find_page(file: BinaryIO, at: int) -> int | None:
    while True:
        file.seek(at)
        block = file.read(_SEARCHED)
        if page := _OGG_PAGE.search(block):
            return at + page.start()
        if len(block) < _SEARCHED:
            return None
        at += _SEARCHED - 5
