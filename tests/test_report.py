"""What a person reads at the end: tables, curves and bars."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maest.experiments import demo
from maest.helpers import plots
from maest.helpers.report import pretraining_table, probe_table, table

PRETRAINING = {
    "epochs": [
        {"epoch": 1, "train_loss": 0.5, "val_ap": 0.25, "val_roc_auc": 0.5, "val_loss": 0.6},
        {"epoch": 2, "train_loss": 0.4},  # an epoch without validation
        {"epoch": 3, "train_loss": 0.3, "val_ap": 0.75, "val_roc_auc": 0.875, "val_loss": 0.4},
    ],
    "val_ap": 0.75,
    "val_roc_auc": 0.875,
    "val_tracks": 11,
    "best_epoch": 3,
    "best_steps": 30,
    "steps": 30,
    "chance": {"ap": 0.25, "roc_auc": 0.5},
    "label_frequencies": {"ap": 0.2, "roc_auc": 0.5},
}


def probe(name: str, ap: float) -> dict:
    figure = {"mean": ap, "std": 0.01, "values": [ap - 0.01, ap, ap + 0.01]}
    return {
        "name": name,
        "ap": figure,
        "roc_auc": figure,
        "chance": {"ap": 0.1, "roc_auc": 0.5},
        "tracks": {"train": 3, "val": 4, "test": 5},
        "per_label": [
            {"label": "Harp", "ap": figure, "roc_auc": figure, "positives": 3},
            {"label": "Horn", "ap": None, "roc_auc": None, "positives": 0},
        ],
    }


def test_table_lines_up():
    lines = table(["a", "bb"], [["long", "1"], ["x", "22.5"]]).splitlines()
    assert lines == ["| a    |   bb |", "|------|-----:|", "| long |    1 |", "| x    | 22.5 |"]


def test_pretraining_table():
    text = pretraining_table(PRETRAINING)
    assert "epoch 1 " in text
    assert "epoch 2" not in text
    (kept,) = (line for line in text.splitlines() if "(kept)" in line)
    assert [cell.strip() for cell in kept.split("|")[1:-1]] == [
        *("epoch 3 (kept)", "0.3000", "0.7500", "0.8750"),
    ]
    assert "| chance: random scores " in text
    assert "0.2500" in text.splitlines()[-1]


def test_probe_table():
    lines = probe_table([probe("(a)", 0.5), probe("(b)", 0.25)]).splitlines()
    assert "0.5000 ± 0.0100" in lines[2]
    assert "0.2500 ± 0.0100" in lines[3]
    assert "0.1000" in lines[4]


def test_demo_report_pictures_and_record(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "OUT", tmp_path)
    probes = [probe("(a)", 0.5), probe("(b)", 0.25)]
    text = demo.report(PRETRAINING, probes)
    assert "3.8 times the label frequencies, and 3.0\ntimes random scores" in text
    assert "5 test clips of unseen works, 3 seeds" in text
    for picture in demo.draw(PRETRAINING, probes):
        assert picture.read_bytes().startswith(b"\x89PNG")
    record = demo.record({"ex_maest.py": 1.5, "ex_tl.py": 2.0}, PRETRAINING, probes)
    assert record["seconds"]["total"] == 3.5
    assert record["machine"]["cores"]
    assert [row["name"] for row in record["probes"]] == ["(a)", "(b)"]
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("values", [[0.5, 0.25], [np.nan, np.nan]])
def test_bars_with_gaps(tmp_path, values):
    path = plots.label_bars(tmp_path / "a.png", ["x", "y"], {"one": values}, "t", {"one": [0, 0]})
    assert path.read_bytes().startswith(b"\x89PNG")
