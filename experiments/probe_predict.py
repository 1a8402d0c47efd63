"""The command ``predict`` of ``ex_tl.py``: a finished probe on new music."""

from __future__ import annotations

import csv
import json
import logging
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import maest.config as settings
from maest.datasets.embeddings import EmbeddingFolder, block_name, read_blocks, select_tokens
from maest.datasets.preprocess import DEFAULT_SECONDS
from maest.datasets.tracks import find_tracks
from maest.experiments.extract import extract
from maest.experiments.probe_report import PROBE_FOLDER, finished_probes, is_sweep
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError
from maest.helpers.failures import encodable, read_failures
from maest.helpers.files import atomic_path, write_json
from maest.helpers.predictions import SEPARATOR, best, figure_name
from maest.helpers.writer import WARNINGS, Output, is_done
from maest.models.probe import Probe

log = logging.getLogger(__name__)

_SHOWN = 10  # tracks that are printed
_DIGITS = 6
# What settings of an extraction are called here
_OWN_NAMES = {
    "inference.audio": "audio",
    "inference.out_dir": "predict.out_dir",
    "maest.arch": "predict.arch",
    "maest.checkpoint": "predict.checkpoint",
}


@dataclass(frozen=True)
class FinishedProbe:
    """A probe's folder, read.

    Attributes:
        folder: of the run.
        about: what ``probe.json`` says.
        nets: of all seeds; their outputs are averaged.
    """

    folder: Path
    about: dict[str, Any]
    nets: list[Probe]

    @torch.inference_mode()
    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 [N, D], of a mix [N, L, D] → activations (of a regression values) [N, C]."""
        x = torch.from_numpy(features)
        outputs = torch.stack([net(x) for net in self.nets])
        task = self.about["task"]
        if task == "multi-label":
            outputs = outputs.sigmoid()
        elif task == "single-label":
            outputs = outputs.softmax(dim=-1)
        return outputs.mean(dim=0).numpy()


def read_probe(folder: str | Path) -> FinishedProbe:
    """Read the probe of a finished run.

    Args:
        folder: the run's, or ``probe/`` in it.

    Raises:
        InputError: there is none, it is damaged, or it is of features that are no embeddings.
    """
    folder = Path(folder).expanduser()
    inside = folder / PROBE_FOLDER if (folder / PROBE_FOLDER).is_dir() else folder
    path = inside / "probe.json"
    try:
        about = json.loads(path.read_text("utf-8"))
        nets = []
        block = (about["extraction"] or {}).get("block")
        n_blocks = len(block) if isinstance(block, list) else None
        for seed in about["seeds"]:
            net = Probe(about["n_features"], len(about["labels"]), about["hidden"], n_blocks)
            weights = inside / f"seed-{seed}.safetensors"
            if not weights.is_file():
                raise InputError(
                    "no such file",
                    kind="missing",
                    path=weights,
                    setting="probe",
                    hint="Train this probe again.",
                )
            net.load_state_dict(load_file(weights))
            nets.append(net.eval())
        found = FinishedProbe(folder, about, nets)
        features, extraction = about["features"], about["extraction"]
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise _no_probe(folder, path) from None
    except Exception as error:  # JSON's, safetensors', torch's
        raise InputError(
            f"damaged ({str(error)[:200]})",
            kind="corrupt",
            path=inside,
            setting="probe",
            hint="Train this probe again.",
        ) from None
    if features != "embeddings":
        raise InputError(
            f"a probe of {features}, which has no extractor",
            kind="unsupported",
            path=folder,
            setting="probe",
            hint="Give a probe of embeddings.",
        )
    if not extraction:
        raise InputError(
            "its embeddings had no manifest.json, so what made them is not known",
            kind="unsupported",
            path=folder,
            setting="probe",
            hint="Extract them with this program, and train the probe again.",
        )
    return found


def _no_probe(folder: Path, path: Path) -> InputError:
    """Says where the probes are: ``exp_logs/latest`` is the newest training's."""
    hint = "Train one with ex_tl.py, and give its folder, such as probe=exp_logs/4"
    if probes := finished_probes():
        hint = f"Give one of the finished probes, newest first: {', '.join(map(str, probes[:3]))}"
    if is_sweep(folder):
        hint = "A sweep keeps no probes: its summary.md has the command that makes the best one"
    return InputError("no such file", kind="missing", path=path, setting="probe", hint=f"{hint}.")


def extraction_config(
    probe: FinishedProbe, config: dict[str, Any], out_dir: Path
) -> dict[str, Any]:
    """The settings with which ``ex_maest.py extract_embeddings`` makes the probe's features."""
    made, options = probe.about["extraction"], config["predict"]
    own = deepcopy(settings.MAEST)
    model = probe.about.get("made_by") or {}
    arch, checkpoint = options["arch"], options["checkpoint"]
    if arch is None and checkpoint is None:
        arch, checkpoint = model.get("arch"), model.get("checkpoint")
        if arch is None and checkpoint is None:
            raise InputError(
                "it is not known where its extractor was",
                kind="missing",
                path=probe.folder,
                setting="predict.checkpoint",
                hint="Give predict.checkpoint=<model>, or predict.arch=<a released model>.",
            )
        if checkpoint is not None and not Path(checkpoint).exists():
            raise InputError(
                f"no such file or folder; it was the model of {probe.folder}'s embeddings",
                kind="missing",
                path=checkpoint,
                setting="predict.checkpoint",
                hint="Give its place now, as predict.checkpoint=<model>.",
            )
    own["maest"] |= {"arch": arch, "checkpoint": checkpoint} | (made["patchout"] or {})
    # The average where there is one: a model folder may hold it alone.
    own["maest"]["checkpoint_swa_weights"] = None if model.get("checkpoint_swa_weights") else False
    own["datamodule"]["clip_length"] = float(made["patch_seconds"])
    own["inference"] |= {
        "audio": config["audio"],
        "max_seconds": _max_seconds(made, model),
        "transformer_block": made["block"],
        "out_dir": str(out_dir),
        "patch_hop": float(made["hop_seconds"]),
        "tail": made["tail"],
        "pool": made["pool"],
        "quantize": made["quantize"],
    }
    accelerator = "cpu" if made["quantize"] else options["accelerator"]
    own["trainer"] |= {"accelerator": accelerator, "precision": _precision(made, accelerator)}
    return own


def _max_seconds(made: dict[str, Any], made_by: dict[str, Any]) -> float | None:
    """Seconds of each track that the probe's embeddings are of, at most."""
    if made["input"] == "audio":
        return made.get("max_seconds")
    if "max_seconds" in made_by:
        return made_by["max_seconds"]
    log.warning(
        "the probe does not say how much of each track its log-mel files held: the central %g s "
        "are used, as datasets/preprocess.py keeps by default",
        DEFAULT_SECONDS,
    )
    return DEFAULT_SECONDS


def _precision(made: dict[str, Any], accelerator: str) -> str:
    """That of the probe's embeddings; on a CPU, which has no fast half precision, 32 bits."""
    wanted = made["precision"]
    if wanted == "32-true" or (torch.cuda.is_available() and accelerator != "cpu"):
        return wanted
    log.warning("the probe's embeddings were made in %s on a GPU: here in 32-true", wanted)
    return "32-true"


def predict_with_probe(run, config: dict[str, Any]) -> dict[str, Any]:
    """Extract, apply, and write ``predictions.csv`` and ``predictions.json`` of the run."""
    folder = run_dir(run)
    for name, example in (("probe_dir", "probe=exp_logs/4"), ("audio", "audio=my/music")):
        if config[name] is None:
            raise InputError(
                "is not set",
                kind="missing",
                setting=name.removesuffix("_dir"),
                hint=f"Give it, such as {example}.",
            )
    probe = read_probe(str(config["probe_dir"]))
    for warning in probe.about.get("warnings", ()):
        log.warning("%s: %s", probe.folder, warning)
    out_dir = Path(str(config["predict"]["out_dir"] or folder / "embeddings")).expanduser()
    own = extraction_config(probe, config, out_dir)
    made = probe.about["extraction"]
    try:
        found = extract(run, own, "embeddings", expected=made)
    except InputError as error:
        error.setting = _OWN_NAMES.get(error.setting, error.setting)
        if Path(error.path or "").is_relative_to(out_dir):
            error.setting = "predict.out_dir"
            error.hint = "Give another one, or leave it out: they then go into the run's folder."
        raise
    mix, level = isinstance(made["block"], list), out_dir / f"{made['patch_seconds']:g}sec"
    blocks = made["block"] if mix else [made["block"]]
    outputs = [Output("embeddings", block, level / block_name(block)) for block in blocks]
    folders = [EmbeddingFolder(output.folder) for output in outputs]
    tracks, _, _ = find_tracks(str(config["audio"]), leave_out=out_dir)
    # The others are reported. A file that is older than its audio is of other audio.
    keys = [key for i, key in enumerate(tracks.keys) if is_done(key, outputs, tracks.path(i))]
    types, reduce = probe.about["types"], probe.about["reduce"]
    features = [select_tokens(read_blocks(folders, key), types, reduce) for key in keys]
    if not mix:
        features = [own[0] for own in features]
    values = probe(np.stack(features)) if keys else np.zeros((0, 0), np.float32)
    listed = read_failures(folders[0].folder / WARNINGS, value="warnings")
    warnings = [listed.get(key, "") for key in keys]
    _write(folder, probe, keys, values, warnings)
    _print(probe, keys, values, warnings, config["predict"]["top"])
    print(
        f"{len(keys)} tracks, {sum(map(bool, warnings))} with warnings, "
        f"{len(probe.about['labels'])} labels or values: {folder / 'predictions.csv'}"
    )
    return {"folder": str(folder), "tracks": len(keys), "failed": found["failed"]}


def _write(
    folder: Path, probe: FinishedProbe, keys: list[str], values: np.ndarray, warnings: list[str]
) -> None:
    labels, figure = probe.about["labels"], figure_name(probe.about["task"])
    with (
        atomic_path(folder / "predictions.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(("track", *labels, "warnings"))
        for key, own, warned in zip(keys, values, warnings, strict=True):
            table.writerow((encodable(key), *(f"{value:.{_DIGITS}f}" for value in own), warned))
    write_json(
        folder / "predictions.json",
        {
            "probe": str(probe.folder),
            "task": probe.about["task"],
            "tracks": [
                {
                    "track": encodable(key).encode("utf-8", "backslashreplace").decode(),
                    figure: {
                        label: round(float(value), _DIGITS)
                        for label, value in zip(labels, own, strict=True)
                    },
                    "warnings": warned.split(SEPARATOR) if warned else [],
                }
                for key, own, warned in zip(keys, values, warnings, strict=True)
            ],
        },
    )


def _print(
    probe: FinishedProbe, keys: list[str], values: np.ndarray, warnings: list[str], top: int
) -> None:
    labels, task = probe.about["labels"], probe.about["task"]
    for key, own, warned in list(zip(keys, values, warnings, strict=True))[:_SHOWN]:
        chosen = ", ".join(f"{labels[i]} {own[i]:.3f}" for i in best(own, top, task))
        print(f"{key}: {chosen}{f' ({warned}: this means little)' if warned else ''}")
    if len(keys) > _SHOWN:
        print("…")
