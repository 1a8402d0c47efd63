"""The probe: a small network on saved embeddings (`ex_tl.py`)."""

DEFAULTS = {
    "seed": 0,
    "seeds": 3,  # runs, with seed, seed + 1, …; results are mean ± standard deviation
    "data": {
        "embeddings_dir": None,  # the folder with <key>.embeddings.npy
        "groundtruth_train": None,
        "groundtruth_val": None,
        "groundtruth_test": None,
        # "embeddings", or "mel_statistics": mean and deviation of the mel bands, as a baseline
        "features": "embeddings",
        "base_dir": None,  # folder of the log-mel files, for mel_statistics
        "types": "c",  # tokens: "c" cls, "d" dist, "t" average of the others; "cdt" all
        "reduce": "mean",  # several tokens: "mean", or "stack" them
    },
    "probe": {
        "hidden": 512,
        "dropout": 0.5,
        "lr": 1e-4,
        "weight_decay": 1e-3,
        "warmup_epochs": 10.0,
        "ramp_start": 10.0,
        "ramp_end": 60.0,
        "last_lr_factor": 1e-7,
        "batch_size": 128,
        "max_epochs": 60,
        "accelerator": "auto",
    },
    "name": None,  # what the report calls these features
}
