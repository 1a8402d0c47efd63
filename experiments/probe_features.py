"""What a probe sees: embeddings of one block or of several, or statistics of the mel bands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maest.config.probe import ProbeData
from maest.datasets.embedding_folders import (
    EmbeddingFolder,
    block_name,
    check_same_extraction,
    find_folders,
)
from maest.datasets.embeddings import (
    EMBEDDINGS_DIR,
    EXTRACT_THEM,
    check_types,
    mel_statistics,
    read_all,
    read_blocks,
    select_tokens,
)
from maest.datasets.melspectrograms import mel_path
from maest.experiments.probe_task import ProbeTask, check_targets
from maest.helpers.blocks import DEFAULT_BLOCK
from maest.helpers.errors import InputError
from maest.models.probe import layer_normalize

log = logging.getLogger(__name__)

MIX = "mix"
_EXTRACT_ALL = "All blocks are extracted with inference.transformer_block=all."


@dataclass(frozen=True)
class FeatureSet:
    """Features of one kind, and what made them."""

    splits: dict[str, np.ndarray]  # float32 [N, 1, D]; of a mix [N, L, D], layer-normalized
    name: str
    extraction: dict[str, Any] | None = None  # the embeddings' settings; a mix has several blocks
    made_by: dict[str, Any] | None = None  # the source of their model
    blocks: list[int] | None = None  # of a mix


def read_features(task: ProbeTask, data: ProbeData) -> FeatureSet:
    """The features that ``data`` asks for; tracks without any leave the task."""
    if data.features == "mel_statistics":
        return FeatureSet(_statistics(task, data), "mel bands, mean and deviation")
    check_types(data.types)
    folders = select_folders(data)
    splits = {
        split: select_tokens(x, data.types, data.reduce)
        for split, x in load_embeddings(task, folders, data).items()
    }
    first, tokens = folders[0], data.types
    if data.reduce == "stack" and len(tokens) > 1:
        tokens += " stacked"
    if len(folders) == 1:
        return FeatureSet(splits, f"{first.folder} ({tokens})", first.settings, first.made_by)
    blocks = [folder.block for folder in folders if folder.block is not None]
    return FeatureSet(
        {split: normalize_blocks(x) for split, x in splits.items()},
        f"{first.folder.parent} (mix of {len(blocks)} blocks, {tokens})",
        first.settings and first.settings | {"block": blocks},
        first.made_by,
        blocks,
    )


# ---- which folders -------------------------------------------------------------------------------


def select_folders(data: ProbeData) -> list[EmbeddingFolder]:
    """The folder of ``data.block``; to be mixed, those of several blocks."""
    if data.block == MIX or (data.block is not None and len(data.block) > 1):
        numbered = numbered_folders(data, data.block, "data.block")
        if len(numbered) == 1:
            raise InputError(
                f"there is block {next(iter(numbered))} alone: nothing to mix",
                kind="conflict",
                setting="data.block",
                path=data.embeddings_dir,
                hint=f"Give data.block={next(iter(numbered))}. {_EXTRACT_ALL}",
            )
        return list(numbered.values())
    found = _all_folders(data)
    block = DEFAULT_BLOCK if data.block is None else data.block[0]
    if len(found) == 1 and (data.block is None or found[0].block is None):
        return found
    chosen = [folder for folder in found if folder.block == block]
    if not chosen:
        raise InputError(
            f"no embeddings of block {block_name(block)}, but of block "
            f"{', '.join(folder.name for folder in found)}",
            kind="missing",
            path=found[0].folder.parent,
            setting="data.block",
            hint=f"Choose one of these, such as data.block={found[-1].block}. {_EXTRACT_ALL}",
        )
    return chosen


def numbered_folders(
    data: ProbeData, blocks: Sequence[int] | str, setting: str
) -> dict[int, EmbeddingFolder]:
    """Of some blocks of one model, or of all (``setting`` has a word for that).

    The final norm, which has no tokens to choose from, is none of them.
    """
    found = _all_folders(data)
    numbered = {own.block: own for own in found if own.block is not None and own.block >= 0}
    wanted = list(numbered) if isinstance(blocks, str) else sorted(set(blocks))
    missing = [block for block in wanted if block not in numbered]
    if missing or not wanted:
        raise InputError(
            f"no embeddings of {', '.join(map(str, missing)) or 'a block'} with tokens to choose "
            f"from, but of block {', '.join(own.name for own in found)}",
            kind="missing",
            setting=setting if numbered else EMBEDDINGS_DIR,
            path=data.embeddings_dir,
            hint=_EXTRACT_ALL,
        )
    chosen = {block: numbered[block] for block in wanted}
    check_same_extraction(list(chosen.values()))
    return chosen


def _all_folders(data: ProbeData) -> list[EmbeddingFolder]:
    hint = "Give the folder that extraction wrote (inference.out_dir), or name a target, such as "
    folder = _given(data.embeddings_dir, EMBEDDINGS_DIR, f"{hint}'with target_scores_tl'.")
    return find_folders(folder, data.clip_length)


def _given(value: str | None, setting: str, hint: str) -> str:
    if value is None:
        raise InputError("is not set", kind="missing", setting=setting, hint=hint)
    return value


# ---- the features of all tracks ------------------------------------------------------------------


def load_embeddings(
    task: ProbeTask, folders: Sequence[EmbeddingFolder], data: ProbeData
) -> dict[str, np.ndarray]:
    """Split → float32 [N, L, 3, D] of L blocks, for the tracks that have them all."""
    for folder in (own.folder for own in folders if own.settings is None):
        log.warning("%s has no manifest.json: what made these embeddings is unknown", folder)
    return _load(
        *(task, data, "embedding", EXTRACT_THEM),
        lambda key: [folder.path(key) for folder in folders],
        read_blocks,
    )


def _statistics(task: ProbeTask, data: ProbeData) -> dict[str, np.ndarray]:
    """Split → float32 [N, 1, 192]: mean and deviation of the mel bands."""
    folder = _given(data.base_dir, "data.base_dir", "Give the folder of the log-mel files.")
    hint = "Make them with the data set's preprocess.py, or correct data.base_dir."
    return _load(
        *(task, data, "log-mel file", hint),
        lambda key: [mel_path(folder, key)],
        lambda paths: mel_statistics(paths[0])[None],
    )


def _load(
    task: ProbeTask,
    data: ProbeData,
    what: str,
    hint: str,
    find: Callable[[str], list[Path]],
    read: Callable[[list[Path]], np.ndarray],
) -> dict[str, np.ndarray]:
    """Split → [N, ...] of the tracks that have all their files; the others leave the task.

    Raises:
        InputError: tracks have none; two keys, of one split or of two, have the same; or what is
            read of two tracks differs in shape.
    """
    paths: list[list[Path]] = []
    owners: dict[Path, tuple[str, Path]] = {}
    for split, groundtruth in task.groundtruths.items():
        missing, task.rows[split] = [], []
        for row, key in enumerate(groundtruth.keys):
            own = find(key)
            if lost := [path for path in own if not path.is_file()]:
                missing.append(lost[0])
                continue
            other, place = owners.setdefault(own[0], (key, groundtruth.path))
            if (other, place) != (key, groundtruth.path):
                raise InputError(
                    f"{key!r} has the {what} {own[0]}, which is that of {other!r} in {place} too: "
                    "one track under two names",
                    kind="conflict",
                    path=groundtruth.path,
                    hint="Keep each track once, and in one split, or the scores mean nothing.",
                )
            paths.append(own)
            task.rows[split].append(row)
        some = bool(task.rows[split])
        message = f"{len(missing)} of {len(groundtruth)} tracks of {split} have no {what}"
        if missing and (data.missing == "error" or not some):
            skip = " Or leave those tracks out: data.missing=skip." if some else ""
            raise InputError(
                f"no such file; {message}", kind="missing", path=missing[0], hint=f"{hint}{skip}"
            )
        if missing:
            log.warning("%s: left out", message)
    check_targets(task)
    features = read_all(read, paths, f"{what}s")
    ends = np.cumsum(list(task.tracks().values()))
    return dict(zip(task.rows, np.split(features, ends[:-1]), strict=True))


def normalize_blocks(features: np.ndarray) -> np.ndarray:
    """Features [N, L, D] of blocks as a mix takes them: each layer-normalized, in place."""
    for part in map(torch.from_numpy, np.split(features, range(1024, len(features), 1024))):
        part.copy_(layer_normalize(part))
    return features
