"""Write the tags of ``maest tag --write``, go on where a run was stopped, and count."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maest.file_tags import SUFFIXES, Change, Options, apply, done_before, note_done, plan
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import remove_leftovers

if TYPE_CHECKING:
    from maest.analysis import Tagged


class TagWriter:
    """Writes tags into files, or with ``dry_run`` says what it would write.

    A file that is as an earlier run with these ``settings`` left it is :meth:`done`.
    """

    def __init__(
        self,
        given: Sequence[Path],
        log: Path | None,
        dry_run: bool,
        settings: Mapping[str, Any],
        replace: bool,
        comment: bool,
        keep_dates: bool,
    ) -> None:
        self._options, self._dry_run = Options(replace, comment, keep_dates), dry_run
        self._settings = {**settings, "replace": replace, "comment": comment}
        self.log = log if log is not None else _log_of(given)
        self._done_before = done_before(self.log, self._settings)
        self._counts: Counter[str] = Counter()
        if not dry_run:
            for folder in filter(Path.is_dir, given):
                remove_leftovers(folder, SUFFIXES)

    def done(self, path: Path) -> bool:
        """Tell whether a file needs no more; it is counted."""
        done = self._done_before(path)
        self._counts["done before"] += done
        return done

    def write(self, song: Tagged) -> dict[str, Any]:
        """Write a song's tags; return what was done, for programs, and as lines that are "shown".

        "changes" are fields, with their texts before and after; "skipped" and "failed" are reasons.
        """
        change = plan(song.path, song.tags, self._options)
        if not isinstance(change, Change):
            self._counts[f"skipped ({change.reason})"] += 1
            if change.kind in ("same", "kept"):
                self._note(song.path)
            return {"skipped": change.reason, "shown": [f"not written: {change.reason}"]}
        changes = [
            {"field": edit.field, "before": edit.before, "after": edit.after}
            for edit in change.edits
        ]
        lines = str(change).splitlines()[1:]
        shown = [line.strip() for line in lines]
        if self._dry_run:
            self._counts["to be written"] += 1
            return {"changes": changes, "shown": shown}
        try:
            apply(change, self.log)
        except InputError as error:
            self._counts["not written"] += 1
            return {"failed": error.reason, "shown": [f"not written: {error.reason}"]}
        self._note(song.path)
        self._counts["written"] += 1
        return {"changes": changes, "shown": shown}

    def summary(self) -> list[str]:
        """Return what was done, as "3 written"; and how to put it back."""
        parts = [f"{number} {what}" for what, number in self._counts.items() if number]
        if self._counts["written"]:
            parts.append(f"to put back: maest tag --undo {shlex.quote(str(self.log))}")
        return parts

    def _note(self, path: Path) -> None:
        if not self._dry_run:
            note_done(self.log, path, self._settings)


def _log_of(given: Sequence[Path]) -> Path:
    """Return the log of this music in the user's data folder."""
    import platformdirs

    paths = [os.fsencode(path.expanduser().absolute()) for path in given]
    digest = hashlib.blake2b(b"\0".join(paths), digest_size=4).hexdigest()
    name = "".join(c if c.isalnum() else "-" for c in given[0].absolute().name)[:40]
    return platformdirs.user_data_path("maest") / "tags" / f"{name}-{digest}.jsonl"
