"""Reports in Markdown: pages, tables, and the machine and versions behind a figure."""

import functools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maest.helpers.files.atomic import atomic_path
from maest.helpers.reports.metrics import FIGURE_NAMES, SHOWN


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that lines up in plain text too, numbers to the right."""
    first, *others = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], others, strict=True))
        return f"| {' | '.join([cells[0].ljust(first), *numbers])} |"

    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def metrics_table(
    task: str,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    header: str = "",
    columns: Mapping[str, str] | None = None,
) -> str:
    """Return a Markdown table, a row per (name, metrics); missing metrics stay empty.

    ``columns`` maps metric → header; None: the task's two main metrics.
    """
    columns = columns or {name: FIGURE_NAMES[name] for name in SHOWN[task]}
    cells = [[name, *(format_metric(row.get(m)) for m in columns)] for name, row in rows]
    return table([header, *columns.values()], cells)


def format_metric(metric: float | Mapping[str, Any] | None) -> str:
    """Return 0.7312, or 0.7312 ± 0.0031 for several seeds, or "" for None."""
    if isinstance(metric, Mapping):
        return f"{metric['mean']:.4f} ± {metric['std']:.4f}"
    return "" if metric is None else f"{metric:.4f}"


def metrics_line(task: str, row: Mapping[str, Any]) -> str:
    """Return the task's two main metrics: "AP 0.7312, ROC-AUC 0.8204"."""
    return ", ".join(f"{FIGURE_NAMES[name]} {format_metric(row[name])}" for name in SHOWN[task])


class Page:
    """A report in Markdown, filled from top to bottom."""

    def __init__(self, title: str, warnings: Sequence[str] = ()) -> None:
        self._parts = [(f"# {title}", True)]  # with whether a terminal shows it
        self.add(*(f"**Warning.** {warning}" for warning in warnings))

    def add(self, *paragraphs: str) -> None:
        """Add paragraphs, except empty ones."""
        self._parts += [(paragraph, True) for paragraph in paragraphs if paragraph]

    def facts(self, *facts: str) -> None:
        """Add a list with one line per fact, except empty ones."""
        self.add("\n".join(f"- {fact}" for fact in facts if fact))

    def picture(self, path: Path, caption: str = "") -> None:
        """Add a picture from the report's folder."""
        parts = (caption, f"![{path.stem}]({path.name})")
        self._parts += [(part, False) for part in parts if part]

    def commands(self, *commands: tuple[str, str]) -> None:
        """Add shell lines, each with a comment on its purpose."""
        width = max(len(line) for line, _ in commands)
        lines = (f"{line.ljust(width)}  # {what}" if what else line for line, what in commands)
        self.add("\n".join(["```sh", *lines, "```"]))

    @property
    def text(self) -> str:
        """The page without pictures and captions, for a terminal."""
        return "\n\n".join(part for part, always in self._parts if always)

    def write(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("\n\n".join(part for part, _ in self._parts) + "\n", "utf-8")


@functools.cache
def _processor() -> str:
    import cpuinfo

    return cpuinfo.get_cpu_info().get("brand_raw", platform.processor())


def machine() -> dict[str, Any]:
    """Return processor, cores and system, and the GPU if there is one."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    } | gpu


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the named packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
