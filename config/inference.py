"""Extraction of embeddings, logits and predictions: `inference`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What is read, how it is cut into patches, and what is written."""

    audio: str | None = setting(
        None,
        "file or folder of music; None: the log-mel files of datamodule.groundtruth_predict",
        example="my/music",
    )
    max_seconds: float | None = setting(
        None,
        "of each audio file at most its central so many seconds (datasets/preprocess.py keeps 300 "
        "by default); None: all of it. Log-mel files are taken whole",
        ">= 1, <= 1e9",
        example=300.0,
    )
    outputs: tuple[Literal["embeddings", "logits", "predictions"], ...] | None = setting(
        None, "what one pass writes; None: the command's own"
    )
    transformer_block: tuple[int, ...] | Literal["all"] | None = setting(
        None,
        "blocks whose embeddings are taken: 0 to 11; -1 for the one after the final norm; "
        'several; or "all"; None: block 7, or the last of a shallower network',
        ">= -1",
        example=(6, 7),
    )
    out_dir: str = setting(
        "embeddings",
        "folder of the results: <clip_length>sec/ and in it <block>/<key>.embeddings.npy, "
        "logits/<key>.logits.npy, predictions/<key>.predictions.{json,csv,png}",
    )
    pool: Literal["mean", "none"] = setting(
        "mean",
        "mean over a track's patches, weighted by the seconds that each adds; none keeps them, "
        "with their times in <key>.times.csv",
    )
    patch_hop: float | None = setting(
        None,
        "seconds from one patch to the next, in whole frames of 0.016; None: "
        "datamodule.clip_length",
        ">= 0.016, <= 3600",
        example=2.5,
    )
    tail: Literal["keep", "drop", "pad"] = setting(
        "keep",
        "what becomes of the rest after the last whole patch: a shorter patch, nothing, or a patch "
        "padded with silence; less than a second is dropped",
    )
    top: int = setting(5, "labels that predict writes and prints", ">= 1, <= 1e9")
    plot: bool = setting(
        False, "predict: a picture of each track, its activations over time and its log-mel"
    )
    quantize: Literal["int8"] | None = setting(None, "linear layers in 8 bits, on a CPU")
    overwrite: bool = setting(False, "make results again that are there")
    shard: str | None = setting(
        None,
        'one part of the tracks, for job arrays: "3/100" is the third of a hundred; the files must '
        "stay the same meanwhile. When all are done, a run without it does what was missed, and "
        "joins their lists",
        example="3/100",
    )
    patches_per_pass: int | None = setting(
        None,
        "patches in a batch; None: 32 on a GPU, 4096 tokens on a CPU",
        ">= 1, <= 1e6",
        example=32,
    )
