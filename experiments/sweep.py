"""The command ``sweep`` of ``ex_tl.py``: probe every block, choice of tokens, and mix of blocks."""

from __future__ import annotations

import itertools
import json
import logging
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
from maest.experiments.probe_data import (
    MIX,
    ProbeTask,
    choose_folders,
    read_embeddings,
    read_task,
)
from maest.experiments.probe_report import SWEEP
from maest.experiments.runs import interruptible, run_dir, same_command
from maest.experiments.sweep_report import best_choice, write_report
from maest.helpers import metrics
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.failures import valid_utf8
from maest.helpers.files import to_json, write_json
from maest.helpers.parallel import cores, one_torch_thread
from maest.helpers.report import machine, versions
from maest.models.probe import layer_normalized

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureChoice:
    """A block (or ``MIX``), tokens, and how several of them are reduced."""

    block: int | str
    types: str
    reduce: str

    @property
    def name(self) -> str:
        """For people."""
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
    write_report(folder, results)
    best = best_choice(results)
    return {"folder": str(folder), "best": {k: best[k] for k in ("block", "types", "reduce")}}


def _sweep(settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    """Train all probes; ``sweep.json`` in ``folder``, whose content this returns, grows by them."""
    started, options = time.monotonic(), settings.sweep
    tokens = _token_choices(settings)
    task = read_task(settings.data)
    folders = choose_folders(settings.data, options.blocks, "sweep.blocks")
    blocks = [own.block for own in folders if own.block is not None]
    if options.blocks == "all" and len(blocks) == 1:
        hint = "inference.transformer_block=all extracts all of them"
        log.warning("there are embeddings of block %d only; %s", blocks[0], hint)
    embeddings = read_embeddings(task, folders, settings.data)
    seeds, extraction = (
        list(range(settings.seed, settings.seed + settings.seeds)),
        folders[0].settings,
    )
    swept = tagged(ProbeData, "swept")
    made_of = {  # what a sweep does not choose itself
        "data": {name: v for name, v in plain(settings.data).items() if name not in swept},
        "probe": plain(settings.probe),
        "seeds": seeds,
        "groundtruths": task.digests(),
        "tracks": task.tracks(),
        "extraction": extraction and {n: v for n, v in extraction.items() if n != "block"},
    }
    groups = list(group_choices(blocks, tokens, options.mix))
    choices = list(itertools.chain.from_iterable(groups))
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
        cells = [earlier[choice] for choice in choices if choice in earlier]
        results["cells"] = sorted(cells, key=lambda c: tokens.index((c["types"], c["reduce"])))
        results["seconds"] = seconds + time.monotonic() - started
        write_json(folder / SWEEP, results)

    write()  # so that a sweep can be resumed from the start
    groups = [rest for group in groups if (rest := [c for c in group if c not in earlier])]
    total = sum(map(len, groups)) * len(seeds)
    stopped = threading.Event()
    train = partial(_train, task, embeddings, blocks, settings, stopped)
    workers = options.num_workers or 1
    if find_device(settings.probe.accelerator, "probe.accelerator").type == "cpu":
        workers = options.num_workers or cores()
    # PyTorch lets go of Python's lock while it computes: threads do what processes would.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with (
        one_torch_thread(),
        tqdm(total=total, desc="sweep", unit="probe", disable=None) as bar,
    ):
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
    """(types, reduce) of each choice of tokens; one token is the same in both ways."""
    options, data = settings.sweep, settings.data
    several = data.block == MIX or len(data.block or ()) > 1
    for name, given, hint in (
        ("features", data.features != "embeddings", "Leave it out."),
        ("types", data.types != ProbeData().types, f"Give sweep.tokens=[{data.types}]."),
        ("block", several, "Leave it out: all are mixed, or those of sweep.blocks=[6,7]."),
    ):
        if given:
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
    """Choices that are trained together: those of a block whose features are equally wide."""
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
    """Train and test the probes of a group; its entries of ``sweep.json``."""

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
        own_runs = runs[i * len(seeds) : (i + 1) * len(seeds)]
        entry = asdict(choice) | {"name": choice.name, "tokens": choice.tokens}
        entries[choice] = entry | over_seeds(task.task, own_runs, bank, i)
        if mix:
            entries[choice]["weights"] = mix_weights(bank)
    return entries


# ---- resume --------------------------------------------------------------------------------------


def _earlier(
    folder: Path, made_of: dict[str, Any], blocks: list[int], wanted: Sequence[FeatureChoice]
) -> tuple[dict[FeatureChoice, dict[str, Any]], float]:
    """The entries of a sweep of the same settings for the wanted choices, and its seconds.

    Its mixes count only if they are of the same blocks.
    """
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
        raise InputError(
            message,
            kind="mismatch" if path.is_file() else "missing",
            path=path,
            setting="sweep.resume",
            hint="Give the folder of a sweep of the same settings, such as "
            "sweep.resume=exp_logs/4, or leave it out.",
        )
    kept = [c for c in wanted if c in cells and (c.block != MIX or same_blocks)]
    return {choice: cells[choice] for choice in kept}, seconds
