"""Log-mel files: written float16, read only where asked, refused by name where broken; the mean
and deviation of a store, against NumPy on all values at once.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from folders import peak_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import refuses
from music import noise

from maest.datasets.melspectrograms import (
    MelFile,
    all_finite,
    mel_path,
    read_crop,
    read_mel,
    read_patches,
    write_mel,
)
from maest.datasets.norm import norm_stats
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.patches import PatchPlan


def mel_of(frames: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((frames, 96)) * 5).astype(np.float16)


def test_layout_on_disk(tmp_path):
    mel = mel_of(70)
    write_mel(tmp_path / "a.mmap", mel.astype(np.float32))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.mmap", np.float16), mel.ravel())
    np.testing.assert_array_equal(read_mel(tmp_path / "a.mmap"), mel)


BEYOND = [np.full((3, 96), value) for value in (np.nan, np.inf, 1e6)]  # of float16


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("mel", [np.zeros((96, 70)), np.zeros((0, 96)), *BEYOND])
def test_what_is_not_written(tmp_path, mel):
    with pytest.raises(ValueError, match=r"a\.mmap"):
        write_mel(tmp_path / "a.mmap", mel)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: None, "missing"),
        (Path.touch, "corrupt"),
        (Path.mkdir, "corrupt"),
        (lambda path: path.write_bytes(bytes(96 * 2 * 5 + 1)), "corrupt"),
    ],
)
def test_broken_files_are_named_and_closed(tmp_path, make, kind):
    make(tmp_path / "a.mmap")
    before = os.listdir("/proc/self/fd")
    with refuses(kind, "a.mmap"):
        read_mel(tmp_path / "a.mmap")
    assert os.listdir("/proc/self/fd") == before


def test_only_the_frames_that_are_asked_for_are_looked_at(tmp_path):
    mel = mel_of(200)
    mel[150, 3] = np.nan
    mel.tofile(tmp_path / "a.mmap")
    with MelFile(tmp_path / "a.mmap") as file:
        np.testing.assert_array_equal(file.read(20, 150), mel[20:150])
        with refuses("invalid", "a.mmap"):
            file.read(100, 200)


@pytest.mark.parametrize("left", [0, 192 * 120, 192 * 120 + 7])
def test_a_file_that_shrinks_while_it_is_open(tmp_path, left):
    mel_of(200).tofile(tmp_path / "a.mmap")
    with MelFile(tmp_path / "a.mmap") as file:
        os.truncate(tmp_path / "a.mmap", left)
        with refuses("corrupt", "a.mmap"):
            file.read(100, 200)


def test_a_file_of_a_key(tmp_path):
    for frames, name in enumerate(("a.mmap", "c", "x/d.mmap"), start=1):
        write_mel(tmp_path / name, mel_of(frames))
    (tmp_path / "a").mkdir()  # a folder is no file of a track
    (tmp_path / "torn").write_bytes(bytes(5))
    mel_of(9).tofile(tmp_path / "torn.mmap")
    keys = {"a.mmap": 1, "a": 1, "c": 2, "x/d.mmap": 3, "x/d": 3}
    for key, frames in keys.items():
        with MelFile.of_key(tmp_path, key) as file:
            assert len(file) == frames
            assert file.path == str(mel_path(tmp_path, key))
    for key, kind in {"torn": "corrupt", "gone": "missing", "x": "missing"}.items():
        with refuses(kind, f"/{key}"):  # and not the other file
            MelFile.of_key(tmp_path, key)


def test_finite_by_the_bits_is_finite():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for value, expected in zip(every, np.isfinite(every), strict=True):
        assert all_finite(np.array([[1, value]], np.float16)) == expected
    assert all_finite(np.zeros((0, 96), np.float16))


def test_a_crop_is_anywhere_and_exact(tmp_path):
    mel = np.repeat(np.arange(40, dtype=np.float16)[:, None], 96, axis=1)
    write_mel(tmp_path / "a.mmap", mel)
    rng, starts = np.random.default_rng(0), set()
    with MelFile(tmp_path / "a.mmap") as file:
        for _ in range(300):
            crop, first = read_crop(file, 30, rng)
            starts.add(first)
            np.testing.assert_array_equal(crop, mel[first:][:30])
    assert starts == set(range(11))


WAVEFORM = noise(10)[:, 0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(samples=st.integers(1, len(WAVEFORM)), longest=st.integers(16, 700))
def test_audio_and_its_file_give_the_same_patches(tmp_path_factory, samples, longest):
    folder = tmp_path_factory.getbasetemp()
    mel, plan = log_mel(WAVEFORM[:samples]), PatchPlan(longest)
    write_mel(folder / "a.mmap", mel)
    expected = [plan.take(mel, span) for span in plan.spans(len(mel))]
    found = read_patches(folder, "a", longest)
    assert [len(patch) for patch in found] == [len(patch) for patch in expected]
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Tracks of 1 to 400 frames of different levels; and all their values."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    values, keys = [], []
    for i in range(40):
        mel = rng.random((int(rng.integers(1, 400)), 96)) * rng.uniform(0.1, 4) + i / 10
        keys.append(f"{i % 3}/{i}.mmap")
        write_mel(folder / keys[-1], mel)
        values.append(mel.astype(np.float16).astype(np.float64))
    return folder, keys, values


def test_norm_stats_are_numpys_to_the_last_bit_whatever_the_threads(store):
    folder, keys, mels = store
    values = np.concatenate(mels)
    found = norm_stats(folder, keys, 1)
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-12)
    assert (found.tracks, found.frames, found.failed) == (40, len(values), {})
    for workers in (2, 5):
        assert norm_stats(folder, keys, workers, progress=False) == found
    assert norm_stats(folder, keys, tracks=40) == found
    assert norm_stats(folder, keys, tracks=3) == norm_stats(folder, [keys[i] for i in (0, 19, 39)])


def test_unreadable_files_are_left_out_and_named(store):
    folder, keys, _ = store
    (folder / "torn.mmap").write_bytes(bytes(96 * 2 + 1))
    nan = np.ones((300, 96), np.float16)
    nan[250, 3] = np.nan
    nan.tofile(folder / "nan.mmap")
    found = norm_stats(folder, ["torn.mmap", *keys[:20], "nan.mmap", *keys[20:], "gone"], 2)
    assert found.mean == norm_stats(folder, keys).mean
    assert (found.tracks, list(found.failed)) == (40, ["torn.mmap", "nan.mmap", "gone"])
    for lost in (["gone", "lost"], []):
        with refuses("missing", folder.name):
            norm_stats(folder, lost)


@pytest.mark.parametrize("value", [0, 0.3, 2])
def test_silence_is_nothing_to_normalise_by(tmp_path, value):
    for name in ("a.mmap", "b.mmap"):
        np.full((300, 96), value, np.float16).tofile(tmp_path / name)
    with refuses("invalid", "a.mmap"):
        norm_stats(tmp_path, ["gone", "a.mmap", "b.mmap"])


def test_memory_does_not_grow_with_a_track(tmp_path):
    mel = np.zeros((200_000, 96), np.float16)  # 38 MB; 154 MB as float64
    mel[::2] = 2
    mel.tofile(tmp_path / "hours.mmap")
    found, peak = peak_memory(lambda: norm_stats(tmp_path, ["hours.mmap"], num_workers=1))
    assert (found.mean, found.std, found.frames) == (1, 1, 200_000)
    assert peak < 4e7
