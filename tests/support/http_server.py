"""A server on the loopback that answers as well, or as badly, as a test wants."""

import gzip
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import pytest


@dataclass
class Reply:
    """What a file's address answers; lists have one value a request, until there are no more."""

    content: bytes = b""
    status: int = 200
    statuses: list[int] = field(default_factory=list)  # before `status`
    drops: list[int] = field(default_factory=list)  # bytes until the connection is dropped
    ranges: bool = True  # whether Range is understood
    if_range: bool = True  # whether If-Range is
    length: str | int | None = "right"  # what Content-Length says; None: nothing
    etags: Sequence[str] | None = ('"one"',)  # the last one stays
    dated: str | None = None  # Last-Modified
    later: bytes | None = None  # the content from the second request on, if it changes
    kind: str | None = None  # Content-Type
    packed: bool = False  # sent as gzip, though nobody asked for that
    headers: dict[str, str] = field(default_factory=dict)  # more of them
    asked: int = 0  # requests so far


class Server:
    """In a thread, for ``with``; ``replies`` by names below ``url``; others get a 404."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.replies = {name: Reply(content) for name, content in (files or {}).items()}
        self.requests: list[tuple[str, str | None]] = []  # name, Range
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """From here on, connections are refused."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def asked(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [name for name, _ in self.requests]

    def find(self, name: str) -> Reply:
        return self.replies.get(name) or Reply(b"<html>no such page</html>", 404)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, wanted = request.path.removeprefix("/"), request.headers.get("Range")
        self.requests.append((name, wanted))
        reply = self.find(name)
        content = reply.content if reply.later is None or not reply.asked else reply.later
        tag = reply.etags[min(reply.asked, len(reply.etags) - 1)] if reply.etags else None
        status = reply.statuses.pop(0) if reply.statuses else reply.status
        reply.asked += 1
        headers = {"ETag": tag, "Last-Modified": reply.dated, "Content-Type": reply.kind}
        condition = request.headers.get("If-Range")
        current = not reply.if_range or condition in (None, tag, reply.dated)
        if wanted and reply.ranges and current and status == 200:
            first, total = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), len(content)
            if first < total:
                headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
                content, status = content[first:], 206
            else:
                headers["Content-Range"] = f"bytes */{total}"
                content, status = b"", 416
        if reply.packed:
            content, headers["Content-Encoding"] = gzip.compress(content), "gzip"
        if reply.length is not None:
            right = reply.length == "right" or status != 200
            headers["Content-Length"] = str(len(content) if right else reply.length)
        request.send_response(status)
        for header, value in {**headers, **reply.headers}.items():
            if value is not None:
                request.send_header(header, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[: reply.drops.pop(0)] if reply.drops else content)


@pytest.fixture
def no_waiting(monkeypatch):
    """Between tries; and no proxy."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


@pytest.fixture
def http_server(no_waiting) -> Iterator[Server]:
    with Server() as server:
        yield server
