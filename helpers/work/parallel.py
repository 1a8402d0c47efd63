"""Work spread over processes, threads, or a cluster, with a progress bar."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from maest.helpers.errors import InputError, Kind
from maest.helpers.work.cluster import cluster_map
from maest.helpers.work.processes import process_map

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
    if backend not in BACKENDS:
        hint = f"Give one of {', '.join(BACKENDS)}."
        raise InputError(f"found {backend!r}", kind="unknown", hint=hint, setting="--backend")
    if (backend == "dask") != bool(scheduler):
        message = f"--backend is {backend}, and the scheduler is {scheduler}"
        kind: Kind = "conflict" if scheduler else "missing"
        hint = "Dask needs what `dask scheduler` prints: --backend dask --scheduler "
        hint += "tcp://HOST:8786. Otherwise leave both out."
        raise InputError(message, kind=kind, hint=hint, setting="--scheduler")


def run_parallel(
    function: Callable[..., Result],
    items: Sequence[Item],
    arguments: tuple = (),
    *,
    num_workers: int | None = None,
    backend: str = "processes",
    scheduler: str | None = None,
    failed: Callable[[Item, str], Result] | None = None,
    progress: bool = True,
    title: str = "",
    unit: str = "item",
) -> Generator[Result]:
    """Yield ``function(item, *arguments)`` of each item, in the order of completion.

    ``function`` must be importable. ``num_workers`` None starts one process per core; 1 works in
    this process, where a crash is not caught. Dask uses all threads of all its workers instead.
    For ``failed`` and the errors, see :func:`check_backend`, `process_map` and `cluster_map`.
    A terminal shows the bar.
    """
    check_backend(backend, scheduler, num_workers)
    if not items:
        return
    call = partial(_call, function, arguments)
    if scheduler:
        results = cluster_map(call, items, scheduler, failed)
    else:
        count = 0 if num_workers == 1 else num_workers or cores()
        results = process_map(call, items, num_workers=count, failed=failed)
    yield from _shown(results, len(items), title, unit, progress)


def _call(function: Callable[..., Result], arguments: tuple, item: Any) -> Result:
    return function(item, *arguments)


def in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int | None,
    progress: str | None,
) -> Iterator[Result]:
    """Yield ``function(item)`` in order, from threads; few results wait at a time.

    For NumPy and files, as Python itself runs one thread. ``num_workers`` None: one per core.
    """
    results = _in_threads(function, items, num_workers or cores())
    return _shown(results, len(items), progress or "", "file", bool(progress))


def _in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result]:
    if workers == 1:
        yield from map(function, items)
        return
    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                if len(under_way) == _WAITING * workers:
                    yield under_way.popleft().result()
                under_way.append(pool.submit(function, item))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _shown(
    results: Generator[Result], total: int, title: str, unit: str, progress: bool
) -> Iterator[Result]:
    hidden = None if progress else True  # None: a bar on terminals only
    with closing(results):
        yield from tqdm(results, desc=title, unit=unit, total=total, disable=hidden)
