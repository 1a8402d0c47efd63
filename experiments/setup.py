"""From settings to the things themselves: data, network and trainer of ``ex_maest.py``."""

from __future__ import annotations

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

import maest.config as settings
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import read_labels
from maest.datasets.norm import sampled_mean_and_std
from maest.datasets.scores import DATA_DIR as SCORES_DIR
from maest.helpers.checkpoints import StepLimit, WholeFiles, leave_sigterm_to_us
from maest.helpers.errors import InputError
from maest.helpers.history import ProgressBar
from maest.helpers.throughput import fast_math
from maest.models import CheckpointError, Maest, get_maest, load_checkpoint
from maest.models.archs import Arch, clip_seconds, find_arch, input_frames
from maest.models.download import fetch
from maest.models.maest import TASKS, grid_size
from maest.models.weights import Checkpoint

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
    for split in splits_not_given(config, *splits):
        raise InputError(
            "it is not given, and datamodule.base_dir is not the embedded data set's",
            kind="missing",
            hint=f"Give datamodule.groundtruth_{split}=<a ground truth of the tracks there>.",
            setting=f"datamodule.groundtruth_{split}",
        )
    for split in splits:
        path = config["datamodule"][f"groundtruth_{split}"]
        if path is None or Path(path).exists():
            continue
        if SCORES_DIR not in Path(path).resolve().parents:  # which is built where it is missing
            raise InputError(
                "no such file",
                kind="missing",
                hint="A data set's own preprocess.py makes it, or `python datasets/groundtruth.py "
                "build`.",
                path=path,
                setting=f"datamodule.groundtruth_{split}",
            )
    teacher = config["datamodule"]["teacher_dir"]
    if "train" in splits and teacher is not None and not Path(teacher).is_dir():
        raise InputError(
            "no such folder",
            kind="missing",
            hint="`python ex_maest.py extract_logits with maest.checkpoint=<the teacher>` writes "
            "the logits of a model of the same labels, for all training tracks.",
            path=teacher,
            setting="datamodule.teacher_dir",
        )


def splits_not_given(config: dict[str, Any], *splits: str) -> list[str]:
    """Splits that are the embedded data set's by default, where the log-mel files are others."""
    given, default = config["datamodule"], settings.MAEST["datamodule"]
    if Path(given["base_dir"]).resolve() == Path(default["base_dir"]).resolve():
        return []
    names = [f"groundtruth_{split}" for split in splits]
    return [
        split
        for split, name in zip(splits, names, strict=True)
        if given[name] is not None and given[name] == default[name]
    ]


def find_task(config: dict[str, Any], checkpoint: Checkpoint | None) -> str:
    """What the targets are: as the settings say, or the checkpoint, or else many labels."""
    if config["maest"]["task"] is not None:
        return config["maest"]["task"]
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
    clip_length, arch = options.pop("clip_length"), _arch(config)
    if clip_length is not None:
        frames = input_frames(clip_length)
    elif config["maest"]["input_t"] is not None:
        frames = config["maest"]["input_t"]
    elif checkpoint is not None and "input_t" in checkpoint.sizes:
        frames = checkpoint.sizes["input_t"]
    elif arch is not None and arch.published:
        frames = arch.input_t
    else:
        frames = input_frames(settings.DEFAULT_CLIP_LENGTH)
    options |= {"num_workers": 0, "clips_per_epoch": None}
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


def _arch(config: dict[str, Any]) -> Arch | None:
    with in_section("maest"):
        name = config["maest"]["arch"]
        return None if name is None else find_arch(name)


def find_checkpoint(config: dict[str, Any], training: bool = False) -> Checkpoint | None:
    """The weights to start from: ``maest.checkpoint``'s, or the published ones of the arch."""
    if config["ckpt_path"] is not None and not training:
        raise InputError(
            "it continues a training, which this command does not do",
            kind="conflict",
            setting="ckpt_path",
            hint="To use a model, give maest.checkpoint.",
        )
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
            f"the network's input of {options['input_t']} frames is shorter than a clip, "
            f"{data.clip_frames} frames",
            kind="conflict",
            setting="maest.input_t",
            hint="Leave it out, or shorten datamodule.clip_length.",
        )
    if training and options["s_patchout_t"] is None:
        always = options["s_patchout_t_indices"] or options["s_patchout_t_interleaved"] > 1
        options["s_patchout_t"] = 0 if always else columns_to_drop(data.clip_frames)
        log.info("maest.s_patchout_t=%d, for clips of this length", options["s_patchout_t"])
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
        measured = dict(
            zip(
                ("norm_mean", "norm_std"),
                sampled_mean_and_std(data.base_dir, data.groundtruth(split).keys),
                strict=True,
            )
        )
        for name in norm:
            options[name] = measured[name] if options[name] is None else options[name]
    with in_section("maest"):
        return get_maest(checkpoint=checkpoint, discard_head=discard_head, **options)


def columns_to_drop(frames: int) -> int:
    """Time columns that patchout drops by default of a clip of so many frames: about half.

    The paper's numbers: 15, 30, 60, 90 for clips of 5, 10, 20, 30 s.
    """
    return min(round(3 * clip_seconds(frames)), grid_size(frames) - 1)


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
            f"{options['n_classes']} classes, and the ground truth has {groundtruth.n_classes} "
            "labels to a track",
            kind="conflict",
            setting="maest.n_classes",
            path=groundtruth.path,
            hint="Leave it out, or correct it.",
        )
    options["n_classes"] = groundtruth.n_classes
    options["labels"] = options["labels"] or data.labels(split)
    if checkpoint is None or discard_head:
        return discard_head
    if checkpoint.labels and options["labels"]:
        if checkpoint.labels != options["labels"]:
            log.warning("the weights were trained on other labels: a newly initialized head")
        return checkpoint.labels != options["labels"]
    if checkpoint.sizes.get("n_classes") == groundtruth.n_classes:
        log.warning(
            "keeping the checkpoint's head: same number of labels, names unknown "
            "(maest.checkpoint_discard_head=True initializes another)"
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
            f"{len(labels)} labels, and the model has {n_classes}",
            kind="mismatch",
            setting="maest.labels",
            path=config["maest"]["labels"] or "labels.json",
            hint="Give the names of the model's own labels.",
        )


def check_head(checkpoint: Checkpoint, net: Maest) -> None:
    """Raise InputError if a head that is read is not the checkpoint's."""
    read = ("head.", "head_dist.") if net.distilled_type == "separated" else ("head.",)
    trained_as = checkpoint.sizes.get("distilled_type", net.distilled_type)
    if trained_as != net.distilled_type or any(name.startswith(read) for name in net.uninitialized):
        raise InputError(
            f"a head for {net.n_classes} classes would be newly initialized, and its logits noise",
            kind="mismatch",
            setting="maest.checkpoint",
            path=checkpoint.path,
            hint="Leave out maest.n_classes, maest.task, maest.distilled_type and "
            "maest.checkpoint_discard_head, or use a model that was trained on these labels.",
        )


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
    for ours in ("checkpoint_minutes", "compile", "limit_predict_batches"):
        given.pop(ours, None)
    cuda = _on_cuda(config)
    if "precision" not in given:
        given["precision"] = "16-mixed" if cuda and (training or extraction) else "32-true"
    if training or extraction:
        check_device(config)
        given["use_distributed_sampler"] = False
        _check_processes(given["devices"], given["num_nodes"])
        several = given["devices"] != 1 or given["num_nodes"] > 1
        if given["strategy"] == "ddp" or (given["strategy"] == "auto" and several):
            # The buffers are constants; and evaluation need not wait for the other processes.
            given["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
        if given["precision"] == "bf16-mixed" and not cuda:
            log.warning("trainer.precision=bf16-mixed: on most CPUs much slower than 32-true")
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
    leave_sigterm_to_us(trainer)
    return trainer


def _on_cuda(config: dict[str, Any]) -> bool:
    return torch.cuda.is_available() and config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")


def check_device(config: dict[str, Any]) -> None:
    """Raise InputError for settings of section ``trainer`` that a CPU cannot serve."""
    trainer = config["trainer"]
    mps = torch.backends.mps.is_available() and trainer["accelerator"] in ("auto", "gpu", "mps")
    if _on_cuda(config) or mps:
        return
    if trainer["accelerator"] not in ("auto", "cpu"):
        raise InputError(
            f"there is no {trainer['accelerator']!r} here",
            kind="unsupported",
            setting="trainer.accelerator",
            hint="Leave it out to take what there is.",
        )
    if trainer["precision"] == "16-mixed":
        raise InputError(
            "a CPU does not compute in fp16",
            kind="unsupported",
            setting="trainer.precision",
            hint="Leave it out: 32-true is the fastest there.",
        )
    if trainer["devices"] == -1:
        raise InputError(
            "there is no GPU here, of which -1 would take all",
            kind="unsupported",
            setting="trainer.devices",
            hint="Give a number of CPU processes, or leave it out.",
        )


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
            f"{who} has started {started} processes, and {devices} times trainer.num_nodes="
            f"{num_nodes} is {devices * num_nodes}",
            kind="conflict",
            setting="trainer.devices",
            hint=f"Set both to what {options} say.",
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
