"""The record of a training run: one line an epoch, on the screen and in a file."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from tqdm import tqdm

from helpers.files import atomic_path
from helpers.metrics import FIGURE_NAMES


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the figures that move within an epoch."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict:
        shown = super().get_metrics(trainer, pl_module)
        return {name: v for name, v in shown.items() if name not in ("v_num", "train_loss_epoch")}


class History(pl.Callback):
    """Keeps the figures of each epoch; writes them to ``path`` as CSV after each, whole.

    Args:
        path: the CSV file.
        record: called with (name, value, epoch) for each figure, to send it elsewhere too.
        continued: the CSV file of the run that this one continues, whose epochs come first.

    A row has the epoch's number (from 0), the figures that were logged, the learning rate after the
    epoch (of several groups of weights, the highest: the head's), and its seconds. Figures of the
    validation are in the rows of epochs that had one.
    """

    def __init__(
        self,
        path: str | Path,
        record: Callable[[str, float, int], None] | None = None,
        continued: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.record = record
        self.continued = continued
        self.epochs: list[dict[str, float]] = []
        self._validated = False
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.continued is not None and Path(self.continued).is_file():
            earlier = read_history(self.continued)
            self.epochs = [row for row in earlier if row["epoch"] < trainer.current_epoch]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has run the epoch's validation by now."""
        figures = trainer.callback_metrics
        row: dict[str, float] = {"epoch": trainer.current_epoch}
        for name, value in sorted(figures.items()):
            # Lightning keeps the figures of the last validation, whenever that was.
            stale = name.startswith("val_") and not self._validated
            if not name.endswith("_step") and name != "train_loss" and not stale:
                row[name.removesuffix("_epoch")] = float(value)
        row["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row["seconds"] = time.monotonic() - self._started
        self._validated = False
        self.epochs.append(row)
        if self.record:
            for name, value in row.items():
                if name != "epoch":
                    self.record(name, value, int(row["epoch"]))
        if trainer.is_global_zero:
            self._write()
            self._show(row)

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.epochs for name in row))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            rows = csv.DictWriter(file, names)
            rows.writeheader()
            rows.writerows(self.epochs)

    @staticmethod
    def _show(row: dict[str, float]) -> None:
        parts = [
            f"epoch {row['epoch']:3.0f}",
            f"train loss {row.get('train_loss', float('nan')):.4f}",
        ]
        for name, label in FIGURE_NAMES.items():
            if f"val_{name}" in row:
                parts.append(f"val {label} {row[f'val_{name}']:.4f}")
        tqdm.write("  ".join([*parts, f"{row['seconds']:.0f} s"]))


def read_history(path: str | Path) -> list[dict[str, float]]:
    """The rows of a history file, without the figures that an epoch does not have."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]
