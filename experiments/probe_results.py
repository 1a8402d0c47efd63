"""What probes have reached: metrics over seeds and labels, as ``results.json`` holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from maest.config import ProbeSettings, plain
from maest.experiments.probe_features import FeatureSet
from maest.experiments.probe_task import ProbeTask
from maest.experiments.runs import LOG_DIR
from maest.helpers import metrics
from maest.helpers.errors import InputError
from maest.helpers.failures import valid_utf8
from maest.helpers.report import machine, versions
from maest.models.probe import SELECTION, ProbeBank

PREDICTIONS = "predictions.npz"
RESULTS = "results.json"
PROBE_FOLDER = "probe"
SWEEP = "sweep.json"
FEW_TRACKS = 30  # in a split of fewer, a metric says little
RIDGE = "linear probe (ridge regression)"
PACKAGES = ("torch", "numpy", "scikit-learn")  # that a probe's metrics depend on


def finished_probes() -> list[Path]:
    """The folders of finished probes in ``exp_logs``, the newest first."""
    found = [path for path in LOG_DIR.glob(f"*/{PROBE_FOLDER}/probe.json") if path.is_file()]
    found = [path for path in found if not path.parents[1].is_symlink()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parents[1] for path in found]


def no_probe(folder: Path, name: str, setting: str) -> InputError:
    """For a folder without the file of a finished probe: it says what may have been meant."""
    path, message = folder / name, "no such file: the run was stopped, or is no probe's"
    hint = "Give the folder of a finished probe of ex_tl.py"
    if probes := finished_probes():
        hint += f", such as {', '.join(map(str, probes[:3]))}"
    if (folder / SWEEP).is_file():
        path, message = folder, "is the folder of a sweep, which keeps metrics alone"
        hint = "Probe its choices, each by itself; its summary.md has the command for the best one"
    elif not folder.is_dir():
        path, message = folder, "no such folder"
        if (LOG_DIR / folder / name).is_file():
            hint = f"Give {LOG_DIR / folder}"
    return InputError(message, kind="missing", path=path, setting=setting, hint=f"{hint}.")


def mean_and_std(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for a single value) of a metric over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation, "values": [float(v) for v in values]}


def mix_weights(bank: ProbeBank) -> dict[str, Any]:
    """The weights of the blocks in each seed's mix, and their mean over the seeds."""
    weights = bank.weights["mix"].softmax(dim=1).cpu().numpy()
    return {"mean": weights.mean(axis=0).tolist(), "values": weights.tolist()}


def splits_line(results: Mapping[str, Any], what: str = "embedding") -> str:
    """How many tracks each split has, and how many it leaves out."""
    line = f"{' / '.join(map(str, results['tracks'].values()))} tracks for training, validation "
    line += "and test"
    if results["missing"]:
        missing = ", ".join(f"{n} of {split}" for split, n in results["missing"].items())
        line += f"; left out, as they have no {what} (data.missing=skip): {missing}"
    return line


def few_tracks(tracks: Mapping[str, int]) -> list[str]:
    """A warning for each split that is too small for its metrics to say anything."""
    return [
        f"The {name} split has {tracks[split]} tracks, which is too few: {why}."
        for split, name, why in (
            ("val", "validation", "chance may have chosen what is best on it"),
            ("test", "test", "the metrics are uncertain"),
        )
        if tracks[split] < FEW_TRACKS
    ]


def summarize(
    settings: ProbeSettings,
    task: ProbeTask,
    features: FeatureSet,
    bank: ProbeBank,
    outputs: np.ndarray,
) -> dict[str, Any]:
    """The content of ``results.json``; ``outputs`` [S, N, C] are of the test split."""
    targets, shown = task.targets("test"), metrics.SHOWN[task.task]
    runs = [metrics.evaluate(task.task, targets, own) for own in outputs]
    constant = metrics.baseline(task.task, task.targets("train"), targets).figures
    baseline = {m: constant[m] for m in shown}
    chance = baseline
    if task.task == "multi-label":
        chance = dict(zip(shown, metrics.chance_scores(targets), strict=True))
    best_epochs, warmup = bank.best_epochs.tolist(), settings.probe.warmup_epochs
    warnings = few_tracks(task.tracks())
    if early := [str(epoch) for epoch in best_epochs if epoch <= warmup]:
        warnings.append(
            f"Best epoch {', '.join(early)} is within the warm-up of {warmup:g} epochs: the probe "
            "has learned next to nothing."
        )
    labels = [valid_utf8(label) for label in task.labels]
    results = {
        "name": valid_utf8(settings.name or features.name),
        "task": task.task,
        **{m: mean_and_std([run.figures[m] for run in runs]) for m in shown},
        f"val_{SELECTION[task.task]}": mean_and_std(bank.best_scores),
        "best_epochs": best_epochs,
        "seeds": bank.seeds,
        metrics.BASELINES[task.task]: baseline,
        "chance": chance,
        "classes_left_out": runs[0].left_out,
        "features": features.splits["train"].shape[-1],
        "tracks": task.tracks(),
        "missing": task.missing(),
        "labels": labels,
        "per_label": _per_label(labels, runs),
        "warnings": warnings,
        "histories": bank.histories,
        "data": plain(settings.data),
        "probe": plain(settings.probe),
        "extraction": features.extraction,
        "made_by": features.made_by,
        "groundtruths": task.digests(),
        "versions": versions(*PACKAGES),
        "machine": machine(),
    }
    if task.task != "regression":
        for row, positives in zip(results["per_label"], targets.sum(axis=0), strict=True):
            row["positives"] = int(positives)
    if task.task == "single-label":
        results["confusion"] = _confusion(targets, outputs).tolist()
    if features.blocks is not None:
        results["mix"] = {"blocks": features.blocks, "weights": mix_weights(bank)}
    if warnings:
        results["ridge"] = _ridge(task, features)
    return results


def _per_label(labels: list[str], runs: list[metrics.Evaluation]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"label": label} for label in labels]
    for name in runs[0].per_label:
        values = np.stack([run.per_label[name] for run in runs], axis=1)
        for row, own in zip(rows, values, strict=True):
            row[name] = None if np.isnan(own).any() else mean_and_std(own)
    return rows


def _confusion(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """[C, C] tracks of each class (row) that were taken for each class, mean over the seeds."""
    n_classes = targets.shape[1]
    cells = targets.argmax(axis=1) * n_classes + outputs.argmax(axis=2)
    counts = [np.bincount(own, minlength=n_classes**2) for own in cells]
    return np.mean(counts, axis=0).reshape(n_classes, n_classes)


def _ridge(task: ProbeTask, features: FeatureSet) -> dict[str, float]:
    """Test metrics of a linear probe in closed form, which needs no validation split.

    The penalty is the number of features: as if each track's features had length 1, and it 1. Of
    blocks that are to be mixed it takes the plain mean.
    """
    train, test = (features.splits[split].mean(axis=1) for split in ("train", "test"))
    probe = make_pipeline(StandardScaler(), Ridge(alpha=train.shape[1]))
    targets = task.targets("test")
    outputs = probe.fit(train, task.targets("train")).predict(test).reshape(targets.shape)
    figures = metrics.evaluate(task.task, targets, outputs).figures
    return {name: figures[name] for name in metrics.SHOWN[task.task]}
