"""The benchmarks: small trials, whose figures are not looked at for speed."""

from pathlib import Path

import engines
import loading
import loading_models
import numpy as np
import preprocessing
import probe
import pytest
import similar
import windows

import extraction
import training
from maest.helpers.audio.reading import read_audio

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_all_ways_of_extraction_give_the_same_embeddings():
    record = extraction.main(["--quick", "--parts", "embeddings"])
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


def test_memory_and_latency_of_extraction():
    record = extraction.main(["--quick", "--parts", "memory", "latency"])
    memory, latency = record["results"].values()
    assert all(row["loaded_mib"] > 50 for row in memory.values())
    assert all(row["seconds"] > 0 for row in latency.values())


def test_training_steps():
    [rows] = training.main(["--quick"])["results"].values()
    assert set(rows) == set(training.WAYS)
    assert rows["ours"]["tokens"] < rows["AST"]["tokens"]
    assert all(0 < row["utilisation"] < 3 for row in rows.values())


def test_loading():
    memory, *cases = loading.main(["--quick"])["results"].items()
    assert f"epoch_{loading.EPOCHS}" in memory[1]["ours"]
    assert [title.split(",")[0] for title, _ in cases] == ["warm", "cold"]


def test_loading_models():
    [rows] = loading_models.main(["--quick"])["results"].values()
    assert set(rows) == set(loading_models.FILES)
    assert all(row["seconds"] > 0 for row in rows.values())


def test_preprocessing():
    record = preprocessing.main(["--quick"])
    assert max(record["largest_difference_bands_0_to_84"].values()) < 0.02
    [rows] = record["results"].values()
    assert len(rows) == 6


def test_probes_and_engines():
    [rows] = probe.main(["--quick"])["results"].values()
    assert rows["ours, sweep"]["probes"] == 2 * 7 * 3
    [rows] = engines.main(["--quick"])["results"].values()
    assert set(rows) == set(engines.ENGINES)


def test_a_few_windows():
    [rows] = windows.main(["--quick"])["results"].values()
    few, more = rows.values()
    assert (few["tracks"], few["windows"], few["share"], more["share"]) == (3, 4, 0.25, 0.5)
    assert 0 < few["cosine"] < 1


def test_what_is_similar():
    speed, albums = similar.main(["--quick"])["results"].values()
    assert all(row["next_seconds"] > 0 for row in speed.values())
    assert 0 <= albums["maest-tiny-music"]["same_album"] <= 1
    assert albums[similar.STATISTICS]["same_album"] == 1
    assert albums["chance"] == {"same_album": pytest.approx(0.4), "tracks": 6, "albums": 2}
