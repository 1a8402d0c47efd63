"""Playing a score: note events → an arrangement for an ensemble → 16 kHz audio.

A clip is a function of (work, seed, rendition) and nothing else: it does not matter in which
order, or by how many processes, clips are made.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maest.datasets.scores.corpus import TICKS_PER_QUARTER, Score, Work
from maest.datasets.scores.labels import dance_of, kind_of
from maest.datasets.scores.orchestration import (
    DANCE_PACE,
    INSTRUMENTS,
    LONGEST_NOTES,
    PACE,
    Instrument,
    assign,
    choose_ensemble,
    fold,
    octave_shift,
)
from maest.helpers.errors import InputError

SAMPLE_RATE = 16_000  # Hz; the front end's, which is not imported here: it needs torch

# Interpolation quality of the synthesizer. Held against its best (4) on single notes of 45 programs
# the log-mel (log10 scale; music spans 0 to 4) differs in the mean by 0.01 at 3, 0.02 at 2 and 0.06
# at 0; they run at 650, 900 and over 1000 times real time, 4 at 285. (5 and 6 are silent.)
_QUALITY = 3

_LEAD_IN = 2.0  # seconds played before a window, so that notes held into it do not start with it
_RING = 0.8  # seconds after the last note
_FADE_CUT = 0.03  # seconds, where a window cuts through the music
_MIN_SHARE = 0.15  # of the clip, in which an instrument must sound to be named
_GRID = 0.02  # seconds, the step at which sounding time is counted
SHORTEST_CLIP = 4.0  # seconds


@dataclass(frozen=True)
class Voice:
    """One part on one instrument.

    Attributes:
        instrument: who plays it.
        notes: float64 array [notes, 4]: start, duration (seconds), MIDI pitch, velocity (1-127).
    """

    instrument: Instrument
    notes: np.ndarray


@dataclass(frozen=True)
class Arrangement:
    """A whole work as one rendition plays it.

    Attributes:
        voices: who plays what.
        tempo: quarter notes a minute.
        transposition: semitones.
    """

    voices: list[Voice]
    tempo: float
    transposition: int

    @property
    def seconds(self) -> float:
        """From the start to the end of the last note."""
        return max(float((v.notes[:, 0] + v.notes[:, 1]).max()) for v in self.voices)


@dataclass(frozen=True)
class Clip:
    """A window of an arrangement, as it was rendered.

    Attributes:
        audio: float32 [samples], mono, 16 kHz, within ±1.
        start: where the window starts in the work, seconds.
        instruments: labels of the instruments that sound in it for long enough, sorted.
        programs: the General MIDI programs behind them, sorted.
    """

    audio: np.ndarray
    start: float
    instruments: list[str]
    programs: list[int]


class TooShort(ValueError):
    """A work that lasts less than the shortest clip."""


def generator(seed: int, work: Work, rendition: int) -> np.random.Generator:
    """The random numbers of one rendition of one work."""
    digest = hashlib.sha256(f"{seed}\n{work.id}\n{rendition}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


# ---- arranging -----------------------------------------------------------------------------------


def arrange(work: Work, score: Score, rng: np.random.Generator) -> Arrangement:
    """Draw an ensemble, tempo, key, articulation and dynamics, and share out the notes."""
    ensemble = choose_ensemble(kind_of(work, score), rng)
    tempo = _tempo(work, score, rng)
    transposition = int(rng.integers(-4, 5))
    legato = rng.uniform(0.78, 1.0)
    loudness = _Loudness(score, tempo, rng)
    seconds_per_tick = 60 / tempo / TICKS_PER_QUARTER

    voices = []
    for depth, layer in enumerate(ensemble):
        parts = assign(layer, score.n_parts)
        # All that one instrument plays moves by the same octaves, so that chords stay as they are.
        octaves = {}
        for name in dict.fromkeys(name for _, name in parts):
            played = np.isin(score.notes[:, 0], [part for part, other in parts if other == name])
            pitches = score.notes[played, 3] + transposition
            octaves[name] = octave_shift(pitches, INSTRUMENTS[name], rng)
        balance = rng.uniform(-8, 8) if depth else 0.0
        for part, name in parts:
            instrument = INSTRUMENTS[name]
            _, start, duration, pitch = score.notes[score.notes[:, 0] == part].T
            velocity = loudness(start, rng) + balance
            # Players of one part, and of one chord, are never quite together.
            late = rng.uniform(0, 0.02) + rng.normal(0, 0.006, len(start))
            notes = np.column_stack(
                [
                    np.maximum(start * seconds_per_tick + late, 0),
                    np.maximum(duration * seconds_per_tick * legato, 0.05),
                    fold(pitch + transposition + octaves[name], instrument),
                    np.clip(velocity, 20, 127),
                ]
            )
            voices.append(Voice(instrument, notes))
    return Arrangement(voices, tempo, transposition)


def _tempo(work: Work, score: Score, rng: np.random.Generator) -> float:
    """Quarter notes a minute: the printed tempo or, without one, the pace of such music."""
    printed = score.metadata.quarter_bpm
    if printed and 30 <= printed <= 300:
        return printed * rng.uniform(0.88, 1.12)
    pace = PACE[kind_of(work, score)]
    if dance := dance_of(work, score):
        pace = DANCE_PACE.get(dance, pace)
    quarters = [
        (len(np.unique(part[:, 1])), part[:, 2].sum() / TICKS_PER_QUARTER)
        for part in (score.notes[score.notes[:, 0] == i] for i in range(score.n_parts))
    ]
    busy = [n / max(q, 1.0) for n, q in quarters if n >= 4]
    notes_per_quarter = max(busy or [n / max(q, 1.0) for n, q in quarters])
    return float(np.clip(60 * rng.uniform(*pace) / notes_per_quarter, 25, 400))


class _Loudness:
    """Velocities: a level, swelling over phrases, an accent on the first beat of a bar, chance."""

    def __init__(self, score: Score, tempo: float, rng: np.random.Generator) -> None:
        metre = score.metadata.metre
        self._bar = None
        if metre:
            beats, unit = map(int, metre.split("/"))
            self._bar = round(beats * 4 / unit * TICKS_PER_QUARTER)
        self._level = rng.uniform(58, 105)
        self._swell = rng.uniform(2, 14)
        phrase = rng.uniform(4, 12)  # seconds
        self._rate = 2 * np.pi / (phrase * tempo / 60 * TICKS_PER_QUARTER)
        self._phase = rng.uniform(0, 2 * np.pi)
        self._accent = rng.uniform(0, 12)

    def __call__(self, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Starts in ticks → velocities, unclipped."""
        velocity = self._level + self._swell * np.sin(self._rate * start + self._phase)
        if self._bar:
            velocity = velocity + self._accent * (start % self._bar == 0)
        return velocity + rng.normal(0, 4, len(start))


# ---- rendering -----------------------------------------------------------------------------------


def render_clip(arrangement: Arrangement, seconds: float, rng: np.random.Generator) -> Clip:
    """Render a window of an arrangement, drawn at random; the whole of it if that is shorter.

    Args:
        arrangement: what to play.
        seconds: length of the window.
        rng: draws where it starts, and the level.

    Raises:
        TooShort: if all of it lasts less than 4 s (or less than the window, if that is shorter).
    """
    total = arrangement.seconds
    if total < min(SHORTEST_CLIP, seconds):
        raise TooShort(f"lasts {total:.1f} s, less than {min(SHORTEST_CLIP, seconds):g} s")
    is_cut = total + _RING > seconds
    start = rng.uniform(0, max(total - seconds, 0.0))
    length = seconds if is_cut else total + _RING
    lead_in = min(_LEAD_IN, start)

    voices = []
    for voice in arrangement.voices:
        onset = voice.notes[:, 0] - (start - lead_in)
        end = onset + voice.notes[:, 1]
        heard = (end > 0) & (onset < lead_in + length)
        # A note that is on when the lead-in starts begins with it; one that is on when the window
        # ends is played out, and the audio cut.
        onset = np.maximum(onset[heard], 0)
        notes = np.column_stack([onset, end[heard] - onset, voice.notes[heard, 2:]])
        if len(notes):
            voices.append(Voice(voice.instrument, notes))

    audio = synthesize(voices)
    first, samples = round(lead_in * SAMPLE_RATE), round(length * SAMPLE_RATE)
    audio = audio[first : first + samples]
    audio = np.pad(audio, (0, samples - len(audio)))
    _fade(audio, at_start=start > 0, at_end=is_cut)
    _set_level(audio, rng)
    heard = _sounding_instruments(voices, lead_in, length)
    return Clip(
        audio,
        start,
        sorted({instrument.label for instrument in heard}),
        sorted({instrument.program for instrument in heard}),
    )


def synthesize(voices: list[Voice]) -> np.ndarray:
    """Render voices with the General MIDI SoundFont: float32 [samples], at an arbitrary level.

    Raises:
        RuntimeError: if the synthesizer returns nonsense (a broken voice of the SoundFont).
    """
    from symusic import Note, Track
    from symusic import Score as Sequence

    sequence = Sequence(TICKS_PER_QUARTER, ttype="Second")
    # A track for each voice: a note that ends in one must not end the same pitch in another.
    for voice in voices:
        track = Track("", program=voice.instrument.program, is_drum=False, ttype="Second")
        start, duration, pitch, velocity = voice.notes.T
        pitches, longest = LONGEST_NOTES.get(voice.instrument.program, ((), np.inf))
        duration = np.where(np.isin(pitch, list(pitches)), np.minimum(duration, longest), duration)
        track.notes = Note.from_numpy(
            time=start.astype(np.float32),
            duration=duration.astype(np.float32),
            pitch=pitch.astype(np.int8),
            velocity=velocity.astype(np.int8),
            ttype="Second",
        )
        sequence.tracks.append(track)
    if not sequence.tracks:
        return np.zeros(0, np.float32)
    audio = np.array(_synthesizer().render(sequence, stereo=False)[0], np.float32)
    if not np.isfinite(audio).all() or np.abs(audio).max(initial=0) > 1000:
        programs = sorted({voice.instrument.program for voice in voices})
        raise RuntimeError(f"the synthesizer fails on one of the programs {programs}")
    return audio


def soundfont() -> Path:
    """pretty_midi's General MIDI SoundFont, found without importing pretty_midi.

    Raises:
        InputError: if it is not there.
    """
    spec = importlib.util.find_spec("pretty_midi")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(locations[0]) / "TimGM6mb.sf2" if locations else None
    if path is None or not path.is_file():
        raise InputError(
            f"the SoundFont is not there ({path})",
            kind="dependency",
            hint="Type pip install pretty_midi, which brings it.",
        )
    return path


def _synthesizer():
    """A new synthesizer: one that has played before starts from other states, and sounds other."""
    from symusic import Synthesizer

    return Synthesizer(sf_path=str(soundfont()), sample_rate=SAMPLE_RATE, quality=_QUALITY)


def _fade(audio: np.ndarray, at_start: bool, at_end: bool) -> None:
    samples = min(round(_FADE_CUT * SAMPLE_RATE), len(audio))
    ramp = np.linspace(0, 1, samples, dtype=np.float32)
    if at_start:
        audio[:samples] *= ramp
    if at_end:
        audio[len(audio) - samples :] *= ramp[::-1]


def _set_level(audio: np.ndarray, rng: np.random.Generator) -> None:
    """Scale to an RMS level drawn from -26 to -16 dB of full scale, peaks no higher than 0.98."""
    decibels = rng.uniform(-26, -16)
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    peak = float(np.abs(audio).max())
    if peak > 0:
        audio *= min(10 ** (decibels / 20) / rms, 0.98 / peak)


def _sounding_instruments(voices: list[Voice], first: float, length: float) -> list[Instrument]:
    """Instruments whose notes are on for at least the least share of the window."""
    steps = max(1, round(length / _GRID))
    on: dict[Instrument, np.ndarray] = {}
    for voice in voices:
        mask = on.setdefault(voice.instrument, np.zeros(steps, bool))
        starts = np.clip(np.floor((voice.notes[:, 0] - first) / _GRID), 0, steps).astype(int)
        ends = voice.notes[:, 0] + voice.notes[:, 1] - first
        ends = np.clip(np.ceil(ends / _GRID), 0, steps).astype(int)
        for a, b in zip(starts, ends, strict=True):
            mask[a:b] = True
    return [instrument for instrument, mask in on.items() if mask.mean() >= _MIN_SHARE]
