"""Shared code of the scripts for published tasks: log-mel files and ground truths of a `Task`.

A new data set is a folder whose preprocess.py reads a `Task` and calls `make`, as mtt/ does.
"""

import argparse
import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from maest.datasets.audio_folder import mel_key
from maest.datasets.build import write_splits
from maest.datasets.commands import print_failures
from maest.datasets.groundtruth import check_key
from maest.datasets.melspectrograms import mel_path
from maest.datasets.preprocess import preprocess
from maest.datasets.splitting import SPLITS
from maest.helpers.errors import InputError, Kind
from maest.helpers.names import check_choice, first_few
from maest.helpers.reports.report import table


@dataclass(frozen=True)
class Task:
    labels: Sequence[str]  # in the order of the targets' columns
    tracks: Mapping[str, tuple[str, frozenset[str]]]  # path below the audio folder → split, labels
    published: Mapping[str, int]  # in the literature: split → tracks, "labels" → their number


def make(tasks: Mapping[str, Task], options: argparse.Namespace) -> None:
    """Run the steps melspectrograms and groundtruth; ``tasks`` are keyed by their output folders.

    Raises InputError if no audio can be read, for an empty split, or as `preprocess` and
    `write_splits`.
    """
    if "melspectrograms" in options.steps:
        _make_melspectrograms({n for task in tasks.values() for n in task.tracks}, options)
    if "groundtruth" in options.steps:
        for name, task in tasks.items():
            _write_task(name, task, options.out_dir / name, options.melspec_dir)


def _make_melspectrograms(names: Collection[str], options: argparse.Namespace) -> None:
    audio_dir, mels, workers = options.audio_dir, options.melspec_dir, options.num_workers
    report = preprocess(audio_dir, mels, files=names, num_workers=workers, overwrite=options.force)
    if len(report.failed) == len(names):
        name, reason = min(report.failed.items())
        what = f"none of the {len(names)} audio files can be read; the first, {name}: {reason}"
        hint = f"Give the folder that they are in. All of them are in {mels / 'failed.csv'}."
        raise InputError(what, kind="missing", path=audio_dir, setting="--audio-dir", hint=hint)
    print_failures(report.failed, "left out")
    print(*report.notes, f"log-mel files: {report.summary}", sep="\n")


def _write_task(name: str, task: Task, out_dir: Path, melspec_dir: Path) -> None:
    """Write ground truths of the tracks with log-mel files (of all, if there are none yet)."""
    keys = {track: mel_key(track) for track in task.tracks}
    missing = [track for track, key in keys.items() if not mel_path(melspec_dir, key).is_file()]
    left_out = set(missing) if len(missing) < len(keys) else set()
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
    counts = {split: len(rows) for split, rows in splits.items()} | {"labels": len(task.labels)}
    cells = []
    for split, rows in splits.items():
        targets = np.stack(list(rows.values()))
        positives, without = targets.sum(axis=0), int((~targets.any(axis=1)).sum())
        numbers = (counts[split], task.published[split], without, positives.min())
        cells.append([split, *(f"{n:,}" for n in numbers), f"{np.median(positives):g}"])
    columns = ["tracks", "published", "without a label", "fewest positives", "median positives"]
    print("", table([name, *columns], cells), f"{len(task.labels)} labels: {out_dir}", sep="\n")
    if left_out:
        print(f"{len(missing)} tracks have no log-mel file, and are left out: {first_few(missing)} "
              f"(reasons: {melspec_dir / 'failed.csv'})")  # fmt: skip
    elif missing:
        print(f"no log-mel files in {melspec_dir} yet, so all tracks of the table are in; run the "
              "step groundtruth again to leave out those that cannot be read")  # fmt: skip
    if differ := [what for what, count in counts.items() if count != task.published[what]]:
        pairs = ", ".join(f"{what} {counts[what]:,} ({task.published[what]:,})" for what in differ)
        print(f"warning: counts differ from the published ones (in brackets): {pairs}. Figures do "
              "not compare with those of the literature")  # fmt: skip


# ---- published tables ----------------------------------------------------------------------------


@contextmanager
def open_table(
    path: Path, hint: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Iterator[Iterator[list[str]]]:
    """Yield the non-empty rows of a UTF-8 TSV table, header first.

    Raises InputError if it cannot be read; a ValueError in the block becomes one, with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t", quoting=quoting)
            yield filter(None, rows)
    except FileNotFoundError:
        raise InputError("no such file", kind="missing", path=path, hint=hint) from None
    except (ValueError, csv.Error) as error:
        kind: Kind = error.kind if isinstance(error, InputError) else "corrupt"
        what = f"line {rows.line_num}: {error}"
        raise InputError(what, kind=kind, path=path, hint=hint) from None


def check_name(name: str, seen: Collection[str]) -> None:
    """Raise InputError if a path leads out of the audio folder, or is in ``seen``."""
    check_key(name)
    if name in seen:
        hint = "Name each track once."
        raise InputError(f"{name!r} is named twice", kind="conflict", hint=hint)


def parser(description: str, steps: Sequence[str], folder: Path) -> argparse.ArgumentParser:
    """An argument parser with the scripts' common options; ``folder`` holds their default paths."""
    style = argparse.ArgumentDefaultsHelpFormatter
    result = argparse.ArgumentParser(description=description, formatter_class=style)
    add = result.add_argument
    what = f"some of {', '.join(steps)}; none: all of them, but for what is done already"
    add("steps", nargs="*", metavar="STEP", help=what)
    add("--audio-dir", type=Path, default=folder / "audio", help="folder of audio")
    add("--melspec-dir", type=Path, default=folder / "melspectrograms")
    add("--out-dir", type=Path, default=folder, help="where the ground truths go")
    add("--num-workers", type=int, help="processes; by default one a core")
    add("--force", action="store_true", help="fetch and make existing files again, in these steps")
    return result


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, steps: Sequence[str]
) -> argparse.Namespace:
    """Parse options; ``steps`` among them are all by default. InputError for an unknown step."""
    options = parser.parse_intermixed_args(arguments)
    for step in options.steps:
        check_choice("STEP", step, steps)
    options.steps = [step for step in steps if not options.steps or step in options.steps]
    return options
