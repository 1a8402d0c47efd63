"""Ground truths from a table of tracks: split it by group, and write the pickles."""

from argparse import Namespace
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maest.datasets.groundtruth import write_groundtruth, write_labels
from maest.datasets.melspectrograms import MelFile, mel_path
from maest.datasets.splitting import SPLITS, split_by_group
from maest.datasets.tables import Table, read_table, some
from maest.helpers.errors import InputError, Kind
from maest.helpers.names import first_few, short_repr
from maest.helpers.reports.report import table as markdown_table
from maest.helpers.soft_labels import counted, known, positive


def build(options: Namespace) -> list[str]:
    """Write ``groundtruth-{train,validation,test,all}.pk`` and ``labels.json`` from a table.

    ``options`` are those of ``groundtruth.py build``. Returns lines to print: what was read,
    counts, what was left out, and warnings. Raises InputError for conflicting options, missing
    files, an empty split, a track without its single label, or files that cannot be written.
    """
    table = read_table(options)
    task = options.task or ("multi-label" if table.values is None else "regression")
    _check_options(options, table, task)
    notes: list[str] = []
    rows = _rows_with_files(options, table, notes)
    if table.values is not None:
        names, targets = table.columns["values"], table.values[rows].astype(np.float32)
        marks = targets > np.median(targets, axis=0)  # balanced over the splits
    else:
        names, targets = _label_targets(table, rows, options.min_positives, notes)
        marks, some_known = positive(targets), known(targets).any(axis=1)
        labelled = marks.any(axis=1)
        single = task == "single-label"
        if lost := (~labelled & some_known).sum():
            what = "of those labels left out" if single else "without a label, negatives for all"
            notes.append(f"tracks {what}: {lost}")
        if unsure := counted(targets):
            notes.append(unsure)
        if lost := (~some_known).sum():
            notes.append(f"tracks without a known label, which training leaves out: {lost}")
        if single:
            rows, targets, marks = rows[labelled], targets[labelled], marks[labelled]

    keys = [table.keys[i] for i in rows]
    named = table.groups or [""] * len(table.keys)
    # A track without a group is a group by itself.
    groups: list[Hashable] = [named[i] or (table.keys[i],) for i in rows]
    if table.splits is not None:
        splits = [table.splits[i] for i in rows]
        hint = f"Column {table.columns['split'][0]!r} has none. To split by group: --ignore-split."
    else:
        joined = groups
        if options.keep_duplicates_together:
            joined, copies = _join_duplicates(options.base_dir, keys, groups)
            notes.append(f"{copies} tracks are copies of others, and in the same split")
        splits = split_by_group(joined, marks, options.fractions, options.seed)
        hint = f"There are {len(set(joined))} groups, each in one split: give another "
        hint += "--group-column, or more tracks."
    if empty := [split for split in SPLITS if split not in splits]:
        what = f"no track for {' and '.join(empty)}"
        raise InputError(what, kind="empty", path=table.path, hint=hint)
    members = {split: np.flatnonzero(np.array(splits) == split) for split in SPLITS}
    content = {split: {keys[i]: targets[i] for i in numbers} for split, numbers in members.items()}
    write_splits(options.out_dir, content, names, task)
    by_split = {split: targets[numbers] for split, numbers in members.items()}
    warnings = table.warnings + _group_warnings(table)
    for split, present in by_split.items() if task != "regression" else ():
        if absent := [names[i] for i in np.flatnonzero(~positive(present).any(axis=0))]:
            what = f"no track in {split} has {len(absent)} of the {len(names)} labels"
            warnings.append(f"{what}: {some(absent)}")
    lines = [f"{what:<8} {', '.join(used)}" for what, used in table.columns.items() if used]
    lines += ["", _counts({**by_split, "all": targets}, names, task), "", *notes]
    lines += [f"warning: {why}" for why in warnings]
    what = "values" if task == "regression" else "labels"
    return [*lines, f"{len(rows)} tracks, {len(names)} {what}: {options.out_dir}"]


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


def _check_options(options: Namespace, table: Table, task: str) -> None:
    if (task == "regression") != (table.values is not None):
        hint = "A regression needs --values-column, the other tasks columns of labels."
        what = f"{task} from a table that was read for another task"
        raise InputError(what, kind="conflict", setting="--task", hint=hint)
    n_labels = np.bincount(table.marks[0], minlength=len(table.keys))
    if task == "single-label" and (table.amounts != 1).any():
        what, hint = "soft labels: single-label needs 0 or 1", "Build for multi-label."
        raise InputError(what, path=table.path, setting="--task", hint=hint)
    if task == "single-label" and (n_labels != 1).any():
        lines = [str(table.lines[i]) for i in np.flatnonzero(n_labels != 1)]
        what = f"tracks with no label or several: {len(lines)}, on lines {first_few(lines)}"
        hint = "Correct those rows or leave them out, or build for multi-label."
        raise InputError(what, path=table.path, setting="--task", hint=hint)
    if options.keep_duplicates_together and (options.base_dir is None or table.splits is not None):
        what = "it needs the log-mel files, and a table without a split of its own"
        hint = "Give the files' folder: --base-dir MELS; to split anew: --ignore-split."
        kind: Kind = "missing" if options.base_dir is None else "conflict"
        raise InputError(what, kind=kind, setting="--keep-duplicates-together", hint=hint)


def _rows_with_files(options: Namespace, table: Table, notes: list[str]) -> np.ndarray:
    """Numbers of the rows that have log-mel files; of all rows without --base-dir."""
    base_dir, rows = options.base_dir, np.arange(len(table.keys))
    if base_dir is None:
        return rows
    if not base_dir.is_dir():
        hint = "Give the folder of the .mmap files of datasets/preprocess.py."
        message = "no such folder"
        raise InputError(message, kind="missing", path=base_dir, setting="--base-dir", hint=hint)
    exists = np.array([mel_path(base_dir, key).is_file() for key in table.keys])
    if exists.all():
        return rows
    what = f"{(~exists).sum()} of {len(rows)} tracks have no log-mel file"
    if not options.skip_missing or not exists.any():
        named = (f"{short_repr(table.keys[i])} (line {table.lines[i]})" for i in rows[~exists])
        what += f" in {base_dir}: {first_few(named)}"
        hint = "Make them with datasets/preprocess.py, or leave them out with --skip-missing."
        raise InputError(what, kind="missing", path=table.path, hint=hint)
    notes.append(f"{what}, and are left out")
    return rows[exists]


def _label_targets(
    table: Table, rows: np.ndarray, min_positives: int, notes: list[str]
) -> tuple[list[str], np.ndarray]:
    """Names [C] of the labels on enough tracks, and targets [rows, C].

    They are bool; float32 if any is soft or unknown.
    """
    position = np.full(len(table.keys), -1)
    position[rows] = np.arange(len(rows))
    there = position[table.marks[0]] >= 0
    (tracks, labels), amounts = table.marks[:, there], table.amounts[there]
    counts = np.bincount(labels[positive(amounts)], minlength=len(table.labels))
    kept = counts >= max(1, min_positives)
    if not kept.any():
        hint = f"Give --min-positives below {min_positives}, or check --labels-column."
        what = f"no label is left: the most frequent one has {counts.max(initial=0)} tracks"
        raise InputError(what, kind="empty", path=table.path, hint=hint)
    if dropped := [table.labels[i] for i in np.flatnonzero(~kept)]:
        notes.append(f"{len(dropped)} labels on too few tracks left out: {some(dropped)}")
    targets = np.zeros((len(rows), kept.sum()), bool if (amounts == 1).all() else np.float32)
    column, stays = np.cumsum(kept) - 1, kept[labels]
    targets[position[tracks[stays]], column[labels[stays]]] = amounts[stays]
    return [table.labels[i] for i in np.flatnonzero(kept)], targets


def _join_duplicates(
    base_dir: Path, keys: Sequence[str], groups: Sequence[Hashable]
) -> tuple[list[Hashable], int]:
    """Groups, joined where they share a recording; and the number of copies."""
    from scipy.cluster.hierarchy import DisjointSet  # takes a second to import

    paths = [mel_path(base_dir, key) for key in keys]
    sizes = [path.stat().st_size for path in paths]
    several = {size for size, n in Counter(sizes).items() if n > 1}
    alike = [i for i, size in enumerate(sizes) if size in several]
    joined = DisjointSet(groups)
    first: dict[bytes, int] = {}
    copies = 0
    for i in tqdm(alike, desc="compare log-mels", unit="file", disable=None):
        with MelFile(paths[i]) as mel:
            content = mel.content_hash()
        if content is not None and (before := first.setdefault(content, i)) != i:  # None: silence
            copies += 1
            joined.merge(groups[before], groups[i])
    return [joined[group] for group in groups], copies


def _counts(by_split: Mapping[str, np.ndarray], names: Sequence[str], task: str) -> str:
    """A Markdown table of the targets [N, C] of each split."""
    header = ["", "tracks", "labels", "fewest positives", "median positives"]
    if task == "regression":
        header = ["", "tracks", *(f"{name}, mean" for name in names)]
    rows = []
    for split, targets in by_split.items():
        counts = positive(targets).sum(axis=0)
        cells = [str((counts > 0).sum()), str(counts.min()), f"{np.median(counts):.0f}"]
        if task == "regression":
            cells = [f"{mean:.4g}" for mean in targets.mean(axis=0)]
        rows.append([split, str(len(targets)), *cells])
    return markdown_table(header, rows)


def _group_warnings(table: Table) -> list[str]:
    groups = table.groups or []
    if table.splits is not None:
        pairs = dict.fromkeys(zip(groups, table.splits, strict=False))
        places = Counter(group for group, _ in pairs if group)
        torn = [group for group, n in places.items() if n > 1]
        what = f"{len(torn)} of {len(places)} groups in more than one split: {some(torn)}"
        return [f"the table's split has {what}"] if torn else []
    if not groups:
        what = "tracks of one artist may be in several splits, which inflates the scores"
        return [f"the table has neither a split nor a group (artist, album): {what}"]
    unknown = groups.count("")
    return [f"{unknown} tracks have no group: each counts as a group"] if unknown else []
