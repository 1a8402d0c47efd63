"""The command line of `datasets/groundtruth.py`: show a ground truth, or build it from a table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.build import build, describe
from maest.datasets.commands import run
from maest.datasets.groundtruth import TASKS, GroundTruth, read_groundtruth, read_labels
from maest.datasets.tables import read_table
from maest.helpers.errors import InputError
from maest.helpers.names import first_few

_BAR = 40  # characters of the longest bar of the histogram
_BINS = 10


def _show(args: argparse.Namespace) -> None:
    groundtruth = read_groundtruth(args.file, task=args.task)
    beside = args.file.parent / "labels.json"
    names_file = args.labels or (beside if beside.is_file() else None)
    labels = read_labels(names_file) if names_file else None
    misfit = labels is not None and len(labels) != groundtruth.n_classes
    note = f"it has {len(labels or [])} names, {args.file} has {groundtruth.n_classes} to a track"
    if args.labels and misfit:
        hint = "Give the labels.json that was written with it."
        raise InputError(note, kind="mismatch", path=names_file, setting="--labels", hint=hint)
    regression = groundtruth.task == "regression"
    what = "value" if regression else "label"
    if labels is None or misfit:
        labels = [f"{what} {i}" for i in range(groundtruth.n_classes)]
    lines = _values(groundtruth, labels) if regression else _counts(groundtruth, labels)
    print(groundtruth.path, *lines, sep="\n")
    if args.first > 0:
        print("\nfirst keys")
    for key, own in zip(groundtruth.keys[: max(args.first, 0)], groundtruth.targets, strict=False):
        named = ", ".join(labels[i] for i in np.flatnonzero(own)) or "(no label)"
        print(f"  {key!r}:", first_few((f"{v:.4g}" for v in own), _BINS) if regression else named)
    if misfit:
        print(f"\n{names_file}: not used: {note}")


def _counts(groundtruth: GroundTruth, names: list[str]) -> list[str]:
    per_clip = groundtruth.targets.sum(axis=1, dtype=np.int64)
    low, mean, high = per_clip.min(), per_clip.mean(), per_clip.max()
    lines = [
        f"tracks                {len(groundtruth)}",
        f"labels                {groundtruth.n_classes}",
        f"tracks without labels {np.count_nonzero(per_clip == 0)}",
        f"labels per clip       min {low}, mean {mean:.2f}, max {high}",
    ]
    edges = np.unique(np.linspace(low, high + 1, _BINS + 1).astype(int))
    sizes, _ = np.histogram(per_clip, bins=edges)
    for low, high, size in zip(edges[:-1], edges[1:] - 1, sizes, strict=True):
        bin_name = f"{low}" if low == high else f"{low}-{high}"
        bar = "#" * math.ceil(_BAR * size / sizes.max())
        lines.append(f"  {bin_name:>9} {size:>8} {bar}".rstrip())
    counts = zip(names, groundtruth.counts(), strict=True)
    return [*lines, "", "tracks with each label", *(f"  {n:>8} {name}" for name, n in counts)]


def _values(groundtruth: GroundTruth, names: list[str]) -> list[str]:
    values = groundtruth.targets.astype(np.float64)
    lines = [
        f"tracks           {len(groundtruth)}",
        f"values per track {groundtruth.n_classes}",
        "",
        f"  {'min':>10} {'mean':>10} {'max':>10} {'deviation':>10}",
    ]
    columns = (values.min(0), values.mean(0), values.max(0), values.std(0))
    for name, *own in zip(names, *columns, strict=True):
        lines.append("  " + " ".join(f"{value:>10.4g}" for value in own) + f" {name}")
    return lines


def _build(args: argparse.Namespace) -> None:
    # The keyword-only arguments of the two functions are the options of the same names.
    reading, building = (
        {name: getattr(args, name) for name in function.__kwdefaults__ or {}}
        for function in (read_table, build)
    )
    print("\n".join(describe(build(read_table(args.table, **reading), args.out_dir, **building))))


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, as 0.8,0.1,0.1") from None


_LABELLED = """A row of the table is a track: its path (of the audio, or of the log-mel file), its
labels, and optionally its split or its group (artist, album). Columns are recognised by their
names. A column of labels that has only 0, 1 and blanks (0) in it is one label, with the column's
name; without a column of labels, all such columns are. Without a split, the tracks are split by
group."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Look at ground-truth files, or make them.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print counts, labels or values, and the first keys")
    show.set_defaults(run=_show)
    add = show.add_argument
    add("file", type=Path, metavar="FILE", help="a ground-truth pickle")
    add("--first", type=int, default=5, metavar="K", help="keys to show (default 5)")
    add("--labels", type=Path, help="the labels' names (default: labels.json beside FILE)")
    add("--task", choices=TASKS, default="multi-label", help="what the targets are")

    made = "make groundtruth-{train,validation,test,all}.pk and labels.json from a table"
    command = commands.add_parser("build", help=made, description=_LABELLED)
    command.set_defaults(run=_build)
    add = command.add_argument
    several: dict[str, Any] = {"metavar": "NAME", "nargs": "+", "default": []}
    task = "default: multi-label, with --values-column regression; single-label refuses tracks "
    fractions: dict[str, Any] = {"type": _fractions, "default": [0.8, 0.1, 0.1], "metavar": "T,V,T"}
    shares = "of the tracks in train, validation and test (default 0.8,0.1,0.1)"
    together = "read the log-mel files, and keep copies of a recording in one split"
    add("table", type=Path, metavar="TABLE", help="CSV (, or ;) or TSV with column names")
    add("--out-dir", type=Path, required=True, help="where the files go")
    add("--task", choices=TASKS, help=f"{task}with no label or several")
    add("--path-column", metavar="NAME")
    add("--labels-column", **several, help="one or more")
    add("--values-column", **several, help="of real values instead of labels: for a regression")
    add("--split-column", metavar="NAME")
    add("--group-column", metavar="NAME", help="what must stay on one side")
    add("--ignore-split", action="store_true", help="split by group all the same")
    add("--separator", default=";", help="between labels (default ;)")
    add("--audio-dir", type=Path, help="take absolute paths below it as relative to it")
    add("--fractions", **fractions, help=shares)
    add("--seed", type=int, default=0, help="of the split (default 0)")
    add("--min-positives", type=int, default=1, help="leave out rarer labels (default 1)")
    add("--base-dir", type=Path, metavar="MELS", help="check that the log-mel files are there")
    add("--skip-missing", action="store_true", help="leave out tracks whose file is not there")
    add("--keep-duplicates-together", action="store_true", help=together)
    args = parser.parse_args(argv)
    return run(lambda: args.run(args), parser.prog)
