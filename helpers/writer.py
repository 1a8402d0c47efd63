"""Writes what the network says of a track to one file a track, as soon as the track is done."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from helpers.files import atomic_path

POOLS = ("mean", "none")


class TrackWriter(BasePredictionWriter):
    """Pools each track's patches and writes ``<folder>/<key>.<kind>.npy``, float32.

    Args:
        folder: where to; a key's own folders are kept.
        kind: "embeddings" or "logits".
        pool: "mean" over the patches, weighted by their seconds; "none" keeps them apart, one row
            of the first axis each.
    """

    def __init__(self, folder: str | Path, kind: str, pool: str = "mean") -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)
        self.kind = kind
        self.pool = pool
        self.written = 0
        self.failed: dict[str, str] = {}

    def path(self, key: str) -> Path:
        """The file of a track."""
        return self.folder / f"{key}.{self.kind}.npy"

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for key, values, seconds in zip(
            prediction.keys, prediction.outputs, prediction.seconds, strict=True
        ):
            if not np.isfinite(values).all():
                self.failed[key] = "the network's output has NaN or infinite values"
                continue
            if self.pool == "none" and self.kind == "embeddings" and values.ndim == 2:
                values = values[:, None]  # [patches, 1, D]: not to be taken for tokens
            if self.pool == "mean":
                values = np.average(values, axis=0, weights=seconds)
            with atomic_path(self.path(key)) as temporary:
                np.save(temporary, values.astype(np.float32))
            self.written += 1
        self.failed.update(prediction.errors)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the list of failures beside the results, or none if there was none."""
        report = self.folder / "failed.csv"
        if not self.failed:
            report.unlink(missing_ok=True)
            return
        with atomic_path(report) as temporary, temporary.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("key", "reason"))
            rows.writerows(sorted(self.failed.items()))
