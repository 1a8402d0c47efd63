"""Named configs: name → the settings it changes, and a sentence that says what it is for."""

from __future__ import annotations

from typing import Any

from maest.config.settings import DATASETS, SCORES

Sections = dict[str, dict[str, Any]]
MAEST: dict[str, Sections] = {}
TL: dict[str, Sections] = {}
SENTENCES: dict[str, str] = {}


def _add(table: dict[str, Sections], name: str, sentence: str, *parts: Sections) -> None:
    """Enter a named config, made of one or more dicts of sections; later ones win."""
    settings: Sections = {}
    for part in parts:
        for section, values in part.items():
            settings[section] = settings.get(section, {}) | values
    table[name], SENTENCES[name] = settings, sentence


# ---------------------------------------------------------------- recipes

_PAPER: Sections = {
    "datamodule": {"batch_size_train": 12, "clips_per_epoch": 200_000, "balanced_sampling": True},
    # What the released models were trained on.
    "maest": {"norm_mean": 2.06755686098554, "norm_std": 1.268292820667291},
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
    *(MAEST, "paper_recipe"),
    "The recipe of the paper's code; arch, clip length, patchout and data are yours to name.",
    _PAPER,
)
_add(
    *(MAEST, "maest_finetune"),
    "Fine-tune maest.checkpoint, or the released maest.arch, on your own ground truth.",
    *(_FINETUNE, {"maest": {"pretrained": True}}),  # weights are wanted
)
_add(
    *(MAEST, "scores_pretrain"),
    "How maest-tiny-scores was trained, once the embedded data set has all works: "
    "datasets/scores/preprocess.py --works all --renditions 4 --clip-seconds 10.",
    {
        "datamodule": {
            "groundtruth_train": str(SCORES / "tags" / "groundtruth-train.pk"),
            "groundtruth_val": str(SCORES / "tags" / "groundtruth-validation.pk"),
            "groundtruth_test": str(SCORES / "tags" / "groundtruth-test.pk"),
            **{"batch_size_train": 16, "clips_per_epoch": 8000, "balanced_sampling": True},
        },
        "maest": {"s_patchout_t": 22},
        "module": {"warmup_epochs": 0.5, "ramp_start": 7, "ramp_end": 18, "swa_start": 13},
        "trainer": {"max_epochs": 18},
    },
)

# ---------------------------------------------------------------- the family

_DEIT, _PASST = "passt_deit_bd_p16_384", "passt_s_swa_p16_128_ap476"
_START = {"maest_base": "random weights", _DEIT: "the DeiT weights", _PASST: "the PaSST weights"}
# A teacher's logits of the training clips: what extract_logits writes.
_TEACHER_STUDENT: Sections = {
    "datamodule": {"batch_size_train": 4, "teacher_dir": "embeddings/30sec/logits"},
    "maest": {"distilled_type": "separated"},
}
# The paper's models: seconds of a clip, what training starts from, the released model, names.
_FAMILY: list[tuple[int, str, str, list[str]]] = [
    (10, "maest_base", "discogs-maest-10s-fs-129e", ["maest_10s_random_weights"]),
    (10, _DEIT, "discogs-maest-10s-dw-75e", ["maest_10s_from_deit"]),
    (
        *(30, _PASST, "discogs-maest-30s-pw-73e-ts"),
        ["maest_30s_teacher_student", "maest_30s_from_passt_teacher_student"],
    ),
]
for _s in (5, 10, 20, 30):
    _names = [f"maest_{_s}s_from_passt", f"maest_discogs_{_s}sec", f"maest_discogs_{_s}s"]
    _FAMILY.append((_s, _PASST, f"discogs-maest-{_s}s-pw-129e", _names))

for _seconds, _start, _released, _names in _FAMILY:
    _teacher = _TEACHER_STUDENT if "teacher_student" in _names[0] else {}
    _length: Sections = {"datamodule": {"clip_length": _seconds}}
    # About half of the columns are dropped.
    _clips: Sections = _length | {"maest": {"s_patchout_t": 3 * _seconds}}
    _kinds: dict[str, tuple[str, list[Sections]]] = {
        "pretrain": (
            f"Pre-train on clips of {_seconds} s from {_START[_start]}, by the paper's recipe"
            + (", with a teacher's logits as targets of the second head." if _teacher else "."),
            [_PAPER, _clips, {"maest": {"arch": _start}}, _teacher],
        ),
        "inference": (
            f"Use {_released}, or your maest.checkpoint, on patches of {_seconds} s; "
            "embeddings of block 7.",
            [_length, {"maest": {"arch": _released}}],
        ),
        "finetune": (
            f"Fine-tune {_released}, or your maest.checkpoint, on clips of {_seconds} s of your "
            "own ground truth.",
            # A larger network, trained for longer, is to be moved with more care.
            [_FINETUNE, _clips, {"maest": {"arch": _released}, "module": {"lr": 3e-4}}],
        ),
    }
    for _name in _names:
        for _suffix in ("pretrain", "inference", "infer", "finetune"):
            _kind = "inference" if _suffix == "infer" else _suffix
            _sentence, _parts = _kinds[_kind]
            if f"{_name}_{_suffix}" != (_first := f"{_names[0]}_{_kind}"):
                _sentence = f"The same as {_first}."
            _add(MAEST, f"{_name}_{_suffix}", _sentence, *_parts)

# ---------------------------------------------------------------- data sets

# name → what it is, and where its ground truths are
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
    # Hundreds of tracks are few steps: the recipe's own rate and batch do not get anywhere.
    # Chosen on the validation split, over embeddings and mel statistics alike.
    _probe: Sections = {"probe": {"lr": 3e-3, "batch_size": 32}} if _name == "scores" else {}
    # The four tasks of MTG-Jamendo share tracks, and so their embeddings.
    _shared = _folder.parent if _folder.parent in (SCORES, DATASETS / "jamendo") else _folder
    _embeddings = f"embeddings/{_name.partition('_')[0]}"
    _paths = {
        f"groundtruth_{short}": str(_folder / f"groundtruth-{split}.pk")
        for short, split in {"train": "train", "val": "validation", "test": "test"}.items()
    }
    _base = {"base_dir": str(_shared / "melspectrograms")}
    _add(
        *(MAEST, f"target_{_name}"),
        f"Extract for the downstream task: {_what}.",
        {"datamodule": {"groundtruth_predict": str(_folder / "groundtruth-all.pk")} | _base},
        {"inference": {"out_dir": _embeddings}},
    )
    _add(
        *(TL, f"target_{_name}_tl"),
        f"Probe the embeddings that target_{_name} has extracted: {_what}.",
        {"data": {"embeddings_dir": _embeddings} | _paths | _base},
        _probe,
    )
