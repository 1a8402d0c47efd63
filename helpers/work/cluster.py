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
from maest.helpers.work.processes import KILLED, replace_lost

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
    """Yield ``function(item)`` for each item, in order of completion, from a cluster's workers.

    ``function`` is of a module that the workers find under this repository's path. Dask retries an
    item whose worker was killed. One that loses too many workers is retried alone at the end, as
    items beside the one to blame are lost too; then ``failed`` gives its result.

    Raises InputError if there is no Dask, scheduler or worker, if the scheduler goes away, and,
    without ``failed``, for an item that kills its workers.
    """
    try:
        from distributed import Client
    except ImportError:
        what, hint = "Dask is not installed", 'Type pip install "dask[distributed]".'
        raise InputError(what, kind="dependency", hint=hint, setting="--backend") from None

    # Client leaves closing to the garbage collector. If another client starts meanwhile, both wait
    # for the same lock for ever.
    class ClosedClient(Client):
        """Closes at once if it cannot start."""

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
    """Yield each item with its result, or with None and True if its workers were killed."""
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
                try:  # a worker that dies now loses it, and Dask may wait for ever
                    result = future.result(_CONNECT_SECONDS)
                except TimeoutError:
                    was_killed = True
            yield submitted.pop(future.key), result, was_killed
        else:
            return
    except (CancelledError, OSError, RuntimeError) as gone:
        what = f"the Dask scheduler at {scheduler} does not answer any more ({type(gone).__name__})"
        hint = f"Start a cluster. {_GO_ON}"
        raise InputError(what, kind="network", hint=hint, setting="--scheduler") from None
    raise error  # of the function itself


def _anywhere(function: Callable[[Item], Result]) -> Callable[[bytes], Result]:
    """Wrap a function for workers that cannot import this repository yet."""
    # A nested function travels by value, and imports from the same path on the worker.
    payload, root = pickle.dumps(function), str(_ROOT)

    def call(item: bytes) -> Result:
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
        return pickle.loads(payload)(pickle.loads(item))

    return call
