"""A small MagnaTagATune in the format of the published one, and a server that gives it out."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

FOLDERS = "0123456789abcdef"
SPLITS = {"train": "0123456789ab", "validation": "c", "test": "def"}
EMPTY = ("6/empty-one-117-146.mp3", "8/empty-two-0-29.mp3", "9/empty-three-88-117.mp3")
N_FREQUENT, N_RARE = 50, 14
PARTS = ("mp3.zip.001", "mp3.zip.002", "mp3.zip.003")
TABLE = "annotations_final.csv"
_RATE = 16_000


@dataclass(frozen=True)
class Miniature:
    """The data set.

    Attributes:
        audio: clip → the MP3's bytes, in the table's order; three have none.
        tags: clip → its tags.
        columns: the tags in the table's order: 50 that are on some clips of each split, and 14 that
            are on one clip at most.
        labels: the 50, in alphabetical order.
    """

    audio: dict[str, bytes]
    tags: dict[str, list[str]]
    columns: list[str]
    labels: list[str]

    def split(self, clip: str) -> str:
        return next(split for split, folders in SPLITS.items() if clip[0] in folders)

    def sounding(self) -> list[str]:
        """The clips that are no empty files."""
        return [clip for clip, content in self.audio.items() if content]

    def target(self, clip: str) -> list[int]:
        return [int(label in self.tags[clip]) for label in self.labels]

    def files(self) -> dict[str, bytes]:
        """What is published: name → content."""
        return {TABLE: self.table(), **dict(zip(PARTS, in_parts(self.archive()), strict=True))}

    def table(self) -> bytes:
        text = io.StringIO(newline="")
        rows = csv.writer(text, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        rows.writerow(["clip_id", *self.columns, "mp3_path"])
        for number, (clip, own) in enumerate(self.tags.items(), 2):
            rows.writerow([number, *(int(tag in own) for tag in self.columns), clip])
        return text.getvalue().encode()

    def archive(self) -> bytes:
        """As one file, with its folders as members too."""
        members = {
            name: self.audio.get(name, b"")
            for folder in FOLDERS
            for name in (f"{folder}/", *(clip for clip in self.audio if clip[0] == folder))
        }
        return zipped(members)

    def write_audio(self, folder: Path) -> Path:
        for clip, content in self.audio.items():
            (folder / clip).parent.mkdir(parents=True, exist_ok=True)
            (folder / clip).write_bytes(content)
        return folder


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive; the same whenever it is made."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def in_parts(archive: bytes) -> list[bytes]:
    """Two of one size, and a smaller one, cut without regard to what is in them."""
    size = len(archive) * 2 // 5
    return [archive[:size], archive[size : 2 * size], archive[2 * size :]]


@cache
def miniature(clips_per_folder: int = 2, seconds: float = 0.5) -> Miniature:
    """Clips with noise, and with a tone for each of the frequent tags that they have."""
    rng = np.random.default_rng(0)
    kinds = ["soft", "loud", "fast", "slow"]
    names = [f"{kinds[i % 4]} {i:02d}" for i in range(N_FREQUENT + N_RARE)]
    columns = [names[i] for i in rng.permutation(len(names))]
    frequent, rare = columns[5 : 5 + N_FREQUENT], columns[:5] + columns[5 + N_FREQUENT :]
    clips = [
        f"{folder}/band_{folder}-album-{i:02d}-a_song-{29 * i}-{29 * i + 29}.mp3"
        for folder in FOLDERS
        for i in range(clips_per_folder)
    ]
    tags: dict[str, list[str]] = {clip: [] for clip in clips}
    for folders in SPLITS.values():
        own = [clip for clip in clips if clip[0] in folders]
        for tag in frequent:  # on one clip of each split at least, and never on all
            for i in rng.permutation(len(own))[: max(1, round(len(own) * rng.uniform(0.1, 0.6)))]:
                tags[own[i]].append(tag)
    for i, tag in enumerate(rare[:-1]):  # the last is on none
        tags[clips[i % len(clips)]].append(tag)
    tags[clips[0]] = [tag for tag in tags[clips[0]] if tag in rare]  # a clip without a label
    tags |= {clip: [frequent[0]] for clip in EMPTY}
    audio = {}
    time = np.arange(round(seconds * _RATE)) / _RATE
    for clip in sorted(tags):
        if clip in EMPTY:
            audio[clip] = b""
            continue
        sound = 0.01 * rng.standard_normal(len(time))
        for tag in set(tags[clip]) & set(frequent):
            sound += 0.03 * np.sin(2 * np.pi * 150 * 1.07 ** frequent.index(tag) * time)
        file = io.BytesIO()
        soundfile.write(file, sound, _RATE, format="MP3")
        audio[clip] = file.getvalue()
    return Miniature(audio, {clip: tags[clip] for clip in audio}, columns, sorted(frequent))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Between tries; and no proxy. Of the modules that import it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


# ---- the server ----------------------------------------------------------------------------------


@dataclass
class Reply:
    """What a file's address answers.

    Attributes:
        content: of the file.
        status: of the answer; those of ``statuses`` come before it, one a request.
        drops: bytes after which the connection is dropped, one a request, until there are no more.
        ranges: whether Range is understood; ``if_range``: whether If-Range is.
        length: what Content-Length says; "right", None for nothing, or a number.
        etags: of the answers, one a request; the last one stays. None for none.
        dated: what Last-Modified says, if anything.
        later: what the content is from the second request on, if it changes.
        kind: what Content-Type says, if anything.
        packed: whether it comes as gzip, though nobody asked for that.
        asked: how many requests there were.
    """

    content: bytes
    status: int = 200
    statuses: list[int] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    ranges: bool = True
    if_range: bool = True
    length: str | int | None = "right"
    etags: Sequence[str] | None = ('"one"',)
    dated: str | None = None
    later: bytes | None = None
    kind: str | None = None
    packed: bool = False
    asked: int = 0


class Server:
    """On the loopback, in a thread; used with ``with``."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.replies = {name: Reply(content) for name, content in (files or {}).items()}
        self.requests: list[tuple[str, str | None]] = []  # name, Range
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer._answer(self)

            def log_message(self, *_args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/data"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> Server:
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

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.removeprefix("/data/")
        wanted = request.headers.get("Range")
        self.requests.append((name, wanted))
        reply = self.replies.get(name) or Reply(b"<html>no such page</html>", 404)
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
        for header, value in headers.items():
            if value is not None:
                request.send_header(header, value)
        request.end_headers()
        request.wfile.write(content[: reply.drops.pop(0)] if reply.drops else content)
