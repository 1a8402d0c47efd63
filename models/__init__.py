"""The networks: tensors in, tensors out. Usable without Sacred and Lightning.

>>> from models import get_maest
>>> model = get_maest(checkpoint="exp_logs/latest/model")
>>> activations, labels = model.predict_labels(waveform)  # torch tensor, mono, 16 kHz
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.archs import ARCHS, find_arch
from models.maest import Maest
from models.weights import Checkpoint, CheckpointError, load_checkpoint, load_into, save_model

__all__ = ["ARCHS", "CheckpointError", "Maest", "get_maest", "load_checkpoint", "save_model"]


def get_maest(
    arch: str | None = None,
    *,
    pretrained: bool = False,
    n_classes: int | None = None,
    input_t: int | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> Maest:
    """Build a MAEST network, with fresh weights or a checkpoint's, in eval mode.

    Args:
        arch: name of the architecture (`models.archs.ARCHS`); the checkpoint's, if None.
        pretrained: fetch the published weights of ``arch``. The architectures known here are
            sizes to train from scratch and have none.
        n_classes: number of labels; the checkpoint's, or that of ``labels``, if None.
        input_t: longest input, in frames; the checkpoint's, or the architecture's, if None.
        checkpoint: a model folder or a checkpoint file, or one that was read already; nothing is
            downloaded then. What is named explicitly here wins over what it says.
        labels: label names; the checkpoint's, if None.
        options: further arguments of :class:`models.maest.Maest`: patchout, dropout,
            ``distilled_type``, ``norm_mean`` … None stands for the checkpoint's or the default.

    Raises:
        ValueError: for an unknown architecture, or sizes that are missing or contradict each other.
        FileNotFoundError, CheckpointError: if the checkpoint cannot be used.
    """
    found = checkpoint
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        found = load_checkpoint(checkpoint)
    if found is None and arch is None:
        raise ValueError(f"name an arch ({', '.join(ARCHS)}) or a checkpoint")
    if pretrained and found is None:
        find_arch(arch)
        raise ValueError(
            f"there are no published weights of {arch!r}: build it with pretrained=False and train "
            "it, or pass a checkpoint"
        )

    sizes: dict[str, Any] = dict(found.sizes) if found else {}
    if arch is not None:
        size = find_arch(arch)
        sizes.update(embed_dim=size.embed_dim, num_heads=size.num_heads, depth=size.depth)
        sizes.setdefault("input_t", size.input_t)
    if labels is None and found is not None and n_classes in (None, sizes.get("n_classes")):
        labels = found.labels
    if n_classes is None and labels is not None:
        n_classes = len(labels)
    explicit = {"n_classes": n_classes, "input_t": input_t, **options}
    sizes.update({name: value for name, value in explicit.items() if value is not None})
    if "n_classes" not in sizes:
        raise ValueError("n_classes is not known: give n_classes or labels")

    model = Maest(labels=labels, **sizes)
    if found is not None:
        load_into(model, found)
    return model.eval()
