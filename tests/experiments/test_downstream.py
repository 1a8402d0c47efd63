"""The probe command: what a run leaves behind, and what is refused before anything is trained."""

from __future__ import annotations

import csv
import logging
import shlex
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from command_line import bad, good, newest
from folders import read_json
from made_up import (  # noqa: F401
    LABELS,
    TRACKS,
    D,
    MadeUp,
    make_up,
    open_block,
    quick,
)
from safetensors.numpy import load_file
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)

from maest.datasets.groundtruth import TASKS, write_groundtruth, write_labels
from maest.datasets.melspectrograms import write_mel
from maest.experiments import probe as probing
from maest.experiments.probe_report import few_tracks
from maest.helpers.reports import metrics, plots

PNG = b"\x89PNG"


@pytest.fixture(scope="module", params=TASKS)
def probed(request, tmp_path_factory) -> tuple[MadeUp, Path, str]:
    """A task, the folder of a run of two seeds, and what it printed."""
    made = make_up(tmp_path_factory.mktemp(request.param), request.param)
    out = good("ex_tl.py", f"with {made.line('data.block=7 seeds=2 seed=5')}", made.root)
    return made, newest(made.root), out


@pytest.fixture
def made(tmp_path) -> MadeUp:
    return make_up(tmp_path)


@pytest.fixture
def untrained(monkeypatch):
    """Fails where a probe is trained."""
    monkeypatch.setattr(probing, "train_probes", lambda *_, **__: pytest.fail("has been trained"))


def predictions(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz", allow_pickle=False) as found:
        return dict(found)


def spread_of(values) -> dict:
    return {"mean": np.mean(values), "std": np.std(values, ddof=1), "values": list(values)}


# ---- what a run leaves behind --------------------------------------------------------------------


def test_everything_is_in_the_folder(probed):
    made, folder, _ = probed
    wanted = {
        *("results.json", "config.json", "labels.json", "labels.csv", "labels.png"),
        *("training.png", "predictions.npz", "summary.md", "probe"),
    }
    if made.task == "single-label":
        wanted |= {"confusion.csv", "confusion.png"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert all(path.read_bytes().startswith(PNG) for path in folder.glob("*.png"))
    assert read_json(folder / "labels.json") == list(LABELS)
    results, config = (read_json(folder / f"{name}.json") for name in ("results", "config"))
    assert config["probe"]["max_epochs"] == results["probe"]["max_epochs"] == 4
    assert results["seeds"] == [5, 6]
    assert config["seed"] == 5
    assert set(results["versions"]) >= {"python", "torch", "numpy", "scikit-learn"}
    assert results["extraction"]["block"] == 7
    assert results["extraction"]["model"] == "a" * 64
    assert results["tracks"] == dict(zip(("train", "val", "test"), TRACKS.values(), strict=True))
    assert results["missing"] == {}
    assert results["features"] == D
    assert all(len(digest) == 64 for digest in results["groundtruths"].values())


def test_the_probe_can_be_used_without_the_rest(probed):
    """Its weights, as plain arrays, make the outputs that the predictions hold."""
    made, folder, _ = probed
    about = read_json(folder / "probe" / "probe.json")
    assert about["labels"] == list(LABELS)
    assert about["task"] == made.task
    assert (about["types"], about["reduce"], about["n_features"]) == ("c", "mean", D)
    found = predictions(folder)
    x = np.stack([np.load(made.embedding(7, key.decode()))[0] for key in found["keys"]])
    for seed, outputs in zip((5, 6), found["outputs"], strict=True):
        w = load_file(folder / "probe" / f"seed-{seed}.safetensors")
        hidden = np.maximum(x @ w["net.0.weight"].T + w["net.0.bias"], 0)
        own = (hidden @ w["net.2.weight"].T + w["net.2.bias"]) * w["scale"] + w["shift"]
        np.testing.assert_allclose(outputs, own, rtol=1e-4, atol=1e-4)


def test_predictions_are_of_the_test_split(probed):
    made, folder, _ = probed
    found = predictions(folder)
    assert [key.decode() for key in found["keys"]] == made.keys("test")
    np.testing.assert_array_equal(found["targets"], made.targets("test"))
    assert found["outputs"].shape == (2, TRACKS["test"], len(LABELS))
    assert found["labels"].tolist() == list(LABELS)
    assert found["seeds"].tolist() == [5, 6]
    assert str(found["task"]) == made.task


def by_scikit_learn(task: str, targets: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    if task == "multi-label":
        return {
            "ap": average_precision_score(targets, outputs, average="macro"),
            "roc_auc": roc_auc_score(targets, outputs, average="macro"),
        }
    if task == "single-label":
        true, predicted = targets.argmax(1), outputs.argmax(1)
        return {
            "accuracy": accuracy_score(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro"),
        }
    return {"r2": r2_score(targets, outputs), "mse": mean_squared_error(targets, outputs)}


def test_figures_are_those_of_scikit_learn(probed):
    made, folder, out = probed
    found, results = predictions(folder), read_json(folder / "results.json")
    own = [by_scikit_learn(made.task, found["targets"], o) for o in found["outputs"]]
    for measure in own[0]:
        wanted = spread_of([figures[measure] for figures in own])
        assert results[measure]["values"] == pytest.approx(wanted["values"], rel=1e-5)
        assert results[measure]["mean"] == pytest.approx(wanted["mean"], rel=1e-5)
        assert results[measure]["std"] == pytest.approx(wanted["std"], rel=1e-3, abs=1e-9)
        shown = f"{wanted['mean']:.4f} ± {wanted['std']:.4f}"
        assert shown in out
        assert shown in (folder / "summary.md").read_text("utf-8")


def label_figures(task: str, targets: np.ndarray, outputs: np.ndarray, i: int) -> dict[str, float]:
    if task == "multi-label":
        scores = targets[:, i], outputs[:, i]
        return {"ap": average_precision_score(*scores), "roc_auc": roc_auc_score(*scores)}
    if task == "single-label":
        true, predicted = targets.argmax(1) == i, outputs.argmax(1) == i
        return {
            "precision": precision_score(true, predicted, zero_division=0),
            "recall": recall_score(true, predicted),
            "f1": f1_score(true, predicted),
        }
    values = targets[:, i], outputs[:, i]
    return {"r2": r2_score(*values), "mse": mean_squared_error(*values)}


def test_figures_of_each_label(probed):
    made, folder, _ = probed
    found, results = predictions(folder), read_json(folder / "results.json")
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for i, (row, line) in enumerate(zip(results["per_label"], table, strict=True)):
        own = [label_figures(made.task, found["targets"], o, i) for o in found["outputs"]]
        assert row["label"] == line["label"] == LABELS[i]
        if made.task != "regression":
            positives = int(found["targets"][:, i].sum())
            assert row["positives"] == int(line["test_positives"]) == positives
        for measure in own[0]:
            wanted = spread_of([figures[measure] for figures in own])
            assert row[measure]["values"] == pytest.approx(wanted["values"], rel=1e-5)
            assert float(line[measure]) == pytest.approx(wanted["mean"], rel=1e-5)
            assert float(line[f"{measure}_std"]) == pytest.approx(wanted["std"], rel=1e-3, abs=1e-9)


def test_confusion_is_the_mean_over_the_seeds(probed):
    made, folder, _ = probed
    results = read_json(folder / "results.json")
    if made.task != "single-label":
        assert "confusion" not in results
        assert not (folder / "confusion.csv").exists()
        return
    found = predictions(folder)
    true = found["targets"].argmax(1)
    wanted = np.mean([confusion_matrix(true, o.argmax(1)) for o in found["outputs"]], axis=0)
    assert results["confusion"] == wanted.tolist()
    with (folder / "confusion.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["class", *LABELS]
    assert [row[0] for row in rows] == list(LABELS)
    assert [[float(cell) for cell in row[1:]] for row in rows] == wanted.tolist()


def test_the_baseline_is_one_answer_for_all(probed):
    made, folder, _ = probed
    answer = made.targets("train").mean(axis=0, dtype=np.float64)
    targets = made.targets("test")
    wanted = by_scikit_learn(made.task, targets, np.tile(answer, (len(targets), 1)))
    results = read_json(folder / "results.json")
    found = results[metrics.BASELINES[made.task]]
    assert found == pytest.approx(wanted, rel=1e-5)
    main = metrics.SHOWN[made.task][0]
    assert results[main]["mean"] > found[main] + 0.1  # what is in the embeddings was learned
    assert results[main]["mean"] > results["chance"][main] + 0.1


def test_the_best_epoch_is_chosen_on_the_validation_split(probed):
    made, folder, _ = probed
    results = read_json(folder / "results.json")
    monitor = {"multi-label": "val_roc_auc", "single-label": "val_accuracy"}.get(
        made.task, "val_r2"
    )
    assert len(results["histories"]) == 2
    for i, rows in enumerate(results["histories"]):
        values = [row[monitor] for row in rows]
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert results["best_epochs"][i] == 1 + int(np.argmax(values))
        assert results[monitor]["values"][i] == pytest.approx(max(values))


def test_the_summary_shows_its_pictures_and_says_how_to_go_on(probed):
    made, folder, out = probed
    text = (folder / "summary.md").read_text("utf-8")
    for picture in folder.glob("*.png"):
        assert f"]({picture.name})" in text
    assert str(folder.name) in out
    assert "summary.md" in out
    assert "seeds 5, 6" in text
    assert "60 / 20 / 30 tracks" in text
    assert "block 7" in text
    assert "model maest_tiny" in text
    assert f"predict with probe=exp_logs/{folder.name} audio=" in text
    assert "compare with" not in text  # there is nothing to compare with yet
    assert metrics.BASELINES[made.task].replace("_", " ") in text
    assert "None" not in text
    assert "nan" not in text


def test_the_same_again_from_the_folder(probed):
    """As its summary says; another seed comes to other figures."""
    made, folder, _ = probed
    line = f"with exp_logs/{folder.name}/config.json"
    assert f"python ex_tl.py {line}" in (folder / "summary.md").read_text("utf-8")
    good("ex_tl.py", line, made.root)
    again = newest(made.root)
    assert again != folder
    one, other = (read_json(f / "results.json") for f in (folder, again))
    assert one["per_label"] == other["per_label"]
    assert one["histories"] == other["histories"]
    np.testing.assert_array_equal(*(predictions(f)["outputs"] for f in (folder, again)))
    good("ex_tl.py", f"{line} seed=6 seeds=1", made.root)
    third = read_json(newest(made.root) / "results.json")
    main = metrics.SHOWN[made.task][0]
    # Seed 6 alone is what it was beside seed 5, to the last digits; and its deviation is none.
    assert third[main]["values"] == pytest.approx(one[main]["values"][1:], abs=1e-6)
    assert third[main]["std"] == 0
    outputs = predictions(folder)["outputs"]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    for extra in (again, newest(made.root)):
        shutil.rmtree(extra)


def test_tokens_and_how_they_are_reduced(made):
    for options, width in (("data.types=cdt data.reduce=stack", 3 * D), ("data.types=td", D)):
        good("ex_tl.py", f"with {made.line('data.block=7 seeds=1', options)}", made.root)
        results = read_json(newest(made.root) / "results.json")
        assert results["features"] == width
    stacked = (made.root / "exp_logs" / "1" / "summary.md").read_text("utf-8")
    assert "tokens cdt, stack" in stacked
    assert stacked.startswith("# embeddings/5sec/7 (cdt stacked)")


def test_mel_statistics_need_no_embeddings(made):
    rng = np.random.default_rng(0)
    for split in TRACKS:
        for key in made.keys(split):
            write_mel(made.root / "mels" / key, rng.random((70, 96), np.float32))
    shutil.rmtree(made.root / "embeddings")
    line = made.line("data.features=mel_statistics data.base_dir=mels seeds=1 name=2024")
    out = good("ex_tl.py", f"with {line}", made.root)
    assert "192 features" in out
    text = (newest(made.root) / "summary.md").read_text("utf-8")
    assert text.startswith("# 2024\n")
    assert "mean and deviation of the mel bands" in text
    assert "predict with" not in text  # there is no extractor to predict with
    message = bad("ex_tl.py", f"with {line} data.types=cd", made.root)
    assert "data.types" in message
    for name in ("03", "07"):
        (made.root / "mels" / "test" / f"{name}.mmap").unlink()
    message = bad("ex_tl.py", f"with {line}", made.root)
    assert "2 of 30" in message
    assert "mels/test/03.mmap" in message
    assert "data.base_dir" in message
    assert "data.missing=skip" in message
    out = good("ex_tl.py", f"with {line} data.missing=skip", made.root)
    assert "60 / 20 / 28 tracks (2 without features left out)" in out
    folder = newest(made.root)
    assert "no log-mel file (data.missing=skip): 2 of test" in (folder / "summary.md").read_text()
    targets = made.targets("test")[[i for i in range(30) if i not in (3, 7)]]
    np.testing.assert_array_equal(predictions(folder)["targets"], targets)


def test_strange_labels_do_not_spoil_a_run(made):
    """Formulas, signs that no font has, half a character, and a label of no test track."""
    names = ["$x_{", "名 | \U0001f3b5", "half \ud83d"]
    write_labels(made.root / "groundtruth" / "labels.json", ["a", "b", "c"])
    (made.root / "groundtruth" / "labels.json").write_text(
        '["$x_{", "名 | \U0001f3b5", "half \\ud83d"]', "utf-8"
    )
    test = dict(zip(made.keys("test"), made.targets("test"), strict=True))
    write_groundtruth(made.groundtruth("test"), {k: y * [1, 1, 0] for k, y in test.items()})
    good("ex_tl.py", f"with {made.line('data.block=7 seeds=1')}", made.root)
    folder = newest(made.root)
    assert read_json(folder / "labels.json") == [*names[:2], "half \\ud83d"]
    assert read_json(folder / "results.json")["per_label"][2]["ap"] is None
    assert (folder / "labels.csv").read_text("utf-8").splitlines()[3] == "half \\ud83d,0,,,,"
    text = (folder / "summary.md").read_text("utf-8")
    assert "no positives" in text
    assert all(line.count("|") in (0, 4, 5) for line in text.replace("\\|", "").splitlines())


def test_a_confusion_of_many_classes_is_a_picture_that_can_be_opened(tmp_path):
    names = [f"class {i}" for i in range(120)]
    path = plots.heat_map(tmp_path / "many.png", np.eye(120), names, names, "many")
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert max(width, height) < 5000
    nothing = np.full((2, 2), np.nan)
    path = plots.heat_map(tmp_path / "none.png", nothing, ["$a_{$", "b"], ["c", "d"], "none")
    assert path.read_bytes().startswith(PNG)


# ---- small sets ----------------------------------------------------------------------------------


def test_a_linear_probe_stands_beside_one_of_few_tracks(probed):
    """In closed form: of standardised features, penalised as if each track's had length 1."""
    made, folder, out = probed
    results = read_json(folder / "results.json")
    assert any("20 tracks" in warning for warning in results["warnings"])
    text = (folder / "summary.md").read_text("utf-8")
    x, y = {}, {}
    for split in ("train", "test"):
        x[split] = np.stack([np.load(made.embedding(7, key))[0] for key in made.keys(split)])
        y[split] = made.targets(split).astype(float)
    mean, deviation = x["train"].mean(axis=0), x["train"].std(axis=0)
    train, test = ((x[split] - mean) / deviation for split in ("train", "test"))
    weights = np.linalg.solve(
        train.T @ train + D * np.eye(D), train.T @ (y["train"] - y["train"].mean(axis=0))
    )
    expected = by_scikit_learn(made.task, y["test"], test @ weights + y["train"].mean(axis=0))
    assert results["ridge"] == pytest.approx(expected, rel=1e-4)
    for figure in results["ridge"].values():
        assert f"{figure:.4f}" in out
        assert f"{figure:.4f}" in text


@pytest.mark.parametrize(
    ("val", "test", "words"),
    [
        (30, 30, []),
        (29, 30, ["validation"]),
        (30, 29, ["test"]),
        (3, 4, ["validation", "test"]),
    ],
)
def test_splits_that_are_too_small(val, test, words):
    found = few_tracks({"train": 60, "val": val, "test": test})
    assert len(found) == len(words)
    assert all(word in warning for word, warning in zip(words, found, strict=True))


def test_a_best_epoch_within_the_warm_up(made):
    """A probe that has hardly begun to learn: that stays with it."""
    line = made.line("data.block=7 seeds=1").replace("warmup_epochs=0", "warmup_epochs=4")
    good("ex_tl.py", f"with {line}", made.root)
    folder = newest(made.root)
    warnings = read_json(folder / "results.json")["warnings"]
    assert any("warm-up" in warning for warning in warnings)
    assert read_json(folder / "probe" / "probe.json")["warnings"] == warnings


def test_labels_have_their_positives_beside_them(made, monkeypatch):
    """In the table, the picture and the CSV; of a label without any, that is said."""
    test = dict(zip(made.keys("test"), made.targets("test"), strict=True))
    write_groundtruth(made.groundtruth("test"), {k: y * [1, 1, 0] for k, y in test.items()})
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or path)
    good("ex_tl.py", f"with {made.line('data.block=7 seeds=1')}", made.root)
    count = int(made.targets("test")[:, 0].sum())
    drawn = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert f"{LABELS[0]} ({count})" in drawn
    assert f"{LABELS[2]} (no positives)" in drawn
    lines = (newest(made.root) / "summary.md").read_text("utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| {LABELS[0]} "))
    assert row.split("|")[2].strip() == str(count)
    (row,) = (line for line in lines if line.startswith(f"| {LABELS[2]} "))
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["0", "no positives"]


def proposed(folder: Path) -> list[str]:
    """The lines of commands in a summary, as a shell takes them."""
    lines = (folder / "summary.md").read_text("utf-8").splitlines()
    return [" ".join(shlex.split(line, comments=True)[2:]) for line in lines
            if line.startswith("python ex_tl.py")]  # fmt: skip


def test_what_the_summary_proposes_runs(made):
    """The same again, and a comparison with the newest probe of the same test tracks, if any."""
    logs, line = made.root / "exp_logs", made.line("data.block=7 seeds=1")
    good("ex_tl.py", f"with {line}", made.root)
    assert proposed(logs / "1") == ["with exp_logs/1/config.json"]
    good("ex_tl.py", f"with {line} data.types=d", made.root)
    again, comparison = proposed(logs / "2")
    assert comparison == "compare with runs=[exp_logs/2,exp_logs/1]"
    good("ex_tl.py", comparison, made.root)
    (logs / "2").rename(logs / "a,d")
    good("ex_tl.py", f"with {line} data.types=t", made.root)  # 4
    again, comparison = proposed(logs / "4")
    assert comparison == 'compare with runs=[exp_logs/4,"exp_logs/a,d"]'
    good("ex_tl.py", comparison, made.root)
    test = dict(zip(made.keys("test"), made.targets("test"), strict=True))
    write_groundtruth(made.groundtruth("test"), {k: 1 - y for k, y in test.items()})
    good("ex_tl.py", again, made.root)
    assert len(proposed(newest(made.root))) == 1


# ---- what is left out, if it is asked for --------------------------------------------------------


def lose(made: MadeUp, *keys: str) -> None:
    for key in keys:
        made.embedding(7, key).unlink()


def test_missing_embeddings_are_counted(made, untrained):
    lose(made, "test/03.mmap", "test/09.mmap")
    message = bad("ex_tl.py", f"with {made.line('data.block=7')}", made.root)
    assert "2 of 30" in message
    assert "test/03.mmap.embeddings.npy" in message
    assert "data.missing=skip" in message


def test_missing_embeddings_may_be_skipped_never_in_silence(made, caplog):
    lose(made, "test/03.mmap", "test/09.mmap", "train/00.mmap")
    with caplog.at_level(logging.WARNING):
        line = made.line("data.block=7 data.missing=skip seeds=1")
        out = good("ex_tl.py", f"with {line}", made.root)
    told = caplog.text + out
    assert "2 of 30 tracks of test" in told
    assert "1 of 60 tracks of train" in told
    assert "59 / 20 / 28 tracks" in out
    folder = newest(made.root)
    results = read_json(folder / "results.json")
    assert results["missing"] == {"train": 1, "test": 2}
    assert results["tracks"] == {"train": 59, "val": 20, "test": 28}
    text = (folder / "summary.md").read_text("utf-8")
    assert "1 of train, 2 of test" in text
    found = predictions(folder)
    assert b"test/03.mmap" not in found["keys"]
    assert len(found["keys"]) == 28
    rows = [i for i, key in enumerate(made.keys("test")) if key.encode() in found["keys"]]
    np.testing.assert_array_equal(found["targets"], made.targets("test")[rows])


def test_a_split_that_skipping_leaves_empty(made, untrained):
    lose(made, *made.keys("validation"))
    message = bad("ex_tl.py", f"with {made.line('data.block=7 data.missing=skip')}", made.root)
    assert "20 of 20" in message
    assert "data.missing=skip" not in message  # that is no way out


def test_skipping_leaves_nothing_to_learn_or_to_score(made, untrained):
    keys, targets = made.keys("train"), made.targets("train")
    lose(made, *(key for key, own in zip(keys, targets, strict=True) if own.any()))
    line = f"with {made.line('data.block=7 data.missing=skip')}"
    message = bad("ex_tl.py", line, made.root)
    assert "groundtruth-train.pk" in message
    write_groundtruth(made.groundtruth("train"), {key: [0, 1, 0] for key in keys})
    lose(made, *made.keys("test")[1:])
    message = bad("ex_tl.py", line, made.root)
    assert "groundtruth-test.pk" in message


# ---- what is refused before training -------------------------------------------------------------


def refused(made: MadeUp, *more: str) -> str:
    return bad("ex_tl.py", f"with {made.line(*(more or ('data.block=7',)))}", made.root)


def put(made: MadeUp, key: str, values: np.ndarray) -> None:
    np.save(made.embedding(7, key), values)


@pytest.mark.parametrize(
    "values",
    [
        np.ones((3, D + 1), np.float32),
        np.ones(D, np.float32),
        np.ones((2, D), np.float32),
        np.full((3, D), np.nan, np.float32),
        np.ones((3, D), np.int64),
    ],
)
def test_an_embedding_that_is_none(made, untrained, values):
    put(made, "test/07.mmap", values)
    assert "test/07.mmap" in refused(made)


def test_a_broken_embedding(made, untrained):
    path = made.embedding(7, "validation/04.mmap")
    path.write_bytes(path.read_bytes()[:60])
    assert "validation/04.mmap" in refused(made)
    # It is there, and damaged: skipping what is missing does not hide it.
    assert "validation/04.mmap" in refused(made, "data.block=7", "data.missing=skip")


def test_splits_of_different_widths(made, untrained):
    for key in made.keys("test"):
        put(made, key, np.ones((3, 2 * D), np.float32))
    message = refused(made)
    assert "test/00.mmap" in message
    assert "[1, 3, 8]" in message
    assert "[1, 3, 16]" in message


def test_blocks_of_several_models(made, untrained):
    shutil.rmtree(made.block(6))
    open_block(made.block(6), 6, model="b" * 64)
    message = bad("ex_tl.py", f"sweep with {made.line()}", made.root)
    assert "bbbbbbbbbbbb" in message
    assert "aaaaaaaaaaaa" in message
    assert "maest_tiny" in message


def test_two_folders_that_hold_one_block(made, untrained):
    shutil.copytree(made.block(7), made.block(7).with_name("copy"))
    assert "copy" in refused(made)


def test_a_manifest_that_is_damaged(made, untrained):
    (made.block(7) / "manifest.json").write_text("{}")
    assert "5sec/7/manifest.json" in refused(made)


def test_embeddings_that_do_not_say_what_made_them(made, caplog):
    (made.block(7) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        line = f"with {made.line('data.block=7 seeds=1')}"
        out = good("ex_tl.py", line, made.root)
    assert "manifest.json" in caplog.text + out
    text = (newest(made.root) / "summary.md").read_text("utf-8")
    assert "manifest.json" in text
    assert "predict with" not in text


def test_which_block(made):
    """Block 7 where there are several; the candidates are named where there is none."""
    good("ex_tl.py", f"with {made.line('seeds=1')}", made.root)
    assert read_json(newest(made.root) / "results.json")["extraction"]["block"] == 7
    message = refused(made, "data.block=9")
    assert "data.block: " in message
    assert "6, 7" in message
    message = refused(made, "data.block=6", "data.embeddings_dir=embeddings/5sec/7")
    assert "block 7" in message
    assert "data.block=7" in message
    shutil.move(made.block(7), made.block(5))
    shutil.rmtree(made.block(5))
    open_block(made.block(5), 5)
    assert "5, 6" in refused(made, "")


def test_which_blocks_to_mix(made, untrained):
    assert "data.block: " in refused(made, "data.block=all")
    message = refused(made, "data.block=[5,6]")
    assert "data.block: " in message
    assert "6, 7" in message
    message = refused(made, "data.block=mix", "data.embeddings_dir=embeddings/5sec/7")
    assert "such as data.block=7" in message


def test_a_mix_says_what_it_is_of(made):
    good("ex_tl.py", f"with {made.line('data.block=mix data.types=cd seeds=2')}", made.root)
    folder = newest(made.root)
    results = read_json(folder / "results.json")
    assert results["name"] == "embeddings/5sec (mix of 2 blocks, cd)"
    assert (results["features"], results["extraction"]["block"]) == (D, [6, 7])
    weights = results["mix"]["weights"]
    assert np.shape(weights["values"]) == (2, 2)
    text = (folder / "summary.md").read_text("utf-8")
    assert "embeddings of the blocks 6, 7, patches" in text
    assert f"weighs them with {weights['mean'][0]:.2f}, {weights['mean'][1]:.2f}" in text


def test_which_length(made, untrained):
    open_block(made.block(7, "10"), 7, seconds=10.0)
    shutil.copytree(made.block(7) / "test", made.block(7, "10") / "test")
    message = refused(made, "data.block=7")
    assert all(f"embeddings/{seconds}sec" in message for seconds in (5, 10))
    assert "data.clip_length=5" in message
    message = refused(made, "data.block=7", "data.clip_length=30")
    assert "data.clip_length: " in message
    assert "5 s, 10 s" in message


def test_no_such_folder(made, untrained):
    message = refused(made, "data.embeddings_dir=nowhere")
    assert "data.embeddings_dir: nowhere: " in message
    assert "extract_embeddings" in message
    for typed in ("2024", "groundtruth"):
        message = refused(made, f"data.embeddings_dir={typed}")
        assert f"data.embeddings_dir: {typed}: " in message
    message = refused(made, "data.embeddings_dir=None")
    assert "data.embeddings_dir: " in message
    assert "target_scores_tl" in message


def test_no_ground_truth(made, untrained):
    message = refused(made, "data.groundtruth_val=None")
    assert "data.groundtruth_val: " in message
    assert "target_scores_tl" in message
    made.groundtruth("test").unlink()
    message = refused(made)
    assert "data.groundtruth_test: groundtruth/groundtruth-test.pk: " in message
    made.groundtruth("train").write_bytes(b"not a pickle")
    assert "groundtruth-train.pk" in refused(made)


def test_a_split_that_shares_tracks_with_another(made, untrained):
    test = dict(zip(made.keys("test"), made.targets("test"), strict=True))
    test |= {"./train/05.mmap": test["test/00.mmap"]}  # the same path in another spelling
    write_groundtruth(made.groundtruth("test"), test)
    message = refused(made)
    assert "groundtruth-train.pk" in message
    assert "groundtruth-test.pk" in message
    assert "train/05.mmap" in message


@pytest.mark.parametrize("features", ["embeddings", "mel_statistics"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_file_under_two_names(made, untrained, features, split):
    """A key finds its file with and without the suffix: in two splits, or twice in one."""
    for name in TRACKS:
        for key in made.keys(name):
            write_mel(made.root / "mels" / key, np.zeros((70, 96), np.float32))
    own = dict(zip(made.keys(split), made.targets(split), strict=True))
    write_groundtruth(made.groundtruth(split), own | {"train/05": own[next(iter(own))]})
    message = refused(made, f"data.block=7 data.base_dir=mels data.features={features}")
    assert f"groundtruth-{split}.pk: 'train/05' " in message
    assert "'train/05.mmap'" in message


def test_splits_of_other_numbers_of_labels(made, untrained):
    write_groundtruth(made.groundtruth("test"), {key: [0, 1] for key in made.keys("test")})
    message = refused(made)
    assert "groundtruth-test.pk beside it has 2" in message
    assert "3 labels" in message


def test_labels_that_are_not_of_the_ground_truth(made, untrained):
    write_labels(made.root / "groundtruth" / "labels.json", ["one", "two"])
    assert "labels.json" in refused(made)


def test_labels_in_another_order_beside_another_split(made, untrained):
    place = made.root / "elsewhere" / "test.pk"
    place.parent.mkdir()
    place.write_bytes(made.groundtruth("test").read_bytes())
    write_labels(place.parent / "labels.json", reversed(LABELS))
    message = refused(made, "data.block=7", "data.groundtruth_test=elsewhere/test.pk")
    assert "elsewhere/labels.json" in message
    assert "groundtruth/groundtruth-train.pk" in message


def test_splits_in_which_all_tracks_are_alike(made, untrained):
    write_groundtruth(made.groundtruth("train"), {key: [0, 0, 0] for key in made.keys("train")})
    assert "groundtruth-train.pk" in refused(made)
    made = make_up(made.root / "regression", "regression")
    write_groundtruth(
        made.groundtruth("validation"),
        {key: [1.5, 2, 3] for key in made.keys("validation")},
        "regression",
    )
    message = refused(made)
    assert "groundtruth-validation.pk" in message


def test_targets_of_another_task(made, untrained):
    message = refused(made, "data.block=7", "data.task=single-label")
    assert "data.task=multi-label" in message
    assert "maest." not in message
    values = {key: [0.5, 1.5, 2.5] for key in made.keys("train")}
    write_groundtruth(made.groundtruth("train"), values, "regression")
    message = refused(made)
    assert "0.5" in message
    assert "data.task=regression" in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.task=multilabel", ["data.task", "'multi-label'"]),
        ("data.types=cx", ["data.types: ", "'cx'"]),
        ("data.types=cc", ["data.types: ", "'cc'"]),
        ("data.reduce=max", ["data.reduce", "stack"]),
        ("data.missing=drop", ["data.missing", "'skip'"]),
        ("data.features=embedding", ["data.features", "'embeddings'"]),
        ("seeds=0", ["seeds", "1"]),
        ("data.typos=c", ["data.typos", "data.types"]),
    ],
)
def test_a_choice_that_does_not_exist(made, untrained, setting, words):
    message = refused(made, "data.block=7", setting)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "setting", ["probe.accelerator=foo", "probe.weight_decay=-1", "probe.warmup_epochs=-1"]
)
def test_a_recipe_that_cannot_be(made, untrained, setting):
    assert setting.partition("=")[0] in refused(made, f"data.block=7 {setting}")


def test_training_that_diverges_is_told_once(made):
    message = refused(made, "data.block=7", "probe.lr=1e30", "seeds=1")
    assert message.count("probe.lr: ") == message.count("NaN") == 1
