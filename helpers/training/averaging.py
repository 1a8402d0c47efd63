"""Stochastic weight averaging (P. Izmailov et al., UAI 2018, arXiv 1803.05407)."""

from typing import Any

import pytorch_lightning as pl
from torch.optim.swa_utils import AveragedModel

#: Prefix of the average in a checkpoint's ``state_dict``; the raw weights have ``net.``.
PREFIX = "net_swa."


class WeightAverage(pl.Callback):
    """Averages ``pl_module.net`` over the ends of epochs, equally, after the first ``start``.

    An epoch's weights enter the average before its validation, and from then on
    ``pl_module.also_evaluated["swa"]`` is the averaged network: both networks are validated, and a
    checkpoint's ``state_dict`` holds both.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._average: AveragedModel

    @property
    def epochs(self) -> int:
        """Number of epochs in the average."""
        return int(self._average.n_averaged)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self._average = AveragedModel(pl_module.net, use_buffers=False)
        self._average.eval().requires_grad_(False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._average.to(pl_module.device)
        if self.epochs:  # a continued training
            pl_module.also_evaluated["swa"] = self._average.module

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        # Validation follows the last batch.
        if trainer.is_last_batch and trainer.current_epoch >= self.start:
            self._average.update_parameters(pl_module.net)
            pl_module.also_evaluated["swa"] = self._average.module

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
