"""Ground truth: what is read, what is refused by name, and what `show` prints of it."""

import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from made_up import refuses
from pickles import PROTOCOLS

from maest.datasets import groundtruth as gt
from maest.datasets.groundtruth import (
    GroundTruth,
    check_disjoint,
    check_targets,
    read_groundtruth,
    read_labels,
    write_groundtruth,
    write_labels,
)
from maest.datasets.groundtruth_command import main
from maest.helpers.errors import InputError
from maest.models.sizes import TASKS

SCRIPT = Path(gt.__file__)


NAN = float("nan")
LABELS = [
    *([1, 0, 1], (1, 0, 1), [1.0, 0.0, True], [np.int64(1), np.float32(0), np.bool_(1)]),
    *(np.array([1, 0, 1], dtype) for dtype in ["?", "u1", "i8", "f2", "f8", ">f4"]),
    np.array([1, 9, 0, 9, 1])[::2],
]
SOFT = [
    *([0.5, 0, NAN], (0.5, False, NAN), [np.float32(0.5), np.int64(0), NAN]),
    *(np.array([0.5, 0, NAN], dtype) for dtype in ["f2", "f4", "f8", ">f4"]),
]
ONE_LABEL = [[0, 1, 0], np.array([0, 1.0, 0]), (False, True, False)]
VALUES = [
    *([0.5, -3.0], (0.5, -3.0), [np.float32(0.5), np.int64(-3)]),
    *(np.array([0.5, -3.0], dtype) for dtype in ["f2", "f4", "f8", ">f4"]),
    np.array([0.5, 9, -3.0])[::2],
]
ONE_VALUE = [120.5, np.float64(120.5), np.float32(120.5), [120.5]]
GOOD = [
    ("multi-label", LABELS, [1, 0, 1], np.uint8),
    ("multi-label", SOFT, [0.5, 0, NAN], np.float32),
    ("multi-label", [*LABELS, [1, 0, 1.0]], [1, 0, 1], np.uint8),
    ("single-label", ONE_LABEL, [0, 1, 0], np.uint8),
    ("regression", VALUES, [0.5, -3.0], np.float32),
    ("regression", ONE_VALUE, [120.5], np.float32),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("task", "values", "row", "dtype"), GOOD)
def test_every_way_to_write_targets(file, protocol, task, values, row, dtype):
    path = file({f"a/{i}.mmap": value for i, value in enumerate(values)}, protocol)
    groundtruth = read_groundtruth(path, task)
    assert (groundtruth.path, groundtruth.task) == (path, task)
    assert groundtruth.keys == [f"a/{i}.mmap" for i in range(len(values))]
    assert groundtruth.targets.dtype == dtype
    np.testing.assert_array_equal(groundtruth.targets, [row] * len(values))


def test_the_tasks_are_the_networks():
    assert gt.TASKS == TASKS


MISFITS = [[0, 1, 0], [], "01", b"\x00\x01", None, {"x": 1}, [0, "1"], [0, None], [[0], [1]]]
MISFITS += [np.zeros((1, 2)), np.array(1), np.array([np.inf, 0]), [0, 10**400]]
NO_LABELS = [[0, 2], (0, -1), [0.5, 1.1], np.array([0, 2]), np.array([-0.1, 0], "f4"), 1]
NOT_SURE = [[0, np.nan], [0.5, 1], np.array([0.1, 0], "f4")]
NOT_ONE_LABEL = [[0, 0], [1, 1], np.ones(2), np.zeros(2, bool)]
NO_VALUES = [[0.5, 1e39], [0.5, 1j], [0.5], 1.0]  # 1e39 is infinite as float32
BAD = [
    *(("multi-label", value) for value in MISFITS + NO_LABELS),
    *(("single-label", value) for value in MISFITS + NO_LABELS + NOT_SURE + NOT_ONE_LABEL),
    *(("regression", value) for value in [*MISFITS, NOT_SURE[0], *NO_VALUES]),
]


@pytest.mark.parametrize(("task", "value"), BAD)
def test_bad_targets_are_neither_written_nor_read(file, tmp_path, task, value):
    rows = {"first": [0, 1], "folder/second.mmap": value}
    with refuses("invalid", "new.pk") as error:
        write_groundtruth(tmp_path / "new.pk", rows, task)
    assert "'folder/second.mmap'" in error.value.message
    assert not (tmp_path / "new.pk").exists()
    with pytest.raises(InputError) as error:  # some are refused while they are read
        read_groundtruth(file(rows), task)
    assert error.value.path == tmp_path / "gt.pk"


BAD_KEYS = [
    *("", "/etc/passwd", "C:/a", "c:a", "..", "../a", "a/../../b", "./../a", "a\0b", "a\\b"),
    *("..\\a", "\\\\host\\a", "//host/a", ".", "a/..", "a/", 7, None, b"a", "x" * 10**5 + "/"),
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_bad_keys(file, key):
    with refuses("invalid", "gt.pk") as error:
        read_groundtruth(file({"good": [0, 1], key: [0, 1]}))
    assert repr(key)[:9] in error.value.message
    assert len(str(error.value)) < 500


def test_good_keys(file):
    keys = ["a..b", "..a/b", "a/./b", "a/../c", "é/ü.mmap", "a b", "ab:c", "…"]
    assert read_groundtruth(file({key: [0, 1] for key in keys})).keys == keys


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"a/b": [0], "c": [1], "a/./b": [0]}, "conflict"),  # one track
        ({}, "empty"),
        *((content, "invalid") for content in ([], [("a", [1])], "text", None, np.zeros(3))),
    ],
)
def test_other_content_is_refused(file, content, kind):
    with refuses(kind, "gt.pk"):
        read_groundtruth(file(content))


def test_an_unknown_task(file):
    with refuses("unknown", setting="task"):
        read_groundtruth(file({"a": [1]}), "tagging")


@pytest.mark.parametrize("task", TASKS)
def test_round_trip(tmp_path, task):
    path, draw = tmp_path / "new" / "gt.pk", np.random.default_rng(0).standard_normal((20, 7))
    targets = {"multi-label": draw > 0.3, "regression": draw.astype(np.float32)}.get(
        task, draw == draw.max(axis=1, keepdims=True)
    )
    write_groundtruth(path, {f"{i % 3}/ü{i}.mmap": row for i, row in enumerate(targets)}, task)
    groundtruth = read_groundtruth(path, task)
    assert groundtruth.keys == [f"{i % 3}/ü{i}.mmap" for i in range(20)]
    np.testing.assert_array_equal(groundtruth.targets, targets)
    assert {row.dtype for row in pickle.loads(path.read_bytes()).values()} == {targets.dtype}
    before = path.stat().st_mtime_ns
    write_groundtruth(path, dict(zip(groundtruth.keys, groundtruth.targets, strict=True)), task)
    assert path.stat().st_mtime_ns == before  # equal, so it stays


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "gt.pk"
    write_groundtruth(path, {"a": [1, 0]})

    def fail(temporary, content):
        with temporary.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_groundtruth(path, {"b": [1, 0]})
    assert read_groundtruth(path).keys == ["a"]
    assert list(tmp_path.iterdir()) == [path]


def test_disjoint():
    def split(*keys):
        return GroundTruth(Path(f"{keys[0]}.pk"), list(keys), np.zeros((len(keys), 1), np.uint8))

    check_disjoint()
    check_disjoint(split("a", "b"), split("c"), split("d"))
    with refuses("conflict", "d.pk"):
        check_disjoint(split("a", "x/b"), split("c"), split("d", "x/./b"))


def test_labels_round_trip(tmp_path):
    path, names = tmp_path / "labels.json", ["Folk---Jig", "Rock", "ü"]
    write_labels(path, iter(names))
    with refuses("conflict", "labels.json"):
        write_labels(path, ["a", "b", "a"])
    assert read_labels(path) == names


BAD_LABELS = ["[" * 10**5, '{"a": 0}', '["a", " "]', "[1]", "[[1], [1]]", "[brackets]\nrock\n"]
BAD_LABELS += ["rock\n\njazz\n", "rock\0", "\x89PNG", "Müsette"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        *((content.encode("latin-1"), "invalid") for content in BAD_LABELS),
        *((content, "empty") for content in (b"", b" \n\n", b"[]")),
        *((content, "conflict") for content in (b'["a", "a"]', b"rock\njazz\nrock")),
        ("Müsette\nWalzer\n".encode("utf-16"), "invalid"),
        (pickle.dumps(["a", "b"]), "invalid"),
    ],
    ids=range(len(BAD_LABELS) + 7),
)
def test_bad_labels_file(tmp_path, content, kind):
    (tmp_path / "labels.json").write_bytes(content)
    with refuses(kind, "labels.json"):
        read_labels(tmp_path / "labels.json")


def test_no_labels_file(tmp_path):
    for path, kind in ((tmp_path / "none.json", "missing"), (tmp_path, "access")):
        with refuses(kind, path.name):
            read_labels(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n", "\n \n\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_as_text(tmp_path, end, encoding):
    path = tmp_path / "labels.txt"
    names = ["Folk, World---Jig", "  Rock & Roll", "ü [live]", "{x}", "a\u2028b"]
    path.write_bytes((("\r\n" if "\r" in end else "\n").join(names) + end).encode(encoding))
    assert read_labels(path) == [name.strip() for name in names]
    path.write_bytes('["a", "ü"]'.encode(encoding))
    assert read_labels(path) == ["a", "ü"]


def test_tracks_without_a_known_label_are_for_training_left_out_alone(tmp_path, caplog):
    path, rows = tmp_path / "gt.pk", {"a": [NAN, NAN], "b": [NAN, 0.2], "c": [1, 0]}
    write_groundtruth(path, rows)
    assert gt.read_any_groundtruth(path).keys == ["a", "b", "c"]  # to predict
    paths = {"val": path}
    whole = gt.read_splits(paths, "multi-label", "data", whole=["val"])["val"]
    assert whole.keys == ["a", "b", "c"]
    found = gt.read_splits(paths, "multi-label", "data")["val"]
    assert (found.keys, found.counts().tolist()) == (["b", "c"], [1, 0])
    np.testing.assert_array_equal(found.targets, np.array([rows["b"], rows["c"]], np.float32))
    assert len(caplog.records) == 1
    write_groundtruth(path, {name: rows[name] for name in ("b", "c")})
    assert gt.read_splits(paths, "multi-label", "data")["val"].keys == ["b", "c"]
    assert len(caplog.records) == 1  # none is left out


@pytest.fixture
def show(tmp_path, capsys):
    """Run `show gt.pk` with more arguments; give its lines, with single spaces."""

    def run(*more: object) -> list[str]:
        assert main(["show", str(tmp_path / "gt.pk"), *map(str, more)]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


def test_show_as_a_script_of_any_folder(tmp_path):
    """A closed pipe (head) ends it silently."""
    write_groundtruth(tmp_path / "gt.pk", {f"{i}": np.zeros(20000, bool) for i in range(2)})
    command = f"{sys.executable} {SCRIPT} show gt.pk | head -n 1"
    result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert (result.stdout, result.stderr) == (b"gt.pk\n", b"")


def test_show_labels(tmp_path, show):
    rows = {"a/1.mmap": [1, 1, 0], "a/2.mmap": [0, 0, 0], "a/3.mmap": [0, 1, 0]}
    write_groundtruth(tmp_path / "gt.pk", rows)
    assert "'a/1.mmap': label 0, label 1" in show()
    write_labels(tmp_path / "labels.json", ["jig", "reel", "mass"])
    lines = show("--first", 2)
    expected = {"tracks 3", "labels 3", "tracks without labels 1", "2 reel", "0 mass"}
    expected |= {"labels per clip min 0, mean 1.00, max 2", "'a/1.mmap': jig, reel"}
    assert expected | {"'a/2.mmap': (no label)"} <= set(lines)
    assert not any("a/3.mmap" in line for line in lines)


def test_show_soft_and_unknown_labels(tmp_path, show):
    rows = {"a": [1, 0.5, NAN], "b": [0, 0.4, NAN], "c": [NAN, NAN, NAN], "d": [0, 0, 1]}
    write_groundtruth(tmp_path / "gt.pk", rows)
    lines = show()
    expected = {"tracks 4", "tracks without labels 1", "labels per clip min 0, mean 0.75, max 2"}
    expected |= {"1 of 3 label 0", "1 of 3 label 1", "1 of 1 label 2"}
    expected |= {"'a': label 0, label 1 0.5 (1 unknown)", "'b': label 1 0.4 (1 unknown)"}
    assert expected | {"'c': (no label) (3 unknown)", "'d': label 2"} <= set(lines)
    assert any("5 (41.7%) unknown and 2 soft" in line for line in lines)
    assert any(line.startswith("tracks without a known label 1") for line in lines)


def test_show_values(tmp_path, show):
    rows = {"a": [60, 0.25], "b": [180, -0.5]}
    write_groundtruth(tmp_path / "gt.pk", rows, task="regression")
    lines = show("--task", "regression")
    expected = {"tracks 2", "values per track 2", "60 120 180 60 value 0", "'b': 180, -0.5"}
    assert expected <= set(lines)
    write_labels(tmp_path / "labels.json", ["tempo", "valence"])
    lines = show("--task", "regression", "--first", 0)
    assert "-0.5 -0.125 0.25 0.375 valence" in lines
    assert not any("'b'" in line for line in lines)


def test_show_with_labels_that_do_not_fit(tmp_path, show, capsys):
    write_groundtruth(tmp_path / "gt.pk", {"a": [1, 0]})
    labels = tmp_path / "labels.json"
    write_labels(labels, ["one"])
    assert show()[-1].startswith(f"{labels}: ")
    assert main(["show", str(tmp_path / "gt.pk"), "--labels", str(labels)]) == 1
    assert f"--labels: {labels}: " in capsys.readouterr().err


def test_show_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "bad.pk").write_bytes(b"cposix\nsystem\n.")
    for name in ("bad.pk", "none.pk", ""):
        assert main(["show", str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert str(tmp_path / name) in captured.err


@pytest.mark.parametrize(("path", "place"), [(None, None), ("none.pk", "none.pk")])
def test_a_ground_truth_that_is_not_given_or_not_there(path, place):
    with refuses("missing", place, "datamodule.groundtruth_train"):
        gt.check_given(path, "datamodule.groundtruth_train")


@pytest.mark.parametrize(
    ("split", "task", "values", "enough"),
    [
        ("train", "multi-label", [[0, 0], [0, 0]], False),
        ("train", "multi-label", [[0, 1], [0, 1]], True),
        ("train", "regression", [[0.0], [0.0]], True),
        ("validation", "multi-label", [[0, 1], [0, 1]], False),  # each is on all or on none
        ("validation", "multi-label", [[0, 1], [0, 0]], True),
        ("test", "multi-label", [[1, 1], [1, 1]], False),
        ("test", "multi-label", [[0, 0], [0, 0]], False),
        ("test", "regression", [[2.0], [2.0]], False),
        ("test", "regression", [[2.0], [1.0]], True),
        ("test", "regression", [[1.0], [2.0]], True),
    ],
)
def test_targets_that_leave_nothing_to_learn_or_to_score(tmp_path, split, task, values, enough):
    path = tmp_path / "groundtruth.pk"
    write_groundtruth(path, {f"{i}.mmap": np.array(row) for i, row in enumerate(values)}, task)
    groundtruth = read_groundtruth(path, task)
    with nullcontext() if enough else refuses("empty", setting="a.setting"):
        check_targets(groundtruth, split, "a.setting")
