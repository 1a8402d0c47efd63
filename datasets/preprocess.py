"""From a folder of audio to log-mel files: the store that training and extraction read.

    python datasets/preprocess.py AUDIO_DIR MELSPEC_DIR

``AUDIO_DIR/a/song.mp3`` becomes ``MELSPEC_DIR/a/song.mmap``. A second call makes what is missing,
and what is older than its audio. A file that cannot be read costs that file only: it is listed in
``MELSPEC_DIR/failed.csv``, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import signal
import stat
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from datasets.collection import (
    PreprocessError,
    describe_left_out,
    find_audio,
    mel_key,
    no_audio,
    refuse_collisions,
    split_shard,
)
from datasets.melspectrograms import size_problem, write_mel
from helpers.audio import AudioError, read_audio
from helpers.errors import InputError
from helpers.failures import read_failures, write_failures
from helpers.files import (
    NAMES_FILE_ONLY,
    TEMPORARY,
    remove_leftovers,
    why_not_written,
    write_json,
)
from helpers.mel_constants import HOP_LENGTH, N_MELS, SAMPLE_RATE
from helpers.parallel import BACKENDS, check_backend, one_torch_thread, run_parallel

DEFAULT_SECONDS = 300.0
RECIPE_FILE = "preprocess.json"
_VERSION = 1  # raise it when reading or the front end changes what is written
_SHOWN = 5  # of a list, in the summary


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        melspec_dir: where the files are.
        done, skipped: files made now, and whole before.
        failed: audio file relative to its folder → reason.
        seconds: of audio in the files made now.
        failed_csv: the list of failures, if there are any.
        left_out: suffixes that are not taken for audio → how many files have them.
    """

    melspec_dir: Path
    done: int
    skipped: int
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    failed_csv: Path | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        where = f" (listed with reasons in {self.failed_csv})" if self.failed_csv else ""
        left_out = describe_left_out(self.left_out)
        return (
            f"{self.done} done ({self.seconds / 3600:.2f} h of audio), {self.skipped} skipped, "
            f"{len(self.failed)} failed{where}; {left_out}{self.melspec_dir}"
        )


def preprocess(
    audio_dir: str | Path,
    melspec_dir: str | Path,
    *,
    seconds: float | None = DEFAULT_SECONDS,
    files: Iterable[str | Path] | None = None,
    num_workers: int | None = None,
    backend: str = "processes",
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """Make the log-mel file of each audio file that has none yet, or one older than itself.

    Args:
        audio_dir: folder of audio, with any folders in it. Hidden files are left out.
        melspec_dir: where to; made if need be.
        seconds: at most so much of each track is kept, its centre; None for all of it.
        files: paths below ``audio_dir``, to do these only; None for all that look like audio.
        num_workers: processes; None for one a core. The files do not depend on it. 1 is this
            process itself, which a file that crashes its decoder ends; others are started again.
        backend, scheduler: "processes" for this machine, or "dask" and a scheduler's address.
        shard: (k, n), the k-th of n parts, k from 1: every n-th file, in the order of names.
        overwrite: whether to make all files again, those that are whole too.
        progress: whether to show a progress bar.

    Returns:
        what was done. Failures are in it, and in ``failed.csv`` (of a shard ``failed-k-of-n.csv``).

    Raises:
        PreprocessError: no such folder, no audio, two files whose log-mel would have one name, a
            store made with other settings, or one that cannot be written to.
        helpers.errors.InputError: as `helpers.parallel.run_parallel`.
    """
    if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
        raise PreprocessError(f"--seconds is {seconds}: expected a positive number, or all")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise PreprocessError(f"--shard is {shard[0]}/{shard[1]}: expected K/N with K from 1 to N")
    check_backend(backend, scheduler, num_workers)
    audio_dir, melspec_dir = Path(audio_dir).resolve(), Path(melspec_dir).resolve()
    if not audio_dir.is_dir():
        kind = "is a file, not a folder" if audio_dir.exists() else "no such folder"
        raise PreprocessError(f"{audio_dir}: {kind}. Expected a folder of audio files")

    failed: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    if files is None:
        names = find_audio(audio_dir, melspec_dir, failed, left_out)
    else:
        names = sorted({Path(file).as_posix() for file in files}, key=os.fsencode)
    if not names and not failed:
        raise PreprocessError(no_audio(audio_dir, left_out))
    refuse_collisions(names, audio_dir)
    _open_store(melspec_dir, names, seconds, alone=shard is None)
    if shard is None:
        remove_leftovers(melspec_dir, {".mmap"})
    else:
        names = names[shard[0] - 1 :: shard[1]]

    todo = [
        name
        for name in names
        if overwrite or not _is_made(audio_dir / name, melspec_dir / mel_key(name))
    ]
    csv_name = "failed.csv" if shard is None else f"failed-{shard[0]}-of-{shard[1]}.csv"
    done, heard = set(), 0.0
    if todo:
        importlib.import_module("helpers.melspectrogram")  # once, before worker processes fork
    results = run_parallel(
        _make,
        todo,
        (str(audio_dir), str(melspec_dir), seconds),
        num_workers=num_workers,
        backend=backend,
        scheduler=scheduler,
        failed=_lost,
        progress=progress,
        title="preprocess",
        unit="file",
    )
    try:
        for name, length in results:
            if isinstance(length, str):
                failed[name] = length
            else:
                done.add(name)
                heard += length
    except BaseException:  # after Ctrl-C too: what is known is written
        results.close()
        with suppress(OSError):  # on a full disk, the first error is the one to tell
            older = _read_failures(melspec_dir / csv_name)
            not_done = {name: reason for name, reason in older.items() if name not in done}
            _write_failures(melspec_dir / csv_name, not_done | failed)
        raise
    try:
        failed_csv = _write_failures(melspec_dir / csv_name, failed)
    except OSError as error:
        text = why_not_written(melspec_dir / csv_name, error, "MELSPEC_DIR")
        raise PreprocessError(text) from None
    if shard is None:  # this run went over what the shards had left
        for older in melspec_dir.glob("failed-*-of-*.csv"):
            older.unlink(missing_ok=True)
    skipped = len(names) - len(todo)
    return Report(melspec_dir, len(done), skipped, failed, heard, failed_csv, left_out)


# ---- one file, in a worker process ---------------------------------------------------------------


def _make(
    name: str, audio_dir: str, melspec_dir: str, seconds: float | None
) -> tuple[str, float | str]:
    """Make a log-mel file; the seconds of audio in it, or the reason why there is none."""
    with one_torch_thread():
        target = Path(melspec_dir) / mel_key(name)
        return name, _make_file(Path(audio_dir) / name, target, seconds)


def _lost(name: str, reason: str) -> tuple[str, str]:
    return name, reason


def _make_file(audio: Path, target: Path, seconds: float | None) -> float | str:
    from helpers.melspectrogram import log_mel  # imports torch, which takes seconds

    try:
        waveform = read_audio(audio, seconds)
        mel = log_mel(waveform)
    except AudioError as error:
        return f"{error}{'; its log-mel file from before is kept' if target.exists() else ''}"
    except Exception as error:  # whatever a damaged file leads to, the others are made
        return f"{type(error).__name__}: {error}"[:300]
    try:
        write_mel(target, mel)
    except ValueError:
        return "its log-mel spectrogram has values that float16 does not hold: samples far above 1"
    except OSError as error:
        if error.errno in NAMES_FILE_ONLY:
            return f"its log-mel file cannot be written: {error.strerror}"
        raise PreprocessError(why_not_written(target, error, "MELSPEC_DIR")) from None
    return len(waveform) / SAMPLE_RATE


# ---- the store -----------------------------------------------------------------------------------


def _recipe(seconds: float | None) -> dict[str, Any]:
    """What the content of a log-mel file depends on, besides the audio."""
    return {
        "seconds": "all" if seconds is None else float(seconds),
        "sample_rate": SAMPLE_RATE,
        "hop": HOP_LENGTH,
        "bands": N_MELS,
        "version": _VERSION,
    }


def kept_seconds(melspec_dir: Path) -> float | None:
    """Seconds that a store keeps of each track, at most; None: all, or nothing says so."""
    try:
        seconds = json.loads((melspec_dir / RECIPE_FILE).read_text("utf-8"))["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, int | float) else None


def _open_store(melspec_dir: Path, names: list[str], seconds: float | None, alone: bool) -> None:
    """Make the folder and its recipe, or check that what is there was made with the same.

    A recipe without any log-mel file is replaced, but not where others (``alone`` is False) may be
    at work with it.

    Raises:
        PreprocessError: it was made with another, or the folder cannot be made.
    """
    recipe, path = _recipe(seconds), melspec_dir / RECIPE_FILE
    try:
        melspec_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(melspec_dir.iterdir()):
            keys = (mel_key(name) for name in names)
            there = next((key for key in keys if (melspec_dir / key).exists()), None)
            # Another shard writes the recipe before its first file: it may be there by now.
            if there and not path.exists():
                raise PreprocessError(
                    f"{melspec_dir}: holds {there!r} already, and no {RECIPE_FILE} that says how "
                    "it was made. Give an empty MELSPEC_DIR"
                )
        if not path.exists():
            write_json(path, recipe)
        found = _read_recipe(path)
        if found != recipe and alone and not any(_mel_files(melspec_dir)):
            write_json(path, recipe)
            found = recipe
    except OSError as error:
        raise PreprocessError(
            f"{melspec_dir}: cannot be written to ({error.strerror or error}). "
            "Give another MELSPEC_DIR"
        ) from None
    if found is None:
        raise PreprocessError(
            f"{path}: expected the settings that the files there were made with, as JSON. "
            "Give an empty MELSPEC_DIR"
        )
    if found != recipe:
        differ = [name for name in recipe if found.get(name) != recipe[name]]
        was, wanted = (
            ", ".join(f"{name} {settings.get(name)}" for name in differ)
            for settings in (found, recipe)
        )
        raise PreprocessError(
            f"{path}: the files there were made with {was}; this run is for {wanted}. The two "
            "must not mix: give another MELSPEC_DIR, or delete this one, or use the same settings"
        )
    if path.with_name(RECIPE_FILE.upper()).exists():
        refuse_collisions(names, melspec_dir, fold=True)


def _mel_files(melspec_dir: Path) -> Iterable[Path]:
    return (path for path in melspec_dir.rglob("*.mmap") if not path.name.startswith(TEMPORARY))


def _read_recipe(path: Path) -> dict[str, Any] | None:
    """The settings there; None if it is no file of settings."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_made(audio: Path, target: Path) -> bool:
    """Whether a log-mel file is whole, and not older than its audio."""
    try:
        found = target.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or size_problem(found):
        return False
    try:
        return audio.stat().st_mtime_ns <= found.st_mtime_ns
    except OSError:
        return True


_read_failures = functools.partial(read_failures, column="path")
_write_failures = functools.partial(write_failures, column="path")


# ---- command line --------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """SIGTERM, which job schedulers send."""

    @classmethod
    def handler(cls, *_: object) -> None:
        """Raise it."""
        raise cls


def parse_seconds(text: str) -> float | None:
    """``300`` → 300.0, ``all`` → None."""
    try:
        return None if text == "all" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number of seconds, such as 300, or all"
        ) from None


def parse_shard(text: str) -> tuple[int, int]:
    """``3/100`` → (3, 100)."""
    shard = split_shard(text)
    if shard is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N, such as 3/100")
    return shard


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Returns:
        the exit code: 0, 1 for failures, 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = argparse.ArgumentParser(
        description="Make the log-mel file of each audio file in a folder."
    )
    parser.add_argument("audio_dir", type=Path, metavar="AUDIO_DIR", help="a folder of audio")
    parser.add_argument("melspec_dir", type=Path, metavar="MELSPEC_DIR", help="where to")
    parser.add_argument(
        "--seconds",
        type=parse_seconds,
        default=DEFAULT_SECONDS,
        help="keep at most so much of each track, its centre; or all (default: 300)",
    )
    parser.add_argument("--num-workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster")
    parser.add_argument(
        "--shard", type=parse_shard, metavar="K/N", help="do the K-th of N parts, for job arrays"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make all files again, those that are whole too"
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false")
    options = parser.parse_args(arguments)
    try:
        report = preprocess(**vars(options))
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(
            f"{parser.prog}: interrupted. The files in {options.melspec_dir} are whole; "
            "run the same again to go on",
            file=sys.stderr,
        )
        return 143 if isinstance(interrupt, Terminated) else 130
    for name, reason in sorted(report.failed.items())[:_SHOWN]:
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    # Functions sent to worker processes must have an importable module's name, not __main__'s.
    from datasets.preprocess import Terminated as _Terminated
    from datasets.preprocess import main as _main

    signal.signal(signal.SIGTERM, _Terminated.handler)
    for _stream in (sys.stdout, sys.stderr):  # a name may have bytes that are no text
        _stream.reconfigure(errors="backslashreplace")
    sys.exit(_main())
