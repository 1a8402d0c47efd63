"""A probe's labels of three splits, and its features: embeddings or statistics of mel bands."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from maest.config.probe import ProbeData
from maest.datasets.embeddings import (
    EMBEDDINGS_DIR,
    EXTRACT_THEM,
    EmbeddingFolder,
    check_same_extraction,
    check_types,
    find_folders,
    mel_statistics,
    read_all,
    read_blocks,
    select_tokens,
)
from maest.datasets.groundtruth import (
    GroundTruth,
    check_disjoint,
    check_targets,
    labels_beside,
    read_splits,
)
from maest.datasets.melspectrograms import mel_path
from maest.helpers.blocks import DEFAULT_BLOCK
from maest.helpers.errors import InputError
from maest.models.probe import layer_normalized

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MIX = "mix"


@dataclass
class ProbeTask:
    """Labels of three splits; once features are read, only of the tracks that have them."""

    task: str
    labels: list[str]  # [C]
    splits: dict[str, GroundTruth]
    missing: dict[str, int] = field(default_factory=dict)  # split → tracks without features

    def tracks(self) -> dict[str, int]:
        """Split → N."""
        return {split: len(groundtruth) for split, groundtruth in self.splits.items()}

    def digests(self) -> dict[str, str]:
        """Split → SHA-256 of its ground-truth file."""
        return {split: hashlib.sha256(groundtruth.path.read_bytes()).hexdigest()
                for split, groundtruth in self.splits.items()}  # fmt: skip


@dataclass(frozen=True)
class FeatureSet:
    """Features of one kind, and their origin."""

    splits: dict[str, np.ndarray]  # float32 [N, 1, D]; of a mix [N, L, D], layer-normalized
    name: str
    extraction: dict[str, Any] | None = None  # the embeddings' settings; a mix has several blocks
    made_by: dict[str, Any] | None = None  # the source of their model
    blocks: list[int] | None = None  # of a mix


def read_task(data: ProbeData) -> ProbeTask:
    """Read three ground truths. InputError: labels differ, or splits share a track."""
    paths = {split: getattr(data, f"groundtruth_{split}") for split in SPLITS}
    splits = read_splits(paths, data.task, "data", "data.task")
    check_disjoint(*splits.values())
    labels = labels_beside(splits["train"]) or [str(i) for i in range(splits["train"].n_classes)]
    return ProbeTask(data.task, labels, splits)


def read_features(task: ProbeTask, data: ProbeData) -> FeatureSet:
    """Read the features that ``data`` selects; tracks without any leave the task."""
    if data.features == "mel_statistics":
        mels = _given(data.base_dir, "data.base_dir", "the folder of the log-mel files")
        statistics = _read(
            task,
            data,
            "log-mel file",
            "Make them with the data set's preprocess.py, or correct data.base_dir.",
            find=lambda key: [mel_path(mels, key)],
            read=lambda paths: mel_statistics(paths[0])[None],
        )
        return FeatureSet(statistics, "mel bands, mean and deviation")
    check_types(data.types)
    folders = choose_folders(data, data.block)
    first, tokens = folders[0], data.types
    splits = {
        split: select_tokens(x, data.types, data.reduce)
        for split, x in read_embeddings(task, folders, data).items()
    }
    if data.reduce == "stack" and len(tokens) > 1:
        tokens += " stacked"
    if len(folders) == 1:
        return FeatureSet(splits, f"{first.folder} ({tokens})", first.settings, first.made_by)
    blocks = [folder.block for folder in folders if folder.block is not None]
    return FeatureSet(
        {split: layer_normalized(x) for split, x in splits.items()},
        f"{first.folder.parent} (mix of {len(blocks)} blocks, {tokens})",
        first.settings and first.settings | {"block": blocks},
        first.made_by,
        blocks,
    )


def choose_folders(
    data: ProbeData, blocks: Sequence[int] | str | None, setting: str = "data.block"
) -> list[EmbeddingFolder]:
    """Return folders of one extraction, in the blocks' order. InputError: a block is missing.

    ``blocks`` is one to probe (None: block 7, or the only one), several to mix or sweep over, or a
    word for all blocks with tokens (not the final norm). ``setting`` is the source of ``blocks``.
    """
    what = "what extraction wrote (inference.out_dir)"
    folder = _given(data.embeddings_dir, EMBEDDINGS_DIR, what)
    found = find_folders(folder, data.clip_length)
    one = blocks is None or (setting == "data.block" and len(blocks) == 1)
    if one and len(found) == 1 and (blocks is None or found[0].block is None):
        return found
    by_block = {f.block: f for f in found if f.block is not None and (one or f.block >= 0)}
    if blocks is None:
        wanted = [DEFAULT_BLOCK]
    else:
        wanted = list(by_block) if isinstance(blocks, str) else sorted(set(blocks))
    lacking, there = [b for b in wanted if b not in by_block], list(by_block.values()) or found
    message = ""
    if lacking or not wanted:
        what = f"block {', '.join(map(str, lacking))}" if lacking else "a block with tokens"
        message = f"no embeddings of {what}, but of block {', '.join(f.name for f in there)}"
    elif len(wanted) == 1 and not one and setting == "data.block":
        message = f"there is block {wanted[0]} alone: nothing to mix"
    if message:
        hint = f"Choose of these, such as {setting}={there[-1].block}. " if by_block else ""
        hint += "All blocks are extracted with inference.transformer_block=all."
        path, setting = found[0].folder.parent, setting if by_block else EMBEDDINGS_DIR
        raise InputError(message, kind="missing", path=path, setting=setting, hint=hint)
    chosen = [by_block[block] for block in wanted]
    check_same_extraction(chosen)
    return chosen


def read_embeddings(
    task: ProbeTask, folders: Sequence[EmbeddingFolder], data: ProbeData
) -> dict[str, np.ndarray]:
    """Split → float32 [N, L, 3, D] of L blocks, for the tracks that have them all."""
    for folder in (own.folder for own in folders if own.settings is None):
        log.warning("%s has no manifest.json: what made these embeddings is unknown", folder)

    def find(key: str) -> list[Path]:
        return [folder.path(key) for folder in folders]

    return _read(task, data, "embedding", EXTRACT_THEM, find, read_blocks)


def _given(folder: str | None, setting: str, what: str) -> str:
    if folder is None:
        hint = f"Give {what}, or name a target, such as 'with target_scores_tl'."
        raise InputError("is not set", kind="missing", setting=setting, hint=hint)
    return folder


def _read(
    task: ProbeTask,
    data: ProbeData,
    what: str,
    hint: str,
    find: Callable[[str], list[Path]],
    read: Callable[[list[Path]], np.ndarray],
) -> dict[str, np.ndarray]:
    """Split → [N, ...] of the tracks that have all files; other tracks leave the task."""
    # Keys, not paths: of 200,000 tracks and 12 blocks, paths would take a gigabyte.
    found: list[str] = []
    owners: dict[str, tuple[str, Path]] = {}
    for split, groundtruth in task.splits.items():
        rows, lacking = [], []
        for row, key in enumerate(groundtruth.keys):
            own = find(key)
            if absent := [path for path in own if not path.is_file()]:
                lacking.append(absent[0])
                continue
            other, place = owners.setdefault(str(own[0]), (key, groundtruth.path))
            if (other, place) != (key, groundtruth.path):
                message = f"{key!r} has the {what} {own[0]}, which is that of {other!r} in {place} "
                message += "too: one track under two names"
                hint = "Keep each track once, and in one split, or the scores mean nothing."
                raise InputError(message, kind="conflict", path=groundtruth.path, hint=hint)
            found.append(key)
            rows.append(row)
        if lacking:
            message = f"{len(lacking)} of {len(groundtruth)} tracks of {split} have no {what}"
            if data.missing == "error" or not rows:
                hint += " Or leave those tracks out: data.missing=skip." if rows else ""
                message = f"no such file; {message}"
                raise InputError(message, kind="missing", path=lacking[0], hint=hint)
            log.warning("%s: left out", message)
            task.missing[split] = len(lacking)
        check_targets(groundtruth, split, f"data.groundtruth_{split}", rows)
        keys, targets = [groundtruth.keys[row] for row in rows], groundtruth.targets[rows]
        task.splits[split] = replace(groundtruth, keys=keys, targets=targets)
    features = read_all(lambda key: read(find(key)), found, f"{what}s")
    ends = np.cumsum(list(task.tracks().values()))
    return dict(zip(task.splits, np.split(features, ends[:-1]), strict=True))
