"""ONNX files: the same numbers as the network's, at every length and batch size, or an error."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
from torch import Tensor

from maest.helpers.errors import InputError
from maest.models import Maest, get_maest, graph
from maest.models.graph import export_onnx

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["Früh---Messe", "民謡", 'Rock---Pop\n"rock"']
HOP = 256  # samples
NEAR = 1e-4  # the largest difference allowed


def tiny(perturbed: float = 0.05, **options) -> Maest:
    torch.manual_seed(0)
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return perturb(Maest(**(sizes | options)), perturbed)


@torch.no_grad()
def perturb(model: Maest, by: float) -> Maest:
    """No zero bias, no norm that does nothing."""
    for parameter in model.parameters():
        parameter.add_(by * torch.randn_like(parameter))
    return model.eval()


@dataclass
class Exported:
    """A file, and the network it was made of."""

    path: Path
    model: Maest
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # the failures here are meant
        self.session = onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )

    def run(self, x: Tensor) -> dict[str, np.ndarray]:
        (given,) = self.session.get_inputs()
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {given.name: x.numpy()}), strict=True))

    @torch.no_grad()
    def expected(self, x: Tensor) -> dict[str, np.ndarray]:
        found = {"logits": self.model(x)[0]}
        for block in self.blocks:
            embeddings = self.model(x, transformer_block=block)[1]
            if block < 0:
                found["embeddings_final"] = embeddings
            else:
                found[f"embeddings_{block}"] = embeddings.reshape(len(x), 3, -1)
        return {name: value.numpy() for name, value in found.items()}

    def check(self, x: Tensor) -> None:
        outputs, expected = self.run(x), self.expected(x)
        assert list(outputs) == list(expected)
        for name, value in expected.items():
            assert outputs[name].dtype == np.float32
            assert outputs[name].shape == value.shape
            assert np.abs(outputs[name] - value).max() < NEAR, name

    def properties(self) -> dict[str, str]:
        file = onnx.load(self.path)
        return {entry.key: entry.value for entry in file.metadata_props}


def export(folder: Path, model: Maest, blocks: tuple[int, ...], **options) -> Exported:
    path = folder / "of its own" / "model.onnx"
    export_onnx(path, model, blocks, **options)
    names = {"model.onnx", *(["labels.json"] if model.labels else [])}
    assert {file.name for file in path.parent.iterdir()} == names
    return Exported(path, model, blocks)


@pytest.fixture(scope="module")
def mel(tmp_path_factory) -> Exported:
    """Of a network that was training: its dropout and patchout are no part of a file."""
    model = tiny(
        labels=LABELS,
        drop_rate=0.5,
        attn_drop_rate=0.5,
        drop_path_rate=0.5,
        s_patchout_t=3,
        u_patchout=5,
    ).train()
    model.blocks[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    exported = export(
        tmp_path_factory.mktemp("mel"), model, (1, -1, 0), metadata={"arch": "tiny", "naïve": "é"}
    )
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    return exported


@pytest.fixture(scope="module")
def wave(tmp_path_factory) -> Exported:
    """Of a teacher-student network with a normalisation of its own."""
    model = tiny(
        distilled_type="separated",
        head_eps=1e-6,
        norm_mean=1.3,
        norm_std=0.8,
        task="single-label",
    )
    return export(tmp_path_factory.mktemp("wave"), model, (0, 1, -1), with_frontend=True)


@pytest.fixture(scope="module")
def thinned(tmp_path_factory) -> Exported:
    """Of a half-precision network that always drops some columns and rows."""
    model = tiny(
        depth=1,
        task="regression",
        s_patchout_t_indices=[0, 4, 5, 30],
        s_patchout_f_indices=[8],
        s_patchout_f_interleaved=2,
    ).half()
    exported = export(tmp_path_factory.mktemp("thinned"), model, (0,))
    assert next(model.parameters()).dtype == torch.float16
    model.float()
    return exported


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 25, 26, 63, 149, 150, 312, 325])
def test_a_spectrogram_of_any_length(mel, batch, frames):
    mel.check(torch.randn(batch, 96, frames))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "samples",
    [1, 255, 256, 257, 3584, 3585, 3840, 16_001, 38_399, 38_400, 38_401, 311 * HOP, 324 * HOP],
)
def test_a_waveform_of_any_length(wave, batch, samples):
    wave.check(2 * torch.rand(batch, samples) - 1)


def signals() -> dict[str, Tensor]:
    """Five seconds, [samples] each, of what a front end may meet."""
    time = torch.arange(80_000, dtype=torch.float64) / 16_000  # s
    turns = 2 * math.pi * time
    chirp = torch.sin(2 * math.pi * (20 * time + 7900 / (2 * 5) * time**2))
    notes = sum(torch.sin(220 * k * turns) / k for k in range(1, 15)) * torch.exp(-4 * (time % 0.4))
    click = torch.zeros(80_000)
    click[40_000] = 1
    return {
        "noise": 2 * torch.rand(80_000) - 1,
        "faint noise": 1e-4 * torch.randn(80_000),
        "music": 0.3 * notes + 0.01 * torch.randn(80_000),
        "chirp": chirp,
        "far too loud": 30 * chirp,
        "click": click,
        "silence": torch.zeros(80_000),
        "constant": torch.ones(80_000),
        "square": torch.sign(torch.sin(300.5 * turns)),
        **{f"sine of {f} Hz": torch.sin(f * turns) for f in (50, 440, 1000, 7990)},
    }


@pytest.mark.parametrize("name", signals())
def test_the_front_end_is_ours(wave, name):
    wave.check(signals()[name].float()[None])


@pytest.mark.parametrize("frames", [26, 27, 56, 60, 75, 76, 312, 325])
def test_columns_and_rows_that_are_always_dropped(thinned, frames):
    assert thinned.model.patchout.kept_columns is not None
    assert thinned.model.patchout.kept_rows is not None
    thinned.check(torch.randn(2, 96, frames))


@pytest.mark.slow
def test_a_network_of_the_size_of_maest_base(tmp_path):
    torch.manual_seed(0)
    model = perturb(get_maest("maest_base", n_classes=400), 0.02)
    exported = export(tmp_path, model, (7, 11, -1))
    assert 300e6 < exported.path.stat().st_size < 400e6
    exported.check(torch.randn(1, 96, 313))
    exported.check(torch.randn(2, 96, 16))


# ------------------------------------------------------------------ no wrong numbers


@pytest.mark.parametrize("frames", [326, 335, 336, 651])
def test_a_spectrogram_longer_than_the_positions_fails(mel, frames):
    x = torch.randn(1, 96, frames)
    with pytest.raises(ValueError, match="positions"):
        mel.expected(x)
    with pytest.raises(Fail, match="input_is_longer_than_325_frames"):
        mel.run(x)


@pytest.mark.parametrize("samples", [324 * HOP + 1, 340 * HOP, 480_000])
def test_a_waveform_longer_than_the_positions_fails(wave, samples):
    with pytest.raises(Fail, match=f"input_is_longer_than_{324 * HOP}_samples"):
        wave.run(torch.randn(1, samples))


@pytest.mark.parametrize("shape", [(1, 95, 312), (96, 312), (1, 1, 96, 312)])
def test_another_shape_fails(mel, shape):
    with pytest.raises(InvalidArgument):
        mel.run(torch.randn(shape))


def test_an_input_without_any_kept_column_fails(thinned):
    x = torch.randn(1, 96, 16)  # column 0 alone, which is dropped
    with pytest.raises(ValueError, match="s_patchout_t"):
        thinned.expected(x)
    with pytest.raises(InvalidArgument, match="patchout_leaves_no_column"):
        thinned.run(x)


# ------------------------------------------------------------------ what the file says


def shapes(values) -> dict[str, list[str | int]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_names_and_shapes(mel, wave):
    graph = onnx.load(mel.path).graph
    assert shapes(graph.input) == {"melspectrogram": ["batch", 96, "frames"]}
    assert shapes(graph.output) == {
        "logits": ["batch", 3],
        "embeddings_1": ["batch", 3, 64],
        "embeddings_final": ["batch", 64],
        "embeddings_0": ["batch", 3, 64],
    }
    assert shapes(onnx.load(wave.path).graph.input) == {"waveform": ["batch", "samples"]}


def test_properties(mel, wave, thinned):
    properties = mel.properties()
    assert json.loads(properties.pop("labels")) == LABELS
    assert json.loads(properties.pop("blocks")) == [1, -1, 0]
    assert float(properties.pop("norm_mean")) == mel.model.norm_mean
    assert float(properties.pop("norm_std")) == mel.model.norm_std
    assert properties == {
        "sample_rate": "16000",
        "hop_length": "256",
        "n_mels": "96",
        "input_t": "312",
        "max_frames": "325",
        "task": "multi-label",
        "arch": "tiny",
        "naïve": "é",
    }
    properties = wave.properties()
    assert "labels" not in properties
    assert float(properties["norm_mean"]) == 1.3
    assert float(properties["norm_std"]) == 0.8
    assert properties["task"] == "single-label"
    assert properties["max_samples"] == str(324 * HOP)
    assert properties["max_samples"] in onnx.load(wave.path).doc_string
    assert thinned.properties()["task"] == "regression"


def test_one_valid_file_that_tells_nothing_of_this_machine(mel, wave, thinned):
    for exported in (mel, wave, thinned):
        onnx.checker.check_model(exported.path, full_check=True)
        file = onnx.load(exported.path)
        assert not any(weights.external_data for weights in file.graph.initializer)
        del file.graph.initializer[:]
        content = file.SerializeToString()
        assert b".py" not in content
        assert str(ROOT).encode() not in content


def test_nothing_is_said(tmp_path, capfd, caplog):
    export_onnx(tmp_path / "model.onnx", tiny(depth=1), [])
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])
    Exported(tmp_path / "model.onnx", tiny(depth=1), ()).check(torch.randn(2, 96, 100))


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize("blocks", [[0, 2], [-2], [True], [1.0, 1], [0, 1, 0, -1, -1]])
def test_blocks_that_are_not_there(tmp_path, blocks):
    with pytest.raises(InputError) as caught:
        export_onnx(tmp_path / "model.onnx", tiny(), blocks)
    assert caught.value.setting == "blocks"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "options", "setting"),
    [
        ({"input_t": 19}, {}, "input_t"),
        ({"input_f": 64}, {"with_frontend": True}, "with_frontend"),
        ({}, {"metadata": {"labels": "a", "task": "b", "mine": "c"}}, "metadata"),
    ],
)
def test_what_a_file_cannot_carry(tmp_path, sizes, options, setting):
    with pytest.raises(InputError) as caught:
        export_onnx(tmp_path / "model.onnx", tiny(**sizes), [], **options)
    assert caught.value.setting == setting
    assert not list(tmp_path.iterdir())


def test_weights_of_two_gigabytes(tmp_path):
    model = Maest.without_weights(n_classes=3, input_t=312, embed_dim=2048, num_heads=16, depth=11)
    with pytest.raises(InputError) as caught:
        export_onnx(tmp_path / "model.onnx", model, [])
    assert caught.value.kind == "unsupported"


def test_an_export_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    export_onnx(path, tiny(depth=1), [])
    older = path.read_bytes()
    monkeypatch.setattr(graph, "_OPSET", 8)  # without these operators
    with pytest.raises(onnx.checker.ValidationError):
        export_onnx(path, tiny(depth=1), [])
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == older
