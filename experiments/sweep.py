"""What a sweep of ``ex_tl.py`` tries: blocks, tokens, mixes of blocks; and how it trains them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maest.config as settings
from maest.datasets.embeddings import (
    REDUCTIONS,
    TOKENS,
    EmbeddingFolder,
    block_name,
    check_types,
    select_tokens,
)
from maest.experiments.probe import MIX, Downstream, numbered_folders, to_be_mixed, train_probes
from maest.experiments.probe_report import mix_weights, spread
from maest.helpers import metrics
from maest.helpers.errors import InputError
from maest.helpers.files import TEMPORARY
from maest.helpers.parallel import cores, run_parallel
from maest.helpers.settings import check_choice, listed_names
from maest.models.probe import SELECTION, ProbeBank

log = logging.getLogger(__name__)

# A step of a job takes this long at least, and processes take some seconds to start.
_SECONDS_A_STEP, _SECONDS_THAT_PAY = 0.004, 30


@dataclass(frozen=True)
class Cell:
    """One choice of features: a block (or ``MIX``), tokens, and how several are reduced."""

    block: int | str
    types: str
    reduce: str

    @property
    def name(self) -> str:
        """What people call it."""
        block = "mix of the blocks" if self.block == MIX else f"block {block_name(self.block)}"
        return f"{block}, {self.tokens}"

    @property
    def tokens(self) -> str:
        """``cdt``, or ``cdt stacked``."""
        return f"{self.types} stacked" if self.reduce == "stack" else self.types


# ---------------------------------------------------------------- what to train


def sweep_folders(config: dict[str, Any]) -> list[EmbeddingFolder]:
    """Of the blocks that are asked for."""
    found = numbered_folders(config["data"], config["sweep"]["blocks"], "sweep.blocks", "all")
    if config["sweep"]["blocks"] == "all" and len(found) == 1:
        log.warning(
            "%s: there are embeddings of block %d only; inference.transformer_block=all extracts "
            "all of them",
            found[0].folder,
            found[0].block,
        )
    return found


def choices_of(config: dict[str, Any]) -> list[tuple[str, str]]:
    """(types, reduce) of each choice of tokens; one token is the same in both ways.

    Raises:
        InputError: there is none, one is no choice, or ``data`` makes one.
    """
    options, data, default = config["sweep"], config["data"], settings.TL["data"]
    if data["features"] != "embeddings":
        raise InputError(
            "a sweep is over embeddings",
            kind="conflict",
            setting="data.features",
            hint="Leave it out.",
        )
    if data["types"] != default["types"]:
        raise InputError(
            "has no effect on a sweep",
            kind="conflict",
            setting="data.types",
            hint=f"Give sweep.tokens=[{data['types']}].",
        )
    if not (data["block"] is None or isinstance(data["block"], int)):
        raise InputError(
            "has no effect on a sweep, which mixes the blocks in any case",
            kind="conflict",
            setting="data.block",
            hint="Give sweep.blocks=[6,7] for some of them.",
        )
    reductions = listed_names(options["reduce"] or [data["reduce"]])
    tokens = listed_names(options["tokens"])
    if not tokens or not reductions:
        raise InputError(
            "is empty",
            kind="empty",
            setting=f"sweep.{'reduce' if tokens else 'tokens'}",
            hint="Give one choice or more, such as sweep.tokens=[c,cdt] sweep.reduce=[mean,stack].",
        )
    found: dict[tuple[str, str], None] = {}
    for reduce in reductions:
        check_choice("sweep.reduce", reduce, REDUCTIONS)
        for types in tokens:
            check_types(types, reduce, "sweep.tokens")
            if reduce == "mean":  # of which the order makes no difference
                types = "".join(token for token in TOKENS if token in types)
            found[types, "mean" if len(types) == 1 else reduce] = None
    return list(found)


def cells_of(
    blocks: Sequence[int], choices: Sequence[tuple[str, str]], mix: Any
) -> Iterator[list[Cell]]:
    """Cells that are trained together: those of a block whose features are equally wide."""
    for block in blocks:
        by_width: dict[int, list[Cell]] = {}
        for types, reduce in choices:
            width = len(types) if reduce == "stack" else 1
            by_width.setdefault(width, []).append(Cell(block, types, reduce))
        yield from by_width.values()
    if mix and len(blocks) > 1:
        for types, reduce in choices:
            yield [Cell(MIX, types, reduce)]


def features_of(
    everything: dict[str, np.ndarray], blocks: Sequence[int], cells: Sequence[Cell]
) -> dict[str, np.ndarray]:
    """Split → [N, M, D]: of each cell; of a mix, of each block, normalised."""
    found = {}
    for split, x in everything.items():  # [N, L, 3, D]
        if cells[0].block == MIX:
            found[split] = to_be_mixed(select_tokens(x, cells[0].types, cells[0].reduce))
            continue
        own = x[:, blocks.index(cells[0].block)]
        found[split] = np.stack(
            [select_tokens(own, cell.types, cell.reduce) for cell in cells], axis=1
        )
    return found


# ---------------------------------------------------------------- doing it


@dataclass(frozen=True)
class Work:
    """What all jobs of a sweep have in common; a job is cells that are trained together."""

    task: Downstream
    blocks: Sequence[int]
    seeds: Sequence[int]
    recipe: dict[str, Any]

    def do(
        self,
        jobs: Sequence[list[Cell]],
        everything: dict[str, np.ndarray],
        processes: int,
        folder: Path,
    ) -> Iterator[list[dict[str, Any]]]:
        """The figures of each job, as they come.

        Args:
            jobs: what to train.
            everything: split → float32 [N, L, 3, D]; several processes get it through files, which
                they map into memory, so that it is there once.
            processes: how many; 1 for this one.
            folder: where those files may be, as long as it takes.
        """
        if processes == 1:
            for job in jobs:
                yield self.train(job, everything)
            return
        with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as shared:
            for split in list(everything):
                np.save(Path(shared) / f"{split}.npy", everything.pop(split))
            yield from run_parallel(
                _train_job,
                jobs,
                (self, shared),
                num_workers=processes,
                time_limit=None,
                start_method="spawn",  # a fork may not use autograd where its parent has
                progress=False,
            )

    def train(self, cells: list[Cell], everything: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """Train and test the probes of a job."""
        features = features_of(everything, self.blocks, cells)
        mix = cells[0].block == MIX
        bank = train_probes(self.recipe, self.task, features, self.seeds, mix=mix, title=None)
        return figures_of(cells, bank, self.task)


def _train_job(cells: list[Cell], work: Work, shared: str) -> list[dict[str, Any]]:
    """In a worker process."""
    files = {path.stem: path for path in Path(shared).glob("*.npy")}
    everything = {split: np.load(path, mmap_mode="r") for split, path in files.items()}
    return work.train(cells, everything)


def processes_for(config: dict[str, Any], task: Downstream, jobs: Sequence[list[Cell]]) -> int:
    """One a core, on a CPU, where starting them pays."""
    wanted, probe = config["sweep"]["num_workers"], config["probe"]
    if wanted is not None:
        return min(wanted, max(1, len(jobs)))
    if probe["accelerator"] != "cpu" and (torch.cuda.is_available() or torch.mps.is_available()):
        return 1
    steps = probe["max_epochs"] * -(-len(task.rows["train"]) // probe["batch_size"])
    seconds = steps * len(jobs) * _SECONDS_A_STEP
    return min(cores(), max(1, len(jobs))) if seconds > _SECONDS_THAT_PAY else 1


def figures_of(cells: Sequence[Cell], bank: ProbeBank, task: Downstream) -> list[dict[str, Any]]:
    """An entry of ``sweep.json`` for each cell."""
    targets, shown = task.targets("test"), metrics.SHOWN[task.task]
    n_seeds = len(bank.seeds)
    found = []
    for i, cell in enumerate(cells):
        own = range(i * n_seeds, (i + 1) * n_seeds)
        scores = [metrics.evaluate(task.task, targets, bank.outputs[k]).figures for k in own]
        entry = {
            "block": cell.block,
            "types": cell.types,
            "reduce": cell.reduce,
            "name": cell.name,
            "tokens": cell.tokens,
            f"val_{SELECTION[task.task]}": spread(bank.best_figures[list(own)]),
            "best_epochs": [int(bank.best_epochs[k]) for k in own],
            **{m: spread([score[m] for score in scores]) for m in shown},
        }
        if bank.n_blocks is not None:
            entry["weights"] = mix_weights(bank)
        found.append(entry)
    return found
