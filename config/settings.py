"""The settings of `ex_maest.py`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from maest.config.schema import setting
from maest.helpers.files.data_folder import data_folder

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Task = Literal["multi-label", "single-label", "regression"]
DATASETS = data_folder()
SCORES = DATASETS / "scores" / "data"
RECORDINGS = DATASETS / "recordings" / "data"
SEED = "of all random draws: the same seed, data and machine give the same run"
SEEDS = ">= 0, <= 4294967295"  # what NumPy takes
DEVICE = "auto: a GPU if there is one"
# Bounds. Upper ones are far beyond useful values; those of sizes near what fits into memory.
FROM_0, FROM_1, SIZE = ">= 0, <= 1e9", ">= 1, <= 1e9", ">= 1, <= 1e6"
SHARE, PART = ">= 0, < 1", ">= 0, <= 1"
DECIBELS = ">= 0, <= 60"
CLIP = ">= 0.26, <= 3600"  # seconds
# Values where neither the settings nor a checkpoint decide.
DEFAULT_ARCH, DEFAULT_CLIP_LENGTH = "maest_tiny", 5
_FROM_IT = "the checkpoint's"
_STYLE = f"{SCORES}/style/groundtruth"
_BATCHES = "a number of batches, or a share from 0.0 to 1.0"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network and its weights; patchout is drawn for each batch in training."""

    arch: str | None = setting(
        None, f"a size or a model of models/archs.py; auto: {_FROM_IT}, else {DEFAULT_ARCH}"
    )
    pretrained: bool | None = setting(
        None,
        "start from the arch's published weights, downloaded once; auto: where it has any",
        tags="weights",
    )
    checkpoint: str | None = setting(
        None,
        "instead of them: a model folder (exp_logs/<id>/model), a folder from the model hub, or a "
        "file of MAEST, PaSST or DeiT weights",
        tags="weights",
    )
    checkpoint_swa_weights: bool | None = setting(
        None, "take a checkpoint's averaged weights; auto: where it has any", tags="weights"
    )
    checkpoint_discard_head: bool = setting(
        False, "a new head, even if the checkpoint's would fit", tags="weights"
    )
    labels: str | None = setting(
        None, "file of label names, for weights that carry none: a JSON list, or lines of text"
    )
    task: Task | None = setting(
        None, f"any of the labels, exactly one, or numbers; auto: {_FROM_IT}, else multi-label"
    )
    n_classes: int | None = setting(None, f"labels; auto: {_FROM_IT}, else the data's", SIZE)
    input_t: int | None = setting(None, f"frames; auto: {_FROM_IT}, else a clip's", ">= 16, <= 1e6")
    distilled_type: Literal["mean", "separated"] | None = setting(
        None, f"one head, or one each for cls and dist; auto: {_FROM_IT}, else mean"
    )
    norm_mean: float | None = setting(
        None,
        f"the input is (x - norm_mean) / (2 norm_std); auto: {_FROM_IT}, else measured on the data",
        ">= -1e6, <= 1e6",
    )
    norm_std: float | None = setting(None, "see norm_mean; auto: see norm_mean", "> 0, <= 1e6")
    # The grid of a 5 s clip has 9 rows and 30 columns.
    s_patchout_t: int | None = setting(
        None,
        "time columns dropped in training; auto: 3 a second, about half, as in the paper; 0 "
        "where some are dropped always",
        FROM_0,
        tags="training",
    )
    s_patchout_f: int = setting(0, "frequency rows dropped in training", FROM_0, tags="training")
    u_patchout: int = setting(0, "single patches dropped in training", FROM_0, tags="training")
    # At inference they save time by the share of tokens, and more where inputs are long.
    s_patchout_t_indices: tuple[int, ...] = setting(
        (), "time columns dropped always", FROM_0, tags="results"
    )
    s_patchout_f_indices: tuple[int, ...] = setting(
        (), "frequency rows dropped always", FROM_0, tags="results"
    )
    s_patchout_t_interleaved: int = setting(
        0, "keep every k-th time column, always", FROM_0, tags="results"
    )
    s_patchout_f_interleaved: int = setting(
        0, "keep every k-th frequency row, always", FROM_0, tags="results"
    )
    drop_rate: float = setting(0.0, "dropout after projections", SHARE, tags="training")
    attn_drop_rate: float = setting(0.0, "dropout of attention weights", SHARE, tags="training")
    drop_path_rate: float = setting(0.0, "stochastic depth, last block", SHARE, tags="training")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW and its learning-rate schedule, shared by training and probes."""

    lr: float = setting(1e-3, "learning rate of AdamW", "> 0, <= 1e38")
    weight_decay: float = setting(0.05, "of AdamW", FROM_0)
    warmup_epochs: float = setting(0.4, "the rate rises, exponentially", FROM_0)
    ramp_start: float = setting(1.0, "epoch from which it falls, linearly", FROM_0)
    ramp_end: float = setting(4.0, "epoch at which it has fallen", FROM_0)
    last_lr_factor: float = setting(0.01, "to this share of lr", FROM_0)

    def factor(self, epoch: float) -> float:
        """Return the rate's share of ``lr`` after a number of epochs, which may be a fraction.

        The warm-up is exp(-5 (1 - e/W)²) over W epochs, with e at least 0.5 (S. Laine & T. Aila,
        "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, as used by PaSST and MAEST).
        The ramp is at its end at once if ``ramp_end`` is no later than ``ramp_start``.
        """
        warmup = 1.0
        if epoch < self.warmup_epochs and self.warmup_epochs > 0.5:
            warmup = math.exp(-5 * (1 - max(epoch, 0.5) / self.warmup_epochs) ** 2)
        if epoch <= self.ramp_start:
            return warmup
        if epoch >= self.ramp_end:
            return warmup * self.last_lr_factor
        done = (epoch - self.ramp_start) / (self.ramp_end - self.ramp_start)
        return warmup * (1 + done * (self.last_lr_factor - 1))


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """Optimiser, schedule and augmentation.

    The defaults suit minutes of training from random weights, in which mixup and SpecAugment slow
    learning (validation of the embedded set). `paper_recipe` has the paper's values.
    """

    betas: tuple[float, float] = setting((0.9, 0.95), "of AdamW", SHARE)
    lr_interval: Literal["step", "epoch"] = setting("step", "when the rate changes")
    swa_start: int | None = setting(
        None, "average the weights of all epochs after so many; None: no average", FROM_0
    )
    swa_lr: float | None = setting(None, "rate after swa_start; None: the schedule's", FROM_0)
    mixup_alpha: float = setting(0.0, "of mixup's beta distribution; 0: no mixup", FROM_0)
    roll: int = setting(0, "rotate each clip in time, by at most so many frames; PaSST: 50", FROM_0)
    time_masks: int = setting(0, "SpecAugment: masks in time", ">= 0, <= 1000")
    time_mask_width: int = setting(8, "masks have fewer frames than this", FROM_0)
    freq_masks: int = setting(0, "SpecAugment: masks in frequency", ">= 0, <= 1000")
    freq_mask_width: int = setting(5, "masks have fewer mel bands than this", FROM_0)
    gain: float = setting(0.0, "make each clip louder or softer, by at most so many dB", DECIBELS)
    tilt: float = setting(0.0, "tilt its spectrum, by at most so many dB over all bands", DECIBELS)
    band_limit_share: float = setting(
        0.0,
        "share of clips with a low-pass at 3.5 to 7.5 kHz, and with a high-pass below 400 Hz",
        PART,
    )
    noise_share: float = setting(0.0, "share of clips with noise of any colour", PART)
    noise_snr: float = setting(
        10.0, "its lowest signal-to-noise ratio, in dB; the highest is 40", ">= -20, <= 40"
    )
    reverb_share: float = setting(0.0, "share of clips with a reverberation of 0.1 to 0.8 s", PART)
    pitch_shift: float = setting(
        0.0, "transpose each clip, by at most so many semitones", ">= 0, <= 12"
    )
    tempo_shift: float = setting(
        0.0,
        "change its tempo, by at most so large a share; a faster clip begins again",
        ">= 0, <= 0.5",
    )
    blank_share: float = setting(
        0.0, "share of clips that become silence, tones, clicks or noise, without a label", PART
    )
    layer_decay: float = setting(
        1.0, "fine-tuning: a block learns at so many times the rate of the one above", "> 0, <= 1"
    )
    freeze_blocks: int = setting(0, "first blocks that are not trained, nor what is before", FROM_0)
    teacher_threshold: float = setting(
        0.45, "teacher-student: a teacher's activation that makes a label a target", "> 0, < 1"
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Ground truths, and how they are read."""

    groundtruth_train: str | None = setting(f"{_STYLE}-train.pk", "ground truth to train on")
    groundtruth_val: str | None = setting(f"{_STYLE}-validation.pk", "ground truth to validate on")
    groundtruth_test: str | None = setting(
        f"{_STYLE}-test.pk", "ground truth to test on", tags="free"
    )
    groundtruth_predict: str | None = setting(
        f"{_STYLE}-all.pk", "the tracks to extract, if inference.audio is not set", tags="free"
    )
    base_dir: str = setting(f"{SCORES}/melspectrograms", "what their paths are relative to")
    teacher_dir: str | None = setting(
        None, "teacher-student: a folder of the teacher's logits (extract_logits)"
    )
    window_targets: str | None = setting(
        None,
        "a folder of targets in windows of each track (datasets/recordings), for training clips; "
        "None: the track's",
    )
    clip_length: float | None = setting(
        None, f"seconds of a clip; auto: {_FROM_IT}, else {DEFAULT_CLIP_LENGTH}", CLIP
    )
    short_clips: float | None = setting(
        None,
        "seconds of the clips of half of the batches, drawn at random; None: clip_length",
        CLIP,
    )
    batch_size_train: int = setting(8, "clips in a batch", SIZE)
    batch_size_eval: int = setting(8, "whole tracks in a batch", SIZE, tags="free")
    clips_per_epoch: int | Literal["auto"] | None = setting(
        "auto",
        "random clips of an epoch; auto: 16 of each track, at most 2400; None: one of each track",
        FROM_1,
    )
    balanced_sampling: bool = setting(False, "draw clips with rare labels more often")
    by_length: bool = setting(False, "draw tracks in proportion to their length, with replacement")
    on_error: Literal["raise", "skip"] = setting(
        "raise",
        "skip: go on without a file that cannot be read, in training with another's clip",
        tags="free",
    )
    num_workers: int | None = setting(
        None,
        "processes that read; auto: on CUDA one a core, at most 12 (in extraction on MPS, too); "
        "else none in training and one in extraction",
        ">= 0, <= 1000",
        tags="free",
    )


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Length, devices and records of a run."""

    max_epochs: int = setting(4, "epochs to train", FROM_1, tags="free")
    max_steps: int = setting(
        -1, "steps to train; -1: no limit", ">= -1, <= 1e15, != 0", tags="ours"
    )
    accelerator: Accelerator = setting("auto", DEVICE, tags="free")
    devices: int = setting(
        1,
        "GPUs, or CPU processes, of each machine; -1: all GPUs",
        ">= -1, <= 1000, != 0",
        tags="free",
    )
    num_nodes: int = setting(1, "machines", ">= 1, <= 1e6", tags="free")
    strategy: Literal["auto", "ddp"] = setting(
        "auto", "auto: ddp if several processes train", tags="free ours"
    )
    precision: Precision | None = setting(
        None, "of numbers; auto: 16-mixed on CUDA, else 32-true", tags="results"
    )
    accumulate_grad_batches: int = setting(
        1, "batches of a step; should divide an epoch's: a smaller last step counts less", FROM_1
    )
    gradient_clip_val: float | None = setting(None, "largest norm of a step's gradients", FROM_0)
    check_val_every_n_epoch: int = setting(1, "epochs from one validation to the next", FROM_1)
    limit_train_batches: int | float | None = setting(None, f"{_BATCHES}: training", "> 0, <= 1e9")
    limit_val_batches: int | float | None = setting(None, f"{_BATCHES}: validation", "> 0, <= 1e9")
    limit_test_batches: int | float | None = setting(
        None, f"{_BATCHES}: test", "> 0, <= 1e9", tags="free ours"
    )
    limit_predict_batches: int | float | None = setting(
        None, f"{_BATCHES}: extraction", "> 0, <= 1e9", tags="free ours"
    )
    num_sanity_val_steps: int = setting(
        0, "batches validated first; -1: all", ">= -1, <= 1e9", tags="free"
    )
    log_every_n_steps: int = setting(10, "steps from one record to the next", FROM_1, tags="free")
    checkpoint_minutes: float = setting(
        10.0, "minutes between saves within an epoch", FROM_0, tags="free ours"
    )
    compile: bool | None = setting(
        None, "torch.compile the blocks; auto: on CUDA, if the run is long enough", tags="free ours"
    )
    deterministic: bool | None = setting(None, "of Lightning")
    enable_progress_bar: bool = setting(True, "of Lightning", tags="free ours")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Input, patches and output of extraction."""

    audio: str | None = setting(
        None, "a file or a folder of music; None: the tracks of datamodule.groundtruth_predict"
    )
    max_seconds: float | None = setting(
        None,
        "the central seconds of each audio file, 300 by default in preprocessing; None: all of it",
        FROM_1,
        tags="results",
    )
    outputs: tuple[Literal["embeddings", "logits", "predictions"], ...] | None = setting(
        None, "what one pass writes; auto: the command's own"
    )
    transformer_block: tuple[int, ...] | Literal["all"] | None = setting(
        None,
        "blocks whose embeddings are taken: 0 to 11, or -1 for the one after the final norm; "
        "auto: 7, or the last of a shallower network",
        ">= -1",
        tags="results",
    )
    out_dir: str | None = setting(
        None,
        "folder of <clip_length>sec/ and in it <block>/<key>.embeddings.npy, "
        "logits/<key>.logits.npy, predictions/<key>.predictions.{json,csv,png}; auto: "
        "embeddings/<model>",
    )
    pool: Literal["mean", "none"] = setting(
        "mean",
        "mean over a track's patches, weighted by the seconds that each adds; none: all of them, "
        "and their times in <key>.times.csv",
        tags="results",
    )
    patch_hop: float | None = setting(
        None,
        "seconds from one patch to the next, in frames of 0.016; auto: datamodule.clip_length",
        ">= 0.016, <= 3600",
        tags="results",
    )
    tail: Literal["keep", "drop", "pad"] = setting(
        "keep",
        "what the last whole patch leaves, if it is a second or more; pad: with silence",
        tags="results",
    )
    max_windows: int | None = setting(
        None,
        "patches of a track that are computed, spread evenly over it, for long music; None: all",
        FROM_1,
        tags="results",
    )
    top: int = setting(5, "labels that predict writes and prints", FROM_1, tags="results")
    threshold: float | Literal["auto"] | None = setting(
        "auto",
        "predict: activation from which a label is a tag of a track; auto: each label's own, where "
        "the model has them (calibrate); None: the top labels",
        ">= 0, <= 1",
    )
    plot: bool = setting(False, "predict: draw each track's activations and log-mel")
    engine: Literal["auto", "pytorch", "onnxruntime"] = setting(
        "auto", "what computes the network; auto: onnxruntime on x86 CPUs, else PyTorch"
    )
    quantize: Literal["int8"] | None = setting(
        None, "linear layers in 8 bits, on a CPU", tags="results"
    )
    overwrite: bool = setting(False, "make existing results again")
    shard: str | None = setting(
        None,
        '"3/100": the third of a hundred parts, for job arrays; the files must stay the same. When '
        "all are done, a run without it does what was missed, and joins their lists",
    )
    patches_per_pass: int | None = setting(
        None,
        "patches in a batch; auto: 32 on a GPU, in validation and in test; 4096 tokens on a CPU",
        SIZE,
    )


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model for other programs: the command export."""

    format: Literal["huggingface", "onnx", "safetensors"] = setting("huggingface", "what it is")
    out_dir: str = setting("export", "folder of config.json …, model.onnx or model.safetensors")
    blocks: tuple[int, ...] | None = setting(
        None,
        "onnx: blocks whose embeddings it gives; auto: inference.transformer_block",
        ">= -1",
        only="export.format=onnx",
    )
    with_frontend: bool = setting(
        False, "onnx: take a waveform instead of a log-mel spectrogram", only="export.format=onnx"
    )
    licence: str | None = setting(
        None, "of the weights; auto: that of the weights they were trained from"
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of ex_maest.py."""

    seed: int = setting(0, SEED, SEEDS)
    ckpt_path: str | None = setting(
        None,
        "continue a training: its exp_logs/<id>/checkpoints/last.ckpt, or last for the newest of "
        "the same settings (without one, a new training begins)",
    )
    maest: Network = field(default_factory=Network)
    module: Recipe = field(default_factory=Recipe)
    datamodule: Data = field(default_factory=Data)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    inference: Inference = field(default_factory=Inference)
    export: Export = field(default_factory=Export)
