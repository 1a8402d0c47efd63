"""Finished runs side by side: the same tracks, paired intervals, and what does not compare."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import good, newest, refused
from folders import read_json
from made_up import TRACKS, MadeUp, make_up, other_manifest, read_predictions

from maest.datasets.groundtruth import TASKS
from maest.experiments import compare as comparing
from maest.helpers.reports import metrics
from maest.helpers.reports.bootstrap import interval, resampled_figures

BOTH = "runs=[exp_logs/1,exp_logs/2]"


@pytest.fixture(scope="module", params=TASKS)
def compared(request, tmp_path_factory) -> tuple[MadeUp, Path]:
    """Runs 1 and 2 of a task, and the folder of their comparison."""
    made = make_up(tmp_path_factory.mktemp(request.param), request.param)
    made.probe("seeds=2 name=first")
    made.probe("seeds=1 name=second data.types=cdt data.reduce=stack")
    good("ex_tl.py", f"compare with {BOTH} compare.resamples=40 seed=2", made.root)
    return made, newest(made.root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> MadeUp:
    """Two finished runs, which no test changes."""
    made = make_up(tmp_path_factory.mktemp("finished"))
    made.probe("seeds=1 name=first")
    made.probe("seeds=1 name=second data.types=t")
    return made


@pytest.fixture
def home(finished, tmp_path) -> Path:
    """A home with copies of both, to change."""
    shutil.copytree(finished.root / "exp_logs", tmp_path / "exp_logs", symlinks=True)
    return tmp_path


def compare(home: Path, typed: str = BOTH) -> list[dict]:
    good("ex_tl.py", f"compare with {typed} compare.resamples=40", home)
    return read_json(newest(home) / "comparison.json")["runs"]


def summary(home: Path) -> str:
    return (newest(home) / "comparison.md").read_text("utf-8")


def refuse(home: Path, kind: str, place: str = "", typed: str = BOTH, setting: str = "runs"):
    refused("ex_tl.py", f"compare with {typed}", home, kind, setting, place)


def rewrite(home: Path, number: int, **arrays: np.ndarray) -> None:
    folder = home / "exp_logs" / str(number)
    np.savez(folder / "predictions.npz", **read_predictions(folder) | arrays)


def choose(home: Path, number: int, tracks) -> None:
    """Keep these tracks of a run, in this order."""
    found = read_predictions(home / "exp_logs" / str(number))
    keys, targets = found["keys"][tracks], found["targets"][tracks]
    rewrite(home, number, keys=keys, targets=targets, outputs=found["outputs"][:, tracks])


# ---- metrics -------------------------------------------------------------------------------------


def test_intervals_are_of_a_paired_bootstrap(compared):
    """Both runs have the same resamples."""
    made, folder = compared
    content = read_json(folder / "comparison.json")
    assert (content["task"], content["tracks"]) == (made.task, TRACKS["test"])
    assert (content["resamples"], content["confidence"], content["seed"]) == (40, 0.95, 2)
    runs = content["runs"]
    assert [(run["name"], run["seeds"]) for run in runs] == [("first", 2), ("second", 1)]
    both = [read_predictions(made.root / f"exp_logs/{number}") for number in (1, 2)]
    samples = [resampled_figures(made.task, r["targets"], r["outputs"], 40, 2) for r in both]
    for measure in metrics.SHOWN[made.task]:
        one, two = (run[measure] for run in samples)
        for own, values in (
            (runs[0][measure], one),
            (runs[1][measure], two),
            (runs[1][f"{measure}_difference"], two - one),
        ):
            expected = interval(values, 0.95)
            if measure not in ("r2", "mse"):  # the others are shares
                expected["high"] = min(expected["high"], 1)
            assert own == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert f"{measure}_difference" not in runs[0]
        for number, run in enumerate(runs, 1):
            results = read_json(made.root / f"exp_logs/{number}/results.json")
            assert run[measure]["value"] == pytest.approx(results[measure]["mean"], rel=1e-5)


def test_table_and_picture(compared):
    made, folder = compared
    text, main = (folder / "comparison.md").read_text("utf-8"), metrics.SHOWN[made.task][0]
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "](comparison.png)" in text
    first, second = (run for run in read_json(folder / "comparison.json")["runs"])
    for own, sign in ((first[main], ""), (second[main], ""), (second[f"{main}_difference"], "+")):
        value, low, high = (format(own[part], f"{sign}.4f") for part in ("value", "low", "high"))
        assert f"{value} [{low}, {high}]" in text


def test_a_clear_difference_is_marked_and_none_is_not(home):
    found = read_predictions(home / "exp_logs/1")
    clear = found["targets"][None] - 0.5 + 0 * found["outputs"]
    rewrite(home, 2, outputs=clear.astype(np.float32))
    second = compare(home)[1]
    assert second["ap"]["value"] == second["roc_auc"]["high"] == 1
    assert second["ap_difference"]["low"] > 0
    assert summary(home).count("] *") == 2
    rewrite(home, 2, outputs=found["outputs"])
    assert compare(home)[1]["ap_difference"] == {"value": 0, "low": 0, "high": 0}
    assert "] *" not in summary(home)


def test_the_order_of_the_tracks_may_differ(home):
    before = compare(home)
    choose(home, 2, np.random.default_rng(0).permutation(TRACKS["test"]))
    assert compare(home) == before
    assert "**Warning.**" not in summary(home)


def test_few_test_tracks_are_too_few(home):
    for number in (1, 2):
        choose(home, number, slice(29))
    compare(home)
    assert "**Warning.**" in summary(home)


def test_confidence_is_a_setting(home):
    wide, narrow = (compare(home, f"{BOTH} compare.confidence={c}") for c in (0.99, 0.5))
    for one, other in zip(wide, narrow, strict=True):
        assert one["ap"]["low"] < other["ap"]["low"] < other["ap"]["high"] < one["ap"]["high"]


def test_links_commas_and_runs_of_one_name(home):
    logs = home / "exp_logs"
    (logs / "2").rename(logs / "first,second")
    (logs / "3").symlink_to("first,second")
    for name in ("old", "nameless"):
        shutil.copytree(logs / "1", home / "kept" / name)
    (home / "kept/nameless/results.json").unlink()
    runs = 'exp_logs/1,"exp_logs/first,second",exp_logs/3,kept/old,kept/nameless'
    found = compare(home, f"runs=[{runs}]")
    assert [run["folder"] for run in found][1] == "exp_logs/first,second"
    assert found[1]["ap"] == found[2]["ap"]
    names = [run["name"] for run in found]
    assert names[::3] == ["first (exp_logs/1)", "first (kept/old)"]
    assert names[4] == "kept/nameless"


@pytest.mark.parametrize("typed", ["runs=[exp_logs/1]", "runs=exp_logs/1", "runs=[]", "seed=1"])
def test_one_run_is_no_comparison(home, typed):
    refuse(home, "missing", typed=typed)


# ---- what does not compare -----------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["runs=[exp_logs/1,nowhere]", "runs=[exp_logs/1,2]"])
def test_no_such_folder(home, typed):
    """The hint lists finished probes, or the nearest one."""
    line = f"compare with {typed}"
    error = refused("ex_tl.py", line, home, "missing", "runs", typed[17:-1])
    assert "exp_logs/2" in error.hint


def test_runs_without_predictions(home):
    """One that was stopped, a sweep's, and a comparison's."""
    compare(home)
    refuse(home, "missing", "exp_logs/3/predictions.npz", "runs=[exp_logs/1,exp_logs/3]")
    (home / "exp_logs/2/predictions.npz").unlink()
    refuse(home, "missing", "exp_logs/2/predictions.npz")
    (home / "exp_logs/2/sweep.json").write_text("{}")
    refuse(home, "missing", "exp_logs/2")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "incomplete", "shapes"])
def test_predictions_that_are_damaged(home, damage):
    path = home / "exp_logs/2/predictions.npz"
    if damage == "incomplete":
        np.savez(path, keys=read_predictions(path.parent)["keys"])
    elif damage == "shapes":
        rewrite(home, 2, targets=np.zeros((3, 3), bool))
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-60], "empty": b"", "text": b"text"}[damage])
    refused("ex_tl.py", f"compare with {BOTH}", home, "corrupt", None, "exp_logs/2/predictions.npz")


def test_other_tracks_or_labels(home):
    found = read_predictions(home / "exp_logs/2")
    choose(home, 2, slice(2, None))
    refuse(home, "mismatch", "exp_logs/2")
    targets = found["targets"].copy()
    targets[4, 1] = 1 - targets[4, 1]
    rewrite(home, 2, **found | {"targets": targets})
    refuse(home, "mismatch", "exp_logs/2")
    rewrite(home, 2, **found | {"labels": found["labels"][::-1]})
    refuse(home, "mismatch", "exp_logs/2")
    rewrite(home, 2, **found | {"task": np.array("regression")})
    refuse(home, "mismatch", "exp_logs/2")


def test_extractions_of_two_lengths(tmp_path):
    """One command compares both; each result is that of the probe command."""
    made = make_up(tmp_path)
    shutil.copytree(made.root / "embeddings/5sec", made.root / "embeddings/10sec")
    for block in made.blocks:
        other_manifest(made.block(block, "10"), block, seconds=10.0)
        for path in made.block(block, "10").rglob("*.npy"):
            np.save(path, 0.5 * np.load(path))
    line = made.line("data.block=7 seeds=2").replace("data.embeddings_dir=embeddings", "")
    sources = ["embeddings/5sec", "embeddings/10sec"]
    typed = f"{line} compare.embeddings_dirs=[{','.join(sources)}]"
    found = compare(tmp_path, typed)
    assert [run["name"] for run in found] == sources
    for run, seconds in zip(found, (5, 10), strict=True):
        results = read_json(made.probe(f"seeds=2 data.clip_length={seconds}") / "results.json")
        assert run["ap"]["value"] == pytest.approx(results["ap"]["mean"])
    # Each is a finished run, to repeat, to use, and to compare with others.
    own = found[1]["folder"]
    assert (tmp_path / own / "probe/probe.json").is_file()
    good("ex_tl.py", f"with {own}/config.json", tmp_path)
    again, first = (read_json(f / "results.json") for f in (newest(tmp_path), tmp_path / own))
    assert (again["ap"], again["name"]) == (first["ap"], first["name"])
    again = compare(tmp_path, f"{line} compare.embeddings_dirs={sources[0]} runs=[{own}]")
    assert [run["ap"] for run in again] == [run["ap"] for run in found][::-1]


@pytest.mark.parametrize(
    ("typed", "kind", "setting"),
    [
        ("[embeddings,typo]", "missing", "compare.embeddings_dirs"),
        ("embeddings", "missing", "runs"),
        ("[embeddings,other] data.block=6", "missing", "data.block"),
        ("[embeddings,other] data.features=mel_statistics", "conflict", "data.features"),
        ("[embeddings,other] name=x", "conflict", "name"),
        ("[embeddings,other] data.missing=skip", "mismatch", "compare.embeddings_dirs"),
    ],
)
def test_mistakes_are_refused_before_training(tmp_path, monkeypatch, typed, kind, setting):
    monkeypatch.setattr(comparing, "run_probe", lambda *_: pytest.fail("has been trained"))
    made = make_up(tmp_path)
    shutil.copytree(made.block(7), tmp_path / "other/5sec/7")
    (tmp_path / "other/5sec/7/test/03.mmap.embeddings.npy").unlink()
    block = "" if "data.block" in typed else "data.block=7"
    made.refused("compare", f"{block} compare.embeddings_dirs={typed}", kind, setting)
