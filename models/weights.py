"""Model folders and checkpoint files → our state dict, and back.

A *model folder* is the unit of hand-over: ``config.json`` (architecture and sizes, input length,
normalisation, labels, what it was trained on) and ``model.safetensors``. Nothing else is needed to
use the model.

Files are recognised by what is in them, and read as tensors and plain containers only
(safetensors, or ``torch.load(..., weights_only=True)``): nothing in a file is ever run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.errors import InputError
from helpers.files import current_umask, to_json
from helpers.patches import PATCH_SIZE
from models.maest import SIZE_NAMES, STRIDE, Maest

log = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TRAINER_KEY = "maest"  # where our Lightning checkpoints keep sizes and labels
FORMAT = "maest"
FORMAT_VERSION = 1
_HEAD_WIDTH = 64  # channels of an attention head, in every released size
# Constants of the front end that some released files carry: no weights of ours.
_IGNORED = re.compile(r"^melspectrogram\.")
# What torch says of a pickle that it refuses.
_REFUSED = re.compile(r"(?:GLOBAL|class|type) ([\w.]+\.[\w.]+)")
# Time positions → input frames of 5, 10, 20 and 30 s. Positions alone say only the tens of frames.
_RELEASED_INPUTS = {31: 312, 62: 625, 125: 1250, 187: 1875}


class CheckpointError(InputError):
    """A checkpoint that cannot be used as it is; the message names it and says what to do."""


@dataclass
class Checkpoint:
    """What was found in a file or folder: weights under our names, and what is known of them."""

    path: Path
    state: dict[str, Tensor]
    sizes: dict[str, Any] = field(default_factory=dict)  # arguments of `Maest`, as far as known
    arch: str | None = None
    labels: list[str] | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)


def save_model(
    folder: str | Path, model: Maest, arch: str | None = None, trained_on: Mapping | None = None
) -> Path:
    """Write a model folder; it appears whole.

    An older folder of that name is replaced, in two renames: a kill between them leaves it aside,
    in a ``.tmp-`` folder.

    Args:
        folder: where to.
        model: the network; its weights are stored as they are, in their own type.
        arch: name of the architecture, for people to read.
        trained_on: anything JSON can hold: data, epochs, seed, figures.

    Returns:
        the folder.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arch": arch,
        "sizes": model.sizes(),
        "labels": model.labels,
        "trained_on": dict(trained_on or {}),
    }
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(state, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        (temporary / CONFIG_NAME).write_text(to_json(config), "utf-8")
        temporary.chmod(0o777 & ~current_umask())
        _move_into_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _move_into_place(new: Path, folder: Path) -> None:
    """Rename ``new`` to ``folder``; an older folder there is kept if that fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    older = aside / folder.name
    try:
        os.replace(folder, older)
        try:
            os.replace(new, folder)
        except BaseException:
            os.rename(older, folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model folder, or a file with a state dict of MAEST weights.

    A file may be safetensors or PyTorch's own format; the state dict may stand at the top, or under
    ``state_dict`` (Lightning, with the prefix ``net.``) or ``model``.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        CheckpointError: if what is there is damaged, holds anything but tensors and plain
            containers, or is no MAEST model.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file or folder. maest.checkpoint takes a model folder (a finished "
            "run's exp_logs/<id>/model) or a checkpoint file"
        )
    content = _load_file(path)
    state = _unwrap(content, path)
    if not (isinstance(content, Mapping) and isinstance(content.get(TRAINER_KEY), Mapping)):
        sizes = _sizes_of(state, path)
        log.info("%s: weights alone: heads of 64 channels and Discogs20's norm are taken", path)
        return Checkpoint(path, state, sizes=sizes)
    known = content[TRAINER_KEY]
    _check_config(known.get("sizes"), known.get("labels"), path)
    done = {"epoch": content.get("epoch", -1) + 1, "steps": content.get("global_step", 0)}
    return Checkpoint(
        path, state, sizes=dict(known["sizes"]), labels=known["labels"], trained_on=done
    )


def _load_folder(folder: Path) -> Checkpoint:
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        nested = folder / "model" / CONFIG_NAME
        hint = f" Did you mean {nested.parent}?" if nested.is_file() else ""
        raise CheckpointError(
            f"{folder}: no model folder: it has no {' and no '.join(missing)}. A finished "
            f"training run writes one to exp_logs/<id>/model.{hint}"
        )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: not valid JSON ({error})") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: not the configuration of a MAEST model folder "
            f'(expected "format": "{FORMAT}")'
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG_NAME}: format_version {config.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}: written by another version of this program"
        )
    sizes, labels = config.get("sizes"), config.get("labels")
    _check_config(sizes, labels, folder / CONFIG_NAME)
    return Checkpoint(
        folder,
        _unwrap(_load_file(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME),
        sizes=sizes,
        arch=config.get("arch"),
        labels=labels,
        trained_on=config.get("trained_on") or {},
    )


def _check_config(sizes: Any, labels: Any, path: Path) -> None:
    """Raise CheckpointError unless sizes and labels are what `save_model` writes."""
    if not isinstance(sizes, dict) or set(sizes) != set(SIZE_NAMES):
        found = ", ".join(sizes) if isinstance(sizes, dict) else sizes
        raise CheckpointError(
            f"{path}: sizes are {found}: expected exactly {', '.join(SIZE_NAMES)}"
        )
    for name, value in sizes.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not (isinstance(value, str) if name in ("distilled_type", "task") else number):
            raise CheckpointError(f"{path}: sizes.{name} is {value!r}")
    good = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if labels is not None and not (good and len(labels) == sizes["n_classes"]):
        raise CheckpointError(
            f"{path}: labels must be null, or a list of {sizes['n_classes']} names (n_classes)"
        )


def _load_file(path: Path) -> Any:
    """Tensors by name, from safetensors or from a PyTorch file, as the content says."""
    with path.open("rb") as file:
        start = file.read(9)
    try:
        # A safetensors file begins with the length of its header, and the header with a brace.
        if start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        with path.open("rb") as file:  # by name, torch would go by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, UnpicklingError) and (named := _REFUSED.search(str(error))):
            raise CheckpointError(
                f"{path}: refused: it asks for {named[1]}, and anything but tensors and plain "
                "containers could run code on loading. Save the state dict alone"
            ) from None
        raise CheckpointError(
            f"{path}: cannot be read: damaged, or no checkpoint ({type(error).__name__})"
        ) from None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without the nesting and prefix of the trainer that wrote it."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    nested = {key[4:]: value for key, value in state.items() if key.startswith("net.")}
    return {key: value for key, value in (nested or state).items() if not _IGNORED.match(key)}


def _sizes_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Read the sizes off the shapes of the weights, where no configuration tells them."""
    try:
        embed_dim = state["cls_token"].shape[-1]
        positions = state["time_new_pos_embed"].shape[-1]
        rows = state["freq_new_pos_embed"].shape[-2]
        blocks = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
        return {
            "embed_dim": embed_dim,
            "depth": max(blocks) + 1,
            "num_heads": max(1, embed_dim // _HEAD_WIDTH),
            "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
            "n_classes": state["head.1.weight"].shape[0],
            "input_t": _RELEASED_INPUTS.get(positions, max(positions * STRIDE, PATCH_SIZE)),
            "input_f": (rows - 1) * STRIDE + PATCH_SIZE,
        }
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        some = ", ".join(list(state)[:4]) or "nothing"
        raise CheckpointError(
            f"{path}: no weights of a MAEST network in it (no {error}; it has {some} …)"
        ) from None


def load_into(model: Maest, checkpoint: Checkpoint) -> Maest:
    """Copy a checkpoint's weights into a network, adapting what may differ.

    Position embeddings of another length are resized along their own axis (bicubic); a head for
    another number of classes stays fresh. Both are logged. Anything else must match.

    Raises:
        CheckpointError: listing the keys that are missing, unexpected or of another shape.
    """
    state = dict(checkpoint.state)
    own = model.state_dict()
    notes = []
    for name in ("time_new_pos_embed", "freq_new_pos_embed"):
        if name in state and state[name].shape != own[name].shape:
            size = own[name].shape[2:]
            if state[name].shape[:2] != own[name].shape[:2]:
                continue  # another width: reported below
            notes.append(f"{name} resized from {tuple(state[name].shape[2:])} to {tuple(size)}")
            state[name] = F.interpolate(
                state[name].float(), size=size, mode="bicubic", align_corners=False
            )
    head = state.get("head.1.weight")
    if head is not None and head.shape[0] != model.n_classes:
        notes.append(f"the head is fresh: {head.shape[0]} classes there, {model.n_classes} here")
        for name in ("head.1.weight", "head.1.bias", "head_dist.weight", "head_dist.bias"):
            state[name] = own[name]

    problems = [f"missing: {name}" for name in own if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in own]
    problems += [
        f"{name}: {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + ("\n  …" if len(problems) > 20 else "")
        raise CheckpointError(
            f"{checkpoint.path}: does not fit the network ({len(problems)} keys):\n  {shown}\n"
            "If maest.arch or another size was given, leave it out: the checkpoint knows its own"
        )
    model.load_state_dict(state)
    for note in notes:
        log.warning("%s: %s", checkpoint.path, note)
    return model
