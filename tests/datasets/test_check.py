"""Each fault that is planted in a good set is found, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from maest.datasets import check
from maest.datasets.check import CheckReport, check_splits
from maest.datasets.groundtruth import (
    GroundTruth,
    read_groundtruth,
    write_groundtruth,
    write_labels,
)
from maest.datasets.melspectrograms import MelFile, write_mel
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import to_json
from maest.helpers.work import parallel

LABELS = ["low", "middle", "high"]


@dataclass
class Set:
    """A good data set in a folder: 24 tracks to train, 6 of each other split, one label each."""

    root: Path

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.tracks = {"train": {}, "val": {}, "test": {}}
        for split, count in (("train", 24), ("val", 6), ("test", 6)):
            for i in range(count):
                key = f"{split}/{i:02d}.mmap"
                write_mel(self.mels / key, rng.random((125, 96)))
                self.tracks[split][key] = np.arange(3) == i % 3
        write_labels(self.root / "labels.json", LABELS)

    @property
    def mels(self) -> Path:
        return self.root / "mels"

    def read(
        self, task: str = "multi-label", splits: tuple[str, ...] | None = None, **paths: Path
    ) -> dict[str, GroundTruth | InputError]:
        """Of these splits, or all; ``paths`` by split are of other ground truths."""
        for split, tracks in self.tracks.items():
            path = self.root / f"groundtruth-{split}.pk"
            if isinstance(tracks, dict):
                write_groundtruth(path, tracks, task)
            else:
                path.write_bytes(tracks)
            paths.setdefault(split, path)
        found: dict[str, GroundTruth | InputError] = {}
        for split in splits or ("train", "val", "test"):
            try:
                found[split] = read_groundtruth(paths[split], task=task)
            except InputError as error:
                found[split] = error
        return found

    def check(self, brief: bool = False, **options) -> CheckReport:
        own = {n: options.pop(n) for n in ("teacher_dir", "skip_unreadable") if n in options}
        return check_splits(self.read(**options), self.mels, 100, brief=brief, **own)


@pytest.fixture
def good(tmp_path) -> Set:
    return Set(tmp_path)


def messages(report: CheckReport) -> list[str]:
    return [finding.message for finding in [*report.problems, *report.warnings]]


def only(report: CheckReport, kind: str, problem: bool = True) -> str:
    """The message of the one thing that a report has found."""
    (finding,) = [*report.problems, *report.warnings]
    assert finding.kind == kind
    assert finding in (report.problems if problem else report.warnings)
    assert report.ok != problem
    assert finding.message in str(report)
    assert finding.message in to_json(report.to_dict())
    return finding.message


@pytest.mark.parametrize("brief", [False, True])
def test_nothing_is_found_in_a_good_set(good, brief):
    report = good.check(brief=brief)
    assert messages(report) == []
    assert report.ok
    train = report.splits["train"]
    assert (train.tracks, train.looked_at, train.bad) == (24, 24, {})
    assert train.counts == {"low": 8, "middle": 8, "high": 8}
    assert train.hours == pytest.approx(24 * 125 / 62.5 / 3600)
    assert "train: 24 tracks, 3 labels, 0.01 hours" in str(report)
    assert "problems: none\nwarnings: none" in str(report)
    assert json.loads(to_json(report.to_dict()))["splits"]["val"]["tracks"] == 6


def test_files(good):
    (good.mels / "train/00.mmap").unlink()
    (good.mels / "train/01.mmap").write_bytes(b"")
    (good.mels / "train/02.mmap").write_bytes(bytes(96 * 2 * 50 + 2))
    for key, value in (("train/03.mmap", np.nan), ("test/04.mmap", np.inf)):
        mel = np.ones((50_000 if value != value else 200, 96), np.float16)
        mel[-1, -1] = value
        mel.tofile(good.mels / key)
    report = good.check()
    assert [finding.kind for finding in report.problems] == ["files", "files"]
    assert messages(report)[0].startswith("train: 4 of 24 ")
    assert "datamodule.on_error=skip" in messages(report)[0]
    found = report.splits["train"].bad
    assert sorted(found) == [f"train/0{i}.mmap" for i in range(4)]
    for name, reason in found.items():
        assert reason.startswith(f"{good.mels / name}: ")
        assert reason in str(report)
    assert list(report.splits["test"].bad) == ["test/04.mmap"]
    sizes = good.check(brief=True)  # which do not tell of a NaN
    assert list(sizes.splits["train"].bad) == [f"train/0{i}.mmap" for i in range(3)]
    assert sizes.splits["test"].bad == {}
    assert sizes.brief


def test_files_that_will_be_skipped_are_no_problem(good):
    (good.mels / "train/00.mmap").unlink()
    text = only(good.check(skip_unreadable=True), "files", problem=False)
    assert text.startswith("train: 1 of 24 ")
    shutil.rmtree(good.mels)
    report = good.check(skip_unreadable=True, splits=("train",))
    assert "24 of 24" in only(report, "files")


def test_the_first_bad_files_are_listed_and_all_are_in_the_dict(good, monkeypatch):
    monkeypatch.setattr(check, "_SHOWN", 5)
    for i in range(7):
        (good.mels / f"train/{i:02d}.mmap").unlink()
    report = good.check()
    lines = [line for line in str(report).splitlines() if line.startswith("      ")]
    assert len(lines) == 6
    assert lines[-1] == "      and 2 more"
    assert len(report.to_dict()["splits"]["train"]["bad"]) == 7


def test_ground_truths_that_cannot_be_read_do_not_stop_it(good):
    good.tracks["train"] = b"no pickle"
    (good.mels / "val/03.mmap").unlink()
    report = good.check(test=good.root / "gone.pk")
    assert [(finding.kind, finding.split) for finding in report.problems] == [
        ("groundtruth", "train"),
        ("groundtruth", "test"),
        ("files", "val"),
    ]
    assert "groundtruth-train.pk" in str(report)
    assert "gone.pk" in str(report)
    assert check_splits({}, good.mels, 100).ok


def test_the_teachers_files(good):
    teacher = good.root / "teacher"
    for key in good.tracks["train"]:
        path = teacher / f"{key}.logits.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((1, 3), np.float32))
    assert messages(good.check(teacher_dir=teacher)) == []
    np.save(teacher / "train/05.mmap.logits.npy", np.zeros(4, np.float32))
    (teacher / "train/06.mmap.logits.npy").unlink()
    report = good.check(teacher_dir=teacher)
    assert "train: 2 of 24" in only(report, "files")
    assert "05.mmap.logits.npy" in report.splits["train"].bad["train/05.mmap"]
    assert "06.mmap" in report.splits["train"].bad["train/06.mmap"]
    brief = good.check(teacher_dir=teacher, brief=True)
    assert list(brief.splits["train"].bad) == ["train/06.mmap"]
    again = good.check(
        teacher_dir=teacher,
        splits=(
            "val",
            "train",
        ),
    )
    assert len(again.splits["train"].bad) == 2


# --- Labels -------------------------------------------------------------------------------------


def test_labels_on_no_track_and_on_all(good):
    for split in good.tracks:
        for key in good.tracks[split]:
            good.tracks[split][key] = np.array([1, 1, 0])
    good.tracks["train"]["train/00.mmap"] = np.array([1, 0, 0])
    good.tracks["val"]["val/00.mmap"] = np.array([1, 0, 1])
    report = good.check(
        splits=(
            "train",
            "val",
        )
    )
    assert report.ok
    assert {finding.kind for finding in report.warnings} == {"labels"}
    for text, split, name in zip(
        messages(report), ("train", "train", "val"), ("high", "low", "low"), strict=True
    ):
        assert text.startswith(f"{split}: 1 of 3 labels ")
        assert text.endswith(f"({name!r})")
    assert report.splits["val"].counts == {"low": 6, "middle": 5, "high": 1}


def test_tracks_without_labels(good):
    for key in list(good.tracks["val"])[:2]:
        good.tracks["val"][key] = np.zeros(3)
    report = good.check()
    assert only(report, "labels", problem=False).startswith("val: 2 of 6 tracks ")
    assert report.splits["val"].unlabelled == 2
    good.tracks["val"] = {key: np.zeros(3) for key in good.tracks["val"]}
    assert only(good.check(), "labels").startswith("val: ")
    assert good.check().splits["val"].unlabelled == 6


def test_splits_that_do_not_agree_on_the_labels(good):
    good.tracks["val"] = {key: np.append(row, True) for key, row in good.tracks["val"].items()}
    (good.root / "labels.json").unlink()
    report = good.check(
        splits=(
            "train",
            "val",
        )
    )
    assert report.problems[0].kind == "labels"
    assert report.problems[0].message.startswith("train has 3 labels")
    good.tracks["val"] = {key: row[:3] for key, row in good.tracks["val"].items()}
    other = good.root / "other" / "groundtruth.pk"
    write_groundtruth(other, good.tracks["val"])
    write_labels(good.root / "labels.json", LABELS)
    write_labels(other.parent / "labels.json", ["low", "high", "middle"])
    report = good.check(
        splits=(
            "train",
            "val",
            "test",
        ),
        val=other,
    )
    assert [finding.kind for finding in report.problems] == ["labels", "labels"]
    assert "'middle' and 'high'" in messages(report)[0]
    (other.parent / "labels.json").write_text('["low"]')
    assert str(other.parent / "labels.json") in only(good.check(val=other), "labels")


def test_values_of_a_regression(good):
    for tracks in good.tracks.values():
        for i, key in enumerate(tracks):
            tracks[key] = np.array([i, 0.5])
    (good.root / "labels.json").unlink()
    report = good.check(task="regression", splits=("train",))
    text = only(report, "labels", problem=False)
    assert text.startswith("train: 1 of 2 values ")
    assert "'value 1'" in text
    assert report.splits["train"].counts is None


# --- Tracks -------------------------------------------------------------------------------------


def test_short_and_silent_tracks(good):
    write_mel(good.mels / "train/03.mmap", np.random.default_rng(1).random((99, 96)))
    np.zeros((300, 96), np.float16).tofile(good.mels / "val/01.mmap")
    np.full((300, 96), 2, np.float16).tofile(good.mels / "val/02.mmap")
    report = good.check()
    assert report.ok
    assert [(finding.kind, finding.split) for finding in report.warnings] == [
        ("short", "train"),
        ("silent", "val"),
    ]
    assert report.splits["train"].short == ["train/03.mmap"]
    assert "1.6 s ('train/03.mmap')" in str(report)
    assert report.splits["val"].silent == ["val/01.mmap", "val/02.mmap"]
    assert good.check(brief=True).splits["train"].short == ["train/03.mmap"]


@pytest.mark.parametrize("brief", [False, True])
def test_a_key_in_several_splits(good, brief):
    good.tracks["val"]["train/00.mmap"] = np.array([1, 0, 0])
    good.tracks["val"]["./train/01.mmap"] = np.array([1, 0, 0])  # the same path
    text = only(good.check(brief=brief), "shared")
    assert text.startswith("train and val: 2 ")
    assert "('train/00.mmap', 'train/01.mmap')" in text


def test_validation_and_test_may_be_warned_of(good):
    good.tracks["test"]["val/00.mmap"] = np.array([1, 0, 0])
    assert only(good.check(), "shared", problem=False).startswith("val and test: 1 tracks")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_under_two_names(good, link):
    link(good.mels / "train/00.mmap", good.mels / "val/linked.mmap")
    good.tracks["val"]["val/linked.mmap"] = np.array([1, 0, 0])
    for brief in (True, False):
        text = only(good.check(brief=brief), "shared")
        assert text.startswith("train and val: 1 ")
        assert "('train/00.mmap' = 'val/linked.mmap')" in text


def test_a_copy_of_a_track(good):
    shutil.copy(good.mels / "train/00.mmap", good.mels / "test/copy.mmap")
    good.tracks["test"]["test/copy.mmap"] = np.array([1, 0, 0])
    text = only(good.check(), "shared")
    assert text.startswith("train and test: 1 ")
    assert "('train/00.mmap' = 'test/copy.mmap')" in text
    assert messages(good.check(brief=True)) == []  # nothing is read


def test_twice_in_one_split(good):
    good.tracks["train"]["train/00"] = np.array([1, 0, 0])  # .mmap is added to it
    shutil.copy(good.mels / "train/01.mmap", good.mels / "train/copy.mmap")
    good.tracks["train"]["train/copy.mmap"] = np.array([1, 0, 0])
    report = good.check()
    assert report.ok
    assert [finding.kind for finding in report.warnings] == ["duplicate", "duplicate"]
    assert "('train/00.mmap' = 'train/00')" in messages(report)[0]
    assert "('train/01.mmap' = 'train/copy.mmap')" in messages(report)[1]


def test_one_copy_in_another_split_is_found_whatever_there_is_of_it_in_this(good):
    """What is told are all tracks of the test, however many each group of the same has."""
    for i in range(25):
        for name, own in (("more", 0), ("even", 1)):
            key = f"train/{name}{i}.mmap"
            shutil.copy(good.mels / f"train/0{own}.mmap", good.mels / key)
            good.tracks["train"][key] = np.array([1, 0, 0])
    for name, own in (("a", 0), ("b", 1), ("c", 1)):
        shutil.copy(good.mels / f"train/0{own}.mmap", good.mels / f"test/{name}.mmap")
        good.tracks["test"][f"test/{name}.mmap"] = np.array([1, 0, 0])
    report = good.check()
    (problem,) = report.problems
    assert problem.message.startswith("train and test: 3 ")
    assert "'train/00.mmap' = 'test/a.mmap'" in problem.message
    warnings = [finding.message for finding in report.warnings]
    assert [text.split(" tracks")[0] for text in warnings] == ["train: 50", "test: 1"]


def test_all_splits_of_a_group_are_compared(good):
    """A copy that is in all three; and one file under two names, told of once."""
    for split in ("val", "test"):
        shutil.copy(good.mels / "train/00.mmap", good.mels / f"{split}/copy.mmap")
        good.tracks[split][f"{split}/copy.mmap"] = np.array([1, 0, 0])
    os.link(good.mels / "test/copy.mmap", good.mels / "test/link.mmap")
    good.tracks["test"]["test/link.mmap"] = np.array([1, 0, 0])
    report = good.check()
    starts = [finding.message.split(" tracks")[0] for finding in report.problems]
    assert sorted(starts) == ["train and test: 2", "train and val: 1"]
    starts = [finding.message.split(":")[0:2] for finding in report.warnings]
    assert [split for split, _ in starts] == ["test", "val and test"]


# --- How long it takes --------------------------------------------------------------------------


def test_several_threads_find_the_same(good, monkeypatch):
    (good.mels / "train/00.mmap").unlink()
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    alone = good.check().to_dict()
    monkeypatch.setattr(parallel, "cores", lambda: 3)
    assert good.check().to_dict() == alone


def test_a_brief_check_of_many_tracks_opens_few_and_reads_none(good, monkeypatch):
    mel = np.ones((120, 96), np.float16)
    mel.tofile(good.mels / "one.mmap")
    for split, count in (("train", 9000), ("val", 1000)):
        folder = good.mels / "many" / split
        folder.mkdir(parents=True)
        good.tracks[split] = {f"many/{split}/{i}.mmap": np.arange(3) == i % 3 for i in range(count)}
        for key in good.tracks[split]:
            (good.mels / key).symlink_to(good.mels / "one.mmap")
    for i in range(0, 9000, 10):
        (good.mels / f"many/train/{i}.mmap").unlink()
    found = good.read(splits=("train", "val"))
    opened = []
    of_key = MelFile.of_key
    monkeypatch.setattr(check, "BRIEF_SECONDS", 1e9)
    monkeypatch.setattr(MelFile, "read_into", None)
    monkeypatch.setattr(
        MelFile, "of_key", lambda base_dir, key: opened.append(key) or of_key(base_dir, key)
    )
    report = check_splits(found, good.mels, 100, brief=True)
    assert len(opened) == 2000
    train, val = report.splits["train"], report.splits["val"]
    assert train.looked_at + val.looked_at == 2000
    assert train.looked_at == pytest.approx(1800, abs=20)
    assert 100 < len(train.bad) < 300
    assert f"{len(train.bad)} of {train.looked_at} tracks" in str(report)
    assert f"{val.looked_at}" in str(report)
    monkeypatch.setattr(check, "BRIEF_SECONDS", 0)
    report = check_splits(found, good.mels, 100, brief=True)
    assert sum(split.looked_at for split in report.splits.values()) == 1
