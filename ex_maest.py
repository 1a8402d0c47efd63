"""Pre-train or fine-tune MAEST, evaluate it, extract and predict with it, hand it on.

python ex_maest.py                                              # pre-train
python ex_maest.py with maest_finetune datamodule.groundtruth_train=…
python ex_maest.py test with maest.checkpoint=exp_logs/latest/model
python ex_maest.py extract_embeddings with maest.checkpoint=exp_logs/latest/model inference.audio=…
python ex_maest.py extract_logits with maest.checkpoint=exp_logs/latest/model inference.audio=…
python ex_maest.py predict with maest.arch=maest-tiny-scores inference.audio=song.mp3
python ex_maest.py export with maest.checkpoint=exp_logs/latest/model export.format=onnx
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor

import maest.config as settings
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import read_labels, write_labels
from maest.experiments.extract import extract
from maest.experiments.run_report import (
    average_of,
    figures_of,
    in_words,
    origin,
    print_report,
    provenance,
    summarise,
)
from maest.experiments.runs import (
    LOG_DIR,
    Experiment,
    Interrupted,
    command,
    configure,
    run_command_line,
    run_dir,
    same_command,
)
from maest.experiments.setup import (
    as_it_began,
    check_device,
    check_files,
    check_head,
    check_label_names,
    check_labels,
    check_targets,
    compile_if_it_pays,
    end_processes,
    find_checkpoint,
    find_run_to_continue,
    find_sizes,
    flops_per_clip,
    in_section,
    lost_a_process,
    needed_checkpoint,
    network_options,
    read_continued,
    set_up_data,
    set_up_network,
    set_up_trainer,
    splits_not_given,
)
from maest.helpers import metrics
from maest.helpers.averaging import WeightAverage
from maest.helpers.checkpoints import LAST, Checkpoints, Stopped
from maest.helpers.chunks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.files import point_link, write_json
from maest.helpers.history import History, TensorBoard
from maest.helpers.settings import check_choice
from maest.helpers.throughput import Throughput
from maest.models import get_maest, licences, load_checkpoint, save_model
from maest.models.archs import clip_seconds, size_name
from maest.models.huggingface import export_huggingface
from maest.models.onnx_export import export_onnx
from maest.models.saving import save_safetensors
from maest.models.training import MaestModule, TrainingOptions
from maest.models.weights import load_into

log = logging.getLogger(__name__)

ex = Experiment("maest", save_git_info=False)
configure(
    ex,
    settings.Settings,
    settings.MAEST_NAMED,
    settings.SENTENCES,
    unrecorded=("extract_embeddings", "extract_logits", "predict", "export"),
)

FORMATS = ("huggingface", "onnx", "safetensors")


# ---------------------------------------------------------------- commands


@command(ex, main=True)
def pretrain(_run, _config) -> dict[str, Any]:
    """Train on datamodule.groundtruth_train, validate each epoch, write a model folder."""
    config, folder, started = _config, run_dir(_run), time.monotonic()
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    check_device(config)
    check_files(config, "train", "val")
    checkpoint = find_checkpoint(config, training=True)
    data = set_up_data(config, checkpoint, "train", "val")
    continued = find_run_to_continue(config, LOG_DIR)
    before = read_continued(continued)
    config = as_it_began(config, before)
    net = set_up_network(config, checkpoint, data, "train", training=True)
    arch = size_name(net.embed_dim, net.num_heads, net.depth)
    if data.groundtruth("val").n_classes != net.n_classes:
        raise InputError(
            f"{data.groundtruth('val').n_classes} labels to a track, and the training ground "
            f"truth has {net.n_classes}",
            kind="mismatch",
            setting="datamodule.groundtruth_val",
            path=data.groundtruth("val").path,
            hint="Use two splits of one ground truth.",
        )
    check_labels(net, data, "val")
    check_targets(data)
    module = MaestModule(net, TrainingOptions(**config["module"]), seed=config["seed"])
    known = origin(config, data, checkpoint, before)
    module.record = {"arch": arch, "trained_on": known}
    weights = sum(parameter.numel() for parameter in net.parameters())
    log.info(
        "%s, %.1f M weights; %d training and %d validation tracks, %d labels; clips of %g s",
        arch or "a network of its own size",
        weights / 1e6,
        len(data.groundtruth("train")),
        len(data.groundtruth("val")),
        net.n_classes,
        clip_seconds(data.clip_frames),
    )

    _look_at(data)
    monitor = f"val_{metrics.MONITOR[net.task]}"
    history = History(folder / "history.csv", record=_run.log_scalar)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        {"best": monitor, "best-swa": monitor.replace("val_", "val_swa_")},
        minutes=config["trainer"]["checkpoint_minutes"],
    )
    frozen = config["module"]["freeze_blocks"]
    throughput = Throughput(flops_per_clip(net, data.clip_frames, frozen))
    callbacks = [throughput, history, checkpoints, LearningRateMonitor("step")]
    if config["module"]["swa_start"] is not None:
        callbacks.append(WeightAverage(config["module"]["swa_start"]))
    trainer = set_up_trainer(
        config,
        folder,
        training=True,
        callbacks=callbacks,
        logger=TensorBoard(folder, name="", version="tensorboard"),
    )
    net.train()
    compile_if_it_pays(config, net, data.clips_per_epoch or len(data.groundtruth("train")))
    try:
        trainer.fit(module, data, ckpt_path=continued, weights_only=True)
    except (Exception, Stopped) as error:
        end_processes(trainer)
        if isinstance(error, Stopped):
            raise _interrupted(error, checkpoints, trainer) from None
        if isinstance(error, InputError) and error.kind == "diverged":
            error.hint += _after_divergence(config, checkpoints, trainer)
        elif trainer.world_size > 1 and lost_a_process(error):
            raise InputError(
                f"another process of this training has ended ({str(error).splitlines()[0]})",
                kind="worker",
                hint="What went wrong there is said above.",
            ) from error
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # From here on this process is alone, and Lightning would wait for the others.
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return {}

    last = {"epoch": trainer.current_epoch, "steps": trainer.global_step}
    # A run that was over already has validated nothing.
    validated = module.evaluation is not None and bool(history.epochs)
    validated = validated and monitor in history.epochs[-1]
    kept = last
    if path := checkpoints.path("best"):
        found = load_checkpoint(path, average=False)
        load_into(net, found)
        kept = {name: found.trained_on[name] for name in last}
        validated &= kept == last  # the last epoch was the best
    elif history.epochs:
        log.warning("no epoch could be scored (%s): the last one's weights are kept", monitor)
    if not validated:
        module.also_evaluated.clear()
        set_up_trainer(config, folder).validate(module, data, verbose=False)
    results = summarise(module, data, history, folder)
    results |= {"best_epoch": kept["epoch"], "best_steps": kept["steps"]}
    results |= {"steps": last["steps"], "seconds": time.monotonic() - started}
    results |= {"skipped": module.skipped}
    average = average_of(net, checkpoints, history, results)
    write_json(folder / "results.json", results)
    model = save_model(
        folder / "model",
        net.eval(),
        arch,
        trained_on=provenance(known, data, results),
        average=average,
    )
    point_link(folder.parent / "latest", folder)
    print_report(results, net.task, folder, model)
    end_processes(trainer)
    return {
        **{f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[net.task]},
        "folder": str(folder),
    }


@command(ex)
def test(_run, _config) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."""
    config, folder = _config, run_dir(_run)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    check_files(config, "test")
    checkpoint = needed_checkpoint(config)
    data = set_up_data(config, checkpoint, "test")
    net = set_up_network(config, checkpoint, data, "test")
    groundtruth = data.groundtruth("test")
    if groundtruth.n_classes != net.n_classes:
        raise InputError(
            f"{groundtruth.n_classes} labels to a track, and the model has {net.n_classes}",
            kind="mismatch",
            setting="datamodule.groundtruth_test",
            path=groundtruth.path,
            hint="Use a ground truth of the model's own task.",
        )
    check_head(checkpoint, net)
    check_labels(net, data, "test")
    given = config["inference"]["patches_per_pass"]
    module = MaestModule(net, **({} if given is None else {"patches_per_pass": given}))
    set_up_trainer(config, folder).test(module, data, verbose=False)
    results = figures_of("test", module, net.labels) | {"average": checkpoint.average}
    write_json(folder / "results.json", results)
    found = in_words(net.task, {name: results[f"test_{name}"] for name in metrics.SHOWN[net.task]})
    chance = f" (chance: {in_words(net.task, results['chance'])})" if "chance" in results else ""
    what = "targets" if net.task == "regression" else "labels"
    print(
        f"{results['test_tracks']} tracks: {found}{chance}; {module.evaluation.left_out} {what} "
        f"left out; one by one: {folder / 'results.json'}"
    )
    return {f"test_{name}": results[f"test_{name}"] for name in metrics.SHOWN[net.task]}


@command(ex)
def check_data(_run, _config) -> dict[str, Any]:
    """Look at all ground truths and files for what would stop a training, or spoil it."""
    config, folder = _config, run_dir(_run)
    splits = [s for s in ("train", "val", "test") if config["datamodule"][f"groundtruth_{s}"]]
    left_out = splits_not_given(config, *splits)
    if len(left_out) == len(splits):
        check_files(config, *splits)
    for split in left_out:
        splits.remove(split)
        log.warning("datamodule.groundtruth_%s is not given: not checked", split)
    data = set_up_data(config, find_sizes(config), *splits)
    report = data.check(splits)
    write_json(folder / "check.json", report.to_dict())
    print(f"{report}\nall of it: {folder / 'check.json'}")
    return {"failed": len(report.problems), "warnings": len(report.warnings)}


@command(ex)
def compute_norm_stats(_run, _config) -> dict[str, Any]:
    """Mean and standard deviation of all log-mel values of datamodule.groundtruth_train."""
    config, folder = _config, run_dir(_run)
    check_files(config, "train")
    stats = set_up_data(config, find_sizes(config), "train").norm_stats()
    write_json(folder / "norm_stats.json", vars(stats))
    for reason in list(stats.failed.values())[:10]:
        log.error("%s", reason)
    print(
        f"{stats.tracks} tracks, {stats.frames} frames; {len(stats.failed)} files could not be "
        f"read\nmaest.norm_mean={stats.mean!r} maest.norm_std={stats.std!r}"
    )
    return {"norm_mean": stats.mean, "norm_std": stats.std, "failed": len(stats.failed)}


@command(ex)
def extract_embeddings(_run, _config) -> dict[str, Any]:
    """Write embeddings for each track of inference.audio, or of datamodule.groundtruth_predict."""
    return extract(_run, _config, "embeddings")


@command(ex)
def extract_logits(_run, _config) -> dict[str, Any]:
    """Write logits, before the sigmoid, for each track of inference.audio, or of log-mel files."""
    return extract(_run, _config, "logits")


@command(ex)
def predict(_run, _config) -> dict[str, Any]:
    """Write the top labels of each track of inference.audio, and of its patches: JSON, CSV."""
    return extract(_run, _config, "predictions")


@command(ex)
def export(_run, _config) -> dict[str, Any]:
    """Write maest.checkpoint for other programs: transformers, ONNX runtimes, or one file."""
    config, options = _config, _config["export"]
    check_choice("export.format", options["format"], FORMATS)
    for name, off in (("with_frontend", False), ("blocks", None)):
        if options["format"] != "onnx" and options[name] != off:
            raise InputError(
                f"it does not go with export.format={options['format']}",
                kind="conflict",
                hint="Leave it out, or set export.format=onnx.",
                setting=f"export.{name}",
            )
    checkpoint = needed_checkpoint(config)
    network = network_options(config, checkpoint)
    check_label_names(network, checkpoint.sizes.get("n_classes"), config)
    with in_section("maest"):
        net = get_maest(checkpoint=checkpoint, **network)
    check_head(checkpoint, net)
    if options["out_dir"] is None:
        raise InputError(
            "no folder is given",
            kind="missing",
            hint="Give one, such as export.out_dir=export.",
            setting="export.out_dir",
        )
    folder = Path(str(options["out_dir"])).expanduser()
    licence = licences.chosen(options["licence"], checkpoint.licence)
    # Of two sets of weights, one is exported.
    trained_on = {name: v for name, v in checkpoint.trained_on.items() if name != "swa"}
    trained_on |= {"licence": licence} if licence else {}
    notes: list[str] = []
    labels = folder / "labels.json"
    if options["format"] == "huggingface":
        written = folder
        notes = export_huggingface(
            folder, net, arch=checkpoint.arch, trained_on=trained_on, licence=licence
        )
    elif options["format"] == "onnx":
        written = folder / "model.onnx"
        _check_labels_file(labels, net.labels, written)
        blocks = options["blocks"]
        if blocks is None:
            given = config["inference"]["transformer_block"]
            blocks = chosen_blocks(given, net.depth, "inference.transformer_block")
        with in_section("export"):
            export_onnx(
                written,
                net,
                blocks,
                with_frontend=options["with_frontend"],
                metadata={
                    "arch": checkpoint.arch or "",
                    "licence": licence or "",
                    "parents": json.dumps(trained_on.get("parents", []), ensure_ascii=False),
                },
            )
        notes = [
            f"It takes up to {clip_seconds(net.input_t):g} s at a time (max_frames in its "
            "metadata): cut longer tracks into patches, and average what they give."
        ]
    else:
        written = folder / "model.safetensors"
        _check_labels_file(labels, net.labels, written)
        save_safetensors(written, net, checkpoint.arch, trained_on)
        if net.kept_columns is not None or net.kept_rows is not None:
            notes = ["Patchout is a setting of a run: the file does not carry it."]
    if options["format"] != "huggingface" and net.labels:
        write_labels(labels, net.labels)
    for note in notes:
        log.warning(note)
    print(f"written: {written}")
    return {"written": str(written)}


# ---------------------------------------------------------------- their parts


def _look_at(data: MaestDataModule) -> None:
    """A brief check of the data: what would stop the training does so now; the rest is told."""
    report = data.check(("train", "val"), brief=True)
    stops = [f for f in report.problems if f.kind in ("groundtruth", "files", "teacher")]
    if stops and data.on_error == "raise":
        raise InputError(
            str(report),
            kind="corrupt",
            hint="To see all that is wrong: python ex_maest.py check_data with the same settings. "
            "To go on without bad files: datamodule.on_error=skip",
            setting=f"datamodule.groundtruth_{stops[0].split}",
        )
    for finding in (*report.problems, *report.warnings):
        log.warning("%s", finding.message)


def _interrupted(stop: Stopped, checkpoints: Checkpoints, trainer: pl.Trainer) -> Interrupted:
    """What a user is told whose training was stopped by a signal."""
    if not trainer.is_global_zero:  # the first process tells it
        return Interrupted(str(stop), stop.signal)
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ:
        how = " give the same command with ckpt_path=last"  # to whatever has started this process
    else:
        how = f"\n  {same_command(f'ckpt_path={checkpoints.folder / LAST}')}"
    if stop.saved:
        state = f"saved at step {trainer.global_step}, {checkpoints.folder / LAST}"
    elif (checkpoints.folder / LAST).is_file():
        state = f"not saved now; {checkpoints.folder / LAST} is as it was"
    else:
        return Interrupted(f"{stop.signal.name}: stopped before anything was saved", stop.signal)
    return Interrupted(f"{stop.signal.name}: {state}. To continue:{how}", stop.signal)


def _check_labels_file(path: Path, labels: list[str] | None, model: Path) -> None:
    """Refuse to replace labels that are not of an older export of the same kind."""
    if not labels or not path.exists() or model.exists():
        return
    with suppress(InputError):
        if read_labels(path) == labels:
            return
    raise InputError(
        "there are other labels in it",
        kind="exists",
        hint="Choose another export.out_dir, or move the file away.",
        path=path,
    )


def _after_divergence(config: dict[str, Any], checkpoints: Checkpoints, trainer: pl.Trainer) -> str:
    """What a user is told whose training has diverged: how to go on."""
    half = " Or fp16 overflows: trainer.precision=bf16-mixed."
    other = half if trainer.precision == "16-mixed" else ""
    last = checkpoints.folder / LAST
    if not last.is_file():
        return f"{other} Nothing had been saved."
    rate = f"module.lr={config['module']['lr'] / 10:g}"
    line = same_command(rate, f"ckpt_path={last}")
    return f"{other} {last} was saved before; to continue from there:\n  {line}"


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, settings.SECTION_ALIASES))
