"""What a model is worth: the benchmark in miniature, and its parts on sets made by hand."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import day_one
import day_one_recordings
import numpy as np
import pytest
import soundfile
import teachers
from day_one_features import Model, digest, keep_mel
from day_one_timbres import fractions
from folders import read_json
from music import save_small_model, tone
from tiny_soundfont import write_soundfont

from maest.datasets.groundtruth import write_groundtruth, write_labels
from maest.datasets.melspectrograms import read_mel, write_mel
from maest.datasets.recordings.preprocess import build
from maest.datasets.scores.tables import INSTRUMENTS
from maest.helpers.files.atomic import write_json

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- recordings ----------------------------------------------------------------------------------

NAN = np.nan
# Targets of the labels Loud, Rare and Known. Rare is on validation tracks of one source; the
# teacher does not know the third.
TRAIN = {f"{source}/{i}.mmap": [i / 6, 1 - i / 6, 1] for source in "ab" for i in range(6)}
VALIDATION = {
    "a/10.mmap": [0.6, 0.9, 1], "a/11.mmap": [0.3, 0.5, 0],
    "b/10.mmap": [0.5, 0.2, 1], "b/11.mmap": [0.2, NAN, 0],
}  # fmt: skip
TEST = {f"c/{i}.mmap": [value, i % 2, i % 2] for i, value in
        enumerate((0.1, 0.3, 0.45, 0.5, 0.7, NAN))}  # fmt: skip


@pytest.fixture
def hand_made(tmp_path) -> Path:
    """A set whose held-out source is c."""
    rng, root = np.random.default_rng(0), tmp_path / "set"
    for split, rows in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        targets = {key: np.array(row, np.float32) for key, row in rows.items()}
        write_groundtruth(root / f"tags/groundtruth-{split}.pk", targets)
        for key in rows:
            write_mel(root / "melspectrograms" / key, rng.random((20, 96), np.float32))
    write_labels(root / "tags/labels.json", ["Loud", "Rare", "Known"])
    report = {"held_out": ["c"], "labels_of_teacher": ["Loud", "Rare"], "tracks": {"test": 6}}
    write_json(root / "report.json", report | {"teacher": {"teacher": "by hand"}})
    lines = [f"{key},{key[0]}" for key in (*TRAIN, *VALIDATION, *TEST)]
    (root / "tracks.csv").write_text("\n".join(["key,source", *lines]))
    return root


@pytest.mark.parametrize(("least", "labels"), [(2, ["Loud"]), (1, ["Loud", "Rare"]), (3, [])])
def test_a_tag_is_positive_from_a_half_on_and_on_validation_tracks_of_two_sources(
    hand_made, tmp_path, monkeypatch, least, labels
):
    model = Model.__new__(Model)
    model.name, model.labels = "new", ["Other", "Loud", "Rare"]
    activations = np.zeros((6, 3))
    activations[:, 1] = 0.1, 0.5, 0.2, 0.4, 0.9, 1
    monkeypatch.setattr(day_one_recordings, "outputs_of", lambda *_: {"activations": activations})
    args = Namespace(set=hand_made, work=tmp_path, without=[], least=1, resamples=5)
    args.least_validation = least
    tables = day_one_recordings.recordings(args, [model])
    counts = {"Loud": 2, "Rare": 3}  # 0.5 and 0.7; every second
    assert tables["held-out sources: positives"] == {name: counts[name] for name in labels}
    rows = tables[f"held-out sources: 6 tracks, {len(labels)} labels of new"]
    if least == 2:  # of six pairs of a positive and a negative track, one is in the wrong order
        assert rows["new"]["roc_auc"]["value"] == pytest.approx(5 / 6)
    assert (rows == "n/a") == (not labels)


def test_a_set_is_known_by_its_tags(hand_made):
    before = day_one_recordings.set_facts(hand_made)
    assert before["held_out"] == ["c"]
    write_labels(hand_made / "tags/labels.json", ["Loud", "Rare", "Unknown"])
    after = day_one_recordings.set_facts(hand_made)
    assert before | {"tags_sha256": after["tags_sha256"]} == after != before


# ---- other parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "clips", "expected"),
    [
        (1000, 2000, (0.4, 0.1, 0.5)),
        (1000, 1148, (0.25, 0.0625, 0.6875)),
        (9, 90, (0.64, 0.16, 0.2)),
    ],
)
def test_the_test_is_as_large_as_leaves_a_quarter_to_train_on(test, clips, expected):
    assert fractions(clips, test) == pytest.approx(expected)


def test_a_log_mel_that_is_there_is_not_written_again(tmp_path):
    path, mel = tmp_path / "a.mmap", np.random.default_rng(0).random((20, 96))
    keep_mel(path, mel)
    before = path.stat().st_mtime_ns
    keep_mel(path, mel)
    assert path.stat().st_mtime_ns == before
    keep_mel(path, mel[:10] + 1)
    assert np.array_equal(read_mel(path), (mel[:10] + 1).astype(np.float16))


def refusal(line: str, files: dict[str, Path], tmp_path: Path) -> str:
    line += f" --quick --models a={tmp_path} --work {tmp_path} --record {tmp_path / 'r.json'}"
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    with pytest.raises(SystemExit) as caught:
        day_one.main([*line.split(), *options])
    assert not (tmp_path / "r.json").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("c,Folk\na,Folk", "a"),
        ("c,Folk\nx,Folk", "x"),
        ("c,Folk", "Folk"),
        ("c,Folk\nc,Folk", "Folk"),
    ],
)
def test_styles_are_learnt_from_two_sources_that_are_held_out(hand_made, tmp_path, rows, named):
    (tmp_path / "styles.csv").write_text(f"source,style\n{rows}\n")
    files = {"set": hand_made, "styles": tmp_path / "styles.csv"}
    assert f" {named}" in refusal("--parts styles", files, tmp_path)


def test_speech_is_not_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(day_one.shutil, "which", lambda name: None)
    assert "espeak-ng" in refusal("--parts blanks", {}, tmp_path)
    (tmp_path / "none").mkdir()
    assert "none" in refusal("--parts blanks", {"speech": tmp_path / "none"}, tmp_path)


# ---- all together --------------------------------------------------------------------------------


@pytest.fixture
def day_one_files(tmp_path) -> dict[str, Path]:
    """Two models with some labels of the set, three SoundFonts, a set of six sources, speech."""
    old, new = (
        save_small_model(tmp_path / name, [*shared, "Instrument---Flute", "Voice---Choir"])
        for name, shared in (("old", ["Texture---Four Voices"]), ("new", ["Instrument---Guitar"]))
    )
    programs = {instrument.program for instrument in INSTRUMENTS.values()}
    fonts = [write_soundfont(tmp_path / f"{n}.sf2", dict.fromkeys(programs, n)) for n in (1, 4, 8)]
    tracks_of = {"a": 12, "b": 12} | dict.fromkeys("cdef", 6)
    for number, (source, tracks) in enumerate(tracks_of.items()):
        (tmp_path / source).mkdir()
        for i in range(tracks):
            sound = (0.2 + i % 3) * tone(3.2, 20 * number + i)
            soundfile.write(tmp_path / source / f"{i}.flac", sound, 16_000)
    build(
        [tmp_path / source for source in "abcdef"],
        **{"teacher": "stand-in", "load": teachers.load, "out_dir": tmp_path / "set", "seed": 1},
        **{"hold_out": list("cdef"), "num_workers": 1, "progress": False},
    )
    (tmp_path / "styles.csv").write_text("source,style\nc,Folk\nd,Folk\ne,Rock\nf,Rock\n")
    known, unseen = fonts[:2], fonts[2]
    files = {"known": known, "unseen": unseen, "set": tmp_path / "set", "speech": tmp_path / "a"}
    return files | {"models": [f"old={old}", f"new={new}"], "styles": tmp_path / "styles.csv"}


@pytest.mark.slow
def test_day_one_measures_two_models_and_goes_on(day_one_files, tmp_path):
    line = ["--quick", "--work", tmp_path / "work", "--record", tmp_path / "record.json"]
    for name, value in day_one_files.items():
        line += [f"--{name}", *(value if isinstance(value, list) else [value])]
    line = [str(part) for part in line]
    parts = ["timbres", "recordings", "styles", "blanks"]
    results = day_one.main([*line, "--parts", *parts, "--seeds", "2"])["results"]

    timbres = results["timbres"]
    probes = [rows for title, rows in timbres.items() if "probes" in title]
    assert [list(rows) for rows in probes] == [["mel statistics", "old", "new"]] * 3
    assert {"ap", "roc_auc minus mel statistics", "ap minus old"} < probes[0]["new"].keys()
    assert any("own tags" in title for title in timbres)
    fonts = (*day_one_files["known"], day_one_files["unseen"])
    assert timbres["made"]["data"]["soundfonts_sha256"] == {f.stem: digest(f) for f in fonts}

    figures = {
        t: v for t, v in results["recordings"].items() if t.startswith("held-out sources: 24")
    }
    assert [v if v == "n/a" else list(v) for v in figures.values()] == ["n/a", ["ridge", "new"]]
    assert results["styles"]["the other source"].keys() == {"mel statistics", "old", "new"}
    assert results["styles"]["tracks"] == dict.fromkeys("cdef", 6)
    assert results["blanks"]["sounds"] | {"clicks": 8, "speech": 12} == results["blanks"]["sounds"]
    assert results["blanks"]["old"].keys() > {"speech", "clicks", "held-out recordings"}

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/features").iterdir()}
    again = [*line, "--parts", "recordings", "blanks", "speed", "--seeds", "3"]
    results_again = day_one.main(again)["results"]
    assert results_again == read_json(tmp_path / "record.json")["results"]
    assert results_again.keys() == results.keys() | {"speed"}
    assert results_again["recordings"]["strongest"] == results["recordings"]["strongest"]
    assert kept == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "work/features").iterdir()
    }
    seeds = {part: rows["made"]["arguments"]["seeds"] for part, rows in results_again.items()}
    assert seeds == {"timbres": 2, "styles": 2, "recordings": 3, "blanks": 3, "speed": 3}
    [rows] = [rows for title, rows in results_again["speed"].items() if "song" in title]
    assert all(row["seconds"] > 0 for row in rows.values())
