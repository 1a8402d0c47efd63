"""The command ``predict`` of ``ex_tl.py``: apply a finished probe to new music."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from maest.config import ProbeSettings, Settings, parse
from maest.datasets.embeddings import (
    EmbeddingFolder,
    block_name,
    model_name,
    read_blocks,
    select_tokens,
)
from maest.datasets.preprocess import DEFAULT_SECONDS
from maest.datasets.tracks import find_tracks
from maest.experiments.extract import extract
from maest.experiments.probe_report import PROBE_FOLDER, no_probe
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import encodable, read_failures, valid_utf8, write_json, write_rows
from maest.helpers.results.outputs import Output, is_done
from maest.helpers.results.predictions import SEPARATOR, best, output_name
from maest.helpers.results.writer import WARNINGS
from maest.models.probe import ProbeBank, layer_normalized

log = logging.getLogger(__name__)

_SHOWN = 10  # tracks that are printed
_DIGITS = 6
# Settings of an extraction, by their names here
_SETTINGS = {
    "inference.audio": "audio",
    "inference.out_dir": "predict.out_dir",
    "maest.arch": "predict.arch",
    "maest.checkpoint": "predict.checkpoint",
}


def predict(run: Any, settings: ProbeSettings) -> dict[str, Any]:
    """Apply a finished probe, and its extractor, to new music."""
    folder = run_dir(run)
    if settings.probe_dir is None or settings.audio is None:
        missing = "probe" if settings.probe_dir is None else "audio"
        hint = "Give both, such as probe=exp_logs/4 audio=my/music."
        raise InputError("is not set", kind="missing", setting=missing, hint=hint)
    place = Path(settings.probe_dir).expanduser()
    about, bank = read_probe(place)
    for warning in about.get("warnings", ()):
        log.warning("%s: %s", place, warning)
    out_dir = Path(settings.predict.out_dir or folder / "embeddings").expanduser()
    request, made = extraction_settings(about, settings, out_dir), about["extraction"]
    try:
        extracted = extract(request, "embeddings", expected=made)
    except InputError as error:
        if error.setting == "predict.checkpoint":
            error.message += f". Its model was {model_name(made, about.get('made_by'))}"
        error.setting = _SETTINGS.get(error.setting or "", error.setting)
        if Path(error.path or "").is_relative_to(out_dir):
            error.setting = "predict.out_dir"
            error.hint = "Give another one, or leave it out: they then go into the run's folder."
        raise
    mix, level = isinstance(made["block"], list), out_dir / f"{made['patch_seconds']:g}sec"
    blocks = made["block"] if mix else [made["block"]]
    outputs = [Output("embeddings", block, level / block_name(block)) for block in blocks]
    tracks, _, _ = find_tracks(settings.audio, leave_out=out_dir)
    # Extraction reports the others. A file older than its audio belongs to other audio.
    keys = [key for i, key in enumerate(tracks.keys) if is_done(key, outputs, tracks.path(i))]
    values = np.zeros((0, len(about["labels"])), np.float32)
    if keys:
        folders = [EmbeddingFolder(output.folder) for output in outputs]
        found = np.stack([read_blocks([own.path(key) for own in folders]) for key in keys])
        features = select_tokens(found, about["types"], about["reduce"])
        values = bank.activations(layer_normalized(features) if mix else features)
    listed = read_failures(outputs[0].folder / WARNINGS, value="warnings")
    warnings = [listed.get(key, "") for key in keys]
    _write(folder, about | {"probe": str(place)}, keys, values, warnings)
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
    folder: Path, about: dict[str, Any], keys: list[str], values: np.ndarray, warnings: list[str]
) -> None:
    labels, figure = about["labels"], output_name(about["task"])
    rows, tracks = [], []
    for key, own, warned in zip(keys, values, warnings, strict=True):
        rows.append((encodable(key), *(f"{value:.{_DIGITS}f}" for value in own), warned))
        rounded = [round(float(value), _DIGITS) for value in own]
        named = dict(zip(labels, rounded, strict=True))
        listed = warned.split(SEPARATOR) if warned else []
        tracks.append({"track": valid_utf8(key), figure: named, "warnings": listed})
    write_rows(folder / "predictions.csv", ("track", *labels, "warnings"), rows)
    content = {"probe": about["probe"], "task": about["task"], "tracks": tracks}
    write_json(folder / "predictions.json", content)


def read_probe(folder: Path) -> tuple[dict[str, Any], ProbeBank]:
    """Read a finished run's ``probe.json`` and probes. InputError: corrupt, or no extractor."""
    inside = folder / PROBE_FOLDER if (folder / PROBE_FOLDER).is_dir() else folder
    path = inside / "probe.json"
    if not path.is_file():
        raise no_probe(folder, f"{PROBE_FOLDER}/probe.json", "probe")
    try:
        about = json.loads(path.read_text("utf-8"))
        features, extraction, seeds = about["features"], about["extraction"], about["seeds"]
        block = (extraction or {}).get("block")
        n_blocks = len(block) if isinstance(block, list) else None
        sizes = about["n_features"], len(about["labels"]), seeds
        bank = ProbeBank(*sizes, hidden=about["hidden"], task=about["task"], n_blocks=n_blocks)
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
    return about, bank


def extraction_settings(about: dict[str, Any], settings: ProbeSettings, out_dir: Path) -> Settings:
    """Return the settings that extract features as ``probe.json`` says. InputError: no model."""
    made, model, options = about["extraction"], about.get("made_by") or {}, settings.predict
    arch, checkpoint = options.arch, options.checkpoint
    if arch is None and checkpoint is None:
        arch, checkpoint = model.get("arch"), model.get("checkpoint")
        if not (arch if checkpoint is None else Path(checkpoint).exists()):
            message = "the model of the probe's embeddings is not there, or unknown"
            hint = "Give its place now, as predict.checkpoint=<model>, or predict.arch=<a "
            hint += "released model>."
            path, setting = checkpoint or settings.probe_dir, "predict.checkpoint"
            raise InputError(message, kind="missing", path=path, setting=setting, hint=hint)
    # Most seconds of each track in the embeddings; version 0.1 did not record how much its
    # log-mel files held.
    source = model if "log-mel files" in (model.get("input"), made.get("input")) else made
    max_seconds = source.get("max_seconds")
    if source is model and "max_seconds" not in model:
        max_seconds = DEFAULT_SECONDS
        log.warning("the probe's log-mel files may have held more than %g s", DEFAULT_SECONDS)
    accelerator = "cpu" if made["quantize"] else options.accelerator
    precision = made["precision"]
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
                # The average if there is one: a model folder may hold nothing else.
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
                "max_windows": made.get("max_windows"),
                **{name: made[name] for name in ("tail", "pool", "quantize")},
            },
            "trainer": {"accelerator": accelerator, "precision": precision},
        },
    )
