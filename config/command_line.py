"""Slips of a command line of the form ``[command] with [named config | key=value] …``."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from maest.helpers.errors import InputError
from maest.helpers.names import did_you_mean

FILES = (".json", ".yaml", ".yml", ".pickle")  # of settings


def check_arguments(
    arguments: Sequence[str], commands: Collection[str], named: Collection[str]
) -> None:
    """Raise InputError for what Sacred would take for something else, or not explain.

    A space beside ``=``, an unknown command or named config, a setting or a named config in place
    of a command or before ``with``, and a ``with`` that nothing follows.
    """
    joined: list[str] = []
    slips: list[int] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        if before and (argument[0:1] == "=" or (before.endswith("=") and "=" not in argument)):
            joined[-1] += argument
            slips.append(len(joined) - 1)
        else:
            joined.append(argument)
    # An option may take the word after it: that one is left to Sacred.
    words = [
        word
        for before, word in zip(["", *joined], joined, strict=False)
        if word[0:1] != "-" and (before[0:1] != "-" or word == "with" or "=" in word)
    ]
    first = words[0] if words else "with"
    if first not in {*commands, "with", "help"}:
        raise _no_command(words, commands, named)
    if slips:
        right = joined[slips[0]]
        raise InputError(
            "there is a space beside '='",
            setting=right.partition("=")[0],
            hint=f"Write {right}, without spaces.",
        )
    updates = words[words.index("with") + 1 :] if "with" in words else []
    early = words[1 : -len(updates) - 1] if "with" in words else words[1:]
    if early and first not in ("help", "with"):
        right = " ".join([first, "with", *early, *updates])
        raise InputError("settings come after 'with'", setting=early[0], hint=f"Write '{right}'.")
    if words and words[-1] == "with":
        raise InputError(
            "no setting follows it", setting="with", hint="Leave it out, or add key=value."
        )
    for update in updates:
        if not ("=" in update or update in named or update.endswith(FILES)):
            near = did_you_mean(update, named)
            raise InputError(
                "there is no such named config",
                kind="unknown",
                setting=update,
                hint=f"{near} The command print_named_configs shows all.".lstrip(),
            )


def _no_command(
    words: Sequence[str], commands: Collection[str], named: Collection[str]
) -> InputError:
    first, rest = words[0], [word for word in words[1:] if word != "with"]
    near = difflib.get_close_matches(first, [*commands, *named], 1, 0.5)
    near = [first] if "=" in first else near
    if near and near[0] not in commands:
        command = [word for word in rest if word in commands][:1]
        right = [*command, "with", near[0], *(word for word in rest if word not in command)]
        what, hint = "it is no command: it comes after 'with'", f"Write '{' '.join(right)}'."
    else:
        what = "there is no such command"
        hint = f"{did_you_mean(first, commands)} The commands are: {', '.join(commands)}.".lstrip()
    return InputError(what, kind="unknown", setting=first, hint=hint)
