"""benchmarks/extraction.py: a trial of its parts, whose figures are not looked at for speed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import extraction
from maest.helpers.audio import read_audio

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_ways_give_the_same_embeddings(tmp_path):
    path = tmp_path / "record.json"
    extraction.main(["--quick", "--parts", "embeddings", "--record", str(path)])
    record = json.loads(path.read_text("utf-8"))
    found = record["embeddings"]["5 s"]
    assert list(found["ways"]) == list(extraction.WAYS)
    assert found["differences_to"] == "plain, 7 blocks"
    for name, row in found["ways"].items():
        assert row["largest_value"] > 0.1, name
        if "int8" in name or "column" in name:
            assert row["largest_difference"] > 1e-4, name
            assert 0.99 < row["lowest_cosine"] < 1, name
        else:
            assert row["largest_difference"] < 1e-3, name
            assert row["lowest_cosine"] > 0.999999, name
    assert record["arguments"]["arch"] == "maest_tiny"
    assert "latency" not in record


def test_music_is_stereo_at_44100_and_may_have_several_names(tmp_path):
    folder = extraction.Bench(None, tmp_path).music(3, 1.5, different=2)
    first, second, third = sorted(folder.iterdir())
    assert [len(read_audio(path)) for path in (first, second)] == [24_000, 24_000]
    assert not np.array_equal(read_audio(first), read_audio(second))
    assert third.samefile(first)


@pytest.mark.slow
def test_latency_and_memory(tmp_path):
    record = extraction.main(["--quick", "--parts", "memory", "latency"])
    assert all(row["loaded_mib"] > 50 for row in record["memory"].values())
    assert all(row["seconds"] > 0 for row in record["latency"].values())
