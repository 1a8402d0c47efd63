"""Whose embeddings: the blocks of a network, by number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Real
from typing import Any

from maest.helpers.errors import InputError
from maest.helpers.names import listed

FINAL = -1  # the number that stands for the embedding after the final norm
DEFAULT_BLOCK = 7  # the paper's choice


def default_block(depth: int) -> int:
    """The block whose embeddings are taken where nobody says: 7, or a shallow network's last."""
    return min(DEFAULT_BLOCK, depth - 1)


def chosen_blocks(given: Any, depth: int, setting: str = "blocks") -> tuple[int, ...]:
    """The blocks whose embeddings are asked for.

    ``given`` is a block's number from 0, or -1 for the embedding after the final norm; several, as
    any sequence, array or typed list; "all"; or None for the default. InputError: there is no such
    block, or one is named twice.
    """
    if given is None:
        return (default_block(depth),)
    if isinstance(given, str) and given == "all":
        return tuple(range(depth))
    given = given.tolist() if hasattr(given, "tolist") else given  # NumPy's and PyTorch's
    several = isinstance(given, Iterable) and not isinstance(given, str)
    blocks = [_whole(part) for part in (given if several else listed(given))]
    known = [type(block) is int and FINAL <= block < depth for block in blocks]
    if not all(known) or len(set(blocks)) < len(blocks):
        raise InputError(
            f"{given!r} is no choice of this network's blocks",
            kind="invalid",
            hint=f"Give a number from 0 to {depth - 1}, or -1 for the embedding after the final "
            'norm; several, each once, such as [6,7]; or "all".',
            setting=setting,
        )
    return tuple(blocks)


def _whole(part: Any) -> Any:
    """7 of 7, 7.0 and "7"; anything else as it is."""
    if isinstance(part, str) and re.fullmatch(r"-?\d+", part):
        return int(part)
    if isinstance(part, Real) and not isinstance(part, bool) and float(part).is_integer():
        return int(float(part))
    return part
