"""Handle signals that stop a run, in the main process and in its workers."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

# Signals that stop a run. SLURM sends SIGUSR1 before a job's time ends; Windows lacks it.
_STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]


class Stopped(BaseException):
    """A signal has stopped the run.

    Not an Exception: a second signal raises it anywhere, and no handler of errors may catch it.
    ``saved``: whether a training's ``last.ckpt`` is of this moment rather than an earlier one.
    """

    def __init__(self, number: int, saved: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = signal.Signals(number)
        self.saved = saved


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, saved=True)


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handler`` receive the signals that stop a run."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set them
        before = {number: signal.signal(number, handler) for number in _STOPS}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, signal.SIG_DFL if one is None else one)


def stoppable() -> AbstractContextManager[None]:
    """Raise :class:`Stopped` at once on a signal that stops a run."""
    return signals_to(_stop)


# ---- in a worker process ------------------------------------------------------------------------


def leave_signals_to_the_main_process(worker: int = 0) -> None:
    """Ignore stop signals in a worker process; a DataLoader passes the worker's number.

    Ctrl-C and a cluster's signals reach all processes. The main process may still need data to save
    and stop, and its workers end with it. A second SIGTERM ends a worker that hangs.
    """

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in _STOPS:
        signal.signal(number, first if number == signal.SIGTERM else signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG of <linux/prctl.h>
