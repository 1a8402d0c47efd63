"""The tables of `scores.toml`, which explains them."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

_TABLES = tomllib.loads(Path(__file__).with_name("scores.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Collection:
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
    """A voice of the SoundFont."""

    program: int  # General MIDI, from 0
    low: int  # MIDI pitch
    high: int  # MIDI pitch, inclusive
    label: str


# A layer of instruments, from high to low, shares all parts of the score. The layers of an ensemble
# double each other.
Layer = tuple[str, ...]
Ensemble = tuple[Layer, ...]

COLLECTIONS = {name: Collection(name, **row) for name, row in _TABLES["collections"].items()}
INSTRUMENTS = {name: Instrument(**row) for name, row in _TABLES["instruments"].items()}
# program → pitches, and the longest note there in seconds
LONGEST_NOTES: dict[int, tuple[list[int], float]] = {
    INSTRUMENTS[name].program: (row["pitches"], row["seconds"])
    for name, row in _TABLES["unstable"].items()
}
ORIGINS: dict[str, str] = _TABLES["origins"]  # word → label
DANCES: dict[str, str] = {name: row["pattern"] for name, row in _TABLES["dances"].items()}
# kind of music, or dance → notes per second in the busiest part, from and to
PACE: dict[str, list[float]] = {
    name: row["pace"]
    for name, row in (_TABLES["kinds"] | _TABLES["dances"]).items()
    if "pace" in row
}
# kind of music → (weight, ensemble) of each choice
ENSEMBLES: dict[str, list[tuple[float, Ensemble]]] = {
    kind: [
        (weight, tuple(tuple(layer.split(", ")) for layer in text.split(" + ")))
        for text, weight in row["ensembles"].items()
    ]
    for kind, row in _TABLES["kinds"].items()
}
