"""The data: `datamodule`. By default the embedded data set, which is built where it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting
from maest.helpers.data_folder import data_folder

DATASETS = data_folder()
SCORES = DATASETS / "scores" / "data"


def _groundtruth(split: str, use: str) -> str | None:
    path = str(SCORES / "style" / f"groundtruth-{split}.pk")
    found: str | None = setting(path, f"ground truth {use}", example="groundtruth.pk")
    return found


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, and how."""

    groundtruth_train: str | None = _groundtruth("train", "to train on")
    groundtruth_val: str | None = _groundtruth("validation", "to validate on, after each epoch")
    groundtruth_test: str | None = _groundtruth("test", "of the command test")
    groundtruth_predict: str | None = _groundtruth(
        "all", "whose tracks are extracted, where inference.audio is None"
    )
    base_dir: str = setting(
        str(SCORES / "melspectrograms"), "folder that the ground truths' paths are relative to"
    )
    teacher_dir: str | None = setting(
        None,
        "teacher-student: folder of the teacher's logits (extract_logits writes them)",
        example="embeddings/30sec/logits",
    )
    clip_length: float | None = setting(
        None,
        "seconds of a clip; None: the checkpoint's, or else 5",
        ">= 0.26, <= 3600",  # 16 frames
        example=10.0,
    )
    batch_size_train: int = setting(8, "clips in a batch", ">= 1, <= 1e6")
    batch_size_eval: int = setting(8, "whole tracks in a batch", ">= 1, <= 1e6")
    clips_per_epoch: int | None = setting(
        2400, "random clips in an epoch; None: one of each track", ">= 1, <= 1e9", example=2000
    )
    balanced_sampling: bool = setting(False, "draw clips with rare labels more often")
    on_error: Literal["raise", "skip"] = setting(
        "raise",
        "a file that cannot be read ends the run, or is skipped: in training a clip drawn evenly "
        "from all tracks takes its place",
    )
    num_workers: int | None = setting(
        None,
        "processes that read; None: none without a GPU, else one a core, at most 12",
        ">= 0, <= 1000",
        example=4,
    )
