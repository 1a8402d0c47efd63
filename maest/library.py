"""A library: tags and embeddings of the music in folders, in one SQLite file.

Results belong to a sound, known by the hash of its audio packets. So tags may be written, files
moved, renamed and copied, and nothing is analysed again. Files that are deleted are "gone", those
of a drive that is not there "offline": both keep their results.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from maest import library_file
from maest.helpers.audio.packets import read_texts
from maest.helpers.errors import InputError, first_line
from maest.helpers.files.atomic import valid_utf8
from maest.library_scan import Progress, Scan, below, note_emptied, scan_folder, track_tags
from maest.library_types import Analysis as Analysis
from maest.library_types import Model as Model
from maest.library_types import Track as Track
from maest.nearness import Vectors, groups

#: Paths → each with its result, or the error that left it without one; in any order
Analyse = Callable[[list[Path]], Iterable[tuple[Path, Analysis | InputError]]]
#: A track of the library, another file with its embedding, or an embedding
Seed = str | Path | tuple[str | Path, np.ndarray] | np.ndarray
_FILES = """SELECT files.id, path, sound, sounds.hash, seconds, size, mtime_ns, state, title,
    artist, album, album_artist FROM files JOIN sounds ON sounds.id = files.sound"""
_NEAR = 0.98  # cosine of near copies
_SAME_LENGTH = 3.0  # seconds by which they may differ


@dataclass
class Indexed:
    """What an `index` run has done."""

    scan: Scan
    analysed: int = 0
    failed: dict[Path, str] = field(default_factory=dict)  #: → reason


class Library:
    """A library file, by default in the user's data folder. It is made if it is missing.

    Several processes may use one at once. ``warnings`` names a place where that is not safe.

    Raises:
        InputError: by ``kind``: "exists", another program's file; "corrupt", a damaged one;
            "mismatch", one of a later version; "access", one that cannot be read or written;
            "missing", no file, with ``read_only``. Methods raise it for a path that the library
            does not have ("unknown"), and for a model without results ("missing").
    """

    def __init__(self, path: str | Path | None = None, read_only: bool = False) -> None:
        self.path = Path(path) if path is not None else library_file.default_path()
        self.read_only = read_only
        self._db, self.warnings = library_file.open_file(self.path, read_only)
        self._vectors: dict[int, tuple[Any, list[int], Vectors]] = {}

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what is there ---------------------------------------------------------------------------

    def scan(self, folder: str | Path, progress: Progress = iter) -> Scan:
        """Compare a folder with the library, and note what is new, changed, moved or gone.

        New files and those of another size or date are read and hashed; each is noted at once.
        ``progress`` wraps the list of files to read, as ``tqdm.tqdm`` does.

        Raises:
            InputError: the library does not know the folder, and the folder has no music ("empty")
                or does not exist ("missing").
        """
        with library_file.readable_errors(self.path):
            return scan_folder(self._db, folder, progress)

    def index(
        self,
        folder: str | Path,
        model: Model,
        analyse: Analyse,
        again: bool = False,
        progress: Progress = iter,
        at_once: int = 1,
    ) -> Indexed:
        """Scan a folder, and analyse the sounds in it that have no result of ``model``.

        ``analyse`` gets ``at_once`` paths at a time, and yields each with its result or error; an
        `Analyser` does. The reason of an error is kept: the file is tried again when it has changed
        or, with ``again``, in this run. A run that is stopped loses only the tracks in hand.
        Several runs at the same time share the work.
        """
        done = Indexed(self.scan(folder, progress))
        waiting = self.todo(model, folder, again)
        # Each run has an order of its own: of two at once, each finds what the other has done.
        random.Random().shuffle(waiting)
        steps = iter(progress(waiting))
        for start in range(0, len(waiting), at_once):
            part = waiting[start : start + at_once]
            tracks = {t.path: t for t in part if again or not self.has(t, model)}
            for path, result in analyse(list(tracks)) if tracks else ():
                self._keep(tracks[path], model, result, done)
                next(steps, None)
            for _ in range(len(part) - len(tracks)):
                next(steps, None)
        next(steps, None)  # by which a bar sees its end
        return done

    def _keep(
        self, track: Track, model: Model, result: Analysis | InputError, done: Indexed
    ) -> None:
        if isinstance(result, InputError):
            done.failed[track.path] = result.reason
            if result.kind not in ("missing", "access", "worker"):  # those are the machine's
                self.add_error(track, model, result.reason)
            return
        try:
            status = track.path.stat()
        except OSError as error:
            done.failed[track.path] = error.strerror or first_line(error)
            return
        if (status.st_size, status.st_mtime_ns) == (track.size, track.mtime_ns):
            self.add(track, model, result)
            done.analysed += 1
        else:
            done.failed[track.path] = "the file has changed meanwhile"

    def tracks(self, folder: str | Path | None = None) -> list[Track]:
        """List the files that are not gone, in the order of their paths; of a folder, or all."""
        where, values = _in(folder)
        return self._tracks(f"WHERE state != 'gone' {where} ORDER BY path", values)

    def track(self, key: str | Path) -> Track:
        """Return the file of a path, as the library has it."""
        absolute = os.path.abspath(key)
        folder, name = os.path.split(absolute)
        for path in (absolute, os.path.join(os.path.realpath(folder), name)):
            if tracks := self._tracks("WHERE path = ?", (os.fsencode(path),)):
                return tracks[0]
        hint = "Index its folder first: maest index FOLDER"
        raise InputError("not in the library", kind="unknown", path=Path(key), hint=hint)

    def forget(self, folder: str | Path | None = None) -> int:
        """Drop what is gone, and results of sounds without files; return the files' number.

        Of a ``folder`` without any music, or that does not exist, all is gone; but not what was on
        a drive that is not there.
        """
        with library_file.readable_errors(self.path), library_file.transaction(self._db):
            if folder is not None:
                note_emptied(self._db, folder)
            number = self._db.execute("DELETE FROM files WHERE state = 'gone'").rowcount
            unused = "NOT IN (SELECT sound FROM files)"
            self._db.execute(f"DELETE FROM results WHERE sound {unused}")
            self._db.execute(f"DELETE FROM sounds WHERE id {unused}")
        return number

    # ---- results ---------------------------------------------------------------------------------

    def todo(
        self, model: Model, folder: str | Path | None = None, again: bool = False
    ) -> list[Track]:
        """List tracks without a result of ``model``, one of each sound, of those that are here.

        Sounds that have failed are listed only with ``again``.
        """
        where, values = _in(folder)
        failed = "AND error IS NULL" if again else ""
        has = f"SELECT sound FROM results WHERE model = ? {failed}"
        condition = f"WHERE state = 'here' {where} AND sound NOT IN ({has})"
        order = "GROUP BY sound ORDER BY path"
        return self._tracks(f"{condition} {order}", (*values, self._model_id(model)))

    def has(self, track: Track, model: Model) -> bool:
        """Tell whether a sound has a result of ``model``, or the reason why there is none."""
        command = "SELECT 1 FROM results WHERE sound = ? AND model = ?"
        return bool(self._rows(command, (track.sound, self._model_id(model))))

    def add(self, track: Track, model: Model, analysis: Analysis) -> None:
        """Keep a sound's result, in one step, in place of an earlier one of the same model.

        Raises:
            InputError: the embedding has another shape than the model's others ("mismatch").
        """
        tags = json.dumps([(label, round(float(v), 4)) for label, v in analysis.tags])
        shape = json.dumps(analysis.embedding.shape)
        with library_file.readable_errors(self.path), library_file.transaction(self._db):
            number = self._model_id(model, make=True)
            command = "UPDATE models SET shape = ? WHERE id = ? AND coalesce(shape, ?) = ?"
            if not self._db.execute(command, (shape, number, shape, shape)).rowcount:
                hint = "Give other settings another model."
                what = f"an embedding of shape {shape}, unlike the others of this model"
                raise InputError(what, kind="mismatch", path=track.path, hint=hint)
            warnings = json.dumps(list(analysis.warnings))
            row = (track.sound, number, analysis.embedding.tobytes(), tags, warnings, None)
            self._db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)", row)
            command = "UPDATE sounds SET seconds = ? WHERE id = ?"
            self._db.execute(command, (analysis.seconds, track.sound))

    def add_error(self, track: Track, model: Model, reason: str) -> None:
        """Keep why a sound has no result, so that it is not tried with every run."""
        with library_file.readable_errors(self.path), library_file.transaction(self._db):
            row = (track.sound, self._model_id(model, make=True), valid_utf8(reason))
            command = "INSERT OR REPLACE INTO results (sound, model, error) VALUES (?, ?, ?)"
            self._db.execute(command, row)

    def result(self, key: str | Path | Track, model: Model | None = None) -> Analysis | None:
        """Return what a model (by default the one of most results) said of a track, or None."""
        track = key if isinstance(key, Track) else self.track(key)
        command = """SELECT embedding, shape, tags, warnings FROM results
            JOIN models ON models.id = model WHERE sound = ? AND model = ? AND error IS NULL"""
        for row in self._rows(command, (track.sound, self._chosen(model))):
            tags = [(label, value) for label, value in json.loads(row[2])]
            embedding = np.frombuffer(row[0], np.float16).reshape(json.loads(row[1]))
            return Analysis(tags, embedding, track.seconds, json.loads(row[3]))
        return None

    def failed(self, model: Model | None = None) -> dict[Path, str]:
        """Return the tracks that have no result, with the reason."""
        command = """SELECT path, error FROM results JOIN files USING (sound)
            WHERE model = ? AND error IS NOT NULL AND state != 'gone' ORDER BY path"""
        rows = self._rows(command, (self._chosen(model),))
        return {Path(os.fsdecode(path)): error for path, error in rows}

    def models(self) -> list[tuple[Model, int]]:
        """List models and the number of their results, the most first."""
        command = """SELECT name, hash, settings,
            (SELECT count(*) FROM results WHERE model = models.id AND error IS NULL) AS number
            FROM models ORDER BY number DESC, id DESC"""
        return [(Model(n, h, json.loads(s)), number) for n, h, s, number in self._rows(command)]

    def embeddings(self, model: Model | None = None) -> tuple[list[Track], np.ndarray]:
        """Return all sounds' tracks and flat embeddings, float16 [N, D], in the same order."""
        with self._snapshot():
            sounds, vectors = self._load(model)
            return [copies[0] for copies in self._of_sounds(sounds)], vectors.values

    # ---- what is near ----------------------------------------------------------------------------

    def similar(
        self,
        seed: Seed,
        top: int = 10,
        *,
        also: Iterable[Seed] = (),
        not_same_album: bool = False,
        model: Model | None = None,
    ) -> list[tuple[Track, float]]:
        """Return the nearest tracks and their cosines, the nearest first; one of each sound.

        ``seed`` and ``also`` are tracks of the library; other files, each with its embedding; or
        embeddings. Of several, their middle counts. Those of the library are left out of the
        answer. ``not_same_album`` leaves out what shares an album with one of them, by their tags.
        The cosine is between embeddings from which the mean over the library was taken.

        Raises:
            InputError: also for an embedding of another size ("mismatch"), or one that has no album
                ("conflict").
        """
        with self._snapshot():
            sounds, vectors = self._load(model)
            rows, width = {sound: row for row, sound in enumerate(sounds)}, vectors.values.shape[1]
            seeds, queries, seed_rows = list[Track](), list[np.ndarray](), list[int]()
            for one in (seed, *also):
                if isinstance(one, str | Path):
                    seeds.append(track := self.track(one))
                    if track.sound not in rows:
                        hint = "Index its folder with this model: maest index FOLDER"
                        raise InputError("no embedding of it", kind="missing", path=one, hint=hint)
                    seed_rows.append(rows[track.sound])
                    queries.append(vectors.values[seed_rows[-1]])
                    continue
                path, values = (None, one) if isinstance(one, np.ndarray) else one
                queries.append(values.ravel())
                if values.size != width:
                    what = f"an embedding of {values.size} values; the library has {width}"
                    hint = "Compute it by the library's model."
                    raise InputError(what, kind="mismatch", setting="seed", hint=hint)
                if path is not None:
                    seeds.append(_outside(path))
                elif not_same_album:
                    hint = "Give its file, too: (path, embedding)."
                    setting = "not_same_album"
                    raise InputError("no album", kind="conflict", setting=setting, hint=hint)
            cosines = vectors.cosines(np.stack(queries))
            cosines[seed_rows] = -np.inf
            order = np.argsort(-cosines, kind="stable")[: len(cosines) - len(set(seed_rows))]
            found: list[tuple[Track, float]] = []
            for start in range(0, len(order), size := 2 * top + 20):
                part = order[start : start + size]
                files = self._of_sounds([sounds[row] for row in part])
                for row, copies in zip(part, files, strict=True):
                    same = not_same_album and any(t.same_album(s) for t in copies for s in seeds)
                    if not same:
                        found.append((copies[0], float(cosines[row])))
                if len(found) >= top:
                    break
            return found[:top]

    def duplicates(
        self,
        threshold: float = _NEAR,
        seconds: float = _SAME_LENGTH,
        model: Model | None = None,
    ) -> list[list[Track]]:
        """Return groups of tracks with the same sound, or nearly so, in the order of their paths.

        Near copies have a cosine of ``threshold`` or more and durations that differ by at most
        ``seconds``. Without results of a model, or with less than ten, only equal sounds are found.
        """
        with self._snapshot():
            of_sound: dict[int, list[Track]] = {}
            for track in self.tracks():
                of_sound.setdefault(track.sound, []).append(track)
            pairs = [(sound, sound) for sound, copies in of_sound.items() if len(copies) > 1]
            if model or any(number for _, number in self.models()):
                sounds, vectors = self._load(model)
                lengths = np.array([of_sound[sound][0].seconds for sound in sounds])
                near = vectors.near_pairs(lengths, threshold, seconds)
                pairs += [(sounds[i], sounds[j]) for i, j, _ in near]
        found = [[track for sound in group for track in of_sound[sound]] for group in groups(pairs)]

        def place(track: Track) -> bytes:
            return os.fsencode(track.path)

        in_order = [sorted(group, key=place) for group in found]
        return sorted(in_order, key=lambda group: place(group[0]))

    # ---- SQL -------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let all reading in a block see the library of one moment."""
        with library_file.readable_errors(self.path):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def _rows(self, command: str, values: Sequence[Any] = ()) -> list[tuple]:
        with library_file.readable_errors(self.path):
            return self._db.execute(command, values).fetchall()

    def _tracks(self, condition: str, values: Sequence[Any] = ()) -> list[Track]:
        return [
            Track(row[0], Path(os.fsdecode(row[1])), row[2], row[3].hex(), *row[4:])
            for row in self._rows(f"{_FILES} {condition}", values)
        ]

    def _of_sounds(self, sounds: Sequence[int]) -> list[list[Track]]:
        """Return the files of each sound: those that are here first, then by path."""
        found: dict[int, list[Track]] = {sound: [] for sound in sounds}
        for start in range(0, len(sounds), 500):  # SQLite bounds the number of values
            part = sounds[start : start + 500]
            where = f"WHERE sound IN ({', '.join('?' * len(part))}) AND state != 'gone'"
            for track in self._tracks(f"{where} ORDER BY state != 'here', path", part):
                found[track.sound].append(track)
        return list(found.values())

    def _model_id(self, model: Model, make: bool = False) -> int:
        """Return a model's number; 0 for one that the library does not have."""
        key = (model.hash, json.dumps(dict(model.settings), sort_keys=True))
        if make:
            command = "INSERT INTO models (hash, settings, name) VALUES (?, ?, ?) "
            self._db.execute(f"{command} ON CONFLICT DO NOTHING", (*key, model.name))
        rows = self._rows("SELECT id FROM models WHERE hash = ? AND settings = ?", key)
        return rows[0][0] if rows else 0

    def _chosen(self, model: Model | None) -> int:
        """Return the number of a model that has results, by default of the one with most."""
        models = self.models()
        chosen = model or (models[0][0] if models else None)
        if chosen is None or not (number := self._model_id(chosen)):
            what = f"no results of {chosen.name} in it" if chosen else "no results in it"
            hint = "Index music with this model first: maest index FOLDER"
            raise InputError(what, kind="missing", path=self.path, hint=hint)
        return number

    def _load(self, model: Model | None) -> tuple[list[int], Vectors]:
        """Return sounds and their embeddings; read again only after something was written."""
        number = self._chosen(model)
        moment = (self._rows("PRAGMA data_version"), self._db.total_changes)
        if number not in self._vectors or self._vectors[number][0] != moment:
            command = """SELECT sound, embedding FROM results
                WHERE model = ? AND error IS NULL
                AND sound IN (SELECT sound FROM files WHERE state != 'gone') ORDER BY sound"""
            rows = self._rows(command, (number,))
            if not rows:
                hint = "Index music with this model first: maest index FOLDER"
                raise InputError("no results in it", kind="missing", path=self.path, hint=hint)
            sounds = [sound for sound, _ in rows]
            values = np.frombuffer(b"".join(blob for _, blob in rows), np.float16)
            self._vectors[number] = (moment, sounds, Vectors(values.reshape(len(rows), -1)))
        return self._vectors[number][1:]


def _outside(path: str | Path) -> Track:
    """Return a file that the library does not have; its numbers say nothing."""
    folder, name = os.path.split(os.path.abspath(path))
    place = Path(os.path.realpath(folder), name)
    return Track(0, place, 0, "", 0.0, 0, 0, "here", **track_tags(read_texts(place)))


def _in(folder: str | Path | None) -> tuple[str, tuple[bytes, ...]]:
    """Return a condition of SQL, and its values: files below a folder, or all."""
    return ("", ()) if folder is None else ("AND path >= ? AND path < ?", below(folder))
