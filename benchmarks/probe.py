"""How long probes take to train on a data set of MagnaTagATune's size, against the usual loop.

python benchmarks/probe.py [--repeats 3] [--epochs 60] [--blocks 2] [--mixes 2] [--record FILE]

Features are random (18,706 / 1,825 / 5,329 tracks × 3 tokens × 768 floats, in memory), 50 labels
depend on them. Times are those of training with a validation every epoch, and of the test.

- default: `python ex_tl.py` as it is: three seeds, 60 epochs
- plain: one probe after the other, as is usual: nn.Sequential, DataLoader over a TensorDataset,
  AdamW, scikit-learn's ROC-AUC and AP after each epoch; of a few epochs, the time of one
- sweep: the sweep's own passes over some blocks, 7 choices of tokens × 3 seeds each, and over some
  mixes of 12 blocks × 3 seeds, in a process a core; with fewer than 12 blocks and 7 mixes, the time
  of all is taken to be as many times that of one. Embeddings are not read from files
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from maest.config import ProbeSettings  # noqa: E402
from maest.config.probe import ProbeTraining  # noqa: E402
from maest.datasets.embeddings import select_tokens  # noqa: E402
from maest.datasets.groundtruth import GroundTruth  # noqa: E402
from maest.experiments.probe import train_probes  # noqa: E402
from maest.experiments.probe_features import MIX  # noqa: E402
from maest.experiments.probe_task import ProbeTask  # noqa: E402
from maest.experiments.sweep import SweepJob, group_choices, parse_choices  # noqa: E402
from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.parallel import cores  # noqa: E402
from maest.helpers.report import machine, versions  # noqa: E402

TRACKS = {"train": 18_706, "val": 1_825, "test": 5_329}
LABELS, WIDTH, SEEDS, BLOCKS = 50, 768, (0, 1, 2), 12
_PLAIN_EPOCHS = 2


def make_task(rng: np.random.Generator) -> tuple[ProbeTask, dict[str, np.ndarray]]:
    """A task, and split → float32 [N, 3, 768]."""
    weights = rng.normal(size=(WIDTH, LABELS)).astype(np.float32)
    features, found = {}, {}
    for split, n_tracks in TRACKS.items():
        x = rng.normal(size=(n_tracks, 3, WIDTH)).astype(np.float32)
        noise = 30 * rng.normal(size=(n_tracks, LABELS)).astype(np.float32)
        targets = x.mean(axis=1) @ weights + noise > 45
        keys = [f"{split}/{i}" for i in range(n_tracks)]
        features[split], found[split] = x, GroundTruth(Path(split), keys, targets, "multi-label")
    rows = {split: list(range(n)) for split, n in TRACKS.items()}
    return ProbeTask("multi-label", [str(i) for i in range(LABELS)], found, rows), features


def default_probe(task: ProbeTask, features: dict[str, np.ndarray], epochs: int) -> float:
    """Seconds of the probe with its default settings."""
    started = time.perf_counter()
    chosen = {s: select_tokens(x, "c", "mean")[:, None] for s, x in features.items()}
    recipe = ProbeTraining(max_epochs=epochs, accelerator="cpu")
    train_probes(recipe, task, chosen, SEEDS).predict(chosen["test"])
    return time.perf_counter() - started


def sweep(
    task: ProbeTask, features: dict[str, np.ndarray], epochs: int, blocks: int, jobs: list
) -> float:
    """Seconds of some passes of the sweep over so many blocks."""
    started = time.perf_counter()
    recipe = ProbeTraining(max_epochs=epochs, accelerator="cpu")
    everything = {split: np.repeat(x[:, None], blocks, axis=1) for split, x in features.items()}
    job = SweepJob(task, list(range(blocks)), SEEDS, recipe)
    with tempfile.TemporaryDirectory() as folder:
        done = sum(map(len, job.run(jobs, everything, min(cores(), len(jobs)), Path(folder))))
    assert done == sum(map(len, jobs))
    return time.perf_counter() - started


def plain_epoch(task: ProbeTask, features: dict[str, np.ndarray]) -> float:
    """Seconds of an epoch of one probe, with its validation, in the usual loop."""
    recipe = ProbeTraining()
    x, val = (torch.from_numpy(features[split][:, 0]) for split in ("train", "val"))
    targets = torch.from_numpy(task.targets("train").astype(np.float32))
    loader = DataLoader(TensorDataset(x, targets), recipe.batch_size, shuffle=True)
    net = nn.Sequential(
        nn.Linear(WIDTH, recipe.hidden),
        nn.ReLU(),
        nn.Dropout(recipe.dropout),
        nn.Linear(recipe.hidden, LABELS),
    )
    optimizer = torch.optim.AdamW(net.parameters(), recipe.lr)
    criterion, seconds = nn.BCEWithLogitsLoss(), []
    for _ in range(_PLAIN_EPOCHS):
        started = time.perf_counter()
        for inputs, own in loader:
            optimizer.zero_grad()
            criterion(net.train()(inputs), own).backward()
            optimizer.step()
        with torch.inference_mode():
            scores = net.eval()(val).numpy()
        average_precision_score(task.targets("val"), scores, average="macro")
        roc_auc_score(task.targets("val"), scores, average="macro")
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=2, help="of the sweep; 0: no sweep")
    parser.add_argument("--mixes", type=int, default=2, help="of the sweep; 1 to 7")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON")
    args = parser.parse_args()
    task, features = make_task(np.random.default_rng(0))
    default, plain = [], []
    for repeat in range(args.repeats):
        default.append(default_probe(task, features, args.epochs))
        plain.append(plain_epoch(task, features))
        print(f"{repeat + 1}: default probe {default[-1]:.1f} s, plain {plain[-1]:.2f} s an epoch")
    together = statistics.median(default) / args.epochs / len(SEEDS)
    found = {
        "default_seconds": {"median": statistics.median(default), "all": default},
        "epoch_of_a_probe_seconds": {"ours": together, "plain": statistics.median(plain)},
        "plain_over_ours": statistics.median(plain) / together,
    }
    print(
        f"default probe, {len(SEEDS)} seeds × {args.epochs} epochs: "
        f"{statistics.median(default):.1f} s; {found['plain_over_ours']:.1f} x the plain loop"
    )
    if args.blocks:
        choices = parse_choices(ProbeSettings())
        jobs = list(group_choices(range(args.blocks), choices, mix=False))
        seconds = sweep(task, features, args.epochs, args.blocks, jobs)
        mixes = [
            job for job in group_choices(range(BLOCKS), choices, mix=True) if job[0].block == MIX
        ]
        of_mixes = sweep(task, features, args.epochs, BLOCKS, mixes[: args.mixes])
        blocks_seconds = seconds / args.blocks * BLOCKS
        mixes_seconds = of_mixes / args.mixes * len(mixes)
        whole = blocks_seconds + mixes_seconds
        probes = args.blocks * len(parse_choices(ProbeSettings())) * len(SEEDS)
        ours = seconds / probes / args.epochs
        found["sweep"] = {
            "blocks_measured": args.blocks,
            "probes_measured": probes,
            "seconds_measured": seconds,
            "seconds_of_12_blocks": blocks_seconds,
            "mixes_measured": args.mixes,
            "mixes_seconds_measured": of_mixes,
            "seconds_of_7_mixes": mixes_seconds,
            "seconds_of_both": whole,
            "epoch_of_a_probe_seconds": ours,
            "plain_over_ours": statistics.median(plain) / ours,
        }
        print(
            f"sweep, {args.blocks} of 12 blocks ({probes} probes): {seconds:.0f} s, "
            f"{statistics.median(plain) / ours:.1f} x plain; {args.mixes} of 7 mixes: "
            f"{of_mixes:.0f} s; all blocks {blocks_seconds / 60:.1f} minutes, with all mixes "
            f"{whole / 60:.1f}"
        )
    if args.record:
        write_json(
            args.record,
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine(),
                "versions": versions("torch", "numpy", "scikit-learn"),
                "tracks": TRACKS,
                "labels": LABELS,
                "epochs": args.epochs,
                **found,
            },
        )


if __name__ == "__main__":
    main()
