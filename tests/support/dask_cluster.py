"""A Dask cluster of this machine, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_SECONDS = 60


@contextmanager
def dask_cluster(folder: Path, *import_from: Path) -> Iterator[str]:
    """Start a scheduler and two workers in a folder; the address is given.

    They are processes of their own, which know nothing of this repository: a Dask worker stops to
    work in a process that holds more memory than its share, and that of the tests holds a lot.
    Where Dask itself gets nothing done, the test is skipped.

    Args:
        folder: their working folder.
        import_from: folders of modules that the workers can import.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if import_from:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, import_from))
    file = folder / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    with ExitStack() as running:
        for command in (
            ["scheduler", "--host", "127.0.0.1", "--port", "0", *common],
            ["worker", *common, "--nworkers", "2", "--nthreads", "1", "--memory-limit", "0"],
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command], cwd=folder, env=environment, **quiet
            )
            running.callback(_end, process)
            deadline = time.monotonic() + _SECONDS
            while not file.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        if not _works(address):
            pytest.skip(f"Dask itself gets nothing done on this machine in {_SECONDS} s")
        yield address


def _works(address: str) -> bool:
    """Whether a task with nothing of ours in it is done."""
    from distributed import Client

    try:
        with Client(address, timeout=_SECONDS, set_as_default=False) as client:
            return client.submit(sum, [1, 2]).result(timeout=_SECONDS) == 3
    except OSError:  # a TimeoutError is one
        return False


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)
