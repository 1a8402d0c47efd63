"""``maest tag``: tags of music, shown, listed, written into files, and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maest.command import FAILED
from maest.command.common import (
    JsonOption,
    ModelOption,
    WindowsOption,
    check_not_others,
    count,
    print_json,
    print_line,
    tell,
    tell_failed,
    usage,
)
from maest.helpers.errors import InputError

if TYPE_CHECKING:
    from maest.analysis import Analyser, Tagged
    from maest.command.tag_writer import TagWriter

_CSV_HEAD = "path,seconds,rank,label,value,warnings,error"
PathsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="SONG_OR_FOLDER…", help="Your music.")
]


def _flag(name: str, text: str) -> Any:
    return typer.Option(name, help=text)


def tag(
    paths: PathsArgument = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Most tags of a track.")] = 5,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            metavar="auto|NUMBER",
            help="The lowest value of a tag; auto: by label, as the model says, else none.",
        ),
    ] = "auto",
    groups: Annotated[
        str,
        typer.Option("--groups", metavar="NAMES", help="Only these, such as genre,mood."),
    ] = "",
    model: ModelOption = None,
    max_windows: WindowsOption = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also list the tags there.")
    ] = None,
    json: JsonOption = False,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE.html", help="Also make a page to hear and see."),
    ] = None,
    embed_audio: Annotated[
        bool, _flag("--embed-audio", "The page has the music in it, up to 100 MB.")
    ] = False,
    write: Annotated[bool, _flag("--write", "Write genre, style and mood into the files.")] = False,
    dry_run: Annotated[bool, _flag("--dry-run", "Show what --write would change.")] = False,
    replace: Annotated[bool, _flag("--replace", "Also write fields that have a value.")] = False,
    comment: Annotated[
        bool, _flag("--comment", "Keep all tags in a part [maest: …] of the comment.")
    ] = False,
    keep_dates: Annotated[bool, _flag("--keep-dates", "The files' dates stay.")] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="LOG", help="Where what was there is kept, if not in your data folder."
        ),
    ] = None,
    undo: Annotated[
        Path | None,
        typer.Option("--undo", metavar="LOG", help="Put back what was there before --write."),
    ] = None,
) -> None:
    """Show the top tags of music, as they are found; write them into the files, if you like.

    \b
    Example:
      maest tag song.mp3
      maest tag music --groups genre,mood --csv tags.csv
      maest tag music --write --dry-run
      maest tag music --write
      maest tag music --page report.html

    Nothing is written into music without --write, and no field that has a value without --replace.
    Stopped, the same command goes on.
    """
    if undo is not None:
        if paths or write or dry_run:
            raise usage("It goes with no music, and not with --write.", "--undo")
        _undo(undo, keep_dates, json)
        return
    if not paths:
        raise usage("Give music: files, or folders.", "SONG_OR_FOLDER")
    if (replace or comment or keep_dates or log) and not (write or dry_run):
        raise usage(
            "They are for --write, or --dry-run.", "--replace, --comment, --keep-dates, --log"
        )
    if embed_audio and page is None:
        raise usage("It is for --page FILE.html.", "--embed-audio")
    limit = _threshold(threshold)
    if csv is not None:
        check_not_others(csv, _CSV_HEAD)

    import maest
    from maest.analysis import DEFAULT_MODEL, find_music

    music, failed = find_music(paths), 0
    analyser = maest.Analyser(
        model or DEFAULT_MODEL, pictures=page is not None, max_windows=max_windows
    )
    options: dict[str, Any] = {"top": top, "threshold": limit}
    options["groups"] = sorted(filter(None, groups.split(",")))
    files, writer = list(music.files), None
    if write or dry_run:
        if limit == "auto" and analyser.head.thresholds is None:
            raise InputError(
                f"{analyser.name} has no thresholds: its top labels may all be wrong",
                kind="missing",
                setting="--threshold",
                hint="Give the lowest value of a tag that is written: --threshold 0.3",
            )
        from maest.command.tag_writer import TagWriter

        settings = {"model": analyser.model.hash, **analyser.model.settings, **options}
        writer = TagWriter(paths, log, dry_run, settings, replace, comment, keep_dates)
        if csv is None and page is None:
            files = [path for path in files if not writer.done(path)]
    rows: list[tuple[Any, ...]] = []

    def songs() -> Iterator[Tagged]:
        """Yield songs that have tags; what else is asked for is done on the way."""
        nonlocal failed
        for song in _tagged(music.unreadable, files, analyser, options):
            told = writer.write(song) if writer and song.error is None else {}
            failed += song.error is not None or "failed" in told
            _show(song, told, json)
            rows.extend(_rows(song))
            if song.error is None:
                yield song

    try:
        if page is None:
            shown = sum(1 for _ in songs())
        else:
            from maest.command.tag_page import write_tag_page

            shown = write_tag_page(page, songs(), analyser.labels, embed_audio)
    finally:
        if csv is not None and rows:  # also of a run that is stopped
            _write_csv(csv, rows)
    _sum_up(shown, failed, writer)
    if failed:
        raise typer.Exit(FAILED)


def _threshold(text: str) -> Any:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise usage(f"{text!r} is neither auto nor a number.", "--threshold") from None


def _tagged(
    unreadable: dict[Path, str], files: list[Path], analyser: Analyser, options: dict[str, Any]
) -> Iterator[Tagged]:
    import maest
    from maest.analysis import Tagged

    yield from (Tagged(path, error=reason) for path, reason in unreadable.items())
    if files:
        yield from maest.tag(files, analyser, **options)


def _show(song: Tagged, told: dict[str, Any], json: bool) -> None:
    if json:
        tags = [{"label": label, "value": round(value, 4)} for label, value in song.tags]
        about = {"path": str(song.path), "seconds": round(song.seconds, 3), "tags": tags}
        about |= {"warnings": song.warnings, "error": song.error}
        told = {name: value for name, value in told.items() if name != "shown"}
        print_json(about | told)
    elif song.error is not None:
        tell_failed(song.path, song.error)
    else:
        from maest.helpers.results.predictions import NO_TAG

        tags_shown = ", ".join(f"{label} {value:.2f}" for label, value in song.tags) or NO_TAG
        doubt = f"  ({', '.join(song.warnings)})" if song.warnings else ""
        print_line(f"{song.path}: {tags_shown}{doubt}")
        for line in told.get("shown", ()):
            print_line(f"  {line}")


def _rows(song: Tagged) -> Iterator[tuple[Any, ...]]:
    """Yield rows of the table: one a tag; one of rank 0 for a track without."""
    about, end = (str(song.path), f"{song.seconds:.3f}"), ("; ".join(song.warnings), song.error)
    if not song.tags:
        yield (*about, 0, "", "", *end)
    for rank, (label, value) in enumerate(song.tags, 1):
        yield (*about, rank, label, f"{value:.4f}", *end)


def _write_csv(path: Path, rows: list[tuple[Any, ...]]) -> None:
    from maest.helpers.files.atomic import write_error, write_rows

    try:
        write_rows(path, _CSV_HEAD.split(","), rows)
    except OSError as error:
        raise write_error(path, error, "place for the table") from error


def _sum_up(shown: int, failed: int, writer: TagWriter | None) -> None:
    """Tell people what was done, unless that is a single song that was just shown."""
    parts = [f"{count(shown, 'track')} tagged", *([f"{failed} failed"] if failed else [])]
    if writer is not None:
        parts += writer.summary()
    if failed or shown != 1 or writer is not None:
        tell(", ".join(parts))


def _undo(log: Path, keep_dates: bool, json: bool) -> None:
    from maest.file_tags import undo

    done = undo(log, keep_dates)
    for skip in done.skipped:
        tell_failed(skip.path, skip.reason)
    for path, name in done.edited:
        tell(f"{path}: {name} has been edited since, and stays")
    if json:
        restored = [{"path": str(path), "field": name} for path, name in done.restored]
        edited = [{"path": str(path), "field": name} for path, name in done.edited]
        skipped = [{"path": str(skip.path), "reason": skip.reason} for skip in done.skipped]
        print_json({"restored": restored, "edited": edited, "skipped": skipped})
    else:
        files = count(len({path for path, _ in done.restored}), "file")
        fields = count(len(done.restored), "field")
        rest = f"{len(done.edited)} edited since, {len(done.skipped)} files skipped"
        print_line(f"{fields} of {files} put back, {rest}")
    if done.skipped:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    app.command("tag")(tag)
