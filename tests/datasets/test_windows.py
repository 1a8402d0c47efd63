"""A crop's targets from the windows of its track."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import refuses

from maest.datasets.batches import CropDataset
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import GroundTruth, read_groundtruth
from maest.datasets.windows import WindowTargets

SECONDS, NAN = 0.64, np.nan  # 40 frames
LABELS = ["a", "b", "c"]


def put(folder: Path, key: str, windows: np.ndarray) -> None:
    path = folder / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, windows.astype(np.float16))


def write_recipe(folder: Path, **changes: Any) -> None:
    recipe = {"window_seconds": SECONDS, "labels": LABELS} | changes
    (folder / "recipe.json").write_text(json.dumps(recipe), "utf-8")


@pytest.fixture
def windows(toy, tmp_path) -> Path:
    """Of two tracks in three of the toy set; some labels are unknown in some windows."""
    rng, folder = np.random.default_rng(0), tmp_path / "windows"
    for i in range(36):
        if i % 3:
            values = rng.random((2 + i % 5, 3)).round(2)
            values[rng.random(values.shape) < 0.3] = NAN
            put(folder, f"train/{i:02d}.mmap", values)
    put(folder, "train/01.mmap", np.array([[0.5, NAN, 0], [0.25, NAN, 1]]))
    write_recipe(folder, labels=toy.labels)
    return folder


def by_frames(values: np.ndarray, first: int, frames: int, target: np.ndarray) -> np.ndarray:
    """Frame by frame: the mean over those of a window, the track's target where none is known."""
    of_frames = [values[i // 40] for i in range(first, first + frames) if 0 <= i < 40 * len(values)]
    result = target.astype(np.float64)
    for label in range(len(target)):
        known = [float(row[label]) for row in of_frames if not np.isnan(row[label])]
        if known:
            result[label] = np.mean(known)
    return result


@settings(max_examples=100, deadline=None, derandomize=True)
@given(first=st.integers(-60, 400), frames=st.integers(16, 300), seed=st.integers(0, 9))
def test_a_crops_targets_are_the_mean_over_its_frames(tmp_path_factory, first, frames, seed):
    folder = tmp_path_factory.getbasetemp() / "hypothesis-windows"
    rng = np.random.default_rng(seed)
    values = rng.random((1 + seed, 3)).round(3)
    values[rng.random(values.shape) < 0.3] = NAN
    values[0, 0], target = 0.5, np.array([1, NAN, 0.25], np.float32)
    put(folder, f"{seed}.mmap", values)
    write_recipe(folder)
    truth = GroundTruth(folder / "x.pk", [f"{seed}.mmap"], target[None])
    found = WindowTargets(folder, truth).of_crop(f"{seed}.mmap", first, frames, target)
    assert found.dtype == np.float32
    expected = by_frames(np.load(folder / f"{seed}.mmap.npy"), first, frames, target)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def module(toy, **options: Any) -> MaestDataModule:
    return MaestDataModule(**{"clip_frames": 100, "seed": 4, **toy.data(), **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_training_clips_have_their_own_targets(toy, windows, workers):
    own, plain = (
        module(toy, window_targets=folder, num_workers=workers) for folder in (windows, None)
    )
    truth, loader = own.splits["train"], own.train_dataloader()
    items = list(loader.sampler)
    batches, before = list(loader), list(plain.train_dataloader())
    for batch, other in zip(batches, before, strict=True):
        assert torch.equal(batch.mel, other.mel)
    targets, differ = torch.cat([batch.targets for batch in batches]).numpy(), 0
    assert targets.dtype == np.float32
    for (index, seed), target in zip(items, targets, strict=True):
        key = truth.keys[index]
        length = (toy.mels / key).stat().st_size // 192
        first = -((100 - length) // 2)
        if length >= 100:
            first = int(np.random.default_rng(seed).integers(length - 99))
        if (windows / f"{key}.npy").exists():
            expected = by_frames(np.load(windows / f"{key}.npy"), first, 100, truth.targets[index])
            np.testing.assert_allclose(target, expected, atol=1e-5)
            differ += 1
        else:
            np.testing.assert_array_equal(target, truth.targets[index])
    assert differ == 24


def test_evaluation_keeps_the_tracks_targets(toy, windows):
    shutil.copytree(windows / "train", windows / "validation")
    batches = module(toy, window_targets=windows).val_dataloader()
    targets = np.concatenate([batch.targets for batch in batches])
    np.testing.assert_array_equal(targets, read_groundtruth(toy.groundtruth("validation")).targets)


def test_a_damaged_file_is_skipped_or_refused(toy, windows):
    path = windows / "train/02.mmap.npy"
    path.write_bytes(path.read_bytes()[:130])
    truth = read_groundtruth(toy.groundtruth("train"))
    targets = WindowTargets(windows, truth)
    crops = CropDataset(truth, toy.mels, 40, windows=targets)
    with refuses("corrupt", "02.mmap.npy", "datamodule.window_targets"):
        crops.__getitems__([(2, 0)])
    put(windows, "train/02.mmap", np.zeros((3, 4)))
    with refuses("mismatch", "02.mmap.npy", "datamodule.window_targets"):
        crops.__getitems__([(2, 0)])
    batch = CropDataset(truth, toy.mels, 40, True, windows=targets).__getitems__([(2, 0)])
    assert (len(batch), list(batch.errors)) == (1, ["train/02.mmap"])


@pytest.mark.parametrize(
    ("kind", "place", "change"),
    [
        ("missing", "recipe.json", lambda f: (f / "recipe.json").unlink()),
        ("corrupt", "recipe.json", lambda f: (f / "recipe.json").write_text("[")),
        ("corrupt", "recipe.json", lambda f: write_recipe(f, window_seconds=0)),
        ("mismatch", "recipe.json", lambda f: write_recipe(f, labels=LABELS)),
        ("mismatch", "recipe.json", lambda f: write_recipe(f, labels=["low"])),
        ("missing", "windows", lambda f: shutil.rmtree(f / "train")),
        ("mismatch", "01.mmap.npy", lambda f: put(f, "train/01.mmap", np.zeros((3, 2)))),
        ("invalid", "01.mmap.npy", lambda f: put(f, "train/01.mmap", np.full((3, 3), NAN))),
        ("invalid", "01.mmap.npy", lambda f: put(f, "train/01.mmap", np.full((3, 3), 2.0))),
    ],
)
def test_folders_that_do_not_fit_are_refused_at_the_start(toy, windows, kind, place, change):
    change(windows)
    with refuses(kind, place, "datamodule.window_targets"):
        module(toy, window_targets=windows)


def test_only_labels_have_windows(toy, windows):
    truth = read_groundtruth(toy.groundtruth("train"), "regression")
    with refuses("conflict", "windows", "datamodule.window_targets"):
        WindowTargets(windows, truth)
