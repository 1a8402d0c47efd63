"""``maest similar``: the nearest tracks of a library, and near copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maest.command.common import (
    JsonOption,
    LibraryModelOption,
    LibraryOption,
    count,
    print_json,
    print_line,
    tell,
    usage,
)
from maest.helpers.errors import InputError

if TYPE_CHECKING:
    from maest.analysis import Analyser
    from maest.library import Library, Model, Seed, Track

_NOT = "same-album"


def similar(
    song: Annotated[
        Path | None,
        typer.Argument(metavar="SONG", dir_okay=False, help="A song, of the library or not."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Most tracks.")] = 10,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            metavar="SONG",
            dir_okay=False,
            help="Near this one, too; any number of times.",
        ),
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option("--not", metavar=_NOT, help="Leave out the songs' albums.")
    ] = None,
    m3u: Annotated[
        Path | None, typer.Option("--m3u", metavar="FILE.m3u8", help="Write a playlist.")
    ] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="List near copies, with no SONG.")
    ] = False,
    model: LibraryModelOption = None,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """List the tracks of the library that are nearest to a song, the nearest first.

    \b
    Example:
      maest similar song.mp3 --not same-album --m3u playlist.m3u8

    The number is the cosine of the embeddings, after what all tracks have in common is taken off.
    """
    if (song is None) != duplicates:
        raise usage("Give a SONG, or --duplicates.", "SONG")
    if leave_out not in (None, _NOT):
        raise usage(f"{leave_out!r} is not {_NOT}.", "--not")
    if duplicates and (also or leave_out or m3u):
        raise usage("It goes with none of --also, --not and --m3u.", "--duplicates")

    import maest

    with maest.Library(library, read_only=True) as opened:
        for warning in opened.warnings:
            tell(warning)
        chosen = library_model(opened, model)
        if song is None:
            _show_groups(opened.duplicates(model=chosen), json)
            return
        seed, *rest = _seeds(opened, [song, *(also or [])], chosen)
        not_same = bool(leave_out)
        found = opened.similar(seed, top, also=rest, not_same_album=not_same, model=chosen)
    if m3u is not None:
        from maest.playlist import write_m3u8

        number = write_m3u8(m3u, [track for track, _ in found])
        tell(f"{count(number, 'track')}: {m3u}")
    if json:
        print_json({"tracks": [{**_plain(track), "cosine": value} for track, value in found]})
    else:
        for track, value in found:
            print_line(f"{value:6.3f}  {track.path}{_names(track)}")


def library_model(library: Library, name: str | None) -> Model | None:
    """Return the model of a name that has most results. InputError: there is none."""
    if name is None:
        return None
    known = [model for model, _ in library.models()]
    names = {name, str(Path(name).resolve())}
    model = next((m for m in known if names & {m.name, Path(m.name).name}), None)
    if model is None:
        there = ", ".join(dict.fromkeys(model.name for model in known)) or "none so far"
        what, hint = f"the library has no results of {name!r}", f"It has results of: {there}."
        raise InputError(what, kind="unknown", setting="--model", hint=hint)
    return model


def _seeds(library: Library, songs: list[Path], model: Model | None) -> list[Seed]:
    """Embed songs that the library does not have. InputError: one, or the model, cannot be used."""
    import maest

    seeds: list[Seed] = []
    analyser: Analyser | None = None
    for song in songs:
        try:
            library.track(song)
            seeds.append(song)
        except InputError:
            analyser = analyser or _analyser(library, model)
            (result,) = maest.embed(song, analyser)
            if result.error is not None:
                hint = "Give another song."
                raise InputError(result.error, kind="corrupt", path=song, hint=hint) from None
            seeds.append((song, result.embeddings[0]))
    return seeds


def _analyser(library: Library, model: Model | None) -> Analyser:
    models = library.models()
    if model is None and not models:
        hint = "Index your music first: maest index FOLDER"
        raise InputError("no results in it", kind="missing", path=library.path, hint=hint)
    known = model or models[0][0]

    import maest

    options: dict[str, Any] = {n: known.settings.get(n) for n in ("block", "max_windows")}
    analyser = maest.Analyser(known.name, **options)
    if analyser.model != known:
        hint = "Index your music again: maest index FOLDER"
        what = f"{known.name} is not the model that it was, when the library was made"
        raise InputError(what, kind="mismatch", path=library.path, hint=hint)
    return analyser


def _show_groups(groups: list[list[Track]], json: bool) -> None:
    if json:
        print_json({"groups": [[_plain(track) for track in group] for group in groups]})
        return
    for number, group in enumerate(groups):
        if number:
            print_line("")
        for track in group:
            print_line(f"{track.path}{_names(track)}")
    tell(f"{count(len(groups), 'group')} of near copies")


def _plain(track: Track) -> dict[str, Any]:
    names = {"title": track.title, "artist": track.artist, "album": track.album}
    return {"path": str(track.path), "seconds": track.seconds, "state": track.state, **names}


def _names(track: Track) -> str:
    names = " - ".join(name for name in (track.artist, track.title) if name)
    return (f"  {names}" if names else "") + ("  (offline)" if track.state == "offline" else "")


def register(app: typer.Typer) -> None:
    app.command("similar")(similar)
