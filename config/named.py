"""Named configs: name → the settings it changes, and a sentence that says what it is for."""

from maest.config.data import DATASETS, SCORES

MAEST: dict[str, dict] = {}
TL: dict[str, dict] = {}
SENTENCES: dict[str, str] = {}


def _add(table: dict[str, dict], name: str, sentence: str, *sections: dict) -> None:
    """Enter a named config, made of one or more dicts of sections; later ones win."""
    settings: dict[str, dict] = {}
    for part in sections:
        for section, values in part.items():
            settings[section] = settings.get(section, {}) | values
    table[name] = settings
    SENTENCES[name] = sentence


# ---------------------------------------------------------------- recipes

# What the released models were trained on.
_NORM = {"norm_mean": 2.06755686098554, "norm_std": 1.268292820667291}

_PAPER = {
    "datamodule": {
        "batch_size_train": 12,
        "clips_per_epoch": 200_000,
        "balanced_sampling": True,
    },
    "maest": _NORM,
    "module": {
        "lr": 2e-5,
        "weight_decay": 1e-4,
        "betas": [0.9, 0.999],
        "warmup_epochs": 5,
        "ramp_start": 50,
        "ramp_end": 100,
        "last_lr_factor": 0.01,
        "lr_interval": "epoch",
        "swa_start": 50,
        "mixup_alpha": 0.3,
        "time_masks": 20,
        "freq_masks": 8,
    },
    "trainer": {"max_epochs": 130},
}
_FINETUNE = {
    "datamodule": {"batch_size_train": 8, "clips_per_epoch": None},
    "module": {
        # Of the head; the first block's is 3 % of it. Chosen on small models that were trained
        # here for minutes: with 3e-4 they learn the embedded set's instruments much more slowly.
        "lr": 1e-3,
        "weight_decay": 0.05,
        "betas": [0.9, 0.999],
        "layer_decay": 0.75,
        "warmup_epochs": 1,
        "ramp_start": 1,
        "ramp_end": 10,
        "last_lr_factor": 0.01,
        "lr_interval": "step",
    },
    "trainer": {"max_epochs": 10},
}

_add(
    MAEST,
    "paper_recipe",
    "The recipe of the paper's code; arch, clip length, patchout and data are yours to name.",
    _PAPER,
)
_add(
    MAEST,
    "maest_finetune",
    "Fine-tune maest.checkpoint, or the released maest.arch, on your own ground truth.",
    _FINETUNE,
    {"maest": {"pretrained": True}},  # weights are wanted
)

_add(
    MAEST,
    "scores_pretrain",
    "How maest-tiny-scores was trained, once the embedded data set has all works: "
    "datasets/scores/preprocess.py --works all --renditions 4 --clip-seconds 10.",
    {
        "datamodule": {
            "groundtruth_train": str(SCORES / "tags" / "groundtruth-train.pk"),
            "groundtruth_val": str(SCORES / "tags" / "groundtruth-validation.pk"),
            "groundtruth_test": str(SCORES / "tags" / "groundtruth-test.pk"),
            "batch_size_train": 16,
            "clips_per_epoch": 8000,
            "balanced_sampling": True,
        },
        "maest": {"s_patchout_t": 22},
        "module": {"warmup_epochs": 0.5, "ramp_start": 7, "ramp_end": 18, "swa_start": 13},
        "trainer": {"max_epochs": 18},
    },
)

# ---------------------------------------------------------------- the family

_DEIT, _PASST = "passt_deit_bd_p16_384", "passt_s_swa_p16_128_ap476"
_START = {
    "maest_base": "random weights",
    _DEIT: "the DeiT weights",
    _PASST: "the PaSST weights",
}

# The paper's models: names → seconds of a clip, what training starts from, the released model.
_FAMILY = [
    (("maest_10s_random_weights",), 10, "maest_base", "discogs-maest-10s-fs-129e"),
    (("maest_10s_from_deit",), 10, _DEIT, "discogs-maest-10s-dw-75e"),
    *(
        (
            (
                f"maest_{seconds}s_from_passt",
                f"maest_discogs_{seconds}sec",
                f"maest_discogs_{seconds}s",
            ),
            *(seconds, _PASST, f"discogs-maest-{seconds}s-pw-129e"),
        )
        for seconds in (5, 10, 20, 30)
    ),
    (
        ("maest_30s_teacher_student", "maest_30s_from_passt_teacher_student"),
        *(30, _PASST, "discogs-maest-30s-pw-73e-ts"),
    ),
]
# Time columns that patchout drops in training: about half.
_PATCHOUT = {5: 15, 10: 30, 20: 60, 30: 90}

_TEACHER_STUDENT = {
    # A teacher's logits of the training clips: what extract_logits writes.
    "datamodule": {"batch_size_train": 4, "teacher_dir": "embeddings/30sec/logits"},
    "maest": {"distilled_type": "separated"},
}


for _names, _seconds, _start, _released in _FAMILY:
    _clips = {
        "datamodule": {"clip_length": _seconds},
        "maest": {"s_patchout_t": _PATCHOUT[_seconds]},
    }
    _teacher = "teacher_student" in _names[0]
    for _name in _names:
        _same = f"The same as {_names[0]}_{{}}." if _name != _names[0] else None
        _add(
            MAEST,
            f"{_name}_pretrain",
            _same.format("pretrain")
            if _same
            else f"Pre-train on clips of {_seconds} s from {_START[_start]}, by the paper's recipe"
            + (", with a teacher's logits as targets of the second head." if _teacher else "."),
            _PAPER,
            _clips,
            {"maest": {"arch": _start}},
            _TEACHER_STUDENT if _teacher else {},
        )
        for _suffix in ("inference", "infer"):
            _add(
                MAEST,
                f"{_name}_{_suffix}",
                f"The same as {_names[0]}_inference."
                if _same or _suffix == "infer"
                else f"Use {_released}, or your maest.checkpoint, on patches of {_seconds} s; "
                "embeddings of block 7.",
                {"datamodule": {"clip_length": _seconds}},
                {"maest": {"arch": _released}},
            )
        _add(
            MAEST,
            f"{_name}_finetune",
            _same.format("finetune")
            if _same
            else f"Fine-tune {_released}, or your maest.checkpoint, on clips of {_seconds} s of "
            "your own ground truth.",
            _FINETUNE,
            _clips,
            # A larger network, trained for longer, is to be moved with more care.
            {"maest": {"arch": _released}, "module": {"lr": 3e-4}},
        )

# ---------------------------------------------------------------- data sets

_MTT, _JAMENDO, _CUSTOM = DATASETS / "mtt", DATASETS / "jamendo", DATASETS / "custom"

# name → what it is, where its ground truths and spectrograms are, and what the probe needs
# otherwise than by default.
_TARGETS = {
    "scores": (
        *("instruments on the embedded data set", SCORES / "instrument"),
        SCORES / "melspectrograms",
        # Hundreds of tracks are few steps: the recipe's own rate and batch do not get anywhere.
        # Chosen on the validation split, over embeddings and mel statistics alike.
        {"probe": {"lr": 3e-3, "batch_size": 32}},
    ),
    "mtt": ("tags of MagnaTagATune", _MTT, _MTT / "melspectrograms", {}),
    **{
        f"jamendo_{task}": (
            *(f"{tags} of MTG-Jamendo", _JAMENDO / task, _JAMENDO / "melspectrograms"),
            {},
        )
        for task, tags in {
            "genre": "genres",
            "instrument": "instruments",
            "moodtheme": "moods and themes",
            "top50": "the 50 most frequent tags",
        }.items()
    },
    "custom": (
        *("your own labels, in datasets/custom", _CUSTOM, _CUSTOM / "melspectrograms"),
        {},
    ),
}

for _name, (_what, _folder, _mels, _probe) in _TARGETS.items():
    # The four tasks of MTG-Jamendo share tracks, and so their embeddings.
    _embeddings = "embeddings/jamendo" if _folder.parent == _JAMENDO else f"embeddings/{_name}"
    _add(
        MAEST,
        f"target_{_name}",
        f"Extract for the downstream task: {_what}.",
        {
            "datamodule": {
                "groundtruth_predict": str(_folder / "groundtruth-all.pk"),
                "base_dir": str(_mels),
            },
            "inference": {"out_dir": _embeddings},
        },
    )
    _add(
        TL,
        f"target_{_name}_tl",
        f"Probe the embeddings that target_{_name} has extracted: {_what}.",
        {
            "data": {
                "embeddings_dir": _embeddings,
                "groundtruth_train": str(_folder / "groundtruth-train.pk"),
                "groundtruth_val": str(_folder / "groundtruth-validation.pk"),
                "groundtruth_test": str(_folder / "groundtruth-test.pk"),
                "base_dir": str(_mels),
            },
        },
        _probe,
    )
