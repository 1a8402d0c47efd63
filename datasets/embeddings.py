"""Features of whole tracks for the probe: saved embeddings, or statistics of the mel bands."""

from __future__ import annotations

import functools
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.collection import mel_key
from maest.datasets.melspectrograms import mel_path, open_mel
from maest.helpers.arrays import load_array
from maest.helpers.errors import InputError
from maest.helpers.manifest import MANIFEST, read_manifest
from maest.helpers.melspectrogram import NORM_MEAN, NORM_STD
from maest.helpers.parallel import in_order
from maest.helpers.patches import pooled_file
from maest.helpers.settings import check_choice

TOKENS = "cdt"  # order on disk: cls, dist, average of all others
REDUCTIONS = ("mean", "stack")
EMBEDDINGS_DIR = "data.embeddings_dir"  # the setting that names the folder
# What to do where many tracks have none
EXTRACT_THEM = f"Extract them (ex_maest.py extract_embeddings), or correct {EMBEDDINGS_DIR}"
_AGAIN = "Extract it again: extraction makes damaged files again."
_EXTRACT_FIRST = (
    "Extract embeddings first (ex_maest.py extract_embeddings with target_<name>), or give their "
    "folder."
)
_SUFFIX = ".embeddings.npy"
_LEVEL = re.compile(r"(\d+(?:\.\d+)?)sec")


# What extraction says of itself that all blocks of one study must have in common
_SAME = (
    "model",
    "input",
    "max_seconds",
    "patch_seconds",
    "hop_seconds",
    "tail",
    "patchout",
    "pool",
    "quantize",
    "version",
)


class MissingFeature(InputError):
    """A track without a file of features."""


def select_tokens(embeddings: np.ndarray, types: str, reduce: str) -> np.ndarray:
    """Make one vector of an embedding's tokens, for any number of tracks.

    Args:
        embeddings: [..., 3, D]; or [..., 1, D], after the final norm, which has no tokens to choose
            from.
        types: which tokens: "c" cls, "d" dist, "t" average of the others; several for "cdt".
        reduce: "mean" over the tokens → [..., D], or "stack" them → [..., len(types) · D].

    Raises:
        InputError: there are no tokens to choose from.
    """
    if embeddings.shape[-2] == 1:
        if types != "c" or reduce != "mean":
            raise InputError(
                "embeddings after the final norm have no tokens to choose from",
                kind="conflict",
                setting="data.types",
                hint="Leave data.types and data.reduce out, or extract a block's embeddings.",
            )
        return embeddings[..., 0, :]
    chosen = embeddings[..., [TOKENS.index(token) for token in types], :]
    if reduce == "mean":
        return chosen.mean(axis=-2)
    return chosen.reshape(*chosen.shape[:-2], -1)


def check_types(types: str, reduce: str, setting: str = "data.types") -> None:
    """Raise InputError for tokens, which ``setting`` gives, or a reduction that do not exist."""
    known = isinstance(types, str) and set(types) <= set(TOKENS)
    if not (known and types and len(set(types)) == len(types)):
        raise InputError(
            f"{types!r} is no choice of tokens",
            setting=setting,
            hint='Give some of "c" (cls), "d" (dist) and "t" (average of the other tokens), each '
            'at most once, such as "c" or "cdt".',
        )
    check_choice("data.reduce", reduce, REDUCTIONS)


def read_tokens(path: Path) -> np.ndarray:
    """Read one track's embedding: float32 [3, D], or [1, D] of one after the final norm.

    The file holds [3, D] or [D]; or, for single patches, [patches, 3, D] or [patches, 1, D]: they
    are pooled as extraction pools them (`helpers.patches.pooled_file`).

    Raises:
        InputError: naming the file, if it is missing or damaged, or holds something else.
    """
    try:
        found = load_array(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except Exception as error:  # what a damaged header says may end in any, MemoryError among them
        raise InputError(
            f"cannot be read ({' '.join(str(error).split())})",
            kind="corrupt",
            path=path,
            hint=_AGAIN,
        ) from None
    embedding = found[None] if found.ndim == 1 else found
    if (
        embedding.ndim not in (2, 3)
        or embedding.shape[-2] not in (1, len(TOKENS))
        or not embedding.size
        or not np.issubdtype(embedding.dtype, np.floating)
    ):
        raise InputError(
            f"has {found.dtype} {list(found.shape)}, expected floats [3, D] or [D]",
            path=path,
            hint="Give embeddings as ex_maest.py extract_embeddings writes them.",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        if embedding.ndim == 3:
            embedding = pooled_file(embedding, path)
        embedding = embedding.astype(np.float32, copy=False)
    if not np.isfinite(embedding).all():
        raise InputError(
            "has NaN or infinite values",
            path=path,
            hint="Delete it, and extract it again with trainer.precision=32-true.",
        )
    return embedding


def _missing(path: Path) -> MissingFeature:
    return MissingFeature("no such file", kind="missing", path=path, hint=f"{EXTRACT_THEM}.")


def mel_statistics(path: Path) -> np.ndarray:
    """Mean and standard deviation over time of each mel band: float32 [192].

    Of the values as the network takes them, without any learning: what a probe must beat.
    """
    mel = (np.asarray(open_mel(path), dtype=np.float32) - NORM_MEAN) / (2 * NORM_STD)
    return np.concatenate((mel.mean(axis=0), mel.std(axis=0))).astype(np.float32)


# ---- folders of embeddings -----------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingFolder:
    """The embeddings of one block, as extraction writes them.

    Attributes:
        folder: where they are; the tracks' own folders are in it.
        settings: what extraction says of how it made them; None where it does not.
        made_by: where its model was; None where it does not say so.
    """

    folder: Path
    settings: dict[str, Any] | None = None
    made_by: dict[str, Any] | None = None

    @property
    def block(self) -> int | None:
        """The block's number, -1 after the final norm; None if nothing says so."""
        told = None if self.settings is None else self.settings.get("block")
        return told if isinstance(told, int) else _block_of(self.folder)

    @property
    def seconds(self) -> float | None:
        """Seconds of the patches; None if nothing says so."""
        told = None if self.settings is None else self.settings.get("patch_seconds")
        if isinstance(told, int | float):
            return float(told)
        level = _LEVEL.fullmatch(self.folder.parent.name)
        return float(level[1]) if level else None

    @property
    def name(self) -> str:
        """What people call it."""
        return block_name(self.block) if self.block is not None else str(self.folder)

    @property
    def model(self) -> str:
        """Its model, for people."""
        return model_name(self.settings or {}, self.made_by)

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """A name without its suffix → names of tracks whose embeddings are there."""
        found: dict[str, list[str]] = {}
        for place, _, names in os.walk(self.folder):
            inside = Path(place).relative_to(self.folder)
            for name in names:
                if name.endswith(_SUFFIX):
                    track = (inside / name.removesuffix(_SUFFIX)).as_posix()
                    # Beside song.mp3, the log-mel file of song.flac is song.flac.mmap.
                    for stem in {_stem(track), track}:
                        found.setdefault(stem, []).append(track)
        return found

    def path(self, key: str) -> Path:
        """The file of a track: of that key, or of the audio that its log-mel file was made of.

        A key that names a log-mel file finds ``<key>.embeddings.npy``, or else that of an audio
        file of this name; one that names an audio file never finds that of another audio file.

        Raises:
            MissingFeature: there is none.
            InputError: there are several, of audio files that differ in their suffix only.
        """
        exact = self.folder / f"{key}{_SUFFIX}"
        for path in (exact, self.folder / f"{key}.mmap{_SUFFIX}"):
            if path.is_file():
                return path
        others = self._by_stem.get(_stem(posixpath.normpath(key)), [])
        if mel_key(key) != key:
            others = [name for name in others if mel_key(name) == name]
        if not others:
            raise _missing(exact)
        if len(others) > 1:
            raise InputError(
                f"{key!r} may be any of {', '.join(map(repr, sorted(others)))}",
                kind="conflict",
                path=self.folder,
                hint="Name tracks as the embeddings are named, or remove the others.",
            )
        return self.folder / f"{others[0]}{_SUFFIX}"

    def has(self, key: str) -> bool:
        """Whether :meth:`path` finds a file; raises InputError where it finds several."""
        try:
            self.path(key)
        except MissingFeature:
            return False
        return True

    def tokens(self, key: str) -> np.ndarray:
        """A track's embedding, float32 [3, D] or [1, D]; raises as `path` and `read_tokens`."""
        return read_tokens(self.path(key))


def model_name(settings: dict[str, Any], made_by: dict[str, Any] | None) -> str:
    """Where an extraction's model was, and the start of its hash."""
    name = (made_by or {}).get("checkpoint") or (made_by or {}).get("arch") or "of unknown place"
    return f"{name} ({str(settings.get('model'))[:12]})"


def block_name(block: int) -> str:
    """What extraction calls a block's folder."""
    return "final" if block == -1 else str(block)


def _block_of(folder: Path) -> int | None:
    if folder.name == "final":
        return -1
    return int(folder.name) if folder.name.isdecimal() else None


def _stem(track: str) -> str:
    """A track's name without the suffix of an audio or a log-mel file."""
    name = mel_key(track)
    return name.removesuffix(Path(name).suffix) if name.endswith((".mmap", ".npy")) else name


def find_folders(
    folder: str | Path,
    clip_length: float | None = None,
    block: int | str | None = None,
    default: int | None = None,
) -> list[EmbeddingFolder]:
    """The embeddings in what extraction was told as ``inference.out_dir``, or a folder within it.

    Args:
        folder: ``<out_dir>``, ``<out_dir>/<seconds>sec``, or a block's folder there; the other
            two must not contradict it.
        clip_length: seconds of the patches, where there are embeddings of several lengths.
        block: one block (-1: after the final norm), "all", or None: the only one there is, or else
            the default one.
        default: the number of that one.

    Returns:
        one for each block, in their order.

    Raises:
        InputError: there are none, several to choose from, or of several models.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(
            "no such folder",
            kind="missing",
            path=folder,
            setting=EMBEDDINGS_DIR,
            hint=_EXTRACT_FIRST,
        )
    own = _as_block(folder)
    if own is not None:
        _check_seconds(own, clip_length)
        if block not in (None, "all") and own.block not in (None, block):
            raise InputError(
                f"holds embeddings of block {own.name}, and data.block asks for "
                f"{block_name(block)}",
                kind="conflict",
                path=folder,
                setting=EMBEDDINGS_DIR,
                hint=f"Give data.block={own.block} with it, or the folder above.",
            )
        return [own]
    level = _choose_level(folder, clip_length)
    found = [made for path in sorted(level.iterdir()) if (made := _as_block(path)) is not None]
    found.sort(key=lambda made: (made.block is None, made.block == -1, made.block or 0))
    for one, other in itertools.pairwise(found):
        if one.block == other.block and one.block is not None:
            raise InputError(
                f"{one.folder.name} and {other.folder.name} both hold embeddings of block "
                f"{one.name}",
                kind="conflict",
                path=level,
                hint="Remove one of them.",
            )
    _check_seconds(found[0], clip_length)
    if block == "all" or (block is None and len(found) == 1):
        check_one_model(found)
        return found
    wanted = default if block is None else block
    chosen = [made for made in found if made.block == wanted]
    if wanted is None or not chosen:
        names = ", ".join(made.name for made in found)
        lacking = "" if wanted is None else f"no embeddings of block {block_name(wanted)}; "
        raise InputError(
            f"{lacking}there are those of {names}",
            kind="missing",
            path=level,
            setting="data.block",
            hint=f"Choose one of these, such as data.block={found[-1].block}, or extract another "
            "one (inference.transformer_block).",
        )
    return chosen


def _check_seconds(made: EmbeddingFolder, clip_length: float | None) -> None:
    if clip_length is None or made.seconds is None or _near(made.seconds, clip_length):
        return
    raise InputError(
        f"embeddings of patches of {made.seconds:g} s, and data.clip_length asks for "
        f"{clip_length:g}",
        kind="conflict",
        path=made.folder,
        setting=EMBEDDINGS_DIR,
        hint="Leave data.clip_length out, or give another folder.",
    )


def _near(seconds: float, clip_length: float) -> bool:
    """Whether patches of so many seconds are what was asked for, in whole frames of 0.016 s."""
    return abs(seconds - clip_length) < 0.02


def check_one_model(folders: Sequence[EmbeddingFolder]) -> None:
    """Raise InputError if embeddings were made by several models, or cut in several ways."""
    told = [made for made in folders if made.settings is not None]
    for other in told[1:]:
        for name in _SAME:
            values = [made.settings.get(name) for made in (told[0], other)]
            if values[0] != values[1]:
                if name == "model":
                    values = [made.model for made in (told[0], other)]
                raise InputError(
                    f"{told[0].folder} and {other.folder} were made differently: {name} "
                    f"{values[0]} and {values[1]}",
                    kind="mismatch",
                    setting=EMBEDDINGS_DIR,
                    hint="Extract each model into a folder of its own (inference.out_dir), all its "
                    "blocks in one run (inference.transformer_block=all).",
                )


def _as_block(folder: Path) -> EmbeddingFolder | None:
    """A folder of embeddings; None of any other."""
    if not folder.is_dir():
        return None
    try:
        manifest = read_manifest(folder)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            kind="access",
            path=folder / MANIFEST,
            hint="Make it readable, or give another folder of embeddings.",
        ) from None
    if manifest is not None:
        kind = manifest["settings"].get("kind")
        if kind != "embeddings":
            return None
        return EmbeddingFolder(folder, manifest["settings"], manifest.get("made_by"))
    if _LEVEL.fullmatch(folder.name) or any(_levels(folder)):
        return None
    holds_any = False
    for _, _, names in os.walk(folder):
        if MANIFEST in names:  # what is above other results is no block itself
            return None
        holds_any = holds_any or any(name.endswith(_SUFFIX) for name in names)
    return EmbeddingFolder(folder) if holds_any else None


def _levels(folder: Path) -> list[tuple[float, Path]]:
    """Seconds and folder of each ``<seconds>sec``."""
    found = ((_LEVEL.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((float(match[1]), path) for match, path in found if match)


def _choose_level(folder: Path, clip_length: float | None) -> Path:
    levels = [own for own in _levels(folder) if any(_as_block(path) for path in own[1].iterdir())]
    if not levels and any(_as_block(path) for path in folder.iterdir()):
        return folder
    names = ", ".join(path.name for _, path in levels)
    if clip_length is not None and levels:
        nearest, path = min(levels, key=lambda own: abs(own[0] - clip_length))
        if not _near(nearest, clip_length):
            raise InputError(
                f"no embeddings of patches of {clip_length:g} s; there are {names}",
                kind="missing",
                path=folder,
                setting="data.clip_length",
                hint=f"Give data.clip_length={nearest:g}, or extract with "
                f"datamodule.clip_length={clip_length:g}.",
            )
        return path
    if not levels:
        raise InputError(
            "no embeddings in it",
            kind="empty",
            path=folder,
            setting=EMBEDDINGS_DIR,
            hint=_EXTRACT_FIRST,
        )
    if len(levels) > 1:
        raise InputError(
            f"has embeddings of several patch lengths: {names}",
            kind="conflict",
            path=folder,
            setting=EMBEDDINGS_DIR,
            hint=f"Choose one, such as data.clip_length={levels[0][0]:g}.",
        )
    return levels[0][1]


# ---- features of many tracks ---------------------------------------------------------------------


def read_blocks(folders: Sequence[EmbeddingFolder], key: str) -> np.ndarray:
    """A track's embeddings of L blocks: float32 [L, 3, D], or [L, 1, D] after the final norm.

    Raises:
        InputError: as :meth:`EmbeddingFolder.tokens`; or the blocks' are of different widths.
    """
    found = [made.tokens(key) for made in folders]
    for made, tokens in zip(folders, found, strict=True):
        if tokens.shape != found[0].shape:
            raise InputError(
                f"an embedding of {list(tokens.shape)}, and that in {folders[0].folder} is of "
                f"{list(found[0].shape)}: embeddings of different models",
                kind="mismatch",
                path=made.path(key),
                hint="Extract all blocks in one run (inference.transformer_block=all).",
            )
    return np.stack(found)


def load(
    keys: Sequence[str],
    read: Callable[[str], np.ndarray],
    name: str,
    *,
    skip_missing: bool = False,
    what: str = "embedding",
    advice: str = EXTRACT_THEM,
    place: str | Path | None = None,
) -> tuple[np.ndarray, list[int]]:
    """Read something of many tracks.

    Args:
        keys: of the tracks.
        read: key → an array, of all tracks the same shape.
        name: of the split, for messages.
        skip_missing: whether tracks without any are left out, rather than refused.
        what: what is read, for messages.
        advice: what to do where many have none, without a full stop.
        place: where it is looked for, for messages.

    Returns:
        float32 [N, ...], and the N numbers of the keys that it is of.

    Raises:
        InputError: counting the tracks that have none, or naming the first of another shape.
    """

    def attempt(key: str) -> np.ndarray | MissingFeature:
        try:
            return read(key)
        except MissingFeature as error:
            return error

    everything: np.ndarray | None = None
    missing: list[str] = []
    present: list[int] = []
    for i, found in enumerate(in_order(attempt, keys, None, f"{name}: {what}s")):
        if isinstance(found, MissingFeature):
            missing.append(str(found.path))
            continue
        if everything is None:
            everything = np.empty((len(keys), *found.shape), np.float32)
        if found.shape != everything.shape[1:]:
            raise InputError(
                f"{keys[i]}: {what} of {list(found.shape)}, and the tracks before it have "
                f"{list(everything.shape[1:])}: embeddings of different models or blocks in one "
                "folder",
                kind="mismatch",
                path=place,
                hint="Extract all tracks with the same settings, into an empty folder.",
            )
        everything[len(present)] = found
        present.append(i)
    if not keys:
        raise InputError(
            f"the {name} split has no tracks",
            kind="empty",
            setting=f"data.groundtruth_{name}",
            hint="Give another ground truth.",
        )
    if missing and (not skip_missing or everything is None):
        skip = ", or leave those tracks out: data.missing=skip" if everything is not None else ""
        raise InputError(
            f"{len(missing)} of {len(keys)} tracks of the {name} split have no {what}; the first: "
            f"{missing[0]}",
            kind="missing",
            path=place,
            hint=f"{advice}{skip}.",
        )
    return everything[: len(present)], present


def log_mel_file(base_dir: str | Path, key: str) -> Path:
    """The log-mel file of a track.

    Raises:
        MissingFeature: there is none.
    """
    path = mel_path(base_dir, key)
    if not path.is_file():
        raise MissingFeature(
            "no such file (nor with .mmap or .npy added)",
            kind="missing",
            path=path,
            hint="Make the log-mel file (datasets/preprocess.py), or correct data.base_dir.",
        )
    return path
