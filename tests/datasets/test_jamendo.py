"""MTG-Jamendo, from its tables and a folder of audio to log-mel files and ground truths."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from miniature_mtt import Reply, Server, miniature, no_waiting  # noqa: F401

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.jamendo import preprocess as module
from maest.datasets.jamendo.preprocess import main, read_task, table_name
from maest.helpers.errors import InputError

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
SPLITS = ("train", "validation", "test")
# task → split → track → tags; some tracks are in several tasks.
TASKS = {
    "genre": {
        "train": {"14/214.mp3": ["genre---rock", "genre---60s"], "48/948.mp3": ["genre---pop"]},
        "validation": {"07/1007.mp3": ["genre---pop"]},
        "test": {"87/4887.mp3": ["genre---60s", "genre---pop", "genre---rock"]},
    },
    "instrument": {
        "train": {"14/214.mp3": ["instrument---piano"], "15/215.mp3": ["instrument---drumset"]},
        "validation": {"16/216.mp3": ["instrument---piano"]},
        "test": {"87/4887.mp3": ["instrument---drumset", "instrument---piano"]},
    },
    "moodtheme": {
        "train": {"48/948.mp3": ["mood/theme---dark"]},
        "validation": {"07/1007.mp3": ["mood/theme---dark", "mood/theme---film"]},
        "test": {"17/217.mp3": ["mood/theme---film"]},
    },
    "top50": {
        "train": {"14/214.mp3": ["genre---rock", "instrument---piano"]},
        "validation": {"16/216.mp3": ["instrument---piano"]},
        "test": {"17/217.mp3": ["mood/theme---film"]},
    },
}
TRACKS = sorted({track for task in TASKS.values() for own in task.values() for track in own})


def published_table(tracks: dict[str, list[str]]) -> bytes:
    """As it is published: CRLF, and as many columns as a track has tags, six at least."""
    rows = [HEADER] + [
        "\t".join([f"track_{Path(path).stem:0>7}", "artist_000014", "album_000031", path, "124.6",
                   *tags])
        for path, tags in tracks.items()
    ]  # fmt: skip
    return "".join(f"{row}\r\n" for row in rows).encode()


def tables() -> dict[str, bytes]:
    return {
        table_name(task, split): published_table(tracks)
        for task, splits in TASKS.items()
        for split, tracks in splits.items()
    }


@pytest.fixture
def server():
    with Server(tables()) as server:
        yield server


@pytest.fixture
def audio(tmp_path) -> Path:
    """The tracks; some in the smaller version, as the data set's own script fetches them."""
    mtt = miniature()
    for i, (name, clip) in enumerate(zip(TRACKS, mtt.sounding(), strict=False)):
        path = tmp_path / "audio" / (name.replace(".mp3", ".low.mp3") if i % 2 else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mtt.audio[clip])
    return tmp_path / "audio"


@pytest.fixture
def run(server, tmp_path):
    """The command line, with folders of one's own."""

    def run(*arguments: str) -> int:
        names = {"tables": "tables", "audio": "audio", "melspec": "mels", "out": "out"}
        folders = [f"--{name}-dir={tmp_path / folder}" for name, folder in names.items()]
        return main([*arguments, *folders, f"--url={server.url}", "--num-workers=1"])

    return run


def key(track: str) -> str:
    """The name of its log-mel file."""
    return track.replace(".mp3", ".low.mmap" if TRACKS.index(track) % 2 else ".mmap")


def check(out: Path, task: str, without: tuple[str, ...] = ()) -> None:
    labels = sorted({tag for own in TASKS[task].values() for tags in own.values() for tag in tags})
    assert read_labels(out / task / "labels.json") == labels
    everything = {}
    for split in SPLITS:
        expected = {
            key(track): [int(label in tags) for label in labels]
            for track, tags in TASKS[task][split].items()
            if track not in without
        }
        found = read_groundtruth(out / task / f"groundtruth-{split}.pk")
        assert dict(zip(found.keys, found.targets.tolist(), strict=True)) == expected
        everything |= expected
    found = read_groundtruth(out / task / "groundtruth-all.pk")
    assert dict(zip(found.keys, found.targets.tolist(), strict=True)) == everything


def mels(tmp_path: Path) -> list[str]:
    folder = tmp_path / "mels"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mmap"))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def test_four_tasks_from_tables_and_audio(run, server, audio, tmp_path, capsys):
    assert run() == 0
    for task in TASKS:
        check(tmp_path / "out", task)
    assert sorted(server.asked()) == sorted(tables())
    assert len(server.asked()) == 12
    # A track of several tasks has one log-mel file.
    assert mels(tmp_path) == sorted(map(key, TRACKS))
    out = capsys.readouterr().out
    assert f"{len(TRACKS)} done" in out
    assert "32,572, 11,043, 11,479" in out
    assert "9,949, 3,802, 4,231" in out


def test_a_second_run_does_nothing_and_asks_nobody(run, server, audio, tmp_path, capsys):
    assert run() == 0
    server.requests.clear()
    before = state(tmp_path)
    assert run() == 0
    assert state(tmp_path) == before
    assert server.requests == []


def test_the_published_numbers_are_no_matter_for_a_warning(run, audio, monkeypatch, capsys):
    monkeypatch.setitem(module.TASKS, "genre", ("genre", (2, 1, 1), 3))
    assert run("--tasks", "genre") == 0
    assert "warning:" not in capsys.readouterr().out


def test_the_published_numbers():
    assert {task: (sum(counts), tags) for task, (_, counts, tags) in module.TASKS.items()} == {
        "genre": (55_094, 87),
        "instrument": (24_976, 40),
        "moodtheme": (17_982, 56),
        "top50": (54_380, 50),
    }
    assert table_name("top50", "train") == "autotagging_top50tags-train.tsv"
    assert table_name("moodtheme", "test") == "autotagging_moodtheme-test.tsv"


def test_one_task_needs_its_tables_and_tracks_only(run, server, audio, tmp_path):
    assert run("--tasks", "moodtheme") == 0
    assert server.asked() == [table_name("moodtheme", split) for split in SPLITS]
    own = [track for tracks in TASKS["moodtheme"].values() for track in tracks]
    assert mels(tmp_path) == sorted(map(key, own))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["moodtheme"]
    check(tmp_path / "out", "moodtheme")
    assert run() == 0  # and the others add theirs
    for task in TASKS:
        check(tmp_path / "out", task)


def test_each_step_alone(run, server, audio, tmp_path):
    assert run("tables") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == tables()
    server.requests.clear()
    assert run("melspectrograms") == 0
    assert not (tmp_path / "out").exists()
    assert run("groundtruth") == 0
    for task in TASKS:
        check(tmp_path / "out", task)
    assert server.requests == []


def test_tables_one_has_are_taken_from_where_they_are(run, server, audio, tmp_path):
    (tmp_path / "tables").mkdir()
    for name, content in tables().items():
        (tmp_path / "tables" / name).write_bytes(content)
    assert run() == 0
    assert server.requests == []


def test_ground_truths_need_no_audio_once_there_are_log_mel_files(run, audio, tmp_path):
    """The smaller version's names are known by them."""
    assert run("tables", "melspectrograms") == 0
    for path in audio.rglob("*.mp3"):
        path.unlink()
    assert run("groundtruth") == 0
    for task in TASKS:
        check(tmp_path / "out", task)


def test_tracks_that_are_not_there_or_broken_are_told(run, audio, tmp_path, capsys):
    broken, gone = "48/948.mp3", "15/215.mp3"
    paths = {path.name.split(".")[0]: path for path in audio.rglob("*.mp3")}
    paths["948"].write_bytes(b"broken")
    paths["215"].unlink()
    assert run("--tasks", "genre", "instrument") == 0
    out = capsys.readouterr().out
    assert str(paths["948"].relative_to(audio)) in out
    assert repr(gone) in out
    check(tmp_path / "out", "genre", (broken,))
    check(tmp_path / "out", "instrument", (gone,))


def test_without_audio(run, capsys):
    assert run() == 1
    assert "--audio-dir: " in capsys.readouterr().err


def test_force_gets_the_tables_again(run, server, audio, tmp_path):
    assert run() == 0
    server.requests.clear()
    before = state(tmp_path / "mels")
    assert run("tables", "--force") == 0
    assert len(server.asked()) == 12
    assert state(tmp_path / "mels") == before
    assert run("melspectrograms", "--force") == 0
    assert all(state(tmp_path / "mels")[name] != was for name, was in before.items()
               if name.endswith(".mmap"))  # fmt: skip


def test_a_bad_server(run, server, audio, tmp_path, capsys):
    first, second = table_name("genre", "train"), table_name("genre", "validation")
    server.replies[first] = Reply(tables()[first], drops=[30], statuses=[503, 200])
    server.replies[second] = Reply(b"", status=404)
    assert run() == 1
    told = capsys.readouterr().err
    assert f"{server.url}/{second}: " in told
    assert (tmp_path / "tables" / first).read_bytes() == tables()[first]


def test_the_published_tables_are_those_that_are_known(run, server, monkeypatch, tmp_path, capsys):
    """Of a fixed version; those at another address are taken as they are."""
    assert module.COMMIT in module.URL
    names = [f"{name}-{split}" for name, *_ in module.TASKS.values() for split in SPLITS]
    assert list(module.SHA256) == names
    assert len({digest for digest in module.SHA256.values() if len(digest) == 64}) == 12
    assert run("tables") == 0
    monkeypatch.setattr(module, "URL", server.url)
    known = {name: hashlib.sha256(content).hexdigest() for name, content in tables().items()}
    known = {
        f"{module.TASKS[task][0]}-{split}": known[table_name(task, split)]
        for task in TASKS
        for split in SPLITS
    }
    monkeypatch.setattr(module, "SHA256", known)
    assert run("tables", "--force") == 0
    name = table_name("genre", "test")
    server.replies[name] = Reply(tables()[name] + b"\r\n")
    assert run("tables", "--force") == 1
    assert f"{server.url}/{name}: " in capsys.readouterr().err
    assert (tmp_path / "tables" / name).read_bytes() == tables()[name]


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in tables().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_tags_are_all_columns_from_the_sixth_on(folder):
    task = read_task("genre", folder)
    assert task.labels == ["genre---60s", "genre---pop", "genre---rock"]
    assert task.tracks["87/4887.mp3"] == ("test", set(task.labels))
    assert task.tracks["48/948.mp3"] == ("train", {"genre---pop"})
    assert task.published == {"train": 32_572, "validation": 11_043, "test": 11_479}


def test_line_ends_make_no_difference(folder):
    expected = read_task("top50", folder).tracks
    for path in folder.glob("*.tsv"):
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n") + b"\n")
    assert read_task("top50", folder).tracks == expected


def test_a_quotation_mark_is_a_character_like_others(folder):
    path = folder / table_name("genre", "train")
    path.write_bytes(path.read_bytes().replace(b"genre---pop", b'genre---"pop'))
    assert 'genre---"pop' in read_task("genre", folder).labels


BROKEN = {
    "nothing": (lambda whole: b"", ""),
    "a page": (lambda whole: b"<html>log in</html>", ""),
    "cut": (lambda whole: whole[:-40], "line 3"),
    "no text": (lambda whole: whole + b"\xff\xfe", ""),
    "way out": (lambda whole: whole.replace(b"14/214", b"../214"), "line 2"),
    "absolute": (lambda whole: whole.replace(b"14/214", b"/14/214"), "line 2"),
    "twice": (lambda whole: whole + whole.split(b"\r\n")[1], "line 4"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_table_is_told_with_its_line(folder, what):
    change, line = BROKEN[what]
    path = folder / table_name("genre", "train")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError) as error:
        read_task("genre", folder)
    assert error.value.path == path
    assert error.value.message.startswith(line)
    assert error.value.hint


def test_a_track_in_two_splits_is_told(folder):
    path = folder / table_name("genre", "test")
    path.write_bytes(path.read_bytes().replace(b"87/4887", b"14/214"))
    with pytest.raises(InputError, match=r"line 2: '14/214\.mp3'") as error:
        read_task("genre", folder)
    assert (error.value.kind, error.value.path) == ("conflict", path)


def test_a_missing_table_is_told(folder):
    path = folder / table_name("instrument", "test")
    path.unlink()
    with pytest.raises(InputError) as error:
        read_task("instrument", folder)
    assert (error.value.kind, error.value.path) == ("missing", path)


def test_tables_without_tags_are_told(folder):
    for split in SPLITS:
        (folder / table_name("genre", split)).write_bytes(f"{HEADER}\r\n".encode())
    with pytest.raises(InputError) as error:
        read_task("genre", folder)
    assert (error.value.kind, error.value.path) == ("empty", folder)
