"""Collections whose labels are not all known, through the commands."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from by_scikit_learn import ranked
from command_line import good, newest, refused, settings
from conftest import SPLITS
from folders import read_json, rows
from made_up import LABELS, D, MadeUp, make_up, read_predictions

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth

NAN = float("nan")
QUICK = "datamodule.clip_length=1.5 maest.s_patchout_t=2 datamodule.batch_size_train=4 "
QUICK += "trainer.max_epochs=1 datamodule.balanced_sampling=True"


# ---- probes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> MadeUp:
    """A third of the labels is unknown, some are soft, and a few tracks have no known one."""
    made, rng = make_up(tmp_path_factory.mktemp("partial")), np.random.default_rng(0)

    def change(row: np.ndarray) -> np.ndarray:
        row = np.where(rng.random(3) < 0.3, np.abs(row - 0.3), row).astype(np.float32)
        row[(rng.random(3) < 0.35) | (rng.random() < 0.1)] = NAN
        return row

    for split in ("train", "validation", "test"):
        made.relabel(split, change)
    return made


@pytest.fixture(scope="module")
def probed(made) -> Path:
    return made.probe("seeds=2")


def test_a_probe_is_tested_over_the_known_tracks_of_each_label(made, probed):
    found, results = read_predictions(probed), read_json(probed / "results.json")
    whole = made.targets("test")
    kept = ~np.isnan(whole).all(axis=1)
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(found["targets"], whole[kept])
    assert results["tracks"]["test"] == kept.sum()
    for seed, outputs in enumerate(found["outputs"]):
        by_hand = ranked(found["targets"], outputs)
        for name, expected in zip(("ap", "roc_auc"), by_hand, strict=True):
            values = [row[name]["values"][seed] for row in results["per_label"]]
            assert values == pytest.approx(expected, rel=1e-5)
            assert results[name]["values"][seed] == pytest.approx(np.mean(expected), rel=1e-5)
    positives = (whole >= 0.5).sum(axis=0).tolist()
    assert [row["positives"] for row in results["per_label"]] == positives
    assert [int(row["test_positives"]) for row in rows(probed / "labels.csv")] == positives
    assert results["ap"]["mean"] > results["label_frequencies"]["ap"] + 0.1


def test_the_linear_probe_fits_each_label_to_its_known_tracks(made, probed):
    x = {s: np.stack([np.load(made.embedding(7, k))[0] for k in made.keys(s)])
         for s in ("train", "test")}  # fmt: skip
    y, outputs = made.targets("train").astype(float), []
    for label in range(len(LABELS)):
        known = ~np.isnan(y[:, label])
        own = x["train"][known]
        train, test = ((v - own.mean(axis=0)) / own.std(axis=0) for v in (own, x["test"]))
        mean = y[known, label].mean()
        weights = np.linalg.solve(
            train.T @ train + D * np.eye(D), train.T @ (y[known, label] - mean)
        )
        outputs.append(test @ weights + mean)
    expected = ranked(made.targets("test"), np.stack(outputs, axis=1)).mean(axis=1)
    found = read_json(probed / "results.json")["ridge"]
    assert found == pytest.approx(dict(zip(("ap", "roc_auc"), expected, strict=True)), rel=1e-4)


def test_such_probes_are_compared(made, probed):
    other = made.probe("seeds=1 data.types=d")
    good("ex_tl.py", f"compare with runs=[{probed},{other}] compare.resamples=50", made.root)
    compared = read_json(newest(made.root) / "comparison.json")["runs"]
    for row, folder in zip(compared, (probed, other), strict=True):
        assert row["ap"]["value"] == pytest.approx(read_json(folder / "results.json")["ap"]["mean"])


# ---- pre-training and fine-tuning ----------------------------------------------------------------


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
    return " ".join((settings(toy), QUICK, *paths))


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
