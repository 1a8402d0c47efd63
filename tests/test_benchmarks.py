"""The other benchmarks: small trials, whose figures are not looked at for speed."""

from __future__ import annotations

import loading
import loading_models
import preprocessing
import probe
import pytest

import training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STORE = {"tracks": 8, "track-seconds": 20, "clips": 48, "workers": 1, "clip-seconds": 5}


def test_training_steps():
    ways = training.main(["--quick"])["lengths"]["5 s"]["ways"]
    assert set(ways) == set(training.WAYS)
    assert ways["ours"]["tokens"] < ways["AST"]["tokens"]
    assert all(0 < row["utilisation"] < 3 for row in ways.values())


def test_loading():
    record = loading.main(["--quick", *(f"--{name}={value}" for name, value in STORE.items())])
    assert [row["case"].split(",")[0] for row in record["median"]] == ["warm", "cold"]
    memory = record["private_mib_after_each_epoch"]["ours"]
    assert len(memory["main"]) == loading.EPOCHS


def test_loading_models():
    rows = loading_models.main(["--quick"])["median"]
    assert set(rows) == set(loading_models.FILES)
    assert all(row["seconds"] > 0 for row in rows.values())


def test_preprocessing():
    record = preprocessing.main(["--quick"])
    assert max(record["largest_difference_bands_0_to_84"].values()) < 0.02
    assert len(record["results"]) == 6


def test_probes():
    rows = probe.main(["--quick"])["median"]
    assert rows["ours, sweep"]["probes"] == 2 * 7 * 3
