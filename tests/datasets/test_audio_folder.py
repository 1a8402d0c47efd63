"""Which files of a folder are audio."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest
from made_up import refuses

from maest.datasets.audio_folder import find_audio, mel_key, parse_shard, summarize_skipped


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b.mp3", "a/b.mmap"),
        ("a/b.WAV", "a/b.mmap"),
        ("a.b/c.d.flac", "a.b/c.d.mmap"),
        ("a/b.mmap", "a/b.mmap"),
        ("a/b", "a/b"),
        ("a.mp3/b", "a.mp3/b"),
        ("a/.mp3", "a/.mp3"),
        ("a/vol. 2", "a/vol. 2"),
    ],
)
def test_key_of_a_path(path, key):
    assert mel_key(path) == key


def test_audio_files_of_a_folder(tmp_path):
    audio = touch(tmp_path / "audio", "b/z.wav", "b/a.WAV", "a.mp3", ".hidden/x.wav", ".tmp-1.wav")
    touch(audio, "b/x.mmap", "notes.txt", "cover.Jpg", "README", "mels/listen.wav")
    touch(tmp_path / "other", "linked.wav")
    (audio / "b" / "round").symlink_to(audio)
    (audio / "other").symlink_to(tmp_path / "other")
    (audio / "gone.ogg").symlink_to("nowhere")  # to be reported when it is read
    (audio / "folder.wav").mkdir()
    os.mkfifo(audio / "pipe.wav")
    found = find_audio(audio, audio / "mels")
    names = [".hidden/x.wav", "a.mp3", "b/a.WAV", "b/z.wav", "gone.ogg", "other/linked.wav"]
    assert found == (names, {}, {".txt": 1, ".jpg": 1, "no suffix": 1})


MUSIC = [
    "...And Justice for All/01 Blackened.mp3",
    "...Baby One More Time.wav",
    ".38 Special/..hold on.flac",
    "..But Seriously.ogg",
    "__MACOSX.wav",
    "a #recycle/x.wav",
]
NOT_MUSIC = {
    "._a.mp3": "._*",
    "b/._a.mp3": "._*",
    ".AppleDouble/a.mp3": ".AppleDouble",
    ".Trashes/501/a.mp3": ".Trashes",
    ".Trash-1000/files/a.mp3": ".Trash-1000",
    ".Spotlight-V100/a.wav": ".Spotlight-V100",
    "__MACOSX/b/a.mp3": "__MACOSX",
    "b/@eaDir/a.mp3/SYNOAUDIO_01APIC.mp3": "@eaDir",
    "#recycle/a.mp3": "#recycle",
    "$RECYCLE.BIN/a.mp3": "$RECYCLE.BIN",
}


def test_a_leading_dot_is_music_and_what_systems_keep_is_not(tmp_path):
    found = find_audio(touch(tmp_path, *MUSIC, *NOT_MUSIC))
    assert found == (sorted(MUSIC), {}, Counter(NOT_MUSIC.values()))


def test_what_is_skipped_is_counted():
    assert summarize_skipped(Counter()) == ""
    assert summarize_skipped(Counter({".txt": 1})) == "1 file left out: .txt 1; "
    many = Counter({".txt": 5, ".jpg": 3} | dict.fromkeys("abcde", 1))
    summary = summarize_skipped(many)
    assert summary.startswith("13 files left out: .jpg 3, .txt 5, ")
    assert summary.endswith(", and 2 more kinds; ")


def test_circular_links_are_listed(tmp_path):
    touch(tmp_path, "1.wav")
    for name, target in (("self.mp3", "self.mp3"), ("self", "self"), ("x", "y"), ("y", "x")):
        (tmp_path / name).symlink_to(target)
    found = find_audio(tmp_path)
    assert found.files == ["1.wav", "self.mp3"]
    assert sorted(found.unreadable) == ["self", "x", "y"]


@pytest.mark.parametrize(("function", "unreadable"), [("scandir", "closed/"), ("stat", "closed")])
def test_a_folder_without_permission(tmp_path, monkeypatch, function, unreadable):
    """It cannot be listed, or cannot be entered."""
    original = getattr(os, function)

    def refuse(path, **options):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, **options)

    touch(tmp_path, "1.wav", "closed/2.wav")
    monkeypatch.setattr(os, function, refuse)
    found = find_audio(tmp_path)
    assert found.files == ["1.wav"]
    assert list(found.unreadable) == [unreadable]


def test_a_shard_as_typed():
    assert parse_shard("3/100", "--shard") == (3, 100)
    assert parse_shard("100/100", "--shard") == (100, 100)
    for wrong in ("3", "3/", "a/b", "3/2", "0/3", "-1/3", "1/3/2"):
        with refuses("invalid", setting="--shard"):
            parse_shard(wrong, "--shard")
