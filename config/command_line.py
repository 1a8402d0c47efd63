"""Check a command line of the form ``[command] with [named config | key=value] …``."""

import difflib
from collections.abc import Collection, Sequence
from itertools import pairwise, zip_longest

from maest.helpers.errors import InputError
from maest.helpers.names import did_you_mean

FILES = (".json", ".yaml", ".yml")  # of settings
_NETWORKS = ("maest", "discogs", "passt")  # how their names begin


def check_arguments(
    arguments: Sequence[str], commands: Collection[str], named: Collection[str]
) -> None:
    """Raise InputError for what Sacred would misread, or refuse without an explanation.

    Spaces beside ``=``, unknown words, settings before ``with``, and a ``with`` without settings.
    """
    joined, spaced = [""], ""
    for argument in arguments:
        if argument[0:1] == "=" or (joined[-1][-1:] == "=" and "=" not in argument):
            spaced = joined[-1] = joined[-1] + argument
        else:
            joined.append(argument)
    # An option may take the next word, which is left to Sacred.
    words = [
        word
        for before, word in pairwise(joined)
        if word[0:1] != "-" and (before[0:1] != "-" or word == "with" or "=" in word)
    ]
    if words[:1] == ["help"]:
        return
    command = [word for word in words if word in commands][:1]
    settings = [word for word in words if word not in (*command, "with")]
    right = [*command, *(["with", *settings] if settings else [])]
    for word in settings:
        if "=" not in word and word not in named and not word.endswith(FILES):
            raise _unknown(word, word == words[0], right, commands, named)
    if spaced:
        name, hint = spaced.partition("=")[0], f"Write {spaced}, without spaces."
        raise InputError("there is a space beside '='", setting=name, hint=hint)
    for word, other in zip_longest(words, right):
        if word != other:
            line = f"Write '{' '.join(right)}'." if right else "Leave it out."
            message = "expected a command, then 'with', then settings"
            raise InputError(message, setting=word, hint=line)


def _unknown(
    word: str, first: bool, right: list[str], commands: Collection[str], named: Collection[str]
) -> InputError:
    near, hint = did_you_mean(word, named), "The command print_named_configs shows all."
    if first:
        found = difflib.get_close_matches(word, [*commands, *named], 1, 0.5)
        near, hint = did_you_mean(word, found), f"Commands: {', '.join(commands)}."
        if found and found[0] in named:
            line = " ".join(found[0] if other == word else other for other in right)
            near, hint = "", f"Named configs come after 'with': write '{line}'."
    elif word.startswith(_NETWORKS) and any(name.startswith(_NETWORKS) for name in named):
        near, hint = "", f"A network is named by maest.arch={word}. {hint}"
    message = f"there is no such {'command' if first else 'named config'}"
    return InputError(message, kind="unknown", setting=word, hint=f"{near} {hint}".lstrip())
