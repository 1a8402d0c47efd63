"""Where an extraction's results go, and with what settings they are made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from maest.config import Settings
from maest.datasets.mel_recipe import kept_seconds
from maest.datasets.tracks import AudioTracks, MelTracks, Tracks
from maest.helpers.errors import InputError
from maest.helpers.files import remove_leftovers
from maest.helpers.manifest import open_folder
from maest.helpers.patches import PatchPlan
from maest.helpers.writer import SUFFIXES, Output, is_done
from maest.models.archs import clip_seconds
from maest.models.weights import Checkpoint

_VERSION = 1  # of what results mean: raise it, and results are made again
_NUMBERING = "blocks count from 0; -1 is after the final norm"


def out_dir_of(settings: Settings) -> Path:
    """``inference.out_dir``; or ``embeddings/``, and there a folder of the model's name."""
    if settings.inference.out_dir is not None:
        return Path(settings.inference.out_dir).expanduser()
    return Path("embeddings") / model_name(settings.maest.arch, settings.maest.checkpoint)


def model_name(arch: str | None, checkpoint: str | None) -> str:
    """What a model's results are kept under: its arch; of a run's model, ``run-4``."""
    if checkpoint is None:
        return str(arch)
    path = Path(checkpoint).expanduser().resolve()
    parts = path.parts
    if "exp_logs" in parts[:-1]:
        return f"run-{parts[parts.index('exp_logs') + 1]}"
    return path.parent.name if path.name == "model" else path.name.removesuffix(".ckpt")


def manifest_settings(
    settings: Settings, tracks: Tracks, plan: PatchPlan, model: str, precision: str
) -> dict[str, Any]:
    """What results depend on, whatever their kind; audio and its log-mel file give the same."""
    patchout = {
        name: value
        for axis in "tf"
        for name in (f"s_patchout_{axis}_indices", f"s_patchout_{axis}_interleaved")
        if (value := getattr(settings.maest, name))
    }
    return {
        "model": model,
        "numbering": _NUMBERING,
        "max_seconds": tracks.seconds if isinstance(tracks, AudioTracks) else None,
        "patch_seconds": clip_seconds(plan.length),
        "hop_seconds": clip_seconds(plan.hop or plan.length),
        "tail": plan.tail,
        "patchout": patchout or None,
        "precision": precision,
        "quantize": settings.inference.quantize,
        "version": _VERSION,
    }


def origin(settings: Settings, tracks: Tracks, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Where the model and the tracks' log-mels came from; results do not depend on the place."""
    path = settings.maest.checkpoint
    made_by: dict[str, Any] = {
        "arch": settings.maest.arch,
        "checkpoint": None if path is None else str(Path(path).expanduser().resolve()),
        # Whether the average was used, whatever the setting left open.
        "checkpoint_swa_weights": checkpoint is not None and checkpoint.average,
        "input": "audio",
    }
    if isinstance(tracks, MelTracks):
        made_by |= {"input": "log-mel files", "max_seconds": kept_seconds(tracks.folder)}
    return made_by


def open_folders(
    outputs: list[Output],
    tracks: Tracks,
    known: dict[str, Any],
    made_by: dict[str, Any],
    labels: list[str] | None,
    settings: Settings,
) -> None:
    """Check what the folders hold, or enter with what they are going to be filled."""
    for output in outputs:
        own = {"kind": output.kind, **known}
        if output.kind == "embeddings":
            own["block"] = output.block
        if output.kind == "predictions":
            own |= {"labels": labels, "top": settings.inference.top}
        else:
            own["pool"] = settings.inference.pool

        open_folder(
            output.folder,
            own,
            str(tracks.folder),
            settings.inference.overwrite,
            output.pattern,
            partial(_some_done, tracks, output),
            made_by,
        )
        remove_leftovers(output.folder, SUFFIXES)


def _some_done(tracks: Tracks, output: Output) -> str | None:
    return next((key for key in tracks.keys if is_done(key, [output])), None)


def check_expected(
    known: Mapping[str, Any], expected: Mapping[str, Any], settings: Settings
) -> None:
    """Raise InputError where results would not be what is expected.

    Log-mel files may hold as many seconds as are read of audio; precisions give nearly the same.
    """
    for name in known.keys() - {"max_seconds", "precision"}:
        if expected.get(name, known[name]) != known[name]:
            values = [str(one[name])[:12] for one in (known, expected)]
            raise InputError(
                f"embeddings with {name} {values[0]}; the probe was trained on those with "
                f"{values[1]}",
                kind="mismatch",
                path=settings.maest.checkpoint or settings.maest.arch,
                setting="predict.checkpoint" if name == "model" else None,
                hint="Give the model that the probe's embeddings were made by."
                if name == "model"
                else "Extract the training tracks again, and train the probe on them.",
            )


def remove_results(tracks: Tracks, own: range, outputs: list[Output]) -> None:
    """Remove the results of these tracks; links and what cannot be removed will be overwritten."""
    for i in own:
        for output in outputs:
            with suppress(OSError, ValueError):
                path = output.path(tracks.keys[i])
                if not path.is_symlink():
                    path.unlink(missing_ok=True)
