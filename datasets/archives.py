"""A zip archive that is published in parts: fetch the parts, and unpack from them.

Beside the parts, ``<archive>.json`` has their SHA-256, and ``failed.csv`` what is not unpacked.
"""

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
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from maest.datasets.commands import Outcome
from maest.helpers.errors import InputError
from maest.helpers.files import atomic
from maest.helpers.files.download import download
from maest.helpers.files.pieces import Pieces

# zipfile and its decompressors raise these for damaged bytes; such an OSError has no errno.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError, OSError),
)
# Reasons in failed.csv, which the next run reads
_ABSENT = "not in the archive"
_ONCE = "damaged in the archive; the next run fetches that part again"
_TWICE = "damaged in the archive, also after it was fetched again"


class SplitArchive:
    """``path`` is that of the whole archive, which never exists; the parts are beside it."""

    def __init__(self, path: Path, parts: Sequence[str]) -> None:
        self.path, self.parts = path, [path.with_name(name) for name in parts]
        self.failed_csv = path.with_name("failed.csv")
        self._digests = path.with_name(f"{path.name}.json")

    def missing(self) -> set[str]:
        """Files that :meth:`unpack` could not get: absent, or damaged on the server."""
        return {name for name, why in self._failures().items() if why in (_ABSENT, _TWICE)}

    def _failures(self) -> dict[str, str]:
        return atomic.read_failures(self.failed_csv, column="path")

    def delete(self) -> None:
        for part in self.parts:
            part.unlink(missing_ok=True)

    def fetch(self, url: str, *, again: bool = False) -> None:
        """Fetch the missing parts from below ``url``; with ``again`` all, of any version.

        Raises InputError if one cannot be fetched, or has another SHA-256 than the last time.
        """
        digests: dict[str, str] = {}
        if not again and _ONCE not in self._failures().values():
            with suppress(OSError, ValueError, TypeError):
                digests = dict(json.loads(self._digests.read_text("utf-8")))
        for part in self.parts:
            known = digests.get(part.name)
            download(f"{url.rstrip('/')}/{part.name}", part, sha256=known, again=again)
            with part.open("rb") as file:
                digests[part.name] = hashlib.file_digest(file, "sha256").hexdigest()
            atomic.write_json(self._digests, digests)

    def unpack(
        self, out_dir: Path, wanted: Collection[str], *, keep: bool = False, again: bool = False
    ) -> Outcome:
        """Unpack files; delete the parts when all are out, unless ``keep`` is set.

        ``wanted`` are paths below ``out_dir``, each a folder and a file; in the archive they may
        lie deeper. A file gets its name when its checksum (CRC-32) is right. Existing files stay,
        unless they are empty or ``again`` is set. A part with damaged files is deleted, so that
        `fetch` gets it again; files that are damaged then, too, count as missing.

        Raises InputError if a part is missing, the parts are no zip archive, or writing fails.
        """
        for part in self.parts:
            if not part.is_file():
                hint = "Download it first: the step download."
                raise InputError("no such file", kind="missing", path=part, hint=hint)
        sizes = [part.stat().st_size for part in self.parts]
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in self.parts]
            pieces: Any = Pieces([(f, 0, size) for f, size in zip(files, sizes, strict=True)])
            try:
                whole = stack.enter_context(zipfile.ZipFile(pieces))
            except _DAMAGED as error:
                what = f"not a valid zip archive ({error or type(error).__name__})"
                hint = "To get all of it again: the steps download and unpack with --force."
                raise InputError(what, kind="corrupt", path=self.path, hint=hint) from None
            members: dict[str, zipfile.ZipInfo] = {}  # the first of several with one name
            for member in sorted(whole.infolist(), key=lambda member: member.header_offset):
                name = "/".join(PurePosixPath(member.filename).parts[-2:])
                if name in wanted and not member.is_dir():
                    members.setdefault(name, member)
            present = {n: path.stat().st_size for n in members if (path := out_dir / n).is_file()}
            # Only whole files get their names here: one of another size is the user's.
            kept = {n for n, size in present.items() if size or not members[n].file_size}
            todo = {n: member for n, member in members.items() if again or n not in kept}
            failed = _extract(whole, todo, out_dir)

        done, ends, bad_parts = len(todo) - len(failed), list(accumulate(sizes)), set[Path]()
        known = self._failures()
        for name in [name for name, reason in failed.items() if reason == _ONCE]:
            if known.get(name) in (_ONCE, _TWICE):
                failed[name] = _TWICE
                continue
            # A member's bytes follow a header of 30 bytes and the name.
            first = members[name].header_offset
            last = first + 29 + len(members[name].filename) + members[name].compress_size
            bad_parts.update(self.parts[bisect_right(ends, first) : bisect_right(ends, last) + 1])
        all_out = all(reason == _TWICE for reason in failed.values())
        failed |= dict.fromkeys((name for name in wanted if name not in members), _ABSENT)
        other = [n for n in kept - todo.keys() if present[n] != members[n].file_size]
        failed |= dict.fromkeys(other, "a file of another size is there; --force replaces it")
        atomic.write_failures(self.failed_csv, failed, column="path")
        for part in self.parts:
            if part in bad_parts or (all_out and not keep):
                part.unlink()
        return Outcome(done, len(members) - len(todo) - len(other), failed)


def _extract(
    whole: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], out_dir: Path
) -> dict[str, str]:
    """Write members below a folder; return the reasons of those that failed."""
    out_dir.mkdir(parents=True, exist_ok=True)
    atomic.check_room(out_dir, sum(member.file_size for member in members.values()))
    atomic.remove_leftovers(out_dir, {PurePosixPath(name).suffix for name in members})
    failed: dict[str, str] = {}
    for name, member in tqdm(members.items(), desc="unpack", unit="file", disable=None):
        try:
            with (
                whole.open(member) as source,
                atomic.atomic_path(out_dir / name) as temporary,
                temporary.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 1 << 20)
        except _DAMAGED as error:
            if not isinstance(error, OSError) or error.errno is None:
                failed[name] = _ONCE
            elif error.errno in atomic.NAMES_FILE_ONLY:
                failed[name] = f"cannot be written: {error.strerror}"
            else:
                raise atomic.write_error(out_dir / name, error, "folder") from None
    return failed
