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

from maest.helpers.cluster import cluster_map
from maest.helpers.errors import InputError
from maest.helpers.processes import process_map

Item = TypeVar("Item")
Result = TypeVar("Result")

BACKENDS = ("processes", "dask")
_WAITING = 2  # results of each thread that wait to be taken, at most


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


def check_backend(backend: str, scheduler: str | None, num_workers: int | None = None) -> None:
    """Raise InputError unless there is such a backend, with what it needs, and workers."""
    if num_workers is not None and num_workers < 1:
        hint = "Give 1 or more processes."
        raise InputError(f"found {num_workers}", hint=hint, setting="--num-workers")
    if backend not in BACKENDS:
        hint = f"Give one of {', '.join(BACKENDS)}."
        raise InputError(f"found {backend!r}", kind="unknown", hint=hint, setting="--backend")
    if (backend == "dask") != bool(scheduler):
        raise InputError(
            f"--backend is {backend}, and the scheduler is {scheduler}",
            kind="conflict" if scheduler else "missing",
            hint="Dask needs what `dask scheduler` prints: --backend dask --scheduler "
            "tcp://HOST:8786. Otherwise leave both out.",
            setting="--scheduler",
        )


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
    """Yield ``function(item, *arguments)`` of each item, as they come.

    Args:
        function: of an importable module.
        num_workers: processes; None for one a core, 1 for this process, where a crash is not
            caught. A Dask cluster uses all the threads of its workers, those that join later too.
        backend, scheduler: "processes", or "dask" and the address of its scheduler.
        failed: see `helpers.processes.process_map`, which tells, with `check_backend` and
            `helpers.cluster.cluster_map`, the errors too.
        progress: whether to show a bar, with its title and unit, where the output is a terminal.
    """
    check_backend(backend, scheduler, num_workers)
    if not items:
        return
    call = partial(_call, function, arguments)
    results = (
        cluster_map(call, items, scheduler, failed)
        if scheduler
        else process_map(
            call,
            items,
            num_workers=0 if num_workers == 1 else num_workers or cores(),
            failed=failed,
        )
    )
    yield from _shown(results, len(items), title, unit, progress)


def _call(function: Callable[..., Result], arguments: tuple, item: Any) -> Result:
    return function(item, *arguments)


def in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int | None,
    progress: str | None,
) -> Iterator[Result]:
    """``map(function, items)`` in threads, in order, with few results waiting at a time.

    NumPy and the file system should do most of the work: Python itself runs one thread. None for
    ``num_workers`` is one thread a core; ``progress`` names a bar, which a terminal shows.
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
    """The same, with a bar where the output is a terminal."""
    hidden = None if progress else True  # None: unless on a terminal
    with closing(results):
        yield from tqdm(results, desc=title, unit=unit, total=total, disable=hidden)
