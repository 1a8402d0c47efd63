"""The other benchmarks: small trials, whose figures are not looked at for speed."""

from __future__ import annotations

import engines
import loading
import loading_models
import preprocessing
import probe
import pytest

import training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_training_steps():
    [rows] = training.main(["--quick"])["results"].values()
    assert set(rows) == set(training.WAYS)
    assert rows["ours"]["tokens"] < rows["AST"]["tokens"]
    assert all(0 < row["utilisation"] < 3 for row in rows.values())


def test_loading():
    memory, *cases = loading.main(["--quick"])["results"].items()
    assert f"epoch_{loading.EPOCHS}" in memory[1]["ours"]
    assert [title.split(",")[0] for title, _ in cases] == ["warm", "cold"]


def test_loading_models():
    [rows] = loading_models.main(["--quick"])["results"].values()
    assert set(rows) == set(loading_models.FILES)
    assert all(row["seconds"] > 0 for row in rows.values())


def test_preprocessing():
    record = preprocessing.main(["--quick"])
    assert max(record["largest_difference_bands_0_to_84"].values()) < 0.02
    [rows] = record["results"].values()
    assert len(rows) == 6


def test_probes():
    [rows] = probe.main(["--quick"])["results"].values()
    assert rows["ours, sweep"]["probes"] == 2 * 7 * 3


def test_engines():
    [rows] = engines.main(["--quick"])["results"].values()
    assert set(rows) == set(engines.ENGINES)
