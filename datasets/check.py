"""Check all the data before training, and report every problem at once."""

import math
import os
import posixpath
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, combinations_with_replacement, islice, product
from pathlib import Path
from statistics import median_high
from typing import Any

import numpy as np

from maest.datasets.groundtruth import GroundTruth, check_labels, labels_beside
from maest.datasets.melspectrograms import MelFile
from maest.datasets.teacher_logits import read_teacher_logits
from maest.helpers.audio.patches import seconds
from maest.helpers.errors import InputError
from maest.helpers.names import first_few, short_repr
from maest.helpers.soft_labels import highest, lowest, negative, positive, unsure
from maest.helpers.work.parallel import thread_map

BRIEF_FILES, BRIEF_SECONDS = 2000, 2.0  # limits of a brief check
_SHOWN = 20  # bad files of a split that a report lists; its dict has all
_NAMED = 3  # tracks or labels that a message names
_NOTHING_KNOWN = "have no known label: left out of metrics, and of training"


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
    unlabelled: int = 0  # tracks without any label, of those where some are known
    unknown: int = 0  # targets: NaN
    soft: int = 0  # targets between 0 and 1
    looked_at: int = 0  # tracks whose files were checked; fewer than all if brief
    hours: float = 0.0  # of music in these files
    bad: dict[str, str] = field(default_factory=dict)  # key → reason; the teacher's files, too
    short: list[str] = field(default_factory=list)  # shorter than a clip
    silent: list[str] = field(default_factory=list)  # with the same value everywhere

    def __str__(self) -> str:
        partly = f" in the {self.looked_at} looked at" if self.looked_at < self.tracks else ""
        labels = "" if self.counts is None else f", {len(self.counts)} labels"
        text = f"{self.tracks} tracks{labels}, {self.hours:.2f} hours{partly} ({self.path})"
        if self.unknown or self.soft:
            cells = self.tracks * len(self.counts or ())
            text += f"\n  of {cells} targets {self.unknown} are unknown "
            text += f"({self.unknown / cells:.1%}), {self.soft} soft (between 0 and 1)"
        if counts := self.counts:
            ranked = sorted(counts, key=counts.__getitem__)
            rare, common = ranked[0], ranked[-1]
            text += f"\n  tracks per label: {counts[rare]} ({rare}) to {counts[common]} ({common})"
            text += f", median {median_high(counts.values())}"
        return text


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
        lines = [f"{name}: {split}" for name, split in self.splits.items()]
        for title, findings in (("problems", self.problems), ("warnings", self.warnings)):
            lines.append(f"{title}: {len(findings) or 'none'}")
            for finding in findings:
                lines.append(f"  - {finding.message}")
                if finding.kind == "files" and finding.split:
                    bad = self.splits[finding.split].bad
                    some = islice(bad.items(), _SHOWN)
                    lines += [f"      {short_repr(key)}: {why}" for key, why in some]
                    lines += [f"      and {len(bad) - _SHOWN} more"] * (len(bad) > _SHOWN)
        return "\n".join(lines + ["(quick check: file contents not read)"] * self.brief)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


@dataclass(slots=True, eq=False)
class _Track:
    """A track of a split, and its log-mel file."""

    key: str
    path: str  # normalised
    logits: tuple[str | Path, int] | None  # the teacher's: their folder, and number of labels
    looked_at: bool = False
    file: tuple[int, int] | None = None  # device and inode, equal for all names of the file
    content: bytes | None = None  # a hash of the values; None: not read, or all the same
    frames: int = 0
    silent: bool = False  # all values are the same
    problem: str = ""  # why it cannot be used


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
    ``brief`` check reads no file: it looks at the names and sizes of at most 2,000 log-mel files,
    spread over the splits, for at most two seconds.

    Problems: an unreadable ground truth or ``labels.json``; splits with different labels; a log-mel
    or teacher file that is missing, truncated, empty or has a NaN; a training track that another
    split has too, under its key, under another name of the file, or as a copy. Warnings: skipped
    files, labels on no track or on all, unknown labels, tracks without labels or without a known
    one, tracks shorter than a clip, constant files, repeats within a split, and tracks that
    validation and test share.
    """
    report, tracks = CheckReport(brief), dict[str, list[_Track]]()
    first: tuple[int, list[str] | None, str] | None = None  # number of labels, names, split
    for name, split in splits.items():
        if isinstance(split, InputError):
            report.add("groundtruth", str(split), name, problem=True)
            continue
        report.splits[name] = SplitCheck(str(split.path), len(split))
        logits = (teacher_dir, split.n_classes) if teacher_dir and name == "train" else None
        tracks[name] = [_Track(key, posixpath.normpath(key), logits) for key in split.keys]
        labels = None
        try:
            labels = labels_beside(split)
            first = first or (split.n_classes, labels, name)
            check_labels(split, *first, f"datamodule.groundtruth_{name}")
        except InputError as error:
            report.add("labels", str(error), name, problem=True)
        _check_targets(report, name, split, labels)
    _look_at_all([*chain(*tracks.values())], str(base_dir), brief)
    for name in tracks:
        _check_files(report, name, tracks[name], clip_frames, skip_unreadable)
    _check_twins(report, tracks)
    return report


def _some(names: Iterable[str]) -> str:
    return first_few(map(short_repr, islice(names, _NAMED + 1)), _NAMED)


def _check_targets(
    report: CheckReport, split: str, groundtruth: GroundTruth, labels: list[str] | None
) -> None:
    targets, total, summary = groundtruth.targets, len(groundtruth), report.splits[split]
    if groundtruth.task == "regression":
        names = labels or [f"value {i}" for i in range(groundtruth.n_classes)]
        flat = (targets == targets[:1]).all(axis=0)
        rules = [(flat, "values are the same on all tracks: there is nothing to learn")]
    else:
        names = labels or [f"label {i}" for i in range(groundtruth.n_classes)]
        summary.counts = dict(zip(names, groundtruth.counts().tolist(), strict=True))

        # Of a soft target training takes the value, metrics only the side of 0.5.
        def has(most: np.ndarray) -> np.ndarray:
            return most > 0 if split == "train" else positive(most)

        def lacks(least: np.ndarray) -> np.ndarray:
            return least < 1 if split == "train" else negative(least)

        no_label = ~has(highest(targets, 1))
        known_tracks = ~no_label | lacks(lowest(targets, 1))
        summary.unlabelled = unlabelled = int((no_label & known_tracks).sum())
        if targets.dtype != np.uint8:
            summary.unknown, summary.soft = unsure(targets)
        for count, text in (
            (unlabelled, "have no label"),
            (int((~known_tracks).sum()), f"{_NOTHING_KNOWN} without a teacher"),
        ):
            if count:
                text = f"{count} of {total} tracks {text}"
                report.add("labels", text, split, problem=bool(no_label.all()))
        lost = "they cannot be learnt" if split == "train" else "excluded from the metrics"
        on_some, off_some = has(highest(targets, 0)), lacks(lowest(targets, 0))
        rules = [
            (~on_some & off_some & ~no_label.all(), f"labels are on no track: {lost}"),
            (on_some & ~off_some, "labels are on all tracks: uninformative"),
            (~on_some & ~off_some, f"labels are unknown on all tracks: {lost}"),
        ]
    for which, what in rules:
        if chosen := [names[i] for i in np.flatnonzero(which)]:
            text = f"{len(chosen)} of {len(names)} {what} ({_some(chosen)})"
            report.add("labels", text, split)


def _look_at_all(tracks: list[_Track], base_dir: str, brief: bool) -> None:
    """Look at all tracks' files; if brief, at those of a random sample, without reading them."""
    deadline = math.inf
    if brief and tracks:
        spread = np.unique(np.linspace(0, len(tracks) - 1, BRIEF_FILES).astype(int))
        tracks = [tracks[i] for i in np.random.default_rng(0).permutation(spread)]
        deadline = time.monotonic() + BRIEF_SECONDS

    def look(track: _Track) -> None:
        track.looked_at = True
        try:
            with MelFile.of_key(base_dir, track.key) as mel:
                status, track.frames = os.stat(mel.path), len(mel)
                if not brief:
                    track.content = mel.content_hash()
                    track.silent = track.content is None
            if track.logits and not brief:
                read_teacher_logits(track.logits[0], track.key, track.logits[1])
            track.file = status.st_dev, status.st_ino
        except (InputError, OSError) as error:  # OSError: gone since it was opened
            track.problem = str(error)

    for _ in thread_map(look, tracks, 1 if brief else None, None if brief else "check files"):
        if time.monotonic() > deadline:
            break


def _check_files(
    report: CheckReport, name: str, tracks: list[_Track], clip_frames: int, skip: bool
) -> None:
    split, tracks = report.splits[name], [track for track in tracks if track.looked_at]
    good = [track for track in tracks if not track.problem]
    split.looked_at = total = len(tracks)
    split.hours = seconds(sum(track.frames for track in good)) / 3600
    split.bad = {track.key: track.problem for track in tracks if track.problem}
    split.short = [track.key for track in good if track.frames < clip_frames]
    split.silent = [track.key for track in good if track.silent]
    skipped = skip and len(good) > 0
    remedy = "fix or remove them, or set datamodule.on_error=skip"
    if skipped:
        remedy = "they will be skipped (datamodule.on_error)"
    short = f"are shorter than a clip of {seconds(clip_frames):g} s ({_some(split.short)})"
    for kind, keys, text in (
        ("files", split.bad, f"cannot be read: {remedy}"),
        ("short", split.short, f"{short}: silence is added in training"),
        ("silent", split.silent, f"are silent: one value everywhere ({_some(split.silent)})"),
    ):
        if keys:
            problem = kind == "files" and not skipped
            report.add(kind, f"{len(keys)} of {total} tracks {text}", name, problem)


def _check_twins(report: CheckReport, tracks: dict[str, list[_Track]]) -> None:
    """Report tracks that a later split shares with an earlier one, or that one split repeats."""
    first: dict[tuple[str, str], dict[Any, _Track]] = {}  # (split, what) → value → track
    for split, what in product(tracks, ("path", "file", "content")):
        values = ((getattr(track, what), track) for track in reversed(tracks[split]))
        first[split, what] = {value: track for value, track in values if value is not None}
    for a, b in combinations_with_replacement(tracks, 2):
        others = tracks[b]
        for what in ("path", "file", "content"):  # a pair that shares one is not reported again
            pairs = [(first[a, what].get(getattr(track, what)), track) for track in others]
            others = [track for twin, track in pairs if twin in (None, track)]
            twins = [(twin, track) for twin, track in pairs if twin not in (None, track)]
            names = (" = ".join(dict.fromkeys(short_repr(t.path) for t in p)) for p in twins)
            some, trained = first_few(islice(names, _NAMED + 1), _NAMED), "train" in (a, b)
            if twins and a == b:
                text = f"{len(twins)} tracks are repeated under another key, with the same {what}"
                report.add("duplicate", f"{text} ({some})", a)
            elif twins:
                why = "the test metrics are biased by the choice of the best epoch"
                why = "keep each in one split, or the metrics mean nothing" if trained else why
                text = f"{a} and {b}: {len(twins)} tracks have the same {what} in both ({some})"
                report.add("shared", f"{text}: {why}", problem=trained)
