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
        sizes: of the network.
        s_patchout_t, s_patchout_f: time columns and frequency rows dropped at random in training.
        u_patchout: single patches dropped at random in training.
        s_patchout_t_indices, s_patchout_f_indices: columns and rows that are always dropped, by
            number; columns that a short input does not have are no error.
        s_patchout_t_interleaved, s_patchout_f_interleaved: keep only every k-th column or row.

    Raises:
        InputError: a value is out of bounds, or too few patches are left; its ``setting`` is the
            argument's name.
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
        self.rows = rows = grid_size(sizes.input_f)
        columns = grid_size(sizes.input_t)
        positions = sizes.input_t // STRIDE  # as many as a whole clip's columns, or one more
        self.dropped = {
            "s_patchout_t": whole_number("s_patchout_t", s_patchout_t, 0, columns - 1),
            "s_patchout_f": whole_number("s_patchout_f", s_patchout_f, 0, rows - 1),
            "u_patchout": whole_number("u_patchout", u_patchout, 0, rows * columns - 1),
        }
        self.kept_columns = _kept(
            "s_patchout_t", positions, s_patchout_t_indices, s_patchout_t_interleaved
        )
        self.kept_rows = _kept("s_patchout_f", rows, s_patchout_f_indices, s_patchout_f_interleaved)
        left = self.n_patches(columns, training=True)
        if left < max(1, _LEAST_SHARE * rows * columns):
            raise InputError(
                f"patchout leaves {max(0, left)} of a clip's {rows * columns} patches",
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
        """How many patches stay of an input of so many columns: below 1 where none does."""
        t = columns if self.kept_columns is None else int((self.kept_columns < columns).sum())
        f = self.rows if self.kept_rows is None else len(self.kept_rows)
        if not training:
            return t * f
        t, f = max(0, t - self.dropped["s_patchout_t"]), max(0, f - self.dropped["s_patchout_f"])
        return t * f - self.dropped["u_patchout"]

    def _select(self, name: str, available: int, kept: Tensor | None) -> Tensor:
        """Which of ``available`` positions stay, sorted: the kept ones, less the random ones."""
        indices = torch.arange(available) if kept is None else kept[kept < available]
        dropped = self.dropped[name] if self.training else 0
        if len(indices) <= dropped:
            raise InputError(
                f"it leaves nothing of an input with {available} positions: {len(indices)} are "
                f"kept, and {dropped} of them are to be dropped at random",
                hint=f"Lower {name}, or use longer clips.",
                setting=name,
            )
        return indices[torch.randperm(len(indices))[dropped:].sort().values] if dropped else indices


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a small tensor from the CPU to a device; the host does not wait for a CUDA device."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _kept(name: str, available: int, indices: Any, every: Any) -> Tensor | None:
    """The columns or rows that are not always dropped, sorted; None for all of them."""
    indices = indices if isinstance(indices, Sequence | np.ndarray) else [indices]
    dropped = {whole_number(f"{name}_indices", i, 0, available - 1) for i in indices}
    every = whole_number(f"{name}_interleaved", every, 0) or 1
    kept = [i for i in range(0, available, every) if i not in dropped]
    if not kept:
        raise InputError(
            f"with {name}_interleaved, it leaves nothing of {available}",
            hint="Drop fewer of them.",
            setting=f"{name}_indices",
        )
    return torch.tensor(kept, device="cpu") if len(kept) < available else None
