"""Signals that stop a run, and what its worker processes do about them."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

# What stops a run; the last one is SLURM's, for the end of a job's time. Windows has none such.
_STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]


class Stopped(BaseException):
    """A run that a signal has stopped.

    No Exception: a second signal raises it anywhere, and nothing is to take it for a fault. Of a
    training, ``saved`` is whether ``last.ckpt`` is of this very instant, or of an earlier one.
    """

    def __init__(self, number: int, saved: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = signal.Signals(number)
        self.saved = saved


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, saved=True)


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this, ``handler`` has the signals that stop a run."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set them
        before = {number: signal.signal(number, handler) for number in _STOPS}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, signal.SIG_DFL if one is None else one)


def stoppable() -> AbstractContextManager[None]:
    """Within this, signals that stop a run raise :class:`Stopped`, at once."""
    return signals_to(_stop)


# ---- in a worker process ------------------------------------------------------------------------


def leave_signals_to_the_main_process(worker: int = 0) -> None:
    """Called in a worker process, by a DataLoader with its number.

    Ctrl-C, and the signals of a cluster, reach all processes. The main one may still need the data
    to save and stop, and its workers end with it. A second SIGTERM is its own, to a worker that
    hangs.
    """

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in _STOPS:
        signal.signal(number, first if number == signal.SIGTERM else signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, whatever it is busy with then."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
