"""``maest index``: analyse a library once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maest.command import FAILED
from maest.command.common import (
    BlockOption,
    JsonOption,
    LibraryOption,
    ModelOption,
    WindowsOption,
    count,
    print_json,
    print_line,
    progress,
    tell,
    tell_failed,
)
from maest.helpers.errors import InputError

_AT_ONCE = 16  # tracks that are given out to be decoded


def index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Your music.")],
    library: LibraryOption = None,
    model: ModelOption = None,
    block: BlockOption = None,
    max_windows: WindowsOption = None,
    again: Annotated[bool, typer.Option("--again", help="Also try again what has failed.")] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Drop what is known of files, or all of FOLDER, if gone."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Analyse a folder of music once: tags and embeddings, kept in one file of your data folder.

    \b
    Example:
      maest index music
      maest similar music/song.mp3

    Run again, it does what is new or has changed. Moved files are recognised, and a drive that is
    not there is offline, not gone. Stopped, it goes on where it was.
    """
    import maest
    from maest.analysis import DEFAULT_MODEL

    if library is not None and library.resolve().is_relative_to(folder.resolve()):
        hint = "Keep it elsewhere: what is in the music may be moved, copied or deleted with it."
        raise InputError(
            "inside the music", kind="conflict", setting="--library", path=library, hint=hint
        )
    with maest.Library(library) as opened:
        for warning in opened.warnings:
            tell(warning)
        analyser = maest.Analyser(model or DEFAULT_MODEL, block=block, max_windows=max_windows)
        done = opened.index(folder, analyser.model, analyser, again, progress, _AT_ONCE)
        forgotten = opened.forget(folder) if forget else 0
        place = opened.path
    scan, failed = done.scan, {**done.scan.unreadable, **done.failed}
    for path, reason in failed.items():
        tell_failed(path, reason)
    counts = {
        "analysed": done.analysed,
        "new": len(scan.new),
        "changed": len(scan.changed),
        "moved": len(scan.moved),
        "copies": len(scan.copies),
        "retagged": len(scan.retagged),
        "unchanged": scan.unchanged,
        "gone": len(scan.gone),
        "offline": len(scan.offline),
        "forgotten": forgotten,
        "failed": len(failed),
    }
    if json:
        reasons = {str(path): reason for path, reason in failed.items()}
        about = {"library": str(place), "model": analyser.name, "reasons": reasons}
        print_json({**about, **counts})
    else:
        first = f"{count(counts.pop('analysed'), 'track')} analysed"
        shown = [first, *(f"{number} {what}" for what, number in counts.items() if number)]
        print_line(f"{', '.join(shown)}: {place}")
    if failed:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    app.command("index")(index)
