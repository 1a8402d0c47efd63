"""What an extraction says: while it works, and at its end; its lists of failures and its tables."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import torch
from tqdm import tqdm

from maest.config import Settings
from maest.datasets.tracks import Tracks, own_share
from maest.experiments.ranks import Ranks
from maest.helpers import patches
from maest.helpers.blocks import FINAL
from maest.helpers.failures import write_failures
from maest.helpers.predictions import (
    best,
    label_names,
    printable,
    read_predictions,
    table,
    write_table,
)
from maest.helpers.tracks import TrackResult
from maest.helpers.writer import WARNINGS, Output, tidy_warnings
from maest.models import Maest
from maest.models.batching import Failure, OutputSpec
from maest.models.engines import Engine

log = logging.getLogger(__name__)

_SHOWN = 10  # failures that are printed
_LABELS = 3  # of a track, in a line
_SECONDS = 10.0  # from one line to the next


@dataclass(frozen=True)
class ExtractionJob:
    """What a process has to do.

    Attributes:
        settings, net, plan, spec, device, precision, ranks: with what, and as which process.
        tracks: all tracks that the settings name.
        outputs: what is made of each.
        shard: (k, n), the k-th of n parts; None for all.
        own: the numbers of those tracks that are this process's part.
        todo: the numbers of those that are not done yet.
        started: `time.time` when it began.
        left_out: in words, the files that are not taken for audio; or nothing.
    """

    settings: Settings
    net: Maest
    plan: patches.PatchPlan
    spec: OutputSpec
    device: torch.device
    precision: str
    ranks: Ranks
    tracks: Tracks
    outputs: list[Output]
    shard: tuple[int, int] | None
    own: range
    todo: list[int]
    started: float
    left_out: str

    def named(self, name: str) -> str:
        """The name of a file over all tracks: of a shard, its own."""
        stem, _, suffix = name.rpartition(".")
        return name if self.shard is None else "{}-{}-of-{}.{}".format(stem, *self.shard, suffix)

    def write_failures(self, failed: dict[str, str]) -> Path:
        """Into each folder of results; where the first one is."""
        name = self.named("failed.csv")
        for output in self.outputs:
            write_failures(output.folder / name, failed)
        return self.outputs[0].folder / name


@dataclass
class Summary:
    """What a process has done."""

    written: int = 0  # tracks
    skipped: int = 0  # tracks that were done before
    seconds: float = 0.0  # of the audio that was done now
    warned: int = 0  # of the tracks written; their results may mean little
    failed: dict[str, str] = field(default_factory=dict)  # reasons by key

    def add(self, other: Summary) -> None:
        """Take what another process has done into account."""
        self.written += other.written
        self.skipped += other.skipped
        self.seconds += other.seconds
        self.warned += other.warned
        self.failed |= other.failed


class Progress:
    """Says how far it is: a bar on a terminal; else a line a prediction, or one now and then.

    Attributes:
        seconds: of the tracks that are done.
    """

    def __init__(self, job: ExtractionJob) -> None:
        self.seconds = 0.0
        self._total, self._done, self._heard = len(job.todo), 0, 0.0
        self._net, self._predicts = job.net, job.spec.activations
        self._began = self._said = time.monotonic()
        first = job.ranks.rank == 0
        bar = first and job.settings.trainer.enable_progress_bar and sys.stderr.isatty()
        self._bar = tqdm(total=self._total, desc="extract", unit="track", disable=not bar)
        self._lines, self._tell_similarity = first and not bar, first

    def heard(self, frames: int) -> None:
        """So many frames were computed: of a long track, too, one sees that it goes on."""
        self._heard += patches.seconds(frames)
        self._bar.set_postfix_str(self._speed())
        if self._lines and not self._predicts and time.monotonic() - self._said > _SECONDS:
            self._said = time.monotonic()
            print(f"{self._done} of {self._total} tracks, {self._speed()}", flush=True)

    def done(self, result: TrackResult | Failure, engine: Engine) -> None:
        """A track is done, or has failed."""
        self._done += 1
        self._bar.update()
        if self._tell_similarity and engine.similarity is not None:
            self._tell_similarity = False
            values = ", ".join(f"{name} {value:.6f}" for name, value in engine.similarity.items())
            tqdm.write(
                f"int8 against fp32, lowest cosine similarity on the first patches: {values}"
            )
        if isinstance(result, TrackResult):
            self.seconds += result.seconds
        if self._lines and self._predicts and self._total > 1:
            track = f"{printable(result.key)}: {self._outcome(result)}"
            print(f"{self._done} of {self._total}  {track}")

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _speed(self) -> str:
        speed = self._heard / max(time.monotonic() - self._began, 1e-9)
        return f"{self._heard / 3600:.2f} h of audio, {speed:.0f} x real time"

    def _outcome(self, result: TrackResult | Failure) -> str:
        if isinstance(result, Failure) or result.activations is None:
            return "failed"
        names = label_names(self._net.labels, len(result.activations))
        chosen = best(result.activations, _LABELS, self._net.task)[:_LABELS]
        return ", ".join(f"{printable(names[i])} {result.activations[i]:.2f}" for i in chosen)


def report(job: ExtractionJob, parts: list[Summary]) -> dict[str, Any]:
    """Write failures and tables, and print what all processes have done; ``parts``, theirs.

    Without any, this is not the first process.
    """
    if not parts:
        return {}
    done = Summary()
    for part in parts:
        done.add(part)
    reasons = job.write_failures(done.failed)
    for output in job.outputs:
        if output.kind == "predictions":
            _show_predictions(output, job, done.failed)
            continue
        others = [] if job.shard else sorted(output.folder.glob("warnings-*-of-*.csv"))
        tidy_warnings(output.folder / job.named(WARNINGS), others)
    if job.shard is None:
        _remove_lists_of_shards(job)
    for key, reason in sorted(done.failed.items())[:_SHOWN]:
        log.error("%s: %s", key, reason)
    took, folders = time.time() - job.started, [output.folder for output in job.outputs]
    hours = f"{done.seconds / 3600:.2f} h of audio, {done.seconds / took:.0f} x real time"
    shown = str(folders[0])
    if len(folders) > 1:
        shown = f"{folders[0].parent}/{{{','.join(folder.name for folder in folders)}}}"
    print(
        f"{job.left_out}{done.written} track{'s' * (done.written != 1)} done, "
        f"{len(done.failed)} failed, {done.skipped} there already, in {took:.0f} s"
        f"{f' ({hours})' if done.written else ''}{_warned(job, done)}: {shown}"
        + (f" ({_contents(job)})" if job.spec.blocks else "")
        + (f" (reasons: {reasons})" if done.failed else "")
    )
    if job.shard is not None:
        print(
            "When all shards are done, the same command without inference.shard does what was "
            "missed, and joins their lists"
        )
    return {
        **vars(done),
        "failed": len(done.failed),
        "folder": str(folders[0]),
        "folders": [str(folder) for folder in folders],
    }


def _contents(job: ExtractionJob) -> str:
    """What embeddings hold, in words."""
    each = " for each patch" if job.spec.pool == "none" else ""
    blocks = [str(block) for block in job.spec.blocks if block != FINAL]
    parts = []
    if blocks:
        which = f"block{'s' * (len(blocks) > 1)} {', '.join(blocks)} of 0-{job.net.depth - 1}"
        parts.append(f"{which}, 3 tokens x {job.net.embed_dim}{each}")
    if FINAL in job.spec.blocks:
        parts.append(f"after the final norm, {job.net.embed_dim} numbers{each}")
    return "; ".join(parts)


def _warned(job: ExtractionJob, done: Summary) -> str:
    if not done.warned:
        return ""
    listed = any(output.kind != "predictions" for output in job.outputs)
    where = job.named(WARNINGS) if listed else job.named("tracks.csv")
    return f"; {done.warned} with warnings" + f" ({where})" * (listed or len(job.tracks.keys) > 1)


def _remove_lists_of_shards(job: ExtractionJob) -> None:
    """This run went over what the shards had left."""
    for output in job.outputs:
        for pattern in ("failed-*-of-*.csv", "tracks-*-of-*.csv", "warnings-*-of-*.csv"):
            for older in output.folder.glob(pattern):
                if older.stat().st_mtime < job.started:
                    older.unlink(missing_ok=True)


def _show_predictions(output: Output, job: ExtractionJob, failed: dict[str, str]) -> None:
    """A table over the folder; of one song, its labels."""
    keys = job.tracks.keys
    if len(keys) == 1:
        if keys[0] not in failed and output.path(keys[0]).is_file():
            print(table(read_predictions(output.path(keys[0])), get_terminal_size().columns))
        return
    path = output.folder / job.named("tracks.csv")
    part = (keys[i] for i in own_share(len(keys), job.shard))
    if write_table(path, output.folder, (key for key in part if key not in failed)):
        print(f"all in one table, a row each: {path}")
