"""Settings, each declared once: type, default, bounds and what it is.

A section is a frozen dataclass whose fields are settings, or sections. From it come Sacred's
defaults, the check of what was typed, and the reference.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from maest.helpers.errors import InputError
from maest.helpers.names import did_you_mean, listed

S = TypeVar("S")
_UNFIT = object()
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE |= {"!=": operator.ne}
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def setting(default: Any, meaning: str, bounds: str = "", *, auto: str = "") -> Any:
    """A field of a section.

    ``bounds`` are of a number, or of each number in a list: ">= 0, < 1". Upper ones end a run that
    memory or time would end without a word on why. ``auto`` is how the value is worked out where
    the setting is None, which may be typed as ``auto``, too.
    """
    return field(default=default, metadata={"meaning": meaning, "bounds": bounds, "auto": auto})


@dataclass(frozen=True)
class Setting:
    """What is known of one setting; ``kind`` is its type."""

    name: str  # with its sections: module.lr
    kind: Any
    default: Any
    meaning: str
    bounds: str
    auto: str

    def sentence(self) -> str:
        """What it is, and how it is worked out."""
        return f"{self.meaning}; auto: {self.auto}" if self.auto else self.meaning

    def values(self) -> str:
        """What it may be, in words."""
        return f"{describe(self.kind)} {self.bounds}".rstrip()

    def read(self, value: Any) -> Any:
        """``value``, as it was typed, in the setting's type. Raises InputError."""
        if self.auto and value == "auto":
            return None
        converted = _convert(value, self.kind)
        if converted is _UNFIT:
            near = did_you_mean(value, _choices(self.kind)) if isinstance(value, str) else ""
            raise InputError(
                f"{value!r} does not fit",
                kind="unknown" if isinstance(value, str) and _choices(self.kind) else "invalid",
                setting=self.name,
                hint=f"Give {self.values()}.{near}",
            )
        for number in converted if isinstance(converted, tuple) else (converted,):
            if type(number) in (int, float) and not _within(number, self.bounds):
                raise InputError(
                    f"{number} is out of bounds", setting=self.name, hint=f"Give {self.values()}."
                )
        return converted


def settings_of(section: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a section, at any depth."""
    kinds = get_type_hints(section)
    for known in fields(section):
        name, kind = prefix + known.name, kinds[known.name]
        if is_dataclass(kind):
            yield from settings_of(kind, f"{name}.")  # type: ignore[arg-type]
        else:
            yield Setting(name, kind, known.default, **known.metadata)


def plain(value: Any) -> Any:
    """A section, or a setting's value, as Sacred and JSON take it."""
    if is_dataclass(value):
        return {known.name: plain(getattr(value, known.name)) for known in fields(value)}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def parse(section: type[S], given: Mapping[str, Any]) -> S:
    """A section of plain data: checked, in its types, and with defaults where nothing is given.

    A whole number is taken for a fraction, a number for text (a folder named 2024), one thing for a
    list of one, and ``[a,b]`` without quotes for a list.

    Raises:
        InputError: for a key that does not exist, with the nearest that does; a value of another
            type, out of bounds or not among the choices; NaN and infinity.
    """
    return _parse(section, given, "", {known.name: known for known in settings_of(section)})


def _parse(section: type[S], given: Mapping[str, Any], prefix: str, all_: dict[str, Setting]) -> S:
    kinds, values = get_type_hints(section), {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            # A setting that has its name in another section is meant before a similar one in this.
            elsewhere = [known for known in all_ if known.split(".")[-1] == key]
            near = did_you_mean(name, elsewhere or [f"{prefix}{known}" for known in kinds])
            where = f" in {prefix[:-1]!r}" if prefix else ""
            raise InputError(
                "there is no such setting",
                kind="unknown",
                setting=name,
                hint=f"{near} The settings{where} are: {', '.join(kinds)}.".lstrip(),
            )
        if not is_dataclass(kinds[key]):
            values[key] = all_[name].read(value)
        elif isinstance(value, Mapping):
            values[key] = _parse(kinds[key], value, f"{name}.", all_)
        else:
            raise InputError(
                f"it is a section of settings, and {value!r} is a value",
                setting=name,
                hint=f"Write {name}.<setting>={value}, with one of "
                f"{', '.join(get_type_hints(kinds[key]))}.",
            )
    return section(**values)


def _convert(value: Any, kind: Any) -> Any:
    """``value`` in the type ``kind``, or _UNFIT."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return next((v for v in (_convert(value, p) for p in parts) if v is not _UNFIT), _UNFIT)
    if origin is Literal:
        return value if isinstance(value, str) and value in parts else _UNFIT
    if origin is tuple:
        return _convert_list(value, parts)
    if kind is float and type(value) is int and abs(value) < 1e300:
        return float(value)
    if kind is str and (type(value) is int or (type(value) is float and math.isfinite(value))):
        return str(value)
    return value if type(value) is kind else _UNFIT


def _convert_list(value: Any, parts: tuple[Any, ...]) -> Any:
    if value is None or isinstance(value, Mapping):
        return _UNFIT
    if isinstance(value, str):
        value = [int(part) if _WHOLE.fullmatch(part) else part for part in listed(value)]
    items = list(value) if isinstance(value, list | tuple) else [value]
    kinds = [parts[0]] * len(items) if parts[-1] is ... else parts
    if len(items) != len(kinds):
        return _UNFIT
    converted = tuple(map(_convert, items, kinds))
    return _UNFIT if any(part is _UNFIT for part in converted) else converted


def _within(number: float, bounds: str) -> bool:
    pairs = [bound.split() for bound in bounds.split(", ")] if bounds else []
    return (isinstance(number, int) or math.isfinite(number)) and all(
        _COMPARE[sign](number, float(limit)) for sign, limit in pairs
    )


def _choices(kind: Any) -> list[str]:
    """The words that are choices, at any depth of a type."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for part in get_args(kind) for word in _choices(part)]


def describe(kind: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a list: {'' if parts[-1] is ... else f'{len(parts)} times '}{describe(parts[0])}"
    return _WORDS[kind]
