"""The Lightning module that trains a network; `evaluation.py` scores it on whole tracks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.checkpoints import diverged
from maest.helpers.errors import InputError
from maest.helpers.masking import spec_augment
from maest.helpers.metrics import MONITOR
from maest.helpers.mixup import mixup
from maest.helpers.roll import roll
from maest.helpers.schedules import warmup_ramp_factor
from maest.helpers.seeds import derived_seed
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


def layer_level(name: str, depth: int) -> int:
    """Which layer a parameter is of, for the layer-wise decay of the learning rate.

    0: patch embedding, tokens and positions; i + 1: block i; depth + 1: the last norm and the
    heads. Level l has the rate lr · layer_decay^(depth + 1 - l): what is near the input changes
    least. As in BEiT, H. Bao et al., ICLR 2022 (arXiv 2106.08254), after ELECTRA, K. Clark et al.,
    ICLR 2020 (arXiv 2003.10555).
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.", "head_dist.")) else 0


def teacher_targets(logits: Tensor, threshold: float) -> Tensor:
    """A teacher's logits → targets of 0 and 1, both [B, C] float32.

    1 where the sigmoid is above the threshold; where none is, at the highest.
    """
    logits = logits.float()
    targets = (logits.sigmoid() > threshold).float()
    highest = F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return torch.where(targets.any(dim=1, keepdim=True), targets, highest)


class MaestModule(pl.LightningModule):
    """Trains a :class:`models.maest.Maest` with the loss of its task, and validates it.

    Binary cross-entropy (multi-label), cross-entropy (single-label) or mean squared error
    (regression); of two heads, the mean of the two losses. `config/training.py` has the meanings of
    all arguments that are not named here.

    Args:
        net: the network. Its frozen part no longer asks for gradients afterwards.
        seed: of all draws of the training steps. A step's draws depend on it, the epoch, the
            number of the batch and the process alone, and so not on whether the run was resumed.
        patches_per_pass: how many patches of whole tracks go through the network at once.

    Attributes:
        record: what a checkpoint says of the model beside sizes and labels: arch, trained_on.
        also_evaluated: name → network that is validated beside ``net``; its metrics are logged as
            ``val_<name>_…``.
        scored: of the last validation, by name; ``net``'s is "".
        skipped: files that could not be read, and why (`datamodule.on_error=skip`).

    Raises:
        InputError: for more frozen blocks than there are, or swa_lr without swa_start.
    """

    def __init__(
        self,
        net: Maest,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        warmup_epochs: float,
        ramp_start: float,
        ramp_end: float,
        last_lr_factor: float,
        lr_interval: str,
        mixup_alpha: float,
        time_masks: int,
        time_mask_width: int,
        freq_masks: int,
        freq_mask_width: int,
        layer_decay: float = 1.0,
        freeze_blocks: int = 0,
        teacher_threshold: float = 0.45,
        roll: int = 0,
        swa_start: int | None = None,
        swa_lr: float | None = None,
        patches_per_pass: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if freeze_blocks > net.depth:
            raise InputError(
                f"{freeze_blocks} blocks cannot be frozen, of {net.depth}",
                setting="module.freeze_blocks",
                hint=f"Give 0 (nothing) to {net.depth}.",
            )
        if swa_lr is not None and swa_start is None:
            raise InputError(
                "there is no average that this rate is for",
                kind="conflict",
                setting="module.swa_lr",
                hint="Set module.swa_start to the number of epochs before it, or leave it out.",
            )
        self.net, self.seed = net, seed
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.lr_interval, self.layer_decay = lr_interval, layer_decay
        self.swa_start, self.swa_lr = swa_start, swa_lr
        self.schedule = partial(
            warmup_ramp_factor,
            warmup_epochs=warmup_epochs,
            ramp_start=ramp_start,
            ramp_end=ramp_end,
            last_factor=last_lr_factor,
        )
        self.mixup_alpha, self.roll_frames = mixup_alpha, roll
        self.masks = (time_masks, time_mask_width, freq_masks, freq_mask_width)
        self.teacher_threshold = teacher_threshold
        self.patches_per_pass = patches_per_pass
        self.record: dict[str, Any] = {}
        self.also_evaluated: dict[str, Maest] = {}
        self.scored: dict[str, Scored] = {}
        self.skipped: dict[str, str] = {}
        self._scores = TrackScores({})
        self._loss_sum: Tensor | None = None  # over the epoch's clips so far
        self._loss_clips = 0
        self._frozen: list[torch.nn.Module] = []  # these stay in eval mode: no dropout
        self._freeze(freeze_blocks)

    def _freeze(self, blocks: int) -> None:
        if self.net.distilled_type == "mean":  # which leaves the second head out
            self.net.head_dist.requires_grad_(False)
        if not blocks:
            return
        for name, parameter in self.net.named_parameters():
            if layer_level(name, self.net.depth) <= blocks:
                parameter.requires_grad_(False)
        self._frozen = [self.net.patch_embed, self.net.pos_drop, *self.net.blocks[:blocks]]

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        self._freeze_modes()  # an epoch that is continued does not start
        if self.trainer.ckpt_path is None:
            return
        # A checkpoint's moments and position are taken; rates and decay are the settings'.
        schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
        for i, group in enumerate(self._parameter_groups()):
            base = group.get("lr", self.lr)
            schedule.base_lrs[i] = base
            schedule.optimizer.param_groups[i] |= {
                "initial_lr": base,
                "lr": base * schedule.lr_lambdas[i](schedule.last_epoch),
                "weight_decay": self.weight_decay,
                "betas": tuple(self.betas),
            }

    def _freeze_modes(self) -> None:
        for part in self._frozen:
            part.eval()

    def on_train_epoch_start(self) -> None:
        self._freeze_modes()  # validation has put all in training mode
        self._loss_sum, self._loss_clips = None, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch: mel [B, T, F] as it is on disk, targets [B, C], perhaps a teacher's logits.

        Those, [B, C], are what the dist head learns from.

        Raises:
            InputError: of kind "diverged", if the loss is NaN or infinite; on a GPU some steps
                later.
        """
        torch.manual_seed(derived_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        targets, teacher = batch.targets, batch.teacher
        if teacher is not None:
            if self.net.distilled_type != "separated":
                raise InputError(
                    "a teacher's labels are for the dist head, and this network trains none",
                    kind="conflict",
                    setting="maest.distilled_type",
                    hint="Set maest.distilled_type=separated, or leave datamodule.teacher_dir out.",
                )
            of_teacher = teacher_targets(teacher, self.teacher_threshold)
            targets = torch.cat((targets, of_teacher), dim=1)  # mixed with the same weights
        x = roll(network_input(self.net, batch.mel), self.roll_frames)
        x, targets = mixup(spec_augment(x, *self.masks), targets, self.mixup_alpha)
        logits, _ = self.net(x)
        loss = task_loss(self.net, logits, *targets.chunk(1 if teacher is None else 2, dim=1))
        self._count(loss.detach(), len(x))
        note_skipped(self.skipped, batch.errors)
        # Not for the bar, for which Lightning would fetch it from the device after each batch.
        self.log("train_loss_step", loss.detach(), batch_size=len(x))
        return loss

    def _count(self, loss: Tensor, clips: int) -> None:
        """Add to the epoch's loss. Its value is looked at on a CPU only: a GPU goes on."""
        # Apple's MPS has no float64.
        summed = loss.to(torch.float32 if loss.device.type == "mps" else torch.float64) * clips
        self._loss_sum = summed if self._loss_sum is None else self._loss_sum + summed
        self._loss_clips += clips
        if loss.device.type == "cpu":
            self._check_loss()

    def _check_loss(self) -> None:
        if self._loss_sum is not None and not torch.isfinite(self._loss_sum):
            raise diverged("the training loss became", self.current_epoch, self.global_step + 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer: Any = self.trainer
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:
            self._check_loss()
        if self.trainer.is_last_batch or self.trainer.should_stop:  # as a limit of steps does
            self._check_loss()
            total, clips = self._epoch_loss()
            self.log("train_loss", total / clips, on_step=False, on_epoch=True, batch_size=1)

    def _epoch_loss(self) -> tuple[Tensor, int]:
        """Sum and number of the epoch's losses so far, of all processes."""
        total = torch.zeros(()) if self._loss_sum is None else self._loss_sum
        clips = torch.tensor(self._loss_clips, device=total.device)
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

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained: one group, or one a level where the learning rate decays over layers."""
        trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        if self.layer_decay == 1:
            return [{"params": list(trained.values())}]
        levels: dict[int, list[Tensor]] = defaultdict(list)
        for name, parameter in trained.items():
            levels[layer_level(name, self.net.depth)].append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.lr * self.layer_decay ** (self.net.depth + 1 - level),
                "name": f"level {level}",
            }
            for level, parameters in sorted(levels.items())
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, and the schedule stepped each epoch or each step."""
        optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(self.betas[0], self.betas[1]),
            # In one kernel; under mixed precision it unscales gradients too late to clip them.
            fused=True if self.trainer.gradient_clip_val is None else None,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.lr_interval},
        }

    def _rate_factor(self, step: int) -> float:
        """The learning rate over its base, after so many steps or epochs."""
        epoch: float = step
        if self.lr_interval == "step" and step:
            # Before the first step it is not known how many an epoch has. The last, smaller group
            # of accumulated batches is a step too.
            batches = self.trainer.num_training_batches
            epoch = step / math.ceil(batches / self.trainer.accumulate_grad_batches)
        if self.swa_start is not None and self.swa_lr is not None and epoch >= self.swa_start:
            return self.swa_lr / self.lr
        return self.schedule(epoch)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what makes it usable as a model: sizes, labels, origin; and the epoch's loss so far.

        Raises:
            InputError: of kind "diverged", if the loss was NaN; nothing is saved then.
        """
        self._check_loss()
        ours: dict[str, Any] = {"sizes": self.net.sizes(), "labels": self.net.labels}
        ours["skipped"] = self.skipped
        ours |= self.record
        if self._loss_sum is not None:
            total, clips = self._epoch_loss()
            ours |= {"loss_sum": total.cpu(), "loss_clips": clips}
        checkpoint[TRAINER_KEY] = ours

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the epoch's loss so far; the average of the weights is a callback's.

        Raises:
            InputError: if the checkpoint is of another network, or trains other parts of it.
        """
        ours = checkpoint.get(TRAINER_KEY, {})
        self._check_same(ours.get("sizes", {}), checkpoint["optimizer_states"])
        self.skipped = dict(ours.get("skipped", {}))
        if "loss_sum" in ours and self.global_rank == 0:  # it is of all processes
            self._loss_sum = ours["loss_sum"].to(self.device)
            self._loss_clips = ours["loss_clips"]

    def _check_same(self, sizes: dict[str, Any], optimizers: list[dict[str, Any]]) -> None:
        own = self.net.sizes()
        differing = [f"{n} {v} (here {own[n]})" for n, v in sizes.items() if own.get(n, v) != v]
        groups = [len(group["params"]) for group in optimizers[0]["param_groups"]]
        if groups != [len(group["params"]) for group in self._parameter_groups()]:
            differing.append("other settings of module.layer_decay or module.freeze_blocks")
        if differing:
            raise InputError(
                f"the checkpoint is of another training: {'; '.join(differing)}",
                kind="mismatch",
                setting="ckpt_path",
                hint="Give its settings, or start a new training from its weights with "
                "maest.checkpoint.",
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Without the weights' average, where a checkpoint has one."""
        own = {name: v for name, v in state_dict.items() if not name.startswith(AVERAGE)}
        return super().load_state_dict(own, *args, **kwargs)
