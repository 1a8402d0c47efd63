"""The files of a probe's run, its pictures and its summary."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from maest.datasets.embedding_folders import block_name, model_name
from maest.experiments.probe_results import (
    PREDICTIONS,
    PROBE_FOLDER,
    RESULTS,
    RIDGE,
    finished_probes,
    splits_line,
)
from maest.experiments.probe_task import ProbeTask
from maest.helpers import metrics, plots
from maest.helpers.failures import valid_utf8
from maest.helpers.files import atomic_path, write_json, write_rows
from maest.helpers.names import typed_list
from maest.helpers.report import Page, format_metric, table
from maest.models.probe import SELECTION, ProbeBank

_LABELS_SHOWN = 20  # in a summary; labels.csv has them all
_BASELINES = {
    "multi-label": "the labels' frequencies among the training tracks",
    "single-label": "the most frequent class among the training tracks",
    "regression": "the means of the training tracks",
}


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
    with atomic_path(folder / PREDICTIONS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            keys=np.array([key.encode("utf-8", "surrogateescape") for key in task.keys("test")]),
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
    """A row a label: positives of the test split, then each metric's mean and deviation."""
    counted = ["positives"] if "positives" in rows[0] else []
    names = [name for name in rows[0] if name not in ("label", "positives")]
    write_rows(
        path,
        ["label", *(f"test_{c}" for c in counted), *(h for n in names for h in (n, f"{n}_std"))],
        (
            [row["label"], *(row[c] for c in counted)]
            + [(row[name] or {}).get(part, "") for name in names for part in ("mean", "std")]
            for row in rows
        ),
    )


# ---- the summary ---------------------------------------------------------------------------------


def _summary(folder: Path, results: dict[str, Any]) -> Page:
    """A page with metrics, facts, pictures (which it draws), and commands that go on from here."""
    task, shown = results["task"], metrics.SHOWN[results["task"]]
    baseline, seeds = metrics.BASELINES[task], len(results["seeds"])
    others = {"ridge": RIDGE, baseline: baseline.replace("_", " ")}
    if task == "multi-label":
        others["chance"] = "random scores"
    rows = [[results["name"], *(format_metric(results[m]) for m in shown)]]
    for row, name in others.items():
        if row in results:
            rows.append([name, *(f"{results[row][m]:.4f}" for m in shown)])
    over = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    best = "R² is 1 at best; of the MSE, less is better." if "r2" in shown else "More is better."
    page = Page(results["name"])
    page.add(
        table(["test split", *(metrics.FIGURE_NAMES[m] for m in shown)], rows),
        f"{over} {best} The row '{others[baseline]}' is one answer for all music: "
        f"{_BASELINES[task]}.",
        *(f"**Warning.** {warning}" for warning in results["warnings"]),
    )
    page.facts(*_facts(results))
    _add_labels(page, folder, results)
    path = plots.seed_curves(
        folder / "training.png",
        results["histories"],
        SELECTION[task],
        results["best_epochs"],
        [f"seed {seed}" for seed in results["seeds"]],
    )
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
    """The picture of all labels, and a table of the best ones."""
    rows, name = results["per_label"], results["name"]
    shown = metrics.SHOWN[results["task"]][0]
    shown = shown if shown in rows[0] else "f1"
    title = f"test {metrics.FIGURE_NAMES[shown]}"
    nothing = {part: np.nan for part in ("mean", "std")}
    path = plots.label_bars(
        folder / "labels.png",
        results["labels"],
        {name: [(row[shown] or nothing)["mean"] for row in rows]},
        title,
        {name: [(row[shown] or nothing)["std"] for row in rows]},
        [row.get("positives") for row in rows],
    )
    page.picture(path, "The lines are ± one standard deviation over the seeds.")

    def value(row: dict[str, Any]) -> str:
        if row[shown]:
            return format_metric(row[shown])
        if "positives" not in row:
            return "all values are the same"
        return "no negatives" if row["positives"] else "no positives"

    best = sorted(rows, key=lambda row: -row[shown]["mean"] if row[shown] else np.inf)
    counted = ["test positives"] if "positives" in rows[0] else []
    cells = [
        [row["label"].replace("|", "\\|"), *(str(row["positives"]) for _ in counted), value(row)]
        for row in best[:_LABELS_SHOWN]
    ]
    more = len(rows) - len(cells)
    page.add(table(["label", *counted, title], cells))
    page.add(f"{more} more labels are in labels.csv." * (more > 0))


def _facts(results: dict[str, Any]) -> list[str]:
    data, extraction = results["data"], results["extraction"]
    labels = f"{results['task']}, {len(results['labels'])} labels"
    if results["classes_left_out"]:
        labels += f"; {results['classes_left_out']} without anything to score in the test split"
    what, source, unit = "mean and deviation of the mel bands", "", "log-mel file"
    if data["features"] == "embeddings":
        unit, what = "embedding", f"tokens {data['types']}"
        what += f", {data['reduce']}" if len(data["types"]) > 1 else ""
        source = "what made the embeddings is unknown: their folder has no manifest.json"
    if extraction:
        block = extraction.get("block")
        of = f"block {block_name(block)}"
        if isinstance(block, list):
            of = f"the blocks {', '.join(map(str, block))}"
        source = f"embeddings of {of}, patches of {extraction.get('patch_seconds')} s, model "
        source += valid_utf8(model_name(extraction, results["made_by"]))
    mix = ""
    if "mix" in results:
        weights = ", ".join(f"{weight:.2f}" for weight in results["mix"]["weights"]["mean"])
        mix = f"a learned mix of the blocks, which weighs them with {weights}"
    return [
        labels,
        splits_line(results, unit),
        f"{results['features']} features: {what}",
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
            if same and "test" not in found["missing"] | results["missing"]:
                return other
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version, or damaged
    return None
