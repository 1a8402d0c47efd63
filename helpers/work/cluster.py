"""Work on a Dask cluster, for which ``pip install "dask[distributed]"`` is needed."""

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import maest
from maest.helpers.errors import InputError
from maest.helpers.work.messages import Packed, unpack
from maest.helpers.work.processes import KILLED, refuse_lost

Item = TypeVar("Item")
Result = TypeVar("Result")

_ROOT = str(Path(str(maest.__file__)).resolve().parents[1])
_CONNECT_SECONDS = 20
_WINDOW = 2000  # tasks at the scheduler, at most


def cluster_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    scheduler: str,
    failed: Callable[[Item, str], Result] = refuse_lost,
) -> Generator[Result]:
    """Yield ``function(item)`` for each item, in order of completion, from a cluster's workers.

    ``function`` is of a module that the workers find under this repository's path. An item that
    loses too many workers is retried alone at the end, as items beside the one to blame are lost
    too; then ``failed`` gives its result.

    Raises InputError if there is no Dask, scheduler or worker, or if the scheduler goes away.
    """
    with _connect(scheduler) as client:
        killed = []
        for item, packed in _finished(client, function, items, scheduler):
            if packed is None:
                killed.append(item)
            else:
                yield unpack(packed)
        for item in killed:
            ((_, packed),) = _finished(client, function, [item], scheduler)
            yield failed(item, KILLED) if packed is None else unpack(packed)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        what, hint = "Dask is not installed", 'Type pip install "dask[distributed]".'
        raise InputError(what, kind="dependency", hint=hint, setting="--backend") from None

    class ClosedClient(Client):
        """Closes at once if it finds no scheduler or no worker.

        Otherwise the garbage collector closes it: then it and one that starts wait for ever.
        """

        def start(self, **options: Any) -> None:
            try:
                super().start(**options)
                self.wait_for_workers(1, timeout=_CONNECT_SECONDS)
            except BaseException:
                self.close()
                raise

    try:
        return ClosedClient(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        what = f"no Dask scheduler with workers is at {scheduler} ({type(error).__name__})"
        hint = "Give the address that `dask scheduler` prints, and start `dask worker ADDRESS`."
        raise InputError(what, kind="missing", hint=hint, setting="--scheduler") from None


def _finished(
    client: Any, function: Callable[[Item], Any], items: Sequence[Item], scheduler: str
) -> Iterator[tuple[Item, Packed | None]]:
    """Yield each item with its packed result, or with None if its workers were killed."""
    from distributed import KilledWorker, as_completed

    waiting, submitted, completed = iter(items), {}, as_completed(loop=client.loop)
    root = _ROOT

    def call(task: bytes) -> Packed:  # as a nested function, it travels by value
        import pickle
        import sys

        if root not in sys.path:  # of workers that cannot import this repository yet
            sys.path.insert(0, root)
        from maest.helpers.work.messages import pack

        function, item = pickle.loads(task)
        return pack(function, [item], 0)

    def submit(number: int) -> None:
        for item in islice(waiting, number):
            future = client.submit(call, pickle.dumps((function, item)), pure=False)
            submitted[future.key] = item
            completed.add(future)

    try:
        submit(_WINDOW)
        for future in completed:
            submit(1)
            try:  # a worker that dies now loses the result, and Dask may wait for ever
                packed = future.result(_CONNECT_SECONDS)
            except (KilledWorker, TimeoutError):
                packed = None
            yield submitted.pop(future.key), packed
    except (CancelledError, OSError, RuntimeError) as gone:
        what = f"the Dask scheduler at {scheduler} does not answer any more ({type(gone).__name__})"
        hint = "Start a cluster. What is done is kept: run the same again."
        raise InputError(what, kind="network", hint=hint, setting="--scheduler") from None
