"""Slips of a command line of the form ``[command] with [named config | key=value] …``."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from maest.helpers.errors import InputError
from maest.helpers.names import did_you_mean


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
