"""Extraction: the commands extract_embeddings, extract_logits and predict of ``ex_maest.py``."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import pytorch_lightning as pl
import torch

from datasets.chunk_loader import ChunkLoader
from datasets.tracks import (
    AudioTracks,
    MelTracks,
    find_tracks,
    own_share,
    parse_shard,
)
from ex_common import Interrupted, is_first_process, run_dir, same_command
from ex_setup import (
    check_files,
    check_head,
    end_processes,
    find_checkpoint,
    needed_checkpoint,
    set_up_data,
    set_up_network,
    set_up_trainer,
)
from helpers.checkpoints import Stopped
from helpers.collect import Collect
from helpers.errors import InputError
from helpers.failures import write_failures
from helpers.manifest import model_hash, open_folder
from helpers.melspectrogram import NORM_MEAN, NORM_STD
from helpers.parallel import cores
from helpers.patches import TAILS
from helpers.predictions import read_predictions, table, write_table
from helpers.settings import check_choice
from helpers.tracks import FINAL, Cutting
from helpers.writer import Output, ResultWriter, is_done, remove_leftovers
from models import Maest
from models.archs import clip_seconds
from models.batching import POOLS, QUANTIZATIONS, Encoder, Wanted
from models.cpu import speed_up
from models.extraction import PATCHES_PER_CHUNK, cutting
from models.extraction_module import ExtractionModule, ThenEnd
from models.weights import Checkpoint

log = logging.getLogger(__name__)

KINDS = ("embeddings", "logits", "predictions")
_SHOWN = 10  # failures that are printed
_VERSION = 1  # of what results mean: another one is made again
# On a GPU, fewer patches than these are done before compiling has paid.
_TRACKS_THAT_PAY = 2000
_NUMBERING = "blocks count from 0; -1 is after the final norm"


@dataclass(frozen=True)
class Work:
    """What a process has to do.

    Attributes:
        tracks: all tracks that the settings name.
        own: the numbers of those that are this process's part.
        todo: the numbers of those that are not done yet.
    """

    tracks: AudioTracks | MelTracks
    own: range
    todo: list[int]


def extract(run, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Write embeddings, logits or predictions of each track; ``kind`` is the command's own."""
    started, inference = time.monotonic(), config["inference"]
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    kinds = _kinds(inference["outputs"], kind)
    shard = None if inference["shard"] is None else parse_shard(str(inference["shard"]))
    _check_options(inference, kinds)
    checkpoint, config = _find_model(config, kinds)
    from_audio = inference["audio"] is not None
    data = set_up_data(config, checkpoint, *([] if from_audio else ["predict"]))
    net = set_up_network(config, checkpoint, data, "predict")
    if checkpoint is None:
        log.warning("no maest.checkpoint was given: these are embeddings of RANDOM weights")
    elif kinds != ["embeddings"]:
        check_head(checkpoint, net)
    blocks = _blocks(inference["transformer_block"], net.depth) if "embeddings" in kinds else ()
    pool = inference["pool"]
    wanted = Wanted(
        *(blocks, "logits" in kinds, "predictions" in kinds, pool),
        inference["plot"] and "predictions" in kinds,
    )
    cut = _cutting(net, data.clip_frames, inference)

    level = Path(str(inference["out_dir"])).expanduser() / f"{clip_seconds(data.clip_frames):g}sec"
    outputs = [
        *(Output("embeddings", b, level / ("final" if b == FINAL else str(b))) for b in blocks),
        *(Output(k, None, level / k) for k in kinds if k != "embeddings"),
    ]
    failed: dict[str, str] = {}
    if from_audio:
        tracks, failed, _ = find_tracks(str(inference["audio"]), leave_out=level.parent)
    else:
        tracks = MelTracks(data.base_dir, data.groundtruth("predict").keys)
    tracks = _first_ones(tracks, config)

    trainer = set_up_trainer(config, run_dir(run), extraction=True)
    precision = str(trainer.precision)
    own = own_share(len(tracks.keys), shard, trainer.global_rank, trainer.world_size)
    _open_folders(outputs, tracks, net, config, cut, precision, own)
    todo = [
        i
        for i in own
        if inference["overwrite"]
        or not is_done(tracks.keys[i], outputs, tracks.path(i), wanted.pictures)
    ]
    work = Work(tracks, own, todo)

    on_cpu = trainer.strategy.root_device.type == "cpu"
    if inference["quantize"] and not on_cpu:
        raise InputError("inference.quantize=int8 is for a CPU: set trainer.accelerator=cpu")
    if on_cpu and precision == "32-true":
        speed_up(net)
    elif config["trainer"]["compile"] or (
        config["trainer"]["compile"] is None
        and trainer.strategy.root_device.type == "cuda"
        and len(todo) >= _TRACKS_THAT_PAY
    ):
        net.compile_blocks()
    encoder = Encoder(net, wanted, inference["quantize"] if todo else None)
    module = ExtractionModule(encoder, inference["patches_per_pass"])
    loader = ChunkLoader(
        tracks,
        todo,
        cut,
        per_chunk=PATCHES_PER_CHUNK,
        num_workers=_workers(config, on_cpu, len(todo)),
        waveforms=from_audio and not on_cpu,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )
    writer = ResultWriter(
        outputs,
        labels=net.labels,
        task=net.task,
        top=inference["top"],
        plot=wanted.pictures,
        half=precision.startswith("16"),
    )
    collect = Collect(writer, len(todo), config["trainer"]["enable_progress_bar"])
    trainer.callbacks.append(collect)
    try:
        with writer:
            if todo or trainer.world_size > 1:
                trainer.predict(module, ThenEnd(loader), return_predictions=False)
    except Stopped as stop:
        end_processes(trainer)
        message = f"{stop.signal.name}: stopped. {writer.written} tracks were done, and are kept"
        if trainer.is_global_zero:
            message += f". To go on:\n  {same_command()}"
        raise Interrupted(message, stop.signal) from None
    except Exception:
        end_processes(trainer)
        raise
    failed |= collect.failed | writer.failed
    if encoder.similarity:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in encoder.similarity.items())
        print(f"int8 against fp32, lowest cosine similarity on the first patches: {figures}")
    return _report(work, outputs, writer, collect, failed, shard, trainer, started)


# ---------------------------------------------------------------- settings


def _listed(value: Any) -> list[Any]:
    """A setting that may be one thing or a list; ``[a,b]`` is typed without quotes, too."""
    if isinstance(value, str):
        value = [part.strip(" '\"") for part in value.strip("[]() ").split(",")]
        return [int(p) if re.fullmatch(r"-?\d+", p) else p for p in value if p != ""]
    return list(value) if isinstance(value, list | tuple) else [value]


def _kinds(given: Any, own: str) -> list[str]:
    kinds = [own] if given is None else _listed(given)
    for kind in kinds:
        check_choice("inference.outputs", kind, KINDS)
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"inference.outputs is {given!r}: expected some of {', '.join(KINDS)}")
    return kinds


def _blocks(given: Any, depth: int) -> tuple[int, ...]:
    blocks = list(range(depth)) if given == "all" else _listed(given)
    for block in blocks:
        check_choice("inference.transformer_block", block, [*range(FINAL, depth), "all"])
    if not blocks or len(set(blocks)) < len(blocks) or "all" in blocks:
        raise InputError(
            f"inference.transformer_block is {given!r}: expected a block, a list of blocks, each "
            'once, such as [6,7], or "all"'
        )
    return tuple(blocks)


def _check_options(inference: dict[str, Any], kinds: list[str]) -> None:
    check_choice("inference.pool", inference["pool"], POOLS)
    check_choice("inference.tail", inference["tail"], TAILS)
    if inference["quantize"] is not None:
        check_choice("inference.quantize", inference["quantize"], QUANTIZATIONS)
    if inference["plot"] and "predictions" not in kinds:
        raise InputError(
            "inference.plot=True draws predictions: use the command predict, or add predictions "
            "to inference.outputs"
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
    try:
        hop = cutting(net, None, inference["patch_hop"], inference["tail"]).hop
    except ValueError as error:
        raise InputError(f"inference.patch_hop: {error}") from error
    return Cutting(frames, hop, inference["tail"])


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
    net: Maest,
    config: dict[str, Any],
    cut: Cutting,
    precision: str,
    own: range,
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
        "model": model_hash(net.state_dict(), net.sizes()),
        "numbering": _NUMBERING,
        "input": "audio" if isinstance(tracks, AudioTracks) else "log-mel files",
        "patch_seconds": clip_seconds(cut.longest),
        "hop_seconds": clip_seconds(hop),
        "tail": cut.tail,
        "patchout": patchout or None,
        "precision": precision,
        "quantize": inference["quantize"],
        "version": _VERSION,
    }
    for output in outputs:
        settings = {"kind": output.kind, **common}
        if output.kind == "embeddings":
            settings["block"] = output.block
        if output.kind == "predictions":
            settings |= {"labels": net.labels, "top": inference["top"]}
        else:
            settings["pool"] = inference["pool"]

        def present(output: Output = output) -> str | None:
            keys = (tracks.keys[i] for i in own)
            return next((key for key in keys if is_done(key, [output])), None)

        open_folder(
            output.folder,
            settings,
            str(tracks.folder),
            inference["overwrite"],
            output.pattern,
            present,
        )
        remove_leftovers(output.folder)


# ---------------------------------------------------------------- what has come of it


def _report(
    work: Work,
    outputs: list[Output],
    writer: ResultWriter,
    collect: Collect,
    failed: dict[str, str],
    shard: tuple[int, int] | None,
    trainer: pl.Trainer,
    started: float,
) -> dict[str, Any]:
    written, heard = writer.written, collect.seconds
    skipped = len(work.own) - len(work.todo)
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        parts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, (written, skipped, heard, failed))
        written, skipped, heard = (sum(part[i] for part in parts) for i in range(3))
        failed = {key: reason for part in parts for key, reason in part[3].items()}
        torch.distributed.destroy_process_group()
    result = {
        "written": written,
        "skipped": skipped,
        "failed": len(failed),
        "seconds_of_audio": heard,
        "folder": str(outputs[0].folder),
        "folders": [str(output.folder) for output in outputs],
    }
    if not (trainer.is_global_zero and is_first_process()):
        return result
    name = "failed.csv" if shard is None else f"failed-{shard[0]}-of-{shard[1]}.csv"
    for output in outputs:
        write_failures(output.folder / name, failed)
        if shard is None:
            for older in output.folder.glob("failed-*-of-*.csv"):
                older.unlink(missing_ok=True)
    for output in outputs:
        if output.kind == "predictions":
            _show_predictions(output, work, shard)
    for key, reason in sorted(failed.items())[:_SHOWN]:
        log.error("%s: %s", key, reason)
    took = time.monotonic() - started
    speed = f" ({heard / 3600:.2f} h of audio, {heard / took:.0f} x real time)" if heard else ""
    folders = str(outputs[0].folder)
    if len(outputs) > 1:
        levels = ",".join(output.folder.name for output in outputs)
        folders = f"{outputs[0].folder.parent}/{{{levels}}}"
    print(
        f"{written} tracks done, {len(failed)} failed, {skipped} there already, in "
        f"{took:.0f} s{speed}: {folders}"
        + (f" (reasons: {outputs[0].folder / name})" if failed else "")
    )
    return result


def _show_predictions(output: Output, work: Work, shard: tuple[int, int] | None) -> None:
    """A table over the folder, and of one song what was found in it."""
    own = work.own if shard is not None else range(len(work.tracks.keys))
    keys = work.tracks.keys
    if len(keys) == 1:
        if output.path(keys[0]).is_file():
            print(table(read_predictions(output.path(keys[0])), get_terminal_size().columns))
        return
    name = "tracks.csv" if shard is None else f"tracks-{shard[0]}-of-{shard[1]}.csv"
    rows, _ = write_table(output.folder / name, output.folder, (keys[i] for i in own))
    if rows:
        print(f"{rows} tracks in one table: {output.folder / name}")
