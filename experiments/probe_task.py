"""What a probe learns: the labels of three splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maest.config.probe import ProbeData
from maest.datasets.groundtruth import (
    GroundTruth,
    check_disjoint,
    labels_beside,
    read_groundtruth,
)
from maest.helpers.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass
class ProbeTask:
    """Labels of the tracks that have features."""

    task: str
    labels: list[str]  # C names
    groundtruths: dict[str, GroundTruth]  # of each split, whole
    rows: dict[str, list[int]]  # split → tracks that have features (all, until they are loaded)

    def keys(self, split: str) -> list[str]:
        """Of the N tracks that have features."""
        return [self.groundtruths[split].keys[i] for i in self.rows[split]]

    def targets(self, split: str) -> np.ndarray:
        """[N, C] of those tracks."""
        return self.groundtruths[split].targets[self.rows[split]]

    def tracks(self) -> dict[str, int]:
        """Split → N."""
        return {split: len(rows) for split, rows in self.rows.items()}

    def missing(self) -> dict[str, int]:
        """Split → tracks without features, for the splits that have any."""
        missing = {s: len(g) - len(self.rows[s]) for s, g in self.groundtruths.items()}
        return {split: count for split, count in missing.items() if count}

    def digests(self) -> dict[str, str]:
        """Split → SHA-256 of its ground-truth file."""
        return {
            split: hashlib.sha256(groundtruth.path.read_bytes()).hexdigest()
            for split, groundtruth in self.groundtruths.items()
        }


def read_task(data: ProbeData) -> ProbeTask:
    """Three ground truths that have the same labels and share no track."""
    groundtruths = {}
    for split in SPLITS:
        setting, given = f"data.groundtruth_{split}", getattr(data, f"groundtruth_{split}")
        path = None if given is None else Path(given).expanduser()
        if path is None or not path.is_file():
            raise InputError(
                "is not set" if path is None else "no such file",
                kind="missing",
                path=path,
                setting=setting,
                hint="Name a target, such as 'with target_scores_tl', or give a ground-truth "
                "pickle; a data set's own preprocess.py makes it.",
            )
        try:
            groundtruths[split] = read_groundtruth(path, task=data.task)
        except InputError as error:  # it names the setting of the other experiment
            error.message = error.message.replace("maest.task", "data.task")
            error.hint = error.hint.replace("maest.task", "data.task")
            raise
    labels = _labels(groundtruths)
    check_disjoint(*groundtruths.values())
    rows = {split: list(range(len(g))) for split, g in groundtruths.items()}
    return ProbeTask(data.task, labels, groundtruths, rows)


def _labels(groundtruths: dict[str, GroundTruth]) -> list[str]:
    """The C names; numbers where there is no ``labels.json`` beside the training split."""
    train = groundtruths["train"]
    names = labels_beside(train)
    for groundtruth in groundtruths.values():
        message, path = "", groundtruth.path
        if groundtruth.n_classes != train.n_classes:
            message = f"has {groundtruth.n_classes} labels to a track, and {train.path} has "
            message += str(train.n_classes)
        elif names != (labels_beside(groundtruth) or names) and names:
            path = path.parent / "labels.json"
            message = "names other labels, or in another order, than "
            message += str(train.path.parent / "labels.json")
        if message:
            hint = "Give three splits that were made together."
            raise InputError(message, kind="mismatch", path=path, hint=hint)
    return names or [str(i) for i in range(train.n_classes)]


def check_no_effect(on: str, *settings: tuple[str, bool, str]) -> None:
    """Raise InputError for the first setting that is given for nothing: (name, given, hint)."""
    for name, given, hint in settings:
        if given:
            message = f"has no effect on {on}"
            raise InputError(message, kind="conflict", setting=name, hint=hint)


def check_targets(task: ProbeTask) -> None:
    """Raise InputError where the tracks with features leave nothing to learn or to score."""
    for split in SPLITS:
        targets = task.targets(split)
        if split == "train":
            nothing = task.task == "multi-label" and not targets.any()
            message = "no track has any label: there is nothing to learn"
        else:
            nothing = task.task != "single-label" and not (targets != targets[:1]).any()
            message = f"all {len(targets)} tracks have the same targets: there is nothing to score"
        if nothing:
            raise InputError(
                message + " (tracks without features are left out)" * bool(task.missing()),
                kind="empty",
                path=task.groundtruths[split].path,
                hint=f"Give a {split} split of tracks that differ in their labels.",
            )
