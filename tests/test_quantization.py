"""Inference in 8 bits: near the float32 network, at every length and batch, in one encoder."""

from __future__ import annotations

import sys
import tempfile

import onnx
import pytest
import torch
from networks import small
from torch import nn

from maest.helpers.errors import InputError
from maest.models import get_maest
from maest.models.cpu import speed_up
from maest.models.maest import Maest
from maest.models.quantization import Int8Encoder, _graph, _quantise, _runs, similarity


@pytest.fixture(scope="module")
def trained() -> Maest:
    return get_maest("maest-tiny-scores")


def sounds(net: Maest, batch: int, samples: int = 79_872) -> torch.Tensor:
    """Log-mels of tones that decay, as music has them."""
    torch.manual_seed(batch)
    time = torch.arange(samples) / 16_000
    pitches = 110 * 2 ** (torch.randint(0, 36, (batch, 5, 1)) / 12)
    tones = (torch.sin(2 * torch.pi * pitches * time) * torch.exp(-2 * (time % 0.5))).sum(1)
    return net.melspectrogram(0.1 * tones)[..., :312]


def check(net: Maest, encoder: Int8Encoder, mel: torch.Tensor, least: float) -> None:
    with torch.no_grad():
        expected_logits, expected = net.outputs(mel, encoder.blocks, encoder.logits)
    logits, embeddings = encoder.encode(mel)
    assert list(embeddings) == list(expected)
    pairs = [(embeddings[block], expected[block]) for block in expected]
    if encoder.logits:
        pairs.append((logits, expected_logits))
    else:
        assert logits is None
    for found, exact in pairs:
        assert found.shape == exact.shape
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert similarity(found, exact) > least
        assert not torch.equal(found, exact)


def test_near_float32_on_trained_weights(trained):
    encoder = Int8Encoder(trained, [6, 11, -1], logits=True, threads=1)
    for batch, frames in ((3, 312), (1, 312), (2, 157)):
        check(trained, encoder, sounds(trained, batch)[..., :frames], 0.99)


def test_a_patch_alone_and_among_others(trained):
    encoder = Int8Encoder(trained, [6, -1], logits=True, threads=1)
    mel = sounds(trained, 4) * torch.tensor([1, 0.2, 3, 10]).view(-1, 1, 1)  # scales of their own
    logits, embeddings = encoder.encode(mel)
    for i in range(len(mel)):
        its_logits, alone = encoder.encode(mel[i : i + 1])
        pairs = [(embeddings[block], alone[block]) for block in alone] + [(logits, its_logits)]
        for among, own in pairs:
            assert (among[i] - own[0]).abs().max() < 1e-5 * own.abs().max()


@pytest.mark.parametrize(
    ("blocks", "logits"), [([0], False), ([1], False), ([2, 0], False), ([-1], False), ([], True)]
)
def test_what_is_asked_for(blocks, logits):
    net = small()
    encoder = Int8Encoder(net, blocks, logits)
    for batch, frames in ((1, 7), (2, 100), (3, 312)):
        check(net, encoder, torch.randn(batch, 96, frames), 0.99)


def test_no_more_blocks_than_needed():
    net = small(depth=4)

    def made(blocks, logits=False):
        encoder = Int8Encoder(net, blocks, logits)
        return [type(block).__name__ for block in encoder._net.blocks]

    assert made([1]) == ["Identity", "_Int8Blocks", "Block", "Block"]
    assert made([0, 1]) == ["_Int8Blocks", "_Int8Blocks", "Block", "Block"]
    assert made([-1]) == made([], True) == ["Identity", "Identity", "_Int8Blocks", "Block"]
    assert made([3], True) == ["Identity", "Identity", "Identity", "_Int8Blocks"]
    assert _runs(small(depth=1), 1, {0}) == [(0, 1)]


def test_one_block_whose_float_twin_is_the_last():
    net = small(depth=1)  # nothing to quantise: the last block is float32 where two tokens are read
    logits, embeddings = Int8Encoder(net, [-1], True).encode(mel := torch.randn(2, 96, 50))
    with torch.no_grad():
        expected, final = net.outputs(mel, [-1], True)
    torch.testing.assert_close((logits, embeddings), (expected, final))


def test_large_blocks_are_graphs_of_their_own(monkeypatch):
    net = small()
    monkeypatch.setattr("maest.models.quantization._LARGEST", 2**20)
    assert _runs(net, 3, {2}) == [(0, 1), (1, 2), (2, 3)]
    check(net, Int8Encoder(net, [2]), torch.randn(2, 96, 100), 0.99)


def test_patchout_heads_and_speeding_up():
    net = small(s_patchout_t_interleaved=2, s_patchout_f_indices=[1], distilled_type="separated")
    check(net, Int8Encoder(net, [1], True), torch.randn(2, 96, 200), 0.99)
    speed_up(net)
    check(net, Int8Encoder(net, [1], True), torch.randn(2, 96, 200), 0.99)


def test_the_network_is_left_as_it_is():
    net = small(drop_rate=0.5).train()
    blocks, state = list(net.blocks), {k: v.clone() for k, v in net.state_dict().items()}
    encoder = Int8Encoder(net, [1], True)
    mel = torch.randn(2, 96, 100)
    first, second = encoder.encode(mel), encoder.encode(mel)
    assert torch.equal(first[0], second[0])  # no dropout
    assert all(module.training for module in net.modules())
    assert list(net.blocks) == blocks
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_weights_alone_are_int8(tmp_path):
    net = small()
    _quantise(_graph(net, 0, 2), tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulInteger") == 8
    assert operators.count("MultiHeadAttention") == 2
    assert "MatMul" not in operators
    weights = [w for w in graph.initializer if w.data_type == onnx.TensorProto.INT8]
    matrices = [list(w.dims) for w in weights if len(w.dims) == 2]
    assert matrices == [[128, 384], [128, 128], [128, 512], [512, 128]] * 2


def test_nothing_is_said_and_nothing_is_left(capfd, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Int8Encoder(small(), [0]).encode(torch.randn(1, 96, 100))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not list(tmp_path.iterdir())


def test_inputs_that_the_network_refuses():
    encoder = Int8Encoder(small(), [0])
    for shape in ((1, 96, 400), (1, 64, 100), (96, 100)):
        with pytest.raises(ValueError, match=r"400 frames|64 bands|\[96, 100\]"):
            encoder.encode(torch.randn(shape))
    with pytest.raises(ValueError, match="NaN"):
        encoder.encode(torch.full((1, 96, 100), torch.nan))


def test_what_int8_is_not_made_of(monkeypatch):
    def kind(net, blocks):
        with pytest.raises(InputError) as error:
            Int8Encoder(net, blocks)
        return error.value.kind

    assert kind(small().half(), [0]) == kind(small().to("meta"), [0]) == "unsupported"
    net = small()
    net.blocks[1].attn.proj = nn.Sequential(net.blocks[1].attn.proj)
    Int8Encoder(net, [0])
    assert kind(net, [1]) == "unsupported"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert kind(small(), [0]) == "dependency"


def test_similarity():
    a = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    b = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [0.0, 0.0]]])
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, b) == pytest.approx(2**-0.5)
    assert similarity(a, -a) == pytest.approx(-1)
