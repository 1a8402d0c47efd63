"""``maest models``: what can be used here; get more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from maest.command.common import JsonOption, print_json, print_line

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the models that can be used: licence, size, labels, and whether they are here.

    \b
    Example:
      maest models
      maest models fetch discogs-maest-30s-pw-129e
      maest tag song.mp3 --model discogs-maest-30s-pw-129e
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = [_row(name) for name in _names()]
    if json:
        print_json({"models": rows})
        return
    for row in rows:
        size = f"{row['megabytes']} MB" if row["here"] else f"about {row['megabytes']} MB to fetch"
        print_line(f"{row['name']}  ({'here' if row['here'] else 'not here'})")
        print_line(f"    {row['labels']} labels, clips of {row['clip_seconds']:g} s, {size}")
        print_line(f"    {row['licence']}; trained on: {row['data']}")


@app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")], json: JsonOption = False) -> None:
    """Get a model from where it is published, once; it is checked, and kept for later.

    \b
    Example:
      maest models fetch discogs-maest-30s-pw-129e
    """
    from maest.models import download

    path = download.fetch(name).path
    if json:
        print_json({"name": name, "path": str(path)})
    else:
        print_line(f"{name} is here: {path}")


def _names() -> list[str]:
    from maest.models.archs import ARCHS, DEIT, PASST

    # Those two are to start a training from: what they say has no names here.
    return [name for name, arch in ARCHS.items() if arch.published and name not in (DEIT, PASST)]


def _row(name: str) -> dict[str, Any]:
    from maest.models import download
    from maest.models.archs import ARCHS, WEIGHTS_NAME

    arch, folder = ARCHS[name], download.place(name)
    size = 4 * 12 * arch.depth * arch.embed_dim**2  # bytes of the blocks' weights in float32
    if folder is not None:
        size = _size(folder / WEIGHTS_NAME)
    return {
        "name": name,
        "here": folder is not None,
        "labels": arch.n_classes,
        "clip_seconds": arch.clip_length,
        "megabytes": max(1, round(size / 1e6)),
        "licence": arch.licence,
        "data": arch.data,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="models")
