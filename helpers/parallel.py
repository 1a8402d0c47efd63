"""Work spread over processes, threads, or a cluster, with a progress bar.

loky (which comes with joblib) spreads it over the cores of this machine; Dask over a cluster, for
which ``pip install "dask[distributed]"`` is needed.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from helpers.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("loky", "dask")
_ROOT = Path(__file__).resolve().parent.parent
_CONNECT_SECONDS = 20
_WINDOW = 2  # batches under way for each worker: one that it works on, one that waits
_RECOUNT_SECONDS = 1  # how often a cluster's workers are counted again
_PATIENCE = 5  # seconds that worker processes have to finish their item when the work is ended
# Why a file has no result, where `crashed` says so: it has been read again, alone
KILLED_TWICE = (
    "the process that read it was killed, twice: it crashes its decoder, or needs more memory "
    "than there is"
)
_KEPT = "What is done is kept: run the same again"
_THREAD_LIMITS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


class ParallelError(InputError):
    """A cluster that cannot be used, or a worker that died."""


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread for torch: processes do not fight for cores, and sums have the same order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def leave_signals_to_the_main_process(worker: int = 0) -> None:
    """Called in a reading process. Ctrl-C, and the signals of a cluster, reach all processes.

    The main process decides: it may still need the data to save and stop, and its workers end with
    it. A second SIGTERM is the main process's own, to a worker that hangs.

    Args:
        worker: its number, which a DataLoader gives; not used.
    """

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def check_backend(backend: str, scheduler: str | None, num_workers: int | None = None) -> None:
    """Raise ParallelError unless there is such a backend, with what it needs, and workers."""
    if num_workers is not None and num_workers < 1:
        raise ParallelError(f"--num-workers is {num_workers}: expected 1 or more")
    if backend not in BACKENDS:
        raise ParallelError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    if backend == "dask" and not scheduler:
        raise ParallelError(
            "the dask backend needs the address of a scheduler: --scheduler tcp://HOST:8786 "
            "(what `dask scheduler` prints)"
        )
    if backend != "dask" and scheduler:
        raise ParallelError(f"a scheduler ({scheduler}) is of use with --backend dask only")


def run_parallel(
    function: Callable[..., list],
    items: Sequence[Any],
    arguments: tuple = (),
    *,
    batch_size: int = 1,
    num_workers: int | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
    ordered: bool = False,
    crashed: Callable[[Any], Any] | None = None,
    progress: bool = True,
    title: str = "",
    unit: str = "item",
) -> Iterator[list]:
    """Apply ``function(batch, *arguments)`` to batches of items, and yield its results.

    Args:
        function: of an importable module; takes a list of items, returns a list as long.
        items: what there is to do.
        arguments: the same for each batch; all of it must pickle.
        batch_size: items in a batch, at most.
        num_workers: processes; None for one a core, 1 for this process. A Dask cluster uses all
            the threads of its workers, those that join later too.
        backend, scheduler: "loky", or "dask" and the address of its scheduler.
        ordered: yield results in the order of items, or as they come. In that case batches are
            interleaved (items i, i + n, i + 2 n, ...): slow neighbours are spread.
        crashed: gives the result of an item that kills its worker process. What was under way when
            a worker was killed is done again, one item at a time; an item that kills again gets
            this result, and the others go on. None: a killed worker ends the work.
        progress: whether to show a bar (where the output is a terminal or a file).
        title, unit: what the bar says.

    Yields:
        what ``function`` returned, batch by batch.

    Raises:
        ParallelError: a backend that is not there, no positive number of workers, a worker process
            that was killed, a scheduler that went away.
    """
    check_backend(backend, scheduler, num_workers)
    if not items:
        return
    n_batches = -(-len(items) // batch_size)
    if ordered:
        batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    else:
        batches = [items[i::n_batches] for i in range(n_batches)]
    # One batch is no reason for a process, unless it may be one that kills it.
    here = num_workers == 1 or (crashed is None and min(num_workers or cores(), n_batches) == 1)
    results: Iterable[list]
    if backend == "dask":
        results = _dask(function, batches, arguments, scheduler, ordered, crashed)
    elif here:
        results = (function(batch, *arguments) for batch in batches)
    else:
        num_workers = min(num_workers or cores(), n_batches)
        results = _loky(function, batches, arguments, num_workers, ordered, crashed)
    with tqdm(total=len(items), desc=title, unit=unit, disable=None if progress else True) as bar:
        for batch in results:
            yield batch
            bar.update(len(batch))


def in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int | None,
    progress: str | None,
) -> Iterator[Result]:
    """``map(function, items)`` in threads, in order, with few results waiting at a time.

    Args:
        function: what NumPy and the file system spend most time in: Python itself runs one thread.
        items: its arguments.
        num_workers: threads; None for one a core that this process may use.
        progress: what a progress bar is called, which a terminal shows; None for no bar.
    """
    from joblib import Parallel, delayed

    workers = num_workers or cores()
    if workers == 1:
        results = map(function, items)
    else:
        parallel = Parallel(n_jobs=workers, backend="threading", return_as="generator")
        results = parallel(delayed(function)(item) for item in items)
    hidden = None if progress else True  # None: unless on a terminal
    return _closed(results, tqdm(total=len(items), desc=progress, disable=hidden, unit="file"))


def _closed(results: Iterator[Result], bar: tqdm) -> Iterator[Result]:
    """Ends the threads where results are not waited for; joblib would warn of that."""
    with bar:
        try:
            for result in results:
                yield result
                bar.update()
        finally:
            if hasattr(results, "close"):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*tasks have been successfully executed")
                    warnings.filterwarnings("ignore", ".*tasks which were still being processed")
                    results.close()


# ---- this machine --------------------------------------------------------------------------------


def _pool(num_workers: int) -> Executor:
    """Worker processes: those of the last call, or new ones if one of them was killed."""
    from joblib.externals.loky import get_reusable_executor

    # Idle processes go soon: what follows is often a training run, which wants the memory.
    return get_reusable_executor(
        max_workers=num_workers,
        timeout=5,
        env=_THREAD_LIMITS,
        initializer=leave_signals_to_the_main_process,
    )


def _loky(
    function: Callable[..., list],
    batches: list,
    arguments: tuple,
    num_workers: int,
    ordered: bool,
    crashed: Callable[[Any], Any] | None,
) -> Iterator[list]:
    from joblib.externals.loky.process_executor import BrokenProcessPool

    waiting, under_way = deque(batches), {}
    try:
        while waiting or under_way:
            try:
                pool = _pool(num_workers)
                while waiting and len(under_way) < _WINDOW * num_workers:
                    future = pool.submit(function, waiting[0], *arguments)
                    under_way[future] = waiting.popleft()
                if ordered:
                    ready = [next(iter(under_way))]
                else:
                    ready = wait(under_way, return_when=FIRST_COMPLETED).done
                for future in ready:
                    result = future.result()
                    del under_way[future]
                    yield result
            except BrokenProcessPool:
                if crashed is None:
                    raise ParallelError(
                        "a worker process was killed (out of memory?). What is done is kept: "
                        "run the same again, with fewer --num-workers"
                    ) from None
                wait(under_way)
                for future, batch in under_way.items():
                    if isinstance(future.exception(), BrokenProcessPool):
                        yield [_alone(function, item, arguments, crashed) for item in batch]
                    else:
                        yield future.result()
                under_way.clear()
    except BaseException:
        try:  # what is under way is done within seconds, and leaves no part of itself
            wait([future for future in under_way if not future.cancel()], _PATIENCE)
        finally:
            _pool(num_workers).shutdown(kill_workers=True)
        raise


def _alone(
    function: Callable[..., list], item: Any, arguments: tuple, crashed: Callable[[Any], Any]
) -> Any:
    """The result of one item, with no other under way."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    try:
        return _pool(1).submit(function, [item], *arguments).result()[0]
    except BrokenProcessPool:
        return crashed(item)


# ---- Dask ----------------------------------------------------------------------------------------


def _dask(
    function: Callable[..., list],
    batches: list,
    arguments: tuple,
    scheduler: str | None,
    ordered: bool,
    crashed: Callable[[Any], Any] | None,
) -> Iterator[list]:
    try:
        from distributed import Client
    except ImportError:
        raise ParallelError(
            'the dask backend needs Dask: pip install "dask[distributed]"'
        ) from None

    class ClosedClient(Client):
        """Ends at once where it cannot start.

        Client leaves that to the garbage collector, which may come while another one starts, and
        then both wait for the same lock, for ever.
        """

        def start(self, **options: Any) -> Any:
            try:
                return super().start(**options)
            except BaseException:
                self.close()
                raise

    try:
        client = ClosedClient(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        raise ParallelError(
            f"no Dask scheduler answers at {scheduler} ({type(error).__name__}). "
            "Check the address that `dask scheduler` prints"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError:
            raise ParallelError(
                f"the Dask cluster at {scheduler} has no workers: start some with "
                f"`dask worker {scheduler}`"
            ) from None
        call = _anywhere(function, arguments)
        yield from _on_cluster(client, scheduler, call, batches, ordered, crashed)


def _on_cluster(
    client: Any,
    scheduler: str | None,
    call: Callable[[bytes], list],
    batches: list,
    ordered: bool,
    crashed: Callable[[Any], Any] | None,
) -> Iterator[list]:
    from distributed import KilledWorker, as_completed

    def submit(batch: list) -> Any:
        return client.submit(call, pickle.dumps(batch), pure=False)

    def outcome(future: Any) -> list | None:
        """What came of it; None if workers were killed at it."""
        with _scheduler_needed(scheduler):
            error = future.exception()
            try:  # a worker that dies now takes it along, and Dask may wait for it for ever
                result = future.result(_CONNECT_SECONDS) if error is None else None
            except TimeoutError:
                result = None
        if error is not None and not isinstance(error, KilledWorker):
            raise error
        return result

    waiting, under_way, completed = deque(batches), {}, as_completed(loop=client.loop)
    window, counted = 0, -float("inf")
    while waiting or under_way:
        with _scheduler_needed(scheduler):
            if time.monotonic() - counted >= _RECOUNT_SECONDS:
                window = _WINDOW * max(1, sum(client.nthreads().values()))
                counted = time.monotonic()
            while waiting and len(under_way) < window:
                future = submit(waiting[0])
                under_way[future] = waiting.popleft()
                if not ordered:
                    completed.add(future)
            future = next(iter(under_way)) if ordered else next(completed)
        batch, result = under_way.pop(future), outcome(future)
        if result is None:
            if crashed is None:
                raise ParallelError(
                    "workers of the Dask cluster were killed, one after another, at the same work "
                    f"(out of memory?). {_KEPT}"
                )
            result = []
            with _scheduler_needed(scheduler):
                for other in under_way:  # one of which may be what kills
                    other.exception()
            for item in batch:
                with _scheduler_needed(scheduler):
                    future = submit([item])
                result += outcome(future) or [crashed(item)]
        yield result


@contextmanager
def _scheduler_needed(scheduler: str | None) -> Iterator[None]:
    """Tell of a scheduler that does not answer any more."""
    try:
        yield
    except (CancelledError, OSError, RuntimeError) as error:
        raise ParallelError(
            f"the Dask scheduler at {scheduler} does not answer any more "
            f"({type(error).__name__}). {_KEPT}"
        ) from None


def _anywhere(function: Callable[..., list], arguments: tuple) -> Callable[[bytes], list]:
    """The function, for workers that started elsewhere and cannot import this repository yet.

    A function inside a function travels by value; what it needs of ours is imported where it runs,
    from the folder that this file is in (which the workers must see under the same path).
    """
    payload, root = pickle.dumps((function, arguments)), str(_ROOT)

    def call(batch: bytes) -> list:
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        function, arguments = pickle.loads(payload)
        return function(pickle.loads(batch), *arguments)

    return call
