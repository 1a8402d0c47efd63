"""Run work in worker processes; a crash or a hang costs one item.

When a worker of torch's DataLoader is killed, it raises an error in whatever code the main process
runs, loses what others had read, and does not name the item; in containers /dev/shm is too small.
"""

import gc
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NoReturn, TypeVar

from maest.helpers.errors import InputError
from maest.helpers.work.messages import pack, receive, send, unpack
from maest.helpers.work.signals import end_with_parent, ignore_signals

Item = TypeVar("Item")
Result = TypeVar("Result")

TIME_LIMIT = 600.0  # seconds for one item, or to start; a worker that needs longer hangs
KILLED = (
    "its worker process was killed, also when the item was retried alone: it crashes a decoder, or "
    "needs more memory than there is"
)
_START = -1  # stands for an item while a worker starts
_STARTUP_FAILURES = 3  # in a row, times the number of workers
_CLOSE_SECONDS = 5.0  # for workers to finish their item when the work is closed
_THREAD_LIMITS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def refuse_lost(item: Any, reason: str) -> NoReturn:
    """Raise InputError, kind "worker": an item was lost twice."""
    hint = "Give the work more memory, or run fewer processes. What is done is kept."
    raise InputError(f"an item of the work was lost: {reason}", kind="worker", hint=hint)


def process_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int,
    failed: Callable[[Item, str], Result] = refuse_lost,
    time_limit: float = TIME_LIMIT,
    start_method: str | None = None,
) -> Generator[Result]:
    """Yield ``function(item)`` of each item from worker processes, in the order of completion.

    ``num_workers`` 0 works in this process, where nothing is caught. A worker that is killed, or
    gives no result within ``time_limit`` seconds, is replaced, and its item retried alone after all
    others; if that fails too, the result is ``failed(item, reason)``. Closing the iteration gives
    workers, of one thread each, some seconds to finish their item. They end with the main process
    (on Linux, with the thread that asked for the first result).

    InputError, kind "worker": as :func:`refuse_lost`, or processes end before they begin an item.
    An error of ``function`` has the worker's traceback as a note.
    """
    if not num_workers:
        yield from map(function, items)
        return
    job = function, items
    first = _Pool(job, range(len(items)), time_limit, start_method)
    yield from first.results(num_workers)
    for number in first.lost:
        again = _Pool(job, [number], time_limit, start_method)
        yield from again.results(1)
        for reason in again.lost.values():
            yield failed(items[number], reason)


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    deadline: float  # for its next message
    numbers: list[int]  # of the items it was given, and _START until it has started


class _Pool:
    """Workers, each at the other end of a pipe: it gets items' numbers and sends results.

    Nothing is shared that a killed worker would leave locked or torn; what it sent before arrives.
    """

    def __init__(
        self, job: tuple[Callable, Sequence], numbers: Iterable[int], limit: float, method: Any
    ) -> None:
        self.lost: dict[int, str] = {}  # item's number → why its worker ended
        self._job, self._limit = job, limit
        self._context: Any = multiprocessing.get_context(method)
        self._waiting = deque(numbers)
        self._unfinished = len(self._waiting)
        self._workers: list[_Worker] = []
        self._startup_failures = 0  # in a row
        self._owner = os.getpid()
        # If this process ends first: multiprocessing itself sends one SIGTERM, and waits.
        self._at_exit = Finalize(None, self._close, exitpriority=10)

    def results(self, num_workers: int) -> Iterator[Any]:
        """Yield the results of all items but those lost."""
        try:
            for _ in range(min(num_workers, self._unfinished)):
                self._start()
            while self._unfinished:
                for worker in self._workers:
                    self._give(worker)
                for worker in self._ready():
                    try:
                        packed = receive(worker.pipe)
                    except (EOFError, OSError):
                        self._lose(worker, KILLED)
                        continue
                    worker.deadline = time.monotonic() + self._limit
                    if worker.numbers.pop(0) == _START:
                        self._startup_failures = 0
                    else:
                        self._unfinished -= 1
                        yield unpack(packed)
        finally:
            self._close()

    def _start(self) -> None:
        own_end, its_end = self._context.Pipe()
        # A fork inherits all ends of this process and must close them: a pipe ends when the last
        # process closes it, and that is how workers learn that this one is gone.
        fork = self._context.get_start_method() == "fork"
        inherited = [own_end, *(worker.pipe for worker in self._workers)] if fork else []
        arguments = (*self._job, its_end, inherited)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        # A fork must not collect this process's garbage: objects with threads, such as a session
        # of onnxruntime, would wait for ever for threads that a fork does not have.
        gc.freeze()
        try:
            process.start()
        finally:
            gc.unfreeze()
            its_end.close()
        deadline = time.monotonic() + max(self._limit, TIME_LIMIT)  # it may have much to import
        self._workers.append(_Worker(process, own_end, deadline, [_START]))

    def _give(self, worker: _Worker) -> None:
        """Give a worker an item and, unless few are left for the others, one in advance."""
        most = 2 if len(self._waiting) > len(self._workers) else 1
        while self._waiting and len(worker.numbers) < most:
            if not worker.numbers:
                worker.deadline = time.monotonic() + self._limit
            worker.numbers.append(self._waiting.popleft())
            with suppress(OSError):  # it was killed, which the next read shows
                worker.pipe.send(worker.numbers[-1])

    def _ready(self) -> list[_Worker]:
        """Wait for workers that sent something or ended; lose those silent for too long."""
        silent: dict[Any, _Worker] = {worker.pipe: worker for worker in self._workers}
        until = min(worker.deadline for worker in self._workers if worker.numbers)
        pipes = wait(list(silent), max(0.0, until - time.monotonic()))
        ready = [silent.pop(pipe) for pipe in pipes]
        now = time.monotonic()
        for worker in silent.values():
            if worker.numbers and now >= worker.deadline:
                what = f"its worker process gave no result in {self._limit:g} s, also when the "
                self._lose(worker, f"{what}item was retried alone, and was ended")
        return ready

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Remove a worker that has ended or hangs, and replace it while items wait."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(_CLOSE_SECONDS if reason is KILLED else 0)  # it may end by itself
        worker.process.kill()
        worker.process.join(_CLOSE_SECONDS)
        self._waiting.extendleft(worker.numbers[1:])
        for number in worker.numbers[:1]:
            if number == _START:
                self._startup_failures += 1
            else:
                self.lost[number] = reason
                self._unfinished -= 1
        if self._startup_failures > _STARTUP_FAILURES * (1 + len(self._workers)):
            what = f"worker processes end as they start (exit code {worker.process.exitcode})"
            hint = "Their own messages are above. To work without them, set "
            hint += "datamodule.num_workers=0 (of a preprocessing, --num-workers 1)."
            raise InputError(what, kind="worker", hint=hint)
        if self._waiting:
            with suppress(OSError) if self._workers else nullcontext():
                self._start()  # without memory for it, the others go on

    def _close(self) -> None:
        """Let workers finish their item within some seconds and begin no other; then kill them."""
        if os.getpid() != self._owner:  # a copy, in a fork
            return
        self._at_exit.cancel()
        for worker in self._workers:  # which end when they next send or ask for something
            worker.pipe.close()
        until = time.monotonic() + _CLOSE_SECONDS
        try:
            for worker in self._workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join(_CLOSE_SECONDS)
            self._workers.clear()


# ---- in a worker ---------------------------------------------------------------------------------


def _work(function: Callable, items: Sequence, pipe: Connection, inherited: list) -> None:
    """Process items until nobody wants the results."""
    end_with_parent()
    for end in inherited:
        end.close()
    ignore_signals()
    os.environ.update(_THREAD_LIMITS)  # for libraries that are not loaded yet
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        send(pipe, (b"", []))  # it has started
        while True:
            send(pipe, pack(function, items, pipe.recv()))
