"""The Python code of the README runs."""

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from maest.models import get_maest, save_model

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(
    r"```python\n(.*?)```", re.sub(r"(?m)^   ", "", README.read_text("utf-8")), re.S
)


def test_python_of_the_readme(tmp_path, capsys):
    torch.manual_seed(0)
    labels = [f"label {i}" for i in range(8)]
    save_model(tmp_path / "exp_logs/latest/model", get_maest("maest_tiny", labels=labels))
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "song.wav", 0.1 * rng.standard_normal(16_000 * 12), 16_000)
    for block in BLOCKS:
        names: dict[str, Any] = {}
        with contextlib.chdir(tmp_path):
            exec(compile(block, "README.md", "exec"), names)
        shapes = {name: tuple(getattr(value, "shape", ())) for name, value in names.items()}
        printed = capsys.readouterr().out.splitlines()
        if "predict_labels" in block:
            assert shapes["activations"] == (8,)
            assert len(printed) == 5
        if "transformer_block=6" in block:
            assert (shapes["average"], shapes["logits"]) == ((2, 192), (2, 8))
    assert get_maest(checkpoint=tmp_path / "my_model").labels == ["calm", "driving"]
    for name in ("predict_labels", "transformer_block=6", "save_model"):
        assert name in "".join(BLOCKS)
