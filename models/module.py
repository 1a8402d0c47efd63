"""The Lightning module that trains, evaluates and runs the network."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.errors import InputError
from helpers.masking import spec_augment
from helpers.metrics import MONITOR, Evaluation, TaggingScores, evaluate
from helpers.mixup import mixup
from helpers.patches import seconds
from helpers.roll import roll
from helpers.schedules import warmup_ramp_factor
from helpers.seeds import derived_seed
from models.checkpoint_files import AVERAGE, TRAINER_KEY
from models.maest import Maest, on_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOptions:
    """The options of the recipe; `config/module.py` has the values.

    Attributes:
        lr, weight_decay, betas: of AdamW.
        warmup_epochs, ramp_start, ramp_end, last_lr_factor: `helpers.schedules`.
        lr_interval: when the learning rate moves on: after each "epoch", or each "step" of one.
        swa_start: first epoch, from 0, whose weights enter the average; None for no average.
        swa_lr: the learning rate from that epoch on, in place of the schedule's; None for the
            schedule's.
        roll: each clip is rolled in time by up to so many frames; 0 for none.
        mixup_alpha: of Beta(alpha, alpha); 0 for no mixup.
        time_masks, time_mask_width, freq_masks, freq_mask_width: SpecAugment; 0 masks for none.
        layer_decay: each layer's learning rate over that of the layer after it, see
            :func:`layer_level`; 1.0 for one rate.
        freeze_blocks: n ≥ 1 leaves the patch embedding, the tokens, the positions and the first n
            blocks as they are; all blocks: only the last norm and the heads are trained.
        teacher_threshold: a teacher's activation above it makes a label a target.
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
    layer_decay: float = 1.0
    freeze_blocks: int = 0
    teacher_threshold: float = 0.45
    roll: int = 0
    swa_start: int | None = None
    swa_lr: float | None = None


class Diverged(InputError):
    """The loss is no number any more."""


_LOSSES = {
    "multi-label": F.binary_cross_entropy_with_logits,
    "single-label": F.cross_entropy,  # with distributions over the classes as targets
    "regression": F.mse_loss,
}


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


def layer_level(name: str, depth: int) -> int:
    """Which layer a parameter is of, for the layer-wise decay of the learning rate.

    0: patch embedding, tokens and positions; i + 1: block i; depth + 1: the last norm and the
    heads. Level l has the rate lr · layer_decay^(depth + 1 - l): what is near the input changes
    least. As in BEiT, H. Bao et al., ICLR 2022 (arXiv 2106.08254), after ELECTRA, K. Clark et al.,
    ICLR 2020 (arXiv 2003.10555).

    Args:
        name: as in ``Maest.named_parameters()``.
        depth: of the network.
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
    """Trains a :class:`models.maest.Maest`, with the loss that its task asks for.

    Binary cross-entropy (multi-label), cross-entropy (single-label) or mean squared error
    (regression); of two heads, the mean of the two losses.

    Args:
        net: the network. Its frozen part no longer asks for gradients afterwards.
        options: the training recipe; None for a network that is only evaluated.
        patches_per_pass: how many patches of whole tracks go through the network at once.
        seed: of all draws of the training steps. A step's draws depend on it, the epoch, the
            number of the batch and the process alone, and so not on whether the run was resumed.

    Raises:
        InputError: for an option out of its range.
    """

    def __init__(
        self,
        net: Maest,
        options: TrainingOptions | None = None,
        patches_per_pass: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net = net
        self.options = options
        self.patches_per_pass = patches_per_pass
        self.seed = seed
        # What predict_step returns: "logits", or the number of a block (-1: final embedding).
        self.predict_output: str | int = "logits"
        # Networks that are validated beside ``net``, by the name that their figures get.
        self.also_evaluated: dict[str, Maest] = {}
        # Of the last validation or test: the figures (of the others, by name), and all tracks'
        # targets and activations, float32 [N, C].
        self.evaluation: Evaluation | None = None
        self.other_evaluations: dict[str, Evaluation] = {}
        self.targets: np.ndarray | None = None
        self.outputs: np.ndarray | None = None
        # Files that were passed over, and why (`datamodule.on_error=skip`).
        self.skipped: dict[str, str] = {}
        self._evaluated: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._evaluated_tracks: list[tuple[list[str], Tensor]] = []
        self._loss_sum: Tensor | None = None  # over the epoch's clips so far
        self._loss_clips = 0
        self._frozen: list[torch.nn.Module] = []  # what stays in eval mode: no dropout
        if options is not None:
            self._check_options()
            self._freeze()

    @property
    def _processes(self) -> int:
        """How many processes train or evaluate together."""
        return 1 if self._trainer is None else self._trainer.world_size

    @property
    def scores(self) -> TaggingScores | None:
        """The last evaluation of a multi-label network, label by label."""
        if self.evaluation is None or self.net.task != "multi-label":
            return None
        return TaggingScores(**self.evaluation.per_label)

    def _check_options(self) -> None:
        options, depth = self.options, self.net.depth
        for name, fits, expected in (
            ("layer_decay", 0 < options.layer_decay <= 1, "above 0 and at most 1 (1: off)"),
            (
                "freeze_blocks",
                isinstance(options.freeze_blocks, int) and 0 <= options.freeze_blocks <= depth,
                f"a whole number from 0 (nothing) to {depth}, the blocks of the network",
            ),
            ("teacher_threshold", 0 < options.teacher_threshold < 1, "between 0 and 1"),
            (
                "swa_lr",
                options.swa_lr is None or options.swa_start is not None,
                "None without module.swa_start, the epoch that it would hold from",
            ),
        ):
            if not fits:
                raise InputError(f"module.{name} is {getattr(options, name)}: expected {expected}")

    def _freeze(self) -> None:
        if self.net.distilled_type == "mean":  # which leaves the second head out
            self.net.head_dist.requires_grad_(False)
        blocks = self.options.freeze_blocks
        if not blocks:
            return
        for name, parameter in self.net.named_parameters():
            if layer_level(name, self.net.depth) <= blocks:
                parameter.requires_grad_(False)
        self._frozen = [self.net.patch_embed, self.net.pos_drop, *self.net.blocks[:blocks]]

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        self._freeze_modes()
        if self.trainer.ckpt_path is not None:
            self._hold_to_settings()

    def _freeze_modes(self) -> None:
        for part in self._frozen:
            part.eval()

    def _hold_to_settings(self) -> None:
        """Of a checkpoint, moments and position are taken; rates and decay are the settings'."""
        schedule = self.trainer.lr_scheduler_configs[0].scheduler
        options = self.options
        for i, group in enumerate(self._parameter_groups()):
            base = group.get("lr", options.lr)
            schedule.base_lrs[i] = base
            schedule.optimizer.param_groups[i] |= {
                "initial_lr": base,
                "lr": base * schedule.lr_lambdas[i](schedule.last_epoch),
                "weight_decay": options.weight_decay,
                "betas": tuple(options.betas),
            }

    def on_train_epoch_start(self) -> None:
        self._freeze_modes()  # validation has put all in training mode
        self._loss_sum, self._loss_clips = None, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch: mel [B, T, F] as it is on disk, targets [B, C], perhaps a teacher's logits.

        Those, [B, C], are what the dist head learns from.

        Raises:
            Diverged: if the loss is NaN or infinite; on a GPU some steps later.
        """
        torch.manual_seed(derived_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        targets, teacher, options = batch.targets, batch.teacher, self.options
        if teacher is not None:
            self._check_teacher()
            of_teacher = teacher_targets(teacher, options.teacher_threshold)
            targets = torch.cat((targets, of_teacher), dim=1)  # mixed with the same weights
        x = self._network_input(batch.mel)
        x = roll(x, options.roll)
        x = spec_augment(
            x,
            options.time_masks,
            options.time_mask_width,
            options.freq_masks,
            options.freq_mask_width,
        )
        x, targets = mixup(x, targets, options.mixup_alpha)
        logits, _ = self.net(x)
        loss = self._loss(logits, *targets.chunk(1 if teacher is None else 2, dim=1))
        self._count(loss.detach(), len(x))
        self._note_skipped(batch.errors)
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
        if self._loss_sum is None or torch.isfinite(self._loss_sum):
            return
        raise Diverged(
            f"the training loss became NaN or infinite in epoch {self.current_epoch}, at step "
            f"{self.global_step + 1} or shortly before. Lower module.lr, set "
            "trainer.gradient_clip_val=1, or, if it is fp16 that overflows, "
            "trainer.precision=bf16-mixed or 32-true. The last checkpoint was written before that: "
            "ckpt_path=exp_logs/<id>/checkpoints/last.ckpt, with such settings, goes on from there"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:
            self._check_loss()
        if self.trainer.is_last_batch:
            self._check_loss()
            total, clips = self._epoch_loss()
            self.log("train_loss", total / clips, on_step=False, on_epoch=True, batch_size=1)

    def _epoch_loss(self) -> tuple[Tensor, int]:
        """Sum and number of the epoch's losses so far, of all processes."""
        total, clips = self._loss_sum, torch.tensor(self._loss_clips, device=self._loss_sum.device)
        if self._processes > 1:
            strategy = self.trainer.strategy
            total, clips = (strategy.reduce(v.clone(), reduce_op="sum") for v in (total, clips))
        return total, int(clips)

    def _note_skipped(self, errors: dict[str, str]) -> None:
        for key in errors.keys() - self.skipped.keys():
            log.warning("skipped: %s", errors[key])
        self.skipped |= errors

    def _network_input(self, mel: Tensor) -> Tensor:
        """[B, T, F] as on disk → normalised float32 [B, F, T]."""
        return self.net.normalise(mel.float()).transpose(1, 2)

    def _check_teacher(self) -> None:
        for name, found, needed in (
            ("distilled_type", self.net.distilled_type, "separated"),
            ("task", self.net.task, "multi-label"),
        ):
            if found != needed:
                raise InputError(
                    f"datamodule.teacher_dir gives the dist head a teacher's labels, and maest."
                    f"{name} is {found!r}: set maest.{name}={needed}, or leave "
                    "datamodule.teacher_dir out"
                )

    def _loss(
        self,
        logits: Tensor | tuple[Tensor, Tensor],
        targets: Tensor,
        dist_targets: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of logits [N, C]; of a pair of them, the mean of the two heads' losses.

        ``targets`` [N, C] may be mixtures; ``dist_targets`` are those of the second head, if it has
        its own.
        """
        if isinstance(logits, tuple):
            cls, dist = logits
            other = targets if dist_targets is None else dist_targets
            return (self._loss(cls, targets) + self._loss(dist, other)) / 2
        logits = logits.float()
        if self.net.target_std is not None:  # values of any scale count alike
            deviation = on_device(torch.tensor(self.net.target_std), logits.device)
            logits, targets = logits / deviation, targets / deviation
        return _LOSSES[self.net.task](logits, targets)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained: one group, or one a level where the learning rate decays over layers."""
        options, depth = self.options, self.net.depth
        trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        if options.layer_decay == 1:
            return [{"params": list(trained.values())}]
        levels = defaultdict(list)
        for name, parameter in trained.items():
            levels[layer_level(name, depth)].append(parameter)
        return [
            {
                "params": parameters,
                "lr": options.lr * options.layer_decay ** (depth + 1 - level),
                "name": f"level {level}",
            }
            for level, parameters in sorted(levels.items())
        ]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, and the schedule stepped each epoch or each step."""
        options = self.options
        optimizer = torch.optim.AdamW(
            self._parameter_groups(),
            lr=options.lr,
            weight_decay=options.weight_decay,
            betas=tuple(options.betas),
            # In one kernel; under mixed precision it unscales gradients too late to clip them.
            fused=True if self.trainer.gradient_clip_val is None else None,
        )

        def factor(step: int) -> float:
            epoch: float = step
            if options.lr_interval == "step" and step:
                # Before the first step it is not known how many an epoch has. The last, smaller
                # group of accumulated batches is a step too.
                batches = self.trainer.num_training_batches
                epoch = step / math.ceil(batches / self.trainer.accumulate_grad_batches)
            averaging = options.swa_start is not None and epoch >= options.swa_start
            if averaging and options.swa_lr is not None:
                return options.swa_lr / options.lr
            return warmup_ramp_factor(
                epoch,
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
        """Keep what the weights alone do not say, so that a checkpoint can be used as a model.

        And what the epoch has come to so far.

        Raises:
            Diverged: if the loss was NaN; nothing is saved then.
        """
        self._check_loss()
        ours = {"sizes": self.net.sizes(), "labels": self.net.labels, "skipped": self.skipped}
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
        found = [f"{n} {v} (here {own[n]})" for n, v in sizes.items() if own.get(n, v) != v]
        groups = [len(group["params"]) for group in optimizers[0]["param_groups"]]
        if groups != [len(group["params"]) for group in self._parameter_groups()]:
            found.append("other settings of module.layer_decay or module.freeze_blocks")
        if found:
            raise InputError(
                f"the checkpoint that ckpt_path names is of another training: {'; '.join(found)}. "
                "Give its settings, or start a new training from its weights with maest.checkpoint"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Without the weights' average, where a checkpoint has one."""
        own = {name: v for name, v in state_dict.items() if not name.startswith(AVERAGE)}
        return super().load_state_dict(own, *args, **kwargs)

    # ------------------------------------------------------------------ whole tracks

    def run_patches(
        self, groups: list[tuple[Tensor, Tensor]], output: str | int, net: Maest | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the patches of a batch of whole tracks through the network.

        Args:
            groups: of a ``TrackBatch``.
            output: "logits", or a block's number.
            net: another network than the module's own.

        Returns:
            ``(values [n, ...] float32, track [n], seconds [n])`` over all patches.
        """
        net = net or self.net
        values, tracks, durations = [], [], []
        for mel, track in groups:
            for piece in mel.split(self.patches_per_pass):
                block = -1 if output == "logits" else output
                logits, embeddings = net(self._network_input(piece), transformer_block=block)
                value = logits if output == "logits" else embeddings
                if output != "logits" and block >= 0:  # [n, 3·D] → [n, 3, D]
                    value = value.unflatten(1, (3, net.embed_dim))
                values.append(value.float())
            tracks.append(track)
            durations.append(torch.full(track.shape, seconds(mel.shape[1])))
        return torch.cat(values), torch.cat(tracks), torch.cat(durations)

    def _evaluate(self, batch: Any) -> None:
        """Collect each track's mean logits and mean activations, weighted by seconds."""
        self._note_skipped(batch.errors)
        if not len(batch):
            return
        self._evaluated_tracks.append((batch.keys, batch.targets.cpu()))
        for name, net in {"": self.net, **self.also_evaluated}.items():
            logits, track, durations = self.run_patches(batch.groups, "logits", net)
            weights = durations.to(logits.device)[:, None]
            total = logits.new_zeros(len(batch), 1).index_add_(0, track, weights)

            def mean(values: Tensor, track: Tensor = track, weights: Tensor = weights) -> Tensor:
                summed = values.new_zeros(len(batch), values.shape[1])
                return summed.index_add_(0, track, values * weights)

            activations = net.activations(logits)
            self._evaluated[name].append(
                ((mean(logits) / total).cpu(), (mean(activations) / total).cpu())
            )

    def _evaluation_end(self, prefix: str) -> None:
        keys = [key for own, _ in self._evaluated_tracks for key in own]
        parts = {"targets": [targets for _, targets in self._evaluated_tracks]}
        for name, results in self._evaluated.items():
            parts[f"logits {name}"] = [logits for logits, _ in results]
            parts[f"activations {name}"] = [activations for _, activations in results]
        tensors = {name: torch.cat(values) for name, values in parts.items() if values}
        self._evaluated.clear()
        self._evaluated_tracks.clear()
        keys, tensors = self._of_all_processes(keys, tensors)
        if not keys:
            reasons = "; ".join(list(self.skipped.values())[:3])
            raise InputError(f"not one of the tracks to evaluate on could be read: {reasons}")
        shown = (MONITOR[self.net.task], "roc_auc", "macro_f1")
        self.targets = tensors["targets"].numpy()
        self.outputs = tensors["activations "].numpy()
        for name in ("", *self.also_evaluated):
            own = f"{prefix}_{name}" if name else prefix
            loss = self._loss(tensors[f"logits {name}"], tensors["targets"])
            outputs = tensors[f"activations {name}"].numpy()
            evaluation = evaluate(self.net.task, self.targets, outputs)
            self.log(f"{own}_loss", loss)
            for figure, value in evaluation.figures.items():
                self.log(f"{own}_{figure}", value, prog_bar=figure in shown)
            if name:
                self.other_evaluations[name] = evaluation
            else:
                self.evaluation = evaluation

    def _of_all_processes(
        self, keys: list[str], tensors: dict[str, Tensor]
    ) -> tuple[list[str], dict[str, Tensor]]:
        """Put the tracks of all processes together, each once, in the order of the ground truth.

        Process r of n has tracks r, r + n, r + 2n, …; some have one of another's too, so that all
        have as many batches. What each has passed over is known to all from here on.
        """
        if self._processes == 1:
            return keys, tensors
        parts: list[Any] = [None] * self._processes
        torch.distributed.all_gather_object(parts, (keys, tensors, self.skipped))
        for _, _, skipped in parts:
            self._note_skipped(skipped)
        places: dict[str, tuple[int, int]] = {}
        for row in range(max(len(own) for own, _, _ in parts)):
            for rank, (own, _, _) in enumerate(parts):
                if row < len(own):
                    places.setdefault(own[row], (rank, row))
        names = next((names for _, names, _ in parts if names), {})
        return list(places), {
            name: torch.stack([parts[rank][1][name][row] for rank, row in places.values()])
            for name in names
        }

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
