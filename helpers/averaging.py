"""Weight averaging: the mean of the weights that training passes through.

P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018
(arXiv 1803.05407).
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel

#: Where a checkpoint's ``state_dict`` has the average; the raw weights are under ``net.``.
PREFIX = "net_swa."
NAME = "swa"


class WeightAverage(WeightAveraging):
    """Averages ``pl_module.net`` over the ends of epochs, all with the same weight.

    Otherwise than Lightning's callback, it leaves the raw weights where they are, in training,
    validation and afterwards. An epoch's weights enter the average before the epoch's validation,
    and from then on ``pl_module.also_evaluated["swa"]`` is the averaged network: both are
    validated. A checkpoint's ``state_dict`` holds both, the average with the prefix ``net_swa.``.

    Args:
        start: after how many epochs the first one comes whose weights count.
    """

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    @property
    def epochs(self) -> int:
        """How many epochs the average is of."""
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether an epoch's weights count; those of a step never do."""
        return epoch_idx is not None and epoch_idx >= self.start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            average = AveragedModel(pl_module.net, use_buffers=False)
            self._average_model = average.eval().requires_grad_(False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._average_model.to(pl_module.device)
        self._offer(pl_module)

    def _offer(self, pl_module: pl.LightningModule) -> None:
        if self.epochs:
            pl_module.also_evaluated[NAME] = self._average_model.module

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After the last batch, and so before the validation."""
        epoch = trainer.current_epoch
        if trainer.is_last_batch and epoch > self._latest_update_epoch:
            if self.should_update(epoch_idx=epoch):
                self._average_model.update_parameters(pl_module.net)
                self._offer(pl_module)
            self._latest_update_epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It has been done before the validation."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is swapped: the module evaluates both networks."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing was swapped."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The module keeps its own weights."""

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_epoch": self._latest_update_epoch, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_epoch = state_dict["latest_update_epoch"]
        if self._average_model is not None:
            self._average_model.n_averaged.fill_(state_dict["epochs"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.epochs:
            average = self._average_model.module.state_dict()
            checkpoint["state_dict"] |= {PREFIX + name: v for name, v in average.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The average; Lightning has given the module its own weights by now."""
        average = {
            name.removeprefix(PREFIX): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(PREFIX)
        }
        if average and self._average_model is not None:
            self._average_model.module.load_state_dict(average)
