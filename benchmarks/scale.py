"""What commands cost per track where a collection is large: seconds and memory, by its size.

python benchmarks/scale.py [--tracks 50000 200000] [--record FILE.json]

Tracks of 0.1 s, 50 labels and a network of one small block: what is left is what the house does
with a track besides decoding and computing. Everything lies in a temporary folder (5 GB for
200,000 tracks) and in the page cache. "Again": everything is made already.
"""

from __future__ import annotations

import csv
import shlex
import sys
import tempfile
import wave
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

import harness
from harness import Bench

LABELS = 50
SPLITS = ("train", "validation", "test")
DATA = "datamodule.base_dir=mels " + " ".join(
    f"datamodule.groundtruth_{name}=truth/groundtruth-{split}.pk"
    for name, split in zip(("train", "val", "test"), SPLITS, strict=True)
)
EXTRACT = "{tree}/ex_maest.py extract_embeddings with maest.checkpoint=model " + (
    "datamodule.base_dir=mels datamodule.groundtruth_predict=truth/all.pk "
    "inference.out_dir=embeddings inference.transformer_block=0"
)
PROBE = "data.embeddings_dir=embeddings data.block=0 probe.max_epochs=1 " + " ".join(
    f"data.groundtruth_{name}=truth/groundtruth-{split}.pk"
    for name, split in zip(("train", "val", "test"), SPLITS, strict=True)
)
STEPS = {
    "preprocess": "{tree}/datasets/preprocess.py audio mels",
    "preprocess, again": "{tree}/datasets/preprocess.py audio mels",
    "ground truth from a table": "{tree}/datasets/groundtruth.py build tracks.csv --out-dir truth",
    "show a ground truth": "{tree}/datasets/groundtruth.py show truth/groundtruth-train.pk",
    "check_data": f"{{tree}}/ex_maest.py check_data with {DATA}",
    "training, one step": f"{{tree}}/ex_maest.py with maest.checkpoint=model {DATA} "
    "trainer.max_steps=1 trainer.limit_val_batches=1",
    "extract_embeddings": EXTRACT,
    "extract_embeddings, again": EXTRACT,
    "probe, one epoch": f"{{tree}}/ex_tl.py with {PROBE}",
}


def make_up(tracks: int) -> None:
    """Audio, its table, and a model of one block for patches of 2 s, in the working directory."""
    from maest.models import Maest, save_model

    rng = np.random.default_rng(0)
    with open("tracks.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "labels", "artist"])
        for i in range(tracks):
            path = Path("audio", f"{i // 1000:04d}", f"{i:07d}.wav")
            path.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(path), "wb") as sound:
                sound.setparams((1, 2, 16_000, 0, "NONE", ""))
                sound.writeframes(rng.integers(-9_000, 9_000, 1_600, np.int16).tobytes())
            labels = [f"label {k:02d}" for k in np.unique(rng.integers(LABELS, size=3))]
            table.writerow([path.relative_to("audio"), ";".join(labels), f"artist {i // 10}"])
    names = [f"label {k:02d}" for k in range(LABELS)]
    save_model(
        Path("model"),
        Maest(n_classes=LABELS, input_t=125, embed_dim=32, num_heads=2, depth=1, labels=names),
    )


def measured(tracks: int) -> Iterator[tuple[str, harness.Figures]]:
    from maest.datasets.groundtruth import read_groundtruth, write_groundtruth

    make_up(tracks)
    for name, line in STEPS.items():
        if name == "extract_embeddings":
            splits = [read_groundtruth(f"truth/groundtruth-{split}.pk") for split in SPLITS]
            rows = {key: row for s in splits for key, row in zip(s.keys, s.targets, strict=True)}
            write_groundtruth("truth/all.pk", rows)
        command = [sys.executable, *shlex.split(line.format(tree=harness.ROOT))]
        figures = harness.command(command)
        yield name, figures | {"seconds_per_100_000": figures["seconds"] * 1e5 / tracks}


def main(given: list[str] | None = None) -> dict[str, Any]:
    bench = Bench(__doc__, given, ("torch", "numpy"), 1, tracks=([50_000, 200_000], [40]))
    columns = {
        "seconds": "{seconds:.1f}",
        "CPU seconds": "{cpu_seconds:.1f}",
        "seconds for 100,000": "{seconds_per_100_000:.1f}",
        "MiB": "{peak_mib:.0f}",
    }
    for tracks in bench.args.tracks:
        rows: dict[str, harness.Figures] = {}
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            for name, figures in measured(tracks):
                rows[name] = figures
                print(f"  {name}: {figures}", file=sys.stderr, flush=True)
        bench.show(f"{tracks:,} tracks", rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
