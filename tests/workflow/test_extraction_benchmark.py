"""benchmarks/extraction.py: a trial of its parts, whose figures are not looked at for speed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import extraction
from maest.helpers.audio.reading import read_audio

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_ways_give_the_same_embeddings(tmp_path):
    path = tmp_path / "record.json"
    extraction.main(["--quick", "--parts", "embeddings", "--record", str(path)])
    record = json.loads(path.read_text("utf-8"))
    [rows] = record["results"].values()
    assert list(rows) == list(extraction.WAYS)
    for name, row in rows.items():
        assert row["largest_value"] > 0.1, name
        if "int8" in name or "column" in name:
            assert row["largest_difference"] > 1e-4, name
            assert 0.99 < row["lowest_cosine"] < 1, name
        else:
            assert row["largest_difference"] < 1e-3, name
            assert row["lowest_cosine"] > 0.999999, name
    assert record["arguments"]["arch"] == "maest_tiny"


def test_music_is_stereo_at_44100_and_may_have_several_names(tmp_path):
    folder = Path(extraction.write_music(tmp_path, 3, 1.5, different=2))
    first, second, third = sorted(folder.iterdir())
    assert [len(read_audio(path)) for path in (first, second)] == [24_000, 24_000]
    assert not np.array_equal(read_audio(first), read_audio(second))
    assert third.samefile(first)


@pytest.mark.slow
def test_memory_and_latency():
    memory, latency = extraction.main(["--quick", "--parts", "memory", "latency"])[
        "results"
    ].values()
    assert all(row["loaded_mib"] > 50 for row in memory.values())
    assert all(row["seconds"] > 0 for row in latency.values())
