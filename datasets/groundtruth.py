"""Ground truth: a pickled dict, track path relative to ``base_dir`` → multi-hot labels or values.

python datasets/groundtruth.py show FILE                          # look at any ground truth
python datasets/groundtruth.py build TABLE.csv --out-dir DIR      # build them from a table
"""

from __future__ import annotations

import json
import pickle
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # started as a script: import from the repository root, not from datasets/
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import read_bytes, to_json, write_changed
from maest.helpers.files.safe_pickle import load_pickle, short_repr
from maest.helpers.names import check_choice, first_few

TASKS: tuple[str, ...] = ("multi-label", "single-label", "regression")


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The targets of a split, or of all tracks."""

    path: Path  # the file it was read from
    keys: list[str]  # [N] tracks, as paths relative to ``base_dir``, in the file's order
    targets: np.ndarray  # [N, C] uint8, 0 or 1; for the task "regression" float32
    task: str = "multi-label"  # one of TASKS

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_classes(self) -> int:
        """C, the number of labels; for a regression, of values per track."""
        return self.targets.shape[1]

    def counts(self) -> np.ndarray:
        """Tracks with each label: int64 [C]."""
        return self.targets.sum(axis=0, dtype=np.int64)


def read_groundtruth(
    path: str | Path,
    n_classes: int | None = None,
    task: str = "multi-label",
    task_setting: str = "maest.task",
) -> GroundTruth:
    """Read a pickled dict, relative path → targets: a NumPy array, a tuple or a list.

    Multi-label targets are 0 or 1 for each label; single-label ones have exactly one 1; those of a
    regression are finite values below 3e38, or one bare number. ``task_setting`` is the setting
    that an error's hint names. Raises InputError if `load_pickle` refuses the file, a key
    is no path inside ``base_dir``, or targets misfit the task, each other or ``n_classes``.
    """
    path = Path(path)
    keys, targets = _validate(load_pickle(path), path, task, task_setting)
    if n_classes is not None and targets.shape[1] != n_classes:
        what = f"found {targets.shape[1]} labels or values per track, expected {n_classes}"
        hint = "Set the number of classes to that of the file, or choose the file of the model."
        raise InputError(what, kind="mismatch", path=path, hint=hint)
    return GroundTruth(path, keys, targets, task)


def read_splits(
    paths: Mapping[str, str | Path | None],
    task: str,
    section: str,
    task_setting: str = "maest.task",
) -> dict[str, GroundTruth]:
    """Read the splits of ``<section>.groundtruth_<split>``. Raises InputError if labels differ."""
    splits: dict[str, GroundTruth] = {}
    for split, path in paths.items():
        setting = f"{section}.groundtruth_{split}"
        given = check_given(path, setting)
        splits[split] = own = read_groundtruth(given, task=task, task_setting=task_setting)
        first = next(iter(splits.values()))
        check_labels(own, first.n_classes, labels_beside(first), str(first.path), setting)
    return splits


def check_given(path: str | Path | None, setting: str) -> Path:
    """Expand the path of a ground truth. Raises InputError if it is None, or no such file."""
    found = None if path is None else Path(path).expanduser()
    if found is None or not found.is_file():
        what = "it is not set" if found is None else "no such file"
        hint = "Give a ground truth: a data set's own preprocess.py makes it, or `python "
        hint += "datasets/groundtruth.py build`. (Of the embedded set: `with target_scores_tl`, in "
        hint += "ex_tl.py)"
        raise InputError(what, kind="missing", path=found, setting=setting, hint=hint)
    return found


def check_labels(
    groundtruth: GroundTruth, n_classes: int, labels: list[str] | None, owner: str, setting: str
) -> None:
    """Raise InputError unless a ground truth has the labels of ``owner``, a file or a model."""
    own, path = labels_beside(groundtruth), groundtruth.path
    if groundtruth.n_classes != n_classes:
        message = f"has {groundtruth.n_classes} labels to a track, and {owner} has {n_classes}"
    elif None not in (own, labels) and own != labels:
        path = path.parent / "labels.json"
        message = f"names other labels, or in another order, than {owner}"
    else:
        return
    hint = "Use splits that were made together, and a model of the same labels."
    raise InputError(message, kind="mismatch", setting=setting, path=path, hint=hint)


def check_targets(
    groundtruth: GroundTruth, split: str, setting: str, rows: Sequence[int] | None = None
) -> None:
    """Raise InputError if targets (of some ``rows``) leave nothing to learn, or to score."""
    targets = groundtruth.targets if rows is None else groundtruth.targets[list(rows)]
    if split == "train":
        nothing = groundtruth.task == "multi-label" and not targets.any()
        message = "no track has a label: there is nothing to learn"
    else:
        nothing = groundtruth.task != "single-label" and not (targets != targets[:1]).any()
        message = f"all {len(targets)} tracks have the same targets: there is nothing to score"
    if nothing:
        message += " (tracks without features are left out)" * (len(targets) < len(groundtruth))
        hint = "Give more tracks, which differ in their targets; `python datasets/groundtruth.py "
        hint += "show` counts their labels."
        path = groundtruth.path
        raise InputError(message, kind="empty", setting=setting, path=path, hint=hint)


def read_any_groundtruth(path: str | Path) -> GroundTruth:
    """Read labels, or else real values, for callers to whom only the tracks matter."""
    try:
        return read_groundtruth(path)
    except InputError:
        with suppress(InputError):
            return read_groundtruth(path, task="regression")
        raise


def write_groundtruth(
    path: str | Path, groundtruth: Mapping[str, Any], task: str = "multi-label"
) -> None:
    """Write a pickled dict, key → [C] bool (float32 for a regression); an equal file stays.

    Raises InputError for a key or value that could not be read back.
    """
    path = Path(path)
    keys, targets = _validate(groundtruth, path, task)
    if task != "regression":
        targets = targets.view(np.bool_)
    write_changed(path, pickle.dumps(dict(zip(keys, targets, strict=True)), protocol=4))


def check_disjoint(*groundtruths: GroundTruth) -> None:
    """Raise InputError if two splits share tracks."""
    tracks = [{posixpath.normpath(key): key for key in split.keys} for split in groundtruths]
    for (a, tracks_a), (b, tracks_b) in combinations(zip(groundtruths, tracks, strict=True), 2):
        if shared := sorted(tracks_a.keys() & tracks_b.keys()):
            some = first_few((short_repr(tracks_a[track]) for track in shared), 3)
            what = f"{a.path.name} and {b.path.name} share {len(shared)} tracks ({some})"
            hint = "Keep each track in one split, or the scores mean nothing."
            raise InputError(what, kind="conflict", path=b.path, hint=hint)


def _validate(
    groundtruth: object, path: Path, task: str, task_setting: str = "maest.task"
) -> tuple[list[str], np.ndarray]:
    """Keys [N], and targets [N, C], uint8 or (for a regression) float32."""
    check_choice("task", task, TASKS)
    if not isinstance(groundtruth, Mapping) or not groundtruth:
        kind: Kind = "empty" if isinstance(groundtruth, Mapping) else "invalid"
        hint = "Expected a dict of relative path → labels, with a track or more."
        raise InputError(f"found {short_repr(groundtruth)}", kind=kind, path=path, hint=hint)
    targets = np.empty((0, 0))
    seen: dict[str, str] = {}
    for number, (key, values) in enumerate(groundtruth.items()):
        try:
            if (first := seen.setdefault(check_key(key), key)) is not key:
                what = f"the same path as key {short_repr(first)}"
                raise InputError(what, kind="conflict", hint="Keep one of the two.")
            row = _row(values, task)
            if number == 0:
                dtype = np.float32 if task == "regression" else np.uint8
                targets = np.empty((len(groundtruth), len(row)), dtype)
            if len(row) != targets.shape[1]:
                what = f"found {len(row)} targets, and {targets.shape[1]} in the first track"
                raise InputError(what, hint="Expected the same number for each track.")
        except InputError as error:
            error.message, error.path = f"key {short_repr(key)}: {error.message}", path
            error.hint = error.hint.replace("{task}", task_setting)
            raise
        targets[number] = row
    return list(groundtruth), targets


def check_key(key: Any) -> str:
    """Normalise a key. Raises InputError unless it is a path inside ``base_dir``."""
    track = posixpath.normpath(key) if isinstance(key, str) and key else ""
    outside = track in ("", ".", "..") or track.startswith(("/", "../"))
    if outside or key[-1] == "/" or re.search(r"^[A-Za-z]:|[\0\\]", key):
        hint = "Expected a path relative to base_dir, with forward slashes."
        raise InputError("it is no path of a file inside base_dir", hint=hint)
    return track


_NUMBERS = (int, float, np.bool_, np.integer, np.floating)
_EXPECTED = {
    "multi-label": "Expected 0 or 1 for each label: a 1-D array, a list or a tuple. Real values "
    "are read with {task}=regression; show: --task regression.",
    "single-label": "single-label means exactly one label to a track; for any number: "
    "{task}=multi-label; for real values: {task}=regression.",
    "regression": "Expected finite numbers below 3e38: a 1-D array, a list, a tuple, or one.",
}


def _row(values: Any, task: str) -> np.ndarray:
    """One track's targets [C]."""
    if task == "regression" and isinstance(values, _NUMBERS):
        values = [values]
    if isinstance(values, np.ndarray):
        numbers = values.ndim == 1 and values.dtype.kind in "biuf"
    else:
        numbers = isinstance(values, list | tuple) and all(
            issubclass(kind, _NUMBERS) for kind in set(map(type, values))
        )
    if not numbers or not len(values):
        raise InputError(f"found {short_repr(values)}", hint=_EXPECTED[task])
    try:
        row = np.asarray(values, np.float64)
    except OverflowError:  # a Python integer
        row = np.full(len(values), np.inf)
    if task == "regression":
        with np.errstate(over="ignore"):
            row = row.astype(np.float32)
        wrong = ~np.isfinite(row)
    else:
        wrong = (row != 0) & (row != 1)
    if wrong.any():
        index = int(wrong.argmax())
        raise InputError(f"found {row[index]:g} at place {index}", hint=_EXPECTED[task])
    if task == "single-label" and row.sum() != 1:
        raise InputError(f"found {row.sum():g} labels", hint=_EXPECTED[task])
    return row


# --- Label names --------------------------------------------------------------------------------


def write_labels(path: str | Path, names: Iterable[str]) -> None:
    """Write label names as JSON, in the targets' order; InputError for empty or equal names."""
    path = Path(path)
    write_changed(path, to_json(_check_names(list(names), path)).encode())


def read_labels(path: str | Path) -> list[str]:
    """Read label names, UTF-8: a JSON list (it begins with ``[``), or one name a line.

    Raises InputError unless names are distinct and not empty.
    """
    path = Path(path)
    hint = "Label names are a JSON list, or UTF-8 text with one name a line."
    try:
        text = read_bytes(path, hint, hint).decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):  # a dict, too: as text it would pass for names
            names = json.loads(text)
        elif control := re.search(r"[^\t\r\n -\U0010ffff]", text):
            raise ValueError(f"it has the character {control[0]!r}: a binary file?")
        else:
            names = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read ({error})", path=path, hint=hint) from None
    return _check_names(names, path)


def labels_beside(groundtruth: GroundTruth) -> list[str] | None:
    """C names, of ``labels.json`` beside it, or None. Raises InputError unless it has C names."""
    path = groundtruth.path.parent / "labels.json"
    if not path.is_file():
        return None
    names, n_classes = read_labels(path), groundtruth.n_classes
    if len(names) != n_classes:
        what = f"{len(names)} labels, and {groundtruth.path.name} beside it has {n_classes}"
        hint = "They are not of one data set: remove the one that does not belong there."
        raise InputError(f"{what} to a track", kind="mismatch", path=path, hint=hint)
    return names


def _check_names(names: Any, path: Path) -> list[str]:
    hint = "Expected a list of distinct names, none of them empty."
    if not isinstance(names, list) or not names:
        kind: Kind = "empty" if names == [] else "invalid"
        raise InputError(f"found {short_repr(names)}", kind=kind, path=path, hint=hint)
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"label {i} is {short_repr(name)}", path=path, hint=hint)
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        what = f"{short_repr(name)} is there twice"
        raise InputError(what, kind="conflict", path=path, hint=hint)
    return names


if __name__ == "__main__":
    from maest.datasets.commands import start

    start("maest.datasets.groundtruth_command")
