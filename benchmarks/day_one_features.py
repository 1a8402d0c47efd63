"""Features, outputs and figures that the parts of day_one.py share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import harness  # noqa: F401 - which finds maest
from maest.datasets.embeddings import mel_statistics, read_all, select_tokens
from maest.datasets.melspectrograms import read_mel, write_mel
from maest.helpers.files.atomic import atomic_path
from maest.helpers.reports.bootstrap import interval, resampled_figures
from maest.helpers.reports.metrics import BOUNDS
from maest.helpers.results.tracks import Track, TrackResult
from maest.models.extraction import Extractor

STATISTICS = "mel statistics"
THRESHOLD = 0.5  # of a model without its own
OTHER_NAMES = {"Instrument---Voices": "Voice---Choir"}  # of labels of scores

Rows = dict[str, dict[str, Any]]
Tables = dict[str, Any]


class Model:
    """A model folder. ``labels`` names its C outputs; ``thresholds`` are its own, or 0.5."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, Path(folder).resolve()
        self.extract = Extractor(self.folder, activations=True)
        self.labels = list(self.extract.labels or ())
        thresholds = self.extract.thresholds
        self.has_thresholds = thresholds is not None
        self.thresholds = THRESHOLD if thresholds is None else thresholds
        sizes = json.loads((self.folder / "config.json").read_text("utf-8"))["sizes"]
        weights = (self.folder / "model.safetensors").read_bytes()
        self.digest = hashlib.sha256(weights + json.dumps(sizes).encode()).hexdigest()[:16]

    def columns(self, names: Sequence[str]) -> list[int | None]:
        """The number of each label, or None."""
        at = {label: i for i, label in enumerate(self.labels)}
        return [at.get(name, at.get(OTHER_NAMES.get(name, ""))) for name in names]


def outputs_of(work: Path, model: Model, root: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """``features`` [N, 3 D] of block 7, tokens stacked, and ``activations`` [N, C] of log-mels."""

    def make() -> dict[str, np.ndarray]:
        bar = tqdm(keys, model.name, unit="track", disable=None)
        tracks = (Track(key, mel=np.asarray(read_mel(root / key))) for key in bar)
        embeddings, activations = [], []
        for result in model.extract.extraction.results(tracks):
            if not isinstance(result, TrackResult):
                raise RuntimeError(f"{result.key}: {result.error}")
            embeddings += result.embeddings.values()
            activations.append(result.activations)
        features = select_tokens(np.stack(embeddings), "cdt", "stack")
        return {"features": features, "activations": np.stack(activations)}

    return _kept(work, model.digest, root, keys, make)


def statistics_of(work: Path, root: Path, keys: Sequence[str]) -> np.ndarray:
    """Mean and deviation of the mel bands of log-mels: float32 [N, 192]."""

    def make() -> dict[str, np.ndarray]:
        return {"features": read_all(mel_statistics, [root / key for key in keys], STATISTICS)}

    return _kept(work, "mel", root, keys, make)["features"]


def _kept(
    work: Path, name: str, root: Path, keys: Sequence[str], make: Callable[[], Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Arrays of a file that is made when these log-mels, as they are, have none."""
    times = "\n".join(f"{root / key} {(root / key).stat().st_mtime_ns}" for key in keys)
    path = work / "features" / f"{name}-{hashlib.sha256(times.encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        arrays = make()
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
    with np.load(path) as arrays:
        return dict(arrays)


def keep_mel(path: Path, mel: np.ndarray) -> None:
    """Write a log-mel, unless it is there: what has been extracted of it stays valid."""
    if not path.is_file() or not np.array_equal(read_mel(path), mel.astype(np.float16)):
        write_mel(path, mel)


def digest(*paths: Path) -> str:
    """SHA-256 of what the files hold, one after the other."""
    sha256 = hashlib.sha256()
    for path in paths:
        sha256.update(path.read_bytes())
    return sha256.hexdigest()


def side_by_side(
    outputs: Mapping[str, np.ndarray], targets: np.ndarray, resamples: int, task: str
) -> Rows:
    """Figures of outputs [S, N, C] by name, with intervals and differences to those before."""
    samples = {
        name: resampled_figures(task, targets, values, resamples, seed=0)
        for name, values in outputs.items()
    }
    rows: Rows = {}
    for name, figures in samples.items():
        row = {m: interval(values, 0.95, BOUNDS[m]) for m, values in figures.items()}
        for base in rows:
            for m, values in figures.items():
                row[f"{m} minus {base}"] = interval(values - samples[base][m], 0.95, (-1, 1))
        rows[name] = row
    return rows
