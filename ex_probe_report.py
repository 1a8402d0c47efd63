"""What probes have come to: figures over seeds and labels, the files of a run, and its summary."""

from __future__ import annotations

import csv
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from datasets.embeddings import block_name
from ex_common import Interrupted
from ex_probe import (
    PACKAGES,
    Downstream,
    Features,
    digests,
    load_features,
    read_task,
    train_probes,
)
from helpers import metrics, plots
from helpers.checkpoints import Stopped
from helpers.collect import stoppable
from helpers.failures import valid_utf8
from helpers.files import atomic_path, write_json
from helpers.report import machine, versions
from helpers.report import table as markdown_table
from models.probe import SELECTION, ProbeBank

PREDICTIONS = "predictions.npz"
RESULTS = "results.json"
PROBE_FOLDER = "probe"
SWEEP = "sweep.json"


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, which has figures alone."""
    return (folder / SWEEP).is_file()


def run_probe(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a probe with several seeds, test each on its best epoch, and write all that it leaves.

    Args:
        config: the settings of `ex_tl.py`.
        folder: where to.

    Returns:
        what is in ``results.json`` there.

    Raises:
        InputError: for settings, features or ground truths that will not do.
        Interrupted: a signal has stopped it; nothing is kept.
    """
    started = time.monotonic()
    task = read_task(config)
    features = load_features(task, config["data"])
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    try:
        with stoppable():
            mix = features.blocks is not None
            bank = train_probes(config["probe"], task, features.splits, seeds, mix=mix)
    except Stopped as stop:
        message = f"{stop.signal.name}: stopped. A probe is kept when it is finished only"
        raise Interrupted(message, stop.signal) from None
    name = str(config["name"] or features.name)
    results = summarise(name, bank, task, features, config)
    results["seconds"] = time.monotonic() - started
    write_run(folder, results, bank, task, config["data"])
    shown = metrics.SHOWN[task.task]
    chance = ", ".join(f"{results['chance'][m]:.4f}" for m in shown)
    figures = ", ".join(f"{metrics.FIGURE_NAMES[m]} {show(results[m])}" for m in shown)
    left_out = sum(results["missing"].values())
    print(
        f"{name}: test {figures} over {len(seeds)} seed{'s' * (len(seeds) > 1)} (chance {chance}); "
        f"{results['features']} features, "
        f"{' / '.join(str(n) for n in results['tracks'].values())} tracks"
        f"{f' ({left_out} without features left out)' if left_out else ''}, "
        f"{len(task.labels)} labels, {results['classes_left_out']} left out\n"
        f"per label: {folder / 'labels.csv'}, {folder / 'labels.png'}; all of it: "
        f"{folder / 'summary.md'}"
    )
    return results


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for a single value) of a figure over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation, "values": [float(v) for v in values]}


def mix_weights(bank: ProbeBank) -> dict[str, Any]:
    """What each seed's mix weighs the blocks with, and the mean over the seeds."""
    weights = bank.mix.detach().softmax(dim=1).cpu().numpy()
    return {"mean": weights.mean(axis=0).tolist(), "values": weights.tolist()}


def show(figure: dict[str, Any]) -> str:
    """0.7312 ± 0.0031."""
    return f"{figure['mean']:.4f} ± {figure['std']:.4f}"


def summarise(
    name: str, bank: ProbeBank, task: Downstream, features: Features, config: dict[str, Any]
) -> dict[str, Any]:
    """The figures of all seeds: over all labels, and label by label."""
    targets, train = task.targets("test"), task.targets("train")
    found = [metrics.evaluate(task.task, targets, own) for own in bank.outputs]
    shown, regression = metrics.SHOWN[task.task], task.task == "regression"
    constant = metrics.baseline(task.task, train, targets).figures
    results: dict[str, Any] = {
        "name": valid_utf8(str(name)),
        "task": task.task,
        **{m: spread([own.figures[m] for own in found]) for m in shown},
        f"val_{SELECTION[task.task]}": spread(bank.best_figures),
        "best_epochs": [int(epoch) + 1 for epoch in bank.best_epochs],
        "seeds": bank.seeds,
        metrics.BASELINES[task.task]: {m: constant[m] for m in shown},
        "classes_left_out": found[0].left_out,
        "features": features.splits["train"].shape[-1],
        "tracks": {split: len(rows) for split, rows in task.rows.items()},
        "missing": task.missing(),
        "labels": [valid_utf8(label) for label in task.labels],
    }
    if task.task == "multi-label":
        chance = metrics.chance_scores(targets)
        results["chance"] = dict(zip(shown, chance, strict=True))
    else:
        results["chance"] = results[metrics.BASELINES[task.task]]
    results["per_label"] = [
        {
            "label": label,
            **({} if regression else {"positives": int(targets[:, i].sum())}),
            **{
                m: None if np.isnan(own).any() else spread(own)
                for m in found[0].per_label
                for own in [[run.per_label[m][i] for run in found]]
            },
        }
        for i, label in enumerate(results["labels"])
    ]
    if task.task == "single-label":
        results["confusion"] = _confusion(targets, bank.outputs).tolist()
    if features.blocks is not None:
        results["mix"] = {"blocks": features.blocks, "weights": mix_weights(bank)}
    return results | {
        "histories": bank.histories,
        "data": dict(config["data"]),
        "probe": dict(config["probe"]),
        "extraction": features.extraction,
        "made_by": features.made_by,
        "groundtruths": digests(task),
        "versions": versions(*PACKAGES),
        "machine": machine(),
    }


def _confusion(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """[C, C] tracks of each class (row) that were taken for each class, mean over the seeds."""
    n_classes = targets.shape[1]
    cells = targets.argmax(axis=1) * n_classes + outputs.argmax(axis=2)
    counts = [np.bincount(own, minlength=n_classes**2) for own in cells]
    return np.mean(counts, axis=0).reshape(n_classes, n_classes)


def write_run(
    folder: Path, results: dict[str, Any], bank: ProbeBank, task: Downstream, data: dict[str, Any]
) -> list[Path]:
    """Write all that a run leaves; returns its pictures."""
    write_json(folder / RESULTS, results)
    write_json(folder / "labels.json", results["labels"])
    _write_labels(folder / "labels.csv", results)
    write_predictions(folder / PREDICTIONS, task, bank)
    write_probe(folder / PROBE_FOLDER, results, bank, data)
    pictures = _draw(folder, results)
    if "confusion" in results:
        with (
            atomic_path(folder / "confusion.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file)
            table.writerow(("class", *results["labels"]))
            for label, row in zip(results["labels"], results["confusion"], strict=True):
                table.writerow((label, *row))
    with atomic_path(folder / "summary.md") as temporary:
        temporary.write_text(summary(results, pictures, folder), "utf-8")
    return pictures


def _write_labels(path: Path, results: dict[str, Any]) -> None:
    rows = results["per_label"]
    measures = [m for m in metrics.FIGURE_NAMES | {"precision": "", "recall": ""} if m in rows[0]]
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        positives = ["test_positives"] if "positives" in rows[0] else []
        names = [name for m in measures for name in (m, f"{m}_std")]
        table.writerow(("label", *positives, *names))
        for row in rows:
            figures = [row[measure] or {} for measure in measures]
            values = [figure.get(part, "") for figure in figures for part in ("mean", "std")]
            counts = [row["positives"]] if positives else []
            table.writerow((row["label"], *counts, *values))


def write_predictions(path: Path, task: Downstream, bank: ProbeBank) -> None:
    """The test split's keys [N], targets [N, C] and outputs [S, N, C] of all seeds, and labels."""
    keys = [key.encode("utf-8", "surrogateescape") for key in task.keys("test")]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            keys=np.array(keys),
            targets=task.targets("test"),
            outputs=bank.outputs.astype(np.float32),
            labels=np.array(task.labels),
            task=np.array(task.task),
            seeds=np.array(bank.seeds),
        )


def write_probe(
    folder: Path, results: dict[str, Any], bank: ProbeBank, data: dict[str, Any]
) -> None:
    """The probes of all seeds, and what is needed to use them on new music."""
    for index, seed in enumerate(bank.seeds):
        state = bank.probe(index).state_dict()
        with atomic_path(folder / f"seed-{seed}.safetensors") as temporary:
            save_file(state, temporary)
    write_json(
        folder / "probe.json",
        {
            "task": results["task"],
            "labels": results["labels"],
            "features": data["features"],
            "types": data["types"],
            "reduce": data["reduce"],
            "n_features": results["features"],
            "hidden": results["probe"]["hidden"],
            "seeds": bank.seeds,
            "extraction": results["extraction"],
            "made_by": results["made_by"],
            "trained_on": results["groundtruths"]["train"],
        },
    )


def _draw(folder: Path, results: dict[str, Any]) -> list[Path]:
    main = metrics.SHOWN[results["task"]][0]
    per_label = main if main in results["per_label"][0] else "f1"

    def column(part: str) -> list[float]:
        rows = results["per_label"]
        return [row[per_label][part] if row[per_label] else np.nan for row in rows]

    labels = [row["label"] for row in results["per_label"]]
    name = results["name"]
    pictures = [
        plots.label_bars(
            folder / "labels.png",
            labels,
            {name: column("mean")},
            f"{metrics.FIGURE_NAMES[per_label]} on the test split",
            {name: column("std")},
        ),
        plots.seed_curves(
            folder / "training.png",
            results["histories"],
            SELECTION[results["task"]],
            results["best_epochs"],
            [f"seed {seed}" for seed in results["seeds"]],
        ),
    ]
    if "confusion" in results:
        pictures.append(
            plots.heat_map(
                folder / "confusion.png",
                np.array(results["confusion"]),
                labels,
                labels,
                "tracks of each class (row), and what they were taken for",
                numbers="{:.3g}",  # means over the seeds
                row_name="class",
                column_name="taken for",
            )
        )
    return pictures


# What stands in the second row of the table
_BASELINE_SAYS = {
    "multi-label": "the labels' frequencies among the training tracks, whatever the music",
    "single-label": "the most frequent class among the training tracks, whatever the music",
    "regression": "the means of the training tracks, whatever the music",
}
_CAPTIONS = {
    "labels": "Each label on its own, the best one on top; the lines are ± one standard deviation "
    "over the seeds.",
    "training": "How the probes learned. Each is tested as it was in its best epoch on the "
    "validation split.",
    "confusion": "What the tracks of each class were taken for, a mean over the seeds: the "
    "diagonal is right.",
}


def summary(results: dict[str, Any], pictures: Sequence[Path], folder: Path) -> str:
    """A page in Markdown: figures, what they are of, the pictures, and what can be done next."""
    task, shown = results["task"], metrics.SHOWN[results["task"]]
    baseline = results[metrics.BASELINES[task]]
    rows = [
        [results["name"], *(show(results[m]) for m in shown)],
        [metrics.BASELINES[task].replace("_", " "), *(f"{baseline[m]:.4f}" for m in shown)],
    ]
    if task == "multi-label":
        rows.append(["random scores", *(f"{results['chance'][m]:.4f}" for m in shown)])
    lines = [
        f"# {results['name']}",
        "",
        markdown_table(["test split", *(metrics.FIGURE_NAMES[m] for m in shown)], rows),
        "",
        f"{_figures_say(results)} The second row is what a constant answer gets: "
        f"{_BASELINE_SAYS[task]}.",
        "",
        *(f"- {fact}" for fact in _facts(results)),
        "",
    ]
    for picture in pictures:
        lines += [_CAPTIONS[picture.stem], "", f"![{picture.stem}]({picture.name})", ""]
    return "\n".join([*lines, *_next_steps(results, folder)])


def _figures_say(results: dict[str, Any]) -> str:
    seeds = len(results["seeds"])
    over = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    if results["task"] == "regression":
        return f"{over} R² is 1 at best; of the MSE, less is better."
    return f"{over} More is better."


def _facts(results: dict[str, Any]) -> list[str]:
    """What the figures are of, a line each."""
    tracks, data, extraction = results["tracks"], results["data"], results["extraction"] or {}
    left_out = results["classes_left_out"]
    labels = f"{results['task']}, {len(results['labels'])} labels"
    if left_out:
        labels += f"; {left_out} left out of the means (nothing to score in the test split)"
    splits = f"{tracks['train']} / {tracks['val']} / {tracks['test']} tracks for training, "
    splits += "validation and test"
    if results["missing"]:
        missing = ", ".join(f"{n} of {split}" for split, n in results["missing"].items())
        what = "embedding" if data["features"] == "embeddings" else "log-mel file"
        splits += f"; left out, as they have no {what} (data.missing=skip): {missing}"
    features = f"{results['features']} features: mean and deviation of the mel bands"
    if data["features"] == "embeddings":
        how = f", {data['reduce']}" if len(data["types"]) > 1 else ""
        features = f"{results['features']} features; tokens {data['types']}{how}"
    facts = [
        labels,
        splits,
        features,
        f"seeds {', '.join(map(str, results['seeds']))}; best epochs "
        f"{', '.join(map(str, results['best_epochs']))} of {results['probe']['max_epochs']}, by "
        f"the {metrics.FIGURE_NAMES[SELECTION[results['task']]]} of the validation split",
    ]
    if extraction:
        block = extraction.get("block")
        of = f"block {block_name(block) if isinstance(block, int) else 'unknown'}"
        if "mix" in results:
            of = f"the blocks {', '.join(map(str, block))}"
        facts.append(
            f"embeddings of {of}, patches of {extraction.get('patch_seconds')} s, model "
            f"{str(extraction.get('model'))[:12]}"
        )
    elif data["features"] == "embeddings":
        facts.append("what made the embeddings is not known: their folder has no manifest.json")
    if "mix" in results:
        weights = ", ".join(f"{weight:.2f}" for weight in results["mix"]["weights"]["mean"])
        facts.append(f"a learned mix of the blocks, which weighs them with {weights}")
    packages = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return [*facts, packages]


def _next_steps(results: dict[str, Any], folder: Path) -> list[str]:
    """Commands that go on from here, and what is in which file."""
    place = shlex.quote(valid_utf8(str(folder)))
    commands = [("the same again", f"python ex_tl.py with {place}/config.json")]
    if results["extraction"]:
        line = f"python ex_tl.py predict with probe={place} audio=my/music"
        commands.append(("the probe on new music", line))
    line = f"python ex_tl.py compare with runs='[{place},exp_logs/5]'"
    commands.append(("side by side with another one", line))
    width = max(len(line) for _, line in commands)
    return [
        "```sh",
        *(f"{line.ljust(width)}  # {what}" for what, line in commands),
        "```",
        "",
        "Figures of each label: labels.csv. What each seed's probe said of each test track: "
        f"{PREDICTIONS}. All figures, settings and versions: {RESULTS}. The probes themselves: "
        f"{PROBE_FOLDER}/.",
        "",
    ]
