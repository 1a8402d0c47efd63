"""Check all the data before training, and report every problem at once."""

from __future__ import annotations

import functools
import math
import os
import posixpath
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.groundtruth import GroundTruth, labels_beside
from maest.datasets.melspectrograms import MelFile
from maest.datasets.teacher import check_teacher_files, read_teacher_logits
from maest.helpers.audio.patches import seconds
from maest.helpers.errors import InputError
from maest.helpers.files.safe_pickle import short_repr
from maest.helpers.names import first_few
from maest.helpers.work.parallel import thread_map

BRIEF_FILES, BRIEF_SECONDS = 2000, 2.0  # limits of a brief check
_SHOWN = 20  # bad files of a split that a report lists; its dict has all
_NAMED = 3  # tracks or labels that a message names


@dataclass(frozen=True)
class Finding:
    """A problem, or a warning."""

    # "groundtruth", "files", "labels", "shared" (a track in several splits), "duplicate" (twice in
    # one split), "short" or "silent"
    kind: str
    message: str  # a sentence that names the split and says what to do
    split: str | None = None  # None: several splits


@dataclass
class SplitCheck:
    """The check of one split."""

    path: str  # of the ground truth
    tracks: int
    counts: dict[str, int] | None = None  # label → how many tracks have it; not of a regression
    unlabelled: int = 0
    looked_at: int = 0  # tracks whose files were checked; fewer than all if brief
    hours: float = 0.0  # of music in these files
    bad: dict[str, str] = field(default_factory=dict)  # key → reason; the teacher's files, too
    short: list[str] = field(default_factory=list)  # shorter than a clip
    silent: list[str] = field(default_factory=list)  # with the same value everywhere


@dataclass
class CheckReport:
    """The findings of :func:`check_splits`."""

    brief: bool  # file contents were not read
    splits: dict[str, SplitCheck] = field(default_factory=dict)  # with a readable ground truth
    # Training would stop, or its metrics mean nothing
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)  # may be intended

    def add(self, kind: str, text: str, split: str | None = None, problem: bool = False) -> None:
        finding = Finding(kind, f"{split}: {text}" if split else text, split)
        (self.problems if problem else self.warnings).append(finding)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [line for name, split in self.splits.items() for line in _describe(name, split)]
        for title, findings in (("problems", self.problems), ("warnings", self.warnings)):
            lines += [f"{title}: {len(findings) or 'none'}"]
            for finding in findings:
                lines.append(f"  - {finding.message}")
                if finding.kind != "files" or finding.split is None:
                    continue
                bad = list(self.splits[finding.split].bad.items())
                lines += [f"      {short_repr(key)}: {why}" for key, why in bad[:_SHOWN]]
                if len(bad) > _SHOWN:
                    lines.append(f"      and {len(bad) - _SHOWN} more")
        if self.brief:
            lines.append("(quick check: file contents not read)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def check_splits(
    splits: Mapping[str, GroundTruth | InputError],
    base_dir: str | Path,
    clip_frames: int,
    teacher_dir: str | Path | None = None,
    skip_unreadable: bool = False,
    brief: bool = False,
) -> CheckReport:
    """Check ground truths, labels and files of "train", "val" and "test", or some of these splits.

    A split may be the error that reading it raised. ``teacher_dir`` has logits for "train". A
    ``brief`` check reads no file: it looks at the names and sizes of at most 2,000, spread over the
    splits, for at most two seconds.

    Problems: an unreadable ground truth or ``labels.json``; splits with different labels; a log-mel
    or teacher file that is missing, truncated, empty or has a NaN; a training track that another
    split has too, under its key, under another name of the file, or as a copy. Warnings: skipped
    files, labels on no track or on all, tracks without labels, tracks shorter than a clip, constant
    files, repeats within a split, and tracks that validation and test share.
    """
    report = CheckReport(brief)
    found: dict[str, GroundTruth] = {}
    for name, split in splits.items():
        if isinstance(split, InputError):
            report.add("groundtruth", str(split), name, problem=True)
        else:
            found[name] = split
    _check_labels(report, found)
    files = _look_at_all(found, Path(base_dir), teacher_dir, brief)
    for name, own in files.items():
        _check_files(report, name, own, clip_frames, skip_unreadable)
    _check_shared(report, found, files)
    return report


def _describe(name: str, split: SplitCheck) -> Iterator[str]:
    hours = f"{split.hours:.2f} hours"
    if split.looked_at < split.tracks:
        hours += f" in the {split.looked_at} looked at"
    labels = "" if split.counts is None else f", {len(split.counts)} labels"
    yield f"{name}: {split.tracks} tracks{labels}, {hours} ({split.path})"
    if split.counts:
        ordered = sorted(split.counts.items(), key=lambda item: item[1])
        (least, fewest), (most, largest) = ordered[0], ordered[-1]
        median = ordered[len(ordered) // 2][1]
        yield f"  tracks to a label: {fewest} ({least}) to {largest} ({most}), median {median}"


def _some(names: Iterable[str]) -> str:
    return first_few(map(short_repr, names), _NAMED)


# --- Labels -------------------------------------------------------------------------------------


def _check_labels(report: CheckReport, found: dict[str, GroundTruth]) -> None:
    names: dict[str, list[str] | None] = {}
    for split, groundtruth in found.items():
        report.splits[split] = SplitCheck(str(groundtruth.path), len(groundtruth))
        try:
            names[split] = labels_beside(groundtruth)
        except InputError as error:
            report.add("labels", str(error), split, problem=True)
            names[split] = None
        _check_counts(report, split, groundtruth, names[split])
    for (a, one), (b, other) in combinations(found.items(), 2):
        if one.n_classes != other.n_classes:
            text = f"{a} has {one.n_classes} labels to a track, and {b} has {other.n_classes}"
        elif (a_names := names[a]) and (b_names := names[b]) and a_names != b_names:
            i = [x == y for x, y in zip(a_names, b_names, strict=True)].index(False)
            text = f"labels.json of {a} and of {b} differ: label {i} is "
            text += f"{short_repr(a_names[i])} and {short_repr(b_names[i])}"
        else:
            continue
        report.add("labels", f"{text}: make all splits with one list of labels", problem=True)


def _check_counts(
    report: CheckReport, split: str, groundtruth: GroundTruth, labels: list[str] | None
) -> None:
    targets, total = groundtruth.targets, len(groundtruth)
    unit = "value" if groundtruth.task == "regression" else "label"
    names = labels or [f"{unit} {i}" for i in range(groundtruth.n_classes)]
    if groundtruth.task == "regression":
        flat = (targets == targets[:1]).all(axis=0)
        rules = [(flat, "values are the same on all tracks: there is nothing to learn")]
    else:
        counts, summary = groundtruth.counts(), report.splits[split]
        summary.counts = dict(zip(names, counts.tolist(), strict=True))
        summary.unlabelled = int((~targets.any(axis=1)).sum())
        none = summary.unlabelled == total
        if summary.unlabelled:
            text = f"{summary.unlabelled} of {total} tracks have no label"
            report.add("labels", text, split, problem=none)
        lost = "they cannot be learnt" if split == "train" else "excluded from the metrics"
        rules = [
            ((counts == 0) & (not none), f"labels are on no track: {lost}"),
            (counts == total, "labels are on all tracks: uninformative"),
        ]
    for which, what in rules:
        if chosen := [names[i] for i in np.flatnonzero(which)]:
            text = f"{len(chosen)} of {len(names)} {what} ({_some(chosen)})"
            report.add("labels", text, split)


# --- Files --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """The check of a track's files."""

    frames: int = 0
    problem: str = ""  # why it cannot be used
    identity: tuple[int, int] | None = None  # device and inode, equal for all names of the file
    content: bytes | None = None  # a hash of the values; None: not read, or all the same
    silent: bool = False  # all values are the same


def _look(
    base_dir: Path, read: bool, key: str, teacher_dir: str | Path | None, n_classes: int
) -> _File:
    content, silent = None, False
    try:
        with MelFile.of_key(base_dir, key) as mel:
            status = os.stat(mel.path)
            if read:
                content = mel.content_hash()
                silent = content is None
        if teacher_dir is not None and read:
            read_teacher_logits(teacher_dir, key, n_classes)
        elif teacher_dir is not None:
            check_teacher_files(teacher_dir, [key])
    except InputError as error:
        return _File(problem=str(error))
    except OSError as error:  # gone since it was opened
        return _File(problem=f"{mel.path}: cannot be read ({error.strerror})")
    return _File(len(mel), "", (status.st_dev, status.st_ino), content, silent)


def _look_at_all(
    found: dict[str, GroundTruth], base_dir: Path, teacher_dir: str | Path | None, brief: bool
) -> dict[str, dict[str, _File]]:
    """Check files: split → key → file. A brief check takes a random sample, spread over all."""
    tracks = [(name, key) for name, split in found.items() for key in split.keys]
    deadline = math.inf
    if brief and tracks:
        spread = np.unique(np.linspace(0, len(tracks) - 1, BRIEF_FILES).astype(int))
        tracks = [tracks[i] for i in np.random.default_rng(0).permutation(spread).tolist()]
        deadline = time.monotonic() + BRIEF_SECONDS

    # A track of several splits is read once.
    look = functools.cache(functools.partial(_look, base_dir, not brief))

    def of_track(track: tuple[str, str]) -> _File:
        split, key = track
        return look(key, teacher_dir if split == "train" else None, found[split].n_classes)

    looked_at: dict[tuple[str, str], _File] = {}
    files = thread_map(of_track, tracks, 1 if brief else None, None if brief else "check files")
    for track, file in zip(tracks, files, strict=True):
        looked_at[track] = file
        if time.monotonic() > deadline:
            break
    return {
        name: {key: looked_at[name, key] for key in split.keys if (name, key) in looked_at}
        for name, split in found.items()
    }


def _check_files(
    report: CheckReport, name: str, files: dict[str, _File], clip_frames: int, skip: bool
) -> None:
    split, total = report.splits[name], len(files)
    good = {key: file for key, file in files.items() if not file.problem}
    split.looked_at = total
    split.hours = seconds(sum(file.frames for file in good.values())) / 3600
    split.bad = {key: file.problem for key, file in files.items() if file.problem}
    split.short = [key for key, file in good.items() if file.frames < clip_frames]
    split.silent = [key for key, file in good.items() if file.silent]
    skipped = skip and len(split.bad) < total
    remedy = "fix or remove them, or set datamodule.on_error=skip"
    if skipped:
        remedy = "they will be skipped (datamodule.on_error)"
    short = f"are shorter than a clip of {seconds(clip_frames):g} s ({_some(split.short)})"
    silent = f"files have one value everywhere, as silence ({_some(split.silent)})"
    for kind, keys, text in (
        ("files", split.bad, f"tracks cannot be read: {remedy}"),
        ("short", split.short, f"tracks {short}: silence is added in training"),
        ("silent", split.silent, silent),
    ):
        if keys:
            problem = kind == "files" and not skipped
            report.add(kind, f"{len(keys)} of {total} {text}", name, problem)


# --- Duplicate tracks ---------------------------------------------------------------------------


# What two tracks share → the message, and, from a track's path and file, the value to compare and
# one that must differ: where it does not, an earlier entry reports the pair.
_TWINS: dict[str, tuple[str, Callable[[str, _File], tuple[Hashable, Hashable]]]] = {
    "track": ("{} tracks are in both", lambda path, file: (path, None)),
    "file": ("{} files are in both, under different keys", lambda path, f: (f.identity, path)),
    "content": (
        "{} tracks have the same content in both, in different files",
        lambda path, file: (file.content, file.identity),
    ),
}


def _check_shared(
    report: CheckReport, found: dict[str, GroundTruth], files: dict[str, dict[str, _File]]
) -> None:
    """Report tracks that a later split shares with an earlier one, or that one split repeats."""
    for what, (words, compared) in _TWINS.items():
        # Shared value → split → value that must differ → first key
        before: dict[Hashable, dict[str, dict[Hashable, str]]] = defaultdict(dict)
        shared: dict[tuple[str, str], list[str]] = defaultdict(list)
        for split, groundtruth in found.items():
            for key in groundtruth.keys:
                path = posixpath.normpath(key)
                same, own = compared(path, files[split].get(key, _File()))
                if same is None:
                    continue
                for other, firsts in before[same].items():
                    twin = next((k for d, k in firsts.items() if d is None or d != own), None)
                    if twin is not None:
                        names = [twin] if path == twin else [twin, key]
                        shared[other, split].append(" = ".join(map(short_repr, names)))
                before[same].setdefault(split, {}).setdefault(own, key)
        for (a, b), names in shared.items():
            some, trained = first_few(names, _NAMED), "train" in (a, b)
            why = "the test metrics are biased by the choice of the best epoch"
            if trained:
                why = "keep each in one split, or the metrics mean nothing"
            text = f"{a} and {b}: {words.format(len(names))} ({some}): {why}"
            if a != b:
                report.add("shared", text, problem=trained)
            else:
                text = f"{len(names)} tracks are there again, as another key with the same {what}"
                report.add("duplicate", f"{text} ({some})", a)
