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

import sys
from typing import Any

from maest.config import MAEST_NAMED, SECTION_ALIASES, Settings
from maest.experiments.runs import (
    LOG_DIR,
    Experiment,
    Run,
    command,
    configure,
    run_command_line,
    run_dir,
)

# What a command needs is imported in it: what was typed is checked before, and without torch.
ex = Experiment("maest", save_git_info=False)
# These go on where no run can be recorded: their results are elsewhere.
GO_ON = ("extract_embeddings", "extract_logits", "predict", "export")
configure(ex, Settings, MAEST_NAMED, unrecorded=GO_ON)


@command(ex, main=True)
def pretrain(run: Run, settings: Settings) -> dict[str, Any]:
    """Train on datamodule.groundtruth_train, validate each epoch, write a model folder."""
    from maest.experiments import pretrain as experiment

    return experiment.pretrain(run_dir(run), settings, run.log_scalar)


@command(ex, unobserved=True)
def print_plan(run: Run, settings: Settings) -> None:
    """Show what pretrain would do with these settings: model, data, batches, steps, device."""
    from maest.experiments import pretrain as experiment

    experiment.print_plan(settings, LOG_DIR)


@command(ex)
def test(run: Run, settings: Settings) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."""
    from maest.experiments import evaluate

    return evaluate.test(run_dir(run), settings)


@command(ex)
def check_data(run: Run, settings: Settings) -> dict[str, Any]:
    """Look at all ground truths and files for what would stop a training, or spoil it."""
    from maest.experiments import evaluate

    return evaluate.check_data(run_dir(run), settings)


@command(ex)
def compute_norm_stats(run: Run, settings: Settings) -> dict[str, Any]:
    """Mean and standard deviation of all log-mel values of datamodule.groundtruth_train."""
    from maest.experiments import evaluate

    return evaluate.compute_norm_stats(run_dir(run), settings)


@command(ex)
def extract_embeddings(run: Run, settings: Settings) -> dict[str, Any]:
    """Write embeddings for each track of inference.audio, or of datamodule.groundtruth_predict."""
    from maest.experiments.extract import extract

    return extract(run, settings, "embeddings")


@command(ex)
def extract_logits(run: Run, settings: Settings) -> dict[str, Any]:
    """Write logits, before the sigmoid, for each track of inference.audio, or of log-mel files."""
    from maest.experiments.extract import extract

    return extract(run, settings, "logits")


@command(ex)
def predict(run: Run, settings: Settings) -> dict[str, Any]:
    """Write the top labels of each track of inference.audio, and of its patches: JSON, CSV."""
    from maest.experiments.extract import extract

    return extract(run, settings, "predictions")


@command(ex)
def export(run: Run, settings: Settings) -> dict[str, Any]:
    """Write maest.checkpoint for other programs: transformers, ONNX runtimes, or one file."""
    from maest.experiments.export import export

    return export(settings)


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, SECTION_ALIASES))
