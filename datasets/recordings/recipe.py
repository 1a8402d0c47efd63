"""What the teacher's files are made by, kept beside them in ``recipe.json``."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from maest.datasets.recordings import teaching
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import read_bytes, to_json, write_changed, write_error
from maest.helpers.work.parallel import run_parallel

RECIPE_FILE = "recipe.json"
_KEYS = {"teacher", "version", "window_seconds", "labels"}


def _describe(name: str, load: teaching.Load) -> dict[str, Any]:
    teacher = teaching.loaded(load, name)
    return {
        "teacher": name,
        "version": teacher.version,
        "window_seconds": float(teacher.window_seconds),
        "labels": list(teacher.labels),
    }


def open_recipe(
    folder: Path,
    load: teaching.Load,
    teacher: str,
    codec_share: float,
    seed: int,
    num_workers: int | None,
) -> dict[str, Any]:
    """Write how the teacher's files are made. Raises InputError if others were made otherwise."""
    # In a process of its own: forks of this one could not use sessions, nor a GPU, that it opened.
    ask = partial(_describe, load=load)
    (recipe,) = run_parallel(ask, [teacher], num_workers=num_workers, progress=False)
    recipe["codec_share"] = float(codec_share)
    if codec_share:
        recipe["codec_seed"] = seed
    path = folder / RECIPE_FILE
    if path.exists() and (differ := differences(read_recipe(folder), recipe)):
        what = f"the teacher's files were made otherwise: {'; '.join(differ)}"
        hint = "Give another --out-dir, or the same settings."
        raise InputError(what, kind="mismatch", path=path, hint=hint)
    try:
        write_changed(path, to_json(recipe).encode())
    except OSError as error:
        raise write_error(path, error, "--out-dir") from None
    return recipe


def read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    hint = "Run it without --labels-only first."
    try:
        recipe = json.loads(read_bytes(path, hint))
        if recipe.keys() >= _KEYS:
            return recipe
    except (ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
    what, hint = "expected what the teacher is, as JSON", "Give another --out-dir."
    raise InputError(what, kind="corrupt", path=path, hint=hint)
