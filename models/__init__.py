"""The networks and their weights. They need no Sacred; training alone needs Lightning.

>>> from maest import get_maest
>>> model = get_maest("discogs-maest-30s-pw-129e")  # or "exp_logs/latest/model"
>>> activations, labels = model.predict_labels(waveform)  # tensor or array, mono, 16 kHz
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError
from maest.models.archs import ARCHS, CONFIG_NAME, RENAMED, find_arch, list_models
from maest.models.download import DownloadError, fetch
from maest.models.maest import Maest
from maest.models.saving import save_model
from maest.models.weights import Checkpoint, CheckpointError, load_checkpoint, load_into

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
    """Return a MAEST network in eval mode, with published, a checkpoint's or random weights.

    Arguments override the checkpoint, which overrides the architecture.

    Args:
        arch: an architecture's name (`ARCHS`), or, without ``checkpoint``, the path of one. A file
            or model folder of that name goes before the architecture.
        pretrained: load the published weights of ``arch``, fetched once (`models.download`). None:
            if it has any and no checkpoint is given. False: random weights.
        n_classes: default: the number of ``labels``.
        input_t: longest input, in frames.
        checkpoint: a model folder, a checkpoint file, or the result of `load_checkpoint`.
        checkpoint_swa_weights: ``average`` of `load_checkpoint`.
        discard_head: initialise the head anew.
        options: further arguments of `Maest`: patchout, dropout, ``task``, ``distilled_type`` …

    Raises:
        InputError: unknown architecture, or sizes that are missing or in conflict.
        CheckpointError: (an InputError) the checkpoint cannot be used.
        DownloadError: (a CheckpointError) the published weights cannot be fetched.
    """
    # Scripts for the original code use its misspelling.
    average = options.pop("checkpoint_swa_weigts", checkpoint_swa_weights)
    if arch is None and checkpoint is None:
        hint = f"Give an arch ({', '.join(ARCHS)}) or a checkpoint."
        raise InputError("no model is named", kind="missing", hint=hint, setting="arch")
    if arch is not None and checkpoint is None and pretrained is not False and _is_path(arch):
        arch, checkpoint = None, arch
    size = None if arch is None else find_arch(str(arch))
    weights = (
        load_checkpoint(checkpoint, average) if isinstance(checkpoint, str | Path) else checkpoint
    )
    if weights is None and size and (size.published if pretrained is None else pretrained):
        weights = fetch(str(arch), average)

    sizes: dict[str, Any] = dict(weights.sizes) if weights else {}
    kept = {} if discard_head else dict(sizes)  # empty if the head is not kept
    if size is not None:
        sizes |= {"embed_dim": size.embed_dim, "num_heads": size.num_heads, "depth": size.depth}
        if size.n_classes is not None and labels is None:
            sizes.setdefault("n_classes", size.n_classes)
    sizes.setdefault("input_t", (size or ARCHS["maest_base"]).input_t)
    if weights and kept and labels is None and n_classes in (None, kept.get("n_classes")):
        labels = weights.labels
    if n_classes is None and labels is not None:
        n_classes = len(labels)
    given = {"n_classes": n_classes, "input_t": input_t, **options}
    sizes |= {name: value for name, value in given.items() if value is not None}
    if any(kept.get(name) != sizes.get(name) for name in ("n_classes", "task")):
        # The checkpoint's target scale belongs to another head.
        sizes |= {name: options.get(name) for name in ("target_mean", "target_std")}
    if "n_classes" not in sizes:
        message = f"the number of labels is not known{': no head.1.weight' if weights else ''}"
        hint, path = "Give n_classes or labels.", weights.path if weights else None
        error = CheckpointError if weights else InputError
        raise error(message, kind="missing", hint=hint, path=path, setting="n_classes")
    if weights is None:
        return Maest(labels=labels, **sizes).eval()
    model = load_into(Maest.without_weights(labels=labels, **sizes), weights, discard_head).eval()
    if all(kept.get(name) == getattr(model, name) for name in ("n_classes", "task")):
        model.thresholds = weights.thresholds  # they are of the checkpoint's head, too
    return model


def _is_path(model: str | Path) -> bool:
    """Whether ``model`` names a checkpoint, existing or not, rather than an architecture."""
    path = Path(model).expanduser()
    if path.is_file() or (path / CONFIG_NAME).is_file():
        return True
    # A missing path is reported as such, not as an unknown architecture.
    known = model in ARCHS or model in RENAMED
    return not known and (path.exists() or isinstance(model, Path) or "/" in model)


if __name__ == "models":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
