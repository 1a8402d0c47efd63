"""A folder of audio, and the store of log-mel files that preprocessing makes of it."""

from pathlib import Path

import numpy as np
import pytest
from folders import rows, tree
from music import write_audio

from maest.datasets import preprocess as module
from maest.datasets.audio_folder import mel_key
from maest.datasets.commands import Outcome
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.reading import read_audio

NAMES = ["5.wav", "6.mp3", "a/1.wav", "a/2.FLAC", "a/deep/er/3.mp3", "b.c/4.wav", "b.c/no.4.ogg"]
KEYS = [mel_key(name) for name in NAMES]


@pytest.fixture
def audio(tmp_path) -> Path:
    """Seven tracks of three formats in three folders."""
    for seed, name in enumerate(NAMES):
        write_audio(tmp_path / "audio" / name, 1 + 0.2 * seed, seed)
    return tmp_path / "audio"


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "mels"


@pytest.fixture
def made(audio, store) -> dict[str, bytes]:
    """The log-mel files of a first run."""
    assert run(audio, store).done == 7
    return mels(store)


def run(audio: Path, store: Path, **options) -> Outcome:
    return module.preprocess(audio, store, **{"progress": False, "num_workers": 1} | options)


def counts(report: Outcome) -> tuple[int, int, list[str]]:
    return report.done, report.skipped, sorted(report.failed)


def mels(store: Path) -> dict[str, bytes]:
    """The log-mel files of a store, leftovers of killed runs not among them."""
    return tree(store, "[!.]*.mmap")


def listed(path: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in rows(path)}


def matches(mel: Path, audio: Path) -> bool:
    return mel.read_bytes() == log_mel(read_audio(audio)).astype(np.float16).tobytes()
