"""Names, lists of names and values, as people type them and as messages show them."""

import difflib
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from maest.helpers.errors import InputError

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 80, 80, 80
_LISTED = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|\([^)]*\)|[^,])+""")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``."""
    if value not in choices:
        near = did_you_mean(str(value), map(str, choices))
        hint = f"{near} Give one of {', '.join(map(repr, choices))}.".lstrip()
        raise InputError(f"{value!r} is not a choice", kind="unknown", setting=name, hint=hint)


def parse_list(value: Any) -> list[Any]:
    """Return a value, list, or typed ``[a,b]`` as a list; quotes or brackets keep commas."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else [value]
    inner = re.sub(r"^(?:\[(.*)\]|\((.*)\))$", r"\1\2", value.strip(), flags=re.DOTALL)
    parts = (part.strip(" '\"") for part in _LISTED.findall(inner))
    return [part for part in parts if part]


def typed_list(setting: str, values: Sequence[str]) -> str:
    """Return ``setting=[a,b]``, quoted for a shell; :func:`parse_list` reads the names back."""
    quoted = (f'"{value}"' if set(value) & set(",'()[] ") else value for value in values)
    return shlex.quote(f"{setting}=[{','.join(quoted)}]")


def first_few(names: Iterable[str], shown: int = 5) -> str:
    """Return the first names as ``a, b, ...``, for a message."""
    names = list(names)
    return ", ".join(names[:shown]) + ", ..." * (len(names) > shown)


def short_repr(value: object) -> str:
    """Return ``repr(value)``, bounded in length and depth."""
    return _REPR.repr(value)


def printable(text: str) -> str:
    """Return the text with escapes for characters that move a terminal's cursor or are no text.

    Accents join their letters, so that each character takes one column, or two.
    """
    text = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
