"""Run the command blocks of a Markdown page, in order, in a folder made for the page.

    python tests/support/pages.py docs/my-music.md

prints each block and what it prints. `make test-docs` runs all pages.

A ``bash`` fence runs by ``bash -e``. ``python`` fences run in one process, and share their names.
Fences of other languages are output or explanation. An HTML comment on the line before a fence
changes what is run:

    <!-- not run: it needs a GPU -->                the settings of its ex_*.py lines, and the
                                                    options of its maest lines, are only checked
    <!-- run with: trainer.max_epochs=1 -->         added to each ex_*.py line
    <!-- run: a-script.sh -->                       docs/miniature/a-script.sh is run first

The folder is a copy of the checkout: its Python is active, and no network can be reached. HOME is
elsewhere, and empty. There are also

    my/music/song.mp3              30 s of real music, datasets/recordings/excerpt.ogg
    my/music/ARTIST/ALBUM/1.mp3    and 2.mp3, 12 s each, of eight artists, one in FLAC
    my/labels.csv                  path,label; paths start at my/, the labels are calm and driving
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds that a block may take
_LANGUAGES = ("bibtex", "bash", "console", "css", "csv", "html", "ini", "json", "markdown")
_LANGUAGES += ("python", "text", "toml", "xml", "yaml")
_COMMENT = re.compile(r"<!-- *(not run|run with|run): *(.*?) *-->")
_ASSIGNED = re.compile(r"\w+=")  # of the environment, before a command
_SCRIPTS = ("ex_maest.py", "ex_tl.py")
# Of the environment only this is kept: settings of a person's shell change nothing.
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")


class PageError(Exception):
    """A block that fails, or that cannot be understood."""


@dataclass(frozen=True)
class Block:
    """A fence of a page, and what the comment before it says."""

    line: int  # of the page, from 1: the first of the code
    language: str
    code: str
    action: str = ""  # not run, run with, run
    argument: str = ""


# ---- what a page says ----------------------------------------------------------------------------


def blocks(text: str, first: int = 1) -> list[Block]:
    """Find the fences of a page, also those in notes. PageError: a language or comment is wrong."""
    from markdown_it import MarkdownIt

    lines, found = text.splitlines(), []
    for token in MarkdownIt().parse(text):
        if token.type != "fence" or token.map is None:
            continue
        language, start = token.info.strip().partition(" ")[0], token.map[0]
        line = first + start + 1
        if language.startswith("{"):
            if language not in ("{eval-rst}", "{math}", "{toctree}"):
                found += blocks(token.content, line)
            continue
        if language not in _LANGUAGES:
            raise PageError(f"line {line - 1}: {language!r} is not one of {', '.join(_LANGUAGES)}")
        before = lines[start - 1].strip() if start else ""
        action = argument = ""
        if before.startswith("<!--"):
            if (comment := _COMMENT.fullmatch(before)) is None:
                raise PageError(
                    f"line {line - 2}: {before} is no comment of tests/support/pages.py"
                )
            action, argument = comment.groups()
        found.append(Block(line, language, token.content, action, argument))
    return found


def with_settings(code: str, settings: str) -> str:
    """Add settings to each command of ``ex_maest.py`` and ``ex_tl.py``."""
    done = []
    for line in _logical_lines(code):
        for start, end in reversed(list(_commands(line))):
            command = line[start:end].rstrip()
            if any(script in command for script in _SCRIPTS):
                word = "" if re.search(r"(?<!\S)with(\s|$)", command) else "with "
                end = start + len(command)
                line = f"{line[:end]} {word}{settings}{line[end:]}"
        done.append(line)
    return "\n".join(done) + "\n"


def typed(code: str, program: str) -> Iterator[list[str]]:
    """Yield the words after a program's or script's name, of each command that has it."""
    for line in _logical_lines(code):
        for start, end in _commands(line):
            with contextlib.suppress(ValueError):  # an open quote: no command
                words = shlex.split(line[start:end])
                while words and _ASSIGNED.match(words[0]):
                    del words[0]
                # A script may come after "python", "srun python" …
                if program in words and (program.endswith(".py") or words[0] == program):
                    yield words[words.index(program) + 1 :]


def _logical_lines(code: str) -> list[str]:
    return re.sub(r"\\\n\s*", "", code).splitlines()


def _commands(line: str) -> Iterator[tuple[int, int]]:
    """Yield where each command of a line begins and ends: at ; & | < > and comments."""
    start, quote = 0, ""
    for i, letter in enumerate(line):
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        elif letter == "#" and (i == 0 or line[i - 1].isspace()):
            yield start, i
            return
        elif letter in ";&|<>":
            yield start, i
            start = i + 1
    yield start, len(line)


# ---- the folder ----------------------------------------------------------------------------------


def make_music(folder: Path) -> None:
    """Write ``music/`` and ``labels.csv``."""
    import numpy as np
    import soundfile
    from mutagen import File

    rate, rows = 22_050, []

    def write(path: Path, sound: np.ndarray, rate: int, **tags: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound, rate)
        file = File(path, easy=True)
        if file.tags is None:
            file.add_tags()
        file.update(tags)
        file.save()

    excerpt, excerpt_rate = soundfile.read(ROOT / "datasets/recordings/excerpt.ogg")
    song = folder / "music/song.mp3"
    write(song, excerpt, excerpt_rate, artist="Song", album="Songs", title="A song")
    artists = ("aspen", "birch", "cedar", "elm", "hazel", "larch", "maple", "willow")
    for number, artist in enumerate(artists):
        label, suffix = ("calm", "driving")[number % 2], ".flac" if artist == "elm" else ".mp3"
        for track in (1, 2):
            sound = (_pad if label == "calm" else _beat)(12, rate, 10 * number + track)
            path = folder / f"music/{artist}/{artist}-songs/{track}{suffix}"
            title, album = f"{artist} {track}".title(), f"{artist} songs".title()
            write(path, sound, rate, artist=artist.title(), album=album, title=title)
            rows.append((path.relative_to(folder).as_posix(), label))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "label"), *rows])


def _pad(seconds: float, rate: int, seed: int) -> Any:
    """Chords that swell and fade: float [samples]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    sound = rng.uniform(0.001, 0.01) * rng.standard_normal(len(t))
    for start in np.arange(0, seconds, 3):
        root = 110 * 2 ** (rng.integers(0, 12) / 12)
        level = np.clip(1 - abs(t - start - 1.5) / 2.2, 0, 1) ** 2
        for step in (0, 4 - seed % 2, 7, 12, 16 - seed % 2):
            partials = sum(
                np.sin(2 * np.pi * k * root * 2 ** (step / 12) * t) / k**2 for k in (1, 2, 3)
            )
            sound += 0.06 * level * partials
    return sound


def _beat(seconds: float, rate: int, seed: int) -> Any:
    """Drums and a bass: float [samples]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    beat = 60 / rng.uniform(90, 170)
    levels = rng.uniform(0.1, 1, 5)
    since = t % beat
    kick = np.sin(2 * np.pi * (50 * since + 6 * (1 - np.exp(-30 * since)))) * np.exp(-12 * since)
    hat = rng.standard_normal(len(t)) * np.exp(-60 * ((t + beat / 2) % (beat / 2)))
    snare = rng.standard_normal(len(t)) * np.exp(-18 * ((t + beat) % (2 * beat)))
    steps = (t / beat * 2).astype(int)
    notes = 55 * 2 ** (rng.choice([0, 3, 5, 7, 10], steps[-1] + 1) / 12)[steps]
    bass = (2 * (np.cumsum(notes) / rate % 1) - 1) * np.exp(-5 * (t % (beat / 2)))
    tune = notes * 2 ** rng.integers(2, 5) * (1 + 0.5 * rng.integers(0, 2))
    lead = np.sin(2 * np.pi * np.cumsum(tune) / rate) * np.exp(-rng.uniform(1, 9) * (t % beat))
    parts = (0.4 * kick, 0.1 * hat, 0.15 * snare, 0.15 * bass, 0.3 * lead)
    return 0.8 * sum(level * part for level, part in zip(levels, parts, strict=True))


def copy_checkout(folder: Path) -> None:
    """Copy what git would, so that what a page writes or edits stays in the folder."""
    query = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(query, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)


class Folder:
    """A folder for a page: a copy of the checkout, with music."""

    def __init__(self, root: Path, music: Path) -> None:
        self.work, beside = root / "maest", root / "beside"
        copy_checkout(self.work)
        shutil.copytree(music, self.work / "my")
        for path in (root / "home", beside / "bin", beside / "python"):
            path.mkdir(parents=True)
        # As if the copy were installed
        (beside / "python/maest").symlink_to(self.work / "maest")
        command = beside / "bin/maest"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maest "$@"\n')
        command.chmod(0o755)
        path = [str(Path(sys.executable).parent), str(beside / "bin"), os.environ["PATH"]]
        self.environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.environment |= {
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(beside / "python"),
            "HOME": str(root / "home"),
            "MPLCONFIGDIR": str(music.parent / "matplotlib"),  # its list of fonts takes seconds
            "MPLBACKEND": "Agg",
            "CUDA_VISIBLE_DEVICES": "",
            "PIP_NO_INDEX": "1",
            "HF_HUB_OFFLINE": "1",
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
        }
        self._python: subprocess.Popen | None = None

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._python:
            self._kill(self._python)

    def run(self, block: Block) -> str:
        """Run or check a block; return what it prints. PageError: it fails."""
        if block.action == "not run":
            return check(block.code) if block.language == "bash" else ""
        if block.language == "python":
            return self._run_python(block)
        if block.language != "bash":
            return ""
        code, before = block.code, ""
        if block.action == "run with":
            code = with_settings(code, block.argument)
        elif block.action == "run":
            script = self.work / "docs/miniature" / block.argument
            before = self._run_bash(script.read_text("utf-8"))
        return before + self._run_bash(code)

    def _start(self, line: list[str], **options: Any) -> subprocess.Popen:
        return subprocess.Popen(
            line,
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
            **options,
        )

    @staticmethod
    def _kill(process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _run_bash(self, code: str) -> str:
        process = self._start(["bash", "-e", "-c", code], stdin=subprocess.DEVNULL)
        try:
            out = process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            self._kill(process)
            raise PageError(f"it takes more than {LIMIT} s") from None
        if process.returncode:
            raise PageError(f"exit code {process.returncode}\n{_tail(out)}")
        return out

    def _run_python(self, block: Block) -> str:
        if self._python is None:
            driver = Path(__file__).with_name("python_blocks.py")
            line = [sys.executable, "-u", "-P", str(driver)]
            self._python = self._start(line, stdin=subprocess.PIPE)
        process, out = self._python, ""
        assert process.stdin
        assert process.stdout
        timer = threading.Timer(LIMIT, self._kill, [process])
        timer.start()
        try:
            process.stdin.write(json.dumps([block.line, block.code]) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                text, mark, result = line.partition("\0")
                out += text
                if mark:
                    if result.strip() != "done":
                        raise PageError(_tail(out))
                    return out
        finally:
            timer.cancel()
        self._python = None
        raise PageError(f"Python has ended\n{_tail(out)}")


def _tail(text: str, lines: int = 60) -> str:
    return "\n".join(text.splitlines()[-lines:])


# ---- blocks that are not run ---------------------------------------------------------------------


def check(code: str) -> str:
    """Check the settings and options of commands, without running them. PageError: wrong ones."""
    for script in _SCRIPTS:
        for words in typed(code, script):
            _check_settings(script, [word for word in words if "…" not in word])
    for words in typed(code, "maest"):
        _check_options([word for word in words if "…" not in word])
    return ""


def _check_settings(script: str, words: list[str]) -> None:
    from command_line import EXPERIMENTS, run

    command, settings = words[: words.index("with")] if "with" in words else words, words
    settings = words[len(command) :] if len(command) < len(words) else []
    if command[:1] == ["help"]:
        return
    if unknown := [word for word in command if word not in EXPERIMENTS[script].commands]:
        raise PageError(f"{script} has no command {unknown[0]!r}")
    if settings[:1] == ["with"] and len(settings) == 1:
        settings = []  # all of them are left to the reader
    with tempfile.TemporaryDirectory() as empty:
        done = run(script, ["print_config", *settings], Path(empty))
    if done.code:
        raise PageError(f"{script} {' '.join(words)}\n{_tail(done.out + done.err, 10)}")


def _check_options(words: list[str]) -> None:
    import typer

    from maest.command import create_app

    command: Any = typer.main.get_command(create_app())
    context, name = None, "maest"
    if {"-h", "--help", "--version"} & set(words):
        return
    try:
        while True:
            context = command.make_context(name, list(words), parent=context)
            words = [*getattr(context, "_protected_args", []), *context.args]
            if not words or not hasattr(command, "resolve_command"):
                return
            name, command, words = command.resolve_command(context, words)
    except Exception as error:  # click's, whose module typer hides
        message = error.format_message() if hasattr(error, "format_message") else repr(error)
        raise PageError(f"{name} {' '.join(words)}: {message}") from None


# ---- pages ---------------------------------------------------------------------------------------


def run_page(page: Path, folder: Path, music: Path, show: bool = False) -> int:
    """Run a page in a new folder; return how many blocks ran. PageError: the first that fails."""
    number, name = 0, os.path.relpath(page, ROOT)
    try:
        found = blocks(page.read_text("utf-8"))
    except PageError as error:
        raise PageError(f"{name}: {error}") from None
    with Folder(folder, music) as place:
        for block in found:
            if block.language not in ("bash", "python"):
                continue
            if show:
                about = f" ({block.action}: {block.argument})" if block.action else ""
                print(
                    f"\n\033[1m{name}:{block.line}{about}\033[0m\n{block.code.rstrip()}", flush=True
                )
            began = time.monotonic()
            try:
                out = place.run(block)
            except PageError as error:
                code = "" if show else f"\n\n{block.code.rstrip()}\n"
                raise PageError(f"{name}, line {block.line}:{code}\n{error}") from None
            number += block.action != "not run"
            if show:
                took = f"{time.monotonic() - began:.1f} s"
                print(f"\033[2m{out.rstrip()}\033[0m\n({took})", flush=True)
    return number


def main(pages: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="pages-") as temporary:
        music = Path(temporary) / "my"
        make_music(music)
        for number, page in enumerate(pages):
            folder = Path(temporary) / str(number)
            try:
                run_page(Path(page).resolve(), folder, music, show=True)
            except PageError as error:
                print(f"\nFailed: {error}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
