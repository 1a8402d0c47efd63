"""Thresholds of labels: made by a training or by calibrate, kept, exported, and used by predict."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
from command_line import good, newest, refused, settings
from folders import read_json, rows, tree
from music import LABELS

from maest.datasets.groundtruth import read_groundtruth
from maest.experiments import evaluate
from maest.helpers.reports.thresholds import best_thresholds
from maest.helpers.results.manifest import model_hash
from maest.helpers.results.predictions import NO_TAG
from maest.models import get_maest, load_checkpoint, save_model
from maest.models.extraction import Extractor

QUICK = "datamodule.clip_length=1.5 maest.s_patchout_t=2 datamodule.batch_size_train=4"


def many(toy) -> str:
    """The toy set, validated on tracks that are enough for thresholds: 12 of each label."""
    validation = f"datamodule.groundtruth_val={toy.groundtruth('train')}"
    return settings(toy).replace(
        f"datamodule.groundtruth_val={toy.groundtruth('validation')}", validation
    )


def expected(folder: Path, toy) -> list[float | None]:
    """By hand, from the network's tags of each track."""
    net, truth = get_maest(checkpoint=folder), read_groundtruth(toy.groundtruth("train"))
    values = []
    for key in truth.keys:
        mel = np.fromfile(toy.mels / key, np.float16).reshape(-1, 96).astype(np.float32)
        values.append(net.predict_labels(net.normalise(mel).T, melspectrogram_input=True)[0])
    return best_thresholds(truth.targets, np.stack(values))


def digest(folder: Path) -> str:
    net = get_maest(checkpoint=folder)
    return model_hash(net.state_dict(), net.sizes())


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy) -> Path:
    """Two trained models: exp_logs/1, with an average, has thresholds, exp_logs/2 has none."""
    home = tmp_path_factory.mktemp("home")
    line = f"{QUICK} trainer.max_epochs=2 trainer.limit_train_batches=2"
    good("ex_maest.py", f"with {many(toy)} {line} module.swa_start=1", home)
    good("ex_maest.py", f"with {settings(toy)} {line}", home)
    return home


def test_a_training_chooses_thresholds_of_the_weights_and_of_their_average(home, toy):
    model = home / "exp_logs/1/model"
    for average in (True, False):
        found = load_checkpoint(model, average)
        net = get_maest(checkpoint=found)
        assert net.thresholds == found.thresholds
        save_model(home / "alone", net)
        assert found.thresholds == pytest.approx(expected(home / "alone", toy), abs=1e-4)
    assert "thresholds" not in read_json(home / "exp_logs/2/model/config.json")


def test_calibrate_adds_them_in_a_new_folder(home, toy):
    model, typed = home / "exp_logs/2/model", "maest.checkpoint=exp_logs/2/model"
    before = tree(model)
    good("ex_maest.py", f"calibrate with {typed} {many(toy)}", home)
    new = newest(home) / "model"
    assert load_checkpoint(new).thresholds == pytest.approx(expected(model, toy), abs=1e-4)
    assert tree(model) == before
    assert digest(new) == digest(model)
    old, now = (read_json(folder / "config.json") for folder in (model, new))
    assert {name: value for name, value in now.items() if old.get(name) != value}.keys() == {
        *("thresholds", "digest")
    }


def test_calibrate_of_16_bits_and_of_an_average(home, toy):
    half = get_maest(checkpoint=home / "exp_logs/2/model").half()
    save_model(home / "half", half)
    for model in ("half", "exp_logs/1/model"):
        good("ex_maest.py", f"calibrate with maest.checkpoint={model} {many(toy)}", home)
        new = newest(home) / "model"
        assert digest(new) == digest(home / model)
        kept, weights = sorted(tree(new)), safetensors.torch.load_file(new / "model.safetensors")
        assert kept == ["config.json", "golden.json", "model.safetensors"]
        assert (str(weights["cls_token"].dtype) == "torch.float16") == (model == "half")


@pytest.mark.parametrize(
    ("typed", "kind", "setting"),
    [
        ("maest.checkpoint=exp_logs/2/model {few}", "empty", "datamodule.groundtruth_val"),
        ("{many}", "missing", "maest.checkpoint"),
        ("maest.checkpoint=single {many}", "unsupported", "maest.checkpoint"),
    ],
)
def test_what_cannot_be_calibrated(home, toy, typed, kind, setting, monkeypatch):
    if kind != "empty":  # refused before a track is scored
        monkeypatch.setattr(evaluate, "evaluate", None)
    net = get_maest("maest_tiny", n_classes=3, input_t=62, depth=1, task="single-label")
    save_model(home / "single", net)
    line = typed.format(few=settings(toy), many=many(toy))
    refused("ex_maest.py", f"calibrate with {line}", home, kind, setting)


@pytest.fixture
def tagging(model, music, tmp_path):
    """Predict with a model of certain thresholds; the folder of what is written, and the output."""

    def run(thresholds, typed: str = "", name: str = "out") -> tuple[Path, str]:
        net = get_maest(checkpoint=model)
        net.thresholds = thresholds
        save_model(tmp_path / "model", net)
        line = f"predict with maest.checkpoint=model inference.audio={music} "
        out = good("ex_maest.py", f"{line} inference.out_dir={name} {typed}", tmp_path)
        return tmp_path / name / "2sec/predictions", out

    return run


def tags(folder: Path) -> dict[str, dict[str, float]]:
    found = (
        read_json(path) for path in sorted(folder.rglob("*.json")) if "manifest" not in str(path)
    )
    return {one["track"]: {e["label"]: e["activation"] for e in one["labels"]} for one in found}


def test_tags_are_at_or_above_their_thresholds(tagging):
    every = tags(tagging(None)[0])
    values = sorted(track["low"] for track in every.values())
    thresholds = [values[3] - 1e-6, None, 0.0]
    folder, out = tagging(thresholds, "inference.plot=True", "limits")
    for track, found in tags(folder).items():
        chosen = {"high", *(["low"] if every[track]["low"] >= thresholds[0] else [])}
        assert found == {name: v for name, v in every[track].items() if name in chosen}
        assert list(found.values()) == sorted(found.values(), reverse=True)
    table = rows(folder / "tracks.csv")
    assert {len(row) for row in table} == {2 + 2 * 3 + 1}
    assert [sum(bool(row[f"label_{i}"]) for i in (1, 2, 3)) for row in table] == [
        len(found) for found in tags(folder).values()
    ]
    assert all(
        len(found) == 1 for found in tags(tagging(thresholds, "inference.top=1", "top")[0]).values()
    )
    for typed, name in (("inference.threshold=None", "all"), ("inference.threshold=0", "zero")):
        assert tags(tagging(thresholds, typed, name)[0]) == every
    assert NO_TAG not in out


def test_a_track_without_a_tag_says_so(tagging, music):
    folder, out = tagging([None, 1.0, None], "inference.plot=True")
    assert out.count(NO_TAG) == 6
    for row in rows(folder / "tracks.csv"):
        assert (NO_TAG in row["label_1"], row["activation_1"]) == (True, "")
        found = read_json(folder / f"{row['track']}.predictions.json")
        assert (found["labels"], found["note"]) == ([], NO_TAG)
        assert all(len(patch["labels"]) == 3 for patch in found["patches"])
        first, second, *_ = rows(folder / f"{row['track']}.predictions.csv")
        assert (first["scope"], first["rank"], first["activation"]) == ("track", "0", "")
        assert second["scope"] == "patch"
        assert (folder / f"{row['track']}.predictions.png").is_file()
    song = min(music.rglob("*.flac"))
    assert NO_TAG in tagging([None, 1.0, None], f"inference.audio={song}", "one")[1]


def test_predictions_of_other_thresholds_do_not_mix(tagging, model, music, tmp_path):
    both = "inference.outputs=[logits,predictions]"
    folder, _ = tagging(None, both)
    before, manifest = tree(folder), folder / "manifest.json"
    old = read_json(manifest)
    del old["settings"]["thresholds"]  # as written before there were any
    manifest.write_text(json.dumps(old))
    tagging(None, both)  # goes on
    manifest.write_text(json.dumps(old))
    line = f"predict with maest.checkpoint={model} inference.audio={music} inference.out_dir=out"
    other = f"{line} {both} inference.threshold=0.5"
    refused("ex_maest.py", other, tmp_path, "mismatch", place="predictions/manifest.json")
    assert tree(folder, "*.csv") == {n: v for n, v in before.items() if n.endswith(".csv")}
    good("ex_maest.py", line.replace("predict", "extract_logits"), tmp_path)  # no part of these
    good("ex_maest.py", f"{other} inference.overwrite=True", tmp_path)
    assert read_json(manifest)["settings"]["thresholds"] == 0.5


def test_in_python(tagging, music, tmp_path):
    song = min(music.rglob("*.flac"))
    folder, _ = tagging([0.0, None, 0.0])
    extract = Extractor(tmp_path / "model", blocks=[1], activations=True)
    assert extract.thresholds == [0.0, None, 0.0]
    key = song.relative_to(music).as_posix()
    assert extract.tags(extract(song)) == pytest.approx(tags(folder)[key], abs=1e-5)
    assert len(extract.tags(extract(song), top=1)) == 1


@pytest.mark.parametrize(
    ("typed", "kind"),
    [("inference.threshold=1.5", "invalid"), ("inference.threshold=automatic", "unknown")],
)
def test_thresholds_that_are_none(line, tmp_path, typed, kind):
    refused("ex_maest.py", f"predict {line} {typed}", tmp_path, kind, "inference.threshold")


def test_a_regression_has_no_tags(line, tmp_path):
    net = get_maest("maest_tiny", n_classes=3, input_t=125, depth=1, task="regression")
    save_model(tmp_path / "model", net)
    line = f"predict {line} maest.checkpoint=model inference.threshold=0.5"
    refused("ex_maest.py", line, tmp_path, "conflict", "inference.threshold")


@pytest.mark.parametrize("form", ["huggingface", "onnx", "safetensors"])
def test_exports_carry_them(model, tmp_path, form):
    net, thresholds = get_maest(checkpoint=model), [0.25, None, 0.5]
    net.thresholds = thresholds
    save_model(tmp_path / "model", net)
    line = f"export with export.format={form} inference.transformer_block=1 maest.checkpoint="
    good("ex_maest.py", f"{line}model", tmp_path)
    out = tmp_path / "export"
    if form == "onnx":
        known = onnxruntime.InferenceSession(out / "model.onnx").get_modelmeta().custom_metadata_map
        assert json.loads(known["thresholds"]) == thresholds
    else:
        path = out if form == "huggingface" else out / "model.safetensors"
        assert get_maest(checkpoint=path).thresholds == thresholds
    if form != "huggingface":
        assert read_json(out / "thresholds.json") == thresholds
        assert read_json(out / "labels.json") == LABELS
    good("ex_maest.py", f"{line}{model}", tmp_path)  # over it, a model without thresholds
    assert not (out / "thresholds.json").exists()
    if form != "onnx":
        assert get_maest(checkpoint=path).thresholds is None


def test_a_new_head_has_none(model, tmp_path):
    net = get_maest(checkpoint=model)
    net.thresholds = [0.25, None, 0.5]
    folder = save_model(tmp_path / "model", net)
    assert get_maest(checkpoint=folder).thresholds == net.thresholds
    assert get_maest(checkpoint=folder, labels=["a", "b", "c"]).thresholds == net.thresholds
    for other in ({"n_classes": 5}, {"task": "single-label"}, {"discard_head": True}):
        assert get_maest(checkpoint=folder, **other).thresholds is None
