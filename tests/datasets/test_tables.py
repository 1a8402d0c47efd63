"""From a table to ground truths: reading it, splitting it by group, and what is refused."""

from __future__ import annotations

import csv
import io
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from made_up import refuses

from maest.datasets.groundtruth import check_key, read_groundtruth, read_labels
from maest.datasets.groundtruth_command import main, parser
from maest.datasets.melspectrograms import write_mel
from maest.datasets.preprocess import preprocess
from maest.datasets.splitting import SPLITS, split_by_group
from maest.datasets.tables import Table, read_table
from maest.helpers.errors import InputError

WITH_SPLIT = """path,genres,artist,split
a/1.mp3,rock; pop,A,train
a/2.mp3,rock,A,Training
b/3.flac,jazz,B,val
"b/4, live.flac",jazz;rock,B,validation
c/5.wav,,C,TEST
c/6.mmap,pop;;pop,C,test
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def options(text: str, *words: object, encoding: str = "utf-8"):
    Path("t.csv").write_bytes(text.encode(encoding))
    return parser().parse_args(["build", "t.csv", "--out-dir", "out", *map(str, words)])


def read(text: str, *words: object, encoding: str = "utf-8") -> Table:
    return read_table(options(text, *words, encoding=encoding))


def build(text: str, *words: object, encoding: str = "utf-8") -> list[str]:
    given = options(text, *words, encoding=encoding)
    return "\n".join(given.run(given)).splitlines()


def built(split: str = "all", task: str = "multi-label") -> dict[str, list]:
    """The targets of each track."""
    groundtruth = read_groundtruth(f"out/groundtruth-{split}.pk", task)
    return dict(zip(groundtruth.keys, groundtruth.targets.tolist(), strict=True))


def built_labels() -> list[str]:
    return read_labels("out/labels.json")


def splits_of_keys() -> dict[str, str]:
    return {key: split for split in SPLITS for key in built(split)}


def labels(table: Table) -> list[set[str]]:
    """The labels of each track."""
    sets: list[set[str]] = [set() for _ in table.keys]
    for track, label in table.marks.T:
        sets[track].add(table.labels[label])
    return sets


def warnings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("warning: ")]


# ---- reading -------------------------------------------------------------------------------------


def test_rows_are_what_the_table_says():
    table = read(WITH_SPLIT)
    assert table.keys == [
        *("a/1.mmap", "a/2.mmap", "b/3.mmap", "b/4, live.mmap", "c/5.mmap", "c/6.mmap")
    ]
    sets = [{"rock", "pop"}, {"rock"}, {"jazz"}, {"jazz", "rock"}, set(), {"pop"}]
    assert labels(table) == sets
    assert table.splits == ["train", "train", "validation", "validation", "test", "test"]
    assert (table.groups, table.lines) == (list("AABBCC"), [2, 3, 4, 5, 6, 7])


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]
NAMES = st.text(max_size=12).filter(lambda name: name and name == name.strip())


def is_key(name: str) -> bool:
    try:
        return check_key(name) == name and not name.endswith((".mmap", ".npy", ".mp3"))
    except InputError:
        return False


@settings(
    max_examples=100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    rows=st.dictionaries(NAMES.filter(is_key), st.sets(NAMES, max_size=4), min_size=3, max_size=9),
    delimiter=st.sampled_from(",;\t"),
    separator=st.sampled_from(";,|/&"),
    encoding=st.sampled_from(ENCODINGS),
)
def test_the_ground_truth_says_what_the_table_said(rows, delimiter, separator, encoding):
    names = [*rows, *chain(*rows.values())]
    assume(delimiter != "\t" or not any(set("\t\r\n") & set(name) for name in names))
    rows = {key: {name for name in own if separator not in name} for key, own in rows.items()}
    rows[next(iter(rows))].add("a name")  # so that they are not all 0 and 1
    splits = dict(zip(rows, SPLITS * 3, strict=False))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["path", "tags", "split"])
    writer.writerows([key, separator.join(sorted(rows[key])), splits[key]] for key in rows)
    build(text.getvalue(), "--separator", separator, encoding=encoding)
    known = built_labels()
    assert {k: {known[i] for i in np.flatnonzero(row)} for k, row in built().items()} == rows
    assert splits_of_keys() == splits


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


# ---- columns -------------------------------------------------------------------------------------


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
    """Of labels, they are warned of; of artists, they are one group."""
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
        ("path,labels\na.npy,x\na.mmap,y\n", "conflict", 3),
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


# ---- building ------------------------------------------------------------------------------------


def test_pickles_and_labels_of_a_table_with_splits():
    lines = build(WITH_SPLIT)
    assert built_labels() == ["jazz", "pop", "rock"]
    expected = {
        "train": {"a/1.mmap": [0, 1, 1], "a/2.mmap": [0, 0, 1]},
        "validation": {"b/3.mmap": [1, 0, 0], "b/4, live.mmap": [1, 0, 1]},
        "test": {"c/5.mmap": [0, 0, 0], "c/6.mmap": [0, 1, 0]},
    }
    assert {split: built(split) for split in SPLITS} == expected
    assert built() == {k: v for own in expected.values() for k, v in own.items()}
    assert "| train      |      2 |      2 |                0 |                1 |" in lines
    assert "'jazz'" in warnings(lines)[0]  # no track of train has it


def test_rare_labels_are_left_out():
    build(WITH_SPLIT, "--min-positives", 3)
    assert built_labels() == ["rock"]
    assert sum(map(sum, built().values())) == 3
    with refuses("empty", "t.csv"):
        build(WITH_SPLIT, "--min-positives", 4)


def test_tracks_without_a_log_mel_file(tmp_path):
    mels = tmp_path / "mels"
    for key in read(WITH_SPLIT).keys:
        if key != "a/2.mmap":
            write_mel(mels / key, np.zeros((4, 96)))
    with refuses("missing", "t.csv"):
        build(WITH_SPLIT, "--base-dir", mels)
    assert not Path("out").exists()
    build(WITH_SPLIT, "--base-dir", mels, "--skip-missing")
    assert list(built("train")) == ["a/1.mmap"]
    with refuses("missing", "t.csv"):
        build(WITH_SPLIT, "--base-dir", tmp_path, "--skip-missing")
    with refuses("missing", "none", "--base-dir"):
        build(WITH_SPLIT, "--base-dir", tmp_path / "none", "--skip-missing")


def test_two_formats_of_a_song_have_a_log_mel_file_each(tmp_path):
    (tmp_path / "audio").mkdir()
    for i, name in enumerate(("song.flac", "song.wav", "b.wav")):
        sf.write(tmp_path / "audio" / name, np.random.default_rng(i).uniform(-1, 1, 16_000), 16_000)
    mels = tmp_path / "mels"
    assert preprocess(tmp_path / "audio", mels, num_workers=1, progress=False).failed == {}
    text = "path,labels\nsong.wav,x\nsong.flac,y\nb.wav,z\n"
    with refuses("conflict", "t.csv"):
        read(text)
    build(text, "--base-dir", mels)
    expected = {"song.wav.mmap": [1, 0, 0], "song.mmap": [0, 1, 0], "b.mmap": [0, 0, 1]}
    assert built() == expected


def test_a_split_that_would_be_empty():
    two = WITH_SPLIT.replace("validation", "train").replace("val", "train")
    groups = "path,labels,artist\na.mp3,x,A\nb.mp3,y,A\nc.mp3,y,B\n"
    for text in (two, groups):
        with refuses("empty", "t.csv"):
            build(text)
    assert not Path("out").exists()


ROWS = range(20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WITH_SPLIT.replace("b/3.flac,jazz,B", "b/3.flac,jazz,A"), "1 of 3 groups"),
        ("path,labels\n" + "\n".join(f"{i},x" for i in ROWS), "(artist, album)"),
        ("path,labels,artist\n" + "\n".join(f"{i},x,{'A' * (i < 5)}" for i in ROWS), "15 tracks"),
        ("path,labels,artist\n" + "\n".join(f"{i},x,{i}" for i in ROWS), None),
    ],
)
def test_warnings_about_groups(text, expected):
    found = [line for line in warnings(build(text)) if "no track in" not in line]
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_single_label():
    text = (
        "path,label\n" + "".join(f"{i},{('rock', 'pop')[i % 2]}\n" for i in range(9)) + "9,jazz\n"
    )
    single = ["--task", "single-label", "--min-positives", 2]
    build(text, *single)
    assert built_labels() == ["pop", "rock"]
    assert len(built(task="single-label")) == 9  # the track of jazz has no label
    for cell in ("rock;pop", ""):
        with refuses("invalid", "t.csv", "--task") as error:
            build(f"{text}10,{cell}\n", *single)
        assert "12" in error.value.message


@pytest.mark.parametrize(
    ("kind", "setting", "words"),
    [
        ("conflict", "--task", "--task regression"),
        ("conflict", "--task", "--task single-label --values-column tempo"),
        ("conflict", "--values-column", "--values-column tempo --labels-column label"),
        ("conflict", "--keep-duplicates-together", "--keep-duplicates-together --base-dir ."),
        ("missing", "--keep-duplicates-together", "--keep-duplicates-together --ignore-split"),
        ("invalid", "--separator", "--separator="),
        ("invalid", "--fractions", "--ignore-split --fractions 0.8,0.2"),
        ("invalid", "--fractions", "--ignore-split --fractions 0.8,0.2,0"),
        ("invalid", "--fractions", "--ignore-split --fractions=-0.1,-0.1,1.2"),
        ("invalid", "--fractions", "--ignore-split --fractions 0.8,0.1,0.2"),
        ("unknown", "--values-column", "--values-column speed"),
    ],
)
def test_options_that_are_refused(kind, setting, words):
    with refuses(kind, "t.csv" if kind == "unknown" else None, setting):
        build("path,label,tempo,split\na,x,60,train\nb,y,70,test\n", *words.split())


@pytest.mark.parametrize("several", [False, True], ids=["", "tracks of an artist"])
def test_copies_of_a_recording_stay_in_one_split(tmp_path, several):
    """Of every third recording the next track is a copy; so are two of silence, which is none."""
    for i in range(24):
        content = i - 1 if i % 3 == 1 else i
        mel = np.random.default_rng(content).random((4 + content % 5, 96))
        write_mel(tmp_path / "mels" / f"{i}.mmap", mel)
    for name in ("silent", "quiet"):
        write_mel(tmp_path / "mels" / f"{name}.mmap", np.zeros((4, 96)))
    artists = {i: i - 2 if several and i % 4 == 2 else i for i in range(24)}
    rows = [f"{i}.mp3,x,{artist}" for i, artist in artists.items()]
    rows += ["silent.mp3,x,silent", "quiet.mp3,x,quiet"]
    options = ["--base-dir", tmp_path / "mels", "--fractions", "0.4,0.3,0.3"]
    options += ["--keep-duplicates-together", "--seed"]
    for seed in range(3):
        lines = build("\n".join(["path,labels,artist", *rows]), *options, seed)
        splits = splits_of_keys()
        assert all(splits[f"{i}.mmap"] == splits[f"{i + 1}.mmap"] for i in range(0, 24, 3))
        assert all(splits[f"{i}.mmap"] == splits[f"{a}.mmap"] for i, a in artists.items())
        assert any(line.startswith("8 tracks") for line in lines)


def test_real_values_are_a_regressions_ground_truth():
    rows = [f"{i:02d}.mp3,artist {i % 10},{60 + i}.5,{-0.1 * i:.3f},x" for i in range(40)]
    text = "\n".join(["path,artist,tempo,valence,genre", *rows])
    lines = build(text, "--values-column", "valence", "tempo")
    assert lines[-1].startswith("40 tracks, 2 values")
    assert built(task="regression")["07.mmap"] == pytest.approx([-0.7, 67.5])
    assert built_labels() == ["valence", "tempo"]
    keys = [built(split, "regression") for split in SPLITS]
    assert [sum(map(len, keys)), sum(len({int(k[:2]) % 10 for k in own}) for own in keys)] == [
        40,
        10,
    ]


@pytest.mark.parametrize("cell", ["", "fast", "1,5", "nan", "inf", "1e39"])
def test_a_value_that_is_no_number(cell):
    with refuses("invalid", "t.csv") as error:
        build(f'path,tempo\na.mp3,1\nb.mp3,"{cell}"\nc.mp3,3\n', "--values-column", "tempo")
    assert error.value.message.startswith("line 3: ")


# ---- splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_shares_are_close(seed):
    """Groups of 1 to 12 tracks; labels from common to rare, alike within a group."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(200), rng.integers(1, 13, 200))
    styles = rng.random((200, 30)) < np.geomspace(0.4, 0.05, 30)
    marks = styles[groups] & (rng.random((len(groups), 30)) < 0.8)
    splits = np.array(split_by_group(groups.tolist(), marks, (0.8, 0.1, 0.1), seed))
    assert all(len(set(splits[groups == group])) == 1 for group in range(200))
    for split, fraction in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs((splits == split).mean() - fraction) < 0.015
        shares = marks[splits == split].sum(axis=0) / marks.sum(axis=0)
        assert abs(np.median(shares) - fraction) < 0.03
        assert np.abs(shares - fraction).mean() < 0.05
        assert (shares > 0).all()


def test_a_seed_gives_one_split():
    """Kept, too, from one version to the next."""
    groups, marks = np.arange(60) // 3, np.arange(60)[:, None] % [4, 5, 7] == 0
    splits = [split_by_group(groups.tolist(), marks, (0.6, 0.2, 0.2), seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert "".join(split[1] for split in splits[0][::3]) == "rerraerrarrerraaerrr"


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)])
def test_three_groups_or_more_leave_no_split_empty(fractions):
    rng = np.random.default_rng(0)
    for trial in range(150):
        n_groups, n_labels = int(rng.integers(3, 8)), int(rng.integers(1, 6))
        groups = np.repeat(range(n_groups), rng.integers(1, (2, 12, 200)[trial % 3], n_groups))
        marks = rng.random((len(groups), n_labels)) < rng.random(n_labels)
        splits = np.array(split_by_group(groups.tolist(), marks, fractions, trial))
        assert set(splits) == set(SPLITS)
        assert all(len(set(splits[groups == group])) == 1 for group in range(n_groups))


@pytest.mark.parametrize(
    "holders",
    [
        [range(3), range(3, 6), range(6, 12)],
        # Greedily, the last label's three groups may have gone with the others' first.
        [[0, 3, 4], [1, 5, 6], [2, 7, 8], [0, 1, 2]],
    ],
)
def test_a_label_in_three_groups_is_in_every_split(holders):
    marks = np.zeros((12 if len(holders) == 3 else 9, len(holders)), bool)
    for label, own in enumerate(holders):
        marks[list(own), label] = True
    for seed in range(20):
        splits = np.array(split_by_group(range(len(marks)), marks, (0.8, 0.1, 0.1), seed))
        assert all(set(splits[own]) == set(SPLITS) for own in marks.T)


# ---- the command ---------------------------------------------------------------------------------


def test_command_line(capsys):
    rows = "".join(f"{i:02d}.mp3,{('jazz', 'rock')[i % 2]},artist {i // 2}\n" for i in range(40))
    Path("t.csv").write_text(f"path,labels,artist\n{rows}")
    command = ["build", "t.csv", "--out-dir", "out"]
    assert main([*command, "--fractions", "0.6,0.2,0.2", "--seed", "4"]) == 0
    assert "| train      |     24 |      2 |" in capsys.readouterr().out
    keys = built("validation")
    assert len(keys) == 8
    assert all(f"{int(key[:2]) ^ 1:02d}.mmap" in keys for key in keys)  # artists are whole
    with pytest.raises(SystemExit):
        main([*command, "--fractions", "a"])
    capsys.readouterr()
    for out in ("t.csv", "t.csv/below"):  # a file where the folder should go
        assert main(["build", "t.csv", "--out-dir", out]) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert f": --out-dir: {out}: " in captured.err
