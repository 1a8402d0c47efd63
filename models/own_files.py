"""The files of a model in a folder: written whole, and never over what others put there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from maest.helpers.errors import InputError
from maest.helpers.files import atomic_path


@contextmanager
def own_files(
    folder: str | Path, names: Sequence[str], ours: bool, gone: Sequence[str] = ()
) -> Iterator[dict[str, Path]]:
    """Yield a temporary path for each name; then they replace the older files in ``folder``.

    All are complete before the first gets its name; the first of ``names`` gets its name last.

    Args:
        folder: made if it is missing; other files in it stay.
        names: of the files.
        ours: whether files of these names, if there are any, are this program's.
        gone: names of files that an older model had and the new one has not: they are removed.

    Raises:
        InputError: "exists" if they are not; "access" if they cannot be written.
    """
    folder = Path(folder)
    taken = [name for name in (*names, *gone) if (folder / name).exists() and not ours]
    if taken:
        raise InputError(
            f"this program did not write {' and '.join(taken)} in it, or it was changed since",
            kind="exists",
            hint="Choose another folder, or move it away.",
            path=folder,
        )
    missing = not folder.exists()
    try:
        with ExitStack() as stack:
            yield {name: stack.enter_context(atomic_path(folder / name)) for name in names}
            for name in gone:
                (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot be written: {reason}. What was there is unchanged",
            kind="access",
            hint="Make room or choose another folder.",
            path=folder,
        ) from error
    finally:
        if missing:
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()


def read_config(folder: str | Path, name: str) -> dict[str, Any]:
    """A folder's JSON object of that name; empty if there is none."""
    try:
        config = json.loads((Path(folder) / name).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
