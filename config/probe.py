"""Downstream evaluation: the sections of `ex_tl.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.network import Task
from maest.config.schema import setting
from maest.config.trainer import Accelerator

Reduction = Literal["mean", "stack"]


def _groundtruth(split: str, name: str) -> str | None:
    found: str | None = setting(
        None, f"ground truth of the {split}", example=f"groundtruth-{name}.pk"
    )
    return found


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Labels, and what they are predicted from."""

    embeddings_dir: str | None = setting(
        None,
        "inference.out_dir of the extraction, or a folder within it",
        example="embeddings/scores/5sec/7",
    )
    clip_length: float | None = setting(
        None,
        "seconds of the patches; None: the only length there is",
        ">= 0.26, <= 3600",
        example=30.0,
    )
    block: tuple[int, ...] | Literal["mix"] | None = setting(
        None,
        '-1: after the final norm; "mix": a learned mix of all numbered blocks, [6, 7]: of these; '
        "None: block 7, or the only one there is",
        ">= -1",
        example=(6, 7),
    )
    task: Task = setting("multi-label", "what a label is: one of several, the only one, a number")
    groundtruth_train: str | None = _groundtruth("training", "train")
    groundtruth_val: str | None = _groundtruth("validation", "validation")
    groundtruth_test: str | None = _groundtruth("test", "test")
    features: Literal["embeddings", "mel_statistics"] = setting(
        "embeddings",
        "mel_statistics is a baseline: mean and deviation of the mel bands",
    )
    base_dir: str | None = setting(
        None, "folder of the log-mel files, for mel_statistics", example="melspectrograms"
    )
    missing: Literal["error", "skip"] = setting(
        "error", "tracks without an embedding end the run, or are skipped and counted"
    )
    types: str = setting("c", 'tokens: "c" cls, "d" dist, "t" average of the others; "cdt" all')
    reduce: Reduction = setting("mean", "several tokens: their mean, or all of them stacked")


@dataclass(frozen=True, kw_only=True)
class ProbeTraining:
    """The paper's recipe."""

    hidden: int = setting(512, "units of the hidden layer", ">= 1, <= 1e5")
    dropout: float = setting(0.5, "before each layer", ">= 0, < 1")
    lr: float = setting(1e-4, "learning rate of AdamW", "> 0, <= 1e38")
    weight_decay: float = setting(1e-3, "of AdamW", ">= 0, <= 1e6")
    warmup_epochs: float = setting(10.0, "epochs of the warm-up", ">= 0, <= 1e9")
    ramp_start: float = setting(10.0, "epoch at which the rate begins to fall", ">= 0, <= 1e9")
    ramp_end: float = setting(60.0, "epoch at which it has fallen", ">= 0, <= 1e9")
    last_lr_factor: float = setting(1e-7, "what is left of it then", ">= 0, <= 1e6")
    batch_size: int = setting(128, "tracks in a batch", ">= 1, <= 1e6")
    max_epochs: int = setting(60, "epochs to train", ">= 1, <= 1e6")
    accelerator: Accelerator = setting("auto", "what computes")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Of the command sweep."""

    blocks: tuple[int, ...] | Literal["all"] = setting(
        "all", "blocks to probe", ">= -1", example=(6, 7)
    )
    tokens: tuple[str, ...] = setting(
        ("c", "d", "t", "cd", "ct", "dt", "cdt"), "choices of tokens, see data.types"
    )
    reduce: tuple[Reduction, ...] | None = setting(
        None, "how several tokens are joined: one way or both; None: data.reduce"
    )
    mix: bool = setting(True, "for each choice of tokens a learned mix of the blocks, too")
    num_workers: int | None = setting(
        None,
        "processes that train; None: on a CPU one a core where that pays, on a GPU this one",
        ">= 1, <= 1000",
        example=1,
    )
    resume: str | None = setting(
        None, "folder of a sweep that was stopped: its results are used", example="exp_logs/4"
    )


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Of the command compare."""

    embeddings_dirs: tuple[str, ...] | None = setting(
        None,
        "folders of extractions (of other lengths, models, …) that are probed first, all alike",
        example=("embeddings/mtt/5sec", "embeddings/mtt/30sec"),
    )
    resamples: int = setting(1000, "of the bootstrap", ">= 1, <= 1e6")
    confidence: float = setting(0.95, "of the intervals", "> 0, < 1")


@dataclass(frozen=True, kw_only=True)
class ProbePredict:
    """Of the command predict."""

    out_dir: str | None = setting(
        None, "folder of the embeddings; None: in the run's own", example="embeddings/new"
    )
    # The extractor
    arch: str | None = setting(
        None,
        "the extractor; None: the one that made the probe's embeddings",
        example="discogs-maest-30s-pw-129e",
    )
    checkpoint: str | None = setting(
        None, "the extractor's weights; None: see arch", example="exp_logs/latest/model"
    )
    accelerator: Accelerator = setting("auto", "what computes")
    top: int = setting(5, "labels of each track that are printed", ">= 1, <= 1e9")
