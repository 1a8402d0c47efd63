"""Download large files, and resume where a download stopped."""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from maest.helpers.errors import InputError, first_cause, first_line
from maest.helpers.files.atomic import check_room, write_error, write_json

TRIES = 6  # in a row without progress
_TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
_PIECE = 1 << 20  # bytes
_LONGEST_PAUSE = 30  # seconds


def download(url: str, path: str | Path, *, sha256: str | None = None, again: bool = False) -> Path:
    """Fetch a file; it gets its name once it is complete.

    ``<name>.part`` keeps the bytes so far, and ``<name>.part.json`` the file's version, so that the
    next try or call asks the server for the rest. A server without ranges, or with another version
    by now, sends the whole file again. An existing ``path`` is left alone, or with ``again``
    replaced once the new file is complete. ``sha256``, in hexadecimal, is that of the whole file.

    InputError: the file cannot be fetched, has another size or content than expected, may be
    truncated without notice, or does not fit on the disk.
    """
    path = Path(path)
    if not again and path.is_file():
        return path
    if not re.match(r"https?://\w", url):
        hint = "Expected one that begins with https:// or http://."
        raise InputError("no address of a file", path=url, hint=hint)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(url, path, sha256)
    failures, furthest = 0, part.length()
    with tqdm(desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        while failures < TRIES:
            try:
                reason = part.fetch(bar)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = first_line(first_cause(error))
            if not reason:
                return path
            # Further than any before: a server that begins again each time makes no way.
            failures = 0 if part.length() > furthest else failures + 1
            furthest = max(furthest, part.length())
            if failures < TRIES:
                time.sleep(min(2 ** max(0, failures - 1), _LONGEST_PAUSE))
    kept = f"{part.length()} bytes of it are kept: run the same again. " if part.length() else ""
    raise part.refusal(f"{reason} (no progress in {TRIES} attempts)", kept)


class _Part:
    """The bytes of a file so far, and the version that they belong to."""

    def __init__(self, url: str, path: Path, sha256: str | None) -> None:
        self.url, self.path, self.sha256 = url, path, sha256
        self.file = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")

    def length(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0

    def version(self) -> tuple[int, str] | tuple[None, None]:
        """Return the length of the whole and its validator, if the server sent both."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.note.read_text("utf-8"))
            if note["url"] == self.url and note["total"] and note["validator"]:
                return note["total"], note["validator"]
        return None, None

    def begin(self, total: int | None = None, validator: str | None = None) -> None:
        """Discard the bytes so far; the next ones belong to this version."""
        self.file.unlink(missing_ok=True)
        write_json(self.note, {"url": self.url, "total": total, "validator": validator})

    def refusal(self, message: str, hint: str = "") -> InputError:
        """Return the error for an answer that another try would not improve."""
        hint += f"By hand: get {self.url} and save it as {self.path}."
        return InputError(message, kind="network", path=self.url, hint=hint)

    def fetch(self, bar: tqdm) -> str:
        """Try once. Return "" if the file is complete, otherwise the reason why not."""
        total, validator = self.version()
        start = self.length() if validator else 0
        if start and start == total:
            return self.finish(ends_known=True)
        request = {"Accept-Encoding": "identity"}  # bytes on the way are bytes of the file
        if start and validator:
            request |= {"Range": f"bytes={start}-", "If-Range": validator}
        with requests.get(self.url, headers=request, stream=True, timeout=_TIMEOUT) as answer:
            status, headers = answer.status_code, answer.headers
            if status in (408, 425, 429) or status >= 500:
                return f"the server answers {status} {answer.reason}"  # temporary
            # Two answers have one version if a strong ETag, or the time of change, is the same.
            tag = headers.get("ETag", "W/")
            same = headers.get("Last-Modified") if tag.startswith("W/") else tag
            rest = f"bytes {start}-{(total or 0) - 1}/{total}"
            differs = headers.get("Content-Range", "").strip() != rest
            differs |= same not in (None, validator)
            if status == 416 or (status == 206 and start and differs):
                self.begin()  # the next try is for all of it
                return "the server has another version of the file by now"
            if status == 200:
                start, total = 0, self.whole_length(answer)
                self.begin(total, same)
            elif status != 206 or not start:
                raise self.refusal(f"the server answers {status} {answer.reason}")
            check_room(self.path.parent, (total or 0) - start)
            bar.total, bar.n = total, start
            bar.refresh()
            self.append(answer, bar)
        if total not in (None, self.length()):
            return "the connection ended before the file did"
        return self.finish(ends_known=total is not None)

    def whole_length(self, answer: requests.Response) -> int | None:
        """Return the length in bytes of an answer with the whole file, if the server sends it."""
        headers = answer.headers
        # A page for a login or of maintenance: the bytes so far stay.
        if headers.get("Content-Type", "").startswith("text/html"):
            raise self.refusal("the server gives a web page, not the file")
        length = headers.get("Content-Length", "")
        if not (length or "chunked" in headers.get("Transfer-Encoding", "") or self.sha256):
            raise self.refusal("the server does not say how long the file is")
        # Some servers compress the answer although nobody asked for it.
        packed = headers.get("Content-Encoding", "identity") != "identity"
        return int(length) if length.isdigit() and not packed else None

    def append(self, answer: requests.Response, bar: tqdm) -> None:
        """Write bytes as they arrive, so that a dropped connection loses none."""
        with self.file.open("ab", buffering=0) as file:
            while piece := answer.raw.read1(_PIECE, decode_content=True):
                rest = memoryview(piece)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError as error:
                    raise write_error(self.file, error, "folder") from None
                bar.update(len(piece))

    def finish(self, ends_known: bool) -> str:
        """Name the file, or return why its content is wrong (raised where it is known whole)."""
        if self.sha256 is not None:
            with self.file.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != self.sha256:
                self.begin()
                reason = f"the SHA-256 is {digest}, expected {self.sha256}"
                if ends_known:
                    raise self.refusal(reason)
                return reason
        os.replace(self.file, self.path)
        self.note.unlink(missing_ok=True)
        return ""
