"""What the subcommands share: options, and lines for people and programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from maest.helpers.files.atomic import finite
from maest.helpers.names import printable

_MODEL = "A model of `maest models`, or a model folder."
ModelOption = Annotated[str | None, typer.Option("--model", metavar="MODEL", help=_MODEL)]
_LIBRARYS = "A model of the library's.  [default: the one of most results]"
LibraryModelOption = Annotated[str | None, typer.Option("--model", metavar="MODEL", help=_LIBRARYS)]
_JSON = "Print JSON, for programs."
JsonOption = Annotated[bool, typer.Option("--json", help=_JSON)]
_LIBRARY = "The library, if not the one in your data folder."
LibraryOption = Annotated[Path | None, typer.Option("--library", metavar="FILE", help=_LIBRARY)]
_BLOCK = "The block to embed, from 0; -1: after the final norm.  [default: 7, or the last]"
BlockOption = Annotated[int | None, typer.Option("--block", help=_BLOCK)]
_WINDOWS = "Look at N windows, spread over each track: for long music.  [default: all]"
WindowsOption = Annotated[
    int | None, typer.Option("--max-windows", min=1, metavar="N", help=_WINDOWS)
]


def usage(message: str, option: str) -> typer.BadParameter:
    """Return the error of options that do not go together: exit code 2."""
    return typer.BadParameter(message, param_hint=option)


def tell(text: str) -> None:
    """Tell people, beside the output: what has failed, what was done."""
    typer.echo(printable(text), err=True)


def tell_failed(path: Path, reason: str) -> None:
    tell(f"{path}: {' '.join(reason.splitlines())}")


def print_json(value: Any) -> None:
    """Print one line of JSON, in ASCII: bytes of a name that are no UTF-8 are lone surrogates, and
    numbers that are not finite null.
    """
    typer.echo(json.dumps(finite(value), allow_nan=False))


def print_line(text: str) -> None:
    typer.echo(printable(text))


def count(number: int, what: str) -> str:
    """Return "1 track", "2 tracks"."""
    return f"{number} {what}{'s' * (number != 1)}"


def progress(items: Sequence[Any], title: str = "", unit: str = "file") -> Iterable[Any]:
    """Yield the items; a bar shows how far, on a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=title, unit=unit, disable=not sys.stderr.isatty())
