"""The probe: a small network on fixed features, that tells what can be read from them.

Many of them are trained at once (:class:`ProbeBank`): several seeds, on several sets of features of
the same tracks. Each comes out as if it had been trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.errors import InputError
from maest.helpers.metrics import MONITOR, evaluate
from maest.helpers.ranking import rank, ranked_figures
from maest.helpers.schedules import warmup_ramp_factor
from maest.models.cpu import grouped_linear

# The learning rate of a mix's weights, as a multiple of the others'. AdamW moves a weight by about
# the learning rate a step, whatever its gradient: enough for the layers' weights, which are small,
# but not for these, whose exponentials make the mix. At the rate of the others a data set of some
# hundred tracks left the mix of 12 blocks a plain mean (0.082 to 0.085 each).
_MIX_LR = 10.0


@dataclass(frozen=True)
class ProbeOptions:
    """The recipe of the probe; `config/probe.py` has the values of the paper (arXiv 2309.16418).

    Attributes:
        hidden: width of the hidden layer.
        dropout: before the last layer; 0 or more, and less than 1.
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


class Probe(nn.Module):
    """D features → hidden → C outputs. With ``n_blocks``, of a mix of so many blocks' features.

    The mix is the blocks' weighted mean, each block normalised first (a layer norm without weights:
    blocks differ in scale), with weights that are learned, through a softmax.

    Args:
        n_features: D.
        n_classes: C.
        hidden: width of the hidden layer.
        n_blocks: blocks to mix; None: the features are of one.
    """

    def __init__(
        self, n_features: int, n_classes: int, hidden: int, n_blocks: int | None = None
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_classes)
        )
        if n_blocks is not None:
            self.mix = nn.Parameter(torch.zeros(n_blocks))
        # Outputs are multiplied by this and shifted by that: 1 and 0 but for a regression.
        self.register_buffer("scale", torch.ones(n_classes))
        self.register_buffer("shift", torch.zeros(n_classes))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] (to be mixed [B, blocks, D]) → logits, of a regression values: [B, C]."""
        if hasattr(self, "mix"):
            features = torch.einsum("bld,l->bd", normalised(features), self.mix.softmax(0))
        return self.net(features) * self.scale + self.shift


def normalised(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last axis."""
    return F.layer_norm(features, features.shape[-1:])


class ProbeBank(pl.LightningModule):
    """Probes that are trained together: S seeds × M sets of features.

    A probe's first weights, its dropout and the order of its tracks depend on its seed alone, and
    its loss on its own weights alone: it is the one that would come of training it by itself, but
    for the last bits. Weights of the epoch with the best validation figure (ROC-AUC, accuracy or
    R²; of equal ones the first) are kept, for each probe its own; those of the last epoch where the
    validation tracks allow of no figure (NaN). The weights of a mix are learned ten times as fast
    as the others, and do not decay.

    Args:
        n_features: D.
        n_classes: C.
        options: the recipe.
        seeds: of the probes.
        task: "multi-label", "single-label" or "regression".
        n_sets: M.
        n_blocks: blocks to mix (`Probe`); then M is 1.
        scale, shift: [C] deviation and mean of a regression's training targets.

    Attributes:
        best_figures, best_epochs: [M · S] of the weights that are kept; epochs count from 1.
        histories: of each probe, an entry an epoch: training loss and validation figures.
        outputs: [M · S, N, C] of the last test.

    Raises:
        InputError: a dropout that leaves nothing, or is negative. In training: outputs are not
            finite any more.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        options: ProbeOptions,
        seeds: Sequence[int] = (0,),
        *,
        task: str = "multi-label",
        n_sets: int = 1,
        n_blocks: int | None = None,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= options.dropout < 1:
            raise InputError(
                f"is {options.dropout}",
                setting="probe.dropout",
                hint="Give 0 or more, and less than 1.",
            )
        if n_blocks is not None and n_sets != 1:
            raise ValueError(f"{n_sets} sets of features, to be mixed: expected 1")
        self.options, self.task, self.seeds, self.n_sets = options, task, list(seeds), n_sets
        self.n_blocks = n_blocks
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        starts = [self._fresh(n_features, n_classes, g) for g in self._generators]
        # Probe m · S + s is of set m and seed s.
        for name in starts[0]:
            own = torch.stack([start[name] for start in starts]).repeat(
                n_sets, *[1] * starts[0][name].dim()
            )
            setattr(self, name, nn.Parameter(own))
        if n_blocks is not None:
            self.mix = nn.Parameter(torch.zeros(len(self), n_blocks))
        self.register_buffer("scale", _row(scale, n_classes, 1.0))
        self.register_buffer("shift", _row(shift, n_classes, 0.0))
        self.best_figures = np.full(len(self), np.nan)
        self.best_epochs = np.zeros(len(self), int)
        self.histories: list[list[dict[str, float]]] = [[] for _ in range(len(self))]
        self.outputs: np.ndarray | None = None
        self._best: dict[str, Tensor] = {}
        self._losses: list[tuple[Tensor, int]] = []  # of batches, and their tracks
        self._evaluated: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return self.n_sets * len(self.seeds)

    def _fresh(self, n_features: int, n_classes: int, generator: torch.Generator) -> dict:
        """First weights, as `torch.nn.Linear` draws them."""

        def drawn(*shape: int, inputs: int) -> Tensor:
            bound = inputs**-0.5
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)

        hidden = self.options.hidden
        return {
            "weight1": drawn(hidden, n_features, inputs=n_features),
            "bias1": drawn(hidden, inputs=n_features),
            "weight2": drawn(n_classes, hidden, inputs=hidden),
            "bias2": drawn(n_classes, inputs=hidden),
        }

    def forward(self, features: Tensor) -> Tensor:
        """Outputs of all probes.

        Args:
            features: [S, B, M, D], each seed's own tracks; [1, B, M, D] for the same tracks for
                all. To be mixed: blocks instead of M, each ``normalised`` already.

        Returns:
            [M · S, B, C], before ``scale`` and ``shift``.
        """
        seeds, batch, _, width = features.shape
        if self.n_blocks is not None:
            weights = self.mix.softmax(1)
            # As products that read the features where they are: einsum would copy them first.
            if seeds == 1:
                x = (weights @ features[0]).transpose(0, 1)
            else:
                x = (weights[:, None, None] @ features).squeeze(2)
        else:
            x = features.permute(2, 0, 1, 3)
            if seeds != len(self.seeds):
                x = x.expand(-1, len(self.seeds), -1, -1)
            x = x.reshape(len(self), batch, width)
        x = grouped_linear(x, self.weight1, self.bias1).relu()
        if self.training and self.options.dropout:
            x = x * self._dropout(batch).to(x.device).repeat(self.n_sets, 1, 1)
        return grouped_linear(x, self.weight2, self.bias2)

    def _dropout(self, batch: int) -> Tensor:
        """[S, B, hidden] of all of a seed's probes: 0, or what makes up for the zeros."""
        hidden = self.options.hidden
        drawn = torch.empty(len(self.seeds), -(-batch * hidden // 4), dtype=torch.int64)
        for own, generator in zip(drawn, self._generators, strict=True):
            own.random_(-(2**63), None, generator=generator)
        # Four draws of 16 bits each: ten times as fast as a Bernoulli draw for every one.
        draws = drawn.view(torch.int16)[:, : batch * hidden].view(-1, batch, hidden)
        # What draws are compared with must be of 16 bits too, or it would wrap around.
        keep = min(max(1, round((1 - self.options.dropout) * 2**16)), 2**16 - 1)
        return (draws < keep - 2**15).float().mul_(2**16 / keep)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[M · S] of outputs [M · S, B, C] and targets [S or 1, B, C]."""
        seeds = targets.shape[0]
        targets = targets.expand(self.n_sets, *targets.shape) if seeds > 1 else targets
        targets = targets.reshape(-1, *targets.shape[-2:]).expand_as(outputs)
        if self.task == "single-label":
            loss = -(targets * outputs.log_softmax(-1)).sum(-1, keepdim=True)
        elif self.task == "regression":
            loss = (outputs - (targets - self.shift) / self.scale) ** 2
        else:
            loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return loss.mean(dim=(1, 2))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, targets = batch
        losses = self._loss(self(features), targets)
        self._losses.append((losses.detach(), targets.shape[1]))
        return losses.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        features, targets = batch
        outputs = self(features[None]) * self.scale + self.shift
        self._evaluated.append((outputs.cpu(), targets.cpu()))

    test_step = validation_step

    def _collect(self) -> tuple[np.ndarray, np.ndarray]:
        parts, targets = zip(*self._evaluated, strict=True)
        self._evaluated.clear()
        outputs = torch.cat(parts, dim=1)
        if not outputs.isfinite().all():
            raise InputError(
                f"the probe's outputs became NaN or infinite in epoch {self.current_epoch + 1}",
                kind="diverged",
                setting="probe.lr",
                hint=f"Give a smaller probe.lr; it is {self.options.lr:g}.",
            )
        return outputs.numpy(), torch.cat(targets).numpy()

    def _train_losses(self) -> list[float]:
        """Of each probe, the mean over the epoch's tracks."""
        if not self._losses:
            return []
        total = torch.stack([loss * tracks for loss, tracks in self._losses]).sum(dim=0)
        mean = total / sum(tracks for _, tracks in self._losses)
        self._losses.clear()
        return mean.tolist()

    def on_validation_epoch_end(self) -> None:
        outputs, targets = self._collect()
        if self.trainer.sanity_checking:  # of fresh weights, on some of the tracks
            return
        figures = [_figures(self.task, targets, own) for own in outputs]
        losses = self._train_losses()
        monitor = SELECTION[self.task]
        for i, own in enumerate(figures):
            row = {"epoch": self.current_epoch + 1}
            if losses:
                row["train_loss"] = losses[i]
            self.histories[i].append(row | {f"val_{name}": value for name, value in own.items()})
        values = np.array([own[monitor] for own in figures])
        better = np.isnan(self.best_figures) | (values > self.best_figures)
        if not self._best:
            self._best = {name: p.detach().clone() for name, p in self.named_parameters()}
        for i in np.flatnonzero(better):
            self.best_figures[i], self.best_epochs[i] = values[i], self.current_epoch + 1
            for name, parameter in self.named_parameters():
                self._best[name][i].copy_(parameter.detach()[i])

    def on_test_epoch_end(self) -> None:
        self.outputs, _ = self._collect()

    def restore_best(self) -> None:
        """Load each probe's weights of its best epoch."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(self._best[name])

    def probe(self, index: int) -> Probe:
        """Probe ``index`` = set · S + seed, on its own, on the CPU."""
        n_features, n_classes = self.weight1.shape[2], self.weight2.shape[1]
        made = Probe(n_features, n_classes, self.options.hidden, self.n_blocks)
        state = {
            "net.0.weight": self.weight1[index],
            "net.0.bias": self.bias1[index],
            "net.2.weight": self.weight2[index],
            "net.2.bias": self.bias2[index],
            "scale": self.scale,
            "shift": self.shift,
        }
        if self.n_blocks is not None:
            state["mix"] = self.mix[index]
        made.load_state_dict({k: v.detach().cpu().contiguous() for k, v in state.items()})
        return made.eval()

    def configure_optimizers(self) -> dict[str, Any]:
        options = self.options
        layers = [own for name, own in self.named_parameters() if name != "mix"]
        groups: list[dict[str, Any]] = [{"params": layers}]
        if self.n_blocks is not None:
            groups.append({"params": [self.mix], "lr": options.lr * _MIX_LR, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(
            groups, lr=options.lr, weight_decay=options.weight_decay, fused=True
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


# The validation figure that says which epoch is the best; the paper's is ROC-AUC.
SELECTION = MONITOR | {"multi-label": "roc_auc"}


def _figures(task: str, targets: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """The figures of the whole; for many labels faster than `evaluate`, and the same."""
    if task != "multi-label":
        found = evaluate(task, targets, outputs).figures
        return {name: v for name, v in found.items() if not name.endswith("_left_out")}
    ap, roc_auc = ranked_figures(rank(targets, outputs))
    counted = ~np.isnan(ap)
    if not counted.any():
        return {"ap": float("nan"), "roc_auc": float("nan")}
    return {"ap": float(ap[counted].mean()), "roc_auc": float(roc_auc[counted].mean())}


def _row(values: np.ndarray | None, n_classes: int, default: float) -> Tensor:
    if values is None:
        return torch.full((n_classes,), default)
    return torch.as_tensor(np.asarray(values, np.float32))
