"""With what the results in a folder were made: results of different settings must not mix.

``manifest.json`` in a folder of results holds the settings that they depend on, ``sources``, the
folders of the tracks they were made of, and ``made_by``, where the model was. Every run that writes
there opens the folder first (:func:`open_folder`); any number of runs may do so at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from maest.helpers.errors import InputError
from maest.helpers.failures import valid_utf8
from maest.helpers.files import TEMPORARY, write_json

MANIFEST = "manifest.json"
LOCK = ".manifest.lock"
_LONGEST_WAIT = 1800  # seconds; another run removes what it overwrites meanwhile
_HASH_SHOWN = 12  # characters
_SHOWN = 60  # characters of any other setting
# A setting that has gone: audio and its log-mel file give the same. (Rounding aside, they did.)
_GONE = "input"
_ELSEWHERE = "Give another inference.out_dir, or move them away."
# What is written beside a result, see `helpers.writer`: in place of the end of its name.
_BESIDE = {
    ".predictions.json": (".predictions.csv", ".predictions.png"),
    ".embeddings.npy": (".times.csv",),
    ".logits.npy": (".times.csv",),
}
# And for all of them.
_LISTS = ("failed.csv", "tracks.csv", "warnings.csv")


def open_folder(
    folder: Path,
    settings: Mapping[str, Any],
    source: str,
    overwrite: bool,
    pattern: str,
    present: Callable[[], str | None],
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Make a folder for results, or check that those in it were made with the same settings.

    Args:
        settings: what results depend on; values as JSON has them. One that an older manifest lacks
            counts as unchanged, and None is as good as none.
        source: the folder that the tracks' keys are relative to.
        overwrite: whether results of other settings are removed, with what stands beside them;
            nothing else is, and nothing in a folder that is a link. Results of the same settings
            stay: the caller makes its own again. What no manifest tells of is not ours: refused.
        pattern: of results' names, such as ``*.embeddings.npy``.
        present: the key of some track of this source that has a file there already, or None. It is
            asked only for a source that is not yet in the manifest.
        made_by: what people want to know, and results do not depend on. The last run's is kept.

    Raises:
        InputError: other results are there; a damaged manifest; the folder cannot be written to.
    """
    wanted = _valid(json.loads(json.dumps(dict(settings))))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=_LONGEST_WAIT):
            known = read_manifest(folder)
            sources = _agreed_sources(folder, known, wanted, source, overwrite, pattern, present)
            manifest = {"settings": wanted, "sources": sources}
            if made_by:
                manifest["made_by"] = _valid(made_by)
            if manifest != known:
                write_json(folder / MANIFEST, manifest)
    except Timeout:
        raise InputError(
            f"another run has held this lock for {_LONGEST_WAIT // 60} minutes",
            kind="access",
            hint="Wait for it, or end it; or give another inference.out_dir.",
            path=folder / LOCK,
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror or error})",
            kind="access",
            hint="Make room or mend its permissions, or give another inference.out_dir.",
            path=folder,
        ) from None


def _agreed_sources(
    folder: Path,
    known: dict[str, Any] | None,
    wanted: dict[str, Any],
    source: str,
    overwrite: bool,
    pattern: str,
    present: Callable[[], str | None],
) -> list[str]:
    """The sources to write down. Under the lock."""
    shown, end = valid_utf8(source), pattern.removeprefix("*")
    if known is None:
        foreign = next(_results(folder, end, *_BESIDE.get(end, ())), None)
        foreign = foreign or next((folder / n for n in _LISTS if (folder / n).is_file()), None)
        if foreign is not None:
            raise InputError(
                f"holds {foreign.relative_to(folder).as_posix()!r}, and no {MANIFEST} says how "
                "that was made",
                kind="exists",
                hint=_ELSEWHERE,
                path=folder,
            )
        return [shown]
    # Before there was this setting, whole tracks were read.
    was = {"max_seconds": None, **known["settings"]}
    was.pop(_GONE, None)
    sources: list[str] = known["sources"]
    if any(wanted.get(name) != value for name, value in was.items()):
        if not overwrite:
            raise InputError(
                f"the results there were made with other settings: {_differences(was, wanted)}",
                kind="mismatch",
                hint="Give another inference.out_dir, or inference.overwrite=True, which removes "
                "them.",
                path=folder / MANIFEST,
            )
        _remove_results(folder, end)
        return [shown]
    if shown in sources:
        return sources
    key = None if overwrite else present()
    if key is not None:
        raise InputError(
            f"holds {key!r} already, made from {', '.join(sources)}, and this run reads {shown}: "
            "two tracks of one name would be taken for one",
            kind="conflict",
            hint="Give another inference.out_dir, or inference.overwrite=True, which makes this "
            "run's tracks again. If the same music has moved, write its new place into the "
            f"sources of {folder / MANIFEST}.",
            path=folder,
        )
    return [*sources, shown]


def _remove_results(folder: Path, end: str) -> None:
    """Remove results and what was written beside them; links are not ours."""
    linked = next((path for path in _results(folder, end) if path.is_symlink()), None)
    if linked is not None:
        raise InputError(
            "a link, which this program did not make, to a result of other settings",
            kind="exists",
            hint=_ELSEWHERE,
            path=linked,
        )
    for result in _results(folder, end):
        for name in _BESIDE.get(end, ()):
            result.with_name(result.name.removesuffix(end) + name).unlink(missing_ok=True)
        result.unlink(missing_ok=True)
    for name in _LISTS:
        stem, _, suffix = name.rpartition(".")
        for path in (folder / name, *folder.glob(f"{stem}-*-of-*.{suffix}")):
            path.unlink(missing_ok=True)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """``settings``, ``sources`` and maybe ``made_by`` of a folder of results; None: no manifest.

    Raises:
        InputError: it is damaged.
        OSError: it cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    match found:
        case {"settings": dict(), "sources": list(names)} if all(isinstance(n, str) for n in names):
            return found
    raise InputError(
        "expected the settings that the results there were made with, as JSON",
        kind="corrupt",
        hint="Give another inference.out_dir, or remove this folder if its results are yours.",
        path=path,
    )


def _results(folder: Path, *ends: str) -> Iterator[Path]:
    """The files below a folder whose names end so; folders that are links are not entered."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(ends) and not name.startswith(TEMPORARY):
                yield Path(place) / name


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``hop_seconds 30.0, now 15.0; …`` for each setting that differs; of lists, the first item."""
    told = []
    for name in {**was, **now}:
        before, after = was.get(name), now.get(name)
        if isinstance(before, list) and isinstance(after, list):
            pairs = zip(before, after, strict=False)
            before, after = next((p for p in pairs if p[0] != p[1]), (before, after))
        if before != after:
            told.append(f"{name} {_short(before)}, now {_short(after)}")
    return "; ".join(told)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if re.fullmatch(r"[0-9a-f]{32,}", text):
        return text[:_HASH_SHOWN]
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _valid(value: Any) -> Any:
    """JSON whose texts are valid UTF-8."""
    if isinstance(value, dict):
        return {valid_utf8(name): _valid(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_valid(item) for item in value]
    return valid_utf8(value) if isinstance(value, str) else value


def model_hash(state_dict: Mapping[str, torch.Tensor], sizes: Mapping[str, Any]) -> str:
    """What tells a network from any other: SHA-256 of its weights and sizes, in hexadecimal.

    Of the weights, names, shapes, types and bytes count; order and device do not.
    """
    digest = hashlib.sha256(json.dumps(dict(sizes), sort_keys=True).encode())
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        head = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(head).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
