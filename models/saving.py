"""Writing models: files are whole or absent, and never take the place of what others wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from maest.helpers.errors import InputError
from maest.helpers.files import atomic_path, to_json
from maest.models.archs import CONFIG_NAME, WEIGHTS_NAME
from maest.models.maest import Maest

AVERAGE_NAME = "model-swa.safetensors"  # beside them, the average of weights, if there is one
FORMAT = "maest"
FORMAT_VERSION = 1
TRAINER_KEY = "maest"  # where files keep what weights alone do not say of a model
_NEAR = 1 << 22  # bytes of a file that are searched for a mark
_FOLDER_MARK = f'"format": "{FORMAT}"'.encode()  # in config.json
# In the header of a single file: how its record begins. That of a model folder's begins otherwise.
_FILE_MARK = rf'"{TRAINER_KEY}":"{{\n  \"arch\"'.encode()


def model_record(
    model: Maest, arch: str | None = None, trained_on: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What weights alone do not say of a model: every file that is written of it keeps this."""
    known = {"sizes": model.sizes(), "labels": model.labels}
    return {"arch": arch, **known, "trained_on": dict(trained_on or {})}


def save_model(
    folder: str | Path,
    model: Maest,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
    average: Maest | None = None,
) -> Path:
    """Write a model folder, and return its path. Weights are stored in their own type.

    ``arch`` is for people to read; ``trained_on`` anything JSON can hold (data, epochs, seed,
    metrics; "swa" is of the average); ``average`` the network with the average of its weights.
    An older model folder is replaced, file by file, as by `own_files`.
    """
    folder, record = Path(folder), model_record(model, arch, trained_on)
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **record}
    # In the weights' files too: so they can be used alone, and are known for this configuration's.
    config["digest"] = hashlib.sha256(to_json(config).encode()).hexdigest()
    networks = {WEIGHTS_NAME: model} | ({} if average is None else {AVERAGE_NAME: average})
    gone = {WEIGHTS_NAME, AVERAGE_NAME} - networks.keys()
    texts = {CONFIG_NAME: to_json(config)}
    with own_files(folder / CONFIG_NAME, _FOLDER_MARK, networks, texts, gone) as paths:
        for name, network in networks.items():
            _write_weights(paths[name], network, config)
    return folder


def save_safetensors(
    path: str | Path,
    model: Maest,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> Path:
    """Write one file, its weights and its record, and labels.json, as by `own_files`."""
    path = Path(path)
    with own_files(path, _FILE_MARK, [path.name], labels_file(model)) as paths:
        _write_weights(paths[path.name], model, model_record(model, arch, trained_on))
    return path


def _write_weights(path: Path, model: Maest, record: Mapping[str, Any]) -> None:
    metadata = {"format": "pt", TRAINER_KEY: to_json(record)}
    safetensors.torch.save_file(cpu_state_dict(model), path, metadata=metadata)


def cpu_state_dict(model: Maest) -> dict[str, Tensor]:
    # As safetensors takes it.
    return {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}


def labels_file(model: Maest) -> dict[str, str]:
    """Name → content, if the labels have names."""
    return {"labels.json": to_json(model.labels)} if model.labels else {}


@contextmanager
def own_files(
    marked: Path,
    mark: bytes,
    names: Collection[str],
    texts: Mapping[str, str],
    gone: Collection[str] = (),
) -> Iterator[dict[str, Path]]:
    """Yield a temporary path for each of ``names``; then they replace the older files.

    Files of ``texts`` (name → content) are written along, and get their names last, the first one
    after all others. Files that are ``gone`` are removed; others in the folder stay.

    ``marked``, one of all these, says whose the older files are: this program's, if ``mark`` is
    near its start.

    Raises:
        InputError: "exists" if there are files of these names that others wrote, unless with the
            same text; "access" if they cannot be written. Nothing is changed then.
    """
    folder = marked.parent

    def start(name: str) -> bytes:
        with suppress(OSError), (folder / name).open("rb") as file:
            return file.read(_NEAR)
        return b""

    there = [name for name in (*names, *texts, *gone) if (folder / name).exists()]
    others = [n for n in there if n not in texts or start(n) != texts[n].encode()]
    if others and mark not in start(marked.name):
        message = f"this program did not write {' and '.join(others)} in it, or not as it is now"
        hint = "Choose another folder, or move it away."
        raise InputError(message, kind="exists", hint=hint, path=folder)
    missing = not folder.exists()
    try:
        with ExitStack() as stack:
            for name, text in texts.items():
                stack.enter_context(atomic_path(folder / name)).write_text(text, "utf-8")
            yield {name: stack.enter_context(atomic_path(folder / name)) for name in names}
            for name in gone:
                (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"cannot be written: {reason}. What was there is unchanged"
        hint = "Make room or choose another folder."
        raise InputError(message, kind="access", hint=hint, path=folder) from error
    finally:
        if missing:
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()
