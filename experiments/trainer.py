"""Lightning's trainer for a training, and the processes that it starts."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from maest.config import Settings
from maest.experiments.plan import device_of, processes, steps_of
from maest.experiments.ranks import check_processes
from maest.helpers.checkpoints import AtomicCheckpointIO, StepLimit, leave_sigterm_to_us
from maest.helpers.history import ProgressBar, ProgressLines
from maest.helpers.throughput import fast_math

log = logging.getLogger(__name__)

# Advice of Lightning's that is of no use to a user here.
for _message in (
    ".*does not have many workers.*",
    ".*You are using `torch.load` with `weights_only=False`.*",
    ".*The number of training batches.*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from .*",
    ".*Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*",
    ".*LeafSpec.*",
    ".*`broadcast_buffers` is deprecated.*",
    ".*Grad strides do not match bucket view strides.*",
    ".*sync_dist=True.*",  # the metrics are of all processes already
    ".*your dataloader is not resumable.*",  # its sampler is
):
    warnings.filterwarnings("ignore", message=_message)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)

# Settings of section ``trainer`` that are not Lightning's
_OURS = {
    *("checkpoint_minutes", "compile", "max_steps", "limit_test_batches"),
    *("limit_predict_batches", "enable_progress_bar", "strategy"),
}


def build_trainer(
    settings: Settings, folder: Path, callbacks: Sequence[pl.Callback], logger: Logger | bool
) -> pl.Trainer:
    """The trainer of settings that are decided (`plan.decided`)."""
    trainer = settings.trainer
    if trainer.devices != -1:
        check_processes(trainer.devices, trainer.num_nodes)
    fast_math()
    if trainer.precision == "bf16-mixed" and device_of(settings).type != "cuda":
        log.warning("trainer.precision=bf16-mixed: on most CPUs much slower than 32-true")
    strategy: str | DDPStrategy = "auto"
    if trainer.strategy == "ddp" or processes(settings) > 1:
        # The buffers are constants; and evaluation need not wait for the other processes.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    callbacks = list(callbacks)
    if trainer.max_steps >= 0:
        callbacks.insert(0, StepLimit(trainer.max_steps))
    bar = trainer.enable_progress_bar and sys.stderr.isatty()
    # A bar redraws its line: in a file or a pipe that is noise.
    callbacks.append(ProgressBar(refresh_rate=5) if bar else ProgressLines(steps_of(settings)[1]))
    theirs = {n: v for n, v in vars(trainer).items() if v is not None and n not in _OURS}
    made = pl.Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        strategy=strategy,
        use_distributed_sampler=False,  # ours are
        enable_model_summary=False,
        enable_progress_bar=bar,
        **theirs,
    )
    leave_sigterm_to_us(made)
    return made


def terminate_workers(trainer: pl.Trainer, patience: float = 5.0) -> None:
    """End the processes that Lightning has started: after so many seconds, by force.

    They may wait for this one, the first of its machine, which is about to stop.
    """
    started = getattr(trainer.strategy.launcher, "procs", [])
    workers = list(started)
    # Lightning watches them, and kills this one if one has failed: before it has said what it has
    # to say. Without any, it stops watching.
    started.clear()
    until = time.monotonic() + patience
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def is_peer_failure(error: Exception) -> bool:
    """Whether an error only says that another process has gone."""
    return isinstance(error, torch.distributed.DistError) or "by peer" in str(error)
