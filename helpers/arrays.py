"""NumPy files, which several threads may read at once."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np

# The header is a Python literal, and CPython 3.11 now and then fails where two threads parse one:
# "SystemError: AST constructor recursion depth mismatch".
_parsing = threading.Lock()


def load_array(path: str | Path, mapped: bool = False) -> np.ndarray:
    """Read a ``.npy`` file, or map it into memory, read-only.

    Raises:
        OSError, ValueError, EOFError: it cannot be read, or is no such file.
    """
    if mapped:
        with _parsing:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        content = io.BytesIO(Path(path).read_bytes())  # threads wait for the disk side by side
        with _parsing:
            found = np.load(content, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        raise ValueError("an archive of several arrays, expected one array")
    return found
