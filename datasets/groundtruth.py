"""Ground truth: a pickled dict, track path relative to ``base_dir`` → targets of labels, or values.

A label's target is 0 or 1; between them where opinions differ (soft); NaN where nobody knows.

python datasets/groundtruth.py show FILE                          # look at any ground truth
python datasets/groundtruth.py build TABLE.csv --out-dir DIR      # build them from a table
"""

import json
import logging
import pickle
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # started as a script: import from the repository root, not from datasets/
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import read_bytes, to_json, write_changed
from maest.helpers.files.safe_pickle import load_pickle
from maest.helpers.names import check_choice, first_few, short_repr
from maest.helpers.soft_labels import highest, known, lowest, negative, positive

log = logging.getLogger(__name__)

TASKS: tuple[str, ...] = ("multi-label", "single-label", "regression")
_NUMBERS = (int, float, np.bool_, np.integer, np.floating)
_EXPECTED = {
    "multi-label": "Expected 0 or 1 for each label, a value between them (soft) or NaN (unknown): "
    "a 1-D array, a list or a tuple. Real values are read with {task}=regression; show: --task "
    "regression.",
    "single-label": "single-label means exactly one label to a track; for any number: "
    "{task}=multi-label; for real values: {task}=regression.",
    "regression": "Expected finite numbers below 3e38: a 1-D array, a list, a tuple, or one.",
}


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The targets of a split, or of all tracks."""

    path: Path  # the file it was read from
    keys: list[str]  # [N] tracks, as paths relative to ``base_dir``, in the file's order
    # [N, C] uint8, 0 or 1; float32 for the task "regression", and for "multi-label" if any is soft,
    # between 0 and 1, or unknown, NaN
    targets: np.ndarray
    task: str = "multi-label"  # one of TASKS

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_classes(self) -> int:
        """C, the number of labels; for a regression, of values per track."""
        return self.targets.shape[1]

    def counts(self) -> np.ndarray:
        """Tracks with each label (soft ones: from 0.5 on): int64 [C]."""
        targets = self.targets if self.targets.dtype == np.uint8 else positive(self.targets)
        return targets.sum(axis=0, dtype=np.int64)


def read_groundtruth(
    path: str | Path, task: str = "multi-label", task_setting: str = "maest.task"
) -> GroundTruth:
    """Read a pickled dict, relative path → targets: a NumPy array, a tuple or a list.

    Multi-label targets are 0 or 1 for each label, between them if soft, NaN if unknown;
    single-label ones have exactly one 1; those of a regression are finite values below 3e38, or
    one bare number. Hints name ``task_setting``.
    Raises InputError if `load_pickle` refuses the file, a key is no path inside ``base_dir``, or
    targets misfit the task or each other.
    """
    path = Path(path)
    return GroundTruth(path, *_validate(load_pickle(path), path, task, task_setting), task)


def read_any_groundtruth(path: str | Path) -> GroundTruth:
    """Read labels, or else real values, for callers to whom only the tracks matter."""
    try:
        return read_groundtruth(path)
    except InputError:
        with suppress(InputError):
            return read_groundtruth(path, "regression")
        raise


def read_splits(
    paths: Mapping[str, str | Path | None],
    task: str,
    section: str,
    task_setting: str = "maest.task",
    whole: Collection[str] = (),
) -> dict[str, GroundTruth]:
    """Read the splits of ``<section>.groundtruth_<split>``. Raises InputError if labels differ.

    Tracks without a known label are left out, with a warning, except from the ``whole`` splits.
    """
    splits: dict[str, GroundTruth] = {}
    for split, path in paths.items():
        setting = f"{section}.groundtruth_{split}"
        groundtruth = read_groundtruth(check_given(path, setting), task, task_setting)
        if split not in whole:
            groundtruth = _with_known_labels(groundtruth, split, setting)
        splits[split] = groundtruth
        first = next(iter(splits.values()))
        check_labels(groundtruth, first.n_classes, labels_beside(first), str(first.path), setting)
    return splits


def _with_known_labels(groundtruth: GroundTruth, split: str, setting: str) -> GroundTruth:
    """Leave out tracks whose labels are all unknown: no loss or metric takes them."""
    if groundtruth.targets.dtype == np.uint8:
        return groundtruth
    rows = np.flatnonzero(known(groundtruth.targets).any(axis=1))
    if not len(rows):
        hint = "Give the labels that are known, 0 or 1, of a track or more."
        what, path = "no track has a known label", groundtruth.path
        raise InputError(what, kind="empty", setting=setting, path=path, hint=hint)
    if lost := len(groundtruth) - len(rows):
        log.warning("%s: %d of %d tracks, without a known label, are left out",
                    split, lost, len(groundtruth))  # fmt: skip
        keys = [groundtruth.keys[row] for row in rows]
        groundtruth = replace(groundtruth, keys=keys, targets=groundtruth.targets[rows])
    return groundtruth


def write_groundtruth(
    path: str | Path, groundtruth: Mapping[str, Any], task: str = "multi-label"
) -> None:
    """Write a pickled dict, key → [C] bool (float32 if not all are 0 or 1); an equal file stays.

    Raises InputError for a key or value that could not be read back.
    """
    keys, targets = _validate(groundtruth, Path(path), task)
    rows = targets.view(np.bool_) if targets.dtype == np.uint8 else targets
    write_changed(path, pickle.dumps(dict(zip(keys, rows, strict=True)), protocol=4))


def _validate(
    groundtruth: object, path: Path, task: str, task_setting: str = "maest.task"
) -> tuple[list[str], np.ndarray]:
    """Keys [N], and targets [N, C], uint8 or float32."""
    check_choice("task", task, TASKS)
    if not isinstance(groundtruth, Mapping) or not groundtruth:
        kind: Kind = "empty" if isinstance(groundtruth, Mapping) else "invalid"
        hint = "Expected a dict of relative path → labels, with a track or more."
        raise InputError(f"found {short_repr(groundtruth)}", kind=kind, path=path, hint=hint)

    def refusal(key: str, what: str, hint: str = _EXPECTED[task]) -> InputError:
        hint = hint.replace("{task}", task_setting)
        return InputError(f"key {short_repr(key)}: {what}", path=path, hint=hint)

    keys, rows, tracks = list(groundtruth), list[np.ndarray](), dict[str, str]()
    for key, values in groundtruth.items():
        if (first := tracks.setdefault(check_key(key, path), key)) is not key:
            what = f"keys {short_repr(first)} and {short_repr(key)} are the same path"
            raise InputError(what, kind="conflict", path=path, hint="Keep one of the two.")
        if (row := _row(values, task)) is None:
            raise refusal(key, f"found {short_repr(values)}")
        rows.append(row)
        if len(row) != len(rows[0]):
            what = f"found {len(row)} targets, and {len(rows[0])} in the first track"
            raise refusal(key, what, "Expected the same number for each track.")
    targets = np.concatenate(rows).reshape(len(rows), -1)
    wrong = (targets != 0) & (targets != 1)
    if real := task == "regression" or (task == "multi-label" and bool(wrong.any())):
        with np.errstate(over="ignore"):
            targets = targets.astype(np.float32)
        wrong = ~np.isfinite(targets) if task == "regression" else (targets < 0) | (targets > 1)
    if wrong.any():
        track, place = np.unravel_index(wrong.argmax(), wrong.shape)
        raise refusal(keys[track], f"found {targets[track, place]:g} at place {place}")
    if task == "single-label" and (misfit := targets.sum(axis=1) != 1).any():
        raise refusal(keys[misfit.argmax()], "found no label, or several")
    return keys, targets if real else targets.astype(np.uint8)


def _row(values: Any, task: str) -> np.ndarray | None:
    """One track's targets [C], or None if they are no numbers."""
    if task == "regression" and isinstance(values, _NUMBERS):
        values = [values]
    # Types first: NumPy would go through lists in lists, which a small file can hold without end.
    numbers = isinstance(values, list | tuple) and set(map(type, values))
    if numbers and all(issubclass(kind, _NUMBERS) for kind in numbers):
        values = np.array(values)
    one_row = isinstance(values, np.ndarray) and values.ndim == 1 and values.size
    return values if one_row and values.dtype.kind in "biuf" else None


def check_key(key: Any, path: str | Path | None = None) -> str:
    """Normalise a key of the file ``path``; InputError unless it is a path inside ``base_dir``."""
    track = posixpath.normpath(key) if isinstance(key, str) and key else ""
    outside = track in ("", ".", "..") or track.startswith(("/", "../"))
    if outside or key[-1] == "/" or re.search(r"^[A-Za-z]:|[\0\\]", key):
        what = f"{short_repr(key)} is no path of a file inside base_dir"
        hint = "Expected a path relative to base_dir, with forward slashes."
        raise InputError(what, path=path, hint=hint)
    return track


# ---- checks before training and scoring ----------------------------------------------------------


def check_given(path: str | Path | None, setting: str) -> Path:
    """Expand the path of a ground truth. Raises InputError if it is None, or no such file."""
    given = path and Path(path).expanduser()
    if not given or not given.is_file():
        what = "no such file" if given else "it is not set"
        hint = "Give a ground truth: the embedded set's by `with target_scores_tl`; others come "
        hint += "from a data set's preprocess.py, or from `python datasets/groundtruth.py build`."
        raise InputError(what, kind="missing", path=given, setting=setting, hint=hint)
    return given


def check_labels(
    groundtruth: GroundTruth, n_classes: int, labels: list[str] | None, owner: str, setting: str
) -> None:
    """Raise InputError unless a ground truth has the labels of ``owner``, a file or a model."""
    names, path = labels_beside(groundtruth), groundtruth.path
    what = f"has {groundtruth.n_classes} labels to a track, and {owner} has {n_classes}"
    if groundtruth.n_classes == n_classes:
        if names is None or labels is None or names == labels:
            return
        path = path.parent / "labels.json"
        what = f"names other labels, or in another order, than {owner}"
    hint = "Use splits that were made together, and a model of the same labels."
    raise InputError(what, kind="mismatch", setting=setting, path=path, hint=hint)


def check_targets(
    groundtruth: GroundTruth, split: str, setting: str, rows: Sequence[int] | None = None
) -> None:
    """Raise InputError if targets (of some ``rows``) leave nothing to learn, or to score."""
    targets = groundtruth.targets if rows is None else groundtruth.targets[list(rows)]
    if split == "train":
        nothing = groundtruth.task == "multi-label" and not highest(targets, 0).any()
        what = "no track has a label: there is nothing to learn"
    elif groundtruth.task == "multi-label":
        nothing = not (positive(highest(targets, 0)) & negative(lowest(targets, 0))).any()
        what = "no label has both tracks with it and without it: there is nothing to score"
    else:
        nothing = groundtruth.task == "regression" and not (targets != targets[:1]).any()
        what = "all tracks have the same targets: there is nothing to score"
    if nothing:
        path = groundtruth.path
        hint = "Give more tracks, which differ in their targets and have features."
        raise InputError(what, kind="empty", setting=setting, path=path, hint=hint)


def check_disjoint(*groundtruths: GroundTruth) -> None:
    """Raise InputError if two splits share tracks."""
    tracks = [{posixpath.normpath(key): key for key in split.keys} for split in groundtruths]
    for (a, tracks_a), (b, tracks_b) in combinations(zip(groundtruths, tracks, strict=True), 2):
        if shared := sorted(tracks_a.keys() & tracks_b.keys()):
            some = first_few((short_repr(tracks_a[track]) for track in shared), 3)
            what = f"{a.path.name} and {b.path.name} share {len(shared)} tracks ({some})"
            hint = "Keep each track in one split, or the scores mean nothing."
            raise InputError(what, kind="conflict", path=b.path, hint=hint)


# ---- names of labels -----------------------------------------------------------------------------


def write_labels(path: str | Path, names: Iterable[str]) -> None:
    """Write label names as JSON, in the targets' order; InputError for empty or equal names."""
    write_changed(path, to_json(_check_names(list(names), Path(path))).encode())


def read_labels(path: str | Path) -> list[str]:
    """Read label names, UTF-8: a JSON list (it begins with ``[``), or one name a line.

    Raises InputError unless names are distinct and not empty.
    """
    hint = "Label names are a JSON list, or UTF-8 text with one name a line."
    content = read_bytes(path, hint, hint)
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):  # a dict, too: as text it would pass for names
            names = json.loads(text)
        elif control := re.search(r"[^\t\r\n -\U0010ffff]", text):
            raise ValueError(f"it has the character {control[0]!r}: a binary file?")
        else:
            names = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot be read ({error})", path=path, hint=hint) from None
    return _check_names(names, Path(path))


def _check_names(names: Any, path: Path) -> list[str]:
    kind: Kind = "invalid"
    if not isinstance(names, list) or not names:
        kind, wrong = "empty" if names == [] else "invalid", names
    elif not (wrong := [name for name in names if not isinstance(name, str) or not name.strip()]):
        kind, wrong = "conflict", [name for name, n in Counter(names).items() if n > 1]
        if not wrong:
            return names
    hint = "Expected a list of distinct names, none of them empty."
    raise InputError(f"found {short_repr(wrong)}", kind=kind, path=path, hint=hint)


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


if __name__ == "__main__":
    from maest.datasets.commands import start

    start("maest.datasets.groundtruth_command")
