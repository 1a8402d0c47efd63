"""The store: written float16, read only where asked, refused by name where broken."""

from __future__ import annotations

import os

import numpy as np
import pytest

from maest.datasets.melspectrograms import (
    MelFile,
    all_finite,
    mel_path,
    read_crop,
    read_mel,
    read_patches,
    write_mel,
)
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.errors import InputError
from maest.models.maest import Maest


def mel_of(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((frames, 96), np.float32) * 5


def test_layout_on_disk(tmp_path):
    mel = mel_of(70)
    write_mel(tmp_path / "a.mmap", mel)
    raw = np.fromfile(tmp_path / "a.mmap", np.float16).reshape(-1, 96)
    np.testing.assert_array_equal(raw, mel.astype(np.float16))
    np.testing.assert_array_equal(read_mel(tmp_path / "a.mmap"), raw)


def test_npy_is_read_too(tmp_path):
    np.save(tmp_path / "a.npy", mel_of(70))
    np.testing.assert_array_equal(read_patches(tmp_path, "a.npy", 100)[0], mel_of(70))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    "mel",
    [
        np.zeros((96, 70)),
        np.zeros((0, 96)),
        np.full((3, 96), np.nan),
        np.full((3, 96), 1e6),  # beyond float16
    ],
)
def test_what_is_not_written(tmp_path, mel):
    with pytest.raises(ValueError, match=r"a\.mmap"):
        write_mel(tmp_path / "a.mmap", mel)
    assert not list(tmp_path.iterdir())


def test_broken_files_are_named(tmp_path):
    (tmp_path / "empty.mmap").touch()
    (tmp_path / "part.mmap").write_bytes(bytes(96 * 2 * 5 + 1))
    (tmp_path / "folder.mmap").mkdir()
    np.save(tmp_path / "shape.npy", np.zeros((96, 5), np.float32))
    np.save(tmp_path / "ints.npy", np.zeros((5, 96), int))
    np.save(tmp_path / "objects.npy", np.array([[{}] * 96]), allow_pickle=True)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01")
    for name, kind in {
        "empty.mmap": "corrupt",
        "part.mmap": "corrupt",
        "none.mmap": "missing",
        "folder.mmap": "corrupt",
        "shape.npy": "invalid",
        "ints.npy": "invalid",
        "objects.npy": "corrupt",
        "torn.npy": "corrupt",
    }.items():
        with pytest.raises(InputError) as error:
            read_mel(tmp_path / name)
        assert (error.value.kind, str(error.value.path)) == (kind, str(tmp_path / name))
        assert error.value.hint.endswith(".")


def test_nan_is_found_where_it_is_read(tmp_path):
    mel = mel_of(200).astype(np.float16)
    mel[150, 3] = np.nan
    mel.tofile(tmp_path / "a.mmap")
    with pytest.raises(InputError, match="100-200") as error:
        read_patches(tmp_path, "a.mmap", 100)
    assert (error.value.kind, error.value.path) == ("invalid", str(tmp_path / "a.mmap"))


def test_keys_find_their_files(tmp_path):
    for name in ("a.mmap", "b.npy", "c"):
        (tmp_path / name).touch()
    assert mel_path(tmp_path, "a.mmap").name == "a.mmap"
    assert mel_path(tmp_path, "a").name == "a.mmap"
    assert mel_path(tmp_path, "b").name == "b.npy"
    assert mel_path(tmp_path, "c").name == "c"
    with pytest.raises(InputError) as error:
        MelFile.of_key(tmp_path, "d")
    assert (error.value.kind, error.value.path) == ("missing", tmp_path / "d")
    assert "datamodule.base_dir" in error.value.hint


def test_crop_is_anywhere_and_exact(tmp_path):
    mel = np.repeat(np.arange(40, dtype=np.float16)[:, None], 96, axis=1)
    write_mel(tmp_path / "a.mmap", mel)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(300):
        with MelFile(tmp_path / "a.mmap") as file:
            crop = read_crop(file, 30, rng)
        assert crop.shape == (30, 96)
        starts.add(int(crop[0, 0]))
        np.testing.assert_array_equal(crop, mel[int(crop[0, 0]) :][:30])
    assert starts == set(range(11))


@pytest.mark.parametrize("frames", [1, 19, 20])
def test_short_track_is_centred_in_silence(tmp_path, frames):
    write_mel(tmp_path / "a.mmap", np.ones((frames, 96)))
    with MelFile(tmp_path / "a.mmap") as file:
        crop = read_crop(file, 20, np.random.default_rng(0))
    start = (20 - frames) // 2
    expected = np.zeros((20, 96))
    expected[start : start + frames] = 1
    np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("seconds", [0.05, 0.4, 3.0, 5.3, 7.9, 8.0, 9.1])
def test_a_track_gives_the_same_from_audio_and_from_its_file(tmp_path, seconds):
    import torch

    rng = np.random.default_rng(1)
    waveform = torch.from_numpy(rng.standard_normal(int(seconds * 16_000)).astype(np.float32)) / 10
    write_mel(tmp_path / "a.mmap", MelSpectrogram()(waveform).T.numpy())
    torch.manual_seed(0)
    model = Maest(n_classes=2, input_t=250, embed_dim=64, num_heads=1, depth=2).eval()
    pieces = read_patches(tmp_path, "a.mmap", model.input_t)
    with torch.no_grad():
        _, expected = model(waveform, transformer_block=1)
        found = [
            model(model.normalise(torch.from_numpy(piece.astype(np.float32)).T[None]), 1)[1]
            for piece in pieces
        ]
    # float16 keeps three digits: the patches are the same ones, the values nearly
    torch.testing.assert_close(torch.cat(found), expected, atol=2e-2, rtol=2e-2)
    assert len(pieces) == len(expected)


# --- An open file -------------------------------------------------------------------------------


def test_only_the_frames_that_are_asked_for_are_read(tmp_path, monkeypatch):
    mel_of(500).astype(np.float16).tofile(tmp_path / "a.mmap")
    calls = []
    preadv = os.preadv

    def counted(descriptor, buffers, offset):
        calls.append((sum(map(len, buffers)), offset))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    with MelFile(tmp_path / "a.mmap") as file:
        assert len(file) == 500
        assert calls == []
        read_crop(file, 100, np.random.default_rng(0))
    start = int(np.random.default_rng(0).integers(401))
    assert calls == [(100 * 192, start * 192)]


def test_reads_that_come_in_parts_are_put_together(tmp_path, monkeypatch):
    mel = mel_of(50).astype(np.float16)
    mel.tofile(tmp_path / "a.mmap")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda d, buffers, at: preadv(d, [buffers[0][:1000]], at))
    with MelFile(tmp_path / "a.mmap") as file:
        np.testing.assert_array_equal(file.read(3, 50), mel[3:])


@pytest.mark.parametrize("left", [0, 192 * 120, 192 * 120 + 7])
def test_a_file_that_shrinks_while_it_is_open(tmp_path, left):
    path = tmp_path / "a.mmap"
    mel_of(200).astype(np.float16).tofile(path)
    with MelFile(path) as file:
        os.truncate(path, left)
        with pytest.raises(InputError) as error:
            file.read(100, 200)
        assert (error.value.kind, error.value.path) == ("corrupt", str(path))


def test_no_descriptor_is_left_open(tmp_path):
    (tmp_path / "part.mmap").write_bytes(bytes(193))
    np.full((20, 96), np.nan, np.float16).tofile(tmp_path / "nan.mmap")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("part.mmap", "nan.mmap", "none.mmap"):
        with pytest.raises(InputError):
            read_patches(tmp_path, name, 10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_of_a_key(tmp_path):
    for frames, name in enumerate(("a.mmap", "b.npy", "c", "x/d.mmap"), start=1):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, mel_of(frames))
        else:
            mel_of(frames).astype(np.float16).tofile(path)
    (tmp_path / "a").mkdir()  # a folder is no file of a track
    (tmp_path / "torn").write_bytes(bytes(5))
    mel_of(9).astype(np.float16).tofile(tmp_path / "torn.mmap")
    keys = {"a.mmap": 1, "a": 1, "b.npy": 2, "b": 2, "c": 3, "x/d.mmap": 4, "x/d": 4}
    for key, frames in keys.items():
        with MelFile.of_key(tmp_path, key) as file:
            assert len(file) == frames
            assert file.path == str(mel_path(tmp_path, key))
    with pytest.raises(InputError) as error:  # and not the other file
        MelFile.of_key(tmp_path, "torn")
    assert (error.value.kind, error.value.path) == ("corrupt", str(tmp_path / "torn"))
    for key in ("gone", "x"):
        with pytest.raises(InputError) as error:
            MelFile.of_key(tmp_path, key)
        assert (error.value.kind, error.value.path) == ("missing", tmp_path / key)


def test_finite_by_the_bits_is_finite():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.isfinite(every)
    assert finite.sum() == 2**16 - 2**11
    for value, expected in zip(every, finite, strict=True):
        assert all_finite(np.array([[1, value]], np.float16)) == expected
    assert all_finite(every[finite])
    assert all_finite(np.zeros((0, 96), np.float16))
    assert not all_finite(np.array([0, np.inf]))
    assert all_finite(np.array([0, 1e300]))
