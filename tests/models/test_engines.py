"""Engines give what the network gives: PyTorch, onnxruntime, and int8 nearly so."""

import platform
import sys
import tempfile

import pytest
import torch
from made_up import refuses
from networks import small
from torch import Tensor, nn

from maest.models import engines, get_maest
from maest.models.engines import Engine, create
from maest.models.maest import Maest

pytestmark = pytest.mark.usefixtures("one_thread")

TORCH = {"engine": "pytorch", "device": "cpu"}
ONNX = {"engine": "onnxruntime", "device": "cpu"}
INT8 = {"quantize": "int8", "device": "cpu"}


@pytest.fixture(scope="module")
def trained() -> Maest:
    return get_maest("maest-tiny-music")


def sounds(net: Maest, batch: int, samples: int = 79_872) -> Tensor:
    """Log-mels of tones that decay, as music has them."""
    torch.manual_seed(batch)
    time = torch.arange(samples) / 16_000
    pitches = 110 * 2 ** (torch.randint(0, 36, (batch, 5, 1)) / 12)
    tones = (torch.sin(2 * torch.pi * pitches * time) * torch.exp(-2 * (time % 0.5))).sum(1)
    return net.melspectrogram(0.1 * tones)[..., :312]


def pairs(engine: Engine, net: Maest, mel: Tensor, blocks: list[int], logits: bool) -> list:
    with torch.no_grad():
        expected_logits, expected = net.encode(mel, blocks, logits)
    found = engine(mel)
    assert found.embeddings.keys() == expected.keys()
    assert (found.logits is None) == (not logits)
    compared = [(found.embeddings[block], expected[block]) for block in blocks]
    compared += [(found.logits, expected_logits)] if logits else []
    for one, other in compared:
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert not one.requires_grad
    return compared


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).min().item()


@pytest.mark.parametrize("options", [TORCH, ONNX, INT8])
@pytest.mark.parametrize(
    ("blocks", "logits"),
    [([0], False), ([1], False), ([2, 0], False), ([-1], False), ([], True), ([2, -1, 0], True)],
)
def test_outputs_are_the_networks(options, blocks, logits):
    net = small(s_patchout_t_interleaved=2, distilled_type="separated")
    made = create(net, **options, blocks=blocks, logits=logits)
    assert made.similarity is None
    for batch, frames in ((1, 7), (3, 100), (2, 312)):
        for one, other in pairs(made, net, torch.randn(batch, 96, frames), blocks, logits):
            if options is INT8:
                assert cosine(one, other) > 0.99
                assert not torch.equal(one, other)
            else:
                assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    assert (made.similarity is not None) == (options is INT8)


@pytest.mark.parametrize("seven_bits", [False, True])
def test_int8_of_trained_weights(trained, monkeypatch, seven_bits):
    if seven_bits:
        monkeypatch.setattr(engines, "_adds_in_16_bits", lambda: True)
    made = create(trained, **INT8, blocks=[6, 11, -1])
    for batch, frames in ((3, 312), (2, 157)):
        mel = sounds(trained, batch)[..., :frames]
        compared = pairs(made, trained, mel, [6, 11, -1], True)
        assert min(cosine(one, other) for one, other in compared) > 0.99
        if batch == 3:
            found = [cosine(*pair) for pair in compared]
            names = ["block 6", "block 11", "block -1", "logits"]
            assert made.similarity == pytest.approx(dict(zip(names, found, strict=True)), abs=1e-6)


@pytest.mark.parametrize("options", [ONNX, INT8])
def test_a_patch_alone_and_among_others(trained, options):
    made = create(trained, **options, blocks=[6])
    mel = sounds(trained, 4) * torch.tensor([1, 0.2, 3, 10]).view(-1, 1, 1)  # different scales
    among = made(mel)
    alone = [made(one[None]) for one in mel]
    assert torch.equal(among.embeddings[6], torch.cat([one.embeddings[6] for one in alone]))
    assert torch.equal(among.logits, torch.cat([one.logits for one in alone]))


@pytest.mark.parametrize("options", [TORCH, ONNX, INT8])
def test_the_network_stays_as_it_is(options):
    net = small(drop_rate=0.5).train()
    blocks, state = list(net.blocks), {k: v.clone() for k, v in net.state_dict().items()}
    made = create(net, **options, blocks=[1])
    mel = torch.randn(2, 96, 100)
    assert torch.equal(made(mel).logits, made(mel).logits)  # no dropout
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert list(net.blocks) == blocks
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_int8_says_nothing_and_leaves_nothing(capfd, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    create(small(), **INT8, blocks=[0], logits=False)(torch.randn(1, 96, 100))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "system", "options", "name"),
    [
        ("x86_64", "linux", {}, "onnxruntime, float32"),
        ("AMD64", "win32", {}, "onnxruntime, float32"),
        ("x86_64", "darwin", {}, "PyTorch, 32-true"),
        ("aarch64", "linux", {}, "PyTorch, 32-true"),
        ("aarch64", "linux", {"engine": "onnxruntime"}, "onnxruntime, float32"),
        ("x86_64", "linux", {"engine": "pytorch"}, "PyTorch, 32-true"),
        ("x86_64", "linux", {"precision": "bf16-mixed"}, "PyTorch, bf16-mixed"),
        ("x86_64", "linux", {"compile": True}, "PyTorch, 32-true"),
        ("x86_64", "linux", {"device": "meta"}, "PyTorch, 32-true"),
        ("aarch64", "linux", {"quantize": "int8"}, "onnxruntime, int8"),
    ],
)
def test_which_engine(monkeypatch, machine, system, options, name):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    net = small(depth=1)
    assert create(net, **({"device": "cpu"} | options)).name == name
    assert net.cls_token.device.type == "cpu"


def test_a_replaced_layer_is_computed_by_pytorch():
    net = small()
    net.blocks[1].mlp.fc1 = nn.Sequential(net.blocks[1].mlp.fc1, nn.Tanh())
    made, mel = create(net, device="cpu", blocks=[1]), torch.randn(2, 96, 100)
    assert made.name == "PyTorch, 32-true"
    for one, other in pairs(made, net, mel, [1], True):
        torch.testing.assert_close(one, other)
    for options in (ONNX, INT8):
        with refuses("unsupported"):
            create(net, **options)


@pytest.mark.parametrize(
    ("kind", "setting", "options"),
    [
        ("unknown", "engine", {"engine": "tensorrt"}),
        ("unknown", "quantize", {"quantize": "int4"}),
        ("unknown", "precision", {"precision": "64-true"}),
        ("unsupported", "precision", {"precision": "16-mixed"}),
        ("unsupported", "engine", ONNX | {"device": "meta"}),
        ("unsupported", "engine", ONNX | {"precision": "bf16-mixed"}),
        ("unsupported", "quantize", INT8 | {"device": "meta"}),
        ("unsupported", "quantize", INT8 | {"engine": "pytorch"}),
    ],
)
def test_options_that_do_not_go_together(kind, setting, options):
    with refuses(kind, setting=setting):
        create(small(), **({"device": "cpu"} | options))


def test_autocast():
    net, mel = small(), torch.randn(2, 96, 100)
    made = create(net, device="cpu", precision="bf16-mixed", blocks=[1])
    exact = net.encode(mel, [1], True)[1][1]
    assert 0.99 < cosine(made(mel).embeddings[1], exact) < 1 - 1e-7


def test_compiled_blocks(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    net = small()
    create(net, device="cpu", compile=True)
    assert len(compiled) == net.depth
    assert not set(compiled) & set(net.blocks)
