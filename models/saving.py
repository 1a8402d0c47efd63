"""Writing models: files are whole or absent, and never replace those of other programs."""

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
from maest.helpers.files.atomic import atomic_path, to_json
from maest.models.archs import CONFIG_NAME, WEIGHTS_NAME
from maest.models.golden import AVERAGE, GOLDEN_NAME, MODEL, golden_text
from maest.models.maest import Maest

AVERAGE_NAME = "model-swa.safetensors"  # the average of weights, if any
AVERAGE_THRESHOLDS = "thresholds_swa"  # in config.json
FORMAT = "maest"
FORMAT_VERSION = 1
TRAINER_KEY = "maest"  # the key of `model_record` in a file
_NEAR = 1 << 22  # bytes searched for a mark
_FOLDER_MARK = f'"format": "{FORMAT}"'.encode()  # in config.json
# The record's start in a single file's header; in a model folder's files it starts otherwise
_FILE_MARK = rf'"{TRAINER_KEY}":"{{\n  \"arch\"'.encode()


def model_record(
    model: Maest, arch: str | None = None, trained_on: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The facts about a model that its weights do not hold; each of its files keeps this record."""
    known: dict[str, Any] = {"arch": arch, "sizes": model.sizes(), "labels": model.labels}
    if model.thresholds:
        known["thresholds"] = model.thresholds
    return known | {"trained_on": dict(trained_on or {})}


def save_model(
    folder: str | Path,
    model: Maest,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
    average: Maest | None = None,
) -> Path:
    """Write a model folder, replacing an older one as by `own_files`; return its path.

    ``arch`` is for people; ``trained_on`` holds any JSON (data, epochs, seed, metrics; "swa"
    describes the average); ``average`` is the network with averaged weights, which have thresholds
    of their own. Weights keep their dtype.
    """
    folder, record = Path(folder), model_record(model, arch, trained_on)
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **record}
    if average is not None and average.thresholds:
        config[AVERAGE_THRESHOLDS] = average.thresholds
    # Weight files keep the record too: each can be used alone, and must match the config.json.
    config["digest"] = hashlib.sha256(to_json(config).encode()).hexdigest()
    networks = {WEIGHTS_NAME: model} | ({} if average is None else {AVERAGE_NAME: average})
    gone = {WEIGHTS_NAME, AVERAGE_NAME} - networks.keys()
    golden = golden_text({MODEL: model} | ({} if average is None else {AVERAGE: average}))
    texts = {CONFIG_NAME: to_json(config)} | ({GOLDEN_NAME: golden} if golden else {})
    gone |= {GOLDEN_NAME} - texts.keys()
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
    """Write weights and record as one file, and `label_files` beside it, as by `own_files`."""
    path = Path(path)
    with own_files(path, _FILE_MARK, [path.name], *label_files(model)) as paths:
        _write_weights(paths[path.name], model, model_record(model, arch, trained_on))
    return path


def _write_weights(path: Path, model: Maest, record: Mapping[str, Any]) -> None:
    metadata = {"format": "pt", TRAINER_KEY: to_json(record)}
    safetensors.torch.save_file(cpu_state_dict(model), path, metadata=metadata)


def cpu_state_dict(model: Maest) -> dict[str, Tensor]:
    # safetensors takes contiguous tensors.
    return {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}


def label_files(model: Maest, patchout: bool = False) -> tuple[dict[str, str], set[str]]:
    """Return file name → content of a model's labels, thresholds (lists of C) and golden pair.

    And the names of what there is none of: an older export's thresholds and pair must not stay.
    ``patchout`` is `golden_text`'s.
    """
    texts = {
        "labels.json": to_json(model.labels) if model.labels else None,
        "thresholds.json": to_json(model.thresholds) if model.thresholds else None,
        GOLDEN_NAME: golden_text({MODEL: model}, patchout),
    }
    gone = {name for name, text in texts.items() if text is None} - {"labels.json"}
    return {name: text for name, text in texts.items() if text is not None}, gone


@contextmanager
def own_files(
    marked: Path,
    mark: bytes,
    names: Collection[str],
    texts: Mapping[str, str],
    gone: Collection[str] = (),
) -> Iterator[dict[str, Path]]:
    """Yield a temporary path per name; afterwards these files replace older ones.

    So do ``texts`` (name → content), the first one last. Files that are ``gone`` are removed;
    others stay. ``mark`` near the start of ``marked``, one of all these, shows that this program
    wrote the older files.

    InputError "exists": others wrote files of these names, with another content; "access": files
    cannot be written. Nothing is changed then.
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
            with suppress(OSError):  # not empty, or never created
                folder.rmdir()
