"""A waveform that comes block by block, cut into patches: the same as cutting its spectrogram."""

import tracemalloc

import numpy as np
import pytest
import torch

from maest.helpers.chunks import Cutting, log_mel_of, samples_of, stream_patches
from maest.helpers.melspectrogram import MelSpectrogram
from maest.helpers.patches import PATCH_SIZE, fresh

FRONTEND = MelSpectrogram()


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


def blocks(waveform: np.ndarray, size: int):
    return (waveform[i : i + size] for i in range(0, len(waveform), size))


@pytest.mark.parametrize("block", [777, 100_000])
@pytest.mark.parametrize("tail", ["keep", "drop", "pad"])
@pytest.mark.parametrize("hop", [None, 20, 37, 70, 200])
@pytest.mark.parametrize("samples", [1, 100, 256, 257, 4_000, 16_000, 16_001, 40_000, 70_001])
def test_patches_are_those_of_the_whole_spectrogram(samples, hop, tail, block):
    cutting, waveform = Cutting(60, hop, tail), noise(samples)
    mel = FRONTEND(torch.from_numpy(waveform)).T.numpy()
    chunks = list(stream_patches(blocks(waveform, block), cutting, 3, "a key", 7))
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].frames == len(mel)
    assert {(chunk.key, chunk.index, chunk.attempt) for chunk in chunks} == {("a key", 7, 0)}
    spans = cutting.spans(len(mel))
    assert [tuple(span) for chunk in chunks for span in chunk.spans] == spans
    assert [new for chunk in chunks for new in chunk.fresh] == fresh(spans)
    for chunk in chunks:
        if chunk.patches is None:
            continue
        assert len(chunk.patches) == len(chunk.spans) <= 3
        for patch, (first, last) in zip(
            log_mel_of(chunk.patches, FRONTEND), chunk.spans, strict=True
        ):
            frames = 60 if tail == "pad" else max(last - first, PATCH_SIZE)
            expected = np.zeros((frames, 96), np.float32)
            expected[: last - first] = mel[first:last]
            np.testing.assert_allclose(patch.numpy(), expected, atol=2e-6)


def test_a_patch_comes_as_soon_as_its_samples_are_there():
    taken = 0

    def source():
        nonlocal taken
        for block in blocks(noise(200_000), 1_000):
            taken += len(block)
            yield block

    chunks = stream_patches(source(), Cutting(60), 1, "", 0)
    next(chunks)
    assert taken <= samples_of(60) + 1_000
    next(chunks)
    assert taken <= 2 * samples_of(60) + 1_000


@pytest.mark.parametrize("hop", [None, 6, 3_000])
def test_memory_is_that_of_a_chunk(hop):
    """Of twenty minutes, 77 MB, no more is held than some patches."""
    block = noise(16_000)
    tracemalloc.start()
    try:
        for chunk in stream_patches((block for _ in range(1_200)), Cutting(625, hop), 2, "", 0):
            assert len(chunk.spans) <= 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_nothing_at_all():
    (chunk,) = stream_patches([], Cutting(60), 2, "", 0)
    assert chunk.last
    assert chunk.patches is None
    assert chunk.frames == 0
