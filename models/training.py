"""The Lightning module that trains a network, and its optimiser; `evaluation.py` scores it."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

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


def layer_level(name: str, depth: int) -> int:
    """Find a parameter's level, for the layer-wise decay of the learning rate.

    0: patch embedding, tokens and positions; i + 1: block i; depth + 1: the last norm and the
    heads. Level l has the rate lr · layer_decay^(depth + 1 - l): layers near the input change
    least. As in BEiT, H. Bao et al., ICLR 2022 (arXiv 2106.08254), after ELECTRA, K. Clark et al.,
    ICLR 2020 (arXiv 2003.10555).
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.", "head_dist.")) else 0


def parameter_groups(net: Maest, recipe: Any) -> list[dict[str, Any]]:
    """Group the parameters to train: one group, or one per level with ``layer_decay``."""
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    if recipe.layer_decay == 1:
        return [{"params": list(trained.values()), "lr": recipe.lr}]
    levels: dict[int, list[Tensor]] = defaultdict(list)
    for name, parameter in trained.items():
        levels[layer_level(name, net.depth)].append(parameter)
    return [
        {
            "params": own,
            "lr": recipe.lr * recipe.layer_decay ** (net.depth + 1 - level),
            "name": f"level {level}",
        }
        for level, own in sorted(levels.items())
    ]


class MaestModule(pl.LightningModule):
    """Trains a :class:`models.maest.Maest` with the loss of its task, and validates it.

    ``recipe``: the settings of section `module`. ``seed``: a step's random draws depend on it, the
    epoch, the batch's number and the process alone, so a resumed run repeats them. ``record``: what
    a checkpoint keeps beside sizes and labels: arch, trained_on. InputError: settings conflict
    with each other or with the network.
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
        if recipe.freeze_blocks > net.depth:
            message = f"{recipe.freeze_blocks} blocks cannot be frozen, of {net.depth}"
            hint = f"Give 0 (nothing) to {net.depth}."
            raise InputError(message, setting="module.freeze_blocks", hint=hint)
        if recipe.swa_lr is not None and recipe.swa_start is None:
            message = "there is no average that this rate is for"
            hint = "Set module.swa_start to the number of epochs before it, or leave it out."
            raise InputError(message, kind="conflict", setting="module.swa_lr", hint=hint)
        self.net, self.recipe, self.seed = net, recipe, seed
        self.patches_per_pass, self.record = patches_per_pass, record or {}
        # Frozen modules stay in eval mode (no dropout); their parameters have no gradients.
        self.frozen: list[torch.nn.Module] = []
        if net.distilled_type == "mean":  # which leaves the second head out
            net.head_dist.requires_grad_(False)
        if blocks := recipe.freeze_blocks:
            self.frozen = [net.patch_embed, net.pos_drop, *net.blocks[:blocks]]
            for name, parameter in net.named_parameters():
                if layer_level(name, net.depth) <= blocks:
                    parameter.requires_grad_(False)
        self.also_evaluated: dict[str, Maest] = {}  # validated too, as val_<name>_…
        self.scored: dict[str, Scored] = {}  # of the last validation; "" is ``net``
        self.skipped: dict[str, str] = {}  # unreadable files → reasons (on_error=skip)
        self._scores = TrackScores({})
        self._loss, self._clips = torch.zeros(()), 0  # summed over the epoch's clips so far

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        self._freeze()  # a resumed epoch does not start again
        if self.trainer.ckpt_path is not None:
            # This recipe counts; the checkpoint's moments and position stay.
            schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
            for i, group in enumerate(parameter_groups(self.net, self.recipe)):
                schedule.base_lrs[i] = group["lr"]
                schedule.optimizer.param_groups[i] |= {
                    "initial_lr": group["lr"],
                    "lr": group["lr"] * schedule.lr_lambdas[i](schedule.last_epoch),
                    "weight_decay": self.recipe.weight_decay,
                    "betas": tuple(self.recipe.betas),
                }

    def on_train_epoch_start(self) -> None:
        self._freeze()  # validation puts all modules back in training mode
        self._loss, self._clips = torch.zeros(()), 0

    def _freeze(self) -> None:
        for part in self.frozen:
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
        mel = batch.mel.float()  # a CPU's autocast cannot join float16
        mel, targets = blank(mel, targets, recipe.blank_share)
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
        # Summed in float64, which Apple's MPS lacks; checked on a CPU, as a GPU would have to wait.
        exact = torch.float32 if loss.device.type == "mps" else torch.float64
        self._loss = self._loss + loss.detach().to(exact) * len(x)
        self._clips += len(x)
        if loss.device.type == "cpu":
            self._check_loss()
        note_skipped(self.skipped, batch.errors)
        # Not for the bar, for which Lightning would fetch it from the device after each batch.
        self.log("train_loss_step", loss.detach(), batch_size=len(x))
        return loss

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
        recipe, fused = self.recipe, True if self.trainer.gradient_clip_val is None else None
        optimiser = torch.optim.AdamW(
            parameter_groups(self.net, recipe),
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            fused=fused,
        )
        schedule, unit = LambdaLR(optimiser, self._rate), recipe.lr_interval
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": unit}}

    def _rate(self, step: int) -> float:
        """Return the learning rate over its base after so many of the schedule's steps."""
        recipe, epoch = self.recipe, float(step)
        if recipe.lr_interval == "step" and step:
            # The number of batches is unknown before the first step. The last, smaller group of
            # accumulated batches is a step too.
            batches = self.trainer.num_training_batches
            epoch = step / math.ceil(batches / self.trainer.accumulate_grad_batches)
        if recipe.swa_lr is not None and epoch >= recipe.swa_start:
            return float(recipe.swa_lr / recipe.lr)
        return float(recipe.factor(epoch))

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
        if groups != [len(g["params"]) for g in parameter_groups(self.net, self.recipe)]:
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
