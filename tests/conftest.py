"""Shared fixtures: a small data set whose labels are audible, music, and a model."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cpuinfo
import numpy as np
import pytest

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch
from audio_store import audio, made, store  # noqa: F401
from http_server import http_server, no_waiting  # noqa: F401
from music import LABELS, save_small_model, write_music
from pickles import file  # noqa: F401
from tunes import reels  # noqa: F401

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.datasets.melspectrograms import write_mel

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests say what a CPU does
# A shell has background jobs ignore Ctrl-C, and what they start: the tests send it to programs.
signal.signal(signal.SIGINT, signal.default_int_handler)


SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ToySet:
    """Tracks whose label is the band that is loud."""

    root: Path
    labels: tuple[str, ...] = tuple(LABELS)

    @property
    def mels(self) -> Path:
        return self.root / "mels"

    def groundtruth(self, split: str) -> Path:
        return self.root / f"groundtruth-{split}.pk"

    def settings(self) -> dict[str, str]:
        """`datamodule` settings."""
        paths = {f"groundtruth_{k}": str(self.groundtruth(v)) for k, v in SPLITS.items()}
        return {"base_dir": str(self.mels), **paths}

    def data(self, task: str = "multi-label") -> dict[str, Any]:
        """Arguments of a `MaestDataModule`."""
        splits = {k: read_groundtruth(self.groundtruth(v), task=task) for k, v in SPLITS.items()}
        return {"base_dir": str(self.mels), "splits": splits}


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> ToySet:
    """60 tracks of 1 to 4 seconds."""
    toy = ToySet(tmp_path_factory.mktemp("toy"))
    rng = np.random.default_rng(0)
    for split, tracks in (("train", 36), ("validation", 12), ("test", 12)):
        groundtruth = {}
        for i in range(tracks):
            label = i % 3
            mel = rng.random((int(rng.integers(63, 250)), 96), np.float32)
            mel[:, 32 * label : 32 * label + 32] += 2.5
            key = f"{split}/{i:02d}.mmap"
            write_mel(toy.mels / key, mel)
            groundtruth[key] = np.arange(3) == label
        write_groundtruth(toy.groundtruth(split), groundtruth)
    write_labels(toy.root / "labels.json", toy.labels)
    return toy


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small spend more time on sharing the work than on the work. And the name of
    the processor, which every run records, takes a second to find out.
    """
    torch.set_num_threads(1)
    with mock.patch.object(cpuinfo, "get_cpu_info", return_value={"brand_raw": "a processor"}):
        yield


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    """A folder of six tracks, for extraction."""
    folder = tmp_path_factory.mktemp("music")
    write_music(folder, 6)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model folder for them."""
    return save_small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def line(model, music, tmp_path) -> str:
    """Arguments of an extraction command."""
    return f"with maest.checkpoint={model} inference.audio={music} inference.out_dir={tmp_path}"
