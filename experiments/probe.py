"""The command ``probe`` of ``ex_tl.py``: train probes on saved embeddings, test them, report."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maest.config import ProbeSettings, plain
from maest.config.probe import ProbeTraining
from maest.experiments.devices import find_device
from maest.experiments.probe_data import FeatureSet, ProbeTask, read_features, read_task
from maest.experiments.probe_report import RIDGE, few_tracks, write_run
from maest.experiments.runs import interruptible, run_dir
from maest.helpers import soft_labels
from maest.helpers.files.atomic import valid_utf8
from maest.helpers.reports import metrics
from maest.helpers.reports.report import machine, metrics_line, versions
from maest.helpers.work.parallel import one_torch_thread
from maest.models.probe import SELECTION, ProbeBank

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "scikit-learn")  # a probe's metrics depend on these


def probe(run: Any, settings: ProbeSettings) -> dict[str, Any]:
    """Train the probe with several seeds, test each at its best epoch, and write a report."""
    folder = run_dir(run)
    results = run_probe(settings, folder)
    shown = metrics.SHOWN[results["task"]]
    for name in shown:
        run.log_scalar(f"test_{name}", results[name]["mean"])
    return {**{name: results[name] for name in shown}, "folder": str(folder)}


def run_probe(settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    """Train and test probes, write a run's files into ``folder``; return its ``results.json``."""
    started = time.monotonic()
    task = read_task(settings.data)
    features = read_features(task, settings.data)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    mix, total = features.blocks is not None, settings.probe.max_epochs
    with (
        interruptible(lambda: "A probe is kept only when it is finished"),
        tqdm(total=total, desc="probe", unit="epoch", disable=None) as bar,
    ):
        bank = train_probes(settings.probe, task, features.splits, seeds, mix, bar.update)
    outputs = bank.predict(features.splits["test"])
    results = _results(settings, task, features, bank, outputs)
    for warning in results["warnings"]:
        log.warning("%s", warning)
    results["seconds"] = time.monotonic() - started
    write_run(folder, results, task, bank, outputs)
    tracks = f"{' / '.join(map(str, results['tracks'].values()))} tracks"
    if left_out := sum(results["missing"].values()):
        tracks += f" ({left_out} without features left out)"
    print(
        f"{results['name']}: test {metrics_line(task.task, results)} over {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)} (chance {metrics_line(task.task, results['chance'])}); "
        f"{results['features']} features, {tracks}, {len(task.labels)} labels, "
        f"{results['classes_left_out']} left out"
    )
    if "ridge" in results:
        print(f"{RIDGE} on the same tracks: test {metrics_line(task.task, results['ridge'])}")
    print(f"{folder / 'summary.md'}, labels.csv, labels.png")
    return results


def train_probes(
    recipe: ProbeTraining,
    task: ProbeTask,
    features: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    mix: bool = False,
    after_epoch: Callable[[], object] = lambda: None,
) -> ProbeBank:
    """Train probes together; each keeps the weights of its best epoch on the validation split.

    ``features``: split → float32 [N, M, D] of M sets; with ``mix``, M blocks for one probe per
    seed.
    """
    n_sets, width = features["train"].shape[1:]
    bank = ProbeBank(
        width,
        len(task.labels),
        seeds,
        hidden=recipe.hidden,
        dropout=recipe.dropout,
        task=task.task,
        n_sets=1 if mix else n_sets,
        n_blocks=n_sets if mix else None,
        device=find_device(recipe.accelerator, "probe.accelerator"),
    )
    # Products this small gain little from threads, which wait for each other where other work
    # runs (ten times slower was measured).
    with one_torch_thread():
        bank.fit(
            (features["train"], task.splits["train"].targets),
            (features["val"], task.splits["val"].targets),
            lr=recipe.lr,
            lr_factor=recipe.factor,
            weight_decay=recipe.weight_decay,
            batch_size=recipe.batch_size,
            max_epochs=recipe.max_epochs,
            after_epoch=after_epoch,
        )
    return bank


# ---- results -------------------------------------------------------------------------------------


def mean_and_std(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Return mean and sample standard deviation (0 for a single value) over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation, "values": [float(v) for v in values]}


def over_seeds(
    runs: Sequence[metrics.Evaluation], bank: ProbeBank, number: int = 0
) -> dict[str, Any]:
    """Return a feature set's validation metrics, and those of its test ``runs``, over the seeds."""
    own = slice(number * len(bank.seeds), (number + 1) * len(bank.seeds))
    results = {
        name: mean_and_std([run.figures[name] for run in runs[own]])
        for name in metrics.SHOWN[bank.task]
    }
    results[f"val_{SELECTION[bank.task]}"] = mean_and_std(bank.best_scores[own])
    return results | {"best_epochs": bank.best_epochs[own].tolist()}


def mix_weights(bank: ProbeBank) -> dict[str, Any]:
    """Return the weights of the blocks in each seed's mix, and their mean over the seeds."""
    weights = bank.weights["mix"].softmax(dim=1).cpu().numpy()
    return {"mean": weights.mean(axis=0).tolist(), "values": weights.tolist()}


def baseline(task: ProbeTask) -> dict[str, float]:
    """Return test metrics of one constant answer for all tracks."""
    train, test = (task.splits[split].targets for split in ("train", "test"))
    figures = metrics.baseline(task.task, train, test).figures
    return {name: figures[name] for name in metrics.SHOWN[task.task]}


def _results(
    settings: ProbeSettings,
    task: ProbeTask,
    features: FeatureSet,
    bank: ProbeBank,
    outputs: np.ndarray,
) -> dict[str, Any]:
    """Return the content of ``results.json``; ``outputs`` [S, N, C] are of the test split."""
    targets, shown = task.splits["test"].targets, metrics.SHOWN[task.task]
    runs = [metrics.evaluate(task.task, targets, own) for own in outputs]
    constant = chance = baseline(task)
    if task.task == "multi-label":
        chance = dict(zip(shown, metrics.chance_scores(targets), strict=True))
    results = over_seeds(runs, bank)
    warnings, warmup = few_tracks(task.tracks()), settings.probe.warmup_epochs
    if early := [str(epoch) for epoch in results["best_epochs"] if epoch <= warmup]:
        when = f"Best epoch {', '.join(early)} is within the warm-up of {warmup:g} epochs"
        warnings.append(f"{when}: the probe has learned next to nothing.")
    labels = [valid_utf8(label) for label in task.labels]
    results |= {
        "name": valid_utf8(settings.name or features.name),
        "task": task.task,
        "seeds": bank.seeds,
        metrics.BASELINES[task.task]: constant,
        "chance": chance,
        "classes_left_out": runs[0].left_out,
        "features": features.splits["train"].shape[-1],
        "tracks": task.tracks(),
        "missing": task.missing,
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
        positive = soft_labels.positive(targets)
        for row, positives in zip(results["per_label"], positive.sum(axis=0), strict=True):
            row["positives"] = int(positives)
    if task.task == "single-label":
        # Tracks of each class (row) by predicted class, mean over the seeds
        counts = np.zeros((len(labels), len(labels)))
        for own in outputs:
            np.add.at(counts, (targets.argmax(axis=1), own.argmax(axis=1)), 1)
        results["confusion"] = (counts / len(outputs)).tolist()
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


def _ridge(task: ProbeTask, features: FeatureSet) -> dict[str, float]:
    """Return test metrics of a linear probe in closed form, which needs no validation split.

    The penalty is the number of features, as if each track's features had length 1 and the penalty
    were 1. Blocks of a mix are averaged.
    """
    train, test = (features.splits[split].mean(axis=1) for split in ("train", "test"))
    targets = task.splits["test"].targets
    from sklearn.linear_model import Ridge  # takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = make_pipeline(StandardScaler(), Ridge(alpha=train.shape[1]))
    own, outputs = task.splits["train"].targets, np.zeros(targets.shape)
    # Labels that are known of the same tracks are fitted together: of complete targets, all.
    patterns, which = np.unique(soft_labels.known(own), axis=1, return_inverse=True)
    for i, rows in enumerate(patterns.T):
        labels = np.flatnonzero(which.reshape(-1) == i)
        if rows.any():
            linear.fit(train[rows], np.ascontiguousarray(own[rows][:, labels]))
            outputs[:, labels] = linear.predict(test).reshape(len(test), -1)
    figures = metrics.evaluate(task.task, targets, outputs).figures
    return {name: figures[name] for name in metrics.SHOWN[task.task]}
