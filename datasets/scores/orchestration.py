"""What such music is played on: instruments, and the ensembles of each kind of music. Plain data.

No instrument belongs to one kind of music: an ear (or a network) that knows the instruments knows
something about the style, but not the style.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instrument:
    """A voice of the SoundFont.

    Ranges stay well below the pitches at which symusic 0.5.8 never returns (found by trying every
    semitone: organ 95, accordion 89, bandoneon 90, fiddle 92). Program 78 is missing: it overflows.

    Attributes:
        program: General MIDI program, 0-based.
        low, high: playable range, MIDI pitches, both inclusive.
        label: what a listener calls it; its name in the instrument ground truth.
    """

    program: int
    low: int
    high: int
    label: str


INSTRUMENTS = {
    "piano": Instrument(0, 28, 100, "Piano"),
    "harpsichord": Instrument(6, 29, 88, "Harpsichord"),
    "dulcimer": Instrument(15, 50, 90, "Dulcimer"),
    "organ": Instrument(19, 36, 86, "Organ"),
    "chamber organ": Instrument(16, 36, 91, "Organ"),
    "accordion": Instrument(21, 53, 84, "Accordion"),
    "button accordion": Instrument(23, 53, 84, "Accordion"),
    "guitar": Instrument(24, 40, 83, "Guitar"),
    "steel guitar": Instrument(25, 40, 83, "Guitar"),
    "violin": Instrument(40, 55, 93, "Violin"),
    "viola": Instrument(41, 48, 84, "Viola"),
    "cello": Instrument(42, 36, 74, "Cello"),
    "harp": Instrument(46, 31, 98, "Harp"),
    "string section": Instrument(48, 36, 91, "String Section"),
    "choir": Instrument(52, 40, 82, "Voices"),
    "voice": Instrument(53, 43, 82, "Voices"),
    "trumpet": Instrument(56, 54, 84, "Brass"),
    "trombone": Instrument(57, 36, 72, "Brass"),
    "tuba": Instrument(58, 29, 58, "Brass"),
    "horn": Instrument(60, 41, 77, "Brass"),
    "oboe": Instrument(68, 58, 88, "Oboe"),
    "bassoon": Instrument(70, 34, 70, "Bassoon"),
    "clarinet": Instrument(71, 50, 89, "Clarinet"),
    "piccolo": Instrument(72, 74, 100, "Flute"),
    "flute": Instrument(73, 60, 93, "Flute"),
    "recorder": Instrument(74, 60, 96, "Recorder"),
    "shakuhachi": Instrument(77, 55, 86, "Shakuhachi"),
    "banjo": Instrument(105, 48, 86, "Banjo"),
    "koto": Instrument(107, 45, 88, "Koto"),
    "bagpipe": Instrument(109, 60, 84, "Bagpipe"),
    "fiddle": Instrument(110, 55, 88, "Violin"),
}

# Of these programs and pitches symusic 0.5.8 plays long notes beyond the end of the sample, and
# what is heard then is what the memory happens to hold: program → (pitches, seconds that a note may
# last). Found by playing every semitone for up to 12 s in memory of two known contents.
LONGEST_NOTES: dict[int, tuple[frozenset[int], float]] = {
    48: (frozenset({56, 59, 60, 89, 90}), 1.5),
    56: (frozenset(range(57, 64)), 1.0),
}

# A layer is a row of instruments from high to low that shares all parts of the score among its
# members; an ensemble is one layer or several that double each other.
Layer = tuple[str, ...]
Ensemble = tuple[Layer, ...]

_CONSORT: Layer = ("recorder", "recorder", "viola", "cello")
_STRINGS: Layer = ("violin", "violin", "viola", "cello")
_BRASS: Layer = ("trumpet", "trumpet", "trombone", "tuba")
_WINDS: Layer = ("flute", "oboe", "clarinet", "bassoon")
_HORNS: Layer = ("trumpet", "horn", "trombone", "trombone")


def _solo(*names: str) -> list[tuple[float, Ensemble]]:
    return [(1.0, ((name,),)) for name in names]


# kind of music → (weight, ensemble). The first few of each are what one expects to hear; the others
# overlap with other kinds.
ENSEMBLES: dict[str, list[tuple[float, Ensemble]]] = {
    "mass": [
        (8.0, (("choir",),)),
        (3.0, (("choir",), ("organ",))),
        (1.0, (("organ",),)),
        (0.7, (("choir",), _HORNS)),
        (0.5, (_HORNS,)),
        (0.5, (_CONSORT,)),
    ],
    "madrigal": [
        (5.0, (("voice", "voice", "voice", "guitar", "cello"),)),
        (5.0, (("choir",), ("harpsichord",))),
        (2.0, (("harpsichord",),)),
        (1.0, (("recorder", "recorder", "guitar", "cello"),)),
        (0.7, (("choir",),)),
        (0.5, (("viola", "viola", "cello", "cello"),)),
        (0.5, (_CONSORT,)),
    ],
    "trecento": [
        (4.0, (("voice", "fiddle", "harp"),)),
        (4.0, (("recorder", "harp", "viola"),)),
        (2.0, (("voice", "recorder", "harp"),)),
        (1.0, (("harp",),)),
        (0.6, (("chamber organ",),)),
        (0.6, (("fiddle", "viola", "viola"),)),
        (0.5, (("voice",),)),
        (0.4, (("oboe", "trumpet", "trombone"),)),
    ],
    "chorale": [
        (6.0, (("organ",),)),
        (2.0, (("choir",), ("organ",))),
        (2.0, (("oboe", "oboe", "horn", "bassoon"),)),
        (2.0, (_BRASS,)),
        (0.5, (("choir",),)),
        (0.4, (_WINDS,)),
        (0.4, (("choir",), _STRINGS)),
        (0.4, (("piano",),)),
    ],
    "quartet": [
        (12.0, (_STRINGS,)),
        (0.7, (("string section",),)),
        (0.5, (("flute", "violin", "viola", "cello"),)),
        (0.5, (("clarinet", "violin", "viola", "cello"),)),
        (0.4, (_WINDS,)),
        (0.4, (("piano",),)),
    ],
    "american fiddle tune": [
        (5.0, (("fiddle",), ("banjo",))),
        (4.0, (("banjo",),)),
        (2.5, (("fiddle",), ("steel guitar",))),
        (1.5, (("fiddle",), ("piano",))),
        (1.0, (("fiddle",),)),
        (0.5, (("steel guitar",),)),
        (0.5, (("piano",),)),
        (0.5, (("button accordion",),)),
    ],
    "irish tune": [
        (4.0, (("accordion",),)),
        (4.0, (("flute",),)),
        (1.5, (("fiddle",), ("flute",))),
        (1.5, (("fiddle",), ("accordion",))),
        (1.0, (("recorder",), ("harp",))),
        (0.6, (("fiddle",),)),
        (0.6, (("recorder",),)),
        (0.4, (("bagpipe",),)),
        (0.4, (("harp",),)),
        (0.4, (("banjo",),)),
    ],
    "scottish tune": [
        (5.0, (("bagpipe",),)),
        (1.5, (("violin",), ("cello",))),
        (3.0, (("violin",), ("harpsichord",))),
        (1.0, (("piccolo",),)),
        (0.6, (("fiddle",),)),
        (0.6, (("flute",),)),
        (0.4, (("button accordion",),)),
    ],
    "northumbrian tune": [
        (1.5, (("bagpipe",), ("fiddle",))),
        (1.0, (("bagpipe",),)),
        (4.0, (("voice",), ("fiddle",))),
        (1.0, (("voice",),)),
        (0.5, (("recorder",),)),
    ],
    "song": [
        (4.0, (("voice",), ("guitar",))),
        (4.0, (("voice",), ("accordion",))),
        (2.0, (("clarinet",), ("accordion",))),
        (1.0, (("voice",),)),
        (1.0, (("clarinet",), ("guitar",))),
        (0.7, (("voice",), ("piano",))),
        (0.5, (("guitar",),)),
        (0.4, (("horn",),)),
        (0.4, (("violin",),)),
        (0.4, (("choir",),)),
    ],
    "chinese song": [
        (4.0, (("koto",),)),
        (2.0, (("dulcimer",),)),
        (3.0, (("flute",), ("koto",))),
        (2.0, (("fiddle",), ("dulcimer",))),
        (1.0, (("shakuhachi",),)),
        (1.0, (("shakuhachi",), ("koto",))),
        (0.4, (("oboe",),)),
        (0.7, (("voice",), ("koto",))),
        (0.4, (("fiddle",),)),
        (0.4, (("voice",),)),
    ],
    "march": [
        (3.0, (("piccolo",),)),
        (2.0, (("piccolo",), ("trumpet",))),
        *_solo("bagpipe", "trumpet", "flute", "clarinet", "fiddle"),
        (1.0, (("flute",), ("clarinet",))),
        (0.7, (("trumpet",), ("horn",))),
    ],
    "keyboard": [
        (6.0, (("piano",),)),
        (0.7, (("banjo", "guitar"),)),
        (0.7, (("harpsichord",),)),
        (0.7, (("accordion",),)),
        (0.7, (("clarinet", "trumpet", "trombone", "tuba"),)),
    ],
    "chamber": [
        (2.0, (_STRINGS,)),
        (1.5, (_WINDS,)),
        (1.0, (("piano",),)),
        (1.0, (("choir",),)),
        (1.0, (("string section",),)),
        (1.0, (("voice", "guitar"),)),
    ],
}

# How fast each kind of music goes: notes a second in its busiest part. A printed tempo comes first.
PACE: dict[str, tuple[float, float]] = {
    "mass": (1.5, 2.6),
    "madrigal": (1.8, 3.2),
    "trecento": (2.4, 4.4),
    "chorale": (1.5, 2.6),
    "quartet": (2.2, 6.0),
    "american fiddle tune": (4.2, 6.8),
    "irish tune": (4.2, 6.8),
    "scottish tune": (4.2, 6.8),
    "northumbrian tune": (4.2, 6.8),
    "song": (1.7, 3.2),
    "chinese song": (1.7, 3.8),
    "march": (3.4, 5.2),
    "keyboard": (3.5, 7.0),
    "chamber": (2.0, 4.5),
}
# The same for tunes whose dance is known.
DANCE_PACE: dict[str, tuple[float, float]] = {
    "Reel": (5.2, 7.5),
    "Jig": (4.8, 6.6),
    "Slip Jig": (4.8, 6.6),
    "Hornpipe": (4.4, 6.2),
    "Clog": (4.4, 6.0),
    "Strathspey": (3.4, 5.0),
    "Highland Fling": (3.8, 5.4),
    "March": (3.2, 5.0),
    "Waltz": (2.4, 4.0),
    "Minuet": (2.4, 4.0),
}


def choose_ensemble(kind: str, rng: np.random.Generator) -> Ensemble:
    """Draw an ensemble for a kind of music, by weight."""
    weights, ensembles = zip(*ENSEMBLES[kind], strict=True)
    share = np.asarray(weights) / sum(weights)
    return ensembles[int(rng.choice(len(ensembles), p=share))]


def assign(layer: Layer, n_parts: int) -> list[tuple[int, str]]:
    """Share the parts of a score (0 the highest) among the instruments of a layer, high to low.

    With more parts than instruments an instrument plays several; with fewer, the layer's
    instruments at the matching heights play and the others are silent.
    """
    if n_parts == 1:
        return [(0, layer[0])]
    last = len(layer) - 1
    return [(part, layer[round(part * last / (n_parts - 1))]) for part in range(n_parts)]


def octave_shift(
    pitches: np.ndarray, instrument: Instrument, rng: np.random.Generator, stay: float = 0.75
) -> int:
    """The transposition by octaves that brings most notes into an instrument's range.

    Args:
        pitches: MIDI pitches, int array [notes].
        instrument: whose range it is.
        rng: draws among equally good octaves.
        stay: how often the octave nearest to the written one is taken.

    Returns:
        a multiple of 12, in semitones.
    """
    shifts = np.arange(-48, 49, 12)
    moved = pitches[None, :] + shifts[:, None]
    outside = ((moved < instrument.low) | (moved > instrument.high)).sum(axis=1)
    best = shifts[outside == outside.min()]
    best = best[np.argsort(np.abs(best), kind="stable")]
    return int(best[0] if len(best) == 1 or rng.random() < stay else rng.choice(best[1:]))


def fold(pitches: np.ndarray, instrument: Instrument) -> np.ndarray:
    """Move the notes outside an instrument's range into it, each by as few octaves as it takes."""
    folded = pitches.copy()
    while (low := folded < instrument.low).any():
        folded[low] += 12
    while (high := folded > instrument.high).any():
        folded[high] -= 12
    return folded
