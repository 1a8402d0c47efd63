"""The model that comes with the repository."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from command_line import good, settings  # isort: skip (first: it quiets warnings)

from maest.models import get_maest
from maest.models.archs import ARCHS
from maest.models.download import PRETRAINED, fetch

NAME = "maest-tiny-scores"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_it_is_small_whole_and_has_its_card():
    folder = PRETRAINED / NAME
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    card, known = (
        (folder / "README.md").read_text("utf-8"),
        json.loads((folder / "config.json").read_text("utf-8")),
    )
    assert known["arch"] == NAME
    for word in ("CC BY-NC 4.0", "music21", f"{known['trained_on']['steps']:,} steps"):
        assert word in card
    assert known["trained_on"]["licence"] == ARCHS[NAME].licence == fetch(NAME).licence


def test_it_loads_in_fp32_and_knows_its_labels():
    model = get_maest(NAME)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.embed_dim, model.input_t, len(model.labels)) == (192, 312, ARCHS[NAME].n_classes)
    assert {"Instrument---Violin", "Renaissance---Mass", "Dance---Reel"} <= set(model.labels)
    torch.manual_seed(0)
    activations, labels = model.predict_labels(0.1 * torch.randn(16_000 * 6))
    assert np.isfinite(activations).all()
    assert labels == model.labels


def test_it_extracts_tags_and_starts_a_training(toy, tmp_path):
    arch = f"maest.arch={NAME}"
    good("ex_maest.py", f"extract_embeddings with {arch} {settings(toy)}", tmp_path)
    folder = tmp_path / "embeddings" / NAME / "5sec"
    found = list((folder / "7").rglob("*.npy"))
    assert len(found) == 12
    assert np.load(found[0]).shape == (3, 192)
    good("ex_maest.py", f"extract_logits with {arch} {settings(toy)}", tmp_path)
    assert np.load(next((folder / "logits").rglob("*.npy"))).shape == (55,)
    line = f"with maest_finetune {arch} maest.s_patchout_t=0 trainer.max_epochs=1 {settings(toy)}"
    good("ex_maest.py", f"{line} trainer.limit_train_batches=1", tmp_path)
    model = get_maest(checkpoint=tmp_path / "exp_logs/latest/model")
    assert model.labels == list(toy.labels)
    started_from = json.loads((tmp_path / "exp_logs/latest/model/config.json").read_text("utf-8"))
    assert started_from["trained_on"]["started_from"] == NAME
