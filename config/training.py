"""The training recipe: `module`.

The defaults suit a small network from random weights, in minutes. Chosen on validation metrics of
the embedded data set: within minutes mixup and SpecAugment slow the learning down, and are off.
The paper's values are in the named config `paper_recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maest.config.schema import setting


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Epochs may be fractions. The rate warms up exponentially, stays, and ramps down linearly."""

    lr: float = setting(1e-3, "learning rate of AdamW", "> 0, <= 1e38")
    weight_decay: float = setting(0.05, "of AdamW", ">= 0, <= 1e6")
    betas: tuple[float, float] = setting((0.9, 0.95), "of AdamW", ">= 0, < 1")
    warmup_epochs: float = setting(0.4, "epochs of the warm-up", ">= 0, <= 1e9")
    ramp_start: float = setting(1.0, "epoch at which the rate begins to fall", ">= 0, <= 1e9")
    ramp_end: float = setting(4.0, "epoch at which it has fallen", ">= 0, <= 1e9")
    last_lr_factor: float = setting(0.01, "what is left of it then", ">= 0, <= 1e6")
    lr_interval: Literal["step", "epoch"] = setting("step", "when the rate changes")
    swa_start: int | None = setting(
        None,
        "average the weights at the ends of all epochs after so many, validate the average and "
        "keep it beside the weights; None: no average",
        ">= 0, <= 1e9",
        example=50,
    )
    swa_lr: float | None = setting(
        None, "the rate after so many epochs; None: the schedule's", ">= 0, <= 1e6", example=2e-5
    )
    mixup_alpha: float = setting(0.0, "of mixup's beta distribution; 0: no mixup", ">= 0, <= 1e6")
    roll: int = setting(
        0, "each clip is rotated in time by up to so many frames; PaSST's: 50", ">= 0, <= 1e6"
    )
    time_masks: int = setting(0, "SpecAugment: number of time masks", ">= 0, <= 1000")
    time_mask_width: int = setting(8, "frames that a mask's width stays below", ">= 0, <= 1e6")
    freq_masks: int = setting(0, "SpecAugment: number of frequency masks", ">= 0, <= 1000")
    freq_mask_width: int = setting(5, "mel bands that a mask's width stays below", ">= 0, <= 1e6")
    layer_decay: float = setting(
        1.0,
        "fine-tuning: each block's rate is this times that of the block after it",
        "> 0, <= 1",
    )
    freeze_blocks: int = setting(
        0, "the patch embedding and so many first blocks are not trained", ">= 0, <= 1e6"
    )
    teacher_threshold: float = setting(
        0.45, "teacher-student: a label is a target from this activation of the teacher", "> 0, < 1"
    )
