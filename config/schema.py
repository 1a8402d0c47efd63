"""Settings, each declared once: type, default, bounds, what it is, and who takes it.

A section is a frozen dataclass whose fields are settings, or sections. From it come Sacred's
defaults, the check of what was typed, and the reference.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import reduce
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


def setting(
    default: Any,
    meaning: str,
    bounds: str = "",
    *,
    auto: str = "",
    only: str = "",
    tags: str = "",
) -> Any:
    """A field of a section; a derived section may declare it again with a default alone.

    Args:
        bounds: of a number, or of each number in a list: ">= 0, < 1". Upper ones end a run that
            memory or time would end without a word on why.
        auto: how it is worked out where it is None, which may be typed as ``auto``, too.
        only: ``section.name=value``, without which it has no effect and is refused.
        tags: words out of free (a training that is continued may change it), ours (of section
            ``trainer``, not Lightning's), results (of an extraction, which depend on it), swept
            (chosen by ``sweep``), training (no effect elsewhere), weights (which weights, not
            which network).
    """
    about: dict[str, Any] = {"meaning": meaning, "bounds": bounds, "auto": auto, "only": only}
    about |= {"tags": frozenset(tags.split())}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Setting:
    """A setting's declaration; ``kind`` is its type."""

    name: str  # with its sections: module.lr
    kind: Any
    default: Any
    meaning: str
    bounds: str
    auto: str
    only: str
    tags: frozenset[str]

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
        numbers = converted if isinstance(converted, tuple) else (converted,)
        if converted is not _UNFIT and all(_within(number, self.bounds) for number in numbers):
            return converted
        choices = _choices(self.kind) if isinstance(value, str) else []
        raise InputError(
            f"{value!r} does not fit",
            kind="unknown" if choices else "invalid",
            setting=self.name,
            hint=f"Give {self.values()}.{did_you_mean(str(value), choices)}",
        )


def settings_of(section: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a section, at any depth."""
    kinds = get_type_hints(section)
    for known in fields(section):
        name, kind = prefix + known.name, kinds[known.name]
        if is_dataclass(kind):
            yield from settings_of(kind, f"{name}.")  # type: ignore[arg-type]
            continue
        bases = (vars(base).get("__dataclass_fields__", {}) for base in section.__mro__)
        declared = next(f for base in bases if (f := base.get(known.name)) and f.metadata)
        yield Setting(name, kind, known.default, **declared.metadata)


def tagged(section: type, tag: str) -> set[str]:
    """The names of a section's settings with this tag."""
    return {known.name for known in settings_of(section) if tag in known.tags}


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
            type, out of bounds, not among the choices, NaN or infinite; one without effect.
    """
    all_ = {known.name: known for known in settings_of(section)}
    parsed = _parse(section, given, "", all_)
    for known in all_.values():
        condition, _, value = known.only.partition("=")
        if not condition or _value(parsed, known.name) == known.default:
            continue
        if str(actual := _value(parsed, condition)) != value:
            raise InputError(
                f"has no effect with {condition}={actual}",
                kind="conflict",
                setting=known.name,
                hint=f"Leave it out, or set {known.only}.",
            )
    return parsed


def _value(settings: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), settings)


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


def _within(value: Any, bounds: str) -> bool:
    """Whether a number is finite and within its bounds; anything else is."""
    if type(value) not in (int, float):
        return True
    pairs = [bound.split() for bound in bounds.split(", ")] if bounds else []
    return (isinstance(value, int) or math.isfinite(value)) and all(
        _COMPARE[sign](value, float(limit)) for sign, limit in pairs
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
