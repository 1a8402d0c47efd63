"""Handle signals that stop a run, in the main process and in its workers."""

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
        self.signal, self.saved = signal.Signals(number), saved
        super().__init__(f"stopped by {self.signal.name}")


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let ``handler`` receive the signals that stop a run."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set them
        before = {number: signal.signal(number, handler) for number in _STOPS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def stoppable() -> AbstractContextManager[None]:
    """Raise :class:`Stopped` at once on a signal that stops a run."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, saved=True)

    return signals_to(stop)


# ---- in a worker process -------------------------------------------------------------------------


def ignore_signals(worker: int = 0) -> None:
    """Ignore what stops a run: it reaches all processes, and the main one may need data to save.

    A second SIGTERM ends a worker that hangs. ``worker``: the number that a DataLoader passes.
    """
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG of <linux/prctl.h>
