"""The sweep: its cells are what the probe command finds, and it goes on after a stop."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from command_line import bad, good, newest, run
from folders import read_json
from made_up import (  # noqa: F401
    TRACKS,
    D,
    MadeUp,
    make_up,
    open_block,
    quick,
)

from maest.datasets.groundtruth import TASKS, write_groundtruth
from maest.experiments import sweep as sweeping
from maest.experiments.probe_data import MIX
from maest.experiments.sweep import ranked, summary
from maest.helpers.errors import InputError
from maest.helpers.reports import metrics, plots

TYPED = "sweep.tokens=[cdt,c] sweep.reduce=[mean,stack] seeds=2 seed=3"
CHOICES = [("cdt", "mean"), ("c", "mean"), ("cdt", "stack")]


@pytest.fixture(scope="module", params=TASKS)
def swept(request, tmp_path_factory) -> tuple[MadeUp, Path, str]:
    """A task, the folder of a sweep over it, and what was printed."""
    made = make_up(tmp_path_factory.mktemp(request.param), request.param)
    out = good("ex_tl.py", f"sweep with {made.line(TYPED)}", made.root)
    return made, newest(made.root), out


@pytest.fixture
def made(tmp_path) -> MadeUp:
    return make_up(tmp_path)


def identities(results: dict) -> list[tuple]:
    return [(cell["block"], cell["types"], cell["reduce"]) for cell in results["cells"]]


def sweep(made: MadeUp, *more: str) -> tuple[dict, Path]:
    good("ex_tl.py", f"sweep with {made.line('seeds=1', *more)}", made.root)
    folder = newest(made.root)
    return read_json(folder / "sweep.json"), folder


def shown(task: str) -> tuple[str, ...]:
    selection = {"multi-label": "roc_auc", "single-label": "accuracy", "regression": "r2"}[task]
    return (f"val_{selection}", *metrics.SHOWN[task])


# ---- what comes of it ----------------------------------------------------------------------------


def test_all_cells_are_there_in_the_order_of_the_tokens(swept):
    _, folder, out = swept
    results = read_json(folder / "sweep.json")
    assert identities(results) == [(b, *choice) for choice in CHOICES for b in (6, 7, MIX)]
    assert results["seeds"] == [3, 4]
    assert "18 probes" in out


def test_a_cell_is_what_the_probe_command_finds(swept):
    made, folder, _ = swept
    cells = dict(zip(identities(r := read_json(folder / "sweep.json")), r["cells"], strict=True))
    asked = ((6, "c", "mean"), (7, "cdt", "mean"), (7, "cdt", "stack"), (MIX, "cdt", "stack"))
    for block, types, reduce in asked:
        line = f"data.block={block} data.types={types} data.reduce={reduce} seeds=2 seed=3"
        good("ex_tl.py", f"with {made.line(line)}", made.root)
        plain = newest(made.root)
        single, cell = read_json(plain / "results.json"), cells[block, types, reduce]
        for measure in shown(made.task):
            assert cell[measure]["values"] == pytest.approx(
                single[measure]["values"], rel=1e-6, abs=1e-6
            )
        assert cell["best_epochs"] == single["best_epochs"]
        if block == MIX:
            assert single["mix"] == {"blocks": [6, 7], "weights": cell["weights"]}
        shutil.rmtree(plain)


def test_the_best_one_has_a_command_of_its_own(swept):
    made, folder, _ = swept
    best = ranked(read_json(folder / "sweep.json"))[0]
    lines = (folder / "summary.md").read_text("utf-8").splitlines()
    (typed,) = [line for line in lines if line.startswith("python ex_tl.py with ")]
    good("ex_tl.py", typed.removeprefix("python ex_tl.py "), made.root)
    plain = newest(made.root)
    found = read_json(plain / "results.json")
    for measure in shown(made.task):
        assert found[measure]["mean"] == pytest.approx(best[measure]["mean"], rel=1e-6)
    shutil.rmtree(plain)


def test_a_mix_of_some_blocks_has_a_command_of_its_own(tmp_path):
    made = make_up(tmp_path, blocks=(5, 6, 7))
    _, folder = sweep(made, "sweep.blocks=[6,7] sweep.tokens=d")
    results = read_json(folder / "sweep.json")
    results["cells"] = [cell for cell in results["cells"] if cell["block"] == MIX]
    text = summary(folder, results, {}).text
    (typed,) = [line for line in text.splitlines() if line.startswith("python ex_tl.py with ")]
    good("ex_tl.py", typed.removeprefix("python ex_tl.py "), made.root)
    found = read_json(newest(made.root) / "results.json")
    assert found["mix"]["blocks"] == [6, 7]
    assert found["ap"]["values"] == pytest.approx(results["cells"][0]["ap"]["values"], abs=1e-6)


def test_the_table_holds_what_the_json_does(swept):
    made, folder, _ = swept
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells = read_json(folder / "sweep.json")["cells"]
    for row, cell in zip(rows, cells, strict=True):
        assert (row["block"], row["tokens"], row["reduce"]) == (
            str(cell["block"]),
            cell["types"],
            cell["reduce"],
        )
        for measure in shown(made.task):
            name = measure if measure.startswith("val_") else f"test_{measure}"
            assert float(row[name]) == cell[measure]["mean"] == np.mean(cell[measure]["values"])
            assert float(row[f"{name}_std"]) == cell[measure]["std"]


def test_pictures_and_summary(swept):
    made, folder, out = swept
    text = (folder / "summary.md").read_text("utf-8")
    for name in ("sweep.png", "blocks.png", "mix.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
        assert name in out
    results = read_json(folder / "sweep.json")
    best = ranked(results)[0]
    main = metrics.SHOWN[made.task][0]
    assert f"**{best['name']}**" in text
    assert f"{best[main]['mean']:.4f}" in text
    assert f"All {len(results['cells'])} choices" in text
    assert f"{results['baseline'][main]:.4f}" in text
    assert "60 / 20 / 30 tracks" in text
    assert text.count("**Warning.**") == 1  # of the validation split
    rows = [line for line in text.splitlines() if line.startswith(("| block", "| mix"))]
    assert len(rows) == len(results["cells"])
    figures = [float(row.split("|")[2].split("±")[0]) for row in rows]
    assert figures == sorted(figures, reverse=True)  # by the validation split


def test_a_mix_has_weights_of_its_blocks(swept):
    _, folder, _ = swept
    for cell in read_json(folder / "sweep.json")["cells"]:
        assert ("weights" in cell) == (cell["block"] == MIX)
        if cell["block"] == MIX:
            weights = np.array(cell["weights"]["values"])
            assert weights.shape == (2, 2)
            assert (weights > 0).all()
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
            assert np.abs(weights - 0.5).max() > 1e-4  # they have been learned
            np.testing.assert_allclose(cell["weights"]["mean"], weights.mean(axis=0))


def test_the_pictures_show_these_figures(made, monkeypatch):
    seen = {}
    for name in ("heat_map", "block_curves"):
        draw = getattr(plots, name)

        def recorded(path, *arguments, draw=draw, **named):
            seen[Path(path).name] = arguments
            return draw(path, *arguments, **named)

        monkeypatch.setattr(plots, name, recorded)
    results, _ = sweep(made, "sweep.tokens=[t,c]")
    at = {(c["block"], c["types"]): c for c in results["cells"]}
    values, rows, columns, _ = seen["sweep.png"]
    assert (rows, columns) == (["6", "7", "mix"], ["t", "c"])
    wanted = [[at[b, t]["ap"]["mean"] for t in "tc"] for b in (6, 7, MIX)]
    np.testing.assert_array_equal(values, wanted)
    blocks, series, _, levels = seen["blocks.png"]
    assert blocks == [6, 7]
    assert series["c"][0] == [at[b, "c"]["ap"]["mean"] for b in (6, 7)]
    assert next(iter(levels.values())) in [at[MIX, t]["ap"]["mean"] for t in "tc"]
    weights, rows, columns, _ = seen["mix.png"]
    assert (rows, columns) == (["t", "c"], ["6", "7"])
    np.testing.assert_array_equal(weights, [at[MIX, t]["weights"]["mean"] for t in "tc"])


def test_the_test_split_has_no_say_in_what_is_best():
    def cell(block: int, validation: float, test: float) -> dict:
        return {"block": block, "val_roc_auc": {"mean": validation}, "ap": {"mean": test}}

    cells = [cell(0, 0.6, 0.9), cell(1, 0.8, 0.1), cell(2, 0.7, 1.0)]
    assert ranked({"task": "multi-label", "cells": cells})[0]["block"] == 1


def test_other_test_labels_leave_the_choice_as_it_is(made):
    first, _ = sweep(made, "sweep.tokens=[c,t]")
    keys, targets = made.keys("test"), made.targets("test")
    turned = dict(zip(keys, 1 - targets, strict=True))
    write_groundtruth(made.groundtruth("test"), turned)
    other, _ = sweep(made, "sweep.tokens=[c,t]")
    assert identities(first) == identities(other)
    for one, two in zip(first["cells"], other["cells"], strict=True):
        assert one["val_roc_auc"] == two["val_roc_auc"]
        assert one["roc_auc"]["mean"] == pytest.approx(1 - two["roc_auc"]["mean"])
    assert ranked(first)[0]["name"] == ranked(other)[0]["name"]


# ---- what is typed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "cells"),
    [
        ("sweep.tokens=[c,cdt]", [(b, t, "mean") for t in ("c", "cdt") for b in (6, 7, MIX)]),
        ("sweep.tokens=['t','c']", [(b, t, "mean") for t in "tc" for b in (6, 7, MIX)]),
        ("sweep.tokens=t,c sweep.mix=False", [(b, t, "mean") for t in "tc" for b in (6, 7)]),
        ("sweep.tokens=dt data.reduce=stack", [(b, "dt", "stack") for b in (6, 7, MIX)]),
        ("sweep.tokens=[cd,dc]", [(b, "cd", "mean") for b in (6, 7, MIX)]),
        ("sweep.tokens=[c] sweep.blocks=[7,6]", [(b, "c", "mean") for b in (6, 7, MIX)]),
        ("sweep.tokens=c sweep.blocks=7", [(7, "c", "mean")]),
        ("sweep.tokens=c sweep.blocks=[6]", [(6, "c", "mean")]),
        ("sweep.tokens=c sweep.blocks=6,7", [(b, "c", "mean") for b in (6, 7, MIX)]),
        ("sweep.tokens=c sweep.blocks=all", [(b, "c", "mean") for b in (6, 7, MIX)]),
        ("sweep.tokens=cd sweep.reduce=stack", [(b, "cd", "stack") for b in (6, 7, MIX)]),
        ("sweep.tokens=[c,cd] sweep.reduce=[stack,mean]", None),
        ("data.block=7 sweep.tokens=c", [(b, "c", "mean") for b in (6, 7, MIX)]),
    ],
)
def test_every_form_in_which_choices_are_typed(made, monkeypatch, typed, cells):
    """What is to be trained; nothing is."""
    if cells is None:
        choices = (("c", "mean"), ("cd", "stack"), ("cd", "mean"))
        cells = [(b, *choice) for choice in choices for b in (6, 7, MIX)]
    asked = []

    def train(*_, **__):
        raise InputError("enough", hint="Stop.", setting="sweep")

    def group_choices(*arguments):
        jobs = list(real(*arguments))
        asked.extend((c.block, c.types, c.reduce) for job in jobs for c in job)
        return jobs

    real = sweeping.group_choices
    monkeypatch.setattr(sweeping, "train_probes", train)
    monkeypatch.setattr(sweeping, "group_choices", group_choices)
    assert "enough" in bad("ex_tl.py", f"sweep with {made.line(typed)}", made.root)
    assert sorted(map(str, asked)) == sorted(map(str, cells))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("sweep.tokens=[c,x]", ["sweep.tokens: ", "'x'"]),
        ("sweep.tokens=[]", ["sweep.tokens: "]),
        ("sweep.reduce=max", ["sweep.reduce", "'max'"]),
        ("sweep.blocks=[5,6]", ["sweep.blocks: ", "6, 7"]),
        ("sweep.blocks=-1", ["sweep.blocks: ", "-1"]),
        ("sweep.blocks=[]", ["sweep.blocks: ", "6, 7"]),
        ("sweep.mix=no", ["sweep.mix"]),
        ("sweep.blocks=final", ["sweep.blocks: ", "'all'"]),
        ("data.block=mix", ["data.block: ", "sweep.blocks=[6,7]"]),
        ("data.types=cdt", ["data.types: ", "sweep.tokens=[cdt]"]),
        ("data.features=mel_statistics", ["data.features: "]),
        ("sweep.resume=nowhere", ["sweep.resume: nowhere/sweep.json: "]),
        ("sweep.resume=4", ["sweep.resume: 4/sweep.json: "]),
        ("data.task=regression", ["labels.json"]),
    ],
)
def test_what_cannot_be_swept_over(made, monkeypatch, typed, words):
    monkeypatch.setattr(sweeping, "train_probes", lambda *_, **__: pytest.fail("has been trained"))
    if typed == "data.task=regression":
        (made.root / "groundtruth" / "labels.json").write_text('["one"]', "utf-8")
    message = bad("ex_tl.py", f"sweep with {made.line(typed)}", made.root)
    assert all(word in message for word in words), message


def test_embeddings_after_the_final_norm_have_no_tokens(made):
    shutil.rmtree(made.block(6))
    shutil.move(made.block(7), made.block("final"))
    open_block(made.root / "new", -1)
    shutil.copy(made.root / "new" / "manifest.json", made.block("final") / "manifest.json")
    message = bad("ex_tl.py", f"sweep with {made.line()}", made.root)
    assert "data.embeddings_dir: embeddings/5sec: " in message
    assert "inference.transformer_block=all" in message


def test_one_block_alone_can_be_swept(made, caplog):
    shutil.rmtree(made.block(6))
    results, folder = sweep(made, "sweep.tokens=[c,d]")
    assert identities(results) == [(7, "c", "mean"), (7, "d", "mean")]
    assert "block 7 only" in caplog.text
    assert not (folder / "mix.png").exists()


def test_a_track_that_one_block_lacks_is_left_out_of_all(made, caplog):
    made.embedding(6, "test/03.mmap").unlink()
    message = bad("ex_tl.py", f"sweep with {made.line()}", made.root)
    assert "1 of 30" in message
    assert "6/test/03.mmap" in message
    results, folder = sweep(made, "sweep.tokens=c data.missing=skip")
    assert results["missing"] == {"test": 1}
    assert results["tracks"]["test"] == TRACKS["test"] - 1
    text = (folder / "summary.md").read_text("utf-8")
    assert "1 of test" in text
    mixed = ranked(results)[0]["block"] == MIX
    assert ("lack an embedding of another block" in text) != mixed
    assert "1 of 30 tracks of test" in caplog.text


def test_blocks_of_different_widths(made):
    np.save(made.embedding(7, "train/00.mmap"), np.ones((3, 2 * D), np.float32))
    message = bad("ex_tl.py", f"sweep with {made.line()}", made.root)
    assert "7/train/00.mmap" in message
    assert "[3, 16]" in message
    assert "[3, 8]" in message


# ---- going on after a stop -----------------------------------------------------------------------


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


def counted(monkeypatch) -> list[int]:
    return stopped_after(monkeypatch, -1)


TOKENS = "sweep.tokens=[c,d,cdt] sweep.num_workers=1"


@pytest.fixture
def stopped(made, monkeypatch) -> tuple[MadeUp, Path]:
    """A sweep that a signal has ended after the first block."""
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        done = run("ex_tl.py", f"sweep with {made.line('seeds=1', TOKENS)}", made.root)
    assert done.code == 128 + signal.SIGTERM
    folder = newest(made.root)
    place = f"exp_logs/{folder.name}"
    assert "SIGTERM" in done.err
    assert f"sweep.resume={place}" in done.err
    assert "Traceback" not in done.err
    assert identities(read_json(folder / "sweep.json")) == [
        (6, t, "mean") for t in ("c", "d", "cdt")
    ]
    return made, folder


def test_a_sweep_goes_on_where_it_was_stopped(stopped, monkeypatch):
    made, folder = stopped
    trained = counted(monkeypatch)
    resume = f"sweep.resume=exp_logs/{folder.name}"
    found, last = sweep(made, TOKENS, resume)
    assert trained == [3, 1, 1, 1]  # block 7, and three mixes
    assert found["seconds"] > read_json(folder / "sweep.json")["seconds"]
    whole, _ = sweep(made, TOKENS)
    assert identities(found) == identities(whole)
    for one, other in zip(found["cells"], whole["cells"], strict=True):
        assert one["val_roc_auc"] == other["val_roc_auc"]
        assert one["ap"] == other["ap"]
    assert (last / "sweep.csv").is_file()
    assert (last / "summary.md").is_file()

    trained.clear()  # of a whole one, all of it; of fewer choices, only those
    found, _ = sweep(made, "sweep.tokens=[cdt,d]", f"sweep.resume=exp_logs/{last.name}")
    assert trained == []
    assert identities(found) == [(b, t, "mean") for t in ("cdt", "d") for b in (6, 7, MIX)]
    found, _ = sweep(made, "sweep.tokens=[c,t]", f"sweep.resume=exp_logs/{last.name}")
    assert trained == [1, 1, 1]  # t of each block, and a mix of it
    assert identities(found) == [(b, t, "mean") for t in "ct" for b in (6, 7, MIX)]


def test_a_mix_of_other_blocks_is_made_again(tmp_path, monkeypatch):
    made = make_up(tmp_path, blocks=(5, 6, 7))
    first, folder = sweep(made, "sweep.tokens=c sweep.blocks=[5,6]")
    trained = counted(monkeypatch)
    found, _ = sweep(
        made, "sweep.tokens=c sweep.num_workers=1", f"sweep.resume=exp_logs/{folder.name}"
    )
    assert trained == [1, 1]  # block 7, and the mix of three
    assert len(found["cells"][-1]["weights"]["mean"]) == 3
    assert [c["ap"] for c in found["cells"][:2]] == [c["ap"] for c in first["cells"][:2]]


def test_a_sweep_that_was_stopped_at_once_can_be_resumed(made, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(patch, 0, signal.SIGINT)
        done = run("ex_tl.py", f"sweep with {made.line('seeds=1', 'sweep.tokens=c')}", made.root)
    assert done.code == 130
    assert "SIGINT" in done.err
    found, _ = sweep(made, "sweep.tokens=c", f"sweep.resume=exp_logs/{newest(made.root).name}")
    assert identities(found) == [(b, "c", "mean") for b in (6, 7, MIX)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("probe.dropout=0.1", "probe.dropout 0.5, now 0.1"),
        ("seeds=2", "seeds [0], now [0, 1]"),
        ("seed=1", "seeds 0, now 1"),
        ("data.missing=skip", "data.missing error, now skip"),
    ],
)
def test_results_of_other_settings_do_not_mix(stopped, monkeypatch, changed, words):
    made, folder = stopped
    monkeypatch.setattr(sweeping, "train_probes", lambda *_, **__: pytest.fail("has been trained"))
    line = made.line("seeds=1", TOKENS, f"sweep.resume=exp_logs/{folder.name}", changed)
    message = bad("ex_tl.py", f"sweep with {line}", made.root)
    assert f"sweep.resume: exp_logs/{folder.name}/sweep.json: " in message
    assert words in message


def test_results_of_another_ground_truth_or_model_do_not_mix(stopped):
    made, folder = stopped
    line = f"sweep with {made.line('seeds=1', TOKENS, f'sweep.resume=exp_logs/{folder.name}')}"
    before = made.groundtruth("test").read_bytes()
    keys, targets = made.keys("test"), made.targets("test")
    write_groundtruth(made.groundtruth("test"), dict(zip(keys, 1 - targets, strict=True)))
    message = bad("ex_tl.py", line, made.root)
    assert "groundtruths.test " in message
    made.groundtruth("test").write_bytes(before)
    for block in made.blocks:
        (made.block(block) / "manifest.json").unlink()
        open_block(made.root / f"new{block}", block, model="c" * 64)
        shutil.copy(made.root / f"new{block}" / "manifest.json", made.block(block))
    message = bad("ex_tl.py", line, made.root)
    assert "extraction.model aaaaaaaaaaaa" in message
    assert "cccccccc" in message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 3}'])
def test_results_that_are_none(made, content):
    (made.root / "broken").mkdir()
    (made.root / "broken" / "sweep.json").write_text(content)
    message = bad("ex_tl.py", f"sweep with {made.line('sweep.resume=broken')}", made.root)
    assert "sweep.resume: broken/sweep.json: " in message


# ---- several threads -----------------------------------------------------------------------------


def test_threads_find_what_one_does(made):
    tokens = "sweep.tokens=[c,cdt]"
    alone, _ = sweep(made, tokens, "sweep.num_workers=1")
    results, _ = sweep(made, tokens, "sweep.num_workers=3")
    assert identities(results) == identities(alone)
    for one, other in zip(results["cells"], alone["cells"], strict=True):
        for name in ("ap", "roc_auc", "val_roc_auc"):
            assert one[name]["values"] == pytest.approx(other[name]["values"], abs=1e-6)


def test_a_signal_ends_all_threads(made, monkeypatch):
    """Soon, not when their probes are done."""
    stopped_after(monkeypatch, 1)
    line = made.line("seeds=1", "sweep.tokens=[c,d]").replace("max_epochs=4", "max_epochs=100000")
    done = run("ex_tl.py", f"sweep with {line} sweep.num_workers=2", made.root)
    assert done.code == 128 + signal.SIGTERM
    assert "sweep.resume=" in done.err
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]
