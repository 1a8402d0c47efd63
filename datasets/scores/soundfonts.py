"""SoundFonts that a user names: checked once, drawn for each clip, played by TinySoundFont.

symusic plays the default SoundFont. On some others it never returns, and it loads the whole file
for each clip.
"""

import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from maest.datasets.scores.performance import RING, Voice
from maest.datasets.scores.tables import INSTRUMENTS, Instrument
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.errors import InputError, Kind
from maest.helpers.work.processes import process_map

# TinySoundFont interpolates linearly and does not filter: what lies above half its sample rate
# aliases. Compared with 192 kHz on single notes (five programs, four octaves, five SoundFonts), the
# log-mel (log10 scale; music spans 0 to 4) differs in the mean by up to 0.48 at 16 kHz, 0.17 at 32
# and 0.09 at 48; at A5 and below by 0.02 at 48. One voice then runs at 500 to 1200 times real time.
_RATE = 3 * SAMPLE_RATE
_GAIN = -10.0  # decibels; clips are normalized later

_BLOCK = _RATE // 4  # samples between two looks at the clock
_TIME_LIMIT = 60.0  # seconds for one clip, besides its own length

# An instrument must be heard in all of its range: seconds of a note, and the least RMS of it and
# its end. Usual is 0.01; TinySoundFont ignores modulators, which leaves some voices 40 dB below.
_PROBE, _AUDIBLE = 0.5, 3e-4


class NoInstrument(ValueError):
    """No SoundFont has all instruments of an arrangement."""


class TooSlow(RuntimeError):
    """A clip is not rendered within the time limit."""


@dataclass(frozen=True)
class SoundFont:
    """A file, and the General MIDI programs that it can play."""

    path: Path
    sha256: str
    programs: frozenset[int]  # of `INSTRUMENTS`, in bank 0, that sound in all of their range

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def facts(self) -> dict[str, Any]:
        """For the report: name, SHA-256, and the programs of `INSTRUMENTS` that it lacks."""
        every = {instrument.program for instrument in INSTRUMENTS.values()}
        lacks = sorted(every - self.programs)
        return {"name": self.name, "sha256": self.sha256, "programs_missing": lacks}


# ---- checking ------------------------------------------------------------------------------------


def read_soundfonts(paths: Sequence[str | Path]) -> tuple[SoundFont, ...]:
    """Check SoundFonts (.sf2, .sf3); returned in the order of their SHA-256.

    Raises InputError for a file that is missing, no SoundFont, damaged, without any instrument of
    this data set, or named like another one, and if TinySoundFont is not installed.
    """
    found = [Path(path).resolve() for path in paths]
    if found:
        _tinysoundfont()
    for i, path in enumerate(found):
        if path.stem in {other.stem for other in found[:i]}:
            what, hint = f"two SoundFonts are named {path.stem}", "Give each once, by its own name."
            raise InputError(what, kind="conflict", hint=hint, path=path, setting="--soundfont")
        _check_header(path)
    # A damaged SoundFont may crash the library: in a process of its own.
    programs = process_map(_programs, found, num_workers=1, failed=_refuse) if found else ()
    checked = dict(programs)
    fonts = (SoundFont(path, _sha256(path), checked[path]) for path in found)
    return tuple(sorted(fonts, key=lambda font: font.sha256))


def _check_header(path: Path) -> None:
    hint = "Give a SoundFont: an .sf2 or .sf3 file."
    try:
        with path.open("rb") as file:
            header = file.read(12)
        size = path.stat().st_size
    except OSError as error:
        kind: Kind = "missing" if isinstance(error, FileNotFoundError) else "access"
        what = f"cannot be read ({error.strerror})"
        raise InputError(what, kind=kind, hint=hint, path=path, setting="--soundfont") from error
    if header[:4] != b"RIFF" or header[8:] != b"sfbk":
        raise InputError("is no SoundFont", hint=hint, path=path, setting="--soundfont")
    if size < 8 + int.from_bytes(header[4:8], "little"):
        _refuse(path, "it is truncated")


def _refuse(path: Path, reason: str) -> Any:
    hint = "Get it again, or leave it out."
    what = f"is damaged: {reason}"
    raise InputError(what, kind="corrupt", hint=hint, path=path, setting="--soundfont")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _programs(path: Path) -> tuple[Path, frozenset[int]]:
    """The programs of `INSTRUMENTS` that a SoundFont has. Raises InputError without any."""
    try:
        load(path)
    except RuntimeError as error:
        _refuse(path, str(error))
    programs = {one.program for one in INSTRUMENTS.values() if _sounds(path, one)}
    if not programs:
        what, hint = "has none of the instruments", "Give a General MIDI SoundFont."
        raise InputError(what, kind="unsupported", hint=hint, path=path, setting="--soundfont")
    return path, frozenset(programs)


def _sounds(path: Path, instrument: Instrument) -> bool:
    """Whether the lowest, middle and highest note of an instrument are heard."""
    if load(path).get_preset_index(0, instrument.program) < 0:
        return False
    middle = (instrument.low + instrument.high) // 2
    for pitch in (instrument.low, middle, instrument.high):
        voice = Voice(instrument, np.array([[0.0, _PROBE, pitch, 90]]))
        audio = synthesize(path, [voice])
        level = np.sqrt(np.mean(np.square(audio, dtype=np.float64)))
        if not level > _AUDIBLE:
            return False
    return True


# ---- playing -------------------------------------------------------------------------------------


def draw(
    fonts: Sequence[SoundFont], programs: Collection[int], rng: np.random.Generator
) -> SoundFont:
    """Draw a SoundFont among those that have all ``programs``. Raises NoInstrument without any."""
    able = [font for font in fonts if font.programs.issuperset(programs)]
    if not able:
        raise NoInstrument(f"no SoundFont has all of the programs {sorted(set(programs))}")
    return able[int(rng.integers(len(able)))]


def synthesize(path: Path, voices: Sequence[Voice], time_limit: float | None = None) -> np.ndarray:
    """Render voices: float32 [samples], 16 kHz, mono, at an arbitrary level.

    ``time_limit`` in seconds; by default a minute and the length of the audio. Raises TooSlow
    beyond it, and RuntimeError if the output is not finite or far too loud.
    """
    library = _tinysoundfont()
    player = library.SoundFont(load(path))  # shares the samples, and begins without any state
    player.set_output(library.OutputMode.StereoInterleaved, _RATE, _GAIN)
    events: list[tuple[int, bool, int, int, float]] = []  # sample, is on, channel, pitch, velocity
    for channel, voice in enumerate(voices):
        # A channel for each voice: a note that ends in one must not end the same pitch in another.
        program = player.get_preset_index(0, voice.instrument.program)
        player.channel_set_preset_index(channel, program)
        start, duration, pitch, velocity = voice.notes.T
        pitches = pitch.astype(int).tolist()
        on = np.round(start * _RATE).astype(int)
        # Later than its start, or its end would come first, and the note would never end.
        off = np.maximum(np.round((start + duration) * _RATE).astype(int), on + 1)
        for samples, is_on in ((on, True), (off, False)):
            columns = samples.tolist(), repeat(is_on), repeat(channel), pitches, velocity.tolist()
            events += zip(*columns, strict=False)
    events.sort()  # at one time, ends come first
    total = events[-1][0] + round(RING * _RATE) if events else 0
    audio = np.zeros((total, 2), np.float32)
    limit = _TIME_LIMIT + total / _RATE if time_limit is None else time_limit
    began, at = time.monotonic(), 0
    for sample, is_on, channel, key, loudness in [*events, (total, False, 0, 0, 0.0)]:
        while at < sample:
            if time.monotonic() - began >= limit:
                raise TooSlow(f"{path.name} takes over {limit:.0f} s to render this clip")
            end = min(sample, at + _BLOCK)
            player.render(audio[at:end])
            at = end
        if at == total:
            break
        if is_on:
            player.channel_note_on(channel, key, loudness / 127)
        else:
            player.channel_note_off(channel, key)
    if not np.isfinite(audio).all() or np.abs(audio).max(initial=0) > 1000:
        programs = sorted({voice.instrument.program for voice in voices})
        raise RuntimeError(f"{path.name} fails on one of the programs {programs}")
    return soxr.resample(audio.mean(axis=1), _RATE, SAMPLE_RATE)


@cache
def load(path: Path) -> Any:
    """Load a SoundFont, once in a process. Raises RuntimeError if the library cannot read it."""
    return _tinysoundfont().SoundFont(path.read_bytes())


def _tinysoundfont() -> Any:
    """The compiled module: the package around it plays to loudspeakers, by way of PyAudio."""
    try:
        from tinysoundfont import _tinysoundfont
    except ImportError as error:
        hint = "Type pip install --no-deps tinysoundfont (its dependency PyAudio is not needed)."
        what = "needs the package tinysoundfont"
        raise InputError(what, kind="dependency", hint=hint, setting="--soundfont") from error
    return _tinysoundfont
