"""Runs what a user types, in this process."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from maest.experiments.runs import run_command_line  # isort: skip (first: it quiets warnings)

from folders import rows

import ex_maest
import ex_tl
from maest.helpers.errors import InputError, Kind

EXPERIMENTS = {"ex_maest.py": ex_maest.ex, "ex_tl.py": ex_tl.ex}


@dataclass
class Done:
    """A command line that has been run: exit code, output and errors."""

    code: int
    out: str
    err: str


def run(script: str, line: str | Sequence[str], cwd: Path) -> Done:
    """Run a command line in a folder, as `python script line` would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            words = line.split() if isinstance(line, str) else line
            code = run_command_line(EXPERIMENTS[script], [script, *words])
        except SystemExit as exit:
            code = exit.code
    return Done(code, out.getvalue(), err.getvalue())


def good(script: str, line: str, cwd: Path) -> str:
    """Run a command line that must succeed."""
    done = run(script, line, cwd)
    assert done.code == 0, done.out[-3000:] + done.err[-3000:]
    return done.out


def bad(script: str, line: str, cwd: Path) -> str:
    """Run a command line that must fail with a message, not a traceback; returns the message.

    It says where the fault is, and what to do next.
    """
    return _refused(script, line, cwd)[1]


def refused(
    script: str, line: str, cwd: Path, kind: Kind, setting: str | None = None, place: str = ""
) -> InputError:
    """Run a command line that must be refused: with an error of this kind, of this setting.

    ``place`` is how the path that is at fault ends.
    """
    error, text = _refused(script, line, cwd)
    assert error, text
    assert (error.kind, error.setting) == (kind, setting), f"{error.kind}: {error}"
    assert str(error.path or "").endswith(place), error
    return error


def _refused(script: str, line: str, cwd: Path) -> tuple[InputError | None, str]:
    errors: list[InputError] = []
    in_words = InputError.__str__

    def noted(error: InputError) -> str:
        errors.append(error)
        return in_words(error)

    with mock.patch.object(InputError, "__str__", noted):
        done = run(script, line, cwd)
    assert done.code == 1, done.out + done.err
    assert "Traceback" not in done.err, done.err
    error = next((e for e in reversed(errors) if in_words(e) in done.err), None)
    if error:
        assert error.hint, error
        assert error.path or error.setting or error.kind in ("diverged", "worker"), error
    return error, done.err


def settings(toy) -> str:
    """The toy set as command-line settings."""
    values = toy.settings() | {"groundtruth_predict": toy.groundtruth("test")}
    return " ".join(f"datamodule.{name}={value}" for name, value in values.items())


def newest(home: Path) -> Path:
    """The folder of the last run in a working directory."""
    return max((home / "exp_logs").glob("[0-9]*"), key=lambda path: int(path.name))


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a run's history.csv, without the metrics that an epoch does not have."""
    return [{name: float(value) for name, value in row.items() if value} for row in rows(path)]
