"""Features of whole tracks for the probe: saved embeddings, or statistics of the mel bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.melspectrograms import find_mel, open_mel
from helpers.errors import InputError
from helpers.melspectrogram import NORM_MEAN, NORM_STD

TOKENS = "cdt"  # order on disk: cls, dist, average of all others
REDUCTIONS = ("mean", "stack")


class FeatureError(InputError):
    """Embeddings that are missing, or not what they should be."""


class MissingFeature(FeatureError):
    """A track without an embedding."""


def embedding_path(folder: str | Path, key: str) -> Path:
    """The file of a track's embedding."""
    return Path(folder) / f"{key}.embeddings.npy"


def select_tokens(embedding: np.ndarray, types: str, reduce: str) -> np.ndarray:
    """Make one vector of an embedding's tokens.

    Args:
        embedding: [3, D].
        types: which tokens: "c" cls, "d" dist, "t" average of the others; several for "cdt".
        reduce: "mean" over the tokens → [D], or "stack" them → [len(types) · D].
    """
    chosen = embedding[[TOKENS.index(token) for token in types]]
    return chosen.mean(axis=0) if reduce == "mean" else chosen.reshape(-1)


def check_types(types: str, reduce: str) -> None:
    """Raise FeatureError for tokens or a reduction that do not exist."""
    known = isinstance(types, str) and set(types) <= set(TOKENS)
    if not (known and types and len(set(types)) == len(types)):
        raise FeatureError(
            f'data.types is {types!r}: expected some of "c" (cls), "d" (dist) and "t" (average of '
            'the other tokens), each at most once, such as "c" or "cdt"'
        )
    if reduce not in REDUCTIONS:
        raise FeatureError(f"data.reduce is {reduce!r}: expected one of {', '.join(REDUCTIONS)}")


def read_embedding(path: Path, types: str, reduce: str) -> np.ndarray:
    """Read one track's embedding as a float32 vector.

    The file holds [3, D], or [D], the embedding after the final norm, which has no tokens to choose
    from; or, for single patches, [patches, 3, D] or [patches, 1, D]: their plain mean is taken.

    Raises:
        FeatureError: naming the file, if it is missing or damaged, or holds something else.
    """
    try:
        embedding = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise MissingFeature(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(f"{path}: cannot be read ({error}); extract it again") from None
    if embedding.ndim == 3:
        embedding = embedding.mean(axis=0)
    if embedding.ndim == 2 and len(embedding) == 1:
        embedding = embedding[0]
    if embedding.ndim == 1:
        if types != "c" or reduce != "mean":
            raise FeatureError(
                f"{path}: an embedding after the final norm, without tokens to choose from: leave "
                "data.types and data.reduce out, or extract a block's embeddings"
            )
    elif embedding.shape[0] != len(TOKENS) or embedding.ndim != 2:
        raise FeatureError(f"{path}: has shape {embedding.shape}, expected [3, D] or [D]")
    else:
        embedding = select_tokens(embedding, types, reduce)
    if not np.isfinite(embedding).all():
        raise FeatureError(f"{path}: has NaN or infinite values; extract it again")
    return embedding.astype(np.float32)


def mel_statistics(path: Path) -> np.ndarray:
    """Mean and standard deviation over time of each mel band: float32 [192].

    Of the values as the network takes them, without any learning: what a probe must beat.
    """
    mel = (np.asarray(open_mel(path), dtype=np.float32) - NORM_MEAN) / (2 * NORM_STD)
    return np.concatenate((mel.mean(axis=0), mel.std(axis=0))).astype(np.float32)


def load_features(keys: Sequence[str], read: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    """Read the features of many tracks.

    Args:
        keys: of the tracks.
        read: key → vector [D].
        name: of the split, for the progress bar.

    Returns:
        float32 [N, D].

    Raises:
        FeatureError: counting the tracks that have none, or naming the first of another width.
    """
    missing: list[str] = []
    features: list[np.ndarray] = []
    for key in tqdm(keys, desc=f"{name} features", unit="track", leave=False, disable=None):
        try:
            vector = read(key)
        except MissingFeature as error:
            missing.append(str(error))
            continue
        if features and vector.shape != features[0].shape:
            raise FeatureError(
                f"{key}: {vector.shape[0]} values, and the tracks before it have "
                f"{features[0].shape[0]}: embeddings of different models or blocks in one folder"
            )
        features.append(vector)
    if missing:
        raise FeatureError(
            f"{len(missing)} of {len(keys)} tracks of the {name} split have no embedding; the "
            f"first: {missing[0]}. Extract them (ex_maest.py extract_embeddings), or correct "
            "data.embeddings_dir"
        )
    return np.stack(features)


def embedding_reader(folder: str | Path, types: str, reduce: str) -> Callable[[str], np.ndarray]:
    """A reader for :func:`load_features` of the embeddings in a folder."""
    check_types(types, reduce)
    if not Path(folder).is_dir():
        raise FeatureError(
            f"{folder}: no such folder. Extract embeddings first (ex_maest.py extract_embeddings "
            "with target_<name>), or correct data.embeddings_dir"
        )
    return lambda key: read_embedding(embedding_path(folder, key), types, reduce)


def statistics_reader(base_dir: str | Path) -> Callable[[str], np.ndarray]:
    """A reader for :func:`load_features` of mel statistics."""
    return lambda key: mel_statistics(find_mel(base_dir, key))
