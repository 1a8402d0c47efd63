"""``ckpt_path``: which training goes on, and what it began with."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from maest.config import Settings, plain
from maest.helpers.errors import InputError
from maest.models import load_checkpoint
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)

# Settings that do not decide how a training goes. Runs that agree in all others are one experiment.
_FREE = {
    "datamodule": (
        *("groundtruth_test", "groundtruth_predict"),
        *("batch_size_eval", "num_workers", "on_error"),
    ),
    "trainer": (
        *("max_epochs", "accelerator", "devices", "num_nodes", "strategy"),
        *("log_every_n_steps", "checkpoint_minutes", "enable_progress_bar", "compile"),
        *("limit_test_batches", "limit_predict_batches", "num_sanity_val_steps"),
    ),
}
# Earlier versions' defaults. Where a run's record has one of these and the settings have today's
# default, nobody has chosen either.
_EARLIER_DEFAULTS = {
    "maest.s_patchout_t": 22,
    "maest.checkpoint_swa_weights": False,
    "datamodule.clips_per_epoch": 2400,
}


def find_run(settings: Settings, log_dir: Path) -> Path | None:
    """The checkpoint to continue from; None to begin anew.

    ``ckpt_path=last`` is that of the newest run with the same settings, however it ended. Without
    one a new training begins, so that a cluster's job can be submitted again unchanged.
    """
    if settings.ckpt_path != "last":
        return None if settings.ckpt_path is None else Path(settings.ckpt_path)
    runs = [path for path in log_dir.glob("*/checkpoints/last.ckpt") if path.is_file()]
    runs = [path for path in runs if not path.parents[1].is_symlink()]  # as "latest" is
    newest = ""
    for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            differing = _differing(settings, _read_record(path))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # not a training's record
        if not differing:
            log.info("continuing %s", path)
            return path
        newest = newest or (
            f" The newest, {path.parents[1]}, has {'; '.join(differing[:5])}"
            f"{'; …' * (len(differing) > 5)}. (ckpt_path={path} would go on from it)"
        )
    which = "has these settings" if newest else "can be continued"
    log.warning("ckpt_path=last: no run in %s %s: a new one begins.%s", log_dir, which, newest)
    return None


def read_continued(path: Path | None) -> Checkpoint | None:
    """The checkpoint of the training that is continued, if it can be read as a model."""
    if path is not None and path.is_file():
        with suppress(InputError):  # the training itself raises it
            return load_checkpoint(path, average=False)
    return None


def as_it_began(settings: Settings, continued: Checkpoint | None) -> Settings:
    """The settings with what the continued training worked out, where they leave it open.

    Measured again, the normalisation would differ if a file has gone since.
    """
    if continued is None:
        return settings
    maest, data = settings.maest, settings.datamodule
    known: dict[str, Any] = {n: continued.sizes.get(n) for n in ("norm_mean", "norm_std")}
    clips = data.clips_per_epoch
    with suppress(OSError, ValueError, KeyError, TypeError):  # it stands in no run's folder
        record = _read_record(continued.path)
        known["s_patchout_t"] = record["maest"]["s_patchout_t"]
        if clips == "auto":
            clips = record["datamodule"]["clips_per_epoch"]
    known = {name: value for name, value in known.items() if getattr(maest, name) is None}
    return replace(
        settings, maest=replace(maest, **known), datamodule=replace(data, clips_per_epoch=clips)
    )


def _read_record(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that a checkpoint is of."""
    record: dict[str, Any] = json.loads((checkpoint.parents[1] / "config.json").read_text("utf-8"))
    return record


def _differing(settings: Settings, record: dict[str, Any]) -> list[str]:
    """Settings that decide, and differ from a run's record; what it lacks came later.

    Raises:
        KeyError, TypeError: it is not a training's record.
    """
    given, defaults = plain(settings), plain(Settings())
    pairs = {"seed": (given["seed"], record["seed"])}
    for section in ("maest", "module", "datamodule", "trainer"):
        recorded = defaults[section] | record[section]
        for name, value in given[section].items():
            key = f"{section}.{name}"
            unchosen = value == defaults[section][name]
            earlier = key in _EARLIER_DEFAULTS and recorded[name] == _EARLIER_DEFAULTS[key]
            if name not in _FREE.get(section, ()) and not (unchosen and earlier):
                pairs[key] = value, recorded[name]
    return sorted(f"{key}={its} (here {own})" for key, (own, its) in pairs.items() if own != its)
