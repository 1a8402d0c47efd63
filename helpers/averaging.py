"""Weight averaging: the mean of the weights that training passes through.

P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018
(arXiv 1803.05407).
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch.optim.swa_utils import AveragedModel

#: Where a checkpoint's ``state_dict`` has the average; the raw weights are under ``net.``.
PREFIX = "net_swa."
NAME = "swa"


class WeightAverage(pl.Callback):
    """Averages ``pl_module.net`` over the ends of epochs, all with the same weight.

    After ``start`` epochs the first one comes that counts. The raw weights stay as they are. An
    epoch's weights enter the average before its validation, and from then on
    ``pl_module.also_evaluated["swa"]`` is the averaged network: both are validated, and a
    checkpoint's ``state_dict`` holds both.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._average: AveragedModel
        self._latest_epoch = -1  # whose weights were looked at, from 0

    @property
    def epochs(self) -> int:
        """How many epochs the average is of."""
        return int(self._average.n_averaged)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self._average = AveragedModel(pl_module.net, use_buffers=False)
        self._average.eval().requires_grad_(False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._average.to(pl_module.device)
        if self.epochs:  # of a training that is continued
            pl_module.also_evaluated[NAME] = self._average.module

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """After the last batch, and so before the validation."""
        epoch = trainer.current_epoch
        if trainer.is_last_batch and epoch > self._latest_epoch:
            self._latest_epoch = epoch
            if epoch >= self.start:
                self._average.update_parameters(pl_module.net)
                pl_module.also_evaluated[NAME] = self._average.module

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_epoch": self._latest_epoch, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_epoch = state_dict["latest_update_epoch"]
        self._average.n_averaged.fill_(state_dict["epochs"])

    def on_save_checkpoint(self, _: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.epochs:
            average = self._average.module.state_dict()
            checkpoint["state_dict"] |= {PREFIX + name: v for name, v in average.items()}

    def on_load_checkpoint(self, _: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"].items()
        average = {n.removeprefix(PREFIX): v for n, v in weights if n.startswith(PREFIX)}
        if average:
            self._average.module.load_state_dict(average)
