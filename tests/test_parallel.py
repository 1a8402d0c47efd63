"""Work in parallel: order, batches, workers that die, a Dask cluster."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch
from dask_cluster import dask_cluster

from helpers import parallel
from helpers.parallel import ParallelError, cores, in_order, one_torch_thread, run_parallel

ROOT = Path(__file__).resolve().parents[1]


def add(numbers: list[int], amount: int) -> list[int]:
    return [number + amount for number in numbers]


def where(numbers: list[int]) -> list[int]:
    return [os.getpid() for _ in numbers]


def threads(numbers: list[int]) -> list[int]:
    with one_torch_thread():
        return [torch.get_num_threads() for _ in numbers]


def die(numbers: list[int]) -> list[int]:
    if 5 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return numbers


def interrupted(numbers: list[int]) -> list[int]:
    os.kill(os.getpid(), signal.SIGINT)
    return numbers


@pytest.mark.parametrize("num_workers", [1, 2])
def test_ordered_results_are_in_the_order_of_the_items(num_workers):
    how = {"batch_size": 3, "num_workers": num_workers, "progress": False, "ordered": True}
    found = list(run_parallel(add, list(range(11)), (100,), **how))
    assert [len(batch) for batch in found] == [3, 3, 3, 2]
    assert [x for batch in found for x in batch] == [100 + i for i in range(11)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_unordered_batches_are_interleaved_and_complete(num_workers):
    how = {"batch_size": 3, "num_workers": num_workers, "progress": False}
    found = sorted(run_parallel(add, list(range(11)), (0,), **how))
    assert found == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]


def test_one_worker_is_this_process_and_two_are_not():
    how = {"progress": False}
    assert list(run_parallel(where, [1, 2], num_workers=1, **how)) == [[os.getpid()]] * 2
    others = {pid for batch in run_parallel(where, [1, 2], num_workers=2, **how) for pid in batch}
    assert os.getpid() not in others


def test_processes_leave_ctrl_c_to_the_main_process():
    found = run_parallel(interrupted, [1, 2, 3, 4], num_workers=2, progress=False)
    assert sorted(found) == [[1], [2], [3], [4]]


def test_nothing_to_do_starts_nothing():
    assert list(run_parallel(die, [], num_workers=2)) == []


def test_one_torch_thread_and_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert threads([0]) == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_cores_are_those_of_this_process():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    code += "from helpers.parallel import cores; print(cores())"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "1", run.stderr
    assert cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("workers", [1, 3])
def test_results_of_threads_come_in_order(workers):
    assert list(in_order(lambda i: i * i, range(100), workers, None)) == [i * i for i in range(100)]
    assert list(in_order(abs, [], workers, "nothing")) == []


def test_threads_are_as_many_as_the_cores_of_this_process(monkeypatch):
    asked = []
    real = joblib.Parallel
    monkeypatch.setattr(joblib, "Parallel", lambda **own: asked.append(own) or real(**own))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    assert list(in_order(abs, [-1, -2], None, None)) == [1, 2]
    assert asked[0]["n_jobs"] == 3


def test_a_worker_that_is_killed_is_told_about():
    with pytest.raises(ParallelError, match=r"killed.*fewer --num-workers"):
        list(run_parallel(die, list(range(8)), num_workers=2, progress=False))
    again = run_parallel(add, [1, 2], (1,), num_workers=2, progress=False)
    assert sorted(again) == [[2], [3]]


def lost(number: int) -> str:
    return f"lost {number}"


@pytest.mark.parametrize(
    ("num_workers", "ordered"),
    [
        *((2, True), (None, False)),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(None, True, marks=pytest.mark.slow),
    ],
)
def test_what_kills_its_worker_is_found_and_the_others_are_done(num_workers, ordered):
    how = {"num_workers": num_workers, "ordered": ordered, "progress": False, "crashed": lost}
    found = list(run_parallel(die, list(range(9)), batch_size=2, **how))
    results = [x for batch in found for x in batch]
    expected = [0, 1, 2, 3, 4, "lost 5", 6, 7, 8]
    assert results == expected if ordered else sorted(results, key=str) == sorted(expected, key=str)
    # The last item to be done, too, is not done in this process.
    assert list(run_parallel(die, [5], num_workers=None, progress=False, crashed=lost)) == [
        ["lost 5"]
    ]


def refuse(numbers: list[int]) -> list[int]:
    raise PermissionError(13, "Permission denied")


def test_an_error_of_the_work_reaches_the_caller():
    with pytest.raises(PermissionError):
        list(run_parallel(refuse, [1, 2], num_workers=2, progress=False, crashed=lost))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"backend": "threads"}, "'threads': expected one of loky, dask"),
        ({"backend": "dask"}, "--scheduler"),
        ({"num_workers": 0}, "--num-workers is 0: expected 1 or more"),
        ({"num_workers": -3}, "--num-workers is -3"),
        ({"scheduler": "tcp://127.0.0.1:8786"}, "--backend dask only"),
    ],
)
def test_backend_and_scheduler_are_checked(how, message):
    with pytest.raises(ParallelError, match=message):
        list(run_parallel(add, [1], (1,), progress=False, **how))


def test_no_dask_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    how = {"backend": "dask", "scheduler": "tcp://127.0.0.1:8786", "progress": False}
    with pytest.raises(ParallelError, match="pip install"):
        list(run_parallel(add, [1], (1,), **how))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "not an address"])
def test_no_scheduler_there(monkeypatch, address):
    from distributed import Client

    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 1)
    with pytest.raises(ParallelError, match="no Dask scheduler answers"):
        list(run_parallel(add, [1], (1,), backend="dask", scheduler=address, progress=False))
    clients = [thing for thing in gc.get_objects() if issubclass(type(thing), Client)]
    assert {client.status for client in clients} <= {"closed"}, (
        "one that the garbage collector has to close may hang the next that starts"
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with dask_cluster(tmp_path_factory.mktemp("dask"), ROOT / "tests") as address:
        yield address


@pytest.mark.parametrize("ordered", [True, False])
def test_dask_gives_the_same_batches(cluster, ordered):
    how = {"batch_size": 2, "ordered": ordered, "progress": False}
    expected = list(run_parallel(add, list(range(7)), (1,), num_workers=1, **how))
    found = list(run_parallel(add, list(range(7)), (1,), backend="dask", scheduler=cluster, **how))
    assert found == expected if ordered else sorted(found) == sorted(expected)


def fail(numbers: list[int]) -> list[int]:
    raise ParallelError("no room")


def test_an_error_on_dask_reaches_the_caller(cluster):
    with pytest.raises(ParallelError, match="no room"):
        list(run_parallel(fail, [1], backend="dask", scheduler=cluster, progress=False))
    with pytest.raises(PermissionError):
        list(run_parallel(refuse, [1], backend="dask", scheduler=cluster, progress=False))


def slow_where(numbers: list[int]) -> list[int]:
    time.sleep(0.05)
    return where(numbers)


@pytest.mark.slow
def test_workers_of_any_number_do_the_work_and_later_ones_join_in():
    from distributed import LocalCluster

    how = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**how) as small:
        how = {"backend": "dask", "scheduler": small.scheduler_address, "progress": False}
        results = run_parallel(slow_where, list(range(400)), **how)
        pids = {next(results)[0] for _ in range(5)}
        assert len(pids) == 1
        assert os.getpid() not in pids
        small.scale(2)
        pids |= {pid for batch in results for pid in batch}
        assert len(pids) == 2
        assert os.getpid() not in pids


@pytest.mark.slow
def test_what_kills_the_workers_of_a_cluster_is_found(monkeypatch):
    import dask
    from distributed import LocalCluster

    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 10)
    how = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    once = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with once, LocalCluster(**how) as small:
        how = {"backend": "dask", "scheduler": small.scheduler_address, "progress": False}
        with pytest.raises(ParallelError, match=r"workers .* were killed"):
            list(run_parallel(die, [4, 5, 6], **how))
        found = sorted(run_parallel(die, [4, 5, 6], crashed=lost, **how), key=str)
        assert found == [["lost 5"], [4], [6]]


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_told_about(tmp_path):
    address_file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    quiet["env"] = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    file = ["--scheduler-file", str(address_file)]
    scheduler = subprocess.Popen([*command, "--no-dashboard", *file], **quiet)
    while not address_file.exists():
        assert scheduler.poll() is None
        time.sleep(0.1)
    worker = subprocess.Popen([sys.executable, "-m", "dask", "worker", *file], **quiet)
    try:
        address = json.loads(address_file.read_text())["address"]
        how = {"backend": "dask", "scheduler": address, "progress": False}
        results = run_parallel(slow_where, list(range(10_000)), **how)
        next(results)
        scheduler.kill()
        with pytest.raises(ParallelError, match=r"does not answer any more.*run the same again"):
            list(results)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait(30)


def test_a_dask_cluster_without_workers(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 1)
    how = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp"}
    with LocalCluster(**how) as empty:
        how = {"backend": "dask", "scheduler": empty.scheduler_address, "progress": False}
        with pytest.raises(ParallelError, match="no workers"):
            list(run_parallel(add, [1], (1,), **how))
