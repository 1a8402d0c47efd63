"""Named configs: the settings that each changes, and a sentence on its purpose."""

from pathlib import Path
from typing import Any

from maest.config.settings import DATASETS, RECORDINGS, SCORES
from maest.helpers.audio.constants import NORM_MEAN, NORM_STD

Sections = dict[str, dict[str, Any]]
MAEST: dict[str, Sections] = {}
TL: dict[str, Sections] = {}
SENTENCES: dict[str, str] = {}


def _add(name: str, sentence: str, *parts: Sections) -> None:
    """Register a named config (for ex_tl.py: …_tl), merged from parts; later parts win."""
    table = TL if name.endswith("_tl") else MAEST
    settings: Sections = {}
    for part in parts:
        for section, values in part.items():
            settings[section] = settings.get(section, {}) | values
    table[name], SENTENCES[name] = settings, sentence


def _splits(folder: Path) -> dict[str, str]:
    names = {"train": "train", "val": "validation", "test": "test"}
    return {f"groundtruth_{n}": str(folder / f"groundtruth-{s}.pk") for n, s in names.items()}


# ---------------------------------------------------------------- recipes

_PAPER: Sections = {
    "datamodule": {"batch_size_train": 12, "clips_per_epoch": 200_000, "balanced_sampling": True},
    "maest": {"norm_mean": NORM_MEAN, "norm_std": NORM_STD},
    "module": {
        **{"lr": 2e-5, "weight_decay": 1e-4, "betas": [0.9, 0.999]},
        **{"warmup_epochs": 5, "ramp_start": 50, "ramp_end": 100, "last_lr_factor": 0.01},
        **{"lr_interval": "epoch", "swa_start": 50},
        **{"mixup_alpha": 0.3, "time_masks": 20, "freq_masks": 8},
    },
    "trainer": {"max_epochs": 130},
}
_FINETUNE: Sections = {
    "datamodule": {"batch_size_train": 8, "clips_per_epoch": None},
    "module": {
        # Of the head; the first block's is 3 % of it. Chosen on small models that were trained
        # here for minutes: with 3e-4 they learn the embedded set's instruments much more slowly.
        **{"lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.999], "layer_decay": 0.75},
        **{"warmup_epochs": 1, "ramp_start": 1, "ramp_end": 10, "last_lr_factor": 0.01},
        "lr_interval": "step",
    },
    "trainer": {"max_epochs": 10},
}
_add(
    "paper_recipe",
    "The recipe of the paper's code; arch, clip length, patchout and data are yours to name.",
    _PAPER,
)
_add(
    "maest_finetune",
    "Fine-tune maest.checkpoint, or the released maest.arch, on your own ground truth.",
    *(_FINETUNE, {"maest": {"pretrained": True}}),  # weights are wanted
)
_add(
    "scores_pretrain",
    "Pre-train on the embedded data set alone, once it has all works: "
    "datasets/scores/preprocess.py --works all --renditions 4 --clip-seconds 10.",
    {
        "datamodule": {
            **_splits(SCORES / "tags"),
            **{"batch_size_train": 16, "clips_per_epoch": 8000, "balanced_sampling": True},
        },
        "maest": {"s_patchout_t": 22},
        "module": {"warmup_epochs": 0.5, "ramp_start": 7, "ramp_end": 18, "swa_start": 13},
        "trainer": {"max_epochs": 18},
    },
)
_add(
    "scores_demo",
    "The minutes of training of `make demo`, on the embedded data set's tags.",
    {
        "datamodule": {**_splits(SCORES / "tags"), "clip_length": 5, "clips_per_epoch": 2000},
        "maest": {"s_patchout_t": 22},  # of 30 columns: half the arithmetic of the default
        "module": {"ramp_start": 0.5, "ramp_end": 2},
        "trainer": {"max_epochs": 2},
    },
)

_add(
    "music_pretrain",
    "The recipe behind maest-tiny-music, on a set of datasets/recordings/preprocess.py: performed "
    "scores and recordings.",
    {
        "datamodule": {
            **_splits(RECORDINGS / "tags"),
            "base_dir": str(RECORDINGS / "melspectrograms"),
            "window_targets": str(RECORDINGS / "windows"),
            **{"clip_length": 10, "short_clips": 5, "batch_size_train": 32},
            # Not by label: tracks without one, as speech, would hardly be drawn.
            **{"clips_per_epoch": 12_800, "by_length": True},
        },
        "maest": {"s_patchout_t": 46},
        "module": {
            **{"warmup_epochs": 0.5, "ramp_start": 3, "ramp_end": 8},
            **{"gain": 6, "tilt": 9, "pitch_shift": 0.5, "tempo_shift": 0.08, "blank_share": 0.03},
            **{"band_limit_share": 0.25, "noise_share": 0.3, "noise_snr": 10, "reverb_share": 0.3},
        },
        "trainer": {"max_epochs": 8},
    },
)

# ---------------------------------------------------------------- the family

_DEIT, _PASST = "passt_deit_bd_p16_384", "passt_s_swa_p16_128_ap476"
_START = {"maest_base": "random weights", _DEIT: "the DeiT weights", _PASST: "the PaSST weights"}
# The paper's models: seconds of a clip, start of training, released model, names.
_FAMILY: list[tuple[int, str, str, list[str]]] = [
    (10, "maest_base", "discogs-maest-10s-fs-129e", ["maest_10s_random_weights"]),
    (10, _DEIT, "discogs-maest-10s-dw-75e", ["maest_10s_from_deit"]),
]
_names = ["maest_30s_teacher_student", "maest_30s_from_passt_teacher_student"]
_FAMILY.append((30, _PASST, "discogs-maest-30s-pw-73e-ts", _names))
for _s in (5, 10, 20, 30):
    _names = [f"maest_{_s}s_from_passt", f"maest_discogs_{_s}sec", f"maest_discogs_{_s}s"]
    _FAMILY.append((_s, _PASST, f"discogs-maest-{_s}s-pw-129e", _names))

for _s, _start, _released, _names in _FAMILY:
    _length: Sections = {"datamodule": {"clip_length": _s}}
    _half: Sections = {"maest": {"s_patchout_t": 3 * _s}}  # of the columns, about, are dropped
    _teacher: Sections = {}
    _targets = ""
    if "teacher" in _names[0]:
        _targets = ", with a teacher's logits as targets of the second head"
        _teacher = {
            "datamodule": {"batch_size_train": 4, "teacher_dir": "embeddings/30sec/logits"},
            "maest": {"distilled_type": "separated"},
        }
    _add(
        f"{_names[0]}_pretrain",
        f"Pre-train on clips of {_s} s from {_START[_start]}, by the paper's recipe{_targets}.",
        *(_PAPER, _length, _half, {"maest": {"arch": _start}}, _teacher),
    )
    _add(
        f"{_names[0]}_inference",
        f"Use {_released}, or your maest.checkpoint, on patches of {_s} s; embeddings of block 7.",
        *(_length, {"maest": {"arch": _released}}),
    )
    _add(
        f"{_names[0]}_finetune",
        f"Fine-tune {_released}, or your maest.checkpoint, on clips of {_s} s of your own ground "
        "truth.",
        # A larger network, trained for longer, takes a smaller rate.
        *(_FINETUNE, _length, _half, {"maest": {"arch": _released}}, {"module": {"lr": 3e-4}}),
    )
    for _kind in ("pretrain", "inference", "finetune"):
        _first = f"{_names[0]}_{_kind}"
        _others = [f"{_name}_{_kind}" for _name in _names[1:]]
        if _kind == "inference":
            _others += [f"{_name}_infer" for _name in _names]
        for _name in _others:
            _add(_name, f"The same as {_first}.", MAEST[_first])

# ---------------------------------------------------------------- data sets

# name → description, and folder of its ground truths
_TARGETS = {
    "scores": ("instruments on the embedded data set", SCORES / "instrument"),
    "mtt": ("tags of MagnaTagATune", DATASETS / "mtt"),
    "jamendo_genre": ("genres of MTG-Jamendo", DATASETS / "jamendo/genre"),
    "jamendo_instrument": ("instruments of MTG-Jamendo", DATASETS / "jamendo/instrument"),
    "jamendo_moodtheme": ("moods and themes of MTG-Jamendo", DATASETS / "jamendo/moodtheme"),
    "jamendo_top50": ("the 50 most frequent tags of MTG-Jamendo", DATASETS / "jamendo/top50"),
    "custom": ("your own labels, in datasets/custom", DATASETS / "custom"),
}
for _name, (_what, _folder) in _TARGETS.items():
    # The four tasks of MTG-Jamendo share tracks, and so their embeddings.
    _shared = _folder.parent if _folder.parent in (SCORES, DATASETS / "jamendo") else _folder
    _base = {"base_dir": str(_shared / "melspectrograms")}
    _embeddings = f"embeddings/{_name.partition('_')[0]}"
    # Hundreds of tracks are few steps: with the default rate and batch a probe learns nothing.
    # Chosen on the validation split, over embeddings and mel statistics alike.
    _probe: Sections = {"probe": {"lr": 3e-3, "batch_size": 32}} if _name == "scores" else {}
    _add(
        f"target_{_name}",
        f"Extract for the downstream task: {_what}.",
        {"datamodule": {"groundtruth_predict": str(_folder / "groundtruth-all.pk")} | _base},
        {"inference": {"out_dir": _embeddings}},
    )
    _add(
        f"target_{_name}_tl",
        f"Probe the embeddings that target_{_name} has extracted: {_what}.",
        {"data": {"embeddings_dir": _embeddings} | _splits(_folder) | _base},
        _probe,
    )
