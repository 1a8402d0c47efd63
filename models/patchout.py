"""Patchout: the blocks get a part of the patches (K. Koutini et al., Interspeech 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maest.helpers.errors import InputError
from maest.models.sizes import STRIDE, Sizes, grid_size, whole_number

_LEAST_SHARE = 0.05  # patchout that leaves less of a clip's patches is a slip


class Patchout(nn.Module):
    """Drop patches, the same ones for a whole batch.

    Args:
        s_patchout_t, s_patchout_f: time columns and frequency rows dropped at random in training.
        u_patchout: single patches dropped at random in training.
        s_patchout_t_indices, s_patchout_f_indices: columns and rows that are always dropped, by
            number; columns that a short input does not have are no error.
        s_patchout_t_interleaved, s_patchout_f_interleaved: keep only every k-th column or row.

    Attributes:
        dropped: how many are dropped at random, by argument.
        kept_columns, kept_rows: numbers of those that are not always dropped; None for all.

    Raises:
        InputError: a value is out of bounds, or too few patches are left.
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
        self.dropped = {
            "s_patchout_t": whole_number("s_patchout_t", s_patchout_t, 0, columns - 1),
            "s_patchout_f": whole_number("s_patchout_f", s_patchout_f, 0, self.rows - 1),
            "u_patchout": whole_number("u_patchout", u_patchout, 0, self.rows * columns - 1),
        }
        positions = sizes.input_t // STRIDE  # as many as a whole clip's columns, or one more
        t = s_patchout_t_indices, s_patchout_t_interleaved
        f = s_patchout_f_indices, s_patchout_f_interleaved
        self.kept_columns = _kept("s_patchout_t", positions, *t)
        self.kept_rows = _kept("s_patchout_f", self.rows, *f)
        left = self.n_patches(columns, training=True)
        if left < max(1, _LEAST_SHARE * self.rows * columns):
            raise InputError(
                f"patchout leaves {max(0, left)} of a clip's {self.rows * columns} patches",
                hint="Lower s_patchout_t, s_patchout_f, u_patchout or what is always dropped, or "
                "use longer clips.",
                setting="s_patchout_t",
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, F rows, T columns] → [B, D, N]: the patches that stay, frequency-major."""
        random = self.training and any(self.dropped.values())
        if self.kept_columns is None and self.kept_rows is None and not random:
            return x.flatten(2)
        rows, columns = x.shape[2:]
        t = self._select("s_patchout_t", columns, self.kept_columns)
        f = self._select("s_patchout_f", rows, self.kept_rows)
        grid = torch.arange(rows * columns).view(rows, columns)[f][:, t].flatten()
        grid = grid[self._select("u_patchout", len(grid), None)]
        return x.flatten(2).index_select(2, on_device(grid, x.device))

    def n_patches(self, columns: int, training: bool) -> int:
        """How many patches stay of an input of so many columns; below 1 where none does."""
        t = columns if self.kept_columns is None else int((self.kept_columns < columns).sum())
        f = self.rows if self.kept_rows is None else len(self.kept_rows)
        fewer_t, fewer_f, fewer = self.dropped.values() if training else (0, 0, 0)
        return max(0, t - fewer_t) * max(0, f - fewer_f) - fewer

    def _select(self, name: str, available: int, kept: Tensor | None) -> Tensor:
        """Which of ``available`` positions stay, sorted: the kept ones, less the random ones."""
        indices = torch.arange(available) if kept is None else kept[kept < available]
        dropped = self.dropped[name] if self.training else 0
        if len(indices) <= dropped:
            raise InputError(
                f"drops {dropped} of the {len(indices)} that are left of {available}",
                hint=f"Lower {name}, or use longer clips.",
                setting=name,
            )
        return indices[torch.randperm(len(indices))[dropped:].sort().values] if dropped else indices


def _kept(name: str, available: int, indices: Any, every: Any) -> Tensor | None:
    indices = indices if isinstance(indices, Sequence | np.ndarray) else [indices]
    dropped = {whole_number(f"{name}_indices", i, 0, available - 1) for i in indices}
    every = whole_number(f"{name}_interleaved", every, 0) or 1
    kept = [i for i in range(0, available, every) if i not in dropped]
    if not kept:
        hint = "Drop fewer of them."
        raise InputError(f"leaves none of {available}", hint=hint, setting=f"{name}_indices")
    return torch.tensor(kept, device="cpu") if len(kept) < available else None


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a small tensor from the CPU to a device; the host does not wait for a CUDA device."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
