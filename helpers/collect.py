"""What happens to results while extraction goes on: they are written, counted and shown."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

from maest.helpers.checkpoints import Stopped, stop_signals
from maest.helpers.chunks import TrackResult
from maest.helpers.patches import seconds
from maest.helpers.writer import ResultWriter

# Processes meet once, at the end, and one may come much later than the others.
_PATIENCE = timedelta(days=7)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number, saved=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within this, SIGINT, SIGTERM and SIGUSR1 raise `helpers.checkpoints.Stopped`, at once."""
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set them
        handlers = {n: signal.signal(n, _stop) for n in stop_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Collect(pl.Callback):
    """Hands results to the writer, keeps account of failures, and moves a progress bar.

    Args:
        writer: of the results.
        total: tracks that are to be done.
        progress: whether a bar is shown, where the output is a terminal.

    Attributes:
        seconds: of the audio that was done.
        failed: reasons by key.
        started: `time.monotonic` when the first chunk was asked for.
        group: of several processes, for what they tell one another at the end.
    """

    def __init__(self, writer: ResultWriter, total: int, progress: bool = True) -> None:
        self.writer = writer
        self.total = total
        self.seconds = 0.0
        self.failed: dict[str, str] = {}
        self.started = time.monotonic()
        self._progress = progress
        self.group: Any = None
        self._bar: tqdm | None = None
        self._compared = False
        self._heard = 0.0  # seconds that have gone in

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()
        shown = self._progress and trainer.is_global_zero
        name = "extract" if trainer.world_size == 1 else "extract (part of the first process)"
        self._bar = tqdm(total=self.total, desc=name, unit="track", disable=None if shown else True)
        if trainer.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():  # again: Lightning has set its own by now
                signal.signal(number, _stop)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        similarity = pl_module.encoder.similarity
        if similarity is not None and not self._compared and trainer.is_global_zero:
            figures = ", ".join(f"{name} {value:.6f}" for name, value in similarity.items())
            tqdm.write(
                f"int8 against fp32, lowest cosine similarity on the first patches: {figures}"
            )
            self._compared = True
        for result in outputs:
            if isinstance(result, TrackResult):
                self.writer.put(result)
                self.seconds += result.seconds
            else:
                self.failed[result.key] = result.reason
        # Patch by patch: of a long track, too, one sees that it goes on.
        self._heard += seconds(int(batch.fresh.sum()))
        speed = self._heard / max(time.monotonic() - self.started, 1e-9)
        hours = f"{self._heard / 3600:.2f} h of audio, {speed:.0f} x real time"
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
