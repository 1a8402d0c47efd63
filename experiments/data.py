"""Find, read and check a command's data; the commands check_data and compute_norm_stats."""

import logging
from pathlib import Path
from typing import Any

from maest.config import Settings
from maest.config.settings import Data
from maest.datasets.check import check_splits
from maest.datasets.groundtruth import GroundTruth, check_given, read_splits
from maest.datasets.norm import norm_stats
from maest.datasets.scores import DATA_DIR, build_if_missing
from maest.experiments.model import arch_of, clip_frames, find_task
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import write_json
from maest.models import load_checkpoint
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)


def paths_of(settings: Settings, *splits: str) -> dict[str, str | None]:
    """Return the ground truths in the settings, by split."""
    return {split: getattr(settings.datamodule, f"groundtruth_{split}") for split in splits}


def is_missing(settings: Settings, split: str) -> bool:
    """Return whether a ground truth is the embedded set's default, but base_dir is not."""
    name, data, default = f"groundtruth_{split}", settings.datamodule, Data()
    embedded = Path(data.base_dir).resolve() == Path(default.base_dir).resolve()
    return not embedded and getattr(data, name) == getattr(default, name)


def check_files(settings: Settings, *splits: str) -> None:
    """Raise InputError for missing ground truths or teacher; build the embedded set if needed."""
    paths = paths_of(settings, *splits)
    for split, path in paths.items():
        setting = f"datamodule.groundtruth_{split}"
        if is_missing(settings, split):
            message = "it is not given, and datamodule.base_dir is not the embedded data set's"
            hint = f"Give {setting}=<a ground truth of the tracks there>."
            raise InputError(message, kind="missing", setting=setting, hint=hint)
        if path is None or DATA_DIR not in Path(path).resolve().parents:
            check_given(path, setting)
    if "train" in splits:
        find_teacher(settings)
    build_if_missing(paths.values())


def read(settings: Settings, checkpoint: Checkpoint | None, *splits: str) -> dict[str, GroundTruth]:
    """Read splits of one data set, without tracks that have no known label. Raises InputError."""
    task = find_task(settings, checkpoint)
    # A teacher tells something about those, too.
    whole = ("train",) if settings.datamodule.teacher_dir is not None else ()
    return read_splits(paths_of(settings, *splits), task, "datamodule", whole=whole)


def find_teacher(settings: Settings) -> Path | None:
    """Return the folder of the teacher's logits, or None. Raises InputError.

    Tries ``embeddings/*/30sec/logits`` for ``embeddings/30sec/logits``, as extract_logits writes
    into a folder named after the model.
    """
    if settings.datamodule.teacher_dir is None:
        return None
    folder = Path(settings.datamodule.teacher_dir)
    if folder.is_dir():
        return folder
    folders = sorted(folder.parent.parent.glob(f"*/{folder.parent.name}/{folder.name}"))
    if len(folders) == 1:
        return folders[0]
    kind: Kind = "conflict" if folders else "missing"
    message = f"{len(folders)} models have logits there" if folders else "no such folder"
    hint = f"Give one of {', '.join(map(str, folders))}."
    if not folders:
        hint = "Write them by `ex_maest.py extract_logits with maest.checkpoint=<the teacher>`."
    raise InputError(message, kind=kind, setting="datamodule.teacher_dir", path=folder, hint=hint)


def limited(total: int, limit: int | float | None) -> int:
    """Return ``total`` within a limit: a number, or a share (rounded down, at least one)."""
    if limit is None:
        return total
    return min(total, limit if isinstance(limit, int) else max(1, int(limit * total)))


# ---- commands ------------------------------------------------------------------------------------


def check_data(run: Any, settings: Settings) -> dict[str, Any]:
    """Check the given splits; write and print all problems."""
    paths = paths_of(settings, "train", "val", "test").items()
    given = [split for split, path in paths if path is not None]
    splits = [split for split in given if not is_missing(settings, split)]
    for split in given:
        if split not in splits:
            log.warning("datamodule.groundtruth_%s is not given: not checked", split)
    check_files(settings, *(splits or given))
    checkpoint = _read_checkpoint(settings)
    results: dict[str, GroundTruth | InputError] = {}
    for split in splits:
        try:
            task = find_task(settings, checkpoint)
            results |= read_splits(paths_of(settings, split), task, "datamodule", whole=(split,))
        except InputError as error:
            results[split] = error
    data, teacher = settings.datamodule, find_teacher(settings) if "train" in splits else None
    frames, skip = clip_frames(settings, checkpoint), data.on_error == "skip"
    report = check_splits(results, data.base_dir, frames, teacher, skip)
    path = run_dir(run) / "check.json"
    write_json(path, report.to_dict())
    print(f"{report}\nall of it: {path}")
    return {"failed": len(report.problems), "warnings": len(report.warnings)}


def compute_norm_stats(run: Any, settings: Settings) -> dict[str, Any]:
    """Print mean and standard deviation of all log-mel values of the training split."""
    check_files(settings, "train")
    train = read(settings, _read_checkpoint(settings), "train")["train"]
    stats = norm_stats(settings.datamodule.base_dir, train.keys)
    write_json(run_dir(run) / "norm_stats.json", vars(stats))
    for key, reason in list(stats.failed.items())[:10]:
        log.error("%s: %s", key, reason)
    print(
        f"{stats.tracks} tracks, {stats.frames} frames; {len(stats.failed)} files could not be "
        f"read\nmaest.norm_mean={stats.mean!r} maest.norm_std={stats.std!r}"
    )
    return {"norm_mean": stats.mean, "norm_std": stats.std, "failed": len(stats.failed)}


def _read_checkpoint(settings: Settings) -> Checkpoint | None:
    """Read ``maest.checkpoint``, for clip length and task; download nothing."""
    arch_of(settings)  # refuses an unknown one
    path, average = settings.maest.checkpoint, settings.maest.checkpoint_swa_weights
    return None if path is None else load_checkpoint(path, average)
