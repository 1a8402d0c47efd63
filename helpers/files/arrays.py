"""Reading of NumPy files, safe in several threads."""

import io
import threading
from pathlib import Path

import numpy as np

from maest.helpers.errors import InputError, Kind

# The header is a Python literal, and CPython 3.11 sometimes fails when two threads parse one:
# "SystemError: AST constructor recursion depth mismatch".
_parsing = threading.Lock()


def load_array(
    path: str | Path, hint: str, setting: str | None = None, mapped: bool = False
) -> np.ndarray:
    """Read or map (read-only) a ``.npy`` file; InputError "missing" or "corrupt", with the hint."""
    kind: Kind = "corrupt"
    try:
        # Threads wait for the disk side by side.
        source = path if mapped else io.BytesIO(Path(path).read_bytes())
        with _parsing:
            array = np.load(source, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        why = "an archive of several arrays"
    except Exception as error:  # a damaged header may raise any, even MemoryError
        why = " ".join(str(error).split())
        kind = "missing" if isinstance(error, FileNotFoundError) else kind
    raise InputError(f"cannot be read ({why})", kind=kind, path=path, setting=setting, hint=hint)
