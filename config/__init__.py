"""The settings of both experiments, and named configs: typed, checked, each declared once."""

from maest.config import named
from maest.config.probe import ProbeSettings
from maest.config.schema import parse, plain
from maest.config.settings import Settings

__all__ = ["ProbeSettings", "Settings", "parse", "plain"]

MAEST_NAMED, TL_NAMED = named.MAEST, named.TL
SENTENCES = named.SENTENCES  # what each named config is for

# Other names of sections and settings, as in the original repository
SECTION_ALIASES = {
    "predict.": "inference.",
    "maest.checkpoint_swa_weigts=": "maest.checkpoint_swa_weights",
}
TL_ALIASES = {"probe=": "probe_dir"}  # a folder; probe.… are settings of a probe's training

if __name__ == "config":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
