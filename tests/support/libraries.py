"""Small music files, a library of them, and a model that needs no network."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from maest.helpers.errors import InputError
from maest.library import Analyse, Analysis, Library, Model

MODEL = Model("tiny", "0123", {"block": 7})


def write_wav(path: Path, seed: int, samples: int = 400) -> Path:
    """The smallest music: mono noise at 8 kHz, other noise for another seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.random.default_rng(seed).integers(-9999, 9999, samples, np.int16).tobytes()
    head = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(sound), b"WAVEfmt ", 16, 1, 1, 8000,
                       16000, 2, 16, b"data", len(sound))  # fmt: skip
    path.write_bytes(head + sound)
    return path


def each(function: Callable[[Path], Analysis]) -> Analyse:
    """What analyses files one by one."""

    def analyse(paths: list[Path]) -> Iterator[tuple[Path, Analysis | InputError]]:
        for path in paths:
            try:
                yield path, function(path)
            except InputError as error:
                yield path, error

    return analyse


def analysis(path: Path) -> Analysis:
    """Made up of the file's first samples, so that equal sounds have equal results."""
    values = np.frombuffer(path.read_bytes()[44:108], np.int16) / 10_000
    return Analysis([("Genre---Noise", float(abs(values[0])))], values, 0.05, ["0.1 s only"])


analyse = each(analysis)


class Counted:
    """`analyse` that keeps the names of what it was called with."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, paths: list[Path]) -> Iterator[tuple[Path, Analysis | InputError]]:
        self.names += [path.name for path in paths]
        return analyse(paths)


def index_slowly(library: Path, folder: Path, seconds: float) -> None:
    """Index, in a process of its own, with this time for each track; log each analysis."""

    @each
    def slowly(path: Path) -> Analysis:
        time.sleep(seconds)
        with open(library.with_name("log"), "a") as log:
            log.write(f"{os.getpid()} {path.name}\n")
        return analysis(path)

    with Library(library) as opened:
        opened.index(folder, MODEL, slowly)
