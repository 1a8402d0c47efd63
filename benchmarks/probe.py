"""How long probes take to train on a data set of MagnaTagATune's size, against the usual loop.

python benchmarks/probe.py [--repeats 3] [--blocks 2] [--against TREE] [--record FILE.json]

Embeddings are random (18,706 / 1,825 / 5,329 tracks × 3 tokens × 768 floats), 50 labels depend on
them. Times are of the commands, called from Python: reading the files, training with a validation
every epoch, and the test.

- default: `python ex_tl.py` as it is: three seeds, 60 epochs
- sweep: `python ex_tl.py sweep` over some blocks, 7 choices of tokens × 3 seeds each, without mixes
- plain: one probe after the other, as is usual: nn.Sequential, DataLoader over a TensorDataset,
  AdamW, scikit-learn's ROC-AUC and AP after each epoch; of two epochs, the time of one
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import Bench, Figures, Way

TRACKS = {"train": 18_706, "val": 1_825, "test": 5_329}
LABELS, WIDTH, SEEDS, CHOICES = 50, 768, 3, 7


def write_data(folder: Path, tracks: dict[str, int], blocks: int) -> None:
    """Ground truths, and the embeddings of one block, under several names."""
    from maest.datasets.groundtruth import write_groundtruth, write_labels

    rng = np.random.default_rng(0)
    weights = rng.normal(size=(WIDTH, LABELS)).astype(np.float32)
    first = folder / "embeddings/5sec/0"
    for split, count in tracks.items():
        (first / split).mkdir(parents=True)
        x = rng.normal(size=(count, 3, WIDTH)).astype(np.float32)
        noise = 30 * rng.normal(size=(count, LABELS)).astype(np.float32)
        targets = x.mean(axis=1) @ weights + noise > 45
        targets[:LABELS] |= np.eye(LABELS, dtype=bool)[:count]  # every label has a track
        for i, embedding in enumerate(x):
            np.save(first / f"{split}/{i}.embeddings.npy", embedding)
        truth = {f"{split}/{i}": row for i, row in enumerate(targets)}
        write_groundtruth(folder / f"groundtruth-{split}.pk", truth)
    write_labels(folder / "labels.json", [f"label {i}" for i in range(LABELS)])
    for block in range(1, blocks):
        (first.parent / str(block)).symlink_to(first)


def command(name: str | None, data: str, epochs: int, blocks: int) -> Figures:
    """Seconds of a command, and of an epoch of one of its probes."""
    import ex_tl

    files = {f"groundtruth_{split}": f"{data}/groundtruth-{split}.pk" for split in TRACKS}
    changes: dict[str, Any] = {
        "data": files | {"embeddings_dir": f"{data}/embeddings"},
        "probe": {"max_epochs": epochs, "accelerator": "cpu"},
        "seeds": SEEDS,
    }
    if name is None:
        changes["data"]["block"] = 0
    else:
        changes["sweep"] = {"mix": False, "blocks": list(range(blocks))}
    started = time.perf_counter()
    options = {"--loglevel": "ERROR"}
    done = ex_tl.ex.run(name or ex_tl.ex.default_command, config_updates=changes, options=options)
    seconds = time.perf_counter() - started
    if done.status != "COMPLETED":
        raise RuntimeError(done.status)
    probes = SEEDS if name is None else SEEDS * CHOICES * blocks
    return {"seconds": seconds, "probes": probes, "epoch_seconds": seconds / probes / epochs}


def plain(data: str) -> Figures:
    """Seconds of an epoch of one probe, with its validation, in the usual loop."""
    import torch
    from sklearn.metrics import average_precision_score, roc_auc_score
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from maest.datasets.groundtruth import read_groundtruth

    def read(split: str) -> tuple[torch.Tensor, np.ndarray]:
        truth = read_groundtruth(f"{data}/groundtruth-{split}.pk")
        files = (f"{data}/embeddings/5sec/0/{key}.embeddings.npy" for key in truth.keys)
        return torch.from_numpy(np.stack([np.load(file)[0] for file in files])), truth.targets

    (x, targets), (val, val_targets) = read("train"), read("val")
    dataset = TensorDataset(x, torch.from_numpy(targets.astype(np.float32)))
    loader = DataLoader(dataset, 128, shuffle=True)
    net = nn.Sequential(nn.Linear(WIDTH, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, LABELS))
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    criterion, seconds = nn.BCEWithLogitsLoss(), []
    for _ in range(2):
        started = time.perf_counter()
        for inputs, own in loader:
            optimizer.zero_grad()
            criterion(net.train()(inputs), own).backward()
            optimizer.step()
        with torch.inference_mode():
            scores = net.eval()(val).numpy()
        average_precision_score(val_targets, scores, average="macro")
        roc_auc_score(val_targets, scores, average="macro")
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "epoch_seconds": min(seconds)}


def main(given: list[str] | None = None) -> dict[str, Any]:
    packages = ("torch", "pytorch-lightning", "numpy", "scikit-learn")
    bench = Bench(__doc__, given, packages, epochs=(60, 2), blocks=(2, 2))
    tracks = {s: count // 100 if bench.args.quick else count for s, count in TRACKS.items()}
    case = {"epochs": bench.args.epochs, "blocks": bench.args.blocks}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), tracks, bench.args.blocks)
        ways = {
            "ours, default": Way(command, case | {"name": None, "data": folder}),
            "ours, sweep": Way(command, case | {"name": "sweep", "data": folder}),
            "plain": Way(plain, {"data": folder}),
        }
        rows = bench.measure(ways, apart=True)
    columns = {"seconds": "{seconds:.1f}", "an epoch of a probe, seconds": "{epoch_seconds:.4f}"}
    bench.show(f"Probes on {tracks['train']} tracks, {LABELS} labels", rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
