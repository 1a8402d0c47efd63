"""Downloads that go on where they stopped: of files too large to begin again."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import urllib3
from tqdm import tqdm

from maest.helpers.errors import InputError, first_cause, first_line
from maest.helpers.files import check_room, write_error, write_json

TRIES = 6  # in a row that come no further than those before; others are not counted
_TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
_PIECE = 1 << 20  # bytes
_LONGEST_PAUSE = 30.0  # seconds
_NO_ADDRESS = (
    *(requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema),
    requests.exceptions.InvalidURL,
)
_ENDED = "the connection ended before the file did"


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    again: bool = False,
    tries: int = TRIES,
    pause: float = 1.0,
    progress: bool = True,
) -> Path:
    """Fetch a file; it gets its name when all of it is there.

    What has come is kept in ``<name>.part``, and ``<name>.part.json`` says of which version of the
    file it is: the next try, or the next call, asks the server for the rest. A server that does not
    give parts of files, or has another version by now, gives it whole.

    Args:
        path: where to; if it is there (with ``size`` bytes, where they are known), nothing is done.
        size: bytes that are expected, if that is known. A server's own word is held to in any case.
        sha256: of the file, in hexadecimal, if that is known; one that comes is checked.
        again: whether to fetch it although it is there; it is replaced when the new one is whole.
        tries: how many in a row may come no further.
        pause: seconds before the second try; twice as many before each one after it.

    Raises:
        InputError: it cannot be fetched, is of another size or content, a broken connection could
            not be told from its end, or there is no room for it.
    """
    path = Path(path)
    if not again and path.is_file() and size in (None, path.stat().st_size):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path, url)
    failures, furthest = 0, part.size()
    reason: str | None = None
    with tqdm(desc=path.name, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        while failures < tries:
            try:
                reason = _fetch(part, size, sha256 is not None, bar)
                if reason is None:
                    ends_known = size is not None or part.version().get("total") is not None
                    reason = part.finish(sha256)
                    if reason is None:
                        return path
                    if ends_known:  # otherwise the connection may have broken
                        raise part.refusal(reason)
            except _NO_ADDRESS as error:
                hint = "Expected one that begins with https:// or http://."
                raise InputError(f"no address of a file ({error})", path=url, hint=hint) from None
            except requests.RequestException as error:
                reason = _reason(error)
            # Further than any before: a server that begins again each time makes no way.
            failures = 0 if part.size() > furthest else failures + 1
            furthest = max(furthest, part.size())
            if failures < tries:
                time.sleep(min(pause * 2 ** max(0, failures - 1), _LONGEST_PAUSE))
    kept = f"{part.size()} bytes of it are kept: run the same again. " if part.size() else ""
    raise part.refusal(f"{reason} (no progress in {tries} attempts)", kept)


class _Part:
    """What has come of a file so far, and of which version of it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.file = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")

    def refusal(self, message: str, hint: str = "") -> InputError:
        """The error for an answer that another try would not better."""
        hint += f"By hand: get {self.url} and put it to {self.path}."
        return InputError(message, kind="network", path=self.url, hint=hint)

    def size(self) -> int:
        return self.file.stat().st_size if self.file.is_file() else 0

    def version(self) -> dict[str, Any]:
        """``total`` bytes of the whole and its ``validator``, where the server told them."""
        try:
            found = json.loads(self.note.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("url") == self.url else {}

    def begin(self, total: int | None = None, validator: str | None = None) -> None:
        """Forget what has come; what comes now is of this version."""
        self.file.unlink(missing_ok=True)
        write_json(self.note, {"url": self.url, "total": total, "validator": validator})

    def finish(self, sha256: str | None) -> str | None:
        """Give the file its name; or say that its content is not what it should be, and drop it."""
        if sha256 is not None:
            with self.file.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                self.begin()
                return f"another file came: its SHA-256 is {found}, expected {sha256}"
        os.replace(self.file, self.path)
        self.note.unlink(missing_ok=True)
        return None


def _fetch(part: _Part, size: int | None, hashed: bool, bar: tqdm) -> str | None:
    """One try. None if the file is whole now; otherwise what is to be said of this try.

    ``hashed``: the content is known, so that the end of the connection may end the file.

    Raises:
        InputError: the answer is not the file, and will not be.
        requests.RequestException: the connection failed; what came is kept.
    """
    version = part.version()
    there = part.size() if version.get("validator") and version.get("total") else 0
    if size not in (None, version.get("total")):
        there = 0
    if there and there == version["total"]:
        return None
    headers = {"Accept-Encoding": "identity"}  # bytes on the way are bytes of the file
    if there:
        headers |= {"Range": f"bytes={there}-", "If-Range": version["validator"]}
    with requests.get(part.url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            return f"the server answers {answer.status_code} {answer.reason}"  # that passes
        validator = _validator(answer)
        if answer.status_code == 206 and there:
            start, total = there, version["total"]
            said = answer.headers.get("Content-Range", "").strip()
            same = said == f"bytes {start}-{total - 1}/{total}"
            if not same or validator not in (None, version["validator"]):
                part.begin()  # the next try is for all of it
                return "the server has another version of the file by now"
        elif answer.status_code == 200:
            # Of a login or of maintenance: what has come of the file stays.
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise part.refusal("the server gives a web page, not the file")
            start, total = 0, _length(answer)
            if size is None and not hashed and not _ends_itself(answer):
                raise part.refusal("the server does not say how long the file is")
            part.begin(total, validator)
        elif answer.status_code == 416:  # the rest of a file that has become shorter
            part.begin()
            return "the server has not as much of the file as it said"
        else:
            raise part.refusal(f"the server answers {answer.status_code} {answer.reason}")
        if size is not None and total is not None and total != size:
            part.begin()
            raise part.refusal(f"the server has {total} bytes, expected {size}")
        check_room(part.path.parent, (total or 0) - start)
        bar.total, bar.n = total, start
        bar.refresh()
        with part.file.open("ab" if start else "wb", buffering=0) as file:
            for piece in _pieces(answer):
                rest = memoryview(piece)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError as error:
                    raise write_error(part.file, error, "folder") from None
                bar.update(len(piece))
    came = part.size()
    expected = size if total is None else total
    if expected is not None and came > expected:
        part.begin()
        raise part.refusal(f"{came} bytes came, expected {expected}")
    if expected is None or came == expected:
        return None
    return _ENDED


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """What comes, as it comes: of a connection that is dropped nothing is lost.

    (``iter_content`` keeps back what does not fill a piece, and a drop takes it away.)
    """
    if _is_packed(answer):
        yield from answer.iter_content(_PIECE)
        return
    try:
        while piece := answer.raw.read1(_PIECE):
            yield piece
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def _length(answer: requests.Response) -> int | None:
    """Bytes of the file, if the answer tells them."""
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() and not _is_packed(answer) else None


def _ends_itself(answer: requests.Response) -> bool:
    """Whether a connection that ends too early can be told from the end of the file."""
    return "Content-Length" in answer.headers or "chunked" in answer.headers.get(
        "Transfer-Encoding", ""
    )


def _is_packed(answer: requests.Response) -> bool:
    """Whether it is compressed on the way, though that was not asked for."""
    return answer.headers.get("Content-Encoding", "identity") != "identity"


def _validator(answer: requests.Response) -> str | None:
    """What says that two answers are of one version: a strong ETag, or the time of its change."""
    tag = answer.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return answer.headers.get("Last-Modified")


def _reason(error: Exception) -> str:
    """The innermost cause: requests wraps urllib3's error, which wraps the system's."""
    cause = first_cause(error)
    return _ENDED if isinstance(cause, http.client.IncompleteRead) else first_line(cause)
