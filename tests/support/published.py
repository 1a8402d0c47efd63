"""Weights in the layouts that others publish: MAEST's, PaSST's, DeiT's, and the hub's folders."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from networks import noise, perturbed
from torch import Tensor
from transformers import ASTConfig, ASTForAudioClassification

from maest.models import ARCHS, CheckpointError, get_maest, load_checkpoint

COMMIT = "0" * 40
STATE = dict[str, Tensor]


def deit(width: int = 64, depth: int = 3, **options) -> torch.nn.Module:
    """timm's network: colours, positions of a square grid."""
    torch.manual_seed(0)
    name = "deit_base_distilled_patch16_384"
    sizes = {"embed_dim": width, "depth": depth, "num_heads": width // 64}
    return perturbed(timm.create_model(name, pretrained=False, **(sizes | options)))


def deit_state(**options) -> STATE:
    return {name: tensor.clone() for name, tensor in deit(**options).state_dict().items()}


def grid_state(rows: int, columns: int, n_classes: int, width: int = 64, depth: int = 3) -> STATE:
    """MAEST's and PaSST's keys, for a grid of ``rows`` x ``columns``."""
    shapes = {
        "new_pos_embed": (1, 2, width),
        "freq_new_pos_embed": (1, width, rows, 1),
        "time_new_pos_embed": (1, width, 1, columns),
        "patch_embed.proj.weight": (width, 1, 16, 16),
        "head.0.weight": (width,),
        "head.0.bias": (width,),
        "head.1.weight": (n_classes, width),
        "head.1.bias": (n_classes,),
        "head_dist.weight": (n_classes, width),
        "head_dist.bias": (n_classes,),
    }
    state = {n: t for n, t in deit_state(width=width, depth=depth).items() if "head" not in n}
    del state["pos_embed"]
    # A small last norm: else no epsilon of the head would show.
    state |= {name: 0.01 * state[name] for name in ("norm.weight", "norm.bias")}
    amount = {4: 0.05, 3: 0.3}
    for seed, (name, shape) in enumerate(shapes.items()):
        state[name] = amount.get(len(shape), 0.1) * noise(*shape, seed=seed)
    state["head.0.weight"] += 1
    return state


def passt_state(**options) -> STATE:
    """As the release has it: 128 bands x 998 frames, AudioSet's classes."""
    return grid_state(12, 99, 527, **options)


def maest_state(columns: int = 31, n_classes: int = 4, **options) -> STATE:
    return grid_state(9, columns, n_classes, **options)


def hub_model(
    columns: int = 31,
    n_classes: int = 3,
    width: int = 64,
    heads: int = 1,
    depth: int = 3,
    eps: float = 1e-6,
    seed: int = 0,
) -> ASTForAudioClassification:
    """A model as the hub has it: positions that are a sum, labels with names."""
    torch.manual_seed(seed)  # different weights for each
    labels = {i: f"Genre {i % 7}---Style {i}" for i in range(n_classes)}
    config = ASTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_mel_bins=96,
        max_length=columns * 10 + 6,
        layer_norm_eps=eps,
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
    )
    model = perturbed(ASTForAudioClassification(config), seed)
    freq, time = noise(9, 1, width, seed=seed), noise(1, columns, width, seed=seed + 1)
    with torch.no_grad():
        inner = model.audio_spectrogram_transformer
        inner.embeddings.position_embeddings[0, 2:] = 0.3 * (freq + time).flatten(0, 1)
        for parameter in inner.layernorm.parameters():  # as in `grid_state`
            parameter.mul_(0.01)
    return model


@functools.cache
def hub_state(in_memory: bool) -> STATE:
    source = hub_model(n_classes=4, depth=2)
    if in_memory:  # transformers 5 has other names there than in files
        return {name: tensor.clone() for name, tensor in source.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder)
        return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def released(name: str, width: int = 64, heads: int = 1) -> ASTForAudioClassification:
    """A released model in the hub's layout, with random weights, of so many channels."""
    arch = ARCHS[name]
    sizes = {"width": width, "heads": heads, "depth": 12, "seed": sum(name.encode())}
    return hub_model(arch.input_t // 10, arch.n_classes, **sizes)


def into_hub_cache(cache: Path, repository: str, write) -> None:
    """Put a repository into the hub's cache; ``write`` fills its folder."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    write(snapshot)


def legacy(content: object, path: Path) -> None:
    """Save in PyTorch's format from before zip archives."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def refused_weights(
    path: Path, kind: str, place: Path | None = None, average: bool | None = None, **options: Any
) -> str:
    """Load weights that must be refused: an error of this kind and path; its message."""
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=load_checkpoint(path, average), **options)
    assert (caught.value.kind, caught.value.path) == (kind, place or path)
    assert caught.value.hint
    return str(caught.value)
