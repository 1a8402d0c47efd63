"""The tags of a music file as a list of raw entries: what is not edited stays byte for byte.

An entry is an ID3 frame, an atom of MP4's ``ilst`` or a Vorbis comment, as bytes. mutagen finds
them, reads and makes those that are asked for, and makes room in the container; it is never given
the others to interpret, for it would write some of them differently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from maest.helpers.errors import InputError

MEANINGS = ("genre", "style", "mood", "comment")
MEND = "Mend it with the program that wrote it, or have that write the file anew."
KNOWN = "MP3, WAV, AIFF, FLAC, Ogg Vorbis, Opus and MP4 (M4A)"


_SLACK = 1024  # bytes of padding where a file has no room for its tags


class Tags(ABC):
    """The entries of one file; ``names`` has the field of each of MEANINGS.

    ``carried`` has fields without an entry whose texts another kind of tag in the file has: entries
    would hide them. ``note`` says what was chosen for the file.
    """

    names: Mapping[str, str]
    note = ""
    carried: Mapping[str, Sequence[str]] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[bytes] = []

    @abstractmethod
    def parse(self, entry: bytes) -> tuple[str, list[str]]:
        """Return the field of an entry, as this class writes it, and its texts if it has any."""

    @abstractmethod
    def make(self, field: str, texts: list[str]) -> list[bytes]:
        """Return the entries for a field."""

    @abstractmethod
    def save(self, copy: Path) -> None:
        """Write the file with these entries to ``copy``; the file itself stays."""

    def carry(self, texts: Mapping[str, Sequence[str]]) -> None:
        """Take what other tags of the file say: FFmpeg's names in lower case → texts."""
        self.carried = {
            field: texts[name]
            for name, field in self.names.items()
            if name in texts and not self.raw(field)
        }

    def joined(self, texts: list[str]) -> list[str]:
        """Return several texts as this format keeps them."""
        return texts

    def raw(self, field: str) -> list[bytes]:
        return [entry for entry in self.entries if self.parse(entry)[0] == field]

    def get(self, field: str) -> list[str]:
        """Return a field's texts, [] without the field."""
        return [text for entry in self.raw(field) for text in self.parse(entry)[1]]

    def put(self, field: str, entries: list[bytes]) -> None:
        """Replace a field, in the place that it has; remove it without ``entries``."""
        at = [i for i, entry in enumerate(self.entries) if self.parse(entry)[0] == field]
        kept = [entry for i, entry in enumerate(self.entries) if i not in at]
        first = at[0] if at else len(kept)
        self.entries = [*kept[:first], *entries, *kept[first:]]


def unsupported(what: str) -> InputError:
    return InputError(f"{what} cannot be written", kind="unsupported", hint=f"Known: {KNOWN}.")


def room(left: int) -> int:
    """Return bytes of padding: what is left in the old place, else a little in a larger one."""
    return left if left >= 0 else _SLACK
