"""Write a probe run's files, pictures and summary; find other finished probes."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from maest.datasets.embeddings import block_name, model_name
from maest.experiments.probe_data import ProbeTask
from maest.experiments.runs import LOG_DIR, newest_runs
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import atomic_path, valid_utf8, write_json, write_rows
from maest.helpers.names import typed_list
from maest.helpers.reports import metrics, plots
from maest.helpers.reports.report import Page, format_metric, metrics_table, table
from maest.models.probe import SELECTION, ProbeBank

PREDICTIONS = "predictions.npz"
RESULTS = "results.json"
PROBE_FOLDER = "probe"
SWEEP = "sweep.json"
FEW_TRACKS = 30  # in a smaller split, metrics say little
RIDGE = "linear probe (ridge regression)"
_LABELS_SHOWN = 20  # in a summary; labels.csv has all
_BASELINES = {
    "multi-label": "the labels' frequencies among the training tracks",
    "single-label": "the most frequent class among the training tracks",
    "regression": "the means of the training tracks",
}


def write_run(
    folder: Path, results: dict[str, Any], task: ProbeTask, bank: ProbeBank, outputs: np.ndarray
) -> None:
    """Write results, probes, predictions, pictures, tables and summary of a run."""
    labels, rows = results["labels"], results["per_label"]
    write_json(folder / RESULTS, results)
    write_json(folder / "labels.json", labels)
    columns = [name for name in rows[0] if name not in ("label", "positives")]
    counted = ["positives"] if "positives" in rows[0] else []
    write_rows(
        folder / "labels.csv",
        ["label", *(f"test_{c}" for c in counted), *(h for n in columns for h in (n, f"{n}_std"))],
        (
            [row["label"], *(row[c] for c in counted)]
            + [(row[name] or {}).get(part, "") for name in columns for part in ("mean", "std")]
            for row in rows
        ),
    )
    if "confusion" in results:
        named = ([label, *row] for label, row in zip(labels, results["confusion"], strict=True))
        write_rows(folder / "confusion.csv", ("class", *labels), named)
    with atomic_path(folder / PREDICTIONS) as temporary, temporary.open("wb") as file:
        keys = [key.encode("utf-8", "surrogateescape") for key in task.splits["test"].keys]
        np.savez_compressed(
            file,
            keys=np.array(keys),
            targets=task.splits["test"].targets,
            outputs=outputs,
            labels=np.array(task.labels),
            task=np.array(task.task),
            seeds=np.array(bank.seeds),
        )
    for index, seed in enumerate(bank.seeds):
        with atomic_path(folder / PROBE_FOLDER / f"seed-{seed}.safetensors") as temporary:
            save_file(bank.state(index), temporary)
    about = ("task", "labels", "seeds", "extraction", "made_by", "warnings")
    write_json(
        folder / PROBE_FOLDER / "probe.json",
        {name: results[name] for name in about}
        | {name: results["data"][name] for name in ("features", "types", "reduce")}
        | {"n_features": results["features"], "hidden": results["probe"]["hidden"]}
        | {"trained_on": results["groundtruths"]["train"]},
    )
    _summary(folder, results).write(folder / "summary.md")


# ---- the summary ---------------------------------------------------------------------------------


def _summary(folder: Path, results: dict[str, Any]) -> Page:
    task, selection = results["task"], SELECTION[results["task"]]
    constant, seeds = metrics.BASELINES[task], len(results["seeds"])
    others = {"ridge": RIDGE, constant: constant.replace("_", " ")}
    if task == "multi-label":
        others["chance"] = "random scores"
    rows = [(results["name"], results)]
    rows += [(name, results[key]) for key, name in others.items() if key in results]
    over = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    best = "More is better."
    if task == "regression":
        best = "R² is 1 at best; of the MSE, less is better."
    page = Page(results["name"])
    page.add(
        metrics_table(task, rows, "test split"),
        f"{over} {best} The row '{others[constant]}' is one answer for all music: "
        f"{_BASELINES[task]}.",
        *(f"**Warning.** {warning}" for warning in results["warnings"]),
    )
    page.facts(*_facts(results))
    _add_labels(page, folder, results)
    names = [f"seed {seed}" for seed in results["seeds"]]
    curves = results["histories"], selection, results["best_epochs"], names
    path = plots.seed_curves(folder / "training.png", *curves)
    page.picture(path, "How the probes learned. Each is tested with the weights of its best epoch.")
    if "confusion" in results:
        path = plots.heat_map(
            folder / "confusion.png",
            np.array(results["confusion"]),
            results["labels"],
            results["labels"],
            "tracks of each class (row), and the class they were taken for",
            numbers="{:.3g}",  # means over the seeds
            row_name="class",
            column_name="taken for",
        )
        page.picture(path, "Means over the seeds; the diagonal is right.")
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
        "Metrics of each label: labels.csv. Each seed's outputs for each test track: "
        f"{PREDICTIONS}. All metrics, settings, versions: {RESULTS}. The probes: {PROBE_FOLDER}/."
    )
    return page


def _add_labels(page: Page, folder: Path, results: dict[str, Any]) -> None:
    rows, name = results["per_label"], results["name"]
    shown = "f1" if results["task"] == "single-label" else metrics.SHOWN[results["task"]][0]
    title = f"test {metrics.FIGURE_NAMES[shown]}"
    means, deviations = ([(row[shown] or {}).get(part, np.nan) for row in rows]
                         for part in ("mean", "std"))  # fmt: skip
    positives = [row.get("positives") for row in rows]
    bars = {name: means}, title, {name: deviations}, positives
    path = plots.label_bars(folder / "labels.png", results["labels"], *bars)
    page.picture(path, "The lines are ± one standard deviation over the seeds.")
    counted = ["test positives"] if "positives" in rows[0] else []
    cells = []
    for i in np.argsort(-np.array(means), kind="stable")[:_LABELS_SHOWN]:
        value = format_metric(rows[i][shown])
        if not value:
            nothing = "no negatives" if positives[i] else "no positives"
            value = nothing if counted else "all values are the same"
        label = rows[i]["label"].replace("|", "\\|")
        cells.append([label, *(str(positives[i]) for _ in counted), value])
    more = len(rows) - len(cells)
    page.add(table(["label", *counted, title], cells))
    page.add(f"{more} more labels are in labels.csv." * (more > 0))


def _facts(results: dict[str, Any]) -> list[str]:
    data, extraction, selection = results["data"], results["extraction"], SELECTION[results["task"]]
    labels = f"{results['task']}, {len(results['labels'])} labels"
    if results["classes_left_out"]:
        labels += f"; {results['classes_left_out']} without anything to score in the test split"
    what, source, unit, mix = "mean and deviation of the mel bands", "", "log-mel file", ""
    if data["features"] == "embeddings":
        unit, what = "embedding", f"tokens {data['types']}"
        what += f", {data['reduce']}" if len(data["types"]) > 1 else ""
        source = "what made the embeddings is unknown: their folder has no manifest.json"
    if extraction:
        block = extraction["block"]
        of = f"block {block_name(block)}"
        if isinstance(block, list):
            of = f"the blocks {', '.join(map(str, block))}"
        source = f"embeddings of {of}, patches of {extraction.get('patch_seconds')} s, model "
        source += valid_utf8(model_name(extraction, results["made_by"]))
    if "mix" in results:
        weights = ", ".join(f"{weight:.2f}" for weight in results["mix"]["weights"]["mean"])
        mix = f"a learned mix of the blocks, which weighs them with {weights}"
    return [
        labels,
        splits_line(results, unit),
        f"{results['features']} features: {what}",
        f"seeds {', '.join(map(str, results['seeds']))}; best epochs "
        f"{', '.join(map(str, results['best_epochs']))} of {results['probe']['max_epochs']}, by "
        f"the {metrics.FIGURE_NAMES[selection]} of the validation split",
        source,
        mix,
        ", ".join(f"{name} {number}" for name, number in results["versions"].items()),
    ]


def splits_line(results: Mapping[str, Any], what: str = "embedding") -> str:
    """Return a line with the tracks of each split, and those left out."""
    line = f"{' / '.join(map(str, results['tracks'].values()))} tracks for training, validation "
    line += "and test"
    if results["missing"]:
        missing = ", ".join(f"{n} of {split}" for split, n in results["missing"].items())
        line += f"; left out, as they have no {what} (data.missing=skip): {missing}"
    return line


def few_tracks(tracks: Mapping[str, int]) -> list[str]:
    """Return a warning for each split that is too small for its metrics."""
    whys = {
        "validation": (tracks["val"], "chance may have chosen what is best on it"),
        "test": (tracks["test"], "the metrics are uncertain"),
    }
    return [f"The {split} split has {count} tracks, which is too few: {why}."
            for split, (count, why) in whys.items() if count < FEW_TRACKS]  # fmt: skip


# ---- finished probes -----------------------------------------------------------------------------


def no_probe(folder: Path, name: str, setting: str) -> InputError:
    """Return the error for a folder without a finished probe's file, with a likely correction."""
    path, message = folder / name, "no such file: the run was stopped, or is no probe's"
    hint = "Give the folder of a finished probe of ex_tl.py"
    if probes := newest_runs(name):
        hint += f", such as {', '.join(map(str, probes[:3]))}"
    if (folder / SWEEP).is_file():
        path, message = folder, "is the folder of a sweep, which keeps metrics alone"
        hint = "Probe its choices, each by itself; its summary.md has the command for the best one"
    elif not folder.is_dir():
        path, message = folder, "no such folder"
        if (LOG_DIR / folder / name).is_file():
            hint = f"Give {LOG_DIR / folder}"
    return InputError(message, kind="missing", path=path, setting=setting, hint=f"{hint}.")


def _comparable(results: dict[str, Any], folder: Path) -> Path | None:
    """Return the newest other probe that was tested on the same tracks."""
    for other in newest_runs(PREDICTIONS):
        if other.resolve() == folder.resolve():
            continue
        try:
            found = json.loads((other / RESULTS).read_text("utf-8"))
            same = all(found[name] == results[name] for name in ("task", "labels", "groundtruths"))
            if same and "test" not in found["missing"] | results["missing"]:
                return other
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or damaged
    return None
