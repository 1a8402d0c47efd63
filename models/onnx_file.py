"""A network as one ONNX file, with or without the front end (`models.graph`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from maest.helpers.blocks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import HOP_LENGTH, N_MELS, SAMPLE_RATE
from maest.models import graph
from maest.models.archs import clip_seconds
from maest.models.maest import Maest
from maest.models.saving import own_files

_MEANING = {
    "multi-label": "Their sigmoid is the activation of each label.",
    "single-label": "Their softmax is the probability of each label.",
    "regression": "They are the predicted values.",
}


def export_onnx(
    path: Path,
    model: Maest,
    blocks: Sequence[int],
    *,
    with_frontend: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network as an ONNX file. An older export is replaced once the new one is valid.

    Inputs and outputs are those of `graph.build`. Fewer than 16 frames are padded with silence, and
    with n = input_t // 10 the longest input has 10 · n + 15 frames, or 256 · (10 · n + 14) samples.
    Cutting a track is left to the caller (`helpers.patches.cut`).

    ``metadata_props`` hold sample_rate (Hz), hop_length (samples), n_mels, norm_mean, norm_std,
    input_t (frames), max_frames or max_samples (of an input), task, blocks and labels (JSON; labels
    only if the model has some), and what is in ``metadata``.

    Columns and rows that patchout always drops are dropped in the file too. It does not carry: the
    type of the weights (float32 always), and the refusal of NaN and infinite values. The front end
    needs a runtime with float64 products, as onnxruntime has on a CPU.

    Raises:
        InputError: for a block that does not exist, a name in ``metadata`` that is taken, a network
            that one ONNX file cannot hold, and as `own_files`.
    """
    blocks = list(chosen_blocks(blocks, model.depth))
    _check(model, with_frontend)
    name, length = ("waveform", "samples") if with_frontend else ("melspectrogram", "frames")
    limit = graph.longest_input(model, with_frontend)
    properties = {
        "sample_rate": str(SAMPLE_RATE),
        "hop_length": str(HOP_LENGTH),
        "n_mels": str(model.input_f),
        "norm_mean": repr(float(model.norm_mean)),
        "norm_std": repr(float(model.norm_std)),
        "input_t": str(model.input_t),
        "task": model.task,
        "blocks": json.dumps(blocks),
        f"max_{length}": str(limit),
    }
    if model.labels is not None:
        properties["labels"] = json.dumps(model.labels, ensure_ascii=False)
    if taken := sorted({*properties, "labels"} & {*(metadata or {})}):
        raise InputError(
            f"the export writes {', '.join(taken)} itself",
            kind="conflict",
            hint="Give these other names.",
            setting="metadata",
        )
    proto = graph.build(model, blocks, waveform=with_frontend)
    onnx.helper.set_model_props(proto, properties | dict(metadata or {}))
    proto.doc_string = (
        f"A MAEST network. Input: {name} [batch, {'' if with_frontend else 'bands, '}{length}], "
        f"of at most {limit} {length} (the model was trained on {clip_seconds(model.input_t):g} "
        "s): cut longer tracks into patches and average what they give. logits: "
        f"{_MEANING[model.task]}"
    )
    with own_files(path.parent, [path.name], _is_own(path)) as paths:
        onnx.save(proto, paths[path.name], format="protobuf")  # whatever its suffix
        onnx.checker.check_model(paths[path.name], full_check=True)


def _is_own(path: Path) -> bool:
    """Whether a file is such an export: its metadata, which are at its end, have these names."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**22))
            end = file.read()
    except OSError:
        return False
    return all(name.encode() in end for name in ("hop_length", "norm_mean", "norm_std", "input_t"))


def _check(model: Maest, with_frontend: bool) -> None:
    """Raise InputError for what one ONNX file does not carry."""
    if model.time_new_pos_embed.shape[-1] == 1:
        # One position would be added to every column of an input that is too long.
        raise InputError(
            f"{model.input_t} frames are one patch column: ONNX cannot refuse a longer input then",
            kind="unsupported",
            hint="Export a model with an input_t of 20 or more.",
            setting="input_t",
        )
    if with_frontend and model.input_f != N_MELS:
        raise InputError(
            f"the model takes {model.input_f} bands, and the front end makes {N_MELS}",
            kind="conflict",
            hint="Export it without the front end.",
            setting="with_frontend",
        )
