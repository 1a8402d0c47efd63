"""The whole method on real music, in minutes: `make demo`.

Each step is an ordinary command, shown before it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from maest.experiments.runs import LOG_DIR
from maest.helpers.files.atomic import write_json
from maest.helpers.reports.report import Page, machine, metrics_table, pretraining_table, versions

ROOT = Path(__file__).resolve().parent.parent
MODEL = LOG_DIR / "latest" / "model"
REPORT = LOG_DIR / "demo" / "report.md"
EXTRACT = "ex_maest.py extract_embeddings with target_scores inference.overwrite=True"
PROBE = "ex_tl.py with target_scores_tl"
RANDOM, SHIPPED = "embeddings/scores-random", "embeddings/scores-shipped"
# title → command of each step
STEPS = {
    "The data set: real scores, performed": "datasets/scores/preprocess.py{works}",
    # More columns are dropped than by default: half the arithmetic, and comparable with older runs.
    "Pre-training on style labels": "ex_maest.py with maest.s_patchout_t=22{epochs}",
    "Embeddings of the model just trained": f"{EXTRACT} maest.checkpoint={MODEL}",
    "Embeddings of the same network with random weights": f"{EXTRACT} inference.out_dir={RANDOM} "
    "maest.arch=maest_tiny {norm}",
    "Embeddings of the model in this repository, trained for longer on more scores": f"{EXTRACT} "
    f"inference.out_dir={SHIPPED} maest.arch=maest-tiny-scores",
    "Which instruments are heard? Probes of the model's embeddings": f"{PROBE} "
    "name='(a) the model just pre-trained'",
    "… of the random network's": f"{PROBE} name='(b) the same network, random weights' "
    f"data.embeddings_dir={RANDOM}",
    "… and of plain statistics of the mel bands": f"{PROBE} "
    "name='(c) mel bands, mean and deviation' data.features=mel_statistics",
    "… and of the embeddings of the model in this repository": f"{PROBE} "
    f"name='(d) maest-tiny-scores, as it comes' data.embeddings_dir={SHIPPED}",
    "The four side by side": "ex_tl.py compare with runs=[{runs}]",
}
CLOSING = """\
Minutes of training teach the pre-training task, and not yet a representation that transfers: (a)
may well lie below (b) or (c). (d) heard more music for longer, none of these works among it, and
instruments were among its labels: models/pretrained/maest-tiny-scores/README.md."""


def run(line: str) -> int:
    """Run a command line with its output passed through; return its exit code."""
    with subprocess.Popen([sys.executable, *shlex.split(f"{ROOT}/{line}")]) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the command gets it too, and reports what it has saved
            process.wait()
            return 128 + signal.SIGINT


def _read(folder: str | Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, name).read_text("utf-8"))
    return content


def _report(folder: str, pretraining: dict[str, Any], probes: list[dict[str, Any]]) -> Page:
    from maest.helpers.reports.plots import label_bars

    frequencies, chance = (
        pretraining["val_ap"] / pretraining[name]["ap"] for name in ("label_frequencies", "chance")
    )
    page, first = Page("MAEST on real scores"), probes[0]
    page.add(
        f"## Pre-training: style, {pretraining['val_tracks']} clips of unseen works",
        pretraining_table(pretraining),
        f"The kept weights reach {frequencies:.1f} times the AP of the label frequencies, and "
        f"{chance:.1f} times that of random scores, after {pretraining['best_steps']} steps.",
    )
    REPORT.parent.mkdir(exist_ok=True)
    page.picture(Path(shutil.copy(Path(folder, "learning_curve.png"), REPORT.parent)))
    rows = [*((probe["name"], probe) for probe in probes), ("chance", first["chance"])]
    page.add(
        f"## Probing: instruments, {first['tracks']['test']} test clips of unseen works, "
        f"{len(first['ap']['values'])} seeds",
        metrics_table("multi-label", rows, "features"),
        CLOSING,
    )
    missing = {"mean": math.nan}  # of a label that no test track has
    bars = {p["name"]: [(row["ap"] or missing)["mean"] for row in p["per_label"]] for p in probes}
    title = "instruments heard: average precision on the test split"
    labels = [row["label"] for row in first["per_label"]]
    page.picture(label_bars(REPORT.with_name("instruments.png"), labels, bars, title))
    page.write(REPORT)
    return page


def main() -> int:
    """Run all steps, print the report, and write it to exp_logs/demo/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--works", help="scores in the data set (default: some hundreds)")
    parser.add_argument("--epochs", type=int, help="epochs of pre-training (default: ex_maest's)")
    parser.add_argument("--record", type=Path, help="also write metrics and times to this JSON")
    parser.add_argument("--start", type=int, default=1, help="go on with the step of this number")
    args = parser.parse_args()
    words = {"works": f" --works {args.works}" if args.works else ""}
    words["epochs"] = f" trainer.max_epochs={args.epochs}" if args.epochs else ""
    kept = LOG_DIR / "demo.json"  # folder and seconds of each step
    done = json.loads(kept.read_text("utf-8"))[: args.start - 1] if args.start > 1 else []
    for number, (title, line) in list(enumerate(STEPS.items(), 1))[args.start - 1 :]:
        if "{norm}" in line:  # the random network takes the same input as the trained one
            sizes = _read(MODEL, "config.json")["sizes"]
            norm = (f"maest.{name}={sizes[name]:.6g}" for name in ("norm_mean", "norm_std"))
            words["norm"] = " ".join(norm)
        words["runs"] = ",".join(step["folder"] for step in done[-4:])
        line = line.format_map(words) + " ckpt_path=last" * (number == args.start == 2)
        print(f"\n── {number}/{len(STEPS)} {title}\n$ python {line}\n", flush=True)
        started = time.monotonic()
        if code := run(line):
            typed = shlex.join(word for word in sys.argv[1:] if not word.startswith("--start="))
            again = f"python -m maest.experiments.demo {typed}".rstrip()
            print(f"\nTo go on with the demo:\n  {again} --start={number}", file=sys.stderr)
            return code
        runs = (path for path in LOG_DIR.glob("[0-9]*") if path.name.isdigit())
        folder = str(max(runs, key=lambda path: int(path.name), default=LOG_DIR))
        done.append({"line": line, "folder": folder, "seconds": time.monotonic() - started})
        write_json(kept, done)
    pretraining, *probes = (_read(done[i]["folder"], "results.json") for i in (1, 5, 6, 7, 8))
    seconds = sum(step["seconds"] for step in done)
    print(f"\n{_report(done[1]['folder'], pretraining, probes).text}\n")
    print(f"this report:    {REPORT}\nside by side:   {done[9]['folder']}/comparison.md")
    print(f"the model:      {MODEL}\ndone in {seconds / 60:.1f} minutes")
    if args.record:
        times = {step["line"]: round(step["seconds"], 1) for step in done}
        record: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions("torch", "pytorch-lightning", "symusic"),
            "seconds": times | {"total": round(seconds, 1)},
            "pretraining": {k: v for k, v in pretraining.items() if k != "per_label"},
            "probes": [{k: p[k] for k in ("name", "ap", "roc_auc", "chance")} for p in probes],
        }
        write_json(args.record, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
