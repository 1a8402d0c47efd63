"""Labels of one's own, on a model that stays as it is: a linear layer on a block's embeddings.

A learned model is a folder: ``learned.json`` names the base model and its hash, the block, the
labels, and how good it was; ``learned.safetensors`` has the layer's weights. It answers what a
`Maest` does of its head: ``labels``, ``n_classes``, ``thresholds``, ``task`` and ``activations``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import to_json
from maest.helpers.results.manifest import model_hash
from maest.models import Maest, get_maest
from maest.models.saving import own_files

ABOUT, WEIGHTS = "learned.json", "learned.safetensors"
_FORMAT = "maest-learned"
_VERSION = 1
_MARK = f'"format": "{_FORMAT}"'.encode()
_AGAIN = "Learn it again, by maest learn."


@dataclass(frozen=True)
class Learned:
    """A linear layer on the embeddings of a block: W tokens × channels, C labels."""

    labels: list[str]  # [C]
    task: str  # "multi-label", or "single-label": each track has exactly one
    thresholds: list[float | None] | None  # [C], as those of `Maest`
    weight: Tensor  # float32 [C, W]
    bias: Tensor  # float32 [C]
    block: int  # from 0, or -1 for the embedding after the final norm
    base: str  # the base model's name, or the path of its folder or file
    base_hash: str  # `model_hash` of its weights

    @property
    def n_classes(self) -> int:
        return len(self.labels)

    @property
    def hash(self) -> str:
        """A hash of the layer and its labels, for those that keep its results."""
        layer = self.weight.numpy().tobytes() + self.bias.numpy().tobytes()
        return hashlib.sha256(layer + json.dumps(self.labels).encode()).hexdigest()

    def logits(self, embeddings: Tensor | np.ndarray) -> Tensor:
        """Embeddings [..., 3, D], or [..., D] after the final norm → logits [..., C].

        They are linear: the mean of patches' logits is the logits of their mean.
        """
        x = torch.as_tensor(embeddings).float()
        x = x if self.block < 0 else x.flatten(-2)
        return x @ self.weight.to(x.device).T + self.bias.to(x.device)

    def activations(self, logits: Tensor) -> Tensor:
        """Logits [..., C] → probabilities, as `Maest.activations`."""
        return logits.sigmoid() if self.task == "multi-label" else logits.softmax(-1)


def is_learned(model: object) -> TypeGuard[str | Path]:
    """Whether this is the folder of a learned model."""
    return isinstance(model, str | Path) and (Path(model).expanduser() / ABOUT).is_file()


def save_learned(folder: str | Path, learned: Learned, report: Mapping[str, Any]) -> Path:
    """Write a learned model, replacing an older one; ``report`` is any JSON, for people.

    InputError: the folder holds such files of others ("exists"), or cannot be written ("access").
    """
    folder = Path(folder)
    about = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "base": learned.base,
        "base_hash": learned.base_hash,
        "block": learned.block,
        "task": learned.task,
        "labels": learned.labels,
        "thresholds": learned.thresholds,
        "hash": learned.hash,  # ties both files together
        "report": dict(report),
    }
    with own_files(folder / ABOUT, _MARK, [WEIGHTS], {ABOUT: to_json(about)}) as paths:
        save_file({"weight": learned.weight, "bias": learned.bias}, paths[WEIGHTS])
    return folder


def load_learned(folder: str | Path) -> Learned:
    """Read a learned model. InputError: "missing", or damaged ("corrupt")."""
    folder = Path(folder).expanduser()
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            weights = {name: file.get_tensor(name).float() for name in ("weight", "bias")}
        names = ("labels", "task", "thresholds", "block", "base", "base_hash")
        learned = Learned(**{name: about[name] for name in names}, **weights)
        if about["format_version"] != _VERSION:
            raise ValueError(f"of another version than {_VERSION}, which this program reads")
        if learned.hash != about["hash"] or len(learned.bias) != learned.n_classes:
            raise ValueError(f"{ABOUT} and {WEIGHTS} are of different models")
    except FileNotFoundError as error:
        what = f"no learned model: it has no {Path(error.filename or WEIGHTS).name}"
        raise InputError(what, kind="missing", path=folder, hint=_AGAIN) from None
    except Exception as error:  # JSON's, safetensors'
        what = f"a damaged model ({type(error).__name__}: {error})"
        raise InputError(what, kind="corrupt", path=folder, hint=_AGAIN) from None
    return learned


def load_base(learned: Learned, folder: str | Path) -> Maest:
    """Load the model that a learned one, from ``folder``, stands on.

    InputError: it is not there ("missing"), or has other weights ("mismatch").
    """
    place = f"Put it there, or write its place into {Path(folder) / ABOUT} as base."
    base, path = learned.base, Path(learned.base).expanduser()
    if path.is_absolute() and not path.exists():
        what = "the model that this one has learned on is not there"
        raise InputError(what, kind="missing", path=base, hint=place)
    net = get_maest(base, pretrained=True)
    if model_hash(net.state_dict(), net.sizes()) != learned.base_hash:
        what = f"{folder} has learned on another model than this: their hashes differ"
        hint = f"{_AGAIN} Or find the model of then. {place}"
        raise InputError(what, kind="mismatch", path=base, hint=hint)
    return net
