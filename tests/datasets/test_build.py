"""From a table to the pickles of a ground truth."""

import csv
import io
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from label_tables import (
    ENCODINGS,
    WITH_SPLIT,
    build,
    built,
    built_labels,
    read,
    splits_of_keys,
    warnings,
)
from made_up import refuses

from maest.datasets.groundtruth import check_key, read_groundtruth
from maest.datasets.groundtruth_command import main
from maest.datasets.melspectrograms import write_mel
from maest.datasets.preprocess import preprocess
from maest.datasets.splitting import SPLITS
from maest.helpers.errors import InputError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


def test_a_label_without_a_track_to_train_on_is_warned_of():
    assert "'jazz'" in warnings(build(WITH_SPLIT))[0]


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
    """Of every third recording the next track is a copy; two of silence are not copies."""
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


@pytest.mark.parametrize("cell", ["", "fast", "1,5", "nan", "inf", "1e39"])
def test_a_value_that_is_no_number(cell):
    with refuses("invalid", "t.csv") as error:
        build(f'path,tempo\na.mp3,1\nb.mp3,"{cell}"\nc.mp3,3\n', "--values-column", "tempo")
    assert error.value.message.startswith("line 3: ")


def test_command_line(capsys):
    rows = "".join(f"{i:02d}.mp3,{('jazz', 'rock')[i % 2]},artist {i // 2}\n" for i in range(40))
    Path("t.csv").write_text(f"path,labels,artist\n{rows}")
    command = ["build", "t.csv", "--out-dir", "out"]
    assert main([*command, "--fractions", "0.6,0.2,0.2", "--seed", "4"]) == 0
    assert "| train      |     24 |      2 |" in capsys.readouterr().out
    assert len(built("validation")) == 8
    with pytest.raises(SystemExit):
        main([*command, "--fractions", "a"])
    capsys.readouterr()
    for out in ("t.csv", "t.csv/below"):  # a file where the folder should go
        assert main(["build", "t.csv", "--out-dir", out]) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert f": --out-dir: {out}: " in captured.err


FLAGS = """path,rock,loud,tags,split
a.mp3,1,,x,train
b.mp3,0,1,x;rock,train
c.mp3,,NA,,train
d.mp3,1,0,x,val
e.mp3,,1,,test
"""
NAN = pytest.approx(np.nan, nan_ok=True)


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
