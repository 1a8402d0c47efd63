"""MTG-Jamendo, from its tables and a folder of audio to log-mel files and ground truths."""

import hashlib
from pathlib import Path

import pytest
from folders import tree
from http_server import Reply
from made_up import refuses
from music import write_audio

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.jamendo import preprocess as module
from maest.datasets.jamendo.preprocess import main, read_task, table_name

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
}
TRACKS = sorted({track for task in TASKS.values() for own in task.values() for track in own})


def published_table(tracks: dict[str, list[str]]) -> bytes:
    """As it is published: CRLF, and as many columns as a track has tags, six at least."""
    rows = [HEADER] + [
        "\t".join(["track_0000214", "artist_000014", "album_000031", path, "124.6", *tags])
        for path, tags in tracks.items()
    ]
    return "".join(f"{row}\r\n" for row in rows).encode()


TABLES = {
    table_name(task, split): published_table(tracks)
    for task, splits in TASKS.items()
    for split, tracks in splits.items()
}


@pytest.fixture
def server(http_server):
    http_server.replies |= {name: Reply(content) for name, content in TABLES.items()}
    return http_server


@pytest.fixture
def audio(tmp_path) -> dict[str, Path]:
    """The tracks, some in the smaller version that the data set's script downloads."""
    names = (name.replace(".mp3", ".low.mp3" * (i % 2) or ".mp3") for i, name in enumerate(TRACKS))
    return {
        track: write_audio(tmp_path / "audio" / name, 0.3)
        for track, name in zip(TRACKS, names, strict=True)
    }


@pytest.fixture
def run(server, tmp_path):
    """Run the command line in folders of this test."""

    def run(*arguments: str) -> int:
        server.requests.clear()
        names = {"tables": "tables", "audio": "audio", "melspec": "mels", "out": "out"}
        folders = [f"--{name}-dir={tmp_path / folder}" for name, folder in names.items()]
        if "--tasks" not in arguments:
            folders += ["--tasks", *TASKS]
        return main([*arguments, *folders, f"--url={server.url}", "--num-workers=1"])

    return run


def key(track: str) -> str:
    """The name of its log-mel file."""
    return track.replace(".mp3", ".low.mmap" if TRACKS.index(track) % 2 else ".mmap")


def check(out: Path, task: str, without: tuple[str, ...] = ()) -> None:
    labels = sorted({tag for own in TASKS[task].values() for tags in own.values() for tag in tags})
    assert read_labels(out / task / "labels.json") == labels
    for split in SPLITS:
        expected = {
            key(track): [int(label in tags) for label in labels]
            for track, tags in TASKS[task][split].items()
            if track not in without
        }
        found = read_groundtruth(out / task / f"groundtruth-{split}.pk")
        assert dict(zip(found.keys, found.targets.tolist(), strict=True)) == expected


def test_tasks_from_tables_and_audio_and_nothing_twice(run, server, audio, tmp_path):
    assert run() == 0
    for task in TASKS:
        check(tmp_path / "out", task)
    assert server.asked() == list(TABLES)
    # A track of several tasks has one log-mel file.
    assert sorted(tree(tmp_path / "mels", "*.mmap")) == sorted(map(key, TRACKS))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert run() == 0
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


def test_ground_truths_need_no_audio_once_there_are_log_mel_files(run, server, audio, tmp_path):
    """The log-mel files show which tracks have the smaller version."""
    assert run("tables", "melspectrograms", "--tasks", "genre") == 0
    assert server.asked() == [table_name("genre", split) for split in SPLITS]
    assert not (tmp_path / "out").exists()
    for path in audio.values():
        path.unlink()
    assert run("groundtruth", "--tasks", "genre") == 0
    assert server.requests == []
    check(tmp_path / "out", "genre")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["genre"]


def test_missing_and_broken_tracks_are_left_out(run, audio, tmp_path, capsys):
    broken, gone = "48/948.mp3", "15/215.mp3"
    audio[broken].write_bytes(b"broken")
    audio[gone].unlink()
    assert run() == 0
    err = capsys.readouterr().err
    assert str(audio[broken].relative_to(tmp_path / "audio")) in err
    assert gone in err
    check(tmp_path / "out", "genre", (broken,))
    check(tmp_path / "out", "instrument", (gone,))


def test_the_published_tables_are_those_that_are_known(run, server, monkeypatch, tmp_path, capsys):
    """Their checksums are known; those at another address are not checked."""
    assert module.COMMIT in module.URL
    names = {f"{name}-{split}" for name, *_ in module.TASKS.values() for split in SPLITS}
    assert module.SHA256.keys() == names
    monkeypatch.setattr(module, "URL", server.url)
    for name, content in TABLES.items():
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(module.SHA256, name[len("autotagging_") : -len(".tsv")], digest)
    assert run("tables") == 0
    name = table_name("genre", "test")
    server.replies[name] = Reply(TABLES[name] + b"\r\n")
    assert run("tables", "--force") == 1
    assert f"{server.url}/{name}: " in capsys.readouterr().err
    assert (tmp_path / "tables" / name).read_bytes() == TABLES[name]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in TABLES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_tags_are_all_columns_from_the_sixth_on(folder, end):
    for path in folder.glob("*.tsv"):
        content = path.read_bytes().replace(b"genre---pop", b'genre---"pop')
        path.write_bytes(content.replace(b"\r\n", end) + end)
    task = read_task("genre", folder)
    assert task.labels == ['genre---"pop', "genre---60s", "genre---rock"]
    assert task.tracks["87/4887.mp3"] == ("test", set(task.labels))
    assert task.tracks["48/948.mp3"] == ("train", {'genre---"pop'})
    published = {"train": 32_572, "validation": 11_043, "test": 11_479, "labels": 87}
    assert task.published == published


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda whole: None, "missing"),
        (lambda whole: b"<html>log in</html>", "corrupt"),
        (lambda whole: whole[:-40], "corrupt"),
        (lambda whole: whole.replace(b"14/214", b"../214"), "invalid"),
        (lambda whole: whole.replace(b"14/214", b"07/1007"), "conflict"),  # of another split
    ],
)
def test_a_broken_table(folder, change, kind):
    path = folder / table_name("genre", "test" if kind == "conflict" else "train")
    content = change(path.read_bytes().replace(b"87/4887", b"14/214"))
    path.unlink() if content is None else path.write_bytes(content)
    with refuses(kind, path.name):
        read_task("genre", folder)


def test_tables_without_tags(folder):
    for split in SPLITS:
        (folder / table_name("genre", split)).write_bytes(f"{HEADER}\r\n".encode())
    with refuses("empty", folder.name):
        read_task("genre", folder)
