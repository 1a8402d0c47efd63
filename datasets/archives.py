"""A zip archive that is published in parts: fetch the parts, and unpack from them."""

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
from maest.helpers.files.atomic import (
    NAMES_FILE_ONLY,
    atomic_path,
    check_room,
    remove_leftovers,
    write_error,
    write_json,
)
from maest.helpers.files.download import download
from maest.helpers.files.pieces import Pieces

# zipfile and its decompressors raise these for damaged bytes; such an OSError has no errno.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError, OSError),
)
_BROKEN = "damaged in the archive"
_AGAIN = "To get all of it again: the steps download and unpack with --force."


def parts_there(archive: Path, parts: Sequence[str]) -> list[Path]:
    """Paths of the parts that exist."""
    return [path for path in map(archive.with_name, parts) if path.is_file()]


def known_absent(archive: Path) -> frozenset[str]:
    """Files that :func:`unpack` could not get: absent, or damaged on the server."""
    return frozenset(_read_notes(archive)["absent"])


def _read_notes(archive: Path) -> dict[str, Any]:
    """Read the notes on an archive, in ``<name>.json`` beside it."""
    # seen: part → SHA-256 at the last fetch. damaged: part → SHA-256 when it had damaged files.
    # absent: files that the archive lacks, or that are damaged on the server.
    notes: dict[str, Any] = {"seen": {}, "damaged": {}, "absent": []}
    with suppress(OSError, ValueError, AttributeError):
        content = json.loads(archive.with_name(f"{archive.name}.json").read_text("utf-8"))
        notes |= {n: content[n] for n in notes if type(content.get(n)) is type(notes[n])}
    return notes


def _write_notes(archive: Path, notes: dict[str, Any]) -> None:
    write_json(archive.with_name(f"{archive.name}.json"), notes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(archive: Path, url: str, parts: Sequence[str], *, again: bool = False) -> None:
    """Fetch the missing parts of an archive into its folder.

    ``archive`` is the path of the whole, which never exists; ``url`` is of the parts' folder.
    ``again`` fetches existing parts too, and accepts another version. Raises InputError if a part
    cannot be fetched, or has another SHA-256 than the last time.
    """
    notes = _read_notes(archive)
    for name in parts:
        path = download(f"{url.rstrip('/')}/{name}", archive.with_name(name), again=again)
        digest, known = _sha256(path), notes["seen"].get(name)
        if not again and known not in (None, digest, notes["damaged"].get(name)):
            what = f"another file than the last time: its SHA-256 is {digest}, and was {known}"
            hint = f"Delete it to fetch it once more. {_AGAIN}"
            raise InputError(what, kind="mismatch", path=path, hint=hint)
        notes["seen"][name] = digest
        _write_notes(archive, notes)


@dataclass(frozen=True, kw_only=True)
class Unpacked(Outcome):
    """The outcome of :func:`unpack`; items are files."""

    other: list[str]  # existing files of another size, which were not replaced
    absent: list[str]  # wanted files that the archive lacks
    again: list[str]  # parts with damaged files, which the next :func:`fetch` gets again


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
    """Unpack an archive from its parts; delete the parts when all of its files are out.

    ``wanted`` are paths below ``out_dir``, each a folder and a file; in the archive they may lie
    deeper. A file gets its name when it is whole and its checksum (CRC-32) is right. Existing files
    stay, unless they are empty or ``again`` is set; ``keep`` keeps the parts. A part with damaged
    files is deleted, so that `fetch` gets it again; if it had the same content before, the damage
    is the server's, and its damaged files count as absent.

    Raises InputError if a part is missing, the parts are no zip archive, or writing fails.
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
        members: dict[str, zipfile.ZipInfo] = {}  # the first of several with one name
        for member in sorted(whole.infolist(), key=lambda member: member.header_offset):
            name = "/".join(PurePosixPath(member.filename).parts[-2:])
            if name in wanted and not member.is_dir():
                members.setdefault(name, member)
        there = {} if again else {name: file_size(out_dir / name) for name in members}
        skipped = [name for name, size in there.items() if size == members[name].file_size]
        # Only whole files get their names here: one of another size is the user's.
        other = [name for name, size in there.items() if size and size != members[name].file_size]
        left = {*skipped, *other}
        todo = {name: member for name, member in members.items() if name not in left}
        failed = _extract(whole, todo, out_dir, progress)

    broken = [name for name, why in failed.items() if why.startswith(_BROKEN)]
    ends, damaged = list(accumulate(sizes)), set[Path]()  # where parts end in the whole
    for member in map(members.__getitem__, broken):
        # A member's bytes follow a header of 30 bytes and the name.
        last = member.header_offset + 29 + len(member.filename) + member.compress_size
        damaged |= {*paths[bisect_right(ends, member.header_offset) : bisect_right(ends, last) + 1]}
    notes = _read_notes(archive)
    digests = {path.name: _sha256(path) for path in sorted(damaged)}
    fresh = [name for name, digest in digests.items() if notes["damaged"].get(name) != digest]
    absent = [name for name in wanted if name not in members]
    notes["damaged"] |= digests
    notes["absent"] = absent + ([] if fresh else broken)  # broken twice: damaged on the server
    _write_notes(archive, notes)
    is_out = not set(failed) - set(notes["absent"])
    for path in paths:
        if path.name in fresh or (is_out and not keep):
            path.unlink()
    done, there_before = len(todo) - len(failed), len(skipped)
    return Unpacked(
        done=done, skipped=there_before, failed=failed, other=other, absent=absent, again=fresh
    )


def _extract(
    whole: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], out_dir: Path, progress: bool
) -> dict[str, str]:
    """Write members below a folder; return those that failed, with the reason."""
    out_dir.mkdir(parents=True, exist_ok=True)
    check_room(out_dir, sum(member.file_size for member in members.values()))
    remove_leftovers(out_dir, {PurePosixPath(name).suffix for name in members})
    failed = {}
    hidden = None if progress else True  # None: shown on a terminal only
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
    """Open the archive. Raises InputError unless it is whole."""
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
    """Bytes of a file; None if it does not exist."""
    return path.stat().st_size if path.is_file() else None
