"""The list of tags in an MP4 file (``ilst``), as raw atoms."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mutagen.id3 import TCON
from mutagen.mp4 import MP4

from maest.helpers.errors import InputError
from maest.tag_entries import MEND, Tags, room, unsupported

_ITUNES = "----:com.apple.iTunes:"


class Mp4Tags(Tags):
    names: Mapping[str, str] = {
        "genre": "©gen",
        "style": f"{_ITUNES}STYLE",
        "mood": f"{_ITUNES}MOOD",
        "comment": "©cmt",
    }

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        audio = MP4(path)  # refuses what it could not save
        with path.open("rb") as file:
            place = _ilst(file)
            if (place is None) != (audio.tags is None):
                raise unsupported("an unusual place for tags")
            if place is not None:
                atoms = _atoms(file, place.body, place.end)
                self.entries = [_read(file, atom.start, atom.end) for atom in atoms]

    def parse(self, entry: bytes) -> tuple[str, list[str]]:
        file = BytesIO(entry)
        name = entry[4:8].decode("latin-1")
        parts = [(a.kind, _read(file, a.body, a.end)) for a in _atoms(file, 8, len(entry))]
        data = [part[8:] for kind, part in parts if kind == b"data"]  # after type and locale
        if name == "----":
            kinds = dict(parts)
            mean, key = (
                kinds.get(k, b"")[4:].decode("utf-8", "replace") for k in (b"mean", b"name")
            )
            name = f"----:{mean}:{key}"
            if name.upper().startswith(_ITUNES.upper()):  # programs write Mood as well as MOOD
                name = _ITUNES + key.upper()
        if name == "gnre":  # iTunes' older genre, by number; ©gen takes its place
            return "©gen", [_numbered_genre(part) for part in data]
        return name, [part.decode("utf-8", "replace") for part in data]

    def make(self, field: str, texts: list[str]) -> list[bytes]:
        if not texts:
            return []
        name, parts = field, b""
        if field.startswith("----:"):
            name, mean, key = field.split(":", 2)
            parts = _atom("mean", bytes(4) + mean.encode()) + _atom("name", bytes(4) + key.encode())
        utf8 = struct.pack(">II", 1, 0)
        data = b"".join(_atom("data", utf8 + text.encode()) for text in texts)
        return [_atom(name, parts + data)]

    def save(self, copy: Path) -> None:
        """mutagen makes room for an empty list, and moves the audio; then the list is filled."""
        shutil.copyfile(self.path, copy)
        audio = MP4(copy)
        if audio.tags is None:
            audio.add_tags()
        assert audio.tags is not None
        audio.tags.clear()
        content = _atom("ilst", b"".join(self.entries))
        size = len(content)
        audio.save(padding=lambda info: size + room(info.padding - size))
        with copy.open("r+b") as file:
            place = _ilst(file)
            assert place is not None
            file.seek(0, 2)
            free = next(_atoms(file, place.end, file.tell()), None)
            left = free.end - place.start - size - 8 if free and free.kind == b"free" else -1
            if left < 0:
                raise unsupported("an MP4 file without room for tags")
            file.seek(place.start)
            file.write(content + _atom("free", bytes(left)))


class _Place(NamedTuple):
    """An atom in a file, in bytes: header from ``start``, content from ``body`` to ``end``."""

    kind: bytes
    start: int
    body: int
    end: int


def _atoms(file: BinaryIO, start: int, end: int) -> Iterator[_Place]:
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", _read(file, start, start + 8))
        body = start + 8
        if size == 1:  # 64 bits
            body = start + 16
            (size,) = struct.unpack(">Q", _read(file, start + 8, body))
        following = start + size if size else end
        if not body <= following <= end:
            raise InputError("MP4 atoms with wrong sizes", kind="corrupt", hint=MEND)
        yield _Place(kind, start, body, following)
        start = following


def _ilst(file: BinaryIO) -> _Place | None:
    """Return the place of the list of tags, if there is one."""
    start, end = 0, file.seek(0, 2)
    for kind in (b"moov", b"udta", b"meta", b"ilst"):
        place = next((atom for atom in _atoms(file, start, end) if atom.kind == kind), None)
        if place is None:
            return None
        start, end = place.body + (4 if kind == b"meta" else 0), place.end  # version and flags
    return place


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _atom(name: str, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name.encode("latin-1")) + content


def _numbered_genre(data: bytes) -> str:
    number = int.from_bytes(data, "big") - 1
    return TCON.GENRES[number] if 0 <= number < len(TCON.GENRES) else str(number + 1)
