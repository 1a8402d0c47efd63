"""The numbers: defaults and named configs, as plain data.

None stands for "decided by the program" everywhere; the comment beside it says how.
"""

from maest.config import datamodule, export, inference, limits, maest, module, named, probe, trainer

# ex_maest.py
MAEST = {
    "seed": 0,  # of every random draw: the same seed, data and machine give the same run
    # Continue a training: its exp_logs/<id>/checkpoints/last.ckpt, or "last" for the newest one of
    # the same settings (where there is none, a new one begins)
    "ckpt_path": None,
    "maest": maest.DEFAULTS,
    "module": module.DEFAULTS,
    "datamodule": datamodule.DEFAULTS,
    "trainer": trainer.DEFAULTS,
    "inference": inference.DEFAULTS,
    "export": export.DEFAULTS,
}
MAEST_NAMED = named.MAEST

# Sections that users of the original repository know under another name; with "=", a setting
SECTION_ALIASES = {
    "predict": "inference",
    "maest.checkpoint_swa_weigts=": "maest.checkpoint_swa_weights",
}

# A fresh network, where neither the settings nor a checkpoint say more
DEFAULT_ARCH = "maest_tiny"
DEFAULT_CLIP_LENGTH = 5  # seconds

# ex_tl.py
TL = probe.DEFAULTS
TL_NAMED = named.TL
TL_ALIASES = {"probe=": "probe_dir"}  # a folder; probe.… are settings of a probe's training
SENTENCES = named.SENTENCES  # what each named config is for

LIMITS = limits.LIMITS  # of both


if __name__ == "config":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
