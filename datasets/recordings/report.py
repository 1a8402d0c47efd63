"""What is in a set of recordings: a table of its tracks, and counts for the report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.melspectrograms import MelFile
from maest.datasets.recordings.facts import Facts, Track
from maest.datasets.recordings.splits import Recording
from maest.helpers import soft_labels
from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.files.atomic import write_rows

_COLUMNS = ("key", "source", "album", "split", "seconds", "sha256", "strongest")
_STRONGEST = 5  # labels of a track in tracks.csv

Content = Mapping[str, Mapping[str, np.ndarray]]  # split → key → targets, float32 [C]


def write_tracks(
    path: Path,
    tracks: Mapping[str, Track],
    facts: Mapping[str, Facts],
    recordings: Iterable[Recording],
    content: Content,
    names: Sequence[str],
    store: Path,
) -> None:
    """Write a row a track, sorted by key; ``store`` has the log-mels."""
    albums = {recording.key: recording.album for recording in recordings}
    rows = (
        (key, tracks[key].source, albums[key], split, round(_seconds(store / key), 2),
         facts[key].sha256, _strongest(target, names))
        for split, targets in content.items()
        for key, target in targets.items()
    )  # fmt: skip
    write_rows(path, _COLUMNS, sorted(rows))


def count_tracks(content: Content, sources: Iterable[str], store: Path) -> dict[str, Any]:
    """Count the tracks and hours of each split, and the tracks of each source."""
    of_source = {source: Counter[str]() for source in sources}
    for split, targets in content.items():
        for key in targets:
            of_source[key.partition("/")[0]][split] += 1
    hours = {s: sum(_seconds(store / key) for key in rows) / 3600 for s, rows in content.items()}
    return {
        "tracks": {split: len(targets) for split, targets in content.items()},
        "hours": {split: round(value, 3) for split, value in hours.items()},
        "sources": {source: dict(count) for source, count in of_source.items()},
    }


def count_labels(content: Content, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each label and split: the tracks where it is known, those with it, and its mean."""
    counts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for split, rows in content.items():
        targets = np.stack(list(rows.values()))
        means = soft_labels.means(targets)
        known = soft_labels.known(targets).sum(axis=0)
        positive = soft_labels.positive(targets).sum(axis=0)
        for i, name in enumerate(names):
            counts[name][split] = {
                "known": int(known[i]),
                "positive": int(positive[i]),
                "mean": round(float(means[i]), 4),
            }
    return counts


def _seconds(path: Path) -> float:
    with MelFile(path) as mel:
        return (len(mel) - 1) * HOP_LENGTH / SAMPLE_RATE


def _strongest(target: np.ndarray, names: Sequence[str]) -> str:
    order = np.argsort(-np.nan_to_num(target, nan=-1), kind="stable")[:_STRONGEST]
    return "; ".join(f"{names[i]} {target[i]:.2f}" for i in order if target[i] > 0)
