"""The library: what a folder holds, and what a model said about it, once for each sound."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from libraries import MODEL, Counted, analyse, analysis, each, index_slowly, write_wav

from maest import library_file
from maest.helpers.audio.blocks import AudioError
from maest.helpers.errors import InputError
from maest.helpers.files import drives
from maest.library import Analysis, Library, Model

ROOT = Path(__file__).resolve().parents[2]
OTHER = Model("other", "4567")


@pytest.fixture
def music(tmp_path) -> Path:
    """Four files, two of them of one album."""
    for i, name in enumerate(("x/a", "x/b", "y/c", "y/d")):
        write_wav(tmp_path / f"music/{name}.wav", i)
    return tmp_path / "music"


@pytest.fixture
def library(tmp_path):
    with Library(tmp_path / "data" / "library.sqlite") as library:
        yield library


def names(tracks) -> list[str]:
    return [Path(getattr(track, "path", track)).name for track in tracks]


def states(library) -> dict[str, str]:
    return {track.path.name: track.state for track in library.tracks()}


# ---- what is new, changed, moved, gone -----------------------------------------------------------


def test_a_folder_is_analysed_once(library, music):
    done = library.index(music, MODEL, analyse)
    assert (names(done.scan.new), done.analysed) == (["a.wav", "b.wav", "c.wav", "d.wav"], 4)
    again = library.index(music, MODEL, Counted())
    assert (again.scan.unchanged, again.scan.new, again.analysed) == (4, [], 0)
    write_wav(music / "z" / "e.wav", 9)
    assert library.index(music, MODEL, counted := Counted()).analysed == 1
    assert counted.names == ["e.wav"]


def test_a_result_comes_back_as_it_was_given(library, music):
    library.index(music, MODEL, analyse)
    given, back = analysis(music / "x/a.wav"), library.result(music / "x/a.wav")
    assert back.embedding.dtype == np.float16
    assert np.array_equal(back.embedding, given.embedding.astype(np.float16))
    assert back.tags == [("Genre---Noise", round(given.tags[0][1], 4))]
    assert (back.seconds, back.warnings) == (0.05, ["0.1 s only"])


def test_a_second_model_stands_beside_the_first(library, music):
    library.index(music, MODEL, analyse)
    halved = Model(MODEL.name, MODEL.hash, {"block": 3})
    for model in (OTHER, halved):
        assert library.result(music / "x/a.wav") is not None
        assert library.index(music / "x", model, analyse).analysed == 2
    assert [(m, n) for m, n in library.models()] == [(MODEL, 4), (halved, 2), (OTHER, 2)]
    assert library.result(music / "y/c.wav", OTHER) is None
    assert names(library.todo(OTHER)) == ["c.wav", "d.wav"]


def test_what_moves_keeps_its_results(library, music, tmp_path):
    library.index(music, MODEL, analyse)
    (music / "x/a.wav").rename(music / "y/new.wav")
    (tmp_path / "elsewhere").mkdir()
    (music / "x/b.wav").rename(tmp_path / "elsewhere" / "b.wav")
    done = library.index(music, MODEL, Counted())
    assert done.scan.moved == [(music / "x/a.wav", music / "y/new.wav")]
    assert (names(done.scan.gone), done.scan.offline, done.analysed) == (["b.wav"], [], 0)
    moved = library.scan(tmp_path / "elsewhere").moved
    assert moved == [(music / "x/b.wav", tmp_path / "elsewhere" / "b.wav")]
    assert library.result(tmp_path / "elsewhere" / "b.wav") is not None
    assert set(states(library).values()) == {"here"}


def test_a_copy_needs_no_analysis(library, music):
    library.index(music, MODEL, analyse)
    (music / "x/copy.wav").write_bytes((music / "y/d.wav").read_bytes())
    done = library.index(music, MODEL, Counted())
    assert (names(done.scan.copies), done.analysed) == (["copy.wav"], 0)
    assert [names(group) for group in library.duplicates()] == [["copy.wav", "d.wav"]]


def test_another_sound_is_analysed_and_another_date_is_not(library, music):
    library.index(music, MODEL, analyse)
    write_wav(music / "x/a.wav", 77)
    os.utime(music / "x/b.wav", (1, 1))
    done = library.index(music, MODEL, counted := Counted())
    assert (names(done.scan.changed), names(done.scan.retagged)) == (["a.wav"], ["b.wav"])
    assert counted.names == ["a.wav"]


def test_files_that_swap_names_take_their_results_along(library, music):
    library.index(music, MODEL, analyse)
    a, b, c = music / "x/a.wav", music / "x/b.wav", music / "x/c.wav"
    of_a = library.result(a).embedding
    for old, new in ((a, c), (b, a), (c, b)):
        old.rename(new)
    os.utime(a, (5, 5))  # made within the same tick, the files had one date
    os.utime(b, (6, 6))
    assert library.index(music, MODEL, Counted()).analysed == 0
    assert np.array_equal(library.result(b).embedding, of_a)


def test_gone_files_come_back_or_are_forgotten(library, music, tmp_path):
    library.index(music, MODEL, analyse)
    kept = (music / "x/a.wav").rename(tmp_path / "kept.wav")
    assert names(library.scan(music).gone) == ["a.wav"]
    assert library.scan(music).gone == []
    assert "a.wav" not in states(library)
    kept.rename(music / "x/a.wav")
    assert library.scan(music).unchanged == 4
    assert states(library)["a.wav"] == "here"
    (music / "x/a.wav").unlink()
    library.scan(music)
    assert (library.forget(), library.models()) == (1, [(MODEL, 3)])


@pytest.mark.parametrize("empty", [True, False])
def test_a_drive_that_is_not_there_is_offline(library, music, empty):
    library.index(music, MODEL, analyse)
    away = music.rename(music.with_name("away"))
    if empty:  # the folder of a drive that is not mounted
        music.mkdir()
    scan = library.scan(music)
    assert (len(scan.offline), scan.gone) == (4, [])
    assert set(states(library).values()) == {"offline"}
    assert len(library.similar(music / "x/a.wav")) == 3
    if empty:
        music.rmdir()
    away.rename(music)
    assert (library.scan(music).unchanged, set(states(library).values())) == (4, {"here"})


def mounts(monkeypatch, *folders: Path) -> None:
    mounted = {"/", *map(str, folders)}
    monkeypatch.setattr(drives, "is_mount", lambda folder: folder in mounted)


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_that_was_deleted_is_forgotten(library, music, tmp_path, monkeypatch, empty):
    mounts(monkeypatch, music / "y")
    library.index(music, MODEL, analyse)
    assert library.forget(music) == 0
    music.rename(tmp_path / "away")
    if empty:
        music.mkdir()
    mounts(monkeypatch)  # the drive of y is not there
    assert library.scan(music).gone == []
    assert library.forget(music / "y") == 0
    assert (library.forget(music), states(library)) == (2, {"c.wav": "offline", "d.wav": "offline"})
    mounts(monkeypatch, music / "y")
    assert (library.forget(music / "y"), library.tracks()) == (2, [])
    assert library.models() == [(MODEL, 0)]


def test_a_drive_inside_the_folder_is_offline_alone(library, music, monkeypatch):
    mounts(monkeypatch, music / "y")
    library.index(music, MODEL, analyse)
    for name in ("x/a.wav", "y/c.wav", "y/d.wav"):
        (music / name).unlink()
    mounts(monkeypatch)
    scan = library.scan(music)
    assert (names(scan.gone), names(scan.offline)) == (["a.wav"], ["c.wav", "d.wav"])


def test_a_drive_that_is_mounted_elsewhere_has_moved(library, music, monkeypatch):
    mounts(monkeypatch, music)
    library.index(music, MODEL, analyse)
    now = music.rename(music.with_name("usb1"))
    mounts(monkeypatch, now)
    assert len(library.scan(now).moved) == 4
    assert {track.path.parent.parent for track in library.tracks()} == {now}


def test_a_folder_that_cannot_be_read_is_offline(library, music, monkeypatch):
    library.index(music, MODEL, analyse)
    scandir = os.scandir

    def refuse(folder):
        if str(folder).rstrip("/") == str(music / "y"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    scan = library.scan(music)
    assert (names(scan.offline), names(scan.unreadable)) == (["c.wav", "d.wav"], ["y"])


def test_names_that_are_no_utf_8(library, music):
    odd = Path(os.fsdecode(os.fsencode(music) + b"/caf\xe9 \xff.wav"))
    write_wav(odd, 50)
    library.index(music, MODEL, analyse)
    assert library.track(odd).path == odd
    assert library.result(odd) is not None
    text = library._db.execute("SELECT name FROM files ORDER BY path").fetchall()
    assert text[0][0].endswith(r"caf\udce9 \udcff.wav")
    odd.rename(music / "café.wav")
    assert names(library.scan(music).moved[0]) == [odd.name, "café.wav"]


def test_a_song_is_found_by_any_of_its_paths(library, music, tmp_path, monkeypatch):
    library.index(music, MODEL, analyse)
    (tmp_path / "link").symlink_to(music)
    monkeypatch.chdir(music / "x")
    for key in ("a.wav", tmp_path / "link" / "x" / "a.wav", music / "x/a.wav"):
        assert library.track(key).path == music / "x/a.wav"
    with pytest.raises(InputError) as raised:
        library.track("e.wav")
    assert raised.value.kind == "unknown"


def test_a_folder_without_music(library, tmp_path):
    for folder, kind in ((tmp_path, "empty"), (tmp_path / "nowhere", "missing")):
        with pytest.raises(InputError) as raised:
            library.scan(folder)
        assert raised.value.kind == kind


# ---- what fails ----------------------------------------------------------------------------------


def test_a_broken_file_is_tried_once(library, music):
    (music / "broken.wav").write_bytes(b"no sound")

    @each
    def broken(path: Path) -> Analysis:
        if path.name == "broken.wav":
            raise AudioError("no audio", kind="corrupt", hint="Get it again.", path=path)
        return analysis(path)

    done = library.index(music, MODEL, broken)
    assert (done.analysed, names(done.failed)) == (4, ["broken.wav"])
    assert library.failed() == done.failed
    assert library.index(music, MODEL, broken).failed == {}
    assert names(library.index(music, MODEL, broken, again=True).failed) == ["broken.wav"]
    write_wav(music / "broken.wav", 8)
    assert library.index(music, MODEL, analyse).analysed == 1
    assert library.failed() == {}


@pytest.mark.parametrize("kind", ["access", "missing", "worker"])
def test_a_machine_that_fails_is_tried_again(library, music, kind):
    @each
    def fails(path: Path) -> Analysis:
        raise AudioError("input/output error", kind=kind, hint="Look at the disk.")

    assert len(library.index(music, MODEL, fails).failed) == 4
    assert library.index(music, MODEL, analyse).analysed == 4


def test_a_file_that_changes_meanwhile_is_left_to_the_next_run(library, music):
    @each
    def change(path: Path) -> Analysis:
        if path.name == "a.wav":
            write_wav(path, 99, 500)
        return analysis(path)

    done = library.index(music, MODEL, change)
    assert (names(done.failed), done.analysed) == (["a.wav"], 3)
    assert library.index(music, MODEL, analyse).analysed == 1


@pytest.mark.parametrize("embedding", [[1e6, 0], [np.nan, 0], []])
def test_an_embedding_that_is_not_finite_fails_its_track_alone(library, music, embedding):
    @each
    def analyse_one(path: Path) -> Analysis:
        return Analysis([], np.array(embedding if path.name == "a.wav" else [1, 2]), 1.0)

    done = library.index(music, MODEL, analyse_one)
    assert (names(done.failed), done.analysed) == (["a.wav"], 3)
    assert library.failed() == done.failed


def test_a_model_has_embeddings_of_one_shape(library, music):
    library.index(music / "x", MODEL, analyse)
    library.scan(music)
    track = library.track(music / "y/c.wav")
    with pytest.raises(InputError) as raised:
        library.add(track, MODEL, Analysis([], np.ones(1), 1.0))
    assert raised.value.kind == "mismatch"
    assert library.result(track) is None


def test_progress_goes_through_files_and_sounds(library, music):
    seen = []

    def progress(items):
        seen.append(len(items))
        return items

    library.index(music, MODEL, analyse, progress=progress)
    library.index(music, MODEL, analyse, progress=progress)
    assert seen == [4, 4, 4, 0]


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_is_in_the_users_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with Library() as library:
        assert library.path.name == "library.sqlite"
        assert library.path.is_file()
        assert sys.platform != "linux" or library.path.parent == tmp_path / "maest"


def test_reading_changes_nothing(library, music):
    library.index(music, MODEL, analyse)
    with Library(library.path, read_only=True) as reader:
        assert len(reader.similar(music / "x/a.wav")) == 3
        assert reader.todo(OTHER) == reader.tracks()
        for write in (lambda: reader.index(music, OTHER, analyse), reader.forget):
            with pytest.raises(InputError) as raised:
                write()
            assert raised.value.kind == "access"
        write_wav(music / "e.wav", 9)
        library.index(music, MODEL, analyse)  # while it is open
        assert len(reader.tracks()) == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_library_on_a_disk_that_cannot_be_written(library, music):
    library.index(music, MODEL, analyse)
    library.close()
    os.chmod(library.path.parent, 0o555)
    os.chmod(library.path, 0o444)
    code = (
        "import os, psutil; from maest.library import Library; os.setuid(65534); "
        f"print(len(Library({str(library.path)!r}, read_only=True).tracks()))"
    )
    for folder in list(library.path.parents)[1:-2]:
        os.chmod(folder, 0o711)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "4\n", done.stderr


def test_a_file_that_is_no_library(tmp_path):
    def refused(kind: str, path: Path, read_only: bool) -> None:
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(InputError) as raised:
            Library(path, read_only)
        assert (raised.value.kind, bool(raised.value.hint)) == (kind, True)
        assert (path.read_bytes() if path.exists() else None) == before

    with sqlite3.connect(tmp_path / "others.sqlite") as others:
        others.execute("CREATE TABLE songs (id INTEGER)")
    (tmp_path / "text.sqlite").write_text("Not a database, but a longer text." * 9)
    for read_only in (True, False):
        refused("exists", tmp_path / "others.sqlite", read_only)
        refused("corrupt", tmp_path / "text.sqlite", read_only)
    refused("missing", tmp_path / "none.sqlite", True)
    Library(tmp_path / "later.sqlite").close()
    with sqlite3.connect(tmp_path / "later.sqlite") as later:
        later.execute("PRAGMA user_version = 99")
    refused("mismatch", tmp_path / "later.sqlite", True)
    refused("mismatch", tmp_path / "later.sqlite", False)


def test_a_network_drive_is_told_of(tmp_path, music, monkeypatch):
    monkeypatch.setattr(library_file, "network_drive", lambda folder: "nfs4")
    with Library(tmp_path / "nfs.sqlite") as library:
        assert "nfs4" in library.warnings[0]
        assert library.index(music, MODEL, analyse).analysed == 4
        assert library._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_library_that_moved_to_a_network_drive_has_no_shared_memory(library, music, monkeypatch):
    library.index(music, MODEL, analyse)
    library.close()
    monkeypatch.setattr(library_file, "network_drive", lambda folder: "nfs4")
    with Library(library.path) as moved:
        assert moved._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert len(moved.tracks()) == 4
        assert [path.name for path in library.path.parent.iterdir()] == [library.path.name]


def test_disks_of_this_computer_are_not_network_drives(tmp_path):
    assert drives.network_drive(tmp_path) is None
    assert drives.mount_of("/proc/self") == "/proc"


# ---- more than one process, and fewer ------------------------------------------------------------


def start(*values) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=index_slowly, args=values)
    process.start()
    return process


def log_of(library: Path) -> list[list[str]]:
    log = library.with_name("log")
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_killed_at_any_instant_it_loses_what_was_in_flight(tmp_path):
    for i in range(30):
        write_wav(tmp_path / f"music/{i:02d}.wav", i)
    path = tmp_path / "library.sqlite"
    for run in range(4):
        process = start(path, tmp_path / "music", 0.002)
        while len(log_of(path)) < 6 * (run + 1) and process.is_alive():
            time.sleep(0.0003 * run)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with Library(path, read_only=True) as library:
            check = library._db.execute("PRAGMA integrity_check").fetchone()
            number = sum(library.models()[0][1:]) if library.models() else 0
            assert check == ("ok",)
            # Each run loses its last track at most.
            assert number >= len(log_of(path)) - (run + 1)
    with Library(path) as library:
        library.index(tmp_path / "music", MODEL, analyse)
        assert library.models() == [(MODEL, 30)]
        assert len(library.tracks()) == 30


def test_two_runs_at_once_share_the_work(tmp_path):
    for i in range(40):
        write_wav(tmp_path / f"music/{i:02d}.wav", i)
    path = tmp_path / "library.sqlite"
    runs = [start(path, tmp_path / "music", 0.005) for _ in range(2)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    with Library(path) as library:
        assert (library.models(), len(library.tracks())) == ([(MODEL, 40)], 40)
    assert len(log_of(path)) < 60  # each of 40 once, but for those that both had in hand


@pytest.mark.parametrize("number", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_files(tmp_path, number):
    for i in range(number):
        write_wav(tmp_path / f"music/{i % 100:02d}/{i}.wav", i, samples=32)
    with Library(tmp_path / "library.sqlite") as library:
        assert library.index(tmp_path / "music", MODEL, analyse).analysed == number
        assert library.index(tmp_path / "music", MODEL, analyse).scan.unchanged == number
        assert len(library.similar(tmp_path / "music/07/7.wav", 5)) == 5
