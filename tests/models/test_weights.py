"""Checkpoints: what is written comes back exactly, what does not fit is named, no code runs."""

import functools
import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from maest.helpers.errors import InputError
from maest.models import CheckpointError, Maest, get_maest, load_checkpoint, save_model

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["Folk---Jig", "Folk---Reel", "Früh---Messe"]


def tiny(seed: int = 0, **options) -> Maest:
    torch.manual_seed(seed)
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": 64, "num_heads": 1, "depth": 2}
    model = Maest(**(sizes | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def same(one: Maest, other: Maest, but: tuple[str, ...] = ()) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == list(but)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing here may ask the network for anything."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model", tiny(labels=LABELS))


# ------------------------------------------------------------------ folders


def test_a_folder_comes_back_exactly(tmp_path):
    model = tiny(
        labels=LABELS,
        input_t=400,
        num_heads=4,
        mlp_ratio=2.0,
        distilled_type="separated",
        head_eps=1e-6,
        norm_mean=1.25,
        norm_std=0.75,
    )
    trained_on = {"data": "scores", "epochs": 3, "figures": {"ap": 0.5}}
    folder = save_model(tmp_path / "run" / "model", model.train(), "maest_tiny", trained_on)
    assert folder == tmp_path / "run" / "model"
    assert listing(tmp_path / "run") == ["model", "model/config.json", "model/model.safetensors"]

    for path in (folder, str(folder), load_checkpoint(folder)):
        found = get_maest(checkpoint=path)
        same(found, model)
        assert not found.training
        assert found.labels == LABELS
        assert (found.norm_mean, found.norm_std) == (1.25, 0.75)
        assert (found.input_t, found.num_heads, found.distilled_type) == (400, 4, "separated")
        assert found.head[0].eps == 1e-6
        wave = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for one, other in zip(found(wave), model.eval()(wave), strict=True):
                assert torch.equal(one, other)
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.arch, checkpoint.trained_on) == ("maest_tiny", trained_on)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["arch"] == "maest_tiny"
    assert config["labels"] == LABELS
    assert config["trained_on"] == trained_on


def test_the_weights_can_be_read_by_others(folder):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    expected = tiny(labels=LABELS).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask(), path


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_folder_is_as_open_as_any_other(tmp_path):
    before = os.umask(0o077)
    try:
        folder = save_model(tmp_path / "model", tiny())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_older_folder_is_replaced(tmp_path):
    folder = save_model(tmp_path / "model", tiny(labels=LABELS))
    save_model(folder, tiny(seed=1), average=tiny(seed=2))
    same(get_maest(checkpoint=folder), tiny(seed=2))
    save_model(folder, tiny(seed=3))  # the average was another model's
    assert listing(tmp_path) == ["model", "model/config.json", "model/model.safetensors"]
    same(get_maest(checkpoint=folder), tiny(seed=3))
    assert get_maest(checkpoint=folder).labels is None


def test_what_else_is_in_the_folder_stays(tmp_path):
    (tmp_path / "thesis.tex").write_text("thesis")
    (tmp_path / ".git").mkdir()
    for _ in range(2):
        save_model(tmp_path, tiny())
    names = [".git", "config.json", "model.safetensors", "thesis.tex"]
    assert listing(tmp_path) == names
    assert (tmp_path / "thesis.tex").read_text() == "thesis"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model-swa.safetensors"])
@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "{", ""])
def test_files_of_others_are_not_replaced(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        save_model(tmp_path, tiny())
    assert (caught.value.kind, caught.value.path) == ("exists", tmp_path)
    assert listing(tmp_path) == [name]
    assert (tmp_path / name).read_text() == content


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    save_model(tmp_path / "model", tiny())
    assert (tmp_path / "model").is_symlink()
    same(get_maest(tmp_path / "disk"), tiny())


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(InputError) as caught:
        save_model(tmp_path / "model", tiny())
    assert (caught.value.kind, caught.value.path) == ("access", tmp_path / "model")


def test_a_failure_while_writing_leaves_the_older_folder(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model", tiny(labels=LABELS))
    with pytest.raises(TypeError):
        save_model(folder, tiny(seed=1), trained_on={"data": object()})

    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(InputError) as caught:
            save_model(place, tiny(seed=1))
        assert (caught.value.kind, caught.value.path) == ("access", place)
    assert listing(tmp_path) == ["model", "model/config.json", "model/model.safetensors"]
    same(get_maest(checkpoint=folder), tiny())


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_while_renaming_never_mixes_two_models(tmp_path, monkeypatch, failing):
    """Whichever of the renames fails (a busy network drive)."""
    folder = save_model(tmp_path / "model", tiny(labels=LABELS))
    real, calls = os.replace, []

    def replace(*args, **kwargs):
        calls.append(args)
        if len(calls) == failing:
            raise OSError("busy")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError):
        save_model(folder, tiny(seed=1))
    monkeypatch.undo()
    assert listing(tmp_path) == ["model", "model/config.json", "model/model.safetensors"]
    if failing == 1:
        same(get_maest(checkpoint=folder), tiny())
    else:  # new weights, and labels of the older model
        with pytest.raises(CheckpointError) as caught:
            get_maest(checkpoint=folder)
        assert (caught.value.kind, caught.value.path) == ("mismatch", folder / "config.json")
    save_model(folder, tiny(seed=1))
    same(get_maest(checkpoint=folder), tiny(seed=1))


def test_the_weights_of_a_folder_can_be_used_alone(tmp_path):
    model = tiny(labels=LABELS, norm_mean=1.25, num_heads=4)
    folder = save_model(tmp_path / "model", model, trained_on={"licence": "CC-BY-NC-4.0"})
    found = load_checkpoint(folder / "model.safetensors")
    assert (found.labels, found.licence) == (LABELS, "CC-BY-NC-4.0")
    assert get_maest(checkpoint=found).sizes() == model.sizes()


# ------------------------------------------------------------------ what the caller names wins


def test_another_input_length(folder, caplog):
    own, found = tiny(), get_maest(checkpoint=folder, input_t=625)
    assert found.input_t == 625
    assert found.time_new_pos_embed.shape == (1, 64, 1, 62)
    same_but_time = {n: p for n, p in own.state_dict().items() if n != "time_new_pos_embed"}
    assert all(torch.equal(found.state_dict()[n], p) for n, p in same_but_time.items())
    # 31 → 62 positions: a resized curve, whose pairs are about the old values
    pairs = found.time_new_pos_embed.unflatten(-1, (31, 2)).mean(-1)
    error = (pairs - own.time_new_pos_embed).std() / own.time_new_pos_embed.std()
    assert error < 0.35
    with torch.no_grad():
        assert found(torch.randn(1, 96, 626))[0].shape == (1, 3)
    assert "time_new_pos_embed" in caplog.text
    assert "resized" in caplog.text
    assert found.labels == LABELS


@pytest.mark.parametrize(("times", "warned"), [(2, False), (4, False), (6, True), (100, True)])
def test_inputs_many_times_as_long_as_in_training(folder, caplog, times, warned):
    get_maest(folder, input_t=times * 312)
    assert ("times as long" in caplog.text) == warned


def test_resized_positions_are_a_straight_line_where_they_were_one(tmp_path):
    model = tiny()
    ramp = torch.arange(31.0)
    with torch.no_grad():
        model.time_new_pos_embed.copy_(ramp.expand(1, 64, 1, 31))
    found = get_maest(checkpoint=save_model(tmp_path / "m", model), input_t=625)
    centres = (torch.arange(62) + 0.5) / 2 - 0.5  # align_corners=False
    inside = found.time_new_pos_embed[0, 0, 0, 4:-4]
    # (PyTorch's bicubic kernel is off a straight line by 0.047; align_corners=True by 0.22)
    torch.testing.assert_close(inside, centres[4:-4], rtol=0, atol=0.06)


@pytest.mark.parametrize("given", [{"n_classes": 5}, {"labels": list("abcde")}])
def test_another_number_of_classes(folder, caplog, given):
    own, found = tiny().state_dict(), get_maest(checkpoint=folder, **given)
    assert found.n_classes == 5
    assert found.labels == given.get("labels")
    fresh = {"head.1.weight", "head.1.bias", "head_dist.weight", "head_dist.bias"}
    for name, tensor in found.state_dict().items():
        if name in fresh:
            assert tensor.shape[0] == 5
            std = 0.0 if name.endswith("bias") else 0.02
            assert tensor.std().item() == pytest.approx(std, abs=0.005)
        else:
            assert torch.equal(tensor, own[name]), name
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "head" in warnings[0]
    assert found.uninitialized == fresh


def test_other_names_for_the_same_classes(folder, caplog):
    found = get_maest(checkpoint=folder, labels=["x", "y", "z"])
    same(found, tiny())
    assert found.labels == ["x", "y", "z"]
    assert get_maest(checkpoint=folder, n_classes=3).labels == LABELS
    assert not caplog.records
    with pytest.raises(ValueError, match="labels"):
        get_maest(checkpoint=folder, labels=["x", "y"], n_classes=3)


def test_options_win_over_the_checkpoint(folder):
    found = get_maest(
        checkpoint=folder, s_patchout_t=3, distilled_type="separated", norm_mean=1.0, input_t=None
    )
    assert (found.patchout.dropped["s_patchout_t"], found.distilled_type, found.norm_mean) == (
        3,
        "separated",
        1.0,
    )
    assert found.input_t == 312
    same(found, tiny())


def test_pretrained_with_a_checkpoint_fetches_nothing(folder):
    same(get_maest(checkpoint=folder, pretrained=True), tiny())


def test_an_architecture_that_is_not_the_checkpoints(folder):
    with pytest.raises(CheckpointError) as caught:
        get_maest("maest_tiny", checkpoint=folder, depth=1)
    assert (caught.value.kind, caught.value.path) == ("mismatch", folder)
    assert "arch=None" in caught.value.hint


# ------------------------------------------------------------------ files


def lightning(state: dict) -> dict:
    """As a trainer nests it, beside things that are none of the network's."""
    nested = {f"net.{name}": tensor for name, tensor in state.items()}
    average = {f"net_swa.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    extra = {"loss.weight": torch.ones(3)}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": nested | average | extra,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}}],
        "hyper_parameters": {"lr": 2e-5, "labels": LABELS},
    }


FRONT_END = {
    "melspectrogram.spec.window": torch.ones(512),
    "melspectrogram.mel_scale.fb": torch.ones(257, 96),
}
FILES = {
    "flat.pt": lambda s, p: torch.save(s, p),
    "old format.pt": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
    "with front end.pt": lambda s, p: torch.save(s | FRONT_END, p),
    "nested.ckpt": lambda s, p: torch.save({"state_dict": s}, p),
    "lightning.ckpt": lambda s, p: torch.save(lightning(s | FRONT_END), p),
    "model.pth": lambda s, p: torch.save({"model": s, "epoch": 4}, p),
    "weights.safetensors": lambda s, p: safetensors.torch.save_file(s, p),
    "weights with front end.safetensors": lambda s, p: safetensors.torch.save_file(
        s | FRONT_END, p
    ),
    "safetensors under another name.bin": lambda s, p: safetensors.torch.save_file(s, p),
    "numbers beside.pt": lambda s, p: torch.save(s | {"epoch": 4}, p),
    "torch under another name.safetensors": lambda s, p: torch.save(s, p),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind(tmp_path, caplog, name):
    model = tiny()
    FILES[name](model.state_dict(), tmp_path / name)
    found = get_maest(checkpoint=tmp_path / name, checkpoint_swa_weights=False)
    same(found, model)
    assert not found.training
    assert (found.input_t, found.n_classes, found.depth) == (312, 3, 2)
    assert not caplog.records
    wave = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(wave)[0], model(wave)[0])


@pytest.mark.parametrize("frames", [312, 625, 1250, 1875])
def test_released_lengths_are_read_off_the_positions(tmp_path, frames):
    torch.save(tiny(input_t=frames).state_dict(), tmp_path / "w.pt")
    assert get_maest(checkpoint=tmp_path / "w.pt").input_t == frames


@pytest.mark.parametrize("frames", [20, 93, 160, 200, 468, 937, 998])
def test_other_lengths_keep_their_positions(tmp_path, caplog, frames):
    """A file does not tell its input length; the positions it has must come through as they are."""
    model = tiny(input_t=frames, depth=1)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    same(get_maest(checkpoint=tmp_path / "w.pt"), model)
    assert not caplog.records


def test_front_end_constants_in_a_folder_are_ignored(folder):
    weights = folder / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(state | FRONT_END, weights)
    same(get_maest(checkpoint=folder), tiny())


def test_half_precision_weights(tmp_path):
    torch.save({n: t.half() for n, t in tiny().state_dict().items()}, tmp_path / "half.pt")
    found = get_maest(checkpoint=tmp_path / "half.pt")
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tiny().state_dict()[name].half().float())


# ------------------------------------------------------------------ what does not fit


def test_keys_that_do_not_fit_are_listed(folder):
    weights = folder / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    state["blocks.0.attn.qkw.weight"] = state.pop("blocks.0.attn.qkv.weight")
    state["norm.bias"] = torch.zeros(65)
    safetensors.torch.save_file(state, weights)
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "blocks.0.attn.qkv.weight: missing, expected (192, 64)" in text
    assert "blocks.0.attn.qkw.weight: (192, 64), expected none" in text
    assert "norm.bias: (65,), expected (64,)" in text
    assert caught.value.kind == "mismatch"


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.zeros(1)},
        {"state_dict": {}},
        {"model": {"encoder.weight": torch.zeros(2, 2)}},
        {"cls_token": torch.zeros(())},
        {**tiny().state_dict(), "cls_token": torch.zeros(1, 1, 0)},
        {0: torch.zeros(1), 1: torch.zeros(1)},
        [torch.zeros(1)],
        torch.zeros(3),
        "weights",
        None,
    ],
    ids=lambda c: type(c).__name__,
)
def test_files_that_hold_something_else(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=path)
    assert caught.value.path == path


def test_nothing_there(tmp_path):
    for given in ({"checkpoint": tmp_path / "nowhere"}, {"arch": str(tmp_path / "nowhere")}):
        with pytest.raises(CheckpointError) as caught:
            get_maest(**given)
        assert (caught.value.kind, caught.value.path) == ("missing", tmp_path / "nowhere")


# ------------------------------------------------------------------ which model


def test_a_model_is_named_by_its_path_or_its_arch(folder, monkeypatch):
    same(get_maest(folder), tiny())
    same(get_maest(str(folder), pretrained=True), tiny())
    # A model folder goes before an arch of that name; any other folder does not.
    monkeypatch.chdir(folder.parent)
    folder.rename("maest_small")
    same(get_maest("maest_small"), tiny())
    assert get_maest("maest_small", pretrained=False, n_classes=2, depth=1).embed_dim == 384
    Path("maest_tiny").mkdir()
    assert get_maest("maest_tiny", n_classes=2, depth=1).embed_dim == 192


@pytest.mark.parametrize("name", ["maest_tinny", "discogs-maest-30s-pw-129"])
def test_a_misspelt_arch(name):
    with pytest.raises(InputError) as caught:
        get_maest(name, n_classes=2)
    assert (caught.value.kind, caught.value.setting) == ("unknown", "arch")
    assert re.search(f"'{name[:8]}.*'", caught.value.hint)


# ------------------------------------------------------------------ weights and their average


def check_both(path: Path, raw: Maest, average: Maest) -> None:
    for given, expected in ((None, average), (True, average), (False, raw)):
        checkpoint = load_checkpoint(path, given)
        assert checkpoint.average == (expected is average)
        same(get_maest(checkpoint=checkpoint), expected)
        same(get_maest(path, checkpoint_swa_weights=given), expected)
        same(get_maest(path, checkpoint_swa_weigts=given), expected)  # as older scripts have it


def test_a_folder_gives_the_average_where_it_has_one(tmp_path, caplog):
    raw, average = tiny(), tiny(seed=1)
    trained_on = {"epoch": 3, "val_ap": 0.5, "swa": {"epoch": 4, "val_ap": 0.6}}
    folder = save_model(tmp_path / "model", raw, trained_on=trained_on, average=average)
    check_both(folder, raw, average)
    for given, figures in ((None, (4, 0.6)), (False, (3, 0.5))):
        found = load_checkpoint(folder, given).trained_on
        assert (found["epoch"], found["val_ap"]) == figures
    with caplog.at_level(logging.INFO):
        load_checkpoint(folder)
    assert "checkpoint_swa_weights" in caplog.text


def test_a_trainers_checkpoint_gives_the_average_where_it_has_one(tmp_path):
    raw, average = tiny(), tiny(seed=1)
    content = lightning(raw.state_dict())
    content["state_dict"] |= {f"net_swa.{n}": t for n, t in average.state_dict().items()}
    torch.save(content, tmp_path / "last.ckpt")
    check_both(tmp_path / "last.ckpt", raw, average)


def test_where_there_is_no_average(folder):
    assert not load_checkpoint(folder).average
    with pytest.raises(CheckpointError) as caught:
        get_maest(folder, checkpoint_swa_weights=True)
    assert (caught.value.kind, caught.value.path) == ("missing", folder)


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
def test_a_folder_that_is_not_whole(folder, absent):
    (folder / absent).unlink()
    with pytest.raises(CheckpointError, match=absent) as caught:
        get_maest(checkpoint=folder)
    assert (caught.value.kind, caught.value.path) == ("missing", folder)


def test_a_run_folder_points_to_its_model(folder):
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=folder.parent)
    assert str(folder) in caught.value.hint


def changed(**changes) -> str:
    sizes = tiny().sizes() | changes.pop("sizes", {})
    sizes = {name: value for name, value in sizes.items() if value != "gone"}
    return json.dumps({"format": "maest", "format_version": 1, "sizes": sizes} | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        "{}",
        '{"architectures": ["ASTForAudioClassification"]}',
        "\udcff",
        changed(format_version=2),
        changed().replace('"sizes"', '"size"'),
        changed(sizes={"colour": 3}),
        changed(sizes={"embed_dim": "64"}),
        changed(sizes={"embed_dim": None}),
        changed(sizes={"num_heads": 0}),
        changed(sizes={"n_classes": "gone"}),
        changed(labels=["a"]),
        changed(labels=7),
    ],
)
def test_a_configuration_that_is_wrong(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=folder)
    assert str(folder) in str(caught.value)


def damages(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte": whole[:1],
        "first half": whole[: len(whole) // 2],
        "the end is gone": whole[:-40],
        "zeros at the start": bytes(64) + whole[64:],
        "text": b"<html>404: Not Found</html>\n",
        "an object too many": b"{}" + whole,
    }


@pytest.mark.parametrize("kind", ["flat.pt", "old format.pt", "weights.safetensors"])
def test_damaged_files(tmp_path, kind):
    whole = tmp_path / kind
    FILES[kind](tiny(depth=1).state_dict(), whole)
    for name, content in damages(whole.read_bytes()).items():
        path = tmp_path / f"{name} of it"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            get_maest(checkpoint=path)
        assert str(path) in str(caught.value)


def test_a_legacy_file_with_a_changed_byte_is_never_a_traceback(tmp_path):
    whole = tmp_path / "w.pt"
    torch.save(
        {"a": torch.ones(3), "b": torch.ones(3)}, whole, _use_new_zipfile_serialization=False
    )
    content = whole.read_bytes()
    for at in range(0, len(content), 3):
        for value in (0, 0x85, 0xFF):
            whole.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            with pytest.raises(CheckpointError):
                load_checkpoint(whole)


@pytest.mark.parametrize("text", [b"<html>404: Not Found</html>\n", b"version https://git-lfs\n"])
def test_a_download_that_went_wrong_is_not_called_dangerous(tmp_path, text):
    (tmp_path / "w.ckpt").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        get_maest(checkpoint=tmp_path / "w.ckpt")
    assert (caught.value.kind, caught.value.path) == ("corrupt", tmp_path / "w.ckpt")


def test_a_damaged_file_in_a_folder(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        get_maest(checkpoint=folder)
    torch.save([1, 2], weights)
    with pytest.raises(CheckpointError, match=r"model"):
        get_maest(checkpoint=folder)


# ------------------------------------------------------------------ no code


class Runs:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


class OwnModule(torch.nn.Linear):
    pass


def payloads(marker: Path) -> dict[str, object]:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "partial": Runs(functools.partial(exec, code)),
        "subprocess": Runs(subprocess.check_call, ["touch", str(marker)]),
        "Path.touch": Runs(Path.touch, marker),
        "a whole module": OwnModule(2, 2),
        "a function": test_payloads_would_run,
    }


RUN = ("os.system", "eval", "exec", "partial", "subprocess", "Path.touch")


def test_payloads_would_run(tmp_path):
    for name in RUN:
        marker = tmp_path / name.replace(" ", "")
        pickle.loads(pickle.dumps(payloads(marker)[name]))
        assert marker.exists(), name


@pytest.mark.parametrize("written", ["zip", "legacy", "plain pickle", "in a folder"])
@pytest.mark.parametrize("name", [*RUN, "a whole module", "a function"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, name, written):
    marker = tmp_path / "ran"
    content = {**tiny(depth=1).state_dict(), "extra": payloads(marker)[name]}
    path = tmp_path / "bad.ckpt"
    if written == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif written == "in a folder":
        path = save_model(path, tiny(depth=1))
        torch.save(content, path / "model.safetensors")
    else:
        torch.save(content, path, _use_new_zipfile_serialization=written == "zip")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt") as caught:
        get_maest(checkpoint=path)
    assert not marker.exists()
    if written != "in a folder":  # whose weights are safetensors, or damaged
        assert caught.value.kind == "unsupported"


def test_what_was_refused_is_named(tmp_path):
    torch.save({"extra": Runs(subprocess.check_call, ["true"])}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"\.check_call"):
        get_maest(checkpoint=tmp_path / "bad.pt")


# ------------------------------------------------------------------ without the experiment's tools


def test_usable_without_sacred_and_lightning(tmp_path):
    save_model(tmp_path / "model", tiny(labels=LABELS))
    program = """
import sys, torch
from maest.models import get_maest
model = get_maest(checkpoint=sys.argv[1])
activations, labels = model.predict_labels(torch.zeros(16_000))
assert len(activations) == len(labels) == 3
get_maest("maest_tiny", n_classes=2, depth=1)
names = {name.split(".")[0] for name in sys.modules}
print(sorted(names & {"sacred", "pytorch_lightning", "lightning", "config", "datasets"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
