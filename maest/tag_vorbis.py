"""Vorbis comments, of FLAC, Ogg Vorbis and Opus files.

Specifications: https://xiph.org/vorbis/doc/v-comment.html,
https://www.rfc-editor.org/rfc/rfc9639 (FLAC), https://www.rfc-editor.org/rfc/rfc7845 (Opus)
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mutagen.flac import FLAC, MetadataBlock, Padding, StreamInfo, VCFLACDict
from mutagen.ogg import OggPage
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis

from maest.helpers.errors import InputError
from maest.tag_entries import MEANINGS, MEND, Tags


class _Vorbis(Tags):
    names: Mapping[str, str] = {name: name.upper() for name in MEANINGS}

    def parse(self, entry: bytes) -> tuple[str, list[str]]:
        name, _, text = entry.decode().partition("=")
        return name.upper(), [text]

    def make(self, field: str, texts: list[str]) -> list[bytes]:
        return [f"{field}={text}".encode() for text in texts]

    def _take(self, comments: Any, raw: bytes) -> None:
        """Take mutagen's comments, if they are all that is in the raw ones."""
        if not raw.startswith(_comments(comments)):
            what = "damaged comments: one is not UTF-8, or has no ="
            raise InputError(what, kind="corrupt", hint=MEND)
        self.entries = [f"{key}={text}".encode() for key, text in comments]

    def _give(self, comments: Any) -> None:
        pairs = (entry.decode().split("=", 1) for entry in self.entries)
        comments[:] = [(key, text) for key, text in pairs]


class _RawFlac(FLAC):
    """All blocks as bytes but the first, and padding."""

    METADATA_BLOCKS = [StreamInfo, Padding]  # noqa: RUF012 — as mutagen declares it


class FlacTags(_Vorbis):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        raw = self._block(_RawFlac(path))
        if raw is not None:
            self._take(VCFLACDict(raw.data), raw.data)

    @staticmethod
    def _block(flac: FLAC) -> Any:
        return next((b for b in flac.metadata_blocks if b.code == VCFLACDict.code), None)

    def save(self, copy: Path) -> None:
        shutil.copyfile(self.path, copy)
        flac = _RawFlac(copy)
        block: Any = self._block(flac)
        comments = VCFLACDict(block.data) if block is not None else VCFLACDict()
        if block is None:
            block = MetadataBlock(b"")
            block.code = VCFLACDict.code
            flac.metadata_blocks.append(block)
        self._give(comments)
        block.data = comments.write()
        flac.save()


class _Ogg(_Vorbis):
    kind: type[OggVorbis] | type[OggOpus]
    magic: bytes

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._take(self.kind(path).tags, self._packet())

    def _packet(self) -> bytes:
        """Return the comment packet: the second of the stream."""
        with self.path.open("rb") as file:
            first = OggPage(file)
            pages = [first]
            while len(packets := OggPage.to_packets(pages)) < 2 or not (
                len(packets) > 2 or pages[-1].complete
            ):
                page = OggPage(file)
                if page.serial == first.serial:
                    pages.append(page)
        return packets[1].removeprefix(self.magic)

    def save(self, copy: Path) -> None:
        shutil.copyfile(self.path, copy)
        audio = self.kind(copy)
        self._give(audio.tags)
        audio.save()


class OggVorbisTags(_Ogg):
    kind, magic = OggVorbis, b"\x03vorbis"


class OpusTags(_Ogg):
    kind, magic = OggOpus, b"OpusTags"


def _comments(comments: Any) -> bytes:
    """Return Vorbis comments without the framing bit."""
    pairs = [f"{key}={text}".encode() for key, text in comments]
    vendor = comments.vendor.encode()
    sized = [struct.pack("<I", len(pair)) + pair for pair in pairs]
    head = struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", len(pairs))
    return head + b"".join(sized)
