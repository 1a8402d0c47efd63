"""The data. By default the embedded data set, which is built where it is missing."""

from maest.helpers.data_folder import data_folder

DATASETS = data_folder()
SCORES = DATASETS / "scores" / "data"

DEFAULTS = {
    "groundtruth_train": str(SCORES / "style" / "groundtruth-train.pk"),
    "groundtruth_val": str(SCORES / "style" / "groundtruth-validation.pk"),
    "groundtruth_test": str(SCORES / "style" / "groundtruth-test.pk"),
    "groundtruth_predict": str(SCORES / "style" / "groundtruth-all.pk"),
    "base_dir": str(SCORES / "melspectrograms"),  # what the ground truths' paths are relative to
    "teacher_dir": None,  # teacher-student: the folder of the teacher's logits (extract_logits)
    "clip_length": None,  # seconds; the checkpoint's, or else 5
    "batch_size_train": 8,  # clips
    "batch_size_eval": 8,  # whole tracks
    "clips_per_epoch": 2400,  # random crops; None: one of each track
    "balanced_sampling": False,  # draw clips with rare labels more often
    # A file that cannot be read: "raise" ends the run, "skip" goes on without it, in training with
    # a clip drawn evenly from all tracks in its place
    "on_error": "raise",
    "num_workers": None,  # reading processes; none without a GPU, else one a core, at most 12
}
