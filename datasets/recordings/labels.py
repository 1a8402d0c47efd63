"""Our labels, made from a teacher's tags and from labels that are known, by `labels.toml`."""

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import read_bytes
from maest.helpers.names import first_few

LABELS_FILE = Path(__file__).with_name("labels.toml")
# From this value on, after the shift, a label says that others are absent.
PRESENT = 0.7
_HINT = "labels.toml in datasets/recordings explains the tables."


@dataclass(frozen=True)
class Label:
    """How a label is made; `labels.toml` explains it."""

    name: str
    teacher: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    implied_by: tuple[str, ...] = ()
    excluded_by: tuple[str, ...] = ()  # known labels; "A---*": all that begin so
    absent_with: tuple[str, ...] = ()  # labels


@dataclass(frozen=True)
class Vocabulary:
    labels: tuple[Label, ...]
    left_out: dict[str, str]  # a teacher's tag → the reason
    middle: dict[str, float]  # of tags that begin with this name → their value that becomes 0.5

    def levelled(self, values: np.ndarray, tags: Sequence[str]) -> np.ndarray:
        """Shift a teacher's probabilities [N, Ct] in log odds, so that ``middle`` becomes 0.5."""
        middle = np.array([self.middle.get(_family(tag), 0.5) for tag in tags])
        odds = values / (1 - np.minimum(values, 1 - 1e-6)) * ((1 - middle) / middle)
        return odds / (1 + odds)

    def kept(self, tags: Collection[str], known: Collection[str]) -> tuple[list[Label], list[str]]:
        """The labels that the teacher's tags or known ones give, sorted; and the others' names."""
        labels = [x for x in self.labels if _tags(x, tags) or not set(known).isdisjoint(x.known)]
        if not labels:
            what = f"none of its labels is made from the teacher's tags ({first_few(tags)})"
            hint = "Give a file of labels for this teacher: --labels FILE."
            raise InputError(what, kind="mismatch", setting="--labels", hint=hint)
        names = {label.name for label in labels}
        return labels, [label.name for label in self.labels if label.name not in names]

    def of_teacher(self, tags: Collection[str]) -> set[str]:
        """The names of the labels that the teacher's tags make."""
        return {label.name for label in self.labels if _tags(label, tags)}

    def unused(self, tags: Sequence[str]) -> list[str]:
        """The teacher's tags that no label takes, and that are not left out on purpose."""
        used = {tag for label in self.labels for tag in (*label.teacher, label.name)}
        return [tag for tag in tags if tag not in used | self.left_out.keys()]


def read_vocabulary(path: str | Path = LABELS_FILE) -> Vocabulary:
    """Read a file of labels. Raises InputError unless it is as `labels.toml` explains."""

    def refusal(what: str, kind: Kind = "invalid") -> InputError:
        return InputError(what, kind=kind, path=path, setting="--labels", hint=_HINT)

    try:
        tables = tomllib.loads(read_bytes(path, "Give a file of labels as --labels.").decode())
    except ValueError as error:
        raise error if isinstance(error, InputError) else refusal(str(error), "corrupt") from None
    if unknown := sorted(tables.keys() - {"middle", "sets", "labels", "left_out"}):
        raise refusal(f"tables {first_few(unknown)}", "unknown")
    if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise refusal(f"expected tables: {first_few(wrong)}")
    rows, sets, left_out, middle = (
        tables.get(name, {}) for name in ("labels", "sets", "left_out", "middle")
    )
    if wrong := [name for name, names in sets.items() if not _is_texts(names)]:
        raise refusal(f"sets {first_few(wrong)}: expected lists of names")
    if wrong := [tag for tag, reason in left_out.items() if not isinstance(reason, str)]:
        raise refusal(f"left out {first_few(wrong)}: expected a reason, as text")
    if wrong := [name for name, value in middle.items() if not _is_share(value)]:
        raise refusal(f"middle of {first_few(wrong)}: expected numbers between 0 and 1")
    keys, labels = {field.name for field in fields(Label)} - {"name"}, []
    for name, row in rows.items():
        if not isinstance(row, dict) or row.keys() - keys or not all(map(_is_texts, row.values())):
            raise refusal(f"{name}: expected lists of names under {', '.join(sorted(keys))}")
        parts = {key: tuple(values) for key, values in row.items()}
        if unknown := [entry for entry in parts.get("excluded_by", ()) if entry not in sets]:
            raise refusal(f"{name}: excluded_by {first_few(unknown)}, no sets", "unknown")
        for key in ("absent_with", "excluded_by"):
            names = [name for entry in row.get(key, ()) for name in sets.get(entry, [entry])]
            parts[key] = tuple(dict.fromkeys(names))
        absent = parts["absent_with"]
        if unknown := [x for x in absent if not rows.get(x, {}).get("teacher")]:
            raise refusal(f"{name}: absent_with {first_few(unknown)}, no labels of a teacher")
        labels.append(Label(name, **parts))
    if not labels:
        raise refusal("has no labels", "empty")
    tags = {tag for label in labels for tag in label.teacher}
    if both := sorted(tags & left_out.keys()):
        raise refusal(f"left out, and taken by a label: {first_few(both)}", "conflict")
    if unknown := sorted(middle.keys() - {_family(tag) for tag in tags | left_out.keys()}):
        raise refusal(f"middle of {first_few(unknown)}: no tag begins so", "unknown")
    return Vocabulary(tuple(sorted(labels, key=lambda label: label.name)), left_out, middle)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < 1


def _is_one_of(name: str, entries: Collection[str]) -> bool:
    begins = tuple(entry[:-1] for entry in entries if entry.endswith("*"))
    return name in entries or name.startswith(begins)


def _family(tag: str) -> str:
    return tag.partition("/")[0]


def _tags(label: Label, tags: Collection[str]) -> list[str]:
    return [tag for tag in dict.fromkeys((*label.teacher, label.name)) if tag in tags]


class Translation:
    """From a teacher's tags [Ct], and known labels [K], to our labels [C]."""

    def __init__(self, labels: Sequence[Label], tags: Sequence[str], known: Sequence[str] = ()):
        position = {label.name: i for i, label in enumerate(labels)}
        tag_at = {tag: i for i, tag in enumerate(tags)}
        known_at = {name: i for i, name in enumerate(known)}

        def places(names: Sequence[str], where: dict[str, int]) -> list[int]:
            return [where[name] for name in names if name in where]

        self._tags = [[tag_at[tag] for tag in _tags(label, tag_at)] for label in labels]
        self._known = [places(label.known, known_at) for label in labels]
        self._implied = [places(label.implied_by, known_at) for label in labels]
        self._excluded = [
            [i for i, name in enumerate(known) if _is_one_of(name, label.excluded_by)]
            for label in labels
        ]
        self._absent = [places(label.absent_with, position) for label in labels]

    def windows(self, teacher: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Our labels in each window: [N, Ct], known labels [K] or None → float16 [N, C].

        They are 0 … 1, NaN where nobody knows.
        """
        values = np.full((len(teacher), len(self._tags)), np.nan, np.float32)
        for label, tags in enumerate(self._tags):
            if tags:
                values[:, label] = teacher[:, tags].max(axis=1)
        present = values >= PRESENT  # False where NaN
        for label, others in enumerate(self._absent):
            if not self._tags[label]:
                values[present[:, others].any(axis=1), label] = 0
        if known is None:
            return values.astype(np.float16)
        for label in range(len(self._tags)):
            if (known[self._excluded[label]] >= 0.5).any():
                values[:, label] = 0
            if (known[self._implied[label]] >= 0.5).any():
                values[:, label] = 1
            known_values = known[self._known[label]]
            if not np.isnan(known_values).all():
                values[:, label] = np.fmax.reduce(known_values)
        return values.astype(np.float16)


def track_labels(windows: np.ndarray) -> np.ndarray:
    """A track's soft labels: the mean of its windows [N, C] where they are known → float32 [C]."""
    values = windows.astype(np.float32)
    are_known = ~np.isnan(values)
    sums, counts = np.where(are_known, values, 0).sum(axis=0), are_known.sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
