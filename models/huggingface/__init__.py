"""Exports a model as a `transformers` folder, in the layout of the released models on the hub.

``ASTForAudioClassification.from_pretrained(folder)`` opens the network, and
``AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)`` the front end. Its code is
in the folder: the front end of transformers for this kind of model computes other features.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from maest.helpers.audio import constants, mel
from maest.helpers.audio.constants import N_MELS, SAMPLE_RATE
from maest.helpers.audio.patches import PATCH_SIZE
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import to_json
from maest.models import layouts
from maest.models.archs import CONFIG_NAME, WEIGHTS_NAME, clip_seconds
from maest.models.golden import GOLDEN_NAME, MODEL, golden_text
from maest.models.layouts import HUB_EPS
from maest.models.maest import Maest
from maest.models.saving import TRAINER_KEY, cpu_state_dict, own_files
from maest.models.sizes import ACTIVATIONS, STRIDE

CARD = "README.md"
EXTRACTOR = Path(__file__).with_name("feature_extraction_maest.py")


def export_huggingface(
    folder: Path, model: Maest, arch: str | None = None, trained_on: Mapping[str, Any] | None = None
) -> list[str]:
    """Write the folder; return a sentence for each thing that the layout cannot carry.

    An older export is replaced, file by file, unless it was trained further since; an edited card
    and other files stay. ``trained_on`` is for the card; its "licence" is an SPDX identifier.
    InputError: the network does not take 96 bands; else as `own_files`.
    """
    if model.input_f != N_MELS:
        message = f"the model takes {model.input_f} bands, and this layout is for {N_MELS}"
        hint = "Export it as ONNX or safetensors."
        raise InputError(message, kind="unsupported", hint=hint, setting="format")
    state = {name: tensor.float() for name, tensor in cpu_state_dict(model).items()}
    if model.target_std is not None:  # the last layer gives the values in their units
        std, mean = torch.tensor(model.target_std), torch.tensor(model.target_mean)
        state["head.1.weight"] = state["head.1.weight"] * std[:, None]
        state["head.1.bias"] = state["head.1.bias"] * std + mean
    frames = (model.time_new_pos_embed.shape[-1] - 1) * STRIDE + PATCH_SIZE
    # The network that the folder holds: one head on the mean of both tokens.
    head = {"distilled_type": "mean", "target_mean": None, "target_std": None}
    record: dict[str, Any] = {
        "sizes": model.sizes() | head,
        "arch": arch,
        "trained_on": dict(trained_on or {}),
        "head": layouts.fingerprint(state["head.1.weight"]),
    }
    # Those of two heads are of other activations.
    if model.thresholds and model.distilled_type == "mean":
        record["thresholds"] = model.thresholds
    card = model_card(folder.name, model, frames, record)
    record["card"] = _digest(card.encode())
    labels = model.labels or layouts.default_hub_labels(model.n_classes)
    config = {
        "architectures": ["ASTForAudioClassification"],
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": round(model.embed_dim * model.mlp_ratio),
        **layouts.HUB_FIXED,
        "max_length": frames,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": layouts.HUB_PROBLEMS[model.task],
        "dtype": "float32",
        TRAINER_KEY: record,
    }
    extractor = {
        "feature_extractor_type": "MaestFeatureExtractor",
        "auto_map": {"AutoFeatureExtractor": f"{EXTRACTOR.stem}.MaestFeatureExtractor"},
        "sampling_rate": SAMPLE_RATE,
        "num_mel_bins": N_MELS,
        "max_length": frames,
        "mean": model.norm_mean,
        "std": model.norm_std,
    }
    texts = {CONFIG_NAME: to_json(config), "preprocessor_config.json": to_json(extractor)}
    texts |= {CARD: card, EXTRACTOR.name: EXTRACTOR.read_text("utf-8")}
    for name, module in (("melspectrogram.py", mel), ("mel_constants.py", constants)):
        front_end = Path(str(module.__file__)).read_text("utf-8")
        texts[name] = front_end.replace(constants.__name__, ".mel_constants")
    carried = Maest.without_weights(**record["sizes"])
    carried.load_state_dict(state, assign=True)
    golden = golden_text({MODEL: carried})
    texts |= {GOLDEN_NAME: golden} if golden else {}
    gone = {GOLDEN_NAME} - texts.keys()
    notes, old = unsupported_features(model), folder / CARD
    older = (folder / CONFIG_NAME).read_bytes() if (folder / CONFIG_NAME).is_file() else b""
    edited = old.is_file() and _digest(old.read_bytes()).encode() not in older
    if edited and b'"card": "' in older:
        notes.append(f"{CARD} was edited since it was written, and is kept.")
        del texts[CARD]
    with own_files(folder / CONFIG_NAME, _mark(folder), [WEIGHTS_NAME], texts, gone) as paths:
        hub = {name: tensor.contiguous() for name, tensor in layouts.write_hub(state).items()}
        safetensors.torch.save_file(hub, paths[WEIGHTS_NAME], metadata={"format": "pt"})
    return notes


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _mark(folder: Path) -> bytes:
    """The text that an export's config.json holds, if its weights were not trained further."""
    head = ""
    # A missing or half-copied file is no error.
    with suppress(OSError, SafetensorError), safe_open(folder / WEIGHTS_NAME, "pt") as file:
        head = layouts.fingerprint(file.get_tensor("classifier.dense.weight")) + '"'
    return f'"head": "{head}'.encode()


def unsupported_features(model: Maest) -> list[str]:
    eps, patchout = model.head_eps, model.patchout
    drops = patchout.kept_columns is not None or patchout.kept_rows is not None
    notes = {
        f"The classifier's norm has an epsilon of {HUB_EPS:g} in this layout, and of "
        f"{eps:g} in the network: logits differ a little, embeddings do not.": eps != HUB_EPS,
        "The second head (head_dist) is not carried: logits are the first head's, on the mean of "
        "the cls and dist tokens, as in the released teacher-student model. Metrics of this model "
        "were measured with both heads.": model.distilled_type == "separated",
        "Patchout that drops given rows or columns is not carried: all are computed.": drops,
        "The labels have no names.": model.labels is None,
    }
    return [note for note, applies in notes.items() if applies]


def model_card(name: str, model: Maest, frames: int, record: Mapping[str, Any]) -> str:
    trained_on, arch = record["trained_on"], record["arch"]
    licence, parents = trained_on.get("licence"), trained_on.get("parents") or []
    metrics = {k: v for k, v in trained_on.items() if k.startswith(("val_", "test_"))}
    data = {k: v for k, v in trained_on.items() if k not in (*metrics, "licence", "parents")}
    facts = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in data.items())
    descent = _lines(f"{row.get('name')}: {row.get('licence') or 'not stated'}" for row in parents)
    labels = ", ".join(model.labels or []) or "without names"
    if "thresholds" in record:
        labels += f". Thresholds of their activations: `{TRAINER_KEY}.thresholds` in {CONFIG_NAME}"
    template = EXTRACTOR.with_name("card.md").read_text("utf-8")
    return template.format(
        name=name,
        model=model,
        license=licence.lower() if licence else "unknown",
        arch=f" ({arch})" if arch else "",
        weights=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        seconds=clip_seconds(model.input_t),
        activation=ACTIVATIONS[model.task],
        frames=frames,
        labels=labels,
        data=_lines(facts) or "Nothing is recorded.",
        metrics=_lines(f"{k}: {v}" for k, v in metrics.items()) or "None is recorded.",
        licence=licence or "Not stated. Whoever passes these weights on should say it here.",
        parents=descent and f"\nTrained from the weights of, the nearest first:\n\n{descent}\n",
        notes=_lines(unsupported_features(model)) or "Nothing: outputs are those of the network.",
    )


def _lines(facts: Iterable[str]) -> str:
    return "\n".join(f"- {fact}" for fact in facts)
