"""The named architectures: name → sizes, and where their published weights live."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maest.helpers.errors import InputError
from maest.helpers.mel_constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.names import did_you_mean


@dataclass(frozen=True)
class Arch:
    """Sizes of a network, and its published weights."""

    embed_dim: int = 768
    num_heads: int = 12
    depth: int = 12
    clip_length: float = 10.0  # seconds of an input, unless input_t says otherwise
    n_classes: int | None = None  # of the published weights
    # Where these are: a model's repository on the Hugging Face hub; a file; timm's repository on
    # the hub, of which the weights' file alone is used; or the folder models/pretrained
    hub: str | None = None
    url: str | None = None
    timm: str | None = None
    shipped: bool = False
    elsewhere: str | None = None  # where else people get the file by hand
    licence: str | None = None  # of the weights, as an SPDX identifier
    data: str | None = None  # what they were trained on

    @property
    def input_t(self) -> int:
        return input_frames(self.clip_length)

    @property
    def published(self) -> bool:
        """Whether there are weights to be had."""
        return any((self.hub, self.url, self.timm, self.shipped))


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

PASST = "passt_s_swa_p16_128_ap476"
DEIT = "passt_deit_bd_p16_384"

ARCHS = {
    # To train from scratch
    "maest_tiny": Arch(embed_dim=192, num_heads=3),  # 5.4 M parameters: learns on a laptop
    "maest_small": Arch(embed_dim=384, num_heads=6),  # 22 M
    "maest_base": Arch(),  # 86 M: the size of the released models
    # Trained here, on the embedded data set
    "maest-tiny-scores": Arch(
        embed_dim=192,
        num_heads=3,
        clip_length=5,
        n_classes=55,
        shipped=True,
        licence="CC-BY-NC-4.0",
        data="scores of the music21 corpus, performed",
    ),
    **{
        name: Arch(
            clip_length=seconds,
            n_classes=n_classes,
            hub=f"mtg-upf/{name}",
            elsewhere="https://github.com/palonso/MAEST/releases/download/v0.0.0-beta/"
            f"{name}-swa.ckpt",
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
        timm="timm/deit_base_distilled_patch16_384.fb_in1k",
        licence="Apache-2.0",
        data="ImageNet-1k",
    ),
}


def input_frames(clip_length: float) -> int:
    """Frames of an input of ``clip_length`` seconds: 5 → 312, 10 → 625, 20 → 1250, 30 → 1875."""
    return int(clip_length * SAMPLE_RATE // HOP_LENGTH)


def find_arch(name: str) -> Arch:
    """The architecture of that name, or InputError with the nearest, and all."""
    if name in ARCHS:
        return ARCHS[name]
    raise InputError(
        f"there is no arch {str(name)!r}",
        kind="unknown",
        hint=f"{did_you_mean(str(name), ARCHS)} Choose from {', '.join(ARCHS)}.".strip(),
        setting="arch",
    )


def size_name(embed_dim: int, num_heads: int, depth: int) -> str | None:
    """The name of a network of these sizes, whatever its weights: maest_base …; None for none."""
    sizes = (embed_dim, num_heads, depth)
    named = {(a.embed_dim, a.num_heads, a.depth): n for n, a in ARCHS.items() if not a.published}
    return named.get(sizes)


def clip_seconds(input_t: int) -> float:
    """Seconds of an input of ``input_t`` frames, the inverse of :func:`input_frames`: 312 → 5."""
    exact = input_t * HOP_LENGTH / SAMPLE_RATE
    for digits in range(3):  # the roundest number that makes as many frames
        scale = 10.0**digits
        rounded = math.ceil(exact * scale) / scale
        if input_frames(rounded) == input_t:
            return rounded
    return exact
