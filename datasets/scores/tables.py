"""The data behind the embedded data set, as `scores.toml` has it and explains it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

_TABLES = tomllib.loads(Path(__file__).with_name("scores.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Collection:
    """A body of like music in the corpus."""

    name: str
    weight: float
    patterns: list[str]
    by_folder: bool = False
    kind: str = ""
    style: str = ""
    tunes: bool = False
    essen: bool = False
    has_mode: bool = False


@dataclass(frozen=True)
class Instrument:
    """A voice of the SoundFont, its range (MIDI pitches, inclusive), and what it is called."""

    program: int
    low: int
    high: int
    label: str


# A layer is a row of instruments from high to low that shares all parts of the score among its
# members; an ensemble is one layer or several that double each other.
Layer = tuple[str, ...]
Ensemble = tuple[Layer, ...]


def _ensembles(weights: dict[str, float]) -> list[tuple[float, Ensemble]]:
    return [
        (weight, tuple(tuple(layer.split(", ")) for layer in text.split(" + ")))
        for text, weight in weights.items()
    ]


COLLECTIONS = {name: Collection(name, **own) for name, own in _TABLES["collections"].items()}
INSTRUMENTS = {name: Instrument(**own) for name, own in _TABLES["instruments"].items()}
# program → pitches, and the seconds that a note may last there
LONGEST_NOTES: dict[int, tuple[frozenset[int], float]] = {
    INSTRUMENTS[name].program: (frozenset(own["pitches"]), own["seconds"])
    for name, own in _TABLES["unstable"].items()
}
ORIGINS: dict[str, str] = _TABLES["origins"]  # word → label
DANCES: dict[str, str] = {name: own["pattern"] for name, own in _TABLES["dances"].items()}
# kind of music, or dance → notes a second in the busiest part, from and to
PACE: dict[str, list[float]] = {kind: own["pace"] for kind, own in _TABLES["kinds"].items()}
DANCE_PACE: dict[str, list[float]] = {
    name: own["pace"] for name, own in _TABLES["dances"].items() if "pace" in own
}
# kind of music → weight and ensemble of each choice
ENSEMBLES = {kind: _ensembles(own["ensembles"]) for kind, own in _TABLES["kinds"].items()}
