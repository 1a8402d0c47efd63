"""The command export: for each format, what is written, kept, refused."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import good, refused
from folders import full_disk, tree
from networks import noise, tiny

from maest.models import Maest, get_maest, load_checkpoint, save_model

LABELS = ["Folk---Jig", "Früh---Messe", "Blues"]
OTHERS = {
    "huggingface": ("config.json", "model.safetensors", "README.md", "melspectrogram.py"),
    "onnx": ("model.onnx", "labels.json"),
    "safetensors": ("model.safetensors", "labels.json"),
}
FORMATS = pytest.mark.parametrize("form", OTHERS)


def network() -> Maest:
    return tiny(labels=LABELS, head_eps=1e-6)


def typed(form: str, *more: str) -> str:
    # The network has two blocks: the default one is not among them.
    blocks = ["export.blocks=[0]"] if form == "onnx" else []
    return " ".join(["export with maest.checkpoint=model", f"export.format={form}", *blocks, *more])


@pytest.fixture
def home(tmp_path) -> Path:
    save_model(tmp_path / "model", network(), "maest_tiny", {"val_ap": 0.5})
    return tmp_path


@FORMATS
def test_an_export_twice_and_other_files_stay(home, form):
    (home / "export" / ".git").mkdir(parents=True)
    (home / "export" / ".git" / "HEAD").write_text("ref")
    for _ in range(2):
        good("ex_maest.py", typed(form, f"export.with_frontend={form == 'onnx'}"), home)
    assert (home / "export" / ".git" / "HEAD").read_text() == "ref"
    wave = 0.1 * noise(2, 50_000)
    with torch.no_grad():
        logits = network()(wave)[0]
    if form == "onnx":
        session = onnxruntime.InferenceSession(home / "export" / "model.onnx")
        found, _ = session.run(["logits", "embeddings_0"], {"waveform": wave.numpy()})
        np.testing.assert_allclose(found, logits, atol=1e-4)
        assert json.loads((home / "export" / "labels.json").read_text("utf-8")) == LABELS
        return
    path = home / "export" / ("model.safetensors" if form == "safetensors" else "")
    again, checkpoint = get_maest(checkpoint=path), load_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(again(wave)[0], logits)
    assert (again.labels, again.sizes()) == (LABELS, network().sizes())
    assert (checkpoint.arch, checkpoint.trained_on) == ("maest_tiny", {"val_ap": 0.5})


def test_labels_for_a_file_that_has_none(tmp_path):
    torch.save(network().state_dict(), tmp_path / "flat.ckpt")
    (tmp_path / "labels.txt").write_text("Jig\nMesse\nBlues\n", "utf-8")
    line = "export with maest.checkpoint=flat.ckpt maest.labels="
    good("ex_maest.py", f"{line}labels.txt", tmp_path)
    assert get_maest(checkpoint=tmp_path / "export").labels == ["Jig", "Messe", "Blues"]
    (tmp_path / "two.json").write_text('["a", "b"]')
    refused("ex_maest.py", f"{line}two.json", tmp_path, "mismatch", "maest.labels")


@FORMATS
def test_a_licence_is_not_loosened(tmp_path, form):
    save_model(tmp_path / "model", network(), trained_on={"licence": "CC-BY-NC-4.0"})
    line = typed(form, "export.licence=")
    refused("ex_maest.py", f"{line}mit", tmp_path, "conflict", "export.licence")
    assert not (tmp_path / "export").exists()
    good("ex_maest.py", f"{line}cc-by-nc-4.0", tmp_path)
    path = tmp_path / "export"
    if form == "onnx":
        found = onnxruntime.InferenceSession(path / "model.onnx").get_modelmeta()
        assert found.custom_metadata_map["licence"] == "CC-BY-NC-4.0"
    else:
        path = path if form == "huggingface" else path / "model.safetensors"
        assert load_checkpoint(path).licence == "CC-BY-NC-4.0"


@pytest.mark.parametrize("own", [None, "apache-2.0"])
def test_a_chosen_licence(tmp_path, own):
    """Where the weights have none yet, or one that allows any other."""
    save_model(tmp_path / "model", network(), trained_on={"licence": own} if own else None)
    good("ex_maest.py", typed("huggingface", "export.licence=mit"), tmp_path)
    assert load_checkpoint(tmp_path / "export").licence == "MIT"


def test_the_licence_of_published_weights(tmp_path):
    line = "export with maest.arch=maest-tiny-music export.licence=mit"
    refused("ex_maest.py", line, tmp_path, "conflict", "export.licence")
    by_hand = tmp_path / "discogs-maest-5s-pw-129e-swa.ckpt"  # known by its name
    torch.save(network().state_dict(), by_hand)
    assert load_checkpoint(by_hand).licence == "CC-BY-NC-SA-4.0"


@pytest.mark.parametrize(("form", "name"), [(f, name) for f in OTHERS for name in OTHERS[f]])
def test_files_of_others_are_not_replaced(home, form, name):
    (home / "export").mkdir()
    (home / "export" / name).write_text('{"my": "own"}')
    refused("ex_maest.py", typed(form), home, "exists", place="export")
    assert tree(home / "export") == {name: b'{"my": "own"}'}


@pytest.mark.parametrize("form", ["huggingface", "safetensors"])
def test_a_model_folder_is_not_replaced_by_an_export(home, form):
    before = tree(home / "model")
    line = typed(form, "export.out_dir=model")
    refused("ex_maest.py", line, home, "exists", place="model")
    assert tree(home / "model") == before


@FORMATS
def test_a_full_disk_leaves_nothing(home, form):
    with full_disk(100_000):
        refused("ex_maest.py", typed(form), home, "access", place="export")
    assert not (home / "export").exists()


@pytest.mark.parametrize(
    ("line", "kind", "setting"),
    [
        ("export.format=tensorflow", "unknown", "export.format"),
        ("export.with_frontend=True", "conflict", "export.with_frontend"),
        ("maest.n_classes=5", "mismatch", "maest.checkpoint"),
        ("maest.distilled_type=separated", "mismatch", "maest.checkpoint"),
        ("maest.arch=maest_tinny", "unknown", "maest.arch"),
        ("export.format=onnx export.blocks=[7]", "invalid", "export.blocks"),
        ("export.format=onnx", "invalid", "inference.transformer_block"),
        ("maest.checkpoint_swa_weights=True", "missing", None),
    ],
)
def test_mistakes(home, line, kind, setting):
    line = f"export with maest.checkpoint=model {line} inference.transformer_block=7"
    refused("ex_maest.py", line, home, kind, setting)
    refused("ex_maest.py", "export with seed=1", home, "missing", "maest.checkpoint")
    assert not (home / "export").exists()
