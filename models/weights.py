"""Model folders and checkpoint files → a network.

A *model folder* is the unit of hand-over: ``config.json`` (sizes, normalisation, labels, what it
was trained on) and ``model.safetensors``. A tensor becomes memory when a network takes it, once.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maest.models import layouts
from maest.models.archs import ARCHS
from maest.models.checkpoint_files import (
    TRAINER_KEY,
    CheckpointError,
    listing,
    load_file,
    missing_weights,
    unwrap,
)
from maest.models.licences import canonical
from maest.models.maest import Maest
from maest.models.saving import AVERAGE_NAME, CONFIG_NAME, FORMAT, FORMAT_VERSION, WEIGHTS_NAME
from maest.models.sizes import SIZE_NAMES, STRIDE, Sizes, grid_size

log = logging.getLogger(__name__)

_AGAIN = "Get it again, or have it written again by the program that made it."
_LONG = 4  # times the input length of training: beyond, there is a warning
# Sizes that came later; files without them have the default.
_LATER_SIZES = {"task": "multi-label", "target_mean": None, "target_std": None}
_POSITIONS = ("freq_new_pos_embed", "time_new_pos_embed")
_SHAPE_SIZES = ("embed_dim", "depth", "n_classes", "mlp_ratio")  # which shapes alone tell


@dataclass
class Checkpoint:
    """Weights of a file or folder under our names, and what is known of them.

    Attributes:
        path: the file or folder.
        tensors: our parameter name → the tensors that make it, joined along the first axis. They
            may be views of the file.
        sizes: arguments of `Maest`, as far as they are known.
        layout: whose names the weights had (`models.layouts`).
        arch, labels, trained_on: what the file or folder says, if it does.
        average: whether the weights are the average that a training keeps beside its weights.
    """

    path: Path
    tensors: layouts.Tensors
    sizes: dict[str, Any] = field(default_factory=dict)
    layout: str = layouts.MAEST
    arch: str | None = None
    labels: list[str] | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)
    average: bool = False

    @property
    def licence(self) -> str | None:
        """Of the weights, if it is known."""
        licence = self.trained_on.get("licence")
        return licence if isinstance(licence, str) else None


def load_checkpoint(path: str | Path, average: bool | None = None) -> Checkpoint:
    """Read a folder or file: see `Checkpoint`.

    A folder may be a model folder of ours or of the model hub (`ASTForAudioClassification`). A file
    may be safetensors or PyTorch's own format, with weights of MAEST, PaSST, DeiT or the hub's
    layout; the state dict may stand at the top, or under ``state_dict`` (Lightning, with the prefix
    ``net.``, and ``net_swa.`` for the weights' average) or ``model``.

    ``average``: the average that a training keeps beside its weights (True), the weights themselves
    (False), or the average where there is one (None).

    Raises:
        CheckpointError: if ``path`` does not exist, is damaged, holds anything but tensors and
            plain containers, is no model of this family, or lacks the weights that are asked for.
    """
    path = Path(path).expanduser()
    checkpoint = _load_folder(path, average) if path.is_dir() else _load_file(path, average)
    if checkpoint.average:
        log.info("%s: its average of weights (without: maest.checkpoint_swa_weights=False)", path)
    return checkpoint


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever the block finds wrong with the content of a file is one error, with its path."""
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(str(reason), kind="mismatch", hint=_AGAIN, path=path) from None


def _load_file(path: Path, average: bool | None) -> Checkpoint:
    if not path.is_file():
        raise CheckpointError(
            "no such file or folder",
            kind="missing",
            hint="Give a model folder (a finished run's exp_logs/<id>/model) or a checkpoint file.",
            path=path,
        )
    content, record = load_file(path)
    state, average = unwrap(content, path, average)
    checkpoint = _identify(state, path)
    checkpoint.average = average
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
    if missing := [n for n in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / n).is_file()]:
        nested = (folder / "model" / CONFIG_NAME).is_file()
        raise CheckpointError(
            f"no model folder: it has no {' and no '.join(missing)}",
            kind="missing",
            hint=f"Give {folder / 'model' if nested else 'exp_logs/<id>/model of a finished run'}.",
            path=folder,
        )
    path = folder / CONFIG_NAME
    config = _read_object(path)
    ours = config.get("format") == FORMAT
    kind = "format_version" if ours else "model_type"
    expected = FORMAT_VERSION if ours else layouts.HUB_TYPE
    with _refused(path):
        if config.get(kind) != expected:
            raise ValueError(f"not of a model that this program reads: expected {kind} {expected}")
    averaged = (folder / AVERAGE_NAME).is_file()
    average = (averaged and ours) if average is None else average
    if average and not averaged:
        raise missing_weights(folder, average)
    weights = folder / (AVERAGE_NAME if average else WEIGHTS_NAME)
    content, record = load_file(weights)
    checkpoint = _identify(unwrap(content, weights)[0], weights)
    checkpoint.path, checkpoint.average = folder, average
    if not ours:
        _merge_hub_config(checkpoint, config, path)
        return checkpoint
    with _refused(path):
        digest = config.get("digest")
        if isinstance(record, dict) and digest not in (None, record.get("digest")):
            raise ValueError(f"of another model than {weights.name}: the save was cut off")
    _merge_record(checkpoint, config, path)
    if average and isinstance(own := checkpoint.trained_on.get("swa"), dict):
        checkpoint.trained_on |= own
    return checkpoint


def _read_object(path: Path) -> dict[str, Any]:
    with _refused(path):
        try:
            found = json.loads(path.read_text("utf-8"))
        except RecursionError as error:
            raise ValueError(str(error)) from None
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        return found


def _identify(state: Mapping[str, Tensor], path: Path) -> Checkpoint:
    """A state dict in any of the layouts → a checkpoint with the sizes that the shapes tell."""
    layout = layouts.detect_layout(state)
    if layout is None:
        some = ", ".join(list(state)[:4]) or "nothing"
        raise CheckpointError(
            f"no weights of a MAEST network, nor of PaSST or DeiT, in it (it has {some} …)",
            kind="unsupported",
            hint="Give a checkpoint of one of these.",
            path=path,
        )
    with _refused(path):
        tensors = layouts.read(state, layout)
        return Checkpoint(path, tensors, layouts.read_sizes(tensors, layout), layout)


def _merge_record(checkpoint: Checkpoint, record: Any, path: Path) -> None:
    """Take over what `models.saving.model_record` said, if it is of these weights."""
    with _refused(path):
        sizes = _LATER_SIZES | record["sizes"]
        labels, trained_on = record.get("labels"), record.get("trained_on") or {}
        if sizes.keys() != set(SIZE_NAMES) or not all(map(_is_plain, sizes.values())):
            raise ValueError(f"sizes must be {', '.join(SIZE_NAMES)}, of numbers and words")
        if labels and (len(labels), {*map(type, labels)}) != (sizes["n_classes"], {str}):
            raise ValueError("labels must be null, or a name for each of the classes (n_classes)")
        if not isinstance(trained_on, dict):
            raise ValueError("trained_on must be null or an object")
        pairs = {name: (sizes[name], checkpoint.sizes.get(name)) for name in _SHAPE_SIZES}
        if "time_new_pos_embed" in checkpoint.tensors:
            [freq], [time] = (
                checkpoint.tensors[f"{axis}_new_pos_embed"] for axis in ("freq", "time")
            )
            pairs["rows of positions"] = grid_size(sizes["input_f"]), freq.shape[2]
            pairs["columns of positions"] = sizes["input_t"] // STRIDE, time.shape[3]
        if differing := [f"{n} {a} ({b} in the weights)" for n, (a, b) in pairs.items() if a != b]:
            raise ValueError(f"of another model than the weights: {', '.join(differing)}")
        Sizes(**sizes)  # refuses what is no network
        checkpoint.sizes, checkpoint.labels = sizes, labels
        checkpoint.arch, checkpoint.trained_on = record.get("arch"), dict(trained_on)


def _is_plain(value: Any) -> bool:
    """What JSON has for a size: a word, a number that floats hold, a list of those, or null."""
    numbers = value if isinstance(value, list) else [value]
    if all(type(number) in (int, float) and abs(number) < 1e30 for number in numbers):
        return True
    return value is None or type(value) is str


def _merge_hub_config(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    """Take over a `config.json` of transformers, and the files beside it."""
    sizes, extractor = checkpoint.sizes, path.with_name("preprocessor_config.json")
    with _refused(path):
        sizes |= layouts.read_hub_config(config, sizes)
    if extractor.is_file():
        norm = {f"norm_{name}": v for name, v in _read_object(extractor).items()}
        sizes |= {name: norm[name] for name in ("norm_mean", "norm_std") if name in norm}
        with _refused(extractor):
            Sizes(**{"n_classes": 1} | sizes)
    labels, classes = config.get("id2label"), sizes.get("n_classes")
    if isinstance(labels, dict) and classes is not None:
        names: list[Any] = [labels.get(str(i)) for i in range(len(labels))]
        if len(names) != classes or {*map(type, names)} != {str}:
            log.warning("%s: id2label does not name the %d classes: left out", path, classes)
        elif names != layouts.default_hub_labels(classes):
            checkpoint.labels = names
    ours = config.get(TRAINER_KEY)  # exported from here: what the layout itself does not say
    [last] = checkpoint.tensors.get("head.1.weight", (torch.empty(0),))
    if isinstance(ours, dict) and ours.get("head") != layouts.fingerprint(last):
        log.warning("%s: trained further since its export: its record is left out", path)
    elif isinstance(ours, dict):
        _merge_record(checkpoint, ours | {"labels": checkpoint.labels}, path)
    card = path.with_name("README.md")
    if not checkpoint.licence and card.is_file():
        found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", card.read_text("utf-8", "replace"))
        if found and found[1] not in ("unknown", "other"):
            checkpoint.trained_on |= {"licence": canonical(found[1])}


# ------------------------------------------------------------------ into a network


def load_into(model: Maest, checkpoint: Checkpoint, discard_head: bool = False) -> Maest:
    """Give a network a checkpoint's weights, adapting what may differ, and return it.

    Position embeddings of another size are resized along their own axis (bicubic); a head for
    another number of classes or another task is initialised anew, but for its norm. Both are
    logged. Anything else must match.

    A network of `Maest.without_weights` gets memory of its own for each weight, and no more.
    ``discard_head``: initialise the whole head anew.

    Raises:
        CheckpointError: listing the keys that are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    tensors, notes = _fit_positions(checkpoint.tensors, expected)
    dropped, reason = _dropped_head(model, checkpoint, discard_head)
    for name in expected:
        if name.startswith(dropped):
            tensors.pop(name, None)
    # A head of which the file has a part is no optional one: the rest is reported as missing.
    optional = [
        prefix
        for prefix in layouts.OPTIONAL_HEADS.get(checkpoint.layout, ())
        if not any(name.startswith(prefix) for name in checkpoint.tensors)
    ]
    fresh = {n for n in expected if n not in tensors and n.startswith((*dropped, *optional))}
    used = layouts.HEADS if model.distilled_type == "separated" else layouts.HEADS[:1]
    if any(name.startswith(used) for name in fresh):
        parts = ", ".join(sorted({name.rpartition(".")[0] for name in fresh}))
        notes.append(f"the head is newly initialised ({parts}): {reason}")
    if not fresh and checkpoint.layout == layouts.PASST and checkpoint.labels is None:
        notes.append(f"the head is AudioSet's, or of {model.n_classes} classes without names")
    _check_shapes(tensors, {n: t for n, t in expected.items() if n not in fresh}, checkpoint.path)
    with torch.no_grad():
        for name, tensor in expected.items():
            if name in tensors:
                value = torch.cat(tensors[name]).float()  # a copy: they may be views of a file
                if not value.sum().isfinite():  # without a temporary of its size
                    raise CheckpointError(
                        f"{name} has NaN or infinite values",
                        kind="corrupt",
                        hint="Use a checkpoint from before the training diverged.",
                        path=checkpoint.path,
                    )
            elif tensor.is_meta:
                value = _initial(name, tensor.shape)
            else:
                continue
            if tensor.is_meta:
                module, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(module), leaf, nn.Parameter(value))
            else:
                tensor.copy_(value)
    model.uninitialized = frozenset(fresh)
    for note in notes:
        log.warning("%s: %s", checkpoint.path, note)
    return model


def _dropped_head(
    model: Maest, checkpoint: Checkpoint, discard_head: bool
) -> tuple[tuple[str, ...], str]:
    """``(what the names of weights that are not taken begin with, why a head is initialised)``."""
    if discard_head:
        return layouts.HEADS, "it is discarded"
    for name in ("n_classes", "task"):
        there, here = checkpoint.sizes.get(name), getattr(model, name)
        if there not in (None, here):  # the norm before the head fits any head
            return ("head.1.", "head_dist."), f"{name} {there} there, {here} here"
    return (), "the file has none for music"


def _fit_positions(
    tensors: layouts.Tensors, expected: Mapping[str, Tensor]
) -> tuple[layouts.Tensors, list[str]]:
    """``(the tensors, with position embeddings of the network's sizes; what was done)``."""
    tensors, notes = dict(tensors), []
    freq, time = _POSITIONS
    rows, columns = expected[freq].shape[2], expected[time].shape[3]
    if "pos_embed" in tensors:
        [grid] = tensors.pop("pos_embed")
        split = layouts.split_square_positions(grid, rows, columns)
        tensors |= {freq: (split[0],), time: (split[1],)}
        notes.append(f"positions of a square grid resized to {rows} x {columns} and taken apart")
    for name, size in ((freq, (rows, 1)), (time, (1, columns))):
        [found] = tensors.get(name, (torch.empty(0),))
        if found.ndim != 4 or found.shape[2:] == size or not found.numel():
            continue  # it fits, or it never will
        tensors[name] = (layouts.resize_positions(found, *size),)
        notes.append(f"{name} resized from {tuple(found.shape[2:])} to {size}")
        if (longer := size[1] / found.shape[3]) > _LONG:
            notes.append(
                f"inputs are {longer:.0f} times as long as those of its training: expect "
                "little of the results, or give a shorter datamodule.clip_length (input_t)"
            )
    return tensors, notes


def _check_shapes(tensors: layouts.Tensors, expected: Mapping[str, Tensor], path: Path) -> None:
    """Compare weights with the parameters that they are to set."""
    shapes = {name: layouts.joined_shape(parts) for name, parts in tensors.items()}
    problems = [f"missing: {name}" for name in expected if name not in shapes]
    problems += [f"unexpected: {name}" for name in shapes if name not in expected]
    problems += [
        f"{name}: {shapes[name]}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if shapes.get(name, tensor.shape) != tensor.shape
    ]
    if problems:
        raise CheckpointError(
            f"does not fit the network, {listing(problems)}",
            kind="mismatch",
            hint="Leave maest.arch and other sizes out (maest.arch=None after a named config): the "
            f"checkpoint knows its own. Else: {_AGAIN}",
            path=path,
        )


def _initial(name: str, shape: torch.Size) -> Tensor:
    """What `Maest.init_weights` gives to a part of the head."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name == "head.0.weight":
        return torch.ones(shape)
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02)
