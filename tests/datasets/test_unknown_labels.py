"""Tables in which some labels are unknown, or soft."""

from __future__ import annotations

import numpy as np
import pytest
from label_tables import build, built, built_labels
from made_up import refuses

from maest.datasets.groundtruth import read_groundtruth
from maest.datasets.splitting import SPLITS

FLAGS = """path,rock,loud,tags,split
a.mp3,1,,x,train
b.mp3,0,1,x;rock,train
c.mp3,,NA,,train
d.mp3,1,0,x,val
e.mp3,,1,,test
"""
NAN = pytest.approx(np.nan, nan_ok=True)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--unknown", {"a": [NAN, 1], "b": [1, 0], "c": [NAN, NAN], "d": [0, 1], "e": [1, NAN]}),
        ("", {"a": [0, 1], "b": [1, 0], "c": [0, 0], "d": [0, 1], "e": [1, 0]}),
    ],
)
def test_blanks_are_unknown_if_asked_for(typed, expected):
    lines = build(FLAGS.replace("NA", "").replace("tags", "of"), *typed.split())
    assert built_labels() == ["loud", "rock"]
    assert built() == {f"{key}.mmap": row for key, row in expected.items()}
    dtypes = [read_groundtruth(f"out/groundtruth-{s}.pk").targets.dtype for s in SPLITS]
    assert dtypes == (["f4", "u1", "f4"] if typed else ["u1"] * 3)
    assert any("4 (40.0%) unknown" in line for line in lines) == bool(typed)
    assert sum("without a known label" in line for line in lines) == bool(typed)
    blank = next(line for line in lines if " cells were taken as " in line)
    assert ("4 cells" if typed else "4 blank cells") in blank


def test_texts_for_unknown_and_a_list_that_names_a_label():
    """Labels that a list names are positive, its other labels negative."""
    build(FLAGS, "--labels-column", "rock", "loud", "tags", "--unknown", "na", "?")
    assert built_labels() == ["loud", "rock", "x"]
    assert built() == {
        "a.mmap": [NAN, 1, 1],
        "b.mmap": [1, 1, 1],
        "c.mmap": [NAN, NAN, 0],
        "d.mmap": [0, 1, 1],
        "e.mmap": [1, NAN, 0],
    }


def test_soft_labels_of_columns_that_are_named():
    rows = "a,1.0,0.25,train\nb,.5,0,validation\nc,0,1e-3,test\n"
    text = f"path,rock,loud,split\n{rows}d,0.499,1,train\n"
    lines = build(text, "--labels-column", "rock", "loud")
    assert built_labels() == ["loud", "rock"]
    found = {key: pytest.approx(row) for key, row in built().items()}
    assert found == {"a": [0.25, 1], "b": [0, 0.5], "c": [1e-3, 0], "d": [1, 0.499]}
    assert any("of 8 targets 4 soft" in line for line in lines)
    with refuses("missing", "t.csv"):  # numbers that nobody called labels
        build(text.replace("d,0.499,1,", "d,0.499,0.1,"))


def test_too_few_positives_are_counted_from_half_on():
    text = "path,rock,loud,split\na,1,0.4,train\nb,0.5,1,validation\nc,1,1,test\n"
    build(text, "--labels-column", "rock", "loud", "--min-positives", 3)
    assert built_labels() == ["rock"]


@pytest.mark.parametrize(
    "typed", ["--task single-label --unknown", "--values-column rock --unknown"]
)
def test_single_labels_and_values_are_all_known(typed):
    with refuses("conflict", setting="--unknown"):
        build(FLAGS.replace("NA", "0"), *typed.split())
