"""The README's Python, as it stands there."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from maest.models import get_maest, save_model

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(
    r"```python\n(.*?)```", re.sub(r"(?m)^   ", "", README.read_text("utf-8")), re.S
)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_python_of_the_readme(tmp_path, block, capsys):
    torch.manual_seed(0)
    labels = [f"label {i}" for i in range(8)]
    save_model(tmp_path / "exp_logs/latest/model", get_maest("maest_tiny", labels=labels))
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "song.wav", 0.1 * rng.standard_normal(16_000 * 12), 16_000)
    found: dict = {}
    with contextlib.chdir(tmp_path):
        exec(compile(block, "README.md", "exec"), found)
    if "predict_labels" in block:
        assert found["activations"].shape == (8,)
        assert len(capsys.readouterr().out.splitlines()) == 5
    if "transformer_block=6" in block:
        assert found["average"].shape == (2, 192)
        assert found["logits"].shape == (2, 8)
    if "save_model" in block:
        assert get_maest(checkpoint=tmp_path / "my_model").labels == ["calm", "driving"]


def test_there_is_python_for_each_use():
    text = "".join(BLOCKS)
    for name in ("predict_labels", "transformer_block=6", "save_model"):
        assert name in text
