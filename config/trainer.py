"""What Lightning's Trainer takes: `trainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
_MANY = ">= 1, <= 1e9"


def _limit(split: str, bounds: str = "> 0, <= 1e9") -> int | float | None:
    found: int | float | None = setting(
        None, f"{split}: a number of batches, or a share between 0.0 and 1.0", bounds, example=1.0
    )
    return found


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Of training and of evaluation; some of extraction."""

    max_epochs: int = setting(4, "epochs to train", _MANY)
    max_steps: int = setting(-1, "steps to train at most; -1: no limit", ">= -1, <= 1e15, != 0")
    accelerator: Accelerator = setting("auto", "what computes; auto: a GPU where there is one")
    devices: int = setting(
        1,
        "of each machine that train together: GPUs, or CPU processes; -1: all GPUs",
        ">= -1, <= 1000, != 0",
    )
    num_nodes: int = setting(1, "machines that train together", ">= 1, <= 1e6")
    strategy: Literal["auto", "ddp"] = setting("auto", "auto: ddp where several train together")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] | None = setting(
        None, "of numbers; None: 16-mixed on CUDA, 32-true elsewhere"
    )
    accumulate_grad_batches: int = setting(
        1,
        "batches of one step; should divide an epoch's batches: a smaller last group counts less",
        _MANY,
    )
    gradient_clip_val: float | None = setting(
        None, "largest norm of a step's gradients; None: any", ">= 0, <= 1e6", example=1.0
    )
    check_val_every_n_epoch: int = setting(1, "epochs from one validation to the next", _MANY)
    limit_train_batches: int | float | None = _limit("training")
    limit_val_batches: int | float | None = _limit("validation")
    limit_test_batches: int | float | None = _limit("test")
    limit_predict_batches: int | float | None = _limit("extraction", ">= 0, <= 1e9")
    num_sanity_val_steps: int = setting(
        0, "batches validated before the training; -1: all", ">= -1, <= 1e9"
    )
    log_every_n_steps: int = setting(10, "steps from one record to the next", _MANY)
    checkpoint_minutes: float = setting(
        10.0,
        "minutes between saves within an epoch; each epoch's end is saved anyway",
        ">= 0, <= 1e9",
    )
    compile: bool | None = setting(
        None, "torch.compile the blocks; None: on CUDA, where a run is long enough"
    )
    deterministic: bool | None = setting(None, "Lightning's option of that name")
    enable_progress_bar: bool = setting(True, "show a progress bar")
