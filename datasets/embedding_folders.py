"""Folders of embeddings: which blocks of which extraction, and which file is a track's.

A folder's ``manifest.json`` says what made it. Other programs' embeddings have none: then the names
of folders count, ``<seconds>sec/<block>``.
"""

from __future__ import annotations

import functools
import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maest.datasets.collection import mel_key
from maest.datasets.embeddings import EMBEDDINGS_DIR, SUFFIX
from maest.helpers.blocks import FINAL
from maest.helpers.errors import InputError
from maest.helpers.manifest import MANIFEST, read_manifest

_LEVEL = re.compile(r"(\d+(?:\.\d+)?)sec")
_DEPTH = 3  # <out_dir>/<model>/<seconds>sec/<block>
_NEAR = 0.02  # seconds; patches are whole frames of 0.016 s
# What all blocks that are probed together must have in common
_SAME = ("model", "max_seconds", "patch_seconds", "hop_seconds", "tail", "patchout",
         "pool", "quantize", "version")  # fmt: skip


@dataclass(frozen=True)
class EmbeddingFolder:
    """The embeddings of one block, as extraction writes them, or as another program does."""

    folder: Path
    settings: dict[str, Any] | None = None  # of the extraction; None without a manifest
    made_by: dict[str, Any] | None = None  # the source of its model, where the manifest says so

    @property
    def block(self) -> int | None:
        """The block's number, -1 after the final norm; without a manifest, by the folder's name."""
        if self.settings is not None and isinstance(self.settings.get("block"), int):
            return int(self.settings["block"])
        if self.folder.name == "final":
            return FINAL
        return int(self.folder.name) if self.folder.name.isdecimal() else None

    @property
    def seconds(self) -> float | None:
        """Of the patches; without a manifest, by the name of the folder above."""
        if self.settings is not None and "patch_seconds" in self.settings:
            return float(self.settings["patch_seconds"])
        level = _LEVEL.fullmatch(self.folder.parent.name)
        return float(level[1]) if level else None

    @property
    def name(self) -> str:
        """Its block, for people."""
        return str(self.folder) if self.block is None else block_name(self.block)

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """A name without its suffix → the names of its tracks that have embeddings."""
        by_stem: dict[str, list[str]] = {}
        for place, _, names in os.walk(self.folder):
            inside = Path(place).relative_to(self.folder)
            for name in names:
                if name.endswith(SUFFIX):
                    track = (inside / name.removesuffix(SUFFIX)).as_posix()
                    # Beside song.mp3, the log-mel file of song.flac is song.flac.mmap.
                    for stem in {_stem(track), track}:
                        by_stem.setdefault(stem, []).append(track)
        return by_stem

    def path(self, key: str) -> Path:
        """The file of a track: of that key, or of the audio that its log-mel file was made of.

        A key that names a log-mel file finds ``<key>.embeddings.npy``, or else that of an audio
        file of this name; one that names an audio file never finds that of another audio file.
        Without any, the first of these is given, and is no file. Several, of audio files that
        differ in their suffix only, are refused.
        """
        exact = self.folder / f"{key}{SUFFIX}"
        for path in (exact, self.folder / f"{key}.mmap{SUFFIX}"):
            if path.is_file():
                return path
        others = self._by_stem.get(_stem(posixpath.normpath(key)), [])
        if mel_key(key) != key:
            others = [name for name in others if mel_key(name) == name]
        if len(others) > 1:
            raise InputError(
                f"{key!r} may be any of {', '.join(map(repr, sorted(others)))}",
                kind="conflict",
                path=self.folder,
                hint="Name tracks as the embeddings are named, or remove the others.",
            )
        return self.folder / f"{others[0]}{SUFFIX}" if others else exact


def model_name(settings: dict[str, Any], made_by: dict[str, Any] | None) -> str:
    """The place of an extraction's model, and the start of its hash."""
    name = (made_by or {}).get("checkpoint") or (made_by or {}).get("arch") or "of unknown place"
    return f"{name} ({str(settings.get('model'))[:12]})"


def block_name(block: int | str) -> str:
    """What extraction calls a block's folder."""
    return "final" if block == FINAL else str(block)


def _stem(track: str) -> str:
    """A track's name without the suffix of an audio or a log-mel file."""
    name = mel_key(track)
    return name.removesuffix(Path(name).suffix) if name.endswith((".mmap", ".npy")) else name


def find_folders(folder: str | Path, clip_length: float | None = None) -> list[EmbeddingFolder]:
    """The embeddings of one extraction, a folder for each of its blocks, in their order.

    Args:
        folder: what extraction was given as ``inference.out_dir``, or a folder above or within it,
            down to that of a block.
        clip_length: seconds of the patches, where there are embeddings of several lengths.
    """
    folder = Path(folder).expanduser()
    found = _search(folder, _DEPTH) if folder.is_dir() else []
    if not found:
        raise InputError(
            "no embeddings in it" if folder.is_dir() else "no such folder",
            kind="empty" if folder.is_dir() else "missing",
            path=folder,
            setting=EMBEDDINGS_DIR,
            hint="Extract embeddings first (ex_maest.py extract_embeddings with target_<name>), or "
            "give their folder.",
        )
    lengths = sorted({own.seconds for own in found if own.seconds is not None})
    if clip_length is not None and lengths:
        nearest = min(lengths, key=lambda seconds: abs(seconds - clip_length))
        if abs(nearest - clip_length) >= _NEAR:
            raise InputError(
                f"no embeddings of patches of {clip_length:g} s, but of "
                f"{', '.join(f'{seconds:g} s' for seconds in lengths)}",
                kind="missing",
                path=folder,
                setting="data.clip_length",
                hint=f"Give data.clip_length={nearest:g}, or extract with "
                f"datamodule.clip_length={clip_length:g}.",
            )
        found, lengths = [own for own in found if own.seconds in (nearest, None)], [nearest]
    places = dict.fromkeys(own.folder.parent for own in found)
    if len(places) > 1:
        way = f"data.clip_length={lengths[0]:g}" if len(lengths) == len(places) else EMBEDDINGS_DIR
        raise InputError(
            f"has embeddings of several extractions: {', '.join(map(str, places))}",
            kind="conflict",
            path=folder,
            setting=EMBEDDINGS_DIR,
            hint=f"Choose one, by {way}.",
        )
    found.sort(key=lambda own: (own.block is None, own.block == -1, own.block or 0))
    for one, other in itertools.pairwise(found):
        if one.block == other.block and one.block is not None:
            raise InputError(
                f"{one.folder.name} and {other.folder.name} both hold embeddings of block "
                f"{one.name}",
                kind="conflict",
                path=one.folder.parent,
                hint="Remove one of them.",
            )
    return found


def _search(folder: Path, depth: int) -> list[EmbeddingFolder]:
    manifest = read_manifest(folder)
    if manifest is not None:
        settings = manifest["settings"]
        if settings.get("kind") != "embeddings":
            return []
        return [EmbeddingFolder(folder, settings, manifest.get("made_by"))]
    if not _LEVEL.fullmatch(folder.name) and _holds_foreign_embeddings(folder):
        return [EmbeddingFolder(folder)]
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    return [own for path in inside for own in _search(path, depth - 1)]


def _holds_foreign_embeddings(folder: Path) -> bool:
    """Whether embeddings without a manifest lie in it, at any depth, as those of one block."""
    found = False
    for _, folders, names in os.walk(folder):
        if MANIFEST in names or any(map(_LEVEL.fullmatch, folders)):
            return False
        found = found or any(name.endswith(SUFFIX) for name in names)
    return found


def check_same_extraction(folders: Sequence[EmbeddingFolder]) -> None:
    """Raise InputError if embeddings are of several models, or of tracks cut in several ways."""
    known = [(own, own.settings) for own in folders if own.settings is not None]
    for other, settings in known[1:]:
        first, expected = known[0]
        name = next((n for n in _SAME if settings.get(n) != expected.get(n)), None)
        if name is not None:
            values = [expected.get(name), settings.get(name)]
            if name == "model":
                values = [model_name(expected, first.made_by), model_name(settings, other.made_by)]
            raise InputError(
                f"{first.folder} and {other.folder} were made differently: {name} {values[0]} and "
                f"{values[1]}",
                kind="mismatch",
                setting=EMBEDDINGS_DIR,
                hint="Extract each model into a folder of its own (inference.out_dir), all its "
                "blocks in one run (inference.transformer_block=all).",
            )
