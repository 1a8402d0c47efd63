"""The command ``probe`` of ``ex_tl.py``: train probes on saved embeddings, test them, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from maest.config import ProbeSettings
from maest.config.probe import ProbeTraining
from maest.experiments.probe_features import read_features
from maest.experiments.probe_report import write_run
from maest.experiments.probe_results import RIDGE, summarize
from maest.experiments.probe_task import ProbeTask, read_task
from maest.experiments.runs import interruptible, run_dir
from maest.helpers import metrics
from maest.helpers.errors import InputError
from maest.helpers.parallel import one_torch_thread
from maest.helpers.report import metrics_line
from maest.models.engines import best_device
from maest.models.probe import ProbeBank

log = logging.getLogger(__name__)


def probe(run: Any, settings: ProbeSettings) -> dict[str, Any]:
    """Train the probe with several seeds, test each on its best epoch, and write a report."""
    folder = run_dir(run)
    results = run_probe(settings, folder)
    shown = metrics.SHOWN[results["task"]]
    for name in shown:
        run.log_scalar(f"test_{name}", results[name]["mean"])
    return {**{name: results[name] for name in shown}, "folder": str(folder)}


def run_probe(settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    """Train and test probes, write all that a run leaves into ``folder``, and print a summary.

    Returns the content of ``results.json`` there. Nothing is kept where a signal stops it.
    """
    started = time.monotonic()
    task = read_task(settings.data)
    features = read_features(task, settings.data)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    mix = features.blocks is not None
    with interruptible(lambda: "A probe is kept only when it is finished"):
        bank = train_probes(settings.probe, task, features.splits, seeds, mix, title="probe")
    outputs = bank.predict(features.splits["test"])
    results = summarize(settings, task, features, bank, outputs)
    for warning in results["warnings"]:
        log.warning("%s", warning)
    results["seconds"] = time.monotonic() - started
    write_run(folder, results, task, bank, outputs)
    tracks = f"{' / '.join(map(str, results['tracks'].values()))} tracks"
    if left_out := sum(results["missing"].values()):
        tracks += f" ({left_out} without features left out)"
    print(
        f"{results['name']}: test {metrics_line(task.task, results)} over {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)} (chance {metrics_line(task.task, results['chance'])}); "
        f"{results['features']} features, {tracks}, {len(task.labels)} labels, "
        f"{results['classes_left_out']} left out"
    )
    if "ridge" in results:
        print(f"{RIDGE} on the same tracks: test {metrics_line(task.task, results['ridge'])}")
    print(f"{folder / 'summary.md'}, labels.csv, labels.png")
    return results


def train_probes(
    recipe: ProbeTraining,
    task: ProbeTask,
    features: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    mix: bool = False,
    title: str | None = None,
) -> ProbeBank:
    """Train probes together; each has its weights of its best epoch on the validation split.

    Args:
        features: split → float32 [N, M, D] of M sets (with ``mix`` M blocks).
        mix: one probe a seed on a learned mix of the M blocks, rather than one on each set.
        title: of a progress bar over the epochs; None for none.
    """
    n_sets, width = features["train"].shape[1:]
    bank = ProbeBank(
        width,
        len(task.labels),
        seeds,
        hidden=recipe.hidden,
        dropout=recipe.dropout,
        task=task.task,
        n_sets=1 if mix else n_sets,
        n_blocks=n_sets if mix else None,
        device=device_of(recipe.accelerator),
    )
    train, val = ((features[split], task.targets(split)) for split in ("train", "val"))
    shown = None if title else True  # on a terminal, or nowhere
    # One thread: products this small gain little from more, and where other work goes on, threads
    # that share them wait for each other (ten times as long was seen).
    with (
        one_torch_thread(),
        tqdm(total=recipe.max_epochs, desc=title, unit="epoch", disable=shown) as bar,
    ):
        bank.fit(
            train,
            val,
            lr=recipe.lr,
            lr_factor=recipe.factor,
            weight_decay=recipe.weight_decay,
            batch_size=recipe.batch_size,
            max_epochs=recipe.max_epochs,
            after_epoch=bar.update,
        )
    return bank


def device_of(accelerator: str) -> torch.device:
    """What computes, by ``probe.accelerator``. Raises InputError where it is not there."""
    best = best_device()
    device = best if accelerator in ("auto", "gpu") else accelerator
    if device in ("cpu", best) and (accelerator, device) != ("gpu", "cpu"):
        return torch.device(device)
    raise InputError(
        f"there is no {accelerator!r} here",
        kind="unsupported",
        setting="probe.accelerator",
        hint="Leave it out to take what there is.",
    )
