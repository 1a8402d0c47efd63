"""A Dask cluster of this machine, for tests."""

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
    """Start a scheduler (its id is in scheduler.pid) and two workers; yield the address.

    They know nothing of this repository but the folders ``import_from``. Processes of their own: a
    Dask worker pauses in one that holds as much memory as that of the tests. Where Dask itself gets
    nothing done, the test is skipped.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, import_from))
    file, pid = folder / "scheduler.json", folder / "scheduler.pid"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    with ExitStack() as running:
        for command in (
            ["scheduler", "--host", "127.0.0.1", "--port", "0", "--pid-file", str(pid), *common],
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
