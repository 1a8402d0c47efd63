"""Which clips an epoch of training sees, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

log = logging.getLogger(__name__)


def label_balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Weights that bring up the clips of rare labels, as in PaSST's recipe for AudioSet.

    Args:
        targets: [N, C] of 0 and 1.

    Returns:
        float64 [N], summing to 1: for each clip the sum over its labels of
        1000 / (count of the label + 100). Clips without a label get the smallest weight there is.
    """
    targets = np.asarray(targets)
    per_label = 1000 / (targets.sum(axis=0, dtype=np.float64) + 100)
    weights = targets @ per_label
    positive = weights[weights > 0]
    weights[weights == 0] = positive.min() if len(positive) else 1.0
    return weights / weights.sum()


class ClipSampler(Sampler[tuple[int, int]]):
    """Draw the clips of an epoch, each with the seed of its random crop.

    The draw depends on ``seed`` and the epoch alone (Lightning calls :meth:`set_epoch`), so that
    a run is the same whatever the number of worker processes.

    Args:
        targets: [N, C]; of 0 and 1 if ``balanced``, else no more than their number matters.
        clips_per_epoch: length of an epoch; N if None. More than N: clips come repeatedly.
        balanced: draw by :func:`label_balanced_weights`, without replacement; with replacement
            where an epoch has no fewer clips than there are.
        seed: of the draws.
    """

    def __init__(
        self, targets: np.ndarray, clips_per_epoch: int | None, balanced: bool, seed: int
    ) -> None:
        self.size = len(targets)
        self.length = clips_per_epoch or self.size
        self.weights = label_balanced_weights(targets) if balanced else None
        self.replace = self.length >= self.size
        self.seed = seed
        self.epoch = 0
        if balanced and self.replace:
            log.info(
                "label-balanced sampling with replacement: an epoch is %d clips, of %d there are",
                self.length,
                self.size,
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is not None:
            order = rng.choice(self.size, self.length, replace=self.replace, p=self.weights)
        else:
            rounds = -(-self.length // self.size)
            order = np.concatenate([rng.permutation(self.size) for _ in range(rounds)])
        seeds = rng.integers(2**63, size=self.length)
        yield from zip(order[: self.length].tolist(), seeds.tolist(), strict=True)
