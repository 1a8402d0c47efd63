"""The layouts in which others keep the weights of this family, and our names for them.

Shapes in comments: F, T rows and columns of the patch grid, D channels.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from maest.helpers.melspectrogram import N_MELS, NORM_MEAN, NORM_STD
from maest.helpers.patches import PATCH_SIZE
from maest.models.sizes import STRIDE, grid_size

MAEST, PASST, DEIT, HUB = "MAEST", "PaSST", "DeiT", "hub"
HEADS = ("head.", "head_dist.")
# Parts of a head that a layout may lack.
OPTIONAL_HEADS = {HUB: ("head_dist.",), PASST: HEADS, DEIT: HEADS}
_HEAD_WIDTH = 64  # channels of an attention head, in every released size
# Time positions → input frames of 5, 10, 20 and 30 s. Positions alone say only the tens of frames.
_RELEASED_INPUTS = {31: 312, 62: 625, 125: 1250, 187: 1875}


def detect_layout(state: Mapping[str, Tensor]) -> str:
    """Which layout a state dict is in, by its keys. Raises ValueError if in none that is known."""
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
    """A state dict in one of the layouts → one with our names; other keys keep theirs.

    Raises:
        ValueError: for positions that are not those of the layout.
    """
    if layout == HUB:
        return _read_hub(state)
    tensors = dict(state)
    if layout == DEIT:  # its heads are for ImageNet, and without a norm of their own
        for name in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
            tensors.pop(name, None)
        positions = tensors.pop("pos_embed")
        side = math.isqrt(max(positions.shape[1] - 2, 0)) if positions.ndim == 3 else 0
        if not side or positions.shape[1] != 2 + side * side:
            raise ValueError(
                f"pos_embed is {tuple(positions.shape)}: expected [1, 2 + n², D], two tokens and a "
                "square grid"
            )
        tensors["new_pos_embed"] = positions[:, :2]
        tensors["pos_embed"] = positions[:, 2:]  # until the grid's size is known
    colours = tensors.get("patch_embed.proj.weight", torch.empty(0))
    if colours.ndim == 4 and colours.shape[1] == 3:
        tensors["patch_embed.proj.weight"] = colours.float().sum(dim=1, keepdim=True)
    return tensors


def read_sizes(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    """Arguments of `Maest`, as far as shapes alone tell them.

    ``n_classes`` is left out if there is no head; PaSST and DeiT, which never saw our input, tell
    nothing of its length.

    Raises:
        ValueError, KeyError, IndexError, ZeroDivisionError: these are no weights of this family.
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
    if "head.1.weight" in tensors:
        sizes["n_classes"] = tensors["head.1.weight"].shape[0]
        for name in ("head.1.bias", "head_dist.weight", "head_dist.bias"):
            if name in tensors and tensors[name].shape[:1] != (sizes["n_classes"],):
                raise ValueError(f"head.1.weight and {name} are for different numbers of classes")
    if layout in (MAEST, HUB):
        rows = tensors["freq_new_pos_embed"].shape[2]
        columns = tensors["time_new_pos_embed"].shape[3]
        if rows != grid_size(N_MELS):
            sizes["input_f"] = (rows - 1) * STRIDE + PATCH_SIZE
        sizes["input_t"] = _RELEASED_INPUTS.get(columns, max(columns * STRIDE, PATCH_SIZE))
        sizes |= {"norm_mean": NORM_MEAN, "norm_std": NORM_STD}
    return sizes | ({"head_eps": HUB_EPS} if layout == HUB else {})


def resize_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resize positions [1, D, F, T] bicubically, as PaSST does."""
    return functional.interpolate(
        positions.float(), size=(rows, columns), mode="bicubic", align_corners=False
    )


def split_square_positions(positions: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Positions of a square grid [1, n², D] → of frequency [1, D, F, 1] and of time [1, D, 1, T].

    The grid is resized to F x T; its mean over one axis is the embedding of the other.
    """
    side = math.isqrt(positions.shape[1])
    grid = positions.transpose(1, 2).reshape(1, -1, side, side)
    grid = resize_positions(grid, rows, columns)
    return grid.mean(dim=3, keepdim=True), grid.mean(dim=2, keepdim=True)


# ------------------------------------------------------------------ the hub's layout:
# `ASTForAudioClassification` of transformers

HUB_TYPE = "audio-spectrogram-transformer"
HUB_EPS = 1e-6  # of every norm, the head's too
# What its configuration can say, and is the same in every network of this family
HUB_FIXED = {
    "model_type": HUB_TYPE,
    "patch_size": PATCH_SIZE,
    "frequency_stride": STRIDE,
    "time_stride": STRIDE,
    "num_mel_bins": N_MELS,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": HUB_EPS,
}
# What transformers takes where the file does not say, if that is another value
_DEFAULTS = {"model_type": None, "num_mel_bins": 128, "layer_norm_eps": 1e-12}
# Our name of a task → that layout's
HUB_PROBLEMS = {
    "multi-label": "multi_label_classification",
    "single-label": "single_label_classification",
    "regression": "regression",
}


def read_hub_config(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` of transformers says of a network that its weights do not.

    Raises:
        ValueError: if it is of another network than that of the weights, with these ``sizes``.
    """
    expected = {"hidden_size": sizes["embed_dim"], "num_hidden_layers": sizes["depth"], **HUB_FIXED}
    found = {name: config.get(name, _DEFAULTS.get(name, v)) for name, v in expected.items()}
    wrong = [f"{n} {found[n]!r} (expected {v!r})" for n, v in expected.items() if found[n] != v]
    heads = config.get("num_attention_heads", 12)
    if type(heads) is not int or heads < 1 or sizes["embed_dim"] % heads:
        wrong.append(f"num_attention_heads {heads!r}")
    # The released models' files say nothing of their task.
    problem = config.get("problem_type") or HUB_PROBLEMS["multi-label"]
    tasks = [task for task, name in HUB_PROBLEMS.items() if name == problem]
    if not tasks:
        wrong.append(f"problem_type {problem!r}")
    if wrong:
        raise ValueError(f"of another network than MAEST: {', '.join(wrong)}")
    return {"num_heads": heads, "task": tasks[0]}


_TOP = "audio_spectrogram_transformer."  # without a head (`ASTModel`), transformers writes none
_HUB_POSITIONS = "embeddings.position_embeddings"
# Ours, theirs as published, and theirs in the memory of transformers 5. Three rows of one name of
# ours are joined in this order.
_HUB_NAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm1", "layernorm_before"),
    ("attn.qkv", "attention.attention.query", "attention.q_proj"),
    ("attn.qkv", "attention.attention.key", "attention.k_proj"),
    ("attn.qkv", "attention.attention.value", "attention.v_proj"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
    ("norm", "layernorm"),
    ("head.0", "classifier.layernorm"),
    ("head.1", "classifier.dense"),
)
_OURS = {theirs: (row, ours) for row, (ours, *both) in enumerate(_HUB_NAMES) for theirs in both}
# A block's number, the name in it, and what of it
_KEY = re.compile(
    r"\A(?:(?:blocks|encoder\.layer|layers)\.(\d+)\.)?(.*?)(\.weight|\.bias)?\Z", re.DOTALL
)


def _read_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, dict[int, Tensor]] = {}  # our name → row of _HUB_NAMES → tensor
    for key, tensor in state.items():
        [(block, name, kind)] = _KEY.findall(key.removeprefix(_TOP))
        row, ours = _OURS.get(name, (0, ""))
        ours = (f"blocks.{block}." if block else "") + ours + kind if ours else key
        if row in parts.get(ours, {}):  # a second spelling: unexpected
            ours = key
        parts.setdefault(ours, {})[row] = tensor
    tensors = {}
    for ours, rows in parts.items():
        joined = [rows[row] for row in sorted(rows)]
        if len({tensor.shape for tensor in joined}) > 1:
            raise ValueError(f"the parts of {ours} are {[tuple(t.shape) for t in joined]}")
        tensors[ours] = torch.cat(joined) if joined[1:] and joined[0].ndim else joined[0]
    [key] = [key for key in state if key.removeprefix(_TOP) == _HUB_POSITIONS]
    return tensors | _split_positions(tensors.pop(key))


def _split_positions(positions: Tensor) -> dict[str, Tensor]:
    """[1, 2 + F·T, D], frequency-major → those of the two tokens, of frequency, and of time."""
    rows = grid_size(N_MELS)
    if positions.ndim != 3 or positions.shape[1] < 2 + rows or (positions.shape[1] - 2) % rows:
        raise ValueError(
            f"position_embeddings are {tuple(positions.shape)}: expected [1, 2 + {rows}·T, D], "
            "the grid of a spectrogram with 96 bands"
        )
    rounding = torch.finfo(positions.dtype).eps * 8 * float(positions.float().abs().max())
    positions = positions.float()
    columns = (positions.shape[1] - 2) // rows
    grid = positions[:, 2:].reshape(-1, rows, columns, positions.shape[2])  # [1, F, T, D]
    time = grid[:, :1]
    freq = grid[:, :, :1] - grid[:, :1, :1]
    error = float((freq + time - grid).abs().max())
    if not error <= rounding:
        raise ValueError(
            f"position_embeddings are no sum of frequency and time (off by {error:.2g}), which is "
            "all that this network has: trained further without that constraint, or no MAEST"
        )
    return {
        "new_pos_embed": positions[:, :2],
        "freq_new_pos_embed": freq.permute(0, 3, 1, 2),
        "time_new_pos_embed": time.permute(0, 3, 1, 2),
    }


def write_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict → the published files' names. ``head_dist`` is not carried."""
    hub = {}
    for name, tensor in state.items():
        [(block, ours, kind)] = _KEY.findall(name)
        published = [theirs for known, theirs, *_ in _HUB_NAMES if known == ours]
        for theirs, part in zip(published, tensor.chunk(len(published) or 1), strict=False):
            top = "" if theirs.startswith("classifier.") else _TOP
            hub[top + (f"encoder.layer.{block}." if block else "") + theirs + kind] = part
    grid = state["freq_new_pos_embed"] + state["time_new_pos_embed"]  # [1, D, F, T]
    grid = grid.flatten(2).transpose(1, 2)
    hub[_TOP + _HUB_POSITIONS] = torch.cat((state["new_pos_embed"], grid), dim=1)
    return hub


def default_hub_labels(n_classes: int) -> list[str]:
    """What transformers calls classes without names."""
    return [f"LABEL_{i}" for i in range(n_classes)]


def fingerprint(last: Tensor) -> str:
    """Of the last layer's weights: another one tells that a network was trained since."""
    return hashlib.sha256(last.float().contiguous().numpy().tobytes()).hexdigest()
