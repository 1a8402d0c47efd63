"""Fine-tuning through the command line: own labels, every task, slower and frozen blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import bad, good, newest, settings

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.models import get_maest, load_checkpoint, save_model

QUICK = "datamodule.clip_length=1.5 maest.s_patchout_t=2 datamodule.batch_size_train=4"


def ground_truths(toy, folder: Path, values, task: str) -> str:
    """The toy set's tracks with other targets, as settings; ``values`` makes them of a label."""
    settings = []
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        old = read_groundtruth(toy.groundtruth(split))
        labels = old.targets.argmax(axis=1)
        new = {key: values(label) for key, label in zip(old.keys, labels, strict=True)}
        write_groundtruth(folder / f"{split}.pk", new, task=task)
        settings.append(f"datamodule.groundtruth_{name}={folder / split}.pk")
    return " ".join(["datamodule.base_dir=" + str(toy.mels), *settings])


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy) -> Path:
    """A working directory with a trained model in exp_logs/latest."""
    home = tmp_path_factory.mktemp("home")
    line = f"with {settings(toy)} {QUICK} trainer.max_epochs=1 trainer.limit_train_batches=4"
    good("ex_maest.py", line, home)
    return home


def test_without_a_model_there_is_nothing_to_fine_tune(toy, tmp_path):
    message = bad("ex_maest.py", f"with maest_finetune {settings(toy)}", tmp_path)
    assert "maest.checkpoint: " in message
    assert "Changed type" not in message


def test_own_labels(home, toy, tmp_path):
    """The head is fresh and is trained; what is frozen stays; the rest changes."""
    before = get_maest(checkpoint=home / "exp_logs/1/model").state_dict()
    write_labels(tmp_path / "labels.json", ["calm", "driving"])
    own = ground_truths(toy, tmp_path, lambda label: [label > 0, label < 2], "multi-label")
    good(
        "ex_maest.py",
        f"with maest_finetune {own} {QUICK} module.freeze_blocks=6 trainer.max_epochs=1 "
        f"maest.checkpoint={home}/exp_logs/1/model",
        tmp_path,
    )
    model = get_maest(checkpoint=tmp_path / "exp_logs/1/model")
    assert model.labels == ["calm", "driving"]
    after = model.state_dict()
    for name, value in before.items():
        if name.startswith(("head.1", "head_dist")):
            assert after[name].shape[0] == 2
            continue
        level = int(name.split(".")[1]) if name.startswith("blocks.") else None
        frozen = level < 6 if level is not None else not name.startswith(("norm", "head"))
        assert torch.equal(after[name], value) == frozen, name
    found = load_checkpoint(tmp_path / "exp_logs/1/model").trained_on
    assert found["started_from"] == "exp_logs/1/model"


def test_the_same_number_of_other_labels_is_another_head(home, toy, tmp_path):
    write_labels(tmp_path / "labels.json", ["a", "b", "c"])
    own = ground_truths(toy, tmp_path, lambda label: np.arange(3) == label, "multi-label")
    short = f"{QUICK} trainer.max_epochs=1 trainer.limit_train_batches=1 module.lr=1e-30"
    line = f"with maest_finetune {own} {short} maest.checkpoint={home}/exp_logs/1/model"
    before = get_maest(checkpoint=home / "exp_logs/1/model").state_dict()["head.1.weight"]
    good("ex_maest.py", line, tmp_path)
    after = get_maest(checkpoint=tmp_path / "exp_logs/1/model").state_dict()["head.1.weight"]
    assert not torch.equal(before, after)
    # The same labels: it goes on with the head it has, unless told otherwise.
    write_labels(tmp_path / "labels.json", toy.labels)
    for option, same in (("", True), ("maest.checkpoint_discard_head=True", False)):
        good("ex_maest.py", f"{line} {option}", tmp_path)
        after = get_maest(checkpoint=newest(tmp_path) / "model").state_dict()["head.1.weight"]
        assert torch.equal(before, after) == same


LEARN = "module.lr=2e-3 trainer.max_epochs=4 module.ramp_end=4 datamodule.batch_size_train=6"


def test_one_label_to_a_track(home, toy, tmp_path):
    one = ground_truths(toy, tmp_path, lambda label: np.arange(3) == label, "single-label")
    line = f"maest_finetune {one} {QUICK} maest.checkpoint={home}/exp_logs/1/model"
    out = good("ex_maest.py", f"with {line} {LEARN} maest.task=single-label", tmp_path)
    assert "accuracy" in out
    assert "most frequent class" in out
    results = json.loads((tmp_path / "exp_logs/1/results.json").read_text())
    assert results["val_accuracy"] >= 0.75
    assert results["most_frequent_class"]["accuracy"] == pytest.approx(1 / 3)
    # The task is the model's: it need not be said again.
    made = f"{line} maest.checkpoint=exp_logs/1/model"
    out = good("ex_maest.py", f"test with {made}", tmp_path)
    assert "accuracy" in out
    model = get_maest(checkpoint=tmp_path / "exp_logs/1/model")
    activations, _ = model.predict_labels(torch.randn(30_000))
    assert activations.sum() == pytest.approx(1, abs=1e-5)

    two = ground_truths(toy, tmp_path, lambda label: [1, label, 0], "regression")
    assert "exactly one" in bad("ex_maest.py", f"test with {made} {two}", tmp_path)


def test_real_values(home, toy, tmp_path):
    """Of two scales; what comes out is in their units."""
    values = ground_truths(
        toy, tmp_path, lambda label: [80 + 40.0 * label, label / 9], "regression"
    )
    line = f"maest_finetune {values} {QUICK} maest.checkpoint={home}/exp_logs/1/model"
    out = good("ex_maest.py", f"with {line} {LEARN} maest.task=regression", tmp_path)
    assert "R²" in out
    results = json.loads((tmp_path / "exp_logs/1/results.json").read_text())
    assert results["val_r2"] >= 0.5
    assert abs(results["training_mean"]["r2"]) < 0.1
    made = f"{line} maest.checkpoint=exp_logs/1/model"
    good("ex_maest.py", f"test with {made}", tmp_path)
    tested = json.loads((newest(tmp_path) / "results.json").read_text())
    assert [row["r2"] > 0.4 for row in tested["per_label"]] == [True, True]
    predict = f"datamodule.groundtruth_predict={tmp_path}/test.pk"
    good("ex_maest.py", f"extract_logits with {made} {predict}", tmp_path)
    truth = read_groundtruth(tmp_path / "test.pk", task="regression")
    found = [
        np.load(tmp_path / f"embeddings/run-1/1.5sec/logits/{key}.logits.npy") for key in truth.keys
    ]
    assert np.abs(np.stack(found)[:, 0] - truth.targets[:, 0]).mean() < 30
    message = bad(
        "ex_maest.py",
        f"with {made} maest.task=regression datamodule.balanced_sampling=True",
        tmp_path,
    )
    assert "datamodule.balanced_sampling" in message


@pytest.mark.parametrize("licence", ["CC-BY-NC-SA-4.0", "CC-BY-NC-4.0", "Apache-2.0"])
def test_the_licence_of_the_weights_goes_along(home, toy, tmp_path, licence):
    """Through model folder, last.ckpt, a training that is continued from it, and the export."""
    model = get_maest(checkpoint=home / "exp_logs/1/model")
    grandparent = {"name": "PaSST", "licence": "Apache-2.0"}
    made = {"licence": licence, "parents": [grandparent]}
    save_model(tmp_path / "theirs", model, trained_on=made)
    short = f"{QUICK} trainer.limit_train_batches=1"
    line = f"with maest_finetune {settings(toy)} {short}"
    start = f"{line} maest.checkpoint=theirs trainer.max_epochs=1"
    good("ex_maest.py", start, tmp_path)
    go_on = "maest.pretrained=False maest.arch=maest_tiny trainer.max_epochs=2 "
    go_on += "ckpt_path=exp_logs/1/checkpoints/last.ckpt"
    good("ex_maest.py", f"{line} {go_on}", tmp_path)
    permissive = licence == "Apache-2.0"
    for path in ("1/model", "1/checkpoints/last.ckpt", "2/model", "2/checkpoints/last.ckpt"):
        found = load_checkpoint(tmp_path / "exp_logs" / path)
        assert found.licence == (None if permissive else licence), path
        assert found.trained_on["parents"] == [{"name": "theirs", "licence": licence}, grandparent]
        assert found.arch == "maest_tiny"
    export = "export with maest.checkpoint=exp_logs/2/checkpoints/last.ckpt"
    if not permissive:
        assert "export.licence: " in bad("ex_maest.py", f"{export} export.licence=MIT", tmp_path)
    good("ex_maest.py", export, tmp_path)
    card = (tmp_path / "export/README.md").read_text("utf-8")
    assert f"license: {'unknown' if permissive else licence.lower()}\n" in card
    assert f"theirs: {licence}" in card


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("module.layer_decay=0", "module.layer_decay"),
        ("module.layer_decay=1.5", "module.layer_decay"),
        ("module.freeze_blocks=13", "module.freeze_blocks"),
        ("maest.task=tagging", "maest.task: 'tagging'"),
        ("maest.task=regression maest.n_classes=4", "maest.n_classes: "),
        ("datamodule.teacher_dir=nowhere", "nowhere: no such folder"),
        ("datamodule.teacher_dir=exp_logs", "maest.distilled_type: "),
        ("datamodule.teacher_dir=exp_logs maest.task=single-label", "datamodule.teacher_dir: "),
    ],
)
def test_mistakes(home, toy, setting, message):
    model = "maest.checkpoint=exp_logs/latest/model"
    line = f"with maest_finetune {model} {settings(toy)} {QUICK} {setting}"
    assert message in bad("ex_maest.py", line, home)
