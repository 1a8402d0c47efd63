"""Checks of a nested configuration against its defaults, and of what was typed to get there."""

from __future__ import annotations

import difflib
import math
import operator
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from maest.helpers.errors import InputError


class Limit(NamedTuple):
    """What the default of a setting does not tell of it.

    Attributes:
        example: a value of its kind, where the default is None or an empty list, or where None may
            stand beside the default; a tuple of values, where it may be of several kinds.
        bounds: of a number, or of each number in a list: the least, or such as "> 0, <= 1".
        choices: the words that it may be.
        length: of a list.
    """

    example: Any = None
    bounds: float | str | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None


_COMPARE = {
    **{">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le},
    "!=": operator.ne,
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the known name nearest to ``name``; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_settings(
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    limits: Mapping[str, tuple] | None = None,
    prefix: str = "",
) -> None:
    """Refuse keys that are not in ``defaults``, at any depth, and values of another kind.

    None is let through where the default is None, or ``limits`` has an example beside the default;
    a whole number where a fraction is the default; NaN and infinity nowhere.

    Args:
        given: the settings.
        defaults: all settings there are, and their kinds.
        limits: by dotted name, what a default does not tell: see `Limit`.
        prefix: of the names of this section.

    Raises:
        InputError: naming the key, what was found, and the nearest key there is.
    """
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key not in defaults:
            # A setting that has its name in another section is meant before a similar one in this.
            elsewhere = [known for known in limits or {} if known.split(".")[-1] == key]
            own_level = [f"{prefix}{known}" for known in defaults]
            where = f" in {prefix[:-1]!r}" if prefix else ""
            raise InputError(
                "there is no such setting",
                kind="unknown",
                setting=name,
                hint=f"{did_you_mean(name, elsewhere or own_level)} The settings{where} are: "
                f"{', '.join(defaults)}.".lstrip(),
            )
        default = defaults[key]
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise InputError(
                    f"it is a section of settings, and {value!r} is a value",
                    setting=name,
                    hint=f"Write {name}.<setting>={value} with one of {', '.join(default)}.",
                )
            check_settings(value, default, limits, f"{name}.")
        else:
            _check_value(name, value, default, Limit(*(limits or {}).get(name, ())))


def _check_value(name: str, value: Any, default: Any, limit: Limit) -> None:
    several = limit.example if isinstance(limit.example, tuple) else ()
    if value is None and (default is None or (limit.example is not None and not several)):
        return
    # An empty list says nothing of what is in it.
    open_ended = default is None or (default == [] and limit.example is not None)
    examples = several or (limit.example if open_ended else default,)
    kinds = [example for example in examples if example is not None]
    if kinds and not any(_same_kind(value, example) for example in kinds):
        expected = ", or ".join(f"{_kind(example)}, such as {example!r}" for example in kinds)
        raise InputError(f"{value!r} does not fit", setting=name, hint=f"Give {expected}.")
    if limit.choices:
        check_choice(name, value, limit.choices)
    if limit.length is not None and len(value) != limit.length:
        raise InputError(
            f"{value!r} has {len(value)} values",
            setting=name,
            hint=f"Give {limit.length}, such as {default or limit.example!r}.",
        )
    bounds = f">= {limit.bounds}" if isinstance(limit.bounds, Real) else limit.bounds
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, Real) and not _within(number, bounds):
            expected = "a finite number" + (f" {bounds.replace(', ', ' and ')}" if bounds else "")
            raise InputError(f"{number} is out of bounds", setting=name, hint=f"Give {expected}.")


def _within(number: Real, bounds: str | None) -> bool:
    parts = (part.split() for part in bounds.split(", ")) if bounds else ()
    return math.isfinite(number) and all(
        _COMPARE[sign](number, float(bound)) for sign, bound in parts
    )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, Integral):
        return "a whole number"
    if isinstance(value, Real):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    return "a section" if isinstance(value, Mapping) else "text" if value is not None else "None"


def _same_kind(value: Any, example: Any) -> bool:
    if isinstance(example, float) and isinstance(value, Integral) and not isinstance(value, bool):
        return True
    if isinstance(example, str) and isinstance(value, Real) and not isinstance(value, bool):
        return math.isfinite(value)  # a folder named 2024 is typed as one and read as a number
    if _kind(value) != _kind(example):
        return False
    return not (isinstance(value, list | tuple) and example) or all(
        _same_kind(part, example[0]) for part in value
    )


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``."""
    if value in choices:
        return
    near = did_you_mean(value, [str(c) for c in choices]) if isinstance(value, str) else ""
    raise InputError(
        f"{value!r} is not a choice",
        kind="unknown",
        setting=name,
        hint=f"Give one of {', '.join(map(repr, choices))}.{near}",
    )


def listed(value: Any) -> list[Any]:
    """A setting that may be one thing or a list; ``[a,b]`` is typed without quotes, too.

    A comma within quotes or within inner brackets is part of a name.
    """
    if isinstance(value, str):
        value = value.strip()
        if value[:1] + value[-1:] in ("[]", "()"):
            value = value[1:-1]
        parts = (part.strip(" '\"") for part in _LISTED.findall(value))
        return [part for part in parts if part]
    return list(value) if isinstance(value, list | tuple) else [value]


_LISTED = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|\([^)]*\)|[^,])+""")


def typed_list(setting: str, values: Sequence[str]) -> str:
    """``setting=[a,b]`` as it is typed in a shell, for names that :func:`listed` reads back."""
    quoted = (f'"{value}"' if set(value) & set(",'()[] ") else value for value in values)
    return shlex.quote(f"{setting}=[{','.join(quoted)}]")


def listed_names(value: Any) -> list[str]:
    """The same, all of it as text: a name may look like a number."""
    return [str(part) for part in listed(value) if str(part)]


def check_arguments(
    arguments: list[str], commands: Collection[str], named_configs: Collection[str]
) -> None:
    """Check a command line (without the program's name) of the form ``[command] with ...``.

    Raises:
        InputError: for a stray space around ``=``, an unknown named config or command, and a named
            config typed where a command belongs.
    """
    slip, arguments = _join_stray_spaces(arguments)
    # An option may take the word after it: that one is left to the experiment's own parser.
    words = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if not argument.startswith("-")
        and (not before.startswith("-") or argument == "with" or "=" in argument)
    ]
    if words and words[0] != "with" and words[0] not in {*commands, "help"}:
        word = words[0]
        near = difflib.get_close_matches(word, [*commands, *named_configs], n=1, cutoff=0.5)
        if "=" in word:
            near = [word]
        later = [w for w in words[1:] if w in commands]
        if "=" in word or (near and near[0] in named_configs):
            what = f"it is {'a setting' if '=' in word else 'a named config'}, not a command"
            if near[0] != word:
                what = f"there is no such command, and {near[0]!r} is a named config"
            updates = [w for w in words[1:] if w != "with" and w not in later]
            right = " ".join([*later[:1], "with", near[0], *updates])
            raise InputError(what, kind="unknown", setting=word, hint=f"Write '{right}'.")
        raise InputError(
            "there is no such command",
            kind="unknown",
            setting=word,
            hint=f"{did_you_mean(word, [*commands, *named_configs])} "
            f"The commands are: {', '.join(commands)}.".lstrip(),
        )
    if slip:
        raise slip
    early = words[1 : words.index("with")] if "with" in words else words[1:]
    if early and words[0] != "help":
        right = " ".join([words[0], "with", *(word for word in words[1:] if word != "with")])
        raise InputError("settings come after 'with'", setting=early[0], hint=f"Write '{right}'.")
    if words and words[-1] == "with":
        raise InputError(
            "no setting follows it",
            setting="with",
            hint="Leave it out, or give settings after it: key=value.",
        )
    if "with" in words:
        for update in words[words.index("with") + 1 :]:
            if "=" not in update:
                check_named_config(update, named_configs)


def _join_stray_spaces(arguments: list[str]) -> tuple[InputError | None, list[str]]:
    """The error of the first ``key =value`` or ``key= value``, and all of them joined."""
    slip, joined, i = None, [], 0
    while i < len(arguments):
        argument = arguments[i]
        if argument.startswith("="):
            key = joined.pop() if joined else "key"
            if not argument[1:] and i + 1 < len(arguments):
                i += 1
            value = argument[1:] or arguments[i].removeprefix("=") or "value"
            joined.append(f"{key}={value}")
            slip = slip or InputError(
                f"there is a space before '=' in '{key} {argument}'",
                setting=key,
                hint=f"Write {joined[-1]}, without spaces.",
            )
        elif argument.endswith("=") and i + 1 < len(arguments) and "=" not in arguments[i + 1]:
            joined.append(argument + arguments[i + 1])
            slip = slip or InputError(
                f"there is a space after {argument!r}",
                setting=argument.removesuffix("="),
                hint=f"Write {joined[-1]}, without spaces (or {argument}'' for an empty value).",
            )
            i += 1
        else:
            joined.append(argument)
        i += 1
    return slip, joined


def check_named_config(name: str, named_configs: Collection[str]) -> None:
    """Raise InputError unless ``name`` is a named config, or a file of settings."""
    if name in named_configs or name.endswith((".json", ".yaml", ".yml", ".pickle")):
        return
    raise InputError(
        "there is no such named config",
        kind="unknown",
        setting=name,
        hint=f"{did_you_mean(name, named_configs)} The command print_named_configs shows all, "
        "and a setting is written key=value.".lstrip(),
    )
