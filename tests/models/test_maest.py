"""The network: its contract with whoever calls it, block by block and token by token."""

import copy
import json
import math
from functools import partial
from typing import Any

import networks
import numpy as np
import pytest
import torch
from made_up import refuses
from networks import noise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from maest.helpers.errors import InputError
from maest.models import Maest, get_maest
from maest.models.maest import Block

INPUT_T, COLUMNS, ROWS, POSITIONS = 165, 15, 9, 16  # frames, patches, position embeddings
BOTH_HEADS = pytest.mark.parametrize("distilled_type", ["mean", "separated"])
RATES = {"drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}
PATCHOUT = {"s_patchout_t": 3, "s_patchout_f": 2, "u_patchout": 7}
RANDOM = RATES | PATCHOUT

tiny = partial(networks.tiny, n_classes=5, input_t=INPUT_T, num_heads=2)
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
pytestmark = pytest.mark.usefixtures("one_thread")


def mels(batch: int, frames: int = INPUT_T, seed: int = 1) -> Tensor:
    return noise(batch, 96, frames, seed=seed)


def grid(model: Maest, mel: Tensor, offset: int = 0) -> Tensor:
    """[B, F, T frames] → [B, F·T, D]: every patch with its position, frequency-major, by hand."""
    w = dict(model.named_parameters())
    x = F.conv2d(mel[:, None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=10)
    index = torch.arange(x.shape[2] * x.shape[3])
    f, t = index // x.shape[3], index % x.shape[3]
    time = w["time_new_pos_embed"][:, :, 0, offset + t]
    return (x[:, :, f, t] + w["freq_new_pos_embed"][:, :, f, 0] + time).transpose(1, 2).detach()


def by_hand(model: Maest, mel: Tensor, kept: Any = slice(None)) -> dict[str | int, Tensor]:
    """Outputs of the blocks by number, then the rest by name; a block is timm's (see below)."""
    two = torch.cat((model.cls_token, model.dist_token), 1) + model.new_pos_embed
    x = torch.cat((two.expand(len(mel), -1, -1), grid(model, mel)[:, kept]), dim=1)
    found = {}
    for number, block in enumerate(model.blocks):
        x = block(x)
        found[number] = torch.cat((x[:, 0], x[:, 1], x[:, 2:].mean(1)), dim=-1)
    cls, dist = model.norm(x)[:, :2].unbind(1)
    found["embeddings"] = (cls + dist) / 2
    found["mean"], found["cls"] = model.head(found["embeddings"]), model.head(cls)
    found["dist"] = model.head_dist(dist)
    return found


def watch(model: Maest) -> list[Tensor]:
    """The tokens that enter the first block, one tensor a forward pass, as they come."""
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    return seen


# ---- the network itself --------------------------------------------------------------------------


def test_fresh_weights():
    """Truncated normal of std 0.02, biases 0; the convolution as PyTorch has it."""
    model = get_maest("maest_tiny", n_classes=400, depth=2)
    for name, parameter in model.named_parameters():
        std = parameter.std().item()
        if name.startswith("patch_embed"):
            assert parameter.abs().max() <= 1 / 16 + 1e-6, name  # uniform, ± 1 / sqrt(16 · 16)
            assert std == pytest.approx(1 / 16 / math.sqrt(3), rel=0.1), name
        elif parameter.ndim > 1:
            few = name in ("cls_token", "dist_token")
            assert std == pytest.approx(0.02, rel=0.25 if few else 0.1), name
            assert abs(parameter.mean().item()) < 0.004, name
        else:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name


@BOTH_HEADS
@pytest.mark.parametrize("every", [1, 5])
@torch.no_grad()
def test_the_forward_pass_written_out_by_hand(distilled_type, every):
    model, mel = tiny(distilled_type=distilled_type, s_patchout_t_interleaved=every), mels(2)
    kept = [n for n in range(ROWS * COLUMNS) if n % COLUMNS % every == 0]
    expected = by_hand(model, mel, kept)
    logits, embeddings = model(mel)
    close(embeddings, expected["embeddings"])
    two_heads = (expected["cls"] + expected["dist"]) / 2
    close(logits, expected["mean"] if distilled_type == "mean" else two_heads)
    for block in range(2):
        nothing, embeddings = model(mel, transformer_block=np.int64(block))
        assert nothing is None
        close(embeddings, expected[block])
    model.train().time_new_pos_embed.zero_()  # the random offset then changes nothing
    expected = by_hand(model, mel, kept)
    logits, embeddings = model(mel)
    close(embeddings, expected["embeddings"])
    two_heads = (expected["cls"], expected["dist"])
    close(logits, expected["mean"] if distilled_type == "mean" else two_heads)
    if distilled_type == "separated":  # of a long track too
        assert [part.shape for part in model(noise(2 * INPUT_T * 256))[0]] == [(2, 5), (2, 5)]


@pytest.mark.parametrize(("block", "computed"), [(0, 1), (2, 3), (3, 4), (-1, 4)])
def test_later_blocks_are_not_computed(block, computed):
    model, runs = tiny(depth=4), []
    for number, layer in enumerate(model.blocks):
        layer.register_forward_hook(lambda *_, number=number: runs.append(number))
    model(mels(1, 60), transformer_block=block)
    assert runs == list(range(computed))


@pytest.mark.parametrize("block", [-2, 2, True, 1.0, "1", None])
def test_a_block_that_is_not_there(block):
    with refuses("invalid", setting="transformer_block"):
        tiny()(mels(1, 60), transformer_block=block)


@BOTH_HEADS
def test_gradients_reach_every_parameter_that_is_used(distilled_type):
    model = tiny(distilled_type=distilled_type).train()
    logits, embeddings = model(mels(2))
    logits = torch.cat(logits) if distilled_type == "separated" else logits
    (logits.square().sum() + embeddings.sum()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unused = {"head_dist.weight", "head_dist.bias"} if distilled_type == "mean" else set()
    assert without == unused


@pytest.mark.parametrize("name", RATES)
def test_rates_are_at_least_0_and_below_1(name):
    tiny(**{name: 0.999})
    for rate in (1, -0.1, math.nan):
        with refuses("invalid", setting=name):
            tiny(**{name: rate})
    assert [block.path for block in tiny(depth=3, drop_path_rate=0.5).blocks] == [0, 0.25, 0.5]


def test_other_options():
    with refuses("mismatch", setting="labels"):
        tiny(labels=["a", "b"])
    with pytest.raises(TypeError):
        tiny(s_patchout_time=3)
    sizes = tiny(depth=np.uint8(1), s_patchout_t=np.int32(2)).sizes()
    assert json.loads(json.dumps(sizes)) == Maest(**sizes).sizes()


@pytest.mark.parametrize("rates", [(0.0, 0.0, 0.0), (0.2, 0.3, 0.4)])
@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_timms(rates, training):
    """Its values, its gradients, and its random numbers."""
    from timm.models.vision_transformer import Block as Reference

    torch.manual_seed(0)
    block = Block(48, 3, 120, *rates)
    names = dict(zip(("proj_drop", "attn_drop", "drop_path"), rates, strict=True))
    norm = partial(nn.LayerNorm, eps=1e-6)
    reference = Reference(48, 3, 120 / 48, qkv_bias=True, norm_layer=norm, **names)
    reference.load_state_dict(block.state_dict())
    assert list(block.state_dict()) == list(reference.state_dict())
    x, outputs = torch.randn(5, 20, 48), []
    for one in (block.train(training), reference.train(training)):
        torch.manual_seed(1)
        outputs.append(one(x))
        outputs[-1].square().sum().backward()
    close(*outputs)
    for parameter, other in zip(block.parameters(), reference.parameters(), strict=True):
        close(parameter.grad, other.grad)
    if not training:
        close(block(x, queries=2), outputs[1][:, :2])


@torch.no_grad()
def test_tokens_and_positions_in_eval():
    model, mel = tiny(**RANDOM), mels(2)
    seen = watch(model)
    for frames in (INPUT_T, 58):  # a shorter input takes the first positions
        model(mel[..., :frames])
        assert model.n_tokens(frames, training=False) == seen[-1].shape[1]
        close(seen[-1][:, 2:], grid(model, mel[..., :frames]))
        two = torch.cat((model.cls_token, model.dist_token), dim=1) + model.new_pos_embed
        close(seen[-1][:, :2], two.expand(2, -1, -1))


@pytest.mark.parametrize("options", [{}, PATCHOUT])
@pytest.mark.parametrize("columns", [11, POSITIONS])
@torch.no_grad()
def test_tokens_in_training_are_drawn_in_this_order(options, columns):
    """The positions' offset, then columns, rows, patches: a seed reproduces older runs."""
    model, mel = tiny(**options).train(), mels(2, 10 * columns + 6)
    seen, offsets = watch(model), set()
    for seed in range(40):
        torch.manual_seed(seed)
        model(mel)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        offsets.add(offset := int(torch.randint(POSITIONS - columns + 1, ())))
        patches = torch.arange(ROWS * columns).view(ROWS, columns)
        if options:
            dropped = 3 * min(columns, COLUMNS) // COLUMNS
            patches = patches[:, torch.randperm(columns)[dropped:].sort().values]
            patches = patches[torch.randperm(ROWS)[2:].sort().values].flatten()
            patches = patches[torch.randperm(len(patches))[7:].sort().values]
        close(seen[-1][:, 2:], grid(model, mel, offset)[:, patches.flatten()])
        assert torch.equal(torch.get_rng_state(), after), "and nothing else is drawn"
        assert model.n_tokens(10 * columns + 6) == seen[-1].shape[1]
    assert offsets == set(range(POSITIONS - columns + 1))


@BOTH_HEADS
@pytest.mark.parametrize("patchout", [{}, {"s_patchout_t_interleaved": 2}])
@pytest.mark.parametrize(
    ("blocks", "logits"),
    [((), True), ((0,), False), ((2, 0), False), ((-1,), False), ((0, 2, -1), True)],
)
@torch.no_grad()
def test_outputs_are_those_of_single_passes(blocks, logits, distilled_type, patchout):
    model, mel = tiny(depth=3, distilled_type=distilled_type, **patchout), mels(2, 120)
    found, embeddings = model.encode(mel, blocks, logits)
    expected, final = model(mel)
    assert set(embeddings) == set(blocks)
    for block, values in embeddings.items():
        close(values, final if block < 0 else model(mel, block)[1].view(2, 3, 64))
    assert (found is None) == (not logits)
    if logits:
        close(found, expected)


@pytest.mark.parametrize("block", [-1, 1])
@torch.no_grad()
def test_eval_is_alone_or_in_any_batch_and_without_chance(block):
    model, plain, mel = tiny(**RANDOM), tiny(), mels(7)
    state = torch.get_rng_state()
    together = model(mel, block)[1]
    assert torch.equal(torch.get_rng_state(), state), "a random number was drawn"
    assert torch.equal(together, model(mel, block)[1])
    close(together, plain(mel, block)[1])
    close(together, torch.cat([model(one[None], block)[1] for one in mel]))
    close(together[[5, 2]], model(mel[[5, 2]], block)[1])


@pytest.mark.parametrize("name", RATES)
@torch.no_grad()
def test_chance_in_training_comes_from_torchs_seed(name):
    model, mel = tiny(**{name: RANDOM[name]}).train(), mels(4, 166)  # one offset of positions
    found = []
    for seed in (1, 2, 3, 4, 1):
        torch.manual_seed(seed)
        found.append(model(mel)[0])
    assert torch.equal(found[0], found[-1])
    assert any(not torch.allclose(found[0], other, atol=1e-4) for other in found[1:-1])


# ---- speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_fused(training):
    """No table of all pairs of tokens; on a CPU and on CUDA the operation has this name."""

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    names, model = [], tiny(depth=3).train(training)
    with Operations():
        model(mels(2))
    assert sum("flash_attention" in name for name in names) == 3
    assert "_softmax" not in names


def test_compiled_blocks_are_one_graph_and_the_same_network():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = tiny(depth=4, s_patchout_t=3, s_patchout_f=1, u_patchout=2).train()
    plain = copy.deepcopy(model)
    model.compile_blocks(backend=backend, fullgraph=True)  # an error where a graph would break
    assert list(model.state_dict()) == list(plain.state_dict())
    # Other batches, lengths and draws of patchout: the first graph is for one number of tokens,
    # the second for any; and so for the last block, which computes two tokens
    for step, (batch, frames) in enumerate([(3, INPUT_T), (3, INPUT_T), (4, 120), (2, 90)]):
        mel = mels(batch, frames, seed=step)
        outputs = []
        for net in (plain, model):
            torch.manual_seed(step)
            outputs.append(net(mel)[0])
            net.zero_grad()
            outputs[-1].square().mean().backward()
        close(outputs[1], outputs[0])
        close(*([p.grad for p in net.parameters() if p.grad is not None] for net in (model, plain)))
    assert len(graphs) == 4
    twin = copy.deepcopy(model).eval()  # is not compiled, and needs no compiler
    close(twin(mel)[0], plain.eval()(mel)[0])
    assert len(graphs) == 4
    torch._dynamo.reset()


@BOTH_HEADS
def test_one_pass_exports_with_batch_and_length_free(distilled_type):
    class OnePass(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny(distilled_type=distilled_type)

        def forward(self, mel):
            return self.net.encode(mel, (0, -1))

    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    exported = torch.export.export(OnePass(), (mels(3),), dynamic_shapes=(free,)).module()
    for mel in (mels(2, 77), mels(5, 120)):
        found, expected = exported(mel), OnePass()(mel)
        close(found.logits, expected.logits)
        close(found.embeddings, expected.embeddings)


def test_values_are_not_looked_at_in_an_exported_network():
    exported = torch.export.export(tiny(), (mels(1, 60),)).module()
    mel = mels(1, 60, seed=9)
    close(exported(mel)[0], tiny()(mel)[0])
    assert exported(torch.full_like(mel, math.nan))[0].isnan().all()


def test_activations_of_a_track_are_weighted_by_seconds():
    model = tiny(labels=list("abcde"))
    wave = noise((2 * INPUT_T + 70) * 256)
    each = model(wave)[0].detach().double().sigmoid().numpy()
    assert np.abs(each[0] - each[2]).max() > 1e-3, "the weights would not show"
    activations, names = model.predict_labels(wave)
    assert (activations.dtype, activations.shape, names) == (np.float32, (5,), list("abcde"))
    expected = np.average(each, axis=0, weights=[INPUT_T, INPUT_T, 71])
    np.testing.assert_allclose(activations, expected, atol=1e-6)
    again, _ = model.predict_labels(model.melspectrogram(wave), melspectrogram_input=True)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    # what is left out at the end has no weight
    short, _ = model.predict_labels(wave[: INPUT_T * 256 + 8000])
    np.testing.assert_allclose(short, each[0], atol=1e-3)
    mel = mels(3, 80)  # a batch has no weights
    expected = model(mel)[0].detach().sigmoid().mean(0).numpy()
    for x in (mel, mel[:, None]):
        np.testing.assert_allclose(model.predict_labels(x)[0], expected, atol=1e-6)


@BOTH_HEADS
def test_predicting_leaves_the_network_as_it_was(distilled_type):
    model, wave = tiny(distilled_type=distilled_type, **RANDOM), noise(30_000)
    gradients = []
    model.head.register_forward_hook(lambda _m, _i, out: gradients.append(out.requires_grad))
    expected, _ = model.predict_labels(wave)
    model.train().blocks.eval()  # a part is frozen
    before = [module.training for module in model.modules()]
    np.testing.assert_array_equal(model.predict_labels(wave)[0], expected)
    assert gradients == [False, False]
    for wrong in (torch.full((3000,), math.nan), [0.0]):
        with pytest.raises(InputError):
            model.predict_labels(wrong)
    assert [module.training for module in model.modules()] == before
