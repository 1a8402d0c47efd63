"""The sampler chooses the clips of a training epoch, and their order."""

import logging
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from maest.helpers.errors import InputError

log = logging.getLogger(__name__)


def label_balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Weigh clips by how rare their labels are, as PaSST does for AudioSet.

    Targets [N, C], 0 … 1 → float64 [N] with sum 1. A clip weighs the sum over its labels of
    1000 / (count of the label + 100), before scaling; one without labels weighs the least of these.
    Soft targets count by their value, unknown ones (NaN) not at all.
    """
    if targets.dtype.kind == "f":
        targets = np.nan_to_num(targets)
    per_label = 1000 / (targets.sum(axis=0, dtype=np.float64) + 100)
    weights = np.einsum("nc,c->n", targets, per_label)  # unlike @, makes no float64 copy of targets
    weights[weights == 0] = weights.min(where=weights > 0, initial=per_label.sum())
    return weights / weights.sum()


class ClipSampler(Sampler[tuple[int, int]]):
    """Draws the clips of an epoch: pairs of a track's index and the seed of its random crop.

    The draw depends only on ``seed`` and the epoch (Lightning calls :meth:`set_epoch`), not on the
    number of workers. Ranks share one draw: rank r takes positions r, r + world_size, …; a tail
    of fewer than ``world_size`` clips is dropped, so that all ranks have equally many.

    ``targets`` [N, C] are 0 … 1, NaN unknown; unless ``balanced``, only N matters.
    ``clips_per_epoch`` counts all ranks together (None: N); beyond N, clips repeat. ``balanced``
    draws by :func:`label_balanced_weights`, with replacement if an epoch has N clips or more.
    ``lengths`` [N] multiply a track's chance; it is drawn with replacement then. Raises InputError
    if an epoch has fewer clips than there are ranks.
    """

    def __init__(
        self,
        targets: np.ndarray,
        clips_per_epoch: int | None,
        balanced: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.size, self.clips = len(targets), clips_per_epoch or len(targets)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch, self.to_skip = 0, 0
        self.weights = label_balanced_weights(targets) if balanced else None
        self.repeats = self.clips >= self.size or lengths is not None
        if lengths is not None and lengths.any():
            self.weights = lengths * (1.0 if self.weights is None else self.weights)
            self.weights = self.weights / self.weights.sum()
        if self.clips < world_size:
            what = f"an epoch of {self.clips} clips is too short for {world_size} processes"
            setting, hint = "datamodule.clips_per_epoch", "Raise it, or train on fewer devices."
            raise InputError(what, kind="conflict", setting=setting, hint=hint)
        if balanced and self.clips >= self.size and rank == 0:
            text = "label-balanced sampling with replacement: an epoch is %d clips, of %d there are"
            log.info(text, self.clips, self.size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip(self, clips: int) -> None:
        """Skip this rank's first ``clips`` clips, in the next iteration only; ``len`` stays."""
        self.to_skip = clips

    def __len__(self) -> int:
        return self.clips // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, self.to_skip = self.to_skip, 0
        rng, size, clips = np.random.default_rng((self.seed, self.epoch)), self.size, self.clips
        if self.weights is not None:
            order = rng.choice(size, clips, replace=self.repeats, p=self.weights)
        else:
            rounds = -(-clips // size)
            order = np.concatenate([rng.permutation(size) for _ in range(rounds)])
        seeds = rng.integers(2**63, size=clips)
        step = self.world_size
        share = slice(self.rank + first * step, len(self) * step, step)
        yield from zip(order[share].tolist(), seeds[share].tolist(), strict=True)
