"""Work in parallel: processes, threads in order, a Dask cluster."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from dask_cluster import dask_cluster

from maest.helpers.errors import InputError
from maest.helpers.work import cluster, parallel
from maest.helpers.work.parallel import cores, in_order, one_torch_thread, run_parallel

ROOT = Path(__file__).resolve().parents[2]


def add(number: int, amount: int) -> int:
    return number + amount


def where(_: int) -> int:
    return os.getpid()


def die(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def lost(number: int, reason: str) -> str:
    return f"lost {number}"


QUIET = {"progress": False}


@pytest.mark.parametrize("num_workers", [None, 1, 2])
def test_each_item_has_a_result(num_workers):
    found = run_parallel(add, range(11), (100,), num_workers=num_workers, **QUIET)
    assert sorted(found) == [100 + i for i in range(11)]


def test_one_worker_is_this_process_and_two_are_not():
    assert list(run_parallel(where, [1, 2], num_workers=1, **QUIET)) == [os.getpid()] * 2
    assert os.getpid() not in set(run_parallel(where, [1, 2], num_workers=2, **QUIET))
    # Nor is it where there is one item, or one core: it may kill its process.
    assert os.getpid() not in set(run_parallel(where, [1], **QUIET))


def test_nothing_to_do_starts_nothing():
    assert list(run_parallel(die, [], num_workers=2)) == []


def test_one_torch_thread_and_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_cores_are_those_of_this_process():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    code += "from maest.helpers.work.parallel import cores; print(cores())"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "1", run.stderr
    assert cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("workers", [1, 3])
def test_results_of_threads_come_in_order(workers):
    assert list(in_order(lambda i: i * i, range(100), workers, None)) == [i * i for i in range(100)]
    assert list(in_order(abs, [], workers, "nothing")) == []


@pytest.mark.parametrize(("asked", "expected"), [(None, 3), (2, 2)])
def test_threads_are_as_many_as_the_cores_of_this_process(monkeypatch, asked, expected):
    """They meet at a barrier, which fewer would never pass."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    barrier, names = threading.Barrier(expected), set()

    def meet(_: int) -> None:
        barrier.wait(30)
        names.add(threading.current_thread().name)

    list(in_order(meet, range(expected * 4), asked, None))
    assert len(names) == expected


def test_threads_do_not_run_ahead_of_who_takes_their_results_and_end_with_it():
    begun = []
    results = in_order(begun.append, range(1000), 2, None)
    next(results)
    results.close()
    assert len(begun) <= 5
    assert not any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(PermissionError):
        list(in_order(refuse, range(100), 2, None))


def test_an_item_that_kills_its_worker_costs_its_own_result_only():
    found = run_parallel(die, range(9), failed=lost, **QUIET)
    assert sorted(found, key=str) == [0, 1, 2, 3, 4, 6, 7, 8, "lost 5"]
    with pytest.raises(InputError) as caught:
        list(run_parallel(die, range(9), num_workers=2, **QUIET))
    assert caught.value.kind == "worker"
    found = run_parallel(die, [5], failed=lost, num_workers=2, **QUIET)
    assert list(found) == ["lost 5"]


def refuse(number: int) -> int:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_the_work_reaches_the_caller(num_workers):
    with pytest.raises(PermissionError):
        list(run_parallel(refuse, [1, 2], num_workers=num_workers, failed=lost, **QUIET))


@pytest.mark.parametrize(
    ("how", "kind", "setting"),
    [
        ({"backend": "threads"}, "unknown", "--backend"),
        ({"backend": "dask"}, "missing", "--scheduler"),
        ({"num_workers": 0}, "invalid", "--num-workers"),
        ({"num_workers": -3}, "invalid", "--num-workers"),
        ({"scheduler": "tcp://127.0.0.1:8786"}, "conflict", "--scheduler"),
    ],
)
def test_backend_and_scheduler_are_checked(how, kind, setting):
    with pytest.raises(InputError) as caught:
        list(run_parallel(add, [1], (1,), **QUIET, **how))
    assert (caught.value.kind, caught.value.setting) == (kind, setting)


def on(scheduler: str) -> dict:
    return {"backend": "dask", "scheduler": scheduler, **QUIET}


def test_no_dask_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError) as caught:
        list(run_parallel(add, [1], (1,), **on("tcp://127.0.0.1:8786")))
    assert caught.value.kind == "dependency"
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "not an address"])
def test_no_scheduler_there(monkeypatch, address):
    from distributed import Client

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with pytest.raises(InputError) as caught:
        list(run_parallel(add, [1], (1,), **on(address)))
    assert (caught.value.kind, caught.value.setting) == ("missing", "--scheduler")
    assert address in str(caught.value)
    clients = [thing for thing in gc.get_objects() if issubclass(type(thing), Client)]
    assert {client.status for client in clients} <= {"closed"}, (
        "one that the garbage collector has to close may hang the next that starts"
    )


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with dask_cluster(tmp_path_factory.mktemp("dask"), ROOT / "tests") as address:
        yield address


def test_dask_gives_the_same_results(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "_WINDOW", 3)
    assert sorted(run_parallel(add, range(7), (1,), **on(scheduler))) == list(range(1, 8))


def fail(number: int) -> int:
    raise InputError("no room", kind="access", hint="Make room.")


def test_an_error_on_dask_reaches_the_caller(scheduler):
    with pytest.raises(InputError) as caught:
        list(run_parallel(fail, [1], **on(scheduler)))
    assert (caught.value.kind, caught.value.hint) == ("access", "Make room.")
    with pytest.raises(PermissionError):
        list(run_parallel(refuse, [1], **on(scheduler)))


def slow_where(number: int) -> int:
    time.sleep(0.05)
    return where(number)


@pytest.mark.slow
def test_workers_of_any_number_do_the_work_and_later_ones_join_in():
    from distributed import LocalCluster

    how = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**how) as small:
        results = run_parallel(slow_where, range(400), **on(small.scheduler_address))
        pids = {next(results) for _ in range(5)}
        assert len(pids) == 1
        assert os.getpid() not in pids
        small.scale(2)
        pids |= set(results)
        assert len(pids) == 2
        assert os.getpid() not in pids


@pytest.mark.slow
def test_what_kills_the_workers_of_a_cluster_is_found(monkeypatch):
    import dask
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 10)
    how = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    once = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with once, LocalCluster(**how) as small:
        how = on(small.scheduler_address)
        with pytest.raises(InputError) as caught:
            list(run_parallel(die, [4, 5, 6], **how))
        assert caught.value.kind == "worker"
        found = sorted(run_parallel(die, [4, 5, 6], failed=lost, **how), key=str)
        assert found == [4, 6, "lost 5"]


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
        results = run_parallel(slow_where, range(10_000), **on(address))
        next(results)
        scheduler.kill()
        with pytest.raises(InputError) as caught:
            list(results)
        assert (caught.value.kind, caught.value.setting) == ("network", "--scheduler")
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait(30)


def test_a_dask_cluster_without_workers(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    how = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp"}
    with LocalCluster(**how) as empty:
        with pytest.raises(InputError) as caught:
            list(run_parallel(add, [1], (1,), **on(empty.scheduler_address)))
        assert (caught.value.kind, caught.value.setting) == ("missing", "--scheduler")
