"""Shared by the scripts of this folder: signals, exit codes and one-line errors."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import print_any_name

SHOWN = 5  # of a list, in a message


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a command."""

    done: int = 0  # items made now
    skipped: int = 0  # items that were whole before
    failed: dict[str, str] = field(default_factory=dict)  # item → reason


def print_failures(failed: dict[str, str], what: str = "failed") -> None:
    for name, reason in sorted(failed.items())[:SHOWN]:
        print(f"{what}: {name}: {reason}", file=sys.stderr)


def run(command: Callable[[], Outcome | None], program: str) -> int:
    """Run a command and return its exit code; an error that the user can mend takes one line.

    The code is 1 after an error or with failed items, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        outcome = command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        print(f"{program}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        more = "What is done is kept; run the same again to go on"
        print(f"{program}: interrupted. {more}", file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130
    return 1 if outcome is not None and outcome.failed else 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which job schedulers send."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def start(module: str) -> NoReturn:
    """Run ``main`` of a module as a script, and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    print_any_name()
    # Imported, since what workers unpickle must not belong to ``__main__``.
    code = importlib.import_module(module).main()
    for number in (signal.SIGINT, signal.SIGTERM):  # at exit they would only print an error
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
