"""``maest tag``: tags of music, shown, listed, written into files, and as a page."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maest.command import FAILED
from maest.command.common import (
    JsonOption,
    ModelOption,
    WindowsOption,
    count,
    print_json,
    print_line,
    tell,
    tell_failed,
    usage,
)
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import refuse_others, write_error, write_rows

if TYPE_CHECKING:
    from maest.analysis import Tagged
    from maest.command.tag_writer import TagWriter

_CSV_HEAD = "path,seconds,rank,label,value,warnings,error"
PathsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="SONG_OR_FOLDER…", help="Your music.")
]


def _option(name: str, text: str, value: str | None = None, **more: Any) -> Any:
    return typer.Option(name, help=text, metavar=value, **more)


_File = Path | None
_LOWEST = "The lowest value of a tag; auto: by label, as the model says, else none."
_PART = "Keep all tags in a part [maest: …] of the comment."
_LOG = "Where what was there is kept, if not in your data folder."
_UNDO = "Put back what was there before all runs of a log."


def tag(
    ctx: typer.Context,
    paths: PathsArgument = None,
    top: Annotated[int, _option("--top", "Most tags of a track.", min=1)] = 5,
    threshold: Annotated[str, _option("--threshold", _LOWEST, "auto|NUMBER")] = "auto",
    groups: Annotated[str, _option("--groups", "Only these, such as genre,mood.", "NAMES")] = "",
    model: ModelOption = None,
    max_windows: WindowsOption = None,
    csv: Annotated[_File, _option("--csv", "Also list the tags there.", "FILE")] = None,
    json: JsonOption = False,
    page: Annotated[
        _File, _option("--page", "Also make a page to hear and see.", "FILE.html")
    ] = None,
    embed_audio: Annotated[
        bool, _option("--embed-audio", "The page has the music in it, up to 100 MB.")
    ] = False,
    write: Annotated[bool, _option("--write", "Write genre, style, mood into files.")] = False,
    dry_run: Annotated[bool, _option("--dry-run", "Show what --write would change.")] = False,
    replace: Annotated[bool, _option("--replace", "Also write fields that have a value.")] = False,
    comment: Annotated[bool, _option("--comment", _PART)] = False,
    keep_dates: Annotated[bool, _option("--keep-dates", "The files' dates stay.")] = False,
    log: Annotated[_File, _option("--log", _LOG, "LOG")] = None,
    undo: Annotated[_File, _option("--undo", _UNDO, "LOG")] = None,
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
    Files that are read-only, or have other hard links, are skipped. Stopped, the same command goes
    on.
    """
    given = {name for name in ctx.params if "COMMANDLINE" in str(ctx.get_parameter_source(name))}
    if undo is not None:
        if given - {"undo", "keep_dates", "json"}:
            raise usage("It goes with --keep-dates and --json only.", "--undo")
        _undo(undo, keep_dates, json)
        return
    if not paths:
        raise usage("Give music: files, or folders.", "SONG_OR_FOLDER")
    if given & {"replace", "comment", "keep_dates", "log"} and not (write or dry_run):
        raise usage(
            "They are for --write, or --dry-run.", "--replace, --comment, --keep-dates, --log"
        )
    if embed_audio and page is None:
        raise usage("It is for --page FILE.html.", "--embed-audio")
    options: dict[str, Any] = {"top": top, "threshold": _threshold(threshold)}
    options["groups"] = sorted(filter(None, groups.split(",")))
    if csv is not None:
        refuse_others(csv, _CSV_HEAD)

    import maest
    from maest.analysis import DEFAULT_MODEL, Tagged, find_music

    music, writer = find_music(paths), None
    if write or dry_run:
        from maest.command.tag_writer import Options, TagWriter

        writer = TagWriter(paths, log, Options(replace, comment, keep_dates), dry_run)
    analyser = maest.Analyser(
        model or DEFAULT_MODEL, pictures=page is not None, max_windows=max_windows
    )
    try:
        analyser.labels_of(options["groups"])
    except InputError as error:
        raise usage(error.reason, "--groups") from None
    files = list(music.files)
    if writer is not None:
        if threshold == "auto" and analyser.head.thresholds is None:
            raise InputError(
                f"{analyser.name} has no thresholds: its top labels may all be wrong",
                kind="missing",
                setting="--threshold",
                hint="Give the lowest value of a tag that is written: --threshold 0.3",
            )
        writer.start({"model": analyser.model.hash, **analyser.model.settings, **options})
        if csv is None and page is None:
            files = [path for path in files if not writer.done(path)]
    counts, rows = Counter[str](), list[tuple[Any, ...]]()

    def songs() -> Iterator[Tagged]:
        """Yield songs that have tags; what else is asked for is done on the way."""
        broken = (Tagged(path, error=why) for path, why in music.unreadable.items())
        for song in chain(broken, maest.tag(files, analyser, **options) if files else ()):
            told = writer.write(song) if writer and song.error is None else {}
            counts["failed"] += song.error is not None or "failed" in told
            _show(song, told, json)
            if csv is not None:
                rows.extend(_rows(song))
            if song.error is None:
                counts["tagged"] += 1
                yield song

    try:
        if page is None:
            deque(songs(), maxlen=0)
        else:
            from maest.command.tag_page import write_tag_page

            write_tag_page(page, songs(), analyser.labels, embed_audio)
    finally:  # also of a run that is stopped
        _sum_up(counts, writer)
        if csv is not None and rows:
            _write_csv(csv, rows)
    if counts["failed"]:
        raise typer.Exit(FAILED)


def _threshold(text: str) -> Any:
    if text == "auto":
        return text
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise usage(f"{text!r} is neither auto nor a number.", "--threshold")


def _show(song: Tagged, told: dict[str, Any], json: bool) -> None:
    if json:
        tags = [{"label": label, "value": round(value, 4)} for label, value in song.tags]
        about = {"path": str(song.path), "seconds": round(song.seconds, 3), "tags": tags}
        about |= {"warnings": song.warnings, "error": song.error}
        told |= {"changes": [asdict(edit) for edit in told["changes"]]} if "changes" in told else {}
        print_json(about | told)
    elif song.error is not None:
        tell_failed(song.path, song.error)
    else:
        from maest.helpers.results.predictions import NO_TAG

        tags_shown = ", ".join(f"{label} {value:.2f}" for label, value in song.tags) or NO_TAG
        doubt = f"  ({', '.join(song.warnings)})" if song.warnings else ""
        print_line(f"{song.path}: {tags_shown}{doubt}")
        for edit in told.get("changes", ()):
            print_line(f"  {edit}")
        for reason in (told[name] for name in ("skipped", "failed") if name in told):
            print_line(f"  not written: {reason}")


def _rows(song: Tagged) -> Iterator[tuple[Any, ...]]:
    """Yield rows of the table: one a tag; one of rank 0 for a track without."""
    about, end = (str(song.path), f"{song.seconds:.3f}"), ("; ".join(song.warnings), song.error)
    if not song.tags:
        yield (*about, 0, "", "", *end)
    for rank, (label, value) in enumerate(song.tags, 1):
        yield (*about, rank, label, f"{value:.4f}", *end)


def _write_csv(path: Path, rows: list[tuple[Any, ...]]) -> None:
    try:
        write_rows(path, _CSV_HEAD.split(","), rows)
    except OSError as error:
        raise write_error(path, error, "place for the table") from error


def _sum_up(counts: Counter[str], writer: TagWriter | None) -> None:
    """Tell people what was done, unless that is a single song that was just shown."""
    failed = [f"{counts['failed']} failed"] if counts["failed"] else []
    if failed or counts["tagged"] > 1 or writer is not None:
        written = writer.summary() if writer is not None else []
        tell(", ".join([f"{count(counts['tagged'], 'track')} tagged", *failed, *written]))


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
