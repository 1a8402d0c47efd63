"""Reading whole tracks: audio and log-mel files as chunks, in processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from maest.datasets.chunk_loader import ChunkLoader
from maest.datasets.melspectrograms import write_mel
from maest.datasets.tracks import AudioTracks, MelTracks, find_tracks, own_share, parse_shard
from maest.helpers.chunks import Cutting, log_mel_of, samples_of
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import MelSpectrogram, n_frames
from maest.helpers.patches import fresh
from maest.helpers.processes import KILLED

RATE = 16_000
CUTTING = Cutting(100)
SECONDS = (5.0, 0.01, 1.0, 3.0, 12.3, 1.7)  # of the tracks of `folder`
NAMES = [f"{i}/song.wav" for i in range(len(SECONDS))]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype("f4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Audio, and beside it the log-mel files of the same."""
    root, front_end = tmp_path_factory.mktemp("music"), MelSpectrogram()
    for seed, (name, seconds) in enumerate(zip(NAMES, SECONDS, strict=True)):
        (root / name).parent.mkdir()
        waveform = noise(seconds, seed)
        soundfile.write(root / name, waveform, RATE, subtype="FLOAT")
        mel = front_end(torch.from_numpy(waveform)).T.numpy()
        write_mel((root / name).with_suffix(".mmap"), mel)
    return root


def audio_tracks(folder: Path) -> AudioTracks:
    return AudioTracks(folder, NAMES)


def by_track(chunks) -> dict[int, list]:
    """Chunks of each track, of its last attempt; that they are in order and end is asserted."""
    tracks = defaultdict(list)
    for chunk in chunks:
        held = tracks[chunk.index]
        if held and held[-1].attempt != chunk.attempt:
            assert chunk.attempt > held[-1].attempt
            held.clear()
        assert not (held and held[-1].last), "nothing comes after the last chunk"
        held.append(chunk)
    assert all(held[-1].last for held in tracks.values())
    return dict(tracks)


def patches_of(chunks: list) -> list[np.ndarray]:
    return [
        patch.numpy() for chunk in chunks if chunk.patches is not None for patch in chunk.patches
    ]


def spans_of(chunks: list) -> list[tuple[int, int]]:
    return [tuple(span) for chunk in chunks for span in chunk.spans.tolist()]


def no_processes_left(seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while multiprocessing.active_children():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# ---- one track -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [None, 40, 130])
@pytest.mark.parametrize("tail", ["keep", "drop", "pad"])
@pytest.mark.parametrize("per_chunk", [1, 3])
def test_audio_and_its_log_mel_file_are_the_same_patches(folder, hop, tail, per_chunk):
    cutting = Cutting(100, hop, tail)
    audio = audio_tracks(folder)
    mels = MelTracks(folder, [name.replace(".wav", ".mmap") for name in NAMES])
    for index, seconds in enumerate(SECONDS):
        one = list(audio.chunks(index, cutting, per_chunk))
        other = list(mels.chunks(index, cutting, per_chunk))
        frames = n_frames(round(seconds * RATE))
        spans = cutting.spans(frames)
        if not spans:
            for chunks in (one, other):
                assert [chunk.error for chunk in chunks] == [
                    "shorter than a patch (1.6 s) and inference.tail=drop leaves such out"
                ]
            continue
        for chunks in (one, other):
            assert spans_of(chunks) == spans
            assert [n for chunk in chunks for n in chunk.fresh.tolist()] == fresh(spans)
            assert [chunk.frames for chunk in chunks] == [None] * (len(chunks) - 1) + [frames]
            for chunk in chunks:
                assert len(chunk.spans) == len(chunk.fresh)
                assert len(chunk.spans) == (0 if chunk.patches is None else len(chunk.patches))
                assert len(chunk.spans) <= per_chunk
        assert {patch.dtype.name for patch in patches_of(one)} == {"float32"}
        assert {patch.dtype.name for patch in patches_of(other)} == {"float16"}
        for ours, stored, (first, last) in zip(
            patches_of(one), patches_of(other), spans, strict=True
        ):
            expected = 100 if tail == "pad" else max(16, last - first)
            assert ours.shape == stored.shape == (expected, 96)
            assert np.abs(ours - stored.astype("f4")).max() < 2e-3
            assert not stored[last - first :].any(), "silence"


def test_waveforms_are_left_where_they_are_asked_for(folder):
    audio = audio_tracks(folder)
    waveforms = list(audio.chunks(0, CUTTING, 2, waveforms=True))
    mels = list(audio.chunks(0, CUTTING, 2))
    assert waveforms[0].patches.shape == (2, samples_of(100))
    for raw, mel in zip(waveforms, mels, strict=True):
        assert torch.equal(log_mel_of(raw.patches, MelSpectrogram()), mel.patches)


def test_a_wide_npy_is_float32(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((130, 96)))
    chunks = list(MelTracks(tmp_path, ["a"]).chunks(0, Cutting(60), 8))
    assert {chunk.patches.dtype for chunk in chunks} == {torch.float32}
    assert chunks[-1].frames == 130


def test_a_long_track_is_read_chunk_by_chunk(tmp_path, monkeypatch):
    from maest.datasets.melspectrograms import MelFile

    with (tmp_path / "long.mmap").open("wb") as file:
        file.truncate(2_250_000 * 96 * 2)  # ten hours, of holes
    read = []
    original = MelFile.read_into
    monkeypatch.setattr(
        MelFile, "read_into", lambda self, out, at: (read.append(at), original(self, out, at))[1]
    )
    chunks = MelTracks(tmp_path, ["long.mmap"]).chunks(0, Cutting(625), 4)
    for _ in range(3):
        next(chunks)
    assert len(read) == 12
    chunks.close()


def test_errors_are_chunks(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no music " * 100)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    audio = AudioTracks(tmp_path, ["empty.wav", "text.mp3", "nan.wav", "none.wav", "not there.wav"])
    for index, key in enumerate(audio.keys):
        chunks = list(audio.chunks(index, CUTTING, 4))
        assert chunks[-1].error
        assert (chunks[-1].key, chunks[-1].index) == (key, index)
        assert str(tmp_path) not in chunks[-1].error

    (tmp_path / "cut.mmap").write_bytes(bytes(1000))
    bad = np.zeros((300, 96), np.float16)
    bad[-1, -1] = np.inf
    bad.tofile(tmp_path / "inf.mmap")
    mels = MelTracks(tmp_path, ["cut.mmap", "inf.mmap", "not there"])
    assert "no whole number of frames" in list(mels.chunks(0, CUTTING, 1))[-1].error
    found = list(mels.chunks(1, CUTTING, 1))
    assert [chunk.last for chunk in found] == [False, False, True]
    assert "NaN or infinite" in found[-1].error
    assert "no such file" in list(mels.chunks(2, CUTTING, 1))[-1].error


def test_an_error_that_nobody_foresaw_is_a_chunk_too(folder, monkeypatch):
    def stream(path, seconds):
        yield noise(4)
        raise MemoryError("too long " * 100)

    monkeypatch.setattr("maest.datasets.tracks.stream_audio", stream)
    chunks = list(audio_tracks(folder).chunks(0, CUTTING, 1))
    assert len(chunks) == 3
    assert chunks[-1].error.startswith("MemoryError: too long")
    assert len(chunks[-1].error) == 300


def test_keys_that_are_no_text(tmp_path):
    names = ["a\nb.wav", os.fsdecode(b"caf\xe9.wav"), "é.wav"]
    for seed, name in enumerate(names):
        soundfile.write(os.fsencode(tmp_path / name), noise(1, seed), RATE, subtype="FLOAT")
    found = find_tracks(tmp_path)
    assert sorted(found.tracks.keys) == sorted(names)
    tracks = by_track(ChunkLoader(found.tracks, range(3), CUTTING, per_chunk=4, num_workers=2))
    for index, chunks in tracks.items():
        assert [chunk.error for chunk in chunks] == [None] * len(chunks)
        assert {chunk.key for chunk in chunks} == {found.tracks.keys[index]}
    write_mel(tmp_path / os.fsdecode(b"caf\xe9.mmap"), np.zeros((20, 96)))
    chunks = list(MelTracks(tmp_path, [os.fsdecode(b"caf\xe9")]).chunks(0, CUTTING, 4))
    assert [chunk.frames for chunk in chunks] == [20]


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
        assert list(tracks.chunks(0, CUTTING, 4))[-1].error is None


def test_a_folder(folder, tmp_path, monkeypatch):
    for name in ("b/x.mp3/inside.flac", "a.MP3", "a.wav", "out/picture.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.ogg").symlink_to("nowhere")
    found = find_tracks(tmp_path, tmp_path / "out")
    assert list(found.tracks.keys) == ["a.MP3", "a.wav", "b/x.mp3/inside.flac", "broken.ogg"]
    assert found.left_out == {".txt": 1}
    assert "nowhere" in list(found.tracks.chunks(3, CUTTING, 4))[-1].error
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
    for wrong in ({"shard": (0, 3)}, {"shard": (4, 3)}, {"rank": 2, "world": 2}):
        with pytest.raises(ValueError, match="there is no part"):
            own_share(10, **wrong)


def test_a_shard_as_typed():
    assert parse_shard("3/100") == (3, 100)
    assert parse_shard("100/100") == (100, 100)
    for wrong in ("3", "3/", "a/b", "3/2", "0/3", "-1/3", "1/3/2", 0.03):
        with pytest.raises(InputError) as error:
            parse_shard(wrong)
        assert error.value.setting == "inference.shard"


# ---- many tracks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("waveforms", [False, True])
def test_processes_give_what_this_one_gives(folder, waveforms):
    source = audio_tracks(folder)
    indices = [5, 4, 3, 1, 0]
    found = {}
    for num_workers in (0, 1, 3):
        loader = ChunkLoader(
            source, indices, CUTTING, per_chunk=2, num_workers=num_workers, waveforms=waveforms
        )
        with pytest.raises(TypeError):
            len(loader)
        found[num_workers] = by_track(loader)
        assert no_processes_left(0)
    assert list(found[0]) == indices
    for num_workers in (1, 3):
        assert found[num_workers].keys() == set(indices)
        for index, chunks in found[0].items():
            others = found[num_workers][index]
            assert [chunk.attempt for chunk in others] == [0] * len(chunks)
            assert spans_of(chunks) == spans_of(others)
            assert [chunk.frames for chunk in chunks] == [chunk.frames for chunk in others]
            for one, other in zip(patches_of(chunks), patches_of(others), strict=True):
                assert one.dtype == other.dtype
                assert np.abs(one - other).max() < 1e-5
                other += 1  # it may be written to


def test_log_mel_files_and_bad_ones_beside_them(folder, tmp_path):
    keys = [str(folder / name.replace(".wav", ".mmap")) for name in NAMES]
    (tmp_path / "bad.mmap").write_bytes(b"bad")
    keys[2:2] = ["bad.mmap", "missing"]
    source = MelTracks(tmp_path, keys)
    tracks = by_track(ChunkLoader(source, range(len(keys)), CUTTING, per_chunk=2, num_workers=2))
    assert {index for index, chunks in tracks.items() if chunks[-1].error} == {2, 3}
    assert sorted(tracks) == list(range(len(keys)))
    for index, chunks in tracks.items():
        expected = list(source.chunks(index, CUTTING, 2))
        assert spans_of(chunks) == spans_of(expected)
        for one, other in zip(patches_of(chunks), patches_of(expected), strict=True):
            assert one.dtype == np.float16
            assert np.array_equal(one, other)


def test_more_tracks_than_the_queue_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("maest.helpers.processes._QUEUE", 7)
    write_mel(tmp_path / "a.mmap", np.zeros((20, 96)))
    source = MelTracks(tmp_path, ["a"] * 100)
    found = [
        chunk.index
        for chunk in ChunkLoader(source, range(100), CUTTING, per_chunk=2, num_workers=2)
    ]
    assert sorted(found) == list(range(100))
    assert not list(ChunkLoader(source, [], CUTTING, per_chunk=2, num_workers=2))


class Deadly(AudioTracks):
    """Some of its tracks kill the process that reads them, with a chunk sent, or without."""

    always = frozenset({1})
    once = frozenset({4})

    def _read(self, index, cutting, per_chunk, waveforms, frontend):
        chunks = super()._read(index, cutting, per_chunk, waveforms, frontend)
        if index in self.once:
            yield next(chunks)
            yield next(chunks)
            marker = self.folder / "killed once"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if index in self.always:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from chunks


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_process_that_is_killed_costs_its_track_only(folder, num_workers):
    (folder / "killed once").unlink(missing_ok=True)
    source = Deadly(folder, NAMES)
    loader = ChunkLoader(source, range(len(NAMES)), CUTTING, per_chunk=2, num_workers=num_workers)
    chunks = list(loader)
    tracks = by_track(chunks)
    assert sorted(tracks) == list(range(len(NAMES)))
    assert len(tracks[1]) == 1
    assert tracks[1][0].error == KILLED
    assert (tracks[1][0].key, tracks[1][0].attempt) == (NAMES[1], 1)
    assert [(chunk.index, chunk.attempt) for chunk in chunks].count((4, 0)) == 1
    for index in (0, 2, 3, 4, 5):
        expected = list(audio_tracks(folder).chunks(index, CUTTING, 2))
        assert {chunk.attempt for chunk in tracks[index]} == {int(index == 4)}
        assert spans_of(tracks[index]) == spans_of(expected)
        for one, other in zip(patches_of(tracks[index]), patches_of(expected), strict=True):
            assert np.abs(one - other).max() < 1e-5
    assert no_processes_left(0)


class Hanging(AudioTracks):
    """One of its tracks has no end."""

    def _read(self, index, cutting, per_chunk, waveforms, frontend):
        yield from super()._read(index, cutting, per_chunk, waveforms, frontend)
        while index == 1:
            signal.pause()


def test_a_track_that_hangs_its_process_costs_itself_only(folder):
    loader = ChunkLoader(
        Hanging(folder, NAMES), range(3), CUTTING, per_chunk=2, num_workers=2, time_limit=1.0
    )
    tracks = by_track(loader)
    assert [index for index in range(3) if tracks[index][-1].error] == [1]
    assert tracks[1][-1].attempt == 1
    assert no_processes_left(0)


def test_a_kill_from_outside_while_the_network_is_at_work(folder):
    loader = ChunkLoader(audio_tracks(folder), range(6), Cutting(20), per_chunk=1, num_workers=2)
    chunks = []
    for chunk in loader:
        chunks.append(chunk)
        if len(chunks) == 5:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(0.2)
    tracks = by_track(chunks)
    for index in range(6):
        assert spans_of(tracks[index]) == Cutting(20).spans(tracks[index][-1].frames)


@pytest.mark.parametrize("how", ["closed", "forgotten", "failed"])
def test_no_process_is_left_behind(folder, how):
    loader = ChunkLoader(audio_tracks(folder), range(6), Cutting(20), per_chunk=1, num_workers=3)
    chunks = iter(loader)
    next(chunks)
    assert len(multiprocessing.active_children()) == 3
    if how == "closed":
        chunks.close()
    elif how == "forgotten":
        del chunks
    else:
        with pytest.raises(KeyboardInterrupt):
            chunks.throw(KeyboardInterrupt)
    assert no_processes_left(0)


def test_workers_leave_signals_to_the_main_process(folder):
    loader = ChunkLoader(audio_tracks(folder), range(6), Cutting(20), per_chunk=1, num_workers=2)
    count = 0
    for chunk in loader:
        count += chunk.last
        for child in multiprocessing.active_children() if count == 0 else []:
            os.kill(child.pid, signal.SIGINT)
            os.kill(child.pid, signal.SIGUSR1)
        assert chunk.attempt == 0
    assert count == 6


@pytest.mark.slow
def test_processes_that_are_no_forks(folder):
    source = audio_tracks(folder)
    loader = ChunkLoader(
        source, range(6), CUTTING, per_chunk=2, num_workers=1, start_method="spawn"
    )
    tracks = by_track(pickle.loads(pickle.dumps(loader)))
    assert sorted(tracks) == list(range(6))
    for index, chunks in tracks.items():
        assert spans_of(chunks) == spans_of(list(source.chunks(index, CUTTING, 2)))
