"""Licences of weights: what is made from weights keeps their licence, unless it is permissive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maest.helpers.errors import InputError

# SPDX identifiers of licences that let others choose their own for what they make of a work
_PERMISSIVE = (
    *("Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib"),
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"),
)
_BY_KEY = {name.lower(): name for name in _PERMISSIVE}


def canonical(licence: str) -> str:
    """An SPDX identifier as it is spelt: "cc by-nc 4.0" → "CC-BY-NC-4.0"."""
    key = "-".join(licence.replace("_", " ").replace("-", " ").split()).lower()
    return _BY_KEY.get(key, key.upper())


def inherited(licence: str | None) -> str | None:
    """The licence that weights with this one pass on to what is trained from them."""
    return None if licence is None or canonical(licence) in _PERMISSIVE else canonical(licence)


def chosen(wanted: str | None, licence: str | None) -> str | None:
    """The licence of exported weights: the one that is asked for, or else their own.

    Raises:
        InputError: another one is asked for, and their own does not allow that.
    """
    if wanted is None or not wanted.strip():
        return licence
    wanted = canonical(wanted)
    binding = inherited(licence)
    if binding not in (None, wanted):
        raise InputError(
            f"the weights are {binding}: they cannot be relicensed as {wanted}",
            kind="conflict",
            hint="Leave export.licence out.",
            setting="export.licence",
        )
    return wanted


def parents(name: str | None, trained_on: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Whom weights descend from, ``{"name": …, "licence": …}`` each, the nearest first.

    ``name`` is of the model that a training starts from, ``trained_on`` what is known of it.
    """
    older = trained_on.get("parents")
    rows = [row for row in older if isinstance(row, dict)] if isinstance(older, list) else []
    return [{"name": name, "licence": trained_on.get("licence")}, *rows]
