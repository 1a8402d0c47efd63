"""Two processes train as one does: typed as a user types it, and watched from outside."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from command_line import good, newest, read_history, refused  # isort: skip

from folders import read_json
from training_process import CLOCK, LAST

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.melspectrograms import write_mel
from maest.datasets.sampling import ClipSampler
from maest.experiments.pretrain import is_peer_failure
from maest.experiments.runs import is_first_process

ROOT = Path(__file__).resolve().parents[2]
TRACKS, CLIPS, VALIDATED = 60, 46, 11
LOOKED_AT = TRACKS + VALIDATED  # each file once, before the training
# 96 frames have as many columns as positions, so that training has nothing random but the draw.
# Two processes of 23 clips make 12 steps an epoch, the last of one clip each.
RECIPE = (
    f"datamodule.clip_length=1.536 datamodule.clips_per_epoch={CLIPS} datamodule.batch_size_eval=4 "
    "datamodule.balanced_sampling=True maest.norm_mean=1 maest.norm_std=1 maest.s_patchout_t=0 "
    "module.swa_start=0 trainer.max_epochs=3 trainer.check_val_every_n_epoch=2 "
    "trainer.accelerator=cpu"
)
TWO = "trainer.devices=2 datamodule.batch_size_train=2 datamodule.on_error=skip"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2"
# Python imports this first of all: which files a process opens, and a signal on the way.
WATCH = """
import os, signal, sys

out = os.open(f"{os.environ['WATCHED']}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
left = int(os.environ.get("STOP_AFTER", 0))

def watch(event, arguments):
    global left
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path, flags, rank = os.fsdecode(arguments[0]), arguments[2] or 0, os.environ.get("LOCAL_RANK")
    writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes or path.endswith(".mmap"):
        os.write(out, f"{rank} {'w' if writes else 'r'} {path}\\n".encode())
    if path.endswith(".mmap") and rank != "1":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

sys.addaudithook(watch)
"""


@dataclass
class Run:
    """A command line that was run in separate processes, all of which have ended."""

    out: str
    err: str
    folder: Path  # exp_logs/<id>
    reads: list[list[str]]  # of each rank, the .mmap files it has opened, in order
    writes: list[list[str]]  # of each rank, the files it has opened to write


@dataclass
class Place:
    """A data set with two broken files, and a folder to work in.

    Attributes:
        broken: the keys of a training and of a validation track that process 1 alone reads.
    """

    root: Path
    broken: tuple[str, str]

    @property
    def settings(self) -> str:
        return (
            f"datamodule.groundtruth_train={self.root}/train.pk datamodule.base_dir={self.root} "
            f"datamodule.groundtruth_val={self.root}/validation.pk {RECIPE}"
        )

    def run(self, arguments: str, code: int = 0, launcher: str = "", stop_after: int = 0) -> Run:
        """``python ex_maest.py with …``, after a launcher if there is one."""
        home, watch = self.root / "home", self.root / f"watch-{time.monotonic_ns()}"
        watch.mkdir()
        (watch / "sitecustomize.py").write_text(WATCH)
        ours = {"PYTHONPATH": str(watch), "WATCHED": str(watch), "STOP_AFTER": str(stop_after)}
        line = f"{launcher} {ROOT}/ex_maest.py with {self.settings} {arguments}"
        done = subprocess.run(
            [sys.executable, *line.split()],
            cwd=home,
            env=os.environ | ours | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == code, done.stderr[-3000:]
        assert launcher or "Traceback" not in done.stderr
        reads, writes = [[], []], [[], []]
        for file in watch.glob("[0-9]*"):
            with pytest.raises(ProcessLookupError):
                os.kill(int(file.name), 0)
            for line in file.read_text().splitlines():
                rank, kind, path = line.split(" ", 2)
                (reads if kind == "r" else writes)[rank == "1"].append(path)
        return Run(done.stdout, done.stderr, newest(home), reads, writes)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("two")
    (root / "home").mkdir()
    rng = np.random.default_rng(0)
    for split, tracks in (("train", TRACKS), ("validation", VALIDATED)):
        groundtruth = {}
        for i in range(tracks):
            labels = rng.random(4) < [0.6, 0.3, 0.2, 0.5]
            labels[i % 4] = True  # each has one at least
            mel = rng.random((int(rng.integers(96, 250)), 96), np.float32)
            groundtruth[f"{split}/{i:02d}.mmap"] = labels
            write_mel(root / f"{split}/{i:02d}.mmap", mel + np.repeat(labels, 24))
        write_groundtruth(root / f"{split}.pk", groundtruth)
    broken = (drawn(root, rank=1, world_size=2)[3], "validation/07.mmap")
    for key in broken:
        np.full((200, 96), np.nan, np.float16).tofile(root / key)
    return Place(root, broken)


def drawn(root: Path, **ranks: int) -> list[str]:
    """The clips of the first epoch, or a process's part of them."""
    train = read_groundtruth(root / "train.pk")
    return [train.keys[i] for i, _ in ClipSampler(train.targets, CLIPS, True, 0, **ranks)]


@pytest.fixture(scope="module")
def pair(place) -> Run:
    """Two processes, started by Lightning."""
    return place.run(TWO)


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory) -> Path:
    """The run folder of one process with the doubled batch."""
    home = tmp_path_factory.mktemp("alone")
    line = TWO.replace("devices=2", "devices=1").replace("train=2", "train=4")
    good("ex_maest.py", f"with {place.settings} {line}", home)
    return newest(home)


def last(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / LAST, weights_only=True)["state_dict"]


def history(folder: Path) -> list[dict[str, float]]:
    found = read_history(folder / "history.csv")
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in found]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same training, but for the order in which numbers were added.

    AdamW makes steps of one size of gradients of any, and so of those that are nothing but rounding
    too: single weights may differ by some of them, and nearly all must not.
    """
    assert list(found) == list(expected)
    difference = torch.cat([(found[k] - expected[k]).abs().flatten() for k in expected])
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-5


def test_weights_and_metrics_are_those_of_one_process(pair, alone):
    assert_close(last(pair.folder), last(alone))
    for name in ("model.safetensors", "model-swa.safetensors"):
        files = [folder / "model" / name for folder in (pair.folder, alone)]
        assert_close(*map(safetensors.torch.load_file, files))
    found, expected = history(pair.folder), history(alone)
    assert len(found) == 3
    for own, other in zip(found, expected, strict=True):
        assert own == pytest.approx(other, rel=1e-3, abs=1e-6)
    assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], 2e-5)
    assert {"val_loss", "val_ap", "val_swa_loss", "val_swa_ap"} <= expected[1].keys()


def test_metrics_of_uneven_data_are_those_of_one_process(pair, alone, place):
    """The first process validates the best epoch's weights again alone."""
    found = read_json(pair.folder / "results.json")
    assert found["best_epoch"] == 2  # of three
    assert found["val_tracks"] == VALIDATED - 1
    for name in ("val_ap", "val_roc_auc"):
        assert history(pair.folder)[1][name] == pytest.approx(found[name], abs=1e-6)
    # what was passed over by any process
    expected = read_json(alone / "results.json")["skipped"]
    assert set(found["skipped"]) == set(expected) == set(place.broken)
    assert pair.err.count(f"{place.root / place.broken[1]}: ") == 1  # logged once


def test_each_process_reads_a_part_of_one_draw(pair, place):
    """There is a new draw each epoch, and no clip of it is read twice."""
    draws, seen, size = [], [], CLIPS // 2
    for rank, reads in enumerate(pair.reads):
        own = [os.path.relpath(path, place.root) for path in reads]
        assert len(set(own[:LOOKED_AT])) == LOOKED_AT
        trained = [key for key in own[LOOKED_AT:] if key.startswith("train")]
        # a broken file is followed by what takes its place
        draw = [key for before, key in pairwise(["", *trained]) if before != place.broken[0]]
        assert rank == 0 or draw[3] == place.broken[0]
        draws.append(draw)
    for epoch in range(3):
        parts = [draw[epoch * size : (epoch + 1) * size] for draw in draws]
        together = [key for both in zip(*parts, strict=True) for key in both]
        assert len(set(together)) == CLIPS  # of 60, without replacement
        seen.append(together)
    assert seen[0] == drawn(place.root)
    assert seen[0] != seen[1] != seen[2]
    validated = {Path(path).name for path in pair.reads[1][LOOKED_AT:] if "/validation/" in path}
    assert validated == {f"{i:02d}.mmap" for i in (*range(1, VALIDATED, 2), 0)}  # 0 fills up


def test_the_first_process_alone_writes_and_speaks(pair, place):
    home = place.root / "home"
    assert pair.folder == home / "exp_logs/1"
    assert not list(home.glob("exp_logs/unobserved*"))
    assert [path for path in pair.writes[1] if "exp_logs" in path or str(home) in path] == []
    assert any(path.endswith(".ckpt") for path in pair.writes[0])
    models = {path.name for path in (pair.folder / "model").iterdir()}
    assert models == {
        *("config.json", "golden.json", "model-swa.safetensors", "model.safetensors"),
    }
    assert read_json(pair.folder / "run.json")["status"] == "COMPLETED"
    assert pair.err.count("Running command") == pair.out.count("epoch   1") == 1
    assert "Warning" not in pair.err


@pytest.mark.slow
def test_stopped_and_continued_under_torchrun(pair, place):
    """SIGTERM to the first process; what continues is bit for bit the unbroken run."""
    stopped = place.run(TWO, 143, stop_after=LOOKED_AT + 5)  # the third step of process 0
    assert stopped.err.count("To continue") == 1
    assert read_json(stopped.folder / "run.json")["status"] == "INTERRUPTED"
    continued = place.run(f"{TWO} ckpt_path=last", launcher=TORCHRUN)
    assert continued.folder.name == str(int(stopped.folder.name) + 1)  # one, of two processes
    assert history(continued.folder) == history(pair.folder)
    model = "model/model-swa.safetensors"
    for read in (last, lambda folder: safetensors.torch.load_file(folder / model)):
        found, expected = read(continued.folder), read(pair.folder)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_ends_all(place, rank):
    """It meets a broken file; the other waits for it in vain."""
    key = place.broken[0] if rank else drawn(place.root, rank=0, world_size=2)[0]
    whole = (place.root / key).read_bytes()
    np.full((200, 96), np.nan, np.float16).tofile(place.root / key)
    try:
        done = place.run(TWO.replace("=skip", "=raise"), 1)
    finally:
        (place.root / key).write_bytes(whole)
    assert f"{place.root / key}: " in done.err


@pytest.mark.parametrize(
    "environment",
    [{"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "4"}],
)
def test_another_number_of_processes_than_is_set(place, tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = f"with {place.settings} datamodule.on_error=skip"
    refused("ex_maest.py", line, tmp_path, "conflict", "trainer.devices")


def test_accumulated_batches_are_one(place, tmp_path):
    line = f"with {place.settings} datamodule.clips_per_epoch=24 trainer.max_epochs=1"
    line += " datamodule.on_error=skip"
    good("ex_maest.py", f"{line} datamodule.batch_size_train=4", tmp_path)
    half = "datamodule.batch_size_train=2 trainer.accumulate_grad_batches=2"
    good("ex_maest.py", f"{line} {half}", tmp_path)
    whole, accumulated = (tmp_path / "exp_logs" / name for name in "12")
    assert [read_json(f / "results.json")["steps"] for f in (whole, accumulated)] == [6, 6]
    assert_close(last(accumulated), last(whole))
    assert history(accumulated)[0] == pytest.approx(history(whole)[0], rel=1e-4)


ENVIRONMENTS = [
    ({}, True),
    # of torchrun
    ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, True),
    ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, False),
    ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "GROUP_RANK": "1"}, False),
    # of srun
    ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
    ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False),
    ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, False),
    # Lightning's own launcher: its children, and another machine's first process
    ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
    ({"NODE_RANK": "0"}, True),
    ({"NODE_RANK": "1"}, False),
    ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, False),
]


@pytest.mark.parametrize(("environment", "first"), ENVIRONMENTS)
def test_the_first_process(monkeypatch, environment, first):
    for name in {name for other, _ in ENVIRONMENTS for name in other}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_errors_that_only_say_that_another_process_has_gone():
    assert is_peer_failure(RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:2"))
    assert is_peer_failure(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    assert not is_peer_failure(RuntimeError("CUDA out of memory"))
