"""The results of a sweep: a table, pictures and a summary."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.embedding_folders import block_name
from maest.experiments.probe_features import MIX
from maest.experiments.probe_results import few_tracks, splits_line
from maest.helpers import metrics, plots
from maest.helpers.failures import valid_utf8
from maest.helpers.files import write_rows
from maest.helpers.report import Page, format_metric, metrics_line, table
from maest.models.probe import SELECTION

_FIRST = 10  # rows of the summary's table
_LINES = 3  # choices of tokens in the picture of the blocks


def _validation(results: dict[str, Any]) -> str:
    return f"val_{SELECTION[results['task']]}"


def best_choice(results: dict[str, Any]) -> dict[str, Any]:
    """The best one on the validation split: the test split has no say in it."""
    return max(results["cells"], key=lambda c: c[_validation(results)]["mean"])


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """Write ``sweep.csv``, the pictures and ``summary.md``, and print the last."""
    shown = {_validation(results): _validation(results)}
    shown |= {m: f"test_{m}" for m in metrics.SHOWN[results["task"]]}
    write_rows(
        folder / "sweep.csv",
        ("block", "tokens", "reduce", *(h for n in shown.values() for h in (n, f"{n}_std"))),
        (
            (
                block_name(cell["block"]),
                *(cell["types"], cell["reduce"]),
                *(cell[m][part] for m in shown for part in ("mean", "std")),
            )
            for cell in results["cells"]
        ),
    )
    pictures = _draw(folder, results)
    page = summary(folder, results, pictures)
    page.write(folder / "summary.md")
    names = ", ".join(path.name for path in pictures)
    print(f"{page.text}\n\n{folder / 'summary.md'}, sweep.csv, {names}")


def summary(folder: Path, results: dict[str, Any], pictures: dict[Path, str]) -> Page:
    """A page with the best choices, the pictures (each with a caption), and how to go on."""
    shown, validation = metrics.SHOWN[results["task"]], _validation(results)
    best = best_choice(results)
    ranked = sorted(results["cells"], key=lambda c: -c[validation]["mean"])
    rows = [
        [c["name"], *(format_metric(c[m]) for m in (validation, *shown))] for c in ranked[:_FIRST]
    ]
    baseline = (f"{results['baseline'][m]:.4f}" for m in shown)
    rows.append([metrics.BASELINES[results["task"]].replace("_", " "), "", *baseline])
    header = ["features", f"validation {metrics.FIGURE_NAMES[SELECTION[results['task']]]}"]
    header += [f"test {metrics.FIGURE_NAMES[m]}" for m in shown]
    seeds = len(results["seeds"])
    which = f"All {len(ranked)} choices" if len(ranked) > 1 else "One choice"
    if len(ranked) > _FIRST:
        which = f"The first {_FIRST} of {len(ranked)} choices"
    page = Page("Sweep over blocks and tokens", few_tracks(results["tracks"]))
    page.add(
        f"Best on the validation split: **{best['name']}**, test "
        f"{metrics_line(results['task'], best)}.",
        f"{which}, in the order of the validation split, which chooses; mean ± standard deviation "
        f"over {seeds} seed{'s' * (seeds > 1)}; {splits_line(results)}. Tokens: c cls, d dist, t "
        "average of the others; several are averaged, or stacked. The last row is what a constant "
        "answer gets.",
        table(header, rows),
    )
    for path, caption in pictures.items():
        page.picture(path, caption)
    page.add(
        "A sweep keeps metrics, no probes. The best one, with its metrics of each label, its "
        "predictions and its probe:"
    )
    block = best["block"]
    if block == MIX:  # of the blocks that were swept over, by number
        block = f"[{','.join(map(str, results['blocks']))}]"
    line = f"python ex_tl.py with {shlex.quote(valid_utf8(str(folder)))}/config.json "
    line += f"data.block={block} data.types={best['types']} data.reduce={best['reduce']}"
    page.commands((line, ""))
    if results["missing"] and best["block"] != MIX:
        page.add(
            "(It uses tracks that lack an embedding of another block, too: metrics may differ a "
            "little.)"
        )
    page.add(f"All choices: sweep.csv. {len(ranked) * seeds} probes in {results['seconds']:.0f} s.")
    return page


def _draw(folder: Path, results: dict[str, Any]) -> dict[Path, str]:
    """Pictures and their captions."""
    cells, blocks, seeds = results["cells"], results["blocks"], len(results["seeds"])
    n_blocks = len(blocks)
    main = metrics.SHOWN[results["task"]][0]
    name = f"{metrics.FIGURE_NAMES[main]} on the test split"
    tokens = list(dict.fromkeys(cell["tokens"] for cell in cells))
    at = {(cell["block"], cell["tokens"]): cell[main] for cell in cells}
    mixes = [cell for cell in cells if cell["block"] == MIX]
    rows = [*blocks, *([MIX] if mixes else [])]
    means, deviations = (
        np.array([[at[b, t][part] if (b, t) in at else np.nan for t in tokens] for b in rows])
        for part in ("mean", "std")
    )
    pictures = {
        plots.heat_map(
            folder / "sweep.png",
            means,
            [str(row) for row in rows],
            tokens,
            f"{name}, mean of {seeds} seeds",
            row_name="block",
            column_name="tokens",
        ): "The test split's metric of each choice."
    }
    # Single tokens, and the best of the others
    chosen = [i for i, t in enumerate(tokens) if len(t) == 1]
    order = np.argsort(-np.nanmax(means[:n_blocks], axis=0))
    chosen += [i for i in order if len(tokens[i]) > 1][:_LINES]
    levels = {}
    if mixes:
        best = max(mixes, key=lambda c: c[_validation(results)]["mean"])
        levels[f"learned mix, {best['tokens']}"] = best[main]["mean"]
    path = plots.block_curves(
        folder / "blocks.png",
        blocks,
        {
            tokens[i]: (means[:n_blocks, i].tolist(), deviations[:n_blocks, i].tolist())
            for i in chosen
        },
        f"{name} over the blocks ({seeds} seeds)",
        levels,
    )
    pictures[path] = (
        "The same over the blocks, from the input up; the bands are ± one standard deviation over "
        "the seeds."
    )
    if mixes:
        path = plots.heat_map(
            folder / "mix.png",
            np.array([cell["weights"]["mean"] for cell in mixes]),
            [cell["tokens"] for cell in mixes],
            [str(block) for block in blocks],
            "weights of the learned mix",
            numbers="{:.2f}",
            row_name="tokens",
            column_name="block",
        )
        pictures[path] = (
            "The weights of the blocks in the learned mixes, a row for each choice of tokens: 1 in "
            "all; an even mix would have the same number everywhere."
        )
    return pictures
