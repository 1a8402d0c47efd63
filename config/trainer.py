"""What Lightning's Trainer takes."""

DEFAULTS = {
    "max_epochs": 4,
    "max_steps": -1,  # -1: no limit
    "accelerator": "auto",  # a GPU where there is one
    "devices": 1,  # of each machine that train together: GPUs, or CPU processes; -1: all GPUs
    "num_nodes": 1,  # machines
    "strategy": "auto",  # "ddp" where several train together
    "precision": None,  # 16-mixed on CUDA, 32-true elsewhere
    # A step's batch is that many of datamodule.batch_size_train; divides an epoch's batches best,
    # as a smaller last group counts less
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "check_val_every_n_epoch": 1,
    "limit_train_batches": None,  # a number of batches, or a share between 0.0 and 1.0
    "limit_val_batches": None,
    "limit_test_batches": None,
    "limit_predict_batches": None,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "checkpoint_minutes": 10.0,  # between saves within an epoch; each epoch's end is saved anyway
    "compile": None,  # torch.compile the blocks; by default on CUDA, where a run is long enough
    "deterministic": None,
    "enable_progress_bar": True,
}
