"""What an extraction has come to: its files of failures and tables, and the lines it prints."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from maest.datasets.tracks import TrackSource, own_share
from maest.helpers.failures import write_failures
from maest.helpers.predictions import read_predictions, table, write_table
from maest.helpers.writer import WARNINGS, Output, tidy_warnings

log = logging.getLogger(__name__)

_SHOWN = 10  # failures that are printed


@dataclass(frozen=True)
class Work:
    """What a process has to do.

    Attributes:
        tracks: all tracks that the settings name.
        outputs: what is made of each.
        shard: (k, n), the k-th of n parts; None for all.
        own: the numbers of those tracks that are this process's part.
        todo: the numbers of those that are not done yet.
        started: `time.time` when it began.
        left_out: in words, the files that are not taken for audio; or nothing.
        contents: in words, what embeddings hold; or nothing.
    """

    tracks: TrackSource
    outputs: list[Output]
    shard: tuple[int, int] | None
    own: range
    todo: list[int]
    started: float
    left_out: str = ""
    contents: str = ""

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


class Done(NamedTuple):
    """What a process has done.

    Attributes:
        written, skipped: tracks that were done now, and before.
        seconds: of the audio that was done now.
        warned: tracks that were done now, and whose results may mean little.
    """

    written: int
    skipped: int
    seconds: float
    warned: int = 0


def report(
    work: Work, done: Done, failed: dict[str, str], trainer: pl.Trainer, group: Any
) -> dict[str, Any]:
    """Write failures and tables, and print what was done: by the first process, for all of them.

    Args:
        work, done, failed: of this process.
        trainer: that has run it.
        group: of several processes, through which they tell one another.
    """
    if trainer.world_size > 1:
        parts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, (done, failed), group=group)
        done = Done(*(sum(own[i] for own, _ in parts) for i in range(len(done))))
        failed = {key: reason for _, own in parts for key, reason in own.items()}
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        return {}  # the first one tells it, by its exit code too
    reasons = work.write_failures(failed)
    for output in work.outputs:
        if output.kind == "predictions":
            _show_predictions(output, work, failed)
            continue
        others = [] if work.shard else sorted(output.folder.glob("warnings-*-of-*.csv"))
        tidy_warnings(output.folder / work.named(WARNINGS), others)
    if work.shard is None:
        _remove_lists_of_shards(work)
    for key, reason in sorted(failed.items())[:_SHOWN]:
        log.error("%s: %s", key, reason)
    took, folders = time.time() - work.started, [output.folder for output in work.outputs]
    hours = f"{done.seconds / 3600:.2f} h of audio, {done.seconds / took:.0f} x real time"
    shown = str(folders[0])
    if len(folders) > 1:
        shown = f"{folders[0].parent}/{{{','.join(folder.name for folder in folders)}}}"
    print(
        f"{work.left_out}{done.written} track{'s' * (done.written != 1)} done, "
        f"{len(failed)} failed, {done.skipped} there already, in {took:.0f} s"
        f"{f' ({hours})' if done.written else ''}{_warned(work, done)}: {shown}"
        + (f" ({work.contents})" if work.contents else "")
        + (f" (reasons: {reasons})" if failed else "")
    )
    if work.shard is not None:
        print(
            "When all shards are done, the same command without inference.shard does what was "
            "missed, and joins their lists"
        )
    return {
        **done._asdict(),
        "failed": len(failed),
        "folder": str(folders[0]),
        "folders": [str(folder) for folder in folders],
    }


def _warned(work: Work, done: Done) -> str:
    if not done.warned:
        return ""
    listed = any(output.kind != "predictions" for output in work.outputs)
    where = work.named(WARNINGS) if listed else work.named("tracks.csv")
    return f"; {done.warned} with warnings" + f" ({where})" * (listed or len(work.tracks.keys) > 1)


def _remove_lists_of_shards(work: Work) -> None:
    """This run went over what the shards had left."""
    for output in work.outputs:
        for pattern in ("failed-*-of-*.csv", "tracks-*-of-*.csv", "warnings-*-of-*.csv"):
            for older in output.folder.glob(pattern):
                if older.stat().st_mtime < work.started:
                    older.unlink(missing_ok=True)


def _show_predictions(output: Output, work: Work, failed: dict[str, str]) -> None:
    """A table over the folder; of one song, what was found in it."""
    keys = work.tracks.keys
    if len(keys) == 1:
        if keys[0] not in failed and output.path(keys[0]).is_file():
            print(table(read_predictions(output.path(keys[0])), get_terminal_size().columns))
        return
    path = output.folder / work.named("tracks.csv")
    part = (keys[i] for i in own_share(len(keys), work.shard))
    rows, _ = write_table(path, output.folder, (key for key in part if key not in failed))
    if rows:
        print(f"all in one table, a row each: {path}")
