"""What is known of each audio file: its content's hashes and its album, read once."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from maest.datasets.mel_store import MelIndex
from maest.datasets.melspectrograms import MelFile
from maest.helpers.audio.packets import read_texts
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_json
from maest.helpers.work.parallel import run_parallel


class Track(NamedTuple):
    key: str  # of the log-mel file, with the source's name first
    source: str
    name: str  # of the audio file, relative to the source's folder
    size: int
    mtime_ns: int
    warnings: tuple[str, ...]  # why its labels may mean nothing, such as "silent"


@dataclass(frozen=True)
class Facts:
    size: int
    mtime_ns: int
    sha256: str  # of the audio file
    content: str  # hash of the log-mel; "" in silence
    album: str  # its tag; "" without one


def find_tracks(store: Path, source: str, audio_dir: Path | None) -> list[Track]:
    """The tracks of a source with a log-mel file; ``audio_dir``: whose audio is still there."""
    index, tracks = MelIndex(store / source), []
    for key, name in sorted(index.owners.items()):
        there = audio_dir is None or (audio_dir / name).exists()
        if there and (store / source / key).is_file():
            made = index.sources[name]
            place = f"{source}/{key}"
            tracks.append(Track(place, source, name, made.size, made.mtime_ns, made.warnings))
    return tracks


def gather(
    tracks: Sequence[Track],
    path: Path,
    store: Path,
    audio_dirs: dict[str, Path],
    num_workers: int | None,
    progress: bool,
) -> tuple[dict[str, Facts], dict[str, str]]:
    """Read what ``path`` does not have yet, and add it. Returns key → facts, and failures."""
    facts: dict[str, Facts] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError):  # else they are read again
        facts = {key: Facts(**row) for key, row in json.loads(path.read_text("utf-8")).items()}
    stamps = {track.key: (track.size, track.mtime_ns) for track in tracks}
    facts = {k: f for k, f in facts.items() if stamps.get(k) == (f.size, f.mtime_ns)}
    todo = [track for track in tracks if track.key not in facts]
    failed = {}
    results = run_parallel(
        partial(_read, store=store, audio_dirs=audio_dirs),
        todo,
        num_workers=num_workers,
        failed=lambda track, reason: (track.key, reason),
        progress=progress,
        title="hash",
        unit="file",
    )
    for key, result in results:
        if isinstance(result, str):
            failed[key] = result
        else:
            facts[key] = result
    if todo:
        write_json(path, {key: asdict(facts[key]) for key in sorted(facts)})
    return facts, failed


def _read(track: Track, store: Path, audio_dirs: dict[str, Path]) -> tuple[str, Facts | str]:
    path = audio_dirs[track.source] / track.name
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with MelFile(store / track.key) as mel:
            content = mel.content_hash() or b""
    except InputError as error:
        return track.key, error.reason
    except OSError as error:
        return track.key, f"cannot be read: {error.strerror or error}"
    album = read_texts(path).get("album", "")
    return track.key, Facts(track.size, track.mtime_ns, sha256, content.hex(), album)
