"""Runs what a user types, in this process."""

from __future__ import annotations

import contextlib
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from maest.experiments.runs import run_command_line  # isort: skip (first: it quiets warnings)

import ex_maest
import ex_tl
from maest.experiments import runs
from maest.helpers.errors import InputError

EXPERIMENTS = {"ex_maest.py": ex_maest.ex, "ex_tl.py": ex_tl.ex}


@dataclass
class Done:
    """A command line that has been run: exit code, output and errors."""

    code: int
    out: str
    err: str


def run(script: str, line: str, cwd: Path) -> Done:
    """Run a command line in a folder of its own, as `python script line` would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command_line(EXPERIMENTS[script], [script, *line.split()])
        except SystemExit as exit:
            code = exit.code
    return Done(code, out.getvalue(), err.getvalue())


def good(script: str, line: str, cwd: Path) -> str:
    """Run a command line that must succeed."""
    done = run(script, line, cwd)
    assert done.code == 0, done.out[-3000:] + done.err[-3000:]
    return done.out


def bad(script: str, line: str, cwd: Path) -> str:
    """Run a command line that must fail with a message, not a traceback.

    The message says where the fault is, and what to do next.
    """
    refused: list[Exception] = []
    in_words = runs._message

    def look_at(error: Exception) -> str:
        refused.append(error)
        return in_words(error)

    with mock.patch.object(runs, "_message", look_at):
        done = run(script, line, cwd)
    assert done.code == 1, done.out + done.err
    assert "Traceback" not in done.err, done.err
    for error in refused:
        if isinstance(error, InputError):
            assert error.hint, error
            assert error.path or error.setting or error.kind in ("diverged", "worker"), error
    return done.err


def settings(toy) -> str:
    """The toy set as command-line settings."""
    values = toy.settings() | {"groundtruth_predict": toy.groundtruth("test")}
    return " ".join(f"datamodule.{name}={value}" for name, value in values.items())


def newest(home: Path) -> Path:
    """The folder of the last run in a working directory."""
    return max((home / "exp_logs").glob("[0-9]*"), key=lambda path: int(path.name))


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a run's history.csv, without the metrics that an epoch does not have."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]
