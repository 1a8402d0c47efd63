"""The results of probes: metrics over seeds and labels, the files of a run, and its summary."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from maest.config import ProbeSettings, plain
from maest.datasets.embedding_folders import block_name, model_name
from maest.experiments.probe_features import FeatureSet
from maest.experiments.probe_task import ProbeTask
from maest.experiments.runs import LOG_DIR
from maest.helpers import metrics, plots
from maest.helpers.failures import valid_utf8
from maest.helpers.files import atomic_path, write_json, write_rows
from maest.helpers.names import typed_list
from maest.helpers.report import Page, format_mean_std, machine, table, versions
from maest.models.probe import SELECTION, ProbeBank

PREDICTIONS = "predictions.npz"
RESULTS = "results.json"
PROBE_FOLDER = "probe"
SWEEP = "sweep.json"
FEW_TRACKS = 30  # in a split of fewer, a metric says little
RIDGE = "linear probe (ridge regression)"
PACKAGES = ("torch", "numpy", "scikit-learn")  # that a probe's metrics depend on
_LABELS_SHOWN = 20  # in a summary; labels.csv has them all


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, which has metrics alone."""
    return (folder / SWEEP).is_file()


def finished_probes() -> list[Path]:
    """The folders of finished probes in ``exp_logs``, the newest first."""
    found = [path for path in LOG_DIR.glob(f"*/{PROBE_FOLDER}/probe.json") if path.is_file()]
    found = [path for path in found if not path.parents[1].is_symlink()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parents[1] for path in found]


# ---- results -------------------------------------------------------------------------------------


def mean_and_std(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for a single value) of a metric over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation, "values": [float(v) for v in values]}


def mix_weights(bank: ProbeBank) -> dict[str, Any]:
    """The weights of the blocks in each seed's mix, and their mean over the seeds."""
    weights = bank.weights["mix"].softmax(dim=1).cpu().numpy()
    return {"mean": weights.mean(axis=0).tolist(), "values": weights.tolist()}


def metrics_line(task: str, row: Mapping[str, Any]) -> str:
    """The two metrics of the task that are shown."""
    return ", ".join(
        f"{metrics.FIGURE_NAMES[m]} "
        + (format_mean_std(row[m]) if isinstance(row[m], Mapping) else f"{row[m]:.4f}")
        for m in metrics.SHOWN[task]
    )


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


# ---- files ---------------------------------------------------------------------------------------


def write_run(
    folder: Path, results: dict[str, Any], task: ProbeTask, bank: ProbeBank, outputs: np.ndarray
) -> None:
    """Write all that a run leaves: results, probes, predictions, pictures, tables and summary."""
    labels = results["labels"]
    write_json(folder / RESULTS, results)
    write_json(folder / "labels.json", labels)
    _write_labels(folder / "labels.csv", results["per_label"])
    if "confusion" in results:
        rows = ([label, *row] for label, row in zip(labels, results["confusion"], strict=True))
        write_rows(folder / "confusion.csv", ("class", *labels), rows)
    keys = [key.encode("utf-8", "surrogateescape") for key in task.keys("test")]
    with atomic_path(folder / PREDICTIONS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            keys=np.array(keys),
            targets=task.targets("test"),
            outputs=outputs,
            labels=np.array(task.labels),
            task=np.array(task.task),
            seeds=np.array(bank.seeds),
        )
    for index, seed in enumerate(bank.seeds):
        with atomic_path(folder / PROBE_FOLDER / f"seed-{seed}.safetensors") as temporary:
            save_file(bank.probe(index).state_dict(), temporary)
    write_json(
        folder / PROBE_FOLDER / "probe.json",
        {
            **{name: results[name] for name in ("task", "labels", "seeds", "extraction",
                                                "made_by", "warnings")},
            **{name: results["data"][name] for name in ("features", "types", "reduce")},
            "n_features": results["features"],
            "hidden": results["probe"]["hidden"],
            "trained_on": results["groundtruths"]["train"],
        },
    )  # fmt: skip
    _summary(folder, results).write(folder / "summary.md")


def _write_labels(path: Path, rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name not in ("label", "positives")]
    header, table = ["label"], [[row["label"]] for row in rows]
    if "positives" in rows[0]:
        header.append("test_positives")
        table = [[*cells, row["positives"]] for cells, row in zip(table, rows, strict=True)]
    header += [part for name in names for part in (name, f"{name}_std")]
    for cells, row in zip(table, rows, strict=True):
        cells += [(row[name] or {}).get(part, "") for name in names for part in ("mean", "std")]
    write_rows(path, header, table)


# ---- the summary ---------------------------------------------------------------------------------

_BASELINE_SAYS = {
    "multi-label": "the labels' frequencies among the training tracks, whatever the music",
    "single-label": "the most frequent class among the training tracks, whatever the music",
    "regression": "the means of the training tracks, whatever the music",
}


def _summary(folder: Path, results: dict[str, Any]) -> Page:
    """A page with metrics, facts, pictures, and the commands that go on from here; draws them."""
    task, shown = results["task"], metrics.SHOWN[results["task"]]
    baseline, seeds = metrics.BASELINES[task], len(results["seeds"])
    rows = [[results["name"], *(format_mean_std(results[m]) for m in shown)]]
    for row, name in (
        ("ridge", RIDGE),
        (baseline, baseline.replace("_", " ")),
        *([("chance", "random scores")] if task == "multi-label" else []),
    ):
        if row in results:
            rows.append([name, *(f"{results[row][m]:.4f}" for m in shown)])
    over = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    best = "R² is 1 at best; of the MSE, less is better." if "r2" in shown else "More is better."
    page = Page(results["name"])
    page.add(table(["test split", *(metrics.FIGURE_NAMES[m] for m in shown)], rows))
    page.add(
        f"{over} {best} The row '{baseline.replace('_', ' ')}' is what a constant answer gets: "
        f"{_BASELINE_SAYS[task]}.",
        *(f"**Warning.** {warning}" for warning in results["warnings"]),
    )
    page.facts(*_facts(results))
    _draw(page, folder, results)
    place = shlex.quote(valid_utf8(str(folder)))
    commands = [(f"python ex_tl.py with {place}/config.json", "the same again")]
    if other := _comparable(results, folder):
        line = f"python ex_tl.py compare with {typed_list('runs', [str(folder), str(other)])}"
        commands.append((line, "side by side with another one"))
    page.commands(*commands)
    if results["extraction"]:
        line = f"python ex_tl.py predict with probe={place} audio=<music>"
        page.add(f"On new music, a file or a folder: `{line}`.")
    page.add(
        f"Metrics of each label: labels.csv. Each seed's outputs for each test track: "
        f"{PREDICTIONS}. All metrics, settings and versions: {RESULTS}. The probes: "
        f"{PROBE_FOLDER}/."
    )
    return page


def _draw(page: Page, folder: Path, results: dict[str, Any]) -> None:
    name, rows, labels = results["name"], results["per_label"], results["labels"]
    shown = metrics.SHOWN[results["task"]][0]
    shown = shown if shown in rows[0] else "f1"
    means, deviations = (
        {name: [row[shown][part] if row[shown] else np.nan for row in rows]}
        for part in ("mean", "std")
    )
    title = metrics.FIGURE_NAMES[shown]
    positives = [row.get("positives") for row in rows]
    path, title_ = folder / "labels.png", f"{title} on the test split"
    page.picture(
        plots.label_bars(path, labels, means, title_, deviations, positives),
        "Each label, the best one on top; the lines are ± one standard deviation over the seeds.",
    )
    page.add(*_label_table(rows, shown))
    page.picture(
        plots.seed_curves(
            folder / "training.png",
            results["histories"],
            SELECTION[results["task"]],
            results["best_epochs"],
            [f"seed {seed}" for seed in results["seeds"]],
        ),
        "How the probes learned. Each is tested with its weights of the best epoch on the "
        "validation split.",
    )
    if "confusion" in results:
        page.picture(
            plots.heat_map(
                folder / "confusion.png",
                np.array(results["confusion"]),
                labels,
                labels,
                "tracks of each class (row), and the class they were taken for",
                numbers="{:.3g}",  # means over the seeds
                row_name="class",
                column_name="taken for",
            ),
            "Tracks of each class by the class they were taken for, a mean over the seeds: the "
            "diagonal is right.",
        )


def _label_table(rows: list[dict[str, Any]], shown: str) -> list[str]:
    """The best labels, with the number of test tracks that have each."""

    def value(row: dict[str, Any]) -> str:
        if row[shown]:
            return format_mean_std(row[shown])
        if "positives" not in row:
            return "all values are the same"
        return "no negatives" if row["positives"] else "no positives"

    best = sorted(rows, key=lambda row: -row[shown]["mean"] if row[shown] else np.inf)
    best = best[:_LABELS_SHOWN]
    counted = "positives" in rows[0]
    cells = [
        [row["label"].replace("|", "\\|"), *[str(row.get("positives"))] * counted, value(row)]
        for row in best
    ]
    header = ["label", *["test positives"] * counted, f"test {metrics.FIGURE_NAMES[shown]}"]
    more = len(rows) - len(best)
    return [table(header, cells), f"{more} more labels are in labels.csv." if more else ""]


def _facts(results: dict[str, Any]) -> list[str]:
    tracks, data, extraction = results["tracks"], results["data"], results["extraction"]
    labels = f"{results['task']}, {len(results['labels'])} labels"
    if results["classes_left_out"]:
        labels += f"; {results['classes_left_out']} without anything to score in the test split"
    embeddings = data["features"] == "embeddings"
    splits = f"{tracks['train']} / {tracks['val']} / {tracks['test']} tracks for training, "
    splits += "validation and test"
    if results["missing"]:
        missing = ", ".join(f"{n} of {split}" for split, n in results["missing"].items())
        what = "embedding" if embeddings else "log-mel file"
        splits += f"; left out, as they have no {what} (data.missing=skip): {missing}"
    features = f"{results['features']} features"
    if embeddings:
        how = f", {data['reduce']}" if len(data["types"]) > 1 else ""
        features += f"; tokens {data['types']}{how}"
    else:
        features += ": mean and deviation of the mel bands"
    source = ""
    if extraction:
        block = extraction.get("block")
        of = f"block {block_name(block) if isinstance(block, int) else 'unknown'}"
        if isinstance(block, list):
            of = f"the blocks {', '.join(map(str, block))}"
        source = (
            f"embeddings of {of}, patches of {extraction.get('patch_seconds')} s, model "
            f"{valid_utf8(model_name(extraction, results['made_by']))}"
        )
    elif embeddings:
        source = "what made the embeddings is unknown: their folder has no manifest.json"
    mix = ""
    if "mix" in results:
        weights = ", ".join(f"{weight:.2f}" for weight in results["mix"]["weights"]["mean"])
        mix = f"a learned mix of the blocks, which weighs them with {weights}"
    return [
        labels,
        splits,
        features,
        f"seeds {', '.join(map(str, results['seeds']))}; best epochs "
        f"{', '.join(map(str, results['best_epochs']))} of {results['probe']['max_epochs']}, by "
        f"the {metrics.FIGURE_NAMES[SELECTION[results['task']]]} of the validation split",
        source,
        mix,
        ", ".join(f"{name} {number}" for name, number in results["versions"].items()),
    ]


def _comparable(results: dict[str, Any], folder: Path) -> Path | None:
    """The newest other probe that was tested on the same tracks."""
    for other in finished_probes():
        if other.resolve() == folder.resolve() or not (other / PREDICTIONS).is_file():
            continue
        try:
            found = json.loads((other / RESULTS).read_text("utf-8"))
            same = all(found[name] == results[name] for name in ("task", "labels", "groundtruths"))
            if same and not ("test" in found["missing"] or "test" in results["missing"]):
                return other
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or damaged
    return None
