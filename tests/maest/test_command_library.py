"""``maest index`` and ``maest similar``, on real music."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from libraries import write_wav
from maest_command import Done, maest, refused, save_model_of_moods
from music import tone
from mutagen.flac import FLAC
from sounds import write
from tagged_music import FILES, write_plain, write_tagged

import maest as package
from maest.analysis import Analyser

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model_of_moods(tmp_path_factory.mktemp("model") / "moods")


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    """Six songs of two albums, by their folders, of which f is a copy of a."""
    folder = tmp_path_factory.mktemp("music")
    for i, name in enumerate(("x/a.flac", "x/b.mp3", "x/c.ogg", "y/d.flac", "y/e.wav")):
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, tone(3, i), 16_000)
    (folder / "y/f.flac").write_bytes((folder / "x/a.flac").read_bytes())
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory, music, model) -> Path:
    path = tmp_path_factory.mktemp("data") / "my.sqlite"
    (done,) = maest("index", music, "--model", model, "--library", path, "--json").lines
    assert (done["new"], done["copies"], done["analysed"], done["failed"]) == (5, 1, 5, 0)
    return path


# ---- index -----------------------------------------------------------------------------------


def test_what_was_analysed_is_not_analysed_again(library, music, model):
    (done,) = maest("index", music, "--model", model, "--library", library, "--json").lines
    assert (done["unchanged"], done["analysed"]) == (6, 0)
    assert (
        "0 tracks analysed, 6 unchanged"
        in maest("index", music, "--model", model, "--library", library).out
    )


def test_it_holds_what_tag_and_embed_say(library, music, model):
    analyser = Analyser(model)
    with package.Library(library, read_only=True) as opened:
        assert opened.models() == [(analyser.model, 5)]
        for song in package.tag(music / "x", analyser, top=99):
            kept = opened.result(song.path)
            assert [label for label, _ in kept.tags] == [label for label, _ in song.tags]
            values = [value for _, value in song.tags]
            np.testing.assert_allclose([v for _, v in kept.tags], values, atol=1e-3)
        (embedded,) = package.embed(music / "x/a.flac", analyser)
        ours = opened.result(music / "x/a.flac").embedding
        np.testing.assert_allclose(ours, embedded.embeddings[0], rtol=1e-2, atol=1e-2)


def test_each_container_and_its_tags(tmp_path, model):
    (tmp_path / "music").mkdir()
    for name in FILES:
        write_tagged(tmp_path / "music" / name)
    line = ("index", tmp_path / "music", "--model", model, "--library", tmp_path / "l.sqlite")
    (done,) = maest(*line, "--json").lines
    assert done["analysed"] + done["copies"] == len(FILES)
    # Writing tags changes nothing: sounds are known by their packets.
    tag = ("tag", tmp_path / "music", "--model", model, "--threshold", "0")
    maest(*tag, "--write", "--log", tmp_path / "log")
    (done,) = maest(*line, "--json").lines
    assert (done["retagged"], done["analysed"]) == (len(FILES), 0)


def test_a_bad_file_costs_that_file_only(tmp_path, model):
    (tmp_path / "music").mkdir()
    write_plain(tmp_path / "music/a.flac")
    broken = tmp_path / "music/b.mp3"
    broken.write_bytes(b"no song")
    line = ("index", tmp_path / "music", "--model", model, "--library", tmp_path / "l.sqlite")
    done = Done(*line, "--json")
    assert done.code == 1
    assert (done.lines[0]["analysed"], done.lines[0]["failed"]) == (1, 1)
    assert list(done.lines[0]["reasons"]) == [str(broken)]
    assert "b.mp3" in done.err
    assert maest(*line)  # it is known, until it changes
    assert Done(*line, "--again").code == 1
    broken.unlink()
    (done,) = maest(*line, "--json", "--forget").lines
    assert (done["gone"], done["forgotten"]) == (1, 1)
    (tmp_path / "music").rename(tmp_path / "away")
    (done,) = maest(*line, "--json", "--forget").lines
    assert (done["offline"], done["forgotten"]) == (1, 1)
    refused("missing", *line)


def test_names_that_are_no_utf_8(tmp_path, model):
    name = os.fsdecode(b"caf\xe9.flac")
    (tmp_path / "music").mkdir()
    write_plain(tmp_path / "a.flac").rename(tmp_path / "music" / name)
    write_wav(tmp_path / "music/b.wav", 1, 16_000)
    maest("index", tmp_path / "music", "--model", model, "--library", tmp_path / "l.sqlite")
    line = ("similar", tmp_path / "music/b.wav", "--library", tmp_path / "l.sqlite")
    (found,) = maest(*line, "--json").lines
    assert found["tracks"][0]["path"] == str(tmp_path / "music" / name)


def test_the_library_is_in_the_data_folder(tmp_path, model, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    write_wav(tmp_path / "music/a.wav", 0, 16_000)
    maest("index", tmp_path / "music", "--model", model)
    assert [path.name for path in (tmp_path / "music").iterdir()] == ["a.wav"]
    assert (tmp_path / "data/maest/library.sqlite").is_file()
    refused("missing", "index", tmp_path / "nothing", "--model", model)
    refused("missing", "similar", tmp_path / "a", "--library", tmp_path / "no.sqlite")


def test_the_library_is_never_inside_the_music(tmp_path, model):
    write_wav(tmp_path / "music/a.wav", 0, 16_000)
    (tmp_path / "link").symlink_to(tmp_path / "music")
    inside = tmp_path / "link/l.sqlite"
    refused("conflict", "index", tmp_path / "music", "--model", model, "--library", inside)
    assert [path.name for path in (tmp_path / "music").iterdir()] == ["a.wav"]


@pytest.mark.slow
def test_killed_and_two_at_once(tmp_path, model):
    for i in range(60):
        write_wav(tmp_path / f"music/{i:02d}.wav", i, 4_000)
    path = tmp_path / "l.sqlite"
    line = [sys.executable, "-m", "maest", "index", tmp_path / "music", "--model", model]

    def start() -> subprocess.Popen:
        return subprocess.Popen([*line, "--library", path], cwd=ROOT, stdout=subprocess.DEVNULL)

    def number() -> int:
        if not path.exists():
            return 0
        with package.Library(path, read_only=True) as library:
            return sum(n for _, n in library.models())

    killed = start()
    while number() < 10 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert number() >= 10
    assert [process.wait() for process in [start(), start()]] == [0, 0]
    assert number() == 60


@pytest.mark.slow
def test_ten_thousand_tiny_files(tmp_path, model):
    for i in range(10_000):
        write_wav(tmp_path / f"music/{i % 100:02d}/{i}.wav", i, 400)
    line = ("index", tmp_path / "music", "--model", model, "--library", tmp_path / "l.sqlite")
    assert maest(*line, "--json").lines[0]["analysed"] == 10_000
    assert maest(*line, "--json").lines[0]["unchanged"] == 10_000
    song = tmp_path / "music/07/7.wav"
    assert len(maest("similar", song, "--library", tmp_path / "l.sqlite").out.splitlines()) == 10


# ---- similar ---------------------------------------------------------------------------------


def names(done: Done) -> list[str]:
    return [Path(track["path"]).name for track in done.lines[0]["tracks"]]


def test_similar_tracks(library, music):
    line = ("similar", music / "x/b.mp3", "--library", library)
    found = maest(*line, "--json")
    assert sorted(names(found)) == ["a.flac", "c.ogg", "d.flac", "e.wav"]  # of copies, one
    cosines = [track["cosine"] for track in found.lines[0]["tracks"]]
    assert cosines == sorted(cosines, reverse=True)
    assert len(maest(*line, "--top", 2).out.splitlines()) == 2
    also = maest(*line, "--also", music / "x/c.ogg", "--also", music / "y/d.flac", "--json")
    assert sorted(names(also)) == ["a.flac", "e.wav"]


def test_albums_are_left_out(library, music):
    line = ("similar", music / "x/b.mp3", "--library", library, "--json")
    assert sorted(names(maest(*line, "--not", "same-album"))) == ["d.flac", "e.wav"]
    assert Done(*line, "--not", "same-artist").code == 2


def test_a_playlist(library, music, tmp_path):
    song = music / "x/b.mp3"
    found = maest("similar", song, "--library", library, "--m3u", tmp_path / "p.m3u8", "--json")
    lines = (tmp_path / "p.m3u8").read_text("utf-8").splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert [Path(line).name for line in listed] == names(found)
    refused("exists", "similar", song, "--library", library, "--m3u", song)


def test_copies_are_listed(library, music):
    (found,) = maest("similar", "--duplicates", "--library", library, "--json").lines
    groups = [[Path(track["path"]).name for track in group] for group in found["groups"]]
    assert any({"a.flac", "f.flac"} <= set(group) for group in groups)
    assert "f.flac" in maest("similar", "--duplicates", "--library", library).out
    assert Done("similar", "--duplicates", music / "x/a.flac").code == 2
    assert Done("similar", "--library", library).code == 2


def test_a_song_that_the_library_lacks(library, music, tmp_path):
    write(tmp_path / "b.flac", tone(3, 1), 16_000)  # x/b.mp3 before its encoder
    found = maest("similar", tmp_path / "b.flac", "--library", library, "--json")
    assert names(found)[0] == "b.mp3"
    refused("missing", "similar", tmp_path / "no.flac", "--library", library)
    assert Done("similar", music, "--library", library).code == 2
    also = maest("similar", music / "x/a.flac", "--also", tmp_path / "b.flac", "--library", library)
    assert len(also.out.splitlines()) == 4


def test_the_album_of_a_song_that_the_library_lacks(model, tmp_path):
    tags = {"album": "Y", "albumartist": "Z", "artist": "Z"}
    for i in range(4):
        write_wav(tmp_path / f"music/{i}/{i}.wav", i, 16_000)
        write(tmp_path / f"{i}.flac", tone(3, i), 16_000)
        file = FLAC(tmp_path / f"{i}.flac")
        file.update(tags)
        file.save()
    for i in (1, 2):
        (tmp_path / f"{i}.flac").rename(tmp_path / f"music/{i}/y.flac")
    maest("index", tmp_path / "music", "--model", model, "--library", tmp_path / "l.sqlite")
    line = ("similar", tmp_path / "0.flac", "--library", tmp_path / "l.sqlite", "--json")
    assert len(names(maest(*line))) == 6
    assert sorted(names(maest(*line, "--not", "same-album"))) == [f"{i}.wav" for i in range(4)]


def test_a_model_of_the_library_is_chosen(library, music, model):
    line = ("similar", music / "x/b.mp3", "--library", library)
    assert maest(*line, "--model", model).out == maest(*line).out
    assert model.name in refused("unknown", *line, "--model", "another")


def test_reading_writes_nothing(library, music):
    before = {path.name: path.read_bytes() for path in library.parent.iterdir()}
    maest("similar", music / "x/b.mp3", "--library", library)
    assert library.read_bytes() == before[library.name]
