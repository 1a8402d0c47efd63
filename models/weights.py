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
from maest.helpers.melspectrogram import N_MELS, NORM_MEAN, NORM_STD
from maest.helpers.patches import PATCH_SIZE
from maest.models import layouts
from maest.models.archs import ARCHS
from maest.models.checkpoint_files import TRAINER_KEY, load_file, missing_average, unwrap
from maest.models.layouts import DEIT, HUB, PASST, CheckpointError
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
_HEAD_WIDTH = 64  # channels of an attention head, in every released size
# Sizes that came later; folders without them have the default.
_LATER_SIZES = {"task": "multi-label", "target_mean": None, "target_std": None}
# Keys that may be missing, and then stay fresh: a head that a layout does not have, or that is for
# another task than music.
_OPTIONAL = {HUB: ("head_dist.",), PASST: ("head.", "head_dist."), DEIT: ("head.", "head_dist.")}
_HEADS = ("head.", "head_dist.")
_HUB_TASKS = {problem: task for task, problem in layouts.HUB_PROBLEMS.items()}
_HUB_TASKS[None] = "multi-label"  # the released models' files say nothing
# Time positions → input frames of 5, 10, 20 and 30 s. Positions alone say only the tens of frames.
_RELEASED_INPUTS = {31: 312, 62: 625, 125: 1250, 187: 1875}


@dataclass
class Checkpoint:
    """What was found in a file or folder: weights under our names, and what is known of them.

    Attributes:
        path: the file or folder.
        parts: our parameter name → the tensors that make it, joined along the first axis. They may
            be views of the file.
        sizes: arguments of `Maest`, as far as they are known.
        layout: whose names the weights had (`models.layouts`).
        arch, labels, trained_on: what the file or folder says, if it does.
        average: whether the weights are the average that a training keeps beside its weights.
    """

    path: Path
    parts: layouts.Parts
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


def save_model(
    folder: str | Path,
    model: Maest,
    arch: str | None = None,
    trained_on: Mapping | None = None,
    average: Maest | None = None,
) -> Path:
    """Write a model folder.

    Args:
        folder: where to. A model folder that is there is replaced, file by file; other files in it
            stay.
        model: the network; its weights are stored as they are, in their own type.
        arch: name of the architecture, for people to read.
        trained_on: anything JSON can hold: data, epochs, seed, figures. What it has under "swa" is
            the average's own.
        average: the same network with the average of its weights, which is kept beside them:
            ``load_checkpoint(folder, average=True)`` takes it.

    Returns:
        the folder.

    Raises:
        InputError: if a file of one of these names is there that is none of a model folder's, or
            the files cannot be written. Nothing is changed then.
    """
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arch": arch,
        "sizes": model.sizes(),
        "labels": model.labels,
        "trained_on": dict(trained_on or {}),
    }
    # In the weights' files too: so they can be used alone, and are known for this configuration's.
    config["digest"] = hashlib.sha256(to_json(config).encode()).hexdigest()
    metadata = {"format": "pt", TRAINER_KEY: to_json(config)}
    networks = {WEIGHTS_NAME: model} | ({} if average is None else {AVERAGE_NAME: average})
    ours = read_config(folder, CONFIG_NAME).get("format") == FORMAT
    gone = {WEIGHTS_NAME, AVERAGE_NAME} - networks.keys()
    with own_files(folder, (CONFIG_NAME, *networks), ours, [*gone]) as paths:
        for name, network in networks.items():
            safetensors.torch.save_file(plain_state(network), paths[name], metadata=metadata)
        paths[CONFIG_NAME].write_text(to_json(config), "utf-8")
    return Path(folder)


def save_safetensors(
    path: str | Path, model: Maest, arch: str | None = None, trained_on: Mapping | None = None
) -> Path:
    """Write one file with the weights under the released checkpoints' names.

    What a model folder keeps in ``config.json`` is in the file's metadata.

    Raises:
        InputError: if another file of that name is there, or it cannot be written.
    """
    known = {
        "sizes": model.sizes(),
        "labels": model.labels,
        "arch": arch,
        "trained_on": dict(trained_on or {}),
    }
    path = Path(path)
    metadata = {"format": "pt", TRAINER_KEY: to_json(known)}
    with own_files(path.parent, [path.name], _is_own_file(path)) as paths:
        safetensors.torch.save_file(plain_state(model), paths[path.name], metadata=metadata)
    return path


def _is_own_file(path: Path) -> bool:
    """Whether `save_safetensors` wrote a file; one of a model folder is another matter."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {})[TRAINER_KEY])
        return "format" not in known
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError):
        return False


def plain_state(model: Maest) -> dict[str, Tensor]:
    """The state dict, on the CPU, as safetensors takes it."""
    return {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}


def load_checkpoint(path: str | Path, average: bool | None = None) -> Checkpoint:
    """Find out what a folder or file holds: see `Checkpoint`.

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
        CheckpointError: if there is nothing at ``path``, or what is there is damaged, holds
            anything but tensors and plain containers, is no model of this family, or lacks the
            weights that are asked for.
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
    content, metadata = load_file(path)
    state, average = unwrap(content, path, average)
    checkpoint = _identify(state, path)
    checkpoint.average = average
    if isinstance(content, Mapping) and isinstance(content.get(TRAINER_KEY), Mapping):
        ours = dict(content[TRAINER_KEY])
        epoch, steps = content.get("epoch"), content.get("global_step")
        if type(epoch) is type(steps) is int and isinstance(ours.get("trained_on", {}), dict):
            done = {"epoch": epoch + 1, "steps": steps}
            ours["trained_on"] = ours.get("trained_on", {}) | done
        _apply_config(checkpoint, ours, path)
    elif metadata is not None:
        if not isinstance(metadata, dict):
            raise CheckpointError(
                f"its metadata {TRAINER_KEY!r} is not what this program writes",
                kind="corrupt",
                hint="Export the model again.",
                path=path,
            )
        _apply_config(checkpoint, metadata, path)
    elif checkpoint.layout == layouts.MAEST:
        log.info("%s: weights alone: heads of 64 channels and Discogs20's norm are taken", path)
        # A release's file carries no licence: it is known by its name.
        if (arch := ARCHS.get(path.stem.removesuffix("-swa"))) and arch.licence:
            checkpoint.trained_on = {"data": arch.data, "licence": arch.licence}
    return checkpoint


def _load_folder(folder: Path, average: bool | None) -> Checkpoint:
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        nested = folder / "model" / CONFIG_NAME
        hint = f"Did you mean {nested.parent}?" if nested.is_file() else ""
        raise CheckpointError(
            f"no model folder: it has no {' and no '.join(missing)}",
            kind="missing",
            hint=hint or "A finished training run writes one to exp_logs/<id>/model.",
            path=folder,
        )
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"not valid JSON ({error})",
            kind="corrupt",
            hint="Get the folder again, or correct that line.",
            path=path,
        ) from None
    ours = isinstance(config, dict) and config.get("format") == FORMAT
    if not ours and not (isinstance(config, dict) and config.get("model_type") == layouts.HUB_TYPE):
        raise CheckpointError(
            "not the configuration of a MAEST model folder",
            kind="unsupported",
            hint=f'It needs "format": "{FORMAT}" or "model_type": "{layouts.HUB_TYPE}".',
            path=path,
        )
    if ours and config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"format_version {config.get('format_version')!r}, expected {FORMAT_VERSION}",
            kind="mismatch",
            hint="Read it with the version of this program that wrote it.",
            path=path,
        )
    if average or (average is None and ours and (folder / AVERAGE_NAME).is_file()):
        weights, average = folder / AVERAGE_NAME, True
        if not weights.is_file():
            raise missing_average(folder)
    # In a folder, the average is a file of its own.
    content, metadata = load_file(weights)
    checkpoint = _identify(unwrap(content, weights)[0], weights)
    checkpoint.path, checkpoint.average = folder, bool(average)
    if ours:
        digest = config.get("digest") if isinstance(metadata, dict) else None
        if digest is not None and metadata.get("digest") != digest:
            raise CheckpointError(
                f"of another model than {weights.name}: a run was stopped while it wrote them",
                kind="mismatch",
                hint="Save the model again.",
                path=path,
            )
        _apply_config(checkpoint, config, path)
        if average:
            own = checkpoint.trained_on.get("swa")
            checkpoint.trained_on |= own if isinstance(own, dict) else {}
    else:
        _apply_hub_config(checkpoint, config, path)
        if not checkpoint.licence and (licence := _licence_of_card(folder / "README.md")):
            checkpoint.trained_on = checkpoint.trained_on | {"licence": licence}
    return checkpoint


def _licence_of_card(card: Path) -> str | None:
    """What the head of a model card says, as an SPDX identifier."""
    if not card.is_file():
        return None
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", card.read_text("utf-8", "replace"))
    return canonical(found[1]) if found and found[1] not in ("unknown", "other") else None


def _apply_config(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    """Take over what `save_model` wrote, if it is of these weights."""
    _check_config(config, path)
    sizes = _LATER_SIZES | config["sizes"]
    own = checkpoint.sizes
    found = {name: own.get(name) for name in ("embed_dim", "depth", "n_classes", "mlp_ratio")}
    said = {name: sizes[name] for name in found}
    if "time_new_pos_embed" in checkpoint.parts:
        rows, columns = (
            checkpoint.parts[f"{axis}_new_pos_embed"][0].shape[i]
            for axis, i in (("freq", 2), ("time", 3))
        )
        found |= {"rows of positions": rows, "columns of positions": columns}
        said["rows of positions"] = grid_size(sizes["input_f"])
        said["columns of positions"] = sizes["input_t"] // STRIDE
    differing = [f"{n} {said[n]} ({v} in the weights)" for n, v in found.items() if said[n] != v]
    if differing:
        raise CheckpointError(
            f"of another model than the weights: {', '.join(differing)}",
            kind="mismatch",
            hint="Get both files of the same model.",
            path=path,
        )
    try:
        Maest.without_weights(**sizes)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"sizes are of no network: {error}", hint=_AGAIN, path=path) from None
    checkpoint.sizes = sizes
    checkpoint.labels = config.get("labels")
    checkpoint.arch = config.get("arch")
    checkpoint.trained_on = config.get("trained_on") or {}


def _apply_hub_config(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    """Take over a `config.json` of transformers; what it says must be what the network does."""
    sizes = checkpoint.sizes
    expected = {
        "hidden_size": sizes["embed_dim"],
        "num_hidden_layers": sizes["depth"],
        **layouts.HUB_FIXED,
    }
    # What transformers takes where the file does not say.
    defaults = {"patch_size": 16, "frequency_stride": 10, "time_stride": 10, "qkv_bias": True}
    defaults |= {"hidden_act": "gelu", "num_mel_bins": 128, "layer_norm_eps": 1e-12}
    found = {name: config.get(name, defaults.get(name, value)) for name, value in expected.items()}
    wrong = [f"{k} {found[k]!r} (expected {v!r})" for k, v in expected.items() if found[k] != v]
    heads = config.get("num_attention_heads", 12)
    if type(heads) is not int or heads < 1 or sizes["embed_dim"] % heads:
        wrong.append(f"num_attention_heads {heads!r} for hidden_size {sizes['embed_dim']}")
    if wrong:
        raise CheckpointError(
            f"not a network of this family: {', '.join(wrong)}",
            kind="mismatch",
            hint="Use a MAEST model of the hub, such as mtg-upf/discogs-maest-30s-pw-129e.",
            path=path,
        )
    sizes["num_heads"] = heads
    problem = config.get("problem_type")
    if not isinstance(problem, str | None) or problem not in _HUB_TASKS:
        known = ", ".join(map(str, _HUB_TASKS))
        raise CheckpointError(
            f"problem_type is {problem!r}", hint=f"Expected one of {known}.", path=path
        )
    sizes["task"] = _HUB_TASKS[problem]
    labels, classes = config.get("id2label"), sizes.get("n_classes")
    if isinstance(labels, dict) and classes is not None:
        names = [labels.get(str(i)) for i in range(len(labels))]
        if len(names) != classes or not all(isinstance(name, str) for name in names):
            log.warning("%s: id2label does not name the %d classes: left out", path, classes)
        elif names != layouts.default_hub_labels(classes):
            checkpoint.labels = names
    _apply_hub_extractor(checkpoint, path.with_name("preprocessor_config.json"))
    ours = config.get(TRAINER_KEY)
    if not isinstance(ours, Mapping):
        return
    # Exported from here: what the layout itself does not say.
    if ours.get("head") != layouts.fingerprint(checkpoint.parts):
        log.warning("%s: trained further since its export: its record is left out", path)
        return
    _apply_config(checkpoint, dict(ours) | {"labels": checkpoint.labels}, path)


def _apply_hub_extractor(checkpoint: Checkpoint, path: Path) -> None:
    """Take over the input's normalisation from the feature extractor's config, if there is one."""
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text("utf-8"))
        mean, std = found.get("mean", NORM_MEAN), found.get("std", NORM_STD)
        good = _is_number(mean) and _is_number(std) and std > 0
    except (ValueError, AttributeError, RecursionError):
        good = False
    if not good:
        raise CheckpointError(
            "expected an object with the numbers mean and std",
            kind="corrupt",
            hint=_AGAIN,
            path=path,
        )
    checkpoint.sizes |= {"norm_mean": mean, "norm_std": std}


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError unless sizes and labels are what `save_model` writes."""
    sizes, labels = config.get("sizes"), config.get("labels")
    if not isinstance(sizes, dict) or set(_LATER_SIZES | sizes) != set(SIZE_NAMES):
        found = ", ".join(sizes) if isinstance(sizes, dict) else sizes
        raise CheckpointError(
            f"sizes are {found}",
            kind="corrupt",
            hint=f"Expected exactly {', '.join(SIZE_NAMES)}.",
            path=path,
        )
    for name, value in sizes.items():
        if name in ("target_mean", "target_std"):
            good = value is None or (isinstance(value, list) and all(map(_is_number, value)))
        elif name in ("distilled_type", "task"):
            good = isinstance(value, str)
        elif name in ("mlp_ratio", "head_eps", "norm_mean", "norm_std"):
            good = _is_number(value) and (value > 0 or name == "norm_mean")
        else:
            good = type(value) is int and value > 0
        if not good:
            raise CheckpointError(
                f"sizes.{name} is {str(value)[:40]}", kind="corrupt", hint=_AGAIN, path=path
            )
    if not isinstance(config.get("trained_on") or {}, dict):
        raise CheckpointError(
            "trained_on must be null or an object", kind="corrupt", hint=_AGAIN, path=path
        )
    good = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if labels is not None and not (good and len(labels) == sizes["n_classes"]):
        raise CheckpointError(
            f"labels must be null, or a list of {sizes['n_classes']} names (n_classes)",
            kind="corrupt",
            hint=_AGAIN,
            path=path,
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30  # not NaN, nor an integer that no float holds


def _identify(state: Mapping[str, Tensor], path: Path) -> Checkpoint:
    """A state dict in any of the layouts → what it holds, with the sizes that the shapes tell."""
    layout = layouts.recognise(state)
    if layout is None:
        some = ", ".join(list(state)[:4]) or "nothing"
        raise CheckpointError(
            f"no weights of a MAEST network, nor of PaSST or DeiT, in it (it has {some} …)",
            kind="unsupported",
            hint="Give a checkpoint of one of these.",
            path=path,
        )
    try:
        parts = layouts.read(state, layout)
        sizes = _sizes_of(parts, layout)
    except CheckpointError as error:
        error.path = path
        raise
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"looks like weights of {layout}, but the sizes of the network cannot be read off it "
            f"({type(error).__name__}: {error})",
            kind="corrupt",
            hint=_AGAIN,
            path=path,
        ) from None
    return Checkpoint(path, parts, sizes, layout)


def _sizes_of(parts: layouts.Parts, layout: str) -> dict[str, Any]:
    """Read the sizes off the shapes of the weights, where no configuration tells them.

    ``n_classes`` is left out if there is no head; PaSST and DeiT, which never saw our input, tell
    nothing of its length.
    """
    embed_dim = parts["cls_token"][0].shape[-1]
    sizes = {
        "embed_dim": embed_dim,
        "depth": layouts.count_blocks(parts, r"blocks\.(\d+)\."),
        "num_heads": max(1, embed_dim // _HEAD_WIDTH),
        "mlp_ratio": parts["blocks.0.mlp.fc1.weight"][0].shape[0] / embed_dim,
        "input_f": N_MELS,
    }
    if "head.1.weight" in parts:
        sizes["n_classes"] = parts["head.1.weight"][0].shape[0]
        for name in ("head.1.bias", "head_dist.weight", "head_dist.bias"):
            if name in parts and parts[name][0].shape[:1] != (sizes["n_classes"],):
                raise CheckpointError(
                    f"head.1.weight is for {sizes['n_classes']} classes, and {name} is "
                    f"{tuple(parts[name][0].shape)}",
                    kind="mismatch",
                    hint=_AGAIN,
                )
    if layout in (layouts.MAEST, HUB):
        positions = parts["time_new_pos_embed"][0].shape[-1]
        longest = max(positions * STRIDE, PATCH_SIZE)
        sizes["input_t"] = _RELEASED_INPUTS.get(positions, longest)
        sizes |= {"norm_mean": NORM_MEAN, "norm_std": NORM_STD}
    if layout == HUB:
        sizes["head_eps"] = layouts.HUB_EPS
    return sizes


def load_into(model: Maest, checkpoint: Checkpoint, discard_head: bool = False) -> Maest:
    """Give a network a checkpoint's weights, adapting what may differ.

    Position embeddings of another size are resized along their own axis (bicubic); a head for
    another number of classes or another task stays fresh, but for its norm. Both are logged.
    Anything else must match.

    Args:
        model: the network; one made by `Maest.without_weights` gets memory of its own for each
            weight, and no more.
        checkpoint: what `load_checkpoint` found.
        discard_head: leave the whole head fresh.

    Raises:
        CheckpointError: listing the keys that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    parts = dict(checkpoint.parts)
    notes = _fit_positions(parts, own)
    fresh = _fresh_names(model, checkpoint, discard_head, notes)
    for name in fresh:
        parts.pop(name, None)

    shapes = {name: _joined_shape(tensors) for name, tensors in parts.items()}
    problems = [f"missing: {name}" for name in own if name not in parts and name not in fresh]
    problems += [f"unexpected: {name}" for name in parts if name not in own]
    problems += [
        f"{name}: {shapes[name]}, expected {tuple(own[name].shape)}"
        for name in own
        if name in parts and shapes[name] != tuple(own[name].shape)
    ]
    if problems:
        hint = _AGAIN
        if any(checkpoint.sizes[name] != getattr(model, name) for name in ("embed_dim", "depth")):
            sizes = checkpoint.sizes
            hint = (
                f"The checkpoint has {sizes['depth']} blocks of {sizes['embed_dim']} channels, "
                f"the network {model.depth} of {model.embed_dim}. If maest.arch or another size "
                "was given, leave it out (maest.arch=None after a named config): the checkpoint "
                "knows its own."
            )
        raise CheckpointError(
            f"does not fit the network, {layouts.listing(problems)}",
            kind="mismatch",
            hint=hint,
            path=checkpoint.path,
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in parts:
                value = torch.cat(parts[name]).float()  # a copy: the parts may be views of a file
                if not value.sum().isfinite():  # without a temporary of its size
                    raise CheckpointError(
                        f"{name} has NaN or infinite values",
                        kind="corrupt",
                        hint="Use a checkpoint from before the training diverged.",
                        path=checkpoint.path,
                    )
            elif tensor.is_meta:
                value = _fresh(name, tensor.shape)
            else:
                continue  # fresh as it is
            if tensor.is_meta:
                module, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(module), leaf, nn.Parameter(value))
            else:
                tensor.copy_(value)
    model.fresh = frozenset(fresh)
    for note in notes:
        log.warning("%s: %s", checkpoint.path, note)
    return model


def _joined_shape(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Of parts of one shape each."""
    first = tuple(tensors[0].shape)
    return (first[0] * len(tensors), *first[1:]) if first else ()


def _fit_positions(parts: layouts.Parts, own: Mapping[str, Tensor]) -> list[str]:
    """Resize the position embeddings in ``parts`` where they do not fit; what was done."""
    notes = []
    rows, columns = (own[f"{axis}_new_pos_embed"].shape for axis in ("freq", "time"))
    if "pos_embed" in parts:
        grid = parts.pop("pos_embed")[0]
        freq, time = layouts.split_square_positions(grid, rows[2], columns[3])
        parts |= {"freq_new_pos_embed": (freq,), "time_new_pos_embed": (time,)}
        side = round(grid.shape[1] ** 0.5)
        notes.append(
            f"positions of a {side} x {side} grid resized to {rows[2]} x {columns[3]}, and taken "
            "apart into frequency and time"
        )
    for name, wanted in (("time_new_pos_embed", columns), ("freq_new_pos_embed", rows)):
        if name not in parts or parts[name][0].shape == wanted:
            continue
        found = parts[name][0]
        # Of another width or number of axes: reported as what does not fit.
        if found.ndim == 4 and found.shape[:2] == wanted[:2] and found.numel():
            parts[name] = (layouts.resize_positions(found, *wanted[2:]),)
            notes.append(f"{name} resized from {tuple(found.shape[2:])} to {tuple(wanted[2:])}")
            longer = wanted[3] / found.shape[3]
            if longer > _LONG:
                notes.append(
                    f"inputs are {longer:.0f} times as long as those of its training: expect "
                    "little of the results, or give a shorter datamodule.clip_length (input_t)"
                )
    return notes


def _fresh_names(
    model: Maest, checkpoint: Checkpoint, discard_head: bool, notes: list[str]
) -> set[str]:
    """The parameters that the checkpoint does not set; why is added to ``notes``."""
    names = list(model.state_dict())
    if discard_head:
        notes.append("the head is discarded: a fresh one")
        return {name for name in names if name.startswith(_HEADS)}
    # The norm before the head fits any head.
    last = {name for name in names if name.startswith(("head.1.", "head_dist."))}
    classes = checkpoint.sizes.get("n_classes")
    if classes is not None and classes != model.n_classes:
        notes.append(f"the head is fresh: {classes} classes there, {model.n_classes} here")
        fresh = last
    elif checkpoint.sizes.get("task", model.task) != model.task:
        notes.append(f"the head is fresh: {checkpoint.sizes['task']} there, {model.task} here")
        fresh = last
    else:
        fresh = set()
    optional = _OPTIONAL.get(checkpoint.layout, ())
    absent = set()
    for prefix in optional:
        group = {name for name in names if name.startswith(prefix)}
        if group.isdisjoint(checkpoint.parts):  # a part of a head is no head
            absent |= group
    if any(name.startswith("head.") for name in absent):
        notes.append("the head is fresh: the file has none for music")
    elif absent and (model.distilled_type == "separated" or checkpoint.layout == PASST):
        notes.append("the second head (head_dist) is fresh: the file has none")
    if not fresh | absent and checkpoint.labels is None and checkpoint.layout == PASST:
        notes.append(f"the head is AudioSet's, or of {classes} classes that are not named")
    return fresh | absent


def _fresh(name: str, shape: torch.Size) -> Tensor:
    """What `Maest.init_weights` gives to a part of the head."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name == "head.0.weight":
        return torch.ones(shape)
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02)
