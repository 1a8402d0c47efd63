"""Features of whole tracks for the probe: saved embeddings, or statistics of the mel bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from maest.datasets.melspectrograms import read_mel
from maest.helpers.arrays import load_array
from maest.helpers.errors import InputError
from maest.helpers.mel_constants import NORM_MEAN, NORM_STD
from maest.helpers.parallel import in_order
from maest.helpers.patches import pooled_file

P = TypeVar("P")
TOKENS = "cdt"  # order on disk: cls, dist, average of all others
EMBEDDINGS_DIR = "data.embeddings_dir"  # the setting that names the folder
EXTRACT_THEM = f"Extract them (ex_maest.py extract_embeddings), or correct {EMBEDDINGS_DIR}."
SUFFIX = ".embeddings.npy"


# ---- one track -----------------------------------------------------------------------------------


def select_tokens(embeddings: np.ndarray, types: str, reduce: str) -> np.ndarray:
    """One vector of an embedding's tokens: [..., 3, D] → [..., D], or "stack" [..., types · D].

    After the final norm, [..., 1, D], there are no tokens: any choice but the default is refused.
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
    """
    try:
        found = load_array(path)
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
    mel = (np.asarray(read_mel(path), dtype=np.float32) - NORM_MEAN) / (2 * NORM_STD)
    return np.concatenate((mel.mean(axis=0), mel.std(axis=0))).astype(np.float32)


# ---- many tracks ---------------------------------------------------------------------------------


def read_blocks(paths: Sequence[Path]) -> np.ndarray:
    """A track's embeddings of L blocks: float32 [L, 3, D], or [L, 1, D] after the final norm."""
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
    """What ``read`` makes of N ≥ 1 tracks, side by side: float32 [N, ...], all of one shape."""
    features = np.empty(0, np.float32)
    for i, found in enumerate(in_order(read, paths, None, title)):
        if i == 0:  # no list of all of them is made beside it
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
    return features
