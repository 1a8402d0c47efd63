"""Models for other programs: `export`, of the command of that name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is written, and where."""

    format: Literal["huggingface", "onnx", "safetensors"] = setting("huggingface", "what is made")
    out_dir: str = setting(
        "export", "its folder: config.json … in it, or model.onnx, or model.safetensors"
    )
    blocks: tuple[int, ...] | None = setting(
        None,
        "onnx: the blocks whose embeddings it gives; None: inference.transformer_block",
        ">= -1",
        example=(6, 7),
    )
    with_frontend: bool = setting(False, "onnx: take a waveform instead of a log-mel spectrogram")
    licence: str | None = setting(
        None,
        "of the weights, for the model card; None: that of the weights they were trained from",
        example="CC-BY-4.0",
    )
