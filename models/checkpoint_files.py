"""Checkpoint files of any kind → a state dict, without running anything that is in them.

The content says what a file is: safetensors, or PyTorch's own format, of which tensors and plain
containers are read. Files are mapped, not read (but for PyTorch's format of before version 1.6).
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

from maest.helpers.errors import InputError

log = logging.getLogger(__name__)

TRAINER_KEY = "maest"  # where files keep what weights alone do not say of a model
# Constants of the front end that some released files carry: no weights of ours.
_FRONT_END = ("melspectrogram.spec.window", "melspectrogram.mel_scale.fb")
# What trainers put before the names: the network's own prefix, and that of its weight average.
RAW, AVERAGE = "net.", "net_swa."
_WRAPPERS = ("module.", "_orig_mod.")  # of averaging and distribution, and of torch.compile
_STATE_DICT_ALONE = "Save the state dict alone, with torch.save(model.state_dict(), path)."
# What torch says of a pickle that it refuses.
_NAMED = re.compile(r"GLOBAL ([\w.]+)|(?:class|type) ([\w.]+\.[\w.]+)")
# What a checkpoint may hold. torch lets some more through, such as exceptions.
_PLAIN = (
    *(Tensor, torch.Size, torch.dtype, torch.device),
    *(str, bytes, int, float, complex, type(None)),
)


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


def load_file(path: Path) -> tuple[Any, Any]:
    """``(content, the record that this program keeps of the model under TRAINER_KEY, or None)``."""
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:9] == b"{":  # safetensors: the length of the header, then the header
            with safetensors.safe_open(path, "pt") as file:
                record = (file.metadata() or {}).get(TRAINER_KEY, "null")
            return safetensors.torch.load_file(path), json.loads(record)
        content = _load_pytorch(path, zipped=start[:4] == b"PK\3\4")
    except (OSError, MemoryError):  # says nothing of the file's content
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if "allocate memory" in str(error):
            raise MemoryError(f"{path}: {error}") from None
        reason = _rejection_reason(error, start)
        raise CheckpointError(
            f"refused: {reason}, and could run code on loading"
            if reason
            else f"damaged, or no checkpoint ({type(error).__name__})",
            kind="unsupported" if reason else "corrupt",
            hint=_STATE_DICT_ALONE if reason else "Get the file again, or give another one.",
            path=path,
        ) from None
    if name := _find_unsafe_type(content):
        raise CheckpointError(
            f"refused: it holds a {name}", kind="unsupported", hint=_STATE_DICT_ALONE, path=path
        )
    return content, content.get(TRAINER_KEY) if isinstance(content, Mapping) else None


def _load_pytorch(path: Path, zipped: bool) -> Any:
    if zipped:  # torch does not look at the checksums of what it maps
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} has another checksum than it should")
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # torch's guesses at what it is
        # By a path, torch takes any file of this name for safetensors; by a file, it maps none.
        mapped = zipped and path.suffix != ".safetensors"
        source = path if mapped else file
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def _rejection_reason(error: Exception, start: bytes) -> str | None:
    """What torch refused, of a file that begins with ``start``; None: it could not read it."""
    if "TorchScript" in str(error):
        return "it is a TorchScript program"
    if not isinstance(error, UnpicklingError):
        return None
    if named := _NAMED.search(str(error)):
        return f"it asks for {named[1] or named[2]}"
    if start[:1] == b"\x80" and start[1:2] in (b"\3", b"\4", b"\5"):
        return f"it is a pickle (protocol {start[1]}), which is not how torch saves tensors"
    return None


def _find_unsafe_type(content: Any) -> str | None:
    """The name of a type in ``content`` that no checkpoint may hold."""
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


def unwrap(content: Any, path: Path, average: bool | None = None) -> tuple[dict[str, Tensor], bool]:
    """``(state dict, whether it is the average)``; ``average`` as of `load_checkpoint`."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds a {type(content).__name__}, not a state dict",
            hint=_STATE_DICT_ALONE,
            path=path,
        )
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    averaged = any(key.startswith(AVERAGE) for key in state)
    average = averaged if average is None else average
    if average or averaged or any(key.startswith(RAW) for key in state):
        prefix = AVERAGE if average else RAW
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        state.pop("n_averaged", None)
        if not state:
            raise missing_weights(path, average)
    others = [str(key) for key in content if key not in state]
    if ignored := [key for key in others if not key.startswith((RAW, AVERAGE))]:
        log.info("%s: no weights, and left out: %s", path, ", ".join(ignored))
    while state and any(all(k.startswith(wrapper) for k in state) for wrapper in _WRAPPERS):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in _FRONT_END}
    invalid = [f"{key}: {reason}" for key, t in state.items() if (reason := _invalid_reason(t))]
    if invalid:
        raise CheckpointError(
            f"tensors that are no weights, {listing(invalid)}",
            kind="unsupported",
            hint="Save the weights as plain floating-point tensors.",
            path=path,
        )
    return state, average


def _invalid_reason(tensor: Tensor) -> str | None:
    """What keeps a tensor from being weights; None for nothing."""
    if tensor.is_meta:
        return "without values (meta)"
    if tensor.layout != torch.strided:
        return f"{tensor.layout}"
    return None if tensor.is_floating_point() else f"{tensor.dtype}, expected real floating point"


def missing_weights(path: str | Path, average: bool) -> CheckpointError:
    """The error for a file or folder without an average of weights, or with that alone."""
    return CheckpointError(
        "it has no average of the weights" if average else "it has the average of weights alone",
        kind="missing",
        hint="Leave maest.checkpoint_swa_weights (in Python, average) out.",
        path=path,
    )


def listing(lines: list[str]) -> str:
    """What is wrong with which keys, a line each; the first 20 of them."""
    shown = "\n  ".join(lines[:20])
    return f"{len(lines)} keys:\n  {shown}" + ("\n  …" if len(lines) > 20 else "")
