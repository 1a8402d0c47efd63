"""Manifests of folders of results, so that results of different settings never mix.

``manifest.json`` has the ``settings`` that results depend on, the ``sources`` (folders of tracks)
and ``made_by``, the place of the model. Any number of runs may open a folder at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import TEMPORARY, valid_utf8, write_json

MANIFEST = "manifest.json"
LOCK = ".manifest.lock"
_LONGEST_WAIT = 1800  # seconds, while another run removes results
_ELSEWHERE = "Give another inference.out_dir, or move them away."
# By kind: endings of results, then of the files beside them (`helpers.results.writer`)
_ENDS = {
    "predictions": (".predictions.json", ".predictions.csv", ".predictions.png"),
    "embeddings": (".embeddings.npy", ".times.csv"),
    "logits": (".logits.npy", ".times.csv"),
}
# Lists beside results of any kind, also those of shards
_LISTS = re.compile(r"(failed|tracks|warnings)(-\d+-of-\d+)?\.csv")


def open_folder(
    folder: Path,
    settings: Mapping[str, Any],
    source: str,
    overwrite: bool,
    present: Callable[[], str | None],
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Make a folder for results, or check that those in it were made with the same settings.

    Args:
        settings: as JSON values, with ``kind``. A setting that an older manifest lacks counts as
            unchanged; None equals a missing one.
        source: the folder that the tracks' keys are relative to.
        overwrite: removes results of other settings, with the files beside them; the caller
            replaces those of the same settings.
        present: gives the key of a track of a new source whose result exists already, or None.
        made_by: facts that results do not depend on; the last run's stay.

    Raises InputError for other results, results without a manifest, a damaged manifest, or a folder
    that cannot be written.
    """
    wanted, source = _valid(settings), valid_utf8(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=_LONGEST_WAIT):
            known = read_manifest(folder)
            manifest = {"settings": wanted, "sources": [source]}
            if known is None:
                _check_no_results(folder, wanted["kind"])
            elif any(wanted.get(name) != value for name, value in _known(known).items()):
                _replace(folder, _known(known), wanted, overwrite)
            else:
                if source not in known["sources"] and not overwrite and (key := present()):
                    raise _same_name(folder, key, known["sources"], source)
                manifest["sources"] = list(dict.fromkeys((*known["sources"], source)))
            manifest |= {"made_by": _valid(made_by)} if made_by else {}
            if manifest != known:
                write_json(folder / MANIFEST, manifest)
    except OSError as error:  # also for a lock that another run holds too long
        message = f"cannot be written to ({error.strerror or error})"
        hint = "Make room or mend its permissions, or give another inference.out_dir."
        raise InputError(message, kind="access", hint=hint, path=folder) from None


def _known(manifest: dict[str, Any]) -> dict[str, Any]:
    # Before max_seconds existed, whole tracks were read. Version 0.1 has "input", audio or log-mel
    # files, which give the same results.
    settings = {"max_seconds": None, **manifest["settings"]}
    settings.pop("input", None)
    return settings


def _same_name(folder: Path, key: str, sources: list[str], source: str) -> InputError:
    message = (
        f"holds {key!r} already, made from {', '.join(sources)}, and this run reads {source}: "
    )
    message += "two tracks of one name would be taken for one"
    hint = "Give another inference.out_dir, or inference.overwrite=True, which makes this run's "
    hint += "tracks again. If the same music has moved, write its new place into the sources of "
    hint += f"{folder / MANIFEST}."
    return InputError(message, kind="conflict", hint=hint, path=folder)


def _check_no_results(folder: Path, kind: str) -> None:
    lists = (path for path in folder.iterdir() if _LISTS.fullmatch(path.name))
    path = next(_results(folder, _ENDS[kind]), None) or next(lists, None)
    if path is not None:
        name = path.relative_to(folder).as_posix()
        message = f"holds {name!r}, and no {MANIFEST} says how that was made"
        raise InputError(message, kind="exists", hint=_ELSEWHERE, path=folder)


def _replace(folder: Path, was: dict[str, Any], now: dict[str, Any], overwrite: bool) -> None:
    """Remove results of other settings and the files beside them; refuse links, not ours."""
    if not overwrite:
        changes, path = "; ".join(differences(was, now)), folder / MANIFEST
        message = f"the results there were made with other settings: {changes}"
        hint = "Give another inference.out_dir, or inference.overwrite=True, which removes them."
        raise InputError(message, kind="mismatch", hint=hint, path=path)
    end, *beside = _ENDS[now["kind"]]
    for path in _results(folder, (end,)):
        if path.is_symlink():
            message = "a link, which this program did not make, to a result of other settings"
            raise InputError(message, kind="exists", hint=_ELSEWHERE, path=path)
    for path in _results(folder, (end,)):
        for other in (*beside, end):
            path.with_name(path.name.removesuffix(end) + other).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _LISTS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Read a folder's manifest, None without one. InputError: damaged; OSError: unreadable."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    manifest = None
    with suppress(ValueError):
        manifest = json.loads(path.read_text("utf-8"))
    match manifest:
        case {"settings": dict(), "sources": [*names]} if all(isinstance(n, str) for n in names):
            return manifest
    message = "expected the settings that the results there were made with, as JSON"
    hint = "Give another inference.out_dir, or remove this folder if its results are yours."
    raise InputError(message, kind="corrupt", hint=hint, path=path)


def _results(folder: Path, ends: tuple[str, ...]) -> Iterator[Path]:
    """Yield files below a folder with these endings, without entering folders that are links."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(ends) and not name.startswith(TEMPORARY):
                yield Path(place) / name


def _valid(value: Any) -> Any:
    """Return the JSON value with all texts as valid UTF-8."""
    if isinstance(value, Mapping):
        return {valid_utf8(name): _valid(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    return valid_utf8(value) if isinstance(value, str) else value


def model_hash(state_dict: Mapping[str, torch.Tensor], sizes: Mapping[str, Any]) -> str:
    """Hash a network's sizes and weights, in any order, on any device: SHA-256 in hexadecimal."""
    digest = hashlib.sha256(json.dumps(dict(sizes), sort_keys=True).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
