"""``preprocess.json`` of a store of log-mel files: from what audio, and with which settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maest.datasets.collection import mel_key
from maest.datasets.mel_index import RECIPE_FILE
from maest.helpers.errors import InputError
from maest.helpers.failures import valid_utf8
from maest.helpers.files import TEMPORARY, write_json
from maest.helpers.mel_constants import HOP_LENGTH, N_MELS, SAMPLE_RATE

_EMPTY = "Give an empty MELSPEC_DIR."
_VERSION = 1  # raise it when reading or the front end changes what is written


def _settings(seconds: float | None) -> dict[str, Any]:
    """What the content of a log-mel file depends on, besides the audio."""
    return {
        "seconds": "all" if seconds is None else float(seconds),
        "sample_rate": SAMPLE_RATE,
        "hop": HOP_LENGTH,
        "bands": N_MELS,
        "version": _VERSION,
    }


def _read(folder: Path) -> dict[str, Any] | None:
    """The recipe of a store; None if there is none that can be read."""
    try:
        recipe = json.loads((folder / RECIPE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return recipe if isinstance(recipe, dict) else None


def kept_seconds(melspec_dir: Path) -> float | None:
    """Seconds that a store keeps of each track, at most; None: all, or nothing says so."""
    seconds = (_read(melspec_dir) or {}).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _made_from(audio_dir: Path, store: Path) -> list[str]:
    """The folder of audio: its path, and that from the store, as both may be moved together."""
    return [valid_utf8(str(audio_dir)), valid_utf8(os.path.relpath(audio_dir, store))]


def _sources(recipe: dict[str, Any] | None) -> list[str]:
    """The same, of a store's recipe; a person may have put in one path. Empty: it does not say."""
    source = (recipe or {}).get("source", [])
    return [source] if isinstance(source, str) else list(source)


def is_of_other_audio(store: Path, audio_dir: Path) -> bool:
    """Whether a folder is a store, made from another folder than this."""
    sources = _sources(_read(store))
    return bool(sources) and not set(sources) & set(_made_from(audio_dir, store))


def check_subfolder(store: Path, name: str, seconds: float | None) -> None:
    """Raise InputError if the store has other settings, or files of its own in that folder."""
    _refuse_other_settings(store, _read(store), seconds)
    folder = store / name
    if not (folder / RECIPE_FILE).exists() and any(mel_files(folder)):
        what, hint = "holds log-mel files of the folder around it", "Give another name."
        raise InputError(what, kind="exists", path=folder, setting="--subfolder", hint=hint)


def open_store(
    store: Path,
    names: Sequence[str],
    seconds: float | None,
    audio_dir: Path,
    *,
    whole: bool,
    every: bool,
) -> list[str]:
    """Make the folder and its recipe, or check that its files were made with the same.

    A recipe without any log-mel file is replaced, but not by a shard (``whole`` is false): others
    may be at work with it. One without a source, of a version that wrote none, gets this one.

    Args:
        names: the audio files; ``every``: whether they are all of the folder's.

    Returns:
        what a person should know of the store.

    Raises:
        InputError: it was made with another, or the folder cannot be made.
    """
    path = store / RECIPE_FILE
    recipe = _settings(seconds) | {"source": _made_from(audio_dir, store)}
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            present = _first_made(store, names)
            # Another shard writes the recipe before its first file: it may be there by now.
            if present and not path.exists():
                what = f"holds {present!r} already, and no {RECIPE_FILE}: how was it made?"
                raise InputError(what, kind="exists", path=store, hint=_EMPTY)
            if not path.exists():
                write_json(path, recipe)
        known, other = _read(store), is_of_other_audio(store, audio_dir)
        differs = known is None or known != known | _settings(seconds) or other
        if differs and whole and not any(mel_files(store)):
            write_json(path, recipe)
            return []
        if known is None:
            what = "is damaged: expected the settings of the log-mel files, as JSON"
            raise InputError(what, kind="corrupt", path=path, hint=_EMPTY)
        _refuse_other_settings(store, known, seconds)
        sources = _sources(known)
        if sources and not other:
            return []
        if other or (every and not _first_made(store, names) and any(mel_files(store))):
            raise InputError(
                f"its log-mel files were made from {sources[0] if other else 'other audio'}, not "
                f"from {audio_dir}",
                kind="conflict",
                path=store,
                hint="Give --subfolder NAME, a folder of its own for this audio, or another "
                f"MELSPEC_DIR. Is it the same music in another place? Then write {audio_dir} under "
                f'"source" in {path}.',
            )
        write_json(path, recipe)
    except OSError as error:
        what, hint = (
            f"cannot be written to ({error.strerror or error})",
            "Give another MELSPEC_DIR.",
        )
        raise InputError(what, kind="access", path=store, hint=hint) from None
    return [
        f"{store}: made by an earlier version, which did not keep from what. Its files are taken "
        f"to be made from {audio_dir}"
    ]


def _first_made(store: Path, names: Sequence[str]) -> str | None:
    return next((key for key in map(mel_key, names) if (store / key).exists()), None)


def _refuse_other_settings(
    store: Path, known: dict[str, Any] | None, seconds: float | None
) -> None:
    wanted = _settings(seconds)
    differ = [name for name in wanted if known and known.get(name) != wanted[name]]
    if known and differ:
        was, now = (", ".join(f"{n} {own.get(n)}" for n in differ) for own in (known, wanted))
        what = f"the log-mel files were made with {was}; this run is for {now}"
        hint, path = "Give another MELSPEC_DIR, or the same settings.", store / RECIPE_FILE
        raise InputError(what, kind="mismatch", path=path, hint=hint)


def mel_files(store: Path) -> Iterator[str]:
    """Log-mel files as paths relative to the store, without those of stores within it."""
    for place, folders, names in os.walk(store):
        folder = Path(place).relative_to(store)
        folders[:] = [name for name in folders if not (Path(place, name) / RECIPE_FILE).exists()]
        for name in names:
            if name.endswith(".mmap") and not name.startswith(TEMPORARY):
                yield (folder / name).as_posix()
