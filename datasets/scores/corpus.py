"""The works of the music21 corpus, in the order in which a build takes them."""

import hashlib
import importlib.util
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from maest.datasets.scores.tables import COLLECTIONS, Collection
from maest.helpers.errors import InputError

_SUFFIXES = {".abc", ".krn", ".mxl", ".xml", ".musicxml"}


@dataclass(frozen=True)
class Work:
    """A file of the corpus, or one tune of a book."""

    id: str  # "collection/name", unique, safe as a relative path
    collection: str
    path: str  # of the file, relative to the corpus folder
    text: str | None = field(repr=False)  # the tune in ABC; None for a file that music21 reads
    size: int  # bytes of the file or of the tune
    rank: int = 0  # place within its collection


def package_file(package: str, name: str) -> Path:
    """A file or folder in a package, which is not imported. Raises InputError if it is missing."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(*folders[:1] or [package], name)
    if not path.exists():
        hint = f"Type pip install {package}, which brings it."
        raise InputError("is missing", kind="dependency", hint=hint, path=path)
    return path


def corpus_folder() -> Path:
    return package_file("music21", "corpus")


def generator(text: str, size: int) -> np.random.Generator:
    """Random numbers that depend on a text: on ``size`` bytes of its hash."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:size], "little"))


def list_works(folder: Path) -> list[Work]:
    """List all works, such that the first N, for any N, balance the collections by weight."""
    queue = []
    for collection in COLLECTIONS.values():
        for rank, work in enumerate(_in_order(collection, _works_of(collection, folder))):
            turn = (rank + 0.5) / collection.weight
            queue.append((turn, collection.name, replace(work, rank=rank)))
    return [work for *_, work in sorted(queue)]


def _works_of(collection: Collection, folder: Path) -> Iterator[Work]:
    paths = {path for pattern in collection.patterns for path in folder.glob(pattern)}
    names: Counter[str] = Counter()
    for path in sorted(p for p in paths if p.suffix in _SUFFIXES and p.is_file()):
        relative = path.relative_to(folder)
        # The name includes the folders between the collection and the file.
        stem = "-".join((*relative.parts[0 if collection.by_folder else 1 : -1], path.stem))
        entries: list[tuple[str, str | None, int]] = [(stem, None, path.stat().st_size)]
        if path.suffix == ".abc":
            # The tunes of a book begin with "X:".
            tunes = re.split(r"^(?=X:)", decode(path.read_bytes()), flags=re.MULTILINE)[1:]
            entries = [
                (stem if len(tunes) == 1 else f"{stem}-{number:04d}", tune, len(tune))
                for number, tune in enumerate(tunes, 1)
            ]
        for name, text, size in entries:
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.")
            names[name.lower()] += 1
            if names[name.lower()] > 1:  # the same file in two formats, or two spellings
                name = f"{name}.{names[name.lower()]}"
            identity = f"{collection.name}/{name}"
            yield Work(identity, collection.name, relative.as_posix(), text, size)


def _in_order(collection: Collection, works: Iterable[Work]) -> list[Work]:
    if not collection.by_folder:  # by hash: any prefix is a fair sample
        return sorted(works, key=lambda work: hashlib.sha256(work.id.encode()).digest())
    folders: dict[str, list[tuple[int, str, Work]]] = defaultdict(list)
    for work in works:
        # A file beside folders (an opus in one file) counts as a folder.
        parent = str(Path(work.path).parent)
        folders[parent if "/" in parent else work.path].append((work.size, work.id, work))
    turns = [(i, entry) for entries in folders.values() for i, entry in enumerate(sorted(entries))]
    return [work for _, (*_, work) in sorted(turns)]


def decode(data: bytes) -> str:
    """Decode a file as UTF-8, else as Latin-1; remove remains of quoted-printable encoding."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"=20$|(?<= )=$", "", text, flags=re.MULTILINE)
