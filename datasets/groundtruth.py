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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # started as a script: import from the repository root, not from datasets/
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.helpers.errors import InputError
from maest.helpers.files import atomic_path, print_any_name, write_json
from maest.helpers.safe_pickle import load_pickle, short_repr


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
    path: str | Path, n_classes: int | None = None, task: str = "multi-label"
) -> GroundTruth:
    """Read and validate a ground truth.

    Args:
        path: a pickled dict, relative path → targets. Multi-label: multi-hot labels (a NumPy bool,
            integer or float array, or a tuple or list of 0/1). Single-label: the same, with exactly
            one 1. Regression: real values (a NumPy array, a tuple or list of numbers, or one bare
            number).
        n_classes: the number of labels or values that is expected, if it is known.
        task: "multi-label", "single-label" or "regression".

    Raises:
        InputError: the file is refused by `helpers.safe_pickle`, a key is no path that stays inside
            ``base_dir``, or targets are not of that task, finite, and of one length (of
            ``n_classes``).
    """
    path = Path(path)
    keys, targets = _validate(load_pickle(path), path, task)
    if n_classes is not None and targets.shape[1] != n_classes:
        raise GroundTruthError(
            f"found {targets.shape[1]} {_what(task)} per track, expected {n_classes}",
            kind="mismatch",
            path=path,
            hint="Set the number of classes to that of the file, or choose the file that fits the "
            "model.",
        )
    return GroundTruth(path, keys, targets, task)


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

    Its type is bool; for the task "regression" float32.

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
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pickle.dump(rows, file, protocol=4)


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


def _validate(groundtruth: object, path: Path, task: str) -> tuple[list[str], np.ndarray]:
    """Check a ground truth's rules, stated in ``read_groundtruth``.

    Returns:
        keys [N] and targets [N, C], uint8 or (regression) float32.

    Raises:
        GroundTruthError: naming the file and the key.
    """
    if task not in _CHECKS:
        raise GroundTruthError(
            f"no task {task!r}", kind="unknown", path=path, hint=f"Expected one of {TASKS}."
        )
    check, dtype = _CHECKS[task]
    if not isinstance(groundtruth, Mapping):
        raise GroundTruthError(
            f"found {_kind(groundtruth)}",
            path=path,
            hint="Expected a dict of relative path → labels.",
        )
    if not groundtruth:
        raise GroundTruthError("no tracks", kind="empty", path=path, hint="Expected one at least.")
    targets = np.empty((0, 0), dtype)
    seen: dict[str, str] = {}
    for row, (key, labels) in enumerate(groundtruth.items()):
        try:
            track = check_key(key)
            if seen.setdefault(track, key) is not key:
                raise GroundTruthError(
                    f"the same path as key {short_repr(seen[track])}",
                    kind="conflict",
                    hint="Keep one of the two.",
                )
            labels = check(labels)
            if row == 0:
                targets = np.empty((len(groundtruth), len(labels)), dtype)
            if len(labels) != targets.shape[1]:
                raise GroundTruthError(
                    f"found {len(labels)} {_what(task)}, and {targets.shape[1]} in the first track",
                    hint="Expected the same number for each track.",
                )
        except GroundTruthError as error:
            raise GroundTruthError(
                f"key {short_repr(key)}: {error.message}",
                kind=error.kind,
                path=path,
                hint=error.hint,
            ) from None
        targets[row] = labels
    return list(groundtruth), targets


_DRIVE = re.compile(r"[A-Za-z]:")


def check_key(key: object) -> str:
    """The normalised path of a key. Raises GroundTruthError unless it stays inside ``base_dir``."""
    relative = "Expected a path relative to base_dir, with forward slashes."
    if type(key) is not str:
        raise GroundTruthError(f"found {_kind(key)}", hint=relative)
    track = posixpath.normpath(key)
    found = None
    if not key:
        found = "an empty string"
    elif "\0" in key or "\\" in key:
        found = "a NUL or a backslash"
    elif key[0] == "/" or _DRIVE.match(key):
        found = "an absolute path"
    elif track == ".." or track.startswith("../"):
        found = "a path that leaves base_dir"
    elif track == "." or key[-1] == "/":
        found = "the path of a folder"
    if found:
        raise GroundTruthError(f"found {found}", hint=relative)
    return track


_BUILTIN_INTEGERS = frozenset([int, bool])
_NUMBER_TYPES = (int, float, np.bool_, np.integer, np.floating)
_REAL_VALUES = "Real values are read with maest.task=regression; show: --task regression."


def _check_labels(labels: object) -> np.ndarray:
    """One track's labels as C values that a uint8 row takes. Raises GroundTruthError."""
    if isinstance(labels, np.ndarray):
        if labels.ndim != 1 or labels.dtype.kind not in "biuf":
            raise GroundTruthError(
                f"found a {labels.ndim}-D array of dtype {labels.dtype}",
                hint="Expected a 1-D array of bool, integers or floats.",
            )
        values = labels.view(np.ndarray)
        wrong = None if values.dtype.kind == "b" else (values != 0) & (values != 1)
        if wrong is not None and wrong.any():
            index = int(wrong.argmax())
            raise _wrong_label(values[index].item(), index)
    elif isinstance(labels, list | tuple):
        types = set(map(type, labels))
        if not all(issubclass(kind, _NUMBER_TYPES) for kind in types):
            index, value = next(
                (i, v) for i, v in enumerate(labels) if not isinstance(v, _NUMBER_TYPES)
            )
            raise _wrong_label(value, index)
        if not {0, 1}.issuperset(labels):
            index, value = next((i, v) for i, v in enumerate(labels) if v not in (0, 1))
            raise _wrong_label(value, index)
        values = np.frombuffer(
            bytes(labels if types <= _BUILTIN_INTEGERS else map(int, labels)), np.uint8
        )
    else:
        raise GroundTruthError(
            f"found {_kind(labels)}",
            hint=_REAL_VALUES
            if isinstance(labels, _NUMBER_TYPES)
            else "Expected a 1-D NumPy array, a list or a tuple of 0 and 1.",
        )
    if len(values) == 0:
        raise GroundTruthError("found no labels", kind="empty", hint="Expected one at least.")
    return values


def _wrong_label(value: object, index: int) -> GroundTruthError:
    hint = f" {_REAL_VALUES}" if isinstance(value, _NUMBER_TYPES) else ""
    return GroundTruthError(
        f"found {short_repr(value)} at label {index}", hint=f"Expected 0 or 1.{hint}"
    )


def _check_one_label(labels: object) -> np.ndarray:
    """The same, with exactly one 1."""
    values = _check_labels(labels)
    ones = np.flatnonzero(values)
    if len(ones) != 1:
        some = f" (at {', '.join(map(str, ones[:3]))}{', ...' * (len(ones) > 3)})"
        raise GroundTruthError(
            f"found {len(ones)} labels{some if len(ones) else ''}",
            hint="single-label means exactly one to a track; for any number: "
            "maest.task=multi-label.",
        )
    return values


def _check_values(values: object) -> np.ndarray:
    """One track's real values, float32 [C]. Raises GroundTruthError."""
    if isinstance(values, _NUMBER_TYPES):
        values = [values]
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            raise GroundTruthError(
                f"found a {values.ndim}-D array of dtype {values.dtype}",
                hint="Expected a 1-D array of integers or floats.",
            )
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            if not isinstance(value, _NUMBER_TYPES):
                raise GroundTruthError(
                    f"found {short_repr(value)} at value {index}", hint="Expected a number."
                )
    else:
        raise GroundTruthError(
            f"found {_kind(values)}",
            hint="Expected numbers: a 1-D NumPy array, a list, a tuple, or one.",
        )
    if len(values) == 0:
        raise GroundTruthError("found no values", kind="empty", hint="Expected one at least.")
    try:
        with np.errstate(over="ignore"):
            real = np.array(values, np.float64).astype(np.float32)
    except OverflowError:  # of a Python integer
        raise GroundTruthError(
            "found an integer of more than 300 digits", hint="Expected numbers below 3e38."
        ) from None
    finite = np.isfinite(real)
    if not finite.all():
        index = int(finite.argmin())
        raise GroundTruthError(
            f"found {float(values[index])} at value {index}",
            hint="Expected a finite number below 3e38.",
        )
    return real


# For each task: the check of one track's targets, and the type they are kept in.
_CHECKS = {
    "multi-label": (_check_labels, np.uint8),
    "single-label": (_check_one_label, np.uint8),
    "regression": (_check_values, np.float32),
}
TASKS = tuple(_CHECKS)


def _what(task: str) -> str:
    return "values" if task == "regression" else "labels"


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# --- Label names --------------------------------------------------------------------------------


def write_labels(path: str | Path, names: Iterable[str]) -> None:
    """Write the labels' names, in the order of the targets' columns, as a JSON list, atomically.

    Raises:
        GroundTruthError: a name that is empty, no string, or there twice.
    """
    path = Path(path)
    write_json(path, _check_names(list(names), path))


def read_labels(path: str | Path) -> list[str]:
    """Read the labels' names: a JSON list of distinct, non-empty strings, or one name a line.

    What the file is, its first character says: ``[`` begins a JSON list. Both are UTF-8.

    Raises:
        GroundTruthError: the file cannot be read or holds anything else.
    """
    path = Path(path)
    expected = "Label names are a JSON list, or UTF-8 text with one name a line."
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise GroundTruthError(
            "no such file", kind="missing", path=path, hint="Check the path of the labels."
        ) from None
    except OSError as error:
        raise GroundTruthError(
            f"cannot be read ({error.strerror})", kind="access", path=path, hint=expected
        ) from None
    except UnicodeDecodeError as error:
        raise GroundTruthError(
            f"not UTF-8 text ({error.reason} at byte {error.start})", path=path, hint=expected
        ) from None
    if text.lstrip()[:1] in ("[", "{"):  # a dict is no text either: it is refused by name
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GroundTruthError(
                f"begins with {text.lstrip()[0]!r}, and is no JSON file ({error})",
                path=path,
                hint=expected,
            ) from None
        return _check_names(names, path)
    control = next((c for c in text if c < " " and c not in "\t\r\n"), None)
    if control is not None:
        raise GroundTruthError(
            f"found the character {control!r}: a binary file?", path=path, hint=expected
        )
    lines = text.rstrip().split("\n") if text.strip() else []
    return _check_names([line.strip() for line in lines], path)


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


def _check_names(names: object, path: Path) -> list[str]:
    distinct = "Expected a list of distinct names, none of them empty."
    if not isinstance(names, list):
        raise GroundTruthError(f"found {_kind(names)}", path=path, hint=distinct)
    if not names:
        raise GroundTruthError("found no label names", kind="empty", path=path, hint=distinct)
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise GroundTruthError(
                f"found {short_repr(name)} as name of label {index}", path=path, hint=distinct
            )
        if seen.setdefault(name, index) != index:
            raise GroundTruthError(
                f"labels {seen[name]} and {index} are both named {short_repr(name)}",
                kind="conflict",
                path=path,
                hint=distinct,
            )
    return names


if __name__ == "__main__":
    from maest.datasets.groundtruth_command import main

    # A key may hold characters that the terminal's encoding lacks.
    print_any_name()
    sys.exit(main())
