"""A downstream task whose embeddings are made up: what extraction and a data set would leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cpuinfo
import numpy as np
import pytest
import torch

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.helpers.errors import InputError
from maest.helpers.results.manifest import open_folder

D = 8
TRACKS = {"train": 60, "validation": 20, "test": 30}
LABELS = ("calm", "loud", "fast")
SETTINGS = {"train": "train", "val": "validation", "test": "test"}
QUICK = "probe.max_epochs=4 probe.lr=0.03 probe.batch_size=32 probe.warmup_epochs=0 probe.hidden=16"


@dataclass(frozen=True)
class MadeUp:
    """Where it is; all paths are relative to ``root``."""

    root: Path
    task: str
    blocks: Sequence[int]

    def groundtruth(self, split: str) -> Path:
        return self.root / "groundtruth" / f"groundtruth-{split}.pk"

    def keys(self, split: str) -> list[str]:
        return read_groundtruth(self.groundtruth(split), task=self.task).keys

    def targets(self, split: str) -> np.ndarray:
        return read_groundtruth(self.groundtruth(split), task=self.task).targets

    def block(self, block: int, seconds: str = "5") -> Path:
        return self.root / "embeddings" / f"{seconds}sec" / str(block)

    def embedding(self, block: int, key: str) -> Path:
        return self.block(block) / f"{key}.embeddings.npy"

    def line(self, *more: str) -> str:
        """Settings as they are typed."""
        splits = (
            f"data.groundtruth_{name}=groundtruth/groundtruth-{split}.pk"
            for name, split in SETTINGS.items()
        )
        return " ".join(
            ["data.embeddings_dir=embeddings", *splits, f"data.task={self.task}", QUICK, *more]
        )


def open_block(
    folder: Path, block: int, seconds: float = 5.0, model: str = "a" * 64, **settings
) -> None:
    """The manifest that extraction leaves in a block's folder."""
    settings = {
        "kind": "embeddings",
        "model": model,
        "numbering": "blocks count from 0; -1 is after the final norm",
        "input": "log-mel files",
        "patch_seconds": seconds,
        "hop_seconds": seconds,
        "tail": "pad",
        "patchout": None,
        "precision": "32-true",
        "quantize": None,
        "version": 1,
        "block": block,
        "pool": "mean",
    } | settings
    made_by = {"arch": "maest_tiny", "checkpoint": None, "checkpoint_swa_weights": False}
    open_folder(folder, settings, "mels", False, lambda: None, made_by)


def make_up(root: Path, task: str = "multi-label", blocks: Sequence[int] = (6, 7)) -> MadeUp:
    """Three splits whose targets can be read from the embeddings, from the later blocks better."""
    made = MadeUp(root, task, blocks)
    rng = np.random.default_rng(7)
    mixing = rng.normal(size=(max(blocks) + 1, 3, len(LABELS), D))
    for block in blocks:
        open_block(made.block(block), block)
    for split, tracks in TRACKS.items():
        groundtruth = {}
        for i in range(tracks):
            key, hidden = f"{split}/{i:02d}.mmap", rng.normal(size=len(LABELS))
            groundtruth[key] = {
                "multi-label": hidden > 0.3,
                "single-label": np.arange(len(LABELS)) == hidden.argmax(),
                "regression": 10 * hidden + 50,
            }[task]
            for block in blocks:
                noise = rng.normal(size=(3, D))
                tokens = 0.3 * (block - 3) * (hidden @ mixing[block]) + noise
                path = made.embedding(block, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, tokens.astype(np.float32))
        write_groundtruth(made.groundtruth(split), groundtruth, task)
    write_labels(made.groundtruth("train").parent / "labels.json", LABELS)
    return made


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One thread: tiny steps on several wait for one another, above all on a busy machine. The
    processor's name takes a second to find out, and every run tells it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpuinfo, "get_cpu_info", lambda: {"brand_raw": "a processor"})
        yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def refuses(
    kind: str, place: str | None = None, setting: str | None = None
) -> Iterator[pytest.ExceptionInfo]:
    """Expects an InputError of this kind, with a hint; of a path that ends so, of this setting."""
    with pytest.raises(InputError) as caught:
        yield caught
    error = caught.value
    assert (error.kind, error.setting) == (kind, setting), error
    assert str(error.path or "").endswith(place or ""), error
    assert error.hint.endswith("."), error
