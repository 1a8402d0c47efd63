"""Several processes that share the tracks of an extraction: each does every n-th one.

``trainer.devices`` starts them on this machine; torchrun and srun on many. They do not talk to one
another: each leaves its lists as a file in the folder of results, and the first one joins them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError
from maest.helpers.files import TEMPORARY, atomic_path
from maest.helpers.signals import end_with_parent

_PATIENCE = 10.0  # seconds that processes have to end
_OLD = 600.0  # seconds: a part that was written so long before this process began is another run's
_JOB = "MAEST_JOB"  # the environment variable by which a process knows the one that started it
_JOB_NAMES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    "MASTER_PORT",
)


@dataclass
class Ranks:
    """This process among those of a run.

    Attributes:
        rank, world: its number, from 0, and how many there are.
        local_rank: its number on this machine, and so its GPU's.
        here: how many processes this machine has.
        job: what the processes of one run have in common, and no other's.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    here: int = 1
    job: str = ""
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _began: float = field(default_factory=time.time)

    def start_others(self) -> None:
        """Start the same command once more for each other device of this machine."""
        command = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
        if _JOB not in os.environ and _launcher() is None:
            for local in range(1, self.here):
                environment = os.environ | {_JOB: self.job, "LOCAL_RANK": str(local)}
                self._children.append(subprocess.Popen(command, env=environment))

    def join(self, folder: Path, part: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts of all processes, for the first one, once they are done; others: none."""
        if self.rank:
            self._leave(folder, part)
            return []
        parts = [part]
        for rank in range(1, self.world):
            path = self._path(folder, rank)
            while not self._is_there(path):
                self._check_children(folder)
                time.sleep(0.1)
            parts.append(json.loads(path.read_text("utf-8")))
            path.unlink()
            if "error" in parts[-1]:
                raise _lost(rank, self.world, parts[-1]["error"])
        for child in self._children:
            child.wait()
        return parts

    def give_up(self, folder: Path, error: BaseException) -> None:
        """Tell the first process that this one has failed; if it is the first, end the others."""
        if self.rank:
            with suppress(OSError):
                self._leave(folder, {"error": str(error)})
        until = time.monotonic() + _PATIENCE
        for child in self._children:
            child.terminate()
        for child in self._children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _leave(self, folder: Path, part: dict[str, Any]) -> None:
        with atomic_path(self._path(folder, self.rank)) as temporary:
            temporary.write_text(json.dumps(part), "utf-8")  # names that are no text are escaped

    def _path(self, folder: Path, rank: int) -> Path:
        return folder / f"{TEMPORARY}part-{self.job}-{rank}-of-{self.world}.json"

    def _is_there(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_mtime > self._began - _OLD

    def _check_children(self, folder: Path) -> None:
        for local, child in enumerate(self._children, 1):
            if child.poll() is not None and not self._path(folder, self.rank + local).is_file():
                raise _lost(local, self.world, f"exit code {child.returncode}")


def _lost(rank: int, world: int, why: str) -> InputError:
    return InputError(
        f"process {rank} of {world} (counted from 0) has failed: {why}",
        kind="worker",
        hint="Run the same again: what is done is kept.",
        setting="trainer.devices",
    )


def find_ranks(devices: int, num_nodes: int) -> Ranks:
    """This process's place, by the environment that torchrun, srun or another process of ours made.

    ``devices`` are those of each machine. InputError: as :func:`check_processes`.
    """
    check_processes(devices, num_nodes)
    given, launcher = os.environ, _launcher()
    job = given.get(_JOB) or "-".join(given[name] for name in _JOB_NAMES if name in given)
    if launcher is not None:
        rank, world, local = (int(given[name]) for name in launcher)
    else:
        local = 0
        if _JOB in given:  # else LOCAL_RANK may be left over from anything
            local = int(given["LOCAL_RANK"])
            end_with_parent()
        elif num_nodes == 1:
            job = uuid.uuid4().hex
        node = int(given.get("NODE_RANK", 0)) if num_nodes > 1 else 0
        rank, world = node * devices + local, devices * num_nodes
    return Ranks(rank, world, local, devices, re.sub(r"\W", "_", job))


def check_processes(devices: int, num_nodes: int) -> None:
    """Raise InputError if torchrun or srun has started another number of processes than is set."""
    who, options, launcher = "srun", "--ntasks-per-node and --nodes", _launcher()
    if launcher == _TORCHRUN:
        who, options = "torchrun", "--nproc-per-node and --nnodes"
    started = 0 if launcher is None else int(os.environ[launcher[1]])
    if started and started != devices * num_nodes:
        raise InputError(
            f"{who} has started {started} processes, and {devices} times trainer.num_nodes="
            f"{num_nodes} is {devices * num_nodes}",
            kind="conflict",
            setting="trainer.devices",
            hint=f"Set both to what {options} say.",
        )


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def _launcher() -> tuple[str, str, str] | None:
    """The variables in which torchrun or srun says rank, world and local rank, if it began this."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _TORCHRUN
    return _SRUN if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" else None
