"""Copies of a recording: other encodings, trimmed, cut out or at another level.

A track's print is its log-mel in half seconds and 16 coarse bands, without its level and its mean
spectrum. Two tracks are copies if their prints correlate where they overlap, at the best lag.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from maest.datasets.melspectrograms import MelFile
from maest.datasets.recordings.facts import Facts
from maest.datasets.recordings.splits import Recording
from maest.helpers.work.parallel import run_parallel

_HOP = 31  # frames: 0.496 s
_BANDS, _GROUP = 64, 4  # up to 3.6 kHz: above, codecs differ
_ROWS = 960  # of a print at most: the first 8 minutes
_LOUDNESS = 1000.0  # of the levelled energy: what is 30 dB below its mean counts little
_OVERLAP = 20  # rows that copies share at least: 10 s
_CANDIDATE = 0.1  # of the correlation as if the shorter track were as long as the other
# Excerpts of 16 pieces of music for games, against 160 others: where 20 s or more overlap, none
# correlates by more than 0.7, while those of 21 s, coded or not, correlate with their own piece by
# 0.88 or more (15 of 16). Where less overlaps, chance reaches 0.85, and 0.89 between an explosion
# and music, while excerpts of 16 s are above 0.92 in 11 cases of 16: the others are not found.
THRESHOLD, SHORT_THRESHOLD = 0.85, 0.92
_SHORT = 40  # rows: 20 s


def find_copies(
    recordings: Sequence[Recording],
    facts: Mapping[str, Facts],
    store: Path,
    no_music: Sequence[str],
    num_workers: int | None,
    progress: bool,
) -> tuple[dict[str, str], list[tuple[str, str, float]]]:
    """Find duplicates, key → the one that is kept, and pairs of near copies among the others.

    Tracks of the sources ``no_music`` have no near copies: noises are too much alike.
    """
    first: dict[str, str] = {}
    duplicates, copies, kept = dict[str, str](), list[tuple[str, str, float]](), list[str]()
    # Known recordings are kept, and held-out ones rather than others.
    for one in sorted(recordings, key=lambda one: (not one.known, not one.fixed, one.key)):
        marks = [mark for mark in (facts[one.key].sha256, facts[one.key].content) if mark]
        original = next((first[mark] for mark in marks if mark in first), None)
        for mark in marks:
            first.setdefault(mark, original or one.key)
        if original is None:
            kept.append(one.key)
        elif one.known:
            copies.append((original, one.key, 1.0))
        else:
            duplicates[one.key] = original
    music = (key for key in sorted(kept) if key.partition("/")[0] not in no_music)
    prints = {key: seen for key in music if (seen := print_of(store / key)) is not None}
    keys = list(prints)
    pairs = near_copies(list(prints.values()), num_workers, progress)
    return duplicates, copies + [(keys[a], keys[b], score) for a, b, score in pairs]


def print_of(path: str | Path) -> np.ndarray | None:
    """A track's print, float32 [rows, 16] of unit norm; None if it is too short, or silent."""
    with MelFile(path) as mel:
        frames = min(len(mel), (_ROWS + 1) * _HOP)
        log_mel = mel.read(0, frames)[: frames // _HOP * _HOP, :_BANDS].astype(np.float32)
    energy = 10**log_mel - 1
    level = float(energy.mean())
    if level < 1e-3:
        return None
    levelled = np.log10(1 + _LOUDNESS / level * energy)
    halves = levelled.reshape(-1, _HOP, _BANDS // _GROUP, _GROUP).mean(axis=(1, 3))
    rows = (halves[:-1] + halves[1:]) / 2  # 1 s each, so that lags between rows matter little
    if len(rows) < _OVERLAP:
        return None
    rows -= rows.mean(axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    norm = float(np.linalg.norm(rows))
    return rows / norm if norm > 1e-3 * len(rows) ** 0.5 else None


def near_copies(
    prints: Sequence[np.ndarray], num_workers: int | None = None, progress: bool = True
) -> list[tuple[int, int, float]]:
    """Find pairs of copies among N prints: (first, second, correlation), in order."""
    if len(prints) < 2:
        return []
    size = 2 ** int(np.ceil(np.log2(2 * max(map(len, prints)))))  # no lag wraps around
    spectra = np.stack([np.fft.rfft(rows, size, axis=0).T for rows in prints])  # [N, 16, size/2+1]
    pairs_of_each = run_parallel(
        partial(_copies_of, prints=prints, spectra=spectra, size=size),
        range(len(prints) - 1),
        num_workers=num_workers,
        progress=progress,
        title="compare recordings",
        unit="track",
    )
    return sorted(pair for pairs in pairs_of_each for pair in pairs)


def _copies_of(
    first: int, prints: Sequence[np.ndarray], spectra: np.ndarray, size: int
) -> list[tuple[int, int, float]]:
    """The copies of a track among those after it."""
    pairs = []
    for second in range(first + 1, len(prints)):
        both = np.einsum("bf,bf->f", spectra[first], spectra[second].conj())
        at_lags = np.fft.irfft(both, size)
        lag = int(at_lags.argmax())
        if at_lags[lag] < _CANDIDATE:
            continue
        lag = lag if lag < size // 2 else lag - size
        similarity, rows = _overlap(prints[first], prints[second], lag)
        if similarity >= (SHORT_THRESHOLD if rows < _SHORT else THRESHOLD):
            pairs.append((first, second, round(similarity, 3)))
    return pairs


def _overlap(one: np.ndarray, other: np.ndarray, lag: int) -> tuple[float, int]:
    """Correlation of two prints where they overlap, and in how many rows.

    Row 0 of ``other`` is at ``lag`` in ``one``.
    """
    one, other = one[max(0, lag) :], other[max(0, -lag) :]
    length = min(len(one), len(other))
    if length < _OVERLAP:
        return 0.0, length
    one, other = one[:length] - one[:length].mean(0), other[:length] - other[:length].mean(0)
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return (float(np.vdot(one, other)) / norm if norm else 0.0), length
