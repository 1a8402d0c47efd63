"""Make log-mel files from a folder of audio: the store that training and extraction read.

    python datasets/preprocess.py AUDIO_DIR MELSPEC_DIR

``AUDIO_DIR/a/song.mp3`` becomes ``MELSPEC_DIR/a/song.mmap``; a song.flac beside it becomes
``song.flac.mmap``. A second call makes missing files, and those whose audio has changed.
``MELSPEC_DIR/failed.csv`` lists audio that cannot be read (exit code 1); ``warnings.csv`` lists
silent and very short tracks, and log-mel files without audio.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import os
import posixpath
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.datasets import commands, mel_store
from maest.datasets.collection import describe_left_out, find_audio, mel_key, no_audio, split_shard
from maest.datasets.melspectrograms import write_mel
from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.audio.reading import AudioError, stream_audio
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import (
    NAMES_FILE_ONLY,
    read_failures,
    remove_leftovers,
    write_error,
    write_failures,
)
from maest.helpers.work.parallel import BACKENDS, check_backend, run_parallel

DEFAULT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Report(commands.Outcome):
    """Outcome of a run; items are audio files, relative to ``audio_dir``."""

    melspec_dir: Path
    seconds: float  # of audio, in the files that this run made
    left_out: Counter[str]  # suffix or folder name, of files that are not music → number
    warnings: dict[str, str]  # audio → why its results may mean nothing; also of skipped files
    orphans: list[str]  # log-mel files without audio; always empty for a shard
    failed_csv: Path | None  # lists failures, if any
    warnings_csv: Path | None  # lists warnings and orphans, if any
    notes: list[str]  # about the store, for the user

    def __str__(self) -> str:
        where = f" (listed with reasons in {self.failed_csv})" if self.failed_csv else ""
        counts = [(len(self.warnings), "with warnings"), (len(self.orphans), "without audio")]
        listed = ", ".join(f"{count} {what}" for count, what in counts if count)
        warnings = f"{listed} (listed in {self.warnings_csv}); " if listed else ""
        return (
            f"{self.done} done ({self.seconds / 3600:.2f} h of audio), {self.skipped} skipped, "
            f"{len(self.failed)} failed{where}; {warnings}{describe_left_out(self.left_out)}"
            f"{self.melspec_dir}"
        )


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
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Make the log-mel file of each audio file that has none, or has changed since.

    Args:
        subfolder: of ``melspec_dir``, for a second ``audio_dir``: a store holds one only.
        seconds: to keep from the centre of each track; None for all.
        files: paths below ``audio_dir``; None for all audio there.
        num_workers: None for one per core; the files do not depend on it. 1 works in this process,
            which a file that crashes its decoder ends; other workers start again.
        scheduler: address of a Dask scheduler, for the backend "dask".
        shard: (k, n) takes every n-th file from the k-th (from 1), in the order of names, and
            lists failures in ``failed-k-of-n.csv``.

    Raises InputError if there is no audio, if the store has other audio or settings or cannot be
    written to, or as `helpers.work.parallel.run_parallel`.
    """
    _check_options(seconds, shard, subfolder)
    check_backend(backend, scheduler, num_workers)
    audio_dir, store = Path(audio_dir).resolve(), Path(melspec_dir).resolve()
    if not audio_dir.is_dir():
        what = "is a file, not a folder" if audio_dir.exists() else "no such folder"
        hint = "Give a folder of audio files as AUDIO_DIR."
        raise InputError(what, kind="missing", path=audio_dir, hint=hint)
    failed: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    if files is None:
        names = find_audio(audio_dir, store, failed, left_out)
    else:
        names = sorted({Path(file).as_posix() for file in files}, key=os.fsencode)
        outside = [name for name in names if name[:1] == "/" or ".." in name.split("/")]
        if outside:  # the log-mel file would be outside the store
            what, hint = f"{outside[0]!r} is not below {audio_dir}", "Give paths relative to it."
            raise InputError(what, setting="files", hint=hint)
    if not names and not failed:
        raise no_audio(audio_dir, left_out)
    whole, part = shard is None, "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
    if subfolder is not None:
        mel_store.check_subfolder(store, subfolder, seconds)
        store /= subfolder
    notes = mel_store.open_store(store, names, seconds, audio_dir, whole=whole, every=files is None)
    index = mel_store.MelIndex(store, part)
    keys = {name: mel_key(name) for name in names} | index.full_keys(names, audio_dir)
    clashes = _clashes(keys, store, audio_dir, index)
    orphans = []
    if whole and files is None:
        remove_leftovers(store, {".mmap"})
        unread = tuple("" if folder == "." else folder for folder in failed)
        unmade = sorted(set(mel_store.mel_files(store)) - set(keys.values()))
        orphans = [key for key in unmade if not key.startswith(unread)]
    if shard is not None:
        names = names[shard[0] - 1 :: shard[1]]
    failed |= {name: clashes[name] for name in names if name in clashes}
    names = [name for name in names if name not in clashes]

    failed_csv, warnings_csv = store / f"failed{part}.csv", store / f"warnings{part}.csv"
    done, heard = set(), 0.0
    try:
        todo = [(name, keys[name]) for name in names]
        if not overwrite:
            todo = [pair for pair in todo if not index.is_made(*pair, audio_dir)]
        if todo:
            importlib.import_module(
                "maest.helpers.audio.log_mel"
            )  # once, before worker processes fork
        results = run_parallel(
            _make,
            todo,
            (str(audio_dir), str(store), seconds),
            num_workers=num_workers,
            backend=backend,
            scheduler=scheduler,
            failed=lambda item, reason: (item[0], reason),
            progress=progress,
            title="preprocess",
            unit="file",
        )
        with closing(results):
            for name, made in results:
                if isinstance(made, str):
                    failed[name] = made
                else:
                    done.add(name)
                    heard += made[1]
                    index.add(name, made[0])
    except BaseException:  # after Ctrl-C too: write the known failures
        with suppress(OSError):  # on a full disk, report the first error
            older = read_failures(failed_csv, column="path")
            not_done = {name: reason for name, reason in older.items() if name not in done}
            write_failures(failed_csv, not_done | failed, column="path")
        raise
    sources = {name: index.sources[name] for name in names if name in index.sources}
    warnings = {name: ", ".join(own.warnings) for name, own in sources.items() if own.warnings}
    listed = warnings | dict.fromkeys(orphans, "no audio file has this name (any more)")
    try:
        has_failures = write_failures(failed_csv, failed, column="path")
        has_warnings = write_failures(warnings_csv, listed, column="path")
        if whole:  # this run went over the shards' failures again
            for what in ("failed", "warnings"):
                for leftover in store.glob(f"{what}-*-of-*.csv"):
                    leftover.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(failed_csv, error, "MELSPEC_DIR") from None
    return Report(
        done=len(done),
        skipped=len(names) - len(todo),
        failed=failed,
        melspec_dir=store,
        seconds=heard,
        left_out=left_out,
        warnings=warnings,
        orphans=orphans,
        failed_csv=has_failures,
        warnings_csv=has_warnings,
        notes=notes,
    )


def _check_options(
    seconds: float | None, shard: tuple[int, int] | None, subfolder: str | None
) -> None:
    long = seconds is None or 1 <= seconds * SAMPLE_RATE < math.inf
    part, k_of_n = shard is None or 1 <= shard[0] <= shard[1], "/".join(map(str, shard or ()))
    name = subfolder is None or re.fullmatch(r"[^./\\\0][^/\\\0]*", subfolder)
    for fits, setting, value, hint in (
        (long, "--seconds", seconds, "Give a positive number of seconds, or all."),
        (part, "--shard", k_of_n, "Give K/N with K from 1 to N, such as 3/100."),
        (name, "--subfolder", subfolder, "Give one folder's name, without slashes or leading dot."),
    ):
        if not fits:
            raise InputError(f"is {value}", setting=setting, hint=hint)


# ---- one file, in a worker process ---------------------------------------------------------------


def _make(
    item: tuple[str, str], audio_dir: str, melspec_dir: str, seconds: float | None
) -> tuple[str, tuple[mel_store.Source, float] | str]:
    """For (audio, key): the audio, and its source and seconds, or the reason of the failure."""
    from maest.helpers.audio.log_mel import log_mel_pieces  # imports torch, which takes seconds

    name, key = item
    audio, target = Path(audio_dir, name), Path(melspec_dir, key)
    size = mtime = -1
    with suppress(OSError):  # before reading, in case the file is replaced meanwhile
        size, mtime = (status := audio.stat()).st_size, status.st_mtime_ns
    try:
        with closing(stream_audio(audio, seconds)) as blocks:
            mel = np.concatenate(list(log_mel_pieces(blocks)))
    except AudioError as error:
        kept = "; its log-mel file from before is kept" if target.exists() else ""
        return name, f"{error.reason}{kept}"
    except Exception as error:  # a corrupt file may raise anything; the others are made
        return name, f"{type(error).__name__}: {error}"[:300]
    try:
        write_mel(target, mel)
    except ValueError:
        return name, "its log-mel has values that float16 does not hold: samples far above 1"
    except OSError as error:
        if error.errno in NAMES_FILE_ONLY:
            return name, f"its log-mel file cannot be written: {error.strerror}"
        raise write_error(target, error, "MELSPEC_DIR") from None
    source = mel_store.Source(key, size, mtime, tuple(blocks.warnings))
    return name, (source, (len(mel) - 1) * HOP_LENGTH / SAMPLE_RATE)


# ---- the store -----------------------------------------------------------------------------------


def _clashes(
    keys: dict[str, str], store: Path, audio_dir: Path, index: mel_store.MelIndex
) -> dict[str, str]:
    """Audio files whose log-mel file would belong to another file or store → the reason."""
    failed: dict[str, str] = {}
    same_case = (store / mel_store.RECIPE_FILE.upper()).exists()
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in keys.items():
        groups[key.casefold() if same_case else key].append(name)
    why = " (the store's disk does not tell upper from lower case)" if same_case else ""
    for group in groups.values():
        kept = next((name for name in group if index.key(name) == keys[name]), group[0])
        reason = f"its log-mel file would be that of {kept!r}{why}: rename one of them"
        failed |= dict.fromkeys((name for name in group if name != kept), reason)

    @functools.cache
    def is_others(folder: str) -> bool:
        """Whether a folder of the store belongs to a store of other audio."""
        return bool(folder) and (
            mel_store.is_of_other_audio(store / folder, audio_dir / folder)
            or is_others(posixpath.dirname(folder))
        )

    for name in keys:
        if is_others(folder := posixpath.dirname(name)):
            failed[name] = f"{store / folder} is for other music: rename its folder"
    return failed


# ---- command line --------------------------------------------------------------------------------


def parse_seconds(text: str) -> float | None:
    try:
        return None if text == "all" else float(text)
    except ValueError:
        what = f"{text!r}: expected a number of seconds, such as 300, or all"
        raise argparse.ArgumentTypeError(what) from None


def parse_shard(text: str) -> tuple[int, int]:
    shard = split_shard(text)
    if shard is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N, such as 3/100")
    return shard


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Make the log-mel file of each audio file in a folder."
    )
    add = parser.add_argument
    add("audio_dir", type=Path, metavar="AUDIO_DIR", help="a folder of audio")
    add("melspec_dir", type=Path, metavar="MELSPEC_DIR", help="where to")
    add("--subfolder", help="of MELSPEC_DIR: where the files of a second AUDIO_DIR go")
    kept = "seconds to keep from the centre of each track, or all (default: 300)"
    add("--seconds", type=parse_seconds, default=DEFAULT_SECONDS, help=kept)
    add("--num-workers", type=int, help="processes (default: one a core)")
    add("--backend", choices=BACKENDS, default=BACKENDS[0])
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster")
    add("--shard", type=parse_shard, metavar="K/N", help="do the K-th of N parts, for job arrays")
    add("--overwrite", action="store_true", help="make all files again, including complete ones")
    add("--no-progress", dest="progress", action="store_false")
    options = parser.parse_args(arguments)

    def command() -> Report:
        report = preprocess(**vars(options))
        for note in report.notes:
            print(note, file=sys.stderr)
        commands.print_failures(report.failed)
        commands.print_failures(report.warnings, "warning")
        print(report)
        return report

    return commands.run(command, parser.prog)


if __name__ == "__main__":
    commands.start("maest.datasets.preprocess")
