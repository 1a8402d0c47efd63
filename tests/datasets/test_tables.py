"""Tables of tracks and labels: delimiters, columns, names, paths, and what is refused."""

from pathlib import Path

import pytest
from label_tables import ENCODINGS, WITH_SPLIT, labels, options, read
from made_up import refuses

from maest.datasets.tables import read_table


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_rows_are_what_the_table_says():
    table = read(WITH_SPLIT)
    assert table.keys == [
        *("a/1.mmap", "a/2.mmap", "b/3.mmap", "b/4, live.mmap", "c/5.mmap", "c/6.mmap")
    ]
    sets = [{"rock", "pop"}, {"rock"}, {"jazz"}, {"jazz", "rock"}, set(), {"pop"}]
    assert labels(table) == sets
    assert table.splits == ["train", "train", "validation", "validation", "test", "test"]
    assert (table.groups, table.lines) == (list("AABBCC"), [2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("first", ["", "sep=;\n", "SEP=;\r\n", '"sep=;"\n'])
def test_what_spreadsheets_write(encoding, first):
    text = first + 'path;labels;artist\na.mp3;"Folk, World, & Country; pop";Zoë\nb.mp3;;A, B\n'
    table = read(text, encoding=encoding)
    assert table.keys == ["a.mmap", "b.mmap"]
    assert labels(table) == [{"Folk, World, & Country", "pop"}, set()]
    assert table.groups == ["Zoë", "A, B"]
    assert table.lines == ([3, 4] if first else [2, 3])


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("sep=|\npath|labels\na.mp3|rock,pop\n", ",", {"rock", "pop"}),
        ("Filename\tTAGS\n\t\na.mp3\tñu|b c\n", "|", {"ñu", "b c"}),
        ('path,"a;b;c;d",labels\r\na.mp3,1,rock\r\n', ";", {"rock"}),
        ("path,guitar,loud,empty,year\na.mp3,1.0,,,2\n", ";", {"guitar"}),  # from pandas
        ("path,vocal\na.mp3,1\nb.mp3,0\n", ";", {"vocal"}),
        ("path,label\na.mp3,1\nb.mp3,\n", ";", {"label"}),
        ("path,loud,slow\na.mp3,TRUE,FALSE\n", ";", {"loud"}),
        ("path,loud,slow\na.mp3,True,\nb.mp3,,True\n", ";", {"loud"}),
        ("path,genre,vocal\na.mp3,rock;pop,1\n", ";", {"rock", "pop"}),
    ],
)
def test_labels_of_the_first_track(text, separator, expected):
    table = read(text, "--separator", separator)
    assert (table.keys[0], labels(table)[0]) == ("a.mmap", expected)


@pytest.mark.parametrize(
    ("cells", "titles", "n_warnings"),
    [
        (('"Heroes" live', "b"), ['"Heroes" live', "b"], 1),  # a quote sign inside
        (('"Heroes', "b"), ['"Heroes', "b"], 1),  # one that never ends
        (('"Heroes', 'b"'), ['"Heroes', 'b"'], 1),  # one that ends in another row
        (('7" mix', "b"), ['7" mix', "b"], 0),
        (('"Heroes ""live"""', "b"), ['Heroes "live"', "b"], 0),  # rightly quoted
        (('"two\nlines"', "b"), ["two\nlines", "b"], 0),
    ],
)
def test_quote_signs_in_titles(cells, titles, n_warnings):
    rows = "".join(f"{i}.mp3\t{cell}\tx\n" for i, cell in enumerate(cells))
    table = read(f"path\tartist\tlabels\n{rows}")
    assert (table.keys, table.groups) == (["0.mmap", "1.mmap"], titles)
    assert labels(table) == [{"x"}, {"x"}]
    assert len(table.warnings) == n_warnings


def test_columns_are_chosen_by_name():
    text = "where,genre,mood,label,who\na.mp3,rock,calm,x,A\nb.mp3,pop,,y,B\n"
    where = ["--path-column", "where"]
    with refuses("conflict", "t.csv"):
        read(text, *where)
    table = read(text, *where, "--labels-column", "Genre", "mood", "--group-column", "who")
    assert labels(table) == [{"rock", "calm"}, {"pop"}]
    assert (table.groups, table.columns["not used"]) == (["A", "B"], ["label"])
    table = read(text, *where, "--labels-column", "label", "--group-column", "genre")
    assert (table.groups, labels(table)) == (["rock", "pop"], [{"x"}, {"y"}])
    with refuses("unknown", "t.csv", "--group-column"):
        read(text, *where, "--group-column", "x")


@pytest.mark.parametrize(
    "name", ["artist", "Artist Name", "track_artist", "artistName", "ARTIST_ID", "album-artist"]
)
def test_columns_are_recognised_without_case_spaces_and_underscores(name):
    table = read(f"File Name,{name},Genres,x\na.mp3,A,rock,1\nb.mp3,B,pop,2\n")
    assert table.columns == {
        "path": ["File Name"], "labels": ["Genres"], "group": [name], "not used": ["x"]
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fold", "Fold", "split", "sub_set", "album_id", "Track", "audio"])
def test_columns_of_splits_groups_and_paths_are_no_labels(name):
    table = read(f"path,artist,{name},vocal\na,A,1,1\nb,B,0,0\n", "--ignore-split")
    assert (labels(table), table.columns["not used"]) == ([{"vocal"}, set()], [name])


def test_which_columns_of_0_and_1_are_labels_can_be_said():
    """Blank cells count as 0; both are warned of."""
    text = "path,guitar,is_loud,year\na.mp3,1,0,1\nb.mp3,,1,2\nc.mp3,0,,1\n"
    table = read(text)
    assert labels(table) == [{"guitar"}, {"is_loud"}, set()]
    taken, blank = table.warnings
    assert "'guitar', 'is_loud'" in taken
    assert "'guitar', 'is_loud'" in blank
    table = read(text.replace("b.mp3,,", "b.mp3,0,"), "--labels-column", "guitar")
    assert (labels(table), table.warnings) == ([{"guitar"}, set(), set()], [])
    text = "path,genre,vocal\na.mp3,rock;pop,1\nb.mp3,,0\n"
    table = read(text, "--labels-column", "genre", "vocal")
    assert labels(table) == [{"rock", "pop", "vocal"}, set()]
    text = "path,held_out,vocal\na.mp3,1,1\nb.mp3,0,0\n"
    table = read(text, "--split-column", "held_out", "--ignore-split")
    assert (labels(table), table.splits) == ([{"vocal"}, set()], None)


@pytest.mark.parametrize("cell", ["rock, pop", "rock|pop", "rock/pop"])
def test_another_separator_is_warned_of(cell):
    text = f"path\tlabels\na.mp3\t{cell}\nb.mp3\tpop\n"
    (warning,) = read(text).warnings
    assert f"'{cell}'" in warning
    table = read(text, "--separator", cell[4])
    assert (labels(table)[0], table.warnings) == ({"rock", "pop"}, [])
    assert read(text + "c.mp3\tpop;jazz\n").warnings == []  # it is a label's name


def test_names_in_several_spellings():
    """Spellings of labels are warned of; spellings of an artist are one group."""
    text = "path,labels\na.mp3,Pop\nb.mp3,pop\nc.mp3,Hip  Hop;rock\nd.mp3,hip hop;jazz\n"
    (warning,) = read(text).warnings
    assert all(name in warning for name in ("'Hip  Hop'", "'hip hop'", "'Pop'", "'pop'"))
    names = ["The Band", "the band", " THE  BAND ", "Be\u0301la", "B\u00e9la", ""]
    rows = "".join(f"{i}.mp3,x,{name}\n" for i, name in enumerate(names))
    table = read(f"path,labels,artist\n{rows}")
    assert table.groups == ["The Band"] * 3 + ["Be\u0301la"] * 2 + [""]


def test_absolute_paths():
    text = "path,labels\n/music/x/a.mp3,x\n/music/./b.mp3,y\nc.mp3,y\n"
    for folder in ("/music", "/music/", "/music/x/.."):
        assert read(text, "--audio-dir", folder).keys == ["x/a.mmap", "b.mmap", "c.mmap"]
    assert read(text, "--audio-dir", "/").keys[0] == "music/x/a.mmap"
    for folder in ("/mus", "/music/x", "music"):
        with refuses("invalid", "t.csv"):
            read(text, "--audio-dir", folder)


def test_paths_of_windows():
    assert read("path,labels\nrock\\a.mp3,x\nb.mp3,y\n").keys == ["rock/a.mmap", "b.mmap"]
    text = "path,labels\nC:\\Music\\rock\\a.mp3,x\nC:\\Music\\b.mp3,y\n"
    for folder in ("C:\\Music", "C:\\Music\\", "C:/Music", "c:/music"):
        assert read(text, "--audio-dir", folder).keys == ["rock/a.mmap", "b.mmap"]
    for folder in ("D:/Music", "C:/Music/rock", "/Music"):
        with refuses("invalid", "t.csv"):
            read(text, "--audio-dir", folder)


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("", "empty", None),
        ("path,labels\n", "empty", None),
        ("path,labels\na.mp3,x,y\n", "invalid", 2),
        ("path,labels\n\na.mp3\n", "invalid", 3),
        ("song,labels\na.mp3,x\n", "missing", None),
        ("path,words\na.mp3,x\n", "missing", None),
        ("path,guitar\na.mp3,0.5\n", "missing", None),
        ("path,labels,labels\na.mp3,x,y\n", "invalid", 1),
        ("path,labels,\na.mp3,x,y\n", "invalid", 1),
        ("path,labels\na.mp3,x\nb.mp3,y\n./a.mp3,y\n", "conflict", 4),
        ("path,labels\na.mp3,x\na.wav,y\n", "conflict", 3),
        ("path,labels\n7,x\n8,x\n7.mp3,y\n", "conflict", 4),
        ("path,labels\na,x\na.mmap,y\n", "conflict", 3),
        ("path,labels\n/music/a.mp3,x\n", "invalid", 2),
        ("path,labels\nC:\\music\\a.mp3,x\n", "invalid", 2),
        ("path;labels\na.mp3;x;y\n", "invalid", 2),
        ("path,labels\n../a.mp3,x\n", "invalid", 2),
        ("path,labels\nx\\a.mp3,x\nx/b.mp3,x\n", "invalid", 2),
        ("path,labels\n,x\n", "invalid", 2),
        ("path,labels,split\na.mp3,x,dev\n", "invalid", 2),
        ('path,labels\n"a.mp3,x\nb.mp3,y\n', "invalid", 3),
        ("TRACK_ID\tPATH\tTAGS\nt1\t14/1.mp3\trock\tpop\n", "invalid", 2),
    ],
)
def test_tables_that_are_refused(text, kind, line):
    with refuses(kind, "t.csv") as error:
        read(text)
    assert error.value.message.startswith(f"line {line}: ") or line is None
    assert ("jamendo/preprocess.py" in error.value.hint) == text.startswith("TRACK_ID")


def test_files_that_are_no_tables():
    with refuses("invalid", "t.csv") as error:
        read("path,labels\na.mp3,café\n", encoding="latin-1")
    assert error.value.message.startswith("line 2: ")
    for path, kind in (("none.csv", "missing"), (".", "access")):
        given = options("")
        given.table = Path(path)
        with refuses(kind, path):
            read_table(given)
