"""Models in the published format, in the cache where the program looks before it asks the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ASTConfig, ASTForAudioClassification

from maest.models import ARCHS

COMMIT = "0" * 40


def released(name: str, width: int = 64, heads: int = 1) -> ASTForAudioClassification:
    """A model as the hub has it, with random weights, of so many channels."""
    arch = ARCHS[name]
    columns = arch.input_t // 10
    torch.manual_seed(sum(name.encode()))  # each has weights of its own
    labels = {i: f"Genre {i % 7}---Style {i}" for i in range(arch.n_classes)}
    model = ASTForAudioClassification(
        ASTConfig(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            num_mel_bins=96,
            max_length=columns * 10 + 6,
            layer_norm_eps=1e-6,
            id2label=labels,
            label2id={label: i for i, label in labels.items()},
        )
    ).eval()
    freq, time = torch.randn(9, 1, width), torch.randn(1, columns, width)
    with torch.no_grad():
        positions = model.audio_spectrogram_transformer.embeddings.position_embeddings
        positions[0, 2:] = (freq + time).flatten(0, 1)
    return model


def into_hub_cache(cache: Path, repository: str, write) -> None:
    """Put a repository into the hub's cache; ``write`` fills its folder."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    write(snapshot)
