"""The data of a command: which splits, whether they exist, and whether they fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maest.config import Settings
from maest.datasets.groundtruth import labels_beside
from maest.datasets.scores import DATA_DIR, build_if_missing
from maest.helpers.errors import InputError
from maest.models import Maest

if TYPE_CHECKING:
    from maest.datasets.datamodule import MaestDataModule


def splits_not_given(settings: Settings, *splits: str) -> list[str]:
    """Splits that are the embedded data set's by default, where the log-mel files are others."""
    data, default = settings.datamodule, type(settings.datamodule)()
    if Path(data.base_dir).resolve() == Path(default.base_dir).resolve():
        return []
    names = {split: f"groundtruth_{split}" for split in splits}
    return [split for split, n in names.items() if getattr(data, n) == getattr(default, n)]


def check_files(settings: Settings, *splits: str) -> None:
    """Raise InputError if a split's ground truth, or the teacher's folder, does not exist.

    The embedded data set is built if it is asked for and missing.
    """
    paths = {split: getattr(settings.datamodule, f"groundtruth_{split}") for split in splits}
    for split in splits_not_given(settings, *splits):
        raise InputError(
            "it is not given, and datamodule.base_dir is not the embedded data set's",
            kind="missing",
            hint=f"Give datamodule.groundtruth_{split}=<a ground truth of the tracks there>.",
            setting=f"datamodule.groundtruth_{split}",
        )
    for split, path in paths.items():
        embedded = path is not None and DATA_DIR in Path(path).resolve().parents
        if not embedded and (path is None or not Path(path).exists()):
            raise InputError(
                "it is not set" if path is None else "no such file",
                kind="missing",
                hint="Give a ground truth: a data set's own preprocess.py makes it, or `python "
                "datasets/groundtruth.py build`.",
                path=path,
                setting=f"datamodule.groundtruth_{split}",
            )
    if "train" in splits:
        find_teacher(settings)
    build_if_missing(paths.values())


def find_teacher(settings: Settings) -> Path | None:
    """The folder of the teacher's logits; of embeddings/30sec/logits, embeddings/*/30sec/logits.

    extract_logits writes into a folder of the model's name.

    Raises:
        InputError: there is no such folder, or there are several.
    """
    if settings.datamodule.teacher_dir is None:
        return None
    folder = Path(settings.datamodule.teacher_dir)
    if folder.is_dir():
        return folder
    found = sorted(folder.parent.parent.glob(f"*/{folder.parent.name}/{folder.name}"))
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{len(found)} models have logits there" if found else "no such folder",
        kind="conflict" if found else "missing",
        hint=f"Give one of {', '.join(map(str, found))}."
        if found
        else "`python ex_maest.py extract_logits with maest.checkpoint=<the teacher>` writes the "
        "logits of a model of the same labels, for all training tracks.",
        path=folder,
        setting="datamodule.teacher_dir",
    )


def check_same_labels(net: Maest, data: MaestDataModule, split: str) -> None:
    """Raise InputError if a split has other labels than the network."""
    groundtruth = data.groundtruth(split)
    labels = labels_beside(groundtruth)
    if groundtruth.n_classes != net.n_classes:
        raise InputError(
            f"{groundtruth.n_classes} labels to a track, and the model has {net.n_classes}",
            kind="mismatch",
            setting=f"datamodule.groundtruth_{split}",
            path=groundtruth.path,
            hint="Use a ground truth of the model's own task: all splits of one data set.",
        )
    if None not in (labels, net.labels) and labels != net.labels:
        raise InputError(
            "other labels, or another order, than the model's",
            kind="mismatch",
            path=groundtruth.path.parent / "labels.json",
            hint="Use a ground truth with the model's labels, or a model of these.",
        )


def check_targets(data: MaestDataModule) -> None:
    """Raise InputError if there is nothing to learn, or to choose the best epoch by."""
    train, val = data.groundtruth("train"), data.groundtruth("val")
    if data.task == "multi-label" and not train.targets.any():
        raise InputError(
            "no track has a label: there is nothing to learn",
            kind="empty",
            setting="datamodule.groundtruth_train",
            path=train.path,
            hint="Check how it was made: `python datasets/groundtruth.py show` counts its labels.",
        )
    if data.task != "single-label" and (val.targets == val.targets[:1]).all():
        raise InputError(
            f"there is nothing to choose the best epoch by: all {len(val)} tracks have the same "
            "labels",
            kind="empty",
            setting="datamodule.groundtruth_val",
            path=val.path,
            hint="Validate on more tracks.",
        )
