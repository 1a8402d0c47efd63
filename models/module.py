"""The Lightning module that trains, evaluates and runs the network."""

from __future__ import annotations

import math
from collections import defaultdict
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
from helpers.schedules import warmup_ramp_factor
from models.checkpoint_files import TRAINER_KEY
from models.maest import Maest


@dataclass(frozen=True)
class TrainingOptions:
    """The options of the recipe; `config/module.py` has the values.

    Attributes:
        lr, weight_decay, betas: of AdamW.
        warmup_epochs, ramp_start, ramp_end, last_lr_factor: `helpers.schedules`.
        lr_interval: when the learning rate moves on: after each "epoch", or each "step" of one.
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

    Raises:
        InputError: for an option out of its range.
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
        # Of the last validation or test: the figures, and all tracks' targets and activations,
        # float32 [N, C].
        self.evaluation: Evaluation | None = None
        self.targets: np.ndarray | None = None
        self.outputs: np.ndarray | None = None
        self._evaluated: list[tuple[Tensor, Tensor, Tensor]] = []
        self._frozen: list[torch.nn.Module] = []  # what stays in eval mode: no dropout
        if options is not None:
            self._check_options()
            self._freeze()

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
        ):
            if not fits:
                raise InputError(f"module.{name} is {getattr(options, name)}: expected {expected}")

    def _freeze(self) -> None:
        blocks = self.options.freeze_blocks
        if not blocks:
            return
        for name, parameter in self.net.named_parameters():
            if layer_level(name, self.net.depth) <= blocks:
                parameter.requires_grad_(False)
        self._frozen = [self.net.patch_embed, self.net.pos_drop, *self.net.blocks[:blocks]]

    # ------------------------------------------------------------------ training

    def on_train_epoch_start(self) -> None:
        for part in self._frozen:
            part.eval()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """``batch``: mel [B, T, F] as it is on disk, and targets [B, C].

        A third part, a teacher's logits [B, C], is what the dist head learns from.
        """
        mel, targets, *teacher = batch
        options = self.options
        if teacher:
            self._check_teacher()
            of_teacher = teacher_targets(teacher[0], options.teacher_threshold)
            targets = torch.cat((targets, of_teacher), dim=1)  # mixed with the same weights
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
        loss = self._loss(logits, *targets.chunk(1 + len(teacher), dim=1))
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(x))
        return loss

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
            deviation = logits.new_tensor(self.net.target_std)
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

        activations = self.net.activations(logits)
        self._evaluated.append((mean(logits), mean(activations), batch.targets.cpu()))

    def _evaluation_end(self, prefix: str) -> None:
        logits, activations, targets = map(torch.cat, zip(*self._evaluated, strict=True))
        self._evaluated.clear()
        self.targets, self.outputs = targets.numpy(), activations.numpy()
        self.evaluation = evaluate(self.net.task, self.targets, self.outputs)
        self.log(f"{prefix}_loss", self._loss(logits, targets))
        shown = (MONITOR[self.net.task], "roc_auc", "macro_f1")
        for name, value in self.evaluation.figures.items():
            self.log(f"{prefix}_{name}", value, prog_bar=name in shown)

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
