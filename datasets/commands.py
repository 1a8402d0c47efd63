"""Shared by the scripts of this folder: signals, exit codes and one-line errors."""

import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from maest.helpers.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    done: int  # items made now
    skipped: int  # items that were whole before
    failed: dict[str, str]  # item → reason
    warnings: dict[str, str] = field(default_factory=dict)  # item → why it may mean nothing
    notes: Sequence[str] = ()  # on the whole, for the user
    summary: str = ""


def run(command: Callable[[], Outcome | None], program: str) -> int:
    """Run a command, print its outcome, and return its exit code; InputError takes one line.

    The code is 1 after an error or with failed items, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        if outcome := command():
            for note in outcome.notes:
                print(note, file=sys.stderr)
            print_failures(outcome.failed)
            print_failures(outcome.warnings, "warning")
            print(outcome.summary)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        print(f"{program}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        kept = "What is done is kept; run the same again to go on"
        print(f"{program}: interrupted. {kept}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 1 if outcome and outcome.failed else 0


def print_failures(failed: dict[str, str], what: str = "failed") -> None:
    """Print the first few of them."""
    for name, reason in sorted(failed.items())[:5]:
        print(f"{what}: {name}: {reason}", file=sys.stderr)


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def start(module: str) -> NoReturn:
    """Run ``main`` of a module as a script, and exit with its code."""
    signal.signal(signal.SIGTERM, _interrupt)  # job schedulers send it
    for stream in (sys.stdout, sys.stderr):  # files' names may have any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Imported, since what workers unpickle must not belong to ``__main__``.
    code = importlib.import_module(module).main()
    for number in (signal.SIGINT, signal.SIGTERM):  # at exit they would only print an error
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
