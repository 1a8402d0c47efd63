"""Reports: pages and tables, and what a recorded figure says of where it was measured."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maest.helpers.files import atomic_path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too; numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *others]) + " |"

    rule = (
        "|"
        + "|".join(
            "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
            for i, width in enumerate(widths)
        )
        + "|"
    )
    return "\n".join([line(header), rule, *map(line, rows)])


class Page:
    """A report in Markdown, put together from above to below.

    Attributes:
        text: without its pictures and their captions, as a terminal shows it.
    """

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
        return "\n\n".join(part for part, always in self._parts if always)

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        whole = "\n\n".join(part for part, _ in self._parts)
        with atomic_path(path) as temporary:
            temporary.write_text(f"{whole}\n", "utf-8")


def format_mean_std(metric: Mapping[str, Any]) -> str:
    """0.7312 ± 0.0031."""
    return f"{metric['mean']:.4f} ± {metric['std']:.4f}"


def pretraining_table(results: Mapping[str, Any]) -> str:
    """Validation figures of each epoch, and of the two baselines.

    Args:
        results: a pre-training run's ``results.json``.
    """
    rows = [
        [
            f"epoch {epoch['epoch']:.0f}" + " (kept)" * (epoch["epoch"] == best),
            f"{epoch.get('train_loss', float('nan')):.4f}",
            f"{epoch['val_ap']:.4f}",
            f"{epoch['val_roc_auc']:.4f}",
        ]
        for best in [results["best_epoch"]]
        for epoch in results["epochs"]
        if "val_ap" in epoch
    ]
    for name, key in (
        ("label frequencies, whatever the input", "label_frequencies"),
        ("chance: random scores", "chance"),
    ):
        rows.append([name, "", f"{results[key]['ap']:.4f}", f"{results[key]['roc_auc']:.4f}"])
    return table(["", "training loss", "validation AP", "ROC-AUC"], rows)


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
