"""Manifests of folders of results, so that results of different settings never mix.

``manifest.json`` has the ``settings`` that results depend on, the ``sources`` (folders of tracks)
and ``made_by``, the place of the model. Any number of runs may open a folder at once.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import files_below, valid_utf8, write_json

MANIFEST = "manifest.json"
LOCK = ".manifest.lock"
_LONGEST_WAIT = 1800  # seconds, while another run removes results
_ELSEWHERE = "Give another inference.out_dir, or move them away."
# By kind: endings of results, then of the files beside them (`helpers.results.outputs`)
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

    ``settings`` are JSON values, with ``kind``; one that an older manifest lacks counts as
    unchanged, and None equals a missing one. Tracks' keys are relative to ``source``. ``overwrite``
    removes results of other settings, with the files beside them; the caller replaces those of the
    same settings. ``present`` gives the key of a track of a new source whose result exists already,
    or None. ``made_by`` has facts that results do not depend on; the last run's stay.

    Raises InputError for other results, results without a manifest, a damaged manifest, or a folder
    that cannot be written.
    """
    manifest = _plain({"settings": settings, "sources": [source]})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=_LONGEST_WAIT):
            before = read_manifest(folder)
            old, new = _comparable(before), manifest["settings"]
            if before is None:
                _check_no_results(folder, new["kind"])
            elif any(new.get(name) != value for name, value in old.items()):
                if not overwrite:
                    raise _other_settings(folder, old, new)
                _remove_results(folder, new["kind"])
            else:
                sources = before["sources"]
                new_source = manifest["sources"][0] not in sources
                if new_source and not overwrite and (key := present()):
                    raise _same_name(folder, key, sources, source)
                manifest["sources"] = sources + manifest["sources"] * new_source
            manifest |= {"made_by": _plain(made_by)} if made_by else {}
            if manifest != before:
                write_json(folder / MANIFEST, manifest)
    except OSError as error:  # also for a lock that another run holds too long
        message = f"cannot be written to ({error.strerror or error})"
        hint = "Make room or mend its permissions, or give another inference.out_dir."
        raise InputError(message, kind="access", hint=hint, path=folder) from None


def _comparable(manifest: dict[str, Any] | None) -> dict[str, Any]:
    # Before these existed, whole tracks were read and the top labels written. Version 0.1 has
    # "input", audio or log-mel files, which give the same results.
    before = {"max_seconds": None, "max_windows": None, "thresholds": None}
    settings = before | (manifest or {}).get("settings", {})
    settings.pop("input", None)
    return settings


def _other_settings(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> InputError:
    message = f"the results there were made with other settings: {'; '.join(differences(old, new))}"
    hint = "Give another inference.out_dir, or inference.overwrite=True, which removes them."
    return InputError(message, kind="mismatch", hint=hint, path=folder / MANIFEST)


def _same_name(folder: Path, key: str, sources: list[str], source: str) -> InputError:
    message = f"has results of {key!r} from {', '.join(sources)}, and this run reads {source}: "
    message += "duplicate track names"
    hint = "Give another inference.out_dir, or inference.overwrite=True, which extracts this run's "
    hint += "tracks again. If the same music has moved, write its new place into the sources of "
    hint += f"{folder / MANIFEST}."
    return InputError(message, kind="conflict", hint=hint, path=folder)


def _check_no_results(folder: Path, kind: str) -> None:
    name = next(chain(files_below(folder, _ENDS[kind]), (p.name for p in _lists(folder))), None)
    if name is not None:
        message = f"holds {name!r}, and no {MANIFEST} says how that was made"
        raise InputError(message, kind="exists", hint=_ELSEWHERE, path=folder)


def _remove_results(folder: Path, kind: str) -> None:
    """Remove results and the files beside them; refuse a link, which is not ours."""
    end, *beside = _ENDS[kind]
    results = [folder / name for name in files_below(folder, end)]
    if link := next(filter(Path.is_symlink, results), None):
        message = "a link, which this program did not make, to a result of other settings"
        raise InputError(message, kind="exists", hint=_ELSEWHERE, path=link)
    for path in results:
        for other in (*beside, end):
            path.with_name(path.name.removesuffix(end) + other).unlink(missing_ok=True)
    for path in _lists(folder):
        path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read a folder's manifest, None without one. InputError: damaged; OSError: unreadable."""
    path, manifest = folder / MANIFEST, None
    if not path.exists():
        return None
    with suppress(ValueError):
        manifest = json.loads(path.read_text("utf-8"))
    match manifest:
        case {"settings": dict(), "sources": [*names]} if all(isinstance(n, str) for n in names):
            return manifest
    message = "expected the settings that the results there were made with, as JSON"
    hint = "Give another inference.out_dir, or remove this folder if its results are yours."
    raise InputError(message, kind="corrupt", hint=hint, path=path)


def _lists(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _LISTS.fullmatch(path.name)]


def _plain(value: Any) -> Any:
    """Return what JSON makes of a value, with all texts as valid UTF-8."""
    if isinstance(value, str):
        return valid_utf8(value)
    if isinstance(value, Mapping):
        return {valid_utf8(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def model_hash(state_dict: Mapping[str, torch.Tensor], sizes: Mapping[str, Any]) -> str:
    """Hash a network's sizes and weights, in any order, on any device: SHA-256 in hexadecimal."""
    digest = hashlib.sha256(json.dumps(dict(sizes), sort_keys=True).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
