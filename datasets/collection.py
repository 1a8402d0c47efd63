"""The audio files of a folder, and the names of their log-mel files."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from pathlib import Path

from maest.helpers.audio.reading import AUDIO_SUFFIXES
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import TEMPORARY

_SHOWN = 5  # suffixes that a message names
# Entries that macOS, Synology and Windows add beside the music; names may have an audio suffix.
_NOT_MUSIC = re.compile(
    r"\._.*|\.AppleDouble|\.Trash.*|\.Spotlight.*|__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN",
    re.IGNORECASE | re.DOTALL,
)


def mel_key(path: str) -> str:
    """Name an audio file's log-mel file: ``.mmap`` replaces an audio suffix; other paths stay."""
    stem, dot, suffix = path.rpartition(".")
    if stem and not stem.endswith("/") and f"{dot}{suffix}".lower() in AUDIO_SUFFIXES:
        return f"{stem}.mmap"
    return path


def find_audio(
    audio_dir: Path,
    leave_out: Path | None = None,
    failed: dict[str, str] | None = None,
    others: Counter[str] | None = None,
) -> list[str]:
    """Audio files below a folder, as paths relative to it, sorted by their bytes.

    Links are followed, but not in a circle. A folder ``leave_out`` inside is left out, and so are
    system entries such as ``._song.mp3`` and ``@eaDir``. ``failed`` receives unreadable folders and
    links to themselves (with an audio suffix they count as files), with the reason. ``others``
    counts what is left out, by suffix or, for system entries, by name; a folder counts once.
    """
    failed = {} if failed is None else failed
    others = Counter() if others is None else others
    names: list[str] = []
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(audio_dir),))]
    while folders:
        prefix, way = folders.pop()
        try:
            entries = list(os.scandir(audio_dir / prefix))
        except OSError as error:
            failed[prefix or "."] = f"the folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith(TEMPORARY):
                continue
            if _NOT_MUSIC.fullmatch(entry.name):
                others["._*" if entry.name.startswith("._") else entry.name] += 1
                continue
            name = prefix + entry.name
            suffix = Path(name).suffix.lower()
            try:
                if entry.is_dir():
                    own = _identity(Path(entry.path))
                    if own not in way and Path(entry.path) != leave_out:
                        folders.append((f"{name}/", (*way, own)))
                    continue
            except OSError as error:  # a link to itself, or a folder without permission
                if suffix not in AUDIO_SUFFIXES:
                    failed[name] = f"cannot be looked at: {error.strerror}"
                    continue
            if suffix not in AUDIO_SUFFIXES:
                if suffix != ".mmap":
                    others[suffix or "no suffix"] += 1
            elif _is_file_or_broken_link(entry):
                names.append(name)
    return sorted(names, key=os.fsencode)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _is_file_or_broken_link(entry: os.DirEntry) -> bool:
    """Whether to read it: a broken link too, so that it is reported, but no pipe."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def describe_left_out(suffixes: Counter[str]) -> str:
    """Describe counts, as ``6 files left out: .dsf 1, .txt 5; ``; "" if there are none."""
    if not suffixes:
        return ""
    some = ", ".join(f"{suffix} {count}" for suffix, count in sorted(suffixes.most_common(_SHOWN)))
    more = f", and {len(suffixes) - _SHOWN} more kinds" if len(suffixes) > _SHOWN else ""
    files = "file" if suffixes.total() == 1 else "files"
    return f"{suffixes.total()} {files} left out: {some}{more}; "


def no_audio(audio_dir: Path, others: Counter[str], setting: str | None = None) -> InputError:
    """The error for a folder without audio; ``others`` is from `find_audio`."""
    what = f"no audio in it; {describe_left_out(others)}looked for files that end in "
    what += f"{' '.join(sorted(AUDIO_SUFFIXES))}, in all folders below"
    hint = "Give the folder that holds the music."
    return InputError(what, kind="empty", hint=hint, path=audio_dir, setting=setting)


def split_shard(text: str) -> tuple[int, int] | None:
    """Parse ``3/100``, the third of a hundred shards, as (3, 100); other text is None."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    return (int(found[1]), int(found[2])) if found else None
