"""Split tracks into train, validation and test: groups stay whole, labels occur in every split.

Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (ECML PKDD 2011), with
groups of tracks in place of tracks: the rarest label first, each group to the side that needs it.
"""

from __future__ import annotations

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
    own = np.array([number[group] for group in groups])
    dealer = _Dealer(own, targets, shares, seed)
    dealer.deal()
    dealer.repair()
    return [SPLITS[side] for side in dealer.side[own]]


class _Dealer:
    def __init__(
        self, own: np.ndarray, targets: np.ndarray, fractions: np.ndarray, seed: int
    ) -> None:
        """``own`` [N]: the index of each track's group."""
        self.sizes, self.fractions = np.bincount(own), fractions  # tracks of each group
        n_groups, n_labels = len(self.sizes), targets.shape[1]
        tracks, columns = np.nonzero(targets)
        cells, counts = np.unique(own[tracks] * n_labels + columns, return_counts=True)
        groups, labels = np.divmod(cells, n_labels)
        bounds = np.searchsorted(groups, np.arange(1, n_groups))
        # The labels of each group, with its tracks that have them; the groups of each label
        self.labels, self.counts = np.split(labels, bounds), np.split(counts, bounds)
        by_label = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[by_label], np.arange(1, n_labels))
        self.groups = np.split(groups[by_label], bounds)
        self.label_counts = np.split(counts[by_label], bounds)
        self.total = np.count_nonzero(targets, axis=0)
        self.order = np.random.default_rng(seed).permutation(n_groups)  # breaks ties
        self.side = np.full(n_groups, -1)  # of each group; -1: not dealt yet
        self.members, self.tracks = np.zeros((2, 3), np.int64)  # groups and tracks on each side
        # [3, C] tracks, and groups, with each label on each side
        self.positives, self.holders = np.zeros((2, 3, n_labels), np.int64)

    def put(self, group: int, side: int) -> None:
        labels, counts = self.labels[group], self.counts[group]
        for where, sign in ((self.side[group], -1), (side, 1)):
            if where >= 0:
                self.members[where] += sign
                self.tracks[where] += sign * self.sizes[group]
                self.positives[where, labels] += sign * counts
                self.holders[where, labels] += sign
        self.side[group] = side

    def deal(self) -> None:
        left = np.array([len(own) for own in self.groups])  # groups of each label not dealt yet
        while left.any():
            label = int(np.where(left > 0, left, left.max() + 1).argmin())
            free = np.flatnonzero(self.side[self.groups[label]] < 0)
            groups, counts = self.groups[label][free], self.label_counts[label][free]
            # The largest first: small groups even out the rest.
            for i in np.lexsort((self.order[groups], -counts)):
                self.put(groups[i], self._best_side(groups[i], label, left[label]))
                left[self.labels[groups[i]]] -= 1
        unlabelled = np.flatnonzero(self.side < 0)
        for group in unlabelled[np.lexsort((self.order[unlabelled], -self.sizes[unlabelled]))]:
            self.put(group, int(self._room().argmax()))

    def _room(self) -> np.ndarray:
        """Tracks that each side still needs, float64 [3]."""
        return self.fractions * self.sizes.sum() - self.tracks

    def _best_side(self, group: int, label: int, left: int) -> int:
        """The side that a group brings nearest to its shares of tracks and the label."""
        labels, counts = self.labels[group], self.counts[group]
        wants = self.fractions[:, None] * self.total[labels] - self.positives[:, labels]
        gains = np.abs(wants) - np.abs(wants - counts)
        room = self._room()
        served = np.abs(room) - np.abs(room - self.sizes[group])
        served += gains[:, np.flatnonzero(labels == label)[0]]
        lacking = self.holders[:, label] == 0
        if left <= lacking.sum():  # the last groups go to sides without the label
            served = np.where(lacking, served, -np.inf)
        return int(np.lexsort((room, gains.sum(axis=1), served.round(9)))[-1])

    def repair(self) -> None:
        """Move single groups to sides that are empty or lack a label."""
        full = np.array([len(own) >= 3 for own in self.groups])
        for side in range(3):
            if len(self.side) >= 3 and not self.members[side]:
                self.put(self._to_fill(side, full), side)
        for side in range(3):
            for label in np.flatnonzero(full & (self.holders[side] == 0)):
                if self.holders[side, label]:  # a group moved for another label brought it
                    continue
                able = [group for group in self.groups[label] if self._can_leave(group, full)]
                if able:
                    self.put(min(able, key=lambda g: (self.sizes[g], self.order[g])), side)

    def _to_fill(self, side: int, full: np.ndarray) -> int:
        """The best group for an empty side: one that can leave, then the nearest to the shares."""
        room = self._room()

        def cost(group: int) -> tuple[bool, float, int]:
            left = room.copy()
            left[self.side[group]] += self.sizes[group]
            left[side] -= self.sizes[group]
            misfit = round(float(np.abs(left).sum()), 9)
            return not self._can_leave(group, full), misfit, self.order[group]

        return min(np.flatnonzero(self.members[self.side] >= 2).tolist(), key=cost)

    def _can_leave(self, group: int, full: np.ndarray) -> bool:
        """Whether its side keeps another group, and another for each of its labels in ``full``."""
        if self.members[self.side[group]] < 2:
            return False
        labels = self.labels[group]
        own = labels[full[labels]]
        return bool((self.holders[self.side[group], own] >= 2).all())
