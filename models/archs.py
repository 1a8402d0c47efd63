"""The named architectures: sizes, published weights and licences."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice

# The names of the files of a model folder
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Arch:
    """Sizes of a network, and its published weights."""

    embed_dim: int = 768
    num_heads: int = 12
    depth: int = 12
    clip_length: float = 10.0  # seconds of an input, unless input_t says otherwise
    n_classes: int | None = None  # of the published weights
    # Their place: files of a Hugging Face repository, a file's URL, or the folder models/pretrained
    hub: str | None = None
    files: tuple[str, ...] = (CONFIG_NAME, WEIGHTS_NAME)
    url: str | None = None
    shipped: bool = False
    elsewhere: str | None = None  # another URL, to get them by hand as one file
    licence: str | None = None  # of the weights, as an SPDX identifier
    data: str | None = None  # what they were trained on

    @property
    def input_t(self) -> int:
        return input_frames(self.clip_length)

    @property
    def published(self) -> bool:
        return bool(self.hub or self.url or self.shipped)


# The models of the paper: seconds, labels. fs: from scratch, dw: from DeiT's weights, pw: from
# PaSST's; 129e: epochs; ts: teacher-student; 519l: labels
_RELEASED = {
    "discogs-maest-10s-fs-129e": (10, 400),
    "discogs-maest-10s-dw-75e": (10, 400),
    "discogs-maest-10s-pw-129e": (10, 400),
    "discogs-maest-5s-pw-129e": (5, 400),
    "discogs-maest-20s-pw-129e": (20, 400),
    "discogs-maest-30s-pw-129e": (30, 400),
    "discogs-maest-30s-pw-73e-ts": (30, 400),
    "discogs-maest-30s-pw-129e-519l": (30, 519),
}
_RELEASES = "https://github.com/palonso/MAEST/releases/download/v0.0.0-beta"

PASST = "passt_s_swa_p16_128_ap476"
DEIT = "passt_deit_bd_p16_384"

ARCHS = {
    # To train from scratch
    "maest_tiny": Arch(embed_dim=192, num_heads=3),  # 5.4 M parameters: learns on a laptop
    "maest_small": Arch(embed_dim=384, num_heads=6),  # 22 M
    "maest_base": Arch(),  # 86 M: the size of the released models
    # Trained here; in this repository
    "maest-tiny-music": Arch(
        embed_dim=192,
        num_heads=3,
        n_classes=43,
        shipped=True,
        licence="CC-BY-SA-4.0",
        data="performed scores and recordings with a teacher's tags",
    ),
    **{
        name: Arch(
            clip_length=seconds,
            n_classes=n_classes,
            hub=f"mtg-upf/{name}",
            elsewhere=f"{_RELEASES}/{name}-swa.ckpt",
            licence="CC-BY-NC-SA-4.0",
            data="Discogs20, the authors' collection",
        )
        for name, (seconds, n_classes) in _RELEASED.items()
    },
    # Weights to start from: other tasks' heads, and positions of another grid
    PASST: Arch(
        n_classes=527,
        url="https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/"
        "passt-s-f128-p16-s10-ap.476-swa.pt",
        licence="Apache-2.0",
        data="AudioSet",
    ),
    DEIT: Arch(
        n_classes=1000,
        hub="timm/deit_base_distilled_patch16_384.fb_in1k",
        files=(WEIGHTS_NAME,),
        licence="Apache-2.0",
        data="ImageNet-1k",
    ),
}


# Older names, which now give another model: older name → (that model's name, what has changed).
# Checkpoints and probes of the older one keep their sizes, labels and hash.
RENAMED: dict[str, tuple[str, str]] = {
    "maest-tiny-scores": (
        "maest-tiny-music",
        "trained on recordings too, for clips of 10 s instead of 5, with other labels and weights",
    ),
}


def list_models() -> list[str]:
    """Names of the architectures with published weights."""
    return [name for name, arch in ARCHS.items() if arch.published]


def find_arch(name: str) -> Arch:
    """Look up an architecture, by an older name too; InputError lists the nearest name, and all."""
    name = current_name(name)
    check_choice("arch", name, ARCHS)
    return ARCHS[name]


def current_name(name: str) -> str:
    """Return the name of the model that an older name now gives; other names are unchanged."""
    return RENAMED[name][0] if name in RENAMED else name


def size_name(embed_dim: int, num_heads: int, depth: int) -> str | None:
    """Name a network of these sizes, whatever its weights (maest_base …); None: no such name."""
    named = {(a.embed_dim, a.num_heads, a.depth): n for n, a in ARCHS.items() if not a.published}
    return named.get((embed_dim, num_heads, depth))


def input_frames(clip_length: float) -> int:
    """Frames of an input of ``clip_length`` seconds: 5 → 312, 10 → 625, 20 → 1250, 30 → 1875."""
    return int(round(clip_length * SAMPLE_RATE, 3) // HOP_LENGTH)  # 16.08 · 16000 is just below


def clip_seconds(input_t: int) -> float:
    """The inverse of :func:`input_frames`: 312 → 5."""
    exact = input_t * HOP_LENGTH / SAMPLE_RATE
    rounded = (math.ceil(round(exact * scale, 6)) / scale for scale in (1, 10, 100))
    return next(seconds for seconds in rounded if input_frames(seconds) == input_t)


# SPDX licences that let derived works choose another licence; works keep any other licence.
_PERMISSIVE = (
    *("Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib"),
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"),
)


def canonical_licence(licence: str) -> str:
    """Spell an SPDX identifier as SPDX does: "cc by-nc 4.0" → "CC-BY-NC-4.0"."""
    name = re.sub(r"[\s_-]+", "-", licence.strip()).upper()
    return {known.upper(): known for known in _PERMISSIVE}.get(name, name)


def export_licence(wanted: str | None, licence: str | None) -> str | None:
    """Return ``wanted``, or else the weights' licence; InputError if that forbids ``wanted``."""
    if wanted is None or not wanted.strip():
        return licence
    wanted, own = canonical_licence(wanted), canonical_licence(licence or _PERMISSIVE[0])
    if own not in (wanted, *_PERMISSIVE):
        message = f"the weights are {own}: they cannot be relicensed as {wanted}"
        raise InputError(message, kind="conflict", hint="Leave it out.", setting="licence")
    return wanted


def descent(name: str | None, trained_on: Mapping[str, Any]) -> dict[str, Any]:
    """Record the weights that a training starts from, and their ``parents``, nearest first."""
    licence = trained_on.get("licence")
    own = canonical_licence(licence) if isinstance(licence, str) else None
    older = [row for row in trained_on.get("parents") or () if isinstance(row, dict)]
    return {
        "started_from": name,
        **({} if own is None or own in _PERMISSIVE else {"licence": own}),
        "parents": [{"name": name, "licence": licence}, *older],
    }
