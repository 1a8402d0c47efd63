"""The commands pretrain, which is for fine-tuning too, and print_plan."""

from __future__ import annotations

import logging
import os
import time
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor

from maest.config import Settings
from maest.experiments.evaluate import check, evaluate
from maest.experiments.plan import Plan, resolve
from maest.experiments.run_report import print_report, provenance, summarize
from maest.experiments.runs import LOG_DIR, Interrupted, run_dir, same_command
from maest.experiments.trainer import build_trainer, is_peer_failure, terminate_workers
from maest.helpers import metrics
from maest.helpers.averaging import WeightAverage
from maest.helpers.checkpoints import LAST, Checkpoints
from maest.helpers.errors import InputError
from maest.helpers.files import point_link, write_json
from maest.helpers.history import History, TensorBoard
from maest.helpers.signals import Stopped
from maest.helpers.throughput import Throughput, training_flops
from maest.models import Maest, load_checkpoint, save_model
from maest.models.evaluation import Scored
from maest.models.training import MaestModule
from maest.models.weights import load_into

log = logging.getLogger(__name__)


def pretrain(run: Any, settings: Settings) -> dict[str, Any]:
    """Train, validate each epoch, write a model folder."""
    started, folder = time.monotonic(), run_dir(run)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    plan = resolve(settings, folder.parent)
    for line in plan.lines():
        log.info("%s", line)
    _check_data(plan)

    settings, net = plan.settings, plan.net
    module = MaestModule(net, **vars(settings.module), seed=settings.seed)
    module.record = {"arch": plan.arch, "trained_on": plan.origin}
    monitor = f"val_{metrics.MONITOR[net.task]}"
    history = History(folder / "history.csv", run.log_scalar)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        {"best": monitor, "best-swa": monitor.replace("val_", "val_swa_")},
        minutes=settings.trainer.checkpoint_minutes,
    )
    callbacks = [Throughput(_flops_per_clip(plan)), history, checkpoints]
    callbacks.append(LearningRateMonitor("step"))
    if settings.module.swa_start is not None:
        callbacks.append(WeightAverage(settings.module.swa_start))
    logger = TensorBoard(folder, name="", version="tensorboard")
    trainer = build_trainer(settings, folder, callbacks, logger)
    net.train()
    if settings.trainer.compile:
        net.compile_blocks()
    _fit(trainer, module, plan, checkpoints)
    if not trainer.is_global_zero:
        return {}

    last = {"epoch": trainer.current_epoch, "steps": trainer.global_step}
    best, scored = _best_weights(plan, module, history, checkpoints, last, monitor)
    average, swa = _best_average(net, checkpoints, history)
    results = summarize(scored, net, plan.data.groundtruth("train"), history.epochs, folder)
    results |= {
        **({"swa": swa} if swa else {}),
        "best_epoch": best["epoch"],
        "best_steps": best["steps"],
        "steps": last["steps"],
        "seconds": time.monotonic() - started,
        "skipped": module.skipped,
    }
    write_json(folder / "results.json", results)
    trained_on = provenance(plan.origin, net.task, results)
    model = save_model(
        folder / "model", net.eval(), plan.arch, trained_on=trained_on, average=average
    )
    point_link(folder.parent / "latest", folder)
    print_report(results, net.task, folder, model)
    terminate_workers(trainer)
    shown = {f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[net.task]}
    return {**shown, "folder": str(folder)}


def print_plan(run: Any, settings: Settings) -> None:
    """Show what pretrain would do."""
    print("\n".join(resolve(settings, LOG_DIR).lines()))


def _check_data(plan: Plan) -> None:
    """A quick check: what would stop the training does so now; warnings of the rest."""
    splits = {split: plan.data.groundtruth(split) for split in ("train", "val")}
    report = check(plan.settings, splits, plan.data.clip_frames, brief=True)
    stops = [f for f in report.problems if f.kind == "files"]
    if stops and plan.settings.datamodule.on_error == "raise":
        raise InputError(
            str(report),
            kind="corrupt",
            hint="To see all that is wrong: python ex_maest.py check_data with the same settings. "
            "To go on without bad files: datamodule.on_error=skip",
            setting=f"datamodule.groundtruth_{stops[0].split}",
        )
    for finding in (*report.problems, *report.warnings):
        log.warning("%s", finding.message)


def _flops_per_clip(plan: Plan) -> float:
    net = plan.net
    return training_flops(
        tokens=net.n_tokens(plan.data.clip_frames),
        embed_dim=net.embed_dim,
        depth=net.depth,
        outputs=net.n_classes * (2 if net.distilled_type == "separated" else 1),
        mlp_ratio=net.mlp_ratio,
        frozen_blocks=plan.settings.module.freeze_blocks,
    )


def _fit(trainer: pl.Trainer, module: MaestModule, plan: Plan, checkpoints: Checkpoints) -> None:
    """Train; afterwards this process is alone."""
    try:
        trainer.fit(module, plan.data, ckpt_path=plan.continued, weights_only=True)
    except (Exception, Stopped) as error:
        terminate_workers(trainer)
        if isinstance(error, Stopped):
            raise _interrupted(error, checkpoints, trainer) from None
        if isinstance(error, InputError) and error.kind == "diverged":
            error.hint += _after_divergence(plan.settings, checkpoints, trainer)
        elif trainer.world_size > 1 and is_peer_failure(error):
            raise InputError(
                f"another process of this training has ended ({str(error).splitlines()[0]})",
                kind="worker",
                hint="What went wrong there is said above.",
            ) from error
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else Lightning would wait for the others
    plan.data.trainer = None


def _best_weights(
    plan: Plan,
    module: MaestModule,
    history: History,
    checkpoints: Checkpoints,
    last: dict[str, int],
    monitor: str,
) -> tuple[dict[str, int], Scored]:
    """Give the network the best epoch's weights; that epoch, and how they do on the validation."""
    # A run that was over already has validated nothing.
    validated = bool(module.scored and history.epochs and monitor in history.epochs[-1])
    best = last
    if path := checkpoints.path("best"):
        found = load_checkpoint(path, average=False)
        load_into(plan.net, found)
        best = {name: found.trained_on[name] for name in last}
        validated &= best == last
    elif history.epochs:
        log.warning("no epoch could be scored (%s): the last one's weights are kept", monitor)
    if validated:
        return best, module.scored[""]
    limit = plan.settings.trainer.limit_val_batches
    tracks = plan.data.val_dataloader()
    return best, evaluate(plan.net, tracks, limit, plan.settings, module.skipped)


def _best_average(
    net: Maest, checkpoints: Checkpoints, history: History
) -> tuple[Maest | None, dict[str, Any]]:
    """The best average of weights and its metrics, or (None, {})."""
    path = checkpoints.path("best-swa")
    if path is None:
        return None, {}
    epoch = checkpoints.best["best-swa"]["epoch"]
    row = next(row for row in history.epochs if row["epoch"] == epoch)
    found = load_checkpoint(path, average=True)
    scores = {n.replace("_swa_", "_"): v for n, v in row.items() if n.startswith("val_swa_")}
    swa = {"epoch": found.trained_on["epoch"], "steps": found.trained_on["steps"], **scores}
    return load_into(deepcopy(net), found), swa


def _interrupted(stop: Stopped, checkpoints: Checkpoints, trainer: pl.Trainer) -> Interrupted:
    """What the user of a training reads that a signal has stopped."""
    if not trainer.is_global_zero:  # the first process says it
        return Interrupted(str(stop), stop.signal)
    last = checkpoints.folder / LAST
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        how = " give the same command with ckpt_path=last"  # to whatever has started this process
    else:
        how = f"\n  {same_command(f'ckpt_path={last}')}"
    if stop.saved:
        state = f"saved at step {trainer.global_step}, {last}"
    elif last.is_file():
        state = f"not saved now; {last} is unchanged"
    else:
        return Interrupted(f"{stop.signal.name}: stopped before anything was saved", stop.signal)
    return Interrupted(f"{stop.signal.name}: {state}. To continue:{how}", stop.signal)


def _after_divergence(settings: Settings, checkpoints: Checkpoints, trainer: pl.Trainer) -> str:
    """How to go on with a training that has diverged."""
    half = " Or fp16 overflows: trainer.precision=bf16-mixed."
    other = half if trainer.precision == "16-mixed" else ""
    last = checkpoints.folder / LAST
    if not last.is_file():
        return f"{other} Nothing had been saved."
    line = same_command(f"module.lr={settings.module.lr / 10:g}", f"ckpt_path={last}")
    return f"{other} {last} was saved before; to continue from there:\n  {line}"
