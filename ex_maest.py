"""Pre-train or fine-tune MAEST, evaluate it, extract embeddings and logits, hand it on.

python ex_maest.py                                              # pre-train
python ex_maest.py with maest_finetune datamodule.groundtruth_train=…
python ex_maest.py test with maest.checkpoint=exp_logs/latest/model
python ex_maest.py extract_embeddings with maest.checkpoint=exp_logs/latest/model
python ex_maest.py extract_logits with maest.checkpoint=exp_logs/latest/model
python ex_maest.py export with maest.checkpoint=exp_logs/latest/model export.format=onnx
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
from datasets.groundtruth import read_labels, write_labels
from datasets.scores import DATA_DIR as SCORES_DIR
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
from models.archs import clip_seconds, find_arch, input_frames
from models.download import fetch
from models.huggingface import export_huggingface
from models.maest import TASKS
from models.module import MaestModule, TrainingOptions
from models.onnx_export import export_onnx
from models.weights import Checkpoint, load_into, save_safetensors

log = logging.getLogger(__name__)

ex = Experiment("maest", save_git_info=has_git_commit())
set_up(ex, settings.MAEST, settings.MAEST_NAMED, settings.LIMITS, settings.SENTENCES)

# Settings of the network that only training uses: the random ones.
_RANDOM = ("s_patchout_t", "s_patchout_f", "u_patchout")
_RANDOM += ("drop_rate", "attn_drop_rate", "drop_path_rate")
# Settings that say which weights to take, and not what the network is.
_WEIGHTS = ("pretrained", "checkpoint", "checkpoint_swa_weights", "checkpoint_discard_head")

FORMATS = ("huggingface", "onnx", "safetensors")


# ---------------------------------------------------------------- putting things together


def check_files(config: dict[str, Any], *splits: str) -> None:
    """Raise InputError if ground truths or a teacher's logits are not there.

    Before weights are fetched for them.
    """
    for split in splits:
        path = config["datamodule"][f"groundtruth_{split}"]
        if path is None or Path(path).exists():
            continue
        if SCORES_DIR not in Path(path).resolve().parents:  # which is built where it is missing
            raise InputError(
                f"{path}: no such file. Check datamodule.groundtruth_{split}; a data set's own "
                "preprocess.py makes it"
            )
    teacher = config["datamodule"]["teacher_dir"]
    if "train" in splits and teacher is not None and not Path(teacher).is_dir():
        raise InputError(
            f"{teacher}: no such folder. datamodule.teacher_dir is where `python ex_maest.py "
            "extract_logits with maest.checkpoint=<the teacher>` has written the logits of a model "
            "of the same labels, for all training tracks"
        )


def find_task(config: dict[str, Any], checkpoint: Checkpoint | None) -> str:
    """What the targets are: as the settings say, or the checkpoint, or else many labels."""
    task = config["maest"]["task"]
    if task is not None:
        check_choice("maest.task", task, TASKS)
        return task
    return checkpoint.sizes.get("task", TASKS[0]) if checkpoint else TASKS[0]


def set_up_data(
    config: dict[str, Any], checkpoint: Checkpoint | None, *splits: str
) -> MaestDataModule:
    """The data module for some splits, with the clip length that settings or checkpoint say.

    Its data is there: the embedded data set is built if it is wanted and missing.
    """
    options = dict(config["datamodule"])
    for split in {"train", "val", "test", "predict"} - set(splits):
        options.pop(f"groundtruth_{split}")
    if "train" not in splits:
        options.pop("teacher_dir")
    options["task"] = find_task(config, checkpoint)
    clip_length, arch = options.pop("clip_length"), config["maest"]["arch"]
    if clip_length is not None:
        frames = input_frames(clip_length)
    elif config["maest"]["input_t"] is not None:
        frames = config["maest"]["input_t"]
    elif checkpoint is not None and "input_t" in checkpoint.sizes:
        frames = checkpoint.sizes["input_t"]
    elif arch is not None and find_arch(arch).published:
        frames = find_arch(arch).input_t
    else:
        frames = input_frames(settings.DEFAULT_CLIP_LENGTH)
    data = MaestDataModule(clip_frames=frames, seed=config["seed"], **options)
    data.prepare_data()
    return data


def find_checkpoint(config: dict[str, Any], training: bool = False) -> Checkpoint | None:
    """The weights to start from: ``maest.checkpoint``'s, or the published ones of the arch."""
    if config["ckpt_path"] is not None and not training:
        raise InputError("ckpt_path continues a training; to use a model, give maest.checkpoint=…")
    maest = config["maest"]
    path, arch, pretrained = maest["checkpoint"], maest["arch"], maest["pretrained"]
    try:
        published = arch is not None and find_arch(arch).published
        if path is not None:
            if published:
                log.warning("maest.checkpoint takes the place of the weights of %s", arch)
            return load_checkpoint(path, average=maest["checkpoint_swa_weights"])
        if maest["checkpoint_swa_weights"]:
            raise InputError(
                "maest.checkpoint_swa_weights is for a file: give maest.checkpoint=<file>"
            )
        if pretrained and arch is None:
            raise InputError(
                "which weights? Give maest.checkpoint=<model>, such as exp_logs/latest/model, or "
                "maest.arch=<a released model>"
            )
        return fetch(arch) if (published if pretrained is None else pretrained) else None
    except ValueError as error:  # no such architecture, or no weights of it
        raise InputError(str(error)) from error


def set_up_network(
    config: dict[str, Any],
    checkpoint: Checkpoint | None,
    data: MaestDataModule,
    split: str,
    training: bool = False,
) -> Maest:
    """The network that settings, checkpoint and (where they leave it open) a split ask for."""
    options = network_options(config, checkpoint, training)
    if checkpoint is None and options["arch"] is None:
        options["arch"] = settings.DEFAULT_ARCH
    known = checkpoint.sizes if checkpoint else {}
    if options["input_t"] is None:
        options["input_t"] = data.clip_frames
        if not training:  # of a shorter clip, positions are cropped
            options["input_t"] = max(data.clip_frames, known.get("input_t", 0))
    if options["input_t"] < data.clip_frames:
        raise InputError(
            f"maest.input_t is {options['input_t']} frames, and datamodule.clip_length makes clips "
            f"of {data.clip_frames}: the network's input must hold a clip"
        )
    discard_head = config["maest"]["checkpoint_discard_head"]
    if training or (options["n_classes"] is None and "n_classes" not in known):
        discard_head = _fit_head(options, checkpoint, data, split, discard_head)
    if training and options["task"] == "regression":
        same = {"n_classes": options["n_classes"], "task": "regression"}
        if discard_head or any(known.get(name) != value for name, value in same.items()):
            options |= _scale(data.groundtruth(split).targets)
    _check_labels(options, options["n_classes"] or known.get("n_classes"), config)
    norm = [name for name in ("norm_mean", "norm_std") if name not in known]
    if None in [options[name] for name in norm]:
        measured = dict(zip(("norm_mean", "norm_std"), data.mean_and_std(split), strict=True))
        for name in norm:
            options[name] = measured[name] if options[name] is None else options[name]
    try:
        return get_maest(checkpoint=checkpoint, discard_head=discard_head, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def _fit_head(
    options: dict[str, Any],
    checkpoint: Checkpoint | None,
    data: MaestDataModule,
    split: str,
    discard_head: bool,
) -> bool:
    """Set classes and labels to a split's; whether the checkpoint's head is to go for that."""
    groundtruth = data.groundtruth(split)
    if options["n_classes"] not in (None, groundtruth.n_classes):
        raise InputError(
            f"maest.n_classes is {options['n_classes']}, and {groundtruth.path} "
            f"has {groundtruth.n_classes} labels to a track: leave it out, or correct it"
        )
    options["n_classes"] = groundtruth.n_classes
    options["labels"] = options["labels"] or data.labels(split)
    if checkpoint is None or discard_head:
        return discard_head
    if checkpoint.labels and options["labels"]:
        if checkpoint.labels != options["labels"]:
            log.warning("the weights were trained on other labels: a fresh head")
        return checkpoint.labels != options["labels"]
    if checkpoint.sizes.get("n_classes") == groundtruth.n_classes:
        log.warning(
            "the head is kept, as it is for as many labels: whether they are the same is not "
            "known (maest.checkpoint_discard_head=True makes a fresh one)"
        )
    return False


def _scale(targets: np.ndarray) -> dict[str, list[float]]:
    """Mean and deviation of the targets of a regression, [N, C], as arguments of `get_maest`."""
    deviation = targets.std(axis=0)
    return {
        "target_mean": targets.mean(axis=0).tolist(),
        "target_std": np.where(deviation > 0, deviation, 1).tolist(),
    }


def network_options(
    config: dict[str, Any], checkpoint: Checkpoint | None, training: bool = False
) -> dict[str, Any]:
    """The settings of section ``maest`` as arguments of `get_maest`."""
    left_out = _WEIGHTS if training else (*_WEIGHTS, *_RANDOM)
    options = {name: value for name, value in config["maest"].items() if name not in left_out}
    options |= {"pretrained": False, "task": find_task(config, checkpoint)}
    # An arch with published weights stands for those: a checkpoint takes their place.
    arch = options["arch"]
    if config["maest"]["checkpoint"] is not None and arch and find_arch(arch).published:
        options["arch"] = None
    if options["labels"] is not None:
        options["labels"] = read_labels(options["labels"])
        if checkpoint and checkpoint.labels and checkpoint.labels != options["labels"]:
            log.warning("maest.labels are other names than those of %s", checkpoint.path)
    return options


def _check_labels(options: dict[str, Any], n_classes: int | None, config: dict) -> None:
    labels = options["labels"]
    if labels is not None and n_classes is not None and len(labels) != n_classes:
        raise InputError(
            f"{config['maest']['labels'] or 'labels.json'}: {len(labels)} labels, and the model "
            f"has {n_classes}: they are not of one task"
        )


def check_head(checkpoint: Checkpoint, net: Maest) -> None:
    """Raise InputError if a head that is read is not the checkpoint's."""
    read = ("head.", "head_dist.") if net.distilled_type == "separated" else ("head.",)
    trained_as = checkpoint.sizes.get("distilled_type", net.distilled_type)
    if trained_as != net.distilled_type or any(name.startswith(read) for name in net.fresh):
        raise InputError(
            f"{checkpoint.path}: a head for {net.n_classes} classes would be a fresh one, and "
            "its logits noise: leave out maest.n_classes, maest.task, maest.distilled_type and "
            "maest.checkpoint_discard_head, or use a model that was trained on these labels"
        )


def check_labels(net: Maest, data: MaestDataModule, split: str) -> None:
    """Raise InputError if the network's labels are known to be others than a split's."""
    labels = data.labels(split)
    if None not in (labels, net.labels) and labels != net.labels:
        raise InputError(
            f"{data.groundtruth(split).path.parent / 'labels.json'}: other labels, or another "
            "order, than the model's: they are not of one task"
        )


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
    check_files(config, "train", "val")
    checkpoint = find_checkpoint(config, training=True)
    data = set_up_data(config, checkpoint, "train", "val")
    net = set_up_network(config, checkpoint, data, "train", training=True)
    arch = checkpoint.arch if checkpoint else config["maest"]["arch"] or settings.DEFAULT_ARCH
    if data.groundtruth("val").n_classes != net.n_classes:
        raise InputError(
            f"{data.groundtruth('val').path}: {data.groundtruth('val').n_classes} labels to a "
            f"track, and the training ground truth has {net.n_classes}"
        )
    check_labels(net, data, "val")
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
    monitor = f"val_{metrics.MONITOR[net.task]}"
    best = ModelCheckpoint(
        folder / "checkpoints", "best-{epoch}", monitor=monitor, mode="max", save_last=True
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
    validated = bool(history.epochs) and monitor in history.epochs[-1]
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
        folder / "model",
        net.eval(),
        arch,
        trained_on=_provenance(config, checkpoint, data, results),
    )
    point_link(folder.parent / "latest", folder)
    _report(results, net.task, folder, model)
    return {
        **{f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[net.task]},
        "folder": str(folder),
    }


@command(ex)
def test(_run, _config) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."""
    config, folder = _config, run_dir(_run)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    check_files(config, "test")
    checkpoint = _needed_checkpoint(config)
    data = set_up_data(config, checkpoint, "test")
    net = set_up_network(config, checkpoint, data, "test")
    groundtruth = data.groundtruth("test")
    if groundtruth.n_classes != net.n_classes:
        raise InputError(
            f"{groundtruth.path}: {groundtruth.n_classes} labels to a track, and the model has "
            f"{net.n_classes}: they are not of one task"
        )
    check_head(checkpoint, net)
    check_labels(net, data, "test")
    module = MaestModule(net, patches_per_pass=config["inference"]["patches_per_pass"])
    if config["trainer"]["limit_test_batches"] == 0:
        raise InputError("trainer.limit_test_batches is 0: nothing would be tested")
    set_up_trainer(config, folder).test(module, data, verbose=False)
    results = _figures("test", module, net.labels)
    write_json(folder / "results.json", results)
    found = _in_words(net.task, {name: results[f"test_{name}"] for name in metrics.SHOWN[net.task]})
    chance = f" (chance: {_in_words(net.task, results['chance'])})" if "chance" in results else ""
    what = "targets" if net.task == "regression" else "labels"
    print(
        f"{results['test_tracks']} tracks: {found}{chance}; {module.evaluation.left_out} {what} "
        f"left out; one by one: {folder / 'results.json'}"
    )
    return {f"test_{name}": results[f"test_{name}"] for name in metrics.SHOWN[net.task]}


@command(ex)
def extract_embeddings(_run, _config) -> dict[str, Any]:
    """Write an embedding for each track of datamodule.groundtruth_predict."""
    block = _config["inference"]["transformer_block"]
    return _extract(_run, _config, "embeddings", block)


@command(ex)
def extract_logits(_run, _config) -> dict[str, Any]:
    """Write the logits, before the sigmoid, for each track of datamodule.groundtruth_predict."""
    return _extract(_run, _config, "logits", "logits")


@command(ex)
def export(_run, _config) -> dict[str, Any]:
    """Write maest.checkpoint for other programs: transformers, ONNX runtimes, or one file."""
    config, options = _config, _config["export"]
    check_choice("export.format", options["format"], FORMATS)
    if options["format"] != "onnx" and (options["with_frontend"] or options["blocks"] is not None):
        raise InputError("export.with_frontend and export.blocks are for export.format=onnx")
    checkpoint = _needed_checkpoint(config)
    network = network_options(config, checkpoint)
    _check_labels(network, checkpoint.sizes.get("n_classes"), config)
    try:
        net = get_maest(checkpoint=checkpoint, **network)
    except ValueError as error:
        raise InputError(str(error)) from error
    check_head(checkpoint, net)
    folder = Path(str(options["out_dir"]))
    licence = options["licence"] or checkpoint.licence
    if (
        checkpoint.licence
        and "-SA-" in checkpoint.licence.upper()
        and licence != checkpoint.licence
    ):
        log.warning("%s is shared alike: %s is no licence for it", checkpoint.licence, licence)
    trained_on = dict(checkpoint.trained_on) | ({"licence": licence} if licence else {})
    notes: list[str] = []
    try:
        if options["format"] == "huggingface":
            written = folder
            _check_replaceable(folder)
            notes = export_huggingface(
                folder, net, arch=checkpoint.arch, trained_on=trained_on, licence=licence
            )
        elif options["format"] == "onnx":
            blocks = options["blocks"]
            if blocks is None:
                blocks = [config["inference"]["transformer_block"]]
            metadata = {"arch": checkpoint.arch or "", "licence": licence or ""}
            written = export_onnx(
                folder / "model.onnx",
                net,
                blocks,
                with_frontend=options["with_frontend"],
                metadata=metadata,
            )
            notes = [
                f"Input of up to {clip_seconds(net.input_t):g} s: what is longer is to be cut."
            ]
        else:
            written = save_safetensors(
                folder / "model.safetensors", net, checkpoint.arch, trained_on
            )
            if net.kept_columns is not None or net.kept_rows is not None:
                notes = ["Patchout is a setting of a run: the file does not carry it."]
    except ValueError as error:
        raise InputError(str(error)) from error
    if options["format"] != "huggingface" and net.labels:
        write_labels(folder / "labels.json", net.labels)
    for note in notes:
        log.warning(note)
    print(f"written: {written}")
    return {"written": str(written)}


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
            "which model? Give maest.checkpoint=<model folder>, such as exp_logs/latest/model, or "
            "maest.arch=<a released model> (embeddings of random weights are to be had by naming "
            "an arch without published weights, such as maest_tiny)"
        )
    return checkpoint


def _extract(run, config: dict[str, Any], kind: str, output: str | int) -> dict[str, Any]:
    started = time.monotonic()
    inference = config["inference"]
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    check_choice("inference.pool", inference["pool"], POOLS)
    check_files(config, "predict")
    checkpoint = find_checkpoint(config)
    if kind == "logits" or config["maest"]["arch"] is None:
        checkpoint = _needed_checkpoint(config)
    data = set_up_data(config, checkpoint, "predict")
    net = set_up_network(config, checkpoint, data, "predict")
    if checkpoint is None:
        log.warning("no maest.checkpoint was given: these are embeddings of RANDOM weights")
    if output == "logits":
        check_head(checkpoint, net)
    else:
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


def _check_replaceable(folder: Path) -> None:
    """Raise InputError if an exported folder would replace something else."""
    if folder.exists() and not (folder / "preprocessor_config.json").is_file():
        empty = folder.is_dir() and not any(folder.iterdir())
        if not empty:
            raise InputError(
                f"{folder}: is there already, and was not made by an export: choose another "
                "export.out_dir"
            )


def _figures(split: str, module: MaestModule, labels: list[str] | None) -> dict[str, Any]:
    """The last evaluation's figures, over all labels and for each, and what chance gets."""
    evaluation, targets = module.evaluation, module.targets
    names = labels or [str(i) for i in range(targets.shape[1])]
    results: dict[str, Any] = {f"{split}_{k}": v for k, v in evaluation.figures.items()}
    results[f"{split}_tracks"] = len(targets)
    multi_label, regression = module.net.task == "multi-label", module.net.task == "regression"
    if multi_label:
        results["chance"] = dict(
            zip(metrics.SHOWN["multi-label"], metrics.chance_scores(targets), strict=True)
        )
    results["per_label"] = [
        {
            "label": name,
            **{k: None if np.isnan(v[i]) else float(v[i]) for k, v in evaluation.per_label.items()},
            **({} if regression else {"positives": int(targets[:, i].sum())}),
        }
        for i, name in enumerate(names)
    ]
    return results


def _summarise(
    module: MaestModule, data: MaestDataModule, history: History, folder: Path
) -> dict[str, Any]:
    """Figures of the kept weights on the validation split, beside baselines; with pictures."""
    task = module.net.task
    results = _figures("val", module, module.net.labels)
    baseline = metrics.baseline(task, data.groundtruth("train").targets, module.targets)
    name, first = metrics.BASELINES[task], metrics.SHOWN[task][0]
    results[name] = {figure: baseline.figures[figure] for figure in metrics.SHOWN[task]}
    results["epochs"] = history.epochs
    if history.epochs:
        lines = {"chance": results["chance"][first]} if "chance" in results else {}
        lines[name.replace("_", " ")] = results[name][first]
        plots.learning_curve(folder / "learning_curve.png", history.epochs, lines)
    figure = "f1" if task == "single-label" else first
    plots.label_bars(
        folder / "labels.png",
        [row["label"] for row in results["per_label"]],
        {
            "model": module.evaluation.per_label[figure],
            name.replace("_", " "): baseline.per_label[figure],
        },
        f"{metrics.FIGURE_NAMES[figure]} on the validation split",
    )
    return results


def _provenance(
    config: dict[str, Any],
    checkpoint: Checkpoint | None,
    data: MaestDataModule,
    results: dict[str, Any],
) -> dict[str, Any]:
    """What a model folder says of its making; names, not paths: it is made to be passed on."""
    groundtruth, started_from = data.groundtruth("train"), config["maest"]["checkpoint"]
    if started_from is not None:
        started_from = "/".join(Path(started_from).parts[-3:])
    elif checkpoint is not None:
        started_from = checkpoint.arch
    licence = checkpoint.licence if checkpoint else None
    return {
        "groundtruth": "/".join(groundtruth.path.parts[-2:]),
        "tracks": len(groundtruth),
        "started_from": started_from,
        # Share alike: what is made of such weights has their licence.
        **({"licence": licence} if licence and "-SA-" in licence else {}),
        "seed": config["seed"],
        "steps": results["best_steps"],
        "epoch": results["best_epoch"],
        **{f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[data.task]},
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


def _in_words(task: str, figures: dict[str, float]) -> str:
    return ", ".join(f"{metrics.FIGURE_NAMES[n]} {figures[n]:.4f}" for n in metrics.SHOWN[task])


def _report(results: dict[str, Any], task: str, folder: Path, model: Path) -> None:
    rows = {"model": {name: results[f"val_{name}"] for name in metrics.SHOWN[task]}}
    rows[metrics.BASELINES[task].replace("_", " ")] = results[metrics.BASELINES[task]]
    if "chance" in results:
        rows["chance"] = results["chance"]
    names = [metrics.FIGURE_NAMES[name] for name in metrics.SHOWN[task]]
    lines = [f"  {'':19s}" + "".join(f"{name:>9s}" for name in names)]
    lines += [
        f"  {row:19s}" + "".join(f"{figures[name]:9.4f}" for name in metrics.SHOWN[task])
        for row, figures in rows.items()
    ]
    left_out = next(int(v) for k, v in results.items() if k.endswith("_left_out"))
    print(
        f"\nvalidation, {results['val_tracks']} tracks, best epoch {results['best_epoch']}:\n"
        + "\n".join(lines)
        + f"\n({left_out} {'targets' if task == 'regression' else 'labels'} left out, as they "
        f"cannot be scored; {results['steps']} steps in {results['seconds']:.0f} s)\n"
        f"learning curve: {folder / 'learning_curve.png'}\n"
        f"per label:      {folder / 'labels.png'}\n"
        f"model folder:   {model}"
    )


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, settings.SECTION_ALIASES))
