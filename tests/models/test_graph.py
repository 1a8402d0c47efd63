"""ONNX models and files give what the network gives, at every length and batch, or an error."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_up import refuses
from networks import noise, small, tiny
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
from torch import Tensor, nn

from maest.models import Maest, get_maest, graph
from maest.models.graph import export_onnx

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["Früh---Messe", "民謡", 'Rock---Pop\n"rock"']
HOP = 256  # samples

NETWORKS = {
    "plain": {},
    "patchout": {"s_patchout_t_interleaved": 2, "s_patchout_f_indices": [3]},
    "no first column": {"s_patchout_t_indices": [0, 4, 5, 30], "s_patchout_f_interleaved": 2},
    "two heads": {"distilled_type": "separated", "head_eps": 1e-6},
    "regression": {"task": "regression", "target_mean": [90, 0, 3], "target_std": [40, 1, 0.1]},
    "normalised": {"norm_mean": 1.3, "norm_std": 0.8, "mlp_ratio": 2.5, "num_heads": 4},
    "narrow": {"input_f": 64, "input_t": 25, "depth": 1},
}


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # the failures here are meant
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def compare(net: Maest, blocks: list[int], logits: bool, fused: bool, lengths: list[int]) -> None:
    model = graph.build(net, blocks, logits, fused=fused)
    onnx.checker.check_model(model, full_check=True)
    run = session(model).run
    for i, frames in enumerate(lengths):
        mel = torch.randn(1 + i % 3, net.input_f, frames)
        found = run(None, {"melspectrogram": mel.numpy()})
        expected_logits, embeddings = net.encode(mel, blocks, logits)
        expected = [expected_logits] * logits + [embeddings[block] for block in blocks]
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert abs(one - other.numpy()).max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_graph_is_the_network(kind, fused):
    net = small(**NETWORKS[kind])
    lengths = [26, 27, 60, 149, 312, 325] if net.input_t == 312 else [25, 31, 35]
    lengths += [] if kind == "no first column" else [1, 15, 16, 25]
    for blocks, logits in (([-1, 0], True), ([0], False), ([net.depth - 1], True), ([], True)):
        compare(net, blocks, logits, fused, lengths)


def test_a_shipped_network():
    compare(get_maest("maest-tiny-music"), [6, 7, -1], True, True, [625, 100])


def test_layers_that_were_replaced_are_refused():
    net, hooked = small(), small()
    net.blocks[1].attn.proj = nn.Sequential(net.blocks[1].attn.proj)
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    large = Maest.without_weights(n_classes=3, input_t=312, embed_dim=2048, num_heads=16, depth=11)
    for one in (net, hooked, large):  # 2 GiB of weights
        with refuses("unsupported", setting=...):
            graph.build(one, [0], True)


class Exported:
    """A file, and the network that was exported."""

    def __init__(self, folder: Path, model: Maest, blocks: tuple[int, ...], **options) -> None:
        self.path, self.model, self.blocks = folder / "new" / "model.onnx", model, blocks
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        export_onnx(self.path, model, blocks, **options)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
        names = {"model.onnx", "golden.json", *(["labels.json"] if model.labels else [])}
        assert {file.name for file in self.path.parent.iterdir()} == names
        model.float().eval()
        self.session, self.file = session(self.path), onnx.load(self.path)
        self.properties = {entry.key: entry.value for entry in self.file.metadata_props}

    def run(self, x: Tensor) -> list[np.ndarray]:
        (given,) = self.session.get_inputs()
        return self.session.run(None, {given.name: x.numpy()})

    @torch.no_grad()
    def check(self, x: Tensor) -> None:
        mel = x if x.ndim == 3 else self.model.melspectrogram(x)
        logits, embeddings = self.model.encode(mel, self.blocks)
        expected = [logits, *(embeddings[block] for block in self.blocks)]
        for found, value in zip(self.run(x), expected, strict=True):
            assert found.dtype == np.float32
            assert found.shape == value.shape
            assert np.abs(found - value.numpy()).max() < 1e-4


@pytest.fixture(scope="module")
def mel(tmp_path_factory) -> Exported:
    """Of a network that was training: its dropout and patchout are no part of a file."""
    rates = {"drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5}
    model = tiny(labels=LABELS, s_patchout_t=3, u_patchout=5, **rates).train()
    model.blocks[0].eval()
    metadata = {"arch": "tiny", "naïve": "é", "task": "never mine"}
    return Exported(tmp_path_factory.mktemp("mel"), model, (1, -1, 0), metadata=metadata)


@pytest.fixture(scope="module")
def wave(tmp_path_factory) -> Exported:
    """Of a teacher-student network with another normalisation."""
    options = {"head_eps": 1e-6, "norm_mean": 1.3, "norm_std": 0.8, "task": "single-label"}
    model = tiny(distilled_type="separated", **options)
    return Exported(tmp_path_factory.mktemp("wave"), model, (0, 1, -1), with_frontend=True)


@pytest.fixture(scope="module")
def thinned(tmp_path_factory) -> Exported:
    """Of a half-precision network that always drops some columns and rows."""
    f = {"s_patchout_f_indices": [8], "s_patchout_f_interleaved": 2}
    model = tiny(depth=1, task="regression", s_patchout_t_indices=[0, 4, 5, 30], **f).half()
    return Exported(tmp_path_factory.mktemp("thinned"), model, (0,))


def signals() -> dict[str, Tensor]:
    """[samples] each, of what a front end may meet."""
    lengths = (1, 255, 256, 257, 3584, 3585, 3840, 16_001, 38_399, 38_400, 38_401, 324 * HOP)
    turns = 2 * math.pi * torch.arange(80_000, dtype=torch.float64) / 16_000
    return {
        **{f"noise of {n} samples": noise(n).clamp(-1, 1) for n in lengths},
        "faint noise": 1e-4 * noise(80_000),
        "far too loud": 30 * torch.sin(440 * turns),
        "click": (turns == turns[40_000]).float(),
        "silence": torch.zeros(80_000),
        "constant": torch.ones(80_000),
    }


@pytest.mark.parametrize("name", signals())
def test_the_front_end_is_ours(wave, name):
    wave.check(signals()[name].float().expand(2, -1))


@pytest.mark.parametrize(
    ("made", "shape", "error"),
    [
        *(("mel", (1, 96, n), "input_is_longer_than_325_frames") for n in (326, 335, 336, 651)),
        ("wave", (1, 324 * HOP + 1), f"input_is_longer_than_{324 * HOP}_samples"),
        ("wave", (1, 480_000), f"input_is_longer_than_{324 * HOP}_samples"),
        *(("mel", shape, "") for shape in ((1, 95, 312), (96, 312), (1, 1, 96, 312))),
        ("thinned", (1, 96, 16), "patchout_leaves_no_column"),  # column 0 alone, which is dropped
    ],
)
def test_inputs_that_fail(request, made, shape, error):
    with pytest.raises((Fail, InvalidArgument), match=error):
        request.getfixturevalue(made).run(torch.randn(shape))


def test_names_and_shapes(mel, wave):
    for exported, name, length, shape in (
        (mel, "melspectrogram", "frames", ["batch", 96, "frames"]),
        (wave, "waveform", "samples", ["batch", "samples"]),
    ):
        (given,) = exported.session.get_inputs()
        assert (given.name, given.shape) == (name, shape)
        assert exported.properties[f"max_{length}"] in exported.file.doc_string
    shapes = {output.name: output.shape for output in mel.session.get_outputs()}
    assert shapes == {
        "logits": ["batch", 3],
        "embeddings_1": ["batch", 3, 64],
        "embeddings_final": ["batch", 64],
        "embeddings_0": ["batch", 3, 64],
    }


def test_properties(mel, wave):
    properties = mel.properties
    assert json.loads(properties["labels"]) == LABELS
    assert json.loads(properties["blocks"]) == [1, -1, 0]
    assert float(properties["norm_mean"]) == mel.model.norm_mean
    expected = {
        "sample_rate": "16000",
        "hop_length": "256",
        "n_mels": "96",
        "input_t": "312",
        "max_frames": "325",
        "task": "multi-label",
        "arch": "tiny",
        "naïve": "é",
    }
    assert expected.items() < properties.items()
    properties = wave.properties
    assert "labels" not in properties
    assert (float(properties["norm_mean"]), float(properties["norm_std"])) == (1.3, 0.8)
    assert (properties["task"], properties["max_samples"]) == ("single-label", str(324 * HOP))


def test_one_valid_file_without_paths_of_this_machine(mel, wave, thinned):
    for exported in (mel, wave, thinned):
        onnx.checker.check_model(exported.path, full_check=True)
        assert not any(weights.external_data for weights in exported.file.graph.initializer)
        assert str(ROOT).encode() not in exported.path.read_bytes()


@pytest.mark.parametrize(
    ("sizes", "blocks", "options", "setting"),
    [
        *(({}, blocks, {}, "blocks") for blocks in ([0, 2], [-2], [True], [1.0, 1], [0, 0])),
        ({"input_t": 19}, [], {}, "input_t"),
        ({"input_f": 64}, [], {"with_frontend": True}, "with_frontend"),
    ],
)
def test_what_a_file_cannot_carry(tmp_path, sizes, blocks, options, setting):
    with refuses(..., setting=setting):
        export_onnx(tmp_path / "model.onnx", tiny(**sizes), blocks, **options)
    assert not list(tmp_path.iterdir())
