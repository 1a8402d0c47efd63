"""The probe command: what a run leaves behind, and what is refused before anything is trained."""

import logging
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from by_scikit_learn import figures
from command_line import good, newest
from folders import read_json, rows
from made_up import LABELS, TRACKS, D, MadeUp, make_up, open_block, read_predictions
from safetensors.numpy import load_file
from sklearn import metrics as sk

from maest.datasets.groundtruth import TASKS, write_groundtruth, write_labels
from maest.datasets.melspectrograms import write_mel
from maest.experiments import probe as probing
from maest.experiments.probe_report import few_tracks
from maest.helpers.reports import metrics, plots


@pytest.fixture(scope="module", params=[*TASKS, "unknown labels"])
def probed(request, tmp_path_factory) -> tuple[MadeUp, Path]:
    """A task, and the folder of a run of two seeds."""
    root, rng = tmp_path_factory.mktemp("probed"), np.random.default_rng(0)

    def change(row: np.ndarray) -> np.ndarray:
        """Some labels become soft, a third unknown, and all of a few tracks."""
        row = np.where(rng.random(3) < 0.3, np.abs(row - 0.3), row).astype(np.float32)
        row[(rng.random(3) < 0.35) | (rng.random() < 0.1)] = np.nan
        return row

    if request.param in TASKS:
        made = make_up(root, request.param)
    else:
        made = make_up(root)
        for split in TRACKS:
            made.relabel(split, change)
    return made, made.probe("seeds=2 seed=5")


def known(made: MadeUp, split: str) -> np.ndarray:
    """Which tracks have a label that is known."""
    return ~np.isnan(made.targets(split).astype(float)).all(axis=1)


@pytest.fixture
def made(tmp_path) -> MadeUp:
    return make_up(tmp_path)


# ---- what a run leaves behind --------------------------------------------------------------------


def test_everything_is_in_the_folder(probed):
    made, folder = probed
    wanted = {
        *("results.json", "config.json", "labels.json", "labels.csv", "labels.png"),
        *("training.png", "predictions.npz", "summary.md", "probe"),
    }
    if made.task == "single-label":
        wanted |= {"confusion.csv", "confusion.png"}
    assert wanted <= {path.name for path in folder.iterdir()}
    text = (folder / "summary.md").read_text("utf-8")
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"]({path.name})" in text
    assert not {"None", "nan"} & set(text.split())
    assert read_json(folder / "labels.json") == list(LABELS)
    results, config = (read_json(folder / f"{name}.json") for name in ("results", "config"))
    assert config["probe"]["max_epochs"] == results["probe"]["max_epochs"] == 4
    assert (results["seeds"], config["seed"]) == ([5, 6], 5)
    assert set(results["versions"]) >= {"python", "torch", "numpy", "scikit-learn"}
    assert (results["extraction"]["block"], results["extraction"]["model"]) == (7, "a" * 64)
    assert list(results["tracks"].values()) == [known(made, split).sum() for split in TRACKS]
    assert (results["missing"], results["features"]) == ({}, D)
    assert all(len(digest) == 64 for digest in results["groundtruths"].values())


def test_predictions_are_those_of_the_probes_weights(probed):
    """The probe can be used without the rest: plain arrays make the same outputs."""
    made, folder = probed
    about, found = read_json(folder / "probe/probe.json"), read_predictions(folder)
    assert (about["labels"], about["task"]) == (list(LABELS), made.task)
    assert (about["types"], about["reduce"], about["n_features"]) == ("c", "mean", D)
    used = known(made, "test")
    assert found["keys"].tolist() == [key.encode() for key in np.array(made.keys("test"))[used]]
    np.testing.assert_array_equal(found["targets"], made.targets("test")[used])
    assert (found["labels"].tolist(), str(found["task"])) == (list(LABELS), made.task)
    x = np.stack([np.load(made.embedding(7, key.decode()))[0] for key in found["keys"]])
    for seed, outputs in zip((5, 6), found["outputs"], strict=True):
        w = load_file(folder / f"probe/seed-{seed}.safetensors")
        hidden = np.maximum(x @ w["net.0.weight"].T + w["net.0.bias"], 0)
        own = (hidden @ w["net.2.weight"].T + w["net.2.bias"]) * w["scale"] + w["shift"]
        np.testing.assert_allclose(outputs, own, rtol=1e-4, atol=1e-4)


def test_metrics_are_those_of_scikit_learn(probed):
    made, folder = probed
    found, results = read_predictions(folder), read_json(folder / "results.json")

    def check(row: dict, label: int | None = None) -> list[str]:
        y, outputs = found["targets"], found["outputs"]
        wanted = [figures(made.task, y, z, label) for z in outputs]
        for name in wanted[0]:
            values = [one[name] for one in wanted]
            assert row[name]["values"] == pytest.approx(values, rel=1e-5)
            assert row[name]["mean"] == pytest.approx(np.mean(values), rel=1e-5)
            assert row[name]["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-3, abs=1e-9)
        return list(wanted[0])

    check(results)
    for i, (row, line) in enumerate(
        zip(results["per_label"], rows(folder / "labels.csv"), strict=True)
    ):
        for name in check(row, i):
            assert float(line[name]) == pytest.approx(row[name]["mean"])
            assert float(line[f"{name}_std"]) == pytest.approx(row[name]["std"])
        assert row["label"] == line["label"] == LABELS[i]
        if made.task != "regression":
            positives = int((found["targets"][:, i] >= 0.5).sum())
            assert row["positives"] == int(line["test_positives"]) == positives


def test_confusion_is_the_mean_over_the_seeds(probed):
    made, folder = probed
    results = read_json(folder / "results.json")
    assert ("confusion" in results) == (made.task == "single-label")
    if made.task == "single-label":
        found = read_predictions(folder)
        true = found["targets"].argmax(1)
        counts = [sk.confusion_matrix(true, o.argmax(1)) for o in found["outputs"]]
        assert results["confusion"] == np.mean(counts, axis=0).tolist()
        table = rows(folder / "confusion.csv")
        assert [row.pop("class") for row in table] == list(LABELS)
        assert [[float(v) for v in row.values()] for row in table] == results["confusion"]


def test_the_baseline_is_one_answer_for_all(probed):
    made, folder = probed
    targets, answer = made.targets("test"), np.nanmean(made.targets("train").astype(float), axis=0)
    wanted = figures(made.task, targets, np.tile(answer, (len(targets), 1)))
    results = read_json(folder / "results.json")
    found, main = results[metrics.BASELINES[made.task]], metrics.SHOWN[made.task][0]
    assert found == pytest.approx(wanted, rel=1e-5)
    assert results[main]["mean"] > found[main] + 0.1  # the probe has learned
    assert results[main]["mean"] > results["chance"][main] + 0.1


def test_the_same_again_from_the_folder(probed):
    """Another seed gives other outputs, the same alone and beside others."""
    made, folder = probed
    line = f"with exp_logs/{folder.name}/config.json"
    good("ex_tl.py", line, made.root)
    again = newest(made.root)
    one, other = (read_json(f / "results.json") for f in (folder, again))
    assert one["per_label"] == other["per_label"]
    assert one["histories"] == other["histories"]
    outputs = read_predictions(folder)["outputs"]
    np.testing.assert_array_equal(outputs, read_predictions(again)["outputs"])
    good("ex_tl.py", f"{line} seed=6 seeds=1", made.root)
    alone, main = newest(made.root), metrics.SHOWN[made.task][0]
    third = read_json(alone / "results.json")[main]
    assert third["values"] == pytest.approx(one[main]["values"][1:], abs=1e-6)
    assert third["std"] == 0
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    for extra in (again, alone):
        shutil.rmtree(extra)


def test_a_linear_probe_stands_beside_one_of_few_tracks(probed):
    """In closed form: of standardised features, penalised as if each track's had length 1.

    Each label is fitted to the tracks of which it is known.
    """
    made, folder = probed
    results, outputs = read_json(folder / "results.json"), []
    x = {s: np.stack([np.load(made.embedding(7, k))[0] for k in made.keys(s)]) for s in TRACKS}
    for y in made.targets("train").astype(float).T:
        own, y = x["train"][~np.isnan(y)], y[~np.isnan(y)]
        train, test = ((v - own.mean(axis=0)) / own.std(axis=0) for v in (own, x["test"]))
        weights = np.linalg.solve(train.T @ train + D * np.eye(D), train.T @ (y - y.mean()))
        outputs.append(test @ weights + y.mean())
    expected = figures(made.task, made.targets("test"), np.stack(outputs, axis=1))
    assert results["ridge"] == pytest.approx(expected, rel=1e-4)
    few = sum(known(made, split).sum() < 30 for split in ("validation", "test"))
    assert len(results["warnings"]) == few


def test_splits_that_are_too_small():
    for val, test, warned in ((30, 30, 0), (29, 30, 1), (3, 4, 2)):
        assert len(few_tracks({"train": 60, "val": val, "test": test})) == warned


def test_tokens_and_blocks_and_how_they_are_reduced(made):
    for typed, width in (("data.types=cdt data.reduce=stack", 3 * D), ("data.types=td", D)):
        folder = made.probe("seeds=1", typed)
        assert read_json(folder / "results.json")["features"] == width
    folder = made.probe("data.block=mix data.types=cd seeds=2")
    results = read_json(folder / "results.json")
    assert (results["features"], results["extraction"]["block"]) == (D, [6, 7])
    weights = results["mix"]["weights"]
    assert np.shape(weights["values"]) == (2, 2)
    assert all(
        f"{one:.2f}" in (folder / "summary.md").read_text("utf-8") for one in weights["mean"]
    )


def test_mel_statistics_need_no_embeddings(made):
    for split in TRACKS:
        for i, key in enumerate(made.keys(split)):
            write_mel(made.root / "mels" / key, np.full((70, 96), i, np.float32))
    shutil.rmtree(made.root / "embeddings")
    typed = "data.features=mel_statistics data.base_dir=mels seeds=1 name=2024"
    results = read_json(made.run("probe", typed) / "results.json")
    assert (results["name"], results["features"], results["extraction"]) == ("2024", 192, None)
    made.refused("probe", f"{typed} data.types=cd", "conflict", "data.types")
    for name in ("03", "07"):
        (made.root / f"mels/test/{name}.mmap").unlink()
    made.refused("probe", typed, "missing", place="mels/test/03.mmap")
    folder = made.run("probe", f"{typed} data.missing=skip")
    assert read_json(folder / "results.json")["missing"] == {"test": 2}
    targets = made.targets("test")[[i for i in range(30) if i not in (3, 7)]]
    np.testing.assert_array_equal(read_predictions(folder)["targets"], targets)


def test_strange_labels_do_not_spoil_a_run(made, monkeypatch):
    """Formulas, signs that no font has, half a character, and a label of no test track."""
    labels = made.root / "groundtruth/labels.json"
    labels.write_text('["$x_{", "名 | \U0001f3b5", "half \\ud83d"]', "utf-8")
    made.relabel("test", lambda y: y * [1, 1, 0])
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure) or path)
    folder = made.probe("seeds=1")
    assert read_json(folder / "labels.json") == ["$x_{", "名 | \U0001f3b5", "half \\ud83d"]
    assert read_json(folder / "results.json")["per_label"][2]["ap"] is None
    assert list(rows(folder / "labels.csv")[2].values()) == ["half \\ud83d", "0", "", "", "", ""]
    text = (folder / "summary.md").read_text("utf-8").replace("\\|", "")
    assert all(line.count("|") in (0, 4, 5) for line in text.splitlines())
    count = int(made.targets("test")[:, 0].sum())
    drawn = [label.get_text() for label in saved[0].axes[0].get_yticklabels()]
    assert any(label.endswith(f"({count})") for label in drawn)


def test_a_best_epoch_within_the_warm_up(made):
    """The probe keeps the warning."""
    folder = made.probe("seeds=1 probe.warmup_epochs=4")
    warnings = read_json(folder / "results.json")["warnings"]
    assert len(warnings) == 2
    assert read_json(folder / "probe/probe.json")["warnings"] == warnings


def proposed(folder: Path) -> list[str]:
    """The lines of commands in a summary, as a shell takes them."""
    lines = (folder / "summary.md").read_text("utf-8").splitlines()
    commands = (line for line in lines if line.startswith("python ex_tl.py"))
    return [" ".join(shlex.split(line, comments=True)[2:]) for line in commands]


def test_what_the_summary_proposes_runs(made):
    """The same again, and a comparison with the newest probe of the same test tracks, if any."""
    logs = made.root / "exp_logs"
    for name in ("predictions.npz", "results.json"):  # of another version
        (logs / "odd").mkdir(parents=True, exist_ok=True)
        (logs / "odd" / name).write_text("{}")
    first = made.probe("seeds=1")
    assert proposed(first) == ["with exp_logs/1/config.json"]
    assert "predict with probe=exp_logs/1 audio=" in (first / "summary.md").read_text("utf-8")
    _, comparison = proposed(made.probe("seeds=1 data.types=d"))
    assert comparison == "compare with runs=[exp_logs/2,exp_logs/1]"
    good("ex_tl.py", comparison, made.root)
    (logs / "2").rename(logs / "a,d")
    again, comparison = proposed(made.probe("seeds=1 data.types=t"))
    assert comparison == 'compare with runs=[exp_logs/4,"exp_logs/a,d"]'
    good("ex_tl.py", comparison, made.root)
    made.relabel("test", lambda y: 1 - y)
    good("ex_tl.py", again, made.root)
    assert len(proposed(newest(made.root))) == 1


def test_missing_embeddings_may_be_skipped_with_a_warning(made, caplog):
    made.lose("test/03.mmap", "test/09.mmap", "train/00.mmap")
    made.refused("probe", "data.block=7", "missing", place="train/00.mmap.embeddings.npy")
    with caplog.at_level(logging.WARNING):
        folder = made.probe("data.missing=skip seeds=1")
    assert len([r for r in caplog.records if r.name.endswith("probe_data")]) == 2
    results, found = read_json(folder / "results.json"), read_predictions(folder)
    assert results["missing"] == {"train": 1, "test": 2}
    assert results["tracks"] == {"train": 59, "val": 20, "test": 28}
    kept = [i for i, key in enumerate(made.keys("test")) if key.encode() in found["keys"]]
    assert set(range(30)) - set(kept) == {3, 9}
    np.testing.assert_array_equal(found["targets"], made.targets("test")[kept])


def test_embeddings_without_a_manifest(made):
    (made.block(7) / "manifest.json").unlink()
    folder = made.probe("seeds=1")
    assert read_json(folder / "results.json")["extraction"] is None
    assert "predict with" not in (folder / "summary.md").read_text("utf-8")


# ---- what is refused before training -------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    """Fails where a probe is trained."""
    monkeypatch.setattr(probing, "train_probes", lambda *_, **__: pytest.fail("has been trained"))


@pytest.mark.parametrize(
    ("typed", "kind", "setting"),
    [
        ("data.block=9", "missing", "data.block"),
        ("data.block=6 data.embeddings_dir=embeddings/5sec/7", "missing", "data.block"),
        ("data.block=mix data.embeddings_dir=embeddings/5sec/7", "missing", "data.block"),
        ("data.block=[5,6]", "missing", "data.block"),
        ("data.block=all", "unknown", "data.block"),
        ("data.embeddings_dir=nowhere", "missing", "data.embeddings_dir"),
        ("data.embeddings_dir=None", "missing", "data.embeddings_dir"),
        ("data.groundtruth_val=None", "missing", "data.groundtruth_val"),
        ("data.task=single-label", "invalid", None),
        ("data.types=cc", "invalid", "data.types"),
        ("data.typos=c", "unknown", "data.typos"),
    ],
)
def test_settings_that_are_refused(made, untrained, typed, kind, setting):
    made.refused("probe", f"data.block=7 {typed}", kind, setting)


TEST = "data.groundtruth_test"


def spoil(made: MadeUp, what: str) -> None:
    """One fault in the data."""
    path, test = made.embedding(7, "validation/04.mmap"), made.groundtruth("test")
    match what:
        case "damaged embedding":
            path.write_bytes(path.read_bytes()[:60])
        case "empty split":
            made.lose(*made.keys("validation"))
        case "nothing to learn":
            pairs = zip(made.keys("train"), made.targets("train"), strict=True)
            made.lose(*(key for key, own in pairs if own.any()))
        case "nothing to score":
            made.lose(*made.keys("test")[1:])
        case "no block 7":
            shutil.rmtree(made.block(7))
            open_block(made.block(5), 5)
        case "no ground truth":
            test.unlink()
        case "shared track":  # under another spelling of its path
            targets = dict(zip(made.keys("test"), made.targets("test"), strict=True))
            write_groundtruth(test, targets | {"./train/05.mmap": [1, 0, 0]})
        case "one file twice":  # a key finds its file with and without the suffix
            targets = dict(zip(made.keys("train"), made.targets("train"), strict=True))
            write_groundtruth(made.groundtruth("train"), targets | {"train/05": [1, 0, 0]})
        case "fewer labels":
            made.relabel("test", lambda y: y[:2])
        case "other order":
            (made.root / "elsewhere").mkdir()
            shutil.copy(test, made.root / "elsewhere/test.pk")
            write_labels(made.root / "elsewhere/labels.json", reversed(LABELS))
        case "real values":
            made.relabel("train", lambda y: [0.5, 1.5, 2.5], "regression")


@pytest.mark.parametrize(
    ("what", "typed", "kind", "setting", "place"),
    [
        ("damaged embedding", "data.missing=skip", "corrupt", None, "04.mmap.embeddings.npy"),
        ("empty split", "data.missing=skip", "missing", None, ".embeddings.npy"),
        ("nothing to learn", "data.missing=skip", "empty", "data.groundtruth_train", "train.pk"),
        ("nothing to score", "data.missing=skip", "empty", TEST, "test.pk"),
        ("no block 7", "data.block=None", "missing", "data.block", "5sec"),
        ("no ground truth", "", "missing", TEST, "test.pk"),
        ("shared track", "", "conflict", None, "test.pk"),
        ("one file twice", "", "conflict", None, "train.pk"),
        ("fewer labels", "", "mismatch", None, "labels.json"),
        ("other order", f"{TEST}=elsewhere/test.pk", "mismatch", TEST, "labels.json"),
        ("real values", "", "invalid", None, "train.pk"),
    ],
)
def test_data_that_is_refused(made, untrained, what, typed, kind, setting, place):
    spoil(made, what)
    made.refused("probe", f"data.block=7 {typed}", kind, setting, place)


def test_training_that_diverges(made):
    made.refused("probe", "data.block=7 probe.lr=1e30 seeds=1", "diverged", "probe.lr")
