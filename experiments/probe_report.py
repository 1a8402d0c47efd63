"""What probes have come to: figures over seeds and labels, the files of a run, and its summary."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from maest.datasets.embeddings import block_name, model_name
from maest.experiments.probe import (
    PACKAGES,
    Downstream,
    Features,
    digests,
    load_features,
    read_task,
    train_probes,
)
from maest.experiments.runs import LOG_DIR, Interrupted
from maest.helpers import metrics, plots
from maest.helpers.checkpoints import Stopped
from maest.helpers.collect import stoppable
from maest.helpers.failures import valid_utf8
from maest.helpers.files import atomic_path, write_json
from maest.helpers.report import machine, versions
from maest.helpers.report import table as markdown_table
from maest.helpers.settings import typed_list
from maest.models.probe import SELECTION, ProbeBank

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"
RESULTS = "results.json"
PROBE_FOLDER = "probe"
SWEEP = "sweep.json"
FEW_TRACKS = 30  # in a split of fewer, a figure says little
RIDGE = "linear probe (ridge regression)"
_LABELS_SHOWN = 20  # in a summary; labels.csv has them all


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep, which has figures alone."""
    return (folder / SWEEP).is_file()


def finished_probes() -> list[Path]:
    """The folders of finished probes in ``exp_logs``, the newest first."""
    found = [path for path in LOG_DIR.glob(f"*/{PROBE_FOLDER}/probe.json") if path.is_file()]
    found = [path for path in found if not path.parents[1].is_symlink()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parents[1] for path in found]


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
    for warning in results["warnings"]:
        log.warning("%s", warning)
    results["seconds"] = time.monotonic() - started
    write_run(folder, results, bank, task, config["data"])
    shown = metrics.SHOWN[task.task]
    chance = ", ".join(f"{results['chance'][m]:.4f}" for m in shown)
    figures = ", ".join(f"{metrics.FIGURE_NAMES[m]} {show(results[m])}" for m in shown)
    left_out = sum(results["missing"].values())
    simpler = ""
    if "ridge" in results:
        ridge = ", ".join(f"{metrics.FIGURE_NAMES[m]} {results['ridge'][m]:.4f}" for m in shown)
        simpler = f"{RIDGE} on the same tracks: test {ridge}\n"
    print(
        f"{name}: test {figures} over {len(seeds)} seed{'s' * (len(seeds) > 1)} (chance {chance}); "
        f"{results['features']} features, "
        f"{' / '.join(str(n) for n in results['tracks'].values())} tracks"
        f"{f' ({left_out} without features left out)' if left_out else ''}, "
        f"{len(task.labels)} labels, {results['classes_left_out']} left out\n{simpler}"
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
        "best_epochs": bank.best_epochs.tolist(),
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
    results["warnings"] = few_tracks(results["tracks"]) + _still_warming_up(
        results["best_epochs"], config["probe"]["warmup_epochs"]
    )
    if results["warnings"]:
        results["ridge"] = _ridge(task, features)
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


def few_tracks(tracks: dict[str, int]) -> list[str]:
    """A warning for each split that is too small to tell anything by."""
    return [
        f"The {name} split has {tracks[split]} tracks, which is too few: {why}."
        for split, name, why in (
            ("val", "validation", "chance may have chosen what is best on it"),
            ("test", "test", "the figures are uncertain"),
        )
        if tracks[split] < FEW_TRACKS
    ]


def _still_warming_up(best_epochs: Sequence[int], warmup_epochs: float) -> list[str]:
    early = [str(epoch) for epoch in best_epochs if epoch <= warmup_epochs]
    if not early:
        return []
    return [
        f"Best epoch {', '.join(early)} is within the warm-up of {warmup_epochs:g} epochs: the "
        "probe has learned next to nothing."
    ]


def _ridge(task: Downstream, features: Features) -> dict[str, float]:
    """Test figures of a linear probe in closed form, which needs no validation split.

    The penalty is the number of features: as if each track's features had length 1, and it 1. Of
    blocks that are to be mixed it takes the plain mean.
    """
    train, test = (features.splits[split].mean(axis=1) for split in ("train", "test"))
    probe = make_pipeline(StandardScaler(), Ridge(alpha=train.shape[1]))
    targets = task.targets("test")
    outputs = probe.fit(train, task.targets("train")).predict(test).reshape(targets.shape)
    figures = metrics.evaluate(task.task, targets, outputs).figures
    return {measure: figures[measure] for measure in metrics.SHOWN[task.task]}


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
            "warnings": results["warnings"],
        },
    )


def _draw(folder: Path, results: dict[str, Any]) -> list[Path]:
    per_label = _label_measure(results)

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
            [row.get("positives") for row in results["per_label"]],
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


# What a constant answer is
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
    if "ridge" in results:
        rows.insert(1, [RIDGE, *(f"{results['ridge'][m]:.4f}" for m in shown)])
    lines = [
        f"# {results['name']}",
        "",
        markdown_table(["test split", *(metrics.FIGURE_NAMES[m] for m in shown)], rows),
        "",
        f"{_figures_say(results)} The row '{metrics.BASELINES[task].replace('_', ' ')}' is what a "
        f"constant answer gets: {_BASELINE_SAYS[task]}.",
        "",
        *(f"**Warning.** {warning}\n" for warning in results["warnings"]),
        *(f"- {fact}" for fact in _facts(results)),
        "",
    ]
    for picture in pictures:
        lines += [_CAPTIONS[picture.stem], "", f"![{picture.stem}]({picture.name})", ""]
        if picture.stem == "labels":
            lines += [*_label_table(results), ""]
    return "\n".join([*lines, *_next_steps(results, folder)])


def _label_table(results: dict[str, Any]) -> list[str]:
    """The best labels, with the number of test tracks that have each."""
    measure = _label_measure(results)
    rows = sorted(
        results["per_label"],
        key=lambda row: row[measure]["mean"] if row[measure] else -np.inf,
        reverse=True,
    )
    counted = ["positives"] * ("positives" in rows[0])
    cells = [
        [
            row["label"].replace("|", "\\|"),
            *(str(row[name]) for name in counted),
            show(row[measure]) if row[measure] else _nothing_to_score(row),
        ]
        for row in rows[:_LABELS_SHOWN]
    ]
    title = f"test {metrics.FIGURE_NAMES[measure]}"
    more = len(rows) - len(cells)
    return [
        markdown_table(["label", *(f"test {name}" for name in counted), title], cells),
        *(["", f"{more} more labels are in labels.csv."] if more > 0 else []),
    ]


def _nothing_to_score(row: dict[str, Any]) -> str:
    if "positives" not in row:
        return "all values are the same"
    return "no negatives" if row["positives"] else "no positives"


def _label_measure(results: dict[str, Any]) -> str:
    """The figure of each label that is drawn."""
    main = metrics.SHOWN[results["task"]][0]
    return main if main in results["per_label"][0] else "f1"


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
            f"{valid_utf8(model_name(extraction, results['made_by']))}"
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
    if other := _comparable(results, folder):
        line = f"python ex_tl.py compare with {typed_list('runs', [str(folder), str(other)])}"
        commands.append(("side by side with another one", line))
    width = max(len(line) for _, line in commands)
    return [
        "```sh",
        *(f"{line.ljust(width)}  # {what}" for what, line in commands),
        "```",
        "",
        *(
            [
                "On new music, a file or a folder: "
                f"`python ex_tl.py predict with probe={place} audio=<music>`.",
                "",
            ]
            if results["extraction"]
            else []
        ),
        "Figures of each label: labels.csv. What each seed's probe said of each test track: "
        f"{PREDICTIONS}. All figures, settings and versions: {RESULTS}. The probes themselves: "
        f"{PROBE_FOLDER}/.",
        "",
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
