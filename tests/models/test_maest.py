"""The network: its contract with whoever calls it, block by block and token by token."""

import copy
import json
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.errors import InputError
from maest.models import ARCHS, Maest, get_maest
from maest.models.archs import clip_seconds, input_frames
from maest.models.maest import Block

MEAN, STD = 2.06755686098554, 1.268292820667291
SILENCE = -MEAN / (2 * STD)
INPUT_T = 165  # frames: 16 positions, and 15 patch columns of a full input
COLUMNS, ROWS = 15, 9


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(seed: int = 0, **options) -> Maest:
    """A network of two narrow blocks, with position embeddings that tell, in eval mode."""
    torch.manual_seed(seed)
    sizes = {"n_classes": 5, "input_t": INPUT_T, "embed_dim": 64, "num_heads": 2, "depth": 2}
    model = Maest(**(sizes | options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" in name or "token" in name:
                parameter.normal_()
            elif parameter.ndim == 1:  # biases and norms: zeros and ones would hide a slip
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif ".weight" in name:
                parameter.mul_(3)
    return model.eval()


def mels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def waves(*shape: int, seed: int = 2) -> torch.Tensor:
    return 0.3 * mels(*shape, seed=seed)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def grid(model: Maest, mel: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """[B, F, T frames] → [B, F·T, D]: every patch with its position, frequency-major, by hand."""
    w = dict(model.named_parameters())
    x = F.conv2d(mel[:, None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=10)
    columns = x.shape[3]
    index = torch.arange(x.shape[2] * columns)
    f, t = index // columns, index % columns
    x = x[:, :, f, t]
    x = x + w["freq_new_pos_embed"][:, :, f, 0] + w["time_new_pos_embed"][:, :, 0, offset + t]
    return x.transpose(1, 2).detach()


def by_hand(model: Maest, mel: torch.Tensor) -> dict[str | int, torch.Tensor]:
    """The network from its description: outputs of the blocks by number, then the rest by name."""
    w = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name, eps=1e-6):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x):
        return x.unflatten(-1, (model.num_heads, -1)).transpose(1, 2)

    two = [
        w[f"{name}_token"][:, 0] + w["new_pos_embed"][:, i] for i, name in ((0, "cls"), (1, "dist"))
    ]
    two = torch.stack(two, dim=1).expand(len(mel), -1, -1)
    x = torch.cat((two, grid(model, mel)), dim=1)
    found = {}
    for b in range(model.depth):
        q, k, v = map(
            heads, linear(norm(x, f"blocks.{b}.norm1"), f"blocks.{b}.attn.qkv").chunk(3, -1)
        )
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), f"blocks.{b}.attn.proj")
        hidden = linear(norm(x, f"blocks.{b}.norm2"), f"blocks.{b}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"blocks.{b}.mlp.fc2")
        found[b] = torch.cat((x[:, 0], x[:, 1], x[:, 2:].mean(1)), dim=-1)
    x = norm(x, "norm")
    cls, dist = x[:, 0], x[:, 1]

    def head(x):
        return linear(norm(x, "head.0", 1e-5), "head.1")

    found["embeddings"] = (cls + dist) / 2
    found["mean"] = head((cls + dist) / 2)
    found["cls head"], found["dist head"] = head(cls), linear(dist, "head_dist")
    return found


def watch(model: Maest) -> list[torch.Tensor]:
    """The tokens that enter the first block, one tensor a forward pass, as they come."""
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    return seen


def identify(model: Maest, mel: torch.Tensor, tokens: torch.Tensor) -> tuple[int, list[int]]:
    """Which patches of the whole grid these tokens are, and the time offset of their positions."""
    columns = (mel.shape[-1] - 16) // 10 + 1
    for offset in range(model.time_new_pos_embed.shape[-1] - columns + 1):
        whole = grid(model, mel, offset)
        distance = torch.cdist(tokens[0, 2:], whole[0], compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.min(dim=1)
        if nearest.values.max() < 1e-3:
            kept = nearest.indices
            close(tokens[:, 2:], whole[:, kept])  # the same ones for the whole batch
            return offset, kept.tolist()
    raise AssertionError("these tokens are patches with other positions than their own")


# ------------------------------------------------------------------ the network itself


def test_the_released_state_dict():
    with torch.device("meta"):  # shapes alone: nothing to wait for
        model = get_maest("maest_base", n_classes=400, input_t=1875)
    d = 768
    expected = {
        "cls_token": (1, 1, d),
        "dist_token": (1, 1, d),
        "new_pos_embed": (1, 2, d),
        "freq_new_pos_embed": (1, d, 9, 1),
        "time_new_pos_embed": (1, d, 1, 187),
        "patch_embed.proj.weight": (d, 1, 16, 16),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "head.0.weight": (d,),
        "head.0.bias": (d,),
        "head.1.weight": (400, d),
        "head.1.bias": (400,),
        "head_dist.weight": (400, d),
        "head_dist.bias": (400,),
    }
    for n in range(12):
        for name, rows, columns in (
            ("norm1", d, None),
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("norm2", d, None),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
        ):
            weight = (rows,) if columns is None else (rows, columns)
            expected[f"blocks.{n}.{name}.weight"] = weight
            expected[f"blocks.{n}.{name}.bias"] = (rows,)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    assert all(type(block) is Block for block in model.blocks)
    assert model.num_heads == model.blocks[0].attn.num_heads == 12
    norms = {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert norms.pop("head.0") == 1e-5
    assert set(norms.values()) == {1e-6}


def test_fresh_weights():
    """Truncated normal of std 0.02, biases 0; the convolution as PyTorch has it."""
    model = get_maest("maest_tiny", n_classes=400, depth=2)
    for name, parameter in model.named_parameters():
        std = parameter.std().item()
        if name.startswith("patch_embed"):
            assert parameter.abs().max() <= 1 / 16 + 1e-6, name  # uniform, ± 1 / sqrt(16 · 16)
            assert std == pytest.approx(1 / 16 / math.sqrt(3), rel=0.1), name
        elif name in ("cls_token", "dist_token"):
            assert 0.015 < std < 0.025, name
        elif parameter.ndim > 1:
            assert std == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.004, name
        else:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name


@pytest.mark.parametrize(
    ("frames", "positions"), [(312, 31), (625, 62), (1250, 125), (1875, 187), (100, 10)]
)
def test_positions_are_input_over_stride(frames, positions):
    shapes = {n: tuple(p.shape) for n, p in tiny(input_t=frames).named_parameters()}
    assert shapes["time_new_pos_embed"] == (1, 64, 1, positions)
    assert shapes["freq_new_pos_embed"] == (1, 64, 9, 1)


def test_the_forward_pass_written_out_by_hand():
    model, mel = tiny(depth=3), mels(2, 96, INPUT_T)
    expected = by_hand(model, mel)
    with torch.no_grad():
        logits, embeddings = model(mel)
        close(embeddings, expected["embeddings"])
        close(logits, expected["mean"])
        for block in range(3):
            nothing, embeddings = model(mel, transformer_block=block)
            assert nothing is None
            close(embeddings, expected[block])
    assert logits.shape == (2, 5)
    assert embeddings.shape == (2, 3 * 64)


def test_block_embeddings_are_what_the_block_gives_out():
    model, mel = tiny(), mels(2, 96, 120)
    seen = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _i, out, number=number: seen.update({number: out}))
    with torch.no_grad():
        for number in range(2):
            _, found = model(mel, transformer_block=number)
            x = seen[number]
            cls, dist, average = found.split(64, dim=1)
            assert torch.equal(cls, x[:, 0])
            assert torch.equal(dist, x[:, 1])
            close(average, x[:, 2:].sum(1) / (9 * 11))
        logits, embeddings = model(mel)
        x = model.norm(seen[1])
        close(embeddings, (x[:, 0] + x[:, 1]) / 2)
        close(logits, model.head((x[:, 0] + x[:, 1]) / 2))


@pytest.mark.parametrize(("block", "computed"), [(0, 1), (2, 3), (3, 4), (-1, 4)])
def test_later_blocks_are_not_computed(block, computed):
    model = tiny(depth=4)
    runs = []
    for number, layer in enumerate(model.blocks):
        layer.register_forward_hook(lambda *_, number=number: runs.append(number))
    with torch.no_grad():
        model(mels(1, 96, 60), transformer_block=block)
    assert runs == list(range(computed))


@pytest.mark.parametrize("block", [-2, 2, 12, True, 1.0, "1", None, np.int64(2)])
def test_a_block_that_is_not_there(block):
    with pytest.raises(InputError) as caught:
        tiny()(mels(1, 96, 60), transformer_block=block)
    assert caught.value.setting == "transformer_block"


def test_a_second_block_of_one():
    with pytest.raises(InputError):
        tiny(depth=1)(mels(1, 96, 60), transformer_block=1)


def test_whole_numbers_of_numpy():
    model, mel = (
        tiny(n_classes=np.int64(5), s_patchout_t=np.int32(2), depth=np.uint8(2)),
        mels(1, 96, 60),
    )
    with torch.no_grad():
        assert torch.equal(model(mel, np.int64(1))[1], model(mel, 1)[1])
    json.dumps(model.sizes())


def test_separated_heads():
    model, mel = tiny(distilled_type="separated"), mels(3, 96, 120)
    expected = by_hand(model, mel)
    with torch.no_grad():
        logits, embeddings = model(mel)
        close(logits, (expected["cls head"] + expected["dist head"]) / 2)
        close(embeddings, expected["embeddings"])
        model.train()
        model.time_new_pos_embed.zero_()  # the random offset then changes nothing
        expected = by_hand(model, mel)
        (cls, dist), embeddings = model(mel)
        close(cls, expected["cls head"])
        close(dist, expected["dist head"])
        close(embeddings, expected["embeddings"])
        (cls, dist), embeddings = model(waves(2 * INPUT_T * 256))  # from a long one too
        assert cls.shape == dist.shape == (2, 5)
        assert embeddings.shape == (2, 64)


@pytest.mark.parametrize("distilled_type", ["mean", "separated"])
def test_gradients_reach_every_parameter_that_is_used(distilled_type):
    model = tiny(distilled_type=distilled_type).train()
    logits, embeddings = model(mels(2, 96, INPUT_T))
    logits = torch.cat(logits) if distilled_type == "separated" else logits
    (logits.square().sum() + embeddings.sum()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unused = {"head_dist.weight", "head_dist.bias"} if distilled_type == "mean" else set()
    assert without == unused


@pytest.mark.parametrize(
    "wrong",
    [
        {"distilled_type": "both"},
        {"n_classes": 0},
        {"depth": 0},
        {"input_t": 15},
        {"input_f": 15},
        {"num_heads": 5},
        {"num_heads": 0},
        {"n_classes": True},
        {"n_classes": 3.0},
        {"norm_mean": math.nan},
        {"norm_mean": math.inf},
        {"norm_std": math.nan},
        {"norm_std": 0},
        {"mlp_ratio": 0},
        {"drop_rate": 1},
        {"attn_drop_rate": -0.1},
        {"drop_path_rate": 2},
        {"drop_path_rate": math.nan},
        {"labels": ["a", "b"]},
    ],
)
def test_sizes_that_make_no_network(wrong):
    with pytest.raises(InputError) as caught:
        tiny(**wrong)
    assert caught.value.setting == next(iter(wrong))


def copied(block: Block, **rates) -> nn.Module:
    """timm's block with the same weights."""
    from timm.models.vision_transformer import Block as Reference

    dim, hidden = block.attn.proj.in_features, block.mlp.fc1.out_features
    options = {"qkv_bias": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)} | rates
    reference = Reference(dim, block.attn.num_heads, hidden / dim, **options)
    reference.load_state_dict(block.state_dict())
    return reference


@pytest.mark.parametrize("rates", [(0.0, 0.0, 0.0), (0.2, 0.3, 0.4)])
@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_timms(rates, training):
    """Its values, its gradients, and its random numbers."""
    torch.manual_seed(0)
    block = Block(48, 3, 120, *rates)
    reference = copied(
        block, **dict(zip(("proj_drop", "attn_drop", "drop_path"), rates, strict=True))
    )
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


# ------------------------------------------------------------------ what goes in


def test_input_shapes_and_what_comes_out():
    model = tiny()
    with torch.no_grad():
        for x, options, patches in (
            (waves(1), {}, 1),
            (waves(INPUT_T * 256), {}, 1),
            (waves(2 * INPUT_T * 256 + 16_000), {}, 3),
            (waves(4, 3000), {}, 4),
            (mels(96, 1), {"melspectrogram_input": True}, 1),
            (mels(96, 2 * INPUT_T + 63), {"melspectrogram_input": True}, 3),
            (mels(3, 96, 1), {}, 3),
            (mels(3, 96, INPUT_T), {}, 3),
            (mels(3, 1, 96, 40), {}, 3),
            (mels(3, 1, 96, 40), {"melspectrogram_input": True}, 3),
        ):
            logits, embeddings = model(x, **options)
            assert logits.shape == (patches, 5), x.shape
            assert embeddings.shape == (patches, 64), x.shape
            nothing, embeddings = model(x, transformer_block=0, **options)
            assert nothing is None
            assert embeddings.shape == (patches, 192), x.shape


def test_one_channel_is_the_same_as_none():
    model, mel = tiny(), mels(2, 96, 100)
    with torch.no_grad():
        assert torch.equal(model(mel)[0], model(mel[:, None])[0])


@pytest.mark.parametrize("n", [1, 300, 3839, 3840, 3841, 20_000, 2 * INPUT_T * 256 + 20_000])
def test_waveform_and_spectrogram_give_the_same(n):
    model, wave = tiny(), waves(n)
    mel = model.melspectrogram(wave)
    assert mel.shape == (96, 1 + -(-n // 256))
    with torch.no_grad():
        for block in (-1, 0):
            close(model(wave, block)[1], model(mel, block, melspectrogram_input=True)[1])
        if n < INPUT_T * 256:
            close(model(wave[None])[0], model(mel[None])[0])
            close(model(wave)[0], model(wave[None])[0])


def test_the_spectrogram_is_normalised_as_the_released_models_want():
    model, wave = tiny(), waves(2, 5000)
    expected = (MelSpectrogram()(wave).double() - MEAN) / (2 * STD)
    found = model.melspectrogram(wave)
    assert found.shape == (2, 96, 21)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    close(model.melspectrogram(wave[0]), found[0])
    other = tiny(norm_mean=1.0, norm_std=0.25).melspectrogram(wave)
    close(other, (MelSpectrogram()(wave) - 1) / 0.5)


def test_casting_the_network_leaves_the_front_end():
    wave = waves(5000)
    expected = tiny().melspectrogram(wave)
    model = tiny().to(torch.bfloat16)
    assert torch.equal(model.melspectrogram(wave), expected)
    with torch.no_grad():
        logits, _ = model(wave)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_float_types_go_in(dtype):
    model = tiny()
    with torch.no_grad():
        for x, options in (
            (waves(5000).to(dtype), {}),
            (mels(96, 50).to(dtype), {"melspectrogram_input": True}),
            (mels(2, 96, 50).to(dtype), {}),
        ):
            found, _ = model(x, **options)
            assert found.dtype == torch.float32
            close(found, model(x.float(), **options)[0])


@pytest.mark.parametrize("frames", [1, 2, 15])
def test_short_inputs_are_padded_with_silence(frames):
    model, mel = tiny(norm_mean=1.5, norm_std=2.0), mels(96, frames)
    padded = torch.full((96, 16), -1.5 / 4)
    padded[:, :frames] = mel
    with torch.no_grad():
        for block in (-1, 0):
            expected = model(padded[None], block)[1]
            assert torch.equal(model(mel, block, melspectrogram_input=True)[1], expected)
            assert torch.equal(model(mel[None], block)[1], expected)
            assert torch.equal(model(mel[None, None], block)[1], expected)


def test_silence_is_what_the_front_end_makes_of_zeros():
    model = tiny()
    quiet = model.melspectrogram(torch.zeros(15 * 256))
    torch.testing.assert_close(quiet, torch.full((96, 16), SILENCE))
    with torch.no_grad():
        close(model(torch.zeros(1))[0], model(torch.zeros(15 * 256))[0])
        # sound at the very start, then nothing: the same as the sound with zeros after it
        sound = waves(256)
        long = torch.cat((sound, torch.zeros(14 * 256)))
        mel = model.melspectrogram(long)
        mel[:, 2:] = SILENCE  # the frame that reaches into the sound from outside of it
        close(model(sound)[0], model(mel[None])[0])


@pytest.mark.parametrize("block", [-1, 1])
def test_a_long_input_is_its_patches_one_after_the_other(block):
    length = 90
    model = tiny(input_t=length)
    wave = waves((20 * length + 70) * 256)  # more patches than go through at a time
    mel = model.melspectrogram(wave)
    pieces = [mel[:, i : i + length] for i in range(0, mel.shape[1], length)]
    assert [p.shape[1] for p in pieces[-2:]] == [length, 71]
    with torch.no_grad():
        expected = [torch.cat(o) for o in zip(*(model(p[None], -1) for p in pieces), strict=True)]
        if block >= 0:
            expected = [None, torch.cat([model(p[None], block)[1] for p in pieces])]
        for logits, embeddings in (
            model(wave, block),
            model(mel, block, melspectrogram_input=True),
        ):
            close(embeddings, expected[1])
            assert logits is None if block >= 0 else logits.shape == (21, 5)
            if logits is not None:
                close(logits, expected[0])
        # 40 frames more than whole patches: less than a second, left out
        logits, embeddings = model(mel[:, : 2 * length + 40], block, melspectrogram_input=True)
        close(embeddings, expected[1][:2])


def test_how_long_an_input_may_be_where_it_is_not_cut():
    model = tiny(input_t=625)
    with torch.no_grad():
        for frames in (625, 626, 635):
            assert model(mels(1, 96, frames))[0].shape == (1, 5)
            assert model(mels(1, 1, 96, frames))[0].shape == (1, 5)
        assert model(waves(1, 160_000))[0].shape == (1, 5)  # 626 frames
        assert model(waves(1, 634 * 256))[0].shape == (1, 5)  # 635 frames
    for x in (mels(1, 96, 636), mels(1, 1, 96, 636), waves(1, 634 * 256 + 1)):
        for training in (False, True):
            with pytest.raises(InputError) as caught:
                model.train(training)(x)
            assert caught.value.setting == "x"


MEL = {"melspectrogram_input": True}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "x",
    [
        [0.0, 1.0],
        None,
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(16_000, dtype=torch.int32),
        torch.zeros(2, 96, 50, dtype=torch.int16),
        np.zeros(4, np.complex64),
        np.array(["a"]),
    ],
)
def test_other_types_are_refused(x, training):
    with pytest.raises(TypeError):
        tiny().train(training)(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("shape", "options", "kind", "hint"),
    [
        ((0,), {}, "empty", "[samples]"),
        ((0, 16_000), {}, "empty", "[samples]"),
        ((2, 0), {}, "empty", "[samples]"),
        ((96, 0), MEL, "empty", "[F, T]"),
        ((2, 96, 0), {}, "empty", "[B, F, T]"),
        ((0, 96, 50), {}, "empty", "[B, F, T]"),
        ((), {}, "invalid", "[samples]"),
        ((1, 1, 1, 96, 50), {}, "invalid", "[B, F, T]"),
        ((95, 50), MEL, "mismatch", "96 bands"),
        ((2, 128, 50), {}, "mismatch", "96 bands"),
        ((2, 1, 64, 50), {}, "mismatch", "96 bands"),
        ((50, 96), MEL, "mismatch", "transposed"),
        ((2, 50, 96), {}, "mismatch", "transposed"),
        ((2, 1, 50, 96), {}, "mismatch", "transposed"),
        ((2, 2, 96, 50), {}, "invalid", "[B, 1, F, T]"),
        ((2, 96, 50, 1), {}, "invalid", "[B, 1, F, T]"),
        ((16_000,), MEL, "invalid", "melspectrogram_input"),
        # Two dimensions that would be waveforms, and are meant otherwise
        ((96, 312), {}, "invalid", "melspectrogram_input=True"),
        ((96, 1875), {}, "invalid", "melspectrogram_input=True"),
        ((312, 96), {}, "invalid", "x.T"),
        ((2, 480_000), {}, "invalid", "x.mean(0)"),
        ((480_000, 2), {}, "invalid", "x.mean(1)"),
        ((20, 480_000), {}, "invalid", "[samples]"),
    ],
)
def test_other_shapes_are_refused(shape, options, kind, hint, training):
    with pytest.raises(InputError) as caught:
        tiny().train(training)(torch.zeros(shape), **options)
    assert (caught.value.setting, caught.value.kind) == ("x", kind)
    assert hint in caught.value.hint


# ------------------------------------------------------------------ arrays


@pytest.mark.parametrize(
    "as_given",
    [
        lambda wave: wave.numpy(),
        lambda wave: wave.numpy().astype(np.float64),
        lambda wave: wave.double(),
        lambda wave: wave.numpy().astype(">f4"),
        lambda wave: wave.numpy()[::-1].copy()[::-1],  # which torch does not take
        lambda wave: (wave * 32768).short(),
        lambda wave: (wave * 32768).short().numpy(),
    ],
)
def test_waveforms_in_any_form(as_given):
    model = tiny(labels=list("abcde"))
    for wave in (waves(50_000), waves(2, 20_000)):
        wave = (0.1 * wave).clamp(-1, 1).mul(32768).round() / 32768  # what 16 bits hold
        given = as_given(wave)
        with torch.no_grad():
            for one, other in zip(model(given), model(wave), strict=True):
                assert torch.equal(one, other)
        found, names = model.predict_labels(given)
        np.testing.assert_array_equal(found, model.predict_labels(wave)[0])
        assert names == model.labels
        assert torch.equal(model.melspectrogram(given), model.melspectrogram(wave))


def test_log_mels_as_arrays():
    model, mel = tiny(), mels(2, 96, 60)
    with torch.no_grad():
        assert torch.equal(model(mel.numpy())[0], model(mel)[0])
        assert torch.equal(model(mel[0].numpy(), melspectrogram_input=True)[0], model(mel[:1])[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("shape", "at", "options"),
    [
        ((5000,), (4999,), {}),
        ((2, 5000), (1, 0), {}),
        ((96, 50), (95, 49), {"melspectrogram_input": True}),
        ((2, 96, 50), (1, 3, 3), {}),
        ((2, 1, 96, 10), (1, 0, 0, 0), {}),
        # in the half second that is left out at the end of a long track
        ((INPUT_T * 256 + 9000,), (INPUT_T * 256 + 8000,), {}),
        ((96, INPUT_T + 30), (0, INPUT_T + 29), {"melspectrogram_input": True}),
    ],
)
def test_what_is_not_finite_is_refused_in_eval_only(shape, at, options, value):
    model, x = tiny(), mels(*shape)
    x[at] = value
    with pytest.raises(InputError) as caught:
        model(x, **options)
    assert caught.value.kind == "corrupt"
    with torch.no_grad():
        assert model.train()(x, **options)[0].shape[1] == 5


@pytest.mark.parametrize("distilled_type", ["mean", "separated"])
def test_one_pass_exports_with_batch_and_length_free(distilled_type):
    class OnePass(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny(distilled_type=distilled_type)

        def forward(self, mel):
            return self.net.encode(mel, (0, -1))

    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    exported = torch.export.export(OnePass(), (mels(3, 96, INPUT_T),), dynamic_shapes=(free,))
    for shape in ((2, 96, 77), (5, 96, 120)):
        mel = mels(*shape)
        found, expected = exported.module()(mel), OnePass()(mel)
        close(found.logits, expected.logits)
        for block in (0, -1):
            close(found.embeddings[block], expected.embeddings[block])


def test_values_are_not_looked_at_in_an_exported_network():
    exported = torch.export.export(tiny(), (mels(1, 96, 60),)).module()
    mel = mels(1, 96, 60, seed=9)
    close(exported(mel)[0], tiny()(mel)[0])
    assert exported(torch.full_like(mel, math.nan))[0].isnan().all()


@pytest.mark.parametrize("training", [False, True])
def test_the_callers_tensor_is_never_changed(training):
    model = tiny(s_patchout_t=2, drop_rate=0.1).train(training)
    for x, options in (
        (waves(70_000), {}),
        (waves(2, 700), {}),
        (mels(96, 200), {"melspectrogram_input": True}),
        (mels(2, 96, 60), {}),
        (mels(2, 1, 96, 165), {}),
    ):
        if training and x.shape[-1] == 700:
            continue  # too short for patchout
        before = x.clone()
        with torch.no_grad():
            model(x, **options)
            if not training:
                model.predict_labels(x, **options)
        assert torch.equal(x, before)


# ------------------------------------------------------------------ chance


RANDOM = {
    "s_patchout_t": 4,
    "s_patchout_f": 2,
    "u_patchout": 7,
    "drop_rate": 0.3,
    "attn_drop_rate": 0.3,
    "drop_path_rate": 0.5,
}


@pytest.mark.parametrize("options", [{}, RANDOM], ids=["plain", "random"])
@pytest.mark.parametrize("block", [-1, 1])
def test_alone_or_in_any_batch(options, block):
    model, mel = tiny(**options), mels(7, 96, INPUT_T)
    with torch.no_grad():
        together = model(mel, block)
        again = model(mel, block)
        pair = model(mel[[5, 2]], block)
        for number in range(7):
            alone = model(mel[number : number + 1], block)
            for x, one in zip(together, alone, strict=True):
                if x is not None:
                    torch.testing.assert_close(x[number : number + 1], one, rtol=0, atol=1e-5)
    assert torch.equal(together[1], again[1])
    torch.testing.assert_close(pair[1], together[1][[5, 2]], rtol=0, atol=1e-5)


def test_chance_plays_no_part_in_eval():
    mel = mels(2, 96, 100)
    with torch.no_grad():
        close(tiny(**RANDOM)(mel)[0], tiny()(mel)[0])
        state = torch.get_rng_state()
        tiny_model = tiny(**RANDOM)
        torch.set_rng_state(state)
        tiny_model(mel)
        assert torch.equal(torch.get_rng_state(), state), "a random number was drawn"


@pytest.mark.parametrize("name", [None, *RANDOM])
def test_chance_in_training_comes_from_torchs_seed(name):
    """Each setting by itself (None: the time offset of a short input)."""
    model = tiny(**({name: RANDOM[name]} if name else {})).train()
    mel = mels(4, 96, INPUT_T if name else 100)
    if name:
        with torch.no_grad():
            model.time_new_pos_embed.zero_()  # the offset shall not be what differs
    found = []
    with torch.no_grad():
        for seed in (1, 2, 3, 4, 1):
            torch.manual_seed(seed)
            found.append(model(mel)[0])
    assert torch.equal(found[0], found[-1])
    assert any(not torch.allclose(found[0], other, atol=1e-4) for other in found[1:-1])


# ------------------------------------------------------------------ speed


class Operations(TorchDispatchMode):
    """Counts the operations that are run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_fused(training):
    """No table of all pairs of tokens; on a CPU and on CUDA the operation has this name."""
    model, mel = tiny(depth=3).train(training), mels(2, 96, INPUT_T)
    with Operations() as fused:
        model(mel)
    flash = [n for name, n in fused.counts.items() if "flash_attention" in name]
    assert flash == [3]
    assert "_softmax" not in fused.counts


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frames", [165, 116])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"s_patchout_t": 4, "s_patchout_f": 2, "u_patchout": 3},
        {"s_patchout_t_indices": [1, 12], "s_patchout_f_interleaved": 2, "s_patchout_t": 2},
    ],
)
def test_the_number_of_tokens(options, frames, training):
    model = tiny(**options).train(training)
    seen = watch(model)
    with torch.no_grad():
        model(mels(2, 96, frames))
    assert model.n_tokens(frames, training=training) == seen[0].shape[1]


def test_compiled_blocks_are_one_graph_and_the_same_network():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = tiny(depth=4, s_patchout_t=3, s_patchout_f=1, u_patchout=2).train()
    plain, names = copy.deepcopy(model), list(model.state_dict())
    model.compile_blocks(backend=backend, fullgraph=True)  # an error where a graph would break
    assert list(model.state_dict()) == names
    # Other batches, lengths and draws of patchout: the first graph is for one number of tokens,
    # the second for any; and so for the last block, which computes two tokens
    for step, (batch, frames) in enumerate([(3, INPUT_T), (3, INPUT_T), (4, 120), (2, 90)]):
        mel = mels(batch, 96, frames, seed=step)
        outputs = []
        for net in (plain, model):
            torch.manual_seed(step)
            outputs.append(net(mel)[0])
            net.zero_grad()
            outputs[-1].square().mean().backward()
        close(outputs[1], outputs[0])
        for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
            if expected.grad is not None:
                close(found.grad, expected.grad)
    assert len(graphs) == 4
    twin = copy.deepcopy(model).eval()  # is not compiled, and needs no compiler
    with torch.no_grad():
        close(twin(mel)[0], plain.eval()(mel)[0])
    assert len(graphs) == 4
    torch._dynamo.reset()


# ------------------------------------------------------------------ patchout


def test_tokens_without_patchout():
    model, mel = tiny(), mels(2, 96, INPUT_T)
    seen = watch(model)
    with torch.no_grad():
        model(mel)
        model(mel[..., :58])
    assert seen[0].shape == (2, 2 + ROWS * COLUMNS, 64)
    tokens = torch.cat((model.cls_token, model.dist_token), dim=1) + model.new_pos_embed
    close(seen[0][:, :2], tokens.expand(2, -1, -1))
    assert identify(model, mel, seen[0]) == (0, list(range(ROWS * COLUMNS)))
    # a shorter input takes the first positions
    assert identify(model, mel[..., :58], seen[1]) == (0, list(range(ROWS * 5)))


def test_the_time_offset_in_training_is_any_contiguous_run():
    model, mel = tiny().train(), mels(2, 96, 116)  # 11 columns, 16 positions
    seen = watch(model)
    offsets = set()
    with torch.no_grad():
        for seed in range(40):
            torch.manual_seed(seed)
            model(mel)
            offset, kept = identify(model, mel, seen[-1])
            assert kept == list(range(ROWS * 11))
            offsets.add(offset)
    assert offsets == {0, 1, 2, 3, 4, 5}


def test_as_many_positions_as_columns_leave_one_offset():
    model, mel = tiny().train(), mels(1, 96, 166)  # 16 columns
    seen = watch(model)
    with torch.no_grad():
        model(mel)
    assert identify(model, mel, seen[0]) == (0, list(range(ROWS * 16)))


def kept_in_training(mel=None, times=25, **options):
    """What patchout leaves in training: lists of patch numbers, one a pass, and the columns."""
    model = tiny(**options).train()
    mel = mels(3, 96, INPUT_T) if mel is None else mel
    columns = (mel.shape[-1] - 16) // 10 + 1
    seen = watch(model)
    with torch.no_grad():
        for seed in range(times):
            torch.manual_seed(seed)
            model(mel)
    kept = [identify(model, mel, tokens)[1] for tokens in seen]
    assert all(one == sorted(set(one)) for one in kept), "in order, and none twice"
    return kept, columns


def rows_and_columns(kept: list[int], columns: int) -> tuple[list[int], list[int]]:
    """Of patches that are a whole grid: its rows and its columns."""
    rows = sorted({number // columns for number in kept})
    times = sorted({number % columns for number in kept})
    assert kept == [f * columns + t for f in rows for t in times], "whole rows and columns"
    return rows, times


def test_structured_patchout_in_time():
    kept, columns = kept_in_training(s_patchout_t=6)
    grids = [rows_and_columns(one, columns) for one in kept]
    assert all(rows == list(range(ROWS)) and len(times) == 9 for rows, times in grids)
    assert {t for _, times in grids for t in times} == set(range(COLUMNS)), "all get a turn"
    assert len({tuple(times) for _, times in grids}) > 20, "others each time"


def test_structured_patchout_in_frequency():
    kept, columns = kept_in_training(s_patchout_f=3)
    grids = [rows_and_columns(one, columns) for one in kept]
    assert all(len(rows) == 6 and times == list(range(COLUMNS)) for rows, times in grids)
    assert {f for rows, _ in grids for f in rows} == set(range(ROWS))
    assert len({tuple(rows) for rows, _ in grids}) > 12


def test_unstructured_patchout():
    kept, _ = kept_in_training(u_patchout=35)
    assert all(len(one) == ROWS * COLUMNS - 35 for one in kept)
    assert {number for one in kept for number in one} == set(range(ROWS * COLUMNS))
    assert len({tuple(one) for one in kept}) == len(kept)


def test_all_random_patchouts_together_on_a_short_input():
    kept, columns = kept_in_training(
        mel=mels(2, 96, 116), s_patchout_t=3, s_patchout_f=4, u_patchout=5
    )
    for one in kept:
        rows = {number // columns for number in one}
        times = {number % columns for number in one}
        assert len(rows) <= 5
        assert len(times) <= 8
        assert len(one) == 5 * 8 - 5


def test_patchout_is_drawn_from_the_cpus_random_numbers_in_this_order():
    """Offset, columns, rows, single patches: so that a seed gives the run that it always gave."""
    model = tiny(s_patchout_t=3, s_patchout_f=2, u_patchout=7).train()
    mel, seen = mels(2, 96, 116), watch(model)  # 11 columns, 16 positions
    for seed in range(5):
        torch.manual_seed(seed)
        with torch.no_grad():
            model(mel)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        offset = int(torch.randint(6, ()))
        columns = torch.randperm(11)[3:].sort().values
        rows = torch.randperm(ROWS)[2:].sort().values
        single = torch.randperm(8 * 7)[7:].sort().values
        expected = [int(f * 11 + t) for f in rows for t in columns]
        assert identify(model, mel, seen[-1]) == (offset, [expected[i] for i in single])
        assert torch.equal(torch.get_rng_state(), after), "and nothing else is drawn"


DETERMINISTIC = [
    ({"s_patchout_t_indices": [0, 3, 14]}, range(9), [1, 2, *range(4, 14)]),
    ({"s_patchout_f_indices": (8, 0)}, range(1, 8), range(15)),
    ({"s_patchout_t_interleaved": 2}, range(9), [0, 2, 4, 6, 8, 10, 12, 14]),
    ({"s_patchout_t_interleaved": 4}, range(9), [0, 4, 8, 12]),
    ({"s_patchout_f_interleaved": 3}, [0, 3, 6], range(15)),
    ({"s_patchout_t_interleaved": 1, "s_patchout_f_interleaved": 0}, range(9), range(15)),
    (
        {
            "s_patchout_t_indices": [1, 2],
            "s_patchout_f_indices": [4],
            "s_patchout_f_interleaved": 2,
        },
        [0, 2, 6, 8],
        [0, *range(3, 15)],
    ),
    ({"s_patchout_t_indices": [15]}, range(9), range(15)),  # a position past the last column
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("options", "rows", "columns"), DETERMINISTIC)
def test_patchout_by_name_acts_always(options, rows, columns, training):
    model, mel = tiny(**options).train(training), mels(2, 96, INPUT_T)
    seen = watch(model)
    with torch.no_grad():
        model(mel)
        model(mel)
    for tokens in seen:
        _, kept = identify(model, mel, tokens)
        assert rows_and_columns(kept, COLUMNS) == (list(rows), list(columns))


def test_patchout_by_name_on_a_short_input():
    model = tiny(s_patchout_t_indices=[1, 12], s_patchout_t_interleaved=3)
    mel = mels(2, 96, 78)  # 7 columns
    seen = watch(model)
    with torch.no_grad():
        model(mel)
    assert rows_and_columns(identify(model, mel, seen[0])[1], 7) == (list(range(9)), [0, 3, 6])


def test_patchout_by_name_and_by_chance_together():
    kept, columns = kept_in_training(
        s_patchout_t=2, s_patchout_t_interleaved=2, s_patchout_f=1, s_patchout_f_indices=[0, 1]
    )
    grids = [rows_and_columns(one, columns) for one in kept]
    assert all(len(rows) == 6 and len(times) == 6 for rows, times in grids)
    assert {f for rows, _ in grids for f in rows} == set(range(2, 9))
    assert {t for _, times in grids for t in times} == set(range(0, 15, 2))


def test_patchout_changes_the_average_only_by_what_is_left():
    model, mel = tiny(s_patchout_t_interleaved=5, depth=1), mels(1, 96, INPUT_T)
    with torch.no_grad():
        outputs = []
        model.blocks[0].register_forward_hook(lambda _m, _i, out: outputs.append(out))
        _, found = model(mel, 0)
    assert outputs[0].shape == (1, 2 + 9 * 3, 64)
    close(found[:, 128:], outputs[0][:, 2:].mean(1))


@pytest.mark.parametrize(
    "options",
    [
        {"s_patchout_t": 16},
        {"s_patchout_t": -1},
        {"s_patchout_f": 9},
        {"u_patchout": 16 * 9},
        {"s_patchout_t_indices": list(range(16))},
        {"s_patchout_f_indices": list(range(9))},
        {"s_patchout_t_indices": [99]},
        {"s_patchout_f_indices": [-1]},
        {"s_patchout_t_interleaved": -1},
        {"s_patchout_t": True},
        {"s_patchout_t": 1.0},
        {"s_patchout_t_indices": [1.0]},
        {"s_patchout_t_indices": [True]},
        {"s_patchout_t_interleaved": 2.0},
    ],
)
def test_impossible_patchout_is_refused_at_once(options):
    with pytest.raises(InputError) as caught:
        tiny(**options)
    assert caught.value.setting == next(iter(options))


@pytest.mark.parametrize(
    "options",
    [
        {"s_patchout_t_interleaved": 1000},
        {"s_patchout_t_indices": list(range(1, 31))},
        {"s_patchout_t": 29},
        {"u_patchout": 31 * 9 - 20},
        {"s_patchout_t": 20, "s_patchout_t_interleaved": 3},
    ],
)
def test_patchout_that_leaves_next_to_nothing_is_refused_at_once(options):
    with pytest.raises(InputError) as caught:
        tiny(input_t=312, **options)
    assert caught.value.setting.startswith("s_patchout_t")
    tiny(input_t=312, s_patchout_t=22)
    tiny(input_t=312, s_patchout_t_interleaved=8, s_patchout_f_interleaved=2)


@pytest.mark.parametrize(
    ("options", "frames", "names"),
    [
        ({"s_patchout_t": 8}, 86, ["s_patchout_t"]),
        ({"s_patchout_t": 15}, INPUT_T, ["s_patchout_t"]),
        ({"s_patchout_f": 4, "s_patchout_f_interleaved": 3}, INPUT_T, ["s_patchout_f"]),
        ({"s_patchout_t": 5, "u_patchout": 90}, INPUT_T, ["u_patchout"]),
    ],
)
def test_patchout_that_leaves_nothing_is_refused_in_training(options, frames, names):
    """At construction or in the first pass; the message names the setting to lower."""
    with pytest.raises(InputError, match="|".join(names)):
        tiny(**options).train()(mels(1, 96, frames))


def test_patchout_by_name_that_leaves_nothing_of_a_short_input():
    with pytest.raises(InputError) as caught:
        tiny(s_patchout_t_indices=[0, 1])(mels(1, 96, 26))
    assert caught.value.setting == "s_patchout_t"


# ------------------------------------------------------------------ tagging


def test_activations_are_weighted_by_seconds():
    labels = [f"Genre---{i}" for i in range(5)]
    model = tiny(labels=labels)
    wave = waves(2 * INPUT_T * 256 + 70 * 256)
    with torch.no_grad():
        each = model(wave)[0].double().sigmoid().numpy()
    assert np.abs(each[0] - each[2]).max() > 1e-3, "the weights would not show"
    lengths = [INPUT_T, INPUT_T, 71]
    expected = sum(n * one for n, one in zip(lengths, each, strict=True)) / sum(lengths)
    activations, names = model.predict_labels(wave)
    assert isinstance(activations, np.ndarray)
    assert activations.dtype == np.float32
    assert activations.shape == (5,)
    assert names == model.labels == labels
    np.testing.assert_allclose(activations, expected, atol=1e-6)
    mel = model.melspectrogram(wave)
    again, _ = model.predict_labels(mel, melspectrogram_input=True)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    # what is left out at the end has no weight
    short, _ = model.predict_labels(wave[: INPUT_T * 256 + 8000])
    np.testing.assert_allclose(short, each[0], atol=1e-3)


def test_activations_of_a_batch_are_the_plain_mean():
    model, mel = tiny(), mels(3, 96, 80)
    with torch.no_grad():
        expected = model(mel)[0].sigmoid().mean(0).numpy()
    for x in (mel, mel[:, None]):
        activations, names = model.predict_labels(x)
        assert names is None
        np.testing.assert_allclose(activations, expected, atol=1e-6)


@pytest.mark.parametrize("distilled_type", ["mean", "separated"])
def test_predicting_leaves_training_as_it_was(distilled_type):
    model = tiny(distilled_type=distilled_type, **RANDOM)
    wave = waves(30_000)
    expected, _ = model.predict_labels(wave)
    assert not model.training
    model.train()
    found, _ = model.predict_labels(wave)
    np.testing.assert_array_equal(found, expected)
    assert all(module.training for module in model.modules())
    with pytest.raises(InputError):
        model.predict_labels(torch.full((3000,), math.nan))
    with pytest.raises(TypeError):
        model.predict_labels([0.0])
    assert all(module.training for module in model.modules())


def test_predicting_leaves_a_part_frozen_in_eval_as_it_was():
    model = tiny().train()
    model.blocks.eval()
    model.predict_labels(waves(5000))
    assert model.training
    assert not any(module.training for module in model.blocks.modules())


def test_predicting_computes_no_gradients():
    model = tiny()
    seen = []
    model.head.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    model.predict_labels(waves(5000))
    assert seen == [False]
    assert model(waves(5000))[0].requires_grad


# ------------------------------------------------------------------ architectures by name


@pytest.mark.parametrize(
    ("name", "width", "heads", "parameters"),
    [
        ("maest_tiny", 192, 3, 5.4e6),
        ("maest_small", 384, 6, 21.4e6),
        ("maest_base", 768, 12, 85.5e6),
    ],
)
def test_architectures(name, width, heads, parameters):
    arch = ARCHS[name]
    assert (arch.embed_dim, arch.num_heads, arch.depth) == (width, heads, 12)
    if name != "maest_tiny":
        return
    model = get_maest(name, n_classes=7)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert (model.embed_dim, model.num_heads, model.depth, model.n_classes) == (192, 3, 12, 7)
    assert model.labels is None
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.02)
    with torch.no_grad():
        logits, embeddings = model(waves(30_000))
    assert (logits.shape, embeddings.shape) == ((1, 7), (1, 192))


def test_options_reach_the_network():
    model = get_maest("maest_tiny", labels=["a", "b"], input_t=312, s_patchout_t=15, depth=1)
    assert (model.n_classes, model.labels, model.input_t) == (2, ["a", "b"], 312)
    assert (model.patchout.dropped["s_patchout_t"], model.depth, len(model.blocks)) == (15, 1, 1)
    assert model.time_new_pos_embed.shape[-1] == 31


@pytest.mark.parametrize(
    ("arguments", "kind", "setting"),
    [
        ({"arch": "maest_tinny", "n_classes": 2}, "unknown", "arch"),
        ({"arch": "resnet", "n_classes": 2}, "unknown", "arch"),
        ({"arch": "maest_tiny", "n_classes": 3, "labels": ["a", "b"]}, "mismatch", "labels"),
        ({"arch": "maest_tiny"}, "missing", "n_classes"),
        ({"n_classes": 3}, "missing", "arch"),
        ({"arch": "maest_tiny", "n_classes": 3, "pretrained": True}, "missing", "arch"),
    ],
)
def test_contradictions_are_refused(arguments, kind, setting):
    with pytest.raises(InputError) as caught:
        get_maest(**arguments)
    assert (caught.value.kind, caught.value.setting) == (kind, setting)
    assert "maest-tiny-scores" in caught.value.hint or setting != "arch"


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="s_patchout_time"):
        get_maest("maest_tiny", n_classes=2, s_patchout_time=3)


@pytest.mark.parametrize(("clip", "frames"), [(5, 312), (10, 625), (20, 1250), (30, 1875)])
def test_clip_lengths_in_frames_and_back(clip, frames):
    assert input_frames(clip) == frames
    assert clip_seconds(frames) == clip


# ------------------------------------------------------------------ several outputs of one pass


@pytest.mark.parametrize("distilled_type", ["mean", "separated"])
@pytest.mark.parametrize("patchout", [{}, {"s_patchout_t_interleaved": 2}])
@pytest.mark.parametrize("blocks", [(), (0,), (2, 0), (-1,), (0, 1, 2, -1)])
@pytest.mark.parametrize("logits", [False, True])
def test_outputs_are_those_of_single_passes(blocks, logits, distilled_type, patchout):
    if not blocks and not logits:
        return
    model = tiny(depth=3, distilled_type=distilled_type, **patchout)
    mel = mels(2, 96, 120)
    with torch.no_grad():
        found, embeddings = model.encode(mel, blocks, logits)
        expected, final = model(mel)
        assert list(embeddings) == sorted(b for b in blocks if b >= 0) + [-1] * (-1 in blocks)
        for block, values in embeddings.items():
            alone = final if block < 0 else model(mel, transformer_block=block)[1].view(2, 3, 64)
            close(values, alone)
    assert (found is None) == (not logits)
    if logits:
        close(found, expected)


def test_the_last_block_looks_at_all_tokens_for_the_two_that_are_read():
    """Its other queries and its MLP are left out, and nothing else."""
    model = tiny(depth=2)
    mel = mels(1, 96, 100)
    with torch.no_grad():
        before, _ = model.encode(mel)
        mel[..., 60:] += 1
        after, _ = model.encode(mel)
    assert (before - after).abs().max() > 1e-3


class Adapted(nn.Linear):
    """A layer that was replaced, as LoRA's are."""

    def forward(self, x):
        return super().forward(x) + x.mean(-1, keepdim=True)


@pytest.mark.parametrize("change", ["replaced", "hooked"])
def test_a_changed_layer_of_the_last_block_is_used(change):
    model, mel = tiny(depth=2), mels(2, 96, 60)
    block = model.blocks[-1]
    with torch.no_grad():
        before = model.encode(mel).embeddings[-1]
        if change == "replaced":
            state, block.attn.qkv = block.attn.qkv.state_dict(), Adapted(64, 192)
            block.attn.qkv.load_state_dict(state)
        else:
            block.register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
        short, long = model.encode(mel, (-1,)), model.encode(mel, (1, -1))
    close(short.embeddings[-1], long.embeddings[-1])
    close(short.logits, long.logits)
    assert not torch.allclose(before, short.embeddings[-1], atol=1e-4)
