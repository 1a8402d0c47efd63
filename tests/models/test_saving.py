"""Models are written whole or not at all, come back exactly, and replace no files of others."""

import json
import os

import pytest
import safetensors.torch
import torch
from folders import full_disk, killed_at, tree
from made_up import refuses
from networks import noise, same_weights, tiny

from maest.models import get_maest, load_checkpoint, save_model

LABELS = ["Folk---Jig", "Folk---Reel", "Früh---Messe"]
WHOLE = ["model/config.json", "model/golden.json", "model/model.safetensors"]


def test_a_folder_comes_back_exactly(tmp_path):
    scale = {"norm_mean": -1.25, "norm_std": 0.75, "head_eps": 1e-6, "mlp_ratio": 2.0}
    model = tiny(labels=LABELS, input_t=400, num_heads=4, distilled_type="separated", **scale)
    trained_on = {"data": "scores", "licence": "CC-BY-NC-4.0", "metrics": {"ap": 0.5}}
    folder = save_model(tmp_path / "run/model", model.train(), "maest_tiny", trained_on)
    assert sorted(tree(tmp_path / "run")) == WHOLE
    wave = noise(30_000)
    for path in (folder, str(folder), folder / "model.safetensors"):
        checkpoint = load_checkpoint(path)
        assert (checkpoint.arch, checkpoint.trained_on) == ("maest_tiny", trained_on)
        assert checkpoint.licence == "CC-BY-NC-4.0"
        found = get_maest(checkpoint=checkpoint)
        assert not found.training
        assert (found.sizes(), found.labels) == (model.sizes(), LABELS)
        with torch.no_grad():
            for one, other in zip(found(wave), model.eval()(wave), strict=True):
                assert torch.equal(one, other)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["arch"], config["labels"]) == ("maest_tiny", LABELS)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert state.keys() == model.state_dict().keys()


def test_an_older_folder_is_replaced_and_other_files_stay(tmp_path):
    folder = save_model(tmp_path / "model", tiny(labels=LABELS))
    (folder / "thesis.tex").write_text("thesis")
    save_model(folder, tiny(seed=1), average=tiny(seed=2))
    assert same_weights(get_maest(checkpoint=folder), tiny(seed=2))
    save_model(folder, tiny(seed=3, input_f=64))  # the average was another model's
    without_pair = [name for name in WHOLE if "golden" not in name]  # it is of 96 bands
    assert sorted(tree(tmp_path)) == [*without_pair, "model/thesis.tex"]
    assert same_weights(get_maest(checkpoint=folder), tiny(seed=3, input_f=64))
    assert get_maest(checkpoint=folder).labels is None


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model-swa.safetensors", "golden.json"]
)
@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "{", ""])
def test_files_of_others_are_not_replaced(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with refuses("exists", tmp_path.name):
        save_model(tmp_path, tiny())
    assert tree(tmp_path) == {name: content.encode()}


def test_links_and_files_where_the_folder_should_be(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    save_model(tmp_path / "model", tiny())
    assert (tmp_path / "model").is_symlink()
    assert same_weights(get_maest(checkpoint=tmp_path / "disk"), tiny())
    (tmp_path / "file").write_text("")
    with refuses("access", "file"):
        save_model(tmp_path / "file", tiny())


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_save_that_is_cut_off_never_mixes_two_models(tmp_path, renamed):
    folder = save_model(tmp_path / "model", tiny(labels=LABELS))
    with killed_at(renamed, os, "replace"):
        save_model(folder, tiny(seed=1))
    assert sorted(tree(tmp_path)) == WHOLE
    if renamed:  # new weights, and labels of the older model
        with refuses("mismatch", "model/config.json"):
            load_checkpoint(folder)
    else:
        assert same_weights(get_maest(checkpoint=folder), tiny())
    save_model(folder, tiny(seed=1))
    assert same_weights(get_maest(checkpoint=folder), tiny(seed=1))


def test_a_full_disk_leaves_the_older_folder(tmp_path):
    folder = save_model(tmp_path / "model", tiny())
    with pytest.raises(TypeError):
        save_model(folder, tiny(seed=1), trained_on={"data": object()})
    for place in (folder, tmp_path / "new"):
        with full_disk(50_000), refuses("access", place.name):
            save_model(place, tiny(seed=1))
    assert sorted(tree(tmp_path)) == WHOLE
    assert same_weights(get_maest(checkpoint=folder), tiny())
