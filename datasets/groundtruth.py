"""Ground truth: a pickled dict, track path relative to ``base_dir`` → multi-hot labels or values.

Read without running code from it (`helpers.safe_pickle`), validated, written atomically.

    python datasets/groundtruth.py show FILE                          # look at any ground truth
    python datasets/groundtruth.py build TABLE.csv --out-dir DIR      # make them from a table

(What these do is in `datasets.groundtruth_command`.)
"""

from __future__ import annotations

import json
import pickle
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # started as a script: import from the repository root, not from datasets/
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.helpers.errors import InputError, Kind
from maest.helpers.files import to_json, write_changed
from maest.helpers.safe_pickle import load_pickle, short_repr

TASKS: tuple[str, ...] = ("multi-label", "single-label", "regression")


class GroundTruthError(InputError):
    """A ground-truth or label file that is refused."""


# --- The ground truth ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The targets of a split.

    Attributes:
        path: the file it was read from.
        keys: [N] tracks, as paths relative to ``base_dir``, in the file's order.
        targets: [N, C] uint8, 0 or 1; for the task "regression" float32.
        task: what the targets are: "multi-label", "single-label" or "regression".
    """

    path: Path
    keys: list[str]
    targets: np.ndarray
    task: str = "multi-label"

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_classes(self) -> int:
        """C, the number of labels (of a regression, values to a track)."""
        return self.targets.shape[1]

    def counts(self) -> np.ndarray:
        """[C] int64: how many tracks have each label. Of no use for a regression."""
        return self.targets.sum(axis=0, dtype=np.int64)


def read_groundtruth(
    path: str | Path,
    n_classes: int | None = None,
    task: str = "multi-label",
    task_setting: str = "maest.task",
) -> GroundTruth:
    """Read and validate a ground truth.

    Args:
        path: a pickled dict, relative path → targets. Multi-label: multi-hot labels (a NumPy bool,
            integer or float array, or a tuple or list of 0/1). Single-label: the same, with exactly
            one 1. Regression: real values (a NumPy array, a tuple or list of numbers, or one bare
            number).
        n_classes: the number of labels or values that is expected, if it is known.
        task: "multi-label", "single-label" or "regression".
        task_setting: which setting an error's hint names.

    Raises:
        InputError: the file is refused by `helpers.safe_pickle`, a key is no path that stays inside
            ``base_dir``, or targets are not of that task, finite, and of one length (of
            ``n_classes``).
    """
    path = Path(path)
    keys, targets = _validate(load_pickle(path), path, task, task_setting)
    if n_classes is not None and targets.shape[1] != n_classes:
        what = f"found {targets.shape[1]} {_what(task)} per track, expected {n_classes}"
        hint = "Set the number of classes to that of the file, or choose the file of the model."
        raise GroundTruthError(what, kind="mismatch", path=path, hint=hint)
    return GroundTruth(path, keys, targets, task)


def read_splits(
    paths: Mapping[str, str | Path | None],
    task: str,
    section: str,
    task_setting: str = "maest.task",
) -> dict[str, GroundTruth]:
    """Ground truths of splits with the same labels, by the names of ``paths``.

    Their settings are ``<section>.groundtruth_<split>``, and errors name them.

    Raises:
        InputError: as :func:`check_given`, :func:`read_groundtruth` and :func:`check_labels`.
    """
    splits = {
        split: read_groundtruth(
            check_given(path, f"{section}.groundtruth_{split}"),
            task=task,
            task_setting=task_setting,
        )
        for split, path in paths.items()
    }
    first = next(iter(splits.values()))
    labels = labels_beside(first)
    for split, other in splits.items():
        setting = f"{section}.groundtruth_{split}"
        check_labels(other, first.n_classes, labels, str(first.path), setting)
    return splits


def check_given(path: str | Path | None, setting: str) -> Path:
    """The path of a ground truth. Raises InputError where none is given, or there is no file."""
    found = None if path is None else Path(path).expanduser()
    if found is None or not found.is_file():
        raise InputError(
            "it is not set" if found is None else "no such file",
            kind="missing",
            path=found,
            setting=setting,
            hint="Give a ground truth: a data set's own preprocess.py makes it, or `python "
            "datasets/groundtruth.py build`. (Of the embedded set: `with target_scores_tl`, in "
            "ex_tl.py)",
        )
    return found


def check_labels(
    groundtruth: GroundTruth, n_classes: int, labels: list[str] | None, owner: str, setting: str
) -> None:
    """Raise InputError where a ground truth has other labels than ``owner``, a file or a model.

    ``labels`` are the owner's ``n_classes`` names, if it has any.
    """
    own, path = labels_beside(groundtruth), groundtruth.path
    if groundtruth.n_classes != n_classes:
        message = f"has {groundtruth.n_classes} labels to a track, and {owner} has {n_classes}"
    elif None not in (own, labels) and own != labels:
        path = path.parent / "labels.json"
        message = f"names other labels, or in another order, than {owner}"
    else:
        return
    raise InputError(
        message,
        kind="mismatch",
        setting=setting,
        path=path,
        hint="Use splits that were made together, and a model of the same labels.",
    )


def check_targets(
    groundtruth: GroundTruth, split: str, setting: str, rows: Sequence[int] | None = None
) -> None:
    """Raise InputError where targets (of some ``rows``) leave nothing to learn, or to score."""
    targets = groundtruth.targets if rows is None else groundtruth.targets[list(rows)]
    if split == "train":
        nothing = groundtruth.task == "multi-label" and not targets.any()
        message = "no track has a label: there is nothing to learn"
    else:
        nothing = groundtruth.task != "single-label" and not (targets != targets[:1]).any()
        message = f"all {len(targets)} tracks have the same targets: there is nothing to score"
    if nothing:
        raise InputError(
            message + " (tracks without features are left out)" * (len(targets) < len(groundtruth)),
            kind="empty",
            setting=setting,
            path=groundtruth.path,
            hint="Give more tracks, which differ in their targets; `python datasets/groundtruth.py "
            "show` counts their labels.",
        )


def read_any_groundtruth(path: str | Path) -> GroundTruth:
    """Read labels, or else real values: for those to whom nothing but the tracks matters."""
    try:
        return read_groundtruth(path)
    except GroundTruthError as error:
        try:
            return read_groundtruth(path, task="regression")
        except GroundTruthError:
            raise error from None


def write_groundtruth(
    path: str | Path, groundtruth: Mapping[str, Any], task: str = "multi-label"
) -> None:
    """Write a ground truth, atomically: a pickled dict, key → [C] NumPy array.

    Its type is bool; for the task "regression" float32. A file with that content stays as it is.

    Args:
        path: the file.
        groundtruth: relative path → targets, under the rules of ``read_groundtruth``.
        task: "multi-label", "single-label" or "regression".

    Raises:
        GroundTruthError: a key or value that would not be read back; nothing is written then.
    """
    path = Path(path)
    keys, targets = _validate(groundtruth, path, task)
    if task != "regression":
        targets = targets.view(np.bool_)
    rows = dict(zip(keys, targets, strict=True))
    write_changed(path, pickle.dumps(rows, protocol=4))


def check_disjoint(*groundtruths: GroundTruth) -> None:
    """Raise GroundTruthError if two splits share tracks, naming the files and some of the keys."""
    tracks = [{posixpath.normpath(key): key for key in split.keys} for split in groundtruths]
    for (a, tracks_a), (b, tracks_b) in combinations(zip(groundtruths, tracks, strict=True), 2):
        shared = sorted(tracks_a.keys() & tracks_b.keys())
        if shared:
            some = ", ".join(short_repr(tracks_a[track]) for track in shared[:3])
            more = ", ..." if len(shared) > 3 else ""
            raise GroundTruthError(
                f"{a.path.name} and {b.path.name} share {len(shared)} tracks ({some}{more})",
                kind="conflict",
                path=b.path,
                hint="Keep each track in one split, or the scores mean nothing.",
            )


def _validate(
    groundtruth: object, path: Path, task: str, task_setting: str = "maest.task"
) -> tuple[list[str], np.ndarray]:
    """Keys [N], and targets [N, C], uint8 or (regression) float32.

    Raises:
        GroundTruthError: naming the file and the key, where a rule of ``read_groundtruth`` is hurt.
    """
    if task not in TASKS:
        raise GroundTruthError(
            f"no task {task!r}", kind="unknown", path=path, hint=f"Expected one of {TASKS}."
        )
    if not isinstance(groundtruth, Mapping) or not groundtruth:
        is_dict = isinstance(groundtruth, Mapping)
        raise GroundTruthError(
            "no tracks" if is_dict else f"found {_kind(groundtruth)}",
            kind="empty" if is_dict else "invalid",
            path=path,
            hint="Expected a dict of relative path → labels.",
        )
    targets = np.empty((0, 0))
    seen: dict[str, str] = {}
    for number, (key, values) in enumerate(groundtruth.items()):
        try:
            track = check_key(key)
            if seen.setdefault(track, key) is not key:
                what = f"the same path as key {short_repr(seen[track])}"
                raise GroundTruthError(what, kind="conflict", hint="Keep one of the two.")
            row = _row(values, task)
            if number == 0:
                dtype = np.float32 if task == "regression" else np.uint8
                targets = np.empty((len(groundtruth), len(row)), dtype)
            if len(row) != targets.shape[1]:
                what = f"found {len(row)} {_what(task)}, and {targets.shape[1]} in the first track"
                raise GroundTruthError(what, hint="Expected the same number for each track.")
        except GroundTruthError as error:
            what = f"key {short_repr(key)}: {error.message}"
            hint = error.hint.replace("{task}", task_setting)
            raise GroundTruthError(what, kind=error.kind, path=path, hint=hint) from None
        targets[number] = row
    return list(groundtruth), targets


def check_key(key: Any) -> str:
    """The normalised path of a key. Raises GroundTruthError unless it stays inside ``base_dir``."""
    track = posixpath.normpath(key) if type(key) is str else ""
    if not track or not key:
        found = "an empty string" if key == "" else _kind(key)
    elif "\0" in key or "\\" in key:
        found = "a NUL or a backslash"
    elif re.match("/|[A-Za-z]:", key):
        found = "an absolute path"
    elif track == ".." or track.startswith("../"):
        found = "a path that leaves base_dir"
    elif track == "." or key[-1] == "/":
        found = "the path of a folder"
    else:
        return track
    hint = "Expected a path relative to base_dir, with forward slashes."
    raise GroundTruthError(f"found {found}", hint=hint)


_NUMBERS = (int, float, np.bool_, np.integer, np.floating)
_EXPECTED = {
    "multi-label": "Expected 0 or 1 for each label: a 1-D array, a list or a tuple. Real values "
    "are read with {task}=regression; show: --task regression.",
    "single-label": "single-label means exactly one label to a track; for any number: "
    "{task}=multi-label; for real values: {task}=regression.",
    "regression": "Expected finite numbers below 3e38: a 1-D array, a list, a tuple, or one.",
}


def _row(values: Any, task: str) -> np.ndarray:
    """One track's targets [C]. Raises GroundTruthError."""
    if task == "regression" and isinstance(values, _NUMBERS):
        values = [values]
    found = None
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            found = f"a {values.ndim}-D array of dtype {values.dtype}"
    elif not isinstance(values, list | tuple):
        found = short_repr(values)
    elif not all(issubclass(kind, _NUMBERS) for kind in set(map(type, values))):
        found = short_repr(next(value for value in values if not isinstance(value, _NUMBERS)))
    if found is None and len(values) == 0:
        raise GroundTruthError(f"no {_what(task)}", kind="empty", hint=_EXPECTED[task])
    if found is None:
        row = np.asarray(values)
        if task == "regression":
            try:
                with np.errstate(over="ignore"):
                    row = row.astype(np.float64).astype(np.float32)
                wrong = ~np.isfinite(row)
            except OverflowError:  # of a Python integer
                wrong = np.ones(len(row), bool)
        else:
            wrong = (row != 0) & (row != 1)
        if wrong.any():
            index = int(wrong.argmax())
            found = f"{short_repr(values[index])} at {_what(task)[:-1]} {index}"
        elif task == "single-label" and np.count_nonzero(row) != 1:
            found = f"{np.count_nonzero(row)} labels"
    if found is not None:
        raise GroundTruthError(f"found {found}", hint=_EXPECTED[task])
    return row


def _what(task: str) -> str:
    return "values" if task == "regression" else "labels"


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# --- Label names --------------------------------------------------------------------------------


def write_labels(path: str | Path, names: Iterable[str]) -> None:
    """Write the labels' names, in the order of the targets' columns, as a JSON list, atomically.

    A file with that content stays as it is.

    Raises:
        GroundTruthError: a name that is empty, no string, or there twice.
    """
    path = Path(path)
    write_changed(path, to_json(_check_names(list(names), path)).encode())


def read_labels(path: str | Path) -> list[str]:
    """Read the labels' names: a JSON list of distinct, non-empty strings, or one name a line.

    What the file is, its first character says: ``[`` begins a JSON list. Both are UTF-8.

    Raises:
        GroundTruthError: the file cannot be read or holds anything else.
    """
    path = Path(path)
    kind: Kind = "invalid"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):  # a dict is no text either: it is refused by name
            names = json.loads(text)
        elif control := re.search(r"[^\t\r\n -\U0010ffff]", text):
            raise ValueError(f"it has the character {control[0]!r}: a binary file?")
        else:
            names = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError):
            kind = "missing" if isinstance(error, FileNotFoundError) else "access"
        hint = "Label names are a JSON list, or UTF-8 text with one name a line."
        raise GroundTruthError(
            f"cannot be read ({error})", kind=kind, path=path, hint=hint
        ) from None
    return _check_names(names, path)


def labels_beside(groundtruth: GroundTruth) -> list[str] | None:
    """The C names in the ``labels.json`` beside a ground truth; None if there is none.

    Raises:
        GroundTruthError: there is one, and it is damaged or of another number of labels.
    """
    path = groundtruth.path.parent / "labels.json"
    if not path.is_file():
        return None
    names = read_labels(path)
    if len(names) != groundtruth.n_classes:
        raise GroundTruthError(
            f"{len(names)} labels, and {groundtruth.path.name} beside it has "
            f"{groundtruth.n_classes} to a track",
            kind="mismatch",
            path=path,
            hint="They are not of one data set: remove the one that does not belong there.",
        )
    return names


def _check_names(names: Any, path: Path) -> list[str]:
    kind: Kind = "invalid"
    if not isinstance(names, list):
        found = _kind(names)
    elif not names:
        found, kind = "no label names", "empty"
    elif unnamed := [i for i, n in enumerate(names) if not isinstance(n, str) or not n.strip()]:
        found = f"{short_repr(names[unnamed[0]])} as name of label {unnamed[0]}"
    elif twice := [name for name, count in Counter(names).items() if count > 1]:
        found, kind = f"{short_repr(twice[0])} more than once", "conflict"
    else:
        return list(names)
    hint = "Expected a list of distinct names, none of them empty."
    raise GroundTruthError(f"found {found}", kind=kind, path=path, hint=hint)


if __name__ == "__main__":
    from maest.datasets.commands import start

    start("maest.datasets.groundtruth_command")
