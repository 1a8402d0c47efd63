"""Extraction of embeddings, logits and predictions, `inference`; and `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting
from maest.helpers.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What is read, how it is cut into patches, and what is written."""

    audio: str | None = setting(
        None, "a file or a folder of music; None: the tracks of datamodule.groundtruth_predict"
    )
    max_seconds: float | None = setting(
        None,
        "the central seconds of each audio file, 300 by default in preprocessing; None: all of it",
        ">= 1, <= 1e9",
    )
    outputs: tuple[Literal["embeddings", "logits", "predictions"], ...] | None = setting(
        None, "what one pass writes", auto="the command's own"
    )
    transformer_block: tuple[int, ...] | Literal["all"] | None = setting(
        None,
        "blocks whose embeddings are taken: 0 to 11, or -1 for the one after the final norm",
        ">= -1",
        auto="7, or the last of a shallower network",
    )
    out_dir: str | None = setting(
        None,
        "folder of <clip_length>sec/ and in it <block>/<key>.embeddings.npy, "
        "logits/<key>.logits.npy, predictions/<key>.predictions.{json,csv,png}",
        auto="embeddings/<model>",
    )
    pool: Literal["mean", "none"] = setting(
        "mean",
        "mean over a track's patches, weighted by the seconds that each adds; none: all of them, "
        "and their times in <key>.times.csv",
    )
    patch_hop: float | None = setting(
        None,
        "seconds from one patch to the next, in frames of 0.016",
        ">= 0.016, <= 3600",
        auto="datamodule.clip_length",
    )
    tail: Literal["keep", "drop", "pad"] = setting(
        "keep", "what the last whole patch leaves, if it is a second or more; pad: with silence"
    )
    top: int = setting(5, "labels that predict writes and prints", ">= 1, <= 1e9")
    plot: bool = setting(False, "predict: draw each track's activations and log-mel")
    engine: Literal["auto", "pytorch", "onnxruntime"] = setting(
        "auto", "what computes the network; auto: onnxruntime on x86 CPUs, else PyTorch"
    )
    quantize: Literal["int8"] | None = setting(None, "linear layers in 8 bits, on a CPU")
    overwrite: bool = setting(False, "make existing results again")
    shard: str | None = setting(
        None,
        '"3/100": the third of a hundred parts, for job arrays; the files must stay the same. When '
        "all are done, a run without it does what was missed, and joins their lists",
    )
    patches_per_pass: int | None = setting(
        None,
        "patches in a batch",
        ">= 1, <= 1e6",
        auto="32 on a GPU and in test, 4096 tokens on a CPU",
    )


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model for other programs: the command export."""

    format: Literal["huggingface", "onnx", "safetensors"] = setting("huggingface", "what it is")
    out_dir: str = setting("export", "folder of config.json …, model.onnx or model.safetensors")
    blocks: tuple[int, ...] | None = setting(
        None, "onnx: blocks whose embeddings it gives", ">= -1", auto="inference.transformer_block"
    )
    with_frontend: bool = setting(False, "onnx: take a waveform instead of a log-mel spectrogram")
    licence: str | None = setting(
        None, "of the weights", auto="that of the weights they were trained from"
    )

    def __post_init__(self) -> None:
        for name in ("blocks", "with_frontend"):
            if self.format != "onnx" and getattr(self, name) not in (None, False):
                raise InputError(
                    f"it does not go with export.format={self.format}",
                    kind="conflict",
                    setting=f"export.{name}",
                    hint="Leave it out, or set export.format=onnx.",
                )
