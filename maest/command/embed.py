"""``maest embed``: embeddings of music, for programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maest.command import FAILED
from maest.command.common import (
    BlockOption,
    JsonOption,
    ModelOption,
    WindowsOption,
    count,
    print_json,
    print_line,
    progress,
    tell_failed,
)

if TYPE_CHECKING:
    from maest.analysis import Embedded


def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="SONG_OR_FOLDER…", help="Your music.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="A .npz or .parquet; else a folder of .npy files."
        ),
    ],
    model: ModelOption = None,
    block: BlockOption = None,
    max_windows: WindowsOption = None,
    each_window: Annotated[
        bool, typer.Option("--each-window", help="A row a window, not one a track.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write embeddings of music: numbers that are near for songs that sound alike.

    \b
    Example:
      maest embed music -o my.npz

    In Python: my = numpy.load("my.npz"); my["embeddings"] has a row for each of my["paths"], with
    the start and end of my["times"] in seconds: the block's tokens cls and dist, and the mean of
    its others.
    """
    from maest.embedding_files import check_target, write_embeddings

    check_target(out)

    import maest
    from maest.analysis import DEFAULT_MODEL, find_music

    music = find_music(paths)
    analyser = maest.Analyser(
        model or DEFAULT_MODEL, block=block, each_window=each_window, max_windows=max_windows
    )
    failed = len(music.unreadable)
    for path, reason in music.unreadable.items():
        tell_failed(path, reason)

    def rows() -> Iterator[tuple[str, Embedded]]:
        nonlocal failed
        bar = iter(progress(list(music.files), "embed"))
        for song in maest.embed(music.files, analyser):
            next(bar)
            if song.error is None:
                yield music.files[song.path], song
            else:
                failed += 1
                tell_failed(song.path, song.error)
        next(bar, None)

    number = write_embeddings(out, analyser.model, rows())
    done = len(music.files) + len(music.unreadable) - failed
    if json:
        about = {"model": analyser.model.name, "model_hash": analyser.model.hash}
        counts = {"block": analyser.block, "rows": number, "tracks": done, "failed": failed}
        print_json({"out": str(out), **about, **counts})
    else:
        print_line(f"{out}: {count(done, 'track')}, {count(number, 'row')}, {failed} failed")
    if failed:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    app.command("embed")(embed)
