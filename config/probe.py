"""The settings of `ex_tl.py`."""

from dataclasses import dataclass, field
from typing import Literal

from maest.config.schema import setting
from maest.config.settings import (
    CLIP,
    DEVICE,
    FROM_1,
    SEED,
    SEEDS,
    SHARE,
    SIZE,
    Accelerator,
    Schedule,
    Task,
)

Reduction = Literal["mean", "stack"]


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Labels, and the features that predict them."""

    embeddings_dir: str | None = setting(
        None, "inference.out_dir of the extraction, or a folder within it"
    )
    clip_length: float | None = setting(
        None, "seconds of its patches; auto: the only length there is", CLIP
    )
    block: tuple[int, ...] | Literal["mix"] | None = setting(
        None,
        "-1: after the final norm; mix: a learned mix of all numbered blocks; [6, 7]: of these;"
        " auto: 7, or the only one there is",
        ">= -1",
        tags="swept",
    )
    task: Task = setting("multi-label", "any of the labels, exactly one, or numbers")
    groundtruth_train: str | None = setting(None, "ground truth to train on")
    groundtruth_val: str | None = setting(None, "ground truth to choose the epoch on")
    groundtruth_test: str | None = setting(None, "ground truth to test on")
    features: Literal["embeddings", "mel_statistics"] = setting(
        "embeddings", "mel_statistics: mean and deviation of the mel bands, as a baseline"
    )
    base_dir: str | None = setting(None, "folder of the log-mel files, for mel_statistics")
    missing: Literal["error", "skip"] = setting("error", "skip tracks without an embedding")
    types: str = setting(
        "c",
        'tokens: "c" cls, "d" dist, "t" average of the others; "cdt" all',
        only="data.features=embeddings",
        tags="swept",
    )
    reduce: Reduction = setting(
        "mean", "of several tokens", only="data.features=embeddings", tags="swept"
    )


@dataclass(frozen=True, kw_only=True)
class ProbeTraining(Schedule):
    """Network and recipe of the probe."""

    hidden: int = setting(512, "units of the hidden layer", ">= 1, <= 1e5")
    dropout: float = setting(0.5, "after the hidden layer", SHARE)
    lr: float = 1e-4
    weight_decay: float = 1e-3
    warmup_epochs: float = 10.0
    ramp_start: float = 10.0
    ramp_end: float = 60.0
    last_lr_factor: float = 1e-7
    batch_size: int = setting(128, "tracks in a batch", SIZE)
    max_epochs: int = setting(60, "epochs to train", SIZE)
    accelerator: Accelerator = setting("auto", DEVICE)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The command sweep."""

    blocks: tuple[int, ...] | Literal["all"] = setting("all", "blocks to probe", ">= -1")
    tokens: tuple[str, ...] = setting(("c", "d", "t", "cd", "ct", "dt", "cdt"), "see data.types")
    reduce: tuple[Reduction, ...] | None = setting(None, "see data.reduce; auto: data.reduce")
    mix: bool = setting(True, "for each choice of tokens a learned mix of the blocks, too")
    num_workers: int | None = setting(
        None, "threads that train; auto: one a core; 1 on a GPU", ">= 1, <= 1000"
    )
    resume: str | None = setting(None, "folder of a sweep that was stopped, to take results from")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """The command compare."""

    embeddings_dirs: tuple[str, ...] | None = setting(
        None, "extractions (of other lengths, models, …) that are probed first, all alike"
    )
    resamples: int = setting(1000, "bootstrap resamples", SIZE)
    confidence: float = setting(0.95, "of the intervals", "> 0, < 1")


@dataclass(frozen=True, kw_only=True)
class ProbePredict:
    """The command predict."""

    out_dir: str | None = setting(None, "folder of the embeddings; auto: in the run's own")
    arch: str | None = setting(None, "the extractor; auto: the one of the probe's embeddings")
    checkpoint: str | None = setting(None, "the extractor's weights; auto: see arch")
    accelerator: Accelerator = setting("auto", DEVICE)
    top: int = setting(5, "labels of each track that are printed", FROM_1)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The settings of ex_tl.py."""

    seed: int = setting(0, SEED, SEEDS)
    seeds: int = setting(3, "runs, with seed, seed + 1, …", ">= 1, <= 1000")
    data: ProbeData = field(default_factory=ProbeData)
    probe: ProbeTraining = field(default_factory=ProbeTraining)
    name: str | None = setting(None, "what the report calls these features; auto: from data")
    sweep: Sweep = field(default_factory=Sweep)
    runs: tuple[str, ...] | None = setting(None, "compare: folders of finished runs")
    compare: Compare = field(default_factory=Compare)
    probe_dir: str | None = setting(None, "predict: the folder of a finished run")
    audio: str | None = setting(None, "predict: a file or a folder of music")
    predict: ProbePredict = field(default_factory=ProbePredict)
