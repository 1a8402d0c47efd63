"""`maest learn`, `maest tag` with what was learned, `--max-windows` and `maest verify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from maest_command import Done, maest, refused
from music import save_small_model
from tagged_music import texts

RATE = 16_000
LIBRARY = "--library", "library.sqlite"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Twelve folders with a low and a high sound, a table of them, and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    save_small_model(tmp_path / "base")
    rng, lines = np.random.default_rng(0), ["path,label"]
    for i in range(24):
        path = Path(f"music/{i // 2}/{i}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(int(RATE * rng.uniform(2.1, 2.9))) / RATE
        pitch = rng.uniform(150, 250) * (1, 10)[i % 2]
        sound = 0.2 * np.sin(2 * np.pi * pitch * t) + rng.normal(0, 0.01, len(t))
        soundfile.write(path, sound, RATE)
        lines.append(f"{path},{('low', 'high')[i % 2]}")
    Path("labels.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def learned(home) -> Path:
    """A model of two labels, and what was printed of it."""
    maest("index", "music", "--model", "base", *LIBRARY)
    Path("said.txt").write_text(maest("learn", "labels.csv", "-o", "mine", *LIBRARY).out)
    return home / "mine"


def test_labels_are_learned_and_used(learned):
    (report,) = maest("learn", "labels.csv", "-o", "mine", "--json", *LIBRARY).lines
    assert (report["tracks"], report["split_by"], report["groups"]) == (24, {"folder": 24}, 12)
    assert report["figures"]["accuracy"]["value"] > 0.8
    assert [row["label"] for row in report["labels"]] == ["high", "low"]
    said = Path("said.txt").read_text()
    assert all(word in said for word in ("high", "low", "folder", "ROC-AUC", "12 groups"))
    for path, label in (("music/0/0.wav", "low"), ("music/0/1.wav", "high")):
        (row,) = maest("tag", path, "--model", "mine", "--json").lines
        assert row["tags"][0]["label"] == label


def test_labels_that_cannot_be_tested(home):
    for i in range(12):  # a folder a label
        Path(f"sorted/{i // 6}").mkdir(parents=True, exist_ok=True)
        Path(f"music/{i}/{2 * i}.wav").rename(f"sorted/{i // 6}/{i}.wav")
    rows = [f"sorted/{i // 6}/{i}.wav,{('low', 'high')[i // 6]}" for i in range(12)]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    maest("index", "sorted", "--model", "base", *LIBRARY)
    line = ("learn", "labels.csv", "-o", "mine", *LIBRARY)
    (report,) = maest(*line, "--json").lines
    assert (report["figures"], [row["ap"] for row in report["labels"]]) == ({}, [None, None])
    assert "nan" not in maest(*line).out


def test_labels_are_written_as_what_they_are(learned):
    """Plain ones, of no field, into the comment only."""
    song, line = Path("music/0/0.wav"), ("tag", "music/0/0.wav", "--model", "mine", "--write")
    before = song.read_bytes()
    (row,) = maest(*line, "--json").lines
    assert row["tags"]
    assert "--as" in row["skipped"]
    assert song.read_bytes() == before
    (report,) = maest("learn", "labels.csv", "-o", "mine", "--as", "mood", "--json", *LIBRARY).lines
    assert [row["label"] for row in report["labels"]] == ["Mood---high", "Mood---low"]
    (row,) = maest(*line, "--json", "--groups", "mood").lines  # another model: not done before
    assert texts(song) == {"genre": [], "style": [], "mood": ["low"]}
    assert Done("learn", "labels.csv", "-o", "mine", "--as", "colour", *LIBRARY).code == 2


def test_what_cannot_be_learned(home):
    refused("missing", "learn", "labels.csv", "-o", "mine", *LIBRARY)
    assert not (home / "mine").exists()
    assert Done("learn", "labels.csv").code == 2


def test_a_model_is_verified(home):
    (found,) = maest("verify", "base", "--json").lines
    assert found["same"] is True
    assert [row["way"] for row in found["checks"]] == ["fp32", "ONNX", "int8", "half"]
    assert maest("verify", "base").out.count("same") == 4
    other = save_small_model(home / "other", ["a", "b", "c", "d"])
    (other / "golden.json").replace(home / "base/golden.json")
    done = Done("verify", "base", "--json")
    assert (done.code, done.lines[0]["same"]) == (1, False)
    assert Done("verify", "base").out.count("DIFFERENT") == 4
    (home / "base/golden.json").unlink()
    assert "golden.json" in refused("missing", "verify", "base")


def test_a_learned_model_is_verified_by_its_base(learned):
    assert maest("verify", "mine", "--json").lines[0]["same"] is True


def test_a_few_windows_of_long_music(home):
    sound = np.random.default_rng(0).normal(0, 0.1, RATE * 20)
    sound *= np.repeat(np.arange(10) / 10, RATE * 2)
    soundfile.write(home / "long.wav", sound, RATE)
    few, whole = ("--model", "base", "--max-windows", 3), ("--model", "base")
    maest("embed", "long.wav", "-o", "few.npz", "--each-window", *few)
    with np.load(home / "few.npz") as saved:
        assert saved["times"].tolist() == [[2, 4], [10, 12], [16, 18]]
    one, other = (maest("tag", "long.wav", "--json", *options).lines for options in (few, whole))
    assert one[0]["tags"] != other[0]["tags"]
    maest("index", "music", *few, *LIBRARY)
    (done,) = maest("index", "music", *whole, "--json", *LIBRARY).lines
    assert done["analysed"] == 24  # those of few windows are others
