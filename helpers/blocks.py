"""Choice of the blocks of a network that give embeddings."""

import re
from collections.abc import Iterable
from numbers import Real
from typing import Any

from maest.helpers.errors import InputError
from maest.helpers.names import parse_list

FINAL = -1  # the number that stands for the embedding after the final norm
DEFAULT_BLOCK = 7  # the paper's choice


def chosen_blocks(given: Any, depth: int, setting: str = "blocks") -> tuple[int, ...]:
    """Return the numbers of the chosen blocks in a network of ``depth`` blocks.

    ``given`` is a number from 0, or -1 for the embedding after the final norm; several, as any
    sequence, array or typed list; "all"; or None for block 7, or a shallow network's last.
    Raises InputError if there is no such block, or one is named twice.
    """
    if given is None:
        return (min(DEFAULT_BLOCK, depth - 1),)
    if isinstance(given, str) and given == "all":
        return tuple(range(depth))
    given = given.tolist() if hasattr(given, "tolist") else given  # NumPy's and PyTorch's
    several = isinstance(given, Iterable) and not isinstance(given, str)
    blocks = [_whole(part) for part in (given if several else parse_list(given))]
    if not set(blocks) <= {FINAL, *range(depth)} or len(set(blocks)) < len(blocks):
        hint = f"Give a number from 0 to {depth - 1}, or -1 for the embedding after the final "
        hint += 'norm; several, each once, such as [6,7]; or "all".'
        raise InputError(f"{given!r} is not a choice of blocks", hint=hint, setting=setting)
    return tuple(blocks)


def _whole(part: Any) -> Any:
    """Return 7 for 7, 7.0 and "7"; for anything else its ``repr``."""
    if isinstance(part, Real) and not isinstance(part, bool) and float(part).is_integer():
        return int(float(part))
    return int(part) if re.fullmatch(r"-?\d+", str(part)) else repr(part)
