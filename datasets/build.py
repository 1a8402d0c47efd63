"""Ground truths from a table of tracks: split it by group, and write the pickles."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maest.datasets.groundtruth import write_groundtruth, write_labels
from maest.datasets.melspectrograms import MelFile, mel_path
from maest.datasets.splitting import SPLITS, split_by_group
from maest.datasets.tables import Table, some
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.safe_pickle import short_repr
from maest.helpers.names import first_few
from maest.helpers.reports.report import table as markdown_table


@dataclass(frozen=True)
class Built:
    """The result of :func:`build`."""

    table: Table
    out_dir: Path
    task: str
    names: list[str]  # of labels (sorted) or values, in the targets' order
    splits: dict[str, list[str]]  # split → its keys
    # [3, C] of train, validation and test: tracks with each label, or the mean of each value
    per_split: np.ndarray
    dropped: dict[str, int]  # label on too few tracks → their number
    missing: list[str]  # keys that were left out, without a log-mel file
    without_labels: int  # tracks; for single-label they are left out
    duplicates: int | None  # tracks whose content another track has; None: not compared
    warnings: list[str]  # what a person should know before training


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
    """Write ``groundtruth-{train,validation,test,all}.pk`` and ``labels.json`` from a table.

    ``task`` defaults to what fits the table. ``fractions`` are of train, validation and test, for a
    table without a split. Labels on fewer than ``min_positives`` tracks are left out. ``base_dir``
    requires all log-mel files, unless ``skip_missing`` leaves out tracks without one;
    ``keep_duplicates_together`` reads them, and keeps equal tracks and their groups in one split.
    Raises InputError for conflicting options, missing files, an empty split, a track without its
    single label, or files that cannot be written.
    """
    task = _task(table, task)
    if min_positives < 1:
        hint = "Expected at least 1."
        raise InputError(f"is {min_positives}", setting="--min-positives", hint=hint)
    if keep_duplicates_together and (base_dir is None or table.splits is not None):
        kind: Kind = "missing" if base_dir is None else "conflict"
        what = "it needs the log-mel files, and a table without a split of its own"
        hint = "Give the files' folder: --base-dir MELS; to split anew: --ignore-split."
        raise InputError(what, kind=kind, setting="--keep-duplicates-together", hint=hint)
    rows, missing = _rows_with_files(table, base_dir, skip_missing)
    without_labels, dropped = 0, dict[str, int]()
    targets: np.ndarray
    if table.values is not None:
        names, targets = table.columns["values"], np.asarray(table.values, np.float32)[rows]
        marks = targets > np.asarray(np.median(targets, axis=0))  # balanced over the splits
    else:
        names, targets, dropped = _labels(table, rows, min_positives)
        labelled = np.asarray(targets.any(axis=1))
        without_labels = int((~labelled).sum())
        if task == "single-label":
            rows, targets = np.asarray(rows)[labelled].tolist(), targets[labelled]
        marks = targets

    keys = [table.keys[i] for i in rows]
    # A track without a group is a group by itself.
    known = table.groups or [""] * len(table.keys)
    groups = [("group", known[i]) if known[i] else ("track", table.keys[i]) for i in rows]
    together: Sequence[Hashable] = groups
    duplicates = None
    if keep_duplicates_together and base_dir is not None:
        together, duplicates = _join_duplicates(base_dir, keys, groups)
    if table.splits is not None:
        sides = [table.splits[i] for i in rows]
        hint = f"Column {table.columns['split'][0]!r} has none. To split by group: --ignore-split."
    else:
        sides = split_by_group(together, marks, fractions, seed)
        hint = f"There are {len(set(together))} groups, each on one side: give another "
        hint += "--group-column, or more tracks."
    if empty := [split for split in SPLITS if split not in sides]:
        what = f"no track for {' and '.join(empty)}"
        raise InputError(what, kind="empty", path=table.path, hint=hint)

    splits: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    for key, side, target in zip(keys, sides, targets, strict=True):
        splits[side][key] = target
    write_splits(out_dir, splits, names, task)
    counted = np.mean if task == "regression" else np.sum
    per_split = np.stack([counted(list(own.values()), axis=0) for own in splits.values()])
    return Built(
        table=table,
        out_dir=Path(out_dir),
        task=task,
        names=names,
        splits={split: list(own) for split, own in splits.items()},
        per_split=per_split,
        dropped=dropped,
        missing=missing,
        without_labels=without_labels,
        duplicates=duplicates,
        warnings=table.warnings + _warnings(table, groups, sides, names, per_split),
    )


def write_splits(
    out_dir: str | Path,
    splits: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    task: str = "multi-label",
) -> None:
    """Write ``labels.json``, and ``groundtruth-SPLIT.pk`` for each split and for "all"."""
    everything = {key: target for rows in splits.values() for key, target in rows.items()}
    try:
        for split, rows in {**splits, "all": everything}.items():
            write_groundtruth(Path(out_dir) / f"groundtruth-{split}.pk", rows, task)
        write_labels(Path(out_dir) / "labels.json", names)
    except OSError as error:
        what, setting = f"cannot be written to ({error.strerror or error})", "--out-dir"
        hint = "Give another folder."
        raise InputError(what, kind="access", path=out_dir, setting=setting, hint=hint) from None


def _task(table: Table, task: str | None) -> str:
    """The task, or the table's default. Raises InputError if it does not fit the table."""
    fitting = "multi-label" if table.values is None else "regression"
    task = task or fitting
    if (task == "regression") != (fitting == "regression"):
        hint = "A regression needs --values-column, the other tasks columns of labels."
        what = f"{task} from a table that was read for {fitting}"
        raise InputError(what, kind="conflict", setting="--task", hint=hint)
    lines = [n for own, n in zip(table.labels, table.lines, strict=True) if len(own) != 1]
    if task == "single-label" and lines:
        what = f"{len(lines)} of {len(table.keys)} tracks have no label or several"
        hint = "Correct those rows or leave them out, or build for multi-label."
        what += f": lines {first_few(map(str, lines))}"
        raise InputError(what, path=table.path, setting="--task", hint=hint)
    return task


def _rows_with_files(
    table: Table, base_dir: str | Path | None, skip_missing: bool
) -> tuple[list[int], list[str]]:
    """Numbers of the rows that have log-mel files, and the keys of the others."""
    rows = list(range(len(table.keys)))
    if base_dir is None:
        return rows, []
    if not Path(base_dir).is_dir():
        what, hint = "no such folder", "Give that of the .mmap files of datasets/preprocess.py."
        raise InputError(what, kind="missing", path=base_dir, setting="--base-dir", hint=hint)
    exists = [mel_path(base_dir, key).is_file() for key in table.keys]
    missing = [i for i in rows if not exists[i]]
    if missing and (not skip_missing or len(missing) == len(rows)):
        named = (f"{short_repr(table.keys[i])} (line {table.lines[i]})" for i in missing)
        what = f"{len(missing)} of {len(rows)} tracks have no log-mel file in {base_dir}: "
        hint = "Make them with datasets/preprocess.py, or leave them out with --skip-missing."
        raise InputError(what + first_few(named), kind="missing", path=table.path, hint=hint)
    return [i for i in rows if exists[i]], [table.keys[i] for i in missing]


def _labels(
    table: Table, rows: Sequence[int], min_positives: int
) -> tuple[list[str], np.ndarray, dict[str, int]]:
    """Names [C], targets bool [N, C] of some rows, and dropped labels with their counts."""
    counts = Counter(name for i in rows for name in table.labels[i])
    names = sorted(name for name, count in counts.items() if count >= min_positives)
    if not names:
        most = max(counts.values(), default=0)
        hint = f"Give --min-positives below {min_positives}, or check --labels-column."
        what = f"no label is left: the most frequent one has {most} tracks"
        raise InputError(what, kind="empty", path=table.path, hint=hint)
    index = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(rows), len(names)), bool)
    for target, i in zip(targets, rows, strict=True):
        target[[index[name] for name in table.labels[i] if name in index]] = True
    return names, targets, {name: counts[name] for name in sorted(counts) if name not in index}


def _join_duplicates(
    base_dir: str | Path, keys: Sequence[str], groups: Sequence[Hashable]
) -> tuple[list[Hashable], int]:
    """Groups, joined where they share a recording; and the number of copies."""
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


def _warnings(
    table: Table,
    groups: list[tuple[str, str]],
    sides: list[str],
    names: list[str],
    per_split: np.ndarray,
) -> list[str]:
    warnings = []
    if table.groups is None and table.splits is None:
        warnings.append(
            "the table has neither a split nor a group (artist, album): tracks of one artist may "
            "be in several splits, which inflates the scores"
        )
    elif table.groups is not None:
        where: dict[tuple[str, str], set[str]] = defaultdict(set)
        for group, side in zip(groups, sides, strict=True):
            where[group].add(side)
        if torn := [group for (_, group), own in where.items() if len(own) > 1]:
            what = f"{len(torn)} of {len(where)} groups on more than one side: {some(torn)}"
            warnings.append(f"the table's split has {what}")
        unknown = sum(kind == "track" for kind, _ in groups)
        if unknown and table.splits is None:
            warnings.append(f"{unknown} tracks have no group: each was taken for itself")
    for split, counts in zip(SPLITS, per_split, strict=True):
        absent = [names[i] for i in np.flatnonzero(counts == 0)]
        if absent and table.values is None:
            what = f"no track in {split} has {len(absent)} of the {len(names)} labels"
            warnings.append(f"{what}: {some(absent)}")
    return warnings


def describe(built: Built) -> list[str]:
    table, sizes = built.table, [len(keys) for keys in built.splits.values()]
    columns = (
        f"{what}: {names[0]}" if len(names) == 1 else f"{what}: {len(names)} columns, see below"
        for what, names in table.columns.items()
    )
    lines = [f"columns  {'; '.join(columns)}"]
    if len(table.columns.get("labels", [])) > 1:
        lines.append(f"labels   {', '.join(table.columns['labels'])}")
    if table.unused:
        lines.append(f"not used {', '.join(table.unused)}")
    if built.task == "regression":
        header = ["", "tracks", *(f"{name}, mean" for name in built.names)]
        cells = [[f"{mean:.4g}" for mean in own] for own in built.per_split]
    else:
        header = ["", "tracks", "labels", "fewest positives", "median positives"]
        sizes, counts = [*sizes, sum(sizes)], [*built.per_split, built.per_split.sum(axis=0)]
        cells = [[str((own > 0).sum()), str(own.min()), f"{np.median(own):.0f}"] for own in counts]
    named = zip((*SPLITS, "all"), sizes, cells, strict=False)
    lines += ["", markdown_table(header, [[n, str(size), *own] for n, size, own in named]), ""]
    if built.dropped:
        dropped = some(built.dropped)
        lines.append(f"{len(built.dropped)} labels on too few tracks left out: {dropped}")
    if built.missing:
        lines.append(f"{len(built.missing)} tracks without a log-mel file left out")
    if built.without_labels:
        single = built.task == "single-label"
        what = "of those labels left out" if single else "without a label, negatives for all"
        lines.append(f"tracks {what}: {built.without_labels}")
    if built.duplicates is not None:
        lines.append(f"{built.duplicates} tracks are copies of others, and in the same split")
    lines += [f"warning: {warning}" for warning in built.warnings]
    what = "values" if built.task == "regression" else "labels"
    tracks = sum(map(len, built.splits.values()))
    return [*lines, f"{tracks} tracks, {len(built.names)} {what}: {built.out_dir}"]
