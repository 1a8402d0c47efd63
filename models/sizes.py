"""The sizes of a network: what `Maest` is built of, and what a model folder keeps of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from maest.helpers.errors import InputError
from maest.helpers.mel_constants import N_MELS, NORM_MEAN, NORM_STD
from maest.helpers.patches import PATCH_SIZE

STRIDE = 10  # frames and bands from one patch to the next
DISTILLED_TYPES = ("mean", "separated")
# Any number of labels (sigmoid), exactly one label (softmax), or C real values.
TASKS = ("multi-label", "single-label", "regression")


def grid_size(size: int) -> int:
    """How many patches the strided convolution makes of ``size`` bands or frames."""
    return (size - PATCH_SIZE) // STRIDE + 1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shape, the normalisation and the heads of a network.

    Raises:
        InputError: a value has another type, is out of bounds, or contradicts another; its
            ``setting`` is the attribute's name.
    """

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
        for name, choices in (("task", TASKS), ("distilled_type", DISTILLED_TYPES)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{getattr(self, name)!r} is unknown",
                    kind="unknown",
                    hint=f"Choose from {', '.join(choices)}.",
                    setting=name,
                )
        for name in ("n_classes", "input_t", "input_f", "embed_dim", "depth", "num_heads"):
            least = PATCH_SIZE if name in ("input_t", "input_f") else 1
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.embed_dim % self.num_heads:
            raise InputError(
                f"{self.num_heads} heads do not divide {self.embed_dim} channels",
                kind="conflict",
                hint="Give heads of 64 channels, as is usual.",
                setting="num_heads",
            )
        for name in ("mlp_ratio", "head_eps", "norm_std", "norm_mean"):
            value = getattr(self, name)
            if not math.isfinite(value) or (value <= 0 and name != "norm_mean"):
                above = "" if name == "norm_mean" else " above 0"
                raise InputError(
                    f"{value} is out of bounds", hint=f"Give a number{above}.", setting=name
                )
        if self.target_mean is None and self.target_std is None:
            return
        means, stds = self.target_mean or (), self.target_std or ()
        lengths = {len(means), len(stds)}
        if self.task != "regression" or lengths != {self.n_classes} or not min(stds) > 0:
            raise InputError(
                f"found {len(means)} means and {len(stds)} deviations, for {self.task}",
                kind="conflict",
                hint=f"They are for regression, {self.n_classes} values each, and deviations above "
                "0. Give both or none.",
                setting="target_mean",
            )
        object.__setattr__(self, "target_mean", [float(value) for value in means])
        object.__setattr__(self, "target_std", [float(value) for value in stds])


SIZE_NAMES = tuple(field.name for field in fields(Sizes))


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number, NumPy's too, as an int; a truth value is none.

    Raises:
        InputError: it is no whole number, or out of bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most and number > most):
        raise InputError(
            f"{value!r} is no whole number" if number is None else f"{value!r} is out of bounds",
            hint=f"Give {least}{' or more' if most is None else f' to {most}'}.",
            setting=name,
        )
    return number
