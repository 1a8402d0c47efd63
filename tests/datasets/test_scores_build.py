"""The embedded data set as a whole: built, extended, and resumed."""

import errno
import functools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from filelock import FileLock
from folders import read_json, rows, tree
from made_up import refuses
from tunes import NOT_ABC, tune, work

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.melspectrograms import read_mel
from maest.datasets.scores import labels, preprocess, stages
from maest.datasets.scores.tables import INSTRUMENTS
from maest.helpers.files.atomic import write_json
from maest.helpers.work import parallel

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"works": 48, "clip_seconds": 6.0, "seed": 3, "progress": False, "num_workers": 1}


def build(out_dir: Path, **changes) -> dict:
    return preprocess.build(out_dir, **SETTINGS | changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One small build, by its command in this process."""
    out_dir = tmp_path_factory.mktemp("scores")
    line = f"--works 48 --clip-seconds 6 --seed 3 --keep-audio --num-workers 1 --out-dir {out_dir}"
    assert preprocess.main(line.split()) == 0
    return out_dir, read_json(out_dir / "report.json")


@pytest.fixture
def copied(built, tmp_path) -> Path:
    shutil.copytree(built[0], tmp_path / "copy")
    return tmp_path / "copy"


def results_of(out_dir: Path) -> dict[str, bytes]:
    kept = (".mmap", ".pk", "labels.json", "clips.csv")
    return {name: data for name, data in tree(out_dir).items() if name.endswith(kept)}


def differing(one: Path, other: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ (short, to be shown)."""
    a, b = results_of(one), results_of(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def test_build_is_whole_and_consistent(built):
    out_dir, report = built
    clips = {row["key"]: row for row in rows(out_dir / "clips.csv")}
    programs = {instrument.program: instrument.label for instrument in INSTRUMENTS.values()}
    for key, row in clips.items():
        instruments = [name for name in row["instrument"].split("; ") if name]
        row["tags"] = "; ".join([row["style"], *(f"Instrument---{name}" for name in instruments)])
        played = [int(program) for program in row["programs"].split("; ") if program]
        assert {programs[program] for program in played} == set(instruments)
        mel = read_mel(out_dir / "melspectrograms" / key)
        assert len(mel) == 1 + -(-round(float(row["seconds"]) * 16_000) // 256)
        assert 0 < float(np.mean(mel, dtype=np.float64)) < 5
    assert report["works"] == SETTINGS["works"]
    assert report["done"] == len(clips) == sum(report["clips"].values())
    assert len(list(out_dir.glob("audio/*/*.flac"))) == len(clips)
    for name in ("style", "instrument", "tags"):
        names = read_labels(out_dir / name / "labels.json")
        assert names == sorted(names) == list(report["labels"][name])
        everything = read_groundtruth(out_dir / name / "groundtruth-all.pk")
        assert sorted(everything.keys) == sorted(clips)
        parts = []
        for split in labels.SPLITS:
            part = read_groundtruth(out_dir / name / f"groundtruth-{split}.pk")
            assert {clips[key]["split"] for key in part.keys} == {split}
            parts += part.keys
        assert sorted(parts) == sorted(clips)
        for key, target in zip(everything.keys, np.asarray(everything.targets), strict=True):
            of_clip = set(clips[key][name].split("; ")) & set(names)
            assert {names[i] for i in np.flatnonzero(target)} == of_clip
    assert {"Instrument", "Metre"} <= {tag.partition("---")[0] for tag in names}
    for column in ("work", "group"):
        splits = {(row[column], row["split"]) for row in clips.values()}
        assert len({row[column] for row in clips.values()}) == len(splits)


def test_second_call_skips_and_a_lost_or_truncated_clip_comes_back(built, copied):
    again, report = build(copied), built[1]
    assert (again["done"], again["skipped"]) == (0, report["done"])
    assert again["failed"] == report["failed"]
    lost, cut = sorted(copied.rglob("*.mmap"))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-192])
    again = build(copied)
    assert (again["done"], again["skipped"]) == (2, report["done"] - 2)
    assert not differing(built[0], copied)


def test_codecs_change_a_share_of_the_clips_and_nothing_else(built, copied):
    report = build(copied, codec_share=0.5)
    assert report["done"] == built[1]["done"]
    clips, plain = rows(copied / "clips.csv"), rows(built[0] / "clips.csv")
    codecs = {row.pop("key"): row.pop("codec") for row in clips}
    assert [row.pop("key") for row in plain] == list(codecs)
    assert clips == plain
    for key, codec in codecs.items():
        mels = [read_mel(folder / "melspectrograms" / key) for folder in (built[0], copied)]
        assert mels[0].shape == mels[1].shape
        assert np.array_equal(*mels) == (codec == "")
    assert 0.3 < np.mean([codec == "" for codec in codecs.values()]) < 0.7
    assert {codec.split()[0] for codec in codecs.values() if codec} == {"mp3", "aac", "opus"}
    assert build(copied, codec_share=0.5)["skipped"] == report["done"]


@pytest.mark.slow
def test_workers_do_not_matter_and_the_script_runs_anywhere(built, tmp_path):
    """Both in processes of their own: libraries that other tests load change how one rounds."""
    script = str(ROOT / "datasets" / "scores" / "preprocess.py")
    options = ["--works", "48", "--clip-seconds", "6", "--seed", "3", "--keep-audio"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for workers in ("1", "2"):
        line = [sys.executable, script, *options, "--num-workers", workers, "--out-dir", workers]
        run = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert len(run.stdout.strip().splitlines()) == 1
        assert read_json(tmp_path / workers / "report.json")["done"] == built[1]["done"]
    assert not differing(tmp_path / "1", tmp_path / "2")
    assert len(list(tmp_path.glob("2/audio/*/*.flac"))) == built[1]["done"]
    assert results_of(tmp_path / "1").keys() == results_of(built[0]).keys()


def test_more_works_and_renditions_extend(built, copied):
    report = build(copied, works=56, renditions=2)
    assert report["skipped"] == built[1]["done"]
    before, after = results_of(built[0]), results_of(copied)
    mels = {name: data for name, data in before.items() if name.endswith(".mmap")}
    assert mels.items() <= after.items()
    assert after[min(mels)] != after[min(mels).replace("-r0", "-r1")]
    splits, grown = (
        {row["work"]: row["split"] for row in rows(folder / "clips.csv")}
        for folder in (built[0], copied)
    )
    assert splits.items() <= grown.items()


def test_a_collection_is_left_out(copied):
    before = {row["key"]: row["split"] for row in rows(copied / "clips.csv")}
    build(copied, works=40, leave_out=["ryan"])
    after = {row["key"]: row["split"] for row in rows(copied / "clips.csv")}
    assert {row["collection"] for row in rows(copied / "clips.csv")} >= {"oneill", "aird"}
    assert not any(key.startswith("ryan/") for key in after)
    assert all(before[key] == split for key, split in after.items() if key in before)


def test_unreadable_and_duplicate_works_are_counted(tmp_path, reels):
    again = reels[0].text.replace("Reel No", "Again")
    reels += [work(again, "oneill", rank=6), work(tune("bad", NOT_ABC), "fife", rank=7)]
    report = build(tmp_path, works=None, clip_seconds=4)
    assert report["duplicates"] == {"oneill/a": "ryan/w0"}
    assert list(report["unreadable"]) == ["fife/a"]
    assert report["failed"] == 1


@pytest.mark.parametrize("changed", ["music21", "symusic", "SoundFont", "front end", "performer"])
def test_what_other_versions_made_does_not_mix(copied, monkeypatch, changed):
    before, newer = results_of(copied), preprocess.versions() | {changed: "newer"}
    monkeypatch.setattr(preprocess, "versions", lambda: newer)
    with refuses("mismatch", str(copied)) as caught:
        build(copied, works=60)
    assert changed in caught.value.message
    assert results_of(copied) == before


def as_version_0_1(out_dir: Path, **others) -> None:
    """Take away what version 0.1 did not write, and put its versions into the report."""
    with sqlite3.connect(out_dir / "notes.sqlite") as connection:
        connection.execute("DROP TABLE versions")
    connection.close()
    report = read_json(out_dir / "report.json")
    versions = {name: metadata.version(name) for name in ("music21", "symusic", "pretty_midi")}
    report["versions"] = versions | {"reader": 1, "performer": 4} | others
    write_json(out_dir / "report.json", report)


def test_a_build_of_version_0_1_is_kept_with_the_same_libraries(built, copied, caplog):
    as_version_0_1(copied)
    for warnings in (1, 0):
        caplog.clear()
        assert build(copied)["skipped"] == built[1]["done"]
        assert len(caplog.records) == warnings
    assert not differing(built[0], copied)


@pytest.mark.parametrize("has_report", [True, False])
def test_a_build_of_version_0_1_with_other_libraries_is_refused(copied, has_report):
    as_version_0_1(copied, pretty_midi="0.1")
    if not has_report:
        (copied / "report.json").unlink()
    with refuses("mismatch", str(copied)) as caught:
        build(copied)
    assert "pretty_midi" in caught.value.message


def test_a_work_that_hangs_or_crashes_is_counted_and_tried_again_the_next_time(
    built, copied, monkeypatch
):
    """symusic is known to do both."""
    clips = rows(copied / "clips.csv")
    for row in clips[:2]:
        (copied / "melspectrograms" / row["key"]).unlink()

    def arrange(work, score, rng):
        if work.id == clips[0]["work"]:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()

    monkeypatch.setattr(stages, "arrange", arrange)
    limited = functools.partial(parallel.process_map, time_limit=0.5)
    monkeypatch.setattr(parallel, "process_map", limited)
    report = build(copied, num_workers=2)
    assert (report["done"], report["failed"]) == (0, built[1]["failed"] + 2)
    assert {row["key"] for row in clips[:2]} <= report["failed_clips"].keys()
    assert {row["work"] for row in rows(copied / "clips.csv")} == {r["work"] for r in clips[2:]}
    monkeypatch.undo()
    assert build(copied)["done"] == 2
    assert not differing(built[0], copied)


@pytest.mark.parametrize("stage", ["read", "arrange"])
def test_a_full_disk_ends_the_build_and_is_no_fault_of_a_work(built, copied, monkeypatch, stage):
    (copied / "melspectrograms" / rows(copied / "clips.csv")[0]["key"]).unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stages, stage, full)
    with refuses("access", str(copied)):
        build(copied, works=60 if stage == "read" else 48)
    monkeypatch.undo()
    assert build(copied)["done"] == 1
    assert not differing(built[0], copied)


def test_another_build_is_waited_for(copied, monkeypatch):
    lock = FileLock(copied / ".lock")
    lock.acquire()
    monkeypatch.setattr(preprocess.log, "warning", lambda *_: lock.release())
    assert build(copied)["done"] == 0


@pytest.mark.parametrize(
    ("wrong", "kind", "setting"),
    [
        ({"works": 0}, "invalid", "--works"),
        ({"renditions": 0}, "invalid", "--renditions"),
        ({"clip_seconds": float("nan")}, "invalid", "--clip-seconds"),
        ({"num_workers": 0}, "invalid", "--num-workers"),
        ({"codec_share": 1.1}, "invalid", "--codec-share"),
        ({"works": 2}, "empty", "--works"),  # a split would have no clip
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong, kind, setting, tmp_path):
    with refuses(kind, setting=setting):
        build(tmp_path, **wrong)


def test_works_without_a_label_that_stays_are_too_few(copied, monkeypatch):
    monkeypatch.setattr(labels, "MAX_SHARE", {"style": 0.0})
    with refuses("empty", setting="--works"):
        build(copied)


def test_the_command_says_in_one_line_what_a_user_can_mend(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert preprocess.main(["--out-dir", str(tmp_path / "file" / "below")]) == 1
    assert preprocess.main(["--works", "0", "--out-dir", str(tmp_path)]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in first
    assert "--works" in last
    with pytest.raises(SystemExit):
        preprocess.main(["--works", "x"])
    assert "'x'" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(preprocess, "list_works", Mock(side_effect=KeyboardInterrupt))
    assert preprocess.main(["--out-dir", str(tmp_path)]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1
