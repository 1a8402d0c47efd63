"""The command ``predict`` of ``ex_tl.py``: a finished probe on new music."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from maest.config import ProbeSettings, Settings, parse
from maest.datasets.embeddings import EmbeddingFolder, block_name, read_blocks, select_tokens
from maest.datasets.preprocess import DEFAULT_SECONDS
from maest.datasets.tracks import find_tracks
from maest.experiments.extract import extract
from maest.experiments.probe_report import PROBE_FOLDER, no_probe
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError
from maest.helpers.failures import encodable, read_failures, valid_utf8
from maest.helpers.files import write_json, write_rows
from maest.helpers.predictions import SEPARATOR, best, figure_name
from maest.helpers.writer import WARNINGS, Output, is_done
from maest.models.probe import ProbeBank, layer_normalized

log = logging.getLogger(__name__)

_SHOWN = 10  # tracks that are printed
_DIGITS = 6
# Settings of an extraction, as they are called here
_SETTINGS = {
    "inference.audio": "audio",
    "inference.out_dir": "predict.out_dir",
    "maest.arch": "predict.arch",
    "maest.checkpoint": "predict.checkpoint",
}


@dataclass(frozen=True)
class TrainedProbe:
    """A finished run's probes of all seeds, and what its ``probe.json`` says of them."""

    folder: Path
    about: dict[str, Any]
    bank: ProbeBank


def predict(run: Any, settings: ProbeSettings) -> dict[str, Any]:
    """Apply a finished probe, and the extractor it was trained on, to new music."""
    folder = run_dir(run)
    if settings.probe_dir is None or settings.audio is None:
        missing = "probe" if settings.probe_dir is None else "audio"
        hint = "Give both, such as probe=exp_logs/4 audio=my/music."
        raise InputError("is not set", kind="missing", setting=missing, hint=hint)
    probe = read_probe(Path(settings.probe_dir))
    for warning in probe.about.get("warnings", ()):
        log.warning("%s: %s", probe.folder, warning)
    out_dir = Path(settings.predict.out_dir or folder / "embeddings").expanduser()
    request, made = extraction_settings(probe, settings, out_dir), probe.about["extraction"]
    try:
        extracted = extract(request, "embeddings", expected=made)
    except InputError as error:
        error.setting = _SETTINGS.get(error.setting or "", error.setting)
        if Path(error.path or "").is_relative_to(out_dir):
            error.setting = "predict.out_dir"
            error.hint = "Give another one, or leave it out: they then go into the run's folder."
        raise
    mix, level = isinstance(made["block"], list), out_dir / f"{made['patch_seconds']:g}sec"
    blocks = made["block"] if mix else [made["block"]]
    outputs = [Output("embeddings", block, level / block_name(block)) for block in blocks]
    tracks, _, _ = find_tracks(settings.audio, leave_out=out_dir)
    # Extraction reports the others. A file that is older than its audio is of other audio.
    keys = [key for i, key in enumerate(tracks.keys) if is_done(key, outputs, tracks.path(i))]
    about = probe.about
    values = np.zeros((0, len(about["labels"])), np.float32)
    if keys:
        folders = [EmbeddingFolder(output.folder) for output in outputs]
        found = np.stack([read_blocks([own.path(key) for own in folders]) for key in keys])
        features = select_tokens(found, about["types"], about["reduce"])
        values = probe.bank.activations(layer_normalized(features) if mix else features)
    listed = read_failures(outputs[0].folder / WARNINGS, value="warnings")
    warnings = [listed.get(key, "") for key in keys]
    _write(folder, probe, keys, values, warnings)
    for key, own, warned in list(zip(keys, values, warnings, strict=True))[:_SHOWN]:
        chosen = best(own, settings.predict.top, about["task"])
        shown = ", ".join(f"{about['labels'][i]} {own[i]:.3f}" for i in chosen)
        print(f"{key}: {shown}{f' ({warned}: this means little)' if warned else ''}")
    print(
        f"{'… ' * (len(keys) > _SHOWN)}{len(keys)} tracks, {sum(map(bool, warnings))} with "
        f"warnings, {len(about['labels'])} labels or values: {folder / 'predictions.csv'}"
    )
    return {"folder": str(folder), "tracks": len(keys), "failed": extracted["failed"]}


def _write(
    folder: Path, probe: TrainedProbe, keys: list[str], values: np.ndarray, warnings: list[str]
) -> None:
    """Write ``predictions.csv`` and ``predictions.json``."""
    labels, figure = probe.about["labels"], figure_name(probe.about["task"])
    rows, tracks = [], []
    for key, own, warned in zip(keys, values, warnings, strict=True):
        rows.append((encodable(key), *(f"{value:.{_DIGITS}f}" for value in own), warned))
        rounded = [round(float(value), _DIGITS) for value in own]
        tracks.append(
            {
                "track": valid_utf8(key),
                figure: dict(zip(labels, rounded, strict=True)),
                "warnings": warned.split(SEPARATOR) if warned else [],
            }
        )
    write_rows(folder / "predictions.csv", ("track", *labels, "warnings"), rows)
    content = {"probe": str(probe.folder), "task": probe.about["task"], "tracks": tracks}
    write_json(folder / "predictions.json", content)


def read_probe(folder: Path) -> TrainedProbe:
    """Read the probe of a finished run, from the run's folder or from ``probe/`` in it."""
    folder = folder.expanduser()
    inside = folder / PROBE_FOLDER if (folder / PROBE_FOLDER).is_dir() else folder
    path = inside / "probe.json"
    if not path.is_file():
        raise no_probe(folder, f"{PROBE_FOLDER}/probe.json", "probe")
    try:
        about = json.loads(path.read_text("utf-8"))
        features, extraction, seeds = about["features"], about["extraction"], about["seeds"]
        block = (extraction or {}).get("block")
        bank = ProbeBank(
            about["n_features"],
            len(about["labels"]),
            seeds,
            hidden=about["hidden"],
            task=about["task"],
            n_blocks=len(block) if isinstance(block, list) else None,
        )
        states = []
        for seed in seeds:
            path = inside / f"seed-{seed}.safetensors"
            states.append(load_file(path))
        bank.load(states)
    except Exception as error:  # JSON's, safetensors', torch's
        message, hint = f"missing or damaged ({str(error)[:200]})", "Train this probe again."
        raise InputError(message, kind="corrupt", path=path, setting="probe", hint=hint) from None
    message = ""
    if features != "embeddings":
        message = f"a probe of {features}, which has no extractor"
    elif not extraction:
        message = "its embeddings had no manifest.json, so what made them is unknown"
    if message:
        hint = "Extract embeddings with this program, and train a probe on them."
        raise InputError(message, kind="unsupported", path=folder, setting="probe", hint=hint)
    return TrainedProbe(folder, about, bank)


def extraction_settings(probe: TrainedProbe, settings: ProbeSettings, out_dir: Path) -> Settings:
    """The settings with which ``ex_maest.py extract_embeddings`` makes the probe's features."""
    made, options = probe.about["extraction"], settings.predict
    model = probe.about.get("made_by") or {}
    arch, checkpoint = options.arch, options.checkpoint
    if arch is None and checkpoint is None:
        arch, checkpoint = model.get("arch"), model.get("checkpoint")
        known = arch is not None or checkpoint is not None
        if not known or (checkpoint is not None and not Path(checkpoint).exists()):
            raise InputError(
                f"the model of {probe.folder}'s embeddings is not there"
                if known
                else "it is not known where the probe's extractor was",
                kind="missing",
                path=checkpoint or probe.folder,
                setting="predict.checkpoint",
                hint="Give its place now, as predict.checkpoint=<model>, or predict.arch=<a "
                "released model>.",
            )
    # Seconds of each track, at most, that the embeddings are of; version 0.1 did not write down how
    # much its log-mel files held.
    source = model if "log-mel files" in (model.get("input"), made.get("input")) else made
    max_seconds = source.get("max_seconds")
    if source is model and "max_seconds" not in model:
        max_seconds = DEFAULT_SECONDS
        log.warning("the probe's log-mel files may have held more than %g s", DEFAULT_SECONDS)
    accelerator, precision = options.accelerator, made["precision"]
    if made["quantize"]:
        accelerator = "cpu"
    if precision != "32-true" and (accelerator == "cpu" or not torch.cuda.is_available()):
        # a CPU has no fast half precision
        log.warning("the probe's embeddings were made in %s on a GPU: here in 32-true", precision)
        precision = "32-true"
    return parse(
        Settings,
        {
            "maest": {
                "arch": arch,
                "checkpoint": checkpoint,
                # The average where there is one: a model folder may hold it alone.
                "checkpoint_swa_weights": None if model.get("checkpoint_swa_weights") else False,
                **(made["patchout"] or {}),
            },
            "datamodule": {"clip_length": made["patch_seconds"]},
            "inference": {
                "audio": settings.audio,
                "max_seconds": max_seconds,
                "transformer_block": made["block"],
                "out_dir": str(out_dir),
                "patch_hop": made["hop_seconds"],
                **{name: made[name] for name in ("tail", "pool", "quantize")},
            },
            "trainer": {"accelerator": accelerator, "precision": precision},
        },
    )
