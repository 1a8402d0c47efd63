"""Run work in worker processes; a crash or a hang costs one item.

A torch DataLoader does not serve. When one of its workers is killed, it raises an error in whatever
code the main process runs at that moment, loses what other workers had read, and does not name the
item. It also passes tensors through /dev/shm, which has 64 MB in a container by default.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, TypeVar

import numpy as np

from maest.helpers.errors import InputError
from maest.helpers.work.signals import end_with_parent, leave_signals_to_the_main_process

Item = TypeVar("Item")
Result = TypeVar("Result")
_Job = tuple[Callable[[Any], Any], Sequence[Any]]  # a function and its items

TIME_LIMIT = 600.0  # seconds for one item; a worker that needs longer hangs
KILLED = (
    "its worker process was killed, also when the item was retried alone: it crashes a decoder, or "
    "needs more memory than there is"
)
_NUMBER = 8  # bytes of an item's number in the queue
_QUEUE = 500  # most items in the queue: they fit into the smallest pipe, 4096 bytes
_BARREN = 3  # times that every worker may end in a row without any beginning an item
_PATIENCE = 5.0  # seconds for workers to finish their item when the work is closed
_THREAD_LIMITS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def process_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int,
    failed: Callable[[Item, str], Result] | None = None,
    time_limit: float | None = TIME_LIMIT,
    start_method: str | None = None,
) -> Generator[Result]:
    """Yield ``function(item)`` of each item from worker processes, in the order of completion.

    Arrays travel as raw bytes and are writable. ``num_workers`` 0 works in this process, where
    nothing is caught. A worker that is killed, or gives no result within ``time_limit`` seconds
    (None: no limit), is replaced. Its item is retried alone after all others; if that fails too,
    the result is ``failed(item, reason)``.

    Workers ignore SIGINT and SIGTERM, use one thread each, and end with the main process (on Linux,
    with the thread that asked for the first result). Closing the iteration gives them some seconds
    to finish their item.

    InputError, kind "worker": an item was lost twice and ``failed`` is None, or processes end
    before they begin an item. An error of ``function`` has the worker's traceback as a note.
    """
    if not num_workers:
        yield from map(function, items)
        return
    first = _Pool((function, items), time_limit, start_method)
    yield from first.results(range(len(items)), min(num_workers, len(items)))
    for number in first.lost:
        again = _Pool((function, items), time_limit, start_method)
        yield from again.results([number], 1)
        for reason in again.lost.values():
            yield replace_lost(items[number], reason, failed)


def replace_lost(
    item: Item, reason: str, failed: Callable[[Item, str], Result] | None, hint: str = ""
) -> Result:
    """Return ``failed(item, reason)`` for an item lost twice. InputError: ``failed`` is None."""
    if failed is not None:
        return failed(item, reason)
    hint = hint or "Give the work more memory, or run fewer processes."
    raise InputError(f"an item of the work was lost: {reason}", kind="worker", hint=hint)


class _Message(NamedTuple):
    """A worker's message: an item has begun or, if ``done``, has a result or an error."""

    item: int
    done: bool = False
    result: Any = None
    error: Exception | None = None
    place: str = ""  # where the error arose


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    messages: Connection  # the receiving end
    item: int | None = None  # the number of the item under way
    began: bool = False  # whether it has begun any item
    heard: float = field(default_factory=time.monotonic)  # when it last sent anything, or started


class _Pool:
    """Workers, and the queue from which they take items.

    The queue is a pipe of numbers of 8 bytes; the kernel gives each to one reader. There is no
    lock, which a killed worker would hold for ever. Each worker sends its messages through a
    separate socket, so all that it sent before it was killed arrives.
    """

    def __init__(self, job: _Job, limit: float | None, start_method: str | None) -> None:
        self.lost: dict[int, str] = {}  # the numbers of items whose worker ended, and why
        self._unfinished: set[int] = set()  # queued or begun
        self._workers: list[_Worker] = []
        self._context: Any = multiprocessing.get_context(start_method)
        self._job, self._limit = job, math.inf if limit is None else limit
        self._queue_out, self._queue_in = self._context.Pipe(duplex=False)
        self._barren = 0  # workers in a row that were killed before they began an item
        self._owner = os.getpid()
        # If this process ends first: multiprocessing itself sends one SIGTERM, and waits.
        self._at_exit = Finalize(None, self.close, exitpriority=10)

    def results(self, numbers: Sequence[int], num_workers: int) -> Iterator[Any]:
        """Yield the results of the items with these numbers, except of lost items."""
        waiting = iter(numbers)
        try:
            for _ in range(num_workers):
                self._start()
            while True:
                for number in islice(waiting, _QUEUE - len(self._unfinished)):
                    os.write(self._queue_in.fileno(), number.to_bytes(_NUMBER, "little"))
                    self._unfinished.add(number)
                if len(self._unfinished) < _QUEUE:
                    self.no_more()
                if not self._unfinished:
                    return
                if not self._workers:  # killed between taking an item and saying so
                    self.lost |= dict.fromkeys(sorted(self._unfinished), KILLED)
                    return
                for worker in self._ready():
                    try:
                        message = _receive(worker.messages)
                    except (EOFError, OSError):
                        self._lose(worker, KILLED)
                        continue
                    worker.heard, worker.began = time.monotonic(), True
                    worker.item = None if message.done else message.item
                    if message.error is not None:
                        message.error.add_note(f"In a worker process:\n{message.place}")
                        raise message.error
                    if message.done:
                        self._unfinished.discard(message.item)
                        yield message.result
        finally:
            self.close()

    def _start(self) -> None:
        own_end, its_end = self._context.Pipe()
        # A fork inherits all ends of this process and must close them: a pipe ends when the last
        # process closes it, and that is how workers learn that this one is gone.
        fork = self._context.get_start_method() == "fork"
        others = [worker.messages for worker in self._workers]
        unneeded = [self._queue_in, own_end, *others] if fork else []
        process = self._context.Process(
            target=_work, args=(self._job, self._queue_out, its_end, unneeded), daemon=True
        )
        # A fork must not collect this process's garbage: objects with threads, such as a session
        # of onnxruntime, would wait for ever for threads that a fork does not have.
        collects = gc.isenabled()
        gc.disable()
        try:
            process.start()
        finally:
            if collects:
                gc.enable()
            its_end.close()
        self._workers.append(_Worker(process, own_end))

    def no_more(self) -> None:
        """Let workers end once the queue is empty. May be called again."""
        self._queue_in.close()

    def _ready(self) -> list[_Worker]:
        """Wait for workers that sent something or ended; lose those silent for too long."""
        by_end: dict[Any, _Worker] = {worker.messages: worker for worker in self._workers}
        # A process that has just started may have much to import.
        until = {
            worker: worker.heard + max(self._limit, 0 if worker.item is not None else TIME_LIMIT)
            for worker in self._workers
        }
        seconds = min(until.values()) - time.monotonic()
        ends = wait(list(by_end), None if math.isinf(seconds) else max(0.0, seconds))
        ready = [by_end.pop(end) for end in ends]
        now = time.monotonic()
        for worker in by_end.values():
            if now >= until[worker]:
                what = f"its worker process gave no result in {self._limit:g} s, also when the "
                self._lose(worker, f"{what}item was retried alone, and was ended")
        return ready

    def _lose(self, worker: _Worker, reason: str) -> None:
        """Remove a worker that has ended or hangs, and replace it while there is work.

        InputError: workers end in a row before they begin an item. OSError: none is left or can
        start.
        """
        self._workers.remove(worker)
        worker.messages.close()
        if reason is KILLED:  # or it has ended by itself
            worker.process.join(_PATIENCE)
        worker.process.kill()
        worker.process.join(_PATIENCE)
        if worker.item is not None:
            self.lost[worker.item] = reason
            self._unfinished.discard(worker.item)
        elif worker.process.exitcode == 0:
            return
        if not self._unfinished:
            return
        self._barren = 0 if worker.began else self._barren + 1
        if self._barren > _BARREN * (1 + len(self._workers)):
            message = "worker processes end before they begin anything (exit code "
            message += f"{worker.process.exitcode}; a negative one is the signal that killed it)"
            hint = "Their own messages are above. To work without them, set "
            hint += "datamodule.num_workers=0 (of a preprocessing, --num-workers 1)."
            raise InputError(message, kind="worker", hint=hint)
        try:
            self._start()
        except OSError:  # no memory for it: the others go on
            if not self._workers:
                raise

    def close(self) -> None:
        """Let workers finish their item within some seconds and begin no other; then kill them."""
        if os.getpid() != self._owner:  # a copy, in a fork
            return
        self._at_exit.cancel()
        self.no_more()
        for worker in self._workers:  # a worker with something to send ends at once
            worker.messages.close()
        until = time.monotonic() + _PATIENCE
        try:
            for worker in self._workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.process.join(_PATIENCE)
            self._workers.clear()
            self._queue_out.close()


# ---- messages ------------------------------------------------------------------------------------


def _pack(message: _Message) -> tuple[bytes, list[memoryview]]:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return data, [buffer.raw() for buffer in buffers]


def _send(end: Connection, packed: tuple[bytes, list[memoryview]]) -> None:
    data, arrays = packed
    end.send((data, [view.nbytes for view in arrays]))
    for left in arrays:
        while left:
            left = left[os.write(end.fileno(), left) :]


def _receive(end: Connection) -> _Message:
    """Receive a message. Raises EOFError or OSError if the worker has ended."""
    data, sizes = end.recv()
    arrays = [np.empty(size, np.uint8).data for size in sizes]
    with open(end.fileno(), "rb", buffering=0, closefd=False) as raw:
        for left in arrays:
            while left:
                count = raw.readinto(left)
                if not count:
                    raise EOFError
                left = left[count:]
    return pickle.loads(data, buffers=arrays)


# ---- in a worker ---------------------------------------------------------------------------------


def _work(
    job: _Job, queue: Connection, messages: Connection, unneeded: Sequence[Connection]
) -> None:
    """Process items until the queue ends, or until nobody wants the results."""
    end_with_parent()
    gc.freeze()  # all objects so far belong to the main process
    gc.enable()
    for end in unneeded:
        end.close()
    leave_signals_to_the_main_process()
    os.environ.update(_THREAD_LIMITS)  # for libraries that are not loaded yet
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    function, items = job
    with suppress(BrokenPipeError, ConnectionResetError):
        while number := os.read(queue.fileno(), _NUMBER):
            item = int.from_bytes(number, "little")
            _send(messages, _pack(_Message(item)))
            try:
                packed = _pack(_Message(item, True, function(items[item])))
            except Exception as error:
                place = "".join(traceback.format_exception(error))
                try:
                    error = pickle.loads(pickle.dumps(error))
                except Exception:  # a library's error that cannot be pickled
                    error = RuntimeError(f"{type(error).__name__}: {error}")
                packed = _pack(_Message(item, True, None, error, place))
            _send(messages, packed)
