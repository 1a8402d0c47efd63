"""Probes: small networks on fixed features, which measure what can be read from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.errors import InputError
from maest.helpers.reports.metrics import MONITOR, evaluate
from maest.models.evaluation import LOSSES, known_factor

# The validation metric that chooses the epoch; the paper's is ROC-AUC.
SELECTION = MONITOR | {"multi-label": "roc_auc"}
_EVALUATED_AT_ONCE = 2048  # tracks
# The learning rate of a mix's weights, as a multiple of the others'. AdamW moves a weight by about
# the learning rate a step, whatever its gradient: enough for the layers' weights, which are small,
# but not for these, whose exponentials make the mix. At the rate of the others a data set of some
# hundred tracks left the mix of 12 blocks a plain mean (0.082 to 0.085 each).
_MIX_LR = 10.0


class ProbeBank:
    """Probes with one hidden layer, trained together: S seeds × M sets of features of D numbers.

    Probe m · S + s has set m and seed s. Its first weights, dropout and order of tracks depend on
    its seed alone, its loss on its weights alone: it equals, but for the last bits, one trained
    alone.

    With ``n_blocks`` L, each seed has one probe, of a mix of L blocks' features: their mean with
    weights that it learns, through a softmax. Features must be :func:`layer_normalized` then, as
    blocks differ in scale.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        seeds: Sequence[int] = (0,),
        *,
        hidden: int,
        dropout: float = 0.0,
        task: str = "multi-label",
        n_sets: int = 1,
        n_blocks: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds, self.hidden, self.dropout, self.n_sets = list(seeds), hidden, dropout, n_sets
        self.task, self.device = task, torch.device(device)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Stacked, G = M · S: ``net.0.weight`` [G, hidden, D], ``net.0.bias``, ``net.2.weight``
        # [G, C, hidden], ``net.2.bias``, and of a mix ``mix`` [G, L]
        self.weights: dict[str, Tensor] = {}
        if n_blocks is not None:
            self.weights["mix"] = torch.zeros(len(seeds), n_blocks)
        for layer, inputs, outputs in ((0, n_features, hidden), (2, hidden, n_classes)):
            for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
                # As `torch.nn.Linear` draws them: each seed's, the same for all sets
                own = [torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5, generator=g)
                       for g in self._generators]  # fmt: skip
                stacked = torch.stack(own).repeat(n_sets, *[1] * len(shape))
                self.weights[f"net.{layer}.{name}"] = stacked
        self.weights = {name: w.to(device) for name, w in self.weights.items()}
        # [C]: deviation and mean of a regression's training targets; else 1 and 0
        self.scale = torch.ones(n_classes, device=device)
        self.shift = torch.zeros(n_classes, device=device)
        # [G], of the kept weights; epochs count from 1
        self.best_scores = np.full(len(self), np.nan)
        self.best_epochs = np.zeros(len(self), int)
        # By probe and epoch: training loss and validation metrics
        self.histories: list[list[dict[str, float]]] = [[] for _ in range(len(self))]

    def __len__(self) -> int:
        return self.n_sets * len(self.seeds)

    def state(self, index: int) -> dict[str, Tensor]:
        """The weights of probe ``index``, with ``scale`` and ``shift``, on the CPU."""
        state = {name: w[index] for name, w in self.weights.items()}
        state |= {"scale": self.scale, "shift": self.shift}
        return {name: values.detach().cpu().clone() for name, values in state.items()}

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Load every probe's :meth:`state`. KeyError, RuntimeError: they are of another bank."""
        now = self.weights | {"scale": self.scale, "shift": self.shift}
        loaded = {name: torch.stack([state[name] for state in states]) for name in self.weights}
        loaded |= {name: states[0][name] for name in ("scale", "shift")}
        differing = [name for name in now if loaded[name].shape != now[name].shape]
        if differing:
            raise RuntimeError(f"of another shape: {', '.join(differing)}")
        self.scale, self.shift = loaded.pop("scale"), loaded.pop("shift")
        self.weights = loaded

    # ---- outputs ---------------------------------------------------------------------------------

    def forward(self, features: Tensor, training: bool = False) -> Tensor:
        """[S, B, M or L, D], or [1, …] for all seeds → [M · S, B, C], before ``scale``."""
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
        """[S, B, hidden]: 0, or the inverse of the share that stays."""
        drawn = torch.empty(len(self.seeds), -(-batch * self.hidden // 4), dtype=torch.int64)
        for own, generator in zip(drawn, self._generators, strict=True):
            own.random_(-(2**63), None, generator=generator)
        # Four draws of 16 bits each: ten times as fast as a Bernoulli draw for every one.
        draws = drawn.view(torch.int16)[:, : batch * self.hidden].view(-1, batch, self.hidden)
        # What draws are compared with must be of 16 bits too, or it would wrap around.
        keep = min(max(1, round((1 - self.dropout) * 2**16)), 2**16 - 1)
        return (draws < keep - 2**15).float().mul_(2**16 / keep)

    @torch.no_grad()
    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, M or L, D] → logits (of a regression, values) [M · S, N, C]."""
        parts = _tensor(features).split(_EVALUATED_AT_ONCE)
        outputs = [self.forward(part[None].to(self.device)) for part in parts]
        found: NDArray[np.float32] = (torch.cat(outputs, 1) * self.scale + self.shift).cpu().numpy()
        return found

    def activations(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, M or L, D] → mean activations (or values) over the probes, [N, C]."""
        outputs = torch.from_numpy(self.predict(features))
        if self.task == "multi-label":
            outputs = outputs.sigmoid()
        elif self.task == "single-label":
            outputs = outputs.softmax(-1)
        found: NDArray[np.float32] = outputs.mean(0).numpy()
        return found

    # ---- training --------------------------------------------------------------------------------

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean losses [M · S] of outputs [M · S, B, C] before ``scale``, and targets [S, B, C].

        Unknown labels, NaN, do not count.
        """
        targets = ((targets - self.shift) / self.scale).repeat(self.n_sets, 1, 1)
        tracks = outputs.flatten(0, 1), targets.flatten(0, 1)
        losses = LOSSES[self.task](*tracks, reduction="none").view(len(self), -1).mean(1)
        return losses * known_factor(targets)

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

        That is the first of equal ones, and the last if no epoch has a metric (NaN). A mix's
        weights learn ten times as fast as the others, and do not decay. ``train`` and ``val`` are
        features float32 [N, M or L, D] and targets [N, C]; ``lr_factor`` scales the rate after so
        many epochs. InputError "diverged": outputs are NaN or infinite.
        """
        features, targets = map(_tensor, train)
        if self.task == "regression":
            mean, std = (f(np.asarray(train[1], np.float64), axis=0) for f in (np.mean, np.std))
            # Rounding may leave a constant target a deviation that is not quite 0.
            std = np.where(std > 1e-7 * np.maximum(1, np.abs(mean)), std, 1.0)
            self.shift, self.scale = _tensor(mean).to(self.device), _tensor(std).to(self.device)
        groups: list[dict[str, Any]] = []
        for name, weight in self.weights.items():
            groups.append({"params": weight.requires_grad_()})
            if name == "mix":
                groups[-1] |= {"lr": lr * _MIX_LR, "weight_decay": 0.0}
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
                message = f"the probe's outputs became NaN or infinite in epoch {epoch}"
                hint = f"Give a smaller probe.lr; it is {lr:g}."
                raise InputError(message, kind="diverged", setting="probe.lr", hint=hint)
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


def layer_normalized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale features to mean 0 and variance 1 over the last axis, in place."""
    for part in map(torch.from_numpy, np.split(features, range(1024, len(features), 1024))):
        part.copy_(F.layer_norm(part, part.shape[-1:]))
    return features


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[G, B, D], [G, H, D], [G, H] → [G, B, H]."""
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        # oneDNN's products, one by one, take half as long as MKL's batched one on an AMD CPU.
        layers = zip(x, weight, bias, strict=True)
        return torch.stack([F.linear(own.to_mkldnn(), w, b).to_dense() for own, w, b in layers])
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
