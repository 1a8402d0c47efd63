"""An archive in several parts: read as one file, unpacked without joining it first."""

from __future__ import annotations

import io
import json
import lzma
import re
import shutil
import struct
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from helpers.errors import InputError
from helpers.files import (
    NAMES_FILE_ONLY,
    atomic_path,
    remove_leftovers,
    why_not_written,
    write_json,
)

_PIECE = 1 << 20  # bytes
# What zipfile and its decompressors raise of damaged bytes.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError),
)


class ArchiveError(InputError):
    """An archive that cannot be unpacked; the message names it and says what to do."""


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Parts by their number: ``.2`` before ``.10``.

    Raises:
        ArchiveError: a name that does not end in a number, or numbers with a gap.
    """
    numbers = {}
    for path in paths:
        found = re.fullmatch(r"\.(\d+)", path.suffix)
        if not found:
            raise ArchiveError(f"{path}: expected a name that ends in a number, such as .zip.001")
        numbers[int(found[1])] = path
    ordered = sorted(numbers)
    if not ordered or ordered != list(range(ordered[0], ordered[0] + len(paths))):
        raise ArchiveError(
            f"{', '.join(map(str, paths))}: expected parts numbered without a gap, each once"
        )
    return [numbers[number] for number in ordered]


class Parts(io.RawIOBase):
    """Consecutive parts of a file, read as the whole. Seekable; nothing is copied.

    Args:
        paths: the parts, in order. They need not all be there, as long as nothing is read of one
            that is missing (which raises FileNotFoundError).
        sizes: bytes of each.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self.paths, self.sizes = list(paths), list(sizes)
        self._ends: list[int] = []
        for size in sizes:
            self._ends.append(size + (self._ends[-1] if self._ends else 0))
        self._position, self._open = 0, (-1, None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer) -> int:
        """As many bytes as the part at this position has, and the buffer room."""
        part = self.part_at(self._position)
        if part == len(self.paths):
            return 0
        start = self._ends[part - 1] if part else 0
        file = self._file(part)
        file.seek(self._position - start)
        count = file.readinto(memoryview(buffer)[: self._ends[part] - self._position])
        self._position += count
        return count

    def part_at(self, position: int) -> int:
        """The number of the part, from 0, that a byte is in; the number of parts behind the end."""
        return bisect_right(self._ends, position)

    def parts_of(self, member: zipfile.ZipInfo) -> range:
        """The numbers of the parts that a file of the archive is in."""
        # 30 bytes stand before its name; behind it, up to 64 KiB that only they tell the length of.
        end = member.header_offset + 30 + len(member.filename) + member.compress_size
        last = min(self.part_at(max(end - 1, 0)), len(self.paths) - 1)
        return range(min(self.part_at(member.header_offset), last), last + 1)

    def before(self, position: int) -> int:
        """Bytes of the parts, of those that are there, that end at a position or before it."""
        paths = self.paths[: self.part_at(position)]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def delete(self, archive: Path, ledger: _Ledger, count: int) -> None:
        """Delete the first ``count`` parts; the ledger has it first, in case of a kill."""
        there = [path for path in self.paths[:count] if path.is_file()]
        if not there:
            return
        ledger.used += [path.name for path in there]
        ledger.write(archive)
        self._close_part()  # some systems do not delete open files
        for path in there:
            path.unlink()

    def _file(self, part: int) -> io.BufferedIOBase:
        if self._open[0] != part:
            self._close_part()
            self._open = (part, self.paths[part].open("rb", buffering=0))
        return self._open[1]

    def _close_part(self) -> None:
        if self._open[1] is not None:
            self._open[1].close()
        self._open = (-1, None)

    def close(self) -> None:
        self._close_part()
        super().close()


@dataclass
class Unpacked:
    """What :func:`unpack` did.

    Attributes:
        done, skipped: files made now, and whole before.
        other: files that were there with another content's size, and are left as they are.
        failed: file → reason.
        absent: files that were wanted, and are not in the archive.
        damaged: parts that damaged files are in; they are kept.
    """

    done: int = 0
    skipped: int = 0
    other: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


@dataclass
class _Ledger:
    """What is remembered of an archive, when parts of it have been deleted.

    Attributes:
        sizes: part → bytes.
        used: parts all of whose files are out.
        absent: files that were looked for in it in vain.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @staticmethod
    def path(archive: Path) -> Path:
        return archive.with_name(f"{archive.name}.parts.json")

    @classmethod
    def read(cls, archive: Path) -> _Ledger:
        try:
            found = json.loads(cls.path(archive).read_text("utf-8"))
            return cls(dict(found["sizes"]), list(found["used"]), list(found["absent"]))
        except (OSError, ValueError, TypeError, KeyError):
            return cls()

    def write(self, archive: Path) -> None:
        write_json(self.path(archive), asdict(self))


def lacking_parts(archive: Path, parts: Sequence[Path]) -> list[Path]:
    """Parts that :func:`unpack` needs, and that are not there.

    Those that it has used and deleted are not needed; but the last part is, which has the list of
    what is in the archive.
    """
    used = _Ledger.read(archive).used
    last = parts[-1]
    return [own for own in parts if not own.is_file() and (own == last or own.name not in used)]


def known_absent(archive: Path) -> frozenset[str]:
    """Files that an earlier :func:`unpack` was asked for, and that are not in the archive."""
    return frozenset(_Ledger.read(archive).absent)


def unpack(
    archive: Path,
    parts: Sequence[Path],
    out_dir: str | Path,
    name_of: Callable[[str], str | None] = lambda member: member,
    *,
    wanted: Collection[str] = (),
    keep: bool = False,
    again: bool = False,
    progress: bool = True,
) -> Unpacked:
    """Unpack a zip archive in parts; each part is deleted as soon as all of its files are out.

    So no more room is taken than for the unpacked files and a part. Files get their names when they
    are whole and their checksum (CRC-32) is right; those that are there are left as they are (an
    empty one is none). A damaged one costs itself only, and then neither the parts it is in nor
    those behind them are deleted. Nothing is written outside of ``out_dir``, whatever names the
    archive has.

    Args:
        archive: what the whole would be called; it is not made.
        parts: in order. Those that an earlier call has deleted need not be there.
        out_dir: where to.
        name_of: a member's name → the path below ``out_dir`` that it gets; None: it is left alone.
        wanted: such paths; the result tells which of them the archive does not have.
        keep: whether to delete no part.
        again: whether to unpack what is there, too.
        progress: whether a terminal shows a bar.

    Raises:
        ArchiveError: the parts are no zip archive together, one of them is missing, or the disk
            does not take what is in them.
    """
    out_dir, ledger = Path(out_dir), _Ledger.read(archive)
    missing = [path for path in parts if again and not path.is_file()]
    if missing := missing or lacking_parts(archive, parts):
        raise ArchiveError(f"{', '.join(map(str, missing))}: no such file. Download it first")
    ledger.used = [path.name for path in parts if not path.is_file()]
    ledger.sizes = {
        path.name: path.stat().st_size if path.is_file() else ledger.sizes.get(path.name, 0)
        for path in parts
    }
    found, obtained = Unpacked(), set()
    with Parts(parts, list(ledger.sizes.values())) as raw:
        whole, members = _open(archive, raw)
        out_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out_dir, {PurePosixPath(own.filename).suffix for own in members})
        todo = []
        for member in members:
            if (name := name_of(member.filename)) is None:
                continue
            if not (_stays_inside(member.filename) and _stays_inside(name)):
                found.failed[member.filename] = "its name leads out of the folder: left alone"
            elif name not in obtained:
                obtained.add(name)
                todo.append((member, out_dir / name, name))
        found.absent = ledger.absent = [name for name in wanted if name not in obtained]
        ledger.write(archive)
        if not again:
            everything, todo = todo, []
            for member, target, name in everything:
                size = _size(target)
                if size == member.file_size:
                    found.skipped += 1
                elif size:  # files get their names when they are whole: somebody's own
                    found.other.append(name)
                else:
                    todo.append((member, target, name))
        _check_room(out_dir, raw, [member for member, _, _ in todo], keep)
        held = 0 if keep else len(parts)  # this part and all behind it stay
        needed: set[str] = set()  # parts that are gone, and have files that are not out
        for member, target, name in tqdm(
            todo, desc="unpack", unit="file", disable=None if progress else True
        ):
            own = raw.parts_of(member)
            raw.delete(archive, ledger, min(own[0], held))
            damaged = range(0)
            try:
                _write(whole, member, target)
                found.done += 1
                continue
            except _DAMAGED as error:
                reason = f"damaged in the archive: {error or type(error).__name__}"
                damaged = own
            except OSError as error:
                if error.filename in map(str, parts):
                    reason = (
                        f"{error.filename}, which it is in, is used and deleted: download it again"
                    )
                    needed |= {parts[i].name for i in own}
                elif error.errno is None:  # of a decompressor
                    reason, damaged = f"damaged in the archive: {error}", own
                elif error.errno in NAMES_FILE_ONLY:
                    reason = f"cannot be written: {error.strerror}"
                else:
                    text = why_not_written(target, error, "folder")
                    raise ArchiveError(text) from None
            found.failed[name] = reason
            held = min(held, own[0])
            found.damaged += [parts[i] for i in damaged if parts[i] not in found.damaged]
        raw.delete(archive, ledger, held)
    # After all is out, whoever lacks a file later needs all parts; before, those with its bytes.
    ledger.used = [] if held == len(parts) else [n for n in ledger.used if n not in needed]
    ledger.write(archive)
    return found


def _open(archive: Path, raw: Parts) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """The archive, and its files in the order in which they lie in it."""
    sizes = ", ".join(
        f"{path.name}: {size} bytes" for path, size in zip(raw.paths, raw.sizes, strict=True)
    )
    mend = f"Delete the part whose size is wrong ({sizes}), or all of them, and download again"
    try:
        whole = zipfile.ZipFile(io.BufferedReader(raw, _PIECE))
    except (*_DAMAGED, OSError) as error:
        reason = error or type(error).__name__
        raise ArchiveError(f"{archive}.*: no zip archive together ({reason}). {mend}") from None
    members = sorted(whole.infolist(), key=lambda member: member.header_offset)
    if members and members[0].header_offset < 0:
        raise ArchiveError(
            f"{archive}.*: {-members[0].header_offset} bytes are missing, by the archive's own "
            f"list: one of the parts is too short. {mend}"
        )
    if members and members[0].header_offset > 0:
        raise ArchiveError(
            f"{archive}.*: {members[0].header_offset} bytes too many, by the archive's own list: "
            f"one of the parts is too long. {mend}"
        )
    return whole, [member for member in members if not member.is_dir()]


def _stays_inside(name: str) -> bool:
    """Whether a relative path has no way out of the folder it is relative to, on any system."""
    path = PurePosixPath(name)
    return not (
        path.is_absolute()
        or ".." in path.parts
        or path.name == ""
        or any(character in name for character in "\\\0")
        or re.match("[A-Za-z]:", name)
    )


def _size(path: Path) -> int | None:
    """Bytes of a file; None: there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _check_room(out_dir: Path, raw: Parts, todo: Iterable[zipfile.ZipInfo], keep: bool) -> None:
    """Raise ArchiveError unless the disk has room, parts being deleted on the way."""
    written = most = 0
    there = [path for path in raw.paths if path.is_file()]
    if any(path.stat().st_dev != out_dir.stat().st_dev for path in there):
        keep = True  # what is deleted is on another disk
    for member in todo:
        written += member.file_size
        most = max(most, written - (0 if keep else raw.before(member.header_offset)))
    free = shutil.disk_usage(out_dir).free
    if most > free:
        raise ArchiveError(
            f"{out_dir}: unpacking needs room for {most} bytes, and there is room for {free}. Make "
            "room, or give another folder"
        )


def _write(whole: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with (
        whole.open(member) as source,
        atomic_path(target) as temporary,
        temporary.open("wb") as file,
    ):
        shutil.copyfileobj(source, file, _PIECE)
