"""Tagging tasks as others have published them: their splits, ground truths and known sizes.

What the ``preprocess.py`` of each such data set shares: it makes `Task` from the published table;
log-mel files and ground truths are made here.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from maest.datasets.archives import file_size
from maest.datasets.build import write_splits
from maest.datasets.collection import mel_key
from maest.datasets.groundtruth import check_key
from maest.datasets.melspectrograms import mel_path
from maest.datasets.preprocess import Report, preprocess
from maest.datasets.splitting import SPLITS
from maest.helpers.errors import InputError, Kind
from maest.helpers.failures import read_failures
from maest.helpers.report import table

_SHOWN = 5  # of a list in a message


@dataclass(frozen=True)
class Task:
    """A tagging task.

    Attributes:
        labels: in the order of the targets' columns.
        tracks: audio file, relative to the audio's folder → its split and its labels.
        published: split → tracks that the literature counts there.
    """

    labels: Sequence[str]
    tracks: Mapping[str, tuple[str, frozenset[str]]]
    published: Mapping[str, int] = field(default_factory=dict)


def make_melspectrograms(
    audio_dir: Path, melspec_dir: Path, names: Iterable[str], **options
) -> Report:
    """`datasets.preprocess.preprocess`, with its ``options``, for some files below ``audio_dir``.

    Empty and missing ones are told about.

    Raises:
        InputError: none of the files is there or can be read, and what ``preprocess`` raises.
    """
    found = {name: file_size(audio_dir / name) for name in names}
    missing = [name for name, size in found.items() if size is None]
    empty = [name for name, size in found.items() if size == 0]
    whole = [name for name, size in found.items() if size]
    if not whole:
        raise InputError(
            f"none of the {len(found)} tracks of the table is there, such as {next(iter(found))!r}",
            kind="missing",
            path=audio_dir,
            setting="--audio-dir",
            hint="Give the folder that they are in.",
        )
    report = preprocess(audio_dir, melspec_dir, files=whole, **options)
    for note in report.notes:
        print(note)
    if len(report.failed) == len(whole):
        name, reason = next(iter(sorted(report.failed.items())))
        raise InputError(
            f"none of the {len(whole)} audio files can be read; the first, {name}: {reason}",
            kind="corrupt",
            path=audio_dir,
            hint=f"All of them are in {report.failed_csv}.",
        )
    for what, some in (("empty", empty), ("not there", missing)):
        if some:
            print(f"{len(some)} audio files are {what}, and left out: {shown(some)}")
    for name, reason in sorted(report.failed.items())[:_SHOWN]:
        print(f"broken, and left out: {name}: {reason}")
    if len(report.failed) > _SHOWN:
        print(f"and {len(report.failed) - _SHOWN} more broken ones: {report.failed_csv}")
    print(f"log-mel files: {report}")
    return report


def write_task(task: Task, out_dir: Path, melspec_dir: Path) -> list[str]:
    """Write ``groundtruth-{train,validation,test,all}.pk`` and ``labels.json``.

    Tracks without a log-mel file are left out, if there are any log-mel files yet. Files that say
    the same already are left as they are.

    Returns:
        lines that tell a person what was written, and how it differs from what is published.
    """
    keys = {name: mel_key(name) for name in task.tracks}
    missing = [name for name, key in keys.items() if not mel_path(melspec_dir, key).is_file()]
    none_yet = len(missing) == len(keys)
    left_out = set() if none_yet else set(missing)
    column = {label: i for i, label in enumerate(task.labels)}
    splits: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for name, (split, labels) in task.tracks.items():
        if name not in left_out:
            target = np.zeros(len(column), bool)
            target[[column[label] for label in labels]] = True
            splits[split][keys[name]] = target
    empty = [split for split, rows in splits.items() if not rows]
    if empty:
        raise InputError(
            f"no track is left for {' and '.join(empty)}: {len(missing)} of {len(keys)} tracks "
            "have no log-mel file",
            kind="missing",
            path=melspec_dir,
            hint="Make them first: the step melspectrograms.",
        )
    write_splits(out_dir, splits, task.labels)
    lines = _describe(task, splits, out_dir)
    if none_yet:
        lines.append(
            f"{melspec_dir}: no log-mel files of these tracks yet, so all of the table are in. Run "
            "the step groundtruth again when there are: it leaves out tracks that cannot be read"
        )
    return [*lines, *_warnings(task, splits, [] if none_yet else missing, melspec_dir)]


def _describe(task: Task, splits: Mapping[str, Mapping], out_dir: Path) -> list[str]:
    rows = []
    for split, own in splits.items():
        targets = np.stack(list(own.values()))
        counts = targets.sum(axis=0)
        without = int((~targets.any(axis=1)).sum())
        published = f"{task.published[split]:,}" if split in task.published else "–"
        rows.append([split, f"{len(own):,}", published, f"{without:,}", str(counts.min()),
                     f"{np.median(counts):g}"])  # fmt: skip
    header = ["", "tracks", "published", "without a label", "fewest positives", "median positives"]
    return [table(header, rows), f"{len(task.labels)} labels: {out_dir}"]


def _warnings(
    task: Task, splits: Mapping[str, Mapping], missing: list[str], melspec_dir: Path
) -> list[str]:
    lines = []
    if missing:
        reasons = read_failures(melspec_dir / "failed.csv", column="path")
        some = ", ".join(
            f"{name!r}" + (f" ({reasons[name]})" if name in reasons else "")
            for name in missing[:_SHOWN]
        )
        more = ", ..." if len(missing) > _SHOWN else ""
        lines.append(f"{len(missing)} tracks have no log-mel file, and are left out: {some}{more}")
    differ = [s for s, count in task.published.items() if len(splits[s]) != count]
    if differ:
        lines.append(
            "warning: " + ", ".join(f"{s} has {len(splits[s]):,} tracks" for s in differ)
            + ", where the published split has "
            + ", ".join(f"{task.published[s]:,}" for s in differ)
            + ": figures do not compare with those of the literature"
        )  # fmt: skip
    return lines


def shown(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


# ---- published tables ----------------------------------------------------------------------------


def damaged(
    path: Path, what: str, hint: str, line: int | None = None, kind: Kind = "corrupt"
) -> InputError:
    """The error for a published table, or a line of it."""
    where = "" if line is None else f"line {line}: "
    return InputError(where + what, kind=kind, path=path, hint=hint)


def read_tsv(path: Path, hint: str, quoting: Literal[0, 3] = 0) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line that is not empty; the first is the names of columns.

    Raises:
        InputError: no such file, or no text; ``hint`` says what to do.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.reader(file, delimiter="\t", quoting=quoting)
            yield from ((table.line_num, cells) for cells in table if cells)
    except FileNotFoundError:
        raise damaged(path, "no such file", hint, kind="missing") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, f"not a table of UTF-8 text ({error})", hint) from None


def check_name(name: str, path: Path, line: int, seen: Collection[str], hint: str) -> None:
    """Raise InputError unless a table's path stays inside the audio's folder, and is new."""
    try:
        check_key(name)
    except InputError as error:
        raise damaged(path, f"{name!r}: {error.message}", hint, line, error.kind) from None
    if name in seen:
        raise damaged(path, f"{name!r} is there twice", hint, line, "conflict")


# ---- command line --------------------------------------------------------------------------------


def parser(description: str, steps: Sequence[str], folder: Path) -> argparse.ArgumentParser:
    """The options that all of these scripts have; ``folder`` is where things go by default."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"some of {', '.join(steps)}; none: all of them, but for what is done already",
    )
    made.add_argument("--audio-dir", type=Path, default=folder / "audio", help="folder of audio")
    made.add_argument("--melspec-dir", type=Path, default=folder / "melspectrograms")
    made.add_argument("--out-dir", type=Path, default=folder, help="where the ground truths go")
    made.add_argument("--num-workers", type=int, help="processes; by default one a core")
    made.add_argument(
        "--force", action="store_true", help="fetch and make again what is there, in these steps"
    )
    return made


def chosen_steps(options: argparse.Namespace, steps: Sequence[str]) -> list[str]:
    """The steps that were asked for, in the order in which they are done.

    Raises:
        InputError: there is no such step.
    """
    unknown = [step for step in options.steps if step not in steps]
    if unknown:
        hint = f"The steps are {', '.join(steps)}."
        raise InputError(f"no step {unknown[0]!r}", kind="unknown", setting="STEP", hint=hint)
    return [step for step in steps if not options.steps or step in options.steps]
