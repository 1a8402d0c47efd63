"""Features for the probe: which tokens, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.embeddings import (
    FeatureError,
    embedding_reader,
    load_features,
    mel_statistics,
)
from datasets.melspectrograms import write_mel

EMBEDDING = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def folder(tmp_path):
    """Embeddings of tracks a and b."""
    np.save(tmp_path / "a.embeddings.npy", EMBEDDING)
    np.save(tmp_path / "b.embeddings.npy", np.stack([EMBEDDING, EMBEDDING + 2]))
    return tmp_path


@pytest.mark.parametrize(
    ("types", "reduce", "expected"),
    [
        ("c", "mean", [0, 1, 2, 3]),
        ("d", "mean", [4, 5, 6, 7]),
        ("t", "stack", [8, 9, 10, 11]),
        ("cd", "mean", [2, 3, 4, 5]),
        ("cdt", "mean", [4, 5, 6, 7]),
        ("tc", "stack", [8, 9, 10, 11, 0, 1, 2, 3]),
    ],
)
def test_tokens(folder, types, reduce, expected):
    read = embedding_reader(folder, types, reduce)
    features = load_features(["a", "b"], read, "test")
    assert features.dtype == np.float32
    assert features.tolist() == [expected, [value + 1 for value in expected]]  # patches averaged


@pytest.mark.parametrize(
    ("types", "reduce"), [("", "mean"), ("x", "mean"), ("cc", "mean"), ("c", "max")]
)
def test_bad_choices(folder, types, reduce):
    with pytest.raises(FeatureError, match="expected"):
        embedding_reader(folder, types, reduce)


def test_missing_ones_are_counted(folder):
    with pytest.raises(FeatureError, match=r"2 of 3 tracks of the val split.*x\.embeddings\.npy"):
        load_features(["x", "a", "y"], embedding_reader(folder, "c", "mean"), "val")
    with pytest.raises(FeatureError, match="no such folder"):
        embedding_reader(folder / "none", "c", "mean")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 4)), "expected"),
        (np.zeros((3, 5)), "different models or blocks"),
        (np.full((3, 4), np.nan), "NaN"),
        (np.array({}, dtype=object), "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_bad_files_are_named(folder, content, message):
    path = folder / "z.embeddings.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(FeatureError, match=message) as error:
        load_features(["a", "z"], embedding_reader(folder, "c", "mean"), "train")
    assert "z" in str(error.value)


def test_final_embeddings_have_no_tokens(folder):
    np.save(folder / "f.embeddings.npy", np.ones(4))
    assert load_features(["f"], embedding_reader(folder, "c", "mean"), "test").shape == (1, 4)
    with pytest.raises(FeatureError, match="without tokens"):
        load_features(["f"], embedding_reader(folder, "t", "mean"), "test")


def test_mel_statistics(tmp_path):
    mel = np.random.default_rng(0).random((50, 96))
    write_mel(tmp_path / "a.mmap", mel)
    x = (mel.astype(np.float16).astype(float) - 2.06755686098554) / (2 * 1.268292820667291)
    expected = np.concatenate((x.mean(0), x.std(0)))
    np.testing.assert_allclose(mel_statistics(tmp_path / "a.mmap"), expected, atol=1e-6)
