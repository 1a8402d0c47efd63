"""Ground truth: what is let in, what is refused by name, and that nothing refused ever runs."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maest.datasets import groundtruth as gt
from maest.datasets.groundtruth import (
    GroundTruth,
    check_disjoint,
    read_groundtruth,
    read_labels,
    write_groundtruth,
    write_labels,
)
from maest.datasets.groundtruth_command import main
from maest.helpers.errors import InputError
from maest.models.sizes import TASKS

PROTOCOLS = range(6)
SCRIPT = Path(gt.__file__)


def save(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.fixture
def file(tmp_path):
    """Write a value (or raw bytes) as a pickle; give its path."""
    return lambda value, protocol=4: save(tmp_path / "gt.pk", value, protocol)


class Payload:
    """Unpickled by ``pickle.load``, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def flag(tmp_path):
    """The file that a payload would make."""
    return tmp_path / "flag"


def test_payload_is_refused_here_too(file, flag):
    with pytest.raises(InputError, match="system") as error:
        read_groundtruth(file({"a.mmap": Payload(flag)}))
    assert error.value.kind == "unsupported"
    assert not flag.exists()


# --- Validation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_way_to_write_labels(file, protocol):
    row = [1, 0, 1]
    values = [
        row,
        tuple(row),
        [1.0, 0.0, True],
        [np.int64(1), np.float32(0), np.bool_(1)],
        *(np.array(row, dtype) for dtype in ["?", "u1", "i8", "f2", "f8", ">f4"]),
        np.array([1, 9, 0, 9, 1])[::2],
    ]
    path = file({f"a/{i}.mmap": value for i, value in enumerate(values)}, protocol)
    groundtruth = read_groundtruth(path, n_classes=3)
    assert groundtruth.path == path
    assert groundtruth.keys == [f"a/{i}.mmap" for i in range(len(values))]
    assert groundtruth.targets.dtype == np.uint8
    np.testing.assert_array_equal(groundtruth.targets, [row] * len(values))
    assert len(groundtruth) == len(values)
    assert groundtruth.n_classes == 3
    assert groundtruth.counts().tolist() == [len(values), 0, len(values)]


@pytest.mark.parametrize(
    "value",
    [
        [0, 2],
        (0, -1),
        [0.5, 1],
        [0, float("nan")],
        [0, "1"],
        [0, None],
        [[0], [1]],
        np.array([0, 2]),
        np.array([0, np.nan]),
        np.array([0.1, 0], "f4"),
        np.array(1),
        np.zeros((1, 2)),
        [0, 1, 0],
        np.zeros(1, bool),
        [],
        b"\x00\x01",
        "01",
        {"x": 1},
        None,
        1,
    ],
)
def test_bad_labels(file, value):
    path = file({"first.mmap": [0, 1], "folder/second.mmap": value})
    with pytest.raises(InputError, match=r"'folder/second\.mmap'") as error:
        read_groundtruth(path)
    assert error.value.path == path
    assert error.value.kind in ("invalid", "empty")
    assert error.value.hint


@pytest.mark.parametrize(
    "key",
    [
        *("", "/etc/passwd", "C:/a", "c:a", "..", "../a", "a/../../b", "./../a", "a\0b"),
        *("a\\b", "..\\a", "\\\\host\\a", "//host/a", ".", "a/..", "a/", 7, None, (1, 2), b"a"),
    ],
)
def test_bad_keys(file, key):
    with pytest.raises(InputError) as error:
        read_groundtruth(file({"good": [0, 1], key: [0, 1]}))
    assert repr(key) in str(error.value) or error.value.kind == "unsupported"
    assert error.value.hint


@pytest.mark.parametrize(
    "key", ["a..b", "..a/b", "a/./b", "a/../b", "é/ü.mmap", "a b", "ab:c", "…"]
)
def test_good_keys(file, key):
    assert read_groundtruth(file({key: [0, 1]})).keys == [key]


def test_two_keys_for_one_track(file):
    with pytest.raises(InputError, match=r"'a/\./b'.*'a/b'") as error:
        read_groundtruth(file({"a/b": [0], "c": [1], "a/./b": [0]}))
    assert error.value.kind == "conflict"


def test_long_keys_are_shortened(file):
    with pytest.raises(InputError) as error:
        read_groundtruth(file({"x" * 10**5: [3]}))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [{}, [], [("a", [1])], "text", None, np.zeros(3)])
def test_no_dict_or_an_empty_one(file, value):
    path = file(value)
    with pytest.raises(InputError) as error:
        read_groundtruth(path)
    assert error.value.path == path


def test_number_of_classes(file):
    with pytest.raises(InputError, match=r"\b2\b.*\b400\b") as error:
        read_groundtruth(file({"a": [0, 1]}), n_classes=400)
    assert error.value.kind == "mismatch"


# --- One label, or values -----------------------------------------------------------------------


def test_single_label(file, tmp_path):
    path = file({"a": [0, 1, 0], "b": np.array([1.0, 0, 0]), "c": (False, False, True)})
    groundtruth = read_groundtruth(path, 3, task="single-label")
    assert (groundtruth.task, groundtruth.targets.dtype) == ("single-label", np.uint8)
    assert groundtruth.targets.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert read_groundtruth(path).task == "multi-label"
    again = tmp_path / "again.pk"
    rows = dict(zip(groundtruth.keys, groundtruth.targets, strict=True))
    write_groundtruth(again, rows, task="single-label")
    assert pickle.loads(again.read_bytes())["a"].dtype == bool
    assert (read_groundtruth(again, 3, "single-label").targets == groundtruth.targets).all()


@pytest.mark.parametrize(
    "value",
    [
        [0, 0, 0],
        [1, 0, 1],
        np.ones(5),
        [0, 0.5, 1],
        2,
    ],
)
def test_no_single_label(file, tmp_path, value):
    rows = {"first": [0, 1, 0], "second": value}
    with pytest.raises(InputError, match="'second'"):
        read_groundtruth(file(rows), task="single-label")
    with pytest.raises(InputError):
        write_groundtruth(tmp_path / "new.pk", rows, task="single-label")
    assert not (tmp_path / "new.pk").exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_way_to_write_values(file, protocol):
    row = [0.5, -3.0]
    values = [
        row,
        tuple(row),
        [np.float32(0.5), np.int64(-3)],
        *(np.array(row, dtype) for dtype in ["f2", "f4", "f8", ">f4"]),
        np.array([0.5, 9, -3.0])[::2],
    ]
    path = file({f"{i}": value for i, value in enumerate(values)}, protocol)
    groundtruth = read_groundtruth(path, 2, task="regression")
    assert (groundtruth.task, groundtruth.targets.dtype) == ("regression", np.float32)
    assert groundtruth.n_classes == 2
    np.testing.assert_array_equal(groundtruth.targets, [row] * len(values))


@pytest.mark.parametrize("value", [120.5, np.float64(120.5), np.float32(120.5), [120.5]])
def test_a_bare_number_is_one_value(file, value):
    groundtruth = read_groundtruth(file({"a": value, "b": 60}), task="regression")
    np.testing.assert_array_equal(groundtruth.targets, np.array([[120.5], [60]], np.float32))


@pytest.mark.parametrize(
    "value",
    [
        [0.5, float("nan")],
        np.array([np.inf, 0]),
        [0.5, 1e39],  # it is infinite as float32
        [0.5, 10**400],
        [0.5, "1"],
        [0.5, None],
        [0.5, 1j],
        [[0.5], [1]],
        [],
        [0.5],
        1.0,
        np.zeros((1, 2)),
        "0.5",
        None,
        {"x": 1},
    ],
)
def test_bad_values(tmp_path, value):
    rows = {"first": [0.5, 1], "second": value}
    with pytest.raises(InputError, match="'second'"):
        write_groundtruth(tmp_path / "gt.pk", rows, task="regression")
    assert not (tmp_path / "gt.pk").exists()
    save(tmp_path / "gt.pk", rows)
    with pytest.raises(InputError):  # some are refused while they are read
        read_groundtruth(tmp_path / "gt.pk", task="regression")


def test_values_where_labels_are_expected_are_told_their_task(file):
    for value in ([0.5, 1], 0.5):
        with pytest.raises(InputError, match=r"maest\.task=regression"):
            read_groundtruth(file({"a": value}))
    with pytest.raises(InputError) as error:
        read_groundtruth(file({"a": 0.5}), 2, task="regression")
    assert error.value.kind == "mismatch"
    with pytest.raises(InputError, match="'tagging'") as error:
        read_groundtruth(file({"a": [1]}), task="tagging")
    assert error.value.kind == "unknown"


def test_the_tasks_are_the_networks():
    assert gt.TASKS == TASKS


def test_values_round_trip(tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    rows = {f"{i}.mmap": row for i, row in enumerate(values)}
    write_groundtruth(tmp_path / "gt.pk", rows, task="regression")
    groundtruth = read_groundtruth(tmp_path / "gt.pk", task="regression")
    assert groundtruth.keys == list(rows)
    np.testing.assert_array_equal(groundtruth.targets, values)


# --- Writing ------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "gt.pk"
    draw = np.random.default_rng(0)
    targets = draw.random((20, 7)) < 0.3
    rows = {f"{i % 3}/ü{i}.mmap": row for i, row in enumerate(targets)}
    write_groundtruth(path, rows)
    groundtruth = read_groundtruth(path, 7)
    assert groundtruth.keys == list(rows)
    np.testing.assert_array_equal(groundtruth.targets, targets)
    plain = pickle.loads(path.read_bytes())
    assert path.read_bytes()[:2] == b"\x80\x04"
    assert all(row.dtype == bool and row.shape == (7,) for row in plain.values())
    write_groundtruth(path, dict(zip(groundtruth.keys, groundtruth.targets, strict=True)))
    np.testing.assert_array_equal(read_groundtruth(path).targets, targets)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "gt.pk"
    write_groundtruth(path, {"a": [1, 0]})
    with pytest.raises(InputError, match="'b'"):
        write_groundtruth(path, {"a": [1, 0], "b": [1, 1, 1]})

    def fail(temporary, content):
        with temporary.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_groundtruth(path, {"b": [1, 0]})
    assert read_groundtruth(path).keys == ["a"]
    assert list(tmp_path.iterdir()) == [path]


def test_labels_round_trip(tmp_path):
    path = tmp_path / "labels.json"
    names = ["Folk---Jig", "Rock", "ü"]
    write_labels(path, iter(names))
    assert read_labels(path) == names
    with pytest.raises(InputError, match="'a'") as error:
        write_labels(path, ["a", "b", "a"])
    assert (error.value.kind, error.value.path) == ("conflict", path)
    assert read_labels(path) == names


@pytest.mark.parametrize(
    "content",
    [
        "",
        " \n\n",
        "[" * 10**5,
        '{"a": 0}',
        "[]",
        '["a", " "]',
        "[1]",
        '["a", "a"]',
        "[brackets]\nrock\n",
        "rock\n\njazz\n",
        "rock\njazz\nrock",
        "rock\0",
        "\x89PNG",
    ],
)
def test_bad_labels_file(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert error.value.path == path
    assert error.value.hint


def test_no_labels_file(tmp_path):
    for path, kind in ((tmp_path / "none.json", "missing"), (tmp_path, "access")):
        with pytest.raises(InputError) as error:
            read_labels(path)
        assert (error.value.kind, error.value.path) == (kind, path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n", "\n \n\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_as_text(tmp_path, end, encoding):
    path = tmp_path / "labels.txt"
    names = ["Folk, World---Jig", "  Rock & Roll", "ü [live]", "{x}", "a\u2028b"]
    newline = "\r\n" if "\r" in end else "\n"
    path.write_bytes((newline.join(names) + end).encode(encoding))
    assert read_labels(path) == [name.strip() for name in names]
    path.write_bytes('["a", "ü"]'.encode(encoding))
    assert read_labels(path) == ["a", "ü"]


def test_labels_of_another_encoding(tmp_path):
    path = tmp_path / "labels.txt"
    for encoding in ("utf-16", "latin-1"):
        path.write_text("Müsette\nWalzer\n", encoding)
        with pytest.raises(InputError):
            read_labels(path)
    path.write_bytes(pickle.dumps(["a", "b"]))
    with pytest.raises(InputError):
        read_labels(path)


def test_disjoint():
    def split(name, *keys):
        return GroundTruth(Path(name), list(keys), np.zeros((len(keys), 1), np.uint8))

    check_disjoint()
    check_disjoint(split("train.pk", "a", "b"), split("val.pk", "c"), split("test.pk", "d"))
    with pytest.raises(InputError, match=r"train.pk and test.pk share 1 .*'x/b'") as error:
        check_disjoint(
            split("train.pk", "a", "x/b"), split("val.pk", "c"), split("test.pk", "d", "x/./b")
        )
    assert error.value.kind == "conflict"


# --- Command line -------------------------------------------------------------------------------


def run(*args: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_show_from_another_folder(tmp_path):
    write_groundtruth(
        tmp_path / "gt.pk", {"a/1.mmap": [1, 1, 0], "a/2.mmap": [0, 0, 0], "a/3.mmap": [0, 1, 0]}
    )
    bare = run("show", "gt.pk", cwd=tmp_path)
    assert (bare.returncode, bare.stderr) == (0, "")
    assert "'a/1.mmap': label 0, label 1" in bare.stdout
    write_labels(tmp_path / "labels.json", ["jig", "reel", "mass"])
    named = run("show", tmp_path / "gt.pk", "--first", 2, cwd=Path("/"))
    assert (named.returncode, named.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in named.stdout.splitlines()]
    for line in ("tracks 3", "labels 3", "tracks without labels 1", "2 reel", "0 mass"):
        assert line in lines
    assert "labels per clip min 0, mean 1.00, max 2" in lines
    assert "'a/1.mmap': jig, reel" in lines
    assert "'a/2.mmap': (no label)" in lines
    assert "a/3.mmap" not in named.stdout


def test_show_errors_are_one_line(tmp_path, flag, capsys):
    save(tmp_path / "bad.pk", {"a": Payload(flag)})
    for name in ("bad.pk", "none.pk", ""):
        assert main(["show", str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert str(tmp_path / name) in captured.err
        assert captured.err.count("\n") == 1
    assert not flag.exists()


def test_show_with_labels_that_do_not_fit(tmp_path, capsys):
    write_groundtruth(tmp_path / "gt.pk", {"a": [1, 0]})
    write_labels(tmp_path / "labels.json", ["one"])
    assert main(["show", str(tmp_path / "gt.pk")]) == 0
    assert f"{tmp_path / 'labels.json'}: " in capsys.readouterr().out
    arguments = ["show", str(tmp_path / "gt.pk"), "--labels", str(tmp_path / "labels.json")]
    assert main(arguments) == 1
    assert f"--labels: {tmp_path / 'labels.json'}: " in capsys.readouterr().err


def test_show_into_a_closed_pipe(tmp_path):
    write_groundtruth(tmp_path / "gt.pk", {f"{i}": np.zeros(20000, bool) for i in range(2)})
    command = f"{sys.executable} {SCRIPT} show {tmp_path / 'gt.pk'} | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == (str(tmp_path / "gt.pk"), "")


def test_show_values(tmp_path, capsys):
    path = tmp_path / "gt.pk"
    write_groundtruth(path, {"a": [60, 0.25], "b": [180, -0.5]}, task="regression")
    assert main(["show", str(path), "--task", "regression"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("tracks 2", "values per track 2", "60 120 180 60 value 0", "'b': 180, -0.5"):
        assert line in lines
    write_labels(tmp_path / "labels.json", ["tempo", "valence"])
    assert main(["show", str(path), "--task", "regression", "--first", "0"]) == 0
    out = capsys.readouterr().out
    assert "-0.5     -0.125       0.25      0.375 valence" in out
    assert "first keys" not in out
    assert main(["show", str(path)]) == 1
    assert "--task regression" in capsys.readouterr().err
