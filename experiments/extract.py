"""Extraction: the commands extract_embeddings, extract_logits and predict of ``ex_maest.py``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import maest.config as settings
from maest.datasets.chunk_loader import ChunkLoader
from maest.datasets.collection import describe_left_out
from maest.datasets.preprocess import kept_seconds
from maest.datasets.tracks import (
    AudioTracks,
    MelTracks,
    find_tracks,
    own_share,
    parse_shard,
)
from maest.experiments.extract_report import Done, Work, report
from maest.experiments.runs import Interrupted, is_first_process, run_dir, same_command
from maest.experiments.setup import (
    check_files,
    check_head,
    end_processes,
    find_checkpoint,
    needed_checkpoint,
    set_up_data,
    set_up_network,
    set_up_trainer,
)
from maest.helpers.checkpoints import Stopped
from maest.helpers.chunks import FINAL, Cutting, chosen_blocks
from maest.helpers.collect import Collect, stoppable
from maest.helpers.errors import InputError
from maest.helpers.files import write_error
from maest.helpers.manifest import model_hash, open_folder
from maest.helpers.melspectrogram import NORM_MEAN, NORM_STD
from maest.helpers.parallel import cores
from maest.helpers.patches import TAILS, seconds
from maest.helpers.settings import check_choice, listed
from maest.helpers.writer import KINDS, WARNINGS, Output, ResultWriter, is_done, remove_leftovers
from maest.models import Maest
from maest.models.archs import clip_seconds
from maest.models.batching import POOLS, QUANTIZATIONS, Encoder, Wanted
from maest.models.cpu import speed_up
from maest.models.extraction import PATCHES_PER_CHUNK, cutting
from maest.models.extraction_module import ExtractionModule, ThenEnd
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)

EMBEDDINGS = "embeddings"
_VERSION = 1  # of what results mean: another one is made again
# On a GPU, fewer patches than these are done before compiling has paid.
_TRACKS_THAT_PAY = 2000
_NUMBERING = "blocks count from 0; -1 is after the final norm"


def extract(
    run, config: dict[str, Any], kind: str, expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write embeddings, logits or predictions of each track; ``kind`` is the command's own.

    Args:
        run: Sacred's.
        config: the settings of `ex_maest.py`.
        kind: "embeddings", "logits" or "predictions".
        expected: a manifest's settings, such as a probe was trained on; if the results would have
            others, nothing is extracted.
    """
    try:
        with stoppable():
            return _extract(run, config, kind, expected or {})
    except Stopped as stop:
        # What overwrite=True replaces is gone by now, or made again.
        go_on = same_command(without=["inference.overwrite"])
        where = f" To go on:\n  {go_on}" if is_first_process() else ""
        message = f"{stop.signal.name}: stopped. The tracks that were done are kept.{where}"
        raise Interrupted(message, stop.signal) from None


def _extract(run, config: dict[str, Any], kind: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    started, inference = time.time(), config["inference"]
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    kinds = _kinds(inference["outputs"], kind)
    shard = None if inference["shard"] is None else parse_shard(str(inference["shard"]))
    _check_options(config, kinds)
    checkpoint, config = _find_model(config, kinds)
    from_audio = inference["audio"] is not None
    data = set_up_data(config, checkpoint, *([] if from_audio else ["predict"]))
    net = set_up_network(config, checkpoint, data, "predict")
    if checkpoint is None:
        log.warning("no maest.checkpoint was given: these are embeddings of RANDOM weights")
    elif kinds != ["embeddings"]:
        check_head(checkpoint, net)
    model = model_hash(net.state_dict(), net.sizes())
    blocks = _blocks(inference["transformer_block"], net.depth) if EMBEDDINGS in kinds else ()
    wanted = Wanted(
        blocks,
        logits="logits" in kinds,
        activations="predictions" in kinds,
        pool=inference["pool"],
        pictures=inference["plot"],
    )
    cut = _cutting(net, data.clip_frames, inference)
    level = Path(str(inference["out_dir"])).expanduser() / f"{clip_seconds(data.clip_frames):g}sec"
    outputs = [
        *(Output(EMBEDDINGS, b, level / ("final" if b == FINAL else str(b))) for b in blocks),
        *(Output(k, None, level / k) for k in kinds if k != EMBEDDINGS),
    ]
    failed: dict[str, str] = {}
    left_out = ""
    if from_audio:
        tracks, failed, others = find_tracks(str(inference["audio"]), leave_out=level.parent)
        left_out = describe_left_out(others)
    else:
        tracks = MelTracks(data.base_dir, data.groundtruth("predict").keys)
    tracks = _first_ones(tracks, config)
    if isinstance(tracks, AudioTracks):
        tracks.seconds = inference["max_seconds"]

    trainer = set_up_trainer(config, run_dir(run), extraction=True)
    encoder = _encoder(net, wanted, config, trainer)
    precision = str(trainer.precision)
    _open_folders(outputs, tracks, model, checkpoint, net.labels, config, cut, precision, expected)
    own = own_share(len(tracks.keys), shard, trainer.global_rank, trainer.world_size)
    if inference["overwrite"]:  # a run that is stopped can then go on without it
        _remove(tracks, own, outputs)
        todo = list(own)
    else:
        files = ((i, tracks.keys[i], tracks.path(i)) for i in own)
        todo = [i for i, key, path in files if not is_done(key, outputs, path, wanted.pictures)]
    work = Work(tracks, outputs, shard, own, todo, started, left_out, _contents(net, wanted))
    _make_fast(net, config, trainer, len(todo))
    return _run(work, failed, encoder, cut, config, trainer)


def _run(
    work: Work,
    failed: dict[str, str],
    encoder: Encoder,
    cut: Cutting,
    config: dict[str, Any],
    trainer: pl.Trainer,
) -> dict[str, Any]:
    """Read, compute and write; ``failed`` are tracks that are known to be none."""
    inference, net = config["inference"], encoder.net
    device = trainer.strategy.root_device.type
    loader = ChunkLoader(
        work.tracks,
        work.todo,
        cut,
        per_chunk=PATCHES_PER_CHUNK,
        num_workers=_workers(config, device == "cpu", len(work.todo)),
        waveforms=isinstance(work.tracks, AudioTracks) and device != "cpu",
        pin_memory=device == "cuda",
    )
    writer = ResultWriter(
        work.outputs,
        labels=net.labels,
        task=net.task,
        top=inference["top"],
        plot=inference["plot"],
        half=str(trainer.precision).startswith("16"),
        warnings=work.named(WARNINGS),
    )
    collect = Collect(writer, len(work.todo), config["trainer"]["enable_progress_bar"])
    trainer.callbacks.append(collect)
    module = ExtractionModule(encoder, inference["patches_per_pass"])
    try:
        with writer:
            if work.todo or trainer.world_size > 1:
                trainer.predict(module, ThenEnd(loader), return_predictions=False)
    except BaseException:
        end_processes(trainer)
        if trainer.is_global_zero:
            with suppress(OSError):  # on a full disk, the first error is the one to tell
                work.write_failures(failed | collect.failed | writer.failed)
        raise
    if procs := getattr(trainer.strategy.launcher, "procs", None):
        procs.clear()  # Lightning would kill this process for another's exit code
    own_failures = collect.failed | writer.failed
    lost = len(work.todo) - writer.written - len(own_failures)
    if lost:
        raise RuntimeError(f"internal error: {lost} of {len(work.todo)} tracks unaccounted for")
    before = len(work.own) - len(work.todo)
    done = Done(writer.written, before, collect.seconds, writer.warned)
    try:
        return report(work, done, failed | own_failures, trainer, collect.group)
    except OSError as error:  # of the lists and tables: all results are written
        place = error.filename or work.outputs[0].folder
        raise write_error(place, error, "inference.out_dir") from error


# ---------------------------------------------------------------- settings


def _kinds(given: Any, own: str) -> list[str]:
    kinds = [own] if given is None else listed(given)
    for kind in kinds:
        check_choice("inference.outputs", kind, KINDS)
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(
            f"{given!r} names nothing, or something twice",
            hint=f"Give some of {', '.join(KINDS)}.",
            setting="inference.outputs",
        )
    return kinds


def _blocks(given: Any, depth: int) -> tuple[int, ...]:
    blocks = chosen_blocks(given, depth, "inference.transformer_block")
    if not blocks:
        raise InputError(
            "no block is named",
            kind="empty",
            hint="Leave it out, or name a block.",
            setting="inference.transformer_block",
        )
    return blocks


def _check_options(config: dict[str, Any], kinds: list[str]) -> None:
    inference = config["inference"]
    for name in ("s_patchout_t", "s_patchout_f", "u_patchout"):
        if config["maest"][name] != settings.MAEST["maest"][name]:
            log.warning(
                "maest.%s acts in training alone; at inference, maest.s_patchout_t_interleaved=2 "
                "leaves out every second column",
                name,
            )
    check_choice("inference.pool", inference["pool"], POOLS)
    check_choice("inference.tail", inference["tail"], TAILS)
    if inference["quantize"] is not None:
        check_choice("inference.quantize", inference["quantize"], QUANTIZATIONS)
    if inference["plot"] and "predictions" not in kinds:
        raise InputError(
            "only predictions are drawn",
            kind="conflict",
            hint="Use the command predict, or add predictions to inference.outputs.",
            setting="inference.plot",
        )


def _find_model(
    config: dict[str, Any], kinds: list[str]
) -> tuple[Checkpoint | None, dict[str, Any]]:
    """The weights, and the settings with what nobody else can say of a fresh network."""
    if config["inference"]["audio"] is None:
        check_files(config, "predict")
    checkpoint = find_checkpoint(config)
    if kinds != ["embeddings"] or config["maest"]["arch"] is None:
        checkpoint = needed_checkpoint(config)
    if config["inference"]["audio"] is not None:
        known = checkpoint.sizes if checkpoint else {}
        open_ones = {"n_classes": 1, "norm_mean": NORM_MEAN, "norm_std": NORM_STD}
        maest = dict(config["maest"])
        maest |= {n: v for n, v in open_ones.items() if maest[n] is None and n not in known}
        config = config | {"maest": maest}
    return checkpoint, config


def _cutting(net: Maest, frames: int, inference: dict[str, Any]) -> Cutting:
    """How tracks are cut; that a patch fits into the network is seen to by now."""
    return cutting(net, seconds(frames), inference["patch_hop"], inference["tail"])


def _contents(net: Maest, wanted: Wanted) -> str:
    """What embeddings hold, in words."""
    each = " for each patch" if wanted.pool == "none" else ""
    blocks = [str(block) for block in wanted.blocks if block != FINAL]
    parts = []
    if blocks:
        which = f"block{'s' * (len(blocks) > 1)} {', '.join(blocks)} of 0-{net.depth - 1}"
        parts.append(f"{which}, 3 tokens x {net.embed_dim}{each}")
    if FINAL in wanted.blocks:
        parts.append(f"after the final norm, {net.embed_dim} numbers{each}")
    return "; ".join(parts)


def _first_ones(tracks: AudioTracks | MelTracks, config: dict[str, Any]):
    """As many tracks as trainer.limit_predict_batches asks for: batches of batch_size_eval."""
    limit = config["trainer"]["limit_predict_batches"]
    if limit is None:
        return tracks
    count = len(tracks.keys) * limit
    if isinstance(limit, int):
        count = limit * config["datamodule"]["batch_size_eval"]
    first = range(min(int(count), len(tracks.keys)))
    return type(tracks)(tracks.folder, [tracks.keys[i] for i in first])


def _encoder(net: Maest, wanted: Wanted, config: dict[str, Any], trainer: pl.Trainer) -> Encoder:
    quantize, threads = config["inference"]["quantize"], None
    if trainer.strategy.root_device.type == "cpu":  # its processes share the cores
        threads = max(1, cores() // max(1, trainer.num_devices))
    elif quantize:
        raise InputError(
            f"{quantize} is for a CPU",
            kind="unsupported",
            hint="Set trainer.accelerator=cpu, or leave it out.",
            setting="inference.quantize",
        )
    return Encoder(net, wanted, quantize, threads)


def _make_fast(net: Maest, config: dict[str, Any], trainer: pl.Trainer, tracks: int) -> None:
    """Compile the blocks where that is asked for or pays; on a CPU, use its fastest products."""
    device, compiled = trainer.strategy.root_device.type, config["trainer"]["compile"]
    if compiled is None:
        compiled = device == "cuda" and tracks >= _TRACKS_THAT_PAY
    if compiled:
        net.compile_blocks()
    elif device == "cpu" and str(trainer.precision) == "32-true":
        speed_up(net)


def _workers(config: dict[str, Any], on_cpu: bool, tracks: int) -> int:
    """Reading processes: on a CPU one, as it needs few of the cores' cycles beside the network."""
    wanted = config["datamodule"]["num_workers"]
    if wanted is None:
        wanted = 1 if on_cpu else max(1, min(cores() // max(1, torch.cuda.device_count()), 12))
    return min(wanted, tracks)


# ---------------------------------------------------------------- what is there already


def _open_folders(
    outputs: list[Output],
    tracks: AudioTracks | MelTracks,
    model: str,
    checkpoint: Checkpoint | None,
    labels: list[str] | None,
    config: dict[str, Any],
    cut: Cutting,
    precision: str,
    expected: Mapping[str, Any],
) -> None:
    """Check what the folders hold, or enter with what they are going to be filled."""
    inference, maest = config["inference"], config["maest"]
    hop = cut.longest if cut.hop is None else cut.hop
    patchout = {
        name: maest[name]
        for axis in "tf"
        for name in (f"s_patchout_{axis}_indices", f"s_patchout_{axis}_interleaved")
        if maest[name]
    }
    common = {
        "model": model,
        "numbering": _NUMBERING,
        "input": "audio" if isinstance(tracks, AudioTracks) else "log-mel files",
        "max_seconds": tracks.seconds if isinstance(tracks, AudioTracks) else None,
        "patch_seconds": clip_seconds(cut.longest),
        "hop_seconds": clip_seconds(hop),
        "tail": cut.tail,
        "patchout": patchout or None,
        "precision": precision,
        "quantize": inference["quantize"],
        "version": _VERSION,
    }
    _check_expected(common, expected, maest)
    path = maest["checkpoint"]
    made_by = {
        "arch": maest["arch"],
        "checkpoint": None if path is None else str(Path(str(path)).resolve()),
        # Whether the average was used, whatever the setting left open.
        "checkpoint_swa_weights": checkpoint is not None and checkpoint.average,
    }
    if isinstance(tracks, MelTracks):
        made_by["max_seconds"] = kept_seconds(tracks.folder)
    for output in outputs:
        settings = {"kind": output.kind, **common}
        if output.kind == "embeddings":
            settings["block"] = output.block
        if output.kind == "predictions":
            settings |= {"labels": labels, "top": inference["top"]}
        else:
            settings["pool"] = inference["pool"]

        def present(output: Output = output) -> str | None:
            return next((key for key in tracks.keys if is_done(key, [output])), None)

        open_folder(
            output.folder,
            settings,
            str(tracks.folder),
            inference["overwrite"],
            output.pattern,
            present,
            made_by,
        )
        remove_leftovers(output.folder)


def _check_expected(
    settings: Mapping[str, Any], expected: Mapping[str, Any], maest: Mapping[str, Any]
) -> None:
    """Raise InputError where results would not be what is expected.

    Audio gives what its log-mel file gives, of as many seconds; precisions nearly the same.
    """
    for name in settings.keys() - {"input", "max_seconds", "precision"}:
        if expected.get(name, settings[name]) != settings[name]:
            values = [str(one[name])[:12] for one in (settings, expected)]
            raise InputError(
                f"embeddings with {name} {values[0]}; the probe was trained on those with "
                f"{values[1]}",
                kind="mismatch",
                path=maest["checkpoint"] or maest["arch"],
                setting="predict.checkpoint" if name == "model" else None,
                hint="Give the model that the probe's embeddings were made by."
                if name == "model"
                else "Extract the training tracks again, and train the probe on them.",
            )


def _remove(tracks: AudioTracks | MelTracks, own: range, outputs: list[Output]) -> None:
    """Remove the results of these tracks; links and what cannot be removed will be overwritten."""
    for i in own:
        for output in outputs:
            with suppress(OSError, ValueError):
                path = output.path(tracks.keys[i])
                if not path.is_symlink():
                    path.unlink(missing_ok=True)
