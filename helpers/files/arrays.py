"""Reading of NumPy files, safe in several threads."""

import io
import threading
from pathlib import Path

import numpy as np

# The header is a Python literal, and CPython 3.11 sometimes fails when two threads parse one:
# "SystemError: AST constructor recursion depth mismatch".
_parsing = threading.Lock()


def load_array(path: str | Path, mapped: bool = False) -> np.ndarray:
    """Read or map (read-only) a ``.npy`` file; OSError, ValueError or EOFError if that fails."""
    # Threads wait for the disk side by side.
    source = path if mapped else io.BytesIO(Path(path).read_bytes())
    with _parsing:
        array = np.load(source, mmap_mode="r" if mapped else None, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of several arrays, expected one array")
    return array
