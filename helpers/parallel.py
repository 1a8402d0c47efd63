"""Work spread over processes, or over a cluster, with a progress bar.

joblib does the spreading: over the cores of this machine (loky), or over a Dask cluster, for which
``pip install "dask[distributed]"`` is needed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from helpers.errors import InputError

BACKENDS = ("loky", "dask")
_ROOT = Path(__file__).resolve().parent.parent
_CONNECT_SECONDS = 20


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


def check_backend(backend: str, scheduler: str | None) -> None:
    """Raise ParallelError unless the backend exists and has a scheduler if it needs one."""
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
            the threads of its workers.
        backend, scheduler: "loky", or "dask" and the address of its scheduler.
        ordered: yield results in the order of items, or as they come. In that case batches are
            interleaved (items i, i + n, i + 2 n, ...): slow neighbours are spread.
        progress: whether to show a bar (where the output is a terminal or a file).
        title, unit: what the bar says.

    Yields:
        what ``function`` returned, batch by batch.

    Raises:
        ParallelError: a backend that is not there, or a worker process that was killed.
    """
    check_backend(backend, scheduler)
    if not items:
        return
    n_batches = -(-len(items) // batch_size)
    if ordered:
        batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    else:
        batches = [items[i::n_batches] for i in range(n_batches)]
    num_workers = min(num_workers or cores(), n_batches)
    results: Iterable[list]
    if backend == "dask":
        results = _dask(function, batches, arguments, scheduler, ordered)
    elif num_workers <= 1:
        results = (function(batch, *arguments) for batch in batches)
    else:
        results = _loky(function, batches, arguments, num_workers, ordered)
    with tqdm(total=len(items), desc=title, unit=unit, disable=None if progress else True) as bar:
        for batch in results:
            yield batch
            bar.update(len(batch))


def _return_as(ordered: bool) -> str:
    return "generator" if ordered else "generator_unordered"


def _loky(
    function: Callable[..., list], batches: list, arguments: tuple, num_workers: int, ordered: bool
) -> Iterator[list]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    # Idle processes go soon: what follows is often a training run, which wants the memory.
    pool = Parallel(n_jobs=num_workers, return_as=_return_as(ordered), idle_worker_timeout=5)
    try:
        yield from pool(delayed(function)(batch, *arguments) for batch in batches)
    except BrokenProcessPool:
        raise ParallelError(
            "a worker process was killed (out of memory? it can also be a file that crashes its "
            "decoder). What is done is kept: run the same again, with fewer --num-workers"
        ) from None


# ---- Dask ----------------------------------------------------------------------------------------


def _dask(
    function: Callable[..., list],
    batches: list,
    arguments: tuple,
    scheduler: str | None,
    ordered: bool,
) -> Iterator[list]:
    try:
        from distributed import Client
    except ImportError:
        raise ParallelError(
            'the dask backend needs Dask: pip install "dask[distributed]"'
        ) from None
    from joblib import Parallel, delayed, parallel_config

    try:
        client = Client(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        raise ParallelError(
            f"no Dask scheduler answers at {scheduler} ({type(error).__name__}). "
            "Check the address that `dask scheduler` prints"
        ) from None
    with client:
        task = delayed(_anywhere(function, arguments))
        with parallel_config("dask", client=client, wait_for_workers_timeout=_CONNECT_SECONDS):
            pool = Parallel(n_jobs=-1, return_as=_return_as(ordered))
            try:
                results = pool(task(pickle.dumps(batch)) for batch in batches)
            except TimeoutError:
                raise ParallelError(
                    f"the Dask cluster at {scheduler} has no workers: start some with "
                    f"`dask worker {scheduler}`"
                ) from None
        yield from results


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
