"""From a table to ground truths: reading it, splitting it by group, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.build import build
from datasets.groundtruth import main, read_groundtruth, read_labels
from datasets.melspectrograms import write_mel
from datasets.splitting import SPLITS, split_by_group
from datasets.tables import TableError, read_table
from helpers.errors import InputError

WITH_SPLIT = """path,genres,artist,split
a/1.mp3,rock; pop,A,train
a/2.mp3,rock,A,Training
b/3.flac,jazz,B,val
"b/4, live.flac",jazz;rock,B,validation
c/5.wav,,C,TEST
c/6.mmap,pop;;pop,C,test
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def targets(path: Path) -> dict[str, list[int]]:
    groundtruth = read_groundtruth(path)
    return dict(zip(groundtruth.keys, groundtruth.targets.tolist(), strict=True))


# ---- reading -------------------------------------------------------------------------------------


def test_rows_are_what_the_table_says(tmp_path):
    table = read_table(write(tmp_path / "t.csv", WITH_SPLIT))
    keys = ["a/1.mmap", "a/2.mmap", "b/3.mmap", "b/4, live.mmap", "c/5.mmap", "c/6.mmap"]
    assert table.keys == keys
    own = [{"rock", "pop"}, {"rock"}, {"jazz"}, {"jazz", "rock"}, set(), {"pop"}]
    assert [set(labels) for labels in table.labels] == own
    assert table.splits == ["train", "train", "validation", "validation", "test", "test"]
    assert table.groups == ["A", "A", "B", "B", "C", "C"]
    assert table.lines == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_encodings_line_ends_and_delimiters(tmp_path, encoding, end, delimiter):
    lines = [("Filename", "TAGS"), ("é/1.mp3", "ñu|b c"), ("", ""), ("ü.mp3", "b c")]
    text = end.join(delimiter.join(line) for line in lines) + end
    table = read_table(write(tmp_path / "t.csv", text, encoding), separator="|")
    assert table.keys == ["é/1.mmap", "ü.mmap"]
    assert [set(labels) for labels in table.labels] == [{"ñu", "b c"}, {"b c"}]
    assert table.columns == {"path": ["Filename"], "labels": ["TAGS"]}
    assert (table.splits, table.groups) == (None, None)


def test_a_column_a_label(tmp_path):
    text = "clip_id\tguitar\tslow\tloud\tmp3_path\n2\t1\t0\t0\ta/x.mp3\n6\t1\t1\t0\ta/y.mp3\n"
    table = read_table(write(tmp_path / "annotations.csv", text))
    assert table.keys == ["a/x.mmap", "a/y.mmap"]
    assert [set(labels) for labels in table.labels] == [{"guitar"}, {"guitar", "slow"}]
    assert table.unused == ["clip_id"]
    assert table.columns["labels"] == ["guitar", "slow", "loud"]


def test_columns_that_are_named(tmp_path):
    text = "where,genre,mood,label,who\na.mp3,rock,calm,x,A\nb.mp3,pop,,y,B\n"
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TableError, match=r"--labels-column genre label"):
        read_table(path, path_column="where")
    names = {"path_column": "where", "labels_column": ["genre", "mood"], "group_column": "who"}
    table = read_table(path, **names)
    assert [set(labels) for labels in table.labels] == [{"rock", "calm"}, {"pop"}]
    assert table.groups == ["A", "B"]
    assert table.unused == ["label"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("path,labels\n", "no rows"),
        ("path,labels\na.mp3,x,y\n", "line 2: found 3 cells, expected 2"),
        ("path,labels\n\na.mp3\n", "line 3: found 1 cells, expected 2"),
        ("song,labels\na.mp3,x\n", "--path-column"),
        ("path,words\na.mp3,x\n", "--labels-column"),
        ("path,labels,labels\na.mp3,x,y\n", "'labels' twice"),
        ("path,labels,\na.mp3,x,y\n", "an empty name"),
        ("path,labels\na.mp3,x\nb.mp3,y\n./a.mp3,y\n", "line 4: .*the same path is in line 2"),
        ("path,labels\na.mp3,x\na.wav,y\n", r"line 3: .*same log-mel file 'a\.mmap'"),
        ("path,labels\n/music/a.mp3,x\n", "line 2: .*absolute path"),
        ("path,labels\n../a.mp3,x\n", "line 2: .*leaves base_dir"),
        ("path,labels\nx\\a.mp3,x\n", "line 2: .*backslash"),
        ("path,labels\n,x\n", "line 2: .*empty string"),
        ("path,labels,split\na.mp3,x,dev\n", "line 2: found 'dev' .*train, training, validation"),
        ('path,labels\n"a.mp3,x\nb.mp3,y\n', "line 3: .*quotes"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TableError, match=message) as refused:
        read_table(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"path,labels\na.mp3,caf\xe9\n")
    with pytest.raises(TableError, match="line 2: found the byte 0xe9, which is no UTF-8"):
        read_table(path)
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(TableError, match="no column 'x'"):
        read_table(write(path, WITH_SPLIT), group_column="x")
    with pytest.raises(TableError, match="--separator is empty"):
        read_table(path, separator="")


# ---- building ------------------------------------------------------------------------------------


def test_pickles_and_labels_of_a_split_table(tmp_path):
    built = build(read_table(write(tmp_path / "t.csv", WITH_SPLIT)), tmp_path / "out")
    assert read_labels(tmp_path / "out" / "labels.json") == ["jazz", "pop", "rock"]
    expected = {
        "train": {"a/1.mmap": [0, 1, 1], "a/2.mmap": [0, 0, 1]},
        "validation": {"b/3.mmap": [1, 0, 0], "b/4, live.mmap": [1, 0, 1]},
        "test": {"c/5.mmap": [0, 0, 0], "c/6.mmap": [0, 1, 0]},
    }
    for split, own in expected.items():
        assert targets(tmp_path / "out" / f"groundtruth-{split}.pk") == own
    everything = targets(tmp_path / "out" / "groundtruth-all.pk")
    assert everything == {k: v for own in expected.values() for k, v in own.items()}
    assert built.positives.tolist() == [[0, 1, 2], [2, 0, 1], [0, 1, 0]]
    assert built.without_labels == 1
    assert any("train has 1 of the 3 labels: 'jazz'" in warning for warning in built.warnings)


def test_rare_labels_are_left_out(tmp_path):
    table = read_table(write(tmp_path / "t.csv", WITH_SPLIT))
    built = build(table, tmp_path / "out", min_positives=3)
    assert (built.names, built.dropped) == (["rock"], {"jazz": 2, "pop": 2})
    assert built.without_labels == 3
    with pytest.raises(TableError, match="most frequent one has 3 tracks"):
        build(table, tmp_path / "out", min_positives=4)


def test_files_that_are_missing(tmp_path):
    table = read_table(write(tmp_path / "t.csv", WITH_SPLIT))
    for key in table.keys:
        if key != "a/2.mmap":
            write_mel(tmp_path / "mels" / key, np.zeros((4, 96)))
    with pytest.raises(TableError, match=r"1 of 6 tracks .*'a/2.mmap' \(line 3\)"):
        build(table, tmp_path / "out", base_dir=tmp_path / "mels")
    assert not (tmp_path / "out").exists()
    built = build(table, tmp_path / "out", base_dir=tmp_path / "mels", skip_missing=True)
    assert built.missing == ["a/2.mmap"]
    assert built.splits["train"] == ["a/1.mmap"]
    with pytest.raises(TableError, match="6 of 6 tracks"):
        build(table, tmp_path / "out", base_dir=tmp_path, skip_missing=True)
    with pytest.raises(TableError, match="no such folder"):
        build(table, tmp_path / "out", base_dir=tmp_path / "none")


def test_a_split_that_would_be_empty(tmp_path):
    two = WITH_SPLIT.replace("validation", "train").replace("val", "train")
    path = write(tmp_path / "t.csv", two)
    with pytest.raises(TableError, match=r"no track for validation\. Mark some rows.*'split'"):
        build(read_table(path), tmp_path / "out")
    rows = "path,labels,artist\na.mp3,x,A\nb.mp3,y,A\nc.mp3,y,B\n"
    table = read_table(write(path, rows))
    with pytest.raises(TableError, match="There are 2 groups"):
        build(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_warnings_about_groups(tmp_path):
    path = write(tmp_path / "t.csv", WITH_SPLIT.replace("b/3.flac,jazz,B", "b/3.flac,jazz,A"))
    built = build(read_table(path), tmp_path / "out")
    assert any("1 of 3 groups on more than one side: 'A'" in w for w in built.warnings)
    rows = "".join(f"{i}.mp3,x\n" for i in range(20))
    built = build(read_table(write(path, f"path,labels\n{rows}")), tmp_path / "out")
    assert "tracks of one artist may stand on both sides" in built.warnings[0]
    rows = "".join(f"{i}.mp3,x,{'A' * (i < 5)}\n" for i in range(20))
    built = build(read_table(write(path, f"path,labels,artist\n{rows}")), tmp_path / "out")
    assert built.warnings == ["15 tracks have no group: each was taken for itself"]


# ---- splitting -----------------------------------------------------------------------------------


def random_tracks(seed: int, n_groups: int = 200, n_labels: int = 30):
    """Groups of 1 to 12 tracks; labels from common to rare, alike within a group."""
    rng = np.random.default_rng(seed)
    share = np.geomspace(0.4, 0.05, n_labels)
    groups, rows = [], []
    for group in range(n_groups):
        style = rng.random(n_labels) < share
        for _ in range(int(rng.integers(1, 13))):
            groups.append(f"artist {group}")
            rows.append(style & (rng.random(n_labels) < 0.8))
    return groups, np.array(rows)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_shares_are_close(seed):
    groups, labels = random_tracks(seed)
    sides = np.array(split_by_group(groups, labels, (0.8, 0.1, 0.1), seed))
    by_group: dict[str, set[str]] = {}
    for group, side in zip(groups, sides, strict=True):
        by_group.setdefault(group, set()).add(side)
    assert all(len(own) == 1 for own in by_group.values())
    for split, fraction in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs((sides == split).mean() - fraction) < 0.015
        own = labels[sides == split].sum(axis=0) / labels.sum(axis=0)
        assert abs(np.median(own) - fraction) < 0.03
        assert np.abs(own - fraction).mean() < 0.05
        assert (own > 0).all()


def test_splits_depend_on_the_seed_only():
    groups, labels = random_tracks(0)
    one = split_by_group(groups, labels, (0.8, 0.1, 0.1), 0)
    assert split_by_group(groups, labels, (0.8, 0.1, 0.1), 0) == one
    assert split_by_group(groups, labels, (0.8, 0.1, 0.1), 1) != one


def test_a_label_in_three_groups_is_on_every_side():
    groups = list("abcdefghijkl")
    labels = np.zeros((12, 3), bool)
    labels[:3, 0] = labels[3:6, 1] = labels[6:, 2] = True
    for seed in range(10):
        sides = np.array(split_by_group(groups, labels, (0.8, 0.1, 0.1), seed))
        for own in labels.T:
            assert set(sides[own]) == set(SPLITS)


def test_labels_that_share_groups_are_on_every_side_all_the_same():
    """Dealt greedily, the last label's three groups may have gone with the others' first."""
    labels = np.zeros((9, 4), bool)
    labels[[0, 3, 4], 0] = labels[[1, 5, 6], 1] = labels[[2, 7, 8], 2] = True
    labels[:3, 3] = True
    complete = 0
    for seed in range(20):
        sides = np.array(split_by_group(range(9), labels, (0.8, 0.1, 0.1), seed))
        complete += all(set(sides[own]) == set(SPLITS) for own in labels.T)
    assert complete == 20


def test_many_tracks_take_seconds():
    rng = np.random.default_rng(0)
    labels = rng.random((60_000, 200)) < 0.01
    groups = rng.integers(0, 20_000, 60_000).tolist()
    sides = split_by_group(groups, labels, (0.9, 0.05, 0.05), 0)
    assert abs(sides.count("train") / 60_000 - 0.9) < 0.01


@pytest.mark.parametrize("wrong", [(0.8, 0.2), (0.8, 0.2, 0.0), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_none(wrong):
    with pytest.raises(InputError, match="three positive numbers that sum to 1"):
        split_by_group(["a", "b", "c"], np.ones((3, 1), bool), wrong, 0)


# ---- the command ---------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys):
    names = ["jazz", "rock"]
    rows = "".join(f"{i:02d}.mp3,{names[i % 2]},artist {i // 2}\n" for i in range(40))
    path = write(tmp_path / "t.csv", f"path,labels,artist\n{rows}")
    options = ["--out-dir", str(tmp_path / "out"), "--fractions", "0.6,0.2,0.2", "--seed", "4"]
    assert main(["build", str(path), *options]) == 0
    out = capsys.readouterr().out
    assert "| train      |     24 |      2 |" in out
    assert out.rstrip().endswith(f"40 tracks, 2 labels: {tmp_path / 'out'}")
    keys = read_groundtruth(tmp_path / "out" / "groundtruth-validation.pk").keys
    assert len(keys) == 8
    assert all(f"{int(key[:2]) ^ 1:02d}.mmap" in keys for key in keys)  # artists are whole
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == names
    assert main(["show", str(tmp_path / "out" / "groundtruth-train.pk")]) == 0
    assert "tracks                24" in capsys.readouterr().out


def test_command_line_errors_are_one_line(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "path,labels\na.mp3,x\na.mp3,x\n")
    assert main(["build", str(path), "--out-dir", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "line 3" in captured.err
    options = ["--fractions", "1,1,1"]
    path = write(tmp_path / "t.csv", "path,labels\na.mp3,x\nb.mp3,x\nc.mp3,x\n")
    assert main(["build", str(path), "--out-dir", str(tmp_path / "out"), *options]) == 1
    assert "sum to 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["build", str(path), "--out-dir", str(tmp_path / "out"), "--fractions", "a"])
