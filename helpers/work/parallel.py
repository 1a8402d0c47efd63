"""Work spread over processes, threads, or a cluster, with a progress bar."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from maest.helpers.errors import InputError, Kind
from maest.helpers.work.cluster import cluster_map
from maest.helpers.work.processes import process_map, refuse_lost

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("processes", "dask")
_WAITING = 2  # results per thread that may wait to be taken


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Give torch one thread: processes do not fight for cores, and sums keep their order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_backend(backend: str, scheduler: str | None, num_workers: int | None = None) -> None:
    """Raise InputError for an unknown backend, no workers, or Dask without a scheduler."""
    if num_workers is not None and num_workers < 1:
        hint = "Give 1 or more processes."
        raise InputError(f"found {num_workers}", hint=hint, setting="--num-workers")
    if backend not in BACKENDS or (backend == "dask") != bool(scheduler):
        what = f"--backend is {backend}, and the scheduler is {scheduler}"
        hint = "Dask needs what `dask scheduler` prints: --backend dask --scheduler "
        hint += "tcp://HOST:8786. Otherwise leave both out."
        kind: Kind = "missing" if backend == "dask" else "conflict"
        raise InputError(what, kind=kind, hint=hint, setting="--scheduler")


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int | None = None,
    backend: str = "processes",
    scheduler: str | None = None,
    failed: Callable[[Item, str], Result] = refuse_lost,
    progress: bool = True,
    title: str = "",
    unit: str = "item",
) -> Generator[Result]:
    """Yield ``function(item)`` of each item, in the order of completion.

    ``function`` must be importable, or a `partial` of such a function. ``num_workers`` None starts
    one process per core; 1 works in this process, where a crash is not caught. Dask uses all
    threads of all its workers instead. Raises as :func:`check_backend`, `process_map` and
    `cluster_map`.
    """
    check_backend(backend, scheduler, num_workers)
    if scheduler and items:
        results = cluster_map(function, items, scheduler, failed)
    else:
        count = 0 if num_workers == 1 else num_workers or cores()
        results = process_map(function, items, num_workers=count, failed=failed)
    with closing(results), _bar(len(items), title, unit, progress) as bar:
        for result in results:
            yield result
            bar.update()


def thread_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int | None,
    progress: str | None,
) -> Iterator[Result]:
    """Yield ``function(item)`` in order, from threads; few results wait at a time.

    For NumPy and files, as Python itself runs one thread. ``num_workers`` None: one per core.
    """
    workers = num_workers or cores()
    waiting, futures = iter(items), deque[Future[Result]]()
    pool = ThreadPoolExecutor(workers)
    with pool, _bar(len(items), progress or "", "file", bool(progress)) as bar:
        try:
            for _ in items:
                for item in islice(waiting, _WAITING * workers - len(futures)):
                    futures.append(pool.submit(function, item))
                yield futures.popleft().result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def _bar(total: int, title: str, unit: str, progress: bool) -> tqdm:
    hidden = None if progress else True  # None: a bar on terminals only
    return tqdm(desc=title, unit=unit, total=total, disable=hidden)
