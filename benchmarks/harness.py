"""How the benchmarks measure: a process a measurement, ways in turns, medians, one kind of record.

A measurement is a function at the top of a benchmark: JSON in, a dict of figures out. A child
process calls it, in which ``maest`` is this checkout, or an older one to compare with: the
function imports what it measures itself, by names that both have. To the figures that it returns
come ``peak_mib`` and ``child_peak_mib``, the highest resident sets of that process and of one that
it started (Linux).
"""

from __future__ import annotations

import argparse
import importlib
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
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = TREE = Path(__file__).resolve().parent.parent  # TREE: what a child measures
RECORDS = ROOT / "benchmarks/records"
if __name__ != "__main__":
    sys.path.append(str(ROOT))  # of a benchmark that was started as a script

Figures = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A measurement, and whose code it is of."""

    work: Callable[..., Figures]
    arguments: Mapping[str, Any]
    tree: Path = ROOT

    def here(self) -> Figures:
        """Measure in this process, for a trial."""
        with tempfile.TemporaryDirectory(prefix="maest-benchmark-") as folder, chdir(folder):
            return self.work(**self.arguments)

    def apart(self) -> Figures:
        """Measure in a process of its own, which works in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="maest-benchmark-") as folder:
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
    if tree is None:
        return dict(ways)
    before = {
        f"before: {name}": replace(way, tree=tree.resolve())
        for name, way in ways.items()
        if name.startswith("ours")
    }
    return before | dict(ways)


def in_turns(ways: Mapping[str, Way], repeats: int, apart: bool = True) -> dict[str, list[Figures]]:
    """Measure each way so often; what else the machine does falls on all of them alike."""
    runs: dict[str, list[Figures]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            print(f"  turn {turn + 1}: {name}", file=sys.stderr, flush=True)
            runs[name].append(way.apart() if apart else way.here())
    return runs


def medians(runs: Mapping[str, Sequence[Figures]]) -> dict[str, Figures]:
    """Of each way the median of each figure, and ``all_seconds`` of its turns, as measured."""
    rows: dict[str, Figures] = {}
    for name, found in runs.items():
        names = [key for key, value in found[0].items() if isinstance(value, int | float)]
        rows[name] = {key: statistics.median(run[key] for run in found) for key in names}
        if "seconds" in names:
            rows[name]["all_seconds"] = [round(run["seconds"], 4) for run in found]
    return rows


def measure(
    ways: Mapping[str, Way], args: argparse.Namespace, apart: bool | None = None
) -> dict[str, Figures]:
    """Medians of the ways, in turns, beside an older checkout's if one is given.

    A quick trial is one turn, in this process unless ``apart``.
    """
    apart = not args.quick if apart is None else apart
    turns = 1 if args.quick else args.repeats
    return medians(in_turns(with_before(ways, args.against), turns, apart))


def times_as_fast(rows: Mapping[str, Figures], base: str, key: str = "seconds") -> None:
    """Add to each row how many times as fast it is as the base."""
    for row in rows.values():
        row["times_as_fast"] = rows[base][key] / row[key]


def command(line: Sequence[str | Path], folder: Path) -> Figures:
    """Run a command: ``seconds`` by the clock, ``cpu_seconds`` of it and what it started."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(line, cwd=folder, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        output.seek(0)
        text = output.read().decode()
    figures = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime}
    return figures | {"exit_code": process.returncode, "output": text}


# ---------------------------------------------------------------- memory


def memory_mib(field: str = "VmRSS", process: int | str = "self") -> float:
    """A figure of /proc/<process>/status: VmRSS, RssAnon, or VmHWM, the highest VmRSS."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def children() -> list[int]:
    """The processes that this one started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


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


def _highest_child() -> float:
    highest = 0.0
    for child in children():
        with suppress(OSError):
            highest = max(highest, memory_mib("VmHWM", child))
    return highest


# ---------------------------------------------------------------- the command line, and the record


def parser(text: str | None, repeats: int = 3) -> argparse.ArgumentParser:
    """What all benchmarks take."""
    made = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    made.add_argument("--repeats", type=int, default=repeats, help="turns of each way")
    made.add_argument("--ways", nargs="+", help="some of them, by name")
    made.add_argument("--against", type=Path, metavar="TREE", help="an older checkout, in turns")
    made.add_argument("--quick", action="store_true", help="does it run? Small, in one process")
    made.add_argument("--record", type=Path, help="write the figures to this JSON")
    return made


def chosen(ways: dict[str, Way], names: Sequence[str] | None) -> dict[str, Way]:
    """The ways that were asked for."""
    unknown = sorted(set(names or ()) - set(ways))
    if unknown:
        raise SystemExit(f"no such way: {unknown}; there are {sorted(ways)}")
    return {name: way for name, way in ways.items() if not names or name in names}


def start_record(args: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """When, where and of what a record's figures are."""
    import torch

    from maest.helpers.report import machine, versions

    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions() | found,
        "threads": torch.get_num_threads(),
        "arguments": {
            n: v for n, v in vars(args).items() if v is not None and not isinstance(v, Path)
        },
    }
    if getattr(args, "against", None):
        line = ["git", "-C", args.against, "rev-parse", "--short", "HEAD"]
        record["before"] = subprocess.run(line, capture_output=True, text=True).stdout.strip()
    return record


def save(args: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Write the record, where one is asked for."""
    from maest.helpers.files import write_json

    if args.record:
        write_json(args.record, record)


def show(title: str, rows: Mapping[str, Figures], columns: Mapping[str, str]) -> None:
    """A table on the screen: title → format of a row's figures, blank where there are none."""
    from maest.helpers.report import table

    def cell(form: str, row: Figures) -> str:
        with suppress(KeyError):
            return form.format(**row)
        return ""

    lines = [[name, *(cell(form, row) for form in columns.values())] for name, row in rows.items()]
    print(f"\n{title}\n\n{table(['', *columns], lines)}", flush=True)


# ---------------------------------------------------------------- the child process


def _child(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text("utf-8"))
    global TREE
    tree, file = request["tree"], Path(request["file"])
    TREE = Path(tree)
    sys.path[:0] = [tree, str(file.parent)]
    if not Path(tree, "maest").is_dir():  # of the time when its packages had no common name
        package = ModuleType("maest")
        package.__path__ = [tree]
        sys.modules["maest"] = package
    sys.modules["harness"] = sys.modules["__main__"]
    module = importlib.import_module(file.stem)
    with watching(_highest_child) as child:
        figures = getattr(module, request["function"])(**request["arguments"])
    if sys.platform == "linux":
        figures = {"peak_mib": memory_mib("VmHWM"), "child_peak_mib": child[0]} | figures
    (folder / "figures.json").write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
