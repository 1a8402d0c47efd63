"""The commands extract_embeddings, extract_logits and predict of ``ex_maest.py``.

A track that cannot be read, computed or written is listed in ``failed.csv`` with the reason, and
the exit code is 1. A track whose worker is killed or hangs is retried once, alone.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from shutil import get_terminal_size
from typing import Any

import torch
from tqdm import tqdm

from maest.config import Settings
from maest.datasets.tracks import rank_share, read_tracks
from maest.experiments.extract_job import ExtractionJob
from maest.experiments.model import in_section
from maest.experiments.runs import interruptible, is_first_process, same_command
from maest.helpers.audio.patches import seconds
from maest.helpers.blocks import FINAL
from maest.helpers.files.atomic import write_error
from maest.helpers.names import printable
from maest.helpers.results import predictions
from maest.helpers.results.outputs import Output
from maest.helpers.results.terminal import table
from maest.helpers.results.tracks import Track, TrackResult
from maest.helpers.results.writer import WARNINGS, ResultWriter, tidy_warnings
from maest.helpers.work.parallel import cores
from maest.models.archs import clip_seconds
from maest.models.extraction import Extraction

log = logging.getLogger(__name__)

_TRACKS_TO_COMPILE = 2000  # on a GPU: compiling does not pay for fewer
_SHOWN = 10  # failures that are printed
_LABELS = 3  # of a track, in a line
_SECONDS = 10.0  # from one line to the next


def _command(kind: str) -> Callable[[Any, Settings], dict[str, Any]]:
    return lambda run, settings: extract(settings, kind)


extract_embeddings, extract_logits, predict = map(_command, ("embeddings", "logits", "predictions"))


def extract(
    settings: Settings, kind: str, expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``inference.outputs``, or the command's default ``kind``, of each track.

    InputError: results would differ from ``expected``, such as the manifest of a probe's
    embeddings.
    """
    with interruptible(_state):
        job = ExtractionJob(settings, settings.inference.outputs or (kind,))
        todo, folder = job.open_folders(expected or {}), job.outputs[0].folder
        job.ranks.start_others()
        try:
            parts = job.ranks.join(folder, _run(job, todo))
            try:
                return _report(job, parts) if parts else {}  # the first process speaks for all
            except OSError as error:  # of the lists and tables: all results are written
                raise write_error(error.filename or folder, error, "inference.out_dir") from error
        except BaseException as error:
            job.ranks.give_up(folder, error)
            raise


def _state() -> str:
    # What overwrite=True replaces is already removed or written again.
    go_on = f" To go on:\n  {same_command(without=['inference.overwrite'])}"
    return f"The tracks that were done are kept.{go_on if is_first_process() else ''}"


# ---- the work ------------------------------------------------------------------------------------


def _run(job: ExtractionJob, todo: list[int]) -> dict[str, Any]:
    progress, net, warnings = Progress(job, len(todo)), job.net, job.named(WARNINGS)
    top, pictures = job.settings.inference.top, job.spec.pictures
    how = net.labels, net.task, top, pictures, job.thresholds
    writer = ResultWriter(job.outputs, *how, warnings)
    failed: dict[str, str] = {}
    try:
        with writer, closing(progress):
            if todo:
                extraction = _extraction(job, len(todo))
                extraction.on_pass = progress.passed
                wanted = job.settings.datamodule.num_workers
                # One on a CPU: it takes few cycles from the network.
                workers = job.devices.workers(wanted, fewest=1, sharing=job.ranks.here)
                workers = min(workers, len(todo))
                with closing(read_tracks(job.tracks, todo, workers)) as tracks:
                    for result in extraction.results(tracks):
                        if isinstance(result, Track):
                            failed[result.key] = result.error or ""
                        else:
                            writer.put(result)
                        progress.done(result, extraction.engine.similarity)
    except BaseException:
        if not job.ranks.rank:
            with suppress(OSError):  # on a full disk, the first error counts
                job.write_failures(job.failed | failed | writer.failed)
        raise
    failed |= writer.failed
    return {
        "written": writer.written,
        "skipped": len(job.own) - len(todo),
        "seconds": progress.seconds,
        "warned": writer.warned,
        "failed": job.failed | failed,
    }


def _extraction(job: ExtractionJob, total: int) -> Extraction:
    """Return the network on this process's device; processes share a CPU's cores."""
    inference, ranks, device = job.settings.inference, job.ranks, job.devices.device
    if device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    elif ranks.here > 1:
        torch.set_num_threads(max(1, cores() // ranks.here))
    compiled = job.settings.trainer.compile
    if compiled is None:
        compiled = device.type == "cuda" and total >= _TRACKS_TO_COMPILE
    engine: dict[str, Any] = {"device": device, "precision": job.devices.precision}
    engine |= {"engine": inference.engine, "quantize": inference.quantize, "compile": compiled}
    with in_section("inference"):
        extraction = Extraction(job.net, job.plan, job.spec, inference.patches_per_pass, **engine)
    log.info(
        "%d of %d tracks to do, %d blocks of %d channels by %s on %s, patches of %g s every %g s",
        *(total, len(job.own), job.net.depth, job.net.embed_dim, extraction.engine.name, device),
        *(clip_seconds(job.plan.length), clip_seconds(job.plan.hop or job.plan.length)),
    )
    return extraction


class Progress:
    """Shows progress: a bar on a terminal; else a line per prediction, or one now and then."""

    def __init__(self, job: ExtractionJob, total: int) -> None:
        self.seconds = self._computed = 0.0  # of finished tracks; of patches
        self._net, self._predicts, self._total, self._done = job.net, job.spec.activations, total, 0
        self._thresholds = job.thresholds
        self._began = self._told = time.monotonic()
        first = job.ranks.rank == 0
        bar = first and job.settings.trainer.enable_progress_bar and sys.stderr.isatty()
        self._bar = tqdm(total=total, desc="extract", unit="track", disable=not bar)
        self._lines, self._tell_similarity = first and not bar, first

    def passed(self, frames: int) -> None:
        """Count computed frames, so that a long track also shows progress."""
        self._computed += seconds(frames)
        speed = self._computed / max(time.monotonic() - self._began, 1e-9)
        text = f"{self._computed / 3600:.2f} h of audio, {speed:.0f} x real time"
        self._bar.set_postfix_str(text)
        if self._lines and not self._predicts and time.monotonic() - self._told > _SECONDS:
            self._told = time.monotonic()
            print(f"{self._done} of {self._total} tracks, {text}", flush=True)

    def done(self, result: TrackResult | Track, similarity: Mapping[str, float] | None) -> None:
        """Count a track that is done or has failed; ``similarity`` is that of int8."""
        self._done += 1
        self._bar.update()
        if self._tell_similarity and similarity is not None:
            self._tell_similarity = False
            shown = ", ".join(f"{name} {value:.6f}" for name, value in similarity.items())
            tqdm.write(f"int8 against fp32, lowest cosine similarity on the first patches: {shown}")
        if isinstance(result, TrackResult):
            self.seconds += result.seconds
        if self._lines and self._predicts and self._total > 1:
            labels = "failed" if isinstance(result, Track) else self._labels(result)
            print(f"{self._done} of {self._total}  {printable(result.key)}: {labels}")

    def _labels(self, result: TrackResult) -> str:
        assert result.activations is not None
        names, how = self._net.labels, (_LABELS, self._net.task, self._thresholds)
        names = predictions.label_names(names, len(result.activations))
        chosen = predictions.best(result.activations, *how)[:_LABELS]
        pairs = ((printable(names[i]), result.activations[i]) for i in chosen)
        return ", ".join(f"{name} {value:.2f}" for name, value in pairs) or predictions.NO_TAG

    def close(self) -> None:
        self._bar.close()


# ---- what comes of it ----------------------------------------------------------------------------


def _report(job: ExtractionJob, parts: list[dict[str, Any]]) -> dict[str, Any]:
    failed = {key: why for part in parts for key, why in part["failed"].items()}
    counts = ("written", "skipped", "seconds", "warned")
    done = {name: sum(part[name] for part in parts) for name in counts}
    reasons = job.write_failures(failed)
    for output in job.outputs:
        if output.kind == "predictions":
            _show_predictions(output, job, failed)
        else:
            others = [] if job.shard else sorted(output.folder.glob("warnings-*-of-*.csv"))
            tidy_warnings(output.folder / job.named(WARNINGS), others)
        for name in ("failed", "tracks", "warnings"):
            for older in output.folder.glob(f"{name}-*-of-*.csv"):
                # Without a shard, this run has done what the shards left.
                if job.shard is None and older.stat().st_mtime < job.started:
                    older.unlink(missing_ok=True)
    for key, reason in sorted(failed.items())[:_SHOWN]:
        log.error("%s: %s", key, reason)

    took, folders = time.time() - job.started, [output.folder for output in job.outputs]
    line = f"{job.left_out}{done['written']} track{'s' * (done['written'] != 1)} done, "
    line += f"{len(failed)} failed, {done['skipped']} there already, in {took:.0f} s"
    if done["written"]:
        hours, speed = done["seconds"] / 3600, done["seconds"] / took
        line += f" ({hours:.2f} h of audio, {speed:.0f} x real time)"
    if done["warned"]:
        listed = any(output.kind != "predictions" for output in job.outputs)
        where = f" ({job.named(WARNINGS if listed else 'tracks.csv')})"
        line += f"; {done['warned']} with warnings" + where * (listed or len(job.tracks.keys) > 1)
    shown = f"{{{','.join(folder.name for folder in folders)}}}"
    line += f": {folders[0] if len(folders) == 1 else folders[0].parent / shown}"
    print(line + _contents(job) + (f" (reasons: {reasons})" if failed else ""))
    if job.shard is not None:
        print(
            "When all shards are done, the same command without inference.shard does what was "
            "missed, and joins their lists"
        )
    names = {"folder": str(folders[0]), "folders": [str(folder) for folder in folders]}
    return {**done, "failed": len(failed), **names}


def _contents(job: ExtractionJob) -> str:
    each, dim = " for each patch" if job.spec.pool == "none" else "", job.net.embed_dim
    blocks = [str(block) for block in job.spec.blocks if block != FINAL]
    parts = []
    if blocks:
        which = f"block{'s' * (len(blocks) > 1)} {', '.join(blocks)} of 0-{job.net.depth - 1}"
        parts.append(f"{which}, 3 tokens x {dim}{each}")
    if FINAL in job.spec.blocks:
        parts.append(f"after the final norm, {dim} numbers{each}")
    return f" ({'; '.join(parts)})" if parts else ""


def _show_predictions(output: Output, job: ExtractionJob, failed: dict[str, str]) -> None:
    keys = job.tracks.keys
    if len(keys) == 1:
        if keys[0] not in failed and output.path(keys[0]).is_file():
            found = predictions.read_predictions(output.path(keys[0]))
            print(table(found, get_terminal_size().columns))
        return
    path = output.folder / job.named("tracks.csv")
    part = (keys[i] for i in rank_share(len(keys), job.shard))
    most = None if job.thresholds is None else min(job.settings.inference.top, job.net.n_classes)
    done = (key for key in part if key not in failed)
    if predictions.write_table(path, output.folder, done, most):
        print(f"all in one table, a row each: {path}")
