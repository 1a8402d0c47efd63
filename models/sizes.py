"""A network's sizes, and the patches that its blocks get (`Patchout`)."""

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maest.helpers.audio.constants import N_MELS, NORM_MEAN, NORM_STD
from maest.helpers.audio.patches import PATCH_SIZE
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice

STRIDE = 10  # frames and bands from one patch to the next
DISTILLED_TYPES = ("mean", "separated")
# Any number of labels (sigmoid), exactly one label (softmax), or C real values.
TASKS = ("multi-label", "single-label", "regression")
ACTIVATIONS = dict(zip(TASKS, ("sigmoid", "softmax", "none"), strict=True))  # of logits
# Bounds of sizes: the least whole number, and what a finite number must be above
_LEAST = {"n_classes": 1, "input_t": PATCH_SIZE, "input_f": PATCH_SIZE}
_LEAST |= {"embed_dim": 1, "depth": 1, "num_heads": 1}
_ABOVE = {"mlp_ratio": 0.0, "head_eps": 0.0, "norm_std": 0.0, "norm_mean": -math.inf}
_LEAST_SHARE = 0.05  # of a clip's patches; patchout that leaves less is a mistake


def grid_size(size: int) -> int:
    """The number of patches along ``size`` bands or frames."""
    return (size - PATCH_SIZE) // STRIDE + 1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shape, normalisation and heads of a network; raises InputError as `Maest` does."""

    n_classes: int  # labels C
    input_t: int  # longest input, in frames (62.5 a second)
    input_f: int = N_MELS  # mel bands of an input
    embed_dim: int = 768  # channels D
    depth: int = 12  # transformer blocks
    num_heads: int = 12  # attention heads of a block
    mlp_ratio: float = 4.0  # hidden width of a block's MLP over D
    # One head on the mean of the cls and dist tokens, or ("separated") a head for each
    distilled_type: str = "mean"
    head_eps: float = 1e-5  # of the head's LayerNorm
    norm_mean: float = NORM_MEAN  # the input's normalisation is (x - mean) / (2 · std)
    norm_std: float = NORM_STD
    task: str = "multi-label"
    # Of regression targets, C values each: the heads learn standardised values, and logits are in
    # the targets' units. None: the targets are standardised.
    target_mean: Sequence[float] | None = None
    target_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        check_choice("distilled_type", self.distilled_type, DISTILLED_TYPES)
        for name, least in _LEAST.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        for name, above in _ABOVE.items():
            if not above < getattr(self, name) <= sys.float_info.max:  # of whole numbers, too
                raise invalid(name, getattr(self, name), f"Give a finite number above {above:g}.")
        if self.embed_dim % self.num_heads:
            message = f"{self.num_heads} heads do not divide {self.embed_dim} channels"
            hint = "Give heads of 64 channels, as is usual."
            raise InputError(message, kind="conflict", hint=hint, setting="num_heads")
        if self.target_mean is None and self.target_std is None:
            return
        means, stds = (
            [] if values is None else [float(value) for value in values]
            for values in (self.target_mean, self.target_std)
        )
        fit = {len(means), len(stds)} == {self.n_classes} and all(std > 0 for std in stds)
        if self.task != "regression" or not fit:
            message = f"{len(means)} means and {len(stds)} deviations above 0, for {self.task}"
            hint = f"They are for regression, {self.n_classes} values each. Give both or none."
            raise InputError(message, kind="conflict", hint=hint, setting="target_mean")
        object.__setattr__(self, "target_mean", means)
        object.__setattr__(self, "target_std", stds)

    @property
    def positions(self) -> int:
        """The number of patch columns with positions: those of a clip, or one more."""
        return self.input_t // STRIDE


SIZE_NAMES = tuple(field.name for field in fields(Sizes))


def invalid(name: str, value: Any, hint: str) -> InputError:
    return InputError(f"{value!r} is out of bounds", hint=hint, setting=name)


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Convert a whole number, NumPy's too but not a bool, to int; InputError for another."""
    bounds = f"Give a whole number, {least} {'or more' if most is None else f'to {most}'}."
    try:
        number = operator.index(value)
    except TypeError:
        raise invalid(name, value, bounds) from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise invalid(name, value, bounds)
    return number


class Patchout(nn.Module):
    """Drops patches, the same ones for a whole batch (K. Koutini et al., Interspeech 2022).

    Training drops ``s_patchout_t`` time columns, ``s_patchout_f`` frequency rows and ``u_patchout``
    single patches at random; of clips shorter than ``input_t``, the same share of columns. Always
    dropped are columns and rows by number (``…_indices``, which a short input may lack), and all
    but every k-th (``…_interleaved``). InputError: a value is out of bounds, or too few patches are
    left.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        s_patchout_t: int = 0,
        s_patchout_f: int = 0,
        u_patchout: int = 0,
        s_patchout_t_indices: Sequence[int] = (),
        s_patchout_f_indices: Sequence[int] = (),
        s_patchout_t_interleaved: int = 0,
        s_patchout_f_interleaved: int = 0,
    ) -> None:
        super().__init__()
        self.rows, columns = grid_size(sizes.input_f), grid_size(sizes.input_t)
        self.columns = columns  # of a clip of full length
        patches = self.rows * columns
        self.dropped = {  # at random
            "s_patchout_t": whole_number("s_patchout_t", s_patchout_t, 0, columns - 1),
            "s_patchout_f": whole_number("s_patchout_f", s_patchout_f, 0, self.rows - 1),
            "u_patchout": whole_number("u_patchout", u_patchout, 0, patches - 1),
        }
        t = s_patchout_t_indices, s_patchout_t_interleaved
        f = s_patchout_f_indices, s_patchout_f_interleaved
        # Numbers of columns and rows that are not always dropped; None for all
        self.kept_columns = _kept("s_patchout_t", sizes.positions, *t)
        self.kept_rows = _kept("s_patchout_f", self.rows, *f)
        left = self.n_patches(sizes.input_t, training=True)
        if left < max(1, _LEAST_SHARE * patches):
            message = f"patchout leaves {max(0, left)} of a clip's {patches} patches"
            hint = "Drop less by s_patchout_t, s_patchout_f and u_patchout, or use longer clips."
            raise InputError(message, hint=hint, setting="s_patchout_t")

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, F rows, T columns] → [B, D, N]: the patches that stay, frequency-major."""
        random = self.training and any(self.dropped.values())
        if self.kept_columns is None and self.kept_rows is None and not random:
            return x.flatten(2)
        rows, columns = x.shape[2:]
        dropped = self._dropped(columns) if self.training else (0, 0, 0)
        t = _select("s_patchout_t", columns, self.kept_columns, dropped[0])
        f = _select("s_patchout_f", rows, self.kept_rows, dropped[1])
        grid = torch.arange(rows * columns).view(rows, columns)[f][:, t].flatten()
        grid = grid[_select("u_patchout", len(grid), None, dropped[2])]
        return x.flatten(2).index_select(2, on_device(grid, x.device))

    def n_patches(self, frames: int, training: bool) -> int:
        """The number of patches left of an input of ``frames``; below 1 if none is."""
        columns = grid_size(max(frames, PATCH_SIZE))
        t = columns if self.kept_columns is None else int((self.kept_columns < columns).sum())
        f = self.rows if self.kept_rows is None else len(self.kept_rows)
        fewer_t, fewer_f, fewer = self._dropped(columns) if training else (0, 0, 0)
        return max(0, t - fewer_t) * max(0, f - fewer_f) - fewer

    def _dropped(self, columns: int) -> tuple[int, int, int]:
        """Columns, rows and single patches that training drops of a clip of ``columns``."""
        t, f, single = self.dropped.values()
        share = min(1.0, columns / self.columns)
        return int(t * share), f, single


def _select(name: str, available: int, kept: Tensor | None, dropped: int) -> Tensor:
    """Choose positions of ``available``, sorted: the kept ones, less random ones."""
    indices = torch.arange(available) if kept is None else kept[kept < available]
    if len(indices) <= dropped:
        message = f"drops {dropped} of the {len(indices)} that are left of {available}"
        raise InputError(message, hint="Lower it, or use longer clips.", setting=name)
    return indices[torch.randperm(len(indices))[dropped:].sort().values] if dropped else indices


def _kept(name: str, available: int, indices: Any, every: Any) -> Tensor | None:
    setting = f"{name}_indices"
    dropped = {whole_number(setting, i, 0, available - 1) for i in np.atleast_1d(indices).tolist()}
    every = whole_number(f"{name}_interleaved", every, 0) or 1
    kept = [i for i in range(0, available, every) if i not in dropped]
    if not kept:
        raise InputError(f"leaves none of {available}", hint="Drop fewer.", setting=setting)
    return torch.tensor(kept, device="cpu") if len(kept) < available else None


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a small CPU tensor to a device, without waiting for CUDA."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
