"""Mean and deviation of the store, against NumPy on all values at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from maest.datasets.melspectrograms import write_mel
from maest.datasets.norm import norm_stats, sampled_mean_and_std
from maest.helpers.errors import InputError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Tracks of 1 to 400 frames of different levels, one a .npy; and all their values."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    values, keys = [], []
    for i in range(40):
        mel = rng.random((int(rng.integers(1, 400)), 96)) * rng.uniform(0.1, 4) + i / 10
        key = f"{i % 3}/{i}.mmap"
        if i == 7:
            key, mel = "7.npy", mel.astype(np.float32)
            np.save(folder / key, mel)
        else:
            write_mel(folder / key, mel)
            mel = mel.astype(np.float16)
        keys.append(key)
        values.append(mel.astype(np.float64))
    return folder, keys, np.concatenate(values)


def test_norm_stats_are_numpys(store, monkeypatch):
    folder, keys, values = store
    found = norm_stats(folder, keys, progress=False)
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-12)
    assert (found.tracks, found.frames, found.failed) == (40, len(values), {})
    assert sampled_mean_and_std(folder, keys) == (found.mean, found.std)
    some = norm_stats(folder, [keys[i] for i in (0, 19, 39)], progress=False)
    assert sampled_mean_and_std(folder, keys, 3) == (some.mean, some.std)
    monkeypatch.setattr("maest.datasets.melspectrograms._CHUNK", 7)
    pieces = norm_stats(folder, keys, progress=False)
    np.testing.assert_allclose([pieces.mean, pieces.std], [values.mean(), values.std()], rtol=1e-12)


def test_far_from_zero_no_digits_are_lost(tmp_path):
    """Where the mean of squares less the square of the mean would have none left."""
    mel = 1000 + np.random.default_rng(0).integers(2, size=(300, 96)) / 2
    write_mel(tmp_path / "a.mmap", mel)
    found = norm_stats(tmp_path, ["a.mmap"] * 5, progress=False)
    np.testing.assert_allclose([found.mean, found.std], [mel.mean(), mel.std()], rtol=1e-12)


def test_the_same_to_the_last_bit_whatever_the_threads(store):
    folder, keys, _ = store
    alone = norm_stats(folder, keys, num_workers=1, progress=False)
    for workers in (2, 5):
        assert norm_stats(folder, keys, num_workers=workers, progress=True) == alone


def test_what_cannot_be_read_is_left_out_and_named(store, tmp_path):
    folder, keys, values = store
    (folder / "torn.mmap").write_bytes(bytes(96 * 2 + 1))
    nan = np.ones((300, 96), np.float16)
    nan[250, 3] = np.nan  # good frames come before it
    nan.tofile(folder / "nan.mmap")
    found = norm_stats(folder, ["torn.mmap", *keys[:20], "nan.mmap", *keys[20:], "gone"], 2, False)
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-12)
    assert found.tracks == 40
    assert list(found.failed) == ["torn.mmap", "nan.mmap", "gone"]
    for key, part in (("torn.mmap", "truncated"), ("nan.mmap", "NaN"), ("gone", "no such file")):
        assert part in found.failed[key]
    for take, kind, path in (
        (lambda: norm_stats(folder, ["gone", "lost"], progress=False), "missing", folder),
        (lambda: norm_stats(folder, [], progress=False), "missing", folder),
        (lambda: sampled_mean_and_std(folder, ["gone"]), "missing", folder),
    ):
        with pytest.raises(InputError) as error:
            take()
        assert (error.value.kind, error.value.path) == (kind, path)
        assert error.value.hint


@pytest.mark.parametrize("value", [0, 2])
def test_silence_is_nothing_to_normalise_by(tmp_path, value):
    for name in ("a.mmap", "b.mmap"):
        np.full((300, 96), value, np.float16).tofile(tmp_path / name)
    for take in (
        lambda: norm_stats(tmp_path, ["gone", "a.mmap", "b.mmap"], progress=False),
        lambda: sampled_mean_and_std(tmp_path, ["gone", "a.mmap", "b.mmap"]),
    ):
        with pytest.raises(InputError) as error:
            take()
        assert (error.value.kind, error.value.path) == ("invalid", tmp_path / "a.mmap")
        assert error.value.hint


def test_memory_does_not_grow_with_a_track(tmp_path, monkeypatch):
    monkeypatch.setattr("maest.datasets.melspectrograms._CHUNK", 1000)
    mel = np.zeros((60_000, 96), np.float16)  # 11.5 MB; 46 MB as float64
    mel[::2] = 2
    mel.tofile(tmp_path / "hours.mmap")
    tracemalloc.start()
    found = norm_stats(tmp_path, ["hours.mmap"], num_workers=1, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.mean, found.std, found.frames) == (1, 1, 60_000)
    assert peak < 4e6
