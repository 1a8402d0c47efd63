"""Named configs: name → the settings it changes."""

from config.datamodule import SCORES

_INSTRUMENT = SCORES / "instrument"

MAEST = {
    # The recipe of the paper's code, but for its averaging of weights. Arch, clip length, patchout
    # and data are yours to name.
    "paper_recipe": {
        "datamodule": {
            "batch_size_train": 12,
            "clips_per_epoch": 200_000,
            "balanced_sampling": True,
        },
        "maest": {"norm_mean": 2.06755686098554, "norm_std": 1.268292820667291},
        "module": {
            "lr": 2e-5,
            "weight_decay": 1e-4,
            "betas": [0.9, 0.999],
            "warmup_epochs": 5,
            "ramp_start": 50,
            "ramp_end": 100,
            "last_lr_factor": 0.01,
            "lr_interval": "epoch",
            "mixup_alpha": 0.3,
            "time_masks": 20,
            "freq_masks": 8,
        },
        "trainer": {"max_epochs": 130},
    },
    # Extraction for the downstream task of the embedded data set.
    "target_scores": {
        "datamodule": {
            "groundtruth_predict": str(_INSTRUMENT / "groundtruth-all.pk"),
            "base_dir": str(SCORES / "melspectrograms"),
        },
        "inference": {"out_dir": "embeddings/scores", "transformer_block": 7},
    },
}

TL = {
    "target_scores_tl": {
        "data": {
            "embeddings_dir": "embeddings/scores/5sec/7",
            "groundtruth_train": str(_INSTRUMENT / "groundtruth-train.pk"),
            "groundtruth_val": str(_INSTRUMENT / "groundtruth-validation.pk"),
            "groundtruth_test": str(_INSTRUMENT / "groundtruth-test.pk"),
            "base_dir": str(SCORES / "melspectrograms"),
        },
        # Hundreds of tracks are few steps: the recipe's own rate and batch do not get anywhere.
        # Chosen on the validation split, over embeddings and mel statistics alike.
        "probe": {"lr": 3e-3, "batch_size": 32},
    },
}
