"""Fixtures for the tags of music files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tagged_music import write_tagged


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "logs" / "tags.jsonl"


@pytest.fixture
def song(tmp_path) -> Path:
    """An MP3 with tags of others."""
    write_tagged(tmp_path / "v24.mp3")
    return tmp_path / "v24.mp3"
