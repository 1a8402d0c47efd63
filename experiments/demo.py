"""The whole method on real music, in minutes: `make demo`.

Builds the embedded data set, pre-trains a small MAEST on it, extracts embeddings, probes them, and
reports. Each step is a command that anybody can type; it is shown before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import ex_maest
import ex_tl
from maest.datasets.scores import preprocess
from maest.experiments.runs import LOG_DIR, run_command_line
from maest.helpers import plots
from maest.helpers.files import atomic_path, write_json
from maest.helpers.report import machine, pretraining_table, probe_table, versions

MODEL = LOG_DIR / "latest" / "model"
OUT = LOG_DIR / "demo"
RANDOM, SHIPPED = "embeddings/scores-random", "embeddings/scores-shipped"
AGAIN = "inference.overwrite=True"  # another demo has left those of another model

# What each step is called, and what is typed. The last four are the rows of the probe's table.
DATA = ("The data set: real scores, performed", "datasets/scores/preprocess.py")
# More columns are left out than by default: half the arithmetic, and comparable with older records.
PRETRAIN = ("Pre-training on style labels", "ex_maest.py with maest.s_patchout_t=22")
EXTRACT = (
    (
        "Embeddings of the model just trained",
        f"ex_maest.py extract_embeddings with target_scores maest.checkpoint={MODEL} {AGAIN}",
    ),
    (
        "Embeddings of the same network with random weights, to compare with",
        f"ex_maest.py extract_embeddings with target_scores inference.out_dir={RANDOM} {AGAIN} "
        f"maest.arch={ex_maest.settings.DEFAULT_ARCH} {{norm}}",
    ),
    (
        "Embeddings of the model in this repository, trained for longer on more scores",
        f"ex_maest.py extract_embeddings with target_scores inference.out_dir={SHIPPED} {AGAIN} "
        "maest.arch=maest-tiny-scores",
    ),
)
PROBES = (
    (
        "Which instruments are heard? Probes of the model's embeddings",
        "ex_tl.py with target_scores_tl name='(a) the model just pre-trained'",
    ),
    (
        "… of the random network's",
        "ex_tl.py with target_scores_tl name='(b) the same network, random weights' "
        f"data.embeddings_dir={RANDOM}",
    ),
    (
        "… and of plain statistics of the mel bands",
        "ex_tl.py with target_scores_tl name='(c) mel bands, mean and deviation' "
        "data.features=mel_statistics",
    ),
    (
        "… and of the embeddings of the model in this repository",
        "ex_tl.py with target_scores_tl name='(d) maest-tiny-scores, as it comes' "
        f"data.embeddings_dir={SHIPPED}",
    ),
)


def run(argv: list[str]) -> dict | None:
    """Run one command line, here; stop everything if it fails. Returns an experiment's result."""
    if argv[0] == DATA[1]:
        if code := preprocess.main(argv[1:]):
            raise SystemExit(code)
        return None
    ex = {"ex_maest.py": ex_maest.ex, "ex_tl.py": ex_tl.ex}[argv[0]]
    if code := run_command_line(ex, argv):
        raise SystemExit(code)
    return ex.current_run.result


def normalisation() -> str:
    """That of the model just trained, as settings: the random network takes the same input."""
    sizes = json.loads((MODEL / "config.json").read_text("utf-8"))["sizes"]
    return " ".join(f"maest.{name}={sizes[name]:.6g}" for name in ("norm_mean", "norm_std"))


def main() -> None:
    """Run all steps; print the report and write it to exp_logs/demo/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", help="scores in the data set (default: some hundreds)")
    parser.add_argument("--epochs", type=int, help="epochs of pre-training (default: ex_maest's)")
    parser.add_argument("--record", type=Path, help="also write figures and times to this JSON")
    args = parser.parse_args()
    works = f" --works {args.works}" if args.works else ""
    epochs = f" trainer.max_epochs={args.epochs}" if args.epochs else ""
    steps = [(DATA[0], DATA[1] + works), (PRETRAIN[0], PRETRAIN[1] + epochs), *EXTRACT, *PROBES]

    found, times = [], {}
    for number, (title, line) in enumerate(steps, 1):
        line = line.replace("{norm}", normalisation() if "{norm}" in line else "")
        print(f"\n── {number}/{len(steps)} {title}\n$ python {line}\n", flush=True)
        started = time.monotonic()
        found.append(run(shlex.split(line)))
        times[line] = round(time.monotonic() - started, 1)

    folders = [Path(result["folder"]) for result in (found[1], *found[-len(PROBES) :])]
    pretraining, *probes = (json.loads((f / "results.json").read_text("utf-8")) for f in folders)
    text = report(pretraining, probes)
    pictures = draw(pretraining, probes)
    with atomic_path(OUT / "report.md") as temporary:
        shown = "\n".join(f"\n![]({picture.name})" for picture in pictures)
        temporary.write_text(f"{text}{shown}\n", "utf-8")
    print(f"\n{text}\nlearning curve:  {pictures[0]}\nper instrument:  {pictures[1]}")
    print(f"this report:     {OUT / 'report.md'}\nthe model:       {MODEL}")
    print(f"done in {sum(times.values()) / 60:.1f} minutes")
    if args.record:
        write_json(args.record, record(times, pretraining, probes))


def report(pretraining: dict, probes: list[dict]) -> str:
    """The two tables as Markdown, with a word on each."""
    times_chance = pretraining["val_ap"] / pretraining["chance"]["ap"]
    times_constant = pretraining["val_ap"] / pretraining["label_frequencies"]["ap"]
    tracks, seeds = probes[0]["tracks"]["test"], len(probes[0]["ap"]["values"])
    return f"""## Pre-training: style, {pretraining["val_tracks"]} clips of unseen works

{pretraining_table(pretraining)}

The kept weights reach {times_constant:.1f} times the label frequencies, and {times_chance:.1f}
times random scores (which gain on so few clips), after {pretraining["best_steps"]} steps.

## Probing: instruments, {tracks} test clips of unseen works, {seeds} seeds

{probe_table(probes)}

Minutes of training teach the pre-training task, and not yet a representation that transfers: (a)
may well lie below (b) or (c). (d) heard more music for longer, none of these works among it, and
instruments were among its labels: models/pretrained/maest-tiny-scores/README.md.
"""


def draw(pretraining: dict, probes: list[dict]) -> list[Path]:
    """The learning curve, and the probes' figures for each instrument."""
    baselines = {"chance": "chance", "label frequencies": "label_frequencies"}
    curve = plots.learning_curve(
        OUT / "learning_curve.png",
        pretraining["epochs"],
        {name: pretraining[key]["ap"] for name, key in baselines.items()},
    )
    bars = plots.label_bars(
        OUT / "instruments.png",
        [row["label"] for row in probes[0]["per_label"]],
        {
            probe["name"]: [row["ap"]["mean"] if row["ap"] else None for row in probe["per_label"]]
            for probe in probes
        },
        "instruments heard: average precision on the test split",
    )
    return [curve, bars]


def record(times: dict[str, float], pretraining: dict, probes: list[dict]) -> dict:
    """Machine, versions, seconds of each step, and the report's figures."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions("torch", "pytorch-lightning", "timm", "symusic"),
        "seconds": {**times, "total": round(sum(times.values()), 1)},
        "pretraining": {
            key: pretraining[key]
            for key in (
                *("val_ap", "val_roc_auc", "val_tracks", "chance", "label_frequencies"),
                *("steps", "best_steps", "best_epoch", "epochs"),
            )
        },
        "probes": [
            {key: probe[key] for key in ("name", "ap", "roc_auc", "chance")} for probe in probes
        ],
    }


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("SIGINT: stopped")
