"""``maest learn``: labels of one's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from maest.command.common import (
    JsonOption,
    LibraryModelOption,
    LibraryOption,
    count,
    print_json,
    print_line,
    tell,
)

if TYPE_CHECKING:
    from maest.learn import Report

_NAMES = {"ap": "AP", "roc_auc": "ROC-AUC", "accuracy": "accuracy", "macro_f1": "macro F1"}
_LABEL = 30  # columns


def learn(
    table: Annotated[
        Path, typer.Argument(metavar="LABELS.csv", help="A table path,label[,label…].")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The model to write.")],
    library: LibraryOption = None,
    model: LibraryModelOption = None,
    group: Annotated[
        Literal["genre", "style", "mood"] | None,
        typer.Option("--as", help="What the labels are: where maest tag --write writes them."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Learn labels of your own from a table of tracks in the library.

    \b
    Example:
      maest learn labels.csv -o my-model --as mood
      maest tag music --model my-model

    The tracks are those of a library: maest index music. The table begins with a line path,label.
    Its paths are relative to it, or to where you are. A row may have several labels, in more
    columns or with ; between them, or none. The figures are of tracks whose album (or artist, or
    folder) was not learned from.
    """
    import maest
    from maest.command.similar import library_model
    from maest.learn import learn as learn_labels

    with maest.Library(library, read_only=True) as opened:
        for warning in opened.warnings:
            tell(warning)
        chosen = library_model(opened, model)
        report = learn_labels(opened, table, out, model=chosen, group=group)
    if json:
        print_json({**asdict(report), "folder": str(report.folder)})
        return
    for line in lines(report):
        print_line(line)
    for warning in report.warnings:
        tell(f"Warning: {warning}")
    tell(f"To use it: maest tag music --model {report.folder}")


def lines(report: Report) -> list[str]:
    """Return what a report says, for people."""
    by = ", ".join(f"{kind} ({count(n, 'track')})" for kind, n in report.split_by.items())
    found = [
        f"{count(len(report.labels), 'label')} learned from {count(report.tracks, 'track')}. Each "
        f"was judged by a model that had not learned from its group: {report.groups} groups by "
        f"{by}, in {report.folds} parts",
        f"{'':{_LABEL}} examples  AP    95 %         chance",
    ]
    for label in report.labels:
        name = label.label if len(label.label) <= _LABEL else f"{label.label[: _LABEL - 1]}…"
        shown = "not tested" if label.ap is None else _shown(label.ap)
        found.append(f"{name:{_LABEL}} {label.examples:8d}  {shown}")
    for name, figure in report.figures.items():
        text = f"{_NAMES[name]}, {'all' if name == 'accuracy' else 'mean over labels'}"
        found.append(f"{text:{_LABEL}} {'':8}  {_shown(figure)}")
    return found


def _shown(figure: dict[str, float]) -> str:
    return "{value:.2f}  {low:.2f}-{high:.2f}    {chance:.2f}".format_map(figure)


def register(app: typer.Typer) -> None:
    app.command("learn")(learn)
