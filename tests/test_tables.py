"""From a table to ground truths: reading it, splitting it by group, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.build import build
from datasets.groundtruth import read_groundtruth, read_labels
from datasets.groundtruth_command import main
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
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
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


def test_a_table_from_a_spreadsheet(tmp_path):
    """Which has semicolons between its columns in half of Europe, and quotes what has them."""
    text = 'path;labels;artist\na.mp3;"rock; pop";A, B\nb.mp3;jazz;C\n'
    table = read_table(write(tmp_path / "t.csv", text))
    assert [set(labels) for labels in table.labels] == [{"rock", "pop"}, {"jazz"}]
    assert table.groups == ["A, B", "C"]
    quoted = 'path,"a;b;c;d",labels\nx.mp3,1,rock\n'
    assert read_table(write(tmp_path / "t.csv", quoted)).keys == ["x.mmap"]


@pytest.mark.parametrize(
    ("cells", "titles"),
    [
        (('"Heroes" live', "b"), ['"Heroes" live', "b"]),  # a quote sign inside
        (('"Heroes', "b"), ['"Heroes', "b"]),  # one that never ends
        (('"Heroes', 'b"'), ['"Heroes', 'b"']),  # one that ends in another row
        (('7" mix', "b"), ['7" mix', "b"]),
        (('"Heroes ""live"""', "b"), ['Heroes "live"', "b"]),  # rightly quoted
    ],
)
def test_quote_signs_in_titles(tmp_path, cells, titles):
    rows = "".join(f"{i}.mp3\t{cell}\tx\n" for i, cell in enumerate(cells))
    path = write(tmp_path / "t.tsv", f"path\tartist\tlabels\n{rows}")
    table = read_table(path)
    assert (table.keys, table.groups) == (["0.mmap", "1.mmap"], titles)
    assert [set(labels) for labels in table.labels] == [{"x"}, {"x"}]
    right = cells[0].endswith('"""') or cells[0][0] != '"'
    assert table.warnings == (
        [] if right else ["quote signs of the table do not come in pairs: they were taken as text"]
    )


def test_a_column_a_label_as_pandas_writes_it(tmp_path):
    text = "path,guitar,loud,empty,year\na.mp3,1.0,0.0,,1\nb.mp3,,1,,2\nc.mp3, ,0,,1\n"
    table = read_table(write(tmp_path / "t.csv", text))
    assert [set(labels) for labels in table.labels] == [{"guitar"}, {"loud"}, set()]
    assert table.columns["labels"] == ["guitar", "loud"]
    assert table.unused == ["empty", "year"]
    assert table.warnings == ["2 blank cells were taken as 0, in columns 'guitar'"]
    with pytest.raises(TableError, match="none has only 0 and 1"):
        read_table(write(tmp_path / "t.csv", "path,guitar\na.mp3,0.5\n"))


def test_which_columns_of_0_and_1_are_labels_can_be_said(tmp_path, capsys):
    rows = "".join(f"{i}.mp3,{i % 2},1,{i % 3 == 0:d}\n" for i in range(9))
    path = write(tmp_path / "t.csv", f"path,guitar,explicit,loud\n{rows}")
    command = ["build", str(path), "--out-dir", str(tmp_path / "out")]
    assert main(command) == 0
    assert "labels   guitar, explicit, loud\n" in capsys.readouterr().out
    assert main([*command, "--labels-column", "loud", "guitar"]) == 0
    assert "labels   loud, guitar\nnot used explicit\n" in capsys.readouterr().out
    assert read_labels(tmp_path / "out" / "labels.json") == ["guitar", "loud"]
    assert targets(tmp_path / "out" / "groundtruth-all.pk")["3.mmap"] == [1, 1]


@pytest.mark.parametrize("cell", ["rock, pop", "rock|pop", "rock/pop"])
def test_another_separator_is_warned_of(tmp_path, cell):
    path = write(tmp_path / "t.tsv", f"path\tlabels\na.mp3\t{cell}\nb.mp3\tpop\n")
    (warning,) = read_table(path).warnings
    other = cell[4]
    assert f"1 of 2 labels have {other!r} in them ('{cell}')" in warning
    table = read_table(path, separator=other)
    assert (table.labels[0], table.warnings) == ({"rock", "pop"}, [])
    path = write(path, f"path\tlabels\na.mp3\t{cell}\nb.mp3\tpop;jazz\n")
    assert read_table(path).warnings == []  # the separator is there: it is a label's name


def test_labels_in_several_spellings_are_warned_of(tmp_path):
    text = "path,labels\na.mp3,Pop\nb.mp3,pop\nc.mp3,Hip  Hop;rock\nd.mp3,hip hop;jazz\n"
    table = read_table(write(tmp_path / "t.csv", text))
    (warning,) = table.warnings
    assert "2 labels are written in several ways" in warning
    assert "'Hip  Hop' and 'hip hop'; 'Pop' and 'pop'" in warning
    built = build(read_table(write(tmp_path / "t.csv", text)), tmp_path / "out")
    assert warning in built.warnings


def test_one_artist_in_several_spellings_is_one_group(tmp_path):
    names = ["The Band", "the band", " THE  BAND ", "Be\u0301la", "B\u00e9la", ""]
    rows = "".join(f"{i}.mp3,x,{name}\n" for i, name in enumerate(names))
    table = read_table(write(tmp_path / "t.csv", f"path,labels,artist\n{rows}"))
    assert table.groups == ["The Band"] * 3 + ["Be\u0301la"] * 2 + [""]
    rows = "".join(f"{i}.mp3,x,{('The Band', 'the band', 'B', 'C')[i % 4]}\n" for i in range(40))
    table = read_table(write(tmp_path / "t.csv", f"path,labels,artist\n{rows}"))
    built = build(table, tmp_path / "out")
    sides = {key: split for split, keys in built.splits.items() for key in keys}
    assert len({sides[f"{i}.mmap"] for i in range(40) if i % 4 < 2}) == 1


def test_absolute_paths(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "path,labels\n/music/x/a.mp3,x\n/music/./b.mp3,y\nc.mp3,y\n")
    for folder in ("/music", "/music/", Path("/music/x/..")):
        assert read_table(path, audio_dir=folder).keys == ["x/a.mmap", "b.mmap", "c.mmap"]
    assert read_table(path, audio_dir="/").keys[0] == "music/x/a.mmap"
    for folder in ("/mus", "/music/x", "music"):
        with pytest.raises(TableError, match=r"line [23]: .*expected one of a file in /"):
            read_table(path, audio_dir=folder)
    assert main(["build", str(path), "--out-dir", str(tmp_path), "--audio-dir", "/music"]) == 0
    assert read_groundtruth(tmp_path / "groundtruth-all.pk").keys[0] == "x/a.mmap"


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
        ("path,labels\n/music/a.mp3,x\n", "line 2: .*absolute path.*--audio-dir DIR"),
        ("path,labels\n7,x\n8,x\n7.mp3,y\n", r"line 4: path '7\.mp3': '7', .* is in line 2"),
        ("path,labels\na.npy,x\na.mmap,y\n", r"line 3: .*'a\.npy', .*file 'a\.mmap', is in line 2"),
        ("path;labels\na.mp3;x;y\n", r"line 2: found 3 cells, .*delimiter \(';'\)"),
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
    with pytest.raises(TableError, match=r"There are 2 groups, .* three sides need 3"):
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


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)])
def test_three_groups_or_more_leave_no_split_empty(fractions):
    rng = np.random.default_rng(0)
    for trial in range(300):
        n_groups, n_labels = int(rng.integers(3, 8)), int(rng.integers(1, 6))
        sizes = rng.integers(1, (2, 12, 200)[trial % 3], n_groups)
        groups = np.repeat(np.arange(n_groups), sizes)
        labels = rng.random((len(groups), n_labels)) < rng.random(n_labels)
        sides = np.array(split_by_group(groups.tolist(), labels, fractions, trial))
        assert set(sides) == set(SPLITS)
        assert all(len(set(sides[groups == group])) == 1 for group in range(n_groups))


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


# ---- real values ---------------------------------------------------------------------------------


def test_real_values_are_a_regressions_ground_truth(tmp_path, capsys):
    rows = [f"{i:02d}.mp3,artist {i % 10},{60 + i}.5,{-0.1 * i:.3f},x" for i in range(40)]
    path = write(tmp_path / "t.csv", "\n".join(["path,artist,tempo,valence,genre", *rows]))
    out = tmp_path / "out"
    command = ["build", str(path), "--out-dir", str(out), "--values-column", "valence", "tempo"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "40 tracks, 2 values" in told
    assert "valence, mean" in told
    whole = read_groundtruth(out / "groundtruth-all.pk", task="regression")
    at = dict(zip(whole.keys, whole.targets.tolist(), strict=True))
    assert at["07.mmap"] == pytest.approx([-0.7, 67.5])
    assert read_labels(out / "labels.json") == ["valence", "tempo"]
    splits = [
        read_groundtruth(out / f"groundtruth-{split}.pk", task="regression") for split in SPLITS
    ]
    artists = [{int(key[:2]) % 10 for key in own.keys} for own in splits]
    assert sum(map(len, artists)) == 10  # each on one side
    assert sum(map(len, splits)) == 40


@pytest.mark.parametrize("cell", ["", "fast", "1,5", "nan", "inf"])
def test_a_value_that_is_no_number_is_named(tmp_path, capsys, cell):
    path = write(tmp_path / "t.csv", f'path,tempo\na.mp3,1\nb.mp3,"{cell}"\nc.mp3,3\n')
    command = ["build", str(path), "--out-dir", str(tmp_path / "out"), "--values-column", "tempo"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "line 3" in told
    assert "in column 'tempo': expected a number" in told
    assert not (tmp_path / "out").exists()


def test_labels_and_values_at_once_are_refused(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "path,tempo,genre\na.mp3,1,jig\n")
    columns = ["--values-column", "tempo", "--labels-column", "genre"]
    assert main(["build", str(path), "--out-dir", str(tmp_path / "out"), *columns]) == 1
    assert "give one of them" in capsys.readouterr().err
    columns = ["--values-column", "speed"]
    assert main(["build", str(path), "--out-dir", str(tmp_path / "out"), *columns]) == 1
    assert "no column 'speed' (--values-column)" in capsys.readouterr().err
