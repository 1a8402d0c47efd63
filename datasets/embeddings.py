"""Saved embeddings of whole tracks, and statistics of their mel bands, for the probe.

Settings come from a folder's ``manifest.json``, or else its name, ``<seconds>sec/<block>``.
"""

import functools
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from maest.datasets.audio_folder import mel_key
from maest.datasets.melspectrograms import read_mel
from maest.helpers.audio.constants import NORM_MEAN, NORM_STD
from maest.helpers.audio.patches import pooled_file
from maest.helpers.blocks import FINAL
from maest.helpers.errors import InputError
from maest.helpers.files.arrays import load_array
from maest.helpers.files.atomic import files_below
from maest.helpers.results.manifest import MANIFEST, read_manifest
from maest.helpers.work.parallel import thread_map

Item = TypeVar("Item")
TOKENS = "cdt"  # order on disk: cls, dist, average of all others
EMBEDDINGS_DIR = "data.embeddings_dir"  # the setting that names the folder
EXTRACT_THEM = f"Extract them (ex_maest.py extract_embeddings), or correct {EMBEDDINGS_DIR}."
SUFFIX = ".embeddings.npy"
_LEVEL = re.compile(r"(\d+(?:\.\d+)?)sec")
_DEPTH = 3  # <out_dir>/<model>/<seconds>sec/<block>
_NEAR = 0.02  # seconds; patches are whole frames of 0.016 s
# Settings that blocks must share to be probed together
_SAME = ("model", "max_seconds", "max_windows", "patch_seconds", "hop_seconds", "tail",
         "patchout", "pool", "quantize", "version")  # fmt: skip


# ---- folders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingFolder:
    """The embeddings of one block, from extraction or from another program."""

    folder: Path
    settings: dict[str, Any] | None = None  # of the extraction; None without a manifest
    made_by: dict[str, Any] | None = None  # the model's source, if the manifest has it

    @property
    def block(self) -> int | None:
        """The block's number, -1 after the final norm; without a manifest, by the folder's name."""
        if isinstance(block := (self.settings or {}).get("block"), int):
            return block
        name = self.folder.name
        return FINAL if name == "final" else int(name) if name.isdecimal() else None

    @property
    def seconds(self) -> float | None:
        """The patches' length; without a manifest, by the parent folder's name."""
        level = _LEVEL.fullmatch(self.folder.parent.name)
        seconds = (self.settings or {}).get("patch_seconds", level and level[1])
        return None if seconds is None else float(seconds)

    @property
    def name(self) -> str:
        """The block's name in messages."""
        return str(self.folder) if self.block is None else block_name(self.block)

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Name without its suffix → names of tracks that have embeddings."""
        by_stem = defaultdict(list)
        for path in files_below(self.folder, SUFFIX):
            track = path.removesuffix(SUFFIX)
            # Beside song.mp3, the log-mel file of song.flac is song.flac.mmap.
            for stem in {_stem(track), track}:
                by_stem[stem].append(track)
        return by_stem

    def path(self, key: str) -> Path:
        """The embedding file of a track; it need not exist.

        The key of a log-mel file leads to ``<key>.embeddings.npy``, or else that of an audio file
        of this name; the key of an audio file never to that of another audio file. Raises
        InputError if several audio files fit, which differ only in their suffix.
        """
        exact = f"{self.folder}/{key}{SUFFIX}"
        for path in (exact, f"{self.folder}/{key}.mmap{SUFFIX}"):
            if os.path.isfile(path):
                return Path(path)
        others = self._by_stem.get(_stem(posixpath.normpath(key)), [])
        if mel_key(key) != key:
            others = [name for name in others if mel_key(name) == name]
        if len(others) > 1:
            what = f"{key!r} may be any of {', '.join(map(repr, sorted(others)))}"
            hint = "Name tracks as the embeddings are named, or remove the others."
            raise InputError(what, kind="conflict", path=self.folder, hint=hint)
        return self.folder / f"{others[0]}{SUFFIX}" if others else Path(exact)


def _stem(track: str) -> str:
    """A track's name without an audio or log-mel suffix."""
    return mel_key(track).removesuffix(".mmap")


def block_name(block: int | str) -> str:
    """The name of a block's folder."""
    return "final" if block == FINAL else str(block)


def model_name(settings: dict[str, Any], made_by: dict[str, Any] | None) -> str:
    """A model's checkpoint or arch, and the start of its hash, for messages."""
    name = (made_by or {}).get("checkpoint") or (made_by or {}).get("arch") or "of unknown place"
    return f"{name} ({str(settings.get('model'))[:12]})"


def find_folders(folder: str | Path, clip_length: float | None = None) -> list[EmbeddingFolder]:
    """The embeddings of one extraction: a folder for each block, in the order of the blocks.

    ``folder`` is the extraction's ``inference.out_dir``, one above it, or one within it, down to
    that of a block. ``clip_length``, in seconds, chooses among patches of several lengths. Raises
    InputError for no embeddings, none of that length, several extractions, or a block twice.
    """
    folder = Path(folder).expanduser()
    refusal = functools.partial(InputError, path=folder, setting=EMBEDDINGS_DIR)
    if not folder.is_dir():
        raise refusal("no such folder", kind="missing", hint=EXTRACT_THEM)
    folders = _search(folder, _DEPTH)
    if not folders:
        raise refusal("no embeddings in it", kind="empty", hint=EXTRACT_THEM)
    lengths = sorted({one.seconds for one in folders if one.seconds is not None})
    if clip_length is not None and lengths:
        nearest = min(lengths, key=lambda seconds: abs(seconds - clip_length))
        if abs(nearest - clip_length) >= _NEAR:
            known = ", ".join(f"{seconds:g} s" for seconds in lengths)
            message = f"no embeddings of patches of {clip_length:g} s, but of {known}"
            hint = f"Give data.clip_length={nearest:g}, or extract with "
            hint += f"datamodule.clip_length={clip_length:g}."
            raise refusal(message, kind="missing", setting="data.clip_length", hint=hint)
        folders, lengths = [one for one in folders if one.seconds in (nearest, None)], [nearest]
    places = dict.fromkeys(one.folder.parent for one in folders)
    if len(places) > 1:
        message = f"has embeddings of several extractions: {', '.join(map(str, places))}"
        way = f"data.clip_length={lengths[0]:g}" if len(lengths) == len(places) else EMBEDDINGS_DIR
        raise refusal(message, kind="conflict", hint=f"Choose one, by {way}.")
    folders.sort(key=lambda one: (one.block is None, one.block == FINAL, one.block or 0))
    for one, other in pairwise(folders):
        if one.block is not None and one.block == other.block:
            message = f"{one.folder} and {other.folder.name} hold embeddings of one block"
            raise refusal(message, kind="conflict", hint="Remove one of them.")
    return folders


def _search(folder: Path, depth: int) -> list[EmbeddingFolder]:
    if (manifest := read_manifest(folder)) is not None:
        settings = manifest["settings"]
        embeddings = settings.get("kind") == "embeddings"
        return [EmbeddingFolder(folder, settings, manifest.get("made_by"))] if embeddings else []
    if not _LEVEL.fullmatch(folder.name) and _is_foreign(folder):
        return [EmbeddingFolder(folder)]
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if depth else []
    return [one for path in inside for one in _search(path, depth - 1)]


def _is_foreign(folder: Path) -> bool:
    """Whether embeddings without a manifest lie below, as those of one block."""
    for _, folders, names in os.walk(folder):
        if MANIFEST in names or any(map(_LEVEL.fullmatch, folders)):
            return False
    return next(files_below(folder, SUFFIX), None) is not None


def check_same_extraction(folders: Sequence[EmbeddingFolder]) -> None:
    """Raise InputError if embeddings differ in their model, or in how tracks were cut."""
    known = [(one, one.settings) for one in folders if one.settings is not None]
    for other, settings in known[1:]:
        first, expected = known[0]
        name = next((n for n in _SAME if settings.get(n) != expected.get(n)), None)
        if name is not None:
            values = [expected.get(name), settings.get(name)]
            if name == "model":
                values = [model_name(expected, first.made_by), model_name(settings, other.made_by)]
            message = f"{first.folder} and {other.folder} were extracted differently: {name} "
            message += f"{values[0]} and {values[1]}"
            hint = "Extract each model into a folder of its own (inference.out_dir), all its "
            hint += "blocks in one run (inference.transformer_block=all)."
            raise InputError(message, kind="mismatch", setting=EMBEDDINGS_DIR, hint=hint)


# ---- features ------------------------------------------------------------------------------------


def check_types(types: str, setting: str = "data.types") -> None:
    """Raise InputError unless ``types`` are known tokens, each at most once."""
    if not types or not set(types) <= set(TOKENS) or len(set(types)) < len(types):
        hint = 'Give some of "c" (cls), "d" (dist) and "t" (average of the other tokens), each '
        hint += 'at most once, such as "c" or "cdt".'
        raise InputError(f"{types!r} is not a choice of tokens", setting=setting, hint=hint)


def select_tokens(embeddings: np.ndarray, types: str, reduce: str) -> np.ndarray:
    """Reduce tokens to a vector: [..., 3, D] → [..., D] ("mean") or [..., types · D] ("stack").

    After the final norm, [..., 1, D], any choice but the default raises InputError.
    """
    if embeddings.shape[-2] == 1:
        if types != "c" or reduce != "mean":
            message = "embeddings after the final norm have no tokens to choose from"
            hint = "Leave data.types and data.reduce out, or extract a block's embeddings."
            raise InputError(message, kind="conflict", setting="data.types", hint=hint)
        return embeddings[..., 0, :]
    chosen = embeddings[..., [TOKENS.index(token) for token in types], :]
    return chosen.mean(axis=-2) if reduce == "mean" else chosen.reshape(*chosen.shape[:-2], -1)


def read_tokens(path: Path) -> np.ndarray:
    """Read one track's embedding: float32 [3, D], or [1, D] after the final norm.

    The file holds [3, D] or [D]; or, for single patches, [patches, 3, D] or [patches, 1, D], which
    `patches.pooled_file` pools. Raises InputError for a damaged file, another shape or dtype, NaN
    or infinity.
    """
    values = load_array(path, "Extract it again: extraction makes damaged files again.")
    tokens = values[None] if values.ndim == 1 else values  # [3, D], or [patches, 3, D]
    fits = tokens.ndim in (2, 3) and tokens.shape[-2] in (1, len(TOKENS)) and tokens.size
    if not fits or tokens.dtype.kind != "f":
        message = f"has {values.dtype} {list(values.shape)}, expected floats [3, D] or [D]"
        raise InputError(message, path=path, hint="Delete it, and extract it again.")
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        pooled = pooled_file(tokens, path) if tokens.ndim == 3 else tokens.astype(np.float32)
    if not np.isfinite(pooled).all():
        hint = "Delete it, and extract it again, with trainer.precision=32-true."
        raise InputError("has NaN or infinite values", path=path, hint=hint)
    return pooled


def mel_statistics(path: Path) -> np.ndarray:
    """The probe's baseline: mean and std over time of each normalised mel band, float32 [192]."""
    mel = (np.asarray(read_mel(path), dtype=np.float32) - NORM_MEAN) / (2 * NORM_STD)
    return np.concatenate((mel.mean(axis=0), mel.std(axis=0))).astype(np.float32)


def read_blocks(paths: Sequence[Path]) -> np.ndarray:
    """A track's embeddings of L blocks: float32 [L, 3, D], or [L, 1, D] after the final norm."""
    blocks = [read_tokens(path) for path in paths]
    for path, tokens in zip(paths, blocks, strict=True):
        if tokens.shape != blocks[0].shape:
            shape, other = list(tokens.shape), list(blocks[0].shape)
            message = f"an embedding of {shape}, and {paths[0]} is of {other}"
            hint = "Extract all blocks in one run (inference.transformer_block=all)."
            raise InputError(message, kind="mismatch", path=path, hint=hint)
    return np.stack(blocks)


def read_all(read: Callable[[Item], np.ndarray], items: Sequence[Item], title: str) -> np.ndarray:
    """Read N ≥ 1 tracks, and stack their features, all of one shape: float32 [N, ...]."""
    features = np.empty(0, np.float32)
    for i, one in enumerate(thread_map(read, items, None, title)):
        if i == 0:  # filled in place, as a list would double the memory
            features = np.empty((len(items), *one.shape), np.float32)
        if one.shape != features.shape[1:]:
            shape, before = list(one.shape), list(features[0].shape)
            message = f"{items[i]}: {shape}, and the tracks before it have {before}"
            hint = "Extract all tracks with the same settings, into an empty folder."
            raise InputError(message, kind="mismatch", setting=EMBEDDINGS_DIR, hint=hint)
        features[i] = one
    return features
