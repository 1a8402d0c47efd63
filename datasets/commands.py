"""What the scripts of this folder share: signals, exit codes, one line for a user's mistake."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable

from maest.helpers.errors import InputError
from maest.helpers.files import print_any_name


class Terminated(KeyboardInterrupt):
    """SIGTERM, which job schedulers send."""

    @classmethod
    def handler(cls, *_: object) -> None:
        """Raise it."""
        raise cls


def run(command: Callable[[], int | None], program: str) -> int:
    """Run a command; what a user can mend is told in one line.

    Returns:
        the exit code: the command's (None is 0), 1 after an error, 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        print(f"{program}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(
            f"{program}: interrupted. What is done is kept; run the same again to go on",
            file=sys.stderr,
        )
        return 143 if isinstance(interrupt, Terminated) else 130
    return code or 0


def start(module: str) -> None:
    """Be a script: run ``main`` of a module as all there is in this process, and exit.

    Of the imported module: what worker processes unpickle must not be of ``__main__``.
    """
    signal.signal(signal.SIGTERM, Terminated.handler)
    print_any_name()
    code = importlib.import_module(module).main()
    for number in (signal.SIGINT, signal.SIGTERM):  # of no use any more, and told as an error
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
