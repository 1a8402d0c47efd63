"""ID3 tags, of MP3, WAV and AIFF files, as raw frames.

Specifications: https://id3.org/id3v2.4.0-structure, https://id3.org/id3v2.3.0
"""

from __future__ import annotations

import shutil
import struct
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from mutagen import MutagenError
from mutagen.aiff import AIFF
from mutagen.apev2 import TEXT, APEv2
from mutagen.id3 import ID3, Frame, Frames, ID3NoHeaderError
from mutagen.wave import WAVE

from maest.helpers.errors import InputError
from maest.tag_entries import MEND, Tags, room, unsupported

# FFmpeg's and APEv2's names → frames of ID3v2.4, beside those that are written
_FRAMES = {
    "title": "TIT2",
    "artist": "TPE1",
    "author": "TPE1",
    "album": "TALB",
    "album_artist": "TPE2",
    "album artist": "TPE2",
    "composer": "TCOM",
    "date": "TDRC",
    "year": "TDRC",
    "track": "TRCK",
    "disc": "TPOS",
    "copyright": "TCOP",
}


class _Id3(Tags):
    """ID3v2.3 or 2.4. mutagen knows no frame here, and so leaves all of them as they are."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.id3 = self._load(known_frames={}, translate=False, load_v1=False)
        if self.id3 is None:
            self.version = 4
            self.note = "no tags so far: ID3v2.4"
        else:
            self.version = self.id3.version[1]
            self._check(self.id3)
            self.entries = [bytes(entry) for entry in self.id3.unknown_frames]
        mood = "TMOO" if self.version == 4 else "TXXX:MOOD"
        comments = (field for field, _ in map(self.parse, self.entries) if field[:6] == "COMM::")
        comment = next(comments, "COMM::eng")
        self.names = {"genre": "TCON", "style": "TXXX:STYLE", "mood": mood, "comment": comment}

    @abstractmethod
    def _load(self, **options: Any) -> ID3 | None: ...

    def carry(self, texts: Mapping[str, Sequence[str]]) -> None:
        super().carry(texts)
        if self.id3 is None and texts:  # players that find ID3v2 look for no other tag
            fields = {_FRAMES[name]: list(texts[name]) for name in texts if name in _FRAMES}
            fields = {field: own for field, own in fields.items() if self._keeps(field, own)}
            self.carried = {**fields, **self.carried}
            if self.carried:
                self.note = "other tags so far: ID3v2.4 is added, with the same texts"

    def _keeps(self, field: str, texts: list[str]) -> bool:
        """Whether a frame can say just this: elsewhere a date may be any text."""
        entries = filter(None, self.make(field, texts))
        return [text for entry in entries for text in self.parse(entry)[1]] == texts

    @staticmethod
    def _check(id3: ID3) -> None:
        """Refuse a tag whose frames mutagen would drop or change."""
        header: Any = id3._header
        version, frames = id3.version, id3.unknown_frames
        if version[1] not in (3, 4):
            raise unsupported(f"ID3v2.{version[1]}, which can be read only")
        if version[1] == 4 and header.f_footer:
            raise unsupported("an ID3 tag with a footer")
        if version[1] == 4 and header.f_unsynch and any(not frame[9] & 2 for frame in frames):
            raise unsupported("an unsynchronised ID3 tag of frames that are not")
        if header.f_unsynch or header.f_extended:
            return  # sizes on disk are others
        if sum(map(len, frames)) + id3._padding != id3.size - 10 or any(
            len(frame) <= 10 for frame in frames
        ):
            raise InputError("an ID3 tag with damaged frames", kind="corrupt", hint=MEND)

    def parse(self, entry: bytes) -> tuple[str, list[str]]:
        name = entry[:4].decode("latin-1")
        if name[0] != "T" and name != "COMM":  # no text: a picture, a cue point
            return name, []
        header = struct.pack(">3sBBB4s", b"ID3", self.version, 0, 0, _synchsafe(len(entry)))
        try:
            frames = list(ID3(BytesIO(header + entry), translate=False, load_v1=False).values())
        except MutagenError:
            frames = []
        if len(frames) != 1:
            return f"{name} (damaged)", []
        field = str(frames[0].HashKey)
        # Programs write TXXX:Mood as well as TXXX:MOOD.
        field = field.upper() if name == "TXXX" else field
        return field, [str(text) for text in getattr(frames[0], "text", [])]

    def make(self, field: str, texts: list[str]) -> list[bytes]:
        if not texts:
            return []
        name, _, rest = field.partition(":")
        description, _, language = rest.rpartition(":") if name == "COMM" else (rest, "", "")
        plain = all(text.isascii() for text in texts)
        options: dict[str, Any] = {"encoding": 0 if plain else 3 if self.version == 4 else 1}
        options |= {"desc": description} if name in ("COMM", "TXXX") else {}
        options |= {"lang": language} if name == "COMM" else {}
        frame: Frame = Frames[name](text=texts, **options)
        one, buffer = ID3(), BytesIO()
        one.add(frame)
        one.save(buffer, v1=0, v2_version=self.version, v23_sep=None, padding=lambda _: 0)
        return [buffer.getvalue()[10:]]

    def joined(self, texts: list[str]) -> list[str]:
        """v2.4 has NUL between texts (mutagen's work), v2.3 nothing but a custom."""
        return texts if self.version == 4 or not texts else ["/".join(texts)]

    def _filled(self, id3: Any) -> Any:
        id3.unknown_frames = self.entries
        return id3


class Mp3Tags(_Id3):
    def _load(self, **options: Any) -> ID3 | None:
        try:
            return ID3(self.path, **options)
        except ID3NoHeaderError:
            return None

    def carry(self, texts: Mapping[str, Sequence[str]]) -> None:
        with suppress(MutagenError):  # none, or damaged
            ape = APEv2(self.path)  # which FFmpeg does not read here
            more = {name.lower(): list(ape[name]) for name in ape if ape[name].kind == TEXT}
            texts = {**texts, **more}
        super().carry(texts)

    def save(self, copy: Path) -> None:
        """The whole tag stands before the audio: nothing after it is touched, ID3v1 neither."""
        old = self.id3.size if self.id3 is not None else 0
        buffer = BytesIO()
        if self.entries:
            self._filled(self.id3 if self.id3 is not None else ID3()).save(
                buffer,
                v1=0,
                v2_version=self.version,
                padding=lambda info: room(old + info.padding),
            )
        with self.path.open("rb") as source, copy.open("wb") as target:
            target.write(buffer.getvalue())
            source.seek(old)
            shutil.copyfileobj(source, target, 1 << 20)


class _Chunk(_Id3):
    """WAV and AIFF: the tag is a chunk."""

    kind: type[WAVE] | type[AIFF]

    def _load(self, **options: Any) -> ID3 | None:
        return self.kind(self.path, **options).tags

    def save(self, copy: Path) -> None:
        shutil.copyfile(self.path, copy)
        audio = self.kind(copy, known_frames={}, translate=False, load_v1=False)
        if not self.entries:
            audio.delete()
            return
        if audio.tags is None:
            audio.add_tags()
        self._filled(audio.tags).save(copy, v2_version=self.version)


class WaveTags(_Chunk):
    kind = WAVE


class AiffTags(_Chunk):
    kind = AIFF


def _synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))
