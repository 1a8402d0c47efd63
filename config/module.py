"""The training recipe. These values suit a small network from scratch, in minutes.

Chosen on validation figures of the embedded data set: within minutes mixup and SpecAugment slow the
learning down, and are off. The paper's values are in the named config `paper_recipe`.
"""

DEFAULTS = {
    "lr": 1e-3,
    "weight_decay": 0.05,
    "betas": [0.9, 0.95],  # of AdamW
    # exponential warm-up, level, linear ramp down from ramp_start to ramp_end (epochs)
    "warmup_epochs": 0.4,
    "ramp_start": 1.0,
    "ramp_end": 4.0,
    "last_lr_factor": 0.01,
    "lr_interval": "step",  # the rate moves on each "step", or each "epoch"
    # Weight averaging: the mean of the weights at the ends of all epochs after so many; None: no
    # average. It is validated and kept beside the weights themselves.
    "swa_start": None,
    "swa_lr": None,  # the rate after so many epochs; None: as the schedule says
    "mixup_alpha": 0.0,  # 0: no mixup
    "roll": 0,  # each clip is turned round in time by up to so many frames; PaSST's: 50
    # SpecAugment on the normalised mel: number of masks, and the width they stay below
    "time_masks": 0,
    "time_mask_width": 8,
    "freq_masks": 0,
    "freq_mask_width": 5,
    # Fine-tuning: each block learns more slowly than the one after it, by this factor; 1: no
    "layer_decay": 1.0,
    "freeze_blocks": 0,  # the patch embedding and so many first blocks stay as they are
    # Teacher-student: activations of the teacher from which on a label is a target
    "teacher_threshold": 0.45,
}
