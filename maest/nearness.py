"""Which embeddings of a library are near one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

_ROWS = 4096  # in float32 at a time: 3 MB of 192 channels
_FEWEST = 10  # vectors whose mean says what they have in common


class Vectors:
    """N embeddings, whose cosines are taken after their mean is taken off.

    Without that, the cosines of any two tracks are high, by what all music has in common. The mean
    of less than ten says little, and stays: then cosines have an order, but show no copies.
    """

    def __init__(self, values: np.ndarray, among: np.ndarray | None = None) -> None:
        """``values``: float16 [N, D], kept as it is, so that a large library fits in memory.

        The mean is that of ``among`` [M, D], by default the same.
        """
        among = values if among is None else among
        self.values, self.is_centred = values, len(among) >= _FEWEST
        self.mean = np.zeros(values.shape[1], np.float32)
        if self.is_centred:
            self.mean = among.mean(axis=0, dtype=np.float32)
        blocks = [np.linalg.norm(block, axis=1) for _, block in self._blocks()]
        # A vector that is the mean is near nothing.
        norms = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        self.scales = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)

    def unit(self, rows: np.ndarray) -> np.ndarray:
        """Take the mean off rows [K, D], and scale them to length 1: float32 [K, D]."""
        rows = np.asarray(rows, np.float32) - self.mean
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)

    def cosines(self, queries: np.ndarray) -> np.ndarray:
        """Return the cosine of each vector with the middle of the queries [K, D]: float32 [N]."""
        middle = self.unit(queries).mean(axis=0)
        middle /= np.linalg.norm(middle) or 1
        cosines = np.empty(len(self.values), np.float32)
        for start, block in self._blocks():
            cosines[start : start + len(block)] = block @ middle
        return cosines * self.scales

    def near_pairs(
        self, seconds: np.ndarray, threshold: float, tolerance: float
    ) -> Iterator[tuple[int, int, float]]:
        """Yield (i, j, cosine) of pairs whose cosine is at or above ``threshold``; none of few.

        Only pairs whose durations, ``seconds`` [N], differ by at most ``tolerance`` are compared:
        copies are as long as one another, and all pairs of a large library would take minutes.
        """
        if not self.is_centred:
            return
        order = np.argsort(seconds, kind="stable")
        ends = np.searchsorted(seconds[order], seconds[order] + tolerance, "right")
        step = 512
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            first, last = self.unit(self.values[rows]), int(ends[start : start + step].max())
            for low in range(start, last, _ROWS):
                others = order[low : min(last, low + _ROWS)]
                cosines = first @ self.unit(self.values[others]).T
                for a, b in zip(*np.nonzero(cosines >= threshold), strict=True):
                    i, j = start + a, low + b  # places in the order
                    if i < j < ends[i]:
                        yield int(order[i]), int(order[j]), float(cosines[a, b])

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, float32 [rows, D] without the mean)."""
        for start in range(0, len(self.values), _ROWS):
            yield start, self.values[start : start + _ROWS].astype(np.float32) - self.mean


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Join pairs that share a member into groups, each sorted, in the order of their first."""
    leader: dict[int, int] = {}

    def first(member: int) -> int:
        while (above := leader.setdefault(member, member)) != member:
            leader[member] = leader[above]
            member = above
        return member

    for a, b in pairs:
        low, high = sorted((first(a), first(b)))
        leader[high] = low
    found: dict[int, list[int]] = {}
    for member in sorted(leader):
        found.setdefault(first(member), []).append(member)
    return [found[key] for key in sorted(found)]
