"""Finished runs side by side: the same tracks, paired intervals, and what does not compare."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import bad, good, newest
from folders import read_json
from made_up import (  # noqa: F401
    LABELS,
    TRACKS,
    MadeUp,
    make_up,
    open_block,
    quick,
)

from maest.datasets.groundtruth import TASKS, write_groundtruth, write_labels
from maest.experiments import compare as comparing
from maest.helpers.reports import metrics

QUICKLY = "compare.resamples=40"


def probed(made: MadeUp, *more: str) -> Path:
    good("ex_tl.py", f"with {made.line('data.block=7', *more)}", made.root)
    return newest(made.root)


@pytest.fixture(scope="module", params=TASKS)
def compared(request, tmp_path_factory) -> tuple[MadeUp, Path, str]:
    """Runs 1 and 2 of a task, the folder of their comparison, and what was printed."""
    made = make_up(tmp_path_factory.mktemp(request.param), request.param)
    probed(made, "seeds=2 name=first")
    probed(made, "seeds=1 name=second data.types=cdt data.reduce=stack")
    line = f"compare with runs=[exp_logs/1,exp_logs/2] {QUICKLY} seed=2"
    out = good("ex_tl.py", line, made.root)
    return made, newest(made.root), out


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> MadeUp:
    """Two finished runs, which no test changes."""
    made = make_up(tmp_path_factory.mktemp("finished"))
    probed(made, "seeds=1 name=first")
    probed(made, "seeds=1 name=second data.types=t")
    return made


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """A home with copies of both, to change."""
    for number in (1, 2):
        folder = Path("exp_logs") / str(number)
        shutil.copytree(finished.root / folder, tmp_path / folder)
    return tmp_path


def compare(home: Path, typed: str = "runs=[exp_logs/1,exp_logs/2]") -> dict:
    good("ex_tl.py", f"compare with {typed} {QUICKLY}", home)
    return read_json(newest(home) / "comparison.json")


def refused(home: Path, typed: str = "runs=[exp_logs/1,exp_logs/2]") -> str:
    return bad("ex_tl.py", f"compare with {typed} {QUICKLY}", home)


def predictions(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz") as found:
        return dict(found)


def rewrite(home: Path, number: int, **arrays: np.ndarray) -> None:
    folder = home / "exp_logs" / str(number)
    np.savez(folder / "predictions.npz", **predictions(folder) | arrays)


# ---- figures -------------------------------------------------------------------------------------


def test_figures_are_those_of_the_runs(compared):
    made, folder, _ = compared
    found = read_json(folder / "comparison.json")
    assert found["task"] == made.task
    assert found["tracks"] == TRACKS["test"]
    assert (found["resamples"], found["confidence"], found["seed"]) == (40, 0.95, 2)
    assert [(run["name"], run["seeds"]) for run in found["runs"]] == [("first", 2), ("second", 1)]
    for number, run in enumerate(found["runs"], 1):
        results = read_json(made.root / "exp_logs" / str(number) / "results.json")
        for measure in metrics.SHOWN[made.task]:
            own = run[measure]
            assert own["value"] == pytest.approx(results[measure]["mean"], rel=1e-5)
            assert own["low"] < own["value"] < own["high"]


def test_intervals_are_of_a_paired_bootstrap(compared):
    """Drawn again here, with plain scikit-learn figures."""
    made, folder, _ = compared
    found = read_json(folder / "comparison.json")["runs"]
    both = [predictions(made.root / "exp_logs" / str(number)) for number in (1, 2)]
    targets, n_tracks = both[0]["targets"], TRACKS["test"]
    rng = np.random.default_rng(2)
    draws = [rng.integers(0, n_tracks, n_tracks) for _ in range(40)]
    for measure in metrics.SHOWN[made.task]:

        def figure(run: dict, rows: np.ndarray, measure: str = measure) -> float:
            """A mean over the seeds."""
            own = (metrics.evaluate(made.task, targets[rows], o[rows]) for o in run["outputs"])
            return np.mean([one.figures[measure] for one in own])

        samples = np.array([[figure(run, rows) for rows in draws] for run in both])
        for own, values in (
            (found[0][measure], samples[0]),
            (found[1][measure], samples[1]),
            (found[1][f"{measure}_difference"], samples[1] - samples[0]),
        ):
            high, low = 2 * own["value"] - np.quantile(values, [0.025, 0.975])
            if measure not in ("r2", "mse"):  # the others are shares
                assert low >= -1
                high = min(high, 1)
            assert (own["low"], own["high"]) == pytest.approx((low, high), rel=1e-4, abs=1e-6)
        assert f"{measure}_difference" not in found[0]


def test_table_and_picture(compared):
    made, folder, out = compared
    text = (folder / "comparison.md").read_text("utf-8")
    (picture,) = folder.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "](comparison.png)" in text
    assert "95% intervals" in text
    assert f"{TRACKS['test']} test tracks" in text
    assert "Warning" not in text
    assert ("MSE, less is better" in text) == (made.task == "regression")
    main = metrics.SHOWN[made.task][0]
    for run in read_json(folder / "comparison.json")["runs"]:
        own = run[main]
        cell = f"{own['value']:.4f} [{own['low']:.4f}, {own['high']:.4f}]"
        assert cell in text
        assert cell in out
        if run["name"] == "second":
            own = run[f"{main}_difference"]
            marked = " *" * (own["low"] * own["high"] > 0)
            assert f"{own['value']:+.4f} [{own['low']:+.4f}, {own['high']:+.4f}]{marked} " in text
    assert "comparison.md" in out


def test_a_clear_difference_is_marked_and_none_is_not(runs):
    found = predictions(runs / "exp_logs" / "1")
    clear = found["targets"][None] - 0.5 + 0 * found["outputs"]
    rewrite(runs, 2, outputs=clear.astype(np.float32))
    second = compare(runs)["runs"][1]
    assert second["ap"]["value"] == second["roc_auc"]["high"] == 1
    assert second["ap_difference"]["low"] > 0
    assert (newest(runs) / "comparison.md").read_text("utf-8").count("] *") == 2
    rewrite(runs, 2, outputs=found["outputs"])
    second = compare(runs)["runs"][1]
    assert second["ap_difference"] == {"value": 0, "low": 0, "high": 0}
    assert "] *" not in (newest(runs) / "comparison.md").read_text("utf-8")


def test_the_order_of_the_tracks_may_differ(runs):
    before = compare(runs)
    found = predictions(runs / "exp_logs" / "2")
    order = np.random.default_rng(0).permutation(len(found["keys"]))
    rewrite(
        runs,
        2,
        keys=found["keys"][order],
        targets=found["targets"][order],
        outputs=found["outputs"][:, order],
    )
    assert compare(runs) == before


def test_confidence_and_resamples_are_settings(runs):
    wide = compare(runs, "runs=[exp_logs/1,exp_logs/2] compare.confidence=0.99")["runs"]
    narrow = compare(runs, "runs=[exp_logs/1,exp_logs/2] compare.confidence=0.5")["runs"]
    for one, other in zip(wide, narrow, strict=True):
        assert one["ap"]["low"] < other["ap"]["low"] < other["ap"]["high"] < one["ap"]["high"]
    assert "50% intervals" in (newest(runs) / "comparison.md").read_text("utf-8")
    for confidence in (0, 1, 95):
        message = refused(runs, f"runs=[exp_logs/1,exp_logs/2] compare.confidence={confidence}")
        assert "compare.confidence: " in message
    line = "compare with runs=[exp_logs/1,exp_logs/2] compare.resamples=0"
    assert "compare.resamples" in bad("ex_tl.py", line, runs)


# ---- what is typed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        "runs=[exp_logs/2,exp_logs/1]",
        "runs=['exp_logs/2','exp_logs/1']",
        'runs=["exp_logs/2","exp_logs/1"]',
        "runs=exp_logs/2,exp_logs/1",
        "runs=(exp_logs/2,exp_logs/1,)",
    ],
)
def test_every_form_in_which_runs_are_typed(runs, typed):
    found = compare(runs, typed)["runs"]
    assert [run["folder"] for run in found] == ["exp_logs/2", "exp_logs/1"]
    assert [run["name"] for run in found] == ["second", "first"]


def test_a_folder_with_a_comma_in_its_name(runs):
    (runs / "exp_logs" / "2").rename(runs / "exp_logs" / "first,second")
    for typed in ('[exp_logs/1,"exp_logs/first,second"]', "['exp_logs/first,second',exp_logs/1]"):
        folders = [run["folder"] for run in compare(runs, f"runs={typed}")["runs"]]
        assert sorted(folders) == ["exp_logs/1", "exp_logs/first,second"]


def test_few_test_tracks_are_too_few(runs):
    for number in (1, 2):
        found = predictions(runs / "exp_logs" / str(number))
        rewrite(runs, number, keys=found["keys"][:29], targets=found["targets"][:29],
                outputs=found["outputs"][:, :29])  # fmt: skip
    compare(runs)
    text = (newest(runs) / "comparison.md").read_text("utf-8")
    assert "**Warning.** 29 test tracks" in text


def test_a_link_to_a_run(runs):
    (runs / "exp_logs" / "latest").symlink_to("2")
    found = compare(runs, "runs=[exp_logs/1,exp_logs/latest]")["runs"]
    assert found[1]["name"] == "second"
    assert found[1]["ap"] == compare(runs)["runs"][1]["ap"]


def test_more_than_two_runs_and_runs_of_one_name(runs):
    shutil.copytree(runs / "exp_logs" / "1", runs / "kept" / "old")
    found = compare(runs, "runs=[exp_logs/1,exp_logs/2,kept/old]")["runs"]
    names = [run["name"] for run in found]
    assert names == ["first (exp_logs/1)", "second", "first (kept/old)"]
    text = (newest(runs) / "comparison.md").read_text("utf-8")
    assert "Differences are to first (exp_logs/1)" in text


@pytest.mark.parametrize("typed", ["runs=[exp_logs/1]", "runs=exp_logs/1", "runs=[]", "seed=1"])
def test_one_run_is_no_comparison(runs, typed):
    message = refused(runs, typed)
    assert "runs: " in message
    assert "runs=[exp_logs/4,exp_logs/5]" in message


# ---- what does not compare -----------------------------------------------------------------------


def test_no_such_folder(runs):
    """The message lists the probes there are, or the one that was meant."""
    message = refused(runs, "runs=[exp_logs/1,nowhere]")
    assert "runs: nowhere: no such folder" in message
    assert "exp_logs/1" in message
    assert "exp_logs/2" in message
    message = refused(runs, "runs=[1,2]")
    assert "runs: 1: no such folder" in message
    assert "exp_logs/1" in message


def test_a_run_that_has_not_come_to_its_end(runs):
    (runs / "exp_logs" / "2" / "predictions.npz").unlink()
    assert "runs: exp_logs/2/predictions.npz: no such file" in refused(runs)


def test_the_folder_of_a_sweep(runs):
    (runs / "exp_logs" / "2" / "predictions.npz").unlink()
    (runs / "exp_logs" / "2" / "sweep.json").write_text("{}")
    message = refused(runs)
    assert "runs: exp_logs/2: is the folder of a sweep" in message
    assert "summary.md" in message


def test_the_folder_of_a_comparison(runs):
    compare(runs)
    message = refused(runs, "runs=[exp_logs/1,exp_logs/3]")
    assert "runs: exp_logs/3/predictions.npz: no such file" in message


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "incomplete", "shapes"])
def test_predictions_that_are_damaged(runs, damage):
    path = runs / "exp_logs" / "2" / "predictions.npz"
    if damage == "incomplete":
        np.savez(path, keys=predictions(path.parent)["keys"])
    elif damage == "shapes":
        rewrite(runs, 2, targets=np.zeros((3, 3), bool))
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-60], "empty": b"", "text": b"text"}[damage])
    assert "exp_logs/2/predictions.npz: cannot be read" in refused(runs)


def test_other_tracks(runs):
    found = predictions(runs / "exp_logs" / "2")
    rewrite(runs, 2, keys=found["keys"][2:], targets=found["targets"][2:],
            outputs=found["outputs"][:, 2:])  # fmt: skip
    message = refused(runs)
    assert "runs: exp_logs/2: " in message
    assert "exp_logs/1: 2 are in one" in message


def test_tracks_whose_labels_have_changed(runs):
    targets = predictions(runs / "exp_logs" / "2")["targets"]
    targets[4, 1] = 1 - targets[4, 1]
    rewrite(runs, 2, targets=targets)
    assert "runs: exp_logs/2: " in refused(runs)


def test_other_labels_or_another_task(tmp_path):
    made = make_up(tmp_path)
    probed(made, "seeds=1")
    write_labels(made.groundtruth("train").parent / "labels.json", reversed(LABELS))
    probed(made, "seeds=1")
    message = refused(made.root)
    assert "runs: exp_logs/2: " in message
    assert "multi-label, 3 labels, of other names or in other order" in message
    for split in TRACKS:
        values = {key: [0.5 * i] for i, key in enumerate(made.keys(split))}
        write_groundtruth(made.groundtruth(split), values, "regression")
    write_labels(made.groundtruth("train").parent / "labels.json", ["tempo"])
    other = probed(made, "seeds=1 data.task=regression")
    message = refused(made.root, f"runs=[exp_logs/1,exp_logs/{other.name}]")
    assert "(regression, 1 labels; multi-label, 3 labels)" in message


# ---- extractions that are still to be probed -----------------------------------------------------


def test_extractions_of_two_lengths(tmp_path):
    """Which length, in one command: what the probe command finds for each."""
    made = make_up(tmp_path)
    shutil.copytree(made.root / "embeddings/5sec", made.root / "embeddings/10sec")
    for block in made.blocks:
        folder = made.block(block, "10")
        (folder / "manifest.json").unlink()
        for path in folder.rglob("*.npy"):
            np.save(path, 0.5 * np.load(path))
        # What is there has no manifest that says with what it was made: it is given one
        shutil.move(folder, tmp_path / "aside")
        open_block(folder, block, 10.0)
        shutil.copytree(tmp_path / "aside", folder, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "aside")
    typed = "compare.embeddings_dirs=[embeddings/5sec,embeddings/10sec]"
    line = made.line("data.block=7 seeds=2").replace("data.embeddings_dir=embeddings", "")
    out = good("ex_tl.py", f"compare with {line} {typed} {QUICKLY}", made.root)
    found = read_json(newest(made.root) / "comparison.json")
    assert [run["name"] for run in found["runs"]] == ["embeddings/5sec", "embeddings/10sec"]
    assert "embeddings/10sec" in out
    for run, seconds in zip(found["runs"], (5, 10), strict=True):
        folder = probed(made, f"seeds=2 data.clip_length={seconds}")
        assert run["ap"]["value"] == pytest.approx(read_json(folder / "results.json")["ap"]["mean"])
        # Each is a finished run of its own, to compare with others, or to use
        assert (made.root / run["folder"] / "probe" / "probe.json").is_file()
    # … and can be made again as its summary says
    own = made.root / found["runs"][1]["folder"]
    lines = (own / "summary.md").read_text("utf-8").splitlines()
    (again,) = [line for line in lines if line.endswith("# the same again")]
    good("ex_tl.py", again.partition("#")[0].removeprefix("python ex_tl.py "), made.root)
    two = [read_json(folder / "results.json") for folder in (own, newest(made.root))]
    assert two[0]["ap"] == two[1]["ap"]
    assert two[0]["name"] == two[1]["name"]
    typed = f"{typed[:-18]}] runs=[{found['runs'][1]['folder']}]"
    good("ex_tl.py", f"compare with {line} {typed} {QUICKLY}", made.root)
    again = read_json(newest(made.root) / "comparison.json")
    assert [run["ap"] for run in again["runs"]] == [run["ap"] for run in found["runs"]][::-1]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("[embeddings,typo]", ["compare.embeddings_dirs: typo: "]),
        ("[embeddings,other] data.block=6", ["data.block: other/5sec: "]),
        ("[embeddings,other] data.features=mel_statistics", ["data.features: "]),
        ("[embeddings,other] name=x", ["name: "]),
        (
            "[embeddings,other] data.missing=skip",
            ["compare.embeddings_dirs: ", "(29 and 30 of 30)"],
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_trained(tmp_path, monkeypatch, typed, words):
    monkeypatch.setattr(comparing, "run_probe", lambda *_: pytest.fail("has been trained"))
    made = make_up(tmp_path)
    shutil.copytree(made.block(7), tmp_path / "other" / "5sec" / "7")
    (tmp_path / "other/5sec/7/test/03.mmap.embeddings.npy").unlink()
    block = "" if "data.block" in typed else "data.block=7"
    line = made.line(f"{block} compare.embeddings_dirs={typed}")
    message = bad("ex_tl.py", f"compare with {line}", tmp_path)
    assert all(word in message for word in words), message


def test_one_extraction_is_nothing_to_compare(finished):
    line = finished.line("data.block=7", "compare.embeddings_dirs=embeddings")
    message = bad("ex_tl.py", f"compare with {line}", finished.root)
    assert "compare.embeddings_dirs=[" in message
