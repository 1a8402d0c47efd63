"""The layouts in which others keep the weights of this family, and our names for them.

Each reader takes a foreign state dict and gives *parts*: our parameter name → the tensors that
make it, to be joined along the first axis. Nothing is copied here: the tensors may be views of a
file, and become memory only where a network takes them.

Shapes in comments: F, T rows and columns of the patch grid, D channels.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import N_MELS
from maest.helpers.patches import PATCH_SIZE
from maest.models.maest import STRIDE, grid_size

Parts = dict[str, tuple[Tensor, ...]]

MAEST, PASST, DEIT, HUB = "MAEST", "PaSST", "DeiT", "hub"


_WHOLE = "Get the file again, or save the whole state dict of the network."


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


def listing(lines: Sequence[str]) -> str:
    """What is wrong with which keys, a line each; the first 20 of them."""
    shown = "\n  ".join(lines[:20])
    return f"{len(lines)} keys:\n  {shown}" + ("\n  …" if len(lines) > 20 else "")


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """Which layout a state dict is in, by its keys; None if in none that is known."""
    if any(key.endswith("embeddings.position_embeddings") for key in state):
        return HUB
    if "freq_new_pos_embed" in state and "time_new_pos_embed" in state:
        # PaSST has the same names; its spectrogram has 128 bands, which make 12 rows.
        rows = state["freq_new_pos_embed"].shape[-2:-1]
        return MAEST if tuple(rows) == (grid_size(N_MELS),) else PASST
    return DEIT if "pos_embed" in state and "dist_token" in state else None


def count_blocks(names: Collection[str], pattern: str) -> int:
    """How many blocks the names tell of: one more than the highest number.

    Raises:
        CheckpointError: if there are none, or more than the names could fill.
    """
    numbers = [int(found[1]) for name in names if (found := re.match(pattern, name))]
    depth = max(numbers, default=-1) + 1
    if not 0 < depth <= len(names):
        raise CheckpointError(
            f"it seems to have {depth} blocks, and it has {len(names)} keys",
            kind="mismatch",
            hint=_WHOLE,
        )
    return depth


def read(state: Mapping[str, Tensor], layout: str) -> Parts:
    """A state dict in one of the layouts → parts under our names.

    Keys that the layout does not have are passed through, to be reported as unexpected.

    Raises:
        CheckpointError: for missing keys, and for positions that are not a sum of frequency and
            time.
    """
    if layout == HUB:
        return _read_hub(state)
    parts = {name: (tensor,) for name, tensor in state.items()}
    if layout == DEIT:  # its heads are for ImageNet, and without a norm of their own
        for name in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
            parts.pop(name, None)
        positions = parts.pop("pos_embed")[0]
        side = math.isqrt(max(positions.shape[1] - 2, 0)) if positions.ndim == 3 else 0
        if not side or positions.shape[1] != 2 + side * side:
            raise CheckpointError(
                f"pos_embed is {tuple(positions.shape)}: expected [1, 2 + n², D], two tokens and a "
                "square grid",
                kind="mismatch",
                hint=_WHOLE,
            )
        parts["new_pos_embed"] = (positions[:, :2],)
        parts["pos_embed"] = (positions[:, 2:],)  # until the grid's size is known
    colours = parts.get("patch_embed.proj.weight", (torch.empty(0),))[0]
    if colours.ndim == 4 and colours.shape[1] == 3:
        parts["patch_embed.proj.weight"] = (colours.float().sum(dim=1, keepdim=True),)
    return parts


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
    grid = positions.transpose(1, 2).unflatten(2, (side, side))
    grid = resize_positions(grid, rows, columns)
    return grid.mean(dim=3, keepdim=True), grid.mean(dim=2, keepdim=True)


# ------------------------------------------------------------------ the hub's layout
#
# `ASTForAudioClassification` of transformers. The published files have the first names; its
# version 5 uses the second ones in memory.

HUB_TYPE = "audio-spectrogram-transformer"
HUB_EPS = 1e-6  # of every norm, the head's too
# What its configuration can say, and is the same in every network of this family
HUB_FIXED = {
    "patch_size": PATCH_SIZE,
    "frequency_stride": STRIDE,
    "time_stride": STRIDE,
    "num_mel_bins": N_MELS,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": HUB_EPS,
}
# Our name of a task → that layout's
HUB_PROBLEMS = {
    "multi-label": "multi_label_classification",
    "single-label": "single_label_classification",
    "regression": "regression",
}

_TOP = "audio_spectrogram_transformer."
_HUB_BLOCK = {  # ours → theirs
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
_HUB_QKV = (
    tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    tuple(f"attention.{part}_proj" for part in "qkv"),
)
_HUB_SINGLE = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_HUB_HEAD = {"head.0": "classifier.layernorm", "head.1": "classifier.dense"}
_HUB_POSITIONS = "embeddings.position_embeddings"


def _read_hub(state: Mapping[str, Tensor]) -> Parts:
    left = dict(state)
    missing: list[str] = []

    def take(*names: str) -> tuple[Tensor, ...]:
        missing.extend(name for name in names if name not in left)
        return tuple(left.pop(name) for name in names if name in left)

    # Without a head (`ASTModel`), transformers writes no prefix.
    top = _TOP if any(key.startswith(_TOP) for key in state) else ""
    parts = {ours: take(top + theirs) for ours, theirs in _HUB_SINGLE.items()}
    newer = not any(key.startswith(f"{top}encoder.layer.") for key in state)
    blocks = f"{top}layers" if newer else f"{top}encoder.layer"
    for block in range(count_blocks(state, re.escape(blocks) + r"\.(\d+)\.")):
        for kind in ("weight", "bias"):
            for ours, theirs in _HUB_BLOCK.items():
                name = f"blocks.{block}.{ours}.{kind}"
                parts[name] = take(f"{blocks}.{block}.{theirs[newer]}.{kind}")
            qkv = [f"{blocks}.{block}.{name}.{kind}" for name in _HUB_QKV[newer]]
            found = take(*qkv)
            if len({tensor.shape for tensor in found}) > 1 or any(not t.ndim for t in found):
                shapes = zip(qkv, (tuple(tensor.shape) for tensor in found), strict=False)
                shown = ", ".join(f"{name} {shape}" for name, shape in shapes)
                raise CheckpointError(
                    f"expected one shape of {shown}", kind="mismatch", hint=_WHOLE
                )
            parts[f"blocks.{block}.attn.qkv.{kind}"] = found
    for ours, theirs in _HUB_HEAD.items():  # an `ASTModel` has none
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in left:
                parts[f"{ours}.{kind}"] = take(f"{theirs}.{kind}")
    positions = take(top + _HUB_POSITIONS)
    wrong = [f"missing: {name}" for name in missing] or [f"unexpected: {name}" for name in left]
    if wrong:
        raise CheckpointError(listing(wrong), kind="mismatch", hint=_WHOLE)
    parts |= _split_positions(positions[0])
    return parts


def _split_positions(positions: Tensor) -> Parts:
    """[1, 2 + F·T, D], frequency-major → those of the two tokens, of frequency, and of time."""
    rows = grid_size(N_MELS)
    if positions.ndim != 3 or positions.shape[1] < 2 + rows or (positions.shape[1] - 2) % rows:
        raise CheckpointError(
            f"position_embeddings are {tuple(positions.shape)}: expected [1, 2 + {rows}·T, D], "
            "the grid of a spectrogram with 96 bands",
            kind="mismatch",
            hint="Use a model that takes 96 mel bands, as the MAEST models do.",
        )
    exact = torch.finfo(positions.dtype).eps * 8 * float(positions.abs().max())
    positions = positions.float()
    grid = positions[:, 2:].unflatten(1, (rows, -1))  # [1, F, T, D]
    time = grid[:, :1]
    freq = grid[:, :, :1] - grid[:, :1, :1]
    off = float((freq + time - grid).abs().max())
    if not off <= exact:
        raise CheckpointError(
            f"position_embeddings are no sum of frequency and time (off by {off:.2g}), which is "
            "all that this network has: trained further without that constraint, or no MAEST",
            kind="mismatch",
            hint="Use the model as it was before that training, or fine-tune it with this program.",
        )
    return {
        "new_pos_embed": (positions[:, :2],),
        "freq_new_pos_embed": (freq.permute(0, 3, 1, 2),),
        "time_new_pos_embed": (time.permute(0, 3, 1, 2),),
    }


def default_hub_labels(n_classes: int) -> list[str]:
    """What transformers calls classes without names."""
    return [f"LABEL_{i}" for i in range(n_classes)]


def write_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict → the published files' names. ``head_dist`` is not carried."""
    hub = {_TOP + theirs: state[ours] for ours, theirs in _HUB_SINGLE.items()}
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in range(depth):
        ours, theirs = f"blocks.{block}", f"{_TOP}encoder.layer.{block}"
        for kind in ("weight", "bias"):
            for mine, (published, _) in _HUB_BLOCK.items():
                hub[f"{theirs}.{published}.{kind}"] = state[f"{ours}.{mine}.{kind}"]
            qkv = state[f"{ours}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(_HUB_QKV[0], qkv, strict=True):
                hub[f"{theirs}.{name}.{kind}"] = part
    for mine, theirs in _HUB_HEAD.items():
        for kind in ("weight", "bias"):
            hub[f"{theirs}.{kind}"] = state[f"{mine}.{kind}"]
    grid = state["freq_new_pos_embed"] + state["time_new_pos_embed"]  # [1, D, F, T]
    grid = grid.flatten(2).transpose(1, 2)
    hub[_TOP + _HUB_POSITIONS] = torch.cat((state["new_pos_embed"], grid), dim=1)
    return hub


def fingerprint(parts: Parts) -> str:
    """Of the last layer's weights: another one tells that a network was trained since."""
    weights = torch.cat(parts["head.1.weight"]) if "head.1.weight" in parts else torch.empty(0)
    return hashlib.sha256(weights.float().contiguous().numpy().tobytes()).hexdigest()
