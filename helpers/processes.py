"""Worker processes that stream results, and that may be killed or hang at the cost of one item.

A DataLoader of torch does not serve: when one of its workers is killed, it raises an error in
whatever code the main process is running at that moment, what other workers had read is lost, and
it does not say which item was to blame. It also passes tensors through /dev/shm, of which a
container has 64 MB by default.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from maest.helpers.errors import InputError
from maest.helpers.signals import end_with_parent, leave_signals_to_the_main_process

Item = TypeVar("Item")
Value = TypeVar("Value")
_Job = tuple[Callable[[Any], Iterable[Any]], Sequence[Any]]  # what produces, and the items

TIME_LIMIT = 600.0  # seconds without a result, after which a worker is taken to hang
KILLED = (
    "its worker process was killed, also when the item was retried alone: it crashes a decoder, or "
    "needs more memory than there is"
)
_NUMBER = 8  # bytes of an item's number in the queue
_QUEUE = 500  # items in the queue, at most: less than the smallest pipe takes, 4096 bytes
_BARREN = 3  # times that every worker may end, one after another, and none begin an item
_PATIENCE = 5.0  # seconds that workers have to finish their item when the work is ended
_IN_BAND = 1 << 16  # bytes; smaller arrays travel inside the pickle
_THREAD_LIMITS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


class Produced(NamedTuple, Generic[Item, Value]):
    """A result.

    Attributes:
        item: that it belongs to.
        value: what ``produce`` yielded.
        attempt: 0, or 1 where the item is retried: values of attempt 0 are void then.
    """

    item: Item
    value: Value
    attempt: int


def process_map(
    produce: Callable[[Item], Iterable[Value]],
    items: Sequence[Item],
    *,
    num_workers: int,
    failed: Callable[[Item, str], Value] | None = None,
    time_limit: float | None = TIME_LIMIT,
    start_method: str | None = None,
) -> Generator[Produced[Item, Value]]:
    """Yield what ``produce`` yields of each item, from worker processes.

    Each worker takes the next item that nobody has begun, and holds no more than two values. The
    values of one item come in order, those of different items in any mixture; the last of an item
    comes when ``produce`` has ended. Arrays travel as raw bytes, and may be written to.

    A worker that is killed, or that gives no result within the time limit and is then killed, is
    replaced. Its item is retried alone when all others are done; if that fails, too, the item's
    value is ``failed(item, reason)``.

    Workers leave SIGINT and SIGTERM to the main process, use one thread each, and end when it does.
    (On Linux when the thread ends that started them: the one that first asks for a result.) When
    the iteration is closed, they have some seconds to finish the item that they are at.

    Args:
        produce: takes an item, yields values. Like the items, it is pickled where processes are
            not forks.
        num_workers: processes; 0 to work in this one, where nothing is caught.
        failed: makes the value of an item that was lost twice; None to raise an error instead.
        time_limit: seconds that a worker may be silent within one item; None for no limit.
        start_method: "fork", "spawn" or "forkserver"; None for Python's default.

    Raises:
        InputError: kind "worker": an item was lost twice and ``failed`` is None, or processes end
            before they begin anything.
        Exception: what ``produce`` raised, with the worker's traceback as a note.
    """
    if not num_workers:
        for item in items:
            for value in produce(item):
                yield Produced(item, value, 0)
        return
    how = ((produce, items), multiprocessing.get_context(start_method), time_limit)
    lost: dict[int, str] = {}
    yield from _attempt(_Pool(*how), min(num_workers, len(items)), range(len(items)), 0, lost)
    for number in lost:
        again: dict[int, str] = {}
        yield from _attempt(_Pool(*how), 1, [number], 1, again)
        for reason in again.values():
            if failed is None:
                raise InputError(
                    f"an item of the work was lost: {reason}",
                    kind="worker",
                    hint="Give the work more memory, or run fewer processes.",
                )
            yield Produced(items[number], failed(items[number], reason), 1)


def _attempt(
    pool: _Pool, num_workers: int, numbers: Sequence[int], attempt: int, lost: dict[int, str]
) -> Iterator[Produced]:
    """Do the items of some numbers; those whose worker ended go to ``lost``, with the reason."""
    waiting, unfinished = iter(numbers), set[int]()  # the latter: queued or begun
    try:
        for _ in range(num_workers):
            pool.start()
        while True:
            for number in islice(waiting, _QUEUE - len(unfinished)):
                pool.put(number)
                unfinished.add(number)
            if len(unfinished) < _QUEUE:
                pool.no_more()
            if not unfinished:
                return
            if not pool.workers:  # killed between taking an item and saying so
                lost.update(dict.fromkeys(sorted(unfinished), KILLED))
                return
            ready, silent = pool.wait()
            for worker in silent:
                pool.lose(worker, pool.hung, unfinished, lost)
            for worker in ready:
                try:
                    message = _receive(worker.results)
                except (EOFError, OSError):
                    pool.lose(worker, KILLED, unfinished, lost)
                    continue
                worker.heard, worker.began = time.monotonic(), True
                if message.error is not None:
                    message.error.add_note(f"In a worker process:\n{message.place}")
                    raise message.error
                number = worker.item = message.item
                if message.last:
                    worker.item = None
                    unfinished.discard(number)
                for value in message.values:
                    yield Produced(pool.items[number], value, attempt)
    finally:
        pool.close()


@dataclass
class _Message:
    """From a worker: an item is begun, has a value, has ended, or raised an error."""

    item: int
    values: tuple[Any, ...] = ()
    last: bool = False
    error: Exception | None = None
    place: str = ""  # where the error arose


@dataclass(eq=False)
class _Worker:
    """A worker process, seen from the main process."""

    process: BaseProcess
    results: Connection  # where its messages come out
    item: int | None = None  # the number of the one that it has in hand
    began: bool = False  # whether it has begun any
    heard: float = field(default_factory=time.monotonic)  # when it last sent anything, or started


class _Pool:
    """Workers, and the queue from which they take items.

    The queue is a pipe of numbers of 8 bytes, of which the kernel gives each to one reader. There
    is no lock, which a worker that is killed would hold for ever. Each worker sends its results
    through a socket of its own: what it had sent before it was killed arrives.
    """

    def __init__(self, job: _Job, context: BaseContext, limit: float | None) -> None:
        self.workers: list[_Worker] = []
        self.items = job[1]
        self._context: Any = context  # typeshed knows of no Process in it
        self._job, self._limit = job, limit
        self.hung = (
            f"its worker process gave no result in {limit or 0:g} s, also when the item was "
            "retried alone, and was ended"
        )
        self._queue_out, self._queue_in = context.Pipe(duplex=False)
        self._barren = 0  # workers in a row that were killed before they began an item
        self._owner = os.getpid()
        # If this process ends first: multiprocessing itself sends one SIGTERM, and waits.
        self._at_exit = Finalize(None, self.close, exitpriority=10)

    def start(self) -> None:
        """Start one more worker."""
        own_end, its_end = self._context.Pipe()
        # A fork has all of this process's ends too. It must close them: a pipe ends when the last
        # process closes it, and that is how workers learn that this one is gone.
        fork = self._context.get_start_method() == "fork"
        others = [worker.results for worker in self.workers]
        unneeded = [self._queue_in, own_end, *others] if fork else []
        process = self._context.Process(
            target=_work, args=(self._job, self._queue_out, its_end, unneeded), daemon=True
        )
        # A fork must not collect this process's garbage: what stands for threads, such as a session
        # of onnxruntime, would wait for ever for those that a fork does not have.
        collects = gc.isenabled()
        gc.disable()
        try:
            process.start()
        finally:
            if collects:
                gc.enable()
            its_end.close()
        self.workers.append(_Worker(process, own_end))

    def put(self, number: int) -> None:
        """Put an item into the queue."""
        os.write(self._queue_in.fileno(), number.to_bytes(_NUMBER, "little"))

    def no_more(self) -> None:
        """Let workers end once the queue is empty; may be called again."""
        if not self._queue_in.closed:
            self._queue_in.close()

    def wait(self) -> tuple[list[_Worker], list[_Worker]]:
        """Wait for workers that sent something or ended; and those silent for too long."""
        ends = [worker.results for worker in self.workers]
        by_end: dict[object, _Worker] = {worker.results: worker for worker in self.workers}
        if self._limit is None:
            return [by_end[end] for end in wait(ends)], []
        # A process that starts may have much to import.
        until = {
            worker: worker.heard + max(self._limit, 0 if worker.item is not None else TIME_LIMIT)
            for worker in self.workers
        }
        ready_ends = wait(ends, max(0.0, min(until.values()) - time.monotonic()))
        ready = [by_end.pop(end) for end in ready_ends]
        now = time.monotonic()
        return ready, [worker for worker in by_end.values() if now >= until[worker]]

    def lose(
        self, worker: _Worker, reason: str, unfinished: set[int], lost: dict[int, str]
    ) -> None:
        """Part with a worker that has ended, or hangs; replace it if it ended before its time.

        Raises:
            InputError: one after another is killed before it begins an item.
            OSError: none is left, and none can be started.
        """
        self.workers.remove(worker)
        worker.results.close()
        if reason is KILLED:  # or it has ended by itself
            worker.process.join(_PATIENCE)
        worker.process.kill()
        worker.process.join(_PATIENCE)
        if worker.item is not None:
            lost[worker.item] = reason
            unfinished.discard(worker.item)
        elif worker.process.exitcode == 0:
            return
        if not unfinished:
            return
        self._barren = 0 if worker.began else self._barren + 1
        if self._barren > _BARREN * (1 + len(self.workers)):
            raise InputError(
                f"worker processes end before they begin anything (exit code "
                f"{worker.process.exitcode}; a negative one is the signal that killed it)",
                kind="worker",
                hint="Their own messages are above. To work without them, set "
                "datamodule.num_workers=0 (of a preprocessing, --num-workers 1).",
            )
        try:
            self.start()
        except OSError:  # no memory for it: the others go on
            if not self.workers:
                raise

    def close(self) -> None:
        """Let workers finish their item, for some seconds, and begin no other; then end them."""
        if os.getpid() != self._owner:  # a copy, in a fork
            return
        self._at_exit.cancel()
        self.no_more()
        for worker in self.workers:  # whoever has something to send ends at once
            worker.results.close()
        until = time.monotonic() + _PATIENCE
        try:
            for worker in self.workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in self.workers:
                worker.process.kill()
            for worker in self.workers:
                worker.process.join(_PATIENCE)
            self.workers.clear()
            self._queue_out.close()


# ---- messages ------------------------------------------------------------------------------------

_Packed = tuple[bytes, list[memoryview]]


def _pack(message: _Message) -> _Packed:
    """A small pickle, and the arrays that follow it as bytes."""
    arrays: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes >= _IN_BAND:
            arrays.append(view)
        return view.nbytes < _IN_BAND

    return pickle.dumps(message, protocol=5, buffer_callback=in_band), arrays


def _send(end: Connection, packed: _Packed) -> None:
    data, arrays = packed
    end.send((data, [view.nbytes for view in arrays]))
    for left in arrays:
        while left:
            left = left[os.write(end.fileno(), left) :]


def _receive(end: Connection) -> _Message:
    """Take a message. Raises EOFError or OSError if the worker has ended."""
    data, sizes = end.recv()
    arrays = [np.empty(size, np.uint8).data for size in sizes]
    with open(end.fileno(), "rb", buffering=0, closefd=False) as raw:
        for array in arrays:
            while array:
                count = raw.readinto(array)
                if not count:
                    raise EOFError
                array = array[count:]
    return pickle.loads(data, buffers=arrays)


# ---- in a worker ---------------------------------------------------------------------------------


def _work(
    job: _Job, queue: Connection, results: Connection, unneeded: Sequence[Connection]
) -> None:
    """Take items from the queue until it ends, or until nobody wants the results."""
    end_with_parent()
    gc.freeze()  # what there is now is the main process's
    gc.enable()
    for end in unneeded:
        if not end.closed:
            end.close()
    leave_signals_to_the_main_process()
    os.environ.update(_THREAD_LIMITS)  # for libraries that are not loaded yet
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    produce, items = job
    with suppress(BrokenPipeError, ConnectionResetError):
        while number := os.read(queue.fileno(), _NUMBER):
            item = int.from_bytes(number, "little")
            _send(results, _pack(_Message(item)))
            for packed in _messages(produce, items[item], item):
                _send(results, packed)


def _messages(produce: Callable[[Any], Iterable[Any]], item: Any, number: int) -> Iterator[_Packed]:
    """What is sent of an item. A value waits for the next: the last one is sent with the end."""
    try:
        held: tuple[Any, ...] = ()
        for value in produce(item):
            if held:
                yield _pack(_Message(number, held))
            held = (value,)
        last = _pack(_Message(number, held, last=True))
    except Exception as error:
        place = "".join(traceback.format_exception(error))
        try:
            error = pickle.loads(pickle.dumps(error))
        except Exception:  # of a library that does not think of this
            error = RuntimeError(f"{type(error).__name__}: {error}")
        last = _pack(_Message(number, error=error, place=place))
    yield last
