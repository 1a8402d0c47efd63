"""A model as a folder that `transformers` opens: the layout of the released models on the hub.

``ASTForAudioClassification.from_pretrained(folder)`` gives the network, and
``AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)`` the front end, whose code
is in the folder: the one that transformers has for this kind of model computes other features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from maest.helpers import mel_constants, melspectrogram
from maest.helpers.errors import InputError
from maest.helpers.files import to_json
from maest.helpers.mel_constants import HOP_LENGTH, N_MELS, SAMPLE_RATE
from maest.helpers.patches import PATCH_SIZE
from maest.models.archs import CONFIG_NAME, WEIGHTS_NAME, clip_seconds
from maest.models.layouts import (
    HUB_EPS,
    HUB_FIXED,
    HUB_PROBLEMS,
    default_hub_labels,
    fingerprint,
    write_hub,
)
from maest.models.maest import Maest, inference
from maest.models.saving import TRAINER_KEY, cpu_state_dict, own_files
from maest.models.sizes import STRIDE

CARD = "README.md"
EXTRACTOR = Path(__file__).with_name("feature_extraction_maest.py")
_TEMPLATE = Path(__file__).with_name("card.md")
_EXTRACTOR_CLASS = "MaestFeatureExtractor"
_MEANING = {
    "multi-label": "A sigmoid of the logits gives the activation of each label "
    '(`pipeline("audio-classification", …)` wants `function_to_apply="sigmoid"` for it).',
    "single-label": "A softmax of the logits gives the probability of each label.",
    "regression": "The logits are the predicted values.",
}


def export_huggingface(
    folder: Path,
    model: Maest,
    *,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> list[str]:
    """Write the folder; return what the layout cannot carry, a sentence each, as in the card.

    An older export is replaced, file by file, unless it was trained further since; an edited card
    and other files stay. ``trained_on`` is for the card; ``licence`` is an SPDX identifier.

    Raises:
        InputError: if the network's spectrogram has not 96 bands; else as `own_files`.
    """
    if model.input_f != N_MELS:
        raise InputError(
            f"the model takes {model.input_f} bands, and this layout is for {N_MELS}",
            kind="unsupported",
            hint="Export it with export.format=onnx or safetensors.",
            setting="export.format",
        )
    state = {name: tensor.float() for name, tensor in cpu_state_dict(model).items()}
    if model.target_std is not None:  # the last layer gives the values in their units
        std, mean = torch.tensor(model.target_std), torch.tensor(model.target_mean)
        state["head.1.weight"] = state["head.1.weight"] * std[:, None]
        state["head.1.bias"] = state["head.1.bias"] * std + mean
    frames = (model.time_new_pos_embed.shape[-1] - 1) * STRIDE + PATCH_SIZE
    # The network that the folder holds: one head on the mean of both tokens.
    head = {"distilled_type": "mean", "target_mean": None, "target_std": None}
    record = {
        "sizes": model.sizes() | head,
        "arch": arch,
        "trained_on": dict(trained_on or {}),
        "head": fingerprint(state["head.1.weight"]),
    }
    card = model_card(folder.name, model, frames, record, licence)
    record["card"] = _digest(card.encode())
    texts = {
        CONFIG_NAME: to_json(_config(model, frames) | {TRAINER_KEY: record}),
        "preprocessor_config.json": to_json(_extractor_config(model, frames)),
        EXTRACTOR.name: EXTRACTOR.read_text("utf-8"),
        CARD: card,
    }
    for module in (melspectrogram, mel_constants):  # the front end itself, one beside the other
        path = Path(str(module.__file__))
        texts[path.name] = path.read_text("utf-8").replace("from maest.helpers.", "from .")
    notes, old = unsupported_features(model), folder / CARD
    older = (folder / CONFIG_NAME).read_bytes() if (folder / CONFIG_NAME).is_file() else b""
    edited = old.is_file() and _digest(old.read_bytes()).encode() not in older
    if edited and b'"card": "' in older:
        notes.append(f"{CARD} was edited since it was written, and is kept.")
        del texts[CARD]
    with own_files(folder / CONFIG_NAME, _mark(folder), [WEIGHTS_NAME], texts) as paths:
        hub = {name: tensor.contiguous() for name, tensor in write_hub(state).items()}
        safetensors.torch.save_file(hub, paths[WEIGHTS_NAME], metadata={"format": "pt"})
    return notes


def _config(model: Maest, frames: int) -> dict[str, Any]:
    labels = model.labels or default_hub_labels(model.n_classes)
    return {
        "architectures": ["ASTForAudioClassification"],
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": round(model.embed_dim * model.mlp_ratio),
        **HUB_FIXED,
        "max_length": frames,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": HUB_PROBLEMS[model.task],
        "dtype": "float32",
    }


def _extractor_config(model: Maest, frames: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": _EXTRACTOR_CLASS,
        "auto_map": {"AutoFeatureExtractor": f"{EXTRACTOR.stem}.{_EXTRACTOR_CLASS}"},
        "sampling_rate": SAMPLE_RATE,
        "num_mel_bins": N_MELS,
        "max_length": frames,
        "mean": model.norm_mean,
        "std": model.norm_std,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _mark(folder: Path) -> bytes:
    """What the config.json of an export has that was not trained further since."""
    head = ""
    with (
        suppress(OSError, safetensors.SafetensorError),  # none, or half of a copy
        safetensors.safe_open(folder / WEIGHTS_NAME, "pt") as file,
    ):
        head = fingerprint(file.get_tensor("classifier.dense.weight")) + '"'
    return f'"head": "{head}'.encode()


def unsupported_features(model: Maest) -> list[str]:
    """What this layout cannot carry of a network."""
    notes = []
    if model.head_eps != HUB_EPS:
        notes.append(
            f"The classifier's norm has an epsilon of {HUB_EPS:g} in this layout, and of "
            f"{model.head_eps:g} in the network: logits differ, by up to "
            f"{_epsilon_difference(model):.1g} on noise and silence; embeddings do not."
        )
    if model.distilled_type == "separated":
        notes.append(
            "The second head (head_dist) is not carried: logits are the first head's, on the mean "
            "of the cls and dist tokens, as in the released teacher-student model. Metrics of this "
            "model were measured with both heads."
        )
    if model.patchout.kept_columns is not None or model.patchout.kept_rows is not None:
        notes.append("Patchout that drops given rows or columns is not carried: all are computed.")
    if model.labels is None:
        notes.append("The labels have no names.")
    return notes


def _epsilon_difference(model: Maest) -> float:
    """How far the logits move with the epsilon of this layout: measured on noise and silence."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, model.input_f, min(model.input_t, 316), generator=generator)
    silence = torch.full_like(noise[:1], -model.norm_mean / (2 * model.norm_std))
    theirs = nn.LayerNorm(model.embed_dim, HUB_EPS).to(model.cls_token)
    theirs.load_state_dict(model.head[0].state_dict())
    with inference(model):
        _, x = model(torch.cat((noise, silence)).to(model.cls_token))
        logits = model.unstandardize(model.head(x))
        difference = model.unstandardize(model.head[1](theirs(x))) - logits
    return float(difference.abs().max())


def model_card(
    name: str, model: Maest, frames: int, record: Mapping[str, Any], licence: str | None
) -> str:
    """The README.md of the folder."""
    trained_on = record["trained_on"]
    metrics = {k: v for k, v in trained_on.items() if k.startswith(("val_", "test_"))}
    data = {k: v for k, v in trained_on.items() if k not in (*metrics, "licence", "parents")}
    facts = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in data.items())
    parents = trained_on.get("parents") or []
    descent = _lines(f"{row.get('name')}: {row.get('licence') or 'not stated'}" for row in parents)
    return _TEMPLATE.read_text("utf-8").format(
        name=name,
        model=model,
        license=licence.lower() if licence else "unknown",
        arch=f" ({record['arch']})" if record["arch"] else "",
        weights=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        seconds=clip_seconds(model.input_t),
        rate=SAMPLE_RATE,
        meaning=_MEANING[model.task],
        frames=frames,
        per_second=SAMPLE_RATE / HOP_LENGTH,
        labels=", ".join(model.labels or []) or "without names",
        data=_lines(facts) or "Nothing is recorded.",
        metrics=_lines(f"{k}: {v}" for k, v in metrics.items()) or "None is recorded.",
        licence=licence or "Not stated. Whoever passes these weights on should say it here.",
        parents=descent and f"\nTrained from the weights of, the nearest first:\n\n{descent}\n",
        notes=_lines(unsupported_features(model)) or "Nothing: outputs are those of the network.",
    )


def _lines(facts: Iterable[str]) -> str:
    return "\n".join(f"- {fact}" for fact in facts)
