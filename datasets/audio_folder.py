"""The audio files of a folder, shards of them, and the names of their log-mel files."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

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


class AudioFolder(NamedTuple):
    files: list[str]  # paths relative to the folder, sorted by their bytes
    unreadable: dict[str, str]  # folders, and links to themselves → reason
    skipped: Counter[str]  # suffix of other files, or name of a system's entry → number


def find_audio(
    folder: Path, leave_out: Path | None = None, setting: str | None = None
) -> AudioFolder:
    """Find the audio files below a folder; ``setting`` is what the folder was given as.

    Links are followed, but not in a circle. A folder ``leave_out`` inside is left out, and so are
    system entries such as ``._song.mp3`` and ``@eaDir``, counted once a folder. Broken links with
    an audio suffix count as files. Raises InputError if there is nothing to read.
    """
    audio = AudioFolder([], {}, Counter())
    folders = [("", [_identity(folder)])]
    while folders:
        prefix, parents = folders.pop()
        try:
            entries = list(os.scandir(folder / prefix))
        except OSError as error:
            audio.unreadable[prefix or "."] = f"the folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            name, suffix = prefix + entry.name, Path(entry.name).suffix.lower()
            if entry.name.startswith(TEMPORARY):
                continue
            if _NOT_MUSIC.fullmatch(entry.name):
                audio.skipped["._*" if entry.name.startswith("._") else entry.name] += 1
                continue
            try:
                if entry.is_dir():
                    identity = _identity(entry.path)
                    if identity not in parents and Path(entry.path) != leave_out:
                        folders.append((f"{name}/", [*parents, identity]))
                elif suffix not in AUDIO_SUFFIXES:
                    if suffix != ".mmap":
                        audio.skipped[suffix or "no suffix"] += 1
                elif entry.is_file() or not os.path.exists(entry.path):  # no pipe
                    audio.files.append(name)
            except OSError as error:  # a link to itself, or a folder without permission
                if suffix in AUDIO_SUFFIXES:
                    audio.files.append(name)  # to be reported when it is read
                else:
                    audio.unreadable[name] = f"cannot be read: {error.strerror}"
    if not audio.files and not audio.unreadable:
        what = f"no audio in it; {summarize_skipped(audio.skipped)}looked for files that end in "
        what += f"{' '.join(sorted(AUDIO_SUFFIXES))}, in all folders below"
        hint = "Give the folder that holds the music."
        raise InputError(what, kind="empty", hint=hint, path=folder, setting=setting)
    audio.files.sort(key=os.fsencode)
    return audio


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def summarize_skipped(skipped: Counter[str]) -> str:
    """What is skipped, as ``6 files left out: .dsf 1, .txt 5; ``, or ""."""
    if not skipped:
        return ""
    kinds = [f"{suffix} {n}" for suffix, n in sorted(skipped.most_common(_SHOWN))]
    kinds += [f"and {len(skipped) - _SHOWN} more kinds"] * (len(skipped) > _SHOWN)
    return f"{skipped.total()} file{'s' * (skipped.total() != 1)} left out: {', '.join(kinds)}; "


def parse_shard(text: str, setting: str) -> tuple[int, int]:
    """``3/100``, the third of a hundred shards → (3, 100). InputError unless 1 <= K <= N."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    k, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= k <= n:
        hint = "Give K/N, such as 3/100, with K from 1 to N."
        raise InputError(f"{text!r} is not a shard", hint=hint, setting=setting)
    return k, n
