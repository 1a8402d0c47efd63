"""A model exported to transformers gives the same outputs there."""

import json
from pathlib import Path

import pytest
import torch
from made_up import refuses
from networks import noise, tiny
from transformers import ASTForAudioClassification, AutoFeatureExtractor, pipeline

from maest.helpers.audio.mel import MelSpectrogram
from maest.models import Maest, get_maest, load_checkpoint
from maest.models.huggingface import export_huggingface

LABELS = ["Folk---Jig", "Früh---Messe", "Blues"]


def network(**options) -> Maest:
    return tiny(**({"labels": LABELS, "depth": 3, "num_heads": 2} | options))


@pytest.fixture
def hub(tmp_path) -> Path:
    return tmp_path / "hub"


@torch.no_grad()
def compare(model: Maest, hub: Path, within: float) -> ASTForAudioClassification:
    theirs = ASTForAudioClassification.from_pretrained(hub).eval()
    mel = noise(2, 96, theirs.config.max_length)
    found = theirs(mel.transpose(1, 2), output_hidden_states=True)
    logits, embeddings = model.encode(mel, range(model.depth))
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=within)
    for block, own in embeddings.items():
        x = found.hidden_states[block + 1]
        x = torch.stack((x[:, 0], x[:, 1], x[:, 2:].mean(1)), 1)
        torch.testing.assert_close(x, own, rtol=0, atol=1e-5)
    return theirs


SCALE = {"target_mean": [120, 0, 3], "target_std": [40, 1, 0.1]}


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        *(({"input_t": frames}, 1) for frames in (16, 93, 312, 625, 1250, 1875)),
        *(({"head_eps": 1e-6, "task": task}, 0) for task in ("single-label", "multi-label")),
        ({"head_eps": 1e-6, "task": "regression", "labels": None, **SCALE}, 1),
    ],
)
def test_transformers_gives_the_same_and_so_does_the_folder_here(hub, options, notes):
    model = network(**options)
    assert len(export_huggingface(hub, model)) == notes
    compare(model, hub, 5e-4 if model.head_eps == 1e-5 else 1e-5)  # that layout's epsilon is 1e-6
    again, mel = get_maest(checkpoint=hub), noise(2, 96, model.input_t)
    with torch.no_grad():
        torch.testing.assert_close(again(mel), model(mel), rtol=1e-5, atol=1e-5)
    alike = {"target_mean": None, "target_std": None}  # the last layer has the units
    assert (again.sizes(), again.labels) == (model.sizes() | alike, model.labels)


def test_what_the_layout_cannot_carry_is_said(hub):
    model = network(distilled_type="separated", s_patchout_t_indices=[3], labels=None)
    notes = export_huggingface(hub, model)
    assert len(notes) == 4  # head_dist, patchout, epsilon, labels
    card = (hub / "README.md").read_text("utf-8")
    assert all(note in card for note in notes)
    plain = network()  # the rest: the first head, on the mean of both tokens
    plain.load_state_dict(model.state_dict())
    compare(plain, hub, 5e-4)
    with refuses("unsupported", setting="format"):
        export_huggingface(hub.with_name("other"), network(input_f=128))
    assert not hub.with_name("other").exists()


def test_the_folder_has_its_front_end(hub):
    """From the waveform on, in transformers alone."""
    model = network(head_eps=1e-6, norm_mean=1.5, norm_std=0.9)
    export_huggingface(hub, model)
    for path in hub.glob("*.py"):  # without this repository
        assert "from maest" not in path.read_text()
    extractor = AutoFeatureExtractor.from_pretrained(hub, trust_remote_code=True)
    waves = [0.1 * noise(samples) for samples in (40_000, 80_000, 200_000)]
    inputs = extractor([wave.numpy() for wave in waves], sampling_rate=16_000, return_tensors="pt")
    assert inputs["input_values"].shape == (3, 316, 96)
    for row, wave in zip(inputs["input_values"], waves, strict=True):
        log_mel = MelSpectrogram()(wave)[:, :316]
        silent = torch.nn.functional.pad(log_mel, (0, 316 - log_mel.shape[1]))
        torch.testing.assert_close(row.T, (silent - 1.5) / 1.8)
    for audio, rate in ((waves[0], 44_100), (noise(2, 3, 800), 16_000)):
        with pytest.raises(ValueError, match="audio"):
            extractor(audio.numpy(), sampling_rate=rate)
    theirs = ASTForAudioClassification.from_pretrained(hub).eval()
    tag = pipeline("audio-classification", model=theirs, feature_extractor=extractor)
    rows = tag(waves[1].numpy(), top_k=3, function_to_apply="sigmoid")
    found = {row["label"]: row["score"] for row in rows}
    with torch.no_grad():
        expected = model(inputs["input_values"][1:2].transpose(1, 2))[0].sigmoid()[0]
    assert found == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)


def test_the_model_card(hub):
    parents = [{"name": "a-model", "licence": None}, {"name": "PaSST", "licence": "Apache-2.0"}]
    trained_on = {"groundtruth": "scores/train.pk", "val_ap": 0.25, "parents": parents}
    export_huggingface(hub, network(), "maest_tiny", trained_on | {"licence": "CC-BY-NC-SA-4.0"})
    card = (hub / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: cc-by-nc-sa-4.0\n")
    for text in ("# hub", "scores/train.pk", "val_ap: 0.25", "Früh---Messe", "maest_tiny"):
        assert text in card
    assert card.index("a-model: ") < card.index("PaSST: Apache-2.0")
    assert load_checkpoint(hub).trained_on["parents"] == parents
    config = json.loads((hub / "config.json").read_text("utf-8"))
    del config["maest"]
    (hub / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(hub).licence == "CC-BY-NC-SA-4.0"  # read off the card


def test_trained_further_in_transformers(hub):
    """Then our record of it is of another model, and an export does not replace it."""
    export_huggingface(hub, network(norm_mean=1.5), "maest_tiny", {"val_ap": 0.5})
    assert load_checkpoint(hub).trained_on == {"val_ap": 0.5}
    theirs = ASTForAudioClassification.from_pretrained(hub)
    with torch.no_grad():
        theirs.classifier.dense.weight += 0.01
    theirs.config.problem_type = "single_label_classification"
    theirs.save_pretrained(hub)
    found = load_checkpoint(hub)
    assert found.trained_on == {}
    assert (found.sizes["head_eps"], found.sizes["task"]) == (1e-6, "single-label")
    assert found.sizes["norm_mean"] == 1.5  # the feature extractor's
    with refuses("exists", str(hub), ...):
        export_huggingface(hub, network())


def test_a_card_that_was_edited_is_kept(hub):
    export_huggingface(hub, network())
    card = hub / "README.md"
    card.write_text(card.read_text("utf-8") + "My own words.\n", "utf-8")
    for _ in range(2):
        notes = export_huggingface(hub, network(labels=None))
        assert any("README.md" in note for note in notes)
        assert card.read_text("utf-8").endswith("My own words.\n")
    assert get_maest(hub).labels is None
