"""The probe: a small network on fixed features, which shows how much can be read from them.

Many are trained at once (:class:`ProbeBank`): several seeds, on several sets of features of the
same tracks. Each comes out as if it had been trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.errors import InputError
from maest.helpers.metrics import MONITOR, evaluate

# The validation metric that chooses the epoch; the paper's is ROC-AUC.
SELECTION = MONITOR | {"multi-label": "roc_auc"}
_EVALUATED_AT_ONCE = 2048  # tracks
# The learning rate of a mix's weights, as a multiple of the others'. AdamW moves a weight by about
# the learning rate a step, whatever its gradient: enough for the layers' weights, which are small,
# but not for these, whose exponentials make the mix. At the rate of the others a data set of some
# hundred tracks left the mix of 12 blocks a plain mean (0.082 to 0.085 each).
_MIX_LR = 10.0


class Probe(nn.Module):
    """D features → hidden → C outputs. With ``n_blocks``, of a mix of so many blocks' features.

    The mix is the blocks' weighted mean, each block normalized first (blocks differ in scale), with
    weights that are learned, through a softmax.
    """

    def __init__(
        self, n_features: int, n_classes: int, hidden: int, n_blocks: int | None = None
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_classes)
        )
        self.mix = None if n_blocks is None else nn.Parameter(torch.zeros(n_blocks))
        # Deviation and mean of a regression's training targets; 1 and 0 for other tasks
        self.scale = nn.Buffer(torch.ones(n_classes))
        self.shift = nn.Buffer(torch.zeros(n_classes))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] (to be mixed [B, blocks, D]) → logits, for a regression values: [B, C]."""
        if self.mix is not None:
            features = torch.einsum("bld,l->bd", layer_normalize(features), self.mix.softmax(0))
        outputs: Tensor = self.net(features) * self.scale + self.shift
        return outputs


def layer_normalize(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last axis."""
    return F.layer_norm(features, features.shape[-1:])


class ProbeBank:
    """Probes in stacked weights: S seeds × M sets of features. Probe m · S + s is of set m.

    First weights, dropout and the order of tracks depend on a probe's seed alone, its loss on its
    own weights alone: so it equals, but for the last bits, the one trained alone.

    Args:
        n_features, n_classes: D, C.
        seeds: of the probes.
        hidden, dropout: units of the hidden layer, and the share of them dropped in training.
        task: "multi-label", "single-label" or "regression".
        n_sets: M.
        n_blocks: L blocks to mix (`Probe`), instead of sets; given with ``layer_normalize`` done.

    Attributes:
        weights: those of `Probe`, each with an axis of all probes before it.
        best_scores, best_epochs: [M · S] of the weights that are kept; epochs count from 1.
        histories: for each probe, an entry an epoch: training loss and validation metrics.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        seeds: Sequence[int] = (0,),
        *,
        hidden: int,
        dropout: float,
        task: str = "multi-label",
        n_sets: int = 1,
        n_blocks: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds, self.dropout, self.task, self.n_sets = list(seeds), dropout, task, n_sets
        self.device = torch.device(device)
        self._sizes = n_features, n_classes, hidden, n_blocks
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights = {name: self._draw(name, weight.shape)
                        for name, weight in Probe(*self._sizes).named_parameters()}  # fmt: skip
        self.scale = torch.ones(n_classes, device=device)
        self.shift = torch.zeros(n_classes, device=device)
        self.best_scores = np.full(len(self), np.nan)
        self.best_epochs = np.zeros(len(self), int)
        self.histories: list[list[dict[str, float]]] = [[] for _ in range(len(self))]

    def __len__(self) -> int:
        return self.n_sets * len(self.seeds)

    def _draw(self, name: str, shape: Sequence[int]) -> Tensor:
        """First weights, as `torch.nn.Linear` draws them: each seed's, the same for all sets."""
        n_features, _, hidden, _ = self._sizes
        bound = (n_features if name.startswith("net.0") else hidden) ** -0.5
        if name == "mix":
            own = [torch.zeros(shape)] * len(self.seeds)
        else:
            own = [torch.empty(*shape).uniform_(-bound, bound, generator=g)
                   for g in self._generators]  # fmt: skip
        stacked = torch.stack(own).repeat(self.n_sets, *[1] * len(shape))
        return stacked.to(self.device).requires_grad_()

    def forward(self, features: Tensor, training: bool = False) -> Tensor:
        """[S, B, M or L, D], each seed's own tracks, or [1, …] → before ``scale``, [M · S, B, C]"""
        w, (_, batch, _, width) = self.weights, features.shape
        if "mix" in w:  # by a product that reads the features in place: einsum copies them first
            x = (w["mix"].softmax(1)[:, None, None] @ features).squeeze(2)
        else:
            x = features.permute(2, 0, 1, 3).expand(-1, len(self.seeds), -1, -1)
            x = x.reshape(len(self), batch, width)
        x = _linear(x, w["net.0.weight"], w["net.0.bias"]).relu()
        if training and self.dropout:
            x = x * self._dropout_factors(batch).to(self.device).repeat(self.n_sets, 1, 1)
        return _linear(x, w["net.2.weight"], w["net.2.bias"])

    def _dropout_factors(self, batch: int) -> Tensor:
        """[S, B, hidden]: 0, or what makes up for the zeros."""
        hidden = self._sizes[2]
        drawn = torch.empty(len(self.seeds), -(-batch * hidden // 4), dtype=torch.int64)
        for own, generator in zip(drawn, self._generators, strict=True):
            own.random_(-(2**63), None, generator=generator)
        # Four draws of 16 bits each: ten times as fast as a Bernoulli draw for every one.
        draws = drawn.view(torch.int16)[:, : batch * hidden].view(-1, batch, hidden)
        # What draws are compared with must be of 16 bits too, or it would wrap around.
        keep = min(max(1, round((1 - self.dropout) * 2**16)), 2**16 - 1)
        return (draws < keep - 2**15).float().mul_(2**16 / keep)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Means [M · S], of outputs [M · S, B, C] before ``scale``, and targets [S, B, C]."""
        targets = targets.repeat(self.n_sets, 1, 1)
        if self.task == "single-label":
            return -(targets * outputs.log_softmax(-1)).sum(-1).mean(1)
        if self.task == "regression":
            return ((outputs - (targets - self.shift) / self.scale) ** 2).mean((1, 2))
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return loss.mean((1, 2))

    def fit(
        self,
        train: tuple[NDArray[Any], NDArray[Any]],
        val: tuple[NDArray[Any], NDArray[Any]],
        *,
        lr: float,
        lr_factor: Callable[[int], float],
        weight_decay: float,
        batch_size: int,
        max_epochs: int,
        after_epoch: Callable[[], object] = lambda: None,
    ) -> None:
        """Train with AdamW; keep each probe's weights of its best epoch on the validation tracks.

        That is the first of equal ones, and the last where no epoch has a metric (NaN). The weights
        of a mix are learned ten times as fast as the others, and do not decay.

        Args:
            train, val: features float32 [N, M or L, D] and targets [N, C].
            lr_factor: what the rate is multiplied by after so many epochs.

        Raises:
            InputError: "diverged", where outputs are not finite any more.
        """
        features, targets = map(_tensor, train)
        if self.task == "regression":
            self._standardize(np.asarray(train[1], np.float64))
        groups: list[dict[str, Any]] = [{"params": w} for w in self.weights.values()]
        if "mix" in self.weights:
            groups[list(self.weights).index("mix")] |= {"lr": lr * _MIX_LR, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(groups, lr, weight_decay=weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        best = {name: w.detach().clone() for name, w in self.weights.items()}
        for epoch in range(1, max_epochs + 1):
            total = torch.zeros(len(self), device=self.device)
            orders = torch.stack([torch.randperm(len(targets), generator=g) for g in generators])
            for rows in orders.split(batch_size, dim=1):
                x, y = features[rows].to(self.device), targets[rows].to(self.device)
                losses = self.loss(self.forward(x, training=True), y)
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                total += losses.detach() * rows.shape[1]
            schedule.step()
            outputs = self.predict(val[0])
            if not np.isfinite(outputs).all():
                raise InputError(
                    f"the probe's outputs became NaN or infinite in epoch {epoch}",
                    kind="diverged",
                    setting="probe.lr",
                    hint=f"Give a smaller probe.lr; it is {lr:g}.",
                )
            for i, loss in enumerate((total / len(targets)).tolist()):
                metrics = evaluate(self.task, val[1], outputs[i]).figures
                shown = {f"val_{m}": v for m, v in metrics.items() if not m.endswith("_left_out")}
                self.histories[i].append({"epoch": epoch, "train_loss": loss} | shown)
                score = metrics[SELECTION[self.task]]
                if np.isnan(self.best_scores[i]) or score > self.best_scores[i]:
                    self.best_scores[i], self.best_epochs[i] = score, epoch
                    for name, w in self.weights.items():
                        best[name][i] = w.detach()[i]
            after_epoch()
        self.weights = best

    def _standardize(self, targets: NDArray[np.float64]) -> None:
        shift, scale = targets.mean(axis=0), targets.std(axis=0)
        # Rounding may leave a constant target a deviation that is not quite 0.
        scale = np.where(scale > 1e-7 * np.maximum(1, np.abs(shift)), scale, 1.0)
        self.shift, self.scale = (_tensor(x).to(self.device) for x in (shift, scale))

    @torch.no_grad()
    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, M or L, D] → logits, for a regression values: [M · S, N, C]."""
        parts = _tensor(features).split(_EVALUATED_AT_ONCE)
        outputs = [self.forward(part[None].to(self.device)) for part in parts]
        found: NDArray[np.float32] = (torch.cat(outputs, 1) * self.scale + self.shift).cpu().numpy()
        return found

    def probe(self, index: int) -> Probe:
        """Probe ``index`` = set · S + seed, by itself, on the CPU."""
        probe = Probe(*self._sizes)
        state = {name: w[index] for name, w in self.weights.items()}
        state |= {"scale": self.scale, "shift": self.shift}
        probe.load_state_dict({k: v.detach().cpu().contiguous() for k, v in state.items()})
        return probe.eval()


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[G, B, D], [G, H, D], [G, H] → [G, B, H]."""
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        # oneDNN's products, one by one, take half as long as MKL's batched one on an AMD CPU.
        layers = zip(x, weight, bias, strict=True)
        return torch.stack([F.linear(own.to_mkldnn(), w, b).to_dense() for own, w, b in layers])
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
