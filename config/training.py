"""The training recipe, `module`, and what Lightning's Trainer takes, `trainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
_EPOCHS = ">= 0, <= 1e9"
_COUNT = ">= 0, <= 1e6"
_MANY = ">= 1, <= 1e9"
_BATCHES = "a number of batches, or a share from 0.0 to 1.0"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule and augmentation.

    The defaults suit a small network from random weights, in minutes. Chosen on validation metrics
    of the embedded data set: within minutes mixup and SpecAugment slow the learning down, and are
    off. The paper's values are in the named config `paper_recipe`.
    """

    lr: float = setting(1e-3, "learning rate of AdamW", "> 0, <= 1e38")
    weight_decay: float = setting(0.05, "of AdamW", _COUNT)
    betas: tuple[float, float] = setting((0.9, 0.95), "of AdamW", ">= 0, < 1")
    warmup_epochs: float = setting(0.4, "the rate rises, exponentially", _EPOCHS)
    ramp_start: float = setting(1.0, "epoch from which it falls, linearly", _EPOCHS)
    ramp_end: float = setting(4.0, "epoch at which it has fallen", _EPOCHS)
    last_lr_factor: float = setting(0.01, "to this share of lr", _COUNT)
    lr_interval: Literal["step", "epoch"] = setting("step", "when the rate changes")
    swa_start: int | None = setting(
        None, "average the weights of all epochs after so many; None: no average", _EPOCHS
    )
    swa_lr: float | None = setting(None, "rate after swa_start; None: the schedule's", _COUNT)
    mixup_alpha: float = setting(0.0, "of mixup's beta distribution; 0: no mixup", _COUNT)
    roll: int = setting(0, "rotate each clip in time, by at most so many frames; PaSST: 50", _COUNT)
    time_masks: int = setting(0, "SpecAugment: masks in time", ">= 0, <= 1000")
    time_mask_width: int = setting(8, "frames that each mask is narrower than", _COUNT)
    freq_masks: int = setting(0, "SpecAugment: masks in frequency", ">= 0, <= 1000")
    freq_mask_width: int = setting(5, "mel bands that each mask is narrower than", _COUNT)
    layer_decay: float = setting(
        1.0, "fine-tuning: a block's rate, divided by that of the next block", "> 0, <= 1"
    )
    freeze_blocks: int = setting(0, "first blocks that are not trained, nor what is before", _COUNT)
    teacher_threshold: float = setting(
        0.45, "teacher-student: a teacher's activation that makes a label a target", "> 0, < 1"
    )


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Length, devices and records of a run."""

    max_epochs: int = setting(4, "epochs to train", _MANY)
    max_steps: int = setting(-1, "steps to train; -1: no limit", ">= -1, <= 1e15, != 0")
    accelerator: Accelerator = setting("auto", "auto: a GPU if there is one")
    devices: int = setting(
        1, "GPUs, or CPU processes, of each machine; -1: all GPUs", ">= -1, <= 1000, != 0"
    )
    num_nodes: int = setting(1, "machines", ">= 1, <= 1e6")
    strategy: Literal["auto", "ddp"] = setting("auto", "auto: ddp if several processes train")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] | None = setting(
        None, "of numbers", auto="16-mixed on CUDA, else 32-true"
    )
    accumulate_grad_batches: int = setting(
        1, "batches of a step; should divide an epoch's: a smaller last step counts less", _MANY
    )
    gradient_clip_val: float | None = setting(None, "largest norm of a step's gradients", _COUNT)
    check_val_every_n_epoch: int = setting(1, "epochs from one validation to the next", _MANY)
    limit_train_batches: int | float | None = setting(None, f"{_BATCHES}: training", "> 0, <= 1e9")
    limit_val_batches: int | float | None = setting(None, f"{_BATCHES}: validation", "> 0, <= 1e9")
    limit_test_batches: int | float | None = setting(None, f"{_BATCHES}: test", "> 0, <= 1e9")
    limit_predict_batches: int | float | None = setting(None, f"{_BATCHES}: extraction", _EPOCHS)
    num_sanity_val_steps: int = setting(0, "batches validated first; -1: all", ">= -1, <= 1e9")
    log_every_n_steps: int = setting(10, "steps from one record to the next", _MANY)
    checkpoint_minutes: float = setting(10.0, "minutes between saves within an epoch", _EPOCHS)
    compile: bool | None = setting(
        None, "torch.compile the blocks", auto="on CUDA, if the run is long enough"
    )
    deterministic: bool | None = setting(None, "of Lightning")
    enable_progress_bar: bool = setting(True, "of Lightning")
