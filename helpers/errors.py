"""The error that a user can mend, and what errors say."""

from pathlib import Path
from typing import Literal

Kind = Literal[
    "missing",  # a file, key or setting that is needed is not there
    "empty",  # nothing to work on: no tracks, no labels, no samples
    "unknown",  # a name that nothing has; the hint says the nearest one
    "invalid",  # a value of the wrong type, out of bounds, or in the wrong format
    "conflict",  # two things that do not go together
    "mismatch",  # made by another model, version or settings than the present ones
    "corrupt",  # a damaged or truncated file
    "unsupported",  # a known format or feature that cannot be used here
    "exists",  # the target holds something that this program did not make
    "access",  # permissions, a read-only or full disk
    "network",  # a download that failed
    "worker",  # a worker process that crashed or hung
    "diverged",  # a training whose numbers are NaN or infinite
    "dependency",  # a package that is not installed
]


class InputError(ValueError):
    """A file, key or value that was given cannot be used; scripts print the error as one line.

    ``message`` says what is wrong, without the place and a full stop; ``kind`` classifies the fault
    for callers; ``hint`` says what to do, as a sentence; ``path`` and ``setting`` are at fault.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Kind = "invalid",
        hint: str = "",
        path: str | Path | None = None,
        setting: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.kind, self.hint = message, kind, hint
        self.path, self.setting = path, setting

    @property
    def reason(self) -> str:
        """Message and hint without the place, for tables with a column of files."""
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.setting, self.path, self.reason) if part)


def first_cause(error: BaseException) -> BaseException:
    """Return the innermost cause: of the errors that libraries wrap, it says most."""
    while following := error.__cause__ or error.__context__:
        error = following
    return error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
