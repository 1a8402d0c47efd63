"""Pre-train or fine-tune MAEST, evaluate it, extract and predict with it, hand it on.

python ex_maest.py                                              # pre-train
python ex_maest.py with maest_finetune datamodule.groundtruth_train=…
python ex_maest.py test with maest.checkpoint=exp_logs/latest/model
python ex_maest.py extract_embeddings with maest.checkpoint=exp_logs/latest/model inference.audio=…
python ex_maest.py extract_logits with maest.checkpoint=exp_logs/latest/model inference.audio=…
python ex_maest.py predict with maest.arch=maest-tiny-scores inference.audio=song.mp3
python ex_maest.py export with maest.checkpoint=exp_logs/latest/model export.format=onnx
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import maest.config as settings
from maest.datasets.groundtruth import read_labels, write_labels
from maest.experiments.extract import extract
from maest.experiments.runs import (
    LOG_DIR,
    Experiment,
    command,
    configure,
    run_command_line,
    run_dir,
)
from maest.experiments.setup import (
    check_head,
    check_label_names,
    in_section,
    needed_checkpoint,
    network_options,
)
from maest.helpers.chunks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.settings import check_choice
from maest.models import get_maest, licences
from maest.models.archs import clip_seconds
from maest.models.huggingface import export_huggingface
from maest.models.onnx_export import export_onnx
from maest.models.saving import save_safetensors

log = logging.getLogger(__name__)

ex = Experiment("maest", save_git_info=False)
configure(
    ex,
    settings.Settings,
    settings.MAEST_NAMED,
    settings.SENTENCES,
    unrecorded=("extract_embeddings", "extract_logits", "predict", "export"),
)

FORMATS = ("huggingface", "onnx", "safetensors")


# ---------------------------------------------------------------- commands


@command(ex, main=True)
def pretrain(run, settings) -> dict[str, Any]:
    """Train on datamodule.groundtruth_train, validate each epoch, write a model folder."""
    from maest.experiments import pretrain as experiment

    return experiment.pretrain(run_dir(run), settings, run.log_scalar)


@command(ex, unobserved=True)
def print_plan(run, settings) -> None:
    """Show what pretrain would do with these settings: model, data, batches, steps, device."""
    from maest.experiments import pretrain as experiment

    experiment.print_plan(settings, LOG_DIR)


@command(ex)
def test(run, settings) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."""
    from maest.experiments import evaluate

    return evaluate.test(run_dir(run), settings)


@command(ex)
def check_data(run, settings) -> dict[str, Any]:
    """Look at all ground truths and files for what would stop a training, or spoil it."""
    from maest.experiments import evaluate

    return evaluate.check_data(run_dir(run), settings)


@command(ex)
def compute_norm_stats(run, settings) -> dict[str, Any]:
    """Mean and standard deviation of all log-mel values of datamodule.groundtruth_train."""
    from maest.experiments import evaluate

    return evaluate.compute_norm_stats(run_dir(run), settings)


@command(ex)
def extract_embeddings(_run, _config) -> dict[str, Any]:
    """Write embeddings for each track of inference.audio, or of datamodule.groundtruth_predict."""
    return extract(_run, _config, "embeddings")


@command(ex)
def extract_logits(_run, _config) -> dict[str, Any]:
    """Write logits, before the sigmoid, for each track of inference.audio, or of log-mel files."""
    return extract(_run, _config, "logits")


@command(ex)
def predict(_run, _config) -> dict[str, Any]:
    """Write the top labels of each track of inference.audio, and of its patches: JSON, CSV."""
    return extract(_run, _config, "predictions")


@command(ex)
def export(_run, _config) -> dict[str, Any]:
    """Write maest.checkpoint for other programs: transformers, ONNX runtimes, or one file."""
    config, options = _config, _config["export"]
    check_choice("export.format", options["format"], FORMATS)
    for name, off in (("with_frontend", False), ("blocks", None)):
        if options["format"] != "onnx" and options[name] != off:
            raise InputError(
                f"it does not go with export.format={options['format']}",
                kind="conflict",
                hint="Leave it out, or set export.format=onnx.",
                setting=f"export.{name}",
            )
    checkpoint = needed_checkpoint(config)
    network = network_options(config, checkpoint)
    check_label_names(network, checkpoint.sizes.get("n_classes"), config)
    with in_section("maest"):
        net = get_maest(checkpoint=checkpoint, **network)
    check_head(checkpoint, net)
    if options["out_dir"] is None:
        raise InputError(
            "no folder is given",
            kind="missing",
            hint="Give one, such as export.out_dir=export.",
            setting="export.out_dir",
        )
    folder = Path(str(options["out_dir"])).expanduser()
    licence = licences.chosen(options["licence"], checkpoint.licence)
    # Of two sets of weights, one is exported.
    trained_on = {name: v for name, v in checkpoint.trained_on.items() if name != "swa"}
    trained_on |= {"licence": licence} if licence else {}
    notes: list[str] = []
    labels = folder / "labels.json"
    if options["format"] == "huggingface":
        written = folder
        notes = export_huggingface(
            folder, net, arch=checkpoint.arch, trained_on=trained_on, licence=licence
        )
    elif options["format"] == "onnx":
        written = folder / "model.onnx"
        _check_labels_file(labels, net.labels, written)
        blocks = options["blocks"]
        if blocks is None:
            given = config["inference"]["transformer_block"]
            blocks = chosen_blocks(given, net.depth, "inference.transformer_block")
        with in_section("export"):
            export_onnx(
                written,
                net,
                blocks,
                with_frontend=options["with_frontend"],
                metadata={
                    "arch": checkpoint.arch or "",
                    "licence": licence or "",
                    "parents": json.dumps(trained_on.get("parents", []), ensure_ascii=False),
                },
            )
        notes = [
            f"It takes up to {clip_seconds(net.input_t):g} s at a time (max_frames in its "
            "metadata): cut longer tracks into patches, and average what they give."
        ]
    else:
        written = folder / "model.safetensors"
        _check_labels_file(labels, net.labels, written)
        save_safetensors(written, net, checkpoint.arch, trained_on)
        if net.kept_columns is not None or net.kept_rows is not None:
            notes = ["Patchout is a setting of a run: the file does not carry it."]
    if options["format"] != "huggingface" and net.labels:
        write_labels(labels, net.labels)
    for note in notes:
        log.warning(note)
    print(f"written: {written}")
    return {"written": str(written)}


# ---------------------------------------------------------------- their parts


def _check_labels_file(path: Path, labels: list[str] | None, model: Path) -> None:
    """Refuse to replace labels that are not of an older export of the same kind."""
    if not labels or not path.exists() or model.exists():
        return
    with suppress(InputError):
        if read_labels(path) == labels:
            return
    raise InputError(
        "there are other labels in it",
        kind="exists",
        hint="Choose another export.out_dir, or move the file away.",
        path=path,
    )


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, settings.SECTION_ALIASES))
