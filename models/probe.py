"""The probe: a small network on fixed features, that tells what can be read from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.metrics import TaggingScores, tagging_scores
from helpers.schedules import warmup_ramp_factor


@dataclass(frozen=True)
class ProbeOptions:
    """The recipe of the probe; `config/probe.py` has the values of the paper (arXiv 2309.16418).

    Attributes:
        hidden: width of the hidden layer.
        dropout: before the last layer.
        lr, weight_decay: of AdamW.
        warmup_epochs, ramp_start, ramp_end, last_lr_factor: `helpers.schedules`, by epoch.
    """

    hidden: int
    dropout: float
    lr: float
    weight_decay: float
    warmup_epochs: float
    ramp_start: float
    ramp_end: float
    last_lr_factor: float


class Probe(pl.LightningModule):
    """D features → hidden → C logits, trained with binary cross-entropy.

    The weights of the epoch with the best validation ROC-AUC are kept; :meth:`restore_best` brings
    them back.

    Args:
        n_features: D.
        n_classes: C.
        options: the recipe.
    """

    def __init__(self, n_features: int, n_classes: int, options: ProbeOptions) -> None:
        super().__init__()
        self.options = options
        self.net = nn.Sequential(
            nn.Linear(n_features, options.hidden),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden, n_classes),
        )
        self.best_roc_auc = -np.inf
        self.best_epoch = 0
        self.history: list[dict[str, float]] = []
        self.scores: TaggingScores | None = None  # of the last test
        self._best: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._evaluated: list[tuple[Tensor, Tensor]] = []

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] → logits [B, C]."""
        return self.net(features)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, targets = batch
        loss = F.binary_cross_entropy_with_logits(self(features), targets)
        self._losses.append(loss.detach())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        features, targets = batch
        self._evaluated.append((self(features).cpu(), targets.cpu()))

    test_step = validation_step

    def _collect(self) -> TaggingScores:
        logits, targets = map(torch.cat, zip(*self._evaluated, strict=True))
        self._evaluated.clear()
        return tagging_scores(targets.numpy(), logits.numpy())

    def on_validation_epoch_end(self) -> None:
        scores = self._collect()
        losses = torch.stack(self._losses).mean().item() if self._losses else float("nan")
        self._losses.clear()
        self.history.append(
            {
                "epoch": self.current_epoch,
                "train_loss": losses,
                "val_ap": scores.macro_ap,
                "val_roc_auc": scores.macro_roc_auc,
            }
        )
        if scores.macro_roc_auc > self.best_roc_auc or not self._best:
            self.best_roc_auc, self.best_epoch = scores.macro_roc_auc, self.current_epoch
            self._best = {k: v.detach().clone() for k, v in self.net.state_dict().items()}

    def on_test_epoch_end(self) -> None:
        self.scores = self._collect()

    def restore_best(self) -> None:
        """Load the weights of the best epoch."""
        self.net.load_state_dict(self._best)

    def configure_optimizers(self) -> dict[str, Any]:
        options = self.options
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )

        def factor(epoch: int) -> float:
            return warmup_ramp_factor(
                epoch,
                warmup_epochs=options.warmup_epochs,
                ramp_start=options.ramp_start,
                ramp_end=options.ramp_end,
                last_factor=options.last_lr_factor,
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
