"""The command ``sweep`` of ``ex_tl.py``: probe every block, choice of tokens, and mix of blocks."""

import itertools
import json
import logging
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from maest.config import ProbeSettings, plain
from maest.config.probe import ProbeData
from maest.config.schema import tagged
from maest.datasets.embeddings import TOKENS, block_name, check_types, select_tokens
from maest.experiments.devices import find_device
from maest.experiments.probe import PACKAGES, baseline, mix_weights, over_seeds, train_probes
from maest.experiments.probe_data import MIX, ProbeTask, choose_folders, read_embeddings, read_task
from maest.experiments.probe_report import SWEEP, few_tracks, splits_line
from maest.experiments.runs import interruptible, run_dir, same_command
from maest.helpers.differences import differences
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import to_json, valid_utf8, write_json, write_rows
from maest.helpers.reports import metrics, plots
from maest.helpers.reports.report import Page, machine, metrics_line, metrics_table, versions
from maest.helpers.work.parallel import cores, one_torch_thread
from maest.models.probe import SELECTION, layer_normalized

log = logging.getLogger(__name__)

_FIRST = 10  # rows of the summary's table
_LINES = 3  # choices of several tokens in the picture of the blocks


@dataclass(frozen=True)
class FeatureChoice:
    """A block (or ``MIX``), tokens, and how several of them are reduced."""

    block: int | str
    types: str
    reduce: str

    @property
    def name(self) -> str:
        block = "mix of the blocks" if self.block == MIX else f"block {block_name(self.block)}"
        return f"{block}, {self.tokens}"

    @property
    def tokens(self) -> str:
        """``cdt``, or ``cdt stacked``."""
        return f"{self.types} stacked" if self.reduce == "stack" else self.types


def sweep(run: Any, settings: ProbeSettings) -> dict[str, Any]:
    """Probe every block, choice of tokens and a learned mix of the blocks; draw the result."""
    folder = run_dir(run)

    def state() -> str:
        if (folder / SWEEP).is_file():
            go_on = same_command(f"sweep.resume={folder}")
            return f"Finished probes are kept. To go on:\n  {go_on}"
        return f"To go on:\n  {same_command()}"

    with interruptible(state):
        results = _sweep(settings, folder)
    _report(folder, results)
    best = ranked(results)[0]
    return {"folder": str(folder), "best": {k: best[k] for k in ("block", "types", "reduce")}}


def _sweep(settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    """Train all probes, adding each to ``sweep.json`` in ``folder``; return its content."""
    started, options = time.monotonic(), settings.sweep
    tokens = _token_choices(settings)
    task = read_task(settings.data)
    folders = choose_folders(settings.data, options.blocks, "sweep.blocks")
    blocks = [own.block for own in folders if own.block is not None]
    if options.blocks == "all" and len(blocks) == 1:
        hint = "inference.transformer_block=all extracts all of them"
        log.warning("there are embeddings of block %d only; %s", blocks[0], hint)
    embeddings = read_embeddings(task, folders, settings.data)
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    extraction, swept = folders[0].settings, tagged(ProbeData, "swept")
    made_of = {  # what a sweep does not choose itself
        "data": {name: v for name, v in plain(settings.data).items() if name not in swept},
        "probe": plain(settings.probe),
        "seeds": seeds,
        "groundtruths": task.digests(),
        "tracks": task.tracks(),
        "extraction": extraction and {n: v for n, v in extraction.items() if n != "block"},
    }
    groups = list(group_choices(blocks, tokens, options.mix))
    choices = [choice for group in groups for choice in group]
    choices.sort(key=lambda choice: tokens.index((choice.types, choice.reduce)))
    earlier: dict[FeatureChoice, dict[str, Any]] = {}
    seconds = 0.0
    if options.resume is not None:
        earlier, seconds = _earlier(Path(options.resume).expanduser(), made_of, blocks, choices)
        log.info("%d choices are taken from %s", len(earlier), options.resume)
    results: dict[str, Any] = {
        **made_of,
        "blocks": blocks,
        "task": task.task,
        "labels": [valid_utf8(label) for label in task.labels],
        "missing": task.missing,
        "versions": versions(*PACKAGES),
        "machine": machine(),
        "baseline": baseline(task),
    }

    def write() -> None:
        results["cells"] = [earlier[choice] for choice in choices if choice in earlier]
        results["seconds"] = seconds + time.monotonic() - started
        write_json(folder / SWEEP, results)

    write()  # so that a sweep can be resumed from its start
    groups = [rest for group in groups if (rest := [c for c in group if c not in earlier])]
    total = sum(map(len, groups)) * len(seeds)
    stopped = threading.Event()
    train = partial(_train, task, embeddings, blocks, settings, stopped)
    workers = options.num_workers or 1
    if find_device(settings.probe.accelerator, "probe.accelerator").type == "cpu":
        workers = options.num_workers or cores()
    # PyTorch releases Python's lock while it computes: threads are as fast as processes.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with one_torch_thread(), tqdm(total=total, desc="sweep", unit="probe", disable=None) as bar:
        try:
            for found in map(train, groups) if workers == 1 else pool.map(train, groups):
                earlier |= found
                write()
                bar.update(len(found) * len(seeds))
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return results


# ---- what to train -------------------------------------------------------------------------------


def _token_choices(settings: ProbeSettings) -> list[tuple[str, str]]:
    """Return (types, reduce) of each choice; a single token needs only one reduction."""
    options, data = settings.sweep, settings.data
    chosen = {"features": data.features != "embeddings", "types": data.types != ProbeData().types}
    chosen["block"] = data.block == MIX or len(data.block or ()) > 1
    for name, given in chosen.items():
        if given:
            hint = "Leave it out, and choose embeddings by sweep.blocks=[6,7] and "
            hint += f"sweep.tokens=[{data.types}]."
            message = "has no effect on a sweep"
            raise InputError(message, kind="conflict", setting=f"data.{name}", hint=hint)
    reductions = (data.reduce,) if options.reduce is None else options.reduce
    if not options.tokens or not reductions:
        name = "sweep.reduce" if options.tokens else "sweep.tokens"
        hint = "Give one choice or more, such as sweep.tokens=[c,cdt] sweep.reduce=[mean,stack]."
        raise InputError("is empty", kind="empty", setting=name, hint=hint)
    choices: dict[tuple[str, str], None] = {}
    for reduce, types in itertools.product(reductions, options.tokens):
        check_types(types, "sweep.tokens")
        if reduce == "mean":  # the order makes no difference
            types = "".join(token for token in TOKENS if token in types)
        choices[types, "mean" if len(types) == 1 else reduce] = None
    return list(choices)


def group_choices(
    blocks: Sequence[int], tokens: Sequence[tuple[str, str]], mix: bool
) -> Iterator[list[FeatureChoice]]:
    """Yield choices that train together: those of a block with equally wide features."""
    for block in blocks:
        by_width: dict[int, list[FeatureChoice]] = {}
        for types, reduce in tokens:
            width = len(types) if reduce == "stack" else 1
            by_width.setdefault(width, []).append(FeatureChoice(block, types, reduce))
        yield from by_width.values()
    if mix and len(blocks) > 1:
        yield from ([FeatureChoice(MIX, types, reduce)] for types, reduce in tokens)


def _train(
    task: ProbeTask,
    embeddings: Mapping[str, np.ndarray],
    blocks: list[int],
    settings: ProbeSettings,
    stopped: threading.Event,
    group: list[FeatureChoice],
) -> dict[FeatureChoice, dict[str, Any]]:
    def go_on() -> None:
        if stopped.is_set():
            raise CancelledError

    features: dict[str, np.ndarray] = {}
    block = group[0].block
    mix = isinstance(block, str)
    for split, x in embeddings.items():  # [N, L, 3, D]
        own = x if isinstance(block, str) else x[:, blocks.index(block)]
        sets = [select_tokens(own, choice.types, choice.reduce) for choice in group]
        features[split] = layer_normalized(sets[0]) if mix else np.stack(sets, axis=1)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    bank = train_probes(settings.probe, task, features, seeds, mix, go_on)
    targets, outputs = task.splits["test"].targets, bank.predict(features["test"])
    runs = [metrics.evaluate(task.task, targets, own) for own in outputs]
    entries = {}
    for i, choice in enumerate(group):
        entries[choice] = asdict(choice) | {"name": choice.name, "tokens": choice.tokens}
        entries[choice] |= over_seeds(runs, bank, i)
        if mix:
            entries[choice]["weights"] = mix_weights(bank)
    return entries


def _earlier(
    folder: Path, made_of: dict[str, Any], blocks: list[int], wanted: Sequence[FeatureChoice]
) -> tuple[dict[FeatureChoice, dict[str, Any]], float]:
    """Return wanted entries of an earlier sweep, and its seconds; mixes need the same blocks."""
    path, message = folder / SWEEP, ""
    try:
        found = json.loads(path.read_text("utf-8"))
        was = {name: found[name] for name in made_of}
        cells = {FeatureChoice(c["block"], c["types"], c["reduce"]): c for c in found["cells"]}
        same_blocks, seconds = found["blocks"] == blocks, float(found["seconds"])
        if differing := differences(was, json.loads(to_json(made_of))):
            message = f"that sweep was of other settings: {'; '.join(differing)}"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        message = "holds no results of a sweep" if path.is_file() else "no such file"
    if message:
        kind: Kind = "mismatch" if path.is_file() else "missing"
        hint = "Give the folder of a sweep of the same settings, such as sweep.resume=exp_logs/4, "
        hint += "or leave it out."
        raise InputError(message, kind=kind, path=path, setting="sweep.resume", hint=hint)
    kept = [c for c in wanted if c in cells and (c.block != MIX or same_blocks)]
    return {choice: cells[choice] for choice in kept}, seconds


# ---- results -------------------------------------------------------------------------------------


def ranked(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices, best first on the validation split; the test split does not count."""
    validation = f"val_{SELECTION[results['task']]}"
    return sorted(results["cells"], key=lambda cell: -cell[validation]["mean"])


def _report(folder: Path, results: dict[str, Any]) -> None:
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
    """Return a page with the best choices, the captioned pictures, and how to continue."""
    task, choices, seeds = results["task"], ranked(results), len(results["seeds"])
    best, selection = choices[0], SELECTION[task]
    columns = {f"val_{selection}": f"validation {metrics.FIGURE_NAMES[selection]}"}
    columns |= {m: f"test {metrics.FIGURE_NAMES[m]}" for m in metrics.SHOWN[task]}
    rows = [(cell["name"], cell) for cell in choices[:_FIRST]]
    rows.append((metrics.BASELINES[task].replace("_", " "), results["baseline"]))
    which = f"All {len(choices)} choices" if len(choices) > 1 else "One choice"
    if len(choices) > _FIRST:
        which = f"The first {_FIRST} of {len(choices)} choices"
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
    # A mix uses the blocks of the sweep.
    block = f"[{','.join(map(str, results['blocks']))}]" if best["block"] == MIX else best["block"]
    line = f"python ex_tl.py with {shlex.quote(valid_utf8(str(folder)))}/config.json "
    line += f"data.block={block} data.types={best['types']} data.reduce={best['reduce']}"
    page.commands((line, ""))
    if results["missing"] and best["block"] != MIX:
        page.add(
            "(It uses tracks that lack an embedding of another block, too: metrics may differ a "
            "little.)"
        )
    probes = len(choices) * seeds
    page.add(f"All choices: sweep.csv. {probes} probes in {results['seconds']:.0f} s.")
    return page


def _draw(folder: Path, results: dict[str, Any]) -> dict[Path, str]:
    blocks, seeds = results["blocks"], len(results["seeds"])
    mixes = [cell for cell in ranked(results) if cell["block"] == MIX]
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
    bands = "the bands are ± one standard deviation over the seeds"
    pictures[path] = f"The same over the blocks, from the input up; {bands}."
    if mixes:
        path = plots.heat_map(
            folder / "mix.png",
            np.array([at[MIX, t]["weights"]["mean"] for t in tokens]),
            tokens,
            [str(block) for block in blocks],
            "weights of the learned mix",
            numbers="{:.2f}",
            row_name="tokens",
            column_name="block",
        )
        which = "of the blocks in the learned mixes, a row for each choice of tokens"
        even = "an even mix would have the same number everywhere"
        pictures[path] = f"The weights {which}: 1 in all; {even}."
    return pictures
