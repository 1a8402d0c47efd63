"""Read works of the corpus: ABC with symusic (3 ms per tune), kern and MusicXML with music21."""

import ctypes
import os
import re
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.scores.corpus import Work, decode
from maest.datasets.scores.tables import COLLECTIONS

TICKS_PER_QUARTER = 480
# Kept from the start of a work: about four minutes or more, at any tempo.
MAX_QUARTERS = 800


@dataclass(frozen=True)
class Metadata:
    """A score's headers; None or empty where they say nothing."""

    titles: list[str] = field(default_factory=list)  # the main one first
    composer: str | None = None
    metre: str | None = None  # the first time signature, "6/8"
    mode: str | None = None  # "major", "minor", "dorian", …, only where the header names it
    quarter_bpm: float | None = None  # printed tempo, quarter notes per minute
    genre: str = ""  # of the genre or rhythm field: ABC R:, G:; kern !!!AGN
    origin: str = ""  # where it was collected: ABC O:
    opus: str | None = None  # work or catalogue entry that it is part or a variant of
    parts: list[str] = field(default_factory=list)  # names


@dataclass(frozen=True)
class Score:
    """A work: ties are joined, rows sorted, and the first note starts at 0.

    ``notes``: int32 [notes, 4]: part (from 0, the highest by mean pitch), start, duration (ticks,
    480 per quarter note), MIDI pitch.
    """

    notes: np.ndarray
    metadata: Metadata

    @property
    def n_parts(self) -> int:
        return int(self.notes[:, 0].max()) + 1


class Unreadable(ValueError):
    """Why a work cannot be read."""


def read(work: Work, folder: Path) -> Score:
    """Read a work; Unreadable if it is corrupt, the parser reports an error, or notes are few."""
    if work.text is None:
        parts, metadata = _read_music21(work, folder / work.path)
    else:
        parts, metadata = _read_abc(work.text), abc_metadata(work.text, work.collection)
    limit = MAX_QUARTERS * TICKS_PER_QUARTER
    parts = [part[(part[:, 0] < limit) & (part[:, 1] > 0)] for part in parts]
    parts = [part for part in parts if len(part)]
    if sum(map(len, parts)) < 8:
        raise Unreadable("fewer than 8 notes")
    parts.sort(key=lambda part: -part[:, 2].mean())
    numbered = [np.column_stack([np.full(len(part), i), part]) for i, part in enumerate(parts)]
    rows = np.concatenate(numbered).astype(np.int32)
    rows[:, 1] -= rows[:, 1].min()
    return Score(np.unique(rows, axis=0), metadata)


# ---- ABC -----------------------------------------------------------------------------------------


# ABC fields that the parser gets. Not R: (abc2midi would swing a hornpipe), nor Q: (read below, as
# many books write it in odd ways).
_KEPT_IN_HEADER, _KEPT_IN_BODY = "XTMLKVP", "KMLVP"
_COMMENT = re.compile(r"(?<!\\)%.*")
_FIELD = re.compile(r"^([A-Za-z]):\s*(.*?)\s*$")
_INLINE_FIELD = re.compile(r"(\[[A-Za-z]:[^\]]*\])")
_METRE = re.compile(r"^(\d+)/(\d+)\b|^(C\|?)(?![A-Za-z])")
_MODES = {
    "maj": "major", "ion": "major", "m": "minor", "min": "minor", "aeo": "minor", "dor": "dorian",
    "phr": "phrygian", "lyd": "lydian", "mix": "mixolydian", "loc": "locrian",
}  # fmt: skip


def plain_abc(text: str) -> str:
    """Reduce a tune to its notes: the parser stumbles over signs that change none of them."""
    lines, in_body = [], False
    for line in text.splitlines():
        line = _COMMENT.sub("", line).rstrip()
        if match := _FIELD.match(line):
            name, value = match.groups()
            if name not in (_KEPT_IN_BODY if in_body else _KEPT_IN_HEADER):
                continue
            if name == "M":
                metre = _METRE.match(value)
                line = f"M:{metre[0] if metre else 'none'}"
            lines.append(line)
            in_body = in_body or name == "K"
        elif in_body:
            pieces = _INLINE_FIELD.split(line)
            pieces[::2] = [_plain_music(piece) for piece in pieces[::2]]
            if (line := "".join(pieces)).strip():
                lines.append(line)
    return "\n".join(lines) + "\n"


def _plain_music(code: str) -> str:
    """Remove annotations, chord symbols, fingerings, ornaments, bowing, articulation and slurs."""
    code = re.sub(r'"[^"]*"|![^!|]*!|\+[^+|]*\+', "", code)
    code = re.sub(r"[H-Yh-w~.`]", "", code)  # notes and rests are A-G, a-g, x, z and Z
    return re.sub(r"\((?!\d)|\)", "", code)


def abc_metadata(text: str, collection: str) -> Metadata:
    """Metadata from a tune's header fields, which end with the first ``K:``."""
    headers: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        match = _FIELD.match(_COMMENT.sub("", line))
        if match and match[2]:
            headers[match[1]].append(match[2])
        if match and match[1] == "K":
            break
    first = {name: values[0] for name, values in headers.items()}
    essen = COLLECTIONS[collection].essen
    mode = None
    if key := re.match(r"^([A-G][#b]?)\s*([A-Za-z]*)", first.get("K", "")):
        word = key[2] if key[2] == "m" else key[2].lower()[:3]
        # A bare tonic means major in ABC, but not in the Essen books: the notation that they were
        # converted from has no modes.
        mode = _MODES.get(word) if word else None if essen else "major"
    metre = _METRE.match(first.get("M", ""))
    catalogue = re.match(r"^([A-Z]+\d{3,})[A-Za-z]*\b", first.get("N", ""))
    return Metadata(
        titles=headers["T"],
        composer=first.get("C"),
        metre={"C": "4/4", "C|": "2/2"}.get(metre[0], metre[0]) if metre else None,
        mode=mode,
        quarter_bpm=_abc_tempo(first.get("Q", "")),
        genre="; ".join(headers["R"] + headers["G"]),
        origin="; ".join(headers["O"]),
        opus=catalogue[1] if catalogue and essen else None,
    )


def _abc_tempo(value: str) -> float | None:
    """``Q:`` field → quarter notes per minute; None without a note value."""
    match = re.match(r'^(?:"[^"]*")?\s*(\d+)/(\d+)\s*=\s*(\d+)', value)
    numerator, denominator, beats = map(int, match.groups()) if match else (0, 0, 0)
    return 4 * numerator / denominator * beats if denominator and beats else None


def _read_abc(text: str) -> list[np.ndarray]:
    from symusic import Score as Sequence

    with _parser_output() as printed:
        try:
            sequence = Sequence.from_abc(plain_abc(text))
        except RuntimeError:
            sequence = None
    errors = [line for line in printed if line.startswith("Error")]
    if errors or sequence is None:
        reason = errors[0] if errors else "no tune found"
        raise Unreadable(re.sub(r"^Error in line-char [\d-]+\s*:\s*", "abc2midi: ", reason))
    scale, parts = TICKS_PER_QUARTER / sequence.tpq, []
    for track in sequence.tracks:
        note = track.notes.numpy()
        # abc2midi starts all notes one tick late and ends them one tick early.
        start = np.maximum(np.asarray(note["time"]) - 1, 0) * scale
        duration = (np.asarray(note["duration"]) + 1) * scale
        columns = np.column_stack([start, duration, np.asarray(note["pitch"])])
        parts.append(np.rint(columns).astype(np.int32))
    return parts


@contextmanager
def _parser_output() -> Iterator[list[str]]:
    """A list that gets, on exit, the lines that C code printed to standard output and error.

    Meanwhile TMPDIR is a new folder: symusic 0.5.8 uses the same file names in every process, and
    one would read the tune that another has just written.
    """
    lines: list[str] = []
    libc = ctypes.CDLL(None)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        file = stack.enter_context(tempfile.TemporaryFile())
        before = os.environ.setdefault("TMPDIR", tempfile.gettempdir())
        stack.callback(os.environ.__setitem__, "TMPDIR", before)
        os.environ["TMPDIR"] = folder
        sys.stdout.flush()
        sys.stderr.flush()
        libc.fflush(None)
        saved = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved:
                os.dup2(file.fileno(), stream)
            yield lines
        finally:
            libc.fflush(None)
            for stream, copy in saved:
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()


# ---- kern and MusicXML ---------------------------------------------------------------------------


def _read_music21(work: Work, path: Path) -> tuple[list[np.ndarray], Metadata]:
    from music21 import converter

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = converter.parse(path, forceSource=True, storePickle=False)
            streams = list(getattr(score, "parts", ())) or [score]
            parts = [_part_notes(stream) for stream in streams]
    except Exception as error:  # music21 raises any kind; the reason is kept and reported
        raise Unreadable(f"music21: {type(error).__name__}: {error}"[:200]) from error
    return parts, _music21_metadata(score, streams, work, path)


def _part_notes(part: Any) -> np.ndarray:
    """Notes of a music21 part, int32 [notes, 3]: start, duration (ticks), pitch; ties joined."""
    from music21.harmony import Harmony

    open_ties: dict[int, list[int]] = {}
    notes: list[list[int]] = []
    for element in part.flatten().notes:
        # Grace notes have no duration; chord symbols are not played.
        if isinstance(element, Harmony) or not element.quarterLength:
            continue
        start = round(float(element.offset) * TICKS_PER_QUARTER)
        duration = round(float(element.quarterLength) * TICKS_PER_QUARTER)
        for note in getattr(element, "notes", (element,)):
            if not hasattr(note, "pitch"):  # unpitched percussion
                continue
            pitch = int(note.pitch.midi)
            tie = note.tie.type if note.tie else None
            held = open_ties.pop(pitch, None)
            if tie in ("stop", "continue") and held and abs(sum(held[:2]) - start) <= 1:
                held[1] = start + duration - held[0]
            else:
                held = [start, duration, pitch]
                notes.append(held)
            if tie in ("start", "continue"):
                open_ties[pitch] = held
    return np.array(notes, np.int32).reshape(-1, 3)


def _music21_metadata(score: Any, streams: list[Any], work: Work, path: Path) -> Metadata:
    first = streams[0].recurse()
    metre = next(iter(first.getElementsByClass("TimeSignature")), None)
    key = next(iter(first.getElementsByClass("Key")), None)
    described = score.metadata
    kern = _kern_headers(decode(path.read_bytes())) if path.suffix == ".krn" else {}
    titles = [kern.get("OTL"), described.title, described.movementName] if described else []
    titles = [title for title in titles if title and title != path.name]
    return Metadata(
        titles=list(dict.fromkeys(titles)),
        composer=described.composer if described else None,
        metre=metre.ratioString if metre else None,
        mode=kern.get("mode") or (key.mode if key else None),
        genre=kern.get("AGN", ""),
        opus=kern.get("OPR") or opus_of(work),
        parts=[str(stream.partName) for stream in streams if stream.partName],
    )


def _kern_headers(text: str) -> dict[str, str]:
    """Reference records (``!!!OTL: …``) of a kern file, and ``mode`` from the first ``*G:mix``."""
    records = re.findall(r"^!!!([A-Z]+):\s*(.*?)\s*$", text, re.MULTILINE)
    headers = dict(reversed(records))  # the first of a name counts
    match = re.search(r"^(?:\*\S*\t)*\*([A-Ga-g])[#-]*:([a-z]*)(?=\s)", text, re.MULTILINE)
    if match:
        bare = "major" if match[1].isupper() else "minor"
        headers["mode"] = _MODES.get(match[2][:3], bare)
    return headers


def opus_of(work: Work) -> str | None:
    """The work that a file is a movement or variant of, by folder or catalogue number."""
    path = Path(work.path)
    if work.collection == "quartets":
        return str(path.parent if len(path.parent.parts) > 1 else path.with_suffix(""))
    patterns = {
        "monteverdi": r"(.*?)(?:_old)?$",
        "bach": r"(bwv[\d.]*[\d])",
        # PMFC_06-Jacopo-03a, -03b: two versions of one piece
        "trecento": r"(PMFC_\d+[-_](?:[A-Za-z]+[-_])?\d+)[a-z]?(?=[-_ ])",
    }
    pattern = patterns.get(work.collection)
    match = re.match(pattern, path.stem) if pattern else None
    return match[1] if match else None
