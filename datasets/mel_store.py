"""How a store of log-mel files was made: the settings, and each file's audio.

``preprocess.json`` has the settings and the audio folder. ``preprocess-index.jsonl`` gets a line as
soon as a log-mel file is made: the audio's path, size and time of change; a path's newest line
counts. A shard adds to an index of its own, so that shards may run at once.
"""

import errno
import functools
import json
import os
import posixpath
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maest.datasets.audio_folder import mel_key
from maest.datasets.melspectrograms import is_whole
from maest.helpers.audio.constants import HOP_LENGTH, N_MELS, SAMPLE_RATE
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import TEMPORARY, read_bytes, valid_utf8, write_error, write_json

RECIPE_FILE = "preprocess.json"  # in every store
_INDEX = "preprocess-index"
_EMPTY = "Give an empty MELSPEC_DIR."
_VERSION = 1  # raise it when reading or the front end changes what is written


# ---- settings and audio --------------------------------------------------------------------------


def _settings(seconds: float | None) -> dict[str, Any]:
    """The settings that a log-mel file's content depends on."""
    return {
        "seconds": "all" if seconds is None else float(seconds),
        "sample_rate": SAMPLE_RATE,
        "hop": HOP_LENGTH,
        "bands": N_MELS,
        "version": _VERSION,
    }


def _recipe(store: Path) -> dict[str, Any]:
    """The recipe of a store; {} if it is missing or damaged."""
    with suppress(OSError, ValueError):
        recipe = json.loads((store / RECIPE_FILE).read_text("utf-8"))
        if isinstance(recipe, dict):
            return recipe
    return {}


def kept_seconds(melspec_dir: Path) -> float | None:
    """Most seconds that a store keeps of a track; None: all, or unknown."""
    seconds = _recipe(melspec_dir).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _places(audio_dir: Path, store: Path) -> list[str]:
    """The audio folder, as given and relative to the store, since both may move together."""
    return [valid_utf8(str(audio_dir)), valid_utf8(os.path.relpath(audio_dir, store))]


def _sources(recipe: dict[str, Any]) -> list[str]:
    """The audio folder in a recipe: [] from an early version, one path if a user wrote it."""
    source = recipe.get("source", [])
    return [source] if isinstance(source, str) else list(source)


def is_of_other_audio(store: Path, audio_dir: Path) -> bool:
    """Whether a folder is a store, made from another audio folder."""
    sources = _sources(_recipe(store))
    return bool(sources) and not set(sources) & set(_places(audio_dir, store))


def check_subfolder(store: Path, name: str, seconds: float | None) -> None:
    """Raise InputError if settings differ, or if that folder has log-mel files of the store."""
    _check_settings(store, _recipe(store), seconds)
    folder = store / name
    if not (folder / RECIPE_FILE).exists() and any(mel_files(folder)):
        what, hint = "holds log-mel files of the folder around it", "Give another name."
        raise InputError(what, kind="exists", path=folder, setting="--subfolder", hint=hint)


def open_store(
    store: Path,
    names: Sequence[str],
    seconds: float | None,
    audio_dir: Path,
    *,
    whole: bool,
    every: bool,
) -> list[str]:
    """Create the store and its recipe; return warnings. Raises InputError if it was made otherwise.

    ``names`` are audio files, all of the folder's if ``every``; ``whole`` is false for a shard.
    """
    path, recipe = store / RECIPE_FILE, _settings(seconds)
    recipe["source"] = _places(audio_dir, store)
    try:
        store.mkdir(parents=True, exist_ok=True)
        present = None if path.exists() else _first_made(store, names)
        if not path.exists():  # still: another shard writes it before its first file
            if present:
                what = f"holds {present!r} already, and no {RECIPE_FILE}: how was it made?"
                raise InputError(what, kind="exists", path=store, hint=_EMPTY)
            write_json(path, recipe)
        known = _recipe(store)
        # A recipe without log-mel files gives way, but not to a shard: others may use it.
        if whole and known != recipe and not any(mel_files(store)):
            write_json(path, recipe)
            return []
        if not known:
            what = "is damaged: expected the settings of the log-mel files, as JSON"
            raise InputError(what, kind="corrupt", path=path, hint=_EMPTY)
        _check_settings(store, known, seconds)
        sources = _sources(known)
        unknown = not sources and every and not _first_made(store, names)
        if is_of_other_audio(store, audio_dir) or (unknown and any(mel_files(store))):
            source = sources[0] if sources else "other audio"
            what = f"its log-mel files were made from {source}, not from {audio_dir}"
            hint = "Give --subfolder NAME, a folder of its own for this audio, or another "
            hint += "MELSPEC_DIR. Is it the same music in another place? Then write "
            hint += f'{audio_dir} under "source" in {path}.'
            raise InputError(what, kind="conflict", path=store, hint=hint)
        if sources:
            return []
        write_json(path, recipe)
    except OSError as error:
        what, hint = f"cannot be written to ({error.strerror or error})", "Give another folder."
        raise InputError(what, kind="access", path=store, hint=hint) from None
    return [f"{store}: made by an earlier version; its audio is taken to be {audio_dir}"]


def _first_made(store: Path, names: Sequence[str]) -> str | None:
    return next((key for key in map(mel_key, names) if os.path.exists(store / key)), None)


def _check_settings(store: Path, known: dict[str, Any], seconds: float | None) -> None:
    wanted = _settings(seconds)
    differ = differences({name: known.get(name) for name in wanted}, wanted)
    if known and differ:
        what = f"the log-mel files were made with other settings: {'; '.join(differ)}"
        hint, path = "Give another MELSPEC_DIR, or the same settings.", store / RECIPE_FILE
        raise InputError(what, kind="mismatch", path=path, hint=hint)


def mel_files(store: Path) -> Iterator[str]:
    """Log-mel files, as paths relative to the store, without those of stores within it."""
    for place, folders, names in os.walk(store):
        folder = Path(place).relative_to(store)
        folders[:] = [name for name in folders if not (Path(place, name) / RECIPE_FILE).exists()]
        for name in names:
            if name.endswith(".mmap") and not name.startswith(TEMPORARY):
                yield (folder / name).as_posix()


# ---- each file's audio ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """The audio that a log-mel file was made from."""

    key: str  # path of the log-mel file in the store
    size: int  # of the audio file, in bytes
    mtime_ns: int  # its time of change (mtime)
    warnings: tuple[str, ...] = ()  # why results of it may mean nothing, such as "silent"


class MelIndex:
    """The index files of a store: reads all, adds to that of ``part`` (a shard's, or "")."""

    def __init__(self, store: str | Path, part: str = "") -> None:
        self._store = Path(store)
        self._path = self._store / f"{_INDEX}{part}.jsonl"
        entries = []
        hint = "Make it readable; or delete it, and newer audio alone is made again."
        for path in self._store.glob(f"{_INDEX}*.jsonl"):
            for line in read_bytes(path, hint, hint).splitlines():
                with suppress(ValueError, TypeError, KeyError):  # a line that was cut off
                    entries.append(_parse(line))
        # Path of an audio file, relative to its folder → its newest log-mel file
        self.sources: dict[str, Source] = {}
        for _, audio, source in sorted(entries, key=lambda entry: entry[0]):
            self.sources.pop(audio, None)  # so that the newest comes last
            self.sources[audio] = source
        # Path of a log-mel file → the audio that it was last made from
        self.owners = {source.key: audio for audio, source in self.sources.items()}

    def add(self, audio: str, source: Source) -> None:
        self.sources[audio] = source
        self.owners[source.key] = audio
        entry = {"path": audio, **asdict(source), "time": time.time_ns()}
        # ASCII, as a name may have any bytes; "\n" first, as the last line may be cut off.
        line = b"\n" + json.dumps(entry).encode() + b"\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                if file.write(line) != len(line):  # one write: another run may add lines, too
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(self._path, error, "MELSPEC_DIR") from None

    def key(self, audio: str) -> str | None:
        """The log-mel file made from an audio file; None if missing, or replaced by another's."""
        source = self.sources.get(audio)
        return source.key if source and self.owners[source.key] == audio else None

    def is_made(self, audio: str, key: str, audio_dir: Path) -> bool:
        """Whether a log-mel file is whole, and made from the present audio."""
        known = self.key(audio) == key
        try:
            mel = (self._store / key).stat()
        except OSError:
            return False
        if not is_whole(mel) or (key in self.owners and not known):
            return False
        try:
            present = (audio_dir / audio).stat()
        except OSError:
            return True
        if known:  # compare for equality: an older file may replace the audio
            source = self.sources[audio]
            return (source.size, source.mtime_ns) == (present.st_size, present.st_mtime_ns)
        if present.st_mtime_ns > mel.st_mtime_ns:
            return False
        # An early version, or a run just before it was killed, left no record: add it.
        self.add(audio, Source(key, present.st_size, present.st_mtime_ns))
        return True

    def keys(self, names: Sequence[str], audio_dir: Path) -> dict[str, str]:
        """Audio → log-mel file: `mel_key`, or with the audio's suffix (``song.mp3.mmap``).

        Of ``song.flac`` and ``song.mp3``, the one that ``song.mmap`` was made from keeps it. The
        first of ``names`` gets it if neither is made yet, or if the audio that it was made from is
        gone.
        """
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[mel_key(name)].append(name)
        keys: dict[str, str] = {}
        for short, group in groups.items():
            first, owner = group[0], self.owners.get(short)
            if group == [owner or first] and self.key(first) in (None, short):
                keys[first] = short
                continue
            free = [n for n in group if n != owner and not self._is_full(n)]
            if owner is None or not (owner in group or (audio_dir / owner).exists()):
                owner = _maker(free, self._store / short, audio_dir)
            keys |= {name: short if name == owner else f"{name}.mmap" for name in group}
        return keys

    def _is_full(self, audio: str) -> bool:
        return bool(self.key(audio)) or (self._store / f"{audio}.mmap").exists()


def _parse(line: bytes) -> tuple[int, str, Source]:
    entry = json.loads(line)
    audio = str(entry["path"])
    key = str(entry.get("key", mel_key(audio)))
    source = Source(key, entry["size"], entry["mtime_ns"], tuple(entry.get("warnings", ())))
    return int(entry["time"]), audio, source


def _maker(names: Sequence[str], mel: Path, audio_dir: Path) -> str | None:
    """The audio that an unrecorded log-mel file may be made from, by the times; or the first."""
    with suppress(OSError):
        changed = mel.stat().st_mtime_ns
        for name in names:
            if (audio_dir / name).stat().st_ctime_ns <= changed:
                return name
    return names[0] if names else None


def store_keys(store: str | Path, names: Sequence[str]) -> list[str]:
    """Paths, in a store, of the log-mel files of audio files; they need not exist.

    ``names`` are relative to the audio folder; those of an inner store begin with its folder.
    """
    store = Path(store)
    index = functools.cache(lambda folder: MelIndex(store / folder))

    @functools.cache
    def home(folder: str) -> str:
        """The innermost store around a folder, relative to ``store``."""
        if not folder or (store / folder / RECIPE_FILE).exists():
            return folder
        return home(posixpath.dirname(folder))

    def key(name: str) -> str:
        folder = home(posixpath.dirname(name))
        audio, known = posixpath.relpath(name, folder or "."), index(folder)
        key = known.key(audio) or mel_key(audio)
        if known.owners.get(key, audio) != audio or (store / folder / f"{audio}.mmap").exists():
            key = f"{audio}.mmap"
        return posixpath.join(folder, key)

    return [key(name) if mel_key(name) != name else name for name in names]
