"""Reading whole tracks: audio and log-mel files, in processes that may be killed."""

import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from folders import full_disk, unreadable
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import refuses
from music import noise, write_audio

from maest.datasets.melspectrograms import write_mel
from maest.datasets.preprocess import preprocess
from maest.datasets.tracks import (
    AudioTracks,
    MelTracks,
    find_tracks,
    rank_share,
    read_tracks,
)
from maest.helpers.results import tracks as results
from maest.helpers.work.processes import KILLED, process_map

RATE = 16_000
SECONDS = (5.0, 0.01, 1.0, 3.0, 12.3, 1.7)  # of the tracks of `folder`
NAMES = [f"{i}/song.wav" for i in range(len(SECONDS))]
MELS = [name.replace(".wav", ".mmap") for name in NAMES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Audio, and beside it the log-mel files of the same."""
    root, store = tmp_path_factory.mktemp("music"), tmp_path_factory.mktemp("mels")
    for seed, (name, seconds) in enumerate(zip(NAMES, SECONDS, strict=True)):
        write_audio(root / name, seconds, seed, RATE, 1)
    preprocess(root, store, num_workers=1, progress=False)
    for name in MELS:
        (store / name).rename(root / name)
    return root


@pytest.mark.parametrize("seconds", [None, 2.0])
def test_audio_and_its_log_mel_file_are_the_same_bit_for_bit(folder, tmp_path, seconds):
    audio, mels = AudioTracks(folder, NAMES), MelTracks(folder, MELS)
    if seconds:
        audio.seconds, mels = seconds, MelTracks(tmp_path, MELS)
        preprocess(folder, tmp_path, seconds=seconds, num_workers=1, progress=False)
    for index in range(len(NAMES)):
        one, other = (tracks.read(index, tmp_path) for tracks in (audio, mels))
        assert one.error is other.error is None
        assert one.mel.dtype == other.mel.dtype == np.float16
        np.testing.assert_array_equal(one.mel, other.mel)
        assert len(one.warnings) == len(other.warnings) == (index == 1)  # 0.01 s only


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [AudioTracks, MelTracks])
def test_long_log_mels_go_to_a_file_that_is_gone_at_once(
    folder, tmp_path, monkeypatch, num_workers, kind
):
    tracks = kind(folder, NAMES if kind is AudioTracks else MELS)
    expected = [tracks.read(index, tmp_path).mel for index in range(6)]
    monkeypatch.setattr(results, "FRAMES_IN_MEMORY", 200)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for track in read_tracks(tracks, range(6), num_workers):
        assert isinstance(track.mel, np.memmap) == (len(track.mel) > 200)
        np.testing.assert_array_equal(track.mel, expected[track.index])
        if num_workers == 0:
            assert not list(tmp_path.rglob("*.mmap"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", [1, 100, 1000, 50_000])
def test_a_full_disk_leaves_no_truncated_log_mel_file(tmp_path, missing):
    mel = np.zeros((300, 96), np.float16)
    with full_disk(mel.nbytes - missing), pytest.raises(OSError, match="File too large"):
        write_mel(tmp_path / "a.mmap", mel)
    assert not list(tmp_path.iterdir())


def test_errors_do_not_repeat_the_folder(tmp_path, monkeypatch):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no music " * 100)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    (tmp_path / "cut.mmap").write_bytes(bytes(1000))
    bad = np.zeros((300, 96), np.float16)
    bad[-1, -1] = np.inf
    bad.tofile(tmp_path / "inf.mmap")
    audio = ["empty.wav", "text.mp3", "nan.wav", "none.wav", "missing.wav"]
    for kind, keys in ((AudioTracks, audio), (MelTracks, ["cut.mmap", "inf.mmap", "missing"])):
        tracks = kind(tmp_path, keys)
        for index, key in enumerate(keys):
            track = tracks.read(index, tmp_path)
            assert (track.key, track.index, len(track.mel)) == (key, index, 0)
            assert track.error
            assert str(tmp_path) not in track.error
    monkeypatch.setattr(
        "maest.datasets.tracks.read_audio_mel", Mock(side_effect=MemoryError("x" * 999))
    )
    assert AudioTracks(tmp_path, audio).read(0, tmp_path).error == f"MemoryError: {'x' * 287}"


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError(28, "full"), "access"), (MemoryError(), "access"),
                        (ValueError(), "corrupt")]
)  # fmt: skip
def test_a_fault_of_the_machine_is_not_the_files(folder, tmp_path, monkeypatch, error, kind):
    monkeypatch.setattr(results, "collect", Mock(side_effect=error))
    assert AudioTracks(folder, NAMES).read(0, tmp_path).kind == kind


def test_keys_that_are_no_text(tmp_path):
    names = ["a\nb.wav", os.fsdecode(b"caf\xe9.wav"), "é.wav"]
    for name in names:
        soundfile.write(os.fsencode(tmp_path / name), noise(1), RATE)
    found = find_tracks(tmp_path)
    assert sorted(found.tracks.keys) == sorted(names)
    for track in read_tracks(found.tracks, range(3), 2):
        assert track.error is None
        assert track.key == found.tracks.keys[track.index]
    write_mel(tmp_path / os.fsdecode(b"caf\xe9.mmap"), np.zeros((20, 96)))
    assert len(MelTracks(tmp_path, [os.fsdecode(b"caf\xe9")]).read(0, tmp_path).mel) == 20


@pytest.mark.parametrize("name", [".hidden.wav", "no suffix", "music.xyz"])
def test_a_file_whatever_its_name(tmp_path, name):
    soundfile.write(tmp_path / name, noise(1), RATE, format="WAV")
    tracks, failed, left_out = find_tracks(tmp_path / name)
    assert (list(tracks.keys), tracks.folder, failed, left_out) == ([name], tmp_path, {}, {})
    assert tracks.path(0) == tmp_path / name
    assert tracks.read(0, tmp_path).error is None


def test_a_folder(tmp_path, monkeypatch):
    for name in ("b/x.mp3/inside.flac", "a.MP3", "a.wav", "out/picture.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.ogg").symlink_to("nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, "~", ".", str(tmp_path)):
        found = find_tracks(place, "out")
        assert list(found.tracks.keys) == ["a.MP3", "a.wav", "b/x.mp3/inside.flac", "broken.ogg"]
        assert (found.tracks.folder, found.skipped) == (tmp_path, {".txt": 1})
    assert found.tracks.read(3, tmp_path).error


def test_an_unreadable_folder_is_listed(folder):
    with unreadable("2"):
        found = find_tracks(folder)
    assert list(found.unreadable) == ["2/"]
    assert list(found.tracks.keys) == [name for name in NAMES if not name.startswith("2")]


@pytest.mark.parametrize(
    ("audio", "kind"),
    [
        ("missing", "missing"),
        ("pipe.wav", "invalid"),
        ("x" * 300, "access"),
        ("~nobody at all/music", "access"),
        ("texts", "empty"),
        ("", "empty"),
    ],
)
def test_places_without_audio(tmp_path, monkeypatch, audio, kind):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.wav")
    Path("texts").mkdir()
    Path("texts/cover.jpg").touch()
    with refuses(kind, audio, "inference.audio"):
        find_tracks(audio)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 6))
def test_shares_are_all_and_each_once(total, parts, world):
    shares = [
        rank_share(total, (k + 1, parts), r, world) for k in range(parts) for r in range(world)
    ]
    assert sorted(index for share in shares for index in share) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 + (world > 1)


def read(tracks: AudioTracks | MelTracks, indices, num_workers: int) -> dict:
    """The tracks by their numbers; no process is left."""
    found = list(read_tracks(tracks, indices, num_workers))
    assert sorted(track.index for track in found) == sorted(indices)
    assert not multiprocessing.active_children()
    return {track.index: track for track in found}


def test_bad_files_beside_others(folder, tmp_path):
    keys = [str(folder / name) for name in MELS]
    (tmp_path / "bad.mmap").write_bytes(b"bad")
    keys[2:2] = ["bad.mmap", "missing"]
    found = read(MelTracks(tmp_path, keys), range(len(keys)), 2)
    assert {index for index, track in found.items() if track.error} == {2, 3}
    assert not read(MelTracks(tmp_path, keys), [], 2)


class Deadly(AudioTracks):
    """Some of its tracks kill the process that reads them."""

    always = frozenset({1})
    once = frozenset({4})

    def _mel(self, index, scratch):
        found = super()._mel(index, scratch)
        marker = self.folder / "killed once"
        if index in self.always or (index in self.once and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found


@pytest.mark.parametrize("num_workers", [1, 2])
def test_only_the_track_of_a_killed_process_fails(folder, tmp_path, num_workers):
    (folder / "killed once").unlink(missing_ok=True)
    found = read(Deadly(folder, NAMES), range(6), num_workers)
    assert (found[1].error, found[1].key) == (KILLED, NAMES[1])
    for index in (0, 2, 3, 4, 5):
        expected = AudioTracks(folder, NAMES).read(index, tmp_path)
        np.testing.assert_array_equal(found[index].mel, expected.mel)


class Hanging(AudioTracks):
    """One of its tracks has no end."""

    def _mel(self, index, scratch):
        while index == 1:
            signal.pause()
        return super()._mel(index, scratch)


def test_only_the_track_that_hangs_fails(folder, monkeypatch):
    monkeypatch.setattr("maest.datasets.tracks.process_map", partial(process_map, time_limit=1.0))
    found = read(Hanging(folder, NAMES), range(3), 2)
    assert [index for index, track in sorted(found.items()) if track.error] == [1]
