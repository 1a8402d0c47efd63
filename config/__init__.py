"""The settings of both experiments, and named configs: typed, checked, each declared once."""

from __future__ import annotations

from dataclasses import dataclass, field

from maest.config import named
from maest.config.data import Data
from maest.config.inference import Export, Inference
from maest.config.network import Network
from maest.config.probe import Compare, ProbeData, ProbePredict, ProbeTraining, Sweep
from maest.config.schema import parse, plain, setting
from maest.config.training import Recipe, TrainerSettings

__all__ = ["ProbeSettings", "Settings", "parse", "plain"]

_SEED = "of all random draws: the same seed, data and machine give the same run"
_SEEDS = ">= 0, <= 4294967295"  # what NumPy takes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of ex_maest.py."""

    seed: int = setting(0, _SEED, _SEEDS)
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


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The settings of ex_tl.py."""

    seed: int = setting(0, _SEED, _SEEDS)
    seeds: int = setting(3, "runs, with seed, seed + 1, …", ">= 1, <= 1000")
    data: ProbeData = field(default_factory=ProbeData)
    probe: ProbeTraining = field(default_factory=ProbeTraining)
    name: str | None = setting(None, "what the report calls these features", auto="from data")
    sweep: Sweep = field(default_factory=Sweep)
    runs: tuple[str, ...] | None = setting(None, "compare: folders of finished runs")
    compare: Compare = field(default_factory=Compare)
    probe_dir: str | None = setting(None, "predict: the folder of a finished run")
    audio: str | None = setting(None, "predict: a file or a folder of music")
    predict: ProbePredict = field(default_factory=ProbePredict)


MAEST, TL = plain(Settings()), plain(ProbeSettings())  # the defaults, as plain data
MAEST_NAMED, TL_NAMED = named.MAEST, named.TL
SENTENCES = named.SENTENCES  # what each named config is for

# Sections that users of the original repository know under another name; with "=", a setting
SECTION_ALIASES = {
    "predict": "inference",
    "maest.checkpoint_swa_weigts=": "maest.checkpoint_swa_weights",
}
TL_ALIASES = {"probe=": "probe_dir"}  # a folder; probe.… are settings of a probe's training

# A new network, where neither the settings nor a checkpoint say more
DEFAULT_ARCH = "maest_tiny"
DEFAULT_CLIP_LENGTH = 5  # seconds


if __name__ == "config":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
