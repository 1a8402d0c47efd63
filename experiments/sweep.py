"""The command ``sweep`` of ``ex_tl.py``: probe every block, choice of tokens, and mix of blocks."""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maest.config import ProbeSettings, plain
from maest.config.probe import ProbeData, ProbeTraining
from maest.config.schema import tagged
from maest.datasets.embedding_folders import block_name
from maest.datasets.embeddings import TOKENS, check_types, select_tokens
from maest.experiments.probe import device_of, train_probes
from maest.experiments.probe_features import (
    MIX,
    load_embeddings,
    normalize_blocks,
    numbered_folders,
)
from maest.experiments.probe_results import PACKAGES, SWEEP, mean_and_std, mix_weights
from maest.experiments.probe_task import ProbeTask, check_no_effect, read_task
from maest.experiments.runs import interruptible, run_dir, same_command
from maest.experiments.sweep_report import best_choice, write_report
from maest.helpers import metrics
from maest.helpers.errors import InputError, Kind
from maest.helpers.failures import valid_utf8
from maest.helpers.files import TEMPORARY, to_json, write_json
from maest.helpers.parallel import cores, run_parallel
from maest.helpers.report import machine, versions
from maest.models.probe import SELECTION, ProbeBank

log = logging.getLogger(__name__)

# A step of a group takes this long at least, and processes take some seconds to start.
_SECONDS_A_STEP, _MIN_SECONDS_FOR_PROCESSES = 0.004, 30


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
        return _sweep(settings, folder)


def _sweep(settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    started, options = time.monotonic(), settings.sweep
    tokens = parse_choices(settings)
    task = read_task(settings.data)
    by_block = numbered_folders(settings.data, options.blocks, "sweep.blocks")
    blocks, folders = list(by_block), list(by_block.values())
    if options.blocks == "all" and len(blocks) == 1:
        log.warning(
            "%s: there are embeddings of block %d only; inference.transformer_block=all extracts "
            "all of them",
            folders[0].folder,
            blocks[0],
        )
    embeddings = load_embeddings(task, folders, settings.data)
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    extraction = folders[0].settings
    made_of = {  # what a sweep does not choose itself
        "data": {n: v for n, v in plain(settings.data).items()
                 if n not in tagged(ProbeData, "swept")},
        "probe": plain(settings.probe),
        "seeds": seeds,
        "groundtruths": task.digests(),
        "tracks": task.tracks(),
        "extraction": extraction and {n: v for n, v in extraction.items() if n != "block"},
    }  # fmt: skip
    groups = list(group_choices(blocks, tokens, options.mix))
    earlier, seconds = _earlier(options.resume, made_of, blocks, [*itertools.chain(*groups)])
    constant = metrics.baseline(task.task, task.targets("train"), task.targets("test")).figures
    results: dict[str, Any] = {
        **made_of,
        "blocks": blocks,
        "task": task.task,
        "labels": [valid_utf8(label) for label in task.labels],
        "missing": task.missing(),
        "versions": versions(*PACKAGES),
        "machine": machine(),
        "cells": list(earlier.values()),
        "baseline": {m: constant[m] for m in metrics.SHOWN[task.task]},
    }
    if earlier:
        log.info("%d choices are taken from %s", len(earlier), options.resume)
    groups = [rest for group in groups if (rest := [c for c in group if c not in earlier])]

    def write() -> None:
        results["seconds"] = seconds + time.monotonic() - started
        write_json(folder / SWEEP, results)

    write()  # so that a sweep can be resumed from the start
    job = SweepJob(task, blocks, seeds, settings.probe)
    processes = count_processes(settings, task, groups)
    total = sum(map(len, groups)) * len(seeds)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as shared,
        tqdm(total=total, desc="sweep", unit="probe", disable=None) as bar,
    ):
        for split in list(embeddings) if processes > 1 else ():
            np.save(Path(shared) / f"{split}.npy", embeddings.pop(split))
        trained = run_parallel(
            job.train,
            groups,
            (embeddings or Path(shared),),
            num_workers=processes,
            time_limit=None,
            start_method="spawn",  # a fork may not use autograd where its parent has
            progress=False,
        )
        for entries in trained:
            results["cells"] += entries
            write()
            bar.update(len(entries) * len(seeds))
    places = [*blocks, MIX]
    results["cells"].sort(
        key=lambda c: (tokens.index((c["types"], c["reduce"])), places.index(c["block"]))
    )
    write()
    write_report(folder, results)
    best = best_choice(results)
    return {"folder": str(folder), "best": {k: best[k] for k in ("block", "types", "reduce")}}


# ---- what to train -------------------------------------------------------------------------------


def parse_choices(settings: ProbeSettings) -> list[tuple[str, str]]:
    """(types, reduce) of each choice of tokens; one token is the same in both ways."""
    options, data = settings.sweep, settings.data
    several = data.block is not None and (data.block == MIX or len(data.block) > 1)
    check_no_effect(
        "a sweep",
        ("data.features", data.features != "embeddings", "Leave it out."),
        ("data.types", data.types != ProbeData().types, f"Give sweep.tokens=[{data.types}]."),
        ("data.block", several, "Leave it out: all are mixed, or those of sweep.blocks=[6,7]."),
    )
    reductions = (data.reduce,) if options.reduce is None else options.reduce
    if not options.tokens or not reductions:
        name = "sweep.reduce" if options.tokens else "sweep.tokens"
        hint = "Give one choice or more, such as sweep.tokens=[c,cdt] sweep.reduce=[mean,stack]."
        raise InputError("is empty", kind="empty", setting=name, hint=hint)
    choices: dict[tuple[str, str], None] = {}
    for reduce in reductions:
        for types in options.tokens:
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
        for types, reduce in tokens:
            yield [FeatureChoice(MIX, types, reduce)]


# ---- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepJob:
    """What all groups of choices have in common."""

    task: ProbeTask
    blocks: Sequence[int]
    seeds: Sequence[int]
    recipe: ProbeTraining

    def train(
        self, group: list[FeatureChoice], embeddings: Mapping[str, np.ndarray] | Path
    ) -> list[dict[str, Any]]:
        """Train and test the probes of a group; returns its entries of ``sweep.json``.

        ``embeddings``: split → float32 [N, L, 3, D]; or the folder of files, which several
        processes map into memory, so that they are there once.
        """
        if isinstance(embeddings, Path):
            files = embeddings.glob("*.npy")
            embeddings = {path.stem: np.load(path, mmap_mode="r") for path in files}
        first, features = group[0], {}
        mix = first.block == MIX
        for split, x in embeddings.items():  # [N, L, 3, D]
            if mix:
                features[split] = normalize_blocks(select_tokens(x, first.types, first.reduce))
            else:
                own = x[:, self.blocks.index(first.block)]
                sets = [select_tokens(own, choice.types, choice.reduce) for choice in group]
                features[split] = np.stack(sets, axis=1)
        bank = train_probes(self.recipe, self.task, features, self.seeds, mix=mix)
        return _entries(group, self.task, bank, bank.predict(features["test"]))


def _entries(
    group: Sequence[FeatureChoice], task: ProbeTask, bank: ProbeBank, outputs: np.ndarray
) -> list[dict[str, Any]]:
    """An entry of ``sweep.json`` for each choice."""
    targets, n_seeds, entries = task.targets("test"), len(bank.seeds), []
    for i, choice in enumerate(group):
        own = slice(i * n_seeds, (i + 1) * n_seeds)
        scores = [metrics.evaluate(task.task, targets, x).figures for x in outputs[own]]
        entry = asdict(choice) | {
            "name": choice.name,
            "tokens": choice.tokens,
            f"val_{SELECTION[task.task]}": mean_and_std(bank.best_scores[own]),
            "best_epochs": bank.best_epochs[own].tolist(),
            **{m: mean_and_std([s[m] for s in scores]) for m in metrics.SHOWN[task.task]},
        }
        if choice.block == MIX:
            entry["weights"] = mix_weights(bank)
        entries.append(entry)
    return entries


def count_processes(
    settings: ProbeSettings, task: ProbeTask, groups: Sequence[list[FeatureChoice]]
) -> int:
    """One a core, on a CPU, where starting them pays."""
    wanted, recipe, most = settings.sweep.num_workers, settings.probe, max(1, len(groups))
    if wanted is not None:
        return min(wanted, most)
    if device_of(recipe.accelerator).type != "cpu":
        return 1
    steps = recipe.max_epochs * -(-len(task.rows["train"]) // recipe.batch_size)
    seconds = steps * len(groups) * _SECONDS_A_STEP
    return min(cores(), most) if seconds > _MIN_SECONDS_FOR_PROCESSES else 1


# ---- resume --------------------------------------------------------------------------------------


def _earlier(
    folder: str | None, made_of: dict[str, Any], blocks: list[int], wanted: Sequence[FeatureChoice]
) -> tuple[dict[FeatureChoice, dict[str, Any]], float]:
    """The entries of a sweep of the same settings for the wanted choices, and its seconds.

    Its mixes count only if they are of the same blocks.
    """
    if folder is None:
        return {}, 0.0
    path = Path(folder).expanduser() / SWEEP
    hint = "Give the folder of a sweep, such as sweep.resume=exp_logs/4, or leave it out."
    try:
        found = json.loads(path.read_text("utf-8"))
        was = {name: found[name] for name in made_of}
        cells = {FeatureChoice(c["block"], c["types"], c["reduce"]): c for c in found["cells"]}
        same_blocks, seconds = found["blocks"] == blocks, float(found["seconds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        message = "holds no results of a sweep" if path.is_file() else "no such file"
        kind: Kind = "corrupt" if path.is_file() else "missing"
        raise InputError(message, kind=kind, path=path, setting="sweep.resume", hint=hint) from None
    if differing := _differences(was, json.loads(to_json(made_of))):
        raise InputError(
            f"that sweep was of other settings: {'; '.join(differing)}",
            kind="mismatch",
            path=path,
            setting="sweep.resume",
            hint="Give the same ones, or leave sweep.resume out.",
        )
    kept = [c for c in wanted if c in cells and (c.block != MIX or same_blocks)]
    return {choice: cells[choice] for choice in kept}, seconds


def _differences(was: Any, now: Any, name: str = "") -> list[str]:
    """``probe.lr 0.1, now 0.2`` for each setting that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [
            line
            for key in {**was, **now}
            for line in _differences(was.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if was == now else [f"{name} {str(was)[:60]}, now {str(now)[:60]}"]
