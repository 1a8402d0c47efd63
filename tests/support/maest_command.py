"""Runs the command `maest` in this process, with a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from music import save_small_model
from typer.testing import CliRunner

from maest.command import create_app
from maest.helpers.errors import InputError, Kind

LABELS = ["Electronic---Techno", "Mood---Dark", "Instrument---Violin"]


def save_model_of_moods(folder: Path, thresholds: list[float | None] | None = None) -> Path:
    """A model folder whose labels are of three groups."""
    save_small_model(folder, LABELS)
    if thresholds is not None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"thresholds": thresholds}))
    return folder


class Done:
    """A command that has run: exit code, output and errors; JSON, if it printed some."""

    def __init__(self, *line: Any) -> None:
        done = CliRunner().invoke(create_app(), [str(part) for part in line], prog_name="maest")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.code, self.out, self.err = done.exit_code, done.stdout, done.stderr

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def maest(*line: Any) -> Done:
    """Run a command that must succeed."""
    done = Done(*line)
    assert done.code == 0, done.out + done.err
    return done


def refused(kind: Kind, *line: Any) -> str:
    """Run a command that must be refused, in one line with a hint; return the line."""
    created: list[InputError] = []
    remember = InputError.__init__

    def noted(self: InputError, *values: Any, **options: Any) -> None:
        remember(self, *values, **options)
        created.append(self)

    InputError.__init__ = noted  # type: ignore[method-assign]
    try:
        done = Done(*line)
    finally:
        InputError.__init__ = remember  # type: ignore[method-assign]
    assert done.code == 1
    assert created[-1].kind == kind
    assert created[-1].hint
    assert done.err.splitlines()[-1].startswith("Error: ")
    return done.err.splitlines()[-1]
