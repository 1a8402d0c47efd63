"""The results of a sweep: a table, pictures and a summary."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.embeddings import block_name
from maest.experiments.probe_data import MIX
from maest.experiments.probe_report import few_tracks, splits_line
from maest.helpers import metrics, plots
from maest.helpers.files import valid_utf8, write_rows
from maest.helpers.report import Page, metrics_line, metrics_table
from maest.models.probe import SELECTION

_FIRST = 10  # rows of the summary's table
_LINES = 3  # choices of several tokens in the picture of the blocks


def _ranked(results: dict[str, Any], mixes_only: bool = False) -> list[dict[str, Any]]:
    """The choices, best first on the validation split: the test split has no say in it."""
    validation = f"val_{SELECTION[results['task']]}"
    cells = (c for c in results["cells"] if not mixes_only or c["block"] == MIX)
    return sorted(cells, key=lambda cell: -cell[validation]["mean"])


def best_choice(results: dict[str, Any]) -> dict[str, Any]:
    """The best one on the validation split."""
    return _ranked(results)[0]


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """Write ``sweep.csv``, the pictures and ``summary.md``, and print the last."""
    validation = f"val_{SELECTION[results['task']]}"
    columns = {validation: validation} | {m: f"test_{m}" for m in metrics.SHOWN[results["task"]]}
    write_rows(
        folder / "sweep.csv",
        ("block", "tokens", "reduce", *(h for n in columns.values() for h in (n, f"{n}_std"))),
        (
            [block_name(cell["block"]), cell["types"], cell["reduce"]]
            + [cell[m][part] for m in columns for part in ("mean", "std")]
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
    task, ranked, seeds = results["task"], _ranked(results), len(results["seeds"])
    best, selection = ranked[0], SELECTION[task]
    columns = {f"val_{selection}": f"validation {metrics.FIGURE_NAMES[selection]}"}
    columns |= {m: f"test {metrics.FIGURE_NAMES[m]}" for m in metrics.SHOWN[task]}
    rows = [(cell["name"], cell) for cell in ranked[:_FIRST]]
    rows.append((metrics.BASELINES[task].replace("_", " "), results["baseline"]))
    which = f"All {len(ranked)} choices" if len(ranked) > 1 else "One choice"
    if len(ranked) > _FIRST:
        which = f"The first {_FIRST} of {len(ranked)} choices"
    page = Page("Sweep over blocks and tokens", few_tracks(results["tracks"]))
    page.add(
        f"Best on the validation split: **{best['name']}**, test {metrics_line(task, best)}.",
        f"{which}, in the order of the validation split, which chooses; mean ± standard deviation "
        f"over {seeds} seed{'s' * (seeds > 1)}; {splits_line(results)}. Tokens: c cls, d dist, t "
        "average of the others; several are averaged, or stacked. The last row is what a constant "
        "answer gets.",
        metrics_table(task, rows, "features", columns),
    )
    for path, caption in pictures.items():
        page.picture(path, caption)
    page.add(
        "A sweep keeps metrics, no probes. The best one, with its metrics of each label, its "
        "predictions and its probe:"
    )
    # A mix is of the blocks that were swept over.
    block = f"[{','.join(map(str, results['blocks']))}]" if best["block"] == MIX else best["block"]
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
    blocks, seeds, mixes = results["blocks"], len(results["seeds"]), _ranked(results, True)
    main = metrics.SHOWN[results["task"]][0]
    name = f"{metrics.FIGURE_NAMES[main]} on the test split"
    at = {(cell["block"], cell["tokens"]): cell for cell in results["cells"]}
    tokens = list(dict.fromkeys(cell["tokens"] for cell in results["cells"]))
    rows = [*blocks, *([MIX] if mixes else [])]
    means, deviations = (np.array([[at[b, t][main][part] for t in tokens] for b in rows])
                         for part in ("mean", "std"))  # fmt: skip
    path = plots.heat_map(
        folder / "sweep.png",
        means,
        [str(row) for row in rows],
        tokens,
        f"{name}, mean of {seeds} seeds",
        row_name="block",
        column_name="tokens",
    )
    pictures = {path: "The test split's metric of each choice."}
    means, deviations = means[: len(blocks)], deviations[: len(blocks)]
    # Single tokens, and the best of the others
    chosen = [i for i, t in enumerate(tokens) if len(t) == 1]
    chosen += [i for i in np.argsort(-means.max(axis=0)) if len(tokens[i]) > 1][:_LINES]
    series = {tokens[i]: (means[:, i].tolist(), deviations[:, i].tolist()) for i in chosen}
    levels = {f"learned mix, {cell['tokens']}": cell[main]["mean"] for cell in mixes[:1]}
    title = f"{name} over the blocks ({seeds} seeds)"
    path = plots.block_curves(folder / "blocks.png", blocks, series, title, levels)
    pictures[path] = (
        "The same over the blocks, from the input up; the bands are ± one standard deviation over "
        "the seeds."
    )
    if mixes:
        of_mixes = [at[MIX, t] for t in tokens]
        path = plots.heat_map(
            folder / "mix.png",
            np.array([cell["weights"]["mean"] for cell in of_mixes]),
            tokens,
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
