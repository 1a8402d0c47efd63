"""A zip archive that is published in parts: fetched into one file, and unpacked."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from maest.helpers.errors import InputError
from maest.helpers.files import (
    NAMES_FILE_ONLY,
    atomic_path,
    check_room,
    remove_leftovers,
    write_error,
    write_json,
)
from maest.helpers.transfer import download

_PIECE = 1 << 20  # bytes
# What zipfile and its decompressors raise of damaged bytes.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError),
)
_NONE = (None, 0)  # sizes of files that are missing or empty
_BROKEN = "damaged in the archive"
_AGAIN = "To get all of it again: the steps download and unpack with --force."


@dataclass
class _Notes:
    """What is remembered of an archive, in ``<name>.json`` beside it.

    Attributes:
        parts: name, bytes and SHA-256 of the parts that are in the file, in order.
        seen: part → its SHA-256 when it was last fetched.
        damaged: part → its SHA-256 when files in it were damaged.
        absent: files that are not in the archive, or damaged on the server.
    """

    parts: list[tuple[str, int, str]] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, archive: Path) -> _Notes:
        try:
            found = json.loads(_beside(archive, ".json").read_text("utf-8"))
            parts = [(str(name), int(size), str(digest)) for name, size, digest in found["parts"]]
            return cls(parts, dict(found["seen"]), dict(found["damaged"]), list(found["absent"]))
        except (OSError, ValueError, TypeError, KeyError):
            return cls()

    def write(self, archive: Path) -> None:
        write_json(_beside(archive, ".json"), asdict(self))

    def size(self, count: int | None = None) -> int:
        """Bytes of the first parts, or of all."""
        return sum(size for _, size, _ in self.parts[:count])

    def parts_of(self, first: int, last: int) -> list[int]:
        """The numbers of the parts that bytes ``first`` to ``last`` are in."""
        return [
            i for i in range(len(self.parts)) if self.size(i) <= last and first < self.size(i + 1)
        ]


def _beside(archive: Path, suffix: str) -> Path:
    return archive.with_name(f"{archive.name}{suffix}")


def known_absent(archive: Path) -> frozenset[str]:
    """Files that an earlier :func:`unpack` was asked for, and that the archive does not have."""
    return frozenset(_Notes.read(archive).absent)


def fetch(archive: Path, url: str, parts: Sequence[str], *, again: bool = False) -> None:
    """Fetch the parts, and join them to ``archive``; nothing is done if it is there.

    Each is appended to ``<name>.part`` when it is whole, and deleted. One that is in the archive's
    folder already is taken from there.

    Args:
        url: of the folder that the parts are in.
        parts: their names, in order.
        again: whether to fetch them although they are there, and to take another version.

    Raises:
        InputError: a part cannot be fetched, or is another one than it was the last time.
    """
    joined, notes = _beside(archive, ".part"), _Notes.read(archive)
    if again:
        joined.unlink(missing_ok=True)
    elif archive.is_file():
        return
    if not joined.is_file() or joined.stat().st_size < notes.size():
        notes.parts = []
    for name, *_ in notes.parts:  # of a call that was killed before it deleted one
        archive.with_name(name).unlink(missing_ok=True)
    for name in parts[len(notes.parts) :]:
        path = download(f"{url.rstrip('/')}/{name}", archive.with_name(name), again=again)
        if again:
            archive.unlink(missing_ok=True)
        digest = hashlib.sha256()
        try:
            with path.open("rb") as source, joined.open("ab") as target:
                target.truncate(notes.size())  # what an interrupted call had appended
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    target.write(piece)
        except OSError as error:
            raise write_error(joined, error, "folder") from None
        known, found = notes.seen.get(name), digest.hexdigest()
        if not again and known not in (None, found, notes.damaged.get(name)):
            raise InputError(
                f"another file than the last time: its SHA-256 is {found}, and was {known}",
                kind="mismatch",
                path=path,
                hint=f"Delete it to fetch it once more. {_AGAIN}",
            )
        notes.parts.append((name, path.stat().st_size, found))
        notes.seen[name] = found
        notes.write(archive)
        path.unlink()
    os.replace(joined, archive)


@dataclass
class Unpacked:
    """What :func:`unpack` did.

    Attributes:
        done, skipped: files made now, and whole before.
        other: files that existed with another size, and were not replaced.
        failed: file → reason.
        absent: files that were wanted, and are not in the archive.
        again: the part that the next :func:`fetch` goes on from, as files in it are damaged.
    """

    done: int = 0
    skipped: int = 0
    other: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    again: str | None = None


def unpack(
    archive: Path,
    out_dir: str | Path,
    wanted: Collection[str],
    *,
    keep: bool = False,
    again: bool = False,
    progress: bool = True,
) -> Unpacked:
    """Unpack the archive; it is deleted when all of its files are out.

    Files get their names when they are whole and their checksum (CRC-32) is right. Existing files
    are not replaced, but for empty ones. Where some are damaged, :func:`fetch` goes on from the
    first part with one; but if that part came with the same content before, the damage is the
    server's, and such files count as absent.

    Args:
        wanted: paths below ``out_dir``, of a folder and a file each. In the archive, other folders
            may stand around them.
        keep: whether not to delete the archive.
        again: whether to replace files that exist.

    Raises:
        InputError: there is no such archive, it is no zip archive, or the disk does not take what
            is in it.
    """
    out_dir, notes, found = Path(out_dir), _Notes.read(archive), Unpacked()
    damaged: set[int] = set()  # parts
    with _open(archive) as whole:
        members: dict[str, zipfile.ZipInfo] = {}  # of two files of one name, the first is taken
        for member in sorted(whole.infolist(), key=lambda member: member.header_offset):
            name = "/".join(PurePosixPath(member.filename).parts[-2:])
            if name in wanted and not member.is_dir():
                members.setdefault(name, member)
        found.absent = [name for name in wanted if name not in members]
        sizes = {name: file_size(out_dir / name) for name in members}
        if not again:
            found.skipped = sum(sizes[name] == own.file_size for name, own in members.items())
            # Files get their names when they are whole: these are somebody's own.
            found.other = [
                n for n, own in members.items() if sizes[n] not in (*_NONE, own.file_size)
            ]
            members = {
                name: own
                for name, own in members.items()
                if sizes[name] in _NONE and sizes[name] != own.file_size
            }
        out_dir.mkdir(parents=True, exist_ok=True)
        check_room(out_dir, sum(member.file_size for member in members.values()))
        remove_leftovers(out_dir, {PurePosixPath(name).suffix for name in members})
        bar = tqdm(members.items(), desc="unpack", unit="file", disable=None if progress else True)
        for name, member in bar:
            try:
                with (
                    whole.open(member) as source,
                    atomic_path(out_dir / name) as temporary,
                    temporary.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, _PIECE)
                found.done += 1
                continue
            except OSError as error:
                if error.errno is not None and error.errno not in NAMES_FILE_ONLY:
                    raise write_error(out_dir / name, error, "folder") from None
                if error.errno is not None:
                    found.failed[name] = f"cannot be written: {error.strerror}"
                    continue
                reason: object = error  # a decompressor's
            except _DAMAGED as error:
                reason = error
            found.failed[name] = f"{_BROKEN}: {reason or type(reason).__name__}"
            # Before its bytes stand 30 others and its name.
            end = member.header_offset + 30 + len(member.filename) + member.compress_size
            damaged.update(notes.parts_of(member.header_offset, end - 1))
    notes.absent = list(found.absent)
    own = {i: notes.parts[i] for i in sorted(damaged)}
    fresh = [i for i, (name, _, digest) in own.items() if notes.damaged.get(name) != digest]
    notes.damaged |= {name: digest for name, _, digest in own.values()}
    if fresh:
        found.again = notes.parts[fresh[0]][0]
        os.replace(archive, _beside(archive, ".part"))
        notes.parts = notes.parts[: fresh[0]]  # what is behind them is cut off when more comes
    else:
        if own:  # as the server has it
            notes.absent += [name for name, why in found.failed.items() if why.startswith(_BROKEN)]
        if not keep and not set(found.failed) - set(notes.absent):
            archive.unlink()
            notes.parts = []
    notes.write(archive)
    return found


def _open(archive: Path) -> zipfile.ZipFile:
    """The archive, if it is whole."""
    try:
        whole = zipfile.ZipFile(archive)
    except FileNotFoundError:
        hint = "Download it first: the step download."
        raise InputError("no such file", kind="missing", path=archive, hint=hint) from None
    except (*_DAMAGED, OSError) as error:
        what = f"not a valid zip archive ({error or type(error).__name__})"
        raise InputError(what, kind="corrupt", path=archive, hint=_AGAIN) from None
    shift = min((member.header_offset for member in whole.infolist()), default=0)
    if shift:
        whole.close()
        what = f"by its own list it has {abs(shift)} bytes too {'many' if shift > 0 else 'few'}"
        raise InputError(what, kind="corrupt", path=archive, hint=_AGAIN)
    return whole


def file_size(path: Path) -> int | None:
    """Bytes of a file; None: there is none."""
    return path.stat().st_size if path.is_file() else None
