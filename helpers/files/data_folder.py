"""The folder of the data sets."""

import os
from pathlib import Path


def data_folder() -> Path:
    """Return the folder of ``scores/``, ``mtt/``, ``jamendo/`` and ``custom/``.

    It is ``MAEST_DATA``; else ``datasets`` of the checkout around this file or in the working
    directory; else, for an installed package, the user's cache.
    """
    if named := os.environ.get("MAEST_DATA"):
        return Path(named).expanduser().resolve()
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "ex_maest.py").is_file():
            return root / "datasets"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maest"
