"""A zip archive that is published in parts: fetched, and unpacked from where the parts lie."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from maest.datasets.commands import Outcome
from maest.helpers.errors import InputError
from maest.helpers.files import (
    NAMES_FILE_ONLY,
    atomic_path,
    check_room,
    remove_leftovers,
    write_error,
    write_json,
)
from maest.helpers.pieces import Pieces
from maest.helpers.transfer import download

# What zipfile and its decompressors raise of damaged bytes; an OSError of theirs has no number.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError, OSError),
)
_BROKEN = "damaged in the archive"
_AGAIN = "To get all of it again: the steps download and unpack with --force."


def parts_there(archive: Path, parts: Sequence[str]) -> list[Path]:
    """The parts that are in the archive's folder."""
    return [path for path in map(archive.with_name, parts) if path.is_file()]


def known_absent(archive: Path) -> frozenset[str]:
    """Files that an earlier :func:`unpack` was asked for, and that the archive does not have."""
    return frozenset(_read_notes(archive)["absent"])


def _read_notes(archive: Path) -> dict[str, Any]:
    """What is remembered of an archive, in ``<name>.json`` beside it.

    ``seen``: part → its SHA-256 when it was last fetched. ``damaged``: part → its SHA-256 when
    files in it were damaged. ``absent``: files that are not in the archive, or damaged on the
    server.
    """
    notes: dict[str, Any] = {"seen": {}, "damaged": {}, "absent": []}
    with suppress(OSError, ValueError, AttributeError):
        content = json.loads(archive.with_name(f"{archive.name}.json").read_text("utf-8"))
        notes |= {
            name: content[name] for name in notes if type(content.get(name)) is type(notes[name])
        }
    return notes


def _write_notes(archive: Path, notes: dict[str, Any]) -> None:
    write_json(archive.with_name(f"{archive.name}.json"), notes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(archive: Path, url: str, parts: Sequence[str], *, again: bool = False) -> None:
    """Fetch the parts of an archive into its folder, those that are not there.

    Args:
        archive: what the whole would be called; there is no such file.
        url: of the folder that the parts are in.
        parts: their names, in order.
        again: whether to fetch them although they are there, and to take another version.

    Raises:
        InputError: a part cannot be fetched, or is another one than it was the last time.
    """
    notes = _read_notes(archive)
    for name in parts:
        path = download(f"{url.rstrip('/')}/{name}", archive.with_name(name), again=again)
        digest, known = _sha256(path), notes["seen"].get(name)
        if not again and known not in (None, digest, notes["damaged"].get(name)):
            raise InputError(
                f"another file than the last time: its SHA-256 is {digest}, and was {known}",
                kind="mismatch",
                path=path,
                hint=f"Delete it to fetch it once more. {_AGAIN}",
            )
        notes["seen"][name] = digest
        _write_notes(archive, notes)


@dataclass(frozen=True, kw_only=True)
class Unpacked(Outcome):
    """What :func:`unpack` did; items are files.

    Attributes:
        other: files that existed with another size, and were not replaced.
        absent: files that were wanted, and are not in the archive.
        again: parts that the next :func:`fetch` gets anew, as files in them are damaged.
    """

    other: list[str]
    absent: list[str]
    again: list[str]


def unpack(
    archive: Path,
    parts: Sequence[str],
    out_dir: Path,
    wanted: Collection[str],
    *,
    keep: bool = False,
    again: bool = False,
    progress: bool = True,
) -> Unpacked:
    """Unpack an archive from its parts; they are deleted when all of its files are out.

    Files get their names when they are whole and their checksum (CRC-32) is right. Existing files
    are not replaced, but for empty ones. Parts with damaged files are deleted, so that `fetch`
    gets them again; but if a part came with the same content before, the damage is the server's,
    and such files count as absent.

    Args:
        archive, parts: as of :func:`fetch`.
        out_dir: where to.
        wanted: paths below ``out_dir``, of a folder and a file each. In the archive, other folders
            may stand around them.
        keep: whether not to delete the parts.
        again: whether to replace files that exist.

    Raises:
        InputError: a part is missing, they are no zip archive, or the disk does not take what is in
            it.
    """
    paths = [archive.with_name(name) for name in parts]
    if missing := sorted(set(paths) - set(parts_there(archive, parts))):
        hint = "Download it first: the step download."
        raise InputError("no such file", kind="missing", path=missing[0], hint=hint)
    sizes = [path.stat().st_size for path in paths]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        pieces = Pieces([(file, 0, size) for file, size in zip(files, sizes, strict=True)])
        whole = stack.enter_context(_open(pieces, archive))
        members: dict[str, zipfile.ZipInfo] = {}  # of two files of one name, the first is taken
        for member in sorted(whole.infolist(), key=lambda member: member.header_offset):
            name = "/".join(PurePosixPath(member.filename).parts[-2:])
            if name in wanted and not member.is_dir():
                members.setdefault(name, member)
        there = {} if again else {name: file_size(out_dir / name) for name in members}
        skipped = [name for name, size in there.items() if size == members[name].file_size]
        # Files get their names when they are whole: others are somebody's own.
        other = [name for name, size in there.items() if size and size != members[name].file_size]
        left = {*skipped, *other}
        todo = {name: member for name, member in members.items() if name not in left}
        failed = _extract(whole, todo, out_dir, progress)

    broken = [name for name, why in failed.items() if why.startswith(_BROKEN)]
    ends, damaged = list(accumulate(sizes)), set[Path]()  # parts; where they end in the whole
    for member in map(members.__getitem__, broken):
        # Before its bytes stand 30 others and its name.
        last = member.header_offset + 29 + len(member.filename) + member.compress_size
        damaged |= {*paths[bisect_right(ends, member.header_offset) : bisect_right(ends, last) + 1]}
    notes = _read_notes(archive)
    digests = {path.name: _sha256(path) for path in sorted(damaged)}
    fresh = [name for name, digest in digests.items() if notes["damaged"].get(name) != digest]
    absent = [name for name in wanted if name not in members]
    notes["damaged"] |= digests
    notes["absent"] = absent + ([] if fresh else broken)  # those are so on the server
    _write_notes(archive, notes)
    is_out = not set(failed) - set(notes["absent"])
    for path in paths:
        if path.name in fresh or (is_out and not keep):
            path.unlink()
    return Unpacked(
        done=len(todo) - len(failed),
        skipped=len(skipped),
        failed=failed,
        other=other,
        absent=absent,
        again=fresh,
    )


def _extract(
    whole: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], out_dir: Path, progress: bool
) -> dict[str, str]:
    """Write files below a folder: those that cannot be, and why."""
    out_dir.mkdir(parents=True, exist_ok=True)
    check_room(out_dir, sum(member.file_size for member in members.values()))
    remove_leftovers(out_dir, {PurePosixPath(name).suffix for name in members})
    failed = {}
    hidden = None if progress else True  # None: unless on a terminal
    for name, member in tqdm(members.items(), desc="unpack", unit="file", disable=hidden):
        try:
            with (
                whole.open(member) as source,
                atomic_path(out_dir / name) as temporary,
                temporary.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 1 << 20)
        except _DAMAGED as error:
            if not isinstance(error, OSError) or error.errno is None:
                failed[name] = f"{_BROKEN}: {error or type(error).__name__}"
            elif error.errno in NAMES_FILE_ONLY:
                failed[name] = f"cannot be written: {error.strerror}"
            else:
                raise write_error(out_dir / name, error, "folder") from None
    return failed


def _open(pieces: Any, archive: Path) -> zipfile.ZipFile:
    """The archive, if it is whole."""
    try:
        whole = zipfile.ZipFile(pieces)
    except _DAMAGED as error:
        what = f"not a valid zip archive ({error or type(error).__name__})"
        raise InputError(what, kind="corrupt", path=archive, hint=_AGAIN) from None
    shift = min((member.header_offset for member in whole.infolist()), default=0)
    if shift:
        what = f"by its own list it has {abs(shift)} bytes too {'many' if shift > 0 else 'few'}"
        raise InputError(what, kind="corrupt", path=archive, hint=_AGAIN)
    return whole


def file_size(path: Path) -> int | None:
    """Bytes of a file; None: there is none."""
    return path.stat().st_size if path.is_file() else None
