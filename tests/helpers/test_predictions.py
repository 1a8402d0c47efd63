"""Predictions of a track as JSON, CSV, and a table for people."""

import json

import numpy as np
import pytest
from folders import rows
from made_up import refuses

from maest.helpers.files.atomic import read_failures, write_failures
from maest.helpers.results.predictions import (
    best,
    read_predictions,
    write_predictions,
    write_table,
)
from maest.helpers.results.terminal import table
from maest.helpers.results.tracks import TrackResult

LABELS = ["rock", "pop", "日本"]


def result(values, key: str = "a/song.mp3", hop: float = 30.0, warnings=()) -> TrackResult:
    """A track with a patch of 30 s for each row of values."""
    values = np.array(values, np.float32)
    start = hop * np.arange(len(values))
    times = np.stack((start, start + 15, start + 30), axis=1)
    track = TrackResult(key, 0, float(times[-1, 2]), times, warnings=list(warnings))
    track.activations, track.patch_activations = values.mean(axis=0), values
    return track


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.predictions.json"


def test_json_and_csv(path):
    track = result([[0.25, 0.5, 0.75], [1, 0.125, 0]], warnings=["silent", "0.1 s only"])
    write_predictions(path, track, LABELS, top=2)
    patches = [[("日本", 0.75), ("pop", 0.5)], [("rock", 1.0), ("pop", 0.125)]]

    def entries(pairs):
        return [{"label": label, "activation": value} for label, value in pairs]

    assert (
        json.loads(path.read_text("utf-8"))
        == read_predictions(path)
        == {
            "track": "a/song.mp3",
            "seconds": 60.0,
            "warnings": ["silent", "0.1 s only"],
            "task": "multi-label",
            "labels": entries([("rock", 0.625), ("日本", 0.375)]),
            "patches": [
                {"start": 0.0, "end": 30.0, "labels": entries(patches[0])},
                {"start": 30.0, "end": 60.0, "labels": entries(patches[1])},
            ],
        }
    )
    assert path.with_suffix(".csv").read_text("utf-8").splitlines() == [
        "scope,start,end,rank,label,activation,warnings",
        "track,0.000,60.000,1,rock,0.625000,silent; 0.1 s only",
        "track,0.000,60.000,2,日本,0.375000,silent; 0.1 s only",
        "patch,0.000,30.000,1,日本,0.750000,",
        "patch,0.000,30.000,2,pop,0.500000,",
        "patch,30.000,60.000,1,rock,1.000000,",
        "patch,30.000,60.000,2,pop,0.125000,",
    ]
    assert len(list(path.parent.iterdir())) == 2


def test_files_of_version_0_1_have_no_warnings(path):
    write_predictions(path, result([[0.1, 0.9]]), ["a", "b"], top=1)
    old = json.loads(path.read_text("utf-8"))
    del old["warnings"]
    path.write_text(json.dumps(old), "utf-8")
    assert read_predictions(path)["warnings"] == []


def test_regression_keeps_all_targets_in_their_order(path):
    write_predictions(path, result([[-3, 40, 0.5]]), ["a", "b", "c"], top=1, task="regression")
    found = read_predictions(path)
    values = {"a": -3.0, "b": 40.0, "c": 0.5}
    assert found["labels"] == [{"label": name, "value": v} for name, v in values.items()]
    assert [float(row["value"]) for row in rows(path.with_suffix(".csv"))[:3]] == [-3, 40, 0.5]
    assert "█" not in table(found)


def test_best_is_the_same_each_time_for_equal_activations():
    assert best(np.array([0.5, 0.7, 0.5, 0.7]), 3, "single-label").tolist() == [1, 3, 0]
    assert best(np.array([0.5, 0.7]), 10, "multi-label").tolist() == [1, 0]


@pytest.mark.parametrize("key", ["caf\udce9.mp3", 'two\nlines,"quoted"\r.mp3', "日本.mp3"])
@pytest.mark.parametrize("labels", [["a\udce9", "b\ud800", 'c,"\n'], None])
def test_any_key_and_label(tmp_path, key, labels):
    path = tmp_path / f"{key}.predictions.json"
    write_predictions(path, result([[0.9, 0.8, 0.7]], key), labels, top=3)
    assert read_predictions(path)["track"] == key.replace("\udce9", "\\udce9")
    names = ["a\\udce9", "b\\ud800", 'c,"\n'] if labels else ["label 0", "label 1", "label 2"]
    assert [row["label"] for row in rows(path.with_suffix(".csv"))][:3] == names
    assert all(line.isprintable() for line in table(read_predictions(path)).splitlines())
    assert write_table(tmp_path / "all.csv", tmp_path, [key])
    assert rows(tmp_path / "all.csv")[0]["track"] == key


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"{", b"\xff\xfe", b"[]", b"{}"),
        b'{"task": "multi-label"}',
        b'{"track": "x", "seconds": 1, "task": "multi-label", "labels": [{}], "patches": []}',
        b'{"track": "x", "seconds": 1, "task": "multi-label", "labels": [], "patches": [{}]}',
    ],
)
def test_damaged_json(path, content):
    if content is not None:
        path.write_bytes(content)
    with refuses("missing" if content is None else "corrupt", path.name):
        read_predictions(path)


def test_table_of_a_folder(tmp_path):
    for key, values in (("b/2", [0.1, 0.9]), ("a", [0.8, 0.2]), ("b/1", [0.5, 0.4])):
        track = result([values], warnings=["silent"] * (key == "a"))
        write_predictions(tmp_path / f"{key}.predictions.json", track, ["x", "y"], top=5)
    (tmp_path / "damaged.predictions.json").write_text("{")
    write_predictions(tmp_path / "c.predictions.json", result([[1.0]]), ["x"], top=5)
    keys = ["none", "nul\0", "damaged", "a", "b/1", "c", "b/2"]
    assert write_table(tmp_path / "all.csv", tmp_path, keys)
    assert (tmp_path / "all.csv").read_text().splitlines() == [
        "track,seconds,label_1,activation_1,label_2,activation_2,warnings",
        "a,30.000,x,0.800000,y,0.200000,silent",
        "b/1,30.000,x,0.500000,y,0.400000,",
        "b/2,30.000,y,0.900000,x,0.100000,",
    ]
    assert not write_table(tmp_path / "no.csv", tmp_path, ["none"])
    assert (tmp_path / "no.csv").read_text().splitlines() == ["track,seconds,warnings"]


def test_table_for_people(path):
    track = result([[0.25, 0.5, 0.75], [1, 0.125, 0]], warnings=["silent"])
    write_predictions(path, track, LABELS, top=3)
    head, warning, *rest = table(read_predictions(path)).splitlines()
    assert head == "1:00  a/song.mp3"
    assert "silent" in warning
    assert rest == [
        "",
        "  rock  0.625  ████████████········",
        "  日本  0.375  ████████············",
        "  pop   0.312  ██████··············",
        "",
        "  0:00–0:30  日本 0.75  pop 0.50  rock 0.25",
        "  0:30–1:00  rock 1.00  pop 0.12  日本 0.00",
    ]


@pytest.mark.parametrize("width", [10, 40, 60, 100])
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_table_is_no_wider_than_asked_for(path, width, task):
    labels = ["Electronic---Deep House " * 3, "é" * 90, "z\x1b[31m"]
    values = np.tile([[0.25, 0.5, 0.75]], (70, 1)) * (1e6 if task == "regression" else 1)
    write_predictions(path, result(values, "k" * 200, hop=0.5), labels, top=3, task=task)
    lines = table(read_predictions(path), width).splitlines()
    assert max(map(len, lines)) <= max(width, 40)
    assert lines[6].startswith("  0:00.0–0:30.0  ")
    assert lines[-2].startswith("  0:29.5–0:59.5  ")
    assert len(lines) == 67


def test_table_of_hours_keeps_the_style_of_a_long_label(path):
    labels = ["Electronic---Deep House of the sea"]
    write_predictions(path, result([[0.9]] * 2, hop=3600), labels, top=1)
    lines = table(read_predictions(path), 60).splitlines()
    assert lines[0].startswith("1:00:30  ")
    assert [line.split()[0] for line in lines[-2:]] == ["0:00–0:30", "1:00:00–1:00:30"]
    assert lines[-1].split(maxsplit=1)[1].startswith("Deep ")


def test_failures_come_back_as_they_were(tmp_path):
    failed = {'b\n\r,"': "two\nlines", "a\udcff": "x", "日本": "", "  ": "\udcfe"}
    path = tmp_path / "new" / "failed.csv"
    assert write_failures(path, failed) == path
    assert read_failures(path) == failed
    assert path.read_bytes().startswith(b'key,reason\r\n  ,\xfe\r\na\xff,x\r\n"b\n')
    assert write_failures(path, {"n\ud800": "lone"}, "path") == path
    assert (read_failures(path, "path"), read_failures(path)) == ({"n\\ud800": "lone"}, {})
    for _ in range(2):
        assert write_failures(path, {}) is None
        assert not path.exists()
    assert read_failures(path) == {}
