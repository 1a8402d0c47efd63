"""The command ``compare`` of ``ex_tl.py``: finished runs side by side, on the same test tracks."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maest.datasets.embeddings import EMBEDDINGS_DIR
from maest.experiments.probe import chosen_folders, read_task
from maest.experiments.probe_report import (
    FEW_TRACKS,
    PREDICTIONS,
    RESULTS,
    finished_probes,
    is_sweep,
    run_probe,
)
from maest.experiments.runs import LOG_DIR
from maest.helpers import metrics, plots
from maest.helpers.bootstrap import interval, resampled_figures
from maest.helpers.errors import InputError
from maest.helpers.files import atomic_path, write_json
from maest.helpers.report import table as markdown_table
from maest.helpers.settings import listed_names, typed_list


@dataclass(frozen=True)
class Finished:
    """What a finished run predicted for its test split.

    Attributes:
        folder, name: of the run.
        task: "multi-label", "single-label" or "regression".
        keys: [N] tracks, bytes.
        targets: [N, C].
        outputs: [S, N, C] of its seeds.
        labels: [C].
    """

    folder: Path
    name: str
    task: str
    keys: np.ndarray
    targets: np.ndarray
    outputs: np.ndarray
    labels: list[str]


def read_run(folder: str | Path) -> Finished:
    """Read a probe run's predictions.

    Raises:
        InputError: it is no folder of a finished probe run.
    """
    folder = Path(folder).expanduser()
    path = folder / PREDICTIONS
    if not path.is_file():
        raise _no_predictions(folder)
    try:
        with np.load(path, allow_pickle=False) as found:
            content = {name: found[name] for name in found.files}
        task, labels = str(content["task"]), [str(label) for label in content["labels"]]
        keys, targets, outputs = (content[name] for name in ("keys", "targets", "outputs"))
        shape = (len(keys), len(labels))
        if targets.shape != shape or outputs.shape[1:] != shape or task not in metrics.SHOWN:
            raise ValueError("its arrays do not fit together")
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot be read ({error})", kind="corrupt", path=path, hint="Run that probe again."
        ) from None
    return Finished(folder, _name(folder), task, keys, targets, outputs, labels)


def _no_predictions(folder: Path) -> InputError:
    """What to say of a folder without predictions."""
    hint = "Give the folders of finished probe runs of ex_tl.py"
    if probes := finished_probes():
        hint += f", such as {typed_list('runs', [str(probe) for probe in probes[:3]])}"
    what, path = "no finished probe run", folder
    if not folder.is_dir():
        what = "no such folder"
        if (LOG_DIR / folder / PREDICTIONS).is_file():
            hint = f"Give {LOG_DIR / folder}"
    elif is_sweep(folder):
        what = "is the folder of a sweep, which keeps figures and no predictions"
        hint = "Probe its choices, each by itself; its summary.md has the command for the best one"
    else:
        path = folder / PREDICTIONS
        what = "no such file: the run was stopped, or is of another command"
    return InputError(what, kind="missing", path=path, setting="runs", hint=f"{hint}.")


def _name(folder: Path) -> str:
    try:
        return str(json.loads((folder / RESULTS).read_text("utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(folder)


def on_the_same_tracks(runs: list[Finished]) -> list[Finished]:
    """The runs with their tracks in the order of the first one's.

    Raises:
        InputError: they are of another task, other labels, other tracks or other targets.
    """
    first = runs[0]
    order = {key: i for i, key in enumerate(first.keys.tolist())}
    found = [first]
    for run in runs[1:]:
        if run.task != first.task or run.labels != first.labels:
            own, other = (f"{one.task}, {len(one.labels)} labels" for one in (run, first))
            how = f"{own}; {other}" if own != other else f"{own}, of other names or in other order"
            raise InputError(
                f"is of another task than {first.folder} ({how})",
                kind="mismatch",
                path=run.folder,
                setting="runs",
                hint="Give runs on the same ground truths.",
            )
        at = {key: i for i, key in enumerate(run.keys.tolist())}
        if at.keys() != order.keys():
            alone = len(at.keys() ^ order.keys())
            raise InputError(
                f"was not tested on the same tracks as {first.folder}: {alone} are in one of them "
                "only",
                kind="mismatch",
                path=run.folder,
                setting="runs",
                hint="Probe both on the same ground truths, and with features for all of their "
                "tracks.",
            )
        rows = [at[key] for key in first.keys.tolist()]
        if not np.array_equal(run.targets[rows], first.targets):
            raise InputError(
                f"was tested on the same tracks as {first.folder} with other labels: the ground "
                "truth has changed between them",
                kind="mismatch",
                path=run.folder,
                setting="runs",
                hint="Run the older one again.",
            )
        found.append(Finished(run.folder, run.name, run.task, first.keys, first.targets,
                              run.outputs[:, rows], run.labels))  # fmt: skip
    return found


def _folders(typed: Any) -> list[str]:
    """Folders: a list, ``[a,b]`` typed without quotes, or names with spaces between them."""
    if isinstance(typed, str) and "," not in typed:
        typed = typed.strip("[]() ").split()
        return [name for part in typed for name in listed_names(part)]
    return [] if typed is None else listed_names(typed)


def _names(runs: list[Finished]) -> list[str]:
    """What each run is called; with its folder, where several are called the same."""
    names = [run.name for run in runs]
    return [
        f"{name} ({run.folder})" if names.count(name) > 1 and name != str(run.folder) else name
        for name, run in zip(names, runs, strict=True)
    ]


def compare_runs(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare, print and write ``comparison.json``, ``comparison.md`` and ``comparison.png``."""
    options = config["compare"]
    wanted, probed = _folders(config["runs"]), _folders(options["embeddings_dirs"])
    if len(wanted) + len(probed) < 2:
        raise InputError(
            "a comparison is of two runs or more",
            kind="missing",
            setting="runs",
            hint="Give folders of finished runs, such as runs=[exp_logs/4,exp_logs/5], or those of "
            "extractions that are still to be probed, such as "
            "compare.embeddings_dirs=[embeddings/mtt/5sec,embeddings/mtt/30sec].",
        )
    for setting, given in (("runs", wanted), ("compare.embeddings_dirs", probed)):
        twice = sorted({one for one in given if given.count(one) > 1})
        if twice:
            raise InputError(
                f"has {twice[0]} twice", kind="conflict", setting=setting, hint="Give each once."
            )
    finished = [read_run(run) for run in wanted]  # what is wrong there is told first
    if probed:
        _check_sources(probed, config)
    finished += [read_run(run) for run in _probe_each(probed, config, folder)]
    runs = on_the_same_tracks(finished)
    first, shown, called = runs[0], metrics.SHOWN[runs[0].task], _names(runs)
    samples = [
        resampled_figures(run.task, run.targets, run.outputs, options["resamples"], config["seed"])
        for run in tqdm(runs, "bootstrap", unit="run", disable=None)
    ]
    found: dict[str, Any] = {
        "task": first.task,
        "labels": first.labels,
        "tracks": len(first.keys),
        "resamples": options["resamples"],
        "confidence": options["confidence"],
        "seed": config["seed"],
        "runs": [],
    }
    for run, name, own in zip(runs, called, samples, strict=True):
        entry = {"folder": str(run.folder), "name": name, "seeds": len(run.outputs)}
        for m in shown:
            least, most = metrics.BOUNDS[m]
            entry[m] = interval(own[m], options["confidence"], (least, most))
            if run is not first:
                entry[f"{m}_difference"] = interval(
                    own[m] - samples[0][m], options["confidence"], (least - most, most - least)
                )
        found["runs"].append(entry)
    names = [metrics.FIGURE_NAMES[m] for m in shown]
    rows = [
        [entry["name"]]
        + [_shown(entry[m]) for m in shown]
        + [_shown(entry[f"{m}_difference"], True) if f"{m}_difference" in entry else ""
           for m in shown]
        for entry in found["runs"]
    ]  # fmt: skip
    header = ["run", *names, *(f"{name}, difference" for name in names)]
    text = markdown_table(header, rows)
    percent = f"{options['confidence']:.0%}"
    less = " Of the MSE, less is better." if "mse" in shown else ""
    note = (
        f"{percent} intervals of a bootstrap over the {len(first.keys)} test tracks "
        f"({options['resamples']} resamples, the same for all runs); figures are means over each "
        f"run's seeds. Differences are to {called[0]}; one whose interval leaves out 0 is marked "
        f"*: other test tracks of this kind would hardly have turned it round.{less}"
    )
    if len(first.keys) < FEW_TRACKS:
        note = (
            f"**Warning.** {len(first.keys)} test tracks are too few to tell runs apart: neither "
            f"intervals nor marks can be trusted.\n\n{note}"
        )
    picture = plots.intervals(
        folder / "comparison.png",
        [entry["name"] for entry in found["runs"]],
        {name: [entry[m] for entry in found["runs"]] for m, name in zip(shown, names, strict=True)},
        f"{percent} intervals over the test tracks",
    )
    write_json(folder / "comparison.json", found)
    with atomic_path(folder / "comparison.md") as temporary:
        temporary.write_text(
            f"# Runs side by side\n\n{text}\n\n{note}\n\n![{picture.stem}]({picture.name})\n",
            "utf-8",
        )
    print(f"{text}\n{note}\n{folder / 'comparison.md'}")
    return {"folder": str(folder), "runs": found["runs"]}


def _check_sources(sources: list[str], config: dict[str, Any]) -> None:
    """Raise InputError for what would stop one of the probes, after others are trained."""
    data = config["data"]
    if data["features"] != "embeddings":
        raise InputError(
            "has no effect on compare.embeddings_dirs, which are embeddings",
            kind="conflict",
            setting="data.features",
            hint="Run that probe by itself, and give it as one of the runs.",
        )
    if config["name"] is not None:
        raise InputError(
            "has no effect on compare.embeddings_dirs, whose probes have the names of the folders",
            kind="conflict",
            setting="name",
            hint="Leave it out.",
        )
    task = read_task(config)
    test: list[str] | None = None
    for source in sources:
        try:
            folders, _ = chosen_folders(data | {"embeddings_dir": source})
        except InputError as error:
            if error.setting == EMBEDDINGS_DIR:
                error.setting = "compare.embeddings_dirs"
            raise
        own = [k for k in task.keys("test") if all(made.has(k) for made in folders)]
        if test is not None and own != test:
            raise InputError(
                f"{source} and {sources[0]} have not embeddings of the same tracks of the test "
                f"split ({len(own)} and {len(test)} of {len(task.keys('test'))})",
                kind="mismatch",
                setting="compare.embeddings_dirs",
                hint="Extract those that are missing.",
            )
        test = own


def _probe_each(sources: list[str], config: dict[str, Any], folder: Path) -> list[Path]:
    """Probe several extractions alike; returns their folders within this run's."""
    made = []
    for number, source in enumerate(sources, 1):
        own = config | {"data": config["data"] | {"embeddings_dir": source}}
        own["name"] = source
        made.append(folder / f"probe-{number}")
        # As the run's own, so that the probe can be made again by itself
        alone = {"runs": None, "compare": dict(config["compare"]) | {"embeddings_dirs": None}}
        write_json(made[-1] / "config.json", own | alone)
        run_probe(own, made[-1])
        print()
    return made


def _shown(figure: dict[str, float], difference: bool = False) -> str:
    sign = "+" if difference else ""
    mark = " *" if difference and figure["low"] * figure["high"] > 0 else ""
    value, low, high = (format(figure[part], f"{sign}.4f") for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]{mark}"
