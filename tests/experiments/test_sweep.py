"""The sweep: its cells are what the probe command finds, and it goes on after a stop."""

import os
import shutil
import signal
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from command_line import good, newest, run
from folders import read_json, rows
from made_up import TRACKS, D, MadeUp, make_up, other_manifest

from maest.datasets.groundtruth import TASKS
from maest.experiments import sweep as sweeping
from maest.experiments.probe_data import MIX
from maest.experiments.sweep import ranked
from maest.helpers.reports import metrics, plots

CHOICES = [("cdt", "mean"), ("c", "mean"), ("cdt", "stack")]


@pytest.fixture(scope="module", params=TASKS)
def swept(request, tmp_path_factory) -> tuple[MadeUp, Path, dict]:
    """A task, the folder of a sweep over it, and its results."""
    made = make_up(tmp_path_factory.mktemp(request.param), request.param)
    typed = "sweep.tokens=[cdt,c] sweep.reduce=[mean,stack] seeds=2 seed=3"
    folder = made.run("sweep", typed)
    return made, folder, read_json(folder / "sweep.json")


@pytest.fixture
def made(tmp_path) -> MadeUp:
    return make_up(tmp_path)


@pytest.fixture
def untrained(monkeypatch):
    """Fails where a probe is trained."""
    monkeypatch.setattr(sweeping, "train_probes", lambda *_, **__: pytest.fail("has been trained"))


def identities(results: dict) -> list[tuple]:
    return [(cell["block"], cell["types"], cell["reduce"]) for cell in results["cells"]]


def sweep(made: MadeUp, *typed: str) -> dict:
    return read_json(made.run("sweep", "seeds=1", *typed) / "sweep.json")


def shown(task: str) -> tuple[str, ...]:
    selection = {"multi-label": "roc_auc", "single-label": "accuracy", "regression": "r2"}[task]
    return (f"val_{selection}", *metrics.SHOWN[task])


def command_of_the_best(folder: Path) -> str:
    lines = (folder / "summary.md").read_text("utf-8").splitlines()
    (typed,) = [line for line in lines if line.startswith("python ex_tl.py with ")]
    return typed.removeprefix("python ex_tl.py ")


# ---- what comes of it ----------------------------------------------------------------------------


def test_a_cell_is_what_the_probe_command_finds(swept):
    made, _, results = swept
    assert identities(results) == [(b, *choice) for choice in CHOICES for b in (6, 7, MIX)]
    assert results["seeds"] == [3, 4]
    cells = dict(zip(identities(results), results["cells"], strict=True))
    for asked in ((6, "c", "mean"), (7, "cdt", "stack"), (MIX, "cdt", "stack")):
        block, types, reduce = asked
        typed = f"data.block={block} data.types={types} data.reduce={reduce} seeds=2 seed=3"
        plain = made.run("probe", typed)
        single, cell = read_json(plain / "results.json"), cells[asked]
        for measure in shown(made.task):
            values = pytest.approx(single[measure]["values"], rel=1e-6, abs=1e-6)
            assert cell[measure]["values"] == values
        assert cell["best_epochs"] == single["best_epochs"]
        if block == MIX:
            assert single["mix"] == {"blocks": [6, 7], "weights": cell["weights"]}
        shutil.rmtree(plain)


def test_the_best_one_has_a_command_of_its_own(swept):
    made, folder, results = swept
    good("ex_tl.py", command_of_the_best(folder), made.root)
    plain = newest(made.root)
    found, best = read_json(plain / "results.json"), ranked(results)[0]
    for measure in shown(made.task):
        assert found[measure]["mean"] == pytest.approx(best[measure]["mean"], rel=1e-6)
    shutil.rmtree(plain)


def test_the_table_holds_what_the_json_does(swept):
    made, folder, results = swept
    for row, cell in zip(rows(folder / "sweep.csv"), results["cells"], strict=True):
        identity = str(cell["block"]), cell["types"], cell["reduce"]
        assert (row["block"], row["tokens"], row["reduce"]) == identity
        for measure in shown(made.task):
            name = measure if measure.startswith("val_") else f"test_{measure}"
            assert float(row[name]) == cell[measure]["mean"] == np.mean(cell[measure]["values"])
            assert float(row[f"{name}_std"]) == cell[measure]["std"]


def test_the_summary_is_in_the_order_of_the_validation_split(swept):
    _, folder, results = swept
    text = (folder / "summary.md").read_text("utf-8")
    for name in ("sweep.png", "blocks.png", "mix.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
    assert f"**{ranked(results)[0]['name']}**" in text
    assert text.count("**Warning.**") == 1  # of the validation split
    table = [line for line in text.splitlines() if line.startswith(("| block", "| mix"))]
    values = [float(row.split("|")[2].split("±")[0]) for row in table]
    assert len(values) == len(results["cells"])
    assert values == sorted(values, reverse=True)


def test_a_mix_has_weights_of_its_blocks(swept):
    for cell in swept[2]["cells"]:
        assert ("weights" in cell) == (cell["block"] == MIX)
        if cell["block"] == MIX:
            weights = np.array(cell["weights"]["values"])
            assert weights.shape == (2, 2)
            assert (weights > 0).all()
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
            assert np.abs(weights - 0.5).max() > 1e-4  # they have been learned
            np.testing.assert_allclose(cell["weights"]["mean"], weights.mean(axis=0))


def test_the_pictures_show_these_metrics(made, monkeypatch):
    seen = {}
    for name in ("heat_map", "block_curves"):
        draw = getattr(plots, name)

        def recorded(path, *arguments, draw=draw, **named):
            seen[Path(path).name] = arguments
            return draw(path, *arguments, **named)

        monkeypatch.setattr(plots, name, recorded)
    at = {(c["block"], c["types"]): c for c in sweep(made, "sweep.tokens=[t,c]")["cells"]}
    values, names, columns, _ = seen["sweep.png"]
    assert (names, columns) == (["6", "7", "mix"], ["t", "c"])
    wanted = [[at[b, t]["ap"]["mean"] for t in "tc"] for b in (6, 7, MIX)]
    np.testing.assert_array_equal(values, wanted)
    blocks, series, _, levels = seen["blocks.png"]
    assert blocks == [6, 7]
    assert series["c"][0] == [at[b, "c"]["ap"]["mean"] for b in (6, 7)]
    assert next(iter(levels.values())) in [at[MIX, t]["ap"]["mean"] for t in "tc"]
    weights, names, columns, _ = seen["mix.png"]
    assert (names, columns) == (["t", "c"], ["6", "7"])
    np.testing.assert_array_equal(weights, [at[MIX, t]["weights"]["mean"] for t in "tc"])


@pytest.mark.parametrize("names", [[f"class {i}" for i in range(120)], ["$a_{$", "名"]])
def test_a_heat_map_of_any_classes_can_be_opened(tmp_path, names):
    values = np.full((len(names), len(names)), np.nan)
    path = plots.heat_map(tmp_path / "classes.png", values, names, names, "classes")
    assert max(matplotlib.image.imread(path).shape) < 5000


def test_the_test_split_has_no_say_in_what_is_best(made):
    first = sweep(made, "sweep.tokens=[c,t]")
    made.relabel("test", lambda y: 1 - y)
    other = sweep(made, "sweep.tokens=[c,t]")
    assert identities(first) == identities(other)
    for one, two in zip(first["cells"], other["cells"], strict=True):
        assert one["val_roc_auc"] == two["val_roc_auc"]
        assert one["roc_auc"]["mean"] == pytest.approx(1 - two["roc_auc"]["mean"])
    assert [cell["name"] for cell in ranked(first)] == [cell["name"] for cell in ranked(other)]


# ---- what is typed -------------------------------------------------------------------------------

ALL = (6, 7, MIX)


@pytest.mark.parametrize(
    ("typed", "blocks", "choices"),
    [
        ("sweep.tokens=[c,cdt]", ALL, [("c", "mean"), ("cdt", "mean")]),
        ("sweep.tokens=['t','c']", ALL, [("t", "mean"), ("c", "mean")]),
        ("sweep.tokens=t,c sweep.mix=False", (6, 7), [("t", "mean"), ("c", "mean")]),
        ("sweep.tokens=dt data.reduce=stack", ALL, [("dt", "stack")]),
        ("sweep.tokens=[cd,dc]", ALL, [("cd", "mean")]),
        ("sweep.tokens=[c] sweep.blocks=[7,6]", ALL, [("c", "mean")]),
        ("sweep.tokens=c sweep.blocks=7", (7,), [("c", "mean")]),
        ("sweep.tokens=c sweep.blocks=6,7", ALL, [("c", "mean")]),
        ("sweep.tokens=c sweep.blocks=all data.block=7", ALL, [("c", "mean")]),
        (
            "sweep.tokens=[c,cd] sweep.reduce=[stack,mean]",
            ALL,
            [("c", "mean"), ("cd", "stack"), ("cd", "mean")],
        ),
    ],
)
def test_choices_as_typed(made, typed, blocks, choices):
    results = sweep(made, typed, "probe.max_epochs=1")
    assert identities(results) == [(block, *choice) for choice in choices for block in blocks]


@pytest.mark.parametrize(
    ("typed", "kind", "setting"),
    [
        ("sweep.tokens=[c,x]", "invalid", "sweep.tokens"),
        ("sweep.tokens=[]", "empty", "sweep.tokens"),
        ("sweep.blocks=[5,6]", "missing", "sweep.blocks"),
        ("sweep.blocks=-1", "missing", "sweep.blocks"),
        ("sweep.blocks=[]", "missing", "sweep.blocks"),
        ("sweep.blocks=final", "unknown", "sweep.blocks"),
        ("data.block=mix", "conflict", "data.block"),
        ("data.types=cdt", "conflict", "data.types"),
        ("data.features=mel_statistics", "conflict", "data.features"),
        ("sweep.resume=nowhere", "missing", "sweep.resume"),
    ],
)
def test_what_cannot_be_swept_over(made, untrained, typed, kind, setting):
    made.refused("sweep", typed, kind, setting)


def test_embeddings_that_cannot_be_swept_over(made, untrained):
    """Of two widths, or after the final norm, where there are no tokens."""
    np.save(made.embedding(7, "train/00.mmap"), np.ones((3, 2 * D), np.float32))
    made.refused("sweep", "", "mismatch", None, "7/train/00.mmap.embeddings.npy")
    shutil.rmtree(made.block(6))
    made.block(7).rename(made.block("final"))
    other_manifest(made.block("final"), -1)
    made.refused("sweep", "", "missing", "data.embeddings_dir", "5sec")


def test_one_block_alone_can_be_swept(made):
    shutil.rmtree(made.block(6))
    assert identities(sweep(made, "sweep.tokens=[c,d]")) == [(7, t, "mean") for t in "cd"]
    assert not (newest(made.root) / "mix.png").exists()


def test_a_track_that_one_block_lacks_is_left_out_of_all(made):
    made.embedding(6, "test/03.mmap").unlink()
    made.refused("sweep", "", "missing", None, "6/test/03.mmap.embeddings.npy")
    results = sweep(made, "sweep.tokens=c data.missing=skip")
    assert results["missing"] == {"test": 1}
    assert results["tracks"]["test"] == TRACKS["test"] - 1


# ---- going on after a stop -----------------------------------------------------------------------

TOKENS = "sweep.tokens=[c,d,cdt] sweep.num_workers=1"


def stopped_after(monkeypatch, calls: int, number: int = signal.SIGTERM) -> list[int]:
    """Signals this process once so many jobs are trained; returns how many cells each had."""
    trained: list[int] = []
    real = sweeping.train_probes

    def train(recipe, task, features, *arguments, **named):
        if len(trained) == calls:
            os.kill(os.getpid(), number)
        trained.append(1 if arguments[1] else features["train"].shape[1])
        return real(recipe, task, features, *arguments, **named)

    monkeypatch.setattr(sweeping, "train_probes", train)
    return trained


@pytest.fixture
def stopped(made, monkeypatch) -> tuple[MadeUp, str]:
    """A sweep that a signal has ended after the first block; how to resume it."""
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        done = run("ex_tl.py", f"sweep with {made.line('seeds=1', TOKENS)}", made.root)
    assert done.code == 128 + signal.SIGTERM
    folder = newest(made.root)
    resume = f"sweep.resume=exp_logs/{folder.name}"
    assert resume in done.err
    cells = identities(read_json(folder / "sweep.json"))
    assert cells == [(6, t, "mean") for t in ("c", "d", "cdt")]
    return made, resume


def test_a_stopped_sweep_is_resumed(stopped, monkeypatch):
    made, resume = stopped
    trained = stopped_after(monkeypatch, -1)
    found = sweep(made, TOKENS, resume)
    last = f"sweep.resume=exp_logs/{newest(made.root).name}"
    assert trained == [3, 1, 1, 1]  # block 7, and three mixes
    whole = sweep(made, TOKENS)
    assert identities(found) == identities(whole)
    for one, other in zip(found["cells"], whole["cells"], strict=True):
        assert (one["val_roc_auc"], one["ap"]) == (other["val_roc_auc"], other["ap"])

    trained.clear()  # of a whole one, all of it; of fewer choices, only those
    found = sweep(made, "sweep.tokens=[cdt,d]", last)
    assert trained == []
    assert identities(found) == [(b, t, "mean") for t in ("cdt", "d") for b in ALL]
    found = sweep(made, "sweep.tokens=[c,t]", last)
    assert trained == [1, 1, 1]  # t of each block, and a mix of it
    assert identities(found) == [(b, t, "mean") for t in "ct" for b in ALL]


def test_a_mix_of_other_blocks_is_trained_again(tmp_path, monkeypatch):
    """The summary has a command for a mix of some blocks, too."""
    made = make_up(tmp_path, blocks=(5, 6, 7))
    first = sweep(made, "sweep.tokens=c sweep.blocks=[5,6]")
    folder = newest(made.root)
    monkeypatch.setattr(sweeping, "ranked", lambda results: results["cells"][::-1])
    trained = stopped_after(monkeypatch, -1)
    resume = f"sweep.tokens=c sweep.num_workers=1 sweep.resume=exp_logs/{folder.name}"
    found = sweep(made, resume)
    assert trained == [1, 1]  # block 7, and the mix of three
    assert len(found["cells"][-1]["weights"]["mean"]) == 3
    assert [c["ap"] for c in found["cells"][:2]] == [c["ap"] for c in first["cells"][:2]]
    good("ex_tl.py", command_of_the_best(newest(made.root)), made.root)
    results = read_json(newest(made.root) / "results.json")
    assert results["mix"]["blocks"] == [5, 6, 7]
    assert results["ap"]["values"] == pytest.approx(found["cells"][-1]["ap"]["values"], abs=1e-6)


def test_a_sweep_that_was_stopped_at_once_can_be_resumed(made, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(patch, 0, signal.SIGINT)
        done = run("ex_tl.py", f"sweep with {made.line('seeds=1 sweep.tokens=c')}", made.root)
    assert done.code == 128 + signal.SIGINT
    found = sweep(made, "sweep.tokens=c", f"sweep.resume=exp_logs/{newest(made.root).name}")
    assert identities(found) == [(b, "c", "mean") for b in ALL]


def test_results_of_other_settings_do_not_mix(stopped, untrained):
    made, resume = stopped
    typed = f"seeds=1 {TOKENS} {resume}"

    def refuse(named: str, changed: str = "") -> None:
        error = made.refused(
            "sweep", f"{typed} {changed}", "mismatch", "sweep.resume", "sweep.json"
        )
        assert named in error.message

    refuse("probe.dropout 0.5, now 0.1", "probe.dropout=0.1")
    refuse("seeds [0], now [0, 1]", "seeds=2")
    refuse("data.missing", "data.missing=skip")
    for block in made.blocks:
        other_manifest(made.block(block), block, model="c" * 64)
    refuse("extraction.model")
    made.relabel("test", lambda y: 1 - y)
    refuse("groundtruths.test")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 3}'])
def test_damaged_results(made, content):
    (made.root / "broken").mkdir()
    (made.root / "broken/sweep.json").write_text(content)
    made.refused("sweep", "sweep.resume=broken", "mismatch", "sweep.resume", "broken/sweep.json")


def test_several_threads_give_the_results_of_one(made):
    alone, several = (sweep(made, f"sweep.tokens=[c,cdt] sweep.num_workers={n}") for n in (1, 3))
    assert identities(several) == identities(alone)
    for one, other in zip(several["cells"], alone["cells"], strict=True):
        for name in ("ap", "roc_auc", "val_roc_auc"):
            assert one[name]["values"] == pytest.approx(other[name]["values"], abs=1e-6)


def test_a_signal_ends_all_threads(made, monkeypatch):
    """At once, not after their probes."""
    stopped_after(monkeypatch, 1)
    line = made.line("seeds=1 sweep.tokens=[c,d] sweep.num_workers=2 probe.max_epochs=100000")
    before = set(threading.enumerate())
    done = run("ex_tl.py", f"sweep with {line}", made.root)
    assert done.code == 128 + signal.SIGTERM
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:  # as tqdm's monitor is, which never ends
            thread.join()  # or the test ends by its time limit
