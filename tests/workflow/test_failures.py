"""What may go wrong in a training is named, and the last checkpoint stays usable."""

import resource
import shutil
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import newest, settings  # isort: skip (first: it quiets warnings)

import training_process as training
from folders import read_json
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
            if self.how == "missing":
                path.unlink()
            elif self.how == "truncated":
                path.write_bytes(path.read_bytes()[:-1])
            else:
                path.write_bytes(np.full((250, 96), np.nan, np.float16).tobytes())


def full_disk() -> None:
    """For the rest of the process, whose files may not grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))


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


def fails(home: Path, command: str, *plan) -> str:
    """The message of a run that ends with one line, not with a traceback."""
    text = training.start(home, command, *plan).wait(1)
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("plan", "steps", "named"),
    [
        (Before(MaestModule, "training_step", STEPS + 2, full_disk), STEPS + 2, LAST),
        (Patch("loss", STEPS + 2), STEPS + 2, f"step {STEPS + 3}"),
        # Weights that are not finite are not saved, though the loss before them was.
        (Patch("gradients", STEPS + 2), STEPS + 2, "module.lr"),
        (Patch("gradients", STEPS - 1), STEPS - 1, "module.lr"),
    ],
    ids=["full disk", "loss", "gradients", "gradients in the first epoch"],
)
def test_a_training_that_fails_goes_on_as_if_it_never_had(
    toy, tmp_path, unbroken, plan, steps, named
):
    command = f"{settings(toy)} {BASE}"
    assert named in fails(tmp_path, command, plan)
    assert loads(newest(tmp_path) / LAST)["global_step"] == steps
    assert not list((newest(tmp_path) / "checkpoints").glob(".tmp*"))
    training.start(tmp_path, f"{command} ckpt_path=last").wait()
    assert_same(outcome(tmp_path), unbroken)


@pytest.mark.parametrize(
    ("how", "workers"), [("missing", 0), ("truncated", 0), ("truncated", 2), ("nan", 0)]
)
def test_files_that_go_bad_in_the_middle_of_an_epoch(toy, own, tmp_path, unbroken, how, workers):
    command = f"{settings(own)} {BASE} datamodule.num_workers={workers}"
    plan = Before(MaestModule, "training_step", STEPS + 1, Spoil(own.mels / "train", how))
    assert f"{own.mels}/train/" in fails(tmp_path, command, plan)
    read_ahead = 1 + 2 * workers
    assert loads(newest(tmp_path) / LAST)["global_step"] - STEPS in range(1, 3 + read_ahead)
    shutil.copytree(toy.mels, own.mels, dirs_exist_ok=True)  # put back
    training.start(tmp_path, f"{command} ckpt_path=last").wait()
    assert_same(outcome(tmp_path), unbroken)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_and_counted(own, tmp_path, workers):
    command = f"{settings(own)} {BASE} datamodule.on_error=skip datamodule.num_workers={workers}"
    plans = [
        Before(MaestModule, "training_step", 2, Spoil(own.mels / split, "truncated", good))
        for split, good in (("train", 30), ("validation", 11))
    ]
    training.start(tmp_path, command, *plans).wait()
    results = read_json(newest(tmp_path) / "results.json")
    of_train = {f"train/{i}.mmap" for i in range(30, 36)}
    assert of_train & results["skipped"].keys()
    assert results["skipped"].keys() - of_train == {"validation/11.mmap"}
    assert results["val_tracks"] == 11


def test_no_track_to_validate_on(own, tmp_path):
    plan = Before(MaestModule, "training_step", 2, Spoil(own.mels / "validation", "missing"))
    text = fails(tmp_path, f"{settings(own)} {BASE} datamodule.on_error=skip", plan)
    assert "validation/00.mmap" in text
    assert loads(newest(tmp_path) / LAST)["global_step"] == STEPS - 1
