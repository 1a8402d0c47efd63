"""Write tags into music files, so that nothing is lost.

>>> log = Path("tags.jsonl")
>>> change = plan("song.mp3", [("Electronic---Techno", 0.8), ("Mood---Dark", 0.6)])
>>> if isinstance(change, Change):  # or a Skip, with its reason
...     apply(change, log)
>>> undo(log)

A file is written to a copy beside it, the copy is read back, and only then takes its name. What it
says goes into the log first: whatever is killed when, files are whole and the log has the old ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mutagen import MutagenError

from maest.helpers.errors import InputError, Kind, first_cause, first_line
from maest.helpers.files.atomic import atomic_path, read_bytes, refuse_others, write_error
from maest.tag_entries import Tags
from maest.tag_formats import open_tags, packets_digest
from maest.tag_groups import by_meaning

#: Endings of the copies that a killed run may leave; for `remove_leftovers`
SUFFIXES = frozenset(
    case(f".{ending}")
    for ending in ("mp3", "wav", "aif", "aiff", "flac", "ogg", "oga", "opus", "m4a", "m4b", "mp4")
    for case in (str.lower, str.upper)
)
_BY = {"by": "maest tag"}  # each line of a log begins with it
_MARK = json.dumps(_BY)[:-1]
_PART = re.compile(r"\[maest: [^\]]*\]")


@dataclass(frozen=True)
class Options:
    """How tags are written.

    ``replace``: also fields that have a value. ``comment``: keep a part ``[maest: …]`` in the
    comment, with all tags. ``keep_dates``: the file's date stays.
    """

    replace: bool = False
    comment: bool = False
    keep_dates: bool = False


@dataclass(frozen=True)
class Edit:
    """A field of a file, by the format's name; no texts are no field."""

    field: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        before, after = (", ".join(texts) or "-" for texts in (self.before, self.after))
        return f"{self.field}: {before} → {after}"


@dataclass(frozen=True)
class Change:
    """What `apply` will do to a file; ``kept`` are fields left alone, ``note`` what was chosen."""

    path: Path
    edits: tuple[Edit, ...]
    kept: tuple[str, ...] = ()
    note: str = ""
    keep_dates: bool = False

    def __str__(self) -> str:
        """For people: a line a field."""
        lines = [f"  {edit}" for edit in self.edits]
        return "\n".join([f"{self.path}" + (f" ({self.note})" if self.note else ""), *lines])


@dataclass(frozen=True)
class Skip:
    """A file that is left alone, and why.

    ``kind``: "same" (nothing to write), "kept" (the fields have values), or an error's kind:
    "access" (read-only), "unsupported", "corrupt", "missing".
    """

    path: Path
    kind: Kind | Literal["same", "kept"]
    reason: str


@dataclass
class Undone:
    """What `undo` did: fields put back, fields that others have edited since, and files skipped."""

    restored: list[tuple[Path, str]] = field(default_factory=list)
    edited: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


def plan(
    path: str | Path, tags: Sequence[tuple[str, float]], options: Options | None = None
) -> Change | Skip:
    """Return what writing ``tags`` would change in a file; nothing is written.

    ``tags`` are labels with their values, such as ("Genre---Electronic", 0.83) or
    ("Electronic---Techno", 0.7); the highest come first in the file.
    """
    options = options or Options()
    path = Path(path).absolute()
    try:
        _check_writable(path)
        file = open_tags(path)
    except InputError as error:
        return Skip(path, error.kind, error.message)
    texts = by_meaning(tags)
    edits: list[Edit] = []
    kept: list[str] = []
    for meaning in ("genre", "style", "mood"):
        name = file.names[meaning]
        before, after = tuple(file.get(name)), tuple(file.joined(texts[meaning]))
        value = before or tuple(file.carried.get(name, ()))
        if not after or value == after:
            continue
        if any(text.strip() for text in value) and not options.replace:
            kept.append(name)
        else:
            edits.append(Edit(name, before, after))
    if options.comment:
        name = file.names["comment"]
        before = tuple(file.get(name))
        value = before or tuple(file.carried.get(name, ()))
        if (after := _with_part(value, texts["comment"])) != value:
            edits.append(Edit(name, before, after))
    if kept and not edits:
        return Skip(path, "kept", "has values")
    if not edits:
        plain = tags and not any("---" in label for label, _ in tags)
        why = "labels of no field: give --comment, or learn them --as genre, style or mood"
        return Skip(path, "same", why if plain and not options.comment else "nothing to write")
    written = {edit.field for edit in edits}
    # Players that find a new tag look for no other.
    others = {} if file.entries else file.carried
    older = [Edit(name, (), tuple(own)) for name, own in others.items() if name not in written]
    return Change(path, (*older, *edits), tuple(kept), file.note, options.keep_dates)


def apply(change: Change, log: str | Path) -> None:
    """Write a planned change; what was there goes into ``log`` before, a JSON line a field.

    Raises InputError, and leaves the file, where it was changed since ("conflict"), cannot be
    written ("access") or would not come out whole ("corrupt"); or as `open_log`, with its path.
    """
    _check_writable(change.path)
    file = open_tags(change.path)
    if any(tuple(file.get(edit.field)) != edit.before for edit in change.edits):
        raise _changed(change.path)
    records = [
        {
            "path": str(change.path),
            "field": edit.field,
            "before": edit.before,
            "after": edit.after,
            "raw": [b64encode(entry).decode() for entry in file.raw(edit.field)],
        }
        for edit in change.edits
    ]
    for edit in change.edits:
        file.put(edit.field, file.make(edit.field, list(edit.after)))
    _write(file, change.keep_dates, lambda: _append(Path(log), records))


def undo(log: str | Path, keep_dates: bool = False) -> Undone:
    """Put back every field that still holds the value in the log, the latest first.

    The entries of a field come back byte for byte, side by side. Run again, it does what is left.
    Raises InputError for a log that cannot be read.
    """
    done = Undone()
    for path, records in _read_log(Path(log)).items():
        try:
            _undo_file(path, records, keep_dates, done)
        except InputError as error:
            done.skipped.append(Skip(path, error.kind, error.message))
    return done


def _undo_file(path: Path, records: list[dict[str, Any]], keep_dates: bool, done: Undone) -> None:
    file = open_tags(path)
    restored: dict[str, None] = {}
    edited: dict[str, None] = {}
    for record in reversed(records):
        name, now = record["field"], file.get(record["field"])
        if now == record["after"]:
            file.put(name, [b64decode(entry) for entry in record["raw"]])
            restored[name] = None
        elif now != record["before"]:  # which it holds when a run was killed, or undone
            edited[name] = None
    if restored:
        _check_writable(path)
        _write(file, keep_dates, lambda: None)
    done.restored += [(path, name) for name in restored]
    done.edited += [(path, name) for name in edited if name not in restored]


# ---- comments ------------------------------------------------------------------------------------


def _with_part(before: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """Return the comment with its part ``[maest: …]`` renewed, or removed without ``names``."""
    part = f"[maest: {', '.join(names).replace(']', ')')}]" if names else ""
    for i, text in enumerate(before):
        if match := _PART.search(text):
            head, tail = text[: match.start()], text[match.end() :]
            renewed = head + part + tail if part else (head.removesuffix(" ") + tail)
            return (*before[:i], *([renewed] if renewed else []), *before[i + 1 :])
    if not part:
        return before
    first = f"{before[0]} {part}" if before and before[0] else part
    return (first, *before[1:])


# ---- files ---------------------------------------------------------------------------------------


def _check_writable(path: Path) -> None:
    hint = "It is left alone."
    try:
        status = path.stat()
    except OSError as error:
        kind: Kind = "missing" if isinstance(error, FileNotFoundError) else "access"
        what = error.strerror or str(error)
        raise InputError(what, kind=kind, hint=hint, path=path) from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a file", kind="unsupported", hint=hint, path=path)
    if status.st_nlink > 1:  # a renamed copy would part them
        raise InputError("has other hard links", kind="unsupported", hint=hint, path=path)
    folder = Path(os.path.realpath(path)).parent
    if not (status.st_mode & 0o222 and os.access(path, os.W_OK)):
        raise InputError("read-only", kind="access", hint=hint, path=path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("in a read-only folder", kind="access", hint=hint, path=path)


def _write(file: Tags, keep_dates: bool, ready: Callable[[], None]) -> None:
    """Put a copy with these entries in the file's place; ``ready`` is called just before."""
    path = file.path
    try:
        status = path.stat()
        with atomic_path(path, durable=True, mode=stat.S_IMODE(status.st_mode)) as copy:
            file.save(copy)
            _verify(file, copy)
            with suppress(OSError):  # another's file in a shared folder
                os.chown(copy, status.st_uid, status.st_gid)
            shutil.copystat(path, copy)  # dates, extended attributes
            if not keep_dates:
                os.utime(copy)
            now = path.stat()
            if (now.st_mtime_ns, now.st_size) != (status.st_mtime_ns, status.st_size):
                raise _changed(path)
            ready()
    except (OSError, MutagenError) as error:
        what = f"cannot be written ({first_line(first_cause(error))}); it is as it was"
        hint = "Make room, or its folder writable, and run the same again."
        raise InputError(what, kind="access", hint=hint, path=path) from None


def _verify(file: Tags, copy: Path) -> None:
    """Refuse a copy with other entries than meant, or other sound, pictures or chapters."""
    same_sound = packets_digest(copy) == packets_digest(file.path)
    if same_sound and open_tags(copy).entries == file.entries:
        return
    hint = "Have the program that wrote it write it anew."
    what = "an unusual layout, which would not come out whole; it is as it was"
    raise InputError(what, kind="corrupt", hint=hint, path=file.path)


def _changed(path: Path) -> InputError:
    hint = "Run the same again."
    return InputError("changed meanwhile by another", kind="conflict", hint=hint, path=path)


# ---- the log -------------------------------------------------------------------------------------


def note_done(log: str | Path, path: Path, settings: Mapping[str, Any]) -> None:
    """Note that a file has all that was to be written; ``settings`` are of JSON's types."""
    with suppress(
        OSError, InputError
    ):  # it is gone, or the log cannot be written: the next run looks again
        record = {"path": str(path.absolute()), "is": _stamp(path), "settings": settings}
        _append(Path(log), [record])


def done_before(log: str | Path, settings: Mapping[str, Any]) -> Callable[[Path], bool]:
    """Return what tells files that were noted with these settings, and not changed since."""
    stamps = {}
    for line in Path(log).read_bytes().splitlines() if Path(log).is_file() else ():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            if "is" in record:
                stamps[record["path"]] = (record["is"], record["settings"])

    def done(path: Path) -> bool:
        try:
            return stamps.get(str(path.absolute())) == (_stamp(path), settings)
        except OSError:
            return False

    return done


def _stamp(path: Path) -> list[int]:
    status = path.stat()  # ctime: dates can be set back, and padding keeps the size
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def open_log(log: str | Path) -> None:
    """Make a log ready. InputError: a file of others ("exists"), or not writable ("access")."""
    _append(Path(log), [])


def _append(log: Path, records: list[dict[str, Any]]) -> None:
    """Add records, on disk when this returns; a line that a killed run left off is ended."""
    refuse_others(log, _MARK)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
                file.write(b"\n" if torn else b"")
            lines = (json.dumps(_BY | record).encode() + b"\n" for record in records)
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(log, error, "log") from None


def _read_log(log: Path) -> dict[Path, list[dict[str, Any]]]:
    lines = read_bytes(log, "Give the log that was written with the tags.").splitlines()
    files: dict[Path, list[dict[str, Any]]] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # left off: its file was not changed
            record = json.loads(line)
            if all(isinstance(record[key], list) for key in ("before", "after", "raw")):
                files.setdefault(Path(record["path"]), []).append(record)
    return files
