"""The named architectures and their lengths."""

import pytest
import torch
from command_line import good
from folders import read_json
from made_up import refuses
from music import write_audio
from networks import tiny

from maest.models import ARCHS, get_maest, list_models, load_checkpoint, save_model
from maest.models.archs import DEIT, PASST, RENAMED, clip_seconds, input_frames

OLDER, SHIPPED = "maest-tiny-scores", "maest-tiny-music"
COLUMNS = {5: 31, 10: 62, 20: 125, 30: 187}


def test_published_weights():
    released = [name for name in ARCHS if name.startswith("discogs-maest-")]
    assert len(released) == 8
    assert {*list_models()} == {*released, PASST, DEIT, SHIPPED}


@pytest.mark.parametrize("name", ARCHS)
def test_the_shapes_of_every_architecture(name):
    arch = ARCHS[name]
    with torch.device("meta"):
        model = get_maest(name, pretrained=False, n_classes=None if arch.n_classes else 5)
    width = 192 if "tiny" in name else 384 if "small" in name else 768
    seconds = next((s for s in COLUMNS if f"-{s}s-" in name), 10)
    classes = {PASST: 527, DEIT: 1000, SHIPPED: 43}.get(name, 400)
    classes = 519 if name.endswith("519l") else classes if arch.n_classes else 5
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert (model.depth, model.num_heads, model.input_f) == (12, width // 64, 96)
    assert model.input_t == seconds * 16000 // 256
    assert shapes["freq_new_pos_embed"] == (1, width, 9, 1)
    assert shapes["time_new_pos_embed"] == (1, width, 1, COLUMNS[seconds])
    assert shapes["head.1.weight"] == shapes["head_dist.weight"] == (classes, width)
    assert shapes["blocks.11.mlp.fc1.weight"] == (4 * width, width)


def test_seconds_are_the_inverse_of_frames():
    assert all(input_frames(clip_seconds(frames)) == frames for frames in range(1, 20_000))
    assert [clip_seconds(frames) for frames in (312, 625, 1250, 1875)] == [*COLUMNS]


@pytest.mark.parametrize(
    ("arguments", "kind", "setting"),
    [
        ({"arch": "maest_tinny", "n_classes": 2}, "unknown", "arch"),
        ({"arch": "maest_tiny", "n_classes": 3, "labels": ["a", "b"]}, "mismatch", "labels"),
        ({"arch": "maest_tiny"}, "missing", "n_classes"),
        ({"n_classes": 3}, "missing", "arch"),
        ({"arch": "maest_tiny", "n_classes": 3, "pretrained": True}, "missing", "arch"),
    ],
)
def test_models_that_are_not_there(arguments, kind, setting):
    with refuses(kind, setting=setting):
        get_maest(**arguments)


def test_an_older_name_gives_the_new_model_and_a_warning(caplog):
    assert OLDER not in list_models()
    net = get_maest(OLDER)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert all(part in record.getMessage() for part in (OLDER, *RENAMED[OLDER]))
    assert net.labels == get_maest(SHIPPED).labels
    assert len(caplog.records) == 1


def test_a_checkpoint_of_an_older_name_keeps_its_labels_and_sizes(tmp_path, caplog):
    model = tiny(labels=["a", "b", "c"])
    folder = save_model(tmp_path / "model", model, OLDER)
    found = load_checkpoint(folder)
    assert (found.arch, found.labels, found.sizes) == (OLDER, model.labels, model.sizes())
    assert get_maest(checkpoint=folder).labels == model.labels
    assert not caplog.records


def test_results_are_named_as_the_model_is_now(tmp_path):
    write_audio(tmp_path / "music/song.wav", 1)
    line = f"predict with maest.arch={OLDER} inference.audio=music"
    good("ex_maest.py", line, tmp_path)
    manifest = read_json(tmp_path / f"embeddings/{SHIPPED}/10sec/predictions/manifest.json")
    assert manifest["made_by"]["arch"] == SHIPPED
