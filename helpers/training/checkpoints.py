"""Whole checkpoints of a training: a run killed at any instant continues from ``last.ckpt``."""

import logging
import math
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from maest.helpers.errors import InputError, Kind, first_line
from maest.helpers.files.atomic import TEMPORARY, atomic_path
from maest.helpers.training.history import FIRST
from maest.helpers.work.signals import Stopped, signals_to

log = logging.getLogger(__name__)

LAST = "last.ckpt"
_PARTS = {"state_dict", "loops", "optimizer_states", "lr_schedulers"}  # to continue a training
_STALE_SECONDS = 600.0  # an older unfinished file is left over from a kill
_DUPLICATE_SIGNAL_SECONDS = 1.0  # a repeat within is one signal from two senders
_ASK_EVERY = 10  # steps between exchanges, among processes that train together, whether to stop


def diverged(what: str, epoch: int, step: int) -> InputError:
    """Return the error for values that became NaN or infinite; ``epoch`` counts from 0."""
    where = f"in epoch {epoch + FIRST}, at step {step} or shortly before"
    hint = "Lower module.lr, or set trainer.gradient_clip_val=1."
    return InputError(f"{what} NaN or infinite {where}", kind="diverged", hint=hint)


# Lightning writes through the folder for temporary files: where that is another file system, a kill
# leaves part of a checkpoint.
class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk, and renames it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        try:
            with atomic_path(path, durable=True) as temporary:
                torch.save(checkpoint, temporary)
        except (RuntimeError, OSError) as error:  # torch's writer raises RuntimeError
            free = shutil.disk_usage(Path(path).parent).free / 2**20
            message = f"could not be written ({first_line(error)}; {free:.0f} MiB free)"
            hint = "Make room, and continue with ckpt_path=last: the checkpoint before it is whole."
            raise InputError(message, kind="access", path=path, hint=hint) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        kind: Kind = "corrupt"
        try:
            with zipfile.ZipFile(path) as archive:  # torch ignores the checksums
                if archive.testzip() is None:
                    content = super().load_checkpoint(path, *args, **kwargs)
                    if isinstance(content, dict) and content.keys() >= _PARTS:
                        return content
        except (FileNotFoundError, IsADirectoryError):
            kind = "missing"
        except (MemoryError, OSError):  # which say nothing of the file
            raise
        except Exception:  # a damaged file can raise nearly anything
            log.debug("%s cannot be read", path, exc_info=True)
        message = "no such file" if kind == "missing" else "no whole checkpoint of a training"
        hint = "Give a checkpoint of a training (`last`, exp_logs/<id>/checkpoints/last.ckpt, or "
        hint += "best-epoch=<n>.ckpt beside it), or start from a model's weights, maest.checkpoint."
        raise InputError(message, kind=kind, hint=hint, path=path, setting="ckpt_path")


class StepLimit(pl.Callback):
    """Ends training after ``max_steps``; Lightning's counts an epoch twice on continuing."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step >= self.max_steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_train_start(trainer)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt``, and for each monitored metric the checkpoint of its best epoch.

    The best are ``<name>-epoch=<number>.ckpt``, counted from 1; an older best stays until
    ``last.ckpt`` records the newer one. Within an epoch, saves are ``minutes`` apart. ``monitors``
    maps names to metrics, of which the highest value counts; those not logged are skipped.

    On SIGTERM, SIGINT or SIGUSR1 (SLURM's notice that a job's time ends), it saves after the step
    (from an epoch's last batch on, after the epoch) and raises :class:`Stopped`. A second signal
    stops at once.
    """

    def __init__(
        self, folder: str | Path, monitors: Mapping[str, str], minutes: float = 10.0
    ) -> None:
        self.folder, self.monitors, self.minutes = Path(folder), dict(monitors), minutes
        self.best: dict[str, dict[str, float]] = {}  # name → {"epoch": …, "score": …}
        self._shift = 0  # added to the previous run's epoch numbers
        self._validated = False
        self._saved_at = time.monotonic()
        self._signal, self._signalled_at = 0, 0.0
        self._handlers = ExitStack()

    # ------------------------------------------------------------------ what is kept

    def path(self, name: str) -> Path | None:
        """Return the checkpoint of the best epoch by ``name``; None if there is none."""
        return self.folder / self._name(name) if name in self.best else None

    def _name(self, name: str, shift: int = 0) -> str:
        return f"{name}-epoch={self.best[name]['epoch'] - shift}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best), "first_epoch": FIRST}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._shift = FIRST - state_dict.get("first_epoch", 0)  # version 0.1 counted from 0
        self.best = {
            name: best | {"epoch": best["epoch"] + self._shift}
            for name, best in state_dict["best"].items()
            if math.isfinite(best["score"])  # one of 0.1 may be NaN
        }

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.ckpt_path is not None:
            self._link_previous_run(Path(trainer.ckpt_path))
        self.best = trainer.strategy.broadcast(self.best)  # all save, or none

    def _link_previous_run(self, continued: Path) -> None:
        """Link the previous run's checkpoints here: nothing depends on its folder from then on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in list(self.best):
            source = continued.parent / self._name(name, self._shift)
            if not _link(source, self.folder / self._name(name)):
                log.warning("%s is missing; best-epoch tracking restarts", source)
                del self.best[name]
        _link(continued, self.folder / LAST)
        for part in continued.parent.glob(f"{TEMPORARY}*{Path(LAST).suffix}"):  # of a kill
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink(missing_ok=True)

    # ------------------------------------------------------------------ when it is saved

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning would ask at every step whether another process must stop, and the host would
        # wait for the device to answer. (Private in Lightning 2.6, as is `_signal_connector`.)
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._saved_at = time.monotonic()
        self._handlers.enter_context(signals_to(self._on_signal))
        if trainer.received_sigterm:  # which Lightning took, and would end silently
            trainer._signal_connector.received_sigterm = False
            self._on_signal(signal.SIGTERM, None)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        old = []
        for name, monitor in self.monitors.items():
            score = float(trainer.callback_metrics.get(monitor, math.nan))
            best = self.best.get(name, {"score": -math.inf})["score"]
            if self._validated and score > best:  # False for NaN
                old.append(self.path(name))
                self.best[name] = {"epoch": trainer.current_epoch + FIRST, "score": score}
                self._save(trainer, self.folder / self._name(name))
        self._validated = False
        self._save(trainer, self.folder / LAST)
        if trainer.is_global_zero:
            for path in filter(None, old):
                path.unlink(missing_ok=True)
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs
        if _any_rank(trainer, bool(self._signal)) and not last:
            raise Stopped(self._signal or signal.SIGTERM, saved=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After the last batch come the validation and the end of the epoch, which saves.
        if trainer.is_last_batch:
            _check_weights(trainer)
            return
        steps, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if rest or (trainer.world_size > 1 and steps % _ASK_EVERY):
            return
        stop = _any_rank(trainer, bool(self._signal))
        if stop or _any_rank(trainer, time.monotonic() - self._saved_at > 60 * self.minutes):
            self._save(trainer, self.folder / LAST)
        if stop:
            raise Stopped(self._signal or signal.SIGTERM, saved=True)

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        _check_weights(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_at = time.monotonic()

    # ------------------------------------------------------------------ signals

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._signalled_at = number, now
            name = signal.Signals(number).name
            log.warning("%s: saving and stopping after this step; once more stops at once", name)
        elif number != self._signal or now - self._signalled_at >= _DUPLICATE_SIGNAL_SECONDS:
            self._handlers.close()
            raise Stopped(number, saved=False)

    def teardown(self, *_: Any, **__: Any) -> None:
        self._handlers.close()

    on_exception = teardown


def _link(source: Path, target: Path) -> bool:
    """Link or copy ``source`` to ``target``, and return whether ``target`` exists."""
    if target.is_file() or not source.is_file():
        return target.is_file()
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        with atomic_path(target, durable=True) as temporary:
            shutil.copyfile(source, temporary)
    return True


def _check_weights(trainer: pl.Trainer) -> None:
    """Raise `diverged` for NaN or infinite weights: the loss shows them only a step later."""
    weights = [p.detach() for p in trainer.lightning_module.parameters()]
    if not torch.nn.utils.get_total_norm(weights, math.inf).isfinite():
        raise diverged("the weights became", trainer.current_epoch, trainer.global_step)


def _any_rank(trainer: pl.Trainer, decision: bool) -> bool:
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
