"""Which clips an epoch of training sees, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from maest.helpers.errors import InputError

log = logging.getLogger(__name__)

_ROWS = 65_536  # of the targets that are cast at once: 210 MB of 400 labels


def label_balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Weights that bring up the clips of rare labels, as in PaSST's recipe for AudioSet.

    Targets [N, C] of 0 and 1 → float64 [N], summing to 1: for each clip the sum over its labels of
    1000 / (count of the label + 100). Clips without a label get the smallest weight there is.
    """
    per_label = 1000 / (targets.sum(axis=0, dtype=np.float64) + 100)
    weights = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):  # a product casts what it is given to float64
        weights[start : start + _ROWS] = targets[start : start + _ROWS] @ per_label
    positive = weights[weights > 0]
    weights[weights == 0] = positive.min() if len(positive) else 1.0
    return weights / weights.sum()


class ClipSampler(Sampler[tuple[int, int]]):
    """Draw the clips of an epoch, each with the seed of its random crop.

    The draw depends on ``seed`` and the epoch alone (Lightning calls :meth:`set_epoch`), so that
    a run is the same whatever the number of worker processes. Several training processes share one
    draw: rank r has its positions r, r + world_size, and so on, and no clip is read twice. So that
    all have equally many, a tail of fewer than ``world_size`` clips is left out.

    ``targets`` [N, C] are of 0 and 1 if ``balanced``, else no more than their number matters.
    ``clips_per_epoch``, of all ranks together, is N if None; if more than N, clips come repeatedly.
    ``balanced`` draws by :func:`label_balanced_weights`, without replacement; with replacement
    where an epoch has no fewer clips than there are.

    InputError: there are fewer clips in an epoch than processes.
    """

    def __init__(
        self,
        targets: np.ndarray,
        clips_per_epoch: int | None,
        balanced: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = len(targets)
        self.clips = clips_per_epoch or self.size
        if self.clips < world_size:
            what = f"an epoch of {self.clips} clips is too short for {world_size} processes"
            setting, hint = "datamodule.clips_per_epoch", "Raise it, or train on fewer devices."
            raise InputError(what, kind="conflict", setting=setting, hint=hint)
        self.rank, self.world_size = rank, world_size
        self.weights = label_balanced_weights(targets) if balanced else None
        self.replace = self.clips >= self.size
        self.seed, self.epoch, self.to_skip = seed, 0, 0
        if balanced and self.replace and rank == 0:
            text = "label-balanced sampling with replacement: an epoch is %d clips, of %d there are"
            log.info(text, self.clips, self.size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip(self, clips: int) -> None:
        """Let the next iteration, and no other, begin after ``clips`` clips of this rank.

        The length stays that of the whole epoch.
        """
        self.to_skip = clips

    def __len__(self) -> int:
        return self.clips // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, self.to_skip = self.to_skip, 0
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is not None:
            order = rng.choice(self.size, self.clips, replace=self.replace, p=self.weights)
        else:
            rounds = -(-self.clips // self.size)
            order = np.concatenate([rng.permutation(self.size) for _ in range(rounds)])
        seeds = rng.integers(2**63, size=self.clips)
        own = slice(
            self.rank + first * self.world_size, len(self) * self.world_size, self.world_size
        )
        yield from zip(order[own].tolist(), seeds[own].tolist(), strict=True)


class TrackSampler(Sampler[int]):
    """Each track once, in order, shared by several processes: rank r has r, r + world_size, …

    All ranks have equally many, as collective operations need them: the last go on with the first
    tracks again, which whoever gathers the results drops by their keys.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.rank, self.world_size = size, rank, world_size

    def __len__(self) -> int:
        return -(-self.size // self.world_size)

    def __iter__(self) -> Iterator[int]:
        places = range(self.rank, len(self) * self.world_size, self.world_size)
        return (place % self.size for place in places)
