"""Worker processes: what they give, and what becomes of items that kill them or hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maest.helpers.errors import InputError
from maest.helpers.work import processes
from maest.helpers.work.processes import KILLED, process_map

LIMIT = 1.0  # seconds, for tests of workers that hang


def square(number: int) -> int:
    return number * number


def pid(_: int) -> int:
    return os.getpid()


def lost(item: int, reason: str) -> tuple[str, int, str]:
    return "lost", item, reason


def run(function, items, num_workers=2, **how) -> list:
    results = list(process_map(function, items, num_workers=num_workers, **how))
    assert not multiprocessing.active_children()
    return results


@pytest.mark.parametrize("num_workers", [0, 1, 3, 20])
def test_each_item_has_a_result(num_workers):
    assert sorted(run(square, range(8), num_workers)) == [n * n for n in range(8)]
    assert run(square, [], num_workers) == []


def test_no_workers_are_this_process():
    assert run(pid, [1, 2], 0) == [os.getpid()] * 2
    others = run(pid, range(20), 2)
    assert len(others) == 20
    assert os.getpid() not in others


def arrays(count: int) -> dict:
    return {
        "large": np.arange(count, dtype=np.float32),
        "bytes": b"x" * count,
        "none": np.zeros(0),
        "turned": np.arange(count * 2).reshape(2, count).T,
        "stepped": np.arange(count)[::2],
    }


def test_results_of_many_megabytes_arrive_whole_and_may_be_written_to():
    found = {len(result["large"]): result for result in run(arrays, [3_000_000, 5, 70_000])}
    for size, result in found.items():
        expected = arrays(size)
        assert result.pop("bytes") == expected.pop("bytes")
        assert result["none"].shape == (0,)
        for name, values in result.items():
            assert np.array_equal(values, expected[name])
            values += 1
    assert len(found) == 3


def test_more_items_than_the_queue_takes(monkeypatch):
    monkeypatch.setattr(processes, "_QUEUE", 7)
    assert len(run(pid, range(100))) == 100


class Own(Exception):
    """An error whose arguments are not those of its constructor."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def refuse(kind: str):
    if kind == "input":
        raise InputError("no such band", kind="unknown", hint="Give another.", setting="band")
    if kind == "system":
        raise PermissionError(13, "Permission denied", "song.mp3")
    if kind == "own":
        raise Own(1, 2)
    return lambda: "no function in a function can be pickled"


def test_an_error_of_the_work_passes_on_with_its_type():
    with pytest.raises(InputError) as caught:
        run(refuse, ["input"], failed=lost)
    error = caught.value
    assert (error.kind, error.setting, error.hint) == ("unknown", "band", "Give another.")
    assert "in refuse" in error.__notes__[0], "the worker's traceback"
    with pytest.raises(PermissionError) as refused:
        run(refuse, ["system"], failed=lost)
    assert refused.value.filename == "song.mp3"
    # Its own type only where a library (tblib, with Dask) teaches pickle how.
    with pytest.raises((RuntimeError, Own), match="1 and 2"):
        run(refuse, ["own"], failed=lost)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        run(refuse, ["value"], failed=lost)
    assert not multiprocessing.active_children()


# ---- workers that are killed ---------------------------------------------------------------------


class Deadly:
    """Kills the process: always at 1, the first time at 4."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "killed once"

    def __call__(self, number: int) -> int:
        if number == 4 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_is_killed_costs_its_item_only(tmp_path, num_workers):
    results = run(Deadly(tmp_path), range(6), num_workers, failed=lost)
    assert sorted(results[:4]) == [0, 2, 3, 5]
    assert sorted(results[4:], key=str) == [("lost", 1, KILLED), 4]  # alone, in the end


def test_an_item_that_is_lost_twice_is_an_error_where_nothing_takes_its_place(tmp_path):
    with pytest.raises(InputError) as caught:
        run(Deadly(tmp_path), range(6))
    assert caught.value.kind == "worker"
    assert not multiprocessing.active_children()


def test_a_kill_while_the_main_process_is_at_work_elsewhere():
    seen = []
    for result in process_map(square, range(40), num_workers=2):
        seen.append(result)
        if len(seen) == 5:
            child = multiprocessing.active_children()[0]
            child.kill()
            child.join()
    assert sorted(seen) == [n * n for n in range(40)]


def test_workers_that_end_before_they_begin_anything_are_an_error(monkeypatch):
    monkeypatch.setattr(processes, "_work", lambda *job: os._exit(3))
    with pytest.raises(InputError, match="exit code 3") as caught:
        run(square, range(6))
    assert caught.value.kind == "worker"
    assert not multiprocessing.active_children()


def test_an_item_that_was_taken_and_not_begun_is_done_after_all(tmp_path, monkeypatch):
    original, marker = processes._work, tmp_path / "taken"

    def work(job, queue, messages, unneeded):
        if not marker.exists():
            os.read(queue.fileno(), 8)
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        original(job, queue, messages, unneeded)

    monkeypatch.setattr(processes, "_work", work)
    assert run(square, range(1, 6), 1) == [4, 9, 16, 25, 1]


# ---- workers that hang ---------------------------------------------------------------------------


class Hanging:
    """Gives no result: always at 1, the first time at 4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> int:
        marker = self.folder / f"begun {number}"
        if number == 1 or (number == 4 and not marker.exists()):
            marker.touch()
            while True:
                signal.pause()
        return number


def test_a_worker_that_hangs_costs_its_item_only(tmp_path):
    results = run(Hanging(tmp_path), range(6), failed=lost, time_limit=LIMIT)
    assert sorted(results[:4]) == [0, 2, 3, 5]
    (word, item, reason), again = sorted(results[4:], key=str)
    assert (word, item, again) == ("lost", 1, 4)
    assert f"{LIMIT:g} s" in reason
    assert reason != KILLED


class Marking:
    """Says that it has begun its second item: the result of the first is sent by then."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "second"

    def __call__(self, number: int) -> int:
        if number == 1:
            self.marker.touch()
        return number


def test_a_main_process_that_takes_its_time_does_not_take_its_workers_to_hang(
    tmp_path, monkeypatch
):
    now, work = 0.0, Marking(tmp_path)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: now))
    results = []
    for result in process_map(work, range(3), num_workers=1, time_limit=LIMIT):
        if not results:
            wait_for(work.marker.exists)
            now += 10 * LIMIT
        results.append(result)
    assert results == [0, 1, 2]


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "forgotten", "failed"])
def test_no_process_is_left_behind(how):
    results = process_map(square, range(2, 600), num_workers=3)
    next(results)
    assert len(multiprocessing.active_children()) == 3
    if how == "closed":
        results.close()
    elif how == "forgotten":
        del results
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert not multiprocessing.active_children()


class Writing:
    """Says that it writes a file, and does so when it may."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> int:
        if number:
            (self.folder / "begun").touch()
            while not (self.folder / "go on").exists():
                time.sleep(0.001)
            (self.folder / f"whole-{number}").touch()
        return number


def test_a_worker_finishes_its_file_when_the_work_is_ended_and_begins_no_other(
    tmp_path, monkeypatch
):
    results = process_map(Writing(tmp_path), range(10), num_workers=1)
    next(results)
    wait_for((tmp_path / "begun").exists)
    original = processes._Pool.no_more

    def no_more(pool) -> None:
        original(pool)
        (tmp_path / "go on").touch()

    monkeypatch.setattr(processes._Pool, "no_more", no_more)
    results.close()
    assert (tmp_path / "whole-1").exists()
    assert not (tmp_path / "whole-2").exists()


def test_a_worker_that_hangs_when_the_work_is_ended_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE", 0.1)
    results = process_map(Hanging(tmp_path), range(6), num_workers=1)
    next(results)
    wait_for((tmp_path / "begun 1").exists)
    results.close()
    wait_for(lambda: not multiprocessing.active_children())


def busy(number: int) -> int:
    """After the first ones, long in C code, which holds the interpreter: no thread gets a turn."""
    return number if number < 5 else sum(range(10**14))


def a_main_process(how: str, pids) -> None:
    global held  # to its very end
    work = square if how == "ends" else busy
    held = process_map(work, range(3, 9), num_workers=2)
    next(held)
    pids.send([child.pid for child in multiprocessing.active_children()])
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["is killed", "ends"])
def test_workers_end_with_the_main_process(how):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    main = context.Process(target=a_main_process, args=(how, sender))
    main.start()
    pids = receiver.recv()
    try:
        main.join(30)
        assert main.exitcode == (-signal.SIGKILL if how == "is killed" else 0)
        assert len(pids) == 2
        wait_for(lambda: not any(runs(pid) for pid in pids))
    finally:  # whatever has come of it, the tests after this one run alone
        for process in (main.pid, *pids):
            if runs(process):
                os.kill(process, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def interrupted(number: int) -> int:
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        os.kill(os.getpid(), getattr(signal, name))
    return number


def test_workers_leave_signals_to_the_main_process():
    assert list(process_map(interrupted, [0], num_workers=1)) == [0]


@pytest.mark.slow
def test_processes_that_are_no_forks(tmp_path):
    results = run(Deadly(tmp_path), range(6), failed=lost, start_method="spawn")
    assert sorted(results, key=str) == [("lost", 1, KILLED), 0, 2, 3, 4, 5]


class Threaded:
    """Garbage, in a circle, that must not be collected where its threads are not."""

    def __init__(self) -> None:
        self.circle, self.pid = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            os.kill(os.getpid(), signal.SIGKILL)


def collect(number: int) -> int:
    gc.collect()
    return number


def test_a_worker_leaves_this_processs_garbage_alone():
    gc.collect()
    gc.disable()
    try:
        Threaded()
        results = list(process_map(collect, [0], num_workers=1))
        assert not gc.isenabled()  # as before
    finally:
        gc.enable()
    assert results == [0]  # the worker was not killed
