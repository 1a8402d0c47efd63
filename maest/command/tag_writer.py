"""Write the tags of ``maest tag --write``, go on where a run was stopped, and count."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maest.file_tags import (
    SUFFIXES,
    Options,
    Skip,
    apply,
    done_before,
    note_done,
    open_log,
    plan,
)
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import remove_leftovers

if TYPE_CHECKING:
    from maest.analysis import Tagged


class TagWriter:
    """Writes tags into files, or with ``dry_run`` says what it would write.

    A file that an earlier run with the same settings left so is :meth:`done`. InputError: as
    `file_tags.open_log`.
    """

    def __init__(
        self, given: Sequence[Path], log: Path | None, options: Options, dry_run: bool
    ) -> None:
        self._options, self._dry_run, self._begun = options, dry_run, False
        self._log = log if log is not None else _log_of(given)
        self._counts: Counter[str] = Counter()
        if not dry_run:
            open_log(self._log)
            for folder in filter(Path.is_dir, given):
                remove_leftovers(folder, SUFFIXES)

    def start(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of this run, as JSON's types, and look what was done with them."""
        options = {"replace": self._options.replace, "comment": self._options.comment}
        self._settings = {**settings, **options}
        self._done_before = done_before(self._log, self._settings)

    def done(self, path: Path) -> bool:
        """Tell whether a file needs no more; it is counted."""
        done = self._done_before(path)
        self._counts["done before"] += done
        return done

    def write(self, song: Tagged) -> dict[str, Any]:
        """Write a song's tags; return the `Edit`\\ s that are its "changes", or why it was
        "skipped", or has "failed".
        """
        change = plan(song.path, song.tags, self._options)
        if isinstance(change, Skip):
            self._counts[f"skipped ({change.reason})"] += 1
            if change.kind in ("same", "kept"):
                self._note(song.path)
            return {"skipped": change.reason}
        if not self._dry_run:
            self._begun = True
            try:
                apply(change, self._log)
            except InputError as error:
                self._counts["not written"] += 1
                return {"failed": str(error) if error.path == self._log else error.reason}
            self._note(song.path)
        self._counts["to be written" if self._dry_run else "written"] += 1
        return {"changes": change.edits}

    def summary(self) -> list[str]:
        """Return what was done, as "3 written"; and how to put it back."""
        parts = [f"{number} {what}" for what, number in self._counts.items() if number]
        if self._begun:
            parts.append(f"to put back: maest tag --undo {shlex.quote(str(self._log))}")
        return parts

    def _note(self, path: Path) -> None:
        if not self._dry_run:
            note_done(self._log, path, self._settings)


def _log_of(given: Sequence[Path]) -> Path:
    """Return the log of this music in the user's data folder."""
    import platformdirs

    paths = [os.fsencode(path.expanduser().absolute()) for path in given]
    digest = hashlib.blake2b(b"\0".join(paths), digest_size=4).hexdigest()
    name = "".join(c if c.isalnum() else "-" for c in given[0].absolute().name)[:40]
    return platformdirs.user_data_path("maest") / "tags" / f"{name}-{digest}.jsonl"
