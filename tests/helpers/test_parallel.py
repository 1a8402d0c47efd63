"""Work in parallel: processes, threads in order, a Dask cluster."""

import gc
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from dask_cluster import dask_cluster
from made_up import refuses
from test_processes import die, lost, refuse, square

from maest.helpers.work import cluster, parallel
from maest.helpers.work.parallel import cores, one_torch_thread, run_parallel, thread_map

TESTS = Path(__file__).resolve().parents[1]
IMPORT_FROM = [TESTS / "helpers", TESTS / "support"]  # what is here, on a cluster's workers
QUIET = {"progress": False}


def pid(_: int) -> int:
    return os.getpid()


def add(number: int, amount: int) -> int:
    if number == 5 and amount < 0:
        die()
    return number + amount


@pytest.mark.parametrize("num_workers", [None, 1, 2])
def test_each_item_has_a_result(num_workers):
    found = run_parallel(partial(add, amount=100), range(11), num_workers=num_workers, **QUIET)
    assert sorted(found) == [100 + i for i in range(11)]
    assert list(run_parallel(pid, [], num_workers=num_workers)) == []


def test_one_worker_is_this_process_and_two_are_not():
    assert list(run_parallel(pid, [1, 2], num_workers=1, **QUIET)) == [os.getpid()] * 2
    # Also for one item, or on one core: an item may kill its process.
    for items in ([1], range(20)):
        assert os.getpid() not in set(run_parallel(pid, items, **QUIET))


def test_one_torch_thread_and_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_cores_are_those_of_this_process(monkeypatch):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7})
    assert cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert cores() == os.cpu_count()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_of_threads_come_in_order(workers):
    assert list(thread_map(square, range(100), workers, None)) == [i * i for i in range(100)]
    assert list(thread_map(abs, [], workers, "nothing")) == []


@pytest.mark.parametrize(("asked", "expected"), [(None, 3), (2, 2)])
def test_threads_are_as_many_as_the_cores_of_this_process(monkeypatch, asked, expected):
    """They meet at a barrier, which fewer would never pass."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    barrier, names = threading.Barrier(expected), set()

    def meet(_: int) -> None:
        barrier.wait(30)
        names.add(threading.current_thread().name)

    list(thread_map(meet, range(expected * 4), asked, None))
    assert len(names) == expected


def test_threads_do_not_run_ahead_of_who_takes_their_results_and_end_with_it():
    begun = []
    results = thread_map(begun.append, range(1000), 2, None)
    next(results)
    results.close()
    assert len(begun) <= 5
    assert not any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(PermissionError):
        list(thread_map(refuse, ["system"] * 100, 2, None))


@pytest.mark.parametrize(
    ("how", "kind", "setting"),
    [
        ({"backend": "threads"}, "conflict", "--scheduler"),
        ({"backend": "dask"}, "missing", "--scheduler"),
        ({"num_workers": 0}, "invalid", "--num-workers"),
        ({"num_workers": -3}, "invalid", "--num-workers"),
        ({"scheduler": "tcp://127.0.0.1:8786"}, "conflict", "--scheduler"),
    ],
)
def test_backend_and_scheduler_are_checked(how, kind, setting):
    with refuses(kind, setting=setting):
        list(run_parallel(partial(add, amount=1), [1], **QUIET, **how))


def on(scheduler: str) -> dict:
    return {"backend": "dask", "scheduler": scheduler, **QUIET}


def test_no_dask_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with refuses("dependency", setting="--backend") as caught:
        list(run_parallel(partial(add, amount=1), [1], **on("tcp://127.0.0.1:8786")))
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "not an address", None])
def test_no_scheduler_and_one_without_workers(monkeypatch, address):
    from distributed import Client, LocalCluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    how = {"n_workers": 0, "processes": False, "dashboard_address": None, "protocol": "tcp"}
    with LocalCluster(**how) as empty:
        address = address or empty.scheduler_address
        with refuses("missing", setting="--scheduler") as caught:
            list(run_parallel(partial(add, amount=1), [1], **on(address)))
    assert address in str(caught.value)
    clients = [thing for thing in gc.get_objects() if issubclass(type(thing), Client)]
    assert {client.status for client in clients} <= {"closed"}, (
        "one that the garbage collector has to close may hang the next that starts"
    )


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    with dask_cluster(tmp_path_factory.mktemp("dask"), *IMPORT_FROM) as address:
        yield address


def test_dask_gives_the_same_results_and_errors(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "_WINDOW", 3)
    assert sorted(run_parallel(partial(add, amount=1), range(7), **on(scheduler))) == list(
        range(1, 8)
    )
    with refuses("unknown", setting="band"):
        list(run_parallel(refuse, ["input"], **on(scheduler)))
    with pytest.raises(PermissionError):
        list(run_parallel(refuse, ["system"], **on(scheduler)))


def slow_pid(number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


ONE_WORKER = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}


@pytest.mark.slow
def test_workers_of_any_number_do_the_work_and_later_ones_join_in():
    from distributed import LocalCluster

    with LocalCluster(**ONE_WORKER) as small:
        results = run_parallel(slow_pid, range(400), **on(small.scheduler_address))
        pids = {next(results) for _ in range(5)}
        assert len(pids) == 1
        small.scale(2)
        pids |= set(results)
        assert len(pids) == 2
        assert os.getpid() not in pids


@pytest.mark.slow
def test_the_item_that_kills_workers_of_a_cluster_is_named(monkeypatch):
    import dask
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 10)
    once = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with once, LocalCluster(**ONE_WORKER) as small:
        how = on(small.scheduler_address)
        with refuses("worker"):
            list(run_parallel(partial(add, amount=-1), [4, 5, 6], **how))
        found = run_parallel(partial(add, amount=-1), [4, 5, 6], failed=lost, **how)
        (word, item, _), *others = sorted(found, key=str)
        assert (word, item, others) == ("lost", 5, [3, 5])


@pytest.mark.slow
def test_a_scheduler_that_goes_away(tmp_path):
    with dask_cluster(tmp_path, *IMPORT_FROM) as address:
        results = run_parallel(slow_pid, range(10_000), **on(address))
        next(results)
        os.kill(int((tmp_path / "scheduler.pid").read_text()), signal.SIGKILL)
        with refuses("network", setting="--scheduler"):
            list(results)
