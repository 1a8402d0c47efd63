"""Reading whole tracks: audio and log-mel files, in processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from maest.datasets.melspectrograms import write_mel
from maest.datasets.preprocess import preprocess
from maest.datasets.tracks import (
    AudioTracks,
    MelTracks,
    find_tracks,
    own_share,
    parse_shard,
    read_tracks,
)
from maest.helpers.errors import InputError
from maest.helpers.results import tracks as module
from maest.helpers.work.processes import KILLED, process_map

RATE = 16_000
SECONDS = (5.0, 0.01, 1.0, 3.0, 12.3, 1.7)  # of the tracks of `folder`
NAMES = [f"{i}/song.wav" for i in range(len(SECONDS))]
MELS = [name.replace(".wav", ".mmap") for name in NAMES]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype("f4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Audio, and beside it the log-mel files of the same."""
    root = tmp_path_factory.mktemp("music")
    for seed, (name, seconds) in enumerate(zip(NAMES, SECONDS, strict=True)):
        (root / name).parent.mkdir()
        soundfile.write(root / name, noise(seconds, seed), RATE, subtype="FLOAT")
    store = tmp_path_factory.mktemp("mels")
    preprocess(root, store, num_workers=1, progress=False)
    for name in MELS:
        (store / name).rename(root / name)
    return root


def audio_tracks(folder: Path) -> AudioTracks:
    return AudioTracks(folder, NAMES)


def no_processes_left(seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while multiprocessing.active_children():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# ---- one track -----------------------------------------------------------------------------------


def test_audio_and_its_log_mel_file_are_the_same_bit_for_bit(folder, tmp_path):
    audio, mels = audio_tracks(folder), MelTracks(folder, MELS)
    for index in range(len(NAMES)):
        one, other = (tracks.read(index, tmp_path) for tracks in (audio, mels))
        assert one.error is other.error is None
        assert one.mel.dtype == other.mel.dtype == np.float16
        np.testing.assert_array_equal(one.mel, other.mel)
        assert len(one.warnings) == len(other.warnings) == (index == 1)  # 0.01 s only


def test_the_central_part(folder, tmp_path):
    tracks = audio_tracks(folder)
    tracks.seconds = 2.0
    preprocess(folder, tmp_path / "mels", seconds=2.0, num_workers=1, progress=False)
    stored = MelTracks(tmp_path / "mels", MELS)
    for index in range(len(NAMES)):
        np.testing.assert_array_equal(
            tracks.read(index, tmp_path).mel, stored.read(index, tmp_path).mel
        )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [AudioTracks, MelTracks])
def test_what_is_long_goes_to_a_file_that_is_gone_at_once(
    folder, tmp_path, monkeypatch, num_workers, kind
):
    tracks = kind(folder, NAMES if kind is AudioTracks else MELS)
    expected = [tracks.read(index, tmp_path).mel for index in range(6)]
    monkeypatch.setattr(module, "FRAMES_IN_MEMORY", 200)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for track in read_tracks(tracks, range(6), num_workers):
        assert isinstance(track.mel, np.memmap) == (len(track.mel) > 200)
        np.testing.assert_array_equal(track.mel, expected[track.index])
        if num_workers == 0:
            assert not list(tmp_path.rglob("*.mmap"))
    assert not list(tmp_path.iterdir())


def test_a_wide_npy_is_rounded(tmp_path):
    values = np.random.default_rng(0).random((130, 96))
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", 1e6 * values)
    tracks = MelTracks(tmp_path, ["a", "b"])
    np.testing.assert_array_equal(tracks.read(0, tmp_path).mel, values.astype(np.float16))
    assert "NaN or infinite" in tracks.read(1, tmp_path).error


def test_errors_are_told_without_the_folder(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no music " * 100)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    audio = AudioTracks(tmp_path, ["empty.wav", "text.mp3", "nan.wav", "none.wav", "not there.wav"])
    for index, key in enumerate(audio.keys):
        track = audio.read(index, tmp_path)
        assert track.error
        assert (track.key, track.index, len(track.mel)) == (key, index, 0)
        assert str(tmp_path) not in track.error

    (tmp_path / "cut.mmap").write_bytes(bytes(1000))
    bad = np.zeros((300, 96), np.float16)
    bad[-1, -1] = np.inf
    bad.tofile(tmp_path / "inf.mmap")
    mels = MelTracks(tmp_path, ["cut.mmap", "inf.mmap", "not there"])
    reasons = ("no whole number of frames", "NaN or infinite", "no such file")
    for index, reason in enumerate(reasons):
        assert reason in mels.read(index, tmp_path).error


def test_an_error_that_nobody_foresaw(folder, tmp_path, monkeypatch):
    def fail(path, scratch, seconds):
        raise MemoryError("too long " * 100)

    monkeypatch.setattr("maest.datasets.tracks.read_audio_mel", fail)
    error = audio_tracks(folder).read(0, tmp_path).error
    assert error.startswith("MemoryError: too long")
    assert len(error) == 300


def test_keys_that_are_no_text(tmp_path):
    names = ["a\nb.wav", os.fsdecode(b"caf\xe9.wav"), "é.wav"]
    for seed, name in enumerate(names):
        soundfile.write(os.fsencode(tmp_path / name), noise(1, seed), RATE, subtype="FLOAT")
    found = find_tracks(tmp_path)
    assert sorted(found.tracks.keys) == sorted(names)
    for track in read_tracks(found.tracks, range(3), 2):
        assert track.error is None
        assert track.key == found.tracks.keys[track.index]
    write_mel(tmp_path / os.fsdecode(b"caf\xe9.mmap"), np.zeros((20, 96)))
    assert len(MelTracks(tmp_path, [os.fsdecode(b"caf\xe9")]).read(0, tmp_path).mel) == 20


# ---- which tracks --------------------------------------------------------------------------------


def test_a_file_whatever_its_name(folder, tmp_path):
    for name in (".hidden.wav", "no suffix", "music.xyz"):
        soundfile.write(tmp_path / name, noise(1), RATE, format="WAV")
        tracks, failed, left_out = find_tracks(tmp_path / name)
        assert list(tracks.keys) == [name]
        assert tracks.folder == tmp_path.resolve()
        assert tracks.path(0) == tmp_path.resolve() / name
        assert not failed
        assert not left_out
        assert tracks.read(0, tmp_path).error is None


def test_a_folder(folder, tmp_path, monkeypatch):
    for name in ("b/x.mp3/inside.flac", "a.MP3", "a.wav", "out/picture.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.ogg").symlink_to("nowhere")
    found = find_tracks(tmp_path, tmp_path / "out")
    assert list(found.tracks.keys) == ["a.MP3", "a.wav", "b/x.mp3/inside.flac", "broken.ogg"]
    assert found.left_out == {".txt": 1}
    assert "nowhere" in found.tracks.read(3, tmp_path).error
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for same in ("~", ".", str(tmp_path)):
        again = find_tracks(same, "out")
        assert list(again.tracks.keys) == list(found.tracks.keys)
        assert again.tracks.folder == tmp_path.resolve()


def test_a_folder_that_may_not_be_read_is_told(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "2":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_tracks(folder)
    assert found.failed == {"2/": "the folder cannot be read: Permission denied"}
    assert list(found.tracks.keys) == [name for name in NAMES if not name.startswith("2")]


def test_what_cannot_be_looked_into(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "cover.jpg").touch()
    for audio, kind in (
        (tmp_path / "not there", "missing"),
        (tmp_path / "pipe.wav", "invalid"),
        (tmp_path / ("x" * 300), "access"),
        ("~nobody at all/music", "access"),
        (tmp_path / "texts", "empty"),
        ("", "empty"),
    ):
        with pytest.raises(InputError) as error:
            find_tracks(audio)
        assert (error.value.kind, error.value.setting) == (kind, "inference.audio")
        assert str(audio) in str(error.value)


# ---- whose tracks --------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 7, 100])
@pytest.mark.parametrize("parts", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_shares_are_all_and_each_once(total, parts, world):
    shares = [
        own_share(total, (k, parts), rank, world)
        for k in range(1, parts + 1)
        for rank in range(world)
    ]
    assert sorted(index for share in shares for index in share) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 + (world > 1)


def test_shards_are_every_nth():
    assert list(own_share(10)) == list(range(10))
    assert list(own_share(10, (2, 3))) == [1, 4, 7]
    assert list(own_share(10, (2, 3), 1, 2)) == [4]


def test_a_shard_as_typed():
    assert parse_shard("3/100") == (3, 100)
    assert parse_shard("100/100") == (100, 100)
    for wrong in ("3", "3/", "a/b", "3/2", "0/3", "-1/3", "1/3/2"):
        with pytest.raises(InputError) as error:
            parse_shard(wrong)
        assert error.value.setting == "inference.shard"


# ---- many tracks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 3])
def test_processes_give_what_this_one_gives(folder, tmp_path, num_workers):
    tracks = audio_tracks(folder)
    found = {track.index: track for track in read_tracks(tracks, [5, 4, 3, 1, 0], num_workers)}
    assert sorted(found) == [0, 1, 3, 4, 5]
    for index, track in found.items():
        np.testing.assert_array_equal(track.mel, tracks.read(index, tmp_path).mel)
    assert no_processes_left(0)


def test_bad_files_beside_others(folder, tmp_path):
    keys = [str(folder / name) for name in MELS]
    (tmp_path / "bad.mmap").write_bytes(b"bad")
    keys[2:2] = ["bad.mmap", "missing"]
    found = list(read_tracks(MelTracks(tmp_path, keys), range(len(keys)), 2))
    assert {track.index for track in found if track.error} == {2, 3}
    assert sorted(track.index for track in found) == list(range(len(keys)))
    assert not list(read_tracks(MelTracks(tmp_path, keys), [], 2))


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
def test_a_process_that_is_killed_costs_its_track_only(folder, tmp_path, num_workers):
    (folder / "killed once").unlink(missing_ok=True)
    found = {t.index: t for t in read_tracks(Deadly(folder, NAMES), range(6), num_workers)}
    assert sorted(found) == list(range(6))
    assert (found[1].error, found[1].key) == (KILLED, NAMES[1])
    for index in (0, 2, 3, 4, 5):
        expected = audio_tracks(folder).read(index, tmp_path)
        np.testing.assert_array_equal(found[index].mel, expected.mel)
    assert no_processes_left(0)


class Hanging(AudioTracks):
    """One of its tracks has no end."""

    def _mel(self, index, scratch):
        while index == 1:
            signal.pause()
        return super()._mel(index, scratch)


def test_a_track_that_hangs_its_process_costs_itself_only(folder, monkeypatch):
    monkeypatch.setattr("maest.datasets.tracks.process_map", partial(process_map, time_limit=1.0))
    found = list(read_tracks(Hanging(folder, NAMES), range(3), 2))
    assert sorted(track.index for track in found) == [0, 1, 2]
    assert [track.index for track in found if track.error] == [1]
    assert no_processes_left(0)


@pytest.mark.parametrize("how", ["closed", "forgotten", "failed"])
def test_no_process_is_left_behind(folder, how):
    found = read_tracks(audio_tracks(folder), range(6), 3)
    next(found)
    if how == "closed":
        found.close()
    elif how == "forgotten":
        del found
    else:
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt)
    assert no_processes_left(0)


@pytest.mark.slow
def test_processes_that_are_no_forks(folder, tmp_path, monkeypatch):
    spawning = partial(process_map, start_method="spawn")
    monkeypatch.setattr("maest.datasets.tracks.process_map", spawning)
    tracks = audio_tracks(folder)
    for track in read_tracks(tracks, range(6), 1):
        np.testing.assert_array_equal(track.mel, tracks.read(track.index, tmp_path).mel)
