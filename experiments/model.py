"""Find a command's weights, and build the network from them, the settings and the data."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from maest.config import Settings
from maest.config.schema import tagged
from maest.config.settings import DEFAULT_ARCH, DEFAULT_CLIP_LENGTH, Network
from maest.datasets.groundtruth import GroundTruth, labels_beside, read_labels
from maest.datasets.norm import norm_stats
from maest.helpers.audio.constants import NORM_MEAN, NORM_STD
from maest.helpers.errors import InputError
from maest.models import Maest, get_maest, load_checkpoint
from maest.models.archs import Arch, find_arch, input_frames
from maest.models.download import fetch
from maest.models.sizes import TASKS
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)

_NORM_TRACKS = 200  # of the training split, to measure its mean and deviation


@contextmanager
def in_section(section: str) -> Iterator[None]:
    """Let errors name the setting of this section, in place of the argument of that name."""
    try:
        yield
    except InputError as error:
        if error.setting and "." not in error.setting:
            error.setting = f"{section}.{error.setting}"
        # Hints of the Python API say argument=value.
        error.hint = re.sub(r"(?<![\w.])([a-z_]+=)", rf"{section}.\1", error.hint)
        raise


def find_checkpoint(settings: Settings, training: bool = False) -> Checkpoint | None:
    """Return the weights of ``maest.checkpoint``, published ones, or None. Raises InputError."""
    maest, average = settings.maest, settings.maest.checkpoint_swa_weights
    if settings.ckpt_path is not None and not training:
        message = "it continues a training, which this command does not do"
        hint = "To use a model, give maest.checkpoint."
        raise InputError(message, kind="conflict", setting="ckpt_path", hint=hint)
    arch = arch_of(settings)
    published = arch is not None and arch.published
    with in_section("maest"):
        if maest.checkpoint is not None:
            if published:
                log.warning("maest.checkpoint takes the place of the weights of %s", maest.arch)
            return load_checkpoint(maest.checkpoint, average)
        if maest.arch is not None and (published if maest.pretrained is None else maest.pretrained):
            return fetch(maest.arch, average)
    if maest.pretrained or average:
        asked = "pretrained" if maest.pretrained else "checkpoint_swa_weights"
        raise _no_weights(f"maest.{asked}=True asks for weights, and none are given")
    return None


def require_checkpoint(settings: Settings) -> Checkpoint:
    """Return :func:`find_checkpoint`; InputError if there are no weights."""
    checkpoint = find_checkpoint(settings)
    if checkpoint is None:
        raise _no_weights("no model is given")
    return checkpoint


def _no_weights(message: str) -> InputError:
    hint = "Give maest.checkpoint=<model folder>, such as exp_logs/latest/model, or maest.arch=<a "
    hint += "released model>. (For embeddings of random weights, name an arch without published "
    hint += "weights, such as maest_tiny.)"
    return InputError(message, kind="missing", hint=hint, setting="maest.checkpoint")


def arch_of(settings: Settings) -> Arch | None:
    """Return the arch that ``maest.arch`` names. InputError: it is unknown."""
    with in_section("maest"):
        return None if settings.maest.arch is None else find_arch(settings.maest.arch)


def clip_frames(settings: Settings, checkpoint: Checkpoint | None) -> int:
    """Return frames per clip or patch: ``datamodule.clip_length``, or else the model's input."""
    arch, length = arch_of(settings), settings.datamodule.clip_length
    if length is None and settings.maest.input_t is not None:
        return settings.maest.input_t
    if length is None and checkpoint is not None and "input_t" in checkpoint.sizes:
        return int(checkpoint.sizes["input_t"])
    if length is None and arch is not None and arch.published:
        return arch.input_t
    return input_frames(DEFAULT_CLIP_LENGTH if length is None else length)


def find_task(settings: Settings, checkpoint: Checkpoint | None) -> str:
    """Return the task of the settings, else of the checkpoint, else "multi-label"."""
    known = checkpoint.sizes.get("task") if checkpoint else None
    return settings.maest.task or known or TASKS[0]


def network_arguments(
    settings: Settings, checkpoint: Checkpoint | None, training: bool = False
) -> dict[str, Any]:
    """Return section ``maest`` as arguments of `get_maest`, without the checkpoint."""
    left_out = tagged(Network, "weights") | (set() if training else tagged(Network, "training"))
    arguments = {n: v for n, v in vars(settings.maest).items() if n not in left_out}
    arguments |= {"pretrained": False, "task": find_task(settings, checkpoint)}
    if not training and checkpoint is not None:
        arguments["n_classes"] = settings.maest.n_classes or checkpoint.sizes.get("n_classes")
    # An arch with published weights names those; a checkpoint replaces them.
    arch = arch_of(settings)
    if settings.maest.checkpoint is not None and arch is not None and arch.published:
        arguments["arch"] = None
    if settings.maest.labels is not None:
        arguments["labels"] = read_labels(settings.maest.labels)
        if checkpoint and checkpoint.labels not in (None, arguments["labels"]):
            log.warning("maest.labels are other names than those of %s", checkpoint.path)
    return arguments


def build_network(
    settings: Settings,
    checkpoint: Checkpoint | None,
    groundtruth: GroundTruth | None = None,
    training: bool = False,
) -> Maest:
    """Build the network from settings and checkpoint; the ground truth decides the rest.

    Without a ground truth (unlabelled music), new weights get one class and the released models'
    normalisation. Training always takes classes, labels and scale from the ground truth.
    InputError: settings, checkpoint and ground truth do not fit together.
    """
    maest, known = settings.maest, checkpoint.sizes if checkpoint else {}
    arguments = network_arguments(settings, checkpoint, training)
    frames = clip_frames(settings, checkpoint)
    if checkpoint is None and maest.arch is None:
        arguments["arch"] = DEFAULT_ARCH
    if maest.input_t is None:  # at inference, positions are cropped for shorter clips
        arguments["input_t"] = frames if training else max(frames, known.get("input_t", 0))
    elif maest.input_t < frames:
        message = f"an input of {maest.input_t} frames is shorter than a clip, {frames} frames"
        hint = "Leave it out, or shorten datamodule.clip_length."
        raise InputError(message, kind="conflict", setting="maest.input_t", hint=hint)
    discard_head = maest.checkpoint_discard_head
    if groundtruth is None:
        arguments["n_classes"] = arguments["n_classes"] or 1
    elif training or arguments["n_classes"] is None:
        discard_head = _match_head(arguments, checkpoint, groundtruth, discard_head)
    if training and groundtruth is not None and arguments["task"] == "regression":
        head = {"n_classes": arguments["n_classes"], "task": "regression"}
        if discard_head or any(known.get(name) != value for name, value in head.items()):
            deviation = groundtruth.targets.std(axis=0)
            arguments["target_mean"] = groundtruth.targets.mean(axis=0).tolist()
            arguments["target_std"] = np.where(deviation > 0, deviation, 1).tolist()
    missing = [n for n in ("norm_mean", "norm_std") if n not in known and arguments[n] is None]
    if missing:
        norm = NORM_MEAN, NORM_STD
        if groundtruth is not None:
            base_dir = settings.datamodule.base_dir
            stats = norm_stats(base_dir, groundtruth.keys, progress=False, tracks=_NORM_TRACKS)
            norm = stats.mean, stats.std
        measured = dict(zip(("norm_mean", "norm_std"), norm, strict=True))
        arguments |= {name: measured[name] for name in missing}
    with in_section("maest"):
        return get_maest(checkpoint=checkpoint, discard_head=discard_head, **arguments)


def _match_head(
    arguments: dict[str, Any],
    checkpoint: Checkpoint | None,
    groundtruth: GroundTruth,
    discard_head: bool,
) -> bool:
    """Set classes and labels to the ground truth's; return whether to discard the head."""
    classes, path = arguments["n_classes"], groundtruth.path
    if classes not in (None, groundtruth.n_classes):
        message, hint = f"{classes} classes, and there are {groundtruth.n_classes}", "Leave it out."
        setting = "maest.n_classes"
        raise InputError(message, kind="conflict", setting=setting, path=path, hint=hint)
    arguments["n_classes"] = groundtruth.n_classes
    labels = arguments["labels"] = arguments["labels"] or labels_beside(groundtruth)
    if checkpoint is None or discard_head:
        return discard_head
    if checkpoint.labels and labels:
        if checkpoint.labels != labels:
            log.warning("the weights were trained on other labels: a newly initialized head")
        return checkpoint.labels != labels
    if checkpoint.sizes.get("n_classes") == groundtruth.n_classes:
        message = "keeping the checkpoint's head: same number of labels, names unknown (%s)"
        log.warning(message, "maest.checkpoint_discard_head=True initializes another")
    return False


def check_head(checkpoint: Checkpoint, net: Maest) -> None:
    """Raise InputError if a head whose logits are read is not the checkpoint's."""
    read = ("head.", "head_dist.") if net.distilled_type == "separated" else ("head.",)
    trained_as = checkpoint.sizes.get("distilled_type", net.distilled_type)
    if trained_as != net.distilled_type or any(name.startswith(read) for name in net.uninitialized):
        classes, setting = f"{net.n_classes} classes", "maest.checkpoint"
        message = f"a head for {classes} would be newly initialized, and its logits noise"
        hint = "Leave out maest.n_classes, maest.task, maest.distilled_type and "
        hint += "maest.checkpoint_discard_head, or use a model that was trained on these labels."
        raise InputError(message, kind="mismatch", setting=setting, path=checkpoint.path, hint=hint)
