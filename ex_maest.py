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

from maest.config import MAEST_NAMED, SECTION_ALIASES, Settings
from maest.experiments.runs import Command, Experiment, configure, run_command_line

COMMANDS = {
    "pretrain": Command(
        "pretrain",
        "Train on datamodule.groundtruth_train, validate each epoch, write a model folder.",
    ),
    "print_plan": Command(
        "pretrain",
        "Show what pretrain would do with these settings: model, data, batches, steps, device.",
        record="never",
    ),
    "test": Command(
        "evaluate", "Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."
    ),
    "check_data": Command(
        "data",
        "Look at all ground truths and files for what would stop a training, or spoil it.",
    ),
    "compute_norm_stats": Command(
        "data",
        "Mean and standard deviation of all log-mel values of datamodule.groundtruth_train.",
    ),
    "extract_embeddings": Command(
        "extract",
        "Write embeddings for each track of inference.audio, or of datamodule.groundtruth_predict.",
        record="optional",
    ),
    "extract_logits": Command(
        "extract",
        "Write logits, before the sigmoid, for each track of inference.audio, or of log-mel files.",
        record="optional",
    ),
    "predict": Command(
        "extract",
        "Write the top labels of each track of inference.audio, and of its patches: JSON, CSV.",
        record="optional",
    ),
    "export": Command(
        "export",
        "Write maest.checkpoint for other programs: transformers, ONNX runtimes, or one file.",
        record="optional",
    ),
}
ex = Experiment("maest", save_git_info=False)
configure(ex, Settings, MAEST_NAMED, COMMANDS, SECTION_ALIASES)

if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv))
