"""Work on a Dask cluster, for which ``pip install "dask[distributed]"`` is needed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import maest
from maest.helpers.errors import InputError
from maest.helpers.processes import KILLED, replace_lost

Item = TypeVar("Item")
Result = TypeVar("Result")

_ROOT = Path(str(maest.__file__)).resolve().parents[1]
_CONNECT_SECONDS = 20
_WINDOW = 2000  # tasks at the scheduler, at most
_GO_ON = "What is done is kept: run the same again."


def cluster_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    scheduler: str,
    failed: Callable[[Item, str], Result] | None = None,
) -> Generator[Result]:
    """Yield ``function(item)`` of each item, as they come, from the workers of a cluster.

    Dask does a task again whose worker was killed. One at which too many were killed is retried
    alone when all others are done, as those that ran beside the one to blame are killed too.

    Args:
        function: of a module that the workers find under this repository's path.
        failed: makes the result of an item that kills its workers; None to raise an error instead.

    Raises:
        InputError: there is no Dask, no scheduler or no worker, or the scheduler goes away.
    """
    try:
        from distributed import Client
    except ImportError:
        hint = 'Type pip install "dask[distributed]".'
        what = "Dask is not installed"
        raise InputError(what, kind="dependency", hint=hint, setting="--backend") from None

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
        hint = "Give the address that `dask scheduler` prints."
        what = f"no Dask scheduler answers at {scheduler} ({type(error).__name__})"
        raise InputError(what, kind="missing", hint=hint, setting="--scheduler") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError:
            hint = f"Start some with `dask worker {scheduler}`."
            what = f"the Dask cluster at {scheduler} has no workers"
            raise InputError(what, kind="missing", hint=hint, setting="--scheduler") from None
        call, killed = _anywhere(function), []
        for item, result, was_killed in _finished(client, call, items, scheduler):
            if was_killed:
                killed.append(item)
            else:
                yield result
        for item in killed:
            ((_, result, was_killed),) = _finished(client, call, [item], scheduler)
            hint = f"Give the workers more memory. {_GO_ON}"
            yield replace_lost(item, KILLED, failed, hint) if was_killed else result


def _finished(
    client: Any, call: Callable[[bytes], Result], items: Sequence[Item], scheduler: str
) -> Iterator[tuple[Item, Any, bool]]:
    """Each item with its result, or with None and True where workers were killed at it."""
    from distributed import KilledWorker, as_completed

    waiting, submitted, completed = iter(items), {}, as_completed(loop=client.loop)

    def submit(some: Iterable[Item]) -> None:
        for item in some:
            future = client.submit(call, pickle.dumps(item), pure=False)
            submitted[future.key] = item
            completed.add(future)

    try:
        submit(islice(waiting, _WINDOW))
        for future in completed:
            submit(islice(waiting, 1))
            error, result = future.exception(), None
            was_killed = isinstance(error, KilledWorker)
            if error is not None and not was_killed:
                break
            if not was_killed:
                try:  # a worker that dies now takes it along, and Dask may wait for it for ever
                    result = future.result(_CONNECT_SECONDS)
                except TimeoutError:
                    was_killed = True
            yield submitted.pop(future.key), result, was_killed
        else:
            return
    except (CancelledError, OSError, RuntimeError) as gone:
        raise InputError(
            f"the Dask scheduler at {scheduler} does not answer any more ({type(gone).__name__})",
            kind="network",
            hint=f"Start a cluster. {_GO_ON}",
            setting="--scheduler",
        ) from None
    raise error  # the work's own


def _anywhere(function: Callable[[Item], Result]) -> Callable[[bytes], Result]:
    """The function, for workers that started elsewhere and cannot import this repository yet.

    A function inside a function travels by value; what it needs of ours is imported where it runs,
    from the folder that this file is in (which the workers must see under the same path).
    """
    payload, root = pickle.dumps(function), str(_ROOT)

    def call(item: bytes) -> Result:
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        return pickle.loads(payload)(pickle.loads(item))

    return call
