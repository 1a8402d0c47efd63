"""What a library holds: tracks, models, and what these say about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maest.helpers.errors import InputError

State = Literal["here", "offline", "gone"]


@dataclass(frozen=True)
class Model:
    """What made results; another hash or other settings are another model."""

    name: str
    hash: str  #: of the weights
    settings: Mapping[str, Any] = field(default_factory=dict)  #: of JSON's types


@dataclass(frozen=True)
class Analysis:
    """What a model says about a sound.

    Raises InputError ("diverged") for an embedding without values, or not finite in float16.
    """

    tags: Sequence[tuple[str, float]]  #: label, value; as ("Electronic---Techno", 0.83)
    embedding: np.ndarray  #: float16, of the same shape for all sounds of a model
    seconds: float  #: duration
    warnings: Sequence[str] = ()  #: reasons to doubt the rest

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):
            embedding = np.asarray(self.embedding, np.float16)
        if not embedding.size or not np.isfinite(embedding).all():
            hint = "Check the file's sound, or use another block or model."
            what = "an embedding that is empty, or not finite in float16"
            raise InputError(what, kind="diverged", setting="embedding", hint=hint)
        object.__setattr__(self, "embedding", embedding)


@dataclass(frozen=True)
class Track:
    """A file of the library, as of the last scan."""

    id: int
    path: Path
    sound: int  #: equal for copies
    hash: str  #: of the audio packets
    seconds: float  #: duration; by its header where it was not analysed
    size: int  #: bytes
    mtime_ns: int
    state: State
    title: str  #: by the file's tags; "" without one, and so on
    artist: str
    album: str
    album_artist: str

    def same_album(self, other: Track) -> bool:
        """Compare album tags, with those of artists or the folder; without them, the folders."""
        folder = self.path.parent == other.path.parent
        if not self.album or not other.album:
            return folder
        artists = {self.album_artist or self.artist, self.artist}
        artist = bool(artists & {other.album_artist or other.artist, other.artist} - {""})
        return self.album.casefold() == other.album.casefold() and (artist or folder)
