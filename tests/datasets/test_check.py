"""Exactly the faults planted in a good set are reported."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maest.datasets import check
from maest.datasets.check import CheckReport, check_splits
from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.datasets.melspectrograms import MelFile, write_mel
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import to_json

LOW, BOTH, NONE = [1, 0, 0], [1, 1, 0], [0, 0, 0]
NAN = float("nan")


@dataclass
class Set:
    """A good data set in a folder: 24 tracks to train, 6 of each other split, one label each."""

    root: Path
    task: str = "multi-label"
    tracks: dict[str, dict[str, Any]] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)  # split → another ground truth

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("train", 24), ("val", 6), ("test", 6)):
            keys = [f"{split}/{i:02d}.mmap" for i in range(count)]
            for key in keys:
                write_mel(self.mels / key, rng.random((125, 96)))
            self.tracks[split] = {key: np.eye(3)[i % 3] for i, key in enumerate(keys)}
        write_labels(self.root / "labels.json", ["low", "middle", "high"])

    @property
    def mels(self) -> Path:
        return self.root / "mels"

    def fill(self, key: str, frames: int, value: float, last: float | None = None) -> None:
        """Give a track one value everywhere, but perhaps the last."""
        mel = np.full((frames, 96), value, np.float16)
        mel[-1, -1] = value if last is None else last
        mel.tofile(self.mels / key)

    def add(self, track: str, key: str, how: Any = shutil.copy) -> None:
        """Add a track again, under another name."""
        how(self.mels / track, self.mels / key)
        self.tracks[key.partition("/")[0]][key] = LOW

    def label(self, split: str, row: list[int], *others: list[int]) -> None:
        """Give the tracks of a split this row of labels, and the first ones others."""
        self.tracks[split] = dict.fromkeys(self.tracks[split], row)
        self.tracks[split] |= dict(zip(self.tracks[split], others, strict=False))

    def elsewhere(self, split: str, labels: list[str] | None, columns: int = 3) -> None:
        """Move a split's ground truth to another folder, with these labels beside it."""
        self.paths[split] = self.root / "other" / f"{split}.pk"
        rows = {key: np.eye(columns)[i % columns] for i, key in enumerate(self.tracks[split])}
        write_groundtruth(self.paths[split], rows)
        if labels:
            write_labels(self.paths[split].parent / "labels.json", labels)

    def check(self, **options: Any) -> CheckReport:
        splits: dict[str, Any] = {}
        for split, tracks in self.tracks.items():
            path = self.root / f"groundtruth-{split}.pk"
            write_groundtruth(path, tracks, self.task)
            try:
                splits[split] = read_groundtruth(self.paths.get(split, path), task=self.task)
            except InputError as error:
                splits[split] = error
        return check_splits(splits, self.mels, 100, **options)


@pytest.fixture
def good(tmp_path) -> Set:
    return Set(tmp_path)


def findings(report: CheckReport) -> list[str]:
    """Kind and split of each; problems end with "!"."""
    found = [(finding, "!") for finding in report.problems]
    found += [(finding, "") for finding in report.warnings]
    assert report.ok == (not report.problems)
    for finding, _ in found:
        assert finding.message in str(report)
        assert finding.message in to_json(report.to_dict())
    return [f"{finding.kind} {finding.split or ''}".strip() + mark for finding, mark in found]


SAME = object()


@pytest.mark.parametrize(
    ("plant", "expected", "briefly"),
    [
        (lambda s: None, [], SAME),
        (lambda s: (s.mels / "train/00.mmap").unlink(), ["files train!"], SAME),
        (lambda s: (s.mels / "val/01.mmap").write_bytes(b""), ["files val!"], SAME),
        (lambda s: (s.mels / "val/01.mmap").write_bytes(bytes(9602)), ["files val!"], SAME),
        (lambda s: s.fill("test/04.mmap", 200, 1, np.inf), ["files test!"], []),
        (lambda s: s.fill("train/03.mmap", 50_000, 1, np.nan), ["files train!"], []),
        (lambda s: s.fill("train/03.mmap", 99, 1, 2), ["short train"], SAME),
        (lambda s: s.fill("val/02.mmap", 300, 0), ["silent val"], []),
        (lambda s: s.fill("val/02.mmap", 300, 2), ["silent val"], []),
        # labels
        (lambda s: s.label("val", NONE, LOW, BOTH, [0, 0, 1]), ["labels val"], SAME),
        (lambda s: s.label("val", NONE), ["labels val!"], SAME),
        (lambda s: s.label("val", LOW, BOTH, [1, 0, 1]), ["labels val"], SAME),  # on all
        (lambda s: s.label("val", LOW, [0, 1, 0]), ["labels val"], SAME),  # on none
        (lambda s: s.label("val", [NAN, 0.6, 0.4], LOW, [0, 0.4, 0.6]), [], SAME),
        (lambda s: s.label("val", LOW, [0, 1, 0.4]), ["labels val"], SAME),  # on none
        (lambda s: s.label("val", LOW, [0, 1, NAN], [NAN] * 3), ["labels val"] * 2, SAME),
        (lambda s: s.label("val", BOTH, [0, NAN, NAN]), ["labels val"] * 3, SAME),  # none, all
        (
            lambda s: s.label("val", [NAN, 1, NAN], [1, 1, NAN], [0, 0, NAN]),
            ["labels val"] * 2,
            SAME,
        ),
        (lambda s: s.label("val", [NAN] * 3), ["labels val!", "labels val"], SAME),
        (lambda s: s.label("train", [0.1, 0.2, 0.3], [0.2, 0.1, NAN]), [], SAME),
        (lambda s: s.label("train", [NAN] * 3, [0, NAN, 1]), ["labels train"] * 4, SAME),
        (lambda s: s.elsewhere("val", ["low", "middle", "high"]), [], SAME),
        (lambda s: s.elsewhere("val", None), [], SAME),
        (lambda s: s.elsewhere("val", ["low", "high", "middle"]), ["labels val!"], SAME),
        (lambda s: s.elsewhere("val", ["low"]), ["labels val!"], SAME),
        (lambda s: s.elsewhere("val", None, columns=4), ["labels val!"], SAME),
        # ground truths that cannot be read
        (lambda s: s.paths.update(test=s.root / "gone.pk"), ["groundtruth test!"], SAME),
        (lambda s: s.paths.update(test=s.root / "labels.json"), ["groundtruth test!"], SAME),
        # a track in several splits, or several times in one
        (lambda s: s.tracks["val"].update({"train/00.mmap": LOW}), ["shared!"], SAME),
        (lambda s: s.tracks["val"].update({"./train/00.mmap": LOW}), ["shared!"], SAME),
        (lambda s: s.tracks["test"].update({"val/00.mmap": LOW}), ["shared"], SAME),
        (lambda s: s.add("train/00.mmap", "val/x.mmap", os.link), ["shared!"], SAME),
        (lambda s: s.add("train/00.mmap", "val/x.mmap", os.symlink), ["shared!"], SAME),
        (lambda s: s.add("train/00.mmap", "val/x.mmap"), ["shared!"], []),
        (lambda s: s.tracks["val"].update({"val/00": LOW}), ["duplicate val"], SAME),
        (lambda s: s.add("val/00.mmap", "val/x.mmap"), ["duplicate val"], []),
    ],
)
def test_a_fault(good, plant, expected, briefly):
    plant(good)
    report = good.check()
    assert findings(report) == expected
    assert findings(good.check(brief=True)) == (expected if briefly is SAME else briefly)
    for split in report.splits.values():
        for key, reason in split.bad.items():
            assert reason.startswith(f"{good.mels / key}: ")
            assert reason in str(report)


def test_what_is_counted(good):
    good.label("val", [1, NAN, 0.4], [NAN] * 3, [0, 0.7, NAN], NONE)
    report = good.check()
    train, val = report.splits["train"], report.splits["val"]
    assert (train.tracks, train.looked_at, train.unlabelled) == (24, 24, 0)
    assert train.hours == pytest.approx(24 * 125 / 62.5 / 3600)
    assert json.loads(to_json(report.to_dict()))["splits"]["val"]["tracks"] == 6
    assert (val.counts, val.unlabelled) == ({"low": 3, "middle": 1, "high": 0}, 1)
    assert (val.unknown, val.soft) == (3 + 1 + 3, 3 + 1)
    assert "of 18 targets 7 are unknown (38.9%), 4 soft" in str(val)


def test_several_faults_do_not_hide_each_other(good):
    good.paths["train"] = good.root / "gone.pk"
    (good.mels / "val/03.mmap").unlink()
    good.label("test", LOW, BOTH)
    expected = ["groundtruth train!", "files val!", "labels test", "labels test"]
    assert findings(good.check()) == expected


def test_files_that_will_be_skipped_are_no_problem(good):
    (good.mels / "val/00.mmap").unlink()
    assert findings(good.check(skip_unreadable=True)) == ["files val"]
    shutil.rmtree(good.mels / "train")
    report = good.check(skip_unreadable=True)
    assert findings(report) == ["files train!", "files val"]
    # the first are listed, and all are in the dict
    assert str(report).count("      'train/") == 20
    assert len(report.to_dict()["splits"]["train"]["bad"]) == 24


def test_the_teachers_files(good):
    teacher = good.root / "teacher"
    (teacher / "train").mkdir(parents=True)
    for key in good.tracks["train"]:
        np.save(teacher / f"{key}.logits.npy", np.zeros((1, 3), np.float32))
    assert findings(good.check(teacher_dir=teacher)) == []
    np.save(teacher / "train/05.mmap.logits.npy", np.zeros(4, np.float32))
    (teacher / "train/06.mmap.logits.npy").unlink()
    report = good.check(teacher_dir=teacher)
    assert findings(report) == ["files train!"]
    assert list(report.splits["train"].bad) == ["train/05.mmap", "train/06.mmap"]


def test_values_of_a_regression(good):
    good.tracks = {"train": {k: np.array([i, 0.5]) for i, k in enumerate(good.tracks["train"])}}
    (good.root / "labels.json").unlink()
    good.task = "regression"
    report = good.check()
    assert findings(report) == ["labels train"]
    assert "'value 1'" in report.warnings[0].message
    assert report.splits["train"].counts is None


def test_all_copies_are_counted_however_many_there_are_of_each(good):
    for i in range(25):
        good.add("train/00.mmap", f"train/more{i}.mmap")
        good.add("train/01.mmap", f"train/even{i}.mmap")
    good.add("train/00.mmap", "test/a.mmap")
    good.add("train/01.mmap", "test/b.mmap")
    good.add("test/b.mmap", "test/c.mmap", os.link)  # one file under two names, reported once
    good.add("train/02.mmap", "val/copy.mmap")
    good.add("train/02.mmap", "test/copy.mmap")
    report = good.check()
    texts = [finding.message for finding in (*report.problems, *report.warnings)]
    starts = [text.split(" tracks")[0].rpartition(": ") for text in texts]
    assert sorted((splits, int(count)) for splits, _, count in starts) == [
        *(("test", 1), ("train", 50)),
        *(("train and test", 4), ("train and val", 1), ("val and test", 1)),
    ]
    assert "'train/00.mmap' = 'test/a.mmap'" in report.problems[-1].message


def test_a_brief_check_of_many_tracks_opens_few_and_reads_none(good, monkeypatch):
    for split, count in (("train", 9000), ("val", 1000)):
        good.tracks[split] = {f"{split}/{i}.mmap": np.eye(3)[i % 3] for i in range(count)}
    opened: list[str] = []
    of_key: Callable = MelFile.of_key

    def record(base_dir: Path, key: str) -> MelFile:
        opened.append(key)
        return of_key(base_dir, "train/00.mmap")

    monkeypatch.setattr(MelFile, "of_key", record)
    monkeypatch.setattr(MelFile, "read_into", None)
    monkeypatch.setattr(check, "BRIEF_SECONDS", 1e9)
    looked_at = {name: split.looked_at for name, split in good.check(brief=True).splits.items()}
    assert len(opened) == sum(looked_at.values()) == 2000
    assert looked_at["train"] == pytest.approx(1800, abs=20)
    monkeypatch.setattr(check, "BRIEF_SECONDS", 0)
    good.check(brief=True)
    assert 2000 < len(opened) < 2010
