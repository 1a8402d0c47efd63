"""From a table of tracks to ground truths: split it by group, write the pickles.

`python datasets/groundtruth.py build` is the command line of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.groundtruth import write_groundtruth, write_labels
from datasets.melspectrograms import mel_path
from datasets.splitting import SPLITS, missing_labels, split_by_group
from datasets.tables import Table, TableError
from helpers.report import table as markdown_table
from helpers.safe_pickle import short_repr

_SHOWN = 5  # of a list in a message


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        out_dir: where to.
        names: of the labels, sorted, or of the values; the order of the targets.
        splits: split → its keys.
        positives: [3, C] tracks with each label, in the order of train, validation and test; of a
            regression the means of the values.
        dropped: label that was left out → how many tracks have it.
        missing: keys that were left out because their log-mel file is not there.
        without_labels: tracks that have no label (any more).
        columns, unused: of the table.
        warnings: what a person should know before training.
    """

    out_dir: Path
    names: list[str]
    splits: dict[str, list[str]]
    positives: np.ndarray
    dropped: dict[str, int]
    missing: list[str]
    without_labels: int
    columns: dict[str, list[str]]
    unused: list[str]
    warnings: list[str] = field(default_factory=list)
    task: str = "multi-label"


def build(
    table: Table,
    out_dir: str | Path,
    *,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    min_positives: int = 1,
    base_dir: str | Path | None = None,
    skip_missing: bool = False,
) -> Built:
    """Write ``groundtruth-{train,validation,test,all}.pk`` and ``labels.json`` of a table.

    Args:
        table: the tracks.
        out_dir: where to; made if need be.
        fractions: of the tracks in train, validation and test, where the table has no split.
        seed: of the split.
        min_positives: labels that fewer tracks have are left out.
        base_dir: folder of the log-mel files, to check that all of them are there.
        skip_missing: leave out tracks whose file is not there, rather than refuse the table.

    Raises:
        TableError: files that are missing, a split that would be empty, or no label that is left.
    """
    if min_positives < 1:
        raise TableError(f"--min-positives is {min_positives}: expected at least 1")
    rows, missing = _rows_with_files(table, base_dir, skip_missing)
    if table.values is not None:
        names, targets, dropped = table.columns["values"], np.float32(table.values)[rows], {}
    else:
        names, targets, dropped = _labels(table, rows, min_positives)
    task = "multi-label" if table.values is None else "regression"
    # What is balanced over the splits; of values, how many are high.
    marks = targets if table.values is None else targets > np.median(targets, axis=0)

    # A track of unknown group stands for itself.
    known = table.groups or [""] * len(table.keys)
    groups = [("group", known[i]) if known[i] else ("track", table.keys[i]) for i in rows]
    if table.splits is not None:
        sides = [table.splits[i] for i in rows]
    else:
        sides = split_by_group(groups, marks, fractions, seed)
    empty = [split for split in SPLITS if split not in sides]
    if empty:
        column = table.columns.get("split", [""])[0]
        step = (
            f"Mark some rows so in column {column!r}, or split by group: --ignore-split"
            if table.splits is not None
            else f"There are {len(set(groups))} groups, each of which stays on one side: three "
            "sides need 3 or more (or another --group-column)"
        )
        raise TableError(f"{table.path}: no track for {' and '.join(empty)}. {step}")

    side = np.array(sides)
    per_split = [targets[side == split] for split in SPLITS]
    positives = np.stack([own.sum(axis=0) for own in per_split])
    if task == "regression":
        positives = np.stack([own.mean(axis=0) for own in per_split])
    out_dir = Path(out_dir)
    keys = [table.keys[i] for i in rows]
    splits = {
        split: [k for k, s in zip(keys, sides, strict=True) if s == split] for split in SPLITS
    }
    everything = dict(zip(keys, targets, strict=True))
    for split, own in splits.items():
        write_groundtruth(
            out_dir / f"groundtruth-{split}.pk", {key: everything[key] for key in own}, task
        )
    write_groundtruth(out_dir / "groundtruth-all.pk", everything, task)
    write_labels(out_dir / "labels.json", names)
    return Built(
        out_dir=out_dir,
        names=names,
        splits=splits,
        positives=positives,
        dropped=dropped,
        missing=missing,
        without_labels=0 if task == "regression" else int((~targets.any(axis=1)).sum()),
        columns=table.columns,
        unused=table.unused,
        warnings=_warnings(table, groups, sides, names, positives),
        task=task,
    )


def _labels(
    table: Table, rows: Sequence[int], min_positives: int
) -> tuple[list[str], np.ndarray, dict[str, int]]:
    """Names [C] and targets bool [N, C] of some rows; and the labels that are left out."""
    counts = Counter(name for i in rows for name in table.labels[i])
    names = sorted(name for name, count in counts.items() if count >= min_positives)
    if not names:
        most = max(counts.values(), default=0)
        raise TableError(
            f"{table.path}: no label is left: the most frequent one has {most} tracks, and "
            f"--min-positives is {min_positives}"
        )
    index = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(rows), len(names)), bool)
    for target, i in zip(targets, rows, strict=True):
        target[[index[name] for name in table.labels[i] if name in index]] = True
    dropped = {name: counts[name] for name in sorted(counts) if name not in index}
    return names, targets, dropped


def _rows_with_files(
    table: Table, base_dir: str | Path | None, skip_missing: bool
) -> tuple[list[int], list[str]]:
    """Numbers of the rows that are used, and the keys of the others."""
    rows = list(range(len(table.keys)))
    if base_dir is None:
        return rows, []
    if not Path(base_dir).is_dir():
        raise TableError(f"--base-dir {base_dir}: no such folder; expected that of the .mmap files")
    there = [mel_path(base_dir, key).is_file() for key in table.keys]
    missing = [key for key, found in zip(table.keys, there, strict=True) if not found]
    if missing and (not skip_missing or len(missing) == len(rows)):
        some = (
            ", ".join(
                f"{short_repr(table.keys[i])} (line {table.lines[i]})" for i in rows if not there[i]
            )
            if len(missing) <= _SHOWN
            else ", ".join(map(short_repr, missing[:_SHOWN])) + ", ..."
        )
        raise TableError(
            f"{table.path}: {len(missing)} of {len(rows)} tracks have no log-mel file in "
            f"{base_dir}: {some}. Make them with datasets/preprocess.py, or leave those tracks "
            "out with --skip-missing"
        )
    return [i for i in rows if there[i]], missing


def _warnings(
    table: Table,
    groups: list[tuple[str, str]],
    sides: list[str],
    names: list[str],
    positives: np.ndarray,
) -> list[str]:
    found = list(table.warnings)
    if table.groups is None and table.splits is None:
        found.append(
            "the table has neither a split nor a group (artist, album): each track was taken for "
            "itself, so tracks of one artist may stand on both sides, and the scores flatter"
        )
    elif table.groups is not None:
        where: dict[tuple[str, str], set[str]] = {}
        for group, side in zip(groups, sides, strict=True):
            where.setdefault(group, set()).add(side)
        torn = [group for (_, group), own in where.items() if len(own) > 1]
        unknown = sum(kind == "track" for kind, _ in groups)
        if torn:
            found.append(
                f"the table's split has {len(torn)} of {len(where)} groups on more than one side: "
                f"{_some(torn)}"
            )
        if unknown and table.splits is None:
            found.append(f"{unknown} tracks have no group: each was taken for itself")
    absent = missing_labels(positives) if table.values is None else [()] * len(SPLITS)
    for split, columns in zip(SPLITS, absent, strict=True):
        if columns:
            found.append(
                f"no track in {split} has {len(columns)} of the {len(names)} labels: "
                f"{_some([names[i] for i in columns])}"
            )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(map(short_repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def describe(built: Built) -> list[str]:
    """Lines that tell a person what was written."""
    per_split = dict(zip(SPLITS, built.positives, strict=True))
    columns = "; ".join(
        f"{what}: {names[0]}" if len(names) == 1 else f"{what}: {len(names)} columns, see below"
        for what, names in built.columns.items()
    )
    lines = [f"columns  {columns}"]
    if len(built.columns.get("labels", [])) > 1:
        lines.append(f"labels   {', '.join(built.columns['labels'])}")
    if built.unused:
        lines.append(f"not used {', '.join(built.unused)}")
    tracks = sum(map(len, built.splits.values()))
    if built.task == "regression":
        rows = [
            [split, str(len(keys)), *(f"{mean:.4g}" for mean in per_split[split])]
            for split, keys in built.splits.items()
        ]
        lines += ["", markdown_table(["", "tracks", *(f"{n}, mean" for n in built.names)], rows)]
        if built.missing:
            lines.append(f"{len(built.missing)} tracks without a log-mel file left out")
        lines += [""] + [f"warning: {warning}" for warning in built.warnings]
        return [*lines, f"{tracks} tracks, {len(built.names)} values: {built.out_dir}"]
    rows = [
        [split, str(len(keys)), str(int((counts > 0).sum())), str(int(counts.min())),
         str(int(np.median(counts)))]
        for (split, keys), counts in zip(built.splits.items(), per_split.values(), strict=True)
    ]  # fmt: skip
    total = built.positives.sum(axis=0)
    rows.append(
        ["all", str(tracks), str(len(built.names)), str(int(total.min())),
         str(int(np.median(total)))]
    )  # fmt: skip
    header = ["", "tracks", "labels", "fewest positives", "median positives"]
    lines += ["", markdown_table(header, rows), ""]
    if built.dropped:
        lines.append(f"{len(built.dropped)} labels on too few tracks left out: "
                     f"{_some(list(built.dropped))}")  # fmt: skip
    if built.missing:
        lines.append(f"{len(built.missing)} tracks without a log-mel file left out")
    if built.without_labels:
        lines.append(f"tracks without a label, negatives for all: {built.without_labels}")
    lines += [f"warning: {warning}" for warning in built.warnings]
    lines.append(f"{tracks} tracks, {len(built.names)} labels: {built.out_dir}")
    return lines
