"""Model folders and checkpoint files → the network, and back.

A *model folder* is the unit of hand-over: ``config.json`` (architecture and sizes, input length,
normalisation, labels, what it was trained on) and ``model.safetensors``. Nothing else is needed to
use the model.

`models.checkpoint_files` reads files, and runs nothing that is in them; `models.layouts` knows the
names that others give to the same weights. A tensor becomes memory when a network takes it, once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from maest.helpers.files import to_json
from maest.helpers.melspectrogram import NORM_MEAN, NORM_STD
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
from maest.models.maest import SIZE_NAMES, STRIDE, Maest, grid_size
from maest.models.own_files import own_files, read_config

log = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
AVERAGE_NAME = "model-swa.safetensors"  # beside them, the average of weights, if there is one
FORMAT = "maest"
FORMAT_VERSION = 1
_AGAIN = "Get it again, or have it written again by the program that made it."
_LONG = 4  # times the input length of training: beyond, there is a warning
# Sizes that came later; files without them have the default.
_LATER_SIZES = {"task": "multi-label", "target_mean": None, "target_std": None}
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


# ------------------------------------------------------------------ writing


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
    """Write a model folder, and return its path.

    Args:
        folder: an older model folder is replaced, file by file; other files in it stay.
        model: the network; its weights are stored in their own type.
        arch: name of the architecture, for people to read.
        trained_on: anything JSON can hold: data, epochs, seed, metrics. What it has under "swa" is
            the average's own.
        average: the same network with the average of its weights, which is kept beside them:
            ``load_checkpoint(folder, average=True)`` takes it.

    Raises:
        InputError: if a file of one of these names is none of a model folder's, or the files cannot
            be written. Nothing is changed then.
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
    """Write one file with the weights under the released checkpoints' names.

    What a model folder keeps in ``config.json`` is in the file's metadata.

    Raises:
        InputError: if another file of that name is there, or it cannot be written.
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


# ------------------------------------------------------------------ reading


def load_checkpoint(path: str | Path, average: bool | None = None) -> Checkpoint:
    """Read a folder or file: see `Checkpoint`.

    A folder may be a model folder of ours, or one in the model hub's layout (``config.json`` and
    ``model.safetensors`` of `ASTForAudioClassification`). A file may be safetensors or PyTorch's
    own format, with weights of MAEST, PaSST, DeiT or the hub's layout; the state dict may stand at
    the top, or under ``state_dict`` (Lightning, with the prefix ``net.``, and ``net_swa.`` for the
    weights' average) or ``model``.

    Args:
        path: the folder or file.
        average: which weights: the average that a training keeps beside its weights (True), the
            weights themselves (False), or the average where there is one (None).

    Raises:
        CheckpointError: if ``path`` does not exist, is damaged, holds anything but tensors and
            plain containers, is no model of this family, or lacks the weights that are asked for.
    """
    path = Path(path).expanduser()
    checkpoint = _load_folder(path, average) if path.is_dir() else _load_file(path, average)
    if checkpoint.average:
        log.info(
            "%s: the average of the weights is taken "
            "(maest.checkpoint_swa_weights=False takes the weights of one epoch)",
            path,
        )
    return checkpoint


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
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        nested = folder / "model"
        raise CheckpointError(
            f"no model folder: it has no {' and no '.join(missing)}",
            kind="missing",
            hint=f"Did you mean {nested}?"
            if (nested / CONFIG_NAME).is_file()
            else "A finished training run writes one to exp_logs/<id>/model.",
            path=folder,
        )
    path = folder / CONFIG_NAME
    config = _read_object(path)
    ours = config.get("format") == FORMAT
    if ours and config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"format_version {config.get('format_version')!r}, expected {FORMAT_VERSION}",
            kind="mismatch",
            hint="Read it with the version of this program that wrote it.",
            path=path,
        )
    if not ours and config.get("model_type") != layouts.HUB_TYPE:
        raise CheckpointError(
            "not the configuration of a MAEST model folder",
            kind="unsupported",
            hint=f'It needs "format": "{FORMAT}" or "model_type": "{layouts.HUB_TYPE}".',
            path=path,
        )
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
        if not checkpoint.licence and (licence := _licence_of_card(folder / "README.md")):
            checkpoint.trained_on |= {"licence": licence}
        return checkpoint
    digest = config.get("digest")
    if isinstance(record, dict) and digest not in (None, record.get("digest")):
        raise CheckpointError(
            f"of another model than {weights.name}: a run was stopped while it wrote them",
            kind="mismatch",
            hint="Save the model again.",
            path=path,
        )
    _merge_record(checkpoint, config, path)
    if average and isinstance(own := checkpoint.trained_on.get("swa"), dict):
        checkpoint.trained_on |= own
    return checkpoint


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"not valid JSON ({error})",
            kind="corrupt",
            hint="Get it again, or correct that line.",
            path=path,
        ) from None
    return found


def _licence_of_card(card: Path) -> str | None:
    """What the head of a model card says, as an SPDX identifier."""
    if not card.is_file():
        return None
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", card.read_text("utf-8", "replace"))
    return canonical(found[1]) if found and found[1] not in ("unknown", "other") else None


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
    try:
        tensors = layouts.read(state, layout)
        return Checkpoint(path, tensors, layouts.read_sizes(tensors, layout), layout)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"not whole weights of {layout}: {reason}", kind="mismatch", hint=_AGAIN, path=path
        ) from None


def _merge_record(checkpoint: Checkpoint, record: Any, path: Path) -> None:
    """Take over what `model_record` said, if it is of these weights."""
    weights, tensors = checkpoint.sizes, checkpoint.tensors
    try:
        sizes = _LATER_SIZES | record["sizes"]
        labels, trained_on = record.get("labels"), record.get("trained_on") or {}
        if sizes.keys() != set(SIZE_NAMES) or not all(map(_is_plain, sizes.values())):
            raise ValueError(f"sizes must be {', '.join(SIZE_NAMES)}, of numbers and words")
        if labels is not None and {*map(type, labels)} != {str}:
            raise ValueError("labels must be null or names")
        if not isinstance(trained_on, dict):
            raise ValueError("trained_on must be null or an object")
        pairs = {name: (sizes[name], weights.get(name)) for name in _SHAPE_SIZES}
        if "time_new_pos_embed" in tensors:
            pairs["rows of positions"] = (
                grid_size(sizes["input_f"]),
                tensors["freq_new_pos_embed"][0].shape[2],
            )
            pairs["columns of positions"] = (
                sizes["input_t"] // STRIDE,
                tensors["time_new_pos_embed"][0].shape[3],
            )
        if differing := [f"{n} {a} ({b} in the weights)" for n, (a, b) in pairs.items() if a != b]:
            raise ValueError(f"of another model: {', '.join(differing)}")
        Maest.without_weights(labels=labels, **sizes)  # refuses what is no network
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"what it says of the model does not fit the weights: {type(error).__name__}, {error}",
            kind="mismatch",
            hint=_AGAIN,
            path=path,
        ) from None
    checkpoint.sizes, checkpoint.labels, checkpoint.trained_on = sizes, labels, dict(trained_on)
    checkpoint.arch = record.get("arch")


def _is_plain(value: Any) -> bool:
    """What JSON has for a size: a word, a number, a list of numbers, or null."""
    if isinstance(value, list):
        return all(map(_is_number, value))
    return value is None or type(value) is str or _is_number(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # not NaN, nor more than floats hold


def _merge_hub_config(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    """Take over a `config.json` of transformers; what it says must be what the network does."""
    sizes = checkpoint.sizes
    expected = {"hidden_size": sizes["embed_dim"], "num_hidden_layers": sizes["depth"]}
    expected |= layouts.HUB_FIXED
    found = {n: config.get(n, layouts.HUB_DEFAULTS.get(n, value)) for n, value in expected.items()}
    wrong = [f"{n} {found[n]!r} (expected {v!r})" for n, v in expected.items() if found[n] != v]
    heads = config.get("num_attention_heads", 12)
    if type(heads) is not int or heads < 1 or sizes["embed_dim"] % heads:
        wrong.append(f"num_attention_heads {heads!r} for hidden_size {sizes['embed_dim']}")
    # The released models' files say nothing of their task.
    problem = config.get("problem_type") or layouts.HUB_PROBLEMS["multi-label"]
    tasks = [task for task, name in layouts.HUB_PROBLEMS.items() if name == problem]
    if not tasks:
        wrong.append(f"problem_type {problem!r}")
    if wrong:
        raise CheckpointError(
            f"not a network of this family: {', '.join(wrong)}",
            kind="mismatch",
            hint="Use a MAEST model of the hub, such as mtg-upf/discogs-maest-30s-pw-129e.",
            path=path,
        )
    sizes |= {"num_heads": heads, "task": tasks[0]}
    labels, classes = config.get("id2label"), sizes.get("n_classes")
    if isinstance(labels, dict) and classes is not None:
        names = [labels.get(str(i)) for i in range(len(labels))]
        if len(names) != classes or {*map(type, names)} != {str}:
            log.warning("%s: id2label does not name the %d classes: left out", path, classes)
        elif names != layouts.default_hub_labels(classes):
            checkpoint.labels = names
    extractor = path.with_name("preprocessor_config.json")
    if extractor.is_file():
        norm = {"mean": NORM_MEAN, "std": NORM_STD} | _read_object(extractor)
        sizes |= {"norm_mean": norm["mean"], "norm_std": norm["std"]}
        if not (_is_number(norm["mean"]) and _is_number(norm["std"]) and norm["std"] > 0):
            raise CheckpointError(
                "mean and std must be numbers", kind="corrupt", hint=_AGAIN, path=extractor
            )
    ours = config.get(TRAINER_KEY)  # exported from here: what the layout itself does not say
    if not isinstance(ours, Mapping):
        return
    [last] = checkpoint.tensors.get("head.1.weight", (torch.empty(0),))
    if ours.get("head") == layouts.fingerprint(last):
        _merge_record(checkpoint, dict(ours) | {"labels": checkpoint.labels}, path)
    else:
        log.warning("%s: trained further since its export: its record is left out", path)


# ------------------------------------------------------------------ into a network


def load_into(model: Maest, checkpoint: Checkpoint, discard_head: bool = False) -> Maest:
    """Give a network a checkpoint's weights, adapting what may differ, and return it.

    Position embeddings of another size are resized along their own axis (bicubic); a head for
    another number of classes or another task is initialised anew, but for its norm. Both are
    logged. Anything else must match.

    Args:
        model: one made by `Maest.without_weights` gets memory of its own for each weight, and no
            more.
        checkpoint: of `load_checkpoint`.
        discard_head: initialise the whole head anew.

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
    optional = layouts.OPTIONAL_HEADS.get(checkpoint.layout, ())
    optional = [p for p in optional if not any(n.startswith(p) for n in checkpoint.tensors)]
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
    model.fresh = frozenset(fresh)
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
    freq, time = "freq_new_pos_embed", "time_new_pos_embed"
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
