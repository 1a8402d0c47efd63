"""Model folders and checkpoint files → a network, without running any code in them.

A *model folder* holds ``config.json`` (sizes, normalisation, labels, what it was trained on) and
``model.safetensors``. A file's content tells its format. Files are mapped (but for PyTorch's format
of before version 1.6): a tensor takes memory when a network takes it.
"""

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from maest.helpers.errors import InputError, first_line
from maest.models import layouts
from maest.models.archs import ARCHS, CONFIG_NAME, WEIGHTS_NAME, canonical_licence
from maest.models.maest import Maest
from maest.models.saving import (
    AVERAGE_NAME,
    AVERAGE_THRESHOLDS,
    FORMAT,
    FORMAT_VERSION,
    TRAINER_KEY,
)
from maest.models.sizes import STRIDE, Sizes, grid_size

log = logging.getLogger(__name__)

# Prefixes in trainers' checkpoints: the network's, and its weight average's.
RAW, AVERAGE = "net.", "net_swa."
_WRAPPERS = ("module.", "_orig_mod.")  # of averaging and distribution, and of torch.compile
# Constants of the front end in some released files: no weights.
_FRONT_END = ("melspectrogram.spec.window", "melspectrogram.mel_scale.fb")
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|(?:class|type) ([\w.]+\.[\w.]+)")  # as torch names it
_AGAIN = "Get it again, have it written again by the program that made it, or give another one."


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


@dataclass
class Checkpoint:
    """The weights of a file or folder, and their description."""

    path: Path
    tensors: dict[str, Tensor]  # under our names; they may be views of the file
    sizes: dict[str, Any] = field(default_factory=dict)  # arguments of `Maest`, if known
    layout: str = layouts.MAEST  # of the file
    arch: str | None = None
    labels: list[str] | None = None
    thresholds: list[float | None] | None = None  # as those of `Maest`
    trained_on: dict[str, Any] = field(default_factory=dict)
    average: bool = False  # the average that a training keeps beside its weights

    @property
    def licence(self) -> str | None:
        licence = self.trained_on.get("licence")
        return licence if isinstance(licence, str) else None


def load_checkpoint(path: str | Path, average: bool | None = None) -> Checkpoint:
    """Read a model folder, ours or the hub's (`ASTForAudioClassification`), or a file.

    A file is safetensors or PyTorch's format, with weights of MAEST, PaSST, DeiT or the hub's
    layout, at the top or under ``state_dict`` (Lightning) or ``model``. ``average``: True takes the
    average that a training keeps beside its weights, False the weights themselves, None the average
    if any.

    CheckpointError: ``path`` is missing, damaged, could run code, is no model of this family, or
    lacks the weights asked for.
    """
    path = Path(path).expanduser()
    folder = path.is_dir()
    missing = [n for n in (CONFIG_NAME, WEIGHTS_NAME) if folder and not (path / n).is_file()]
    if missing or not (folder or path.is_file()):
        model = path / "model" if (path / "model" / CONFIG_NAME).is_file() else None
        hint = f"Give {model or 'a checkpoint file or a model folder: exp_logs/<id>/model'}."
        message = f"it has no {' and no '.join(missing)}" if folder else "no such file or folder"
        raise CheckpointError(message, kind="missing", hint=hint, path=path)
    checkpoint = _load_folder(path, average) if folder else _load_file(path, average)
    if checkpoint.average:
        log.info("%s: its average of weights (without: checkpoint_swa_weights=False)", path)
    return checkpoint


def missing_weights(path: str | Path, average: bool) -> CheckpointError:
    message = f"it has {'no average of the weights' if average else 'the average alone'}"
    hint = f"Leave checkpoint_swa_weights={average} out."
    return CheckpointError(message, kind="missing", hint=hint, path=path)


def _load_file(path: Path, average: bool | None) -> Checkpoint:
    content, record = _read_file(path)
    checkpoint = _identify(content, path, average, ours=record is not None)
    if record is not None:
        _merge_record(checkpoint, record, path)
        epoch, steps = content.get("epoch"), content.get("global_step")
        if type(epoch) is type(steps) is int:  # a trainer's
            checkpoint.trained_on |= {"epoch": epoch + 1, "steps": steps}
    elif checkpoint.layout == layouts.MAEST:
        log.info("%s: weights alone: heads of 64 channels and Discogs20's norm are taken", path)
        # A release's file carries no licence: it is known by its name.
        if (arch := ARCHS.get(path.stem.removesuffix("-swa"))) and arch.licence:
            checkpoint.trained_on = {"data": arch.data, "licence": arch.licence}
    return checkpoint


def _load_folder(folder: Path, average: bool | None) -> Checkpoint:
    path = folder / CONFIG_NAME
    config = _read_object(path)
    ours = config.get("format") == FORMAT
    averaged = (folder / AVERAGE_NAME).is_file()
    average = (averaged and ours) if average is None else average
    if average and not averaged:
        raise missing_weights(folder, average)
    weights = folder / (AVERAGE_NAME if average else WEIGHTS_NAME)
    content, record = _read_file(weights)
    checkpoint = _identify(content, weights, None, ours)
    checkpoint.path, checkpoint.average = folder, average
    if not ours:
        _merge_hub_config(checkpoint, config, path)
        return checkpoint
    with _refused(path):
        if config["format_version"] != FORMAT_VERSION:
            raise ValueError(f"of another version than {FORMAT_VERSION}, which this program reads")
        if isinstance(record, dict) and record.get("digest") != config.get("digest"):
            raise ValueError(f"of another model than {weights.name}: the save was cut off")
    thresholds = config.get(AVERAGE_THRESHOLDS if average else "thresholds")
    _merge_record(checkpoint, config | {"thresholds": thresholds}, path)
    of_average = (config.get("trained_on") or {}).get("swa")
    if average and isinstance(of_average, dict):
        checkpoint.trained_on |= of_average
    return checkpoint


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn any error about a file's content into a CheckpointError with its path."""
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(str(reason), kind="mismatch", hint=_AGAIN, path=path) from None


# ------------------------------------------------------------------ files → tensors


def _read_object(path: Path) -> dict[str, Any]:
    with _refused(path):
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        return found


def _read_file(path: Path) -> tuple[Any, Any]:
    """``(content, the model's record under TRAINER_KEY, or None)``."""
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:9] == b"{":  # safetensors: the length of the header, then the header
            with safetensors.safe_open(path, "pt") as header:
                record = (header.metadata() or {}).get(TRAINER_KEY, "null")
            return safetensors.torch.load_file(path), json.loads(record)
        zipped = start[:4] == b"PK\3\4"
        if zipped:  # torch does not look at the checksums of what it maps
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} has another checksum than it should")
        # By a path, torch takes any file of this name for safetensors; by a file, it maps none.
        mapped = zipped and path.suffix != ".safetensors"
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # torch's guesses at the format
            source = path if mapped else file
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):  # says nothing of the file's content
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, UnpicklingError) and (refused := _REFUSED.search(str(error))):
            message = f"refused: it asks for {refused[1] or refused[2]}, and could run code"
            hint = "Save the state dict alone, with torch.save(model.state_dict(), path)."
            raise CheckpointError(message, kind="unsupported", hint=hint, path=path) from None
        message = f"damaged, or no checkpoint ({type(error).__name__}: {first_line(error)})"
        raise CheckpointError(message, kind="corrupt", hint=_AGAIN, path=path) from None
    return content, content.get(TRAINER_KEY) if isinstance(content, Mapping) else None


def _identify(content: Any, path: Path, average: bool | None, ours: bool) -> Checkpoint:
    with _refused(path):
        state, average = _unwrap(content, path, average)
        layout = layouts.MAEST if ours else layouts.detect_layout(state)
        tensors = layouts.read(state, layout)
        sizes = layouts.read_sizes(tensors, layout)
        return Checkpoint(path, tensors, sizes, layout, average=average)


def _unwrap(content: Any, path: Path, average: bool | None) -> tuple[dict[str, Tensor], bool]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = content if isinstance(content, Mapping) else {}
    state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    averaged = any(key.startswith(AVERAGE) for key in state)
    average = averaged if average is None else average
    if average or averaged or any(key.startswith(RAW) for key in state):
        prefix = AVERAGE if average else RAW
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        state.pop("n_averaged", None)
        if not state:
            raise missing_weights(path, average)
    while state and any(all(k.startswith(wrapper) for k in state) for wrapper in _WRAPPERS):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    state = {key: value for key, value in state.items() if key not in _FRONT_END}
    for key, value in state.items():
        if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(f"{key} is no plain floating-point tensor")
    return state, average  # whether it is the average


# ------------------------------------------------------------------ what is said of weights


def _merge_record(checkpoint: Checkpoint, record: Any, path: Path) -> None:
    """Take over a `saving.model_record`, if it is of these weights."""
    with _refused(path):
        sizes = asdict(Sizes(**record["sizes"]))  # refuses what is no network
        if absent := sizes.keys() - record["sizes"].keys():
            raise ValueError(f"sizes lack {', '.join(sorted(absent))}")
        said, told = _shapes(sizes), _shapes(checkpoint.sizes)
        if differing := [f"{n} {said[n]} (here {told[n]})" for n in said if said[n] != told[n]]:
            raise ValueError(f"of another model than the weights: {', '.join(differing)}")
        labels = record.get("labels")
        if labels is not None and [*map(type, labels)] != [str] * sizes["n_classes"]:
            raise ValueError("labels must be null, or a name for each of the classes (n_classes)")
        thresholds = record.get("thresholds")
        if thresholds is not None:
            numbers = [one for one in thresholds if one is not None]
            fit = len(thresholds) == sizes["n_classes"] and {*map(type, numbers)} <= {int, float}
            if not (fit and all(map(isfinite, numbers))):
                raise ValueError("thresholds must be null, or a number or null for each class")
        checkpoint.sizes, checkpoint.labels, checkpoint.thresholds = sizes, labels, thresholds
        checkpoint.arch = record.get("arch")
        checkpoint.trained_on = dict(record.get("trained_on") or {})
        checkpoint.trained_on.pop("swa", None)  # what is said of the average


def _shapes(sizes: Mapping[str, Any]) -> dict[str, Any]:
    told = {n: sizes.get(n) for n in ("embed_dim", "depth", "n_classes", "mlp_ratio")}
    return told | {"rows": grid_size(sizes["input_f"]), "columns": sizes["input_t"] // STRIDE}


def _merge_hub_config(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    sizes, extractor = checkpoint.sizes, path.with_name("preprocessor_config.json")
    with _refused(path):
        sizes |= layouts.read_hub_config(config, sizes)
    if extractor.is_file():
        found = _read_object(extractor)
        sizes |= {f"norm_{name}": found[name] for name in ("mean", "std") if name in found}
        with _refused(extractor):
            Sizes(**{"n_classes": 1} | sizes)
    labels, classes = config.get("id2label"), sizes.get("n_classes")
    if isinstance(labels, dict) and classes is not None:
        names: list[Any] = [labels.get(str(i)) for i in range(classes)]
        if len(labels) != classes or {*map(type, names)} != {str}:
            log.warning("%s: id2label does not name the %d classes: left out", path, classes)
        elif names != layouts.default_hub_labels(classes):
            checkpoint.labels = names
    record = config.get(TRAINER_KEY)  # exported from here: what the layout itself does not say
    if isinstance(record, dict):
        last = checkpoint.tensors.get("head.1.weight")
        if last is not None and record.get("head") == layouts.fingerprint(last):
            _merge_record(checkpoint, record | {"labels": checkpoint.labels}, path)
        else:
            log.warning("%s: trained further since its export: its record is left out", path)
    card = path.with_name("README.md")
    if not checkpoint.licence and card.is_file():
        licence = re.match(r"---\n(?:.*\n)*?license: *(\S+)", card.read_text("utf-8", "replace"))
        if licence and licence[1] not in ("unknown", "other"):
            checkpoint.trained_on |= {"licence": canonical_licence(licence[1])}


# ------------------------------------------------------------------ tensors → a network


def load_into(model: Maest, checkpoint: Checkpoint, discard_head: bool = False) -> Maest:
    """Give a network, also of `Maest.without_weights`, a checkpoint's weights; return it.

    Positions of another size are resized along their axis (bicubic). A head for another number of
    classes or another task is initialised anew, but for its norm; ``discard_head`` does so for all
    of it. Both are logged. CheckpointError lists keys that are missing, unexpected or of another
    shape, or names values that are NaN or infinite.
    """
    expected, path = model.state_dict(), checkpoint.path
    tensors = layouts.fit_positions(checkpoint.tensors, expected, path)
    dropped: tuple[str, ...] = ()
    reason = "the file has none for music"
    for name in ("task", "n_classes"):
        there, here = checkpoint.sizes.get(name), getattr(model, name)
        if there not in (None, here):  # the norm before it fits any head
            dropped, reason = ("head.1.", "head_dist."), f"{name} {there} there, {here} here"
    if discard_head:
        dropped, reason = layouts.HEADS, "the one there is left out, as asked"
    # A head is optional only as a whole: if it has some parts, the others are reported as missing.
    optional = layouts.OPTIONAL_HEADS.get(checkpoint.layout, ())
    absent = [head for head in optional if not any(name.startswith(head) for name in tensors)]
    tensors = {n: t for n, t in tensors.items() if n not in expected or not n.startswith(dropped)}
    fresh = [n for n in expected if n not in tensors and n.startswith((*dropped, *absent))]
    used = layouts.HEADS if model.distilled_type == "separated" else layouts.HEADS[:1]
    if any(name.startswith(used) for name in fresh):
        parts = ", ".join(sorted({name.rpartition(".")[0] for name in fresh}))
        log.warning("%s: the head starts from random weights (%s): %s", path, parts, reason)
    if not fresh and checkpoint.layout == layouts.PASST:
        message = "%s: the head is AudioSet's, or of %d classes without names"
        log.warning(message, path, model.n_classes)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items() if name not in fresh}
    if wrong := [
        f"{name}: {found.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
        for name in wanted | found
        if found.get(name) != wanted.get(name)
    ]:
        listed = "\n  ".join(wrong[:20]) + ("\n  …" if len(wrong) > 20 else "")
        message = f"does not fit the network, {len(wrong)} keys:\n  {listed}"
        hint = "Leave arch and other sizes out (arch=None after a named config). Else: "
        raise CheckpointError(message, kind="mismatch", hint=hint + _AGAIN, path=path)
    values, own = {}, torch.contiguous_format
    for name, tensor in expected.items():
        if name not in fresh:
            # A copy: they may be views of a file.
            values[name] = tensors[name].to(torch.float32, copy=True, memory_format=own)
            if not values[name].sum().isfinite():  # without a temporary of its size
                message = f"{name} has NaN or infinite values"
                hint = "Use a checkpoint from before the training diverged."
                raise CheckpointError(message, kind="corrupt", hint=hint, path=path)
        elif tensor.is_meta and tensor.ndim == 2:  # what `Maest.init_weights` gives to a head
            values[name] = nn.init.trunc_normal_(torch.empty(tensor.shape), std=0.02)
        elif tensor.is_meta:
            values[name] = torch.full(tensor.shape, float(name == "head.0.weight"))
    model.load_state_dict(values, strict=False, assign=model.cls_token.is_meta)
    model.uninitialized = frozenset(fresh)
    return model
