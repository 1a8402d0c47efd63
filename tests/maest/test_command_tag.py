"""``maest tag``: what is shown, listed, and written into real files of each container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import killed_at, rows, tree
from maest_command import LABELS, Done, maest, refused, save_model_of_moods
from mutagen.id3 import ID3, TCON
from sounds import chords, write
from tagged_music import FILES, metadata, packets, texts, write_plain, write_tagged

import maest as package
from maest.command import tag_writer
from maest.file_tags import apply
from maest.helpers.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ALL = ("--threshold", "0")  # each label is a tag


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model_of_moods(tmp_path_factory.mktemp("model") / "moods")


@pytest.fixture(autouse=True)
def in_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def music(tmp_path) -> Path:
    """A file of each container, without tags."""
    (tmp_path / "music").mkdir()
    for name in FILES:
        write_plain(tmp_path / "music" / name)
    return tmp_path / "music"


@pytest.fixture
def few(tmp_path) -> Path:
    """Three files; the last is not audio."""
    for name in ("a.flac", "b.mp3"):
        (tmp_path / "few").mkdir(exist_ok=True)
        write_plain(tmp_path / "few" / name)
    (tmp_path / "few/broken.mp3").write_bytes(b"no song")
    return tmp_path / "few"


# ---- what is shown ---------------------------------------------------------------------------


def test_tags_as_json_a_line_a_track(few, model):
    done = Done("tag", few, "--model", model, "--json", *ALL)
    first, second, broken = done.lines
    assert [line["path"] for line in done.lines] == [
        str(few / name) for name in ("a.flac", "b.mp3", "broken.mp3")
    ]
    assert {tag["label"] for tag in first["tags"]} == set(LABELS)
    values = [tag["value"] for tag in second["tags"]]
    assert values == sorted(values, reverse=True)
    assert first["seconds"] == pytest.approx(0.5, abs=0.05)
    assert (first["warnings"], first["error"]) == (["0.5 s only"], None)
    # A bad file is skipped, and the exit code says so.
    assert broken["error"]
    assert broken["tags"] == []
    assert done.code == 1
    assert "1 failed" in done.err.splitlines()[-1]


def test_tags_for_people(few, model):
    done = Done("tag", few, "--model", model, *ALL)
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [
        str(few / "a.flac"),
        str(few / "b.mp3"),
    ]
    assert "broken.mp3" in done.err
    assert len(maest("tag", few / "a.flac", "--model", model, *ALL).out.splitlines()) == 1


def test_top_groups_and_thresholds(few, tmp_path):
    model = save_model_of_moods(tmp_path / "model", [0.0, None, 1.1])

    def labels(*options) -> list[str]:
        line = ("tag", few / "a.flac", "--model", model, "--json", *options)
        return [tag["label"] for tag in maest(*line).lines[0]["tags"]]

    assert labels() == ["Electronic---Techno"]
    assert set(labels(*ALL)) == set(LABELS)
    assert labels("--threshold", "1") == []
    assert len(labels(*ALL, "--top", "2")) == 2
    assert labels(*ALL, "--groups", "mood") == ["Mood---Dark"]
    assert labels(*ALL, "--groups", "voice,mood") == ["Mood---Dark"]  # of voices it knows nothing
    assert (
        labels(*ALL, "--groups", "Mood, instrument", "--top", "1")
        == labels(*ALL, "--groups", "mood,instrument")[:1]
    )
    for wrong in (
        ("--groups", "moods"),
        ("--groups", "voice"),
        ("--threshold", "high"),
        ("--threshold", "nan"),
    ):
        assert Done("tag", few, "--model", model, *wrong).code == 2


def test_a_table(few, model, tmp_path):
    Done("tag", few, "--model", model, "--csv", tmp_path / "tags.csv", *ALL)
    table = rows(tmp_path / "tags.csv")
    assert [(Path(row["path"]).name, row["rank"]) for row in table] == [
        *(("a.flac", str(rank)) for rank in (1, 2, 3)),
        *(("b.mp3", str(rank)) for rank in (1, 2, 3)),
        ("broken.mp3", "0"),
    ]
    assert table[-1]["error"]
    before = tree(few)
    refused("exists", "tag", few, "--model", model, "--csv", few / "a.flac")
    assert tree(few) == before


def test_names_that_are_no_utf_8(tmp_path, model):
    name = os.fsdecode(b"caf\xe9\n.flac")
    write_plain(tmp_path / "a.flac").rename(tmp_path / name)
    line = ("tag", tmp_path / name, "--model", model, "--csv", tmp_path / "tags.csv", *ALL)
    (tagged,) = maest(*line, "--json", "--write").lines
    assert os.fsencode(tagged["path"]) == bytes(tmp_path / name)
    assert rows(tmp_path / "tags.csv")[0]["path"] == str(tmp_path / name)
    assert texts(tmp_path / name)["mood"] == ["Dark"]
    assert maest(*line).out.count("\n") == 1


def test_a_page(tmp_path, model):
    song = tmp_path / "a.mp3"
    write(song, chords(5, 16_000), 16_000)
    maest("tag", song, "--model", model, "--page", tmp_path / "report.html", *ALL)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert '"link":"a.mp3"' in page
    assert all(label in page for label in LABELS)
    assert len(page) < 100_000
    embedded = ("--page", tmp_path / "report.html", "--embed-audio")
    maest("tag", song, "--model", model, *embedded)
    assert len((tmp_path / "report.html").read_text("utf-8")) > len(page) + song.stat().st_size
    refused("exists", "tag", song, "--model", model, "--page", song)
    assert Done("tag", song, "--embed-audio").code == 2


def test_titles_of_the_page_are_those_of_the_files(tmp_path, model):
    write_tagged(tmp_path / "v24.mp3")
    maest("tag", tmp_path / "v24.mp3", "--model", model, "--page", tmp_path / "r.html")
    assert "Artist - T\\u00eftle" in (tmp_path / "r.html").read_text("utf-8")


def test_tags_in_python(few, model):
    found = list(package.tag([few / "a.flac", few / "broken.mp3"], model, threshold=0, top=2))
    assert [len(song.tags) for song in found] == [2, 0]
    assert found[1].error
    analyser = package.Analyser(model)
    assert next(package.tag(few / "a.flac", analyser, threshold=0, top=2)).tags == found[0].tags
    with pytest.raises(InputError) as raised:
        package.tag(few / "nothing.mp3", analyser)
    assert raised.value.kind == "missing"


# ---- what is written -------------------------------------------------------------------------


def test_tags_are_written_into_each_container(music, model):
    before, sounds = tree(music), {name: packets(music / name) for name in FILES}
    maest("tag", music, "--model", model, *ALL)
    (first, *_) = maest(
        "tag", music, "--model", model, *ALL, "--write", "--dry-run", "--json"
    ).lines
    assert first["changes"]
    assert tree(music) == before  # nothing without --write, and nothing by a dry run
    done = maest("tag", music, "--model", model, *ALL, "--write", "--json")
    assert len(done.lines) == len(FILES)
    for name in FILES:
        found = {"genre": ["Electronic"], "style": ["Techno"], "mood": ["Dark"]}
        assert texts(music / name) == found, name
        assert metadata(music / name)["GENRE"] == "Electronic"
        assert packets(music / name) == sounds[name]


def test_undo_puts_back_what_still_holds_our_value(music, model, tmp_path):
    before, log = tree(music), tmp_path / "log.jsonl"
    maest("tag", music, "--model", model, *ALL, "--write", "--log", log)
    edited = ID3(music / "v24.mp3")
    edited["TMOO"].text = ["Happy"]
    edited.save()
    (undone,) = maest("tag", "--undo", log, "--json").lines
    assert [Path(row["path"]).name for row in undone["edited"]] == ["v24.mp3"]
    assert len({row["path"] for row in undone["restored"]}) == len(FILES)
    assert texts(music / "v24.mp3") == {"genre": [], "style": [], "mood": ["Happy"]}
    for name in set(before) - {"v24.mp3"}:
        assert texts(music / name) == {"genre": [], "style": [], "mood": []}
    # What was put back is written again when it is asked for again.
    again = maest("tag", music, "--model", model, *ALL, "--write", "--log", log, "--json")
    assert len(again.lines) == len(FILES)
    refused("missing", "tag", "--undo", tmp_path / "no.jsonl")


def test_fields_with_a_value_stay_without_replace(few, model):
    song = few / "b.mp3"
    ID3().save(song)
    tags = ID3(song)
    tags.add(TCON(text=["Polka"]))
    tags.save()
    line = ("tag", song, "--model", model, *ALL, "--write")
    maest(*line)
    assert texts(song) == {"genre": ["Polka"], "style": ["Techno"], "mood": ["Dark"]}
    maest(*line, "--replace", "--comment", "--keep-dates")
    assert texts(song)["genre"] == ["Electronic"]
    assert "[maest: " in metadata(song)["COMMENT"]


def test_dates_are_kept(few, model):
    os.utime(few / "a.flac", (1e9, 1e9))
    maest("tag", few / "a.flac", "--model", model, *ALL, "--write", "--keep-dates")
    assert (few / "a.flac").stat().st_mtime == 1e9
    assert texts(few / "a.flac")["mood"] == ["Dark"]


def test_labels_that_may_all_be_wrong_are_not_written(few, model):
    before = {path: path.read_bytes() for path in few.iterdir()}
    refused("missing", "tag", few, "--model", model, "--write")
    assert {path: path.read_bytes() for path in few.iterdir()} == before


def test_files_that_cannot_be_written_are_counted(few, model):
    write(few / "c.mka", chords(1, 16_000), 16_000)
    (few / "a.flac").chmod(0o444)
    (few / "broken.mp3").unlink()
    done = maest("tag", few, "--model", model, *ALL, "--write", "--json")
    assert ["skipped" in line for line in done.lines] == [True, False, True]
    assert "1 written" in done.err
    assert done.err.count("skipped (") == 2


def test_options_of_writing_need_it(few):
    assert Done("tag", few, "--replace").code == 2
    for other in ((few,), ("--page", few / "a.html"), ("--csv", few / "a.csv"), ("--top", 5)):
        assert Done("tag", "--undo", few / "log", *other).code == 2


def test_a_log_is_no_file_of_others(few, model, tmp_path):
    """It is opened before the model."""
    listed = maest("tag", few / "a.flac", "--model", model, "--json").out
    (tmp_path / "tags.jsonl").write_text(listed)
    before = tree(tmp_path)
    line = ("tag", few, "--model", "no-such-model", *ALL, "--write", "--log")
    for log in (few / "b.mp3", tmp_path / "tags.jsonl"):
        assert str(log) in refused("exists", *line, log)
    assert f" {few}:" in refused("access", *line, few)
    assert tree(tmp_path) == before


# ---- stopped, it goes on ---------------------------------------------------------------------


def test_a_stopped_run_goes_on(music, model):
    line = ("tag", music, "--model", model, *ALL, "--write", "--json")
    with killed_at(3, tag_writer, "apply"):
        Done(*line)
    assert sum(texts(path)["mood"] == ["Dark"] for path in music.iterdir()) == 3
    assert len(maest(*line).lines) == len(FILES) - 3
    done = maest(*line)
    assert (done.lines, f"{len(FILES)} done before" in done.err) == ([], True)
    # Another file, and the same with other options
    write_plain(music / "new.flac")
    assert [Path(row["path"]).name for row in maest(*line).lines] == ["new.flac"]
    assert len(maest(*line, "--replace").lines) == len(FILES) + 1
    # A table or a page are of all tracks.
    assert len(maest(*line, "--csv", music / "tags.csv").lines) == len(FILES) + 1


def test_ctrl_c_says_so(few, model, monkeypatch, tmp_path):
    def stop(*values: object) -> None:
        apply(*values)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(tag_writer, "apply", stop)
    log = tmp_path / "log.jsonl"
    written = ("--write", "--log", log, "--csv", few / "tags.csv")
    done = Done("tag", few, "--model", model, *ALL, *written)
    assert f"--undo {log}" in done.err
    assert done.code == 130
    assert done.err.splitlines()[-1].startswith("SIGINT")
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_killed_at_any_instant_files_are_whole(music, model, tmp_path):
    sounds = {name: packets(music / name) for name in FILES}
    line = [sys.executable, "-m", "maest", "tag", music, "--model", model, *ALL, "--write"]
    log = tmp_path / "log.jsonl"
    for _ in range(4):
        lines = len(log.read_bytes().splitlines()) if log.exists() else 0
        process = subprocess.Popen([*line, "--log", log], cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and (
            not log.exists() or len(log.read_bytes().splitlines()) < lines + 4
        ):
            time.sleep(0.001)
        process.kill()
        process.wait()
        for name in FILES:
            assert packets(music / name) == sounds[name]
            assert texts(music / name)["mood"] in ([], ["Dark"])
    subprocess.run([*line, "--log", log], cwd=ROOT, check=True)
    assert all(texts(music / name)["mood"] == ["Dark"] for name in FILES)
    maest("tag", "--undo", log)
    assert all(texts(music / name)["mood"] == [] for name in FILES)
