"""Make log-mel files from a folder of audio: the store that training and extraction read.

    python datasets/preprocess.py AUDIO_DIR MELSPEC_DIR

``AUDIO_DIR/a/song.mp3`` becomes ``MELSPEC_DIR/a/song.mmap``; a song.flac beside it becomes
``song.flac.mmap``. A second call makes missing files, and those whose audio has changed.
``MELSPEC_DIR/failed.csv`` lists audio that cannot be read (exit code 1); ``warnings.csv`` lists
silent and very short tracks, and log-mel files without audio.
"""

import argparse
import importlib
import math
import os
import posixpath
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing, suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Protocol

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

import numpy as np

from maest.datasets import audio_folder, commands, mel_store
from maest.datasets.groundtruth import check_key
from maest.datasets.melspectrograms import write_mel
from maest.helpers.audio.blocks import Meter, joined
from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.audio.reading import AudioError, stream_audio
from maest.helpers.errors import InputError
from maest.helpers.files import atomic
from maest.helpers.work.parallel import BACKENDS, check_backend, run_parallel

DEFAULT_SECONDS = 300.0


class Companion(Protocol):
    """What else is made of each track's audio, in the same pass. Workers get copies of it."""

    def is_made(self, key: str) -> bool:
        """Whether it is there, for a path of a log-mel file."""

    def make(self, key: str, audio: np.ndarray) -> np.ndarray:
        """Write it; return the audio that the log-mel is made of: float32 [samples], 16 kHz."""


def preprocess(
    audio_dir: str | Path,
    melspec_dir: str | Path,
    *,
    subfolder: str | None = None,
    seconds: float | None = DEFAULT_SECONDS,
    files: Iterable[str | Path] | None = None,
    num_workers: int | None = None,
    backend: str = "processes",
    scheduler: str | None = None,
    shard: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    companion: Companion | None = None,
) -> commands.Outcome:
    """Make the log-mel file of each audio file that has none, or has changed since.

    ``subfolder`` of the store is for a second ``audio_dir``: a store holds one only. ``seconds``
    are kept from the centre of each track, or all (None). ``files`` are paths below ``audio_dir``;
    None: all. ``shard`` "K/N" takes every N-th file from the K-th, in the order of names, and
    lists failures in ``failed-K-of-N.csv``. ``companion`` makes something else of the same audio.
    For the workers see `run_parallel`; the files do not depend on them.

    The outcome's items are audio files; orphans, log-mel files without audio, are in
    ``warnings.csv`` only. Raises InputError if there is no audio, if the store has other audio or
    settings or cannot be written to, or as `run_parallel`.
    """
    if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
        hint = "Give a positive number of seconds, or all."
        raise InputError(f"is {seconds}", setting="--seconds", hint=hint)
    if subfolder is not None and not re.fullmatch(r"[^./\\\0][^/\\\0]*", subfolder):
        hint = "Give one folder's name, without slashes or leading dot."
        raise InputError(f"is {subfolder!r}", setting="--subfolder", hint=hint)
    k, n = (1, 1) if shard is None else audio_folder.parse_shard(shard, "--shard")
    check_backend(backend, scheduler, num_workers)
    audio_dir, store = Path(audio_dir).resolve(), Path(melspec_dir).resolve()
    if not audio_dir.is_dir():
        hint = "Give a folder of audio files as AUDIO_DIR."
        what = "is a file, not a folder" if audio_dir.exists() else "no such folder"
        raise InputError(what, kind="missing", path=audio_dir, hint=hint)
    every, whole, part = files is None, shard is None, "" if shard is None else f"-{k}-of-{n}"
    if files is None:
        names, failed, other_files = audio_folder.find_audio(audio_dir, store)
    else:
        names = sorted({check_key(Path(file).as_posix()) for file in files}, key=os.fsencode)
        failed, other_files = {}, Counter()
    if subfolder is not None:
        mel_store.check_subfolder(store, subfolder, seconds)
        store /= subfolder
    notes = mel_store.open_store(store, names, seconds, audio_dir, whole=whole, every=every)
    index = mel_store.MelIndex(store, part)
    keys = index.keys(names, audio_dir)
    orphans = []
    if whole and every:
        atomic.remove_leftovers(store, {".mmap"})
        unread = tuple("" if folder == "." else f"{folder.rstrip('/')}/" for folder in failed)
        without_audio = sorted(set(mel_store.mel_files(store)) - set(keys.values()))
        orphans = [key for key in without_audio if not key.startswith(unread)]
    clashes = _clashes(keys, store, audio_dir, index)
    failed |= {name: clashes[name] for name in names[k - 1 :: n] if name in clashes}
    names = [name for name in names[k - 1 :: n] if name not in clashes]

    todo = [(name, keys[name]) for name in names]
    if not overwrite:
        todo = [
            (name, key)
            for name, key in todo
            if not index.is_made(name, key, audio_dir)
            or not (companion is None or companion.is_made(key))
        ]
    if todo:  # imported once, before worker processes fork
        importlib.import_module("maest.helpers.audio.log_mel")
    results = run_parallel(
        partial(_make, audio_dir=audio_dir, store=store, seconds=seconds, companion=companion),
        todo,
        num_workers=num_workers,
        backend=backend,
        scheduler=scheduler,
        failed=lambda item, reason: (item[0], reason, 0),
        progress=progress,
        unit="file",
    )
    done, made_seconds = set[str](), 0.0
    failed_csv, warnings_csv = store / f"failed{part}.csv", store / f"warnings{part}.csv"
    try:
        with closing(results):
            for name, source, its_seconds in results:
                if isinstance(source, str):
                    failed[name] = source
                else:
                    done.add(name)
                    made_seconds += its_seconds
                    index.add(name, source)
    except BaseException:  # after Ctrl-C too: add the known failures
        with suppress(OSError):  # on a full disk, report the first error
            older = atomic.read_failures(failed_csv, column="path")
            older = {name: reason for name, reason in older.items() if name not in done}
            atomic.write_failures(failed_csv, older | failed, column="path")
        raise
    sources = ((name, index.sources[name]) for name in names if name in index.sources)
    warnings = {name: ", ".join(source.warnings) for name, source in sources if source.warnings}
    listed = warnings | dict.fromkeys(orphans, "no audio file has this name (any more)")
    try:
        atomic.write_failures(failed_csv, failed, column="path")
        atomic.write_failures(warnings_csv, listed, column="path")
        if whole:  # this run went over the shards' failures again
            for leftover in (*store.glob("failed-*-of-*.csv"), *store.glob("warnings-*-of-*.csv")):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise atomic.write_error(failed_csv, error, "MELSPEC_DIR") from None
    skipped = len(names) - len(todo)
    summary = f"{len(done)} done ({made_seconds / 3600:.2f} h of audio), {skipped} skipped, "
    summary += f"{len(failed)} failed"
    summary += f" (listed with reasons in {failed_csv}); " if failed else "; "
    counts = [(len(warnings), "with warnings"), (len(orphans), "without audio")]
    summary += ", ".join(f"{count} {what}" for count, what in counts if count)
    summary += f" (listed in {warnings_csv}); " if listed else ""
    summary += f"{audio_folder.summarize_skipped(other_files)}{store}"
    return commands.Outcome(len(done), skipped, failed, warnings, notes, summary)


def _clashes(
    keys: dict[str, str], store: Path, audio_dir: Path, index: mel_store.MelIndex
) -> dict[str, str]:
    """Audio files whose log-mel file would belong to another file or store → the reason."""
    clashes: dict[str, str] = {}
    ignores_case = (store / mel_store.RECIPE_FILE.upper()).exists()
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in keys.items():
        groups[key.casefold() if ignores_case else key].append(name)
    why = " (the store's disk does not tell upper from lower case)" if ignores_case else ""
    for group in groups.values():
        kept = next((name for name in group if index.key(name) == keys[name]), group[0])
        reason = f"its log-mel file would be that of {kept!r}{why}: rename one of them"
        clashes |= dict.fromkeys((name for name in group if name != kept), reason)
    ways = (folder.split("/") for folder in {posixpath.dirname(name) for name in keys})
    for folder in {folder for way in ways for folder in accumulate(way, posixpath.join)} - {""}:
        if mel_store.is_of_other_audio(store / folder, audio_dir / folder):
            reason = f"{store / folder} is for other music: rename its folder"
            names = (name for name in keys if name.startswith(f"{folder}/"))
            clashes |= dict.fromkeys(names, reason)
    return clashes


# ---- one file, in a worker process ---------------------------------------------------------------


def _make(
    item: tuple[str, str],
    audio_dir: Path,
    store: Path,
    seconds: float | None,
    companion: Companion | None,
) -> tuple[str, mel_store.Source | str, float]:
    """For (audio, key): the audio, its source or the reason of the failure, and its seconds."""
    from maest.helpers.audio.log_mel import log_mel  # imports torch, which takes seconds

    name, key = item
    audio, target = audio_dir / name, store / key
    size = mtime = -1
    with suppress(OSError):  # before reading, in case the file is replaced meanwhile
        size, mtime = (status := audio.stat()).st_size, status.st_mtime_ns
    try:
        meter = Meter()
        with closing(stream_audio(audio, seconds, meter)) as blocks:
            mel = log_mel(blocks if companion is None else companion.make(key, joined(blocks)))
    except AudioError as error:
        kept = "; its log-mel file from before is kept" if target.exists() else ""
        return name, f"{error.reason}{kept}", 0
    except InputError:  # of ``companion``: a model, or the disk, which fails for all files
        raise
    except Exception as error:  # a corrupt file may raise anything; the others are made
        return name, f"{type(error).__name__}: {error}"[:300], 0
    try:
        write_mel(target, mel)
    except OSError as error:
        if error.errno in atomic.NAMES_FILE_ONLY:
            return name, f"its log-mel file cannot be written: {error.strerror}", 0
        raise atomic.write_error(target, error, "MELSPEC_DIR") from None
    source = mel_store.Source(key, size, mtime, tuple(meter.warnings()))
    return name, source, (len(mel) - 1) * HOP_LENGTH / SAMPLE_RATE


def seconds_or_all(text: str) -> float | None:
    try:
        return None if text == "all" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, nor all") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Make the log-mel file of each audio file in a folder."
    )
    add = parser.add_argument
    add("audio_dir", type=Path, metavar="AUDIO_DIR", help="a folder of audio")
    add("melspec_dir", type=Path, metavar="MELSPEC_DIR", help="where to")
    add("--subfolder", help="of MELSPEC_DIR: where the files of a second AUDIO_DIR go")
    kept = "seconds to keep from the centre of each track, or all (default: 300)"
    add("--seconds", type=seconds_or_all, default=DEFAULT_SECONDS, help=kept)
    add("--num-workers", type=int, help="processes (default: one a core)")
    add("--backend", choices=BACKENDS, default=BACKENDS[0])
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster")
    add("--shard", metavar="K/N", help="do the K-th of N parts, for job arrays")
    add("--overwrite", action="store_true", help="make all files again, including complete ones")
    add("--no-progress", dest="progress", action="store_false")
    options = parser.parse_args(arguments)
    return commands.run(lambda: preprocess(**vars(options)), parser.prog)


if __name__ == "__main__":
    commands.start("maest.datasets.preprocess")
