"""Tags and embeddings of music files, the same as by the command `maest`.

>>> import maest
>>> for song in maest.tag("music"):  # a file, a folder, or several
...     print(song.path, song.tags)
>>> for song in maest.embed("music", block=7):
...     print(song.path, song.embeddings.shape)

To use a model more than once, load it once:

>>> analyser = maest.Analyser("maest-tiny-music")
>>> songs = list(maest.tag("song.mp3", analyser))
>>> with maest.Library() as library:
...     library.index("music", analyser.model, analyser)

A file that cannot be read is yielded too: its ``error`` says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maest.datasets.audio_folder import find_audio
from maest.datasets.tracks import AudioTracks, read_tracks
from maest.helpers.errors import InputError, Kind
from maest.helpers.names import check_choice
from maest.helpers.results.manifest import model_hash
from maest.helpers.results.predictions import Thresholds, best, label_names
from maest.helpers.results.tracks import Track, TrackResult
from maest.helpers.work.parallel import cores
from maest.library_types import Analysis, Model
from maest.models import Maest
from maest.models.archs import current_name
from maest.models.extraction import Extractor
from maest.models.learned import Learned
from maest.tag_groups import GROUPS, group_of

DEFAULT_MODEL = "maest-tiny-music"
_LIBRARY_LABELS = 20  # of a track in a library, beside its tags
_MOST_WORKERS = 12

Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class Tagged:
    """A file and its tags, the highest first; or the ``error`` for which it has none."""

    path: Path
    tags: list[tuple[str, float]] = field(default_factory=list)  #: label, value
    seconds: float = 0.0  #: duration
    warnings: list[str] = field(default_factory=list)  #: reasons to doubt the tags: "silent" …
    error: str | None = None
    result: TrackResult | None = None  #: all labels' values, and those of each window


@dataclass(frozen=True)
class Embedded:
    """A file and its embeddings: of the whole file (W is 1), or of each of W windows.

    A block's embedding has three tokens: cls, dist and the mean of the others. A file that cannot
    be read has an ``error`` and no embeddings.
    """

    path: Path
    #: float32 [W, 3, D]; of block -1 (the embedding after the final norm) [W, D]
    embeddings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    #: float64 [W, 2]: start and end in seconds
    times: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


class Analyser:
    """A loaded model for many files. Each file is decoded once, in another process.

    Args:
        model: the name of a model (``maest models`` lists them); a model folder, also one that
            ``maest learn`` has written; a checkpoint file; or a network.
        block: the block to embed, from 0, or -1 for the embedding after the final norm; None: block
            7, or a shallower network's last.
        each_window: keep the embedding of each window of a track; False: their mean.
        pictures: add a picture of the log-mel to each result.
        max_windows: use at most so many windows of a track, spread evenly over it; None: all.
        device: such as "cpu" or "cuda"; None: a GPU if there is one.

    Raises:
        InputError: as `Extractor`.
    """

    def __init__(
        self,
        model: str | Path | Maest = DEFAULT_MODEL,
        *,
        block: int | None = None,
        each_window: bool = False,
        pictures: bool = False,
        max_windows: int | None = None,
        device: str | None = None,
    ) -> None:
        self._extractor = Extractor(
            model,
            blocks=block,
            activations=True,
            pool="none" if each_window else "mean",
            pictures=pictures,
            max_windows=max_windows,
            device=device,
        )
        extraction = self._extractor.extraction
        self._extraction, self.net, self.head = extraction, extraction.net, extraction.head
        self.is_pooled = not each_window
        self.block, *others = extraction.spec.blocks
        if others:
            hint = "Give one number."
            raise InputError(f"{block!r} are several blocks", hint=hint, setting="block")
        self.name = "a network" if isinstance(model, Maest) else _name(model)
        self.labels = label_names(self.head.labels, self.head.n_classes)

    @cached_property
    def model(self) -> Model:
        """The model, as a library knows it."""
        weights = model_hash(self.net.state_dict(), self.net.sizes())
        settings: dict[str, Any] = {}
        if self._extraction.plan.most is not None:
            settings["max_windows"] = self._extraction.plan.most
        if isinstance(self.head, Learned):
            settings["learned"] = self.head.hash
        return Model(self.name, weights, {"block": self.block, **settings})

    def results(self, paths: Sequence[Path]) -> Iterator[tuple[Path, TrackResult | Track]]:
        """Yield each file, as it is done, with its result, or the track with its ``error``."""
        tracks = AudioTracks(os.sep, [str(path.absolute()) for path in paths])
        tracks.plan = self._extraction.plan
        # On a CPU one process decodes, which takes few cycles from the network; one file needs none
        on_cpu = self._extraction.engine.device.type == "cpu"
        workers = min(len(paths), 1 if on_cpu else min(cores(), _MOST_WORKERS))
        workers = 0 if len(paths) == 1 else workers
        with closing(read_tracks(tracks, range(len(paths)), workers)) as read:
            for result in self._extraction.results(read):
                yield paths[result.index], result

    def __call__(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Analysis | InputError]]:
        """Yield what a library keeps of each file, or its error; see `Library.index`.

        Of its tags these are those of `tag` and the best others, 20 or more in all.
        """
        for path, result in self.results(paths):
            if isinstance(result, Track):
                kind, hint = result.kind or "corrupt", "Get the file again, or leave it out."
                yield path, InputError(result.error or "", kind=kind, hint=hint)
                continue
            tags = dict(self.tags(result, len(self.labels)))
            tags |= dict(self.tags(result, _LIBRARY_LABELS, threshold=None))
            ordered = sorted(tags.items(), key=lambda tag: -tag[1])
            embedding = result.embeddings[self.block]
            try:
                yield path, Analysis(ordered, embedding, result.seconds, result.warnings)
            except InputError as error:
                yield path, error

    def tags(
        self,
        result: TrackResult,
        top: int = 5,
        threshold: Literal["auto"] | float | None = "auto",
        groups: Iterable[str] = (),
    ) -> list[tuple[str, float]]:
        """Return a result's labels and their values, the highest first.

        For the options see :func:`tag`. With a ``threshold`` of None no label is left out.
        """
        assert result.activations is not None
        among = self.labels_of(groups)
        thresholds: Thresholds | None = None
        if threshold == "auto":
            own = self.head.thresholds
            thresholds = None if own is None else [own[i] for i in among]
        elif threshold is not None:
            thresholds = float(threshold)
        values = result.activations[among]
        chosen = best(values, top, self.head.task, thresholds)
        return [(self.labels[among[i]], float(values[i])) for i in chosen]

    def labels_of(self, groups: Iterable[str]) -> list[int]:
        """Return the numbers of the labels of some groups, or all.

        InputError: an unknown group, or none that the model has a label of.
        """
        of_labels = [group_of(label) for label in self.labels]
        groups = [group.strip().casefold() for group in groups]
        known = sorted(set(of_labels) - {""})
        for group in groups:
            if group not in GROUPS or not set(groups) & set(known):
                check_choice("groups", group, known)
        return [i for i, group in enumerate(of_labels) if not groups or group in groups]


def tag(
    paths: Paths,
    model: str | Path | Maest | Analyser = DEFAULT_MODEL,
    *,
    top: int = 5,
    threshold: Literal["auto"] | float = "auto",
    groups: Iterable[str] = (),
) -> Iterator[Tagged]:
    """Tag audio files; yield each one as soon as it is done.

    Args:
        paths: a file or folder, or several. A folder stands for all audio below it.
        model: as for :class:`Analyser`; or an `Analyser`, if the model is already loaded.
        top: the largest number of tags of a file.
        threshold: the lowest value of a tag. "auto": the model has a threshold for each label; of a
            model without thresholds, the top labels are tags.
        groups: tags of these groups only: "genre", "mood", "instrument" …; default: all.

    Raises:
        InputError: there is no audio, or an option does not fit the model.
    """
    analyser = model if isinstance(model, Analyser) else Analyser(model)
    music, groups = find_music(paths), list(groups)
    analyser.labels_of(groups)
    if analyser.head.task == "regression" and threshold != "auto":
        what, hint = "a regression's values have no tags", "Leave it out."
        raise InputError(what, kind="conflict", hint=hint, setting="threshold")

    def tagged() -> Iterator[Tagged]:
        yield from (Tagged(path, error=reason) for path, reason in music.unreadable.items())
        for path, result in analyser.results(list(music.files)):
            if isinstance(result, Track):
                yield Tagged(path, error=result.error)
                continue
            tags = analyser.tags(result, top, threshold, groups)
            yield Tagged(path, tags, result.seconds, result.warnings, None, result)

    return tagged()


def embed(
    paths: Paths,
    model: str | Path | Maest | Analyser = DEFAULT_MODEL,
    *,
    block: int | None = None,
    each_window: bool = False,
) -> Iterator[Embedded]:
    """Embed audio files; yield each one as soon as it is done.

    ``paths`` are as for :func:`tag`, the other arguments as for :class:`Analyser`. If ``model`` is
    an `Analyser`, its own options count.

    Raises:
        InputError: there is no audio, or as `Analyser`.
    """
    if not isinstance(model, Analyser):
        model = Analyser(model, block=block, each_window=each_window)
    analyser, music = model, find_music(paths)

    def embedded() -> Iterator[Embedded]:
        yield from (Embedded(path, error=reason) for path, reason in music.unreadable.items())
        for path, result in analyser.results(list(music.files)):
            if isinstance(result, Track):
                yield Embedded(path, error=result.error)
                continue
            values, times = result.embeddings[analyser.block], result.times[:, [0, 2]]
            if analyser.is_pooled:
                values, times = values[None], np.array([[0.0, result.seconds]])
            yield Embedded(path, values, times, result.warnings)

    return embedded()


# ---- files ---------------------------------------------------------------------------------------


@dataclass
class Music:
    """The audio of files and folders."""

    # → name below the folder that was given or, where two would have one, that all are in
    files: dict[Path, str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)  # files and folders → reason


def find_music(paths: Paths) -> Music:
    """Find audio: files of any suffix, and all audio below folders. InputError: there is none."""
    music, first = Music(), None
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        with suppress(RuntimeError):  # "~" of a name, not of a user
            path = path if path.exists() else path.expanduser()
        try:
            if path.is_dir():
                found = find_audio(path)
                music.files |= {path / name: name for name in found.files}
                music.unreadable |= {path / name: why for name, why in found.unreadable.items()}
                continue
            path.stat()
            music.files[path] = path.name
        except InputError as error:  # a folder without audio
            first = first or error
            music.unreadable[path] = error.reason
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            what = "no such file or folder" if is_missing else error.strerror or str(error)
            kind: Kind = "missing" if is_missing else "access"
            hint = "Give an audio file, or a folder of them."
            first = first or InputError(what, kind=kind, path=path, hint=hint)
            music.unreadable[path] = what
    if first and not music.files:
        raise first
    if len(set(music.files.values())) < len(music.files):
        whole = {path: os.path.abspath(path) for path in music.files}
        shared = os.path.commonpath(map(os.path.dirname, whole.values()))
        music.files = {path: os.path.relpath(name, shared) for path, name in whole.items()}
    return music


def _name(model: str | Path) -> str:
    """Return a model's name, or the absolute path of its folder or file."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else current_name(str(model))
