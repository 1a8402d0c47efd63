"""Processes that share the tracks of an extraction: each takes every n-th track.

``trainer.devices`` starts them on one machine, torchrun and srun on many. They do not communicate:
each writes its counts to a file in the folder of results, and the first process joins them.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import TEMPORARY, atomic_path
from maest.helpers.work.signals import end_with_parent

_OLD = 600.0  # seconds: a part written this long before this process began is another run's
_JOB = "MAEST_JOB"  # environment variable with the job of the process that started this one
_JOB_NAMES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    "MASTER_PORT",
)
# Variables of rank, world and local rank, the launcher's name, and its options
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "torchrun", "--nproc-per-node and --nnodes")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "srun",
         "--ntasks-per-node and --nodes")  # fmt: skip


class Ranks:
    """This process among those of a run, as set by torchrun, srun or the first process.

    ``rank`` counts to ``world``, ``local_rank`` to ``here`` on this machine; it selects the GPU.
    """

    def __init__(self, devices: int, num_nodes: int) -> None:
        check_processes(devices, num_nodes)
        environment, launcher = os.environ, _launcher()
        self.here, self.local_rank = devices, 0
        # Common to the processes of this run, and to no others
        job = "-".join(environment[name] for name in _JOB_NAMES if name in environment)
        if launcher is not None:
            self.rank, self.world, self.local_rank = (int(environment[n]) for n in launcher[:3])
        else:
            if _JOB in environment:  # else LOCAL_RANK may come from anything
                job, self.local_rank = environment[_JOB], int(environment["LOCAL_RANK"])
                end_with_parent()
            elif num_nodes == 1:
                job = f"{os.getpid()}-{time.time_ns()}"
            node = int(environment.get("NODE_RANK", 0)) if num_nodes > 1 else 0
            self.rank, self.world = node * devices + self.local_rank, devices * num_nodes
        self._job, self._began = re.sub(r"\W", "_", job), time.time()
        self._children: list[subprocess.Popen[bytes]] = []

    def start_others(self) -> None:
        """Start the same command for each other device of this machine."""
        command = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
        if _JOB not in os.environ and _launcher() is None:
            for local in range(1, self.here):
                environment = os.environ | {_JOB: self._job, "LOCAL_RANK": str(local)}
                self._children.append(subprocess.Popen(command, env=environment))

    def join(self, folder: Path, part: dict[str, Any]) -> list[dict[str, Any]]:
        """Return all parts to the first process once done, [] to others. InputError: one failed."""
        if self.rank:
            self._leave(folder, part)
            return []
        parts, children = [part], dict(enumerate(self._children, 1))
        for rank in range(1, self.world):
            path = self._path(folder, rank)
            while not (path.is_file() and path.stat().st_mtime > self._began - _OLD):
                code = children[rank].poll() if rank in children else None
                if code is not None and not path.is_file():
                    raise self._lost(rank, f"exit code {code}")
                time.sleep(0.1)
            parts.append(json.loads(path.read_text("utf-8")))
            path.unlink()
            if "error" in parts[-1]:
                raise self._lost(rank, parts[-1]["error"])
        for child in self._children:
            child.wait()
        return parts

    def give_up(self, folder: Path, error: BaseException) -> None:
        """Report this process's failure to the first process, or as the first end the others."""
        if self.rank:
            with suppress(OSError):
                self._leave(folder, {"error": str(error)})
        for child in self._children:
            child.terminate()
        end_processes(self._children)

    def _path(self, folder: Path, rank: int) -> Path:
        return folder / f"{TEMPORARY}part-{self._job}-{rank}-of-{self.world}.json"

    def _leave(self, folder: Path, part: dict[str, Any]) -> None:
        with atomic_path(self._path(folder, self.rank)) as temporary:
            temporary.write_text(json.dumps(part), "utf-8")  # escapes names that are not text

    def _lost(self, rank: int, why: str) -> InputError:
        message = f"process {rank} of {self.world} (counted from 0) has failed: {why}"
        hint, setting = "Run the same again: what is done is kept.", "trainer.devices"
        return InputError(message, kind="worker", hint=hint, setting=setting)


def end_processes(processes: Sequence[subprocess.Popen[Any]], patience: float = 10.0) -> None:
    """Wait for processes to end; kill them after ``patience`` seconds."""
    until = time.monotonic() + patience
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()  # nothing happens to one that has ended
        process.wait()


def check_processes(devices: int, num_nodes: int) -> None:
    """Raise InputError if torchrun or srun has started another number of processes."""
    _, size, _, who, options = _launcher() or ("",) * 5
    started = int(os.environ.get(size, devices * num_nodes))
    if started != devices * num_nodes:
        message = f"{who} has started {started} processes, and {devices} times trainer.num_nodes="
        message += f"{num_nodes} is {devices * num_nodes}"
        hint = f"Set both to what {options} say."
        raise InputError(message, kind="conflict", setting="trainer.devices", hint=hint)


def _launcher() -> tuple[str, str, str, str, str] | None:
    """Return the variables of torchrun or srun, if one has started this process."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _TORCHRUN
    return _SRUN if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" else None
