"""The network: `maest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting

Task = Literal["multi-label", "single-label", "regression"]
_COUNT = ">= 0, <= 1e6"
_CHECKPOINTS = "the checkpoint's"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network and its weights; patchout is drawn for each batch in training."""

    arch: str | None = setting(
        None, "a size or a model of models/archs.py", auto=f"{_CHECKPOINTS}, else maest_tiny"
    )
    pretrained: bool | None = setting(
        None, "start from the arch's published weights, downloaded once", auto="where it has any"
    )
    checkpoint: str | None = setting(
        None,
        "instead of them: a model folder (exp_logs/<id>/model), a folder from the model hub, or a "
        "file of MAEST, PaSST or DeiT weights",
    )
    checkpoint_swa_weights: bool | None = setting(
        None, "take a checkpoint's averaged weights", auto="where it has any"
    )
    checkpoint_discard_head: bool = setting(False, "a new head, even if the checkpoint's would fit")
    labels: str | None = setting(
        None,
        "file of label names, for weights that carry none: a JSON list, or lines of text",
    )
    task: Task | None = setting(
        None, "any of the labels, exactly one, or numbers", auto=f"{_CHECKPOINTS}, else multi-label"
    )
    n_classes: int | None = setting(
        None, "labels", ">= 1, <= 1e6", auto=f"{_CHECKPOINTS}, else the ground truth's"
    )
    input_t: int | None = setting(
        None, "frames of the input", ">= 16, <= 1e6", auto=f"{_CHECKPOINTS}, else a clip's"
    )
    distilled_type: Literal["mean", "separated"] | None = setting(
        None, "one head, or one each for cls and dist", auto=f"{_CHECKPOINTS}, else mean"
    )
    norm_mean: float | None = setting(
        None,
        "the input is (x - norm_mean) / (2 norm_std)",
        ">= -1e6, <= 1e6",
        auto=f"{_CHECKPOINTS}, else measured on the data",
    )
    norm_std: float | None = setting(None, "see norm_mean", "> 0, <= 1e6", auto="see norm_mean")
    # The grid of a 5 s clip has 9 rows and 30 columns.
    s_patchout_t: int | None = setting(
        None,
        "time columns dropped in training",
        _COUNT,
        auto="3 a second, about half, as in the paper; 0 where some are dropped always",
    )
    s_patchout_f: int = setting(0, "frequency rows dropped in training", _COUNT)
    u_patchout: int = setting(0, "single patches dropped in training", _COUNT)
    # At inference they save time by the share of tokens, and more where inputs are long.
    s_patchout_t_indices: tuple[int, ...] = setting((), "time columns dropped always", _COUNT)
    s_patchout_f_indices: tuple[int, ...] = setting((), "frequency rows dropped always", _COUNT)
    s_patchout_t_interleaved: int = setting(0, "keep every k-th time column, always", _COUNT)
    s_patchout_f_interleaved: int = setting(0, "keep every k-th frequency row, always", _COUNT)
    drop_rate: float = setting(0.0, "dropout after projections", ">= 0, < 1")
    attn_drop_rate: float = setting(0.0, "dropout of attention weights", ">= 0, < 1")
    drop_path_rate: float = setting(0.0, "stochastic depth of the last block", ">= 0, < 1")
