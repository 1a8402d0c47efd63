"""The command line of `datasets/groundtruth.py`: show a ground truth, or build it from a table."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.build import build
from maest.datasets.commands import run
from maest.datasets.groundtruth import TASKS, GroundTruth, read_groundtruth, read_labels
from maest.helpers.errors import InputError
from maest.helpers.names import first_few
from maest.helpers.soft_labels import counted, known, positive

_BAR = 40  # characters of the longest bar of the histogram
_BINS = 10
_TABLE = """A row of the table is a track: its path (of the audio, or of the log-mel file), its
labels, and optionally its split or its group (artist, album). Columns are recognised by their
names. A column of labels that has only 0, 1 and blanks (0; with --unknown: unknown) in it is one
label, with the column's name; without a column of labels, all such columns are. In columns that
--labels-column names, values between 0 and 1 are soft labels. Without a split, the tracks are split
by group."""


def show(options: argparse.Namespace) -> list[str]:
    """Counts of labels or values, and the first keys, as lines to print."""
    groundtruth = read_groundtruth(options.file, options.task)
    regression, notes = groundtruth.task == "regression", list[str]()
    names = [f"{'value' if regression else 'label'} {i}" for i in range(groundtruth.n_classes)]
    names_file = options.labels or options.file.parent / "labels.json"
    if options.labels or names_file.is_file():
        known = read_labels(names_file)
        what = f"it has {len(known)} names, {options.file} has {len(names)} to a track"
        if len(known) == len(names):
            names = known
        elif options.labels:
            hint = "Give the labels.json that was written with it."
            setting = "--labels"
            raise InputError(what, kind="mismatch", path=names_file, setting=setting, hint=hint)
        else:
            notes = ["", f"{names_file}: not used: {what}"]
    lines = _values(groundtruth, names) if regression else _counts(groundtruth, names)
    shown = groundtruth.keys[: max(options.first, 0)]
    lines += ["", "first keys"] if shown else []
    for key, row in zip(shown, groundtruth.targets, strict=False):
        values = first_few((f"{value:.4g}" for value in row), _BINS)
        lines.append(f"  {key!r}: {values if regression else _labels_of(row, names)}")
    return [str(groundtruth.path), *lines, *notes]


def _labels_of(row: np.ndarray, names: list[str]) -> str:
    """``rock, pop 0.4 (3 unknown)``: names, soft targets with their values."""
    labels = [names[i] + (f" {row[i]:.2g}" if row[i] < 1 else "") for i in np.flatnonzero(row > 0)]
    unknown = np.count_nonzero(~known(row))
    return (", ".join(labels) or "(no label)") + (f" ({unknown} unknown)" if unknown else "")


def _counts(groundtruth: GroundTruth, names: list[str]) -> list[str]:
    targets = groundtruth.targets
    are_known, per_clip = known(targets), positive(targets).sum(axis=1, dtype=np.int64)
    low, mean, high = per_clip.min(), per_clip.mean(), per_clip.max()
    lines = [
        f"tracks                {len(groundtruth)}",
        f"labels                {groundtruth.n_classes}",
        f"tracks without labels {np.count_nonzero((per_clip == 0) & are_known.any(axis=1))}",
        f"labels per clip       min {low}, mean {mean:.2f}, max {high}",
    ]
    if unsure := counted(targets):
        lines.append(unsure)
    if unknown := np.count_nonzero(~are_known.any(axis=1)):
        lines.append(f"tracks without a known label {unknown}: left out of training and metrics")
    edges = np.unique(np.linspace(low, high + 1, _BINS + 1).astype(int))
    sizes, _ = np.histogram(per_clip, bins=edges)
    for low, high, size in zip(edges[:-1], edges[1:] - 1, sizes, strict=True):
        bin_name = f"{low}" if low == high else f"{low}-{high}"
        bar = "#" * math.ceil(_BAR * size / sizes.max())
        lines.append(f"  {bin_name:>9} {size:>8} {bar}".rstrip())
    counts = [f"{n:>8}" for n in groundtruth.counts()]
    title = "tracks with each label"
    if not are_known.all():
        title += ", of those where it is known"
        per_label = are_known.sum(axis=0)
        counts = [f"{n} of {of:>8}" for n, of in zip(counts, per_label, strict=True)]
    named = (f"  {n} {name}" for n, name in zip(counts, names, strict=True))
    return [*lines, "", title, *named]


def _values(groundtruth: GroundTruth, names: list[str]) -> list[str]:
    values = groundtruth.targets.astype(np.float64)
    lines = [
        f"tracks           {len(groundtruth)}",
        f"values per track {groundtruth.n_classes}",
        "",
        f"  {'min':>10} {'mean':>10} {'max':>10} {'deviation':>10}",
    ]
    columns = (values.min(0), values.mean(0), values.max(0), values.std(0))
    for name, *row in zip(names, *columns, strict=True):
        lines.append("  " + " ".join(f"{value:>10.4g}" for value in row) + f" {name}")
    return lines


def _fractions(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Look at ground-truth files, or make them.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="print counts, labels or values, and the first keys")
    command.set_defaults(run=show)
    add = command.add_argument
    add("file", type=Path, metavar="FILE", help="a ground-truth pickle")
    add("--first", type=int, default=5, metavar="K", help="keys to show (default 5)")
    add("--labels", type=Path, help="the labels' names (default: labels.json beside FILE)")
    add("--task", choices=TASKS, default="multi-label", help="what the targets are")

    what = "make groundtruth-{train,validation,test,all}.pk and labels.json from a table"
    command = commands.add_parser("build", help=what, description=_TABLE)
    command.set_defaults(run=build)
    add = command.add_argument
    several: dict[str, Any] = {"metavar": "NAME", "nargs": "+", "default": []}
    fractions: dict[str, Any] = {"type": _fractions, "default": [0.8, 0.1, 0.1], "metavar": "T,V,T"}
    task = "default: multi-label, or regression with --values-column; single-label refuses others"
    unknown = "take empty cells of 0/1 columns as unknown, not 0, and those with these texts (NA)"
    shares = "of the tracks in train, validation and test (default 0.8,0.1,0.1)"
    together = "read the log-mel files, and keep copies of a recording in one split"
    add("table", type=Path, metavar="TABLE", help="CSV (, or ;) or TSV with column names")
    add("--out-dir", type=Path, required=True, help="where the files go")
    add("--task", choices=TASKS, help=task)
    add("--path-column", metavar="NAME")
    add("--labels-column", **several, help="one or more")
    add("--unknown", metavar="TEXT", nargs="*", help=unknown)
    add("--values-column", **several, help="of real values instead of labels: for a regression")
    add("--split-column", metavar="NAME")
    add("--group-column", metavar="NAME", help="what must stay in one split")
    add("--ignore-split", action="store_true", help="split by group all the same")
    add("--separator", default=";", help="between labels (default ;)")
    add("--audio-dir", type=Path, help="take absolute paths below it as relative to it")
    add("--fractions", **fractions, help=shares)
    add("--seed", type=int, default=0, help="of the split (default 0)")
    add("--min-positives", type=int, default=1, help="leave out rarer labels (default 1)")
    add("--base-dir", type=Path, metavar="MELS", help="check that the log-mel files are there")
    add("--skip-missing", action="store_true", help="leave out tracks whose file is not there")
    add("--keep-duplicates-together", action="store_true", help=together)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return run(lambda: print(*options.run(options), sep="\n"), "groundtruth.py")
