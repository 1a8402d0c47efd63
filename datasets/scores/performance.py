"""Perform a score as 16 kHz audio, which depends only on its work, the seed and the rendition."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maest.datasets.scores import tables
from maest.datasets.scores.corpus import Work, package_file
from maest.datasets.scores.labels import dance_of, kind_of
from maest.datasets.scores.reading import TICKS_PER_QUARTER, Score
from maest.datasets.scores.tables import Ensemble, Instrument, Layer
from maest.helpers.audio.constants import SAMPLE_RATE

# Interpolation quality of the synthesizer. Compared with its best (4) on single notes of 45
# programs, the log-mel (log10 scale; music spans 0 to 4) differs in the mean by 0.01 at 3, 0.02 at
# 2 and 0.06 at 0. They run at 650, 900 and over 1000 times real time, 4 at 285; 5 and 6 are silent.
_QUALITY = 3

# Seconds
_LEAD_IN = 2.0  # before a window, so that notes held into it do not start with it
RING = 0.8  # after the last note
_FADE_CUT = 0.03  # where a window cuts through the music
_SHORTEST_CLIP = 4.0
_GRID = 0.02  # resolution of sounding time

_MIN_SHARE = 0.15  # of the clip, in which an instrument must sound to be a label
_WRITTEN_OCTAVE = 0.75  # probability of the octave nearest to the written one


class Voice(NamedTuple):
    """One part on one instrument."""

    instrument: Instrument
    notes: np.ndarray  # float64 [notes, 4]: start, duration (seconds), MIDI pitch, velocity (1-127)


class Arrangement(NamedTuple):
    """A whole work, as one rendition plays it."""

    voices: list[Voice]
    tempo: float  # quarter notes per minute
    transposition: int  # semitones


class Clip(NamedTuple):
    """A rendered window of an arrangement."""

    audio: np.ndarray  # float32 [samples], mono, 16 kHz, within ±1
    start: float  # of the window in the work, seconds
    instruments: list[Instrument]  # that sound long enough


class TooShort(ValueError):
    """The work lasts less than the shortest clip."""


# ---- arranging -----------------------------------------------------------------------------------


def arrange(work: Work, score: Score, rng: np.random.Generator) -> Arrangement:
    """Draw ensemble, tempo, key, articulation and dynamics, and assign the notes to voices."""
    ensemble = choose_ensemble(kind_of(work, score), rng)
    tempo = _tempo(work, score, rng)
    transposition = int(rng.integers(-4, 5))
    legato = rng.uniform(0.78, 1.0)
    loudness = _loudness(score, tempo, rng)
    seconds_per_tick = 60 / tempo / TICKS_PER_QUARTER
    voices = []
    for depth, layer in enumerate(ensemble):
        parts = assign(layer, score.n_parts)
        # All parts of an instrument move by the same octaves, which keeps chords.
        octaves = {}
        for name in dict.fromkeys(name for _, name in parts):
            played = np.isin(score.notes[:, 0], [part for part, other in parts if other == name])
            pitches = score.notes[played, 3] + transposition
            octaves[name] = octave_shift(pitches, tables.INSTRUMENTS[name], rng)
        balance = rng.uniform(-8, 8) if depth else 0.0
        for part, name in parts:
            instrument = tables.INSTRUMENTS[name]
            _, start, duration, pitch = score.notes[score.notes[:, 0] == part].T
            velocity = np.clip(loudness(start) + balance, 20, 127)
            # Players of one part, and of one chord, are never quite together.
            late = rng.uniform(0, 0.02) + rng.normal(0, 0.006, len(start))
            onset = np.maximum(start * seconds_per_tick + late, 0)
            held = np.maximum(duration * seconds_per_tick * legato, 0.05)
            pitch = fold(pitch + transposition + octaves[name], instrument)
            voices.append(Voice(instrument, np.column_stack([onset, held, pitch, velocity])))
    return Arrangement(voices, tempo, transposition)


def choose_ensemble(kind: str, rng: np.random.Generator) -> Ensemble:
    """Draw an ensemble for a kind of music, by weight (`tables.ENSEMBLES`)."""
    weights, ensembles = zip(*tables.ENSEMBLES[kind], strict=True)
    share = np.asarray(weights) / sum(weights)
    return ensembles[int(rng.choice(len(ensembles), p=share))]


def assign(layer: Layer, n_parts: int) -> list[tuple[int, str]]:
    """Assign parts (0 is the highest) to a layer's instruments, from high to low.

    With more parts than instruments, an instrument plays several; with fewer, some stay silent.
    """
    last = len(layer) - 1
    return [(part, layer[round(part * last / max(n_parts - 1, 1))]) for part in range(n_parts)]


def octave_shift(pitches: np.ndarray, instrument: Instrument, rng: np.random.Generator) -> int:
    """Draw an octave shift (semitones) that brings most MIDI pitches into an instrument's range."""
    shifts = np.arange(-48, 49, 12)
    moved = pitches[None, :] + shifts[:, None]
    outside = ((moved < instrument.low) | (moved > instrument.high)).sum(axis=1)
    best = shifts[outside == outside.min()]
    best = best[np.argsort(np.abs(best), kind="stable")]
    stays = len(best) == 1 or rng.random() < _WRITTEN_OCTAVE
    return int(best[0] if stays else rng.choice(best[1:]))


def fold(pitches: np.ndarray, instrument: Instrument) -> np.ndarray:
    """Move MIDI pitches outside an instrument's range into it, by as few octaves as possible."""
    up = np.maximum(-(-(instrument.low - pitches) // 12), 0)
    pitches = pitches + 12 * up
    return pitches - 12 * np.maximum(-(-(pitches - instrument.high) // 12), 0)


def _tempo(work: Work, score: Score, rng: np.random.Generator) -> float:
    """Draw quarter notes per minute: near the printed tempo or, without one, from a usual pace."""
    printed = score.metadata.quarter_bpm
    if printed and 30 <= printed <= 300:
        return printed * rng.uniform(0.88, 1.12)
    dance = dance_of(work, score)
    slow, fast = tables.PACE[dance if dance in tables.PACE else kind_of(work, score)]
    rates = []  # for each part: onsets, and onsets per quarter note
    for i in range(score.n_parts):
        part = score.notes[score.notes[:, 0] == i]
        onsets = len(np.unique(part[:, 1]))
        rates.append((onsets, onsets / max(part[:, 2].sum() / TICKS_PER_QUARTER, 1.0)))
    busy = [rate for onsets, rate in rates if onsets >= 4] or [rate for _, rate in rates]
    return float(np.clip(60 * rng.uniform(slow, fast) / max(busy), 25, 400))


def _loudness(
    score: Score, tempo: float, rng: np.random.Generator
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from starts (ticks) to velocities: level, swell of phrases, first beats, noise."""
    beats, unit = map(int, (score.metadata.metre or "0/4").split("/"))
    bar = round(beats * 4 / unit * TICKS_PER_QUARTER)
    level, swell = rng.uniform(58, 105), rng.uniform(2, 14)
    phrase = rng.uniform(4, 12)  # seconds
    rate = 2 * np.pi / (phrase * tempo / 60 * TICKS_PER_QUARTER)
    phase, accent = rng.uniform(0, 2 * np.pi), rng.uniform(0, 12)

    def velocity(start: np.ndarray) -> np.ndarray:
        values = level + swell * np.sin(rate * start + phase)
        if bar:
            values = values + accent * (start % bar == 0)
        return values + rng.normal(0, 4, len(start))

    return velocity


# ---- rendering -----------------------------------------------------------------------------------


def render_clip(
    arrangement: Arrangement,
    seconds: float,
    rng: np.random.Generator,
    render: Callable[[list[Voice]], np.ndarray] | None = None,
) -> Clip:
    """Render a random window of ``seconds``, or all of a shorter arrangement.

    ``render`` plays voices (float32 [samples], 16 kHz); by default :func:`synthesize`.
    Raises TooShort if the work lasts less than 4 s (or less than ``seconds``, if shorter).
    """
    total = max(float(voice.notes[:, :2].sum(axis=1).max()) for voice in arrangement.voices)
    shortest = min(_SHORTEST_CLIP, seconds)
    if total < shortest:
        raise TooShort(f"lasts {total:.1f} s, less than {shortest:g} s")
    is_cut = total + RING > seconds
    start = rng.uniform(0, max(total - seconds, 0.0))
    length = seconds if is_cut else total + RING
    lead_in = min(_LEAD_IN, start)

    voices = []
    for voice in arrangement.voices:
        onset = voice.notes[:, 0] - (start - lead_in)
        end = onset + voice.notes[:, 1]
        sounds = (end > 0) & (onset < lead_in + length)
        # A note held into the lead-in starts with it; one held past the window plays out, and
        # its audio is cut.
        onset = np.maximum(onset[sounds], 0)
        notes = np.column_stack([onset, end[sounds] - onset, voice.notes[sounds, 2:]])
        if len(notes):
            voices.append(Voice(voice.instrument, notes))

    audio = (render or synthesize)(voices)
    first, samples = round(lead_in * SAMPLE_RATE), round(length * SAMPLE_RATE)
    audio = audio[first : first + samples]
    audio = np.pad(audio, (0, samples - len(audio)))
    ramp = np.linspace(0, 1, min(round(_FADE_CUT * SAMPLE_RATE), samples), dtype=np.float32)
    if start > 0:
        audio[: len(ramp)] *= ramp
    if is_cut:
        audio[samples - len(ramp) :] *= ramp[::-1]
    decibels = rng.uniform(-26, -16)  # RMS; peaks stay below 0.98
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    peak = float(np.abs(audio).max())
    if peak > 0:
        audio *= min(10 ** (decibels / 20) / rms, 0.98 / peak)
    return Clip(audio, start, _sounding_instruments(voices, lead_in, length))


def synthesize(voices: list[Voice]) -> np.ndarray:
    """Render voices with the General MIDI SoundFont: float32 [samples], at an arbitrary level.

    Raises RuntimeError if the output is not finite or far too loud (a broken voice of the font).
    """
    from symusic import Note, Synthesizer, Track
    from symusic import Score as Sequence

    sequence = Sequence(TICKS_PER_QUARTER, ttype="Second")
    # A track for each voice: a note that ends in one must not end the same pitch in another.
    for voice in voices:
        track = Track("", program=voice.instrument.program, is_drum=False, ttype="Second")
        start, duration, pitch, velocity = voice.notes.T
        pitches, longest = tables.LONGEST_NOTES.get(voice.instrument.program, ([], np.inf))
        duration = np.where(np.isin(pitch, pitches), np.minimum(duration, longest), duration)
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
    # Always a new one: after playing, a synthesizer keeps state and sounds different.
    player = Synthesizer(sf_path=str(soundfont()), sample_rate=SAMPLE_RATE, quality=_QUALITY)
    audio = np.array(player.render(sequence, stereo=False)[0], np.float32)
    if not np.isfinite(audio).all() or np.abs(audio).max(initial=0) > 1000:
        programs = sorted({voice.instrument.program for voice in voices})
        raise RuntimeError(f"the synthesizer fails on one of the programs {programs}")
    return audio


def soundfont() -> Path:
    """The General MIDI SoundFont of pretty_midi. Raises InputError if it is missing."""
    return package_file("pretty_midi", "TimGM6mb.sf2")


def _sounding_instruments(voices: list[Voice], first: float, length: float) -> list[Instrument]:
    """Instruments whose notes sound in at least ``_MIN_SHARE`` of the window."""
    steps = max(1, round(length / _GRID))
    on: dict[Instrument, np.ndarray] = {}
    for voice in voices:
        mask = on.setdefault(voice.instrument, np.zeros(steps, bool))
        start = np.floor((voice.notes[:, 0] - first) / _GRID)
        end = np.ceil((voice.notes[:, 0] + voice.notes[:, 1] - first) / _GRID)
        for a, b in np.clip([start, end], 0, steps).astype(int).T:
            mask[a:b] = True
    return [instrument for instrument, mask in on.items() if mask.mean() >= _MIN_SHARE]
