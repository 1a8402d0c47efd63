"""Teachers: which windows they tag, with what, and what makes no teacher."""

import functools

import miniature_musicnn as miniature
import numpy as np
import pytest
import sounds
import torch
from made_up import refuses
from networks import tiny

from maest.models import get_maest, musicnn, save_model
from maest.models.teacher import load_teacher

SHIPPED = "maest-tiny-music"
WINDOW = 187 * 256  # samples of a window of MusiCNN
AUDIO = sounds.chords(10, 16_000, 1)[:, 0]


@pytest.fixture(scope="module")
def small_musicnn(tmp_path_factory):
    """MusiCNN as a teacher, of few channels."""
    folder = tmp_path_factory.mktemp("musicnn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
        patch.setattr(musicnn, "Musicnn", functools.partial(musicnn.Musicnn, **miniature.SIZES))
        patch.syspath_prepend(miniature.write_package(folder))
        yield load_teacher("musicnn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of ours of 5 s clips."""
    path = tmp_path_factory.mktemp("teacher") / "model"
    save_model(path, tiny(labels=["a", "b", "c"]))
    return path


@pytest.mark.parametrize(
    ("samples", "windows"),
    [
        (1, 1),
        (300, 1),
        (WINDOW, 1),
        (WINDOW + WINDOW // 2 - 1, 1),
        (WINDOW + WINDOW // 2, 2),
        (2 * WINDOW + 5, 2),
        (3 * WINDOW - 1, 3),
    ],
)
def test_musicnn_tags_every_window(small_musicnn, samples, windows):
    found = small_musicnn(AUDIO[:samples])
    assert (found.shape, found.dtype) == ((windows, 100), np.float32)
    mel = musicnn.log_mel(AUDIO[:samples]).numpy()[: windows * 187]
    mel = np.pad(mel, ((0, windows * 187 - len(mel)), (0, 0)))
    for window, tags in zip(mel.reshape(windows, 187, 96), found, strict=True):
        halves = [miniature.reference(miniature.arrays(seed), window) for seed in (0, 1)]
        np.testing.assert_allclose(tags, np.concatenate(halves), atol=2e-5)


def test_musicnn_names_its_tags(small_musicnn):
    labels = small_musicnn.labels
    assert (len(labels), len(set(labels))) == (100, 100)
    assert (labels[0], labels[49], labels[50], labels[99]) == (
        *("mtt/guitar", "mtt/choral", "msd/rock", "msd/happy"),
    )
    assert (small_musicnn.name, small_musicnn.window_seconds) == ("musicnn", 2.992)


def test_other_weights_are_another_version(tmp_path, folder):
    save_model(tmp_path / "other", tiny(seed=1, labels=["a", "b", "c"]))
    versions = [load_teacher(path).version for path in (folder, folder, tmp_path / "other")]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(("seconds", "windows"), [(1, 1), (4.9, 1), (7.4, 1), (7.6, 2), (10, 2)])
def test_a_model_of_ours_tags_every_clip(folder, seconds, windows):
    teacher = load_teacher(folder)
    assert (teacher.labels, teacher.window_seconds) == (("a", "b", "c"), 4.992)
    audio = AUDIO[: round(seconds * 16_000)]
    found = teacher(audio)
    assert (found.shape, found.dtype) == ((windows, 3), np.float32)
    clip = np.pad(audio, (0, 312 * 256))[: 312 * 256]
    expected, _ = tiny(labels=["a", "b", "c"]).predict_labels(clip)
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


def test_a_published_model_is_a_teacher():
    teacher = load_teacher(SHIPPED)
    assert (teacher.name, teacher.labels) == (SHIPPED, tuple(get_maest(SHIPPED).labels))
    assert (teacher.window_seconds, teacher(AUDIO).shape) == (10, (1, len(teacher.labels)))


@pytest.mark.parametrize("audio", [np.zeros(0, np.float32), np.zeros((2, 10), np.float32)])
def test_no_waveform_is_refused(small_musicnn, folder, audio):
    for teacher in (small_musicnn, load_teacher(folder)):
        with refuses(..., setting="audio"):
            teacher(audio)


def test_silence_and_nan(small_musicnn):
    assert np.isfinite(small_musicnn(np.zeros(100_000, np.float32))).all()
    with refuses("corrupt", setting=...):
        small_musicnn(np.full(100_000, np.nan, np.float32))


def test_what_is_no_teacher(tmp_path):
    save_model(tmp_path / "nameless", tiny())
    save_model(tmp_path / "regression", tiny(labels=["a", "b", "c"], task="regression"))
    cases = {"musicn": "unknown", str(tmp_path / "none"): "missing"}
    cases |= {str(tmp_path / "nameless"): "missing", str(tmp_path / "regression"): "unsupported"}
    for name, kind in cases.items():
        with refuses(kind, setting=...):
            load_teacher(name)
