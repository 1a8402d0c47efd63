"""The whole method on real music, in minutes: `make demo`.

Builds the embedded data set, pre-trains a small MAEST on it, extracts embeddings, probes them, and
reports. Each step is a command that anybody can type; it is shown before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path

import ex_maest
import ex_tl
from datasets.scores import preprocess
from helpers import plots
from helpers.files import atomic_path
from helpers.report import pretraining_table, probe_table

MODEL = "exp_logs/latest/model"
OUT = Path("exp_logs") / "demo"


def step(title: str, command: str) -> dict:
    """Show a command line of one of the experiments, run it, and give what its run returned."""
    print(f"\n\033[1m{title}\033[0m\n$ python {command}", flush=True)
    argv = shlex.split(command)
    experiment = {"ex_maest.py": ex_maest.ex, "ex_tl.py": ex_tl.ex}[argv[0]]
    return experiment.run_commandline(argv).result


def results(run: dict) -> dict:
    """The figures that a run left in its folder."""
    return json.loads((Path(run["folder"]) / "results.json").read_text("utf-8"))


def main() -> None:
    """Run all steps, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--works", default=None, help="scores in the data set (default: a few hundred)"
    )
    parser.add_argument("--epochs", type=int, default=None, help="epochs of pre-training")
    args = parser.parse_args()
    started = time.monotonic()

    print("\033[1m1/5 The data set: real scores, performed\033[0m")
    works = ["--works", args.works] if args.works else []
    print(f"$ python datasets/scores/preprocess.py {' '.join(works)}", flush=True)
    if code := preprocess.main(works):
        raise SystemExit(code)

    epochs = f" with trainer.max_epochs={args.epochs}" if args.epochs else ""
    pretrained = step("2/5 Pre-training on style labels", f"ex_maest.py{epochs}")
    step(
        "3/5 Embeddings of the model just trained",
        f"ex_maest.py extract_embeddings with target_scores maest.checkpoint={MODEL}",
    )
    step(
        "4/5 Embeddings of the same network with random weights, to compare with",
        "ex_maest.py extract_embeddings with target_scores "
        "inference.out_dir=embeddings/scores-random",
    )
    print("\n\033[1m5/5 Probes: which instruments are heard?\033[0m", end="")
    probes = [
        step("", f"ex_tl.py with target_scores_tl {options}")
        for options in (
            "name='(a) the model just pre-trained'",
            "name='(b) the same network, random weights' "
            "data.embeddings_dir=embeddings/scores-random/5sec/7",
            "name='(c) mel bands, mean and deviation' data.features=mel_statistics",
        )
    ]
    write_report(results(pretrained), list(map(results, probes)), time.monotonic() - started)


def write_report(pretraining: dict, probes: list[dict], seconds: float) -> None:
    """Print the figures; write them as Markdown, with the pictures beside."""
    folder = OUT
    lines = {
        name: pretraining[key]["ap"]
        for name, key in (("chance", "chance"), ("label frequencies", "label_frequencies"))
    }
    curve = plots.learning_curve(folder / "learning_curve.png", pretraining["epochs"], lines)
    labels = [row["label"] for row in probes[0]["per_label"]]
    bars = plots.label_bars(
        folder / "instruments.png",
        labels,
        {
            p["name"]: [row["ap"]["mean"] if row["ap"] else float("nan") for row in p["per_label"]]
            for p in probes
        },
        "instruments heard: average precision on the test split",
    )
    times_chance = pretraining["val_ap"] / pretraining["chance"]["ap"]
    tracks, seeds = probes[0]["tracks"]["test"], len(probes[0]["ap"]["values"])
    text = f"""# Pre-training: style, {pretraining["val_tracks"]} unseen validation tracks

{pretraining_table(pretraining)}

The kept weights reach {times_chance:.1f} times chance, after {pretraining["steps"]} steps.

# Probing: instruments, {tracks} unseen test tracks, {seeds} seeds

{probe_table(probes)}

Minutes of training teach the pre-training task, and not yet a representation that transfers: (a)
may well lie below (b) or (c). More music and more steps change that.
"""
    with atomic_path(folder / "report.md") as temporary:
        temporary.write_text(text + "\n![](learning_curve.png)\n\n![](instruments.png)\n", "utf-8")
    print(f"\n{text}\nlearning curve:      {curve}\nper instrument:      {bars}")
    print(f"this report:         {folder / 'report.md'}")
    print(f"the model:           {MODEL}")
    print(f"done in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
