"""Pre-train or fine-tune MAEST, evaluate it, extract and predict with it, export it.

python ex_maest.py                                              # pre-train
python ex_maest.py with maest_finetune datamodule.groundtruth_train=…
python ex_maest.py test with maest.checkpoint=exp_logs/latest/model
python ex_maest.py calibrate with maest.checkpoint=a/model datamodule.groundtruth_val=…
python ex_maest.py extract_embeddings with maest.checkpoint=exp_logs/latest/model inference.audio=…
python ex_maest.py extract_logits with maest.checkpoint=exp_logs/latest/model inference.audio=…
python ex_maest.py predict with maest.arch=maest-tiny-music inference.audio=song.mp3
python ex_maest.py export with maest.checkpoint=exp_logs/latest/model export.format=onnx
"""

import sys

from maest.config import MAEST_NAMED, SECTION_ALIASES, Settings
from maest.experiments.runs import Experiment, configure, run_command_line

# command → the file of experiments/ with the function of its name, and what it does
COMMANDS = {
    "pretrain": ("pretrain", "Train, validate each epoch, and write a model folder."),
    "print_plan": ("pretrain", "Show what pretrain would do: model, data, steps, device."),
    "test": ("evaluate", "Evaluate maest.checkpoint on datamodule.groundtruth_test."),
    "calibrate": ("evaluate", "Write maest.checkpoint with a threshold for each label's tags."),
    "check_data": ("data", "Look at all data for what would stop a training, or spoil it."),
    "compute_norm_stats": ("data", "Mean and deviation of all log-mel values to train on."),
    "extract_embeddings": ("extract", "Write embeddings of music, or of log-mel files."),
    "extract_logits": ("extract", "Write logits, before the sigmoid, of music or log-mel files."),
    "predict": ("extract", "Write the top labels of tracks and of their patches: JSON, CSV."),
    "export": ("export", "Write the model for transformers, ONNX runtimes, or as one file."),
}
ELSEWHERE = ("extract_embeddings", "extract_logits", "predict", "export")  # where results go
ex = Experiment("maest", save_git_info=False)
configure(ex, Settings, MAEST_NAMED, COMMANDS, aliases=SECTION_ALIASES, elsewhere=ELSEWHERE)

if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv))
