"""Which audio file each log-mel file of a store was made from.

``preprocess-index.jsonl`` in the store has a line for each log-mel file: the audio's path, size and
time of change. Lines are only ever added, each as soon as its file is made, and the newest of a
path counts: a killed run loses the lines of the files it was at, and no others. A shard adds to an
index of its own, so that shards may run at once.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import posixpath
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from maest.datasets.collection import mel_key
from maest.datasets.melspectrograms import size_problem
from maest.helpers.files import read_bytes, write_error

RECIPE_FILE = "preprocess.json"  # of every store
_INDEX = "preprocess-index"


@dataclass(frozen=True, slots=True)
class Source:
    """The audio that a log-mel file was made from."""

    key: str  # path of the log-mel file in the store
    size: int  # of the audio file, in bytes
    mtime_ns: int  # its time of change
    warnings: tuple[str, ...] = ()  # why results of it may mean nothing, such as "silent"

    def matches(self, audio: os.stat_result) -> bool:
        """Whether the audio file has not been replaced since, by an older one either."""
        return (self.size, self.mtime_ns) == (audio.st_size, audio.st_mtime_ns)


class MelIndex:
    """The index files of a store: reads all of them, adds to one.

    Attributes:
        sources: path of an audio file, relative to its folder → what was last made from it.
        owners: path of a log-mel file → that of the audio it was last made from.
    """

    def __init__(self, store: str | Path, part: str = "") -> None:
        """``part``: the end of this shard's file names; "" of a run that is no shard."""
        self._store = Path(store)
        self._path = self._store / f"{_INDEX}{part}.jsonl"
        self._file: FileIO | None = None
        entries = []
        hint = "Make it readable; or delete it, and newer audio alone is made again."
        for path in self._store.glob(f"{_INDEX}*.jsonl"):
            for line in read_bytes(path, hint, hint).splitlines():
                with suppress(ValueError, TypeError, KeyError):  # a line that was cut off
                    entries.append(_parse(line))
        self.sources: dict[str, Source] = {}
        for _, audio, source in sorted(entries, key=lambda entry: entry[0]):
            self.sources.pop(audio, None)  # the newest is the last
            self.sources[audio] = source
        self.owners = {source.key: audio for audio, source in self.sources.items()}

    def add(self, audio: str, source: Source) -> None:
        """Write down what a log-mel file was made from."""
        self.sources[audio] = source
        self.owners[source.key] = audio
        entry = {"path": audio, "size": source.size, "mtime_ns": source.mtime_ns}
        if source.key != mel_key(audio):
            entry["key"] = source.key
        if source.warnings:
            entry["warnings"] = source.warnings
        entry["time"] = time.time_ns()
        # ASCII, as a name may have any bytes. It may follow a line that was cut off.
        line = b"\n" + json.dumps(entry).encode() + b"\n"
        try:
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            if self._file.write(line) != len(line):  # at once: another run may add lines, too
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(self._path, error, "MELSPEC_DIR") from None

    def close(self) -> None:
        """Close the file that lines were added to."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def key(self, audio: str) -> str | None:
        """The log-mel file of an audio file; None if there is none, or another's by now."""
        source = self.sources.get(audio)
        return source.key if source and self.owners[source.key] == audio else None

    def is_made(self, audio: str, key: str, audio_dir: Path) -> bool:
        """Whether a log-mel file is whole, and made from the present audio.

        One that nothing is written down about is, if it is not older than the audio: it was made by
        an earlier version, or just before a run was killed. From now on it is in the index.
        """
        try:
            mel = (self._store / key).stat()
        except OSError:
            return False
        if not stat.S_ISREG(mel.st_mode) or size_problem(mel):
            return False
        known = self.key(audio) == key
        if key in self.owners and not known:
            return False
        try:
            found = (audio_dir / audio).stat()
        except OSError:
            return True
        if known:
            return self.sources[audio].matches(found)
        if found.st_mtime_ns > mel.st_mtime_ns:
            return False
        self.add(audio, Source(key, found.st_size, found.st_mtime_ns))
        return True

    def full_keys(self, names: Sequence[str], audio_dir: Path) -> dict[str, str]:
        """The log-mel files that keep the audio's suffix, as others have the name without it.

        Of ``song.flac`` and ``song.mp3``, the one that ``song.mmap`` was made from keeps it, and
        the other has ``song.mp3.mmap``. Where neither is made yet, the first of ``names`` gets
        ``song.mmap``. So does another one when the audio that it was made from is gone.

        Returns path of the audio → that of the log-mel file. All others have that of `mel_key`.
        """
        alike = Counter(map(mel_key, names))
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            key = mel_key(name)
            moved = self.owners.get(key, name) != name or self.key(name) not in (None, key)
            if moved or alike[key] > 1:
                groups[key].append(name)
        full: dict[str, str] = {}
        for key, group in groups.items():
            owner, free = self.owners.get(key), []
            for name in group:
                if name == owner:
                    continue
                if self.key(name) or (self._store / _full_key(name)).exists():
                    full[name] = _full_key(name)
                else:
                    free.append(name)
            kept = owner in group or (owner is not None and (audio_dir / owner).exists())
            if free and not kept:
                free.remove(_maker(free, self._store / key, audio_dir))
            full |= {name: _full_key(name) for name in free}
        return full


def _parse(line: bytes) -> tuple[int, str, Source]:
    entry = json.loads(line)
    audio = str(entry["path"])
    key = str(entry.get("key", mel_key(audio)))
    source = Source(key, entry["size"], entry["mtime_ns"], tuple(entry.get("warnings", ())))
    return int(entry["time"]), audio, source


def _full_key(audio: str) -> str:
    return f"{audio}.mmap"


def _maker(names: Sequence[str], mel: Path, audio_dir: Path) -> str:
    """The audio that an unrecorded log-mel file can be made from, by the times; or the first."""
    with suppress(OSError):
        made = mel.stat().st_mtime_ns
        for name in names:
            if (audio_dir / name).stat().st_ctime_ns <= made:
                return name
    return names[0]


def store_keys(store: str | Path, names: Sequence[str]) -> list[str]:
    """The keys of audio files in a store: paths of their log-mel files, which need not be there.

    ``names`` are relative to the folder that the store was made from; those of a store within it
    begin with that one's folder.
    """
    store = Path(store)
    index = functools.cache(lambda folder: MelIndex(store / folder))

    @functools.cache
    def home(folder: str) -> str:
        """The innermost store that has a folder, relative to ``store``."""
        if not folder or (store / folder / RECIPE_FILE).exists():
            return folder
        return home(posixpath.dirname(folder))

    def key(name: str) -> str:
        folder = home(posixpath.dirname(name))
        audio = posixpath.relpath(name, folder or ".")
        known = index(folder)
        found = known.key(audio) or mel_key(audio)
        taken = known.owners.get(found, audio) != audio
        if taken or (store / folder / _full_key(audio)).exists():
            found = _full_key(audio)
        return posixpath.join(folder, found)

    return [key(name) if mel_key(name) != name else name for name in names]
