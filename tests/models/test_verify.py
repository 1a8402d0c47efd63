"""The golden pair: every saved model has it, verifies by it, and another model does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import refuses
from networks import tiny

from maest.models import engines, get_maest, save_model
from maest.models.golden import Check, golden_text, verify, waveform
from maest.models.graph import export_onnx
from maest.models.huggingface import export_huggingface
from maest.models.saving import save_safetensors

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ["a", "b", "c"]
ALL = ["fp32", "ONNX", "int8", "half"]
SCALE = {"target_mean": [120, 0, 3], "target_std": [40, 1, 0.1]}


def ways(checks: list[Check]) -> dict[str, bool | None]:
    return {check.way: check.same for check in checks}


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model", tiny(labels=LABELS))


def test_the_input_is_a_formula():
    frames, k = 20, np.arange(8)
    t = 2_000 / 16_000
    value = 0.1 * np.sin(2 * np.pi * 55 * 2**k * t) * (1 + np.sin(np.pi * (k + 1) * t)) / 2
    assert waveform(frames)[2_000] == pytest.approx(value.sum(), abs=1e-6)
    assert waveform(frames).shape == (19 * 256,)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_t": 40, "distilled_type": "separated"},
        {"task": "regression", **SCALE},
        {"s_patchout_t_interleaved": 2},
    ],
)
def test_what_is_saved_verifies(tmp_path, options):
    net = tiny(**options)
    save_safetensors(tmp_path / "file/model.safetensors", net.double())
    export_huggingface(tmp_path / "hub", net.half().float())
    save_model(tmp_path / "model", net, average=tiny(seed=1, **options))
    for place in ("file/model.safetensors", "hub", "model", "model/model.safetensors"):
        checks = verify(tmp_path / place)
        assert ways(checks) == dict.fromkeys(ALL, True)
        assert [check.error < 1e-5 for check in checks[:2]] == [True] * 2
    for frontend in (False, True):
        export_onnx(tmp_path / "onnx/model.onnx", net, [0, -1], frontend)
        assert ways(verify(tmp_path / "onnx/model.onnx")) == {"ONNX": True}


def test_other_weights_are_found_out(folder):
    other = save_model(folder.with_name("other"), tiny(seed=1, labels=LABELS))
    (other / "golden.json").replace(folder / "golden.json")
    assert ways(verify(folder)) == dict.fromkeys(ALL, False)


def test_a_way_that_is_not_here(folder, monkeypatch):
    create = engines.create

    def without(net, **options):
        if "quantize" in options or options["engine"] == "onnxruntime":
            raise engines.InputError("no module", kind="dependency", hint="Install it.")
        return create(net, **options)

    monkeypatch.setattr(engines, "create", without)
    found = ways(verify(folder))
    assert found == dict.fromkeys(ALL, True) | {"ONNX": None, "int8": None}


def test_a_model_without_a_pair_says_so(folder):
    (folder / "golden.json").unlink()
    with refuses("missing", "model"):
        verify(folder)
    with refuses("missing", "nowhere.onnx"):
        verify(folder / "nowhere.onnx")


def test_an_older_pair_has_the_log_mel_too(folder):
    path = folder / "golden.json"
    content = json.loads(path.read_text())
    content["pairs"]["model"]["log-mel"] = [1.0] * 96
    path.write_text(json.dumps(content))
    assert ways(verify(folder)) == dict.fromkeys(ALL, True)


def test_there_is_no_pair_of_what_cannot_be_compared(folder):
    broken = tiny()
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    for net in (tiny(input_f=64), broken):
        save_model(folder, net)
        assert not (folder / "golden.json").exists()
        assert golden_text({"model": net}) is None


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"input": "other-1"}, "unsupported"), ({"pairs": {}}, "corrupt"), (None, "corrupt")],
)
def test_a_pair_that_cannot_be_read(folder, change, kind):
    path = folder / "golden.json"
    content = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(content | change))
    with refuses(kind, "golden.json"):
        verify(folder)


def test_what_is_no_onnx_file_of_ours(folder):
    (folder / "model.onnx").write_bytes(b"onnx")
    with refuses("corrupt", "model.onnx"):
        verify(folder / "model.onnx")


def test_the_shipped_model():
    checks = verify("maest-tiny-scores")
    assert ways(checks) == dict.fromkeys(ALL, True)
    assert checks[0].error < 1e-5
    assert get_maest("maest-tiny-scores").depth == 12
