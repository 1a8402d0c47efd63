"""Training on own labels, through the commands: every task, frozen blocks, unknown labels."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import good, newest, refused, settings
from conftest import SPLITS
from folders import read_json
from music import arrays

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.models import get_maest, load_checkpoint, save_model

NAN = float("nan")
QUICK = "datamodule.clip_length=1.5 maest.s_patchout_t=2 datamodule.batch_size_train=4"
LEARN = "module.lr=2e-3 trainer.max_epochs=4 module.ramp_end=4 datamodule.batch_size_train=6"


def ground_truths(toy, folder: Path, values, task: str) -> str:
    """The toy set's tracks with other targets, as settings; ``values`` makes them of a label."""
    typed = [f"datamodule.base_dir={toy.mels}"]
    for name, split in SPLITS.items():
        old = read_groundtruth(toy.groundtruth(split))
        labels = old.targets.argmax(axis=1)
        new = {key: values(label) for key, label in zip(old.keys, labels, strict=True)}
        write_groundtruth(folder / f"{split}.pk", new, task=task)
        typed.append(f"datamodule.groundtruth_{name}={folder / split}.pk")
    return " ".join(typed)


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy) -> Path:
    """A working directory with a trained model in exp_logs/1 and exp_logs/latest."""
    home = tmp_path_factory.mktemp("home")
    line = f"with {settings(toy)} {QUICK} trainer.max_epochs=1 trainer.limit_train_batches=4"
    good("ex_maest.py", line, home)
    return home


@pytest.fixture
def tune(home, tmp_path):
    """Fine-tune its model in another folder; what the run leaves."""

    def run(typed: str) -> Path:
        line = f"with maest_finetune {QUICK} maest.checkpoint={home}/exp_logs/1/model {typed}"
        good("ex_maest.py", line, tmp_path)
        return newest(tmp_path)

    return run


def state(folder: Path) -> dict[str, torch.Tensor]:
    return get_maest(checkpoint=folder / "model").state_dict()


def test_own_labels(home, toy, tmp_path, tune):
    """The head is new, frozen blocks do not change, and the rest is trained."""
    write_labels(tmp_path / "labels.json", ["calm", "driving"])
    own = ground_truths(toy, tmp_path, lambda label: [label > 0, label < 2], "multi-label")
    folder = tune(f"{own} module.freeze_blocks=6 trainer.max_epochs=1")
    assert get_maest(checkpoint=folder / "model").labels == ["calm", "driving"]
    before, after = state(home / "exp_logs/1"), state(folder)
    for name, value in before.items():
        if name.startswith(("head.1", "head_dist")):
            assert after[name].shape[0] == 2
            continue
        level = int(name.split(".")[1]) if name.startswith("blocks.") else None
        frozen = level < 6 if level is not None else not name.startswith(("norm", "head"))
        assert torch.equal(after[name], value) == frozen, name
    found = load_checkpoint(folder / "model").trained_on
    assert found["started_from"] == "exp_logs/1/model"


def test_only_the_same_labels_keep_the_head(home, toy, tmp_path, tune):
    own = ground_truths(toy, tmp_path, lambda label: np.arange(3) == label, "multi-label")
    short = f"{own} trainer.max_epochs=1 trainer.limit_train_batches=1 module.lr=1e-30"
    before = state(home / "exp_logs/1")["head.1.weight"]
    for labels, option, same in (
        ("abc", "", False),
        (toy.labels, "", True),
        (toy.labels, "maest.checkpoint_discard_head=True", False),
    ):
        write_labels(tmp_path / "labels.json", labels)
        after = state(tune(f"{short} {option}"))["head.1.weight"]
        assert torch.equal(before, after) == same


def test_one_label_to_a_track(toy, tmp_path, tune):
    """The model keeps the task: later commands need no setting."""
    one = ground_truths(toy, tmp_path, lambda label: np.arange(3) == label, "single-label")
    folder = tune(f"{one} {LEARN} maest.task=single-label")
    results = read_json(folder / "results.json")
    assert results["val_accuracy"] >= 0.75
    assert results["most_frequent_class"]["accuracy"] == pytest.approx(1 / 3)
    line = f"test with {one} {QUICK} maest.checkpoint=exp_logs/1/model"
    good("ex_maest.py", line, tmp_path)
    assert read_json(newest(tmp_path) / "results.json")["test_accuracy"] >= 0.75
    activations, _ = get_maest(checkpoint=folder / "model").predict_labels(torch.randn(30_000))
    assert activations.sum() == pytest.approx(1, abs=1e-5)
    ground_truths(toy, tmp_path, lambda label: [1, label, 0], "regression")
    refused("ex_maest.py", line, tmp_path, "invalid", None, "test.pk")


def test_real_values(toy, tmp_path, tune):
    """Two targets of different scales; outputs are in their units."""
    values = ground_truths(toy, tmp_path, lambda y: [80 + 40.0 * y, y / 9], "regression")
    results = read_json(tune(f"{values} {LEARN} maest.task=regression") / "results.json")
    assert results["val_r2"] >= 0.5
    assert abs(results["training_mean"]["r2"]) < 0.1
    line = f"with {values} {QUICK} maest.checkpoint=exp_logs/1/model"
    good("ex_maest.py", f"test {line}", tmp_path)
    tested = read_json(newest(tmp_path) / "results.json")
    assert [row["r2"] > 0.4 for row in tested["per_label"]] == [True, True]
    typed = f"datamodule.groundtruth_predict={tmp_path}/test.pk"
    good("ex_maest.py", f"extract_logits {line} {typed}", tmp_path)
    truth = read_groundtruth(tmp_path / "test.pk", task="regression")
    found = arrays(tmp_path / "embeddings/run-1/1.5sec/logits")
    logits = np.stack([found[f"{key}.logits.npy"] for key in truth.keys])
    assert np.abs(logits - truth.targets)[:, 0].mean() < 30
    setting = "datamodule.balanced_sampling"
    refused("ex_maest.py", f"{line} {setting}=True", tmp_path, "conflict", setting)


@pytest.mark.parametrize("licence", ["CC-BY-NC-SA-4.0", "CC-BY-NC-4.0", "Apache-2.0"])
def test_the_licence_of_the_weights_goes_along(home, toy, tmp_path, licence):
    """Through model folder, last.ckpt, a training that is continued from it, and the export."""
    model = get_maest(checkpoint=home / "exp_logs/1/model")
    grandparent = {"name": "PaSST", "licence": "Apache-2.0"}
    made = {"licence": licence, "parents": [grandparent]}
    save_model(tmp_path / "theirs", model, trained_on=made)
    line = f"with maest_finetune {settings(toy)} {QUICK} trainer.limit_train_batches=1"
    good("ex_maest.py", f"{line} maest.checkpoint=theirs trainer.max_epochs=1", tmp_path)
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
        line, setting = f"{export} export.licence=MIT", "export.licence"
        refused("ex_maest.py", line, tmp_path, "conflict", setting)
    good("ex_maest.py", export, tmp_path)
    card = (tmp_path / "export/README.md").read_text("utf-8")
    assert f"license: {'unknown' if permissive else licence.lower()}\n" in card
    assert f"theirs: {licence}" in card


# ---- labels that are not all known ---------------------------------------------------------------


@pytest.fixture
def partial(toy, tmp_path) -> str:
    """The toy set with soft labels; odd tracks know one, and the last of each split none."""
    for split in SPLITS.values():
        whole = read_groundtruth(toy.groundtruth(split))
        targets = whole.targets * np.float32(0.8)
        targets[1::2, :2] = NAN
        targets[-1] = NAN
        content = dict(zip(whole.keys, targets, strict=True))
        write_groundtruth(tmp_path / f"{split}.pk", content)
    paths = (f"datamodule.groundtruth_{n}={tmp_path / split}.pk" for n, split in SPLITS.items())
    return " ".join(
        (settings(toy), QUICK, "trainer.max_epochs=1 datamodule.balanced_sampling=True", *paths)
    )


def test_training_leaves_out_tracks_of_which_nothing_is_known(toy, tmp_path, partial, caplog):
    with caplog.at_level(logging.WARNING):
        good("ex_maest.py", f"with {partial}", tmp_path)
    results = read_json(newest(tmp_path) / "results.json")
    tracks = {split: len(read_groundtruth(toy.groundtruth(split))) for split in SPLITS.values()}
    assert results["val_tracks"] == tracks[SPLITS["val"]] - 1
    left_out = [r.args for r in caplog.records if r.name.endswith("groundtruth")]
    assert left_out == [(n, 1, tracks[SPLITS[n]]) for n in ("train", "val")]
    assert results["val_ap"] > 0
    model = newest(tmp_path) / "model"
    good("ex_maest.py", f"test with {partial} maest.checkpoint={model}", tmp_path)
    tested = read_json(newest(tmp_path) / "results.json")
    assert tested["test_tracks"] == tracks[SPLITS["test"]] - 1
    assert 0 < tested["test_ap"] <= 1
    good("ex_maest.py", f"check_data with {partial}", tmp_path)
    checked = read_json(newest(tmp_path) / "check.json")["splits"]
    for split, name in SPLITS.items():
        assert checked[split]["tracks"] == tracks[name]
        assert checked[split]["unknown"] >= tracks[name]
        assert checked[split]["soft"] > 0


def test_a_teacher_knows_something_of_those_tracks(toy, tmp_path, partial, caplog):
    for key in read_groundtruth(toy.groundtruth("train")).keys:
        path = tmp_path / f"logits/{key}.logits.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros(3, np.float32))
    line = f"with {partial} maest.distilled_type=separated datamodule.teacher_dir={tmp_path}/logits"
    with caplog.at_level(logging.WARNING):
        good("ex_maest.py", line, tmp_path)
    left_out = [r.args[0] for r in caplog.records if r.name.endswith("groundtruth")]
    assert left_out == ["val"]


def test_a_split_of_which_nothing_is_known_is_refused(tmp_path, partial):
    path = tmp_path / f"{SPLITS['train']}.pk"
    write_groundtruth(path, dict.fromkeys(read_groundtruth(path).keys, [NAN] * 3))
    line, setting = f"with {partial}", "datamodule.groundtruth_train"
    refused("ex_maest.py", line, tmp_path, "empty", setting, path.name)
