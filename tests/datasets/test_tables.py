"""From a table to ground truths: reading it, splitting it by group, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from maest.datasets.build import build
from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.groundtruth_command import main
from maest.datasets.melspectrograms import write_mel
from maest.datasets.preprocess import preprocess
from maest.datasets.splitting import SPLITS, split_by_group
from maest.datasets.tables import read_table
from maest.helpers.errors import InputError

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
    assert len(table.warnings) == (0 if right else 1)


def test_a_column_a_label_as_pandas_writes_it(tmp_path):
    text = "path,guitar,loud,empty,year\na.mp3,1.0,0.0,,1\nb.mp3,,1,,2\nc.mp3, ,0,,1\n"
    table = read_table(write(tmp_path / "t.csv", text))
    assert [set(labels) for labels in table.labels] == [{"guitar"}, {"loud"}, set()]
    assert table.columns["labels"] == ["guitar", "loud"]
    assert table.unused == ["empty", "year"]
    taken, blank = table.warnings
    assert "'guitar', 'loud'" in taken
    assert "2 blank cells" in blank
    assert "'guitar'" in blank
    with pytest.raises(InputError) as error:
        read_table(write(tmp_path / "t.csv", "path,guitar\na.mp3,0.5\n"))
    assert error.value.kind == "missing"


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
    assert f"'{cell}'" in warning
    assert "--separator" in warning
    table = read_table(path, separator=other)
    assert (table.labels[0], table.warnings) == ({"rock", "pop"}, [])
    path = write(path, f"path\tlabels\na.mp3\t{cell}\nb.mp3\tpop;jazz\n")
    assert read_table(path).warnings == []  # the separator is there: it is a label's name


def test_labels_in_several_spellings_are_warned_of(tmp_path):
    text = "path,labels\na.mp3,Pop\nb.mp3,pop\nc.mp3,Hip  Hop;rock\nd.mp3,hip hop;jazz\n"
    table = read_table(write(tmp_path / "t.csv", text))
    (warning,) = table.warnings
    assert all(name in warning for name in ("'Hip  Hop'", "'hip hop'", "'Pop'", "'pop'"))
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
        with pytest.raises(InputError, match=r"line [23]: ") as error:
            read_table(path, audio_dir=folder)
        assert error.value.path == path
    assert main(["build", str(path), "--out-dir", str(tmp_path), "--audio-dir", "/music"]) == 0
    assert read_groundtruth(tmp_path / "groundtruth-all.pk").keys[0] == "x/a.mmap"


def test_columns_that_are_named(tmp_path):
    text = "where,genre,mood,label,who\na.mp3,rock,calm,x,A\nb.mp3,pop,,y,B\n"
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=r"--labels-column genre label") as error:
        read_table(path, path_column="where")
    assert error.value.kind == "conflict"
    names = {"path_column": "where", "labels_column": ["genre", "mood"], "group_column": "who"}
    table = read_table(path, **names)
    assert [set(labels) for labels in table.labels] == [{"rock", "calm"}, {"pop"}]
    assert table.groups == ["A", "B"]
    assert table.unused == ["label"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "t.csv"),
        ("path,labels\n", "t.csv"),
        ("path,labels\na.mp3,x,y\n", "line 2"),
        ("path,labels\n\na.mp3\n", "line 3"),
        ("song,labels\na.mp3,x\n", "--path-column"),
        ("path,words\na.mp3,x\n", "--labels-column"),
        ("path,labels,labels\na.mp3,x,y\n", "'labels'"),
        ("path,labels,\na.mp3,x,y\n", "line 1"),
        ("path,labels\na.mp3,x\nb.mp3,y\n./a.mp3,y\n", "line 4: .* line 2"),
        ("path,labels\na.mp3,x\na.wav,y\n", r"line 3: .*'a\.mmap'"),
        ("path,labels\n/music/a.mp3,x\n", "line 2: .*--audio-dir DIR"),
        ("path,labels\nC:\\music\\a.mp3,x\n", "line 2: .*--audio-dir DIR"),
        ("path,labels\n7,x\n8,x\n7.mp3,y\n", r"line 4: path '7\.mp3': '7', .* line 2"),
        ("path,labels\na.npy,x\na.mmap,y\n", r"line 3: .*'a\.npy', .*'a\.mmap', .* line 2"),
        ("path;labels\na.mp3;x;y\n", r"line 2: .*';'"),
        ("path,labels\n../a.mp3,x\n", "line 2"),
        ("path,labels\nx\\a.mp3,x\nx/b.mp3,x\n", "line 2"),
        ("path,labels\n,x\n", "line 2"),
        ("path,labels,split\na.mp3,x,dev\n", "line 2: 'dev' .*--ignore-split"),
        ('path,labels\n"a.mp3,x\nb.mp3,y\n', "line 3"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, where):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=where) as refused:
        read_table(path)
    assert refused.value.path == path
    assert refused.value.hint


def test_what_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"path,labels\na.mp3,caf\xe9\n")
    with pytest.raises(InputError, match=r"line 2: .*0xe9"):
        read_table(path)
    for unreadable, kind in ((tmp_path / "none.csv", "missing"), (tmp_path, "access")):
        with pytest.raises(InputError) as error:
            read_table(unreadable)
        assert (error.value.kind, error.value.path) == (kind, unreadable)
    with pytest.raises(InputError, match="'x'") as error:
        read_table(write(path, WITH_SPLIT), group_column="x")
    assert (error.value.kind, error.value.setting) == ("unknown", "--group-column")
    with pytest.raises(InputError) as error:
        read_table(path, separator="")
    assert error.value.setting == "--separator"


# ---- names and kinds of columns ------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"labels_column": ["vocal"]}])
def test_one_column_of_0_and_1_is_a_label(tmp_path, options):
    table = read_table(write(tmp_path / "t.csv", "path,vocal\na.mp3,1\nb.mp3,0\n"), **options)
    assert table.labels == [{"vocal"}, set()]


def test_a_column_called_label_of_0_and_1_is_a_label(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "path,label\na.mp3,1\nb.mp3,\nc.mp3,0\n"))
    assert table.labels == [{"label"}, set(), set()]


def test_names_of_labels_beside_columns_of_0_and_1(tmp_path):
    path = write(tmp_path / "t.csv", "path,genre,vocal\na.mp3,rock;pop,1\nb.mp3,,0\nc.mp3,jazz,1\n")
    table = read_table(path, labels_column=["genre", "vocal"])
    assert table.labels == [{"rock", "pop", "vocal"}, set(), {"jazz", "vocal"}]
    assert read_table(path).labels == [{"rock", "pop"}, set(), {"jazz"}]
    assert read_table(path).unused == ["vocal"]


@pytest.mark.parametrize(
    ("yes", "no"), [("1.0", "0.0"), ("TRUE", "FALSE"), ("True", ""), ("1", "")]
)
def test_spellings_of_0_and_1(tmp_path, yes, no):
    text = f"path,loud,slow\na.mp3,{yes},{no}\nb.mp3,{no},{yes}\n"
    assert read_table(write(tmp_path / "t.csv", text)).labels == [{"loud"}, {"slow"}]


@pytest.mark.parametrize("name", ["fold", "Fold", "split", "sub_set", "album_id", "Track", "audio"])
def test_columns_of_splits_groups_and_paths_are_no_labels(tmp_path, name):
    text = f"path,artist,{name},vocal\na.mp3,A,1,1\nb.mp3,B,0,0\n"
    table = read_table(write(tmp_path / "t.csv", text), ignore_split=True)
    assert table.labels == [{"vocal"}, set()]
    assert table.unused == [name]


def test_a_split_that_was_named_is_no_label_either(tmp_path):
    path = write(tmp_path / "t.csv", "path,held_out,vocal\na.mp3,1,1\nb.mp3,0,0\n")
    table = read_table(path, split_column="held_out", ignore_split=True)
    assert (table.labels, table.splits) == ([{"vocal"}, set()], None)


def test_columns_that_nobody_named_are_warned_of(tmp_path):
    path = write(tmp_path / "t.csv", "path,vocal,is_explicit\na.mp3,1,0\nb.mp3,0,1\n")
    (warning,) = read_table(path).warnings
    assert "'vocal', 'is_explicit'" in warning
    assert "--labels-column" in warning
    assert read_table(path, labels_column=["vocal"]).warnings == []


@pytest.mark.parametrize(
    "name", ["artist", "Artist Name", "track_artist", "artistName", "ARTIST_ID", "album-artist"]
)
def test_names_of_columns_without_case_spaces_and_underscores(tmp_path, name):
    text = f"File Name,{name},Genres\na.mp3,A,rock\nb.mp3,B,pop\n"
    table = read_table(write(tmp_path / "t.csv", text))
    assert table.columns == {"path": ["File Name"], "labels": ["Genres"], "group": [name]}
    table = read_table(write(tmp_path / "t.csv", text), labels_column=["genres"])
    assert table.columns["labels"] == ["Genres"]


def test_a_column_that_is_named_for_something_else_is_no_label(tmp_path):
    text = "path,genre,tags\na.mp3,A,rock\nb.mp3,B,pop\n"
    table = read_table(write(tmp_path / "t.csv", text), group_column="genre")
    assert (table.groups, table.labels) == (["A", "B"], [{"rock"}, {"pop"}])


# ---- tables from elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("first", ["", "sep=;\n", "SEP=;\r\n", '"sep=;"\n'])
def test_what_spreadsheets_write(tmp_path, encoding, first):
    text = first + 'path;labels;artist\na.mp3;"Folk, World, & Country; pop";Zoë\nb.mp3;;A, B\n'
    path = write(tmp_path / "t.csv", text, encoding)
    table = read_table(path)
    assert table.keys == ["a.mmap", "b.mmap"]
    assert table.labels == [{"Folk, World, & Country", "pop"}, set()]
    assert table.groups == ["Zoë", "A, B"]
    assert table.lines == ([3, 4] if first else [2, 3])


def test_a_line_with_the_separator_is_obeyed(tmp_path):
    text = "sep=|\npath|labels\na.mp3|rock,pop,jazz\n"
    table = read_table(write(tmp_path / "t.csv", text), separator=",")
    assert table.labels == [{"rock", "pop", "jazz"}]


def test_paths_of_windows(tmp_path):
    path = write(tmp_path / "t.csv", "path,labels\nrock\\a.mp3,x\nb.mp3,y\n")
    assert read_table(path).keys == ["rock/a.mmap", "b.mmap"]
    write(path, "path,labels\nC:\\Music\\rock\\a.mp3,x\nC:\\Music\\b.mp3,y\n")
    for folder in ("C:\\Music", "C:\\Music\\", "C:/Music"):
        assert read_table(path, audio_dir=folder).keys == ["rock/a.mmap", "b.mmap"]


def test_two_formats_of_a_song_have_a_log_mel_file_each(tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    for i, name in enumerate(("song.flac", "song.wav", "b.wav")):
        sf.write(tmp_path / "audio" / name, np.random.default_rng(i).uniform(-1, 1, 16_000), 16_000)
    mels = tmp_path / "mels"
    assert preprocess(tmp_path / "audio", mels, num_workers=1, progress=False).failed == {}
    path = write(tmp_path / "t.csv", "path,labels\nsong.wav,x\nsong.flac,y\nb.wav,z\n")
    with pytest.raises(InputError, match=r"line 3: .*line 2.*--base-dir") as error:
        read_table(path)
    assert error.value.kind == "conflict"
    keys = read_table(path, base_dir=mels).keys
    assert sorted(keys) == ["b.mmap", "song.mmap", "song.wav.mmap"]
    assert keys[0] == "song.wav.mmap"
    command = ["build", str(path), "--out-dir", str(tmp_path / "out"), "--base-dir", str(mels)]
    assert main(command) == 0
    assert sorted(read_groundtruth(tmp_path / "out" / "groundtruth-all.pk").keys) == sorted(keys)


def test_a_table_of_jamendo_names_its_own_command(tmp_path):
    text = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
    text += "t1\ta1\tb1\t14/1.mp3\t9\tgenre---rock\tgenre---pop\n"
    with pytest.raises(InputError) as error:
        read_table(write(tmp_path / "t.tsv", text))
    assert "datasets/jamendo/preprocess.py" in error.value.hint


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
    assert built.per_split.tolist() == [[0, 1, 2], [2, 0, 1], [0, 1, 0]]
    assert built.without_labels == 1
    assert any("train" in warning and "'jazz'" in warning for warning in built.warnings)


def test_rare_labels_are_left_out(tmp_path):
    table = read_table(write(tmp_path / "t.csv", WITH_SPLIT))
    built = build(table, tmp_path / "out", min_positives=3)
    assert (built.names, built.dropped) == (["rock"], {"jazz": 2, "pop": 2})
    assert built.without_labels == 3
    with pytest.raises(InputError, match="3 tracks") as error:
        build(table, tmp_path / "out", min_positives=4)
    assert error.value.kind == "empty"


def test_files_that_are_missing(tmp_path):
    table = read_table(write(tmp_path / "t.csv", WITH_SPLIT))
    for key in table.keys:
        if key != "a/2.mmap":
            write_mel(tmp_path / "mels" / key, np.zeros((4, 96)))
    with pytest.raises(InputError, match=r"1 of 6 .*'a/2\.mmap' \(line 3\)") as error:
        build(table, tmp_path / "out", base_dir=tmp_path / "mels")
    assert (error.value.kind, error.value.path) == ("missing", table.path)
    assert not (tmp_path / "out").exists()
    built = build(table, tmp_path / "out", base_dir=tmp_path / "mels", skip_missing=True)
    assert built.missing == ["a/2.mmap"]
    assert built.splits["train"] == ["a/1.mmap"]
    with pytest.raises(InputError, match="6 of 6"):
        build(table, tmp_path / "out", base_dir=tmp_path, skip_missing=True)
    with pytest.raises(InputError) as error:
        build(table, tmp_path / "out", base_dir=tmp_path / "none")
    assert (error.value.setting, error.value.path) == ("--base-dir", tmp_path / "none")


def test_a_split_that_would_be_empty(tmp_path):
    two = WITH_SPLIT.replace("validation", "train").replace("val", "train")
    path = write(tmp_path / "t.csv", two)
    with pytest.raises(InputError, match=r"validation.*'split'") as error:
        build(read_table(path), tmp_path / "out")
    assert error.value.kind == "empty"
    rows = "path,labels,artist\na.mp3,x,A\nb.mp3,y,A\nc.mp3,y,B\n"
    table = read_table(write(path, rows))
    with pytest.raises(InputError, match=r"2 groups") as error:
        build(table, tmp_path / "out")
    assert error.value.kind == "empty"
    assert not (tmp_path / "out").exists()


def test_warnings_about_groups(tmp_path):
    path = write(tmp_path / "t.csv", WITH_SPLIT.replace("b/3.flac,jazz,B", "b/3.flac,jazz,A"))
    built = build(read_table(path), tmp_path / "out")
    assert any("1 of 3 groups" in w and "'A'" in w for w in built.warnings)
    rows = "".join(f"{i}.mp3,x\n" for i in range(20))
    built = build(read_table(write(path, f"path,labels\n{rows}")), tmp_path / "out")
    assert "artist" in built.warnings[0]
    rows = "".join(f"{i}.mp3,x,{'A' * (i < 5)}\n" for i in range(20))
    built = build(read_table(write(path, f"path,labels,artist\n{rows}")), tmp_path / "out")
    (warning,) = built.warnings
    assert "15 tracks have no group" in warning


def test_single_label(tmp_path):
    rows = "".join(f"{i}.mp3,{('rock', 'pop')[i % 2]}\n" for i in range(9)) + "9.mp3,jazz\n"
    path = write(tmp_path / "t.csv", f"path,label\n{rows}")
    built = build(read_table(path), tmp_path / "out", task="single-label", min_positives=2)
    assert (built.names, built.dropped, built.without_labels) == (["pop", "rock"], {"jazz": 1}, 1)
    whole = read_groundtruth(tmp_path / "out" / "groundtruth-all.pk", task="single-label")
    assert len(whole) == 9  # a track of a label that is left out has no label
    for cell in ("rock;pop", ""):
        write(path, f"path,label\n{rows}10.mp3,{cell}\n")
        with pytest.raises(InputError, match=r"\b12\b") as error:
            build(read_table(path), tmp_path / "new", task="single-label")
        assert (error.value.path, error.value.setting) == (path, "--task")
    assert not (tmp_path / "new").exists()


def test_a_task_that_does_not_fit_the_columns_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", "path,label,tempo\na.mp3,x,60\nb.mp3,y,70\n")
    for task, options in (("regression", {}), ("single-label", {"values_column": ["tempo"]})):
        with pytest.raises(InputError) as error:
            build(read_table(path, **options), tmp_path / "out", task=task)
        assert (error.value.kind, error.value.setting) == ("conflict", "--task")


def with_copies(folder: Path) -> Path:
    """A table of 24 tracks, an artist each; of every third recording the next track is a copy."""
    for i in range(24):
        content = i - 1 if i % 3 == 1 else i
        mel = np.random.default_rng(content).random((4 + content % 5, 96))
        write_mel(folder / "mels" / f"{i}.mmap", mel)
    for name in ("silent", "quiet"):
        write_mel(folder / "mels" / f"{name}.mmap", np.zeros((4, 96)))
    rows = "".join(f"{name}.mp3,x,{name}\n" for name in (*range(24), "silent", "quiet"))
    return write(folder / "t.csv", f"path,labels,artist\n{rows}")


def test_copies_of_a_recording_stay_in_one_split(tmp_path, capsys):
    table = read_table(with_copies(tmp_path))
    options = {"base_dir": tmp_path / "mels", "keep_duplicates_together": True}
    for seed in range(3):
        built = build(table, tmp_path / "out", seed=seed, fractions=(0.4, 0.3, 0.3), **options)
        side = {key: split for split, keys in built.splits.items() for key in keys}
        assert all(side[f"{i}.mmap"] == side[f"{i + 1}.mmap"] for i in range(0, 24, 3))
        assert built.duplicates == 8  # silence is no recording
    command = ["build", str(table.path), "--out-dir", str(tmp_path / "out")]
    assert main([*command, "--base-dir", str(tmp_path / "mels"), "--keep-duplicates-together"]) == 0
    assert "8 tracks are copies" in capsys.readouterr().out


def test_groups_with_a_recording_in_common_stay_in_one_split(tmp_path):
    text = with_copies(tmp_path).read_text()
    for name in range(0, 24, 4):  # two more tracks of these artists
        text = text.replace(f"{name + 2}.mp3,x,{name + 2}\n", f"{name + 2}.mp3,x,{name}\n")
    table = read_table(write(tmp_path / "t.csv", text))
    built = build(
        table, tmp_path / "out", base_dir=tmp_path / "mels", keep_duplicates_together=True,
        fractions=(0.4, 0.3, 0.3),
    )  # fmt: skip
    side = {key: split for split, keys in built.splits.items() for key in keys}
    assert all(side[f"{i}.mmap"] == side[f"{i + 1}.mmap"] for i in range(0, 24, 3))
    assert all(side[f"{i}.mmap"] == side[f"{i + 2}.mmap"] for i in range(0, 24, 4))


def test_copies_cannot_be_kept_together_in_a_split_of_the_tables_own(tmp_path):
    table = read_table(write(tmp_path / "t.csv", WITH_SPLIT))
    for base_dir, kind in ((None, "missing"), (tmp_path, "conflict")):
        with pytest.raises(InputError) as error:
            build(table, tmp_path / "out", base_dir=base_dir, keep_duplicates_together=True)
        assert (error.value.kind, error.value.setting) == (kind, "--keep-duplicates-together")


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
    with pytest.raises(InputError) as error:
        split_by_group(["a", "b", "c"], np.ones((3, 1), bool), wrong, 0)
    assert error.value.setting == "--fractions"


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
    assert "--fractions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["build", str(path), "--out-dir", str(tmp_path / "out"), "--fractions", "a"])


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, capsys):
    """A file where the folder should go."""
    path = write(tmp_path / "t.csv", "path,labels\na.mp3,x\nb.mp3,x\nc.mp3,x\n")
    for out in (path, path / "below"):
        assert main(["build", str(path), "--out-dir", str(out)]) == 1
        captured = capsys.readouterr()
        assert f": --out-dir: {out}: " in captured.err
        assert captured.err.count("\n") == 1


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
    built = build(read_table(path, values_column=["valence", "tempo"]), tmp_path / "again")
    assert built.per_split.shape == (3, 2)
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
    assert "'tempo'" in told
    assert not (tmp_path / "out").exists()


def test_labels_and_values_at_once_are_refused(tmp_path, capsys):
    path = write(tmp_path / "t.csv", "path,tempo,genre\na.mp3,1,jig\n")
    columns = ["--values-column", "tempo", "--labels-column", "genre"]
    assert main(["build", str(path), "--out-dir", str(tmp_path / "out"), *columns]) == 1
    assert "--labels-column" in capsys.readouterr().err
    columns = ["--values-column", "speed"]
    assert main(["build", str(path), "--out-dir", str(tmp_path / "out"), *columns]) == 1
    assert ": --values-column: " in capsys.readouterr().err
