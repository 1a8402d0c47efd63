"""Checkpoint files of any kind → a state dict, without running anything that is in them.

What a file is, its content says: safetensors, or PyTorch's own format, which is read as tensors and
plain containers only. `models.weights` makes a model of what is found here.

Files are mapped, not read (but for PyTorch's format of before version 1.6).
"""

from __future__ import annotations

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from helpers.errors import InputError
from models.layouts import listing

log = logging.getLogger(__name__)

TRAINER_KEY = "maest"  # where our Lightning checkpoints keep sizes and labels
# Constants of the front end that some released files carry: no weights of ours.
_FRONT_END = ("melspectrogram.spec.window", "melspectrogram.mel_scale.fb")
# What trainers put before the names: the network's own prefix, and that of its weight average.
RAW, AVERAGE = "net.", "net_swa."
_WRAPPERS = ("module.", "_orig_mod.")  # of averaging and distribution, and of torch.compile
# What torch says of a pickle that it refuses.
_NAMED = re.compile(r"GLOBAL ([\w.]+)|(?:class|type) ([\w.]+\.[\w.]+)")


class CheckpointError(InputError):
    """A checkpoint that cannot be used as it is; the message names it and says what to do."""


class DamagedError(CheckpointError):
    """A file that cannot be read as what it should be: broken, or half of it."""


def load_file(path: Path) -> tuple[Any, Mapping[str, Any] | None]:
    """Tensors by name, from safetensors or from a PyTorch file, as the content says.

    Returns:
        ``(content, what `save_safetensors` wrote of the model, or None)``.
    """
    with path.open("rb") as file:
        start = file.read(9)
    try:
        # A safetensors file begins with the length of its header, and the header with a brace.
        if start[8:9] == b"{":
            with safetensors.safe_open(path, "pt") as file:
                known = (file.metadata() or {}).get(TRAINER_KEY)
            return safetensors.torch.load_file(path), None if known is None else json.loads(known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what it is
            mapped = start[:4] == b"PK\3\4"
            if mapped:  # torch does not look at the checksums of what it maps
                with zipfile.ZipFile(path) as archive:
                    if damaged := archive.testzip():
                        raise ValueError(f"{damaged} has another checksum than it should")
            if mapped and path.suffix != ".safetensors":  # torch would go by that name
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):  # says nothing of the file's content
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if "allocate memory" in str(error):
            raise MemoryError(f"{path}: {error}") from None
        if refused := _refused(error, start):
            raise CheckpointError(
                f"{path}: refused: {refused}, and anything but tensors and plain containers could "
                "run code on loading. Save the state dict alone"
            ) from None
        raise DamagedError(
            f"{path}: cannot be read: damaged, or no checkpoint ({type(error).__name__})"
        ) from None
    if odd := _not_plain(content):
        raise CheckpointError(f"{path}: refused: it holds a {odd}. Save the state dict alone")
    return content, None


# What a checkpoint may hold. torch lets some more through, such as exceptions.
_PLAIN = (Tensor, str, bytes, int, float, complex, type(None), torch.Size, torch.dtype)
_PLAIN += (torch.device,)


def _not_plain(content: Any) -> str | None:
    """The name of a type in ``content`` that is no tensor, number, text or plain container."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            left += value
        else:
            return type(value).__name__
    return None


def _refused(error: Exception, start: bytes) -> str | None:
    """What torch refused, of a file that begins with ``start``; None if that was not the matter."""
    if "TorchScript" in str(error):
        return "it is a TorchScript program"
    if not isinstance(error, UnpicklingError):
        return None
    if named := _NAMED.search(str(error)):
        return f"it asks for {named[1] or named[2]}"
    if start[:1] == b"\x80" and start[1:2] in (b"\3", b"\4", b"\5"):
        return f"it is a pickle (protocol {start[1]}), which is not how torch saves tensors"
    return None


def unwrap(content: Any, path: Path, average: bool = False) -> dict[str, Tensor]:
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
    if other := [str(key) for key in content if key not in state]:
        log.info("%s: no tensors, and left out: %s", path, ", ".join(other))
    averaged = any(key.startswith(AVERAGE) for key in state)
    if average and not averaged:
        raise CheckpointError(no_average(path))
    if averaged or any(key.startswith(RAW) for key in state):
        wanted, other = (AVERAGE, RAW) if average else (RAW, AVERAGE)
        if averaged and not average:
            log.info(
                "%s: the weights themselves are taken; their average is in the file too "
                "(maest.checkpoint_swa_weights=True)",
                path,
            )
        if not any(key.startswith(wanted) for key in state):
            raise CheckpointError(
                f"{path}: it has the weights' average alone: maest.checkpoint_swa_weights=True "
                "(in Python load_checkpoint(path, average=True)) takes that"
            )
        beside = [key for key in state if not key.startswith((wanted, other))]
        if beside:
            log.info("%s: the trainer's own, and left out: %s", path, ", ".join(beside))
        state = {
            key.removeprefix(wanted): value
            for key, value in state.items()
            if key.startswith(wanted) and key != f"{wanted}n_averaged"
        }
    while state and (
        wrapper := next((w for w in _WRAPPERS if all(key.startswith(w) for key in state)), None)
    ):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in _FRONT_END}
    odd = {key: kind for key, value in state.items() if (kind := _odd(value))}
    if odd:
        shown = listing([f"{key}: {kind}" for key, kind in odd.items()])
        raise CheckpointError(f"{path}: tensors that are no weights, {shown}")
    return state


def _odd(tensor: Tensor) -> str | None:
    """What keeps a tensor from being weights; None for nothing."""
    if tensor.is_meta:
        return "without values (meta)"
    if tensor.layout != torch.strided:
        return f"{tensor.layout}"
    return None if tensor.is_floating_point() else f"{tensor.dtype}, expected real floating point"


def no_average(path: Path) -> str:
    """The message for a file or folder that has no average of weights."""
    return (
        f"{path}: there is no average of weights in it (keys {AVERAGE}*): "
        "leave maest.checkpoint_swa_weights out"
    )
