"""Runs `python ex_maest.py …` in separate processes, which may be killed.

They are forks of a process that has imported everything: they begin at once. Their network is
smaller than any that is offered.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch

from command_line import newest, read_history  # isort: skip

from folders import read_json

import ex_maest
from maest.experiments.runs import run_command_line
from maest.helpers.training.checkpoints import Checkpoints
from maest.models.archs import ARCHS, Arch

SCRIPT = "ex_maest.py"
LAST = "checkpoints/last.ckpt"
#: Columns of the history that a clock decides.
CLOCK = ("seconds", "clips_per_second", "mfu")
_FORKS = multiprocessing.get_context("forkserver")


@dataclass
class Training:
    """A command line that runs in a separate process."""

    process: Any
    output: Path
    begun: Any  # an event: the first batch is next

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def wait(self, expected: int = 0) -> str:
        """Wait for the end, with this exit code (-9: killed); returns what was printed."""
        self.process.join(120)
        code = self.process.exitcode
        assert code == expected, f"exit code {code}, not {expected}:\n{self.text[-4000:]}"
        return self.text

    def wait_until_it_trains(self) -> float:
        """Returns the time."""
        while not self.begun.wait(0.01):
            assert self.process.is_alive(), self.text[-4000:]
        return time.monotonic()


def start(home: Path, arguments: str | list[str], *prepare: Callable[[], None]) -> Training:
    """Start `python ex_maest.py with <arguments>` in ``home``.

    ``prepare``: called in the new process, before the command.
    """
    _begin_to_serve()
    if isinstance(arguments, str):
        arguments = ["with", *arguments.split()]
    begun, output = _FORKS.Event(), home / f"output-{time.monotonic_ns()}.txt"
    process = _FORKS.Process(target=_run, args=(arguments, str(home), str(output), begun, prepare))
    process.start()
    return Training(process, output, begun)


def _begin_to_serve() -> None:
    _FORKS.set_forkserver_preload(["pytest", "training_process"])
    folder = Path(__file__).resolve().parent
    paths = [str(folder), str(folder.parents[1]), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, ours):
        forkserver.ensure_running()


def _run(arguments: list[str], home: str, output: str, begun: Any, prepare: tuple) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of workers, as it would be otherwise
    os.chdir(home)
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    sys.argv = [SCRIPT, *arguments]
    torch.set_num_threads(1)
    ARCHS["maest_toy"] = Arch(embed_dim=64, num_heads=1, depth=2)
    original = Checkpoints.on_train_start

    def on_train_start(*args: Any) -> None:
        original(*args)
        begun.set()

    Checkpoints.on_train_start = on_train_start
    for call in prepare:
        call()
    try:
        code = run_command_line(ex_maest.ex, sys.argv)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


# ---------------------------------------------------------------- what may go wrong in it


@dataclass
class Before:
    """Does something before the n-th call, counted from 0, of a class's or module's function."""

    owner: type | str
    method: str
    n: int
    action: Callable[[], None]

    def __call__(self) -> None:
        owner = sys.modules[self.owner] if isinstance(self.owner, str) else self.owner
        original, calls = getattr(owner, self.method), 0

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.n + 1:
                self.action()
            return original(*args, **kwargs)

        setattr(owner, self.method, wrapped)


@dataclass
class Signal:
    """Sends the process, or all of its group, one or more signals."""

    numbers: tuple[int, ...]
    group: bool = False

    def __call__(self) -> None:
        for number in self.numbers:
            os.kill(0 if self.group else os.getpid(), number)


@dataclass
class KilledWhileSaving:
    """SIGKILL at the n-th saved checkpoint: in its "middle", or "before" or "after" the rename.

    ``part``: how much of the file is there then, from 0 to 1.
    """

    n: int
    where: str
    part: float

    def __call__(self) -> None:
        save, replace, calls = torch.save, os.replace, 0

        def half_save(value: Any, path: Path) -> None:
            nonlocal calls
            save(value, path)
            calls += 1
            if calls == self.n + 1 and self.where == "middle":
                os.truncate(path, int(self.part * path.stat().st_size))
                os.kill(os.getpid(), signal.SIGKILL)

        def other_replace(source: Any, target: Any) -> None:
            ours = calls == self.n + 1 and str(target).endswith(".ckpt")
            if ours and self.where == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if ours:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save, os.replace = half_save, other_replace


# ---------------------------------------------------------------- what comes of it


def outcome(home: Path) -> dict[str, Any]:
    """All that a finished training leaves, but what a clock decides."""
    folder = newest(home)
    results = read_json(folder / "results.json")
    history = read_history(folder / "history.csv")
    last = torch.load(folder / LAST, weights_only=True)
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    models = sorted((folder / "model").glob("*.safetensors"))
    return {
        "history": [{k: v for k, v in row.items() if k not in CLOCK} for row in history],
        "results": {k: v for k, v in results.items() if k not in ("seconds", "epochs")},
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "models": {path.name: safetensors.torch.load_file(path) for path in models},
        "last": {name: last[name] for name in kept},
    }


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert_same(dict(enumerate(found)), dict(enumerate(expected)), where)
    elif isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        assert found.numpy().tobytes() == expected.numpy().tobytes(), where
    else:
        assert found == expected or (found != found and expected != expected), where


def loads(path: Path) -> dict[str, Any]:
    """A checkpoint, all of whose weights are finite numbers."""
    content = torch.load(path, weights_only=True)
    for name, value in content["state_dict"].items():
        assert np.isfinite(value.numpy()).all(), name
    return content
