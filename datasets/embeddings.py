"""Features of whole tracks for the probe: saved embeddings, or statistics of the mel bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from maest.datasets.melspectrograms import mel_path, open_mel
from maest.helpers.arrays import load_array
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import NORM_MEAN, NORM_STD
from maest.helpers.parallel import in_order
from maest.helpers.patches import pooled_file

P = TypeVar("P")
TOKENS = "cdt"  # order on disk: cls, dist, average of all others
EMBEDDINGS_DIR = "data.embeddings_dir"  # the setting that names the folder
EXTRACT_THEM = f"Extract them (ex_maest.py extract_embeddings), or correct {EMBEDDINGS_DIR}."
SUFFIX = ".embeddings.npy"


class MissingFeature(InputError):
    """A track without a file of features."""


# ---- one track -----------------------------------------------------------------------------------


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


def check_types(types: str, setting: str = "data.types") -> None:
    """Raise InputError for tokens, which ``setting`` gives, that do not exist."""
    if not types or not set(types) <= set(TOKENS) or len(set(types)) < len(types):
        raise InputError(
            f"{types!r} is no choice of tokens",
            setting=setting,
            hint='Give some of "c" (cls), "d" (dist) and "t" (average of the other tokens), each '
            'at most once, such as "c" or "cdt".',
        )


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
        raise MissingFeature("no such file", kind="missing", path=path, hint=EXTRACT_THEM) from None
    except Exception as error:  # a damaged header may lead to any, MemoryError among them
        raise InputError(
            f"cannot be read ({' '.join(str(error).split())})",
            kind="corrupt",
            path=path,
            hint="Extract it again: extraction makes damaged files again.",
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


def mel_statistics(path: Path) -> np.ndarray:
    """Mean and standard deviation over time of each mel band: float32 [192].

    Of the values as the network takes them, without any learning: what a probe must beat.
    """
    mel = (np.asarray(open_mel(path), dtype=np.float32) - NORM_MEAN) / (2 * NORM_STD)
    return np.concatenate((mel.mean(axis=0), mel.std(axis=0))).astype(np.float32)


def log_mel_file(base_dir: str | Path, key: str) -> Path:
    """The log-mel file of a track. Raises MissingFeature."""
    path = mel_path(base_dir, key)
    if not path.is_file():
        raise MissingFeature(
            "no such file (nor with .mmap or .npy added)",
            kind="missing",
            path=path,
            hint="Make the log-mel file (datasets/preprocess.py), or correct data.base_dir.",
        )
    return path


# ---- many tracks ---------------------------------------------------------------------------------


def read_blocks(paths: Sequence[Path]) -> np.ndarray:
    """A track's embeddings of L blocks: float32 [L, 3, D], or [L, 1, D] after the final norm.

    Raises:
        InputError: as `read_tokens`; or they differ in width.
    """
    blocks = [read_tokens(path) for path in paths]
    for path, tokens in zip(paths, blocks, strict=True):
        if tokens.shape != blocks[0].shape:
            raise InputError(
                f"an embedding of {list(tokens.shape)}, and {paths[0]} is of "
                f"{list(blocks[0].shape)}",
                kind="mismatch",
                path=path,
                hint="Extract all blocks in one run (inference.transformer_block=all).",
            )
    return np.stack(blocks)


def read_all(read: Callable[[P], np.ndarray], paths: Sequence[P], title: str) -> np.ndarray:
    """Read something of N tracks, side by side: float32 [N, ...].

    Args:
        read: a track's path, or its paths → an array, of all tracks the same shape.
        paths: of the tracks, one at least.
        title: of the progress bar.

    Raises:
        InputError: naming the first of another shape; as ``read``.
    """
    features: np.ndarray | None = None
    for i, found in enumerate(in_order(read, paths, None, title)):
        if features is None:  # no list of all of them is made beside it
            features = np.empty((len(paths), *found.shape), np.float32)
        if found.shape != features.shape[1:]:
            raise InputError(
                f"{paths[i]}: {list(found.shape)}, and the tracks before it have "
                f"{list(features.shape[1:])}",
                kind="mismatch",
                setting=EMBEDDINGS_DIR,
                hint="Extract all tracks with the same settings, into an empty folder.",
            )
        features[i] = found
    assert features is not None
    return features
