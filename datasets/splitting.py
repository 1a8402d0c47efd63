"""Split tracks into train, validation and test: groups stay whole, labels occur in every split.

Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (ECML PKDD 2011), with
groups of tracks in place of tracks: the rarest label first, each group to the split that needs it.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from maest.helpers.errors import InputError

SPLITS = ("train", "validation", "test")


def split_by_group(
    groups: Sequence[Hashable], targets: np.ndarray, fractions: Sequence[float], seed: int
) -> list[str]:
    """Choose a split for each of N tracks, from their groups [N] and targets (bool [N, C]).

    Shares of tracks, and of tracks with each label, approach ``fractions``. With three groups or
    more, no split is empty; a label in three groups or more is in every split, unless other labels
    prevent it. Raises InputError unless ``fractions`` are three positive numbers with sum 1.
    """
    shares = np.array(fractions, np.float64)
    if shares.shape != (3,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        what = f"{list(fractions)} are not three positive numbers that sum to 1"
        hint = "Give those of train, validation and test, such as 0.8,0.1,0.1."
        raise InputError(what, setting="--fractions", hint=hint)
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    numbers = np.array([number[group] for group in groups])
    splitter = _GroupSplitter(numbers, targets, shares, seed)
    splitter.assign()
    splitter.rebalance()
    return [SPLITS[split] for split in splitter.split[numbers]]


class _GroupSplitter:
    def __init__(
        self, numbers: np.ndarray, targets: np.ndarray, fractions: np.ndarray, seed: int
    ) -> None:
        """``numbers`` [N]: each track's group."""
        self.sizes, self.fractions = np.bincount(numbers), fractions  # tracks of each group
        order, dtype = np.argsort(numbers, kind="stable"), np.min_scalar_type(self.sizes.max())
        first = np.cumsum(self.sizes) - self.sizes  # track of each group, in this order
        # [groups, C] tracks of each group with each label
        self.counts = np.add.reduceat(targets[order], first, axis=0, dtype=dtype)
        self.total = self.counts.sum(axis=0, dtype=np.int64)  # [C] tracks with each label
        self.groups = np.count_nonzero(self.counts, axis=0)  # and groups
        self.order = np.random.default_rng(seed).permutation(len(self.sizes))  # breaks ties
        self.split = np.full(len(self.sizes), -1)  # of each group; -1: none yet
        self.members, self.tracks = np.zeros((2, 3), np.int64)  # groups and tracks of each split
        # [3, C] tracks, and groups, with each label in each split
        self.positives, self.holders = np.zeros((2, 3, targets.shape[1]), np.int64)

    def move(self, group: int, split: int) -> None:
        counts = self.counts[group].astype(np.int64)
        for where, sign in ((self.split[group], -1), (split, 1)):
            if where >= 0:
                self.members[where] += sign
                self.tracks[where] += sign * self.sizes[group]
                self.positives[where] += sign * counts
                self.holders[where] += sign * (counts > 0)
        self.split[group] = split

    def assign(self) -> None:
        left = self.groups.copy()  # groups of each label without a split
        while left.any():
            label = int(np.where(left > 0, left, left.max() + 1).argmin())
            counts = self.counts[:, label]
            groups = np.flatnonzero((counts > 0) & (self.split < 0))
            # The largest first: small groups even out the rest.
            for group in groups[np.lexsort((self.order[groups], -counts[groups].astype(int)))]:
                self.move(group, self._best_split(group, label, left[label]))
                left -= self.counts[group] > 0
        unlabelled = np.flatnonzero(self.split < 0)
        for group in unlabelled[np.lexsort((self.order[unlabelled], -self.sizes[unlabelled]))]:
            self.move(group, int(self._room().argmax()))

    def _room(self) -> np.ndarray:
        """Tracks that each split still needs, float64 [3]."""
        return self.fractions * self.sizes.sum() - self.tracks

    def _best_split(self, group: int, label: int, left: int) -> int:
        """The split that a group brings nearest to its shares of tracks and the label."""
        labels = np.flatnonzero(self.counts[group])
        counts = self.counts[group, labels].astype(np.int64)
        wanted = self.fractions[:, None] * self.total[labels] - self.positives[:, labels]
        gains = np.abs(wanted) - np.abs(wanted - counts)
        room = self._room()
        gain = np.abs(room) - np.abs(room - self.sizes[group])
        gain += gains[:, np.searchsorted(labels, label)]
        lacking = self.holders[:, label] == 0
        if left <= lacking.sum():  # the last groups go to splits without the label
            gain = np.where(lacking, gain, -np.inf)
        return int(np.lexsort((room, gains.sum(axis=1), gain.round(9)))[-1])

    def rebalance(self) -> None:
        """Move single groups to splits that are empty or lack a label."""
        for split in range(3):
            if len(self.split) >= 3 and not self.members[split]:
                self.move(self._best_to_fill(split), split)
        for split in range(3):
            for label in np.flatnonzero((self.groups >= 3) & (self.holders[split] == 0)):
                # A group that was moved for another label may have brought this one.
                holders = np.flatnonzero(self.counts[:, label]).tolist()
                able = [group for group in holders if self._can_leave(group)]
                if able and not self.holders[split, label]:
                    self.move(min(able, key=lambda g: (self.sizes[g], self.order[g])), split)

    def _best_to_fill(self, split: int) -> int:
        """The best group for an empty split: one that can leave, then the nearest to the shares."""
        room = self._room()

        def cost(group: int) -> tuple[bool, float, int]:
            left = room.copy()
            left[self.split[group]] += self.sizes[group]
            left[split] -= self.sizes[group]
            misfit = round(float(np.abs(left).sum()), 9)
            return not self._can_leave(group), misfit, self.order[group]

        return min(np.flatnonzero(self.members[self.split] >= 2).tolist(), key=cost)

    def _can_leave(self, group: int) -> bool:
        """Whether its split keeps a group, and one for each of its labels in three groups."""
        split = self.split[group]
        holders = self.holders[split, (self.counts[group] > 0) & (self.groups >= 3)]
        return self.members[split] >= 2 and bool((holders >= 2).all())
