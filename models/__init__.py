"""The networks: tensors in, tensors out. Usable without Sacred and Lightning.

>>> from maest import get_maest
>>> model = get_maest("discogs-maest-30s-pw-129e")  # or "exp_logs/latest/model"
>>> activations, labels = model.predict_labels(waveform)  # tensor or array, mono, 16 kHz
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError
from maest.models.archs import ARCHS, find_arch
from maest.models.checkpoint_files import CheckpointError
from maest.models.download import DownloadError, fetch
from maest.models.layouts import HUB
from maest.models.maest import Maest
from maest.models.saving import CONFIG_NAME, save_model
from maest.models.weights import Checkpoint, load_checkpoint, load_into

__all__ = ["ARCHS", "CheckpointError", "DownloadError", "Maest", "get_maest", "list_models"]
__all__ += ["load_checkpoint", "save_model"]


def get_maest(
    arch: str | Path | None = None,
    *,
    pretrained: bool | None = None,
    n_classes: int | None = None,
    input_t: int | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    checkpoint_swa_weights: bool | None = None,
    discard_head: bool = False,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> Maest:
    """Build a MAEST network, with published, own or fresh weights, in eval mode.

    Args:
        arch: name of the architecture (`models.ARCHS`); the checkpoint's, if None. Without a
            ``checkpoint`` it may be the path of one, too: a file or a model folder goes before an
            architecture of that name. (So ``get_maest(model, pretrained=True)`` is a network with
            weights, whichever way ``model`` names it.)
        pretrained: take the published weights of ``arch``, fetched once (`models.download`). None:
            where it has any and no checkpoint is given. False: fresh weights.
        n_classes: number of labels; the checkpoint's, or that of ``labels``, if None.
        input_t: longest input, in frames; the checkpoint's, or the architecture's, if None.
        checkpoint: a model folder or a checkpoint file (`models.load_checkpoint`), or one that was
            read already; nothing is downloaded then. What is named explicitly here wins over what
            it says.
        checkpoint_swa_weights: which weights of a checkpoint: ``average`` of `load_checkpoint`.
        discard_head: leave the head of the weights out: a fresh one.
        labels: label names; the checkpoint's, if None.
        options: further arguments of :class:`models.maest.Maest`: patchout, dropout, ``task``,
            ``distilled_type``, ``norm_mean`` … None stands for the checkpoint's or the default.

    Raises:
        InputError: for an unknown architecture, or sizes that are missing or contradict each other.
        CheckpointError: (an InputError) if the checkpoint cannot be used.
        DownloadError: (a CheckpointError) if the published weights cannot be fetched.
    """
    if "checkpoint_swa_weigts" in options:  # as scripts for the original spell it
        checkpoint_swa_weights = options.pop("checkpoint_swa_weigts")
    if checkpoint is None and arch is None:
        raise InputError(
            "which model?",
            kind="missing",
            hint=f"Give an arch ({', '.join(ARCHS)}) or a checkpoint.",
            setting="arch",
        )
    if checkpoint is None and pretrained is not False and _is_path(arch):
        arch, checkpoint = None, arch
    if isinstance(checkpoint, str | Path):
        checkpoint = load_checkpoint(checkpoint, checkpoint_swa_weights)
    elif checkpoint is None and (find_arch(arch).published if pretrained is None else pretrained):
        checkpoint = fetch(arch, checkpoint_swa_weights)

    sizes: dict[str, Any] = dict(checkpoint.sizes) if checkpoint else {}
    if arch is not None:
        size = find_arch(arch)
        sizes |= {"embed_dim": size.embed_dim, "num_heads": size.num_heads, "depth": size.depth}
        sizes.setdefault("input_t", size.input_t)
        if size.n_classes is not None and labels is None:
            sizes.setdefault("n_classes", size.n_classes)
    sizes.setdefault("input_t", ARCHS["maest_base"].input_t)
    same_head = checkpoint is not None and not discard_head
    if labels is None and same_head and n_classes in (None, checkpoint.sizes.get("n_classes")):
        labels = checkpoint.labels
    if n_classes is None and labels is not None:
        n_classes = len(labels)
    explicit = {"n_classes": n_classes, "input_t": input_t, **options}
    head = {name: explicit.get(name) or sizes.get(name) for name in ("n_classes", "task")}
    if not same_head or any(sizes.get(name) != value for name, value in head.items()):
        sizes |= {"target_mean": None, "target_std": None}  # the scale of another head's values
    sizes.update({name: value for name, value in explicit.items() if value is not None})
    if "n_classes" not in sizes:
        if checkpoint is None:
            raise InputError(
                "the number of labels is not known",
                kind="missing",
                hint="Give n_classes or labels.",
                setting="n_classes",
            )
        key = {HUB: "classifier.dense.weight"}.get(checkpoint.layout, "head.1.weight")
        raise CheckpointError(
            f"it has no head ({key}), so the number of labels is not known",
            kind="missing",
            hint="Give n_classes or labels.",
            path=checkpoint.path,
        )

    if checkpoint is None:
        return Maest(labels=labels, **sizes).eval()
    model = Maest.without_weights(labels=labels, **sizes)
    return load_into(model, checkpoint, discard_head).eval()


def list_models() -> list[str]:
    """Names that `get_maest` knows published weights for."""
    return [name for name, arch in ARCHS.items() if arch.published]


def _is_path(model: str | Path) -> bool:
    """Whether this names a checkpoint, there or not, and not an architecture."""
    path = Path(model).expanduser()
    if path.is_file() or (path / CONFIG_NAME).is_file():
        return True
    # What looks like a path is missed as one.
    return model not in ARCHS and (path.exists() or isinstance(model, Path) or "/" in model)


if __name__ == "models":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
