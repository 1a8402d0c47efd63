"""The command `maest`: tags and similar songs for a folder of music.

A file of this folder for each subcommand, with a function ``register(app)``. None imports PyTorch
before its work begins, and none Sacred or Lightning.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from maest.helpers.errors import InputError
from maest.helpers.names import printable
from maest.helpers.work.signals import Stopped, stoppable

SUBCOMMANDS = ("tag", "embed", "index", "similar", "learn", "models", "verify")

FAILED = 1  # the exit code where a file, or all of it, has failed; typer's 2 is for what was typed
_HELP = """Tag music, and find similar songs, by models that have learned from music.

\b
  maest tag song.mp3               its tags
  maest tag music --write          tags into the files of a folder
  maest index music                analyse a library once
  maest similar song.mp3           the nearest tracks of the library
  maest learn labels.csv -o mine   labels of your own; maest tag music --model mine

Exit codes: 0, all is done; 1, something has failed, and the last line counts it; 2, the command
cannot be understood; 130, stopped by Ctrl-C.
"""


class _Group(TyperGroup):
    """Shows an error that a user can mend as one line, and ends by exit codes."""

    def invoke(self, ctx: Any) -> Any:  # a Context of click, which typer has inside
        try:
            with stoppable():
                return super().invoke(ctx)
        except InputError as error:
            typer.echo(f"Error: {_line(str(error))}", err=True)
            raise typer.Exit(FAILED) from None
        except Stopped as stop:
            typer.echo(f"{stop.signal.name}: stopped. What is done is kept.", err=True)
            raise typer.Exit(128 + stop.signal) from None
        except BrokenPipeError:  # what read the output has seen enough, such as head
            _discard(sys.stdout)
            raise typer.Exit(128 + getattr(signal, "SIGPIPE", 13)) from None


def create_app() -> typer.Typer:
    """Return the command with all its subcommands."""
    app = typer.Typer(
        cls=_Group,
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in SUBCOMMANDS:
        importlib.import_module(f"maest.command.{name}").register(app)

    @app.callback(invoke_without_command=True)
    def common(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
        if version:
            from maest import __version__

            typer.echo(__version__)
            raise typer.Exit

    return app


def main() -> None:
    """Run what was typed; ends the program."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may have letters that a terminal lacks
            stream.reconfigure(errors="backslashreplace")
    create_app()(prog_name="maest")


def _line(text: str) -> str:
    return printable(" ".join(text.splitlines()))


def _discard(stream: TextIO) -> None:
    """Let Python flush what is left, as it ends, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
