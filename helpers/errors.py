"""The error that a user can mend."""


class InputError(ValueError):
    """Something that was given — a file, a key, a value — cannot be used.

    The message names it, says what was expected, and what to do next: the scripts print the message
    alone, without a traceback.
    """
