"""The data: `datamodule`. By default the embedded data set, which is built where it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting
from maest.helpers.data_folder import data_folder

DATASETS = data_folder()
SCORES = DATASETS / "scores" / "data"
_STYLE = f"{SCORES}/style/groundtruth"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Ground truths, and how they are read."""

    groundtruth_train: str | None = setting(f"{_STYLE}-train.pk", "ground truth to train on")
    groundtruth_val: str | None = setting(f"{_STYLE}-validation.pk", "ground truth to validate on")
    groundtruth_test: str | None = setting(f"{_STYLE}-test.pk", "ground truth to test on")
    groundtruth_predict: str | None = setting(
        f"{_STYLE}-all.pk", "the tracks to extract, if inference.audio is not set"
    )
    base_dir: str = setting(f"{SCORES}/melspectrograms", "what their paths are relative to")
    teacher_dir: str | None = setting(
        None, "teacher-student: a folder of the teacher's logits (extract_logits)"
    )
    clip_length: float | None = setting(
        None, "seconds of a clip", ">= 0.26, <= 3600", auto="the checkpoint's, else 5"
    )
    batch_size_train: int = setting(8, "clips in a batch", ">= 1, <= 1e6")
    batch_size_eval: int = setting(8, "whole tracks in a batch", ">= 1, <= 1e6")
    clips_per_epoch: int | Literal["auto"] | None = setting(
        "auto",
        "random clips of an epoch; auto: 16 of each track, at most 2400; None: one of each track",
        ">= 1, <= 1e9",
    )
    balanced_sampling: bool = setting(False, "draw clips with rare labels more often")
    on_error: Literal["raise", "skip"] = setting(
        "raise", "skip: go on without a file that cannot be read, in training with another's clip"
    )
    num_workers: int | None = setting(
        None,
        "processes that read",
        ">= 0, <= 1000",
        auto="with a GPU one a core, at most 12; on a CPU none in training and one in extraction",
    )
