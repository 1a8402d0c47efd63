"""Ground truths of music that is known already: their labels win, and their splits stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maest.datasets.groundtruth import check_given, labels_beside, read_groundtruth
from maest.datasets.splitting import SPLITS
from maest.helpers.errors import InputError, Kind
from maest.helpers.names import first_few

_HINT = "Give the folder of groundtruth-{train,validation,test}.pk and labels.json of this audio."


@dataclass(frozen=True, eq=False)
class Known:
    folder: Path
    labels: list[str]
    tracks: dict[str, tuple[str, np.ndarray]]  # key → split, and float32 [K], NaN where unknown


def read_known(folder: str | Path) -> Known:
    """Read the three splits of a folder. Raises InputError if a file is missing or misfits."""
    tracks: dict[str, tuple[str, np.ndarray]] = {}
    names: list[str] | None = None
    for split in SPLITS:
        path = check_given(Path(folder) / f"groundtruth-{split}.pk", "--known")
        groundtruth = read_groundtruth(path)
        if (names := labels_beside(groundtruth)) is None:
            what = "no labels.json beside it: what do its targets mean?"
            raise InputError(what, kind="missing", path=path, setting="--known", hint=_HINT)
        targets = groundtruth.targets.astype(np.float32)
        for key, target in zip(groundtruth.keys, targets, strict=True):
            if key in tracks:
                what, hint = f"{key!r} is in two splits", "Keep each track in one split."
                raise InputError(what, kind="conflict", path=path, setting="--known", hint=hint)
            tracks[key] = (split, target)
    return Known(Path(folder), list(names or ()), tracks)


def match(sets: Sequence[Known], keys: Mapping[str, Sequence[str]]) -> dict[str, Known]:
    """The ground truth of each source that has one; ``keys`` are its tracks', with its name first.

    Keys of a ground truth may have the source's name first, or not. Raises InputError for one
    without tracks, or for a source or a ground truth that cannot tell the other.
    """
    known_of: dict[str, Known] = {}

    def refusal(what: str, kind: Kind, known: Known, hint: str) -> InputError:
        return InputError(what, kind=kind, path=known.folder, setting="--known", hint=hint)

    for known in sets:
        sources = [s for s in keys if any(key in known.tracks for key in keys[s])]
        if not sources:
            sources = [s for s in keys if any(_bare(key) in known.tracks for key in keys[s])]
            if len(sources) > 1:
                what = f"its tracks are in the sources {first_few(sources)}"
                raise refusal(what, "conflict", known, "Begin its keys with the source's name.")
        if not sources:
            raise refusal("no source has its tracks", "missing", known, _HINT)
        for source in sources:
            if source in known_of:
                what = f"{source} has another ground truth, {known_of[source].folder}"
                raise refusal(what, "conflict", known, "Give one for each source.")
            known_of[source] = known
    return known_of


def of_track(known: Known, key: str) -> tuple[str, np.ndarray] | None:
    """The split and the labels of a track, by its key with the source's name first."""
    return known.tracks.get(key) or known.tracks.get(_bare(key))


def _bare(key: str) -> str:
    return key.partition("/")[2]
