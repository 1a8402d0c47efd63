"""Worker processes: what they give, and what becomes of items that kill them or hang."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up import refuses

from maest.helpers.errors import InputError
from maest.helpers.work import processes
from maest.helpers.work.processes import KILLED, process_map

LIMIT = 1.0  # seconds, for tests of workers that hang


def square(number: int) -> int:
    return number * number


def lost(item: int, reason: str) -> tuple[str, int, str]:
    return "lost", item, reason


def run(function, items, num_workers=2, **options) -> list:
    results = list(process_map(function, items, num_workers=num_workers, **options))
    assert not multiprocessing.active_children()
    return results


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [0, 1, 3, 20])
@pytest.mark.parametrize("number", [0, 8, 100])
def test_each_item_has_a_result(num_workers, number):
    assert sorted(run(square, range(number), num_workers)) == [n * n for n in range(number)]


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
    assert len(found) == 3
    for size, result in found.items():
        expected = arrays(size)
        assert result.pop("bytes") == expected.pop("bytes")
        for name, values in result.items():
            assert np.array_equal(values, expected[name])
            values += 1


class Own(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")  # not what the constructor takes


def refuse(kind: str):
    if kind == "input":
        raise InputError("no such band", kind="unknown", hint="Give another.", setting="band")
    if kind == "system":
        raise PermissionError(13, "Permission denied", "song.mp3")
    if kind == "own":
        raise Own(1, 2)
    return lambda: "a nested function cannot be pickled"


def test_an_error_of_the_work_passes_on_with_its_type_and_traceback():
    with refuses("unknown", setting="band") as caught:
        run(refuse, ["input"], failed=lost)
    assert "in refuse" in caught.value.__notes__[0]
    with pytest.raises(PermissionError) as refused:
        run(refuse, ["system"], failed=lost)
    assert refused.value.filename == "song.mp3"
    # Its own type only where a library (tblib, with Dask) teaches pickle how.
    with pytest.raises((RuntimeError, Own), match="1 and 2"):
        run(refuse, ["own"], failed=lost)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        run(refuse, ["value"], failed=lost)
    assert not multiprocessing.active_children()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    while True:
        signal.pause()


@dataclass
class Deadly:
    """Ends or stops its process: always at 1, the first time at 4."""

    folder: Path
    how: Callable[[], None] = die

    def __call__(self, number: int) -> int:
        marker = self.folder / f"begun {number}"
        if number == 1 or (number == 4 and not marker.exists()):
            marker.touch()
            self.how()
        return number


@pytest.mark.parametrize(
    ("how", "num_workers", "method"),
    [
        (die, 1, None),
        (die, 2, None),
        (hang, 2, None),
        pytest.param(die, 2, "spawn", marks=pytest.mark.slow),
    ],
)
def test_only_the_item_of_a_killed_or_hanging_worker_fails(tmp_path, how, num_workers, method):
    options = {"failed": lost, "start_method": method}
    if how is hang:
        options["time_limit"] = LIMIT
    results = run(Deadly(tmp_path, how), range(6), num_workers, **options)
    assert sorted(results[:4]) == [0, 2, 3, 5]
    (_, item, reason), again = sorted(results[4:], key=str)  # retried alone, in the end
    assert (item, again) == (1, 4)
    assert (reason == KILLED) == (how is die)


def test_an_item_lost_twice_is_an_error_where_nothing_takes_its_place(tmp_path):
    with refuses("worker"):
        run(Deadly(tmp_path), range(6))
    assert not multiprocessing.active_children()


def large(number: int) -> np.ndarray:
    return np.full(1_000_000, number)


@pytest.mark.parametrize("function", [square, large], ids=["idle", "half-way through a result"])
def test_a_kill_while_the_main_process_is_at_work_elsewhere(function):
    seen = []
    for result in process_map(function, range(40), num_workers=2):
        seen.append(int(np.max(result)))
        if len(seen) == 5:
            child = multiprocessing.active_children()[0]
            child.kill()
            child.join()
    assert sorted(seen) == [int(np.max(function(n))) for n in range(40)]


def test_workers_that_end_as_they_start_are_an_error(monkeypatch):
    monkeypatch.setattr(processes, "ignore_signals", lambda: os._exit(3))
    with refuses("worker") as caught:
        run(square, range(6))
    assert "3" in caught.value.message
    assert not multiprocessing.active_children()


def test_a_main_process_that_takes_its_time_does_not_take_its_workers_to_hang(
    tmp_path, monkeypatch
):
    now, work = 0.0, Writing(tmp_path, finish=lambda: None)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: now))
    results = []
    for result in process_map(work, range(3), num_workers=1, time_limit=LIMIT):
        if not results:
            wait_for((tmp_path / "whole-1").exists)
            now += 10 * LIMIT
        results.append(result)
    assert results == [0, 1, 2]


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


@dataclass
class Writing:
    """Writes a file for each item but the first, once it may."""

    folder: Path
    finish: Callable[[], None]

    def __call__(self, number: int) -> int:
        if number:
            (self.folder / f"begun-{number}").touch()
            self.finish()
            (self.folder / f"whole-{number}").touch()
        return number


def test_a_worker_finishes_its_file_when_the_work_is_ended_and_begins_no_other(
    tmp_path, monkeypatch
):
    go_on = tmp_path / "go on"
    results = process_map(
        Writing(tmp_path, lambda: wait_for(go_on.exists)), range(10), num_workers=1
    )
    next(results)
    wait_for((tmp_path / "begun-1").exists)
    original = BaseProcess.join

    def join(process: BaseProcess, timeout: float | None = None) -> None:
        go_on.touch()
        original(process, timeout)

    monkeypatch.setattr(BaseProcess, "join", join)
    results.close()
    assert (tmp_path / "whole-1").exists()
    assert not (tmp_path / "begun-2").exists()


def test_a_worker_that_hangs_when_the_work_is_ended_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_CLOSE_SECONDS", 0.1)
    results = process_map(Deadly(tmp_path, hang), range(6), num_workers=1)
    next(results)
    wait_for((tmp_path / "begun 1").exists)
    results.close()
    wait_for(lambda: not multiprocessing.active_children())


def busy(number: int) -> int:
    """After the first ones, long in C code, which holds the interpreter: no thread gets a turn."""
    return number if number < 5 else sum(range(10**14))


def a_main_process(how: str, pids) -> None:
    global results  # to its very end
    results = process_map(square if how == "ends" else busy, range(3, 9), num_workers=2)
    next(results)
    pids.send([child.pid for child in multiprocessing.active_children()])
    if how == "is killed":
        die()


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


def interrupted(number: int) -> int:
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        os.kill(os.getpid(), getattr(signal, name))
    return number


def test_workers_leave_signals_to_the_main_process():
    assert run(interrupted, [0], 1) == [0]


class Threaded:
    """Garbage, in a circle, that must not be collected where its threads are not."""

    def __init__(self) -> None:
        self.circle, self.pid = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.pid:
            die()


def collect(number: int) -> int:
    gc.collect()
    return number


def test_a_worker_leaves_this_processs_garbage_alone():
    gc.collect()
    gc.disable()
    try:
        Threaded()
        assert run(collect, [0], 1) == [0]
        assert not gc.isenabled()  # as before
    finally:
        gc.enable()
