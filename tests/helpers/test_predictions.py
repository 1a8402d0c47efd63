"""What is predicted of a track: JSON, CSV, and a table for people."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import read_failures, write_failures
from maest.helpers.results.predictions import (
    best,
    read_predictions,
    table,
    write_predictions,
    write_table,
)
from maest.helpers.results.tracks import TrackResult

LABELS = ["rock", "pop", "日本"]


def result(values, key: str = "a/song.mp3", hop: float = 30.0) -> TrackResult:
    """A track with a patch of 30 s for each row of values."""
    values = np.array(values, np.float32)
    start = hop * np.arange(len(values))
    times = np.stack((start, start + 15, start + 30), axis=1)
    seconds = float(times[-1, 2])
    return TrackResult(
        *(key, 0, seconds, times), activations=values.mean(axis=0), patch_activations=values
    )


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_json_and_csv(tmp_path):
    path = tmp_path / "a" / "song.mp3.predictions.json"
    write_predictions(path, result([[0.25, 0.5, 0.75], [1, 0.125, 0]]), LABELS, top=2)
    assert json.loads(path.read_text("utf-8")) == {
        "track": "a/song.mp3",
        "seconds": 60.0,
        "warnings": [],
        "task": "multi-label",
        "labels": [
            {"label": "rock", "activation": 0.625},
            {"label": "日本", "activation": 0.375},
        ],
        "patches": [
            {
                "start": 0.0,
                "end": 30.0,
                "labels": [
                    {"label": "日本", "activation": 0.75},
                    {"label": "pop", "activation": 0.5},
                ],
            },
            {
                "start": 30.0,
                "end": 60.0,
                "labels": [
                    {"label": "rock", "activation": 1.0},
                    {"label": "pop", "activation": 0.125},
                ],
            },
        ],
    }
    assert read_predictions(path)["track"] == "a/song.mp3"
    assert path.with_suffix(".csv").read_text("utf-8").splitlines() == [
        "scope,start,end,rank,label,activation,warnings",
        "track,0.000,60.000,1,rock,0.625000,",
        "track,0.000,60.000,2,日本,0.375000,",
        "patch,0.000,30.000,1,日本,0.750000,",
        "patch,0.000,30.000,2,pop,0.500000,",
        "patch,30.000,60.000,1,rock,1.000000,",
        "patch,30.000,60.000,2,pop,0.125000,",
    ]
    assert len(list(path.parent.iterdir())) == 2


def test_warnings(tmp_path):
    path, found = tmp_path / "x.predictions.json", result([[0.1, 0.9]], "x")
    found.warnings = ["silent", "0.1 s only"]
    write_predictions(path, found, ["a", "b"], top=1)
    write_predictions(tmp_path / "y.predictions.json", result([[0.1, 0.9]], "y"), ["a", "b"], top=1)
    prediction = read_predictions(path)
    assert prediction["warnings"] == ["silent", "0.1 s only"]
    beside = [row["warnings"] for row in rows(path.with_suffix(".csv"))]
    assert beside == ["silent; 0.1 s only", ""]  # the track's row, the patch's
    assert write_table(tmp_path / "tracks.csv", tmp_path, ["x", "y"])
    assert [row["warnings"] for row in rows(tmp_path / "tracks.csv")] == ["silent; 0.1 s only", ""]
    shown = table(prediction).splitlines()
    assert "silent" in shown[1]
    assert "0.1 s only" in shown[2]


def test_files_of_version_0_1_have_no_warnings(tmp_path):
    path = tmp_path / "x.predictions.json"
    write_predictions(path, result([[0.1, 0.9]]), ["a", "b"], top=1)
    old = json.loads(path.read_text("utf-8"))
    del old["warnings"]
    path.write_text(json.dumps(old), "utf-8")
    assert read_predictions(path)["warnings"] == []


def test_regression_keeps_all_targets_in_their_order(tmp_path):
    path = tmp_path / "x.predictions.json"
    write_predictions(path, result([[-3, 40, 0.5]]), ["a", "b", "c"], top=1, task="regression")
    found = read_predictions(path)
    assert found["labels"] == [
        {"label": "a", "value": -3.0},
        {"label": "b", "value": 40.0},
        {"label": "c", "value": 0.5},
    ]
    assert [row["value"] for row in rows(path.with_suffix(".csv"))][:2] == [
        "-3.000000",
        "40.000000",
    ]
    assert "    -3" in table(found)
    assert "█" not in table(found)


def test_best_is_the_same_each_time_for_equal_activations():
    assert best(np.array([0.5, 0.7, 0.5, 0.7]), 3, "single-label").tolist() == [1, 3, 0]
    assert best(np.array([0.5, 0.7]), 10, "multi-label").tolist() == [1, 0]


def test_labels_without_names(tmp_path):
    path = tmp_path / "x.predictions.json"
    write_predictions(path, result([[0.1, 0.9]]), None, top=1)
    assert read_predictions(path)["labels"] == [{"label": "label 1", "activation": 0.9}]


@pytest.mark.parametrize("key", ["caf\udce9.mp3", 'two\nlines,"quoted"\r.mp3', "日本.mp3"])
def test_any_key_and_label(tmp_path, key):
    path = tmp_path / f"{key}.predictions.json"
    labels = ["a\udce9", "b\ud800", 'c,"\n']
    write_predictions(path, result([[0.9, 0.8, 0.7]], key), labels, top=3)
    escaped = key.replace("\udce9", "\\udce9")
    assert json.loads(path.read_bytes().decode("utf-8"))["track"] == escaped
    assert [row["label"] for row in rows(path.with_suffix(".csv"))][:3] == [
        "a\\udce9",
        "b\\ud800",
        'c,"\n',
    ]
    lines = table(read_predictions(path)).splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith("0:30  ")
    assert write_table(tmp_path / "all.csv", tmp_path, [key])
    assert rows(tmp_path / "all.csv")[0]["track"] == key


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"\xff", b"[]", b'{"track": "x"}'),
        b'{"track": "x", "task": "multi-label", "seconds": 1, "labels": [{}], "patches": []}',
        b'{"track": "x", "task": "multi-label", "seconds": 1, "labels": [], "patches": [{}]}',
    ],
)
def test_damaged_json(tmp_path, content):
    path = tmp_path / "x.predictions.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_predictions(path)
    assert error.value.path == path
    assert error.value.kind == ("missing" if content is None else "corrupt")


def test_table_of_a_folder(tmp_path):
    for key, values in (("b/2", [0.1, 0.9]), ("a", [0.8, 0.2]), ("b/1", [0.5, 0.4])):
        write_predictions(tmp_path / f"{key}.predictions.json", result([values]), ["x", "y"], top=5)
    (tmp_path / "damaged.predictions.json").write_text("{")
    write_predictions(tmp_path / "c.predictions.json", result([[1.0]]), ["x"], top=5)
    keys = ["none", "nul\0", "damaged", "a", "b/1", "c", "b/2"]
    assert write_table(tmp_path / "all.csv", tmp_path, keys)
    assert (tmp_path / "all.csv").read_text().splitlines() == [
        "track,seconds,label_1,activation_1,label_2,activation_2,warnings",
        "a,30.000,x,0.800000,y,0.200000,",
        "b/1,30.000,x,0.500000,y,0.400000,",
        "b/2,30.000,y,0.900000,x,0.100000,",
    ]
    assert not write_table(tmp_path / "no.csv", tmp_path, ["none"])
    assert (tmp_path / "no.csv").read_text().splitlines() == ["track,seconds,warnings"]


def test_table_for_people(tmp_path):
    path = tmp_path / "x.predictions.json"
    write_predictions(path, result([[0.25, 0.5, 0.75], [1, 0.125, 0]]), LABELS, top=3)
    assert table(read_predictions(path)).splitlines() == [
        "1:00  a/song.mp3",
        "",
        "  rock  0.625  ████████████········",
        "  日本  0.375  ████████············",
        "  pop   0.312  ██████··············",
        "",
        "  0:00–0:30  日本 0.75  pop 0.50   rock 0.25",
        "  0:30–1:00  rock 1.00  pop 0.12   日本 0.00",
    ]


@pytest.mark.parametrize("width", [10, 40, 60, 100])
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_table_is_no_wider_than_asked_for(tmp_path, width, task):
    path = tmp_path / "x.predictions.json"
    labels = ["Electronic---Deep House " * 3, "é" * 90, "z\x1b[31m"]
    values = np.tile([[0.25, 0.5, 0.75]], (70, 1)) * (1e6 if task == "regression" else 1)
    write_predictions(path, result(values, "k" * 200, hop=0.5), labels, top=3, task=task)
    lines = table(read_predictions(path), width).splitlines()
    assert max(map(len, lines)) <= max(width, 40)
    assert lines[6].startswith("  0:00.0–0:30.0  ")
    assert lines[-2].startswith("  0:29.5–0:59.5  ")
    assert lines[-1].startswith("  … and 10 more patches")
    assert len(lines) == 67


def test_table_keeps_the_style_of_a_long_label(tmp_path):
    path = tmp_path / "x.predictions.json"
    write_predictions(path, result([[0.9]]), ["Electronic---Deep House of the sea"], top=1)
    assert "  0:00–0:30  Deep House of t… 0.90" in table(read_predictions(path)).splitlines()


def test_hours(tmp_path):
    path = tmp_path / "x.predictions.json"
    write_predictions(path, result([[0.9]] * 2, hop=3600), ["x"], top=1)
    lines = table(read_predictions(path)).splitlines()
    assert lines[0].startswith("1:00:30  ")
    assert lines[-1].startswith("  1:00:00–1:00:30  ")
    assert lines[-2].startswith("        0:00–0:30  ")


# ---- the list of failures ------------------------------------------------------------------------


def test_failures_come_back_as_they_were(tmp_path):
    failed = {'b\n\r,"': "two\nlines", "a\udcff": "x", "日本": "", "  ": "\udcfe"}
    path = tmp_path / "new" / "failed.csv"
    assert write_failures(path, failed) == path
    assert read_failures(path) == failed
    assert path.read_bytes().startswith(b'key,reason\r\n  ,\xfe\r\na\xff,x\r\n"b\n')
    assert write_failures(path, {"n\ud800": "lone"}, "path") == path
    assert read_failures(path, "path") == {"n\\ud800": "lone"}
    assert read_failures(path) == {}
    assert write_failures(path, {}) is None
    assert read_failures(path) == {}
    assert os.listdir(path.parent) == []
    assert write_failures(path, {}) is None
