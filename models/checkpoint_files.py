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

from maest.models.layouts import CheckpointError, listing

log = logging.getLogger(__name__)

TRAINER_KEY = "maest"  # where our Lightning checkpoints keep sizes and labels
# Constants of the front end that some released files carry: no weights of ours.
_FRONT_END = ("melspectrogram.spec.window", "melspectrogram.mel_scale.fb")
# What trainers put before the names: the network's own prefix, and that of its weight average.
RAW, AVERAGE = "net.", "net_swa."
_WRAPPERS = ("module.", "_orig_mod.")  # of averaging and distribution, and of torch.compile
_STATE_DICT_ALONE = "Save the state dict alone, with torch.save(model.state_dict(), path)."
# What torch says of a pickle that it refuses.
_NAMED = re.compile(r"GLOBAL ([\w.]+)|(?:class|type) ([\w.]+\.[\w.]+)")


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
                f"refused: {refused}, and anything but tensors and plain containers could run code "
                "on loading",
                kind="unsupported",
                hint=_STATE_DICT_ALONE,
                path=path,
            ) from None
        raise CheckpointError(
            f"cannot be read: damaged, or no checkpoint ({type(error).__name__})",
            kind="corrupt",
            hint="Get the file again, or give another one.",
            path=path,
        ) from None
    if odd := _not_plain(content):
        raise CheckpointError(
            f"refused: it holds a {odd}", kind="unsupported", hint=_STATE_DICT_ALONE, path=path
        )
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


def unwrap(content: Any, path: Path, average: bool | None = None) -> tuple[dict[str, Tensor], bool]:
    """The state dict in a file, without the nesting and prefix of the trainer that wrote it.

    Args:
        content: of the file.
        path: the file, for messages.
        average: as in `models.weights.load_checkpoint`.

    Returns:
        ``(state dict, whether it is the average)``.
    """
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds a {type(content).__name__}, not a state dict",
            hint=_STATE_DICT_ALONE,
            path=path,
        )
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if other := [str(key) for key in content if key not in state]:
        log.info("%s: no tensors, and left out: %s", path, ", ".join(other))
    averaged = any(key.startswith(AVERAGE) for key in state)
    if average and not averaged:
        raise missing_average(path)
    average = averaged if average is None else average
    if averaged or any(key.startswith(RAW) for key in state):
        chosen, other = (AVERAGE, RAW) if average else (RAW, AVERAGE)
        if not any(key.startswith(chosen) for key in state):
            raise CheckpointError(
                "it has the average of the weights alone, and no raw weights",
                kind="missing",
                hint="Leave maest.checkpoint_swa_weights (in Python, average) out.",
                path=path,
            )
        beside = [key for key in state if not key.startswith((chosen, other))]
        if beside:
            log.info("%s: the trainer's own, and left out: %s", path, ", ".join(beside))
        state = {
            key.removeprefix(chosen): value
            for key, value in state.items()
            if key.startswith(chosen) and key != f"{chosen}n_averaged"
        }
    while state and (
        wrapper := next((w for w in _WRAPPERS if all(key.startswith(w) for key in state)), None)
    ):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in _FRONT_END}
    odd = {key: kind for key, value in state.items() if (kind := _odd(value))}
    if odd:
        shown = listing([f"{key}: {kind}" for key, kind in odd.items()])
        raise CheckpointError(
            f"tensors that are no weights, {shown}",
            kind="unsupported",
            hint="Save the weights as plain floating-point tensors.",
            path=path,
        )
    return state, average


def _odd(tensor: Tensor) -> str | None:
    """What keeps a tensor from being weights; None for nothing."""
    if tensor.is_meta:
        return "without values (meta)"
    if tensor.layout != torch.strided:
        return f"{tensor.layout}"
    return None if tensor.is_floating_point() else f"{tensor.dtype}, expected real floating point"


def missing_average(path: Path) -> CheckpointError:
    """The error for a file or folder that has no average of weights."""
    return CheckpointError(
        f"there is no average of weights in it (keys {AVERAGE}*)",
        kind="missing",
        hint="Leave maest.checkpoint_swa_weights (in Python, average) out to take its weights.",
        path=path,
    )
