"""Embeddings of many files in one: ``.npz``, ``.parquet``, or a folder with a ``.npy`` a track.

Each holds, or has beside it: paths, times, the model's name and hash, and the block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maest.analysis import Embedded
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import atomic_path, valid_utf8, write_error, write_json, write_rows
from maest.library_types import Model

ABOUT = "maest.json"  # in a folder of .npy files: the model and the block
TABLE = "embeddings.csv"  # beside it: a line for each row of each file
_OTHER = "Give another name, or move it away."


def check_target(path: Path) -> None:
    """Refuse a place that holds something else than embeddings of ours.

    InputError: another file or folder ("exists"), or a suffix that is not known ("unsupported").
    """
    if path.suffix not in (".npz", ".parquet", ".npy", ""):
        hint = "Give a name that ends in .npz or .parquet, or a folder for a .npy a track."
        raise InputError(f"embeddings cannot be written as {path.suffix}", kind="unsupported",
                         path=path, hint=hint)  # fmt: skip
    if path.suffix == ".npy":
        hint = f"Give a folder, such as {path.with_suffix('')}: each track has a .npy in it."
        raise InputError("one .npy holds one track", kind="unsupported", path=path, hint=hint)
    if path.suffix == ".parquet":
        _pyarrow()
    try:
        known = not path.exists() or _is_ours(path)
    except Exception:  # of another program, or damaged
        known = False
    if not known:
        raise InputError("another file is there", kind="exists", path=path, hint=_OTHER)


def write_embeddings(path: Path, model: Model, rows: Iterable[tuple[str, Embedded]]) -> int:
    """Write the embeddings of files, by the suffix of ``path``; return the number of rows.

    ``rows`` are (name as of `analysis.Music`, result); without a suffix, that is where a track's
    ``.npy`` lies below ``path``. InputError: as :func:`check_target`, or "access".
    """
    check_target(path)
    writers: dict[str, Callable[..., int]] = {".npz": _write_npz, ".parquet": _write_parquet}
    try:
        return writers.get(path.suffix, _write_folder)(path, _about(model), rows)
    except OSError as error:
        raise write_error(error.filename or path, error, "place (-o)") from error


def _about(model: Model) -> dict[str, Any]:
    return {"model": valid_utf8(model.name), "model_hash": model.hash, **model.settings}


def _is_ours(path: Path) -> bool:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {"embeddings", "paths", "times", "model_hash"} <= set(file.files)
    if path.suffix == ".parquet":
        return b"model_hash" in (_pyarrow().parquet.read_schema(path).metadata or {})
    return path.is_dir() and ((path / ABOUT).is_file() or not any(path.iterdir()))


def _joined(rows: Iterable[tuple[str, Embedded]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return N paths, times [N, 2] and embeddings [N, …]; files of several rows have it as often.

    Embeddings of one model are of one shape but for the rows.
    """
    paths: list[str] = []
    times: list[np.ndarray] = [np.zeros((0, 2))]
    values: list[np.ndarray] = []
    for _, result in rows:
        paths += [os.fspath(result.path)] * len(result.embeddings)
        times.append(result.times)
        values.append(result.embeddings)
    joined = np.concatenate(values) if values else np.zeros((0, 0), np.float32)
    return paths, np.concatenate(times), joined


def _write_npz(path: Path, about: dict[str, Any], rows: Iterable[tuple[str, Embedded]]) -> int:
    paths, times, embeddings = _joined(rows)
    arrays: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
    arrays |= {"embeddings": embeddings, "paths": np.array(paths, str), "times": times}
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
    return len(paths)


def _write_parquet(path: Path, about: dict[str, Any], rows: Iterable[tuple[str, Embedded]]) -> int:
    """A row has ``path`` as text, ``path_bytes``, ``start``, ``end`` and a flat ``embedding``."""
    arrow = _pyarrow()
    paths, times, embeddings = _joined(rows)
    width = int(np.prod(embeddings.shape[1:]))
    flat = arrow.array(embeddings.reshape(-1), arrow.float32())
    table = arrow.table(
        {
            "path": [valid_utf8(name) for name in paths],
            "path_bytes": arrow.array(map(os.fsencode, paths), arrow.binary()),
            "start": times[:, 0],
            "end": times[:, 1],
            "embedding": arrow.FixedSizeListArray.from_arrays(flat, width or 1),
        }
    ).replace_schema_metadata({name: str(value) for name, value in about.items()})
    with atomic_path(path) as temporary:
        arrow.parquet.write_table(table, temporary)
    return len(paths)


def _write_folder(path: Path, about: dict[str, Any], rows: Iterable[tuple[str, Embedded]]) -> int:
    """Write each track as it is done; the table at the end."""
    if (path / ABOUT).is_file():
        before = json.loads((path / ABOUT).read_text("utf-8"))
        if before != about:
            what = "holds embeddings of another model or block"
            raise InputError(what, kind="mismatch", path=path, hint=_OTHER)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / ABOUT, about)

    lines: list[tuple[Any, ...]] = []
    for name, result in rows:
        file = f"{name}.npy"
        with atomic_path(path / file) as temporary:
            np.save(temporary, result.embeddings)
        spans = enumerate(result.times.round(3).tolist())
        lines += [(file, row, os.fspath(result.path), *span) for row, span in spans]
    write_rows(path / TABLE, ("file", "row", "path", "start", "end"), lines)
    return len(lines)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "Install it, pip install pyarrow, or write a .npz."
        raise InputError("parquet needs pyarrow", kind="dependency", hint=hint) from error
    return pyarrow
