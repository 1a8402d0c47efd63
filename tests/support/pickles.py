"""Values as pickles of any protocol."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

PROTOCOLS = range(6)


def save(path: Path, value: object, protocol: int = 4) -> Path:
    """Pickle a value; bytes are written unchanged."""
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.fixture
def file(tmp_path) -> Callable[..., Path]:
    """Write a value, or raw bytes, as the pickle gt.pk; give its path."""
    return lambda value, protocol=4: save(tmp_path / "gt.pk", value, protocol)
