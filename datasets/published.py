"""Shared code of the scripts for published tasks: log-mel files and ground truths of a `Task`."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from maest.datasets.archives import file_size
from maest.datasets.build import write_splits
from maest.datasets.collection import mel_key
from maest.datasets.commands import SHOWN
from maest.datasets.groundtruth import check_key
from maest.datasets.melspectrograms import mel_path
from maest.datasets.preprocess import preprocess
from maest.datasets.splitting import SPLITS
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import read_failures
from maest.helpers.reports.report import table


@dataclass(frozen=True)
class Task:
    labels: Sequence[str]  # in the order of the targets' columns
    tracks: Mapping[str, tuple[str, frozenset[str]]]  # path below the audio folder → split, labels
    published: Mapping[str, int]  # split → number of tracks in the literature


def make(tasks: Mapping[str, Task], options: argparse.Namespace, steps: Collection[str]) -> None:
    """Run the steps melspectrograms and groundtruth; ``tasks`` are keyed by their output folders.

    Raises InputError without audio or for an empty split, or as `preprocess` and `write_splits`.
    """
    if "melspectrograms" in steps:
        names = dict.fromkeys(name for task in tasks.values() for name in task.tracks)
        _make_melspectrograms(names, options)
    if "groundtruth" in steps:
        for name, task in tasks.items():
            _write_task(name, task, options.out_dir / name, options.melspec_dir)


def _make_melspectrograms(names: Iterable[str], options: argparse.Namespace) -> None:
    audio_dir, mel_dir = options.audio_dir, options.melspec_dir
    sizes = {name: file_size(audio_dir / name) for name in names}
    whole = [name for name, size in sizes.items() if size]
    if not whole:
        first, hint = next(iter(sizes)), "Give the folder that they are in."
        what = f"none of the {len(sizes)} tracks of the table is there, such as {first!r}"
        raise InputError(what, kind="missing", path=audio_dir, setting="--audio-dir", hint=hint)
    report = preprocess(
        audio_dir, mel_dir, files=whole, num_workers=options.num_workers, overwrite=options.force
    )
    failed = sorted(report.failed.items())
    if len(failed) == len(whole):
        name, reason = failed[0]
        what = f"none of the {len(whole)} audio files can be read; the first, {name}: {reason}"
        hint = f"All of them are in {report.failed_csv}."
        raise InputError(what, kind="corrupt", path=audio_dir, hint=hint)
    for what, size in (("empty", 0), ("not there", None)):
        if some := [name for name in sizes if sizes[name] == size]:
            print(f"{len(some)} audio files are {what}, and left out: {shown(some)}")
    for name, reason in failed[:SHOWN]:
        print(f"broken, and left out: {name}: {reason}")
    print(*report.notes, f"log-mel files: {report}", sep="\n")


def _write_task(name: str, task: Task, out_dir: Path, melspec_dir: Path) -> None:
    """Write ground truths of the tracks with log-mel files (of all, if there are none yet)."""
    keys = {name: mel_key(name) for name in task.tracks}
    missing = [name for name, key in keys.items() if not mel_path(melspec_dir, key).is_file()]
    left_out = set() if len(missing) == len(keys) else set(missing)
    splits: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for track, (split, labels) in task.tracks.items():
        if track not in left_out:
            splits[split][keys[track]] = np.array([label in labels for label in task.labels])
    if empty := [split for split, rows in splits.items() if not rows]:
        what = f"no track is left for {' and '.join(empty)}: {len(missing)} of {len(keys)} tracks "
        what += "have no log-mel file"
        hint = "Make them first: the step melspectrograms."
        raise InputError(what, kind="missing", path=melspec_dir, hint=hint)
    write_splits(out_dir, splits, task.labels)
    cells = []
    for split, rows in splits.items():
        targets = np.stack(list(rows.values()))
        positives, without = targets.sum(axis=0), int((~targets.any(axis=1)).sum())
        counts = (len(rows), task.published[split], without, positives.min())
        cells.append([split, *(f"{count:,}" for count in counts), f"{np.median(positives):g}"])
    header = ["", "tracks", "published", "without a label", "fewest positives", "median positives"]
    if name:
        print(f"\n{name}")
    print(table(header, cells), f"{len(task.labels)} labels: {out_dir}", sep="\n")
    if left_out:
        reasons = read_failures(melspec_dir / "failed.csv", column="path")
        print(f"{len(missing)} tracks have no log-mel file, and are left out: {shown(missing)}")
        for track in missing[:SHOWN]:
            if track in reasons:
                print(f"{track}: {reasons[track]}")
    elif missing:
        print(
            f"{melspec_dir}: no log-mel files of these tracks yet, so all of the table are in. Run "
            "the step groundtruth again when there are: it leaves out tracks that cannot be read"
        )
    differ = [split for split in SPLITS if len(splits[split]) != task.published[split]]
    if differ:
        tracks = ", ".join(f"{split} has {len(splits[split]):,} tracks" for split in differ)
        published = ", ".join(f"{task.published[split]:,}" for split in differ)
        print(f"warning: {tracks}, where the published split has {published}: figures do not "
              "compare with those of the literature")  # fmt: skip


def shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


# ---- published tables ----------------------------------------------------------------------------


class PublishedTable:
    """Iterates over the non-empty rows of a UTF-8 TSV table, header first, or raises InputError."""

    def __init__(self, path: Path, hint: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> None:
        self.path, self._hint, self._quoting = path, hint, quoting
        self._line = 0

    def __iter__(self) -> Iterator[list[str]]:
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = csv.reader(file, delimiter="\t", quoting=self._quoting)
                for cells in filter(None, rows):
                    self._line = rows.line_num
                    yield cells
        except FileNotFoundError:
            raise self.error("no such file", "missing") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise self.error(f"not a table of UTF-8 text ({error})") from None
        self._line = 0

    def error(self, what: str, kind: Kind = "corrupt") -> InputError:
        """An error that names the current line, or, after the last line, the table only."""
        where = f"line {self._line}: " if self._line else ""
        return InputError(where + what, kind=kind, path=self.path, hint=self._hint)

    def check_name(self, name: str, seen: Collection[str]) -> None:
        """Raise InputError if a path leads out of the audio folder, or is in ``seen``."""
        try:
            check_key(name)
        except InputError as error:
            raise self.error(error.message, error.kind) from None
        if name in seen:
            raise self.error(f"{name!r} is there twice", "conflict")


# ---- command line --------------------------------------------------------------------------------


def parser(description: str, steps: Sequence[str], folder: Path) -> argparse.ArgumentParser:
    """An argument parser with the scripts' common options; ``folder`` holds their default paths."""
    style = argparse.ArgumentDefaultsHelpFormatter
    made = argparse.ArgumentParser(description=description, formatter_class=style)
    add = made.add_argument
    what = f"some of {', '.join(steps)}; none: all of them, but for what is done already"
    add("steps", nargs="*", metavar="STEP", help=what)
    add("--audio-dir", type=Path, default=folder / "audio", help="folder of audio")
    add("--melspec-dir", type=Path, default=folder / "melspectrograms")
    add("--out-dir", type=Path, default=folder, help="where the ground truths go")
    add("--num-workers", type=int, help="processes; by default one a core")
    add("--force", action="store_true", help="fetch and make again what is there, in these steps")
    return made


def chosen_steps(options: argparse.Namespace, steps: Sequence[str]) -> list[str]:
    """The chosen steps (all by default), in order. Raises InputError for an unknown step."""
    unknown = [step for step in options.steps if step not in steps]
    if unknown:
        hint = f"The steps are {', '.join(steps)}."
        raise InputError(f"no step {unknown[0]!r}", kind="unknown", setting="STEP", hint=hint)
    return [step for step in steps if not options.steps or step in options.steps]
