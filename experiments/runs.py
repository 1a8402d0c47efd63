"""What both experiments share: how a Sacred experiment is configured, run and recorded.

Every run has a folder ``exp_logs/<id>/`` (in the working directory) with its configuration, its
output and its results. This module imports neither torch nor Lightning.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated.*")

import colorama  # noqa: E402
import sacred  # noqa: E402
from sacred import SETTINGS, commands, utils  # noqa: E402
from sacred.config import load_config_file  # noqa: E402
from sacred.dependencies import Source  # noqa: E402
from sacred.observers import FileStorageObserver  # noqa: E402
from sacred.run import Run  # noqa: E402
from sacred.serializer import flatten  # noqa: E402
from yaml import YAMLError  # noqa: E402

from maest.config import SENTENCES  # noqa: E402
from maest.config.command_line import FILES, check_arguments  # noqa: E402
from maest.config.reference import listing, sections  # noqa: E402
from maest.config.schema import parse, plain, settings_of  # noqa: E402
from maest.helpers.errors import InputError, Kind  # noqa: E402
from maest.helpers.files import atomic_path  # noqa: E402
from maest.helpers.signals import Stopped, stoppable  # noqa: E402

log = logging.getLogger(__name__)

LOG_DIR = Path("exp_logs")
_LIGHTNINGS = "MisconfigurationException"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PACKAGES = ("torch", "pytorch-lightning", "onnxruntime", "scikit-learn", "sacred")  # recorded
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning looks them up

SETTINGS.CONFIG.READ_ONLY_CONFIG = False
SETTINGS.CAPTURE_MODE = "sys"  # file descriptors are shared with worker processes
SETTINGS.DISCOVER_SOURCES = SETTINGS.DISCOVER_DEPENDENCIES = "none"  # see `_record`

# Sacred finds fault with every setting whose default is None, or may be (the schema checks them),
# and with runs that it does not record.
_NOISE = ("Changed type of config entry", "No observers have been added to this run")
logging.getLogger().addFilter(
    lambda record: not any(noise in record.getMessage() for noise in _NOISE)
)


class Experiment(sacred.Experiment):
    """One with typed settings, see :func:`configure`."""

    section: type
    aliases: Mapping[str, str]


class UserError(utils.SacredError):
    """Printed as its message alone, behind "Error:"."""

    __module__, __qualname__ = "builtins", "Error"  # what Sacred prints before it

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False)


class Interrupted(UserError, utils.SacredInterrupt):
    """A run that a signal has ended: Sacred keeps it as interrupted, and the exit code tells."""

    __module__, __qualname__ = "builtins", "Interrupted"

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def interruptible(state: Callable[[], str]) -> Iterator[None]:
    """Within this a signal ends the run at once: ``SIGTERM: stopped.`` and ``state()`` are printed.

    ``state`` says what is kept, and how to go on.
    """
    try:
        with stoppable():
            yield
    except Stopped as stop:
        message = f"{stop.signal.name}: stopped. {state()}".rstrip()
        raise Interrupted(message, stop.signal) from None


class RunFolder(FileStorageObserver):
    """Keeps a run in exp_logs/<id>/. A disk that is full by then costs the record, not the run."""

    complete = True

    def save_json(self, obj: Any, filename: str) -> None:
        path = Path(str(self.dir), filename)
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(flatten(obj), sort_keys=True, indent=2), "utf-8")
        except OSError as error:
            if self.complete:
                log.warning("%s: the record of this run is incomplete (%s)", path, error.strerror)
            self.complete = False


def is_first_process() -> bool:
    """Whether this is the one process of a training, or the first of several, which keeps the run.

    torchrun, SLURM and Lightning's own launcher say so in the environment.
    """
    if "RANK" not in os.environ and os.environ.get("NODE_RANK", "0") != "0":
        return False
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0) == 0


def configure(
    ex: Experiment,
    section: type,
    named: Mapping[str, Mapping],
    table: Mapping[str, tuple[str, str]],
    *,
    aliases: Mapping[str, str],
    elsewhere: Collection[str] = (),
) -> None:
    """Give an experiment its settings, named configs, commands, and run folders.

    Args:
        table: command → the file of ``experiments/`` whose function of the same name it calls, with
            (run, settings); and a sentence. The first is the default. A file is imported when it is
            needed: what was typed is checked before, and without torch.
        aliases: other names of sections of settings; of single settings, with a ``=`` behind.
        elsewhere: commands that go on where no run folder can be written; their results are not in
            it. One that begins with ``print_`` has none.
    """
    ex.section, ex.aliases = section, aliases
    ex.add_config(plain(section()))
    for name, changes in named.items():
        ex.add_named_config(name, deepcopy(dict(changes)))
        ex.named_configs[name].__doc__ = SENTENCES[name]
    ex.captured_out_filter = utils.apply_backspaces_and_linefeeds  # type: ignore[assignment]
    for name, (module, sentence) in table.items():
        function = _command(section, module, name)
        function.__name__, function.__doc__ = name, sentence
        ex.command(function, unobserved=name.startswith("print_"))
    ex.default_command = next(iter(table))  # type: ignore[assignment]

    @ex.config_hook
    def check(config: dict, command_name: str, logger: logging.Logger) -> dict:
        ex.observers.clear()
        recorded = not ex.commands[command_name].unobserved and is_first_process()
        SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = recorded  # which takes a program
        try:
            parse(section, config)
            if recorded:
                _record(ex)
        except InputError as error:
            if error.kind != "access" or command_name not in elsewhere:
                raise UserError(str(error)) from None
            log.warning("%s: %s: going on without it", error.path, error.message)
        return {}

    @ex.command(unobserved=True)
    def print_config(_run: Run) -> None:
        """Print all settings, and what each is; "auto" is worked out from others."""
        config, changes = deepcopy(_run.config), _run.config_modifications
        for known in settings_of(section):
            changes.docs[known.name] = known.meaning
            if known.auto and utils.get_by_dotted_path(config, known.name) is None:
                utils.set_by_dotted_path(config, known.name, "auto")
        commands.print_config(SimpleNamespace(config=config, config_modifications=changes))


def _record(ex: Experiment) -> None:
    """Have the run kept in its folder, with the versions of this program and of some packages."""
    try:
        LOG_DIR.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=LOG_DIR, buffering=0) as file:
            file.write(b"-" * 2**16)
    except OSError as error:
        raise InputError(
            f"the record of the run cannot be written here ({error.strerror})",
            kind="access",
            hint="Make room, or work in a folder that can be written to.",
            path=LOG_DIR.absolute(),
        ) from None
    ex.observers.append(RunFolder(LOG_DIR, copy_sources=False))
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            ex.add_package_dependency(package, version(package))
    with suppress(Exception):  # no git, no commit, or another user's repository
        ex.sources = {Source.create(ex.mainfile.filename, save_git_info=True)}


def _command(section: type, module: str, name: str) -> Callable:
    """A function for Sacred, which fills in ``_run`` and ``_config``."""

    def call(_run, _config):
        try:
            function = getattr(importlib.import_module(f"maest.experiments.{module}"), name)
            return function(_run, parse(section, _config))
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning ends the program where it is interrupted.
            if KeyboardInterrupt in (type(error), type(error.__context__)):
                raise Interrupted("SIGINT: stopped", signal.SIGINT) from None
            raise
        except Exception as error:
            if (message := _message(error)) is None:
                raise
            raise UserError(message) from error

    return call


def _message(error: Exception) -> str | None:
    """The message of an error that a user can mend; None of a fault of the program's."""
    if isinstance(error, OSError):  # one that names no file, and is none of ours, is a fault
        known = error.filename is not None or error.errno in (None, *_NO_ROOM)
    else:  # Lightning's class is not imported for this
        known = isinstance(error, InputError) or type(error).__name__ == _LIGHTNINGS
    text = str(error)
    if "Original Traceback" in text:  # passed on by a worker process: what it was there
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text if known else None


def run_dir(run: Run) -> Path:
    """The folder of a run; made here if no observer keeps one (Sacred's ``--unobserved``)."""
    for observer in run.observers:
        if isinstance(observer, FileStorageObserver) and observer.dir:
            return Path(observer.dir)
    folder = LOG_DIR / f"unobserved-{time.strftime('%Y%m%d-%H%M%S')}"
    if is_first_process():  # the others write nothing
        with suppress(OSError):  # what is to be written there will say it
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def newest_runs(file: str, log_dir: Path = LOG_DIR) -> list[Path]:
    """The folders of runs that have this file, by its time; links, as ``latest``, are left out."""
    folders = [folder for folder in log_dir.glob("*") if not folder.is_symlink()]
    holding = (folder for folder in folders if (folder / file).is_file())
    return sorted(holding, key=lambda folder: (folder / file).stat().st_mtime, reverse=True)


def same_command(*settings: str, without: Sequence[str] = ()) -> str:
    """The command line that was typed, with some settings changed or added, as key=value.

    Those whose keys are in ``without`` are left out.
    """
    keys = tuple(f"{setting.partition('=')[0]}=" for setting in (*settings, *without))
    arguments = [a for a in sys.argv[1:] if not (keys and a.startswith(keys))]
    if settings and "with" not in arguments:
        arguments.append("with")
    return shlex.join(["python", *sys.argv[:1], *arguments, *settings])


def _own_name(argument: str, aliases: Mapping[str, str]) -> str:
    """A setting under its own name; and ``dataset/…`` as ``datasets/…`` if only that exists."""
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    section, dot, rest = key.partition(".")
    key = aliases.get(f"{key}=") or f"{aliases.get(section + dot, section + dot)}{rest}"
    if value.startswith(("dataset/", "./dataset/")) and not Path(value).exists():
        right = value.replace("dataset/", "datasets/", 1)
        if Path(right).exists():
            log.warning("%s: read as %s", value, right)
            value = right
    return f"{key}={value}"


def _check_settings_file(path: str) -> None:
    """Raise InputError for a file that Sacred cannot take settings from."""
    hint = "Give a file such as exp_logs/4/config.json: sections, and settings in them."
    try:
        content = load_config_file(path)
    except (OSError, ValueError, YAMLError) as error:
        kind: Kind = "missing" if isinstance(error, OSError) else "corrupt"
        why = " ".join(str(getattr(error, "strerror", error)).split())
        what = f"cannot be read ({why})"
        raise InputError(what, kind=kind, path=path, hint=hint) from None
    if not isinstance(content, Mapping) or any("." in str(name) for name in content):
        raise InputError("no sections of settings", path=path, hint=hint)


def _help(ex: Experiment, name: str) -> int:
    """Print the help of a command, a section (or that of a setting), or both."""
    name = name.partition(".")[0]
    known = {**ex.commands, **dict(sections(ex.section))}
    if name not in known:
        raise InputError(
            "there is no such command or section of settings",
            kind="unknown",
            setting=name,
            hint=f"They are: {', '.join(known)}.",
        )
    if name in ex.commands:
        print(commands.help_for_command(ex.commands[name]))
    if isinstance(known[name], type):
        print(listing(ex.section, name))
    return 0


def run_command_line(ex: Experiment, argv: Sequence[str]) -> int:
    """Run what was typed; ``argv`` begins with the program's name. Returns the exit code."""
    arguments = [_own_name(argument, ex.aliases) for argument in argv[1:]]
    # For the processes that Lightning starts, and for `same_command`.
    sys.argv = [argv[0], *arguments]
    try:
        check_arguments(arguments, list(ex.commands), list(ex.named_configs))
        if arguments[:1] == ["help"] and len(arguments) > 1:
            return _help(ex, arguments[1])
        for name in arguments[1:]:
            if name.endswith(FILES) and "=" not in name:
                _check_settings_file(name)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if not is_first_process():  # the others say what stops them, and nothing else
        arguments = ["--loglevel=ERROR", *arguments]
    try:
        with colorama.colorama_text():  # a file or a pipe gets no codes
            run = ex.run_commandline([argv[0], *arguments])
    except KeyboardInterrupt:  # before or after the command itself
        print("SIGINT: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as end:
        if isinstance(end.__context__, Interrupted):
            return end.__context__.exit_code
        raise
    result = run.result if run is not None else None
    return 1 if isinstance(result, dict) and result.get("failed") else 0
