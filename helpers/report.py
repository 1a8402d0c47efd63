"""Reports: pages and tables, and what a recorded figure says of where it was measured."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maest.helpers.files import atomic_path
from maest.helpers.metrics import FIGURE_NAMES, SHOWN

# ---- tables --------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too; numbers stand to the right."""
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
    """A Markdown table of metrics: a row for each (name, metrics), ``header`` above the names.

    A metric that a row lacks is left empty. ``columns`` are metric → header; None: the two metrics
    of the task that are shown.
    """
    columns = columns or {name: FIGURE_NAMES[name] for name in SHOWN[task]}
    cells = [[name, *(format_metric(row.get(m)) for m in columns)] for name, row in rows]
    return table([header, *columns.values()], cells)


def format_metric(metric: float | Mapping[str, Any] | None) -> str:
    """0.7312; of several seeds 0.7312 ± 0.0031; nothing for None."""
    if metric is None:
        return ""
    if isinstance(metric, Mapping):
        return f"{metric['mean']:.4f} ± {metric['std']:.4f}"
    return f"{metric:.4f}"


def metrics_line(task: str, row: Mapping[str, Any]) -> str:
    """The two metrics of the task that are shown: "AP 0.7312, ROC-AUC 0.8204"."""
    return ", ".join(f"{FIGURE_NAMES[name]} {format_metric(row[name])}" for name in SHOWN[task])


def pretraining_table(results: Mapping[str, Any]) -> str:
    """Validation figures of each epoch, and of the two baselines, of a run's ``results.json``."""
    names = {"train_loss": "training loss", "val_ap": "validation AP", "val_roc_auc": "ROC-AUC"}
    rows = [
        (f"epoch {row['epoch']:.0f}{' (kept)' * (row['epoch'] == results['best_epoch'])}", row)
        for row in results["epochs"]
        if "val_ap" in row
    ]
    for name, key in (
        ("label frequencies, whatever the input", "label_frequencies"),
        ("chance: random scores", "chance"),
    ):
        rows.append((name, {f"val_{m}": value for m, value in results[key].items()}))
    return metrics_table("multi-label", rows, columns=names)


# ---- pages ---------------------------------------------------------------------------------------


class Page:
    """A report in Markdown, put together from above to below."""

    def __init__(self, title: str, warnings: Sequence[str] = ()) -> None:
        self._parts = [(f"# {title}", True)]
        self.add(*(f"**Warning.** {warning}" for warning in warnings))

    def add(self, *paragraphs: str) -> None:
        """Paragraphs; empty ones are left out."""
        self._parts += [(paragraph, True) for paragraph in paragraphs if paragraph]

    def facts(self, *facts: str) -> None:
        """A list, a line each; empty ones are left out."""
        self.add("\n".join(f"- {fact}" for fact in facts if fact))

    def picture(self, path: Path, caption: str = "") -> None:
        """A picture that lies beside the report."""
        self._parts += [(caption, False)] * bool(caption)
        self._parts.append((f"![{path.stem}]({path.name})", False))

    def commands(self, *commands: tuple[str, str]) -> None:
        """Lines for a shell, each with what it does."""
        width = max(len(line) for line, _ in commands)
        lines = (f"{line.ljust(width)}  # {what}" if what else line for line, what in commands)
        self.add("\n".join(["```sh", *lines, "```"]))

    @property
    def text(self) -> str:
        """Without its pictures and their captions, as a terminal shows it."""
        return "\n\n".join(part for part, always in self._parts if always)

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        whole = "\n\n".join(part for part, _ in self._parts)
        with atomic_path(path) as temporary:
            temporary.write_text(f"{whole}\n", "utf-8")


# ---- where it was measured -----------------------------------------------------------------------


@functools.cache
def _processor() -> str:
    import cpuinfo

    return cpuinfo.get_cpu_info().get("brand_raw", platform.processor())


def machine() -> dict[str, Any]:
    """Processor, cores, system, and the GPU if there is one."""
    import torch

    found = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of the named packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
