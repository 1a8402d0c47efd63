"""The commands pretrain, also for fine-tuning, and print_plan."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from maest.config import Settings
from maest.config.schema import tagged
from maest.config.settings import TrainerSettings
from maest.datasets.check import check_splits
from maest.experiments.devices import find_devices
from maest.experiments.evaluate import (
    evaluate,
    left_out,
    metrics_of,
    thresholds_line,
    thresholds_of,
)
from maest.experiments.plan import Plan, resolve
from maest.experiments.ranks import check_processes, end_processes
from maest.experiments.runs import LOG_DIR, Interrupted, run_dir, same_command
from maest.helpers.errors import InputError, first_line
from maest.helpers.files.atomic import point_link, write_json
from maest.helpers.reports import metrics, plots
from maest.helpers.reports.report import metrics_table
from maest.helpers.training.averaging import WeightAverage
from maest.helpers.training.checkpoints import LAST, AtomicCheckpointIO, Checkpoints, StepLimit
from maest.helpers.training.history import History, ProgressBar, ProgressLines, TensorBoard
from maest.helpers.training.throughput import Throughput, clip_flops, fast_math
from maest.helpers.work.signals import Stopped
from maest.models import Maest, load_checkpoint, save_model
from maest.models.evaluation import Scored
from maest.models.training import MaestModule
from maest.models.weights import load_into

log = logging.getLogger(__name__)

# Warnings that a user cannot act on
for _message in (
    "does not have many workers",
    "The number of training batches.*is smaller than the logging interval",
    "callbacks used to create the checkpoint",
    "LeafSpec",
    "`broadcast_buffers` is deprecated",
    "Grad strides do not match bucket view strides",
    "sync_dist=True",  # the metrics are of all processes already
    "your dataloader is not resumable",  # its sampler is
):
    warnings.filterwarnings("ignore", message=f".*{_message}")
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)


def print_plan(run: Any, settings: Settings) -> None:
    """Print what pretrain would do."""
    print("\n".join(resolve(settings, LOG_DIR).lines()))


def pretrain(run: Any, settings: Settings) -> dict[str, Any]:
    """Train, validate each epoch, and write a model folder."""
    started, folder = time.monotonic(), run_dir(run)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    plan = resolve(settings, folder.parent)
    for line in plan.lines():
        log.info("%s", line)
    _check_data(plan)

    settings, net = plan.settings, plan.net
    record = {"arch": plan.arch, "trained_on": plan.origin}
    patches = settings.inference.patches_per_pass
    module = MaestModule(net, settings.module, settings.seed, patches, record)
    history = History(folder / "history.csv", run.log_scalar)
    monitor = f"val_{metrics.MONITOR[net.task]}"
    checkpoints = Checkpoints(
        folder / "checkpoints",
        {"best": monitor, "best-swa": monitor.replace("val_", "val_swa_")},
        minutes=settings.trainer.checkpoint_minutes,
    )
    flops = clip_flops(
        tokens=net.n_tokens(plan.data.clip_frames),
        embed_dim=net.embed_dim,
        depth=net.depth,
        outputs=net.n_classes * (2 if net.distilled_type == "separated" else 1),
        mlp_ratio=net.mlp_ratio,
        training=True,
        frozen_blocks=settings.module.freeze_blocks,
    )
    average_from = settings.module.swa_start
    callbacks = [
        *(Throughput(flops), history, checkpoints, LearningRateMonitor("step")),
        *([] if average_from is None else [WeightAverage(average_from)]),
        ProgressBar(refresh_rate=5) if _with_bar(settings) else ProgressLines(plan.steps),
    ]
    logger = TensorBoard(folder, name="", version="tensorboard")
    trainer = build_trainer(settings, folder, callbacks, logger)
    net.train()
    if settings.trainer.compile:
        net.compile_blocks()
    _fit(trainer, module, plan, checkpoints.folder / LAST)
    if not trainer.is_global_zero:
        return {}

    best, scored = _best_weights(plan, module, history, checkpoints)
    net.thresholds = thresholds_of(scored, net)
    average, swa = _best_average(plan, module, history, checkpoints)
    results = _summarize(scored, plan, history.epochs, folder)
    averaged = {"swa": swa} if swa else {}
    results |= averaged | {
        "best_epoch": best["epoch"],
        "best_steps": best["steps"],
        "steps": trainer.global_step,
        "seconds": time.monotonic() - started,
        "skipped": module.skipped,
    }
    write_json(folder / "results.json", results)
    shown = {f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[net.task]}
    versions = {"torch": torch.__version__, "pytorch_lightning": pl.__version__}
    trained_on = plan.origin | best | shown | averaged
    trained_on |= {"date": time.strftime("%Y-%m-%d"), "versions": versions}
    model = folder / "model"
    save_model(model, net.eval(), plan.arch, trained_on=trained_on, average=average)
    point_link(folder.parent / "latest", folder)
    _print_report(results, net.task, folder, model)
    if net.thresholds:
        print(f"thresholds:     {thresholds_line(net)}")
    terminate_workers(trainer)
    return {**shown, "folder": str(folder)}


# ---- before --------------------------------------------------------------------------------------


def _check_data(plan: Plan) -> None:
    """Raise InputError for files that would stop the training; warn of other problems."""
    data, skip = plan.data, plan.data.on_error == "skip"
    report = check_splits(
        data.splits, data.base_dir, data.clip_frames, data.teacher_dir, skip, brief=True
    )
    stops = [f for f in report.problems if f.kind == "files"]
    if stops and not skip:
        hint = "To see all that is wrong: python ex_maest.py check_data with the same settings. "
        hint += "To go on without bad files, set datamodule.on_error=skip."
        setting = f"datamodule.groundtruth_{stops[0].split}"
        raise InputError(str(report), kind="corrupt", hint=hint, setting=setting)
    for finding in (*report.problems, *report.warnings):
        log.warning("%s", finding.message)


def _with_bar(settings: Settings) -> bool:
    """Return whether to draw a bar, which would be noise in a file or a pipe."""
    return settings.trainer.enable_progress_bar and sys.stderr.isatty()


def build_trainer(
    settings: Settings, folder: Path, callbacks: Sequence[pl.Callback], logger: Logger | bool
) -> pl.Trainer:
    """Return Lightning's trainer for settings from `plan.decided`."""
    trainer, devices = settings.trainer, find_devices(settings.trainer)
    if trainer.devices != -1:
        check_processes(trainer.devices, trainer.num_nodes)
    fast_math()
    if trainer.precision == "bf16-mixed" and devices.device.type != "cuda":
        log.warning("trainer.precision=bf16-mixed: on most CPUs much slower than 32-true")
    strategy: str | DDPStrategy = "auto"
    if trainer.strategy == "ddp" or devices.processes > 1:
        # The buffers are constants, and evaluation need not wait for other processes.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    limit = [StepLimit(trainer.max_steps)] if trainer.max_steps >= 0 else []
    ours = tagged(TrainerSettings, "ours")
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=[*limit, *callbacks],
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        strategy=strategy,
        use_distributed_sampler=False,  # ours are
        enable_model_summary=False,
        enable_progress_bar=_with_bar(settings),
        **{n: v for n, v in vars(trainer).items() if v is not None and n not in ours},
    )


# ---- the training, and how it may end ------------------------------------------------------------


def _fit(trainer: pl.Trainer, module: MaestModule, plan: Plan, last: Path) -> None:
    """Train, saving ``last``; leave this process alone."""
    try:
        trainer.fit(module, plan.data, ckpt_path=plan.continued, weights_only=True)
    except (Exception, Stopped) as error:
        terminate_workers(trainer)
        if isinstance(error, Stopped):
            raise _interrupted(error, last, trainer) from None
        if isinstance(error, InputError) and error.kind == "diverged":
            error.hint += _after_divergence(plan.settings, last)
        elif trainer.world_size > 1 and is_peer_failure(error):
            message = f"another process of this training has ended ({first_line(error)})"
            hint = "What went wrong there is said above."
            raise InputError(message, kind="worker", hint=hint) from error
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else Lightning would wait for the others
    plan.data.trainer = None


def terminate_workers(trainer: pl.Trainer) -> None:
    """End the processes that Lightning started; they may wait for this one."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    workers = list(started)
    # Lightning watches them, and kills this process if one has failed, before this one can report
    # the error. With an empty list it stops watching.
    started.clear()
    end_processes(workers, patience=5.0)


def is_peer_failure(error: Exception) -> bool:
    """Return whether an error only reports that another process has ended."""
    return isinstance(error, torch.distributed.DistError) or "by peer" in str(error)


def _interrupted(stop: Stopped, last: Path, trainer: pl.Trainer) -> Interrupted:
    if not trainer.is_global_zero:  # the first process says it
        return Interrupted(str(stop), stop.signal)
    go_on = f"\n  {same_command(f'ckpt_path={last}')}"
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        go_on = " give the same command with ckpt_path=last"  # to the launcher
    state = "stopped before anything was saved"
    if stop.saved:
        state = f"saved at step {trainer.global_step}, {last}. To continue:{go_on}"
    elif last.is_file():
        state = f"not saved now; {last} is unchanged. To continue:{go_on}"
    return Interrupted(f"{stop.signal.name}: {state}", stop.signal)


def _after_divergence(settings: Settings, last: Path) -> str:
    fp16 = settings.trainer.precision == "16-mixed"
    other = " Or fp16 overflows: trainer.precision=bf16-mixed." if fp16 else ""
    if not last.is_file():
        return f"{other} Nothing had been saved."
    line = same_command(f"module.lr={settings.module.lr / 10:g}", f"ckpt_path={last}")
    return f"{other} {last} was saved before; to continue from there:\n  {line}"


# ---- afterwards ----------------------------------------------------------------------------------


def _best_weights(
    plan: Plan, module: MaestModule, history: History, checkpoints: Checkpoints
) -> tuple[dict[str, int], Scored]:
    """Load the best epoch's weights; return that epoch and their validation scores."""
    monitor = checkpoints.monitors["best"]
    last = {"epoch": module.trainer.current_epoch, "steps": module.trainer.global_step}
    # A continued run that was already over has validated nothing.
    validated = bool(module.scored and history.epochs and monitor in history.epochs[-1])
    best = last
    if path := checkpoints.path("best"):
        checkpoint = load_checkpoint(path, average=False)
        load_into(plan.net, checkpoint)
        best = {name: checkpoint.trained_on[name] for name in last}
    elif history.epochs:
        log.warning("no epoch could be scored (%s): the last one's weights are kept", monitor)
    if validated and best == last:
        return best, module.scored[""]
    return best, _validate(plan.net, plan, module)


def _validate(net: Maest, plan: Plan, module: MaestModule) -> Scored:
    limit, tracks = plan.settings.trainer.limit_val_batches, plan.data.val_dataloader()
    return evaluate(net, tracks, limit, plan.settings, module.skipped)


def _best_average(
    plan: Plan, module: MaestModule, history: History, checkpoints: Checkpoints
) -> tuple[Maest | None, dict[str, Any]]:
    path = checkpoints.path("best-swa")
    if path is None:
        return None, {}
    checkpoint, epoch = load_checkpoint(path, average=True), checkpoints.best["best-swa"]["epoch"]
    row = next(row for row in history.epochs if row["epoch"] == epoch)
    swa = {name: checkpoint.trained_on[name] for name in ("epoch", "steps")}
    swa |= {n.replace("_swa_", "_"): v for n, v in row.items() if n.startswith("val_swa_")}
    average = load_into(deepcopy(plan.net), checkpoint)
    if average.task == "multi-label":
        validated = "swa" in module.scored and epoch == history.epochs[-1]["epoch"]
        scored = module.scored["swa"] if validated else _validate(average, plan, module)
        average.thresholds = thresholds_of(scored, average)
    return average, swa


def _summarize(
    scored: Scored, plan: Plan, epochs: list[dict[str, float]], folder: Path
) -> dict[str, Any]:
    task, results = plan.net.task, metrics_of("val", scored, plan.net)
    baseline = metrics.baseline(task, plan.data.splits["train"].targets, scored.targets)
    name, shown = metrics.BASELINES[task], metrics.SHOWN[task]
    results |= {name: {metric: baseline.figures[metric] for metric in shown}, "epochs": epochs}
    if epochs:
        names = [row for row in ("chance", name) if row in results]
        lines = {row.replace("_", " "): results[row][shown[0]] for row in names}
        plots.learning_curve(folder / "learning_curve.png", epochs, lines)
    metric = "f1" if task == "single-label" else shown[0]
    sets = {"model": scored.evaluation, name.replace("_", " "): baseline}
    bars = {title: evaluation.per_label[metric].tolist() for title, evaluation in sets.items()}
    labels = [row["label"] for row in results["per_label"]]
    title = f"{metrics.FIGURE_NAMES[metric]} on the validation split"
    plots.label_bars(folder / "labels.png", labels, bars, title)
    return results


def _print_report(results: dict[str, Any], task: str, folder: Path, model: Path) -> None:
    shown, swa = metrics.SHOWN[task], results.get("swa")
    rows = [("model", {name: results[f"val_{name}"] for name in shown})]
    if swa:
        rows.append(("its average", {name: swa[f"val_{name}"] for name in shown}))
    for name in (metrics.BASELINES[task], "chance"):
        if name in results:
            rows.append((name.replace("_", " "), results[name]))
    count = next(int(v) for k, v in results.items() if k.endswith("_left_out"))
    print(f"\nvalidation, {results['val_tracks']} tracks, best epoch {results['best_epoch']}:")
    print(metrics_table(task, rows))
    print(f"({left_out(task, count)}; {results['steps']} steps in {results['seconds']:.0f} s)")
    if (curve := folder / "learning_curve.png").is_file():
        print(f"learning curve: {curve}")
    print(f"per label:      {folder / 'labels.png'}")
    print(f"model folder:   {model}" + (" (used with its average)" if swa else ""))
    if results["skipped"]:
        print(f"{len(results['skipped'])} files could not be read, and were skipped: results.json")
