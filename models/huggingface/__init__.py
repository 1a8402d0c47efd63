"""A model as a folder that `transformers` opens: the layout of the released models on the hub.

``ASTForAudioClassification.from_pretrained(folder)`` gives the network, and
``AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)`` the front end, whose code
is in the folder: the one that transformers has for this kind of model computes other features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.nn import functional

from maest.helpers import mel_constants, melspectrogram
from maest.helpers.errors import InputError
from maest.helpers.files import to_json
from maest.helpers.melspectrogram import HOP_LENGTH, N_MELS, SAMPLE_RATE
from maest.helpers.patches import PATCH_SIZE
from maest.models.archs import clip_seconds
from maest.models.checkpoint_files import TRAINER_KEY
from maest.models.layouts import (
    HUB_EPS,
    HUB_FIXED,
    HUB_PROBLEMS,
    HUB_TYPE,
    default_hub_labels,
    fingerprint,
    write_hub,
)
from maest.models.maest import STRIDE, Maest, inference
from maest.models.saving import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    cpu_state_dict,
    own_files,
    read_config,
)

CARD = "README.md"
EXTRACTOR_CONFIG = "preprocessor_config.json"
EXTRACTOR = Path(__file__).with_name("feature_extraction_maest.py")
EXTRACTOR_CLASS = "MaestFeatureExtractor"
_FUNCTIONS = {
    "multi-label": "A sigmoid of the logits gives the activation of each label "
    '(`pipeline("audio-classification", …)` wants `function_to_apply="sigmoid"` for it).',
    "single-label": "A softmax of the logits gives the probability of each label.",
    "regression": "The logits are the predicted values.",
}


def export_huggingface(
    folder: str | Path,
    model: Maest,
    *,
    arch: str | None = None,
    trained_on: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> list[str]:
    """Write the folder.

    Args:
        folder: where to. An older export there is replaced, file by file, unless it was trained
            further or its card was edited since; other files in it stay.
        model: the network.
        arch: name of the architecture, for people to read.
        trained_on: what is known of its making, for the model card.
        licence: of the weights, as an SPDX identifier.

    Returns:
        what the layout cannot carry, a sentence each; they are in the model card too.

    Raises:
        InputError: if the network's spectrogram has not 96 bands; if a file of one of these names
            is there that is not such an export's, or the files cannot be written. Nothing is
            changed then.
    """
    if model.input_f != N_MELS:
        raise InputError(
            f"the model takes {model.input_f} bands, and this layout is for {N_MELS}",
            kind="unsupported",
            hint="Export it with export.format=onnx or safetensors.",
            setting="export.format",
        )
    notes = limits(model)
    state = {name: tensor.float() for name, tensor in cpu_state_dict(model).items()}
    if model.target_std is not None:  # the last layer gives the values in their units
        std, mean = torch.tensor(model.target_std), torch.tensor(model.target_mean)
        state["head.1.weight"] = state["head.1.weight"] * std[:, None]
        state["head.1.bias"] = state["head.1.bias"] * std + mean
    hub = {name: tensor.contiguous() for name, tensor in write_hub(state).items()}
    columns = model.time_new_pos_embed.shape[-1]
    frames = (columns - 1) * STRIDE + PATCH_SIZE
    labels = model.labels or default_hub_labels(model.n_classes)
    # The network that the folder holds: one head on the mean of both tokens.
    sizes = model.sizes() | {"distilled_type": "mean", "target_mean": None, "target_std": None}
    config = {
        "architectures": ["ASTForAudioClassification"],
        "model_type": HUB_TYPE,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": round(model.embed_dim * model.mlp_ratio),
        **HUB_FIXED,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "max_length": frames,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": HUB_PROBLEMS[model.task],
        "dtype": "float32",
        # What the layout does not say, for our own import
        TRAINER_KEY: {
            "sizes": sizes,
            "arch": arch,
            "trained_on": dict(trained_on or {}),
            "head": fingerprint(state["head.1.weight"]),
        },
    }
    extractor = {
        "feature_extractor_type": EXTRACTOR_CLASS,
        "auto_map": {"AutoFeatureExtractor": f"{EXTRACTOR.stem}.{EXTRACTOR_CLASS}"},
        "sampling_rate": SAMPLE_RATE,
        "num_mel_bins": N_MELS,
        "max_length": frames,
        "mean": model.norm_mean,
        "std": model.norm_std,
        "feature_size": 1,
        "padding_value": 0.0,
    }
    card = model_card(Path(folder).name, model, frames, arch, trained_on, licence, notes)
    older = read_config(folder, CONFIG_NAME)
    ours = _is_own(Path(folder), older)
    texts = {
        CONFIG_NAME: "",
        EXTRACTOR_CONFIG: to_json(extractor),
        EXTRACTOR.name: EXTRACTOR.read_text("utf-8"),
        CARD: card,
        # The front end itself: the very files that this program uses, one beside the other.
        **{
            Path(module.__file__).name: Path(module.__file__)
            .read_text("utf-8")
            .replace("from maest.helpers.", "from .")
            for module in (melspectrogram, mel_constants)
        },
    }
    if ours and (Path(folder) / CARD).exists():
        old_card, written = _digest((Path(folder) / CARD).read_bytes()), older[TRAINER_KEY]
        if old_card != written.get("card"):
            notes = [*notes, f"{CARD} was edited since it was written, and is kept."]
            del texts[CARD]
    config[TRAINER_KEY]["card"] = _digest(card.encode())
    texts[CONFIG_NAME] = to_json(config)
    with own_files(folder, (*texts, WEIGHTS_NAME), ours) as paths:
        safetensors.torch.save_file(hub, paths[WEIGHTS_NAME], metadata={"format": "pt"})
        for name, text in texts.items():
            paths[name].write_text(text, "utf-8")
    return notes


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_own(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder is an export, with the weights that it was made with."""
    ours = config.get(TRAINER_KEY)
    if config.get("model_type") != HUB_TYPE or not isinstance(ours, dict):
        return False
    weights = folder / WEIGHTS_NAME
    if not weights.exists():
        return True
    try:
        with safetensors.safe_open(weights, "pt") as file:
            last = file.get_tensor("classifier.dense.weight")
    except (OSError, safetensors.SafetensorError):  # half of a copy, say
        return True
    return fingerprint(last) == ours.get("head")


def limits(model: Maest) -> list[str]:
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
            "of the cls and dist tokens, as in the released teacher-student model. Figures of this "
            "model were measured with both heads."
        )
    if model.kept_columns is not None or model.kept_rows is not None:
        notes.append("Patchout that drops given rows or columns is not carried: all are computed.")
    if model.labels is None:
        notes.append("The labels have no names.")
    return notes


def _epsilon_difference(model: Maest) -> float:
    """How far the logits move with the epsilon of this layout: measured on noise and silence."""
    generator = torch.Generator().manual_seed(0)
    frames = min(model.input_t, 316)
    noise = torch.randn(3, model.input_f, frames, generator=generator)
    silence = torch.full_like(noise[:1], -model.norm_mean / (2 * model.norm_std))
    mel = torch.cat((noise, silence)).to(model.cls_token)
    norm, last = model.head
    with inference(model):
        _, x = model(mel)
        theirs = functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, HUB_EPS)
        difference = model.unstandardize(last(theirs)) - model.unstandardize(last(norm(x)))
    return float(difference.abs().max())


def _descent(trained_on: Mapping[str, Any]) -> list[str]:
    """What the weights were trained from, with its licences, as lines of the card."""
    parents = trained_on.get("parents") or []
    lines = [f"- {row.get('name')}: {row.get('licence') or 'not stated'}" for row in parents]
    return ["Trained from the weights of, the nearest first:", "", *lines, ""] if lines else []


def model_card(
    name: str,
    model: Maest,
    frames: int,
    arch: str | None,
    trained_on: Mapping[str, Any] | None,
    licence: str | None,
    notes: list[str],
) -> str:
    """The README.md of the folder: what the model is, how it is used, data, metrics, licence."""
    trained_on = dict(trained_on or {})
    figures = {k: v for k, v in trained_on.items() if k.startswith(("val_", "test_"))}
    facts = {k: v for k, v in trained_on.items() if k not in (*figures, "licence", "parents")}
    lines = [
        "---",
        f"license: {licence.lower() if licence else 'unknown'}",
        "library_name: transformers",
        "pipeline_tag: audio-classification",
        "tags: [music, maest, audio-spectrogram-transformer]",
        "---",
        "",
        f"# {name}",
        "",
        f"A MAEST network{f' ({arch})' if arch else ''}: a spectrogram transformer for music, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M weights, {model.depth} blocks "
        f"of {model.embed_dim} channels, for patches of {clip_seconds(model.input_t):g} s. Method: "
        "Alonso-Jiménez, Serra and Bogdanov, "
        "[ISMIR 2023](https://arxiv.org/abs/2309.16418).",
        "",
        "## Use",
        "",
        "```python",
        "import librosa, torch",
        "from transformers import ASTForAudioClassification, AutoFeatureExtractor",
        "",
        'folder = "."  # this folder, or its name on the hub',
        "extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)",
        "model = ASTForAudioClassification.from_pretrained(folder).eval()",
        f'waveform, rate = librosa.load("song.wav", sr={SAMPLE_RATE})  # mono',
        'inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt")',
        "with torch.no_grad():",
        "    outputs = model(**inputs, output_hidden_states=True)",
        f"outputs.logits  # [1, {model.n_classes}]",
        "outputs.hidden_states[7]  # of the seventh block: cls token, dist token, patches",
        "```",
        "",
        _FUNCTIONS[model.task],
        "",
        f"Input: `input_values` [batch, {frames} frames, {N_MELS} bands], log-mel at "
        f"{SAMPLE_RATE / HOP_LENGTH:g} frames a second, normalised: "
        f"(x - {model.norm_mean:.6g}) / (2 · {model.norm_std:.6g}). The code of the front end is "
        "in this folder; the `ASTFeatureExtractor` of transformers computes something else.",
        "",
        f"Labels ({model.n_classes}): " + (", ".join(model.labels or []) or "without names") + ".",
        "",
        "## Data",
        "",
        *(
            [f"- {key}: {json.dumps(facts[key], ensure_ascii=False)}" for key in facts]
            or ["Nothing is recorded."]
        ),
        "",
        "## Metrics",
        "",
        *([f"- {key}: {figures[key]}" for key in figures] or ["None is recorded."]),
        "",
        "## Licence",
        "",
        licence or "Not stated. Whoever passes these weights on should say it here.",
        "",
        *_descent(trained_on),
        "## What this format does not carry",
        "",
        *([f"- {note}" for note in notes] or ["Nothing: outputs are those of the network."]),
        "",
    ]
    return "\n".join(lines)
