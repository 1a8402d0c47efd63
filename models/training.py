"""The Lightning module that trains a network; `evaluation.py` scores it on whole tracks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.reports.metrics import MONITOR
from maest.helpers.training.augment import mixup, roll, spec_augment
from maest.helpers.training.blank import blank
from maest.helpers.training.checkpoints import diverged
from maest.helpers.training.robustness import distorted
from maest.models.evaluation import (
    Scored,
    TrackScores,
    n_processes,
    network_input,
    note_skipped,
    task_loss,
)
from maest.models.maest import Maest
from maest.models.optimiser import Optimiser
from maest.models.saving import TRAINER_KEY
from maest.models.weights import AVERAGE


def derived_seed(*numbers: int) -> int:
    """Hash numbers of 0 or more (a run's seed, an epoch, a step, …) to a seed of 64 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def teacher_targets(logits: Tensor, threshold: float) -> Tensor:
    """Logits → 0/1 targets, float32 [B, C]: sigmoid above the threshold; if none, the highest."""
    logits = logits.float()
    targets = (logits.sigmoid() > threshold).float()
    highest = F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return torch.where(targets.any(dim=1, keepdim=True), targets, highest)


class MaestModule(pl.LightningModule):
    """Trains a :class:`models.maest.Maest` with the loss of its task, and validates it.

    ``recipe``: the settings of section `module`. ``seed``: a step's random draws depend on it, the
    epoch, the batch's number and the process alone, so a resumed run repeats them. ``record``: what
    a checkpoint keeps beside sizes and labels: arch, trained_on. InputError: ``blank_share`` is
    for multi-label networks.
    """

    def __init__(
        self,
        net: Maest,
        recipe: Any,
        seed: int = 0,
        patches_per_pass: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if recipe.blank_share and net.task != "multi-label":
            hint = "Train with maest.task=multi-label, or set module.blank_share to 0."
            what = f"clips without any label, and the task {net.task}"
            raise InputError(what, kind="conflict", setting="module.blank_share", hint=hint)
        self.net, self.recipe, self.seed = net, recipe, seed
        self.patches_per_pass, self.record = patches_per_pass, record or {}
        self.optimiser = Optimiser(net, recipe)
        self.also_evaluated: dict[str, Maest] = {}  # validated too, as val_<name>_…
        self.scored: dict[str, Scored] = {}  # of the last validation; "" is ``net``
        self.skipped: dict[str, str] = {}  # unreadable files → reasons (on_error=skip)
        self._scores = TrackScores({})
        self._loss, self._clips = torch.zeros(()), 0  # summed over the epoch's clips so far

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        self._freeze()  # a resumed epoch does not start again
        if self.trainer.ckpt_path is not None:
            self.optimiser.overrule(self.trainer.lr_scheduler_configs[0].scheduler)  # type: ignore[arg-type]

    def on_train_epoch_start(self) -> None:
        self._freeze()  # validation puts all modules back in training mode
        self._loss, self._clips = torch.zeros(()), 0

    def _freeze(self) -> None:
        for part in self.optimiser.frozen:
            part.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Train on mels [B, T, F] as on disk and targets [B, C].

        The dist head learns from a teacher's logits [B, C], if the batch has them. InputError
        "diverged": the loss is NaN or infinite; a GPU reports it some steps later.
        """
        recipe, targets, heads = self.recipe, batch.targets, 1
        torch.manual_seed(derived_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        if batch.teacher is not None:
            of_teacher = teacher_targets(batch.teacher, recipe.teacher_threshold)
            targets, heads = torch.cat((targets, of_teacher), dim=1), 2  # mixed by the same weights
        mel, targets = blank(batch.mel, targets, recipe.blank_share)
        mel = distorted(
            mel,
            gain=recipe.gain,
            tilt=recipe.tilt,
            band_limit_share=recipe.band_limit_share,
            noise_share=recipe.noise_share,
            noise_snr=recipe.noise_snr,
            reverb_share=recipe.reverb_share,
            pitch_shift=recipe.pitch_shift,
            tempo_shift=recipe.tempo_shift,
        )
        x = roll(network_input(self.net, mel), recipe.roll)
        time_masks = recipe.time_masks, recipe.time_mask_width
        x = spec_augment(x, *time_masks, recipe.freq_masks, recipe.freq_mask_width)
        x, targets = mixup(x, targets, recipe.mixup_alpha)
        loss = task_loss(self.net, self.net(x)[0], *targets.chunk(heads, dim=1))
        self._count(loss.detach(), len(x))
        note_skipped(self.skipped, batch.errors)
        # Not for the bar, for which Lightning would fetch it from the device after each batch.
        self.log("train_loss_step", loss.detach(), batch_size=len(x))
        return loss

    def _count(self, loss: Tensor, clips: int) -> None:
        """Add to the epoch's loss, and check it on a CPU; a GPU would have to wait."""
        # Apple's MPS has no float64.
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        self._loss, self._clips = self._loss + loss.to(exact) * clips, self._clips + clips
        if loss.device.type == "cpu":
            self._check_loss()

    def _check_loss(self) -> None:
        if not torch.isfinite(self._loss):
            raise diverged("the training loss became", self.current_epoch, self.global_step + 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer: Any = self.trainer
        last = trainer.is_last_batch or trainer.should_stop  # as a limit of steps does
        if last or (batch_idx + 1) % trainer.log_every_n_steps == 0:
            self._check_loss()
        if last:
            total, clips = self._epoch_loss()
            self.log("train_loss", total / clips, on_step=False, on_epoch=True, batch_size=1)

    def _epoch_loss(self) -> tuple[Tensor, int]:
        """Sum and number of the epoch's losses so far, over all processes."""
        total, clips = self._loss, torch.tensor(self._clips, device=self._loss.device)
        if n_processes() > 1:
            strategy = self.trainer.strategy
            total, clips = (strategy.reduce(v.clone(), reduce_op="sum") for v in (total, clips))
        return total, int(clips)

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        nets = {"": self.net, **self.also_evaluated}
        self._scores = TrackScores(nets, self.patches_per_pass, self.skipped)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._scores.add(batch)

    def on_validation_epoch_end(self) -> None:
        try:
            self.scored = self._scores.result()
        except FloatingPointError:
            raise diverged("the outputs became", self.current_epoch, self.global_step) from None
        shown = (MONITOR[self.net.task], "roc_auc", "macro_f1")
        for name, scored in self.scored.items():
            prefix = f"val_{name}" if name else "val"
            self.log(f"{prefix}_loss", scored.loss)
            for metric, value in scored.evaluation.figures.items():
                self.log(f"{prefix}_{metric}", value, prog_bar=metric in shown)

    # ------------------------------------------------------------------ optimiser and schedule

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # One kernel; under mixed precision it unscales gradients too late to clip them.
        fused = True if self.trainer.gradient_clip_val is None else None
        optimiser, schedule = self.optimiser.build(self._epochs, fused)
        unit: str = self.recipe.lr_interval
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": unit}}

    def _epochs(self, step: int) -> float:
        """Convert the schedule's steps to epochs."""
        if self.recipe.lr_interval == "epoch" or not step:
            return step
        # The number of batches is unknown before the first step. The last, smaller group of
        # accumulated batches is a step too.
        batches = self.trainer.num_training_batches
        return step / math.ceil(batches / self.trainer.accumulate_grad_batches)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch's loss, and what a model needs: sizes, labels, origin."""
        self._check_loss()  # NaN must not be saved
        record: dict[str, Any] = {"sizes": self.net.sizes(), "labels": self.net.labels}
        record |= {"skipped": self.skipped, **self.record}
        if self._clips:
            total, clips = self._epoch_loss()
            record |= {"loss_sum": total.cpu(), "loss_clips": clips}
        checkpoint[TRAINER_KEY] = record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the epoch's loss. InputError: the network or its trained parts differ."""
        record, sizes = checkpoint.get(TRAINER_KEY, {}), self.net.sizes()
        before = {n: value for n, value in record.get("sizes", {}).items() if n in sizes}
        differing = differences(before, {name: sizes[name] for name in before})
        groups = [len(g["params"]) for g in checkpoint["optimizer_states"][0]["param_groups"]]
        if groups != [len(group["params"]) for group in self.optimiser.groups()]:
            differing.append("other settings of module.layer_decay or module.freeze_blocks")
        if differing:
            message = f"the checkpoint is of another training: {'; '.join(differing)}"
            hint = "Give its settings, or start a new one from its weights with maest.checkpoint."
            raise InputError(message, kind="mismatch", setting="ckpt_path", hint=hint)
        self.skipped = dict(record.get("skipped", {}))
        if "loss_sum" in record and self.global_rank == 0:  # it is of all processes
            self._loss, self._clips = record["loss_sum"].to(self.device), record["loss_clips"]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Leave out the average of the weights, which a callback loads."""
        weights = {name: v for name, v in state_dict.items() if not name.startswith(AVERAGE)}
        return super().load_state_dict(weights, *args, **kwargs)
