"""From a table of tracks to ground truths: split it by group, write the pickles.

`python datasets/groundtruth.py build` is the command line of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maest.datasets.groundtruth import (
    read_groundtruth,
    read_labels,
    write_groundtruth,
    write_labels,
)
from maest.datasets.melspectrograms import MelFile, mel_path
from maest.datasets.splitting import SPLITS, missing_labels, split_by_group
from maest.datasets.tables import Table, some
from maest.helpers.errors import InputError
from maest.helpers.report import table as markdown_table
from maest.helpers.safe_pickle import short_repr

_SHOWN = 5  # of a list in a message


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        out_dir: where to.
        names: of the labels, sorted, or of the values; the order of the targets.
        splits: split → its keys.
        positives: [3, C] tracks with each label, in the order of train, validation and test; None
            for a regression.
        means: [3, C] mean of each value, of a regression; else None.
        dropped: label that was left out → how many tracks have it.
        missing: keys that were left out because their log-mel file is not there.
        without_labels: tracks that have no label (any more); for the task single-label, those that
            were left out with their label.
        duplicates: tracks with the same log-mel as another, kept on its side; None: not looked for.
        columns, unused: of the table.
        warnings: what a person should know before training.
        task: "multi-label", "single-label" or "regression".
    """

    out_dir: Path
    names: list[str]
    splits: dict[str, list[str]]
    positives: np.ndarray | None
    means: np.ndarray | None
    dropped: dict[str, int]
    missing: list[str]
    without_labels: int
    duplicates: int | None
    columns: dict[str, list[str]]
    unused: list[str]
    warnings: list[str] = field(default_factory=list)
    task: str = "multi-label"


def build(
    table: Table,
    out_dir: str | Path,
    *,
    task: str | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    min_positives: int = 1,
    base_dir: str | Path | None = None,
    skip_missing: bool = False,
    keep_duplicates_together: bool = False,
) -> Built:
    """Write ``groundtruth-{train,validation,test,all}.pk`` and ``labels.json`` of a table.

    Args:
        table: the tracks.
        out_dir: where to; made if need be.
        task: "multi-label" or "single-label" (each track has one label), of a table of values
            "regression"; None: what fits the table.
        fractions: of the tracks in train, validation and test, where the table has no split.
        seed: of the split.
        min_positives: labels that fewer tracks have are left out.
        base_dir: folder of the log-mel files, to check that all of them are there.
        skip_missing: leave out tracks whose file is not there, rather than refuse the table.
        keep_duplicates_together: read the log-mel files, and keep tracks with the same content, and
            the groups they are in, in one split.

    Raises:
        InputError: files that are missing, a split that would be empty, no label that is left, a
            track without its single label, or files that cannot be written.
    """
    task = _check(table, task, min_positives, base_dir, keep_duplicates_together)
    rows, missing = _rows_with_files(table, base_dir, skip_missing)
    without_labels = 0
    dropped: dict[str, int] = {}
    if table.values is not None:
        names, targets = table.columns["values"], np.asarray(table.values, np.float32)[rows]
    else:
        names, targets, dropped = _labels(table, rows, min_positives)
        labelled = np.asarray(targets.any(axis=1))
        without_labels = int((~labelled).sum())
        if task == "single-label":
            rows = [i for i, own in zip(rows, labelled.tolist(), strict=True) if own]
            targets = targets[labelled]
    # What is balanced over the splits; of values, how many are high.
    marks = targets if table.values is None else targets > np.asarray(np.median(targets, axis=0))

    # A track of unknown group stands for itself.
    known = table.groups or [""] * len(table.keys)
    groups = [("group", known[i]) if known[i] else ("track", table.keys[i]) for i in rows]
    together: Sequence[Hashable] = groups
    duplicates = None
    if keep_duplicates_together and base_dir is not None:
        together, duplicates = _join_duplicates(base_dir, [table.keys[i] for i in rows], groups)
    if table.splits is not None:
        sides = [table.splits[i] for i in rows]
    else:
        sides = split_by_group(together, marks, fractions, seed)
    empty = [split for split in SPLITS if split not in sides]
    if empty:
        column = table.columns.get("split", [""])[0]
        raise InputError(
            f"no track for {' and '.join(empty)}",
            kind="empty",
            path=table.path,
            hint=f"Mark some rows so in column {column!r}, or split by group: --ignore-split."
            if table.splits is not None
            else f"There are {len(set(together))} groups, each of which stays on one side: three "
            "sides need 3 or more (or another --group-column).",
        )

    keys = [table.keys[i] for i in rows]
    splits = {
        split: [k for k, s in zip(keys, sides, strict=True) if s == split] for split in SPLITS
    }
    target = dict(zip(keys, targets, strict=True))
    write_splits(
        out_dir, {s: {key: target[key] for key in own} for s, own in splits.items()}, names, task
    )
    per_split = [targets[np.array(sides) == split] for split in SPLITS]
    positives = means = None
    if task == "regression":
        means = np.stack([own.mean(axis=0) for own in per_split])
    else:
        positives = np.stack([own.sum(axis=0) for own in per_split])
    return Built(
        out_dir=Path(out_dir),
        names=names,
        splits=splits,
        positives=positives,
        means=means,
        dropped=dropped,
        missing=missing,
        without_labels=without_labels,
        duplicates=duplicates,
        columns=table.columns,
        unused=table.unused,
        warnings=_warnings(table, groups, sides, names, positives),
        task=task,
    )


def _check(
    table: Table,
    task: str | None,
    min_positives: int,
    base_dir: str | Path | None,
    keep_duplicates_together: bool,
) -> str:
    """The task. Raises InputError for options that do not go together, or with the table."""
    if min_positives < 1:
        raise InputError(
            f"is {min_positives}", setting="--min-positives", hint="Expected at least 1."
        )
    fitting = "multi-label" if table.values is None else "regression"
    if (task == "regression") != (fitting == "regression") and task is not None:
        raise InputError(
            f"{task} from a table that was read for {fitting}",
            kind="conflict",
            setting="--task",
            hint="A regression needs --values-column, the other tasks columns of labels.",
        )
    if task == "single-label":
        counts = map(len, table.labels)
        wrong = [line for n, line in zip(counts, table.lines, strict=True) if n != 1]
        if wrong:
            lines = ", ".join(map(str, wrong[:_SHOWN])) + ", ..." * (len(wrong) > _SHOWN)
            raise InputError(
                f"{len(wrong)} of {len(table.keys)} tracks have no label or several: lines {lines}",
                path=table.path,
                setting="--task",
                hint="single-label needs one label to a track: correct those rows or leave them "
                "out, or build for multi-label.",
            )
    if keep_duplicates_together and base_dir is None:
        raise InputError(
            "the log-mel files are needed",
            kind="missing",
            setting="--keep-duplicates-together",
            hint="Give their folder: --base-dir MELS.",
        )
    if keep_duplicates_together and table.splits is not None:
        raise InputError(
            f"the table has a split of its own, in column {table.columns['split'][0]!r}",
            kind="conflict",
            path=table.path,
            setting="--keep-duplicates-together",
            hint="To have the tracks split anew: --ignore-split.",
        )
    return task or fitting


def write_splits(
    out_dir: str | Path,
    splits: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    task: str = "multi-label",
) -> None:
    """Write ``groundtruth-SPLIT.pk`` of each split and of "all", and ``labels.json``.

    Files that say the same already are left as they are.

    Raises:
        InputError: they cannot be written.
    """
    everything = {key: target for rows in splits.values() for key, target in rows.items()}
    try:
        for split, rows in {**splits, "all": everything}.items():
            path = Path(out_dir) / f"groundtruth-{split}.pk"
            if not _says(path, rows, task):
                write_groundtruth(path, rows, task)
        path = Path(out_dir) / "labels.json"
        if not _lists(path, names):
            write_labels(path, names)
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror or error})",
            kind="access",
            path=out_dir,
            setting="--out-dir",
            hint="Give another folder, or make room.",
        ) from None


def _says(path: Path, rows: Mapping[str, np.ndarray], task: str) -> bool:
    """Whether a ground truth has these keys and targets, in this order."""
    try:
        there = read_groundtruth(path, task=task)
    except InputError:
        return False
    return there.keys == list(rows) and np.array_equal(there.targets, np.stack(list(rows.values())))


def _lists(path: Path, names: Sequence[str]) -> bool:
    try:
        return read_labels(path) == list(names)
    except InputError:
        return False


def _join_duplicates(
    base_dir: str | Path, keys: Sequence[str], groups: Sequence[Hashable]
) -> tuple[list[Hashable], int]:
    """Groups that are one where they have tracks in common; and how many tracks are copies."""
    sizes: dict[int, list[int]] = defaultdict(list)
    paths = [mel_path(base_dir, key) for key in keys]
    for i, path in enumerate(paths):
        sizes[path.stat().st_size].append(i)
    alike = sorted(i for own in sizes.values() if len(own) > 1 for i in own)
    leader: dict[Hashable, Hashable] = {group: group for group in groups}

    def find(group: Hashable) -> Hashable:
        while leader[group] != group:
            group = leader[group]
        return group

    first: dict[bytes, int] = {}
    copies = 0
    for i in tqdm(alike, desc="compare log-mels", unit="file", disable=None):
        with MelFile(paths[i]) as mel:
            content = mel.content_hash()
        if content is None:  # silence is no recording
            continue
        before = first.setdefault(content, i)
        if before != i:
            copies += 1
            leader[find(groups[i])] = find(groups[before])
    return [find(group) for group in groups], copies


def _labels(
    table: Table, rows: Sequence[int], min_positives: int
) -> tuple[list[str], np.ndarray, dict[str, int]]:
    """Names [C] and targets bool [N, C] of some rows; and the labels that are left out."""
    counts = Counter(name for i in rows for name in table.labels[i])
    names = sorted(name for name, count in counts.items() if count >= min_positives)
    if not names:
        most = max(counts.values(), default=0)
        raise InputError(
            f"no label is left: the most frequent one has {most} tracks",
            kind="empty",
            path=table.path,
            hint=f"Give a --min-positives below {min_positives}."
            if most
            else "Check --labels-column.",
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
        raise InputError(
            "no such folder",
            kind="missing",
            path=base_dir,
            setting="--base-dir",
            hint="Expected the folder of the .mmap files, which datasets/preprocess.py makes.",
        )
    there = [mel_path(base_dir, key).is_file() for key in table.keys]
    missing = [key for key, found in zip(table.keys, there, strict=True) if not found]
    if missing and (not skip_missing or len(missing) == len(rows)):
        named = [
            f"{short_repr(table.keys[i])} (line {table.lines[i]})" for i in rows if not there[i]
        ]
        more = ", ..." * (len(named) > _SHOWN)
        raise InputError(
            f"{len(missing)} of {len(rows)} tracks have no log-mel file in {base_dir}: "
            f"{', '.join(named[:_SHOWN])}{more}",
            kind="missing",
            path=table.path,
            hint="Make them with datasets/preprocess.py, or leave those tracks out with "
            "--skip-missing.",
        )
    return [i for i in rows if there[i]], missing


def _warnings(
    table: Table,
    groups: list[tuple[str, str]],
    sides: list[str],
    names: list[str],
    positives: np.ndarray | None,
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
                f"{some(torn)}"
            )
        if unknown and table.splits is None:
            found.append(f"{unknown} tracks have no group: each was taken for itself")
    absent = [()] * len(SPLITS) if positives is None else missing_labels(positives)
    for split, columns in zip(SPLITS, absent, strict=True):
        if columns:
            found.append(
                f"no track in {split} has {len(columns)} of the {len(names)} labels: "
                f"{some([names[i] for i in columns])}"
            )
    return found


def describe(built: Built) -> list[str]:
    """Lines that tell a person what was written."""
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
    lines.append("")
    if built.means is not None:
        rows = [
            [split, str(len(keys)), *(f"{mean:.4g}" for mean in means)]
            for (split, keys), means in zip(built.splits.items(), built.means, strict=True)
        ]
        header = ["", "tracks", *(f"{name}, mean" for name in built.names)]
    elif built.positives is not None:
        counted = [
            *(
                (split, len(keys), own)
                for (split, keys), own in zip(built.splits.items(), built.positives, strict=True)
            ),
            ("all", tracks, built.positives.sum(axis=0)),
        ]
        rows = [
            [split, str(size), str((own > 0).sum()), str(own.min()), f"{np.median(own):.0f}"]
            for split, size, own in counted
        ]
        header = ["", "tracks", "labels", "fewest positives", "median positives"]
    lines += [markdown_table(header, rows), ""]
    if built.dropped:
        lines.append(f"{len(built.dropped)} labels on too few tracks left out: "
                     f"{some(list(built.dropped))}")  # fmt: skip
    if built.missing:
        lines.append(f"{len(built.missing)} tracks without a log-mel file left out")
    if built.without_labels and built.task == "single-label":
        lines.append(f"tracks of those labels left out: {built.without_labels}")
    elif built.without_labels:
        lines.append(f"tracks without a label, negatives for all: {built.without_labels}")
    if built.duplicates is not None:
        lines.append(f"{built.duplicates} tracks are copies of others, and in the same split")
    lines += [f"warning: {warning}" for warning in built.warnings]
    what = "labels" if built.means is None else "values"
    lines.append(f"{tracks} tracks, {len(built.names)} {what}: {built.out_dir}")
    return lines
