"""What a few windows of each track cost in agreement with all of them (inference.max_windows).

python benchmarks/windows.py --music FOLDER [--model maest-tiny-music] [--windows 1 2 4 8 16]
    [--minutes 0] [--record FILE.json]

Each track is computed once, window by window; a few windows are then taken from these as
`PatchPlan` does. ``cosine``: of embeddings after the mean over all tracks is taken off, as
`maest similar` does; ``nearest``: the share of the ten nearest tracks that stays; ``top tags``: the
share of the five highest labels that stays; ``tags``: the share (intersection over union) of those
above the model's thresholds; ``difference``: of activations, the mean. ``--minutes``: tracks that
last so long, and longer. ``share``: of the windows that are computed, which is that of the time but
for decoding.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from harness import Bench, Figures

TOP, NEAREST = 5, 10


def main(given: list[str] | None = None) -> dict[str, Any]:
    bench = Bench(
        __doc__,
        given,
        ("torch", "onnxruntime"),
        1,
        music=("", "a few seconds of noise"),
        model=("maest-tiny-music", "maest-tiny-music"),
        windows=([1, 2, 4, 8, 16], [1, 2]),
        minutes=(0.0, 0.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        music = made_up(Path(folder)) if bench.args.quick else Path(bench.args.music)
        rows = agreement(music, bench.args.model, bench.args.windows, bench.args.minutes)
    columns = {
        "share": "{share:.3f}",
        "cosine": "{cosine:.3f}",
        "lowest 5 %": "{cosine_lowest:.3f}",
        "nearest": "{nearest:.2f}",
        "top tags": "{top_tags:.2f}",
        "tags": "{tags:.2f}",
        "difference": "{difference:.3f}",
    }
    tracks = next(iter(rows.values()))["tracks"]
    bench.show(f"{bench.args.model}, {tracks} tracks", rows, columns)
    return bench.record


def agreement(music: Path, model: str, numbers: list[int], minutes: float) -> dict[str, Figures]:
    """Compare ``numbers`` of windows with all: number → figures."""
    from maest.helpers.audio.patches import spread

    rows: dict[str, Figures] = {}
    tracks = [track for track in windows_of(music, model) if track.seconds >= 60 * minutes]
    whole = [np.arange(len(track.times)) for track in tracks]
    exact, wanted = pooled(tracks, whole)
    spans = [[(i, i + 1) for i in own] for own in whole]
    for number in numbers:
        chosen = [np.array([i for i, _ in spread(own, number)]) for own in spans]
        embeddings, activations = pooled(tracks, chosen)
        mean = exact.mean(axis=0)
        cosines = (unit(embeddings - mean) * unit(exact - mean)).sum(axis=1)
        pairs = list(zip(activations, wanted, strict=True))
        rows[f"{number} windows"] = {
            "tracks": len(tracks),
            "windows": sum(map(len, whole)) / len(tracks),
            "share": sum(map(len, chosen)) / sum(map(len, whole)),
            "cosine": float(cosines.mean()),
            "cosine_lowest": float(np.quantile(cosines, 0.05)),
            "nearest": same_nearest(embeddings, exact),
            "top_tags": float(np.mean([overlap(best(a), best(b)) / TOP for a, b in pairs])),
            "tags": float(np.mean([share(tagged(a, tracks), tagged(b, tracks)) for a, b in pairs])),
            "difference": float(np.abs(activations - wanted).mean()),
        }
    return rows


class Windows:
    """A track's windows: weights [W], embeddings [W, D], activations [W, C]."""

    thresholds: np.ndarray  # [C], of the model; NaN: the label is never a tag

    def __init__(self, result: Any, thresholds: np.ndarray) -> None:
        from maest.helpers.audio.patches import weights_of

        self.seconds, self.times, self.thresholds = result.seconds, result.times, thresholds
        self.weights = np.array(weights_of(result.times), float)
        (values,) = result.embeddings.values()
        self.embeddings = values.reshape(len(values), -1)
        self.activations = result.patch_activations


def windows_of(music: Path, model: str) -> Iterator[Windows]:
    from tqdm import tqdm

    from maest.datasets.tracks import find_tracks, read_tracks
    from maest.helpers.results.tracks import Track
    from maest.models.extraction import Extractor

    extractor = Extractor(model, activations=True, pool="none")
    found = find_tracks(music).tracks
    thresholds = np.array(extractor.thresholds or [0.5] * len(extractor.labels or ()), float)
    read = read_tracks(found, range(len(found.keys)), 1)
    for result in tqdm(extractor.extraction.results(read), total=len(found.keys), disable=None):
        if isinstance(result, Track):
            print(f"{result.key}: {result.error}", file=sys.stderr)
        else:
            yield Windows(result, thresholds)


def pooled(tracks: list[Windows], chosen: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Average the chosen windows of each track: embeddings [N, D] and activations [N, C]."""
    pairs = list(zip(tracks, chosen, strict=True))
    embeddings, activations = (
        np.stack([np.average(of(t)[own], axis=0, weights=t.weights[own]) for t, own in pairs])
        for of in (lambda t: t.embeddings, lambda t: t.activations)
    )
    return embeddings, activations


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def same_nearest(embeddings: np.ndarray, exact: np.ndarray) -> float:
    """The share of each track's nearest ones, by all windows, that a few windows find too."""
    found = []
    for values in (embeddings, exact):
        cosines = unit(values - values.mean(axis=0)) @ unit(values - values.mean(axis=0)).T
        np.fill_diagonal(cosines, -np.inf)
        found.append(np.argsort(-cosines, axis=1)[:, : min(NEAREST, len(values) - 1)])
    shares = [overlap(set(a), set(b)) / max(1, len(b)) for a, b in zip(*found, strict=True)]
    return float(np.mean(shares))


def best(activations: np.ndarray) -> set[int]:
    return set(np.argsort(-activations)[:TOP].tolist())


def tagged(activations: np.ndarray, tracks: list[Windows]) -> set[int]:
    return set(np.flatnonzero(activations >= tracks[0].thresholds).tolist())


def overlap(one: set[int], other: set[int]) -> int:
    return len(one & other)


def share(one: set[int], other: set[int]) -> float:
    return overlap(one, other) / len(one | other) if one | other else 1.0


def made_up(folder: Path) -> Path:
    """Three tracks of noise that changes, for a trial."""
    rng = np.random.default_rng(0)
    for i in range(3):
        loud = np.repeat(rng.random(4), 16_000 * 5)
        soundfile.write(folder / f"{i}.wav", loud * rng.normal(0, 0.1, len(loud)), 16_000)
    return folder


if __name__ == "__main__":
    main()
