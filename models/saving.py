"""Writing models: files are whole or absent, and never take the place of what others wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from maest.helpers.errors import InputError
from maest.helpers.files import atomic_path, to_json
from maest.models.checkpoint_files import TRAINER_KEY
from maest.models.maest import Maest

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
AVERAGE_NAME = "model-swa.safetensors"  # beside them, the average of weights, if there is one
FORMAT = "maest"
FORMAT_VERSION = 1


def model_record(
    model: Maest, arch: str | None = None, trained_on: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What weights alone do not say of a model: every file that is written of it keeps this."""
    return {
        "arch": arch,
        "sizes": model.sizes(),
        "labels": model.labels,
        "trained_on": dict(trained_on or {}),
    }


def save_model(
    folder: str | Path,
    model: Maest,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
    average: Maest | None = None,
) -> Path:
    """Write a model folder, and return its path. Weights are stored in their own type.

    An older model folder is replaced, file by file; other files in it stay.

    Args:
        arch: name of the architecture, for people to read.
        trained_on: anything JSON can hold: data, epochs, seed, metrics; "swa" is of the average.
        average: the network with the average of its weights, for `load_checkpoint`'s ``average``.

    Raises:
        InputError: as `own_files`.
    """
    record = model_record(model, arch, trained_on)
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **record}
    # In the weights' files too: so they can be used alone, and are known for this configuration's.
    config["digest"] = hashlib.sha256(to_json(config).encode()).hexdigest()
    networks = {WEIGHTS_NAME: model} | ({} if average is None else {AVERAGE_NAME: average})
    ours = read_config(folder, CONFIG_NAME).get("format") == FORMAT
    gone = {WEIGHTS_NAME, AVERAGE_NAME} - networks.keys()
    with own_files(folder, (CONFIG_NAME, *networks), ours, [*gone]) as paths:
        for name, network in networks.items():
            _write_weights(paths[name], network, config)
        paths[CONFIG_NAME].write_text(to_json(config), "utf-8")
    return Path(folder)


def save_safetensors(
    path: str | Path,
    model: Maest,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> Path:
    """Write one file: weights under the released checkpoints' names, the record as metadata.

    Raises:
        InputError: as `own_files`.
    """
    path = Path(path)
    with own_files(path.parent, [path.name], _is_own_file(path)) as paths:
        _write_weights(paths[path.name], model, model_record(model, arch, trained_on))
    return path


def _write_weights(path: Path, model: Maest, record: Mapping[str, Any]) -> None:
    metadata = {"format": "pt", TRAINER_KEY: to_json(record)}
    safetensors.torch.save_file(cpu_state_dict(model), path, metadata=metadata)


def _is_own_file(path: Path) -> bool:
    """Whether `save_safetensors` wrote a file; one of a model folder is another matter."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return "format" not in json.loads((file.metadata() or {})[TRAINER_KEY])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError):
        return False


def cpu_state_dict(model: Maest) -> dict[str, Tensor]:
    """The state dict as safetensors takes it."""
    return {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}


@contextmanager
def own_files(
    folder: str | Path, names: Sequence[str], ours: bool, gone: Sequence[str] = ()
) -> Iterator[dict[str, Path]]:
    """Yield a temporary path for each name; then they replace the older files in ``folder``.

    All are complete before the first gets its name; the first of ``names`` gets its name last.
    Files that are ``gone`` are removed; others stay.

    Raises:
        InputError: "exists" if there are files of these names that are not ``ours``; "access" if
            they cannot be written. Nothing is changed then.
    """
    folder = Path(folder)
    taken = [name for name in (*names, *gone) if (folder / name).exists() and not ours]
    if taken:
        raise InputError(
            f"this program did not write {' and '.join(taken)} in it, or it was changed since",
            kind="exists",
            hint="Choose another folder, or move it away.",
            path=folder,
        )
    missing = not folder.exists()
    try:
        with ExitStack() as stack:
            yield {name: stack.enter_context(atomic_path(folder / name)) for name in names}
            for name in gone:
                (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot be written: {reason}. What was there is unchanged",
            kind="access",
            hint="Make room or choose another folder.",
            path=folder,
        ) from error
    finally:
        if missing:
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()


def read_config(folder: str | Path, name: str) -> dict[str, Any]:
    """A folder's JSON object of that name; empty if there is none."""
    try:
        config = json.loads((Path(folder) / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
