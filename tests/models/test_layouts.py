"""Weights that others wrote: those of the source, every adaptation logged, keys named."""

import functools
import json
import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch
from made_up import refuses
from networks import noise, same_weights
from published import STATE, deit_state, hub_model, hub_state, maest_state, passt_state
from torch import Tensor
from torch.nn import functional as F
from transformers import ASTForAudioClassification

from maest.models import CheckpointError, Maest, get_maest

LAST = ("head.1.weight", "head.1.bias", "head_dist.weight", "head_dist.bias")
HEAD = ("head.0.weight", "head.0.bias", *LAST)
POSITIONS = "audio_spectrogram_transformer.embeddings.position_embeddings"


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def write(state: STATE, path: Path) -> Path:
    torch.save(state, path)
    return path


def warned(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def adapted(state: STATE, columns: int) -> STATE:
    """Our weights of other layouts, by the papers' formulas: positions resized, colours summed."""
    state = {name: tensor.float() for name, tensor in state.items()}
    resized = functools.partial(F.interpolate, mode="bicubic", align_corners=False)
    if "pos_embed" in state:
        two, grid = state.pop("pos_embed").tensor_split([2], dim=1)
        side = int(grid.shape[1] ** 0.5)
        grid = grid.permute(0, 2, 1).reshape(1, -1, side, side)
        grid = resized(grid, size=(9, columns))
        freq, time = grid.mean(3, keepdim=True), grid.mean(2, keepdim=True)
        state = {n: t for n, t in state.items() if "head" not in n} | {"new_pos_embed": two}
    else:
        freq = resized(state["freq_new_pos_embed"], size=(9, 1))
        time = resized(state["time_new_pos_embed"], size=(1, columns))
    kernel = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    state |= {"freq_new_pos_embed": freq, "time_new_pos_embed": time}
    return state | {"patch_embed.proj.weight": kernel}


def check_weights(model: Maest, state: STATE, heads: bool = True) -> None:
    expected = adapted(state, max(1, model.input_t // 10))
    assert not model.training
    assert (model.num_heads, model.head_eps) == (1, 1e-5)
    for name, tensor in model.state_dict().items():
        if heads or "head" not in name:
            close(tensor, expected[name])


@torch.no_grad()
def check_against_hub(model: Maest, source: ASTForAudioClassification) -> None:
    mel = noise(1, 96, source.config.max_length)
    found = source(mel.transpose(1, 2), output_hidden_states=True)
    embeddings = [torch.cat((x[:, 0], x[:, 1], x[:, 2:].mean(1)), 1) for x in found.hidden_states]
    x = source.audio_spectrogram_transformer(mel.transpose(1, 2)).last_hidden_state
    assert not model.training
    logits, own = model.encode(mel, [*range(model.depth), -1])
    close(logits, found.logits)
    for one, other in zip(own.values(), [*embeddings[1:], (x[:, 0] + x[:, 1]) / 2], strict=True):
        close(one.flatten(1), other)


def hub_folder(source, folder: Path, **changes) -> Path:
    source.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config = {name: v for name, v in (config | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ------------------------------------------------------------------ lengths


@pytest.mark.parametrize(
    ("make", "frames", "warnings"),
    [
        *((deit_state, frames, 2) for frames in (16, 240, 625, 1875)),  # positions, head
        *((passt_state, frames, 3) for frames in (None, 312, 1875)),  # both positions, head
        (passt_state, 998, 2),  # its own length
        *((maest_state, frames, 0) for frames in (None, 312)),
        *((maest_state, frames, 1) for frames in (160, 625, 1240)),
        *((maest_state, frames, 2) for frames in (1250, 1875)),  # over 4 times that of training
    ],
)
def test_weights_at_any_length(tmp_path, caplog, make, frames, warnings):
    state, classes = make(), 7 if make is deit_state else None
    path = write(state, tmp_path / "w.pt")
    model = get_maest(checkpoint=path, input_t=frames, n_classes=classes)
    assert model.input_t == (frames or (312 if make is maest_state else 625))
    assert model.input_f == 96
    check_weights(model, state, heads=make is not deit_state)
    lines = warned(caplog)
    assert len(lines) == warnings
    assert all(line.startswith(str(path)) for line in lines)


@pytest.mark.parametrize(
    ("columns", "frames"),
    [(31, 312), (62, 625), (125, 1250), (187, 1875), (1, 16), (2, 20), (46, 460), (93, 930)],
)
def test_the_number_of_positions_of_a_maest_file_is_its_length(tmp_path, caplog, columns, frames):
    state = maest_state(columns, n_classes=5)
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"))
    assert (model.input_t, model.n_classes) == (frames, 5)
    assert same_weights(model, state)
    assert not warned(caplog)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [maest_state, passt_state, deit_state])
def test_half_precision_sources(tmp_path, make, dtype):
    state = {name: tensor.to(dtype) for name, tensor in make().items()}
    model = get_maest(checkpoint=write(state, tmp_path / "w.pt"), n_classes=5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    check_weights(model, state, heads=False)  # colours are summed in float32


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize("make", [maest_state, passt_state, lambda: hub_state(False)])
@pytest.mark.parametrize(
    ("given", "fresh"),
    [
        ({"n_classes": 6}, LAST),
        ({"labels": list("abcdef")}, LAST),
        ({"discard_head": True}, HEAD),
        ({"discard_head": True, "n_classes": 6}, HEAD),
    ],
)
def test_a_new_head_keeps_the_norm_before_it_unless_discarded(tmp_path, caplog, make, given, fresh):
    path = write(make(), tmp_path / "w.pt")
    own = get_maest(checkpoint=path)
    caplog.clear()
    model = get_maest(checkpoint=path, **given)
    assert model.uninitialized == set(fresh)
    assert model.n_classes == (6 if len(given) > ("discard_head" in given) else own.n_classes)
    for name, tensor in model.state_dict().items():
        if name not in fresh:
            assert torch.equal(tensor, own.state_dict()[name]), name
        elif tensor.ndim == 2:
            assert 0.015 < tensor.std() < 0.025, name
        else:
            assert (tensor == float(name == "head.0.weight")).all(), name
    assert any("head" in line for line in warned(caplog))


def test_passt_without_heads(tmp_path, caplog):
    state = {n: t for n, t in passt_state().items() if not n.startswith("head")}
    path = write(state, tmp_path / "w.pt")
    model = get_maest(checkpoint=path, labels=["x", "y"])
    check_weights(model, state, heads=False)
    assert model.uninitialized == set(HEAD)
    assert any("head" in line for line in warned(caplog))
    with refuses("missing", "w.pt", "n_classes"):
        get_maest(checkpoint=path)


def test_hub_weights_have_no_second_head(tmp_path, caplog):
    path = write(hub_state(False), tmp_path / "w.pt")
    assert not get_maest(checkpoint=path).uninitialized - set(LAST[2:])
    assert not warned(caplog)  # it is not used
    model = get_maest(checkpoint=path, distilled_type="separated")
    assert model.uninitialized == set(LAST[2:])
    assert warned(caplog)


# ------------------------------------------------------------------ the hub's folders


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("columns", "classes", "frames"),
    [(31, 400, 312), (62, 400, 625), (125, 12, 1250), (187, 519, 1875)],
)
def test_hub_folders(tmp_path, caplog, columns, classes, frames, in_memory):
    source = hub_model(columns, classes, heads=4)  # a number that only the configuration has
    folder = hub_folder(source, tmp_path / "hub")
    if in_memory:
        safetensors.torch.save_file(source.state_dict(), folder / "model.safetensors")
    model = get_maest(checkpoint=folder)
    check_against_hub(model, source)
    assert model.labels == list(source.config.id2label.values())
    assert (model.input_t, model.n_classes, model.num_heads) == (frames, classes, 4)
    assert not warned(caplog)


def test_labels_follow_their_numbers_and_the_head(tmp_path, caplog):
    source = hub_model(n_classes=12)
    labels = source.config.id2label
    shuffled = {str(i): labels[i] for i in sorted(labels, key=lambda i: str(i)[::-1])}
    folder = hub_folder(source, tmp_path / "hub", id2label=shuffled)
    assert get_maest(checkpoint=folder, input_t=160).labels == list(labels.values())
    assert get_maest(checkpoint=folder, n_classes=5).labels is None
    caplog.clear()
    folder = hub_folder(source, folder, id2label={"0": "a"})
    assert get_maest(checkpoint=folder).labels is None
    assert warned(caplog)
    folder = hub_folder(source, folder, id2label={str(i): f"LABEL_{i}" for i in range(12)})
    assert get_maest(checkpoint=folder).labels is None  # transformers' own names


HUB_SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 3}
HUB_FIXED = {"num_mel_bins": 128, "layer_norm_eps": 1e-5, "time_stride": 8, "patch_size": 8}
HUB_FIXED |= {"frequency_stride": 16, "qkv_bias": False, "hidden_act": "relu"}
# Missing: what transformers takes then is not what MAEST has.
HUB_MISSING = [("num_mel_bins", None), ("layer_norm_eps", None), ("problem_type", "tagging")]


@pytest.mark.parametrize(("name", "value"), [*(HUB_SIZES | HUB_FIXED).items(), *HUB_MISSING])
def test_hub_settings_of_another_network_are_refused(tmp_path, name, value):
    folder = hub_folder(hub_model(), tmp_path / "hub", **{name: value})
    with refuses("mismatch", "hub/config.json") as caught:
        get_maest(checkpoint=folder)
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "amount"),
    [
        (torch.float32, 1.0),
        (torch.float32, 1e-4),
        (torch.float16, 0.03),
        (torch.bfloat16, 0.25),
    ],
)
def test_positions_that_are_no_sum_are_refused(tmp_path, dtype, amount):
    state = hub_model().state_dict()
    positions = state[POSITIONS].clone()
    positions[0, 2 + 5 * 31 + 7] += amount * positions.abs().max()
    half = {n: t.to(dtype) for n, t in (state | {POSITIONS: positions}).items()}
    with pytest.raises(CheckpointError, match="position_embeddings"):
        get_maest(checkpoint=write(half, tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.02)]
)
def test_hub_weights_without_their_folder(tmp_path, dtype, within):
    source = hub_model()
    half = {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
    source.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    model, mel = get_maest(checkpoint=write(half, tmp_path / "w.pt")), noise(1, 96, 316)
    with torch.no_grad():  # rounded positions are a sum no more, but for a few roundings
        x = source(mel.transpose(1, 2), output_hidden_states=True).hidden_states[3][:, :2]
        found = model.encode(mel, (2,), False).embeddings[2][:, :2]
    assert (x - found).abs().max() < within * x.std()


def test_a_hub_folder_without_a_classifier(tmp_path):
    """`ASTModel`: only PaSST's and DeiT's heads may be missing."""
    inner = hub_model().audio_spectrogram_transformer
    inner.save_pretrained(tmp_path / "hub")
    with pytest.raises(CheckpointError, match="head"):
        get_maest(checkpoint=tmp_path / "hub", n_classes=3)
    model = get_maest(checkpoint=tmp_path / "hub", n_classes=3, discard_head=True)
    assert model.uninitialized == set(HEAD)
    assert torch.equal(model.norm.weight, inner.layernorm.weight)
