"""The command ``sweep`` of ``ex_tl.py``: do it, go on with one that was stopped, and report."""

from __future__ import annotations

import csv
import json
import logging
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maest.datasets.embeddings import block_name
from maest.experiments.probe import MIX, PACKAGES, digests, load_embeddings, read_task
from maest.experiments.probe_report import SWEEP, few_tracks, show
from maest.experiments.runs import Interrupted, same_command
from maest.experiments.sweep import Cell, Work, cells_of, choices_of, processes_for, sweep_folders
from maest.helpers import metrics, plots
from maest.helpers.checkpoints import Stopped
from maest.helpers.collect import stoppable
from maest.helpers.errors import InputError
from maest.helpers.failures import valid_utf8
from maest.helpers.files import atomic_path, to_json, write_json
from maest.helpers.report import machine, versions
from maest.helpers.report import table as markdown_table
from maest.models.probe import SELECTION

log = logging.getLogger(__name__)

_CHOSEN = ("block", "types", "reduce")  # settings of data that a sweep tries
_FIRST = 10  # rows of the summary's table
_LINES = 3  # choices of tokens in the picture of the blocks


def run_sweep(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train all probes, several at once; write a table, pictures and a summary.

    Raises:
        InputError: for settings, embeddings or ground truths that will not do.
        Interrupted: a signal has stopped it; what is done can be taken over.
    """
    try:
        with stoppable():
            return _run_sweep(config, folder)
    except Stopped as stop:
        done = (folder / SWEEP).is_file()
        resume = [f"sweep.resume={folder}"] if done else []
        kept = " What is done is kept." if done else ""
        raise Interrupted(
            f"{stop.signal.name}: stopped.{kept} To go on:\n  {same_command(*resume)}", stop.signal
        ) from None


def _run_sweep(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    data = config["data"]
    choices = choices_of(config)
    task = read_task(config)
    folders = sweep_folders(config)
    everything = load_embeddings(task, folders, data)
    blocks = [made.block for made in folders]
    seeds = list(range(config["seed"], config["seed"] + config["seeds"]))
    extraction = folders[0].settings
    made_of = {
        # What a sweep does not choose itself
        "data": {name: value for name, value in data.items() if name not in _CHOSEN},
        "probe": dict(config["probe"]),
        "seeds": seeds,
        "groundtruths": digests(task),
        "tracks": {split: len(rows) for split, rows in task.rows.items()},
        "extraction": extraction and {n: v for n, v in extraction.items() if n != "block"},
    }
    jobs = list(cells_of(blocks, choices, config["sweep"]["mix"]))
    wanted = [cell for job in jobs for cell in job]
    earlier, seconds = _earlier(config["sweep"]["resume"], made_of, blocks, wanted)
    results: dict[str, Any] = {
        **made_of,
        "blocks": blocks,
        "task": task.task,
        "labels": [valid_utf8(label) for label in task.labels],
        "missing": task.missing(),
        "versions": versions(*PACKAGES),
        "machine": machine(),
        "cells": earlier,
    }
    constant = metrics.baseline(task.task, task.targets("train"), task.targets("test")).figures
    results["baseline"] = {m: constant[m] for m in metrics.SHOWN[task.task]}
    known = {_identity(cell) for cell in earlier}
    if known:
        log.info("%d choices are taken from %s", len(known), config["sweep"]["resume"])
    todo = [[c for c in job if (c.block, c.types, c.reduce) not in known] for job in jobs]
    results["seconds"] = seconds + time.monotonic() - started
    write_json(folder / SWEEP, results)  # a sweep that is stopped can be resumed from the start
    work = Work(task, blocks, seeds, dict(config["probe"]))
    jobs = [job for job in todo if job]
    bar = tqdm(total=sum(map(len, jobs)) * len(seeds), desc="sweep", unit="probe", disable=None)
    with bar:
        for entries in work.do(jobs, everything, processes_for(config, task, jobs), folder):
            results["cells"] += entries
            results["seconds"] = seconds + time.monotonic() - started
            write_json(folder / SWEEP, results)  # what is done is kept
            bar.update(len(entries) * len(seeds))
    order = {choice: i for i, choice in enumerate(choices)}
    results["cells"].sort(
        key=lambda c: (
            order[c["types"], c["reduce"]],
            len(blocks) if c["block"] == MIX else blocks.index(c["block"]),
        )
    )
    results["seconds"] = seconds + time.monotonic() - started
    write_json(folder / SWEEP, results)
    _write_table(folder / "sweep.csv", results)
    pictures = _draw(folder, results, blocks)
    text = summary(results, pictures, folder)
    with atomic_path(folder / "summary.md") as temporary:
        temporary.write_text(text, "utf-8")
    pictured = {*_CAPTIONS.values(), *(f"![{p.stem}]({p.name})" for p in pictures)}
    printed = "\n".join(line for line in text.splitlines() if line not in pictured)
    print(re.sub("\n{3,}", "\n\n", printed))
    print(f"{folder / 'summary.md'}, sweep.csv, {', '.join(p.name for p in pictures)}")
    best = best_cell(results)
    return {"folder": str(folder), "best": {k: best[k] for k in ("block", "types", "reduce")}}


# ---------------------------------------------------------------- going on


def _identity(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["block"], cell["types"], cell["reduce"]


def _earlier(
    folder: Any, made_of: dict[str, Any], blocks: list[int], wanted: Sequence[Cell]
) -> tuple[list[dict[str, Any]], float]:
    """What a sweep of the same settings has done of the wanted cells, and the seconds it took.

    Its mixes count only if they are of the same blocks.

    Raises:
        InputError: there is no sweep, or one of other settings.
    """
    if folder is None:
        return [], 0.0
    path = Path(str(folder)).expanduser() / SWEEP
    try:
        found = json.loads(path.read_text("utf-8"))
        was = {name: found[name] for name in made_of}
        cells = {_identity(cell): cell for cell in found["cells"]}
        same_blocks, seconds = found["blocks"] == blocks, float(found["seconds"])
    except FileNotFoundError:
        raise InputError(
            "no such file",
            kind="missing",
            path=path,
            setting="sweep.resume",
            hint="Give the folder of a sweep, such as sweep.resume=exp_logs/4, or leave it out.",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "holds no results of a sweep",
            kind="corrupt",
            path=path,
            setting="sweep.resume",
            hint="Give another folder, or leave it out.",
        ) from None
    differ = _differences(was, json.loads(to_json(made_of)))
    if differ:
        raise InputError(
            f"that sweep was of other settings: {'; '.join(differ)}",
            kind="mismatch",
            path=path,
            setting="sweep.resume",
            hint="Give the same ones, or leave sweep.resume out.",
        )
    kept = [(c.block, c.types, c.reduce) for c in wanted if c.block != MIX or same_blocks]
    return [cells[own] for own in kept if own in cells], seconds


def _differences(was: Any, now: Any, name: str = "") -> list[str]:
    """``probe.lr 0.1, now 0.2`` of each setting that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [
            told
            for key in {**was, **now}
            for told in _differences(was.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    if was == now:
        return []
    short = (str(value)[:60] for value in (was, now))
    return ["{} {}, now {}".format(name, *short)]


# ---------------------------------------------------------------- what came of it


def best_cell(results: dict[str, Any]) -> dict[str, Any]:
    """The best one on the validation split: the test split has no say in it."""
    return max(results["cells"], key=lambda c: c[f"val_{SELECTION[results['task']]}"]["mean"])


def _write_table(path: Path, results: dict[str, Any]) -> None:
    measures = [f"val_{SELECTION[results['task']]}", *metrics.SHOWN[results["task"]]]
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        named = [f"{'test_' * (not m.startswith('val_'))}{m}" for m in measures]
        table.writerow(("block", "tokens", "reduce", *(n for m in named for n in (m, f"{m}_std"))))
        for cell in results["cells"]:
            block = block_name(cell["block"]) if cell["block"] != MIX else MIX
            values = [cell[m][part] for m in measures for part in ("mean", "std")]
            table.writerow((block, cell["types"], cell["reduce"], *values))


def _draw(folder: Path, results: dict[str, Any], blocks: Sequence[int]) -> list[Path]:
    main = metrics.SHOWN[results["task"]][0]
    name = metrics.FIGURE_NAMES[main]
    tokens = list(dict.fromkeys(cell["tokens"] for cell in results["cells"]))
    at = {(cell["block"], cell["tokens"]): cell for cell in results["cells"]}
    rows = [*blocks, *([MIX] if any(c["block"] == MIX for c in results["cells"]) else [])]
    values = np.array(
        [[at[b, t][main]["mean"] if (b, t) in at else np.nan for t in tokens] for b in rows]
    )
    seeds = len(results["seeds"])
    pictures = [
        plots.heat_map(
            folder / "sweep.png",
            values,
            [str(row) for row in rows],
            tokens,
            f"{name} on the test split, mean of {seeds} seeds",
            row_name="block",
            column_name="tokens",
        )
    ]
    order = np.argsort(-np.nanmax(values[: len(blocks)], axis=0))
    singles = [t for t in tokens if len(t) == 1]
    chosen = list(dict.fromkeys([*singles, *(tokens[i] for i in order)]))[: len(singles) + _LINES]
    series = {
        t: tuple([at[b, t][main][part] if (b, t) in at else np.nan for b in blocks]
                 for part in ("mean", "std"))
        for t in chosen
    }  # fmt: skip
    levels = {}
    mixes = [cell for cell in results["cells"] if cell["block"] == MIX]
    if mixes:
        best = max(mixes, key=lambda c: c[f"val_{SELECTION[results['task']]}"]["mean"])
        levels[f"learned mix, {best['tokens']}"] = best[main]["mean"]
    pictures.append(
        plots.block_curves(
            folder / "blocks.png",
            blocks,
            series,
            f"{name} on the test split over the blocks ({seeds} seeds)",
            levels,
        )
    )
    if mixes:
        pictures.append(
            plots.heat_map(
                folder / "mix.png",
                np.array([cell["weights"]["mean"] for cell in mixes]),
                [cell["tokens"] for cell in mixes],
                [str(block) for block in blocks],
                "weights of the learned mix",
                numbers="{:.2f}",
                row_name="tokens",
                column_name="block",
            )
        )
    return pictures


_CAPTIONS = {
    "sweep": "The test split's figure of each choice.",
    "blocks": "The same over the blocks, from the input up; the bands are ± one standard deviation "
    "over the seeds.",
    "mix": "What the learned mixes weigh the blocks with, a row for each choice of tokens: 1 in "
    "all, an even mix would be the same number everywhere.",
}


def summary(results: dict[str, Any], pictures: Sequence[Path], folder: Path) -> str:
    """A page in Markdown: the best choices, the pictures, and what can be done next."""
    shown = metrics.SHOWN[results["task"]]
    selection = SELECTION[results["task"]]
    names = [metrics.FIGURE_NAMES[m] for m in shown]
    best = best_cell(results)
    ranked = sorted(results["cells"], key=lambda c: -c[f"val_{selection}"]["mean"])
    first = ranked[:_FIRST]
    header = ["features", f"validation {metrics.FIGURE_NAMES[selection]}",
              *(f"test {name}" for name in names)]  # fmt: skip
    rows = [[c["name"], show(c[f"val_{selection}"]), *(show(c[m]) for m in shown)] for c in first]
    rows.append(
        [metrics.BASELINES[results["task"]].replace("_", " "), "",
         *(f"{results['baseline'][m]:.4f}" for m in shown)]
    )  # fmt: skip
    tracks, seeds = results["tracks"], len(results["seeds"])
    counts = f"{tracks['train']} / {tracks['val']} / {tracks['test']}"
    which = f"All {len(ranked)} choices" if len(ranked) > 1 else "One choice"
    if len(ranked) > len(first):
        which = f"The first {len(first)} of {len(ranked)} choices"
    lines = [
        "# Sweep over blocks and tokens",
        "",
        *(f"**Warning.** {warning}\n" for warning in few_tracks(tracks)),
        f"Best on the validation split: **{best['name']}**, test "
        + ", ".join(f"{n} {show(best[m])}" for m, n in zip(shown, names, strict=True))
        + ".",
        "",
        f"{which}, in the order of the validation split, which chooses; mean "
        f"± standard deviation over {seeds} seed{'s' * (seeds > 1)}; {counts} tracks for training, "
        "validation and test. Tokens: c cls, d dist, t average of the others; several are "
        "averaged, or stacked. The last row is what a constant answer gets.",
        "",
        markdown_table(header, rows),
        "",
    ]
    if results["missing"]:
        missing = ", ".join(f"{n} of {split}" for split, n in results["missing"].items())
        lines += [f"Left out, as they have no embedding (data.missing=skip): {missing}.", ""]
    for picture in pictures:
        lines += [_CAPTIONS[picture.stem], "", f"![{picture.stem}]({picture.name})", ""]
    place = shlex.quote(valid_utf8(str(folder)))
    block = best["block"]
    if block == MIX:  # of the blocks that were swept over, by number
        block = f"[{','.join(map(str, results['blocks']))}]"
    again = []
    if results["missing"] and best["block"] != MIX:
        again = [
            "(Tracks that lack an embedding of another block are in it again: figures may differ a "
            "little.)",
            "",
        ]
    lines += [
        "A sweep keeps figures, no probes. The best one, with its figures of each label, its "
        "predictions and its probe:",
        "",
        "```sh",
        f"python ex_tl.py with {place}/config.json data.block={block} "
        f"data.types={best['types']} data.reduce={best['reduce']}",
        "```",
        "",
        *again,
        f"All choices: sweep.csv. {len(ranked) * seeds} probes in {results['seconds']:.0f} s.",
        "",
    ]
    return "\n".join(lines)
