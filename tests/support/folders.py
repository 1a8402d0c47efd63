"""Contents of folders and tables, kills and full disks."""

import contextlib
import csv
import errno
import json
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock


def tree(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """The content of each file below a folder, hidden ones too, by its name relative to it."""
    paths = (path for path in sorted(folder.rglob(pattern)) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    """What a strict reader makes of it: no NaN, no infinity."""

    def refuse(constant: str):
        raise AssertionError(f"{path}: {constant} is no JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


@contextlib.contextmanager
def unreadable(folder: str) -> Iterator[None]:
    """Folders of this name cannot be listed."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    with mock.patch.object(os, "scandir", refuse):
        yield


def peak_memory(function: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns, and the most bytes that it allocated at once."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Killed(BaseException):
    """Ends a program where it stands, in this process."""


@contextlib.contextmanager
def killed_at(n: int, owner: Any, name: str) -> Iterator[None]:
    """Nothing goes on after ``n`` calls of a function, such as ``killed_at(2, os, "replace")``."""
    original: Callable = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > n:
            raise Killed
        return original(*args, **options)

    with mock.patch.object(owner, name, wrapped), contextlib.suppress(Killed):
        yield


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes: the kernel refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
