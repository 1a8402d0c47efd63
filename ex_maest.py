"""Pre-train MAEST, evaluate it, and extract embeddings and logits.

python ex_maest.py                                              # pre-train
python ex_maest.py test with maest.checkpoint=exp_logs/latest/model
python ex_maest.py extract_embeddings with maest.checkpoint=exp_logs/latest/model
python ex_maest.py extract_logits with maest.checkpoint=exp_logs/latest/model
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

import config as settings
from datasets.datamodule import MaestDataModule
from ex_common import (
    Experiment,
    command,
    has_git_commit,
    run_command_line,
    run_dir,
    set_up,
)
from helpers import metrics, plots
from helpers.errors import InputError
from helpers.files import point_link, write_json
from helpers.history import History, ProgressBar
from helpers.settings import check_choice
from helpers.writer import POOLS, TrackWriter
from models import Maest, get_maest, load_checkpoint, save_model
from models.archs import clip_seconds, input_frames
from models.module import MaestModule, TrainingOptions
from models.weights import Checkpoint, load_into

log = logging.getLogger(__name__)

ex = Experiment("maest", save_git_info=has_git_commit())
set_up(ex, settings.MAEST, settings.MAEST_NAMED, settings.LIMITS)

# Settings of the network that only training uses: the random ones.
_RANDOM = ("s_patchout_t", "s_patchout_f", "u_patchout")
_RANDOM += ("drop_rate", "attn_drop_rate", "drop_path_rate")


# ---------------------------------------------------------------- putting things together


def set_up_data(
    config: dict[str, Any], checkpoint: Checkpoint | None, *splits: str
) -> MaestDataModule:
    """The data module for some splits, with the clip length that settings or checkpoint say.

    Its data is there: the embedded data set is built if it is wanted and missing.
    """
    options = dict(config["datamodule"])
    for split in {"train", "val", "test", "predict"} - set(splits):
        options.pop(f"groundtruth_{split}")
    clip_length = options.pop("clip_length")
    if clip_length is not None:
        frames = input_frames(clip_length)
    elif config["maest"]["input_t"] is not None:
        frames = config["maest"]["input_t"]
    elif checkpoint is not None:
        frames = checkpoint.sizes["input_t"]
    else:
        frames = input_frames(settings.DEFAULT_CLIP_LENGTH)
    data = MaestDataModule(clip_frames=frames, seed=config["seed"], **options)
    data.prepare_data()
    return data


def find_checkpoint(config: dict[str, Any], training: bool = False) -> Checkpoint | None:
    """What ``maest.checkpoint`` points to, read."""
    if config["ckpt_path"] is not None and not training:
        raise InputError("ckpt_path continues a training; to use a model, give maest.checkpoint=…")
    path = config["maest"]["checkpoint"]
    return None if path is None else load_checkpoint(path)


def set_up_network(
    config: dict[str, Any],
    checkpoint: Checkpoint | None,
    data: MaestDataModule,
    split: str,
    training: bool = False,
) -> Maest:
    """The network that settings, checkpoint and (where they leave it open) a split ask for."""
    options = dict(config["maest"])
    options.pop("checkpoint")
    if not training:
        options = {name: value for name, value in options.items() if name not in _RANDOM}
    if checkpoint is None and options["arch"] is None:
        options["arch"] = settings.DEFAULT_ARCH
    if options["input_t"] is None:
        options["input_t"] = data.clip_frames
        if checkpoint is not None and not training:  # of a shorter clip, positions are cropped
            options["input_t"] = max(data.clip_frames, checkpoint.sizes["input_t"])
    if options["input_t"] < data.clip_frames:
        raise InputError(
            f"maest.input_t is {options['input_t']} frames, and datamodule.clip_length makes clips "
            f"of {data.clip_frames}: the network's input must hold a clip"
        )
    labels = None
    if training or (checkpoint is None and options["n_classes"] is None):
        n_classes = data.groundtruth(split).n_classes
        if options["n_classes"] not in (None, n_classes):
            raise InputError(
                f"maest.n_classes is {options['n_classes']}, and {data.groundtruth(split).path} "
                f"has {n_classes} labels to a track: leave it out, or correct it"
            )
        options["n_classes"], labels = n_classes, data.labels(split)
    norm = ("norm_mean", "norm_std")
    if checkpoint is None and None in [options[name] for name in norm]:
        for name, measured in zip(norm, data.mean_and_std(split), strict=True):
            options[name] = measured if options[name] is None else options[name]
    try:
        return get_maest(checkpoint=checkpoint, labels=labels, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def set_up_trainer(
    config: dict[str, Any], folder: Path, training: bool = False, **options: Any
) -> pl.Trainer:
    """Lightning's trainer; on CUDA it trains in fp16 mixed precision, unless told otherwise."""
    given = {name: value for name, value in config["trainer"].items() if value is not None}
    if "precision" not in given:
        cuda = torch.cuda.is_available() and given["accelerator"] in ("auto", "gpu", "cuda")
        given["precision"] = "16-mixed" if cuda and training else "32-true"
    callbacks = options.pop("callbacks", [])
    # A bar redraws its line: in a file or a pipe that is noise.
    given["enable_progress_bar"] &= sys.stderr.isatty()
    if given["enable_progress_bar"]:
        callbacks = [*callbacks, ProgressBar(refresh_rate=5)]
    return pl.Trainer(
        default_root_dir=folder,
        devices=1,
        callbacks=callbacks,
        enable_model_summary=False,
        **{"logger": False, **given, **options},
    )


# ---------------------------------------------------------------- commands


@command(ex, main=True)
def pretrain(_run, _config) -> dict[str, Any]:
    """Train on datamodule.groundtruth_train, validate each epoch, write a model folder."""
    config, folder, started = _config, run_dir(_run), time.monotonic()
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    check_choice("module.lr_interval", config["module"]["lr_interval"], ("step", "epoch"))
    if config["trainer"]["limit_val_batches"] == 0:
        raise InputError("trainer.limit_val_batches is 0: validation decides which epoch is kept")
    checkpoint = find_checkpoint(config, training=True)
    data = set_up_data(config, checkpoint, "train", "val")
    net = set_up_network(config, checkpoint, data, "train", training=True)
    arch = config["maest"]["arch"] or (checkpoint.arch if checkpoint else settings.DEFAULT_ARCH)
    if data.groundtruth("val").n_classes != net.n_classes:
        raise InputError(
            f"{data.groundtruth('val').path}: {data.groundtruth('val').n_classes} labels to a "
            f"track, and the training ground truth has {net.n_classes}"
        )
    module = MaestModule(net, TrainingOptions(**config["module"]))
    weights = sum(parameter.numel() for parameter in net.parameters())
    log.info(
        "%s, %.1f M weights; %d training and %d validation tracks, %d labels; clips of %g s",
        arch,
        weights / 1e6,
        len(data.groundtruth("train")),
        len(data.groundtruth("val")),
        net.n_classes,
        clip_seconds(data.clip_frames),
    )

    earlier = None if config["ckpt_path"] is None else Path(config["ckpt_path"]).parent.parent
    history = History(
        folder / "history.csv",
        record=_run.log_scalar,
        continued=earlier and earlier / "history.csv",
    )
    best = ModelCheckpoint(
        folder / "checkpoints", "best-{epoch}", monitor="val_ap", mode="max", save_last=True
    )
    trainer = set_up_trainer(
        config,
        folder,
        training=True,
        callbacks=[history, best, LearningRateMonitor("step")],
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
    )
    net.train()
    trainer.fit(module, data, ckpt_path=config["ckpt_path"])
    kept = {"epoch": trainer.current_epoch, "steps": trainer.global_step}
    validated = bool(history.epochs) and "val_ap" in history.epochs[-1]
    if path := _best_checkpoint(best, folder, config["ckpt_path"]):
        found = load_checkpoint(path)
        load_into(net, found)
        validated &= found.trained_on == kept  # the last epoch was the best
        kept = found.trained_on
    if not validated:
        trainer.validate(module, data, verbose=False)
    results = _summarise(module, data, history, folder)
    results |= {"best_epoch": kept["epoch"], "best_steps": kept["steps"]}
    results |= {"steps": trainer.global_step, "seconds": time.monotonic() - started}
    write_json(folder / "results.json", results)
    model = save_model(
        folder / "model", net.eval(), arch, trained_on=_provenance(config, data, results)
    )
    point_link(folder.parent / "latest", folder)
    _report(results, folder, model)
    return {
        "val_ap": results["val_ap"],
        "val_roc_auc": results["val_roc_auc"],
        "folder": str(folder),
    }


@command(ex)
def test(_run, _config) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."""
    config, folder = _config, run_dir(_run)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    checkpoint = _needed_checkpoint(config)
    data = set_up_data(config, checkpoint, "test")
    net = set_up_network(config, checkpoint, data, "test")
    groundtruth = data.groundtruth("test")
    if groundtruth.n_classes != net.n_classes:
        raise InputError(
            f"{groundtruth.path}: {groundtruth.n_classes} labels to a track, and the model has "
            f"{net.n_classes}: they are not of one task"
        )
    module = MaestModule(net, patches_per_pass=config["inference"]["patches_per_pass"])
    if config["trainer"]["limit_test_batches"] == 0:
        raise InputError("trainer.limit_test_batches is 0: nothing would be tested")
    set_up_trainer(config, folder).test(module, data, verbose=False)
    results = _figures("test", module, net.labels)
    write_json(folder / "results.json", results)
    print(
        f"{results['test_tracks']} tracks: AP {results['test_ap']:.4f}, ROC-AUC "
        f"{results['test_roc_auc']:.4f} (chance {results['chance']['ap']:.4f}, "
        f"{results['chance']['roc_auc']:.4f}); {results['test_classes_left_out']} labels left out; "
        f"per label: {folder / 'results.json'}"
    )
    return {name: results[name] for name in ("test_ap", "test_roc_auc")}


@command(ex)
def extract_embeddings(_run, _config) -> dict[str, Any]:
    """Write an embedding for each track of datamodule.groundtruth_predict."""
    block = _config["inference"]["transformer_block"]
    return _extract(_run, _config, "embeddings", block)


@command(ex)
def extract_logits(_run, _config) -> dict[str, Any]:
    """Write the logits, before the sigmoid, for each track of datamodule.groundtruth_predict."""
    return _extract(_run, _config, "logits", "logits")


# ---------------------------------------------------------------- their parts


def _best_checkpoint(callback: ModelCheckpoint, folder: Path, resumed: str | None) -> Path | None:
    """The checkpoint with the best validation AP: of this run, or of the one that it continues."""
    found: list[tuple[float, Path]] = []
    own = Path(callback.best_model_path) if callback.best_model_path else None
    if own and own.parent.resolve() == (folder / "checkpoints").resolve():
        found.append((float(callback.best_model_score), own))
    if resumed is not None:
        content = torch.load(resumed, map_location="cpu", weights_only=True)
        for state in content["callbacks"].values():
            if state.get("best_model_path") and Path(state["best_model_path"]).is_file():
                score = float(state["best_model_score"])
                found.append((score, Path(state["best_model_path"])))
    return max(found)[1] if found else None


def _needed_checkpoint(config: dict[str, Any]) -> Checkpoint:
    checkpoint = find_checkpoint(config)
    if checkpoint is None:
        raise InputError(
            "which model? Give maest.checkpoint=<model folder>, such as exp_logs/latest/model "
            "(embeddings of random weights are to be had by naming maest.arch alone)"
        )
    return checkpoint


def _extract(run, config: dict[str, Any], kind: str, output: str | int) -> dict[str, Any]:
    started = time.monotonic()
    inference = config["inference"]
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    check_choice("inference.pool", inference["pool"], POOLS)
    checkpoint = find_checkpoint(config)
    if kind == "logits" or config["maest"]["arch"] is None:
        checkpoint = _needed_checkpoint(config)
    data = set_up_data(config, checkpoint, "predict")
    net = set_up_network(config, checkpoint, data, "predict")
    if checkpoint is None:
        log.warning("no maest.checkpoint was given: these are embeddings of RANDOM weights")
    if output != "logits":
        check_choice("inference.transformer_block", output, range(-1, net.depth))

    module = MaestModule(net, patches_per_pass=inference["patches_per_pass"])
    module.predict_output = output
    level = "final" if output == -1 else str(output)
    folder = Path(str(inference["out_dir"])) / f"{clip_seconds(data.clip_frames):g}sec" / level
    writer = TrackWriter(folder, kind, inference["pool"])
    trainer = set_up_trainer(config, run_dir(run), callbacks=[writer])
    trainer.predict(module, data, return_predictions=False)

    for key, reason in sorted(writer.failed.items())[:10]:
        log.error("%s: %s", key, reason)
    print(
        f"{writer.written} tracks done, {len(writer.failed)} failed, in "
        f"{time.monotonic() - started:.0f} s: {folder}"
        + (f" (reasons: {folder / 'failed.csv'})" if writer.failed else "")
    )
    return {"written": writer.written, "failed": len(writer.failed), "folder": str(folder)}


def _figures(split: str, module: MaestModule, labels: list[str] | None) -> dict[str, Any]:
    """The last evaluation's figures, over all labels and for each, and what chance gets."""
    scores, targets = module.scores, module.targets
    names = labels or [str(i) for i in range(targets.shape[1])]
    chance_ap, chance_roc_auc = metrics.chance_scores(targets)
    return {
        f"{split}_ap": scores.macro_ap,
        f"{split}_roc_auc": scores.macro_roc_auc,
        f"{split}_classes_left_out": scores.left_out,
        f"{split}_tracks": len(targets),
        "chance": {"ap": chance_ap, "roc_auc": chance_roc_auc},
        "per_label": [
            {
                "label": name,
                "ap": None if np.isnan(scores.ap[i]) else float(scores.ap[i]),
                "roc_auc": None if np.isnan(scores.roc_auc[i]) else float(scores.roc_auc[i]),
                "positives": int(targets[:, i].sum()),
            }
            for i, name in enumerate(names)
        ],
    }


def _summarise(
    module: MaestModule, data: MaestDataModule, history: History, folder: Path
) -> dict[str, Any]:
    """Figures of the kept weights on the validation split, beside two baselines; with pictures."""
    results = _figures("val", module, module.net.labels)
    frequencies = data.groundtruth("train").targets.mean(axis=0)
    constant = metrics.constant_scores(module.targets, frequencies)
    results["label_frequencies"] = {"ap": constant.macro_ap, "roc_auc": constant.macro_roc_auc}
    results["epochs"] = history.epochs
    if history.epochs:
        lines = {"chance": results["chance"]["ap"], "label frequencies": constant.macro_ap}
        plots.learning_curve(folder / "learning_curve.png", history.epochs, lines)
    plots.label_bars(
        folder / "labels.png",
        [row["label"] for row in results["per_label"]],
        {"model": module.scores.ap, "label frequencies": constant.ap},
        "average precision on the validation split",
    )
    return results


def _provenance(
    config: dict[str, Any], data: MaestDataModule, results: dict[str, Any]
) -> dict[str, Any]:
    """What a model folder says of its making; names, not paths: it is made to be passed on."""
    groundtruth, started_from = data.groundtruth("train"), config["maest"]["checkpoint"]
    return {
        "groundtruth": "/".join(groundtruth.path.parts[-2:]),
        "tracks": len(groundtruth),
        "started_from": started_from and "/".join(Path(started_from).parts[-3:]),
        "seed": config["seed"],
        "steps": results["best_steps"],
        "epoch": results["best_epoch"],
        "val_ap": results["val_ap"],
        "val_roc_auc": results["val_roc_auc"],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


def _report(results: dict[str, Any], folder: Path, model: Path) -> None:
    chance, constant = results["chance"], results["label_frequencies"]
    print(
        f"\nvalidation, {results['val_tracks']} tracks, best epoch {results['best_epoch']}:\n"
        f"                        AP  ROC-AUC\n"
        f"  model             {results['val_ap']:6.4f}   {results['val_roc_auc']:6.4f}\n"
        f"  label frequencies {constant['ap']:6.4f}   {constant['roc_auc']:6.4f}\n"
        f"  chance            {chance['ap']:6.4f}   {chance['roc_auc']:6.4f}\n"
        f"({results['val_classes_left_out']} labels without positives left out; "
        f"{results['steps']} steps in {results['seconds']:.0f} s)\n"
        f"learning curve: {folder / 'learning_curve.png'}\n"
        f"per label:      {folder / 'labels.png'}\n"
        f"model folder:   {model}"
    )


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv))
