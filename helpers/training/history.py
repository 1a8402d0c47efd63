"""The record of a training run, a line per epoch on the screen and in a file; its progress."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from tqdm import tqdm

from maest.helpers.files.atomic import write_rows
from maest.helpers.reports.metrics import FIGURE_NAMES

log = logging.getLogger(__name__)

FIRST = 1  # the number of the first epoch, wherever people read it; Lightning counts from 0


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, counting epochs from 1."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        metrics = {n: v + FIRST if n == "epoch" else v for n, v in metrics.items()}
        super().log_metrics(metrics, step)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the metrics that move within an epoch, counting epochs from 1."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + FIRST}")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        # Called on redraws only: no other step fetches the loss from the device.
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if "train_loss_step" in trainer.callback_metrics:
            shown["train_loss"] = float(trainer.callback_metrics["train_loss_step"])
        return shown


class ProgressLines(pl.Callback):
    """Logs steps, speed, loss and time left each ``every`` seconds, where no bar can be drawn."""

    def __init__(self, steps: int, every: float = 30.0) -> None:
        self.steps, self.every = steps, every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started, self._first_step = time.monotonic(), trainer.global_step
        self._shown, self._clips = self._started, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._clips += len(batch) * trainer.world_size
        now, step = time.monotonic(), trainer.global_step
        done = step - self._first_step
        if now - self._shown < self.every or not done:
            return
        if trainer.is_global_zero:
            left = (self.steps - step) * (now - self._started) / done
            loss = float(trainer.callback_metrics.get("train_loss_step", math.nan))
            log.info(
                "epoch %d, step %d of %d: %.3g clips/s, loss %.4f, about %s to go",
                *(trainer.current_epoch + FIRST, step, self.steps),
                *(self._clips / (now - self._shown), loss, tqdm.format_interval(left)),
            )
        self._shown, self._clips = now, 0


class History(pl.Callback):
    """Keeps the metrics of each epoch, and writes all of them to ``path`` as CSV after each epoch.

    A row has the epoch (from 1), the logged metrics (of validation only where the epoch had one),
    the learning rate after the epoch (the highest of the groups of weights: the head's) and the
    seconds. Checkpoints hold the rows: a continued run has those of both. ``record`` is called with
    (name, value, epoch) for each metric.
    """

    def __init__(self, path: Path, record: Callable[[str, float, int], object]) -> None:
        self.path, self.record = path, record
        self.epochs: list[dict[str, float]] = []
        self._validated = False
        self._started = time.monotonic()  # this epoch; if continued, less its earlier seconds

    def state_dict(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started
        return {"epochs": self.epochs, "first_epoch": FIRST, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        shift = FIRST - state_dict.get("first_epoch", 0)  # version 0.1 counted from 0
        self.epochs = [row | {"epoch": row["epoch"] + shift} for row in state_dict["epochs"]]
        self._started = time.monotonic() - state_dict["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.epochs and trainer.is_global_zero:  # of the run that this one continues
            self._write()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_start(self, *_: Any) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has validated the epoch by now, but keeps the metrics of the last validation, of
        # any epoch, and the rates that LearningRateMonitor saw some steps before.
        metrics = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if not name.endswith("_step") and not name.startswith("lr-")
            if self._validated or not name.startswith("val_")
        }
        metrics["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        metrics["seconds"] = time.monotonic() - self._started
        epoch, self._validated = trainer.current_epoch + FIRST, False
        self.epochs.append({"epoch": epoch, **metrics})
        for name, value in metrics.items():
            self.record(name, value, epoch)
        if trainer.is_global_zero:
            self._write()
            tqdm.write(epoch_line(self.epochs[-1]))

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.epochs for name in row))
        rows = ([row.get(name, "") for name in names] for row in self.epochs)
        write_rows(self.path, names, rows)


def epoch_line(row: Mapping[str, float]) -> str:
    """Format a row of the history for people."""
    parts = [f"epoch {row['epoch']:3.0f}", f"train loss {row.get('train_loss', math.nan):.4f}"]
    for kind, word in (("val", "val"), ("val_swa", "averaged")):
        for name, label in FIGURE_NAMES.items():
            if f"{kind}_{name}" in row and (kind, name) != ("val_swa", "loss"):
                parts.append(f"{word} {label} {row[f'{kind}_{name}']:.4f}")
    return "  ".join([*parts, f"{row['seconds']:.0f} s"])
