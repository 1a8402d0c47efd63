"""The Lightning module that trains, evaluates and runs the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.masking import spec_augment
from helpers.metrics import TaggingScores, tagging_scores
from helpers.mixup import mixup
from helpers.patches import seconds
from helpers.schedules import warmup_ramp_factor
from models.maest import Maest
from models.weights import TRAINER_KEY


@dataclass(frozen=True)
class TrainingOptions:
    """The options of the recipe; `config/module.py` has the values.

    Attributes:
        lr, weight_decay, betas: of AdamW.
        warmup_epochs, ramp_start, ramp_end, last_lr_factor: `helpers.schedules`.
        lr_interval: when the learning rate moves on: after each "epoch", or each "step" of one.
        mixup_alpha: of Beta(alpha, alpha); 0 for no mixup.
        time_masks, time_mask_width, freq_masks, freq_mask_width: SpecAugment; 0 masks for none.
    """

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_epochs: float
    ramp_start: float
    ramp_end: float
    last_lr_factor: float
    lr_interval: str
    mixup_alpha: float
    time_masks: int
    time_mask_width: int
    freq_masks: int
    freq_mask_width: int


@dataclass
class TrackOutputs:
    """What the network says of whole tracks.

    Attributes:
        keys: the N tracks.
        outputs: for each track a float32 array [patches, ...] on the CPU, in order of time.
        seconds: for each track the seconds of its patches, float64 [patches].
        errors: the tracks that could not be read, and why.
    """

    keys: list[str]
    outputs: list[np.ndarray]
    seconds: list[np.ndarray]
    errors: dict[str, str]


class MaestModule(pl.LightningModule):
    """Trains a :class:`models.maest.Maest` on multi-label targets with binary cross-entropy.

    Args:
        net: the network.
        options: the training recipe; None for a network that is only evaluated.
        patches_per_pass: how many patches of whole tracks go through the network at once.
    """

    def __init__(
        self, net: Maest, options: TrainingOptions | None = None, patches_per_pass: int = 32
    ) -> None:
        super().__init__()
        self.net = net
        self.options = options
        self.patches_per_pass = patches_per_pass
        # What predict_step returns: "logits", or the number of a block (-1: final embedding).
        self.predict_output: str | int = "logits"
        self.scores: TaggingScores | None = None  # of the last validation or test
        self.targets: np.ndarray | None = None
        self._evaluated: list[tuple[Tensor, Tensor, Tensor]] = []

    # ------------------------------------------------------------------ training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """``batch``: mel [B, T, F] as it is on disk, and targets [B, C]."""
        mel, targets = batch
        options = self.options
        x = self._network_input(mel)
        x = spec_augment(
            x,
            options.time_masks,
            options.time_mask_width,
            options.freq_masks,
            options.freq_mask_width,
        )
        x, targets = mixup(x, targets, options.mixup_alpha)
        logits, _ = self.net(x)
        loss = self._loss(logits, targets)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(x))
        return loss

    def _network_input(self, mel: Tensor) -> Tensor:
        """[B, T, F] as on disk → normalised float32 [B, F, T]."""
        return self.net.normalise(mel.float()).transpose(1, 2)

    @staticmethod
    def _loss(logits: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        if isinstance(logits, tuple):  # one loss for each head
            return sum(MaestModule._loss(part, targets) for part in logits) / len(logits)
        return F.binary_cross_entropy_with_logits(logits.float(), targets)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, and the schedule stepped each epoch or each step."""
        options = self.options
        optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=options.lr,
            weight_decay=options.weight_decay,
            betas=tuple(options.betas),
            # In one kernel; under mixed precision it unscales gradients too late to clip them.
            fused=self.trainer.gradient_clip_val is None,
        )
        per_epoch = 1
        if options.lr_interval == "step":
            _ = self.trainer.estimated_stepping_batches  # has Lightning set the loader up
            batches = self.trainer.num_training_batches
            # The last, smaller group of accumulated batches is a step too.
            per_epoch = max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))

        def factor(step: int) -> float:
            return warmup_ramp_factor(
                step / per_epoch,
                warmup_epochs=options.warmup_epochs,
                ramp_start=options.ramp_start,
                ramp_end=options.ramp_end,
                last_factor=options.last_lr_factor,
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": options.lr_interval},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the weights alone do not say, so that a checkpoint can be used as a model."""
        checkpoint[TRAINER_KEY] = {"sizes": self.net.sizes(), "labels": self.net.labels}

    # ------------------------------------------------------------------ whole tracks

    def run_patches(self, groups: list[tuple[Tensor, Tensor]], output: str | int):
        """Run the patches of a batch of whole tracks through the network.

        Args:
            groups: of a ``TrackBatch``.
            output: "logits", or a block's number.

        Returns:
            ``(values [n, ...] float32, track [n], seconds [n])`` over all patches.
        """
        values, tracks, durations = [], [], []
        for mel, track in groups:
            for piece in mel.split(self.patches_per_pass):
                block = -1 if output == "logits" else output
                logits, embeddings = self.net(self._network_input(piece), transformer_block=block)
                value = logits if output == "logits" else embeddings
                if output != "logits" and block >= 0:  # [n, 3·D] → [n, 3, D]
                    value = value.unflatten(1, (3, self.net.embed_dim))
                values.append(value.float())
            tracks.append(track)
            durations.append(torch.full(track.shape, seconds(mel.shape[1])))
        return torch.cat(values), torch.cat(tracks), torch.cat(durations)

    def _evaluate(self, batch: Any) -> None:
        """Collect each track's mean logits and mean activations, weighted by seconds."""
        logits, track, durations = self.run_patches(batch.groups, "logits")
        weights = durations.to(logits.device)[:, None]
        total = logits.new_zeros(len(batch), 1).index_add_(0, track, weights)

        def mean(values: Tensor) -> Tensor:
            summed = values.new_zeros(len(batch), values.shape[1])
            return (summed.index_add_(0, track, values * weights) / total).cpu()

        self._evaluated.append((mean(logits), mean(logits.sigmoid()), batch.targets.cpu()))

    def _evaluation_end(self, prefix: str) -> None:
        logits, activations, targets = map(torch.cat, zip(*self._evaluated, strict=True))
        self._evaluated.clear()
        self.targets = targets.numpy()
        self.scores = tagging_scores(self.targets, activations.numpy())
        self.log(f"{prefix}_loss", self._loss(logits, targets))
        self.log(f"{prefix}_ap", self.scores.macro_ap, prog_bar=True)
        self.log(f"{prefix}_roc_auc", self.scores.macro_roc_auc, prog_bar=True)
        self.log(f"{prefix}_classes_left_out", float(self.scores.left_out))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")

    def predict_step(self, batch: Any, batch_idx: int) -> TrackOutputs:
        """Logits or embeddings of whole tracks, patch by patch."""
        if not len(batch):
            return TrackOutputs([], [], [], batch.errors)
        values, track, durations = self.run_patches(batch.groups, self.predict_output)
        values, track, durations = values.cpu().numpy(), track.cpu().numpy(), durations.numpy()
        # A track's patches are in order within a group, and its shorter last one is in a later
        # group: in order of occurrence they are in order of time.
        own = [track == i for i in range(len(batch))]
        return TrackOutputs(
            batch.keys,
            [values[rows] for rows in own],
            [durations[rows].astype(np.float64) for rows in own],
            batch.errors,
        )
