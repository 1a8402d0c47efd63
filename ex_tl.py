"""Downstream evaluation: train a small probe on saved embeddings, and test it.

python ex_tl.py with target_scores_tl
python ex_tl.py with target_scores_tl data.types=cdt data.reduce=stack
"""

from __future__ import annotations

import csv
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from tqdm import tqdm

import config as settings
from datasets.datamodule import FeatureDataModule
from datasets.embeddings import embedding_reader, load_features, statistics_reader
from datasets.groundtruth import GroundTruth, check_disjoint, labels_beside, read_groundtruth
from ex_common import Experiment, command, has_git_commit, run_command_line, run_dir, set_up
from helpers import metrics, plots
from helpers.errors import InputError
from helpers.files import atomic_path, write_json
from helpers.settings import check_choice
from models.probe import Probe, ProbeOptions

log = logging.getLogger(__name__)

ex = Experiment("maest_tl", save_git_info=has_git_commit())
set_up(ex, settings.TL, settings.TL_NAMED, settings.LIMITS, settings.SENTENCES)

SPLITS = ("train", "val", "test")
FEATURES = ("embeddings", "mel_statistics")


@command(ex, main=True)
def probe(_run, _config) -> dict[str, Any]:
    """Train the probe with several seeds, test each on its best epoch, and write a report."""
    config, folder, started = _config, run_dir(_run), time.monotonic()
    groundtruths = read_splits(config["data"])
    labels = label_names(groundtruths["train"])
    read = feature_reader(config["data"])
    splits = {
        name: (load_features(groundtruth.keys, read, name), groundtruth.targets)
        for name, groundtruth in groundtruths.items()
    }
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    bar = tqdm(seeds, desc="probe", unit="seed", disable=None)
    runs = [run_seed(config["probe"], splits, seed) for seed in bar]
    name = config["name"] or feature_name(config["data"])
    results = summarise(name, runs, splits, labels)
    results |= {"seconds": time.monotonic() - started, "data": dict(config["data"])}
    write_results(folder, results)
    for measure in ("ap", "roc_auc"):
        _run.log_scalar(f"test_{measure}", results[measure]["mean"])
    print(
        f"{name}: test AP {show(results['ap'])}, ROC-AUC {show(results['roc_auc'])} "
        f"over {len(runs)} seeds (chance {results['chance']['ap']:.4f}, "
        f"{results['chance']['roc_auc']:.4f}); {results['features']} features, "
        f"{' / '.join(str(n) for n in results['tracks'].values())} tracks, {len(labels)} labels, "
        f"{results['classes_left_out']} left out\n"
        f"per label: {folder / 'labels.csv'}, {folder / 'labels.png'}"
    )
    return {"ap": results["ap"], "roc_auc": results["roc_auc"], "folder": str(folder)}


def read_splits(data: dict[str, Any]) -> dict[str, GroundTruth]:
    """The three ground truths; they have the same labels and share no track."""
    found: dict[str, GroundTruth] = {}
    for split in SPLITS:
        path = data[f"groundtruth_{split}"]
        if path is None:
            raise InputError(
                f"data.groundtruth_{split} is not set: name a target, such as "
                "'with target_scores_tl', or give a ground-truth pickle"
            )
        n_classes = found["train"].n_classes if found else None
        found[split] = read_groundtruth(path, n_classes)
    check_disjoint(*found.values())
    return found


def label_names(groundtruth: GroundTruth) -> list[str]:
    """The names in the ``labels.json`` beside a ground truth; numbers where there is none."""
    return labels_beside(groundtruth) or [str(i) for i in range(groundtruth.n_classes)]


def feature_reader(data: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """What reads a track's features, as ``data.features`` says."""
    check_choice("data.features", data["features"], FEATURES)
    if data["features"] == "mel_statistics":
        for name in ("types", "reduce"):
            if data[name] != settings.TL["data"][name]:
                raise InputError(f"data.{name} has no effect on mel_statistics: leave it out")
        if data["base_dir"] is None:
            raise InputError("data.base_dir is not set: give the folder of the log-mel files")
        return statistics_reader(data["base_dir"])
    if data["embeddings_dir"] is None:
        raise InputError("data.embeddings_dir is not set: give the folder that extraction wrote")
    return embedding_reader(data["embeddings_dir"], data["types"], data["reduce"])


def feature_name(data: dict[str, Any]) -> str:
    """What the report calls the features if ``name`` is not set."""
    if data["features"] == "mel_statistics":
        return "mel bands, mean and deviation"
    return f"{data['embeddings_dir']} ({data['types']})"


def run_seed(
    config: dict[str, Any], splits: dict[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> Probe:
    """Train one probe, and test its best epoch."""
    pl.seed_everything(seed, verbose=False)
    config = dict(config)
    batch_size, epochs = config.pop("batch_size"), config.pop("max_epochs")
    accelerator = config.pop("accelerator")
    features, targets = splits["train"]
    module = Probe(features.shape[1], targets.shape[1], ProbeOptions(**config))
    data = FeatureDataModule(splits, batch_size, seed)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    module.restore_best()
    trainer.test(module, data, verbose=False)
    return module


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for a single value) of a figure over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


def show(figure: dict[str, Any]) -> str:
    """0.7312 ± 0.0031."""
    return f"{figure['mean']:.4f} ± {figure['std']:.4f}"


def summarise(
    name: str,
    runs: list[Probe],
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: list[str],
) -> dict[str, Any]:
    """The figures of all seeds: over all labels, and label by label."""
    targets = splits["test"][1]
    chance_ap, chance_roc_auc = metrics.chance_scores(targets)
    counted = ~np.isnan(runs[0].scores.ap)
    return {
        "name": name,
        "ap": spread([run.scores.macro_ap for run in runs]),
        "roc_auc": spread([run.scores.macro_roc_auc for run in runs]),
        "val_roc_auc": spread([run.best_roc_auc for run in runs]),
        "best_epochs": [run.best_epoch + 1 for run in runs],
        "chance": {"ap": chance_ap, "roc_auc": chance_roc_auc},
        "classes_left_out": int((~counted).sum()),
        "features": splits["train"][0].shape[1],
        "tracks": {split: len(x) for split, (x, _) in splits.items()},
        "per_label": [
            {
                "label": label,
                "positives": int(targets[:, i].sum()),
                "ap": spread([float(run.scores.ap[i]) for run in runs]) if counted[i] else None,
                "roc_auc": (
                    spread([float(run.scores.roc_auc[i]) for run in runs]) if counted[i] else None
                ),
            }
            for i, label in enumerate(labels)
        ],
        "histories": [run.history for run in runs],
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """results.json, labels.csv and labels.png."""
    write_json(folder / "results.json", results)
    rows = results["per_label"]
    with atomic_path(folder / "labels.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("label", "test_positives", "ap", "ap_std", "roc_auc", "roc_auc_std"))
        for row in rows:
            figures = [row[measure] or {} for measure in ("ap", "roc_auc")]
            values = [figure.get(part, "") for figure in figures for part in ("mean", "std")]
            table.writerow((row["label"], row["positives"], *values))

    def column(part: str) -> list[float]:
        return [row["ap"][part] if row["ap"] else np.nan for row in rows]

    plots.label_bars(
        folder / "labels.png",
        [row["label"] for row in rows],
        {results["name"]: column("mean")},
        "average precision on the test split",
        {results["name"]: column("std")},
    )


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, settings.SECTION_ALIASES))
