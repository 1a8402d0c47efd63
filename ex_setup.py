"""From settings to the things themselves: data, network and trainer of ``ex_maest.py``."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

import config as settings
from datasets.datamodule import MaestDataModule
from datasets.groundtruth import read_labels
from datasets.scores import DATA_DIR as SCORES_DIR
from helpers.checkpoints import StepLimit, WholeFiles
from helpers.errors import InputError
from helpers.history import ProgressBar
from helpers.settings import check_choice
from helpers.throughput import fast_math, training_flops
from models import CheckpointError, Maest, get_maest, load_checkpoint
from models.archs import find_arch, input_frames
from models.download import fetch
from models.maest import TASKS
from models.weights import Checkpoint

log = logging.getLogger(__name__)

# Settings of the network that only training uses: the random ones.
_RANDOM = ("s_patchout_t", "s_patchout_f", "u_patchout")
_RANDOM += ("drop_rate", "attn_drop_rate", "drop_path_rate")
# Settings that say which weights to take, and not what the network is.
_WEIGHTS = ("pretrained", "checkpoint", "checkpoint_swa_weights", "checkpoint_discard_head")


def check_files(config: dict[str, Any], *splits: str) -> None:
    """Raise InputError if ground truths or a teacher's logits are not there.

    Before weights are fetched for them.
    """
    for split in splits:
        path = config["datamodule"][f"groundtruth_{split}"]
        if path is None or Path(path).exists():
            continue
        if SCORES_DIR not in Path(path).resolve().parents:  # which is built where it is missing
            raise InputError(
                f"{path}: no such file. Check datamodule.groundtruth_{split}; a data set's own "
                "preprocess.py makes it"
            )
    teacher = config["datamodule"]["teacher_dir"]
    if "train" in splits and teacher is not None and not Path(teacher).is_dir():
        raise InputError(
            f"{teacher}: no such folder. datamodule.teacher_dir is where `python ex_maest.py "
            "extract_logits with maest.checkpoint=<the teacher>` has written the logits of a model "
            "of the same labels, for all training tracks"
        )


def find_task(config: dict[str, Any], checkpoint: Checkpoint | None) -> str:
    """What the targets are: as the settings say, or the checkpoint, or else many labels."""
    task = config["maest"]["task"]
    if task is not None:
        check_choice("maest.task", task, TASKS)
        return task
    return checkpoint.sizes.get("task", TASKS[0]) if checkpoint else TASKS[0]


def set_up_data(
    config: dict[str, Any], checkpoint: Checkpoint | None, *splits: str
) -> MaestDataModule:
    """The data module for some splits, with the clip length that settings or checkpoint say.

    Its data is there: the embedded data set is built if it is wanted and missing.
    """
    options = dict(config["datamodule"])
    for split in {"train", "val", "test", "predict"} - set(splits):
        options.pop(f"groundtruth_{split}")
    if "train" not in splits:
        options.pop("teacher_dir")
    options["task"] = find_task(config, checkpoint)
    clip_length, arch = options.pop("clip_length"), config["maest"]["arch"]
    if clip_length is not None:
        frames = input_frames(clip_length)
    elif config["maest"]["input_t"] is not None:
        frames = config["maest"]["input_t"]
    elif checkpoint is not None and "input_t" in checkpoint.sizes:
        frames = checkpoint.sizes["input_t"]
    else:
        with in_section("maest"):
            published = arch is not None and find_arch(arch).published
        frames = input_frames(settings.DEFAULT_CLIP_LENGTH)
        if published:
            frames = find_arch(arch).input_t
    data = MaestDataModule(clip_frames=frames, seed=config["seed"], **options)
    data.prepare_data()
    return data


@contextmanager
def in_section(section: str) -> Iterator[None]:
    """Errors name the setting of this section that an argument of the same name came from."""
    try:
        yield
    except InputError as error:
        if error.setting and "." not in error.setting and not isinstance(error, CheckpointError):
            error.setting = f"{section}.{error.setting}"
        raise


def find_sizes(config: dict[str, Any]) -> Checkpoint | None:
    """What ``maest.checkpoint`` says of clip length and task; nothing is fetched for it."""
    path = config["maest"]["checkpoint"]
    average = config["maest"]["checkpoint_swa_weights"]
    return None if path is None else load_checkpoint(path, average)


def find_checkpoint(config: dict[str, Any], training: bool = False) -> Checkpoint | None:
    """The weights to start from: ``maest.checkpoint``'s, or the published ones of the arch."""
    if config["ckpt_path"] is not None and not training:
        raise InputError("ckpt_path continues a training; to use a model, give maest.checkpoint=…")
    maest = config["maest"]
    path, arch, pretrained = maest["checkpoint"], maest["arch"], maest["pretrained"]
    average = maest["checkpoint_swa_weights"]
    with in_section("maest"):
        published = arch is not None and find_arch(arch).published
        if path is not None:
            if published:
                log.warning("maest.checkpoint takes the place of the weights of %s", arch)
            return load_checkpoint(path, average)
        if arch is not None and (published if pretrained is None else pretrained):
            return fetch(arch, average)
    if pretrained or average:
        raise InputError(
            f"maest.{'pretrained' if pretrained else 'checkpoint_swa_weights'}=True asks for "
            "weights, and none are given",
            kind="missing",
            hint="Give maest.checkpoint=<model>, such as exp_logs/latest/model, or maest.arch=<a "
            "released model>.",
            setting="maest.checkpoint",
        )
    return None


def needed_checkpoint(config: dict[str, Any]) -> Checkpoint:
    checkpoint = find_checkpoint(config)
    if checkpoint is None:
        raise InputError(
            "no model is given",
            kind="missing",
            hint="Give maest.checkpoint=<model folder>, such as exp_logs/latest/model, or "
            "maest.arch=<a released model>. (For embeddings of random weights, name an arch "
            "without published weights, such as maest_tiny.)",
            setting="maest.checkpoint",
        )
    return checkpoint


def set_up_network(
    config: dict[str, Any],
    checkpoint: Checkpoint | None,
    data: MaestDataModule,
    split: str,
    training: bool = False,
) -> Maest:
    """The network that settings, checkpoint and (where they leave it open) a split ask for."""
    options = network_options(config, checkpoint, training)
    if checkpoint is None and options["arch"] is None:
        options["arch"] = settings.DEFAULT_ARCH
    known = checkpoint.sizes if checkpoint else {}
    if options["input_t"] is None:
        options["input_t"] = data.clip_frames
        if not training:  # of a shorter clip, positions are cropped
            options["input_t"] = max(data.clip_frames, known.get("input_t", 0))
    if options["input_t"] < data.clip_frames:
        raise InputError(
            f"maest.input_t is {options['input_t']} frames, and datamodule.clip_length makes clips "
            f"of {data.clip_frames}: the network's input must hold a clip"
        )
    discard_head = config["maest"]["checkpoint_discard_head"]
    if training or (options["n_classes"] is None and "n_classes" not in known):
        discard_head = _fit_head(options, checkpoint, data, split, discard_head)
    if training and options["task"] == "regression":
        same = {"n_classes": options["n_classes"], "task": "regression"}
        if discard_head or any(known.get(name) != value for name, value in same.items()):
            options |= _scale(data.groundtruth(split).targets)
    check_label_names(options, options["n_classes"] or known.get("n_classes"), config)
    norm = [name for name in ("norm_mean", "norm_std") if name not in known]
    if None in [options[name] for name in norm]:
        measured = dict(zip(("norm_mean", "norm_std"), data.mean_and_std(split), strict=True))
        for name in norm:
            options[name] = measured[name] if options[name] is None else options[name]
    with in_section("maest"):
        return get_maest(checkpoint=checkpoint, discard_head=discard_head, **options)


def _fit_head(
    options: dict[str, Any],
    checkpoint: Checkpoint | None,
    data: MaestDataModule,
    split: str,
    discard_head: bool,
) -> bool:
    """Set classes and labels to a split's; whether the checkpoint's head is to go for that."""
    groundtruth = data.groundtruth(split)
    if options["n_classes"] not in (None, groundtruth.n_classes):
        raise InputError(
            f"maest.n_classes is {options['n_classes']}, and {groundtruth.path} "
            f"has {groundtruth.n_classes} labels to a track: leave it out, or correct it"
        )
    options["n_classes"] = groundtruth.n_classes
    options["labels"] = options["labels"] or data.labels(split)
    if checkpoint is None or discard_head:
        return discard_head
    if checkpoint.labels and options["labels"]:
        if checkpoint.labels != options["labels"]:
            log.warning("the weights were trained on other labels: a fresh head")
        return checkpoint.labels != options["labels"]
    if checkpoint.sizes.get("n_classes") == groundtruth.n_classes:
        log.warning(
            "the head is kept, as it is for as many labels: whether they are the same is not "
            "known (maest.checkpoint_discard_head=True makes a fresh one)"
        )
    return False


def _scale(targets: np.ndarray) -> dict[str, list[float]]:
    """Mean and deviation of the targets of a regression, [N, C], as arguments of `get_maest`."""
    deviation = targets.std(axis=0)
    return {
        "target_mean": targets.mean(axis=0).tolist(),
        "target_std": np.where(deviation > 0, deviation, 1).tolist(),
    }


def network_options(
    config: dict[str, Any], checkpoint: Checkpoint | None, training: bool = False
) -> dict[str, Any]:
    """The settings of section ``maest`` as arguments of `get_maest`."""
    left_out = _WEIGHTS if training else (*_WEIGHTS, *_RANDOM)
    options = {name: value for name, value in config["maest"].items() if name not in left_out}
    options |= {"pretrained": False, "task": find_task(config, checkpoint)}
    # An arch with published weights stands for those: a checkpoint takes their place.
    arch = options["arch"]
    if config["maest"]["checkpoint"] is not None and arch and find_arch(arch).published:
        options["arch"] = None
    if options["labels"] is not None:
        options["labels"] = read_labels(options["labels"])
        if checkpoint and checkpoint.labels and checkpoint.labels != options["labels"]:
            log.warning("maest.labels are other names than those of %s", checkpoint.path)
    return options


def check_label_names(options: dict[str, Any], n_classes: int | None, config: dict) -> None:
    labels = options["labels"]
    if labels is not None and n_classes is not None and len(labels) != n_classes:
        raise InputError(
            f"{config['maest']['labels'] or 'labels.json'}: {len(labels)} labels, and the model "
            f"has {n_classes}: they are not of one task"
        )


def check_head(checkpoint: Checkpoint, net: Maest) -> None:
    """Raise InputError if a head that is read is not the checkpoint's."""
    read = ("head.", "head_dist.") if net.distilled_type == "separated" else ("head.",)
    trained_as = checkpoint.sizes.get("distilled_type", net.distilled_type)
    if trained_as != net.distilled_type or any(name.startswith(read) for name in net.fresh):
        raise InputError(
            f"{checkpoint.path}: a head for {net.n_classes} classes would be a fresh one, and "
            "its logits noise: leave out maest.n_classes, maest.task, maest.distilled_type and "
            "maest.checkpoint_discard_head, or use a model that was trained on these labels"
        )


def check_labels(net: Maest, data: MaestDataModule, split: str) -> None:
    """Raise InputError if the network's labels are known to be others than a split's."""
    labels = data.labels(split)
    if None not in (labels, net.labels) and labels != net.labels:
        raise InputError(
            f"{data.groundtruth(split).path.parent / 'labels.json'}: other labels, or another "
            "order, than the model's: they are not of one task"
        )


ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
# A run of fewer steps is over before compiling has paid.
_STEPS_THAT_PAY = 1000

# What decides how a training goes. Runs that agree in it are one experiment.
_SAME = {
    "seed": None,
    # Version 0.1 recorded False where nothing was said, and what is continued has its own weights.
    "maest": ("checkpoint_swa_weights",),
    "module": None,
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


def find_run_to_continue(config: dict[str, Any], log_dir: Path) -> Path | None:
    """The checkpoint that ``ckpt_path`` asks for; None to start anew.

    "last" is that of the newest run with the same settings, however it ended. Without any run
    there is nothing to continue, so that a cluster's job can be started again as it was.

    Raises:
        InputError: there are runs, and none has these settings.
    """
    if config["ckpt_path"] != "last":
        return None if config["ckpt_path"] is None else Path(config["ckpt_path"])
    runs = [path for path in log_dir.glob("*/checkpoints/last.ckpt") if path.is_file()]
    runs = [path for path in runs if not path.parents[1].is_symlink()]  # as "latest" is
    newest = None
    for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            other = json.loads((path.parents[1] / "config.json").read_text("utf-8"))
            differing = _differing(config, other)
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # no run of ours, or one that left nothing to compare with
        if not differing:
            log.info("continuing %s", path)
            return path
        newest = newest or (path, differing)
    if newest is None:
        log.warning("ckpt_path=last: there is no run to continue in %s: a new one begins", log_dir)
        return None
    path, differing = newest
    raise InputError(
        f"ckpt_path=last: no run has these settings. The newest, {path.parents[1]}, has "
        f"{'; '.join(differing[:5])}{'; …' * (len(differing) > 5)}. Give the same settings, or "
        f"ckpt_path={path} to go on from it with others"
    )


def read_continued(path: Path | None) -> Checkpoint | None:
    """The checkpoint of the training that is continued, if it can be read as a model."""
    if path is None or not path.is_file():
        return None
    try:
        return load_checkpoint(path, average=False)
    except InputError:  # which the training itself will tell
        return None


def as_it_began(config: dict[str, Any], continued: Checkpoint | None) -> dict[str, Any]:
    """The settings with the norm of the training that is continued, where they leave it open.

    Measured again it would be another one if a file has gone since.
    """
    if continued is None:
        return config
    norm = {name: continued.sizes.get(name) for name in ("norm_mean", "norm_std")}
    open_ones = {n: v for n, v in norm.items() if config["maest"][n] is None}
    return config | {"maest": config["maest"] | open_ones}


def _differing(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = []
    for section, free in _SAME.items():
        own, its = config[section], other.get(section)
        if free is None and not isinstance(own, dict):
            own, its, free = {"": own}, {"": its}, ()
        for name in own.keys() | its.keys():
            if name not in (free or ()) and own.get(name) != its.get(name):
                key = f"{section}.{name}".rstrip(".")
                found.append(f"{key}={its.get(name)} (here {own.get(name)})")
    return sorted(found)


def set_up_trainer(
    config: dict[str, Any],
    folder: Path,
    training: bool = False,
    extraction: bool = False,
    **options: Any,
) -> pl.Trainer:
    """Lightning's trainer.

    On CUDA it trains and extracts in fp16 mixed precision, unless told otherwise. Several devices
    or machines are for training and extraction; evaluation runs on one.
    """
    given = {name: value for name, value in config["trainer"].items() if value is not None}
    check_choice("trainer.accelerator", given["accelerator"], ACCELERATORS)
    for ours in ("checkpoint_minutes", "compile", "limit_predict_batches"):
        given.pop(ours, None)
    cuda = torch.cuda.is_available() and given["accelerator"] in ("auto", "gpu", "cuda")
    if "precision" not in given:
        given["precision"] = "16-mixed" if cuda and (training or extraction) else "32-true"
    if training or extraction:
        # (With weights in 16 bits, "16-true", Lightning would round the audio, too.)
        check_choice("trainer.precision", given["precision"], PRECISIONS)
        given["use_distributed_sampler"] = False
        _check_processes(given["devices"], given["num_nodes"])
        several = given["devices"] != 1 or given["num_nodes"] > 1
        if given["strategy"] == "ddp" or (given["strategy"] == "auto" and several):
            # The buffers are constants; and evaluation need not wait for the other processes.
            given["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if training:
        fast_math()
        given["plugins"] = [WholeFiles()]
    elif extraction:
        given["enable_progress_bar"] = False  # it has its own
    else:
        given |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        given["plugins"] = [LightningEnvironment()]  # whatever started this process
    callbacks = options.pop("callbacks", [])
    if (max_steps := given.pop("max_steps", -1)) >= 0 and training:
        callbacks = [StepLimit(max_steps), *callbacks]
    # A bar redraws its line: in a file or a pipe that is noise.
    given["enable_progress_bar"] &= sys.stderr.isatty()
    if given["enable_progress_bar"]:
        callbacks = [*callbacks, ProgressBar(refresh_rate=5)]
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_checkpointing=training,
        **{"logger": False, **given, **options},
    )
    # Between several processes, Lightning asks at every step whether one was told to stop, and the
    # host waits for the device to answer: `helpers.checkpoints` asks at every tenth.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def flops_per_clip(net: Maest, frames: int, frozen_blocks: int) -> float:
    """Floating-point operations that a clip of so many frames takes in training."""
    heads = 2 if net.distilled_type == "separated" else 1
    return training_flops(
        tokens=net.n_tokens(frames),
        embed_dim=net.embed_dim,
        depth=net.depth,
        outputs=heads * net.n_classes,
        mlp_ratio=net.mlp_ratio,
        frozen_blocks=frozen_blocks,
    )


def compile_if_it_pays(config: dict[str, Any], net: Maest, clips: int) -> None:
    """Compile the network's blocks, if the settings say so, or leave it open and it pays.

    Args:
        clips: of an epoch, of all processes.
    """
    trainer, wanted = config["trainer"], config["trainer"]["compile"]
    if wanted is None:
        cuda = torch.cuda.is_available() and trainer["accelerator"] in ("auto", "gpu", "cuda")
        devices = trainer["devices"] if trainer["devices"] > 0 else torch.cuda.device_count()
        batch = config["datamodule"]["batch_size_train"] * devices * trainer["num_nodes"]
        batches = clips // batch
        if isinstance(trainer["limit_train_batches"], int):
            batches = min(batches, trainer["limit_train_batches"])
        steps = trainer["max_epochs"] * batches
        if trainer["max_steps"] >= 0:
            steps = min(steps, trainer["max_steps"])
        # Compiling takes about a minute; each rate of stochastic depth would be a graph of its own.
        wanted = cuda and steps >= _STEPS_THAT_PAY and not config["maest"]["drop_path_rate"]
    if wanted:
        net.compile_blocks()


def _check_processes(devices: int, num_nodes: int) -> None:
    """Raise InputError if torchrun or srun has started another number of processes than is set."""
    who, options, started = "srun", "--ntasks-per-node and --nodes", 0
    if "TORCHELASTIC_RUN_ID" in os.environ:
        who, options = "torchrun", "--nproc-per-node and --nnodes"
        started = int(os.environ["WORLD_SIZE"])
    elif os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":  # of one, Lightning starts the others
        started = int(os.environ["SLURM_STEP_NUM_TASKS"])
    if started and devices != -1 and started != devices * num_nodes:
        raise InputError(
            f"{who} has started {started} processes, and trainer.devices={devices} times "
            f"trainer.num_nodes={num_nodes} is {devices * num_nodes}: set them to what "
            f"{options} say"
        )


def end_processes(trainer: pl.Trainer, patience: float = 5.0) -> None:
    """Let the processes that Lightning has started end, and end those that do not by themselves.

    They may wait for this one, which is about to stop.

    Args:
        trainer: of the first process of a machine.
        patience: seconds that they get.
    """
    started = getattr(trainer.strategy.launcher, "procs", [])
    processes = list(started)
    # Lightning watches them, and kills this one if one has failed: before it has said what it has
    # to say. Without any, it stops watching.
    started.clear()
    until = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def lost_a_process(error: Exception) -> bool:
    """Whether an error only says that another process has gone."""
    return isinstance(error, torch.distributed.DistError) or "by peer" in str(error)
