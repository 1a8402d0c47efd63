"""What happens to results while extraction goes on: they are written, counted and shown."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm

from helpers.checkpoints import Stopped
from helpers.tracks import TrackResult
from helpers.writer import ResultWriter

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last announces the end of a SLURM job's time


class Collect(pl.Callback):
    """Hands results to the writer, keeps account of failures, and moves a progress bar.

    On SIGINT, SIGTERM and SIGUSR1 it raises :class:`helpers.checkpoints.Stopped`, at once: what is
    not written by then is made by the next run.

    Args:
        writer: of the results.
        total: tracks that are to be done.
        progress: whether a bar is shown, where the output is a terminal.

    Attributes:
        seconds: of the audio that was done.
        failed: reasons by key.
        started: `time.monotonic` when the first chunk was asked for.
    """

    def __init__(self, writer: ResultWriter, total: int, progress: bool = True) -> None:
        self.writer = writer
        self.total = total
        self.seconds = 0.0
        self.failed: dict[str, str] = {}
        self.started = time.monotonic()
        self._progress = progress
        self._bar: tqdm | None = None
        self._handlers: dict[int, Any] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()
        shown = self._progress and trainer.is_global_zero
        self._bar = tqdm(
            total=self.total, desc="extract", unit="track", disable=None if shown else True
        )

        def stop(number: int, frame: FrameType | None) -> None:
            raise Stopped(number, saved=True)

        for name in _SIGNALS:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._handlers[number] = signal.signal(number, stop)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for result in outputs:
            if isinstance(result, TrackResult):
                self.writer.put(result)
                self.seconds += result.seconds
            else:
                self.failed[result.key] = result.reason
        if outputs:
            speed = self.seconds / max(time.monotonic() - self.started, 1e-9)
            hours = f"{self.seconds / 3600:.2f} h of audio, {speed:.0f} x real time"
            self._bar.set_postfix_str(hours, refresh=False)
            self._bar.update(len(outputs))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
