"""What the commands of ``ex_tl.py`` share: a task, its features, and probes trained on them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from tqdm import tqdm

import maest.config as settings
from maest.datasets.datamodule import FeatureDataModule
from maest.datasets.embeddings import (
    EMBEDDINGS_DIR,
    EXTRACT_THEM,
    EmbeddingFolder,
    MissingFeature,
    check_types,
    find_folders,
    load,
    log_mel_file,
    mel_statistics,
    read_blocks,
    select_tokens,
)
from maest.datasets.groundtruth import (
    TASKS,
    GroundTruth,
    GroundTruthError,
    check_disjoint,
    labels_beside,
    read_groundtruth,
)
from maest.helpers.chunks import DEFAULT_BLOCK
from maest.helpers.errors import InputError
from maest.helpers.parallel import one_torch_thread
from maest.helpers.settings import check_choice, listed_names
from maest.models.probe import ProbeBank, ProbeOptions, normalised

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
FEATURES = ("embeddings", "mel_statistics")
MIX = "mix"
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
_NORMALISED_AT_ONCE = 1024  # tracks
MISSING = ("error", "skip")

# What a probe's figures depend on.
PACKAGES = ("torch", "pytorch-lightning", "numpy", "scikit-learn")

_THREE_SPLITS = "Give three splits that were made together."

# ---------------------------------------------------------------- the task


@dataclass
class Downstream:
    """A downstream task, of the tracks that have features.

    Attributes:
        task: "multi-label", "single-label" or "regression".
        labels: C names.
        groundtruths: of each split, whole.
        rows: split → numbers of the tracks that have features (all, until they are loaded).
    """

    task: str
    labels: list[str]
    groundtruths: dict[str, GroundTruth]
    rows: dict[str, list[int]] = field(default_factory=dict)

    def keys(self, split: str) -> list[str]:
        """The N tracks that are used."""
        return [self.groundtruths[split].keys[i] for i in self.rows[split]]

    def targets(self, split: str) -> np.ndarray:
        """[N, C] of those tracks."""
        return self.groundtruths[split].targets[self.rows[split]]

    def missing(self) -> dict[str, int]:
        """Split → tracks that are left out as they have no features; of those that lack any."""
        lacking = {s: len(g) - len(self.rows[s]) for s, g in self.groundtruths.items()}
        return {split: count for split, count in lacking.items() if count}


def read_task(config: dict[str, Any]) -> Downstream:
    """The three ground truths; they have the same labels and share no track.

    Settings of the training that would fail much later are looked at first.

    Raises:
        InputError: one is not named or refused, they are of different labels, or share tracks.
    """
    data, probe = config["data"], config["probe"]
    check_choice("data.task", data["task"], TASKS)
    check_choice("probe.accelerator", probe["accelerator"], ACCELERATORS)
    found: dict[str, GroundTruth] = {}
    for split in SPLITS:
        path = data[f"groundtruth_{split}"]
        if path is None:
            raise InputError(
                "is not set",
                kind="missing",
                setting=f"data.groundtruth_{split}",
                hint="Name a target, such as 'with target_scores_tl', or give a ground-truth "
                "pickle.",
            )
        path = Path(str(path)).expanduser()
        if not path.is_file():
            raise InputError(
                "no such file",
                kind="missing",
                path=path,
                setting=f"data.groundtruth_{split}",
                hint="Correct it; a data set's own preprocess.py makes its ground truths.",
            )
        try:
            found[split] = read_groundtruth(path, task=data["task"])
        except GroundTruthError as error:  # which names the setting of the other experiment
            message, hint = (
                text.replace("maest.task", "data.task") for text in (error.message, error.hint)
            )
            raise InputError(message, kind=error.kind, path=error.path, hint=hint) from None
    names = _labels(found)
    check_disjoint(*found.values())
    rows = {split: list(range(len(own))) for split, own in found.items()}
    return Downstream(data["task"], names, found, rows)


def _labels(groundtruths: Mapping[str, GroundTruth]) -> list[str]:
    """The C names; their numbers where there is no ``labels.json`` beside the training split.

    Raises:
        InputError: the splits are of different labels.
    """
    train = groundtruths["train"]
    names = labels_beside(train)
    for own in groundtruths.values():
        if own.n_classes != train.n_classes:
            raise InputError(
                f"has {own.n_classes} labels to a track, and {train.path} has {train.n_classes}: "
                "they are not of one data set",
                kind="mismatch",
                path=own.path,
                hint=_THREE_SPLITS,
            )
        others = labels_beside(own)
        if None not in (names, others) and names != others:
            raise InputError(
                "names other labels, or in another order, than "
                f"{train.path.parent / 'labels.json'}: the splits are not of one data set",
                kind="mismatch",
                path=own.path.parent / "labels.json",
                hint=_THREE_SPLITS,
            )
    return names or [str(i) for i in range(train.n_classes)]


def check_targets(task: Downstream) -> None:
    """Raise InputError where nothing can be learned, or no figure be had, of the tracks used."""
    targets = {split: task.targets(split) for split in SPLITS}
    left = ", of the tracks that have features" if task.missing() else ""
    if task.task == "multi-label" and not targets["train"].any():
        raise InputError(
            f"no track has any label{left}: nothing can be learned",
            kind="empty",
            path=task.groundtruths["train"].path,
            hint="Give a training split of tracks that have labels.",
        )
    for split in ("val", "test") * (task.task != "single-label"):
        if not (targets[split] != targets[split][:1]).any():
            same = "value" if task.task == "regression" else "labels"
            raise InputError(
                f"all {len(targets[split])} tracks have the same {same}{left}: there is nothing to "
                "score",
                kind="empty",
                path=task.groundtruths[split].path,
                hint=f"Give a {split} split of tracks that differ.",
            )


def digests(task: Downstream) -> dict[str, str]:
    """Split → SHA-256 of its ground-truth file."""
    return {
        split: hashlib.sha256(own.path.read_bytes()).hexdigest()
        for split, own in task.groundtruths.items()
    }


# ---------------------------------------------------------------- features


def embedding_folders(data: dict[str, Any], block: int | str | None) -> list[EmbeddingFolder]:
    """The folders that ``data`` names, of one block or of ``"all"``; warns where nothing says more.

    Raises:
        InputError: there are none, or several to choose from.
    """
    if data["embeddings_dir"] is None:
        raise InputError(
            "is not set",
            kind="missing",
            setting=EMBEDDINGS_DIR,
            hint="Give the folder that extraction wrote (inference.out_dir), or name a target, "
            "such as 'with target_scores_tl'.",
        )
    found = find_folders(str(data["embeddings_dir"]), data["clip_length"], block, DEFAULT_BLOCK)
    for made in found:
        if made.settings is None:
            log.warning(
                "%s has no manifest.json: what made these embeddings is not known", made.folder
            )
    return found


def numbered_folders(
    data: dict[str, Any], wanted: Any, setting: str, everything: str
) -> list[EmbeddingFolder]:
    """Of all blocks, or of those that are asked for; not of the final norm, which has no tokens.

    Args:
        data: says where they are.
        wanted: some numbers, or ``everything``, which is the word for all of them.
        setting: which one asks, for messages.

    Raises:
        InputError: there are none of these.
    """
    found = embedding_folders(data, "all")
    found = [made for made in found if made.block is not None and made.block >= 0]
    if not found:
        raise InputError(
            "no embeddings of numbered blocks, which have tokens to choose from",
            kind="missing",
            path=data["embeddings_dir"],
            setting=EMBEDDINGS_DIR,
            hint="Extract them with inference.transformer_block=all.",
        )
    if wanted == everything:
        return found
    try:
        numbers = {int(block) for block in listed_names(wanted)}
    except ValueError:
        numbers = set()
    there = {made.block: made for made in found}
    known = ", ".join(map(str, there))
    if not numbers:
        raise InputError(
            f"is {wanted!r}; expected {everything}, or some of the blocks {known}",
            setting=setting,
            hint=f"Give {setting}={everything}, or some of them, such as {setting}=[6,7].",
        )
    missing = ", ".join(map(str, sorted(numbers - there.keys())))
    if missing:
        raise InputError(
            f"no embeddings of {missing}; there are those of {known}, with tokens to choose from",
            kind="missing",
            setting=setting,
            path=data["embeddings_dir"],
            hint="Extract the others with inference.transformer_block=all.",
        )
    return [there[block] for block in sorted(numbers)]


def chosen_folders(data: dict[str, Any]) -> tuple[list[EmbeddingFolder], bool]:
    """The folders of ``data.block``, and whether they are to be mixed.

    Raises:
        InputError: there are none of it, several to choose from, or one alone to mix.
    """
    block = data["block"]
    if block is None or isinstance(block, int):
        return embedding_folders(data, block), False
    folders = numbered_folders(data, block, "data.block", MIX)
    if len(folders) == 1:
        raise InputError(
            f"is {block!r}, and there is block {folders[0].block} alone: nothing to mix",
            kind="conflict",
            setting="data.block",
            path=data["embeddings_dir"],
            hint=f"Give data.block={folders[0].block}, or extract more blocks "
            "(inference.transformer_block=all).",
        )
    return folders, True


def to_be_mixed(chosen: np.ndarray) -> np.ndarray:
    """Features [N, L, D] of blocks as a mix takes them: normalised, in place."""
    for start in range(0, len(chosen), _NORMALISED_AT_ONCE):
        part = torch.from_numpy(chosen[start : start + _NORMALISED_AT_ONCE])
        part.copy_(normalised(part))
    return chosen


def load_embeddings(
    task: Downstream, folders: Sequence[EmbeddingFolder], data: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Split → float32 [N, L, 3, D] of L blocks; tracks without one of them leave the task.

    Raises:
        InputError: tracks have none (unless ``data.missing`` is "skip"), or damaged ones; or
            several share one.
    """
    found = _load(
        *(task, data, folders[0].path, lambda key: read_blocks(folders, key), "embedding"),
        EXTRACT_THEM,
        folders[0].folder,
    )
    widths = {split: x.shape[1:] for split, x in found.items()}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{split} {list(shape)}" for split, shape in widths.items())
        raise InputError(
            f"embeddings of different widths: {shown}; they are of different models or blocks",
            kind="mismatch",
            path=folders[0].folder,
            hint="Extract all splits with the same settings.",
        )
    return found


def load_statistics(task: Downstream, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Split → float32 [N, 192]: mean and deviation of the mel bands; raises the like."""
    if data["base_dir"] is None:
        raise InputError(
            "is not set",
            kind="missing",
            setting="data.base_dir",
            hint="Give the folder of the log-mel files.",
        )

    def find(key: str) -> Path:
        return log_mel_file(str(data["base_dir"]), key)

    advice = "Make them with the data set's preprocess.py, or correct data.base_dir"
    read, place = (lambda key: mel_statistics(find(key))), data["base_dir"]
    return _load(task, data, find, read, "log-mel file", advice, place)


def _load(
    task: Downstream,
    data: dict[str, Any],
    find: Callable[[str], Path],
    read: Callable[[str], np.ndarray],
    what: str,
    advice: str,
    place: str | Path,
) -> dict[str, np.ndarray]:
    check_choice("data.missing", data["missing"], MISSING)
    _check_apart(task, find, what)
    found = {}
    for split, own in task.groundtruths.items():
        skip = data["missing"] == "skip"
        found[split], task.rows[split] = load(
            own.keys, read, split, skip_missing=skip, what=what, advice=advice, place=place
        )
    for split, count in task.missing().items():
        whole = len(task.groundtruths[split])
        log.warning("%d of %d tracks of %s have no %s: left out", count, whole, split, what)
    check_targets(task)
    return found


def _check_apart(task: Downstream, find: Callable[[str], Path], what: str) -> None:
    """Raise InputError if two keys, of one split or of two, have the same file."""
    owner: dict[Path, tuple[str, Path]] = {}
    for own in task.groundtruths.values():
        for key in own.keys:
            try:
                path = find(key)
            except MissingFeature:
                continue
            if path in owner:
                other, groundtruth = owner[path]
                raise InputError(
                    f"{key!r} has the {what} {path}, which is that of {other!r} in {groundtruth} "
                    "too: one track under two names",
                    kind="conflict",
                    path=own.path,
                    hint="Keep each track once, and in one split, or the scores mean nothing.",
                )
            owner[path] = key, own.path


@dataclass(frozen=True)
class Features:
    """Features of one kind, and what made them.

    Attributes:
        splits: split → float32 [N, 1, D]; of a mix [N, L, D] of L blocks, normalised.
        name: what a report calls them.
        extraction: its settings; ``block`` is the list of a mix's.
        made_by: where its model was.
        blocks: the numbers of a mix's.
    """

    splits: dict[str, np.ndarray]
    name: str
    extraction: dict[str, Any] | None = None
    made_by: dict[str, Any] | None = None
    blocks: list[int] | None = None


def load_features(task: Downstream, data: dict[str, Any]) -> Features:
    """The features that ``data`` asks for: tokens of a block or of several, or mel statistics."""
    check_choice("data.features", data["features"], FEATURES)
    if data["features"] == "mel_statistics":
        for name in ("types", "reduce"):
            if data[name] != settings.TL["data"][name]:
                raise InputError(
                    "has no effect on mel_statistics",
                    kind="conflict",
                    setting=f"data.{name}",
                    hint="Leave it out.",
                )
        splits = {split: x[:, None] for split, x in load_statistics(task, data).items()}
        return Features(splits, "mel bands, mean and deviation")
    check_types(data["types"], data["reduce"])
    types, reduce = data["types"], data["reduce"]
    folders, mix = chosen_folders(data)
    splits = {
        split: select_tokens(x, types, reduce)
        for split, x in load_embeddings(task, folders, data).items()
    }
    tokens = f"{types} stacked" if reduce == "stack" and len(types) > 1 else types
    first = folders[0]
    if not mix:
        return Features(splits, f"{first.folder} ({tokens})", first.settings, first.made_by)
    blocks = [made.block for made in folders]
    return Features(
        {split: to_be_mixed(x) for split, x in splits.items()},
        f"{first.folder.parent} (mix of {len(blocks)} blocks, {tokens})",
        first.settings and first.settings | {"block": blocks},
        first.made_by,
        blocks,
    )


# ---------------------------------------------------------------- training


def train_probes(
    recipe: dict[str, Any],
    task: Downstream,
    features: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    *,
    mix: bool = False,
    title: str | None = "probe",
) -> ProbeBank:
    """Train probes together, and test each on its best epoch.

    Args:
        recipe: the section ``probe`` of the settings.
        task: what to learn.
        features: split → float32 [N, M, D] of M sets (with ``mix`` M blocks).
        seeds: of the probes.
        mix: one probe a seed on a learned mix of the M blocks, rather than one on each set.
        title: of a progress bar over the epochs; None for none.

    Raises:
        InputError: training has diverged.
    """
    recipe = dict(recipe)
    batch_size, epochs = recipe.pop("batch_size"), recipe.pop("max_epochs")
    accelerator = recipe.pop("accelerator")
    n_sets, width = features["train"].shape[1:]
    scale = shift = None
    if task.task == "regression":
        train = task.targets("train").astype(np.float64)
        shift, scale = train.mean(axis=0), train.std(axis=0)
        # Rounding may leave a constant target a deviation that is not quite 0.
        scale = np.where(scale > 1e-7 * np.maximum(1, np.abs(shift)), scale, 1.0)
    bank = ProbeBank(
        width,
        len(task.labels),
        ProbeOptions(**recipe),
        seeds,
        task=task.task,
        n_sets=1 if mix else n_sets,
        n_blocks=n_sets if mix else None,
        scale=scale,
        shift=shift,
    )
    splits = {split: (x, task.targets(split)) for split, x in features.items()}
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[_Bar(title)] if title else [],
    )
    data = FeatureDataModule(splits, batch_size, seeds)
    # One thread: products this small gain little from more, and where other work goes on, threads
    # that share them wait for each other (ten times as long was seen).
    with one_torch_thread():
        trainer.fit(bank, data)
        bank.restore_best()
        trainer.test(bank, data, verbose=False)
    return bank


class _Bar(pl.Callback):
    """A progress bar over the epochs, where the output is a terminal."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar = tqdm(total=trainer.max_epochs, desc=self.title, unit="epoch", disable=None)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.update()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.close()
