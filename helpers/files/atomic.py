"""Files that are whole or absent, and the errors of those that cannot be read or written."""

import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError

TEMPORARY = ".tmp-"  # prefix of unfinished files and folders
_UNFINISHED = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{16}}(\.[^.]*)?")
# Errors of a name, not of the disk: too long, invalid on this file system, a file in place of a
# folder or the reverse, a loop of links.
_NAME_ERRORS = "ENAMETOOLONG EILSEQ EINVAL EISDIR ENOTDIR EEXIST ELOOP"
NAMES_FILE_ONLY = {getattr(errno, name) for name in _NAME_ERRORS.split()}
_DAY = 24 * 3600  # seconds
_NEAR = 500  # bytes in which a mark stands


@contextmanager
def atomic_path(path: str | Path, durable: bool = False, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    A reader sees the old file or the whole new one; with ``durable``, also after a power failure.
    An error leaves ``path`` as before. Missing folders are made; a symbolic link's target is
    replaced. The temporary name keeps the suffix, by which writers choose a format or add one.
    ``mode`` is the file's in the end (permission bits); as the umask says without one.
    """
    path, suffix = Path(path), Path(path).suffix[-16:]
    if path.is_symlink():
        path = Path(os.path.realpath(path))
        if path.is_symlink():  # to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed length: a name near the file system's limit must not become too long.
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"
    # The kernel applies the umask: it cannot be read without a change to it, in all threads.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode) if mode is None else mode
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(mode)  # some writers (safetensors) put a private file in its place
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)  # its list of names
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | Path, suffixes: Collection[str]) -> None:
    """Remove unfinished files with ``suffixes``, a day old or more, below a folder if it exists.

    They are those that `atomic_path` names: other files of that prefix are somebody's.
    """
    for place, _, names in os.walk(folder):  # enters no folder that is a link
        for path in (Path(place) / name for name in names if _UNFINISHED.fullmatch(name)):
            with suppress(OSError):
                if path.suffix in suffixes and time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()


def files_below(folder: str | Path, endings: str | tuple[str, ...]) -> Iterator[str]:
    """Yield finished files with these endings, at any depth, as paths relative to the folder."""
    for place, _, names in os.walk(folder):  # enters no folder that is a link
        inside = place.removeprefix(str(folder)).lstrip("/")
        for name in names:
            if name.endswith(endings) and not name.startswith(TEMPORARY):
                yield f"{inside}/{name}" if inside else name


def read_bytes(
    path: str | Path,
    missing: str,
    access: str = "Check that it is a file, and that you may read it.",
) -> bytes:
    """Read a file that a user named; InputError "missing" or "access", with these hints."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", kind="missing", path=path, hint=missing) from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise InputError(what, kind="access", path=path, hint=access) from None


def refuse_others(path: str | Path, mark: str) -> None:
    """Refuse to change a file without ``mark`` near its start, unless it is empty.

    InputError: "exists", or "access" of a place that is no file or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(_NEAR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error, "file") from None
    if start and mark.encode() not in start:
        hint = "Give another name, or move it away."
        raise InputError("another file is there", kind="exists", path=path, hint=hint)


def write_error(path: str | Path, error: OSError, other_place: str) -> InputError:
    """Return the error for an unwritable file; ``other_place`` is the setting of another folder."""
    why, step = "not writable", f"Make its folder writable, or give another {other_place}"
    # NumPy's error has no number where a disk, or a quota, takes only part of a file.
    if error.errno in (None, errno.ENOSPC, errno.EDQUOT):
        why, step = "the disk is full, or your quota", "Make room"
    message = f"cannot be written: {error.strerror or error} ({why}). What is done is kept"
    hint = f"{step}, and run the same again."
    return InputError(message, kind="access", hint=hint, path=path)


def check_room(folder: Path, needed: int) -> None:
    """Raise InputError unless the disk of a folder has ``needed`` bytes free."""
    if needed > (free := shutil.disk_usage(folder).free):
        what = f"{needed} bytes are still to come, and there is room for {free}"
        hint = "Make room, or give another folder."
        raise InputError(what, kind="access", path=folder, hint=hint)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value), "utf-8")


def to_json(value: Any) -> str:
    """Return indented JSON, with null for NaN and infinity."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON lacks, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_changed(path: str | Path, content: bytes) -> None:
    """Write a file atomically, unless it has this content already: its times stay."""
    path = Path(path)
    if not path.is_file() or path.read_bytes() != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def write_rows(path: str | Path, header: Iterable, rows: Iterable[Iterable]) -> None:
    """Write a CSV table in UTF-8, atomically; names that are not UTF-8 keep their bytes."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def point_link(link: str | Path, target: str | Path) -> None:
    """Make the symbolic link ``link`` point at ``target``, in one step if it exists."""
    temporary = Path(link).with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    temporary.symlink_to(os.path.relpath(target, temporary.parent))
    os.replace(temporary, link)


# ---- lists of what failed, and text of any bytes -------------------------------------------------


def write_failures(
    path: str | Path, failed: Mapping[str, str], column: str = "key", value: str = "reason"
) -> Path | None:
    """Write a CSV of keys and reasons sorted by key; return its path, or None without failures.

    Without failures the file is removed; with the same rows it stays untouched. Newlines and bytes
    that are not UTF-8 (surrogate escapes) in keys survive :func:`read_failures`; other surrogates,
    which no file's name has, become backslash escapes.
    """
    path = Path(path)
    if not failed:
        if path.exists():  # a read-only disk refuses even to remove a missing file
            path.unlink(missing_ok=True)
        return None
    rows = sorted((encodable(key), encodable(why)) for key, why in failed.items())
    table = io.StringIO(newline="")
    csv.writer(table).writerows([(column, value), *rows])
    write_changed(path, table.getvalue().encode("utf-8", "surrogateescape"))
    return path


def read_failures(path: str | Path, column: str = "key", value: str = "reason") -> dict[str, str]:
    """Read what :func:`write_failures` wrote; nothing if the file is missing or another one."""
    try:
        with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row[column]: row[value] for row in csv.DictReader(file)}
    except (FileNotFoundError, KeyError, csv.Error):
        return {}


def encodable(text: str) -> str:
    """Return text that UTF-8 with surrogate escapes can encode; other surrogates are escaped."""
    with suppress(UnicodeEncodeError):
        text.encode("utf-8", "surrogateescape")
        return text
    return valid_utf8(text)


def valid_utf8(text: str) -> str:
    """Replace surrogates by backslash escapes (``\\udcff``)."""
    return text.encode("utf-8", "backslashreplace").decode()
