"""Configure, run and record a Sacred experiment, for both scripts.

Every run has a folder ``exp_logs/<id>/`` in the working directory with its configuration, output
and results. This module imports neither torch nor Lightning.
"""

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
import yaml  # noqa: E402
from sacred import SETTINGS, commands, utils  # noqa: E402
from sacred.dependencies import Source  # noqa: E402
from sacred.observers import FileStorageObserver  # noqa: E402
from sacred.run import Run  # noqa: E402
from sacred.serializer import flatten  # noqa: E402

from maest.config import SENTENCES  # noqa: E402
from maest.config.command_line import FILES, check_arguments  # noqa: E402
from maest.config.reference import listing, sections  # noqa: E402
from maest.config.schema import parse, plain, settings_of  # noqa: E402
from maest.helpers.errors import InputError, Kind  # noqa: E402
from maest.helpers.files.atomic import atomic_path  # noqa: E402
from maest.helpers.work.signals import Stopped, stoppable  # noqa: E402

log = logging.getLogger(__name__)

LOG_DIR = Path("exp_logs")
_LIGHTNINGS = "MisconfigurationException"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PACKAGES = ("torch", "pytorch-lightning", "onnxruntime", "scikit-learn", "sacred")  # recorded
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning looks them up

SETTINGS.CONFIG.READ_ONLY_CONFIG = False
SETTINGS.CAPTURE_MODE = "sys"  # file descriptors are shared with worker processes
SETTINGS.DISCOVER_SOURCES = SETTINGS.DISCOVER_DEPENDENCIES = "none"  # see `_record`

# Sacred warns of every setting whose default or value may be None (the schema checks them), and
# of runs that it does not record.
_NOISE = ("Changed type of config entry", "No observers have been added to this run")
logging.getLogger().addFilter(
    lambda record: not any(noise in record.getMessage() for noise in _NOISE)
)


class Experiment(sacred.Experiment):
    """An experiment with typed settings, see :func:`configure`."""

    section: type
    aliases: Mapping[str, str]


class UserError(utils.SacredError):
    """An error that Sacred prints as its message alone, behind "Error:"."""

    __module__, __qualname__ = "builtins", "Error"  # Sacred prints the name

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False)


class Interrupted(UserError, utils.SacredInterrupt):
    """A signal has ended the run; ``exit_code`` is 128 + its number."""

    __module__, __qualname__ = "builtins", "Interrupted"

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def interruptible(state: Callable[[], str]) -> Iterator[None]:
    """On a signal, end the run and print ``state()``, which says what is kept."""
    try:
        with stoppable():
            yield
    except Stopped as stop:
        message = f"{stop.signal.name}: stopped. {state()}".rstrip()
        raise Interrupted(message, stop.signal) from None


class RunFolder(FileStorageObserver):
    """Keeps a run in exp_logs/<id>/. A full disk costs the record, not the run."""

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
    """Return whether this process keeps the run, as torchrun, SLURM or Lightning have set it."""
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

    ``table`` maps command → (file, sentence): the file of ``experiments/`` has a function of the
    command's name, called with (run, settings). The first command is the default. Files are
    imported on use, so that settings are checked without torch. ``aliases`` are other names of
    sections, or with ``=`` at the end of settings. Commands in ``elsewhere`` go on without a run
    folder if none can be written; ``print_`` commands have none.
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
        SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = recorded  # it runs another program
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
    try:
        LOG_DIR.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=LOG_DIR, buffering=0) as file:
            file.write(b"-" * 2**16)
    except OSError as error:
        message = f"the record of the run cannot be written here ({error.strerror})"
        hint, path = "Make room, or work in a folder that can be written to.", LOG_DIR.absolute()
        raise InputError(message, kind="access", hint=hint, path=path) from None
    ex.observers.append(RunFolder(LOG_DIR, copy_sources=False))
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            ex.add_package_dependency(package, version(package))
    with suppress(Exception):  # no git, no commit, or another user's repository
        ex.sources = {Source.create(ex.mainfile.filename, save_git_info=True)}


def _command(section: type, module: str, name: str) -> Callable:
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
    """Return the message of an error that a user can fix; None for a bug."""
    if isinstance(error, OSError):  # an unknown one without a file is a bug
        known = error.filename is not None or error.errno in (None, *_NO_ROOM)
    else:  # by name, as importing Lightning's class is slow
        known = isinstance(error, InputError) or type(error).__name__ == _LIGHTNINGS
    text = str(error)
    if "Original Traceback" in text:  # from a worker process: its message there
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text if known else None


def run_dir(run: Run) -> Path:
    """Return the run's folder; create one if no observer keeps it (Sacred's ``--unobserved``)."""
    for observer in run.observers:
        if isinstance(observer, FileStorageObserver) and observer.dir:
            return Path(observer.dir)
    folder = LOG_DIR / f"unobserved-{time.strftime('%Y%m%d-%H%M%S')}"
    if is_first_process():  # the others write nothing
        with suppress(OSError):  # writing there will raise it
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def newest_runs(file: str, log_dir: Path = LOG_DIR) -> list[Path]:
    """Return folders of runs that have this file, newest first, without links (``latest``)."""
    folders = [folder for folder in log_dir.glob("*") if not folder.is_symlink()]
    holding = (folder for folder in folders if (folder / file).is_file())
    return sorted(holding, key=lambda folder: (folder / file).stat().st_mtime, reverse=True)


def same_command(*settings: str, without: Sequence[str] = ()) -> str:
    """Return the typed command line with key=value settings changed, added, or ``without`` some."""
    keys = tuple(f"{setting.partition('=')[0]}=" for setting in (*settings, *without))
    arguments = [a for a in sys.argv[1:] if not (keys and a.startswith(keys))]
    if settings and "with" not in arguments:
        arguments.append("with")
    return shlex.join(["python", *sys.argv[:1], *arguments, *settings])


def _own_name(argument: str, aliases: Mapping[str, str]) -> str:
    """Replace aliases in a setting, and ``dataset/…`` by ``datasets/…`` if only that exists."""
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
    """Raise InputError for a file without settings, or with more than plain JSON or YAML.

    Sacred's readers make the Python objects that a file names, and so may run code.
    """
    hint = "Give a file such as exp_logs/4/config.json: sections, and settings in them."
    try:
        text = Path(path).read_text("utf-8")
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        kind: Kind = "missing" if isinstance(error, OSError) else "corrupt"
        why = " ".join(str(getattr(error, "strerror", error)).split())
        raise InputError(f"cannot be read ({why})", kind=kind, path=path, hint=hint) from None
    if not isinstance(content, Mapping) or any("." in str(name) for name in content):
        raise InputError("no sections of settings", path=path, hint=hint)
    if found := set(_names(content)) - {"py/tuple"}:
        what = f"an object of Python ({min(found)}) in the place of a setting"
        raise InputError(what, kind="unsupported", path=path, hint=hint)


def _names(value: Any) -> Iterator[str]:
    """Yield the names, at any depth, by which jsonpickle makes objects."""
    if isinstance(value, Mapping):
        yield from (str(name) for name in value if str(name).startswith("py/"))
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _names(part)


def _help(ex: Experiment, name: str) -> int:
    name = name.partition(".")[0]
    known = {**ex.commands, **dict(sections(ex.section))}
    if name not in known:
        message = "there is no such command or section of settings"
        hint = f"They are: {', '.join(known)}."
        raise InputError(message, kind="unknown", setting=name, hint=hint)
    if name in ex.commands:
        print(commands.help_for_command(ex.commands[name]))
    if isinstance(known[name], type):
        print(listing(ex.section, name))
    return 0


def run_command_line(ex: Experiment, argv: Sequence[str]) -> int:
    """Run a command line, which begins with the program's name; return the exit code."""
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
    if not is_first_process():  # the others print only errors
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
