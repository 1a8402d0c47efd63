"""The embedded data set: compositions of the music21 corpus, performed by a SoundFont."""

import logging
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from maest.helpers.files.data_folder import data_folder

log = logging.getLogger(__name__)

DATA_DIR = data_folder() / "scores" / "data"  # default folder of a build


def build_if_missing(paths: Iterable[str | Path | None]) -> None:
    """Build the data set if one of ``paths`` belongs to it; one process builds, others wait."""
    report = DATA_DIR / "report.json"  # written last
    embedded = (DATA_DIR in Path(path).resolve().parents for path in paths if path is not None)
    if not any(embedded) or report.exists():
        return
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    with FileLock(DATA_DIR / ".prepare.lock"):
        if not report.exists():
            from maest.datasets.scores.preprocess import build  # its libraries are slow to import

            log.info("building the embedded data set, once, in a minute or two: %s", DATA_DIR)
            build()
