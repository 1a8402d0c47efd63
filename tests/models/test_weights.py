"""Model folders and checkpoint files: every form is read, every mistake is refused."""

import functools
import logging
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from made_up import refuses
from networks import same_weights, tiny
from published import STATE, deit_state, hub_state, legacy, maest_state, passt_state
from published import refused_weights as refused

from maest.models import CheckpointError, Maest, get_maest, load_checkpoint, save_model

LABELS = ["Folk---Jig", "Folk---Reel", "Früh---Messe"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model", tiny(labels=LABELS))


# ------------------------------------------------------------------ files

FRONT_END = {
    "melspectrogram.spec.window": torch.ones(512),
    "melspectrogram.mel_scale.fb": torch.ones(257, 96),
}


FILES = {
    "flat.pt": torch.save,
    "legacy.pt": legacy,
    "front end.pt": lambda s, p: torch.save(s | FRONT_END, p),
    "numbers beside.pt": lambda s, p: torch.save(s | {"epoch": 4}, p),
    "model.pth": lambda s, p: torch.save({"model": s, "epoch": 4}, p),
    "nested.ckpt": lambda s, p: torch.save({"state_dict": s, "epoch": 3}, p),
    "weights.safetensors": safetensors.torch.save_file,
    "front end.safetensors": lambda s, p: safetensors.torch.save_file(s | FRONT_END, p),
    # What the content says counts, not the name.
    "safetensors.pt": safetensors.torch.save_file,
    "no suffix": torch.save,
    "torch.safetensors": torch.save,
    "legacy.safetensors": legacy,
}


@pytest.mark.parametrize("make", [maest_state, passt_state, deit_state])
@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind(tmp_path, name, make):
    state = make(depth=1)
    FILES[name](state, tmp_path / name)
    found = get_maest(checkpoint=tmp_path / name, n_classes=4 if make is maest_state else 3)
    assert not found.training
    assert torch.equal(found.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    if make is maest_state:
        assert same_weights(found, state)


def lightning(state: STATE, average: STATE | None, raw: str = "net.", swa: str = "net_swa."):
    """As a trainer nests it, beside things that are none of the network's."""
    nested = {raw + name: tensor for name, tensor in state.items()}
    if average is not None:
        nested |= {swa + name: tensor for name, tensor in average.items()}
        nested["net_swa.n_averaged"] = torch.tensor(5)
    return {
        "epoch": 3,
        "global_step": 40,
        "state_dict": nested | {"loss.weight": torch.ones(3)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}}],
        "hyper_parameters": {"lr": 2e-5, "labels": LABELS},
    }


def own_lightning(model: Maest, **extra) -> dict:
    nested = lightning(model.state_dict(), None)
    return nested | {"maest": {"sizes": model.sizes(), "labels": model.labels} | extra}


def test_our_lightning_checkpoint_keeps_what_weights_do_not_say(tmp_path):
    options = {"distilled_type": "separated", "input_t": 318, "labels": LABELS, "norm_mean": 0.5}
    model = tiny(num_heads=4, head_eps=1e-3, **options)
    torch.save(own_lightning(model), tmp_path / "w.ckpt")
    found = get_maest(checkpoint=tmp_path / "w.ckpt")
    assert (found.sizes(), found.labels) == (model.sizes(), LABELS)
    assert load_checkpoint(tmp_path / "w.ckpt").trained_on == {"epoch": 4, "steps": 40}
    assert same_weights(found, model)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_of_compile_and_of_distribution(tmp_path, prefix):
    torch.save({prefix + n: t for n, t in maest_state().items()}, tmp_path / "w.pt")
    assert same_weights(get_maest(checkpoint=tmp_path / "w.pt"), maest_state())


# ------------------------------------------------------------------ weights and their average


def check_both(path: Path, raw: Maest, average: Maest) -> None:
    for given, expected in ((None, average), (True, average), (False, raw)):
        assert load_checkpoint(path, given).average == (expected is average)
        for name in ("checkpoint_swa_weights", "checkpoint_swa_weigts"):  # an older spelling
            assert same_weights(get_maest(path, **{name: given}), expected)


def test_a_folder_gives_the_average_if_it_has_one(tmp_path, caplog):
    trained_on = {"epoch": 3, "val_ap": 0.5, "swa": {"epoch": 4, "val_ap": 0.6}}
    folder = save_model(tmp_path / "m", tiny(), trained_on=trained_on, average=tiny(seed=1))
    check_both(folder, tiny(), tiny(seed=1))
    for given, epoch in ((None, 4), (False, 3)):
        assert load_checkpoint(folder, given).trained_on["epoch"] == epoch
    with caplog.at_level(logging.INFO):
        load_checkpoint(folder)
    assert "checkpoint_swa_weights" in caplog.text


@pytest.mark.parametrize("swa", ["net_swa.", "net_swa.module.", "net_swa._orig_mod."])
@pytest.mark.parametrize("raw", ["net.", "net._orig_mod.", "net.module."])
def test_a_trainers_checkpoint_gives_the_average_if_it_has_one(tmp_path, raw, swa):
    content = lightning(
        tiny().state_dict() | FRONT_END, tiny(seed=1).state_dict() | FRONT_END, raw, swa
    )
    torch.save(content, tmp_path / "last.ckpt")
    check_both(tmp_path / "last.ckpt", tiny(), tiny(seed=1))


@pytest.mark.parametrize(
    ("prefix", "average", "given"),
    [("net.", True, (None, False)), ("net_swa.", False, (None, True)), ("", True, (None, False))],
)
def test_weights_that_a_file_or_folder_lacks(tmp_path, folder, prefix, average, given):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {prefix + n: t for n, t in maest_state().items()}}, path)
    refused(path, "missing", path, average)
    for choice in given:
        assert same_weights(get_maest(checkpoint=load_checkpoint(path, choice)), maest_state())
    assert not load_checkpoint(folder).average
    refused(folder, "missing", folder, True)


def test_a_model_is_named_by_its_path_or_its_arch(folder, monkeypatch):
    assert same_weights(get_maest(folder), tiny())
    assert same_weights(get_maest(str(folder), pretrained=True), tiny())
    # A model folder goes before an arch of that name; any other folder does not.
    monkeypatch.chdir(folder.parent)
    folder.rename("maest_small")
    assert same_weights(get_maest("maest_small"), tiny())
    assert get_maest("maest_small", pretrained=False, n_classes=2, depth=1).embed_dim == 384
    Path("maest_tiny").mkdir()
    assert get_maest("maest_tiny", n_classes=2, depth=1).embed_dim == 192
    for given in ({"checkpoint": "no/model"}, {"arch": "no/model"}, {"arch": Path("no")}):
        with pytest.raises(CheckpointError) as caught:
            get_maest(**given)
        assert caught.value.kind == "missing"
        assert caught.value.path == Path(*given.values())


def test_arguments_win_over_the_checkpoint(folder, caplog):
    options = {"s_patchout_t": 3, "distilled_type": "separated", "norm_mean": 1.0}
    found = get_maest(checkpoint=folder, input_t=None, pretrained=True, **options)
    assert same_weights(found, tiny())
    assert (found.distilled_type, found.norm_mean, found.input_t) == ("separated", 1.0, 312)
    assert found.patchout.dropped["s_patchout_t"] == 3
    assert get_maest(checkpoint=folder, labels=list("xyz")).labels == list("xyz")
    assert get_maest(checkpoint=folder, n_classes=3).labels == LABELS
    assert not caplog.records
    found = get_maest(checkpoint=folder, n_classes=5)
    assert (found.labels, found.n_classes) == (None, 5)
    assert get_maest(checkpoint=folder, discard_head=True).labels is None
    with refuses("mismatch", setting="labels"):
        get_maest(checkpoint=folder, labels=["x", "y"], n_classes=3)


# ------------------------------------------------------------------ what does not fit


def test_keys_that_do_not_fit_are_listed(folder):
    weights = folder / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    state["blocks.0.attn.qkw.weight"] = state.pop("blocks.0.attn.qkv.weight")
    state["norm.bias"] = torch.zeros(65)
    safetensors.torch.save_file(state, weights)
    text = refused(folder, "mismatch", folder)
    assert "blocks.0.attn.qkv.weight: missing, expected (192, 64)" in text
    assert "blocks.0.attn.qkw.weight: (192, 64), expected none" in text
    assert "norm.bias: (65,), expected (64,)" in text
    assert refused(folder, "mismatch", folder, arch="maest_tiny", depth=1).count("\n") > 20


def test_weights_that_are_not_finite(tmp_path):
    state = maest_state(depth=1)
    state["norm.bias"][3] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    assert "norm.bias" in refused(tmp_path / "w.pt", "corrupt", tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content",
    [
        {},
        None,
        "weights",
        torch.zeros(3),
        [torch.zeros(1)],
        {0: torch.zeros(1)},
        {"state_dict": {}},
        {"state_dict": {"loss.weight": torch.zeros(1)}, "optimizer_states": []},
        {"state_dict": {"net.": torch.zeros(1)}},
        {"state_dict": {"net": maest_state(depth=1)}},
        {"model": {}, **maest_state(depth=1)},
        {"optimizer": maest_state(depth=1)},
        {"head.1.weight": torch.zeros(3, 64), "head.1.bias": torch.zeros(3)},
        {"cls_token": torch.zeros(())},
        maest_state(depth=1) | {"cls_token": torch.zeros(1, 1, 0)},
        maest_state(depth=1) | {"blocks.1000000000.norm1.bias": torch.zeros(64)},
        {name: tensor.to("meta") for name, tensor in maest_state(depth=1).items()},
        FRONT_END,
    ],
    ids=lambda content: type(content).__name__,
)
def test_files_without_a_network(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    for options in ({}, {"discard_head": True, "n_classes": 3}):
        refused(tmp_path / "w.pt", "mismatch", tmp_path / "w.pt", **options)


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
def test_a_folder_that_is_not_whole(folder, absent):
    assert str(folder) in refused(folder.parent, "missing", folder.parent)  # a run's
    (folder / absent).unlink()
    assert absent in refused(folder, "missing", folder)


# ------------------------------------------------------------------ key by key

LAYOUTS = {
    "MAEST": functools.cache(lambda: maest_state(depth=2)),
    "PaSST": functools.cache(lambda: passt_state(depth=2)),
    "DeiT": functools.cache(lambda: deit_state(depth=2)),
    "hub": lambda: hub_state(False),
    "hub in memory": lambda: hub_state(True),
}


def refusal(state: STATE, path: Path) -> str:
    """The message; empty if the file loads. Any other error is a failure."""
    heads = ("head.1.bias", "head_dist.bias", "classifier.dense.bias", "classifier.dense.weight")
    classes = next((len(state[n]) for n in heads if n in state and state[n].ndim), 4)
    torch.save(state, path)
    try:
        get_maest(checkpoint=path, n_classes=classes)
    except CheckpointError as error:
        return str(error) if error.path == path else ""
    return ""


EDITS = {
    "missing": lambda state, key: {n: t for n, t in state.items() if n != key},
    "unexpected": lambda state, key: state | {f"{key}_extra": torch.zeros(2)},
    "an axis more": lambda state, key: state | {key: state[key][..., None]},
    "flat": lambda state, key: state | {key: state[key].flatten()[:-1]},
    "no axis": lambda state, key: state | {key: state[key].flatten()[0]},
    "longer": lambda state, key: state | {key: torch.cat((state[key], state[key][:1]))},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("edit", EDITS)
def test_each_key_that_does_not_fit_is_refused(tmp_path, layout, edit):
    state = LAYOUTS[layout]()
    for key in state:
        if re.search(r"(blocks|layers?)\.1\.", key):
            continue  # as in the first block
        text = refusal(EDITS[edit](state, key), tmp_path / "w.pt")
        used = layout != "DeiT" or "head" not in key or edit == "unexpected"
        assert bool(text) is used, key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_of_no_layer_are_named(tmp_path, layout):
    state, top = LAYOUTS[layout](), "audio_spectrogram_transformer." if "hub" in layout else ""
    inner = ("blocks.0.attn.qkv.scale", "encoder.layer.0.output.scale", "norm.running_mean")
    outer = ("foo", "head.2.weight", "classifier.dense.scale", "melspectrogram.spec.other")
    for key in (*(top + name for name in inner), *outer):
        assert key in refusal(state | {key: torch.zeros(2)}, tmp_path / "w.pt"), key
    [key] = [k for k in state if k.endswith(("1.mlp.fc1.bias", "1.intermediate.dense.bias"))]
    # a block that is left out
    assert refusal(state | {key.replace(".1.", ".3."): state[key]}, tmp_path / "w.pt")


@pytest.mark.parametrize("in_memory", [False, True])
def test_query_and_key_of_wrong_shapes_that_add_up_are_refused(tmp_path, in_memory):
    state = dict(hub_state(in_memory))
    [query] = [k for k in state if re.search(r"0\.att.*(query|q_proj)\.weight", k)]
    [key] = [k for k in state if re.search(r"0\.att.*(key|k_proj)\.weight", k)]
    state[query], state[key] = torch.zeros(65, 64), torch.zeros(63, 64)
    assert refusal(state, tmp_path / "w.pt")
