"""The weight layouts of this family of networks; position grids are [D, F rows, T columns]."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maest.helpers.audio.constants import N_MELS, NORM_MEAN, NORM_STD
from maest.helpers.audio.patches import PATCH_SIZE
from maest.models.sizes import STRIDE, grid_size

log = logging.getLogger(__name__)

MAEST, PASST, DEIT, HUB = "MAEST", "PaSST", "DeiT", "hub"
HEADS = ("head.", "head_dist.")
# Parts of a head that a layout may lack.
OPTIONAL_HEADS = {HUB: ("head_dist.",), PASST: HEADS, DEIT: HEADS}
_HEAD_WIDTH = 64  # channels of an attention head, in every released size
# Time positions → input frames of 5, 10, 20 and 30 s. Positions alone give only tens of frames.
_RELEASED_INPUTS = {31: 312, 62: 625, 125: 1250, 187: 1875}
_LONG = 4  # times the input length of training: beyond, there is a warning


def detect_layout(state: Mapping[str, Tensor]) -> str:
    """Tell a state dict's layout by its keys; ValueError for an unknown one."""
    if any(key.removeprefix(_TOP) == _HUB_POSITIONS for key in state):
        return HUB
    if "freq_new_pos_embed" in state and "time_new_pos_embed" in state:
        # PaSST has the same names; its spectrogram has 128 bands, which make 12 rows.
        rows = state["freq_new_pos_embed"].shape[-2:-1]
        return MAEST if tuple(rows) == (grid_size(N_MELS),) else PASST
    if "pos_embed" in state and "dist_token" in state:
        return DEIT
    some = ", ".join(list(state)[:4]) or "nothing"
    raise ValueError(f"no weights of a MAEST network, nor of PaSST or DeiT (it has {some} …)")


def read(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename a layout's state dict to our names; ValueError for positions of another layout."""
    if layout == HUB:
        return _read_hub(state)
    tensors = dict(state)
    if layout == DEIT:
        for head in HEADS:  # ImageNet's, without a norm
            tensors.pop(f"{head}weight", None)
            tensors.pop(f"{head}bias", None)
        positions = tensors.pop("pos_embed")
        side = math.isqrt(max(positions.shape[1] - 2, 0)) if positions.ndim == 3 else 0
        if not side or positions.shape[1] != 2 + side * side:
            shape = tuple(positions.shape)
            raise ValueError(f"pos_embed is {shape}: expected [1, 2 + n², D], of a square grid")
        tensors["new_pos_embed"] = positions[:, :2]
        tensors["pos_embed"] = positions[:, 2:]  # until the grid's size is known
    colours = tensors.get("patch_embed.proj.weight", torch.empty(0))
    if colours.ndim == 4 and colours.shape[1] == 3:
        tensors["patch_embed.proj.weight"] = colours.float().sum(dim=1, keepdim=True)
    return tensors


def read_sizes(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    """Infer arguments of `Maest` from shapes.

    ``n_classes`` is left out without a head, ``input_t`` for PaSST and DeiT, which never saw our
    input. Weights of another network raise ValueError, a LookupError or an ArithmeticError.
    """
    embed_dim = tensors["cls_token"].shape[-1]
    blocks = [int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))]
    depth = max(blocks, default=-1) + 1
    if not 0 < depth <= len(tensors):
        raise ValueError(f"{len(tensors)} keys cannot be {depth} blocks")
    sizes = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": max(1, embed_dim // _HEAD_WIDTH),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        "input_f": N_MELS,
    }
    heads = ("head.1.weight", "head.1.bias", "head_dist.weight", "head_dist.bias")
    if heads[0] in tensors:
        sizes["n_classes"] = tensors[heads[0]].shape[0]
        if len({tensors[name].shape[:1] for name in heads if name in tensors}) > 1:
            raise ValueError(f"{', '.join(heads)} are for different numbers of classes")
    if layout in (MAEST, HUB):
        rows = tensors["freq_new_pos_embed"].shape[2]
        columns = tensors["time_new_pos_embed"].shape[3]
        if rows != grid_size(N_MELS):
            sizes["input_f"] = (rows - 1) * STRIDE + PATCH_SIZE
        sizes["input_t"] = _RELEASED_INPUTS.get(columns, max(columns * STRIDE, PATCH_SIZE))
        sizes |= {"norm_mean": NORM_MEAN, "norm_std": NORM_STD}
    return sizes | ({"head_eps": HUB_EPS} if layout == HUB else {})


def fit_positions(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Resize our position embeddings to the ``expected`` sizes, and log the change."""
    tensors, freq, time = dict(tensors), "freq_new_pos_embed", "time_new_pos_embed"
    rows, columns = expected[freq].shape[2], expected[time].shape[3]
    if "pos_embed" in tensors:  # of a square grid: the mean over one axis is the other's
        grid = tensors.pop("pos_embed").transpose(1, 2)
        grid = _resized(grid.unflatten(2, (math.isqrt(grid.shape[2]), -1)), (rows, columns))
        tensors[freq], tensors[time] = grid.mean(3, keepdim=True), grid.mean(2, keepdim=True)
        message = "%s: positions of a square grid resized to %d x %d and taken apart"
        log.warning(message, path, rows, columns)
    for name, size in ((freq, (rows, 1)), (time, (1, columns))):
        found = tensors.get(name, torch.empty(0))
        if found.ndim != 4 or found.shape[2:] == size or not found.numel():
            continue  # it fits, or it never will
        tensors[name] = _resized(found, size)
        log.warning("%s: %s resized from %s to %s", path, name, tuple(found.shape[2:]), size)
        if (longer := size[1] / found.shape[3]) > _LONG:
            message = (
                "%s: inputs are %.0f times as long as in training: a shorter input_t is better"
            )
            log.warning(message, path, longer)
    return tensors


def _resized(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize positions [1, D, F, T] bicubically, as PaSST does."""
    return functional.interpolate(positions.float(), size, mode="bicubic", align_corners=False)


# ------------------------------------------------------------------ the hub's layout:
# `ASTForAudioClassification` of transformers

HUB_EPS = 1e-6  # of every norm, the head's too
# Settings in its configuration that all networks of this family share
HUB_FIXED = {
    "model_type": "audio-spectrogram-transformer",
    "patch_size": PATCH_SIZE,
    "frequency_stride": STRIDE,
    "time_stride": STRIDE,
    "num_mel_bins": N_MELS,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": HUB_EPS,
}
# Defaults of transformers that differ from these
_DEFAULTS = {"model_type": None, "num_mel_bins": 128, "layer_norm_eps": 1e-12}
# Our name of a task → that layout's
HUB_PROBLEMS = {
    "multi-label": "multi_label_classification",
    "single-label": "single_label_classification",
    "regression": "regression",
}


def read_hub_config(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Read heads and task of a transformers `config.json`; ValueError for another network."""
    heads = config.get("num_attention_heads", 12)
    # The released models' files do not name their task.
    problem = config.get("problem_type") or HUB_PROBLEMS["multi-label"]
    tasks = {theirs: ours for ours, theirs in HUB_PROBLEMS.items()}
    expected = {"hidden_size": sizes["embed_dim"], "num_hidden_layers": sizes["depth"], **HUB_FIXED}
    found = {name: config.get(name, _DEFAULTS.get(name, v)) for name, v in expected.items()}
    wrong = [f"{n} {found[n]!r} (expected {v!r})" for n, v in expected.items() if found[n] != v]
    if type(heads) is not int or heads < 1 or sizes["embed_dim"] % heads:
        wrong.append(f"num_attention_heads {heads!r}")
    if problem not in tasks:
        wrong.append(f"problem_type {problem!r}")
    if wrong:
        raise ValueError(f"of another network than MAEST: {', '.join(wrong)}")
    return {"num_heads": heads, "task": tasks[problem]}


_TOP = "audio_spectrogram_transformer."  # without a head (`ASTModel`), transformers writes none
_HUB_POSITIONS = "embeddings.position_embeddings"
# Our name, the published one, and the one that transformers 5 has in memory
_HUB_NAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm1", "layernorm_before"),
    ("attn.q", "attention.attention.query", "attention.q_proj"),  # q, k, v joined: our qkv
    ("attn.k", "attention.attention.key", "attention.k_proj"),
    ("attn.v", "attention.attention.value", "attention.v_proj"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
    ("norm", "layernorm"),
    ("head.0", "classifier.layernorm"),
    ("head.1", "classifier.dense"),
)
_OURS = {theirs: ours for ours, *both in _HUB_NAMES for theirs in both}
_PUBLISHED = {ours: theirs for ours, theirs, *_ in _HUB_NAMES}
# Block number, name in the block, weight or bias
_KEY = re.compile(r"(?s)\A(?:(?:blocks|encoder\.layer|layers)\.(\d+)\.)?(.*?)(\.weight|\.bias)?\Z")


def _read_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        [(block, name, kind)] = _KEY.findall(key.removeprefix(_TOP))
        ours = (f"blocks.{block}." if block else "") + _OURS.get(name, "") + kind
        # A second spelling of a name is as unexpected as an unknown one.
        tensors[key if name not in _OURS or ours in tensors else ours] = tensor
    for name in [name for name in tensors if ".attn.q." in name]:
        qkv = [name.replace(".q.", f".{part}.") for part in "qkv"]
        parts = [tensors[part] for part in qkv if part in tensors]
        # Parts that are missing or do not go together stay: they are reported as unexpected.
        if len(parts) == 3 and {part.shape for part in parts} == {parts[0].shape} != {()}:
            tensors[name.replace(".q.", ".qkv.")] = torch.cat(parts)
            tensors = {key: tensor for key, tensor in tensors.items() if key not in qkv}
    [key] = [key for key in tensors if key.removeprefix(_TOP) == _HUB_POSITIONS]
    return tensors | _split_positions(tensors.pop(key))


def _split_positions(positions: Tensor) -> dict[str, Tensor]:
    """Split [1, 2 + F·T, D], frequency-major, into tokens', frequency and time positions."""
    rows = grid_size(N_MELS)
    if positions.ndim != 3 or positions.shape[1] < 2 + rows or (positions.shape[1] - 2) % rows:
        expected = f"[1, 2 + {rows}·T, D], the grid of a spectrogram with 96 bands"
        raise ValueError(f"position_embeddings are {tuple(positions.shape)}: expected {expected}")
    rounding = torch.finfo(positions.dtype).eps * 8 * float(positions.float().abs().max())
    two, grid = positions.float().transpose(1, 2).tensor_split([2], dim=2)
    grid = grid.unflatten(2, (rows, -1))  # [1, D, F, T]
    time, freq = grid[:, :, :1], grid[..., :1] - grid[:, :, :1, :1]
    if not (error := float((freq + time - grid).abs().max())) <= rounding:
        message = "position_embeddings are no sum of frequency and time, as those of MAEST are"
        raise ValueError(f"{message} (off by {error:.2g}): trained further, or another network")
    names = ("new_pos_embed", "freq_new_pos_embed", "time_new_pos_embed")
    return dict(zip(names, (two.transpose(1, 2), freq, time), strict=True))


def write_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict to the published files' names, without ``head_dist``."""
    hub = {}
    for name, tensor in state.items():
        [(block, ours, kind)] = _KEY.findall(name)
        names = ["attn.q", "attn.k", "attn.v"] if ours == "attn.qkv" else [ours]
        for ours, part in zip(names, tensor.chunk(len(names)), strict=True):
            if theirs := _PUBLISHED.get(ours):
                top = "" if theirs.startswith("classifier.") else _TOP
                hub[top + (f"encoder.layer.{block}." if block else "") + theirs + kind] = part
    grid = state["freq_new_pos_embed"] + state["time_new_pos_embed"]  # [1, D, F, T]
    grid = grid.flatten(2).transpose(1, 2)
    hub[_TOP + _HUB_POSITIONS] = torch.cat((state["new_pos_embed"], grid), dim=1)
    return hub


def default_hub_labels(n_classes: int) -> list[str]:
    """The names that transformers gives to unnamed classes."""
    return [f"LABEL_{i}" for i in range(n_classes)]


def fingerprint(last: Tensor) -> str:
    """Hash the last layer's weights, to detect further training."""
    return hashlib.sha256(last.float().contiguous().numpy().tobytes()).hexdigest()
