"""Evaluation of networks on whole tracks: validation and test."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.audio.patches import pooled
from maest.helpers.errors import InputError
from maest.helpers.reports.metrics import Evaluation, evaluate
from maest.models.maest import Maest
from maest.models.sizes import on_device

log = logging.getLogger(__name__)

_PATCHES_PER_PASS = 32


def known_factor(targets: Tensor) -> Tensor:
    """All targets / known ones of [..., N, C]: makes a mean over all that of the known, [...].

    It is exactly 1 for complete targets, and is computed on their device: nobody waits for it.
    """
    known = (~targets.isnan()).sum(dim=(-2, -1))
    # Tensors by tensors: by or of a number, PyTorch may multiply by an inverse, which is not exact.
    return torch.full_like(known, targets.shape[-2] * targets.shape[-1]) / known.clamp(min=1)


def label_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy of logits [N, C] and targets, 0 to 1; of NaN, unknown ones, 0.

    The mean is over the known targets: 0 if there are none.
    """
    known = (~targets.isnan()).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(), known, reduction=reduction
    )
    return loss if reduction == "none" else loss * known_factor(targets)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "multi-label": label_loss,
    "single-label": F.cross_entropy,  # with distributions over the classes as targets
    "regression": F.mse_loss,
}
# key, targets [C], and by the network's name its mean logits and activations [C]
_Row = tuple[str, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Scored:
    """A network's scores on N tracks."""

    evaluation: Evaluation
    loss: float  # mean over tracks of the loss of their mean logits
    targets: np.ndarray  # float32 [N, C], as the outputs
    outputs: np.ndarray  # activations


class TrackScores:
    """Collects and scores the outputs of networks (by name, in eval mode) for whole tracks."""

    def __init__(
        self,
        nets: Mapping[str, Maest],
        patches_per_pass: int | None = None,
        skipped: dict[str, str] | None = None,
    ) -> None:
        self.nets, self.patches_per_pass = dict(nets), patches_per_pass
        # Files that batches could not read, with reasons
        self.skipped = {} if skipped is None else skipped
        self._rows: list[_Row] = []

    def add(self, batch: Any) -> None:
        """Run a ``datasets.batches.TrackBatch`` through the networks."""
        note_skipped(self.skipped, batch.errors)
        if not len(batch):
            return
        means = {n: track_means(net, batch, self.patches_per_pass) for n, net in self.nets.items()}
        for i, (key, targets) in enumerate(zip(batch.keys, batch.targets.cpu(), strict=True)):
            outputs = {n: (logits[i], activations[i]) for n, (logits, activations) in means.items()}
            self._rows.append((key, targets.numpy(), outputs))

    def result(self) -> dict[str, Scored]:
        """Score all processes' tracks. InputError: there are none; FloatingPointError: NaN."""
        rows = _gather(self._rows, self.skipped)
        if not rows:
            reasons = "; ".join(list(self.skipped.values())[:3])
            message = f"not one of the tracks to evaluate on could be read ({reasons})"
            hint = "`python ex_maest.py check_data` with the same settings lists what is wrong."
            raise InputError(message, kind="empty", setting="datamodule.on_error", hint=hint)
        scored, targets = {}, np.stack([targets for _, targets, _ in rows])
        for name, net in self.nets.items():
            logits, outputs = (np.stack([row[2][name][i] for row in rows]) for i in (0, 1))
            if not np.isfinite(outputs).all():
                raise FloatingPointError("the outputs are NaN or infinite")
            loss = float(task_loss(net, torch.from_numpy(logits), torch.from_numpy(targets)))
            scored[name] = Scored(evaluate(net.task, targets, outputs), loss, targets, outputs)
        return scored


def track_means(
    net: Maest, batch: Any, patches_per_pass: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean logits and mean activations of a batch's N tracks, float32 [N, C]."""
    at_once = patches_per_pass or _PATCHES_PER_PASS
    pieces = (piece for mel, _ in batch.groups for piece in mel.split(at_once))
    logits = torch.cat([net(network_input(net, piece))[0].float() for piece in pieces])
    tracks = torch.cat([track for _, track in batch.groups]).cpu()
    frames = np.concatenate([np.full(len(mel), mel.shape[1]) for mel, _ in batch.groups])
    rows = [np.flatnonzero(tracks == track) for track in range(len(batch))]

    def mean(values: Tensor) -> np.ndarray:
        array = values.cpu().numpy()
        return np.stack([pooled(array[own], frames[own].tolist()) for own in rows])

    return mean(logits), mean(net.activations(logits))


def network_input(net: Maest, mel: Tensor) -> Tensor:
    """Normalise mels as on disk, [B, T, F] → float32 [B, F, T]."""
    return net.normalise(mel.float()).transpose(1, 2)


def task_loss(
    net: Maest,
    logits: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    dist_targets: Tensor | None = None,
) -> Tensor:
    """Mean loss of logits [N, C]; of two heads, the mean of their losses.

    ``targets`` [N, C] may be mixtures; unknown labels, NaN, take no part. ``dist_targets``, if any,
    are the second head's.
    """
    if isinstance(logits, tuple):
        cls, dist = logits
        other = targets if dist_targets is None else dist_targets
        return (task_loss(net, cls, targets) + task_loss(net, dist, other)) / 2
    logits = logits.float()
    if net.target_std is not None:  # values of any scale count alike
        deviation = on_device(torch.tensor(net.target_std), logits.device)
        logits, targets = logits / deviation, targets / deviation
    return LOSSES[net.task](logits, targets)


def note_skipped(skipped: dict[str, str], errors: Mapping[str, str]) -> None:
    """Add unreadable files, with one warning each."""
    for key in errors.keys() - skipped.keys():
        log.warning("skipped: %s", errors[key])
    skipped |= errors


def n_processes() -> int:
    """The number of processes that train or evaluate together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def _gather(rows: list[_Row], skipped: dict[str, str]) -> list[_Row]:
    """Merge all processes' tracks, each once, in the ground truth's order; extend ``skipped``."""
    if n_processes() == 1:
        return rows
    parts: list[Any] = [None] * n_processes()
    torch.distributed.all_gather_object(parts, (rows, skipped))
    for _, others in parts:
        note_skipped(skipped, others)
    # Process r of n has tracks r, r + n, …; some repeat another's, for equally many batches.
    tracks: dict[str, _Row] = {}
    for row in chain.from_iterable(zip_longest(*(rows for rows, _ in parts))):
        if row is not None:
            tracks.setdefault(row[0], row)
    return list(tracks.values())
