"""The probe: a small network on saved embeddings (`ex_tl.py`)."""

DEFAULTS = {
    "seed": 0,
    "seeds": 3,  # runs, with seed, seed + 1, …; results are mean ± standard deviation
    "data": {
        # What extraction was told as inference.out_dir, or a folder within it
        "embeddings_dir": None,
        "clip_length": None,  # seconds of its patches; None: the only ones there are
        # -1: after the final norm; "mix": a learned mix of all numbered ones, [6, 7]: of these;
        # None: block 7, or the only one there is
        "block": None,
        "task": "multi-label",  # or "single-label", "regression"
        "groundtruth_train": None,
        "groundtruth_val": None,
        "groundtruth_test": None,
        # "embeddings", or "mel_statistics": mean and deviation of the mel bands, as a baseline
        "features": "embeddings",
        "base_dir": None,  # folder of the log-mel files, for mel_statistics
        "missing": "error",  # or "skip" tracks that have no embedding, and count them
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
    "sweep": {
        "blocks": "all",
        "tokens": ["c", "d", "t", "cd", "ct", "dt", "cdt"],
        "reduce": None,  # of several tokens: some of "mean" and "stack"; None: data.reduce
        "mix": True,  # for each choice of tokens a learned mix of the blocks, too
        # Processes that train; None: on a CPU one a core where that pays, on a GPU this one
        "num_workers": None,
        "resume": None,  # folder of a sweep that was stopped: what it has done is taken over
    },
    "runs": None,  # compare: the folders of finished runs
    "compare": {
        # Folders of extractions (of other lengths, models, …) that are probed first, all alike
        "embeddings_dirs": None,
        "resamples": 1000,
        "confidence": 0.95,
    },
    "probe_dir": None,  # predict: the folder of a finished run
    "audio": None,  # predict: a file or a folder of music
    "predict": {
        "out_dir": None,  # where the embeddings go; None: into the run's own folder
        # The extractor; None: from where it came when the probe's embeddings were made
        "arch": None,
        "checkpoint": None,
        "accelerator": "auto",
        "top": 5,  # labels of each track that are printed
    },
}
