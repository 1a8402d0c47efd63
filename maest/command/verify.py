"""``maest verify``: whether a model gives here what it gave where it was made."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from maest.command import FAILED
from maest.command.common import JsonOption, print_json, print_line


def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model folder or file, ONNX too, or a name."),
    ],
    json: JsonOption = False,
) -> None:
    """Compute a model's golden input in each way that works here, and compare the outputs.

    \b
    Example:
      maest verify my-model
      maest verify export/model.onnx

    The input is a formula. What it gave is in golden.json beside the weights; without that file
    there is nothing to compare with. The error is the distance from it, as a share of its length.
    """
    from maest.models.golden import verify as checks_of

    checks = checks_of(model)
    different = [check for check in checks if check.same is False]
    if json:
        rows = [{**asdict(check), "same": check.same} for check in checks]
        print_json({"model": model, "same": not different, "checks": rows})
    else:
        for check in checks:
            if check.same is None:
                print_line(f"{check.way:9}  not computed  {check.detail}")
                continue
            result = "same" if check.same else "DIFFERENT"
            error = f"error {check.error:.1e} of {check.tolerance:g} ({check.output})"
            print_line(f"{check.way:9}  {result:12}  {error}  {check.detail}")
    if different:
        raise typer.Exit(FAILED)


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)
