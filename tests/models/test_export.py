"""Models for other programs give there what they give here."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import bad, good
from transformers import (
    ASTForAudioClassification,
    AutoFeatureExtractor,
    pipeline,
)

from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.errors import InputError
from maest.models import Maest, get_maest, load_checkpoint, save_model
from maest.models.huggingface import export_huggingface

# The networks here have three blocks: the default one is not among them.
BLOCKS = {"onnx": "export.blocks=[0]", "safetensors": "", "huggingface": ""}
LABELS = ["Folk---Jig", "Früh---Messe", "Blues"]


def network(seed: int = 0, **options) -> Maest:
    """A small network, none of whose weights is where it began."""
    torch.manual_seed(seed)
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": 64, "num_heads": 2, "depth": 3}
    model = Maest(**(sizes | {"labels": LABELS} | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def compare_with_transformers(model: Maest, folder: Path, logits_within: float) -> None:
    hub = ASTForAudioClassification.from_pretrained(folder).eval()
    mel = noise(2, 96, hub.config.max_length)
    with torch.no_grad():
        found = hub(mel.transpose(1, 2), output_hidden_states=True)
        logits, _ = model(mel)
        assert (found.logits - logits).abs().max() <= logits_within
        for block in range(model.depth):
            own = model(mel, transformer_block=block)[1].unflatten(1, (3, -1))
            hidden = found.hidden_states[block + 1]
            theirs = torch.stack((hidden[:, 0], hidden[:, 1], hidden[:, 2:].mean(1)), 1)
            assert (own - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("frames", [16, 93, 312, 625, 1250, 1875])
def test_transformers_gives_the_same(tmp_path, frames):
    model = network(input_t=frames)
    notes = export_huggingface(tmp_path / "hub", model)
    assert any("epsilon" in note for note in notes)
    compare_with_transformers(model, tmp_path / "hub", 5e-4)
    again = get_maest(checkpoint=tmp_path / "hub")
    mel = noise(2, 96, frames)
    with torch.no_grad():
        for one, other in zip(again(mel), model(mel), strict=True):
            assert (one - other).abs().max() <= 1e-5
    assert (again.sizes(), again.labels) == (model.sizes(), LABELS)


def test_a_model_with_the_hubs_epsilon_is_exact(tmp_path):
    model = network(head_eps=1e-6)
    assert export_huggingface(tmp_path / "hub", model) == []
    compare_with_transformers(model, tmp_path / "hub", 1e-5)
    assert get_maest(checkpoint=tmp_path / "hub").head_eps == 1e-6


@pytest.mark.slow
def test_a_base_model(tmp_path):
    torch.manual_seed(0)
    model = get_maest("maest_base", n_classes=400)
    export_huggingface(tmp_path / "hub", model)
    hub = ASTForAudioClassification.from_pretrained(tmp_path / "hub").eval()
    mel = noise(1, 96, 626)
    with torch.no_grad():
        found = hub(mel.transpose(1, 2), output_hidden_states=True)
        assert (found.logits - model(mel)[0]).abs().max() <= 5e-4
        cls = model(mel, transformer_block=7)[1][:, :768]
        assert (found.hidden_states[8][:, 0] - cls).abs().max() <= 1e-5


def test_what_the_layout_cannot_carry_is_said(tmp_path):
    model = network(distilled_type="separated", s_patchout_t_indices=[3], labels=None)
    notes = export_huggingface(tmp_path / "hub", model)
    for word in ("head_dist", "Patchout", "no names"):
        assert any(word in note for note in notes), word
    card = (tmp_path / "hub" / "README.md").read_text("utf-8")
    assert all(note in card for note in notes)
    # The rest is there: the first head, on the mean of both tokens.
    plain = network()
    plain.load_state_dict(model.state_dict())
    compare_with_transformers(plain, tmp_path / "hub", 5e-4)
    with pytest.raises(InputError) as caught:
        export_huggingface(tmp_path / "other", network(input_f=128))
    assert caught.value.kind == "unsupported"
    assert not (tmp_path / "other").exists()


def test_regression_keeps_its_units(tmp_path):
    options = {"task": "regression", "target_mean": [120, 0, 3], "target_std": [40, 1, 0.1]}
    model = network(head_eps=1e-6, **options)
    export_huggingface(tmp_path / "hub", model)
    again = get_maest(checkpoint=tmp_path / "hub")
    hub = ASTForAudioClassification.from_pretrained(tmp_path / "hub").eval()
    mel = noise(1, 96, 316)
    with torch.no_grad():
        expected = model(mel)[0]
        torch.testing.assert_close(again(mel)[0], expected)
        torch.testing.assert_close(hub(mel.transpose(1, 2)).logits, expected)
    assert abs(float(expected[0, 0]) - 120) < 200
    assert again.task == "regression"


@pytest.mark.parametrize("task", ["multi-label", "single-label", "regression"])
def test_the_task_is_kept(tmp_path, task):
    export_huggingface(tmp_path / "hub", network(task=task))
    assert get_maest(checkpoint=tmp_path / "hub").task == task


def test_the_folder_has_its_front_end(tmp_path):
    """From the waveform on, in transformers alone."""
    model = network(head_eps=1e-6, norm_mean=1.5, norm_std=0.9)
    folder = tmp_path / "hub"
    export_huggingface(folder, model)
    for path in folder.glob("*.py"):  # without this repository
        assert "from maest" not in path.read_text()
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    hub = ASTForAudioClassification.from_pretrained(folder).eval()
    waves = [0.1 * noise(samples) for samples in (40_000, 80_000, 200_000)]
    inputs = extractor([wave.numpy() for wave in waves], sampling_rate=16_000, return_tensors="pt")
    assert inputs["input_values"].shape == (3, 316, 96)
    for row, wave in zip(inputs["input_values"], waves, strict=True):
        log_mel = MelSpectrogram()(wave)[:, :316]
        silent = torch.nn.functional.pad(log_mel, (0, 316 - log_mel.shape[1]))
        torch.testing.assert_close(row.T, (silent - 1.5) / 1.8)
    with pytest.raises(ValueError, match="44100 Hz"):
        extractor(waves[0].numpy(), sampling_rate=44_100)
    tag = pipeline("audio-classification", model=hub, feature_extractor=extractor)
    rows = tag(waves[1].numpy(), top_k=3, function_to_apply="sigmoid")
    found = {row["label"]: row["score"] for row in rows}
    with torch.no_grad():
        expected = model(inputs["input_values"][1:2].transpose(1, 2))[0].sigmoid()[0]
    assert found == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)


def test_the_model_card(tmp_path):
    export_huggingface(
        tmp_path / "tags",
        network(),
        arch="maest_tiny",
        trained_on={
            "groundtruth": "scores/train.pk",
            "tracks": 5,
            "val_ap": 0.25,
            "licence": "CC-BY-NC-SA-4.0",
        },
    )
    card = (tmp_path / "tags" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: cc-by-nc-sa-4.0\n")
    for text in ("# tags", "scores/train.pk", "val_ap: 0.25", "Früh---Messe", "epsilon"):
        assert text in card


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model", network(), "maest_tiny", {"val_ap": 0.5})


def test_export_to_transformers(folder, tmp_path):
    line = "export with maest.checkpoint=model export.out_dir=out/hub"
    done = good("ex_maest.py", line, tmp_path)
    assert "written: out/hub" in done
    compare_with_transformers(network(), tmp_path / "out" / "hub", 5e-4)
    good("ex_maest.py", line, tmp_path)  # once more, over the first
    compare_with_transformers(network(), tmp_path / "out" / "hub", 5e-4)


def test_export_to_onnx(folder, tmp_path):
    line = "export with maest.checkpoint=model export.format=onnx export.out_dir=out"
    good("ex_maest.py", f"{line} export.blocks=[0,2] export.with_frontend=True", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    wave = 0.1 * noise(2, 50_000)
    names = ("logits", "embeddings_0", "embeddings_2")
    found = dict(zip(names, session.run(names, {"waveform": wave.numpy()}), strict=True))
    model = network()
    with torch.no_grad():
        np.testing.assert_allclose(found["logits"], model(wave)[0], atol=1e-4)
        for block in (0, 2):
            own = model(wave, transformer_block=block)[1].unflatten(1, (3, -1))
            np.testing.assert_allclose(found[f"embeddings_{block}"], own, atol=1e-4)
    assert json.loads((tmp_path / "out" / "labels.json").read_text("utf-8")) == LABELS
    message = bad("ex_maest.py", f"{line} inference.transformer_block=7", tmp_path)  # of 3
    assert "inference.transformer_block" in message


def test_export_to_one_file(folder, tmp_path):
    line = "export with maest.checkpoint=model export.format=safetensors export.out_dir=out"
    good("ex_maest.py", line, tmp_path)
    again = get_maest(checkpoint=tmp_path / "out" / "model.safetensors")
    for name, value in network().state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert (again.labels, again.sizes()) == (LABELS, network().sizes())
    assert load_checkpoint(tmp_path / "out" / "model.safetensors").trained_on["val_ap"] == 0.5


def test_labels_for_a_file_that_has_none(tmp_path):
    torch.save(network().state_dict(), tmp_path / "flat.ckpt")
    (tmp_path / "labels.txt").write_text("Jig\nMesse\nBlues\n", "utf-8")
    line = "export with maest.checkpoint=flat.ckpt export.out_dir=hub maest.labels="
    good("ex_maest.py", f"{line}labels.txt", tmp_path)
    assert get_maest(checkpoint=tmp_path / "hub").labels == ["Jig", "Messe", "Blues"]
    (tmp_path / "two.json").write_text('["a", "b"]')
    assert "maest.labels: " in bad("ex_maest.py", f"{line}two.json", tmp_path)


def test_trained_further_in_transformers(tmp_path):
    """Then our record of it is of another model."""
    options = {"trained_on": {"val_ap": 0.5}, "arch": "maest_tiny"}
    export_huggingface(tmp_path / "hub", network(norm_mean=1.5, norm_std=0.9), **options)
    assert load_checkpoint(tmp_path / "hub").trained_on == {"val_ap": 0.5}
    hub = ASTForAudioClassification.from_pretrained(tmp_path / "hub")
    with torch.no_grad():
        hub.classifier.dense.weight += 0.01
    hub.config.problem_type = "single_label_classification"
    hub.save_pretrained(tmp_path / "hub")
    found = load_checkpoint(tmp_path / "hub")
    assert found.trained_on == {}
    assert (found.sizes["head_eps"], found.sizes["task"]) == (1e-6, "single-label")
    assert found.sizes["norm_mean"] == 1.5  # the feature extractor's


def test_a_licence_is_read_off_the_card(tmp_path):
    licence = {"licence": "CC-BY-NC-SA-4.0"}
    export_huggingface(tmp_path / "hub", network(), trained_on=licence)
    path = tmp_path / "hub" / "config.json"
    theirs = json.loads(path.read_text("utf-8"))
    del theirs["maest"]
    path.write_text(json.dumps(theirs))
    assert load_checkpoint(tmp_path / "hub").licence == "CC-BY-NC-SA-4.0"


# ---------------------------------------------------------------- licences


@pytest.mark.parametrize("form", ["onnx", "safetensors", "huggingface"])
def test_a_licence_is_not_loosened(tmp_path, form):
    save_model(tmp_path / "nc", network(), trained_on={"licence": "CC-BY-NC-4.0"})
    line = f"export with maest.checkpoint=nc export.format={form} {BLOCKS[form]}"
    assert "export.licence: " in bad("ex_maest.py", f"{line} export.licence=mit", tmp_path)
    assert not (tmp_path / "export").exists()
    good("ex_maest.py", f"{line} export.licence=cc-by-nc-4.0", tmp_path)
    if form == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
        found = session.get_modelmeta().custom_metadata_map["licence"]
    else:
        path = tmp_path / "export"
        found = load_checkpoint(path if form == "huggingface" else path / "model.safetensors")
        found = found.licence
    assert found == "CC-BY-NC-4.0"


def test_a_shipped_models_licence_is_not_loosened(tmp_path):
    line = "export with maest.arch=maest-tiny-scores export.licence=mit"
    assert "export.licence: " in bad("ex_maest.py", line, tmp_path)


@pytest.mark.parametrize("own", [None, "apache-2.0"])
def test_a_licence_of_ones_own(tmp_path, own):
    """Where the weights have none yet, or one that allows any other."""
    save_model(tmp_path / "model", network(), trained_on={"licence": own} if own else None)
    line = "export with maest.checkpoint=model export.licence=mit"
    good("ex_maest.py", line, tmp_path)
    assert load_checkpoint(tmp_path / "export").licence == "MIT"
    card = (tmp_path / "export" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: mit\n")


def test_the_card_names_what_the_weights_were_trained_from(tmp_path):
    parents = [{"name": "a-model", "licence": None}, {"name": "PaSST", "licence": "Apache-2.0"}]
    export_huggingface(tmp_path / "hub", network(), trained_on={"parents": parents})
    card = (tmp_path / "hub" / "README.md").read_text("utf-8")
    assert card.index("a-model: ") < card.index("PaSST: Apache-2.0")
    assert load_checkpoint(tmp_path / "hub").trained_on["parents"] == parents


def test_a_release_that_was_got_by_hand_has_its_licence(tmp_path):
    torch.save(network().state_dict(), tmp_path / "discogs-maest-5s-pw-129e-swa.ckpt")
    found = load_checkpoint(tmp_path / "discogs-maest-5s-pw-129e-swa.ckpt")
    assert found.licence == "CC-BY-NC-SA-4.0"


# ---------------------------------------------------------------- what others have put there

OTHERS = {
    "huggingface": ("config.json", "model.safetensors", "README.md", "melspectrogram.py"),
    "onnx": ("model.onnx", "labels.json"),
    "safetensors": ("model.safetensors", "labels.json"),
}


@pytest.mark.parametrize(("form", "name"), [(f, name) for f in OTHERS for name in OTHERS[f]])
def test_files_of_others_are_not_replaced(folder, tmp_path, form, name):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / name).write_text('{"my": "own"}')
    line = f"export with maest.checkpoint=model export.format={form} {BLOCKS[form]}"
    assert "export" in bad("ex_maest.py", line, tmp_path)
    assert [path.name for path in (tmp_path / "export").iterdir()] == [name]
    assert (tmp_path / "export" / name).read_text() == '{"my": "own"}'


@pytest.mark.parametrize("form", OTHERS)
def test_other_files_stay(folder, tmp_path, form):
    (tmp_path / "export" / ".git").mkdir(parents=True)
    (tmp_path / "export" / ".git" / "HEAD").write_text("ref")
    (tmp_path / "export" / "thesis.tex").write_text("thesis")
    for _ in range(2):
        line = f"export with maest.checkpoint=model export.format={form} {BLOCKS[form]}"
        good("ex_maest.py", line, tmp_path)
    assert (tmp_path / "export" / "thesis.tex").read_text() == "thesis"
    assert (tmp_path / "export" / ".git" / "HEAD").read_text() == "ref"


@pytest.mark.parametrize("form", ["huggingface", "safetensors"])
def test_a_model_folder_is_not_replaced_by_an_export(folder, tmp_path, form):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = f"export with maest.checkpoint=model export.out_dir=model export.format={form}"
    assert "model: " in bad("ex_maest.py", line, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_export_that_was_trained_further_is_not_replaced(tmp_path):
    export_huggingface(tmp_path / "hub", network())
    hub = ASTForAudioClassification.from_pretrained(tmp_path / "hub")
    with torch.no_grad():
        hub.classifier.dense.weight += 0.01
    hub.save_pretrained(tmp_path / "hub")
    with pytest.raises(InputError) as caught:
        export_huggingface(tmp_path / "hub", network())
    assert (caught.value.kind, caught.value.path) == ("exists", tmp_path / "hub")


def test_a_card_that_was_edited_is_kept(tmp_path):
    export_huggingface(tmp_path / "hub", network())
    card = tmp_path / "hub" / "README.md"
    card.write_text(card.read_text("utf-8") + "My own words.\n", "utf-8")
    for _ in range(2):
        notes = export_huggingface(tmp_path / "hub", network(labels=None))
        assert any("README.md" in note for note in notes)
        assert card.read_text("utf-8").endswith("My own words.\n")
    assert get_maest(tmp_path / "hub").labels is None


@pytest.mark.parametrize("form", OTHERS)
def test_a_full_disk(folder, tmp_path, form):
    """One line, and nothing is left."""
    line = f"export with maest.checkpoint=model export.format={form} {BLOCKS[form]}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = bad("ex_maest.py", line, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert "export: " in message
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed=1", "maest.checkpoint: "),
        ("maest.checkpoint=model export.format=tensorflow", "export.format"),
        ("maest.checkpoint=model export.with_frontend=True", "export.with_frontend"),
        ("maest.checkpoint=model maest.n_classes=5", "maest.n_classes"),
        ("maest.checkpoint=model maest.distilled_type=separated", "maest.distilled_type"),
        ("maest.checkpoint=model maest.arch=maest_tinny", "maest.arch: "),
        ("maest.checkpoint=model export.format=onnx export.blocks=[7]", "export.blocks: "),
        ("maest.checkpoint=model maest.checkpoint_swa_weights=True", "model: "),
    ],
)
def test_mistakes(folder, tmp_path, line, message):
    assert message in bad("ex_maest.py", f"export with {line}", tmp_path)
    assert not (tmp_path / "export").exists()
