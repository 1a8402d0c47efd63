"""Extraction: the commands extract_embeddings, extract_logits and predict of ``ex_maest.py``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from maest.config import Settings
from maest.datasets.collection import describe_left_out
from maest.datasets.embedding_folders import block_name
from maest.datasets.groundtruth import GroundTruth, read_any_groundtruth
from maest.datasets.tracks import (
    AudioTracks,
    MelTracks,
    find_tracks,
    own_share,
    parse_shard,
    read_tracks,
)
from maest.experiments.data import check_files
from maest.experiments.devices import find_devices
from maest.experiments.extract_folders import (
    check_expected,
    manifest_settings,
    open_folders,
    origin,
    out_dir_of,
    remove_results,
)
from maest.experiments.extract_report import ExtractionJob, Progress, Summary, report
from maest.experiments.model import (
    build_network,
    check_head,
    clip_frames,
    find_checkpoint,
    in_section,
    require_checkpoint,
)
from maest.experiments.ranks import Ranks, find_ranks
from maest.experiments.runs import interruptible, is_first_process, same_command
from maest.helpers.blocks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.files import write_error
from maest.helpers.manifest import model_hash
from maest.helpers.parallel import cores
from maest.helpers.patches import seconds
from maest.helpers.writer import WARNINGS, Output, ResultWriter, is_done
from maest.models import Maest
from maest.models.archs import clip_seconds
from maest.models.batching import Extraction, Failure, OutputSpec, create_engine
from maest.models.extraction import patch_plan
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)

_TRACKS_TO_COMPILE = 2000  # on a GPU: fewer are done before compiling has paid


def extract_embeddings(run: Any, settings: Settings) -> dict[str, Any]:
    """Write embeddings."""
    return extract(settings, "embeddings")


def extract_logits(run: Any, settings: Settings) -> dict[str, Any]:
    """Write logits."""
    return extract(settings, "logits")


def predict(run: Any, settings: Settings) -> dict[str, Any]:
    """Write predictions."""
    return extract(settings, "predictions")


def extract(
    settings: Settings, kind: str, expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write embeddings, logits or predictions of each track; ``kind`` is the command's own.

    ``expected`` are a manifest's settings, such as a probe was trained on; if the results would
    have others, nothing is extracted.
    """
    with interruptible(_state):
        return _extract(settings, settings.inference.outputs or (kind,), expected or {})


def _state() -> str:
    # What overwrite=True replaces is gone by now, or made again.
    go_on = f" To go on:\n  {same_command(without=['inference.overwrite'])}"
    return f"The tracks that were done are kept.{go_on if is_first_process() else ''}"


def _extract(
    settings: Settings, kinds: tuple[str, ...], expected: Mapping[str, Any]
) -> dict[str, Any]:
    started, inference = time.time(), settings.inference
    torch.manual_seed(settings.seed)
    shard = None if inference.shard is None else parse_shard(inference.shard)
    _check_options(settings, kinds)
    nodes = settings.trainer.num_nodes
    ranks = find_ranks(find_devices(settings.trainer).local, nodes)
    checkpoint, net, groundtruth = _find_model(settings, kinds)
    model = model_hash(net.state_dict(), net.sizes())
    blocks = inference.transformer_block
    spec = OutputSpec(
        chosen_blocks(blocks, net.depth, "inference.transformer_block")
        if "embeddings" in kinds
        else (),
        logits="logits" in kinds,
        activations="predictions" in kinds,
        pool=inference.pool,
        pictures=inference.plot,
    )
    frames = clip_frames(settings, checkpoint)
    plan = patch_plan(net, seconds(frames), inference.patch_hop, inference.tail)
    out_dir = out_dir_of(settings)
    level = out_dir / f"{clip_seconds(frames):g}sec"
    outputs = [Output("embeddings", b, level / block_name(b)) for b in spec.blocks]
    outputs += [Output(kind, None, level / kind) for kind in kinds if kind != "embeddings"]
    tracks, failed, left_out = _find_tracks(settings, groundtruth, out_dir)

    device, precision = _device(settings, ranks)
    known = manifest_settings(settings, tracks, plan, model, precision)
    check_expected(known, expected, settings)
    made_by = origin(settings, tracks, checkpoint)
    open_folders(outputs, tracks, known, made_by, net.labels, settings)
    own = own_share(len(tracks.keys), shard, ranks.rank, ranks.world)
    if inference.overwrite:  # a run that is stopped can then go on without it
        remove_results(tracks, own, outputs)
        todo = list(own)
    else:
        files = ((i, tracks.keys[i], tracks.path(i)) for i in own)
        todo = [i for i, key, path in files if not is_done(key, outputs, path, spec.pictures)]
    job = ExtractionJob(
        *(settings, net, plan, spec, device, precision, ranks),
        *(tracks, outputs, shard, own, todo, started, left_out),
    )
    ranks.start_others()
    try:
        part = _run(job, failed)
        parts = ranks.join(outputs[0].folder, vars(part))
        try:
            return report(job, [Summary(**one) for one in parts])
        except OSError as error:  # of the lists and tables: all results are written
            place = error.filename or outputs[0].folder
            raise write_error(place, error, "inference.out_dir") from error
    except BaseException as error:
        ranks.give_up(outputs[0].folder, error)
        raise


def _run(job: ExtractionJob, failed: dict[str, str]) -> Summary:
    """Read, compute and write; ``failed`` are tracks that are known to be none."""
    progress = Progress(job)
    writer = ResultWriter(
        job.outputs,
        labels=job.net.labels,
        task=job.net.task,
        top=job.settings.inference.top,
        plot=job.spec.pictures,
        half=job.precision.startswith("16"),
        warnings=job.named(WARNINGS),
    )
    own: dict[str, str] = {}
    try:
        with writer, closing(progress):
            if job.todo:
                extraction = _extraction(job)
                extraction.on_pass = progress.heard
                with closing(read_tracks(job.tracks, job.todo, _workers(job))) as tracks:
                    for result in extraction.results(tracks):
                        if isinstance(result, Failure):
                            own[result.key] = result.reason
                        else:
                            writer.put(result)
                        progress.done(result, extraction.engine)
    except BaseException:
        if not job.ranks.rank:
            with suppress(OSError):  # on a full disk, the first error is the one to tell
                job.write_failures(failed | own | writer.failed)
        raise
    own |= writer.failed
    lost = len(job.todo) - writer.written - len(own)
    if lost:
        raise RuntimeError(f"internal error: {lost} of {len(job.todo)} tracks unaccounted for")
    skipped = len(job.own) - len(job.todo)
    return Summary(writer.written, skipped, progress.seconds, writer.warned, failed | own)


# ---------------------------------------------------------------- model, tracks, engine


def _check_options(settings: Settings, kinds: tuple[str, ...]) -> None:
    inference, defaults = settings.inference, Settings().maest
    for name in ("s_patchout_t", "s_patchout_f", "u_patchout"):
        if getattr(settings.maest, name) != getattr(defaults, name):
            log.warning(
                "maest.%s acts in training alone; at inference, maest.s_patchout_t_interleaved=2 "
                "leaves out every second column",
                name,
            )
    if len(set(kinds)) < len(kinds):
        raise InputError(
            f"{list(kinds)} names something twice",
            hint="Give each once.",
            setting="inference.outputs",
        )
    if inference.transformer_block == ():
        raise InputError(
            "no block is named",
            kind="empty",
            hint="Leave it out, or name a block.",
            setting="inference.transformer_block",
        )
    if inference.plot and "predictions" not in kinds:
        raise InputError(
            "only predictions are drawn",
            kind="conflict",
            hint="Use the command predict, or add predictions to inference.outputs.",
            setting="inference.plot",
        )
    if inference.quantize and find_devices(settings.trainer).device.type != "cpu":
        raise InputError(
            f"{inference.quantize} is for a CPU",
            kind="unsupported",
            hint="Set trainer.accelerator=cpu, or leave it out.",
            setting="inference.quantize",
        )


def _find_model(
    settings: Settings, kinds: tuple[str, ...]
) -> tuple[Checkpoint | None, Maest, GroundTruth | None]:
    """Weights and network; and the ground truth, unless tracks are audio."""
    groundtruth = None
    if settings.inference.audio is None:
        check_files(settings, "predict")
        groundtruth = read_any_groundtruth(str(settings.datamodule.groundtruth_predict))
    needs_weights = kinds != ("embeddings",) or settings.maest.arch is None
    checkpoint = (require_checkpoint if needs_weights else find_checkpoint)(settings)
    net = build_network(settings, checkpoint, groundtruth)
    if checkpoint is None:
        log.warning("no maest.checkpoint was given: these are embeddings of RANDOM weights")
    elif kinds != ("embeddings",):
        check_head(checkpoint, net)
    return checkpoint, net, groundtruth


def _find_tracks(
    settings: Settings, groundtruth: GroundTruth | None, out_dir: Path
) -> tuple[AudioTracks | MelTracks, dict[str, str], str]:
    """The tracks; those that are known to fail, with reasons; and in words what is left out."""
    failed: dict[str, str] = {}
    left_out = ""
    tracks: AudioTracks | MelTracks
    if groundtruth is not None:
        tracks = MelTracks(settings.datamodule.base_dir, groundtruth.keys)
    else:
        tracks, failed, others = find_tracks(str(settings.inference.audio), leave_out=out_dir)
        left_out = describe_left_out(others)
    limit = settings.trainer.limit_predict_batches
    if limit is not None:
        count = len(tracks.keys) * limit
        if isinstance(limit, int):
            count = limit * settings.datamodule.batch_size_eval
        first = range(min(int(count), len(tracks.keys)))
        tracks = type(tracks)(tracks.folder, [tracks.keys[i] for i in first])
    if isinstance(tracks, AudioTracks):
        tracks.seconds = settings.inference.max_seconds
    return tracks, failed, left_out


def _device(settings: Settings, ranks: Ranks) -> tuple[torch.device, str]:
    """What this process computes on, and in which precision; processes share a CPU's cores."""
    devices = find_devices(settings.trainer)
    device = devices.device
    if device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    elif ranks.here > 1:
        torch.set_num_threads(max(1, cores() // ranks.here))
    return device, devices.precision


def _extraction(job: ExtractionJob) -> Extraction:
    inference, net, plan = job.settings.inference, job.net, job.plan
    compiled = job.settings.trainer.compile
    if compiled is None:
        compiled = job.device.type == "cuda" and len(job.todo) >= _TRACKS_TO_COMPILE
    with in_section("inference"):
        engine = create_engine(
            net,
            job.spec,
            device=job.device,
            precision=job.precision,
            engine=inference.engine,
            quantize=inference.quantize,
            compile=compiled,
        )
    log.info(
        "%d of %d tracks to do, %d blocks of %d channels by %s on %s, patches of %g s every %g s",
        *(len(job.todo), len(job.own), net.depth, net.embed_dim, engine.name, job.device),
        *(clip_seconds(plan.length), clip_seconds(plan.hop or plan.length)),
    )
    return Extraction(net, engine, plan, job.spec, inference.patches_per_pass)


def _workers(job: ExtractionJob) -> int:
    """Reading processes: on a CPU one, as it needs few of the cores' cycles beside the network."""
    wanted = job.settings.datamodule.num_workers
    workers = find_devices(job.settings.trainer).workers(wanted, fewest=1)
    return min(workers, len(job.todo))
