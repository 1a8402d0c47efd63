"""How the benchmarks measure: a process a measurement, ways in turns, medians, one kind of record.

A measurement is a function at the top of a benchmark: JSON in, a dict of figures out. A child
process calls it, in which ``maest`` is this checkout, or an older one to compare with: the
function imports what it measures itself, by names that both have. To its figures come ``peak_mib``
and ``child_peak_mib``, the highest resident sets of that process and of one that it started.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

OLDER_NAMES = {
    "audio.reading": "audio",
    "audio.mel": "melspectrogram",
    "training.augment": "augment",
    "training.throughput": "throughput",
}
ROOT = TREE = Path(__file__).resolve().parent.parent  # TREE: what a child measures
if __name__ != "__main__":
    sys.path.append(str(ROOT))  # of a benchmark that was started as a script

Figures = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A measurement, and whose code it is of."""

    work: Callable[..., Figures]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tree: Path = ROOT

    def measured(self, apart: bool = True) -> Figures:
        """The figures, of a process of its own or of this one; both work in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="maest-benchmark-") as folder:
            if not apart:
                with chdir(folder):
                    return self.work(**self.arguments)
            request = {
                "file": sys.modules[self.work.__module__].__file__,
                "function": self.work.__name__,
                "arguments": dict(self.arguments),
                "tree": str(self.tree),
            }
            Path(folder, "request.json").write_text(json.dumps(request, default=str), "utf-8")
            line = [sys.executable, __file__, folder]
            done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{request}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
            return json.loads(Path(folder, "figures.json").read_text("utf-8"))


def with_before(ways: Mapping[str, Way], tree: Path | None) -> dict[str, Way]:
    """The ways, and before each of ours (by its name) the same of an older checkout."""
    before = {
        f"before: {name}": replace(way, tree=tree.resolve())
        for name, way in ways.items()
        if tree and name.startswith("ours")
    }
    return before | dict(ways)


def in_turns(ways: Mapping[str, Way], repeats: int, apart: bool = True) -> dict[str, list[Figures]]:
    """Measure each way so often; what else the machine does falls on all of them alike."""
    runs: dict[str, list[Figures]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            print(f"  turn {turn + 1}: {name}", file=sys.stderr, flush=True)
            runs[name].append(way.measured(apart))
    return runs


def medians(runs: Mapping[str, Sequence[Figures]]) -> dict[str, Figures]:
    """Of each way the median of each figure, and ``all_seconds`` of its turns, as measured."""
    rows: dict[str, Figures] = {}
    for name, found in runs.items():
        names = [key for key, value in found[0].items() if isinstance(value, int | float)]
        rows[name] = {key: statistics.median(run[key] for run in found) for key in names}
        if "seconds" in names:
            rows[name]["all_seconds"] = [run["seconds"] for run in found]
    return rows


def times_as_fast(rows: Mapping[str, Figures], base: str) -> None:
    """Add to each row how many times as fast it is as the base, or as the first row."""
    seconds = rows.get(base, next(iter(rows.values())))["seconds"]
    for row in rows.values():
        row["times_as_fast"] = seconds / row["seconds"]


def command(line: Sequence[str | Path], exit_code: int = 0) -> Figures:
    """Run a command: ``seconds`` by the clock, ``cpu_seconds`` of it and what it started.

    ``peak_mib`` is the highest resident set of the command itself.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        with watching(highest_child if sys.platform == "linux" else float) as peak:
            process = subprocess.Popen(line, stdout=output, stderr=output)
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        if process.returncode != exit_code:
            output.seek(0)
            raise RuntimeError(f"{line}: {process.returncode}\n{output.read().decode()[-4000:]}")
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak[0]}


# ---------------------------------------------------------------- memory, on Linux


def memory_mib(field: str = "VmRSS", process: int | str = "self") -> float:
    """A figure of /proc/<process>/status: VmRSS, RssAnon, or VmHWM, the highest VmRSS."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def watching(look: Callable[[], float], every: float = 0.05) -> Iterator[list[float]]:
    """The highest value so far of what changes while the block runs, in a list of one."""
    highest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            highest[0] = max(highest[0], look())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        done.set()
        watcher.join()
        highest[0] = max(highest[0], look())


def highest_child() -> float:
    """The highest resident set of a process that this one started and that still runs, MiB."""
    highest = 0.0
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            for child in task.read_text().split():
                highest = max(highest, memory_mib("VmHWM", child))
    return highest


# ---------------------------------------------------------------- the command line, and the record


def start_record(args: argparse.Namespace, packages: Sequence[str]) -> dict[str, Any]:
    """When, where and of what a record's figures are."""
    import torch

    from maest.helpers.reports.report import machine, versions

    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    given = {n: v for n, v in vars(args).items() if v is not None and not isinstance(v, Path)}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions() | found,
        "threads": torch.get_num_threads(),
        "arguments": given,
    }


class Bench:
    """A run of a benchmark: its options, its ways in turns, and its record."""

    def __init__(
        self,
        text: str | None,
        given: Sequence[str] | None,
        packages: Sequence[str],
        repeats: int = 3,
        **options: tuple[Any, Any],
    ) -> None:
        """``options``: name → its value, and that of a quick trial; ``given`` goes before both."""
        parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
        parser.add_argument("--repeats", type=int, help=f"turns of each way ({repeats})")
        parser.add_argument("--ways", nargs="+", help="some of them, by name")
        parser.add_argument("--against", type=Path, metavar="TREE", help="older checkout, in turns")
        parser.add_argument("--quick", action="store_true", help="does it run? Small, one process")
        parser.add_argument("--record", type=Path, help="write the figures to this JSON")
        for name, (value, _) in options.items():
            kind = {"type": type(value)}
            if isinstance(value, list):
                kind = {"type": type(value[0]), "nargs": "+"}
            parser.add_argument(f"--{name.replace('_', '-')}", help=f"({value})", **kind)
        self.args = parser.parse_args(given)
        for name, values in (options | {"repeats": (repeats, 1)}).items():
            if getattr(self.args, name) is None:
                setattr(self.args, name, values[self.args.quick])
        self.record = start_record(self.args, packages)
        if self.args.against:
            line = ["git", "-C", self.args.against, "rev-parse", "--short", "HEAD"]
            done = subprocess.run(line, capture_output=True, text=True)
            self.record["before"] = done.stdout.strip()

    def measure(self, ways: Mapping[str, Way], apart: bool | None = None) -> dict[str, Figures]:
        """Medians of the ways that were asked for, in turns, beside an older checkout's.

        A quick trial is in this process, unless ``apart`` or with an older checkout.
        """
        unknown = sorted(set(self.args.ways or ()) - set(ways))
        if unknown:
            raise SystemExit(f"no such way: {unknown}; there are {sorted(ways)}")
        some = {name: way for name, way in ways.items() if name in (self.args.ways or ways)}
        apart = bool(self.args.against or not self.args.quick) if apart is None else apart
        return medians(in_turns(with_before(some, self.args.against), self.args.repeats, apart))

    def show(self, title: str, rows: Mapping[str, Figures], columns: Mapping[str, str]) -> None:
        """Print a table, and record it: a column's title → the format of a row's figures."""
        from maest.helpers.files.atomic import write_json
        from maest.helpers.reports.report import table

        def cell(form: str, row: Figures) -> str:
            with suppress(KeyError):
                return form.format(**row)
            return ""

        lines = [[name, *(cell(c, row) for c in columns.values())] for name, row in rows.items()]
        print(f"\n{title}\n\n{table(['', *columns], lines)}", flush=True)
        self.record.setdefault("results", {})[title] = rows
        if self.args.record:
            write_json(self.args.record, self.record)


# ---------------------------------------------------------------- the child process


def _child(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text("utf-8"))
    global TREE
    TREE, file = Path(request["tree"]), Path(request["file"])
    sys.path[:0] = [str(TREE), str(file.parent)]
    if (TREE / "helpers/audio.py").is_file():  # of the time before helpers had rooms
        for name, older in OLDER_NAMES.items():
            sys.modules[f"maest.helpers.{name}"] = import_module(f"maest.helpers.{older}")
    sys.modules["harness"] = sys.modules["__main__"]
    module = import_module(file.stem)
    with watching(highest_child if sys.platform == "linux" else float) as child:
        figures = getattr(module, request["function"])(**request["arguments"])
    if sys.platform == "linux":
        figures = {"peak_mib": memory_mib("VmHWM"), "child_peak_mib": child[0]} | figures
    (folder / "figures.json").write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
