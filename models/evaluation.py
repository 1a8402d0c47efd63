"""The evaluation of networks on whole tracks: validation, and test."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.errors import InputError
from maest.helpers.metrics import Evaluation, evaluate
from maest.models.maest import Maest
from maest.models.sizes import on_device

log = logging.getLogger(__name__)

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multi-label": F.binary_cross_entropy_with_logits,
    "single-label": F.cross_entropy,  # with distributions over the classes as targets
    "regression": F.mse_loss,
}


@dataclass(frozen=True)
class Scored:
    """How a network does on N tracks."""

    evaluation: Evaluation
    loss: float  # mean over tracks of the loss of their mean logits
    targets: np.ndarray  # float32 [N, C], as the outputs
    outputs: np.ndarray  # activations


class TrackScores:
    """Collects the outputs of networks for whole tracks, and scores them together.

    A track's logits and activations are the means of its patches', weighted by their lengths.
    The networks must be in eval mode; files that batches could not read are added to ``skipped``.
    """

    def __init__(
        self,
        nets: Mapping[str, Maest],
        patches_per_pass: int = 32,
        skipped: dict[str, str] | None = None,
    ) -> None:
        self.nets = dict(nets)
        self.patches_per_pass = patches_per_pass
        self.skipped = {} if skipped is None else skipped
        self._keys: list[str] = []
        self._values: dict[str, list[Tensor]] = defaultdict(list)  # a tensor a batch

    def add(self, batch: Any) -> None:
        """Run a ``datasets.batches.TrackBatch`` through the networks."""
        note_skipped(self.skipped, batch.errors)
        if not len(batch):
            return
        self._keys += batch.keys
        self._values["targets"].append(batch.targets.cpu())
        for name, net in self.nets.items():
            logits, activations = track_means(net, batch, self.patches_per_pass)
            self._values[f"logits {name}"].append(logits.cpu())
            self._values[f"activations {name}"].append(activations.cpu())

    def result(self) -> dict[str, Scored]:
        """By the network's name, of the tracks of all processes together.

        Raises:
            InputError: there are no tracks: none could be read.
            FloatingPointError: outputs are NaN or infinite.
        """
        values = {name: torch.cat(parts) for name, parts in self._values.items()}
        keys, values = _gather(self._keys, values, self.skipped)
        if not keys:
            reasons = "; ".join(list(self.skipped.values())[:3])
            raise InputError(
                f"not one of the tracks to evaluate on could be read ({reasons})",
                kind="empty",
                hint="`python ex_maest.py check_data` with the same settings lists what is wrong.",
                setting="datamodule.on_error",
            )
        scored, targets = {}, values["targets"]
        for name, net in self.nets.items():
            outputs = values[f"activations {name}"]
            if not torch.isfinite(outputs).all():
                raise FloatingPointError("the outputs are NaN or infinite")
            loss = float(task_loss(net, values[f"logits {name}"], targets))
            evaluation = evaluate(net.task, targets.numpy(), outputs.numpy())
            scored[name] = Scored(evaluation, loss, targets.numpy(), outputs.numpy())
        return scored


def track_means(net: Maest, batch: Any, patches_per_pass: int = 32) -> tuple[Tensor, Tensor]:
    """Mean logits and mean activations of a batch's N tracks, float32 [N, C]."""
    tracks = torch.cat([track for _, track in batch.groups])
    lengths = torch.cat([track.new_full(track.shape, mel.shape[1]) for mel, track in batch.groups])
    pieces = (piece for mel, _ in batch.groups for piece in mel.split(patches_per_pass))
    logits = torch.cat([net(network_input(net, piece))[0].float() for piece in pieces])
    weights = lengths[:, None].to(logits)
    total = logits.new_zeros(len(batch), 1).index_add_(0, tracks, weights)

    def mean(values: Tensor) -> Tensor:
        summed = values.new_zeros(len(batch), values.shape[1])
        return summed.index_add_(0, tracks, values * weights) / total

    return mean(logits), mean(net.activations(logits))


def network_input(net: Maest, mel: Tensor) -> Tensor:
    """[B, T, F] as on disk → normalised float32 [B, F, T]."""
    return net.normalise(mel.float()).transpose(1, 2)


def task_loss(
    net: Maest,
    logits: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    dist_targets: Tensor | None = None,
) -> Tensor:
    """Mean loss of logits [N, C]; of two heads, the mean of their losses.

    ``targets`` [N, C] may be mixtures; ``dist_targets`` are the second head's, if it has its own.
    """
    if isinstance(logits, tuple):
        cls, dist = logits
        other = targets if dist_targets is None else dist_targets
        return (task_loss(net, cls, targets) + task_loss(net, dist, other)) / 2
    logits = logits.float()
    if net.target_std is not None:  # values of any scale count alike
        deviation = on_device(torch.tensor(net.target_std), logits.device)
        logits, targets = logits / deviation, targets / deviation
    return _LOSSES[net.task](logits, targets)


def note_skipped(skipped: dict[str, str], errors: Mapping[str, str]) -> None:
    """Add files that could not be read, and warn of each once."""
    for key in errors.keys() - skipped.keys():
        log.warning("skipped: %s", errors[key])
    skipped |= errors


def n_processes() -> int:
    """How many processes train or evaluate together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def _gather(
    keys: list[str], values: dict[str, Tensor], skipped: dict[str, str]
) -> tuple[list[str], dict[str, Tensor]]:
    """The tracks of all processes, each once, in the order of the ground truth.

    Process r of n has tracks r, r + n, r + 2n, …, and some have one of another's too, so that all
    have as many batches. ``skipped`` is added to.
    """
    if n_processes() == 1:
        return keys, values
    parts: list[Any] = [None] * n_processes()
    torch.distributed.all_gather_object(parts, (keys, values, skipped))
    for _, _, others in parts:
        note_skipped(skipped, others)
    places: dict[str, tuple[int, int]] = {}
    for row in range(max(len(own) for own, _, _ in parts)):
        for rank, (own, _, _) in enumerate(parts):
            if row < len(own):
                places.setdefault(own[row], (rank, row))
    names: dict[str, Tensor] = next((names for _, names, _ in parts if names), {})
    return list(places), {
        name: torch.stack([parts[rank][1][name][row] for rank, row in places.values()])
        for name in names
    }
