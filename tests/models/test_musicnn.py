"""MusiCNN: its checkpoints are read as TensorFlow reads them, and its tags are those it gives."""

import importlib.util
import json
from pathlib import Path

import librosa
import miniature_musicnn as miniature
import numpy as np
import pytest
import sounds
import torch
from made_up import refuses

from maest.helpers.errors import InputError
from maest.models import musicnn
from maest.models.musicnn import NETWORKS, Musicnn, load_weights, log_mel, read_weights
from maest.models.teacher import load_teacher
from maest.models.tensor_bundle import read_tensor_bundle

GOLDEN = Path(__file__).parents[1] / "golden" / "musicnn.json"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of PyTorch's, and no package musicnn."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path / "hub"


@pytest.fixture
def package(hub, tmp_path, monkeypatch) -> Path:
    """The package in miniature, installed."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    monkeypatch.syspath_prepend(miniature.write_package(tmp_path))
    return tmp_path / "musicnn"


@pytest.mark.parametrize("per_block", [1, 7, 1000])
def test_a_checkpoint_gives_back_its_arrays(tmp_path, per_block):
    made = miniature.arrays()
    miniature.write_bundle(tmp_path, made, per_block)
    found = read_tensor_bundle(f"{tmp_path}/")
    assert {name: (a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a.shape, a.tobytes()) for name, a in made.items()
    }


@pytest.mark.parametrize("kept", [0, 30, 500, -20])
@pytest.mark.parametrize("name", [".index", ".data-00000-of-00001"])
def test_a_truncated_checkpoint_is_refused(tmp_path, name, kept):
    miniature.write_bundle(tmp_path, miniature.arrays())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    with refuses("corrupt", setting=...):
        read_tensor_bundle(f"{tmp_path}/")


def test_a_missing_checkpoint_is_refused(tmp_path):
    with refuses("corrupt", ".index"):
        read_tensor_bundle(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv2d_3/kernel", None),
        ("conv2d_3/kernel", np.zeros((64, 1, 3), np.float32)),
        ("dense_1/bias", np.zeros(8, np.float32)),
        ("conv2d_8/kernel", np.zeros((7, 5, 1, 5), np.float32)),
    ],
)
def test_weights_of_another_network_are_refused(name, value):
    arrays = {**miniature.arrays(n_classes=7), name: value}
    arrays = {key: array for key, array in arrays.items() if array is not None}
    with pytest.raises(InputError) as error:
        load_weights(Musicnn(7, **miniature.SIZES), arrays)
    assert (error.value.kind, bool(error.value.hint)) == ("mismatch", True)
    assert name in str(error.value)


@pytest.mark.filterwarnings("ignore:n_fft=512 is too large")
@pytest.mark.parametrize("samples", [1, 255, 256, 5_000, 47_871])
def test_the_front_end_is_librosas(samples):
    audio = sounds.chords(3, 16_000, 1)[:samples, 0] + np.float32(0.1)
    options = {"sr": 16_000, "n_fft": 512, "hop_length": 256, "n_mels": 96}
    power = librosa.feature.melspectrogram(y=audio, **options, pad_mode="reflect")
    np.testing.assert_allclose(log_mel(audio), np.log10(10_000 * power.T + 1), atol=2e-3)


def test_weights_are_read_once_from_the_package(package, hub):
    read = read_weights()
    assert not [name for name in read if "Adam" in name or "power" in name]
    for seed, network in enumerate(NETWORKS):
        kernel = miniature.arrays(seed)["conv2d_1/kernel"]
        np.testing.assert_array_equal(read[f"{network}/conv2d_1/kernel"], kernel)
    for file in package.rglob(".index"):
        file.unlink()
    again = read_weights()
    assert {name: a.tobytes() for name, a in again.items()} == {
        name: a.tobytes() for name, a in read.items()
    }


def test_without_the_package_the_error_names_the_command(hub):
    with pytest.raises(InputError) as error:
        load_teacher("musicnn")
    assert (error.value.kind, error.value.setting) == ("dependency", "teacher")
    assert "--no-deps -r requirements-teacher.txt" in error.value.hint


def test_a_damaged_cache_is_refused(hub):
    file = musicnn.cached_weights()
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not weights")
    with refuses("corrupt", str(file), ...):
        load_teacher("musicnn")


@pytest.mark.slow
def test_the_tags_are_those_of_tensorflow():
    """The package's own network in TensorFlow 2.21, on librosa's spectrogram in float32."""
    if not musicnn.cached_weights().is_file() and importlib.util.find_spec("musicnn") is None:
        pytest.skip("musicnn is not installed: see requirements-teacher.txt")
    audio = sounds.chords(2.976, 16_000, 1)[:, 0]  # a window's frames, without padding
    expected = json.loads(GOLDEN.read_text())
    (found,) = load_teacher("musicnn")(audio)
    np.testing.assert_allclose(found, expected["MTT_musicnn"] + expected["MSD_musicnn"], atol=1e-4)
