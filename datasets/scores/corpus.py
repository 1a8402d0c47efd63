"""Finding and reading the works of the music21 corpus: a file or a tune in, note events out.

Tune books in ABC are split at their ``X:`` headers and read with symusic (3 ms a tune); everything
else (kern, MusicXML) is read with music21. Metadata is what the files' own headers say.
"""

from __future__ import annotations

import ctypes
import hashlib
import heapq
import importlib.util
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError

TICKS_PER_QUARTER = 480
# What is kept of a work: about the first four minutes or more of it, whatever its tempo.
MAX_QUARTERS = 800


@dataclass(frozen=True)
class Collection:
    """A body of like music: where its files are, and its share of a small selection.

    ``patterns`` are globs below the corpus folder. With ``by_folder``, works are taken from every
    folder in turn and small files first: the folders are opera, and a late movement takes seconds
    to read.
    """

    name: str
    weight: float
    patterns: tuple[str, ...]
    by_folder: bool = False


_EUROPEAN_ESSEN_BOOKS = (
    "altdeu", "ballad", "boehme", "dva", "erk", "fink", "folkHaydn", "kinder", "variant", "zuccal",
)  # fmt: skip
_OTHER_FOLDERS = (
    "beach", "chopin", "ciconia", "corelli/*", "cpebach", "handel/*", "johnson_j_r", "joplin",
    "josquin", "leadSheet", "liliuokalani", "luca", "lusitano", "mozart/k545", "schoenberg/*",
    "schubert", "schumann_clara", "schumann_clara/*", "schumann_robert", "verdi", "weber", "webern",
)  # fmt: skip

COLLECTIONS = (
    Collection("palestrina", 3.0, ("palestrina/*.krn",)),
    Collection("bach", 3.0, ("bach/*.mxl", "bach/*.xml")),
    Collection("ryan", 3.0, ("ryansMammoth/*.abc",)),
    Collection("oneill", 3.0, ("oneills1850/*.abc",)),
    Collection("trecento", 2.5, ("trecento/*.xml", "trecento/*.mxl")),
    Collection(
        "german",
        3.0,
        tuple(f"essenFolksong/{book}*.abc" for book in _EUROPEAN_ESSEN_BOOKS),
    ),
    Collection("chinese", 3.0, ("essenFolksong/han*.abc",)),
    Collection("monteverdi", 2.5, ("monteverdi/*.mxl",)),
    Collection("aird", 2.5, ("airdsAirs/*.abc",)),
    Collection(
        "quartets",
        1.8,
        (
            "haydn/*/*.mxl",
            "mozart/k155/*.mxl",
            "mozart/k156/*.mxl",
            "mozart/k458/*.mxl",
            "mozart/k80/*.mxl",
            "beethoven/*.mxl",
            "beethoven/*/*.mxl",
            "schumann_robert/opus41no1/*.mxl",
        ),
        by_folder=True,
    ),
    Collection("luxembourg", 0.5, ("essenFolksong/lux.abc",)),
    Collection("lorraine", 0.5, ("essenFolksong/lot.abc",)),
    Collection("irish-songs", 0.4, ("essenFolksong/irl.abc",)),
    Collection("minstrelsy", 1.6, ("miscFolk/northumbrianminstrelsyopus.abc",)),
    Collection("fife", 0.5, ("miscFolk/americanfifeopus.abc", "nottingham-dataset/*.abc")),
    Collection(
        "others",
        0.6,
        tuple(f"{folder}/*.*" for folder in _OTHER_FOLDERS),
        by_folder=True,
    ),
)
_SUFFIXES = {".abc", ".krn", ".mxl", ".xml", ".musicxml"}


@dataclass(frozen=True)
class Work:
    """A work that can be read: a file of the corpus, or one tune of a book.

    Attributes:
        id: ``collection/name``, unique, safe as a relative path.
        collection: name of its :class:`Collection`.
        path: the file, relative to the corpus folder.
        text: the tune's ABC text; None for a file that music21 reads.
        size: bytes of the file or of the tune.
        rank: its place within its collection, in the order in which works are taken.
    """

    id: str
    collection: str
    path: str
    text: str | None = field(repr=False)
    size: int
    rank: int = 0


@dataclass(frozen=True)
class Metadata:
    """What a score's own headers say; None or empty where they say nothing.

    Attributes:
        titles: every title, the main one first.
        composer: as the file has it.
        metre: first time signature, "6/8".
        mode: "major", "minor", "dorian", …, only where the header names it.
        quarter_bpm: printed tempo in quarter notes a minute.
        genre: the words of the genre or rhythm field (ABC ``R:``, ``G:``; kern ``!!!AGN``).
        origin: where it was collected (ABC ``O:``).
        opus: the work or catalogue entry that it is a part or a variant of.
        parts: names of the parts.
    """

    titles: list[str] = field(default_factory=list)
    composer: str | None = None
    metre: str | None = None
    mode: str | None = None
    quarter_bpm: float | None = None
    genre: str = ""
    origin: str = ""
    opus: str | None = None
    parts: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Metadata:
        return cls(**{f.name: value[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Score:
    """A work as it was read.

    Attributes:
        notes: int32 array [notes, 4]: part, start, duration (ticks, 480 a quarter), MIDI pitch;
            parts are numbered from the highest to the lowest by mean pitch, ties are joined, rows
            sorted, the first note starts at 0.
        metadata: what the headers say.
    """

    notes: np.ndarray
    metadata: Metadata

    @property
    def n_parts(self) -> int:
        return int(self.notes[:, 0].max()) + 1


class Unreadable(ValueError):
    """A work whose notes cannot be had from its file, with the reason."""


# ---- finding -------------------------------------------------------------------------------------


def corpus_folder() -> Path:
    """The folder of the music21 corpus, found without importing music21.

    Raises:
        InputError: if music21 or its corpus is not installed.
    """
    spec = importlib.util.find_spec("music21")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(locations[0]) / "corpus" if locations else None
    if folder is None or not folder.is_dir():
        raise InputError(
            f"the music21 corpus is not there ({folder})",
            kind="dependency",
            hint="Type pip install music21, which brings it.",
        )
    return folder


def list_works(folder: Path | None = None) -> list[Work]:
    """All works of the corpus, in the order in which they are taken.

    The collections take turns by their weights, so the first N works are balanced for any N, and
    are among the first N + 1. Within a collection the order is that of a hash of the id: any
    prefix is a fair sample of it.
    """
    folder = folder or corpus_folder()
    queue = []
    for collection in COLLECTIONS:
        for rank, work in enumerate(_in_order(collection, _works_of(collection, folder))):
            queue.append(((rank + 0.5) / collection.weight, collection.name, rank, work))
    queue.sort(key=lambda entry: entry[:3])
    return [
        Work(work.id, work.collection, work.path, work.text, work.size, rank)
        for _, _, rank, work in queue
    ]


def _works_of(collection: Collection, folder: Path) -> Iterator[Work]:
    paths = {path for pattern in collection.patterns for path in folder.glob(pattern)}
    names: dict[str, int] = defaultdict(int)
    for path in sorted(p for p in paths if p.suffix in _SUFFIXES and p.is_file()):
        relative = path.relative_to(folder)
        # The folders between the collection's own and the file are a part of the name.
        stem = "-".join((*relative.parts[1 if not collection.by_folder else 0 : -1], path.stem))
        if path.suffix == ".abc":
            tunes = split_book(decode(path.read_bytes()))
            entries: list[tuple[str, str | None, int]] = [
                (stem if len(tunes) == 1 else f"{stem}-{number:04d}", tune, len(tune))
                for number, tune in enumerate(tunes, 1)
            ]
        else:
            entries = [(stem, None, path.stat().st_size)]
        for name, text, size in entries:
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")
            names[name.lower()] += 1
            if names[name.lower()] > 1:  # the same file in two formats, or two spellings
                name = f"{name}.{names[name.lower()]}"
            identity = f"{collection.name}/{name}"
            yield Work(identity, collection.name, relative.as_posix(), text, size)


def _in_order(collection: Collection, works: Iterator[Work]) -> list[Work]:
    if not collection.by_folder:
        return sorted(works, key=lambda w: hashlib.sha256(w.id.encode()).digest())
    folders: dict[str, list[tuple[int, str, Work]]] = defaultdict(list)
    for work in works:
        # A file that lies beside folders (an opus in one file) is a folder of its own.
        parent = str(Path(work.path).parent)
        alone = "/" not in parent
        heapq.heappush(folders[work.path if alone else parent], (work.size, work.id, work))
    ordered = []
    while folders:
        turn = sorted((heapq.heappop(heap), name) for name, heap in folders.items())
        ordered += [entry[2] for entry, _ in turn]
        folders = {name: heap for name, heap in folders.items() if heap}
    return ordered


def decode(data: bytes) -> str:
    """Text of an ABC file: UTF-8 or, where it is not, Latin-1; quoted-printable rests removed."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"=20$|(?<= )=$", "", text, flags=re.MULTILINE)


def split_book(text: str) -> list[str]:
    """The tunes of an ABC book: from each ``X:`` header to the next."""
    return re.split(r"^(?=X:)", text, flags=re.MULTILINE)[1:]


# ---- reading -------------------------------------------------------------------------------------


def read(work: Work, folder: Path) -> Score:
    """Read one work.

    Raises:
        Unreadable: if the file is damaged, the parser reports an error, or there are no notes.
    """
    reader: Callable[[Work, Path], tuple[list[np.ndarray], Metadata]]
    reader = _read_music21 if work.text is None else _read_abc
    parts, metadata = reader(work, folder)
    return Score(_join(parts), metadata)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Parts ([notes, 3]: start, duration, pitch; ticks) → the rows of :class:`Score`."""
    limit = MAX_QUARTERS * TICKS_PER_QUARTER
    parts = [part[(part[:, 0] < limit) & (part[:, 1] > 0)] for part in parts if len(part)]
    parts = [part for part in parts if len(part)]
    if sum(map(len, parts)) < 8:
        raise Unreadable("fewer than 8 notes")
    parts.sort(key=lambda part: -part[:, 2].mean())
    rows = np.concatenate(
        [np.column_stack([np.full(len(part), i), part]) for i, part in enumerate(parts)]
    ).astype(np.int32)
    rows[:, 1] -= rows[:, 1].min()
    return np.unique(rows[np.lexsort(rows.T[::-1])], axis=0)


# ABC: fields that stay in the text given to the parser. R: is not among them (abc2midi would swing
# a hornpipe), nor is Q: (read below; many books write it in ways of their own).
_KEPT_IN_HEADER = frozenset("XTMLKVP")
_KEPT_IN_BODY = frozenset("KMLVP")
_FIELD = re.compile(r"^([A-Za-z]):\s*(.*?)\s*$")
_INLINE_FIELD = re.compile(r"(\[[A-Za-z]:[^\]]*\])")
_METRE = re.compile(r"^(\d+)/(\d+)\b|^(C\|?)(?![A-Za-z])")


def abc_headers(text: str) -> dict[str, list[str]]:
    """The header fields of a tune, up to its first ``K:``, without comments and empty ones."""
    headers: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        match = _FIELD.match(re.sub(r"(?<!\\)%.*", "", line))
        if match and match[2]:
            headers[match[1]].append(match[2])
        if match and match[1] == "K":
            break
    return dict(headers)


def plain_abc(text: str) -> str:
    """A tune reduced to its notes: the parser stumbles over signs that change none of them.

    Taken out: comments, lyrics and notes, quoted annotations, fingerings and chord symbols, slurs,
    and the letters and dots for bowing, articulation and ornaments.
    """
    lines, in_body = [], False
    for line in text.splitlines():
        line = re.sub(r"(?<!\\)%.*", "", line).rstrip()
        match = _FIELD.match(line)
        if match:
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
            line = "".join(pieces)
            if line.strip():
                lines.append(line)
    return "\n".join(lines) + "\n"


def _plain_music(code: str) -> str:
    code = re.sub(r'"[^"]*"|![^!|]*!|\+[^+|]*\+', "", code)
    code = re.sub(r"[H-Yh-w~.`]", "", code)  # notes and rests are A-G, a-g, x, z and Z
    return re.sub(r"\((?!\d)|\)", "", code)


_MODES = {
    "maj": "major", "ion": "major", "m": "minor", "min": "minor", "aeo": "minor", "dor": "dorian",
    "phr": "phrygian", "lyd": "lydian", "mix": "mixolydian", "loc": "locrian",
}  # fmt: skip


def abc_metadata(text: str, collection: str) -> Metadata:
    """Metadata of one tune from its header fields."""
    headers = abc_headers(text)

    def first(name: str) -> str:
        return headers.get(name, [""])[0]

    key = re.match(r"^([A-G][#b]?)\s*([A-Za-z]*)", first("K"))
    mode = None
    if key:
        word = key[2] if key[2] == "m" else key[2].lower()[:3]
        # A bare tonic is the major key in ABC; the Essen books were converted from a notation
        # that names a tonic only, so there it says nothing about the mode.
        bare = None if collection in _ESSEN else "major"
        mode = _MODES.get(word, "minor" if word == "m" else None) if word else bare
    metre = _METRE.match(first("M"))
    catalogue = re.match(r"^([A-Z]+\d{3,})[A-Za-z]*\b", first("N"))
    return Metadata(
        titles=headers.get("T", []),
        composer=first("C") or None,
        metre={"C": "4/4", "C|": "2/2"}.get(metre[0], metre[0]) if metre else None,
        mode=mode,
        quarter_bpm=abc_tempo(first("Q")),
        genre="; ".join(headers.get("R", []) + headers.get("G", [])),
        origin="; ".join(headers.get("O", [])),
        opus=catalogue[1] if catalogue and collection in _ESSEN else None,
    )


_ESSEN = frozenset({"german", "chinese", "luxembourg", "lorraine", "irish-songs"})


def abc_tempo(value: str) -> float | None:
    """``Q:`` field → quarter notes a minute, None where it gives no note value."""
    match = re.match(r'^(?:"[^"]*")?\s*(\d+)/(\d+)\s*=\s*(\d+)', value)
    if not match:
        return None
    numerator, denominator, beats = map(int, match.groups())
    return 4 * numerator / denominator * beats if denominator and beats else None


def _read_abc(work: Work, folder: Path) -> tuple[list[np.ndarray], Metadata]:
    from symusic import Score as Sequence

    assert work.text is not None
    with _captured_output() as captured, _own_temporary_folder():
        try:
            sequence = Sequence.from_abc(plain_abc(work.text))
        except RuntimeError:
            sequence = None
    errors = [line for line in captured.text.splitlines() if line.startswith("Error")]
    if errors or sequence is None:
        reason = errors[0] if errors else "no tune found"
        raise Unreadable(re.sub(r"^Error in line-char [\d-]+\s*:\s*", "abc2midi: ", reason))
    scale = TICKS_PER_QUARTER / sequence.tpq
    parts = []
    for track in sequence.tracks:
        note = track.notes.numpy()
        # abc2midi starts all notes one tick late and ends them one tick early.
        start = np.maximum(np.asarray(note["time"]) - 1, 0) * scale
        duration = (np.asarray(note["duration"]) + 1) * scale
        pitch = np.asarray(note["pitch"])
        parts.append(np.rint(np.column_stack([start, duration, pitch])).astype(np.int32))
    return parts, abc_metadata(work.text, work.collection)


@contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Have C++ code put its temporary files into a folder of this call's own.

    symusic 0.5.8 names them ``symusic_temp_<number>.abc``, and draws the same numbers in every
    process: one can read the tune that another has just written.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


class _Captured:
    text = ""


@contextmanager
def _captured_output() -> Iterator[_Captured]:
    """Catch what C code prints on the process's standard output and error."""
    captured, libc = _Captured(), ctypes.CDLL(None)
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        libc.fflush(None)
        saved = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved:
                os.dup2(file.fileno(), stream)
            yield captured
        finally:
            libc.fflush(None)
            for stream, copy in saved:
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            captured.text = file.read().decode("utf-8", "replace")


def _read_music21(work: Work, folder: Path) -> tuple[list[np.ndarray], Metadata]:
    import warnings

    from music21 import converter

    path = folder / work.path
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
    """Notes of a music21 part as [notes, 3] start, duration (ticks), pitch; ties joined."""
    from music21.harmony import Harmony

    open_ties: dict[int, list[int]] = {}
    notes: list[list[int]] = []
    for element in part.flatten().notes:
        # Grace notes have no duration of their own; chord symbols are not played.
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
    kern = kern_headers(decode(path.read_bytes())) if path.suffix == ".krn" else {}
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


def kern_headers(text: str) -> dict[str, str]:
    """Reference records (``!!!OTL: …``) of a kern file, and ``mode`` from its first ``*G:mix``."""
    headers: dict[str, str] = {}
    for key, value in re.findall(r"^!!!([A-Z]+):\s*(.*?)\s*$", text, re.MULTILINE):
        headers.setdefault(key, value)
    match = re.search(r"^(?:\*\S*\t)*\*([A-Ga-g])[#-]*:([a-z]*)(?=\s)", text, re.MULTILINE)
    if match:
        named = _MODES.get(match[2][:3])
        bare = "major" if match[1].isupper() else "minor"
        headers["mode"] = named or bare
    return headers


def opus_of(work: Work) -> str | None:
    """The work that a file is a movement or a variant of, from its catalogue number."""
    name = Path(work.path).stem
    if work.collection == "bach":
        match = re.match(r"bwv[\d.]+", name)
        return match[0].rstrip(".") if match else None
    if work.collection == "quartets":
        parent = Path(work.path).parent
        return str(parent) if len(parent.parts) > 1 else str(Path(work.path).with_suffix(""))
    if work.collection == "monteverdi":
        return re.sub(r"_old$", "", name)
    if work.collection == "trecento":  # PMFC_06-Jacopo-03a, -03b: two versions of one piece
        match = re.match(r"(PMFC_\d+[-_](?:[A-Za-z]+[-_])?\d+)[a-z]?(?=[-_ ])", name)
        return match[1] if match else None
    return None
