"""The work of an extraction: model, tracks, outputs, and folders of results."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from maest.config import Settings, plain
from maest.config.schema import tagged
from maest.datasets.audio_folder import parse_shard, summarize_skipped
from maest.datasets.embeddings import block_name
from maest.datasets.groundtruth import GroundTruth, read_any_groundtruth
from maest.datasets.mel_store import kept_seconds
from maest.datasets.tracks import AudioTracks, MelTracks, find_tracks, rank_share
from maest.experiments.data import check_files, limited
from maest.experiments.devices import find_devices
from maest.experiments.model import (
    build_network,
    check_head,
    clip_frames,
    find_checkpoint,
    require_checkpoint,
)
from maest.experiments.ranks import Ranks
from maest.helpers.audio.patches import seconds
from maest.helpers.blocks import chosen_blocks
from maest.helpers.differences import differences
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import remove_leftovers, write_failures
from maest.helpers.results.manifest import model_hash, open_folder
from maest.helpers.results.outputs import SUFFIXES, Output, is_done
from maest.helpers.results.predictions import Thresholds
from maest.models import Maest
from maest.models.archs import clip_seconds, current_name
from maest.models.extraction import OutputSpec, patch_plan

log = logging.getLogger(__name__)

_VERSION = 1  # of the meaning of results: raise it to compute them again
_NUMBERING = "blocks count from 0; -1 is after the final norm"


class ExtractionJob:
    """This process's work: compute ``spec`` of its numbers ``own`` of all ``tracks``.

    ``failed`` holds unreadable folders with reasons, ``left_out`` a sentence on files that are no
    audio. InputError: settings conflict; nothing is written then.
    """

    def __init__(self, settings: Settings, kinds: tuple[str, ...]) -> None:
        inference, self.settings, self.started = settings.inference, settings, time.time()
        torch.manual_seed(settings.seed)
        self.devices = find_devices(settings.trainer)
        _check_options(settings, kinds, self.devices.device)
        shard = inference.shard
        self.shard = None if shard is None else parse_shard(shard, "inference.shard")
        self.ranks = Ranks(self.devices.local, settings.trainer.num_nodes)
        groundtruth = None
        if inference.audio is None:
            check_files(settings, "predict")
            groundtruth = read_any_groundtruth(str(settings.datamodule.groundtruth_predict))
        self._find_model(kinds, groundtruth)
        patch_frames = clip_frames(settings, self.checkpoint)
        cutting = inference.patch_hop, inference.tail, inference.max_windows
        self.plan = patch_plan(self.net, seconds(patch_frames), *cutting)
        blocks: tuple[int, ...] = ()
        if "embeddings" in kinds:
            name = "inference.transformer_block"
            blocks = chosen_blocks(inference.transformer_block, self.net.depth, name)
        logits, predictions = "logits" in kinds, "predictions" in kinds
        self.thresholds = _thresholds(settings, self.net) if predictions else None
        self.spec = OutputSpec(blocks, logits, predictions, inference.pool, inference.plot)
        level = out_dir_of(settings) / f"{clip_seconds(patch_frames):g}sec"
        self.outputs = [Output("embeddings", b, level / block_name(b)) for b in blocks]
        self.outputs += [Output(k, None, level / k) for k in kinds if k != "embeddings"]
        self._find_tracks(groundtruth)
        self.own = rank_share(len(self.tracks.keys), self.shard, self.ranks.rank, self.ranks.world)

    def _find_model(self, kinds: tuple[str, ...], groundtruth: GroundTruth | None) -> None:
        settings, other = self.settings, kinds != ("embeddings",)
        required = other or settings.maest.arch is None
        self.checkpoint = (require_checkpoint if required else find_checkpoint)(settings)
        self.net = build_network(settings, self.checkpoint, groundtruth)
        if self.checkpoint is None:
            log.warning("no maest.checkpoint was given: these are embeddings of RANDOM weights")
        elif other:
            check_head(self.checkpoint, self.net)

    def _find_tracks(self, groundtruth: GroundTruth | None) -> None:
        settings = self.settings
        self.failed: dict[str, str] = {}
        self.left_out = ""
        self.tracks: AudioTracks | MelTracks
        if groundtruth is not None:
            self.tracks = MelTracks(settings.datamodule.base_dir, groundtruth.keys)
        else:
            audio = str(settings.inference.audio)
            self.tracks, self.failed, others = find_tracks(audio, out_dir_of(settings))
            self.left_out = summarize_skipped(others)
        limit, total = settings.trainer.limit_predict_batches, len(self.tracks.keys)
        if limit is not None:
            if isinstance(limit, int):
                limit *= settings.datamodule.batch_size_eval
            keys = [self.tracks.keys[i] for i in range(limited(total, limit))]
            self.tracks = type(self.tracks)(self.tracks.folder, keys)
        if isinstance(self.tracks, AudioTracks):
            self.tracks.seconds, self.tracks.plan = settings.inference.max_seconds, self.plan

    def named(self, name: str) -> str:
        """Return the name of a file over all tracks; a shard's carries its numbers."""
        stem, _, suffix = name.rpartition(".")
        return name if self.shard is None else "{}-{}-of-{}.{}".format(stem, *self.shard, suffix)

    def write_failures(self, failed: dict[str, str]) -> Path:
        """Write failures into each folder of results; return the first file."""
        name = self.named("failed.csv")
        for output in self.outputs:
            write_failures(output.folder / name, failed)
        return self.outputs[0].folder / name

    # ---- folders ---------------------------------------------------------------------------------

    def open_folders(self, expected: Mapping[str, Any]) -> list[int]:
        """Write the folders' manifests; return the numbers of the tracks to do.

        InputError: other results are already there, or these would differ from the ``expected``.
        """
        results, origin, maest = self._results(), self._origin(), self.settings.maest
        _check_expected(results, expected, maest.checkpoint or maest.arch)
        overwrite, pictures = self.settings.inference.overwrite, self.spec.pictures
        for output in self.outputs:
            about = {"kind": output.kind, **results}
            if output.kind == "predictions":
                about |= {"labels": self.net.labels, "thresholds": self.thresholds}
            if output.kind == "embeddings":
                about["block"] = output.block
            about.pop("pool" if output.kind == "predictions" else "top")

            def present(output: Output = output) -> str | None:
                return next((key for key in self.tracks.keys if is_done(key, [output])), None)

            open_folder(output.folder, about, str(self.tracks.folder), overwrite, present, origin)
            remove_leftovers(output.folder, SUFFIXES)
        files = ((i, self.tracks.keys[i], self.tracks.path(i)) for i in self.own)
        if not overwrite:
            return [i for i, key, path in files if not is_done(key, self.outputs, path, pictures)]
        for _, key, _ in files:  # so that a stopped run can go on without overwrite
            for output in self.outputs:
                with suppress(OSError, ValueError):  # what cannot be removed will be overwritten
                    if not output.path(key).is_symlink():
                        output.path(key).unlink(missing_ok=True)
        return list(self.own)

    def _results(self) -> dict[str, Any]:
        """Return all that results depend on: settings tagged "results", and values worked out."""
        settings, values = self.settings, {}
        for section in (settings.maest, settings.trainer, settings.inference):
            for name in sorted(tagged(type(section), "results")):
                values[name] = plain(getattr(section, name))
        patchout = {name: values.pop(name) for name in list(values) if "patchout" in name}
        del values["transformer_block"], values["patch_hop"]  # "block" of a folder, "hop_seconds"
        return values | {
            "model": model_hash(self.net.state_dict(), self.net.sizes()),
            "numbering": _NUMBERING,
            "max_seconds": self.tracks.seconds if isinstance(self.tracks, AudioTracks) else None,
            "patch_seconds": clip_seconds(self.plan.length),
            "hop_seconds": clip_seconds(self.plan.hop or self.plan.length),
            "patchout": {name: value for name, value in patchout.items() if value} or None,
            "precision": self.devices.precision,
            "version": _VERSION,
        }

    def _origin(self) -> dict[str, Any]:
        """Return where model and tracks came from, on which results do not depend."""
        arch, path = self.settings.maest.arch, self.settings.maest.checkpoint
        origin: dict[str, Any] = {
            "arch": None if arch is None else current_name(arch),
            "checkpoint": None if path is None else str(Path(path).expanduser().resolve()),
            # Whether the average was used, also where the setting left it open.
            "checkpoint_swa_weights": self.checkpoint is not None and self.checkpoint.average,
            "input": "audio",
        }
        if isinstance(self.tracks, MelTracks):
            origin |= {"input": "log-mel files", "max_seconds": kept_seconds(self.tracks.folder)}
        return origin


def _check_options(settings: Settings, kinds: tuple[str, ...], device: torch.device) -> None:
    inference, defaults = settings.inference, Settings().maest
    for name in ("s_patchout_t", "s_patchout_f", "u_patchout"):
        if getattr(settings.maest, name) != getattr(defaults, name):
            other = "maest.s_patchout_t_interleaved=2 leaves out every second column"
            log.warning("maest.%s acts in training alone; at inference, %s", name, other)
    kind: Kind = "conflict"
    if len(set(kinds)) < len(kinds):
        name, kind, message = "outputs", "invalid", f"{list(kinds)} names one twice"
        hint = "Give each once."
    elif inference.transformer_block == ():
        name, kind, message = "transformer_block", "empty", "no block is named"
        hint = "Leave it out, or name one."
    elif inference.plot and "predictions" not in kinds:
        name, message = "plot", "only predictions are drawn"
        hint = "Use the command predict, or add predictions to inference.outputs."
    elif inference.quantize and device.type != "cpu":
        name, kind, message = "quantize", "unsupported", f"{inference.quantize} is for a CPU"
        hint = "Set trainer.accelerator=cpu, or leave it out."
    else:
        return
    raise InputError(message, kind=kind, hint=hint, setting=f"inference.{name}")


def _thresholds(settings: Settings, net: Maest) -> Thresholds | None:
    """Return what ``inference.threshold`` stands for. InputError: a number, for a regression."""
    threshold = settings.inference.threshold
    if isinstance(threshold, float) and net.task == "regression":
        message, hint = "a regression's values have no tags", "Leave it out."
        setting = "inference.threshold"
        raise InputError(message, kind="conflict", hint=hint, setting=setting)
    return net.thresholds if threshold == "auto" else threshold


def out_dir_of(settings: Settings) -> Path:
    """Return ``inference.out_dir``, else ``embeddings/<arch>`` or ``embeddings/run-4``."""
    if settings.inference.out_dir is not None:
        return Path(settings.inference.out_dir).expanduser()
    if settings.maest.checkpoint is None:
        return Path("embeddings") / current_name(str(settings.maest.arch))
    path = Path(settings.maest.checkpoint).expanduser().resolve()
    name = path.parent.name if path.name == "model" else path.name.removesuffix(".ckpt")
    if "exp_logs" in path.parts[:-1]:
        name = f"run-{path.parts[path.parts.index('exp_logs') + 1]}"
    return Path("embeddings") / name


def _check_expected(results: dict[str, Any], expected: Mapping[str, Any], model: Any) -> None:
    # Log-mel files may hold as many seconds as audio gives; precisions differ little.
    names = results.keys() & expected.keys() - {"max_seconds", "precision"}
    old, new = ({name: one[name] for name in sorted(names)} for one in (expected, results))
    if old != new:
        message = f"the probe was trained on other embeddings: {'; '.join(differences(old, new))}"
        hint = "Give the model that the probe's embeddings were made by; or extract the training "
        hint += "tracks again, and train the probe on them."
        setting = "predict.checkpoint"
        raise InputError(message, kind="mismatch", path=model, setting=setting, hint=hint)
