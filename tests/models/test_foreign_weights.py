"""Weights that others wrote: same outputs as the source, every adaptation logged, nothing run."""

import argparse
import collections
import contextlib
import functools
import json
import logging
import re
import resource
import signal
import struct
import warnings as standard_warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from maest.models import ARCHS, CheckpointError, Maest, get_maest, load_checkpoint, save_model
from maest.models.archs import DEIT, PASST

RELEASED = [name for name in ARCHS if name.startswith("discogs-maest-")]
MAX_LENGTH = {312: 316, 625: 626, 1250: 1256, 1875: 1876}  # ours → the hub's
STATE = dict[str, Tensor]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """No bias and no norm stays what initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        amount = 0.4 / max(parameter.shape) ** 0.5  # outputs of about 1, whatever the width
        parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def warnings(caplog) -> list[str]:
    """Without the paths, which hold a test's name."""
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [line.partition(": ")[2] for line in lines]


def write(state: dict, path: Path) -> Path:
    """By the name: safetensors, or torch's own format."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)
    else:
        torch.save(state, path)
    return path


# ------------------------------------------------------------------ sources, and what they say
#
# The expected outputs are computed from the state dict and FACTS §2 and §3 alone, with timm's
# blocks, whose keys these are.


def square_source(width: int = 64, depth: int = 3) -> torch.nn.Module:
    """DeiT, as timm makes it."""
    name = "deit_base_distilled_patch16_384.fb_in1k"
    torch.manual_seed(0)
    options = {"embed_dim": width, "depth": depth, "num_heads": width // 64}
    return shaken(timm.create_model(name, pretrained=False, **options))


def deit_state(**options) -> STATE:
    return {name: tensor.clone() for name, tensor in square_source(**options).state_dict().items()}


def grid_state(rows: int, columns: int, n_classes: int, width: int = 64, depth: int = 3) -> STATE:
    """MAEST's and PaSST's keys, for a grid of ``rows`` x ``columns``."""
    source = deit_state(width=width, depth=depth)
    state = {n: t for n, t in source.items() if n.startswith(("cls", "dist", "blocks", "norm"))}
    state["new_pos_embed"] = 0.3 * noise(1, 2, width, seed=1)
    state["freq_new_pos_embed"] = 0.3 * noise(1, width, rows, 1, seed=2)
    state["time_new_pos_embed"] = 0.3 * noise(1, width, 1, columns, seed=3)
    state["patch_embed.proj.weight"] = 0.05 * noise(width, 1, 16, 16, seed=4)
    state["patch_embed.proj.bias"] = 0.05 * noise(width, seed=5)
    # A small last norm: else no epsilon of the head would show.
    state["norm.weight"] = 0.01 * state["norm.weight"]
    state["norm.bias"] = 0.01 * state["norm.bias"]
    state["head.0.weight"] = 1 + 0.1 * noise(width, seed=6)
    state["head.0.bias"] = 0.1 * noise(width, seed=7)
    for seed, name in enumerate(("head.1", "head_dist")):
        state[f"{name}.weight"] = 0.1 * noise(n_classes, width, seed=8 + seed)
        state[f"{name}.bias"] = 0.1 * noise(n_classes, seed=10 + seed)
    return state


def passt_state(**options) -> STATE:
    """As the release has it: 128 bands x 998 frames, AudioSet's classes."""
    return grid_state(12, 99, 527, **options)


def maest_state(columns: int = 31, n_classes: int = 4, **options) -> STATE:
    return grid_state(9, columns, n_classes, **options)


def along_own_axis(positions: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(positions.float(), size=size, mode="bicubic", align_corners=False)


def blocks_of(state: STATE) -> torch.nn.Module:
    width = state["cls_token"].shape[-1]
    inside = {n.removeprefix("blocks."): t for n, t in state.items() if n.startswith("blocks.")}
    blocks = torch.nn.Sequential()
    for _ in range(1 + max(int(name.split(".")[0]) for name in inside)):
        norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
        blocks.append(Block(width, width // 64, 4.0, qkv_bias=True, norm_layer=norm))
    blocks.load_state_dict(inside)
    return blocks.eval()


@torch.no_grad()
def expected_outputs(
    state: STATE, mel: Tensor, columns: int, blocks: torch.nn.Module | None = None
) -> tuple[list[Tensor], Tensor]:
    """``(of each block [B, 3·D], after the last norm [B, D])`` of a network of T = columns."""
    state = {name: tensor.float() for name, tensor in state.items()}
    width = state["cls_token"].shape[-1]
    if "pos_embed" in state:
        positions = state["pos_embed"]
        two, grid = positions[:, :2], positions[:, 2:]
        side = int(grid.shape[1] ** 0.5)
        grid = grid.permute(0, 2, 1).reshape(1, width, side, side)
        grid = along_own_axis(grid, (9, columns))
        freq, time = grid.mean(3, keepdim=True), grid.mean(2, keepdim=True)
    else:
        two = state["new_pos_embed"]
        freq = along_own_axis(state["freq_new_pos_embed"], (9, 1))
        time = along_own_axis(state["time_new_pos_embed"], (1, columns))
    kernel = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    x = F.conv2d(mel[:, None], kernel, state["patch_embed.proj.bias"], stride=10)
    x = x + freq + time[..., : x.shape[-1]]
    x = x.reshape(len(mel), width, -1).permute(0, 2, 1)  # index f · T + t
    tokens = torch.cat((state["cls_token"], state["dist_token"]), 1) + two
    x = torch.cat((tokens.expand(len(mel), -1, -1), x), 1)

    outputs = []
    for block in blocks_of(state) if blocks is None else blocks:
        x = block(x)
        outputs.append(torch.cat((x[:, 0], x[:, 1], x[:, 2:].mean(1)), 1))
    x = F.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], 1e-6)
    return outputs, (x[:, 0] + x[:, 1]) / 2


def expected_logits(state: STATE, embeddings: Tensor, eps: float = 1e-5) -> Tensor:
    width = embeddings.shape[-1]
    x = F.layer_norm(embeddings, (width,), state["head.0.weight"], state["head.0.bias"], eps)
    return x @ state["head.1.weight"].T + state["head.1.bias"]


@torch.no_grad()
def check_outputs(model: Maest, state: STATE, logits: bool = True) -> None:
    """At every block and at the end, for whole inputs and for short ones."""
    assert not model.training
    for frames in (model.input_t, 100):
        mel = noise(2, 96, frames, seed=frames)
        blocks, final = expected_outputs(state, mel, model.input_t // 10)
        assert len(blocks) == model.depth
        for number, expected in enumerate(blocks):
            close(model(mel, transformer_block=number)[1], expected)
        found = model(mel)
        close(found[1], final)
        if logits:
            close(found[0], expected_logits(state, final))


def check_fresh(state: STATE, *names: str) -> None:
    for name in names:
        if name == "head.0.weight":
            assert torch.equal(state[name], torch.ones_like(state[name]))
        elif name.endswith("weight"):
            assert 0.015 < state[name].std() < 0.025, name
        else:
            assert not state[name].any(), name


HEAD_0 = ("head.0.weight", "head.0.bias")
LAST = ("head.1.weight", "head.1.bias", "head_dist.weight", "head_dist.bias")


# ------------------------------------------------------------------ the architectures


@pytest.mark.parametrize("name", ARCHS)
def test_every_architecture_without_weights(name):
    arch = ARCHS[name]
    given = {} if arch.n_classes else {"n_classes": 5}
    with torch.device("meta"):  # the shapes alone
        model = get_maest(name, pretrained=False, **given)
    widths = {"maest_tiny": 192, "maest_small": 384, "maest-tiny-scores": 192}
    seconds = {"10s": 10, "5s": 5, "20s": 20, "30s": 30, "scores": 5}
    clip = next((s for key, s in seconds.items() if f"-{key}-" in f"{name}-"), 10)
    classes = {PASST: 527, DEIT: 1000, "maest-tiny-scores": 55}
    classes = classes.get(name, 519 if name.endswith("519l") else 400)
    assert model.embed_dim == widths.get(name, 768)
    assert (model.depth, model.num_heads) == (12, model.embed_dim // 64)
    assert model.input_f == 96
    assert model.input_t == clip * 16000 // 256
    assert model.n_classes == (classes if arch.n_classes else 5)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    width = model.embed_dim
    assert shapes["freq_new_pos_embed"] == (1, width, 9, 1)
    assert shapes["time_new_pos_embed"] == (1, width, 1, {5: 31, 10: 62, 20: 125, 30: 187}[clip])
    assert shapes["head.1.weight"] == shapes["head_dist.weight"] == (model.n_classes, width)
    assert shapes["blocks.11.mlp.fc1.weight"] == (4 * width, width)
    assert "blocks.12.norm1.weight" not in shapes


def test_there_are_ten_published_architectures_and_one_of_ours():
    assert len(RELEASED) == 8
    assert {name for name, arch in ARCHS.items() if arch.published} == {
        *(*RELEASED, PASST, DEIT, "maest-tiny-scores")
    }


def test_without_weights_they_are_drawn():
    one, other = (get_maest("maest_tiny", n_classes=2, pretrained=False, depth=1) for _ in "ab")
    assert 0.015 < one.blocks[0].mlp.fc1.weight.std() < 0.025
    assert not torch.equal(one.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    assert not one.training


# ------------------------------------------------------------------ DeiT

WRAPPED = {
    "w.pt": lambda s: s,
    "w.safetensors": lambda s: s,
    "w.pth": lambda s: {"model": s},
    "w.ckpt": lambda s: {"state_dict": s, "epoch": 3},
}


@pytest.mark.parametrize("file", WRAPPED)
def test_deit(tmp_path, caplog, file):
    state = deit_state()
    path = write(WRAPPED[file](state), tmp_path / file)
    model = get_maest(checkpoint=path, n_classes=7)
    check_outputs(model, state, logits=False)
    check_fresh(model.state_dict(), *HEAD_0, *LAST)
    assert (model.n_classes, model.input_t, model.input_f) == (7, 625, 96)
    logged = warnings(caplog)
    assert any("head" in line and "initialised" in line for line in logged)
    assert any("position" in line and "resized" in line for line in logged)
    assert all(record.getMessage().startswith(str(path)) for record in caplog.records)


@pytest.mark.parametrize("frames", [16, 312, 1250, 1875, 240])
def test_deit_at_other_lengths(tmp_path, frames):
    state = deit_state()
    path = write(state, tmp_path / "w.pt")
    model = get_maest(checkpoint=path, n_classes=7, input_t=frames)
    assert model.input_t == frames
    mel = noise(1, 96, frames)
    blocks, final = expected_outputs(state, mel, frames // 10)
    with torch.no_grad():
        for number, expected in enumerate(blocks):
            close(model(mel, transformer_block=number)[1], expected)
        close(model(mel)[1], final)


@pytest.mark.slow
def test_deit_of_its_real_size(tmp_path):
    source = square_source(width=768, depth=12)
    state = source.state_dict()
    path = write(state, tmp_path / "w.safetensors")
    model = get_maest(DEIT, checkpoint=path, input_t=312)
    assert (model.embed_dim, model.depth, model.num_heads, model.n_classes) == (768, 12, 12, 1000)
    mel = noise(1, 96, 312)
    blocks, final = expected_outputs(state, mel, 31, source.blocks)
    with torch.no_grad():
        for number in (0, 7, 11):
            close(model(mel, transformer_block=number)[1], blocks[number])
        close(model(mel)[1], final)


# ------------------------------------------------------------------ PaSST


@pytest.mark.parametrize("file", WRAPPED)
def test_passt(tmp_path, caplog, file):
    state = passt_state()
    path = write(WRAPPED[file](state), tmp_path / file)
    model = get_maest(checkpoint=path)
    assert (model.n_classes, model.input_t, model.input_f) == (527, 625, 96)
    check_outputs(model, state)
    logged = "\n".join(warnings(caplog))
    assert "freq_new_pos_embed" in logged
    assert "time_new_pos_embed" in logged
    assert logged.count("resized") == 2
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in (*HEAD_0, *LAST))


@pytest.mark.parametrize("frames", [312, 998, 1875])
def test_passt_at_other_lengths(tmp_path, caplog, frames):
    state = passt_state()
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), input_t=frames)
    check_outputs(model, state)
    if frames == 998:  # its own
        assert torch.equal(model.time_new_pos_embed, state["time_new_pos_embed"])
        assert "time_new_pos_embed" not in caplog.text


def test_passt_for_other_classes_keeps_the_norm_before_the_head(tmp_path, caplog):
    state = passt_state()
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), n_classes=9)
    check_outputs(model, state, logits=False)
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in HEAD_0)
    check_fresh(own, *LAST)
    assert any("head" in line and "527" in line and "9" in line for line in warnings(caplog))


def test_passt_without_heads(tmp_path, caplog):
    state = {n: t for n, t in passt_state().items() if not n.startswith("head")}
    path = write(state, tmp_path / "w.pt")
    model = get_maest(checkpoint=path, labels=["x", "y"])
    check_outputs(model, state, logits=False)
    check_fresh(model.state_dict(), *HEAD_0, *LAST)
    assert any("head" in line and "initialised" in line for line in warnings(caplog))
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=path)
    assert (caught.value.kind, caught.value.path) == ("missing", path)


@pytest.mark.parametrize("absent", [*LAST, *HEAD_0])
def test_part_of_a_head_that_is_missing_is_not_passed_over_in_silence(tmp_path, caplog, absent):
    """FACTS lets PaSST's heads be missing; a head of which a part is fresh must be logged."""
    state = passt_state()
    del state[absent]
    try:
        get_maest(checkpoint=write(state, tmp_path / "w.pt"), n_classes=527)
    except CheckpointError as error:
        said = str(error)
    else:
        said = "\n".join(warnings(caplog))
    assert absent in said or "initialised" in said


# ------------------------------------------------------------------ MAEST: flat and Lightning


def lightning(state: STATE, average: STATE | None, raw: str, averaged: str) -> dict:
    """As the trainer nests it, beside what is none of the network's."""
    nested = {raw + name: tensor for name, tensor in state.items()}
    if average is not None:
        nested |= {averaged + name: tensor for name, tensor in average.items()}
        if averaged.endswith("module."):  # torch's AveragedModel counts
            nested[averaged.removesuffix("module.") + "n_averaged"] = torch.tensor(5)
    return {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": nested,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [],
    }


FRONT_END = {
    "melspectrogram.spec.window": torch.ones(512),
    "melspectrogram.mel_scale.fb": torch.ones(257, 96),
}


@pytest.mark.parametrize(
    ("name", "file"),
    [*((name, "w.pt") for name in RELEASED), *((RELEASED[0], file) for file in WRAPPED)],
)
def test_flat_files_of_every_length(tmp_path, caplog, name, file):
    arch = ARCHS[name]
    state = maest_state(arch.input_t // 10, arch.n_classes)
    path = write(WRAPPED[file](state | FRONT_END), tmp_path / file)
    model = get_maest(checkpoint=path)
    assert (model.input_t, model.n_classes) == (arch.input_t, arch.n_classes)
    check_outputs(model, state)
    assert not warnings(caplog)
    own = model.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("averaged", ["net_swa.", "net_swa.module.", "net_swa._orig_mod."])
@pytest.mark.parametrize("raw", ["net.", "net._orig_mod.", "net.module."])
def test_lightning_weights_and_their_average(tmp_path, raw, averaged):
    state, average = maest_state(), maest_state()
    average = {name: tensor + 0.01 for name, tensor in average.items()}
    path = tmp_path / "epoch=3.ckpt"
    torch.save(lightning(state | FRONT_END, average | FRONT_END, raw, averaged), path)
    check_outputs(get_maest(checkpoint=load_checkpoint(path, average=False)), state)
    check_outputs(get_maest(checkpoint=path), average)


@pytest.mark.parametrize("file", ["w.ckpt", "w.safetensors"])
def test_lightning_without_an_average(tmp_path, file):
    state = {"net." + name: tensor for name, tensor in maest_state().items()}
    path = write(WRAPPED[file](state), tmp_path / file)
    check_outputs(get_maest(checkpoint=path), maest_state())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, average=True)
    assert (caught.value.kind, caught.value.path) == ("missing", path)


@pytest.mark.parametrize("make", [maest_state, passt_state, deit_state])
def test_no_average_in_a_flat_file(tmp_path, make):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(write(make(), tmp_path / "w.pt"), average=True)
    assert caught.value.kind == "missing"


def test_an_average_alone_is_no_raw_weights(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {"net_swa." + n: t for n, t in maest_state().items()}}, path)
    for average in (None, True):
        check_outputs(get_maest(checkpoint=load_checkpoint(path, average)), maest_state())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, average=False)
    assert caught.value.kind == "missing"


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_of_compile_and_of_distribution(tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in maest_state().items()}
    check_outputs(get_maest(checkpoint=write(state, tmp_path / "w.pt")), maest_state())


def test_compile_around_distribution(tmp_path):
    state = {"_orig_mod.module." + name: tensor for name, tensor in maest_state().items()}
    check_outputs(get_maest(checkpoint=write(state, tmp_path / "w.pt")), maest_state())


def own_lightning(model: Maest, **extra) -> dict:
    nested = lightning(model.state_dict(), None, "net.", "")
    return nested | {"maest": {"sizes": model.sizes(), "labels": model.labels} | extra}


def test_our_lightning_checkpoint_keeps_what_weights_do_not_say(tmp_path):
    model = shaken(
        Maest(
            n_classes=2,
            input_t=318,
            embed_dim=64,
            depth=2,
            num_heads=4,
            head_eps=1e-3,
            norm_mean=0.5,
            distilled_type="separated",
            labels=["Früh---Messe", "b"],
        )
    )
    torch.save(own_lightning(model), tmp_path / "w.ckpt")
    found = get_maest(checkpoint=tmp_path / "w.ckpt")
    assert found.sizes() == model.sizes()
    assert found.labels == ["Früh---Messe", "b"]
    wave = noise(1, 40_000)
    with torch.no_grad():
        assert torch.equal(found(wave)[0], model(wave)[0])


# What the content says counts, not the name.
MISNAMED = {
    "torch.safetensors": torch.save,
    "safetensors.pt": safetensors.torch.save_file,
    "safetensors.ckpt": safetensors.torch.save_file,
    "no suffix": torch.save,
    "json.json": safetensors.torch.save_file,
    "legacy.safetensors": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("make", [maest_state, passt_state, deit_state])
@pytest.mark.parametrize("name", MISNAMED)
def test_recognised_by_content(tmp_path, name, make):
    state = make(depth=1)
    MISNAMED[name](state, tmp_path / name)
    model = get_maest(checkpoint=tmp_path / name, n_classes=3)
    check_outputs(model, state, logits=False)


def test_torch_weights_in_a_model_folder(tmp_path):
    """A folder's weights are recognised by content too."""
    folder = save_model(tmp_path / "model", shaken(get_maest("maest_tiny", n_classes=2, depth=1)))
    state = get_maest(checkpoint=folder).state_dict()
    torch.save(state, folder / "model.safetensors")
    found = get_maest(checkpoint=folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


# ------------------------------------------------------------------ half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [maest_state, passt_state, deit_state])
def test_half_precision_sources(tmp_path, make, dtype):
    state = {name: tensor.to(dtype) for name, tensor in make().items()}
    if make is deit_state:  # the sum over colours has a test of its own
        kernel = state["patch_embed.proj.weight"]
        kernel[:, 1:] = 0
    for file in ("w.pt", "w.safetensors"):
        model = get_maest(checkpoint=write(state, tmp_path / file), n_classes=5)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        check_outputs(model, state, logits=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_colours_of_half_precision_are_summed_in_full(tmp_path, dtype):
    state = deit_state() | {"patch_embed.proj.weight": noise(64, 3, 16, 16)}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), n_classes=5)
    expected = state["patch_embed.proj.weight"].float().sum(1, keepdim=True)
    close(model.patch_embed.proj.weight.detach(), expected)


# ------------------------------------------------------------------ heads, lengths, what is logged


def test_what_fits_is_taken_without_a_word(tmp_path, caplog):
    state = maest_state()
    path = write(state, tmp_path / "w.pt")
    for given in ({}, {"n_classes": 4}, {"input_t": 312}, {"labels": list("abcd")}):
        model = get_maest(checkpoint=path, **given)
        assert all(torch.equal(model.state_dict()[n], t) for n, t in state.items())
    assert not warnings(caplog)


@pytest.mark.parametrize("frames", [160, 625, 1875])
def test_another_length(tmp_path, caplog, frames):
    state = maest_state()
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), input_t=frames)
    check_outputs(model, state)
    line, *others = warnings(caplog)
    assert len(others) == (frames == 1875)  # many times as long as in training
    assert "time_new_pos_embed" in line
    assert "31" in line
    assert str(frames // 10) in line


@pytest.mark.parametrize("given", [{"n_classes": 6}, {"labels": list("abcdef")}])
def test_another_number_of_classes(tmp_path, caplog, given):
    state = maest_state()
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), **given)
    check_outputs(model, state, logits=False)
    own = model.state_dict()
    check_fresh(own, *LAST)
    assert all(torch.equal(own[name], t) for name, t in state.items() if name not in LAST)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("given", [{}, {"n_classes": 4}, {"n_classes": 6}])
@pytest.mark.parametrize("make", [maest_state, passt_state])
def test_discard_head(tmp_path, caplog, make, given):
    state = make()
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), discard_head=True, **given)
    check_outputs(model, state, logits=False)
    check_fresh(model.state_dict(), *HEAD_0, *LAST)
    assert model.n_classes == given.get("n_classes", state["head.1.bias"].shape[0])
    assert any("head" in line and "discarded" in line for line in warnings(caplog))


def test_a_discarded_head_takes_its_labels_along(tmp_path):
    model = shaken(Maest(n_classes=2, input_t=312, embed_dim=64, depth=1, num_heads=1))
    model.labels = ["a", "b"]
    folder = save_model(tmp_path / "model", model)
    assert get_maest(checkpoint=folder).labels == ["a", "b"]
    assert get_maest(checkpoint=folder, discard_head=True).labels is None
    assert get_maest(checkpoint=folder, discard_head=True, labels=["c", "d"]).labels == ["c", "d"]


# ------------------------------------------------------------------ the hub's folders


def ast(frames: int, n_classes: int, width: int = 64, depth: int = 3, eps: float = 1e-6):
    """`ASTForAudioClassification` with positions that are a sum, labels as published."""
    import transformers

    labels = [f"Genre {i % 7}---Style {i}" for i in range(n_classes)]
    config = transformers.ASTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_mel_bins=96,
        max_length=MAX_LENGTH[frames],
        time_stride=10,
        frequency_stride=10,
        layer_norm_eps=eps,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    torch.manual_seed(0)
    source = shaken(transformers.ASTForAudioClassification(config))
    with torch.no_grad():
        inner = source.audio_spectrogram_transformer
        freq = 0.3 * noise(1, 9, 1, width, seed=1)
        time = 0.3 * noise(1, 1, frames // 10, width, seed=2)
        two = 0.3 * noise(1, 2, width, seed=3)
        positions = torch.cat((two, (freq + time).flatten(1, 2)), 1)
        inner.embeddings.position_embeddings.copy_(positions)
        # A small last norm: else neither epsilon of the head would show.
        inner.layernorm.weight.mul_(0.01)
        inner.layernorm.bias.mul_(0.01)
    return source, labels


def hub_folder(source, folder: Path, names: str = "published") -> Path:
    source.save_pretrained(folder)
    if names == "in memory":
        write(source.state_dict(), folder / "model.safetensors")
    return folder


@torch.no_grad()
def check_against_hub(model: Maest, source, blocks: tuple[int, ...]) -> None:
    mel = noise(1, 96, source.config.max_length)
    out = source(mel.transpose(1, 2), output_hidden_states=True)
    for block in blocks:
        x = out.hidden_states[block + 1]
        expected = torch.cat((x[:, 0], x[:, 1], x[:, 2:].mean(1)), 1)
        close(model(mel, transformer_block=block)[1], expected)
    x = source.audio_spectrogram_transformer(mel.transpose(1, 2)).last_hidden_state
    logits, embeddings = model(mel)
    close(embeddings, (x[:, 0] + x[:, 1]) / 2)
    close(logits, out.logits)


@pytest.mark.parametrize("names", ["published", "in memory"])
@pytest.mark.parametrize("name", RELEASED)
def test_hub_folders(tmp_path, caplog, name, names):
    arch = ARCHS[name]
    source, labels = ast(arch.input_t, arch.n_classes)
    folder = hub_folder(source, tmp_path / "hub", names)
    keys = list(safetensors.torch.load_file(folder / "model.safetensors"))
    assert any(".encoder.layer.0." in key for key in keys) == (names == "published")
    model = get_maest(checkpoint=folder)
    check_against_hub(model, source, (0, 1, 2))
    assert model.labels == labels
    assert (model.input_t, model.n_classes) == (arch.input_t, arch.n_classes)
    assert not any("resized" in line for line in warnings(caplog))


@pytest.mark.slow
def test_a_hub_folder_of_its_real_size(tmp_path):
    source, labels = ast(625, 400, width=768, depth=12)
    model = get_maest(checkpoint=hub_folder(source, tmp_path / "hub"))
    assert (model.embed_dim, model.depth, model.num_heads) == (768, 12, 12)
    check_against_hub(model, source, (0, 7, 11))
    assert model.labels == labels


def test_more_heads_than_the_width_says(tmp_path):
    """The number of attention heads is in the configuration alone."""
    import transformers

    source, _ = ast(312, 3)
    config = transformers.ASTConfig.from_dict(source.config.to_dict() | {"num_attention_heads": 4})
    other = transformers.ASTForAudioClassification(config).eval()
    other.load_state_dict(source.state_dict())
    model = get_maest(checkpoint=hub_folder(other, tmp_path / "hub"))
    assert model.num_heads == 4
    check_against_hub(model, other, (0, 2))


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
def test_hub_weights_without_their_folder(tmp_path, file):
    source, _ = ast(312, 3)
    path = write(dict(source.state_dict()), tmp_path / file)
    check_against_hub(get_maest(checkpoint=path), source, (0, 2))


def test_hub_weights_at_another_length_and_with_other_classes(tmp_path, caplog):
    source, labels = ast(625, 3)
    folder = hub_folder(source, tmp_path / "hub")
    model = get_maest(checkpoint=folder, input_t=312)
    assert model.time_new_pos_embed.shape[-1] == 31
    assert model.labels == labels
    assert any("time_new_pos_embed" in line for line in warnings(caplog))
    caplog.clear()
    model = get_maest(checkpoint=folder, n_classes=5)
    assert model.labels is None
    check_fresh(model.state_dict(), *LAST)
    assert torch.equal(model.head[0].weight, source.classifier.layernorm.weight)
    assert any("head" in line and "initialised" in line for line in warnings(caplog))


def test_a_separated_network_of_hub_weights_has_a_fresh_distillation_head(tmp_path, caplog):
    """The hub has none; where it counts, that must be said."""
    source, _ = ast(312, 3)
    folder = hub_folder(source, tmp_path / "hub")
    model = get_maest(checkpoint=folder, distilled_type="separated")
    check_fresh(model.state_dict(), "head_dist.weight", "head_dist.bias")
    assert any("head" in line for line in warnings(caplog))


def test_labels_follow_their_numbers(tmp_path):
    source, labels = ast(312, 12)
    folder = hub_folder(source, tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(sorted(config["id2label"].items(), key=lambda item: item[0][::-1]))
    (folder / "config.json").write_text(json.dumps(config))
    assert get_maest(checkpoint=folder).labels == labels


def edit(folder: Path, gone: str | None = None, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop(gone, None)
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_mel_bins", 128),
        ("layer_norm_eps", 1e-12),
        ("layer_norm_eps", 1e-5),
        ("time_stride", 8),
        ("frequency_stride", 16),
        ("patch_size", 8),
        ("qkv_bias", False),
        ("hidden_act", "relu"),
        ("hidden_size", 128),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 3),
        # Not there: what transformers takes then is not what MAEST has.
        ("num_mel_bins", None),
        ("layer_norm_eps", None),
    ],
)
def test_hub_settings_of_another_network_are_refused(tmp_path, key, value):
    folder = hub_folder(ast(312, 3)[0], tmp_path / "hub")
    edit(folder, gone=key, **({} if value is None else {key: value}))
    with pytest.raises(CheckpointError, match=key):
        get_maest(checkpoint=folder)


def test_an_epsilon_that_transformers_really_had_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="layer_norm_eps"):
        get_maest(checkpoint=hub_folder(ast(312, 3, eps=1e-12)[0], tmp_path / "hub"))


@pytest.mark.parametrize("amount", [1.0, 0.01, 1e-4])
def test_positions_that_are_no_sum_are_refused(tmp_path, amount):
    source, _ = ast(312, 3)
    with torch.no_grad():
        embeddings = source.audio_spectrogram_transformer.embeddings.position_embeddings
        embeddings[0, 2 + 5 * 31 + 7, 11] += amount
    with pytest.raises(CheckpointError, match="position_embeddings"):
        get_maest(checkpoint=hub_folder(source, tmp_path / "hub"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hub_weights_in_half_precision(tmp_path, dtype):
    source, _ = ast(312, 3)
    half = {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
    source.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    model = get_maest(checkpoint=write(half, tmp_path / "w.safetensors"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    mel = noise(1, 96, 316)
    with torch.no_grad():  # rounded positions are a sum no more, but for a few roundings
        x = source(mel.transpose(1, 2), output_hidden_states=True).hidden_states[3][:, :2]
        found = model(mel, transformer_block=2)[1].reshape(1, 3, 64)[:, :2]
    assert (x - found).abs().max() < 0.02 * x.std()


@pytest.mark.parametrize(("dtype", "part"), [(torch.float16, 0.03), (torch.bfloat16, 0.25)])
def test_positions_that_are_no_sum_are_refused_in_half_precision_too(tmp_path, dtype, part):
    source, _ = ast(312, 3)
    state = dict(source.state_dict())
    name = "audio_spectrogram_transformer.embeddings.position_embeddings"
    positions = state[name].clone()
    positions[:, 2:] += part * positions.abs().max() * (2 * noise(1, 279, 64) % 1 - 0.5)
    half = {n: t.to(dtype) for n, t in (state | {name: positions}).items()}
    with pytest.raises(CheckpointError, match="position_embeddings"):
        get_maest(checkpoint=write(half, tmp_path / "w.safetensors"))


def test_a_folder_without_a_classifier(tmp_path):
    """`ASTModel`: the head is not among what may be missing from hub files."""
    source, _ = ast(312, 3)
    folder = tmp_path / "hub"
    source.audio_spectrogram_transformer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"head|classifier"):
        get_maest(checkpoint=folder, n_classes=3)
    model = get_maest(checkpoint=folder, n_classes=3, discard_head=True)
    check_fresh(model.state_dict(), *HEAD_0, *LAST)
    assert torch.equal(model.norm.weight, source.audio_spectrogram_transformer.layernorm.weight)


# ------------------------------------------------------------------ strictness, key by key


def hub_state(names: str, tmp_path: Path) -> STATE:
    source, _ = ast(312, 4, depth=2)
    if names == "in memory":
        return {name: tensor.clone() for name, tensor in source.state_dict().items()}
    return safetensors.torch.load_file(hub_folder(source, tmp_path / "pub") / "model.safetensors")


LAYOUTS = {
    "MAEST": lambda _: maest_state(depth=2),
    "PaSST": lambda _: passt_state(depth=2),
    "DeiT": lambda _: deit_state(depth=2),
    "hub, published": lambda folder: hub_state("published", folder),
    "hub, in memory": lambda folder: hub_state("in memory", folder),
}
# Theirs → ours, where a message names ours.
OURS = {
    **{f"classifier.layernorm.{kind}": f"head.0.{kind}" for kind in ("weight", "bias")},
    **{f"classifier.dense.{kind}": f"head.1.{kind}" for kind in ("weight", "bias")},
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "layers.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.qkv",
    "attention.attention.key": "attn.qkv",
    "attention.attention.value": "attn.qkv",
    "attention.q_proj": "attn.qkv",
    "attention.k_proj": "attn.qkv",
    "attention.v_proj": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "audio_spectrogram_transformer.layernorm": "norm",
    "audio_spectrogram_transformer.": "",
}


def named(key: str, text: str) -> bool:
    """Whether a message names a key, as the file has it or as we do."""
    ours = key
    for theirs, mine in OURS.items():
        ours = ours.replace(theirs, mine)
    return key in text or ours in text


def may_be_missing(layout: str, key: str) -> bool:
    """A hub file has no head_dist to begin with; for PaSST's heads see above."""
    return layout == "DeiT" and key.startswith(("head.", "head_dist."))


def outcomes(state: STATE, edits, path: Path, **options) -> list[str]:
    """What is wrong: of ``(key, edited state, whether it may load)``, those that came out else."""
    wrong = []
    for key, edited, allowed in edits:
        write(edited, path)
        try:
            get_maest(checkpoint=path, **options)
        except CheckpointError as error:
            if allowed:
                wrong.append(f"{key}: refused: {error}")
            elif not named(key, str(error)):
                wrong.append(f"{key}: not named: {error}")
        except Exception as error:  # the test is that there is none
            wrong.append(f"{key}: {type(error).__name__}: {error}")
        else:
            if not allowed:
                wrong.append(f"{key}: loaded")
    return wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_key_that_is_missing_is_named(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    # Of these, layouts are known: another message is right, but it must be a refusal.
    marks = ("pos_embed", "position_embeddings", "cls_token", "dist_token", "distillation_token")
    edits = [
        (key, {n: t for n, t in state.items() if n != key}, may_be_missing(layout, key))
        for key in state
        if not key.endswith(marks) and not (layout == "PaSST" and key.startswith("head"))
    ]
    assert not outcomes(state, edits, tmp_path / "w.pt", n_classes=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_key_that_marks_a_layout_is_needed(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    marks = ("pos_embed", "position_embeddings", "cls_token", "dist_token", "distillation_token")
    for key in (key for key in state if key.endswith(marks)):
        write({n: t for n, t in state.items() if n != key}, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=r"w\.pt"):
            get_maest(checkpoint=tmp_path / "w.pt", n_classes=4)


@pytest.mark.parametrize("layout", ["MAEST", "hub, published", "hub, in memory"])
def test_a_missing_head_is_named_too(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    [key] = [key for key in state if key in ("head.1.weight", "classifier.dense.weight")]
    del state[key]
    write(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=tmp_path / "w.pt")
    assert named(key, str(caught.value))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_key_too_many_is_named(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    prefix = "audio_spectrogram_transformer." if layout.startswith("hub") else ""
    extra = [
        "foo",
        prefix + "blocks.0.attn.qkv.scale",
        *([prefix + "layers.0.mlp.gate.weight"] if layout == "hub, in memory" else []),
        *([prefix + "encoder.layer.0.output.scale"] if layout == "hub, published" else []),
        prefix + "norm.running_mean",
        "head.2.weight",
        "classifier.dense.scale",
        "melspectrogram.spec.other",
        "net_swa",
        *(f"{key}_extra" for key in state),
    ]
    edits = [(key, state | {key: torch.zeros(2)}, False) for key in extra if key not in state]
    assert not outcomes(state, edits, tmp_path / "w.pt", n_classes=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_too_many_or_incomplete_is_named(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    [key] = [k for k in state if k.endswith(("1.mlp.fc1.bias", "1.intermediate.dense.bias"))]
    later = key.replace(".1.", ".3.")
    write(state | {later: state[key]}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=tmp_path / "w.pt", n_classes=4)
    assert named(key.replace(".1.", ".2."), str(caught.value))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["an axis more", "flat", "no axis", "one more in the first axis"])
def test_each_misshapen_key_is_an_error(tmp_path, layout, how):
    """Whatever the shape: a refusal that names the key, or, where sizes are read off it, others."""
    state = LAYOUTS[layout](tmp_path)
    change = {
        "an axis more": lambda t: t[..., None],
        "flat": lambda t: t.flatten()[:-1],
        "no axis": lambda t: t.flatten()[0],
        "one more in the first axis": lambda t: torch.cat((t, t[:1])),
    }[how]
    # Sizes are read off these; then others do not fit them, and are named.
    told = ("cls_token", "blocks.0.mlp.fc1.weight", "0.intermediate.dense.weight", "head.1.weight")
    told += ("time_new_pos_embed", "freq_new_pos_embed", "pos_embed", "classifier.dense.weight")
    told += ("position_embeddings", "layers.0.mlp.fc1.weight")
    wrong = []
    for key, tensor in state.items():
        if key in ("head.1.weight", "classifier.dense.weight"):
            continue  # below
        if re.search(r"(blocks|layers?)\.1\.", key):
            continue  # as the first block
        if layout == "DeiT" and key.startswith("head"):
            continue  # not looked at
        write(state | {key: change(tensor)}, tmp_path / "w.pt")
        try:
            get_maest(checkpoint=tmp_path / "w.pt", n_classes=state_classes(state))
        except CheckpointError as error:
            if not named(key, str(error)) and not key.endswith(told):
                wrong.append(f"{key}: not named: {error}")
        except Exception as error:  # the test is that there is none
            wrong.append(f"{key}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{key}: loaded")
    assert not wrong


@pytest.mark.parametrize("layout", ["MAEST", "PaSST", "hub, published", "hub, in memory"])
def test_a_head_whose_parts_contradict_each_other_is_an_error(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    [key] = [key for key in state if key in ("head.1.weight", "classifier.dense.weight")]
    state[key] = torch.cat((state[key], state[key][:1]))
    write(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError):
        get_maest(checkpoint=tmp_path / "w.pt", n_classes=state_classes(state))


@pytest.mark.parametrize("layout", ["hub, published", "hub, in memory"])
def test_query_and_key_of_wrong_shapes_that_add_up_are_an_error(tmp_path, layout):
    state = LAYOUTS[layout](tmp_path)
    names = [key for key in state if "0.attention" in key and key.endswith("weight")]
    query, key = (
        next(name for name in names if any(part in name for part in either))
        for either in (("q_proj", "query"), ("k_proj", "key"))
    )
    state[query], state[key] = torch.zeros(65, 64), torch.zeros(63, 64)
    write(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=tmp_path / "w.pt")
    assert named(key, str(caught.value))


def state_classes(state: STATE) -> int:
    heads = ("head.1.bias", "classifier.dense.bias")
    return next((len(state[name]) for name in heads if name in state), 4)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"net.loss": torch.zeros(1)}},
        {"state_dict": {"loss.weight": torch.zeros(1)}, "optimizer_states": []},
        {"state_dict": {"net.": torch.zeros(1)}},
        {"state_dict": {"net": maest_state(depth=1)}},
        {"model": {}, **maest_state(depth=1)},
        {"optimizer": maest_state(depth=1)},
        {"head.1.weight": torch.zeros(3, 64), "head.1.bias": torch.zeros(3)},
        FRONT_END,
        {},
    ],
)
def test_files_without_a_network_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    for options in ({}, {"discard_head": True, "n_classes": 3}):
        with pytest.raises(CheckpointError, match=r"w\.pt"):
            get_maest(checkpoint=tmp_path / "w.pt", **options)


def test_empty_weights_in_folders_are_refused(tmp_path):
    hub = hub_folder(ast(312, 3)[0], tmp_path / "hub")
    own = save_model(tmp_path / "own", get_maest("maest_tiny", n_classes=2, depth=1))
    for folder in (hub, own):
        safetensors.torch.save_file({}, folder / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            get_maest(checkpoint=folder)
        assert str(folder) in str(caught.value)


def test_tensors_without_data_are_refused(tmp_path):
    state = {name: tensor.to("meta") for name, tensor in maest_state(depth=1).items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt"):
        get_maest(checkpoint=tmp_path / "w.pt")


# ------------------------------------------------------------------ configurations


@contextlib.contextmanager
def bounded(seconds: int = 3, extra: int = 1 << 30):
    """No more time and address space than this: what is absurd must be refused before it is made.

    Allocation then fails here, and not on the machine.
    """

    def late(*_args):
        raise AssertionError(f"took more than {seconds} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")  # elsewhere than on Linux, only the time is bounded
    now = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else None
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    if now is not None:
        resource.setrlimit(resource.RLIMIT_AS, (now + extra, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def small(**options) -> Maest:
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return shaken(Maest(**(sizes | options)))


COUNTS = ("n_classes", "input_t", "input_f", "embed_dim", "depth", "num_heads")
ABSURD = [10**9, -1, 0, "64", [], None, True, 2.5]


def kind(value) -> str:
    return repr(value)[:8]


def refused(path: Path, where: Path) -> None:
    with bounded(), pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=path)
    assert str(where) in str(caught.value)


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("name", COUNTS)
def test_absurd_sizes_in_a_model_folder(tmp_path, name, value):
    folder = save_model(tmp_path / "model", small())
    sizes = small().sizes() | {name: value}
    edit(folder, sizes=sizes)
    refused(folder, folder)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, "1", None, 10**400], ids=kind)
@pytest.mark.parametrize("name", ["norm_std", "head_eps", "mlp_ratio"])
def test_absurd_numbers_in_a_model_folder(tmp_path, name, value):
    folder = save_model(tmp_path / "model", small())
    edit(folder, sizes=small().sizes() | {name: value})
    refused(folder, folder)


@pytest.mark.parametrize(("name", "value"), [("distilled_type", "both"), ("task", "tagging")])
def test_absurd_words_in_a_model_folder(tmp_path, name, value):
    folder = save_model(tmp_path / "model", small())
    edit(folder, sizes=small().sizes() | {name: value})
    refused(folder, folder)


@pytest.mark.parametrize("value", [[1], "scores", 7])
def test_absurd_provenance_in_a_model_folder(tmp_path, value):
    folder = save_model(tmp_path / "model", small())
    edit(folder, trained_on=value)
    refused(folder, folder)


@pytest.mark.parametrize("mean", [0.0, -1.5])
def test_any_mean_comes_back(tmp_path, mean):
    folder = save_model(tmp_path / "model", small(norm_mean=mean))
    assert get_maest(checkpoint=folder).norm_mean == mean


HUB_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")


@pytest.mark.parametrize("value", [v for v in ABSURD if v is not True], ids=repr)
@pytest.mark.parametrize("name", [*HUB_COUNTS, "num_mel_bins", "time_stride"])
def test_absurd_sizes_in_a_hub_folder(tmp_path, name, value):
    folder = hub_folder(ast(312, 3, depth=1)[0], tmp_path / "hub")
    edit(folder, **{name: value})
    refused(folder, folder)


@pytest.mark.parametrize("name", ["problem_type", "id2label", "max_length", "maest"])
@pytest.mark.parametrize("value", [["a"], {"0": ["a"]}, "a", -5, 10**9])
def test_absurd_extras_in_a_hub_folder_are_no_traceback(tmp_path, name, value):
    """Ignored or refused."""
    folder = hub_folder(ast(312, 3, depth=1)[0], tmp_path / "hub")
    edit(folder, **{name: value})
    with bounded(), contextlib.suppress(CheckpointError):
        model = get_maest(checkpoint=folder)
        assert (model.n_classes, model.input_t) == (3, 312)


@pytest.mark.parametrize("depth", [100, 20_000])
def test_deeply_nested_json_is_refused(tmp_path, depth):
    folder = save_model(tmp_path / "model", small())
    (folder / "config.json").write_text("[" * depth + "]" * depth)
    refused(folder, folder)


@pytest.mark.parametrize("text", ["", "[]", "7", '"a"', "{}", '{"sizes": 3}', "{"])
def test_absurd_metadata_of_safetensors(tmp_path, text):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(maest_state(depth=1), path, metadata={"maest": text})
    refused(path, path)


@pytest.mark.parametrize(
    "change",
    [
        {"maest": {"sizes": {"depth": 10**9}}},
        {"maest": {"sizes": [], "labels": None}},
        {"maest": {}},
        {"maest": {"sizes": small().sizes() | {"input_t": 10**9}, "labels": None}},
        {"maest": {"sizes": small().sizes() | {"depth": 10**9}, "labels": None}},
        {"maest": {"sizes": small().sizes(), "labels": [torch.zeros(1)] * 3}},
    ],
    ids=["lacking", "no sizes", "empty", "input_t", "depth", "labels"],
)
def test_absurd_lightning_checkpoints(tmp_path, change):
    path = tmp_path / "w.ckpt"
    torch.save(own_lightning(small()) | change, path)
    refused(path, path)


@pytest.mark.parametrize(
    "change",
    [
        {"target_mean": [1.0], "target_std": [1.0]},
        {"target_mean": [1.0] * 3, "target_std": None},
        {"target_mean": [1.0] * 3, "target_std": [1.0, 0.0, 1.0]},
        {"target_mean": [1.0] * 3, "target_std": [1.0, -1.0, 1.0]},
        {"target_mean": 1.0, "target_std": 1.0},
    ],
    ids=str,
)
def test_absurd_scales_in_a_model_folder(tmp_path, change):
    folder = save_model(tmp_path / "model", small(task="regression"))
    edit(folder, sizes=small(task="regression").sizes() | change)
    refused(folder, folder)


# ------------------------------------------------------------------ damage, and no code

RAN: list[str] = []


def ran(*_args, **_kwargs):
    RAN.append("ran")
    return {}


class Reduces:
    def __reduce__(self):
        return ran, ()


class Restores:
    """`__setstate__` runs when it is read."""

    def __setstate__(self, state):
        ran()

    def __getstate__(self):
        return {"a": 1}


class OwnDict(dict):
    def __setstate__(self, state):
        ran()

    def __reduce__(self):
        return OwnDict, (), {"a": 1}


class OwnOrdered(collections.OrderedDict):
    def __setstate__(self, state):
        ran()

    def __reduce__(self):
        return OwnOrdered, (), {"a": 1}, None, iter(self.items())


class OwnTensor(Tensor):
    def __setstate__(self, state):
        ran()


class OwnStr(str):
    def __new__(cls, *_args):
        ran()
        return super().__new__(cls, "a")


EVIL = {
    "reduce": Reduces,
    "setstate": Restores,
    "dict": lambda: OwnDict(maest_state(depth=1)),
    "OrderedDict": lambda: OwnOrdered(maest_state(depth=1)),
    "Tensor": lambda: torch.zeros(2).as_subclass(OwnTensor),
    "str": lambda: OwnStr("a"),
    "object array": lambda: np.array([Reduces()], dtype=object),
    "namespace": lambda: argparse.Namespace(a=Reduces()),
    "defaultdict": lambda: collections.defaultdict(ran, a=1),
}
PLACES = {
    "top": lambda evil: evil,
    "beside the weights": lambda evil: maest_state(depth=1) | {"x": evil},
    "a weight": lambda evil: maest_state(depth=1) | {"norm.bias": evil},
    "state_dict": lambda evil: {"state_dict": evil},
    "hyper_parameters": lambda evil: own_lightning(small()) | {"hyper_parameters": evil},
    "callbacks": lambda evil: own_lightning(small()) | {"callbacks": {"a": [(evil,)]}},
    "maest": lambda evil: own_lightning(small()) | {"maest": evil},
    "labels": lambda evil: own_lightning(small(), labels=[evil, "b", "c"]),
    "sizes": lambda evil: own_lightning(small(), sizes=evil),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", EVIL)
def test_objects_are_refused_and_not_run(tmp_path, monkeypatch, kind, place):
    # What the user's environment says does not count.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = PLACES[place](EVIL[kind]())
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.ckpt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        RAN.clear()
        for average in (None, True, False):
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(path, average)
            assert caught.value.path == path
        assert not RAN


@pytest.mark.parametrize("kind", [k for k in EVIL if k not in ("str", "defaultdict")])
def test_they_would_run(tmp_path, kind):
    torch.save(EVIL[kind](), tmp_path / "w.pt")
    RAN.clear()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert RAN or kind == "Tensor"  # whose state torch sets itself


@pytest.mark.filterwarnings("ignore:.*TorchScript archive.*")
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_torchscript_is_refused(tmp_path, name):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(4)

        def forward(self, x):
            return self.norm(x)

    with standard_warnings.catch_warnings():
        standard_warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.script(Net()).save(str(tmp_path / name))
    with pytest.raises(CheckpointError, match=name):
        get_maest(checkpoint=tmp_path / name, n_classes=2)


@pytest.mark.parametrize("name", ["w.npz", "w.npy", "w.pt"])
def test_numpy_files_are_refused(tmp_path, name):
    evil = np.array([Reduces()], dtype=object)
    with (tmp_path / name).open("wb") as file:
        if name == "w.npy":
            np.save(file, evil, allow_pickle=True)
        else:
            np.savez(file, **{n: t.numpy() for n, t in maest_state(depth=1).items()}, evil=evil)
    RAN.clear()
    with pytest.raises(CheckpointError, match=name):
        get_maest(checkpoint=tmp_path / name)
    assert not RAN


def header(entries: dict, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(first: int, last: int, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


BAD_SAFETENSORS = {
    "overlap": header({"cls_token": entry(0, 16), "dist_token": entry(8, 24)}, bytes(24)),
    "out of range": header({"cls_token": entry(0, 1 << 40, (1 << 38,))}),
    "beyond the end": header({"cls_token": entry(0, 80, (20,))}),
    "a hole": header({"cls_token": entry(16, 32)}, bytes(32)),
    "backwards": header({"cls_token": entry(16, 0)}),
    "negative": header({"cls_token": entry(-16, 0)}),
    "another shape": header({"cls_token": entry(0, 16, (5,))}, bytes(16)),
    "overflowing shape": header({"cls_token": entry(0, 16, (1 << 62, 1 << 62))}, bytes(16)),
    "unknown type": header({"cls_token": entry(0, 16, dtype="F31")}, bytes(16)),
    "gigantic header": header({"cls_token": entry(0, 16)}, length=(1 << 64) - 1),
    "header of 4 GB": header({"cls_token": entry(0, 16)}, length=1 << 32),
    "header beyond the end": header({"cls_token": entry(0, 16)}, length=10_000),
    "empty header": header({}, b"", length=0),
    "trailing data": header({"cls_token": entry(0, 16)}, bytes(17)),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_crafted_safetensors_are_refused(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    path.write_bytes(BAD_SAFETENSORS[kind])
    refused(path, path)


def damage_a_weight(path: Path) -> None:
    """One byte of one weight's data in a torch archive; its directory stays whole."""
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
    content[info.header_offset + 30 + name + extra + info.file_size // 2] ^= 0x40
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w", "w.safetensors"])
def test_a_damaged_checksum_is_refused(tmp_path, name):
    path = tmp_path / name
    torch.save(maest_state(depth=1), path)
    get_maest(checkpoint=path)
    damage_a_weight(path)
    refused(path, path)


@pytest.mark.parametrize("make", [maest_state, passt_state, deit_state])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_part_of_a_file_never_loads(tmp_path, make, name):
    path = write(make(depth=1), tmp_path / name)
    whole = path.read_bytes()
    for share in (0.01, 0.25, 0.5, 0.75, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError) as caught:
            get_maest(checkpoint=path, n_classes=4)
        assert str(path) in str(caught.value)
