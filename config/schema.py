"""Settings as fields of frozen dataclasses: the source of defaults, checks and reference."""

import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from maest.helpers.errors import InputError, Kind
from maest.helpers.names import did_you_mean, parse_list

S = TypeVar("S")
_UNFIT = object()
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE |= {"!=": operator.ne}
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def setting(default: Any, meaning: str, bounds: str = "", *, only: str = "", tags: str = "") -> Any:
    """Declare a field of a section; a subclass may declare it again with a default alone.

    ``meaning`` describes the setting; "auto: …" in it says how a None is worked out, and allows the
    value ``auto``. ``bounds`` limit a number, or each number of a list: ">= 0, < 1"; upper bounds
    refuse runs that memory or time would end without a reason. ``only``, as ``section.name=value``,
    is the condition without which the setting has no effect and is refused. ``tags`` are words:
    free (may change when a training is continued), ours (in section ``trainer``, but not
    Lightning's), results (extraction's results depend on it), swept (chosen by ``sweep``), training
    (no effect elsewhere), weights (selects weights, not a network).
    """
    about = {"meaning": meaning, "bounds": bounds, "only": only, "tags": frozenset(tags.split())}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Setting:
    """A setting's declaration; ``kind`` is its type."""

    name: str  # with its sections: module.lr
    kind: Any
    default: Any
    meaning: str
    bounds: str
    only: str
    tags: frozenset[str]

    @property
    def auto(self) -> bool:
        """Whether None means that the value is worked out."""
        return self.default is None and "auto: " in self.meaning

    def values(self) -> str:
        """Return the allowed values in words."""
        return f"{_describe(self.kind)} {self.bounds}".rstrip()

    def read(self, value: Any) -> Any:
        """Convert a typed ``value`` to the setting's type. Raises InputError."""
        if self.auto and value == "auto":
            return None
        converted = _convert(value, self.kind)
        numbers = converted if isinstance(converted, tuple) else (converted,)
        if converted is not _UNFIT and all(_within(number, self.bounds) for number in numbers):
            return converted
        choices = _choices(self.kind) if isinstance(value, str) else []
        kind: Kind = "unknown" if choices else "invalid"
        hint = f"Give {self.values()}.{did_you_mean(str(value), choices)}"
        raise InputError(f"{value!r} does not fit", kind=kind, setting=self.name, hint=hint)


def settings_of(section: type, prefix: str = "") -> Iterator[Setting]:
    """Yield all settings of a section, at any depth."""
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
    """Return the names of a section's settings with this tag."""
    return {known.name for known in settings_of(section) if tag in known.tags}


def plain(value: Any) -> Any:
    """Return a section, or a setting's value, as plain data for Sacred and JSON."""
    if is_dataclass(value):
        return {known.name: plain(getattr(value, known.name)) for known in fields(value)}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def parse(section: type[S], given: Mapping[str, Any]) -> S:
    """Build a section from plain data: checked, converted, with defaults for missing settings.

    Accepts a whole number for a fraction, a number for text (a folder named 2024), one value for a
    list of one, and ``[a,b]`` without quotes. InputError: unknown key, with the nearest known one;
    wrong type; out of bounds; not a choice; NaN or infinite; without effect.
    """
    all_ = {known.name: known for known in settings_of(section)}
    values = {name: known.default for name, known in all_.items()}
    for name, value in _flat(given, all_):
        if name not in all_:
            raise _unknown(name, value, list(all_))
        values[name] = all_[name].read(value)
    for name, known in all_.items():
        condition, _, value = known.only.partition("=")
        if condition and values[name] != known.default and str(values[condition]) != value:
            message = f"has no effect with {condition}={values[condition]}"
            hint = f"Leave it out, or set {known.only}."
            raise InputError(message, kind="conflict", setting=name, hint=hint)
    return _build(section, values)


def _flat(
    given: Mapping[str, Any], all_: Mapping[str, Setting], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each setting; a setting's value may be a mapping."""
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in all_:
            yield from _flat(value, all_, f"{name}.")
        else:
            yield name, value


def _unknown(name: str, value: Any, names: list[str]) -> InputError:
    if inside := [known for known in names if known.startswith(f"{name}.")]:
        message = f"it is a section of settings, and {value!r} is a value"
        hint = f"Write {name}.<setting>={value}, with one of {', '.join(inside)}."
        return InputError(message, setting=name, hint=hint)
    section, dot, key = name.rpartition(".")
    level = [known for known in names if known.startswith(section + dot)]
    if not level:
        section, dot, level = "", "", names
    # The same name in another section is likelier than a similar name in this one.
    elsewhere = [known for known in names if known.rpartition(".")[2] == key]
    where = f" in {section!r}" if section else ""
    keys = dict.fromkeys(known.removeprefix(section + dot).partition(".")[0] for known in level)
    near = did_you_mean(name, elsewhere or level)
    hint = f"{near} The settings{where} are: {', '.join(keys)}.".lstrip()
    return InputError("there is no such setting", kind="unknown", setting=name, hint=hint)


def _build(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    arguments = {}
    for name, kind in get_type_hints(section).items():
        key = f"{prefix}{name}"
        section_ = isinstance(kind, type) and is_dataclass(kind)
        arguments[name] = _build(kind, values, f"{key}.") if section_ else values[key]
    return section(**arguments)


def _convert(value: Any, kind: Any) -> Any:
    """Return ``value`` in the type ``kind``, or _UNFIT."""
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
        value = [int(part) if _WHOLE.fullmatch(part) else part for part in parse_list(value)]
    items = list(value) if isinstance(value, list | tuple) else [value]
    kinds = [parts[0]] * len(items) if parts[-1] is ... else parts
    if len(items) != len(kinds):
        return _UNFIT
    converted = tuple(map(_convert, items, kinds))
    return _UNFIT if _UNFIT in converted else converted


def _within(value: Any, bounds: str) -> bool:
    """Return whether a number is finite and within its bounds; True for anything else."""
    if type(value) not in (int, float):
        return True
    pairs = [bound.split() for bound in bounds.split(", ")] if bounds else []
    return (isinstance(value, int) or math.isfinite(value)) and all(
        _COMPARE[sign](value, float(limit)) for sign, limit in pairs
    )


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for part in get_args(kind) for word in _choices(part)]


def _describe(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_describe(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a list: {'' if parts[-1] is ... else f'{len(parts)} times '}{_describe(parts[0])}"
    return _WORDS[kind]
