"""The network: `maest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting

Task = Literal["multi-label", "single-label", "regression"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where a setting is None the checkpoint's value holds, if there is one."""

    arch: str | None = setting(
        None, "size, or released model: a name of models/archs.py", example="maest_tiny"
    )
    pretrained: bool | None = setting(
        None, "start from the arch's published weights, downloaded once; None: where it has any"
    )
    checkpoint: str | None = setting(
        None,
        "instead of them: a model folder (exp_logs/<id>/model), a folder from the model hub, or a "
        "file of MAEST, PaSST or DeiT weights",
        example="exp_logs/latest/model",
    )
    checkpoint_swa_weights: bool | None = setting(
        None,
        "which of a checkpoint's weights: None takes the average where there is one, True requires "
        "it, False takes the weights of one epoch",
    )
    checkpoint_discard_head: bool = setting(
        False, "a new head, even where the checkpoint's would fit"
    )
    labels: str | None = setting(
        None,
        "names of the labels, for weights that carry none: a JSON list, or a text file",
        example="labels.json",
    )
    task: Task | None = setting(None, "what a label is: one of several, the only one, or a number")
    n_classes: int | None = setting(
        None,
        "number of labels; else the checkpoint's, or that of the ground truth",
        ">= 1, <= 1e6",
        example=400,
    )
    input_t: int | None = setting(
        None,
        "length of the input in frames; else the checkpoint's, or datamodule.clip_length in frames",
        ">= 16, <= 1e6",
        example=625,
    )
    distilled_type: Literal["mean", "separated"] | None = setting(
        None, "one head for the mean of the tokens cls and dist, or one each"
    )
    norm_mean: float | None = setting(
        None,
        "the input is (x - norm_mean) / (2 norm_std); with new weights, measured on the data",
        ">= -1e6, <= 1e6",
        example=2.07,
    )
    norm_std: float | None = setting(None, "see norm_mean", "> 0, <= 1e6", example=1.27)
    # The grid of a 5 s clip has 9 rows and 30 columns.
    s_patchout_t: int | None = setting(
        None,
        "time columns dropped in training, drawn for each batch; None: about half, 3 a second, as "
        "in the paper; 0 where s_patchout_t_indices or s_patchout_t_interleaved act",
        ">= 0, <= 1e6",
        example=15,
    )
    s_patchout_f: int = setting(0, "frequency rows dropped in training", ">= 0, <= 1e6")
    u_patchout: int = setting(0, "single patches dropped in training", ">= 0, <= 1e6")
    # These act at inference, too: they save time by the share of tokens dropped, and more where
    # inputs are long (attention).
    s_patchout_t_indices: tuple[int, ...] = setting(
        (), "numbers of the time columns that are always dropped", ">= 0, <= 1e6", example=(3, 4)
    )
    s_patchout_f_indices: tuple[int, ...] = setting(
        (), "numbers of the frequency rows that are always dropped", ">= 0, <= 1e6", example=(3, 4)
    )
    s_patchout_t_interleaved: int = setting(
        0, "only every k-th time column is kept, always", ">= 0, <= 1e6"
    )
    s_patchout_f_interleaved: int = setting(
        0, "only every k-th frequency row is kept, always", ">= 0, <= 1e6"
    )
    drop_rate: float = setting(0.0, "dropout after projections", ">= 0, < 1")
    attn_drop_rate: float = setting(0.0, "dropout of attention weights", ">= 0, < 1")
    drop_path_rate: float = setting(0.0, "stochastic depth of the last block", ">= 0, < 1")
