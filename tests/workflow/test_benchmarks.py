"""The benchmarks: small trials, whose figures are not looked at for speed."""

from __future__ import annotations

from pathlib import Path

import day_one
import engines
import loading
import loading_models
import numpy as np
import preprocessing
import probe
import pytest
import soundfile
import teachers
from music import save_small_model, tone
from tiny_soundfont import write_soundfont

import extraction
import training
from maest.datasets.recordings.preprocess import build
from maest.datasets.scores.tables import INSTRUMENTS
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


@pytest.fixture
def day_one_files(tmp_path) -> dict[str, Path]:
    """Two models with some labels of the set, three SoundFonts, and a set of four sources."""
    old, new = (
        save_small_model(tmp_path / name, [*shared, "Instrument---Flute", "Voice---Choir"])
        for name, shared in (("old", ["Texture---Four Voices"]), ("new", ["Instrument---Guitar"]))
    )
    programs = {instrument.program for instrument in INSTRUMENTS.values()}
    fonts = [write_soundfont(tmp_path / f"{n}.sf2", dict.fromkeys(programs, n)) for n in (1, 4, 8)]
    for number, (source, tracks) in enumerate({"a": 12, "b": 12, "c": 6, "d": 6}.items()):
        (tmp_path / source).mkdir()
        for i in range(tracks):
            sound = (0.2 + i % 3) * tone(3.2, 20 * number + i)
            soundfile.write(tmp_path / source / f"{i}.flac", sound, 16_000)
    build(
        [tmp_path / source for source in "abcd"],
        **{"teacher": "stand-in", "load": teachers.load, "out_dir": tmp_path / "set", "seed": 1},
        **{"hold_out": ["c", "d"], "num_workers": 1, "progress": False},
    )
    (tmp_path / "styles.csv").write_text("source,style\na,Folk\nb,Folk\nc,Rock\nd,Rock\n")
    known, unseen = fonts[:2], fonts[2]
    files = {"known": known, "unseen": unseen, "set": tmp_path / "set"}
    return files | {"models": [f"old={old}", f"new={new}"], "styles": tmp_path / "styles.csv"}


def test_day_one_measures_two_models_and_goes_on(day_one_files, tmp_path):
    line = ["--quick", "--work", tmp_path / "work", "--record", tmp_path / "record.json"]
    for name, value in day_one_files.items():
        line += [f"--{name}", *(value if isinstance(value, list) else [value])]
    line = [str(part) for part in line]
    found = day_one.main([*line, "--parts", "timbres", "recordings", "styles", "blanks"])["results"]

    probes = [rows for title, rows in found["timbres"].items() if "probes" in title]
    assert [list(rows) for rows in probes] == [["mel statistics", "old", "new"]] * 3
    assert {"ap", "roc_auc minus mel statistics", "ap minus old"} < probes[0]["new"].keys()
    assert 0 <= probes[0]["new"]["roc_auc"]["value"] <= 1
    assert any("own tags" in title for title in found["timbres"])

    figures = {t: v for t, v in found["recordings"].items() if t.startswith("held-out")}
    assert [v if v == "n/a" else list(v) for v in figures.values()] == ["n/a", ["ridge", "new"]]
    assert found["styles"]["the other source"].keys() == {"mel statistics", "old", "new"}
    assert found["blanks"]["sounds"]["clicks"] == 8
    assert 0 <= found["blanks"]["new"]["held-out recordings"]["with_a_tag"] <= 1

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/features").iterdir()}
    again = day_one.main([*line, "--parts", "recordings", "speed"])["results"]
    assert again.keys() == found.keys() | {"speed"}
    assert again["recordings"]["strongest"] == found["recordings"]["strongest"]
    assert kept == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "work/features").iterdir()
    }
    [rows] = [rows for title, rows in again["speed"].items() if "song" in title]
    assert all(row["seconds"] > 0 for row in rows.values())
