"""The ONNX graph gives what the network gives, whatever its kind, at every length and batch."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from networks import small
from torch import nn

from maest.helpers.errors import InputError
from maest.models import get_maest, graph
from maest.models.maest import Maest

NETWORKS = {
    "plain": {},
    "patchout": {"s_patchout_t_interleaved": 2, "s_patchout_f_indices": [3]},
    "two heads": {"distilled_type": "separated", "head_eps": 1e-6},
    "regression": {"task": "regression", "target_mean": [90, 0, 3], "target_std": [40, 1, 0.1]},
    "normalised": {"norm_mean": 1.3, "norm_std": 0.8, "mlp_ratio": 2.5, "num_heads": 4},
    "narrow": {"input_f": 64, "input_t": 25, "depth": 1},
}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def compare(net: Maest, blocks: list[int], logits: bool, fused: bool, lengths: list[int]) -> None:
    run = session(graph.build(net, blocks, logits, fused=fused)).run
    for batch, frames in zip((1, 3, 2, 1, 2), lengths, strict=False):
        mel = torch.randn(batch, net.input_f, frames)
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
    lengths = [5, 16, 77, 157, 312] if net.input_t == 312 else [5, 16, 25]
    last = net.depth - 1
    for blocks, logits in (([-1, 0], True), ([0], False), ([last], True), ([], True)):
        compare(net, blocks, logits, fused, lengths)


def test_a_network_of_the_size_of_maest_base():
    torch.manual_seed(0)
    net = get_maest("maest_base", n_classes=400, input_t=312)
    compare(net, [7, -1], True, False, [312])


def test_a_shipped_network():
    compare(get_maest("maest-tiny-scores"), [6, 7, -1], True, True, [312, 100])


def test_layers_that_were_replaced_are_refused():
    net = small()
    net.blocks[1].attn.proj = nn.Sequential(net.blocks[1].attn.proj)
    hooked = small()
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    for one in (net, hooked):
        with pytest.raises(InputError) as caught:
            graph.build(one, [0], True)
        assert caught.value.kind == "unsupported"
