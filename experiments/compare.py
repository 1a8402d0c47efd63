"""The command ``compare`` of ``ex_tl.py``: finished runs side by side on the same test tracks."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maest.config import ProbeSettings, plain
from maest.datasets.embeddings import EMBEDDINGS_DIR
from maest.experiments.probe import run_probe
from maest.experiments.probe_data import choose_folders, read_task
from maest.experiments.probe_report import FEW_TRACKS, PREDICTIONS, RESULTS, no_probe
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_json
from maest.helpers.reports import metrics, plots
from maest.helpers.reports.bootstrap import interval, resampled_figures
from maest.helpers.reports.report import Page, table


@dataclass(frozen=True)
class RunResults:
    """A finished run's outputs for its test split: N tracks, C labels, S seeds."""

    folder: Path
    name: str
    task: str
    keys: list[bytes]  # [N]
    targets: np.ndarray  # [N, C]
    outputs: np.ndarray  # [S, N, C]
    labels: list[str]  # [C]


def compare(run: Any, settings: ProbeSettings) -> dict[str, Any]:
    """Compare finished runs, or probes of several extractions, with intervals."""
    folder, options = run_dir(run), settings.compare
    folders, to_probe = list(settings.runs or ()), list(options.embeddings_dirs or ())
    if len(folders) + len(to_probe) < 2:
        hint = "Give folders of finished runs, such as runs=[exp_logs/4,exp_logs/5], or of "
        hint += "extractions that are still to be probed, such as compare.embeddings_dirs="
        hint += "[embeddings/mtt/5sec,embeddings/mtt/30sec]."
        message = "a comparison is of two runs or more"
        raise InputError(message, kind="missing", setting="runs", hint=hint)
    runs = [read_run(Path(given)) for given in folders]  # first, as it may refuse
    for number, probe in enumerate(_probes(to_probe, settings), 1):
        own = folder / f"probe-{number}"  # like a run's folder, so that the probe can be repeated
        write_json(own / "config.json", plain(probe))
        run_probe(probe, own)
        print()
        runs.append(read_run(own))
    runs = align_tracks(runs)
    results = {
        "task": runs[0].task,
        "labels": runs[0].labels,
        "tracks": len(runs[0].keys),
        "resamples": options.resamples,
        "confidence": options.confidence,
        "seed": settings.seed,
        "runs": _intervals(runs, settings),
    }
    write_json(folder / "comparison.json", results)
    page = _page(folder, results)
    page.write(folder / "comparison.md")
    print(f"{page.text}\n\n{folder / 'comparison.md'}")
    return {"folder": str(folder), "runs": results["runs"]}


def _page(folder: Path, results: dict[str, Any]) -> Page:
    tracks, rows, shown = results["tracks"], results["runs"], metrics.SHOWN[results["task"]]
    names, percent = [metrics.FIGURE_NAMES[m] for m in shown], f"{results['confidence']:.0%}"
    warning = f"{tracks} test tracks are too few to tell runs apart: neither intervals nor marks "
    page = Page("Runs side by side", [f"{warning}can be trusted."] * (tracks < FEW_TRACKS))
    cells = [
        [row["name"], *(_in_words(row[m]) for m in shown)]
        + [_in_words(row.get(f"{m}_difference"), difference=True) for m in shown]
        for row in rows
    ]
    less = " Of the MSE, less is better." * ("mse" in shown)
    page.add(
        table(["run", *names, *(f"{name}, difference" for name in names)], cells),
        f"{percent} intervals of a bootstrap over the {tracks} test tracks "
        f"({results['resamples']} resamples, the same for all runs); metrics are means over each "
        f"run's seeds. Differences are to {rows[0]['name']}; one whose interval leaves out 0 is "
        f"marked *: with other test tracks of this kind it would hardly change its sign.{less}",
    )
    runs, title = [row["name"] for row in rows], f"{percent} intervals over the test tracks"
    values = {name: [row[m] for row in rows] for m, name in zip(shown, names, strict=True)}
    page.picture(plots.intervals(folder / "comparison.png", runs, values, title))
    return page


def _in_words(metric: dict[str, float] | None, difference: bool = False) -> str:
    """Format 0.7312 [0.7011, 0.7604]; differences get signs, and * where 0 is left out."""
    if metric is None:
        return ""
    sign = "+" if difference else ""
    star = " *" if difference and metric["low"] * metric["high"] > 0 else ""
    value, low, high = (format(metric[part], f"{sign}.4f") for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{star}"


def read_run(folder: Path) -> RunResults:
    """Read a probe run's predictions. InputError: the folder has none, or they are corrupt."""
    folder = folder.expanduser()
    path = folder / PREDICTIONS
    if not path.is_file():
        raise no_probe(folder, PREDICTIONS, "runs")
    try:
        with np.load(path, allow_pickle=False) as found:
            content = {name: found[name] for name in found.files}
        task, labels = str(content["task"]), [str(label) for label in content["labels"]]
        keys, targets, outputs = (content[name] for name in ("keys", "targets", "outputs"))
        shape = (len(keys), len(labels))
        if targets.shape != shape or outputs.shape[1:] != shape or task not in metrics.SHOWN:
            raise ValueError("its arrays do not fit together")
    except Exception as error:  # NumPy's, or those of a damaged archive
        message, hint = f"cannot be read ({error})", "Run that probe again."
        raise InputError(message, kind="corrupt", path=path, hint=hint) from None
    try:
        name = str(json.loads((folder / RESULTS).read_text("utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        name = str(folder)
    return RunResults(folder, name, task, keys.tolist(), targets, outputs, labels)


def align_tracks(runs: list[RunResults]) -> list[RunResults]:
    """Return the runs with tracks in the first run's order. InputError: tracks or labels differ."""
    first, aligned = runs[0], []
    for run in runs:
        rows, different = {key: i for i, key in enumerate(run.keys)}, ""
        order = [rows[key] for key in first.keys if key in rows]
        if (run.task, run.labels) != (first.task, first.labels):
            different = "another task, or other labels"
        elif apart := rows.keys() ^ set(first.keys):
            different = f"other test tracks ({len(apart)} are in one of them only)"
        elif not np.array_equal(run.targets[order], first.targets, equal_nan=True):
            different = "other labels of the same test tracks"
        if different:
            message = f"has {different} than {first.folder}"
            hint = "Probe both on the same ground truths, with features for all of their tracks."
            raise InputError(message, kind="mismatch", path=run.folder, setting="runs", hint=hint)
        outputs = run.outputs[:, order]
        aligned.append(replace(run, keys=first.keys, targets=first.targets, outputs=outputs))
    return aligned


def _intervals(runs: list[RunResults], settings: ProbeSettings) -> list[dict[str, Any]]:
    resamples, confidence = settings.compare.resamples, settings.compare.confidence
    samples = [
        resampled_figures(run.task, run.targets, run.outputs, resamples, settings.seed)
        for run in tqdm(runs, "bootstrap", unit="run", disable=None)
    ]
    names, rows = [run.name for run in runs], []
    for run, own in zip(runs, samples, strict=True):
        name = run.name
        if names.count(name) > 1 and name != str(run.folder):
            name += f" ({run.folder})"
        row: dict[str, Any] = {"folder": str(run.folder), "name": name, "seeds": len(run.outputs)}
        for m, values in own.items():
            least, most = metrics.BOUNDS[m]
            row[m] = interval(values, confidence, (least, most))
            if run is not runs[0]:
                bounds = least - most, most - least
                row[f"{m}_difference"] = interval(values - samples[0][m], confidence, bounds)
        rows.append(row)
    return rows


def _probes(sources: list[str], settings: ProbeSettings) -> list[ProbeSettings]:
    """Return the settings of each extraction's probe; refuse bad ones before any training."""
    if not sources:
        return []
    other_features = settings.data.features != "embeddings"
    if other_features or settings.name is not None:
        message = "has no effect on compare.embeddings_dirs"
        hint = "Leave it out: embeddings are probed, and named as their folders."
        setting = "data.features" if other_features else "name"
        raise InputError(message, kind="conflict", setting=setting, hint=hint)
    keys, first = read_task(settings.data).splits["test"].keys, None
    alone, probes = replace(settings.compare, embeddings_dirs=None), []
    for source in sources:
        data = replace(settings.data, embeddings_dir=source)
        try:
            folders = choose_folders(data, data.block)
        except InputError as error:
            if error.setting == EMBEDDINGS_DIR:
                error.setting = "compare.embeddings_dirs"
            raise
        present = [key for key in keys if all(own.path(key).is_file() for own in folders)]
        first = present if first is None else first
        if present != first:
            message = f"{source} and {sources[0]} have embeddings of different tracks of the test "
            message += f"split ({len(present)} and {len(first)} of {len(keys)})"
            setting, hint = "compare.embeddings_dirs", "Extract those that are missing."
            raise InputError(message, kind="mismatch", setting=setting, hint=hint)
        probes.append(replace(settings, data=data, name=source, runs=None, compare=alone))
    return probes
