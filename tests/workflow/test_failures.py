"""What may go wrong in a training is named, and the last checkpoint stays usable."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import newest, settings  # isort: skip (first: it quiets warnings)

import training_process as training
from training_process import LAST, Before, assert_same, loads, outcome

import maest.models.training
from maest.models.training import MaestModule

BASE = (
    "maest.arch=maest_toy maest.s_patchout_t=2 datamodule.clip_length=1.5 "
    "datamodule.clips_per_epoch=20 datamodule.batch_size_train=2 trainer.max_epochs=2 "
    "trainer.checkpoint_minutes=0 module.swa_start=0"
)
STEPS = 10  # of an epoch


@dataclass
class Spoil:
    """Does something to all files of a split but the first ``good``: a set's, in its folder."""

    folder: Path
    how: str
    good: int = 0

    def __call__(self) -> None:
        for path in sorted(self.folder.glob("*.mmap"))[self.good :]:
            if self.how == "gone":
                path.unlink()
            elif self.how == "truncated":
                path.write_bytes(path.read_bytes()[:-1])
            else:
                path.write_bytes(np.full((250, 96), np.nan, np.float16).tobytes())


@dataclass
class NoMoreThan:
    """Lets no file grow beyond so many bytes, as a full disk would (the signal is Python's)."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@dataclass
class Patch:
    """Replaces the loss, or spoils the gradients, at a step."""

    what: str
    step: int

    def __call__(self) -> None:
        original, steps = maest.models.training.task_loss, count()

        def loss(*args) -> torch.Tensor:  # once a step, in training
            value = original(*args)
            if next(steps) == self.step:
                if self.what == "loss":
                    return value * float("nan")
                value.register_hook(lambda gradient: gradient * float("inf"))
            return value

        maest.models.training.task_loss = loss


@pytest.fixture
def own(toy, tmp_path):
    """A copy of the toy set that may be spoilt."""
    shutil.copytree(toy.root, tmp_path / "toy")
    return replace(toy, root=tmp_path / "toy")


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    home = tmp_path_factory.mktemp("unbroken")
    training.start(home, f"{settings(toy)} {BASE}").wait()
    return outcome(home)


def fails_and_goes_on(
    home: Path, command: str, plan: Callable[[], None], expected: dict, steps: int
) -> str:
    """The message of a run that fails; it goes on after so many steps, as if it never had."""
    text = training.start(home, command, plan).wait(1)
    assert "Traceback" not in text
    assert loads(newest(home) / LAST)["global_step"] == steps
    assert sorted(path.name for path in (newest(home) / "checkpoints").glob(".tmp*")) == []
    training.start(home, f"{command} ckpt_path=last").wait()
    assert_same(outcome(home), expected)
    return text


def test_a_full_disk(toy, tmp_path, unbroken):
    plan = Before(MaestModule, "training_step", STEPS + 2, NoMoreThan(200_000))
    command = f"{settings(toy)} {BASE}"
    text = fails_and_goes_on(tmp_path, command, plan, unbroken, STEPS + 2)
    assert "exp_logs/1/checkpoints/last.ckpt: " in text
    assert "ckpt_path=last" in text


@pytest.mark.parametrize(
    ("how", "workers"), [("gone", 0), ("truncated", 0), ("truncated", 2), ("nan", 0)]
)
def test_files_that_go_bad_in_the_middle_of_an_epoch(toy, own, tmp_path, unbroken, how, workers):
    command = f"{settings(own)} {BASE} datamodule.num_workers={workers}"
    plan = Before(MaestModule, "training_step", STEPS + 1, Spoil(own.mels / "train", how))
    text = training.start(tmp_path, command, plan).wait(1)
    assert "Traceback" not in text
    assert f"{own.mels}/train/" in text, text[-1000:]
    read_ahead = 1 + 2 * workers
    assert loads(newest(tmp_path) / LAST)["global_step"] - STEPS in range(1, 3 + read_ahead)
    shutil.copytree(toy.mels, own.mels, dirs_exist_ok=True)  # put back
    training.start(tmp_path, f"{command} ckpt_path=last").wait()
    assert_same(outcome(tmp_path), unbroken)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_and_counted(toy, own, tmp_path, workers):
    command = f"{settings(own)} {BASE} datamodule.on_error=skip datamodule.num_workers={workers}"
    plans = [
        Before(MaestModule, "training_step", 2, Spoil(own.mels / split, "truncated", good))
        for split, good in (("train", 30), ("validation", 11))
    ]
    text = training.start(tmp_path, command, *plans).wait()
    results = json.loads((newest(tmp_path) / "results.json").read_text())
    skipped = results["skipped"]
    assert "validation/11.mmap" in skipped
    assert {f"train/{i}.mmap" for i in range(30, 36)} & skipped.keys()
    assert skipped.keys() <= {"validation/11.mmap", *(f"train/{i}.mmap" for i in range(30, 36))}
    assert results["val_tracks"] == 11
    assert f"{len(skipped)} files" in text


def test_no_track_to_validate_on(own, tmp_path):
    plan = Before(MaestModule, "training_step", 2, Spoil(own.mels / "validation", "gone"))
    command = f"{settings(own)} {BASE} datamodule.on_error=skip"
    text = training.start(tmp_path, command, plan).wait(1)
    assert "validation/00.mmap" in text
    assert "Traceback" not in text
    assert loads(newest(tmp_path) / LAST)["global_step"] == STEPS - 1


def test_a_loss_that_is_no_number(toy, tmp_path, unbroken):
    command, plan = f"{settings(toy)} {BASE}", Patch("loss", STEPS + 2)
    text = fails_and_goes_on(tmp_path, command, plan, unbroken, STEPS + 2)
    assert "epoch 2" in text  # counted from 1
    assert f"step {STEPS + 3}" in text
    for remedy in ("module.lr", "trainer.gradient_clip_val=1", "ckpt_path=exp_logs/1/"):
        assert remedy in text


@pytest.mark.parametrize("step", [STEPS + 2, STEPS - 1])
def test_weights_that_are_no_numbers_are_not_saved(toy, tmp_path, unbroken, step):
    """Though the loss before them was one."""
    command, plan = f"{settings(toy)} {BASE}", Patch("gradients", step)
    text = fails_and_goes_on(tmp_path, command, plan, unbroken, step)
    assert "module.lr" in text


def test_a_rate_that_is_far_too_high(toy, tmp_path):
    text = training.start(tmp_path, f"{settings(toy)} {BASE} module.lr=1e30").wait(1)
    assert "module.lr" in text
    assert "Traceback" not in text
    for path in newest(tmp_path).glob("checkpoints/*.ckpt"):
        loads(path)
