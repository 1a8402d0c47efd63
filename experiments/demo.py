"""What pre-training buys, on real music and in minutes: `make demo`.

Each step is an ordinary command, shown before it runs. They share this process, as most of them
would import the same libraries for seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maest.datasets.tracks import find_tracks
from maest.experiments.runs import LOG_DIR
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_json
from maest.helpers.reports.report import Page, machine, metrics_table, versions
from maest.helpers.results.predictions import NO_TAG, read_predictions

MODEL = "maest-tiny-music"  # the model in this repository
ROOT = Path(__file__).resolve().parent.parent
EXCERPT = ROOT / "datasets/recordings/excerpt.ogg"
REPORT = LOG_DIR / "demo" / "report.md"
TRACKS = 5  # in the report, at most
EXTRACT = "ex_maest.py extract_embeddings with target_scores inference.overwrite=True"
FOLDERS = [f"embeddings/demo/{name}" for name in ("random", "finetuned", "shipped")]
NAMES = ["(a) trained from random weights", f"(b) {MODEL}, fine-tuned", f"(c) {MODEL}, as it comes"]
MEL = "(d) mel bands, mean and deviation"
TRAININGS = 2, 3  # the numbers of their steps
# title → command of each step; {2} is the folder of step 2's run
STEPS = {
    "The data set: real scores, performed": "datasets/scores/preprocess.py{works}",
    "Training on its tags, from random weights": "ex_maest.py with scores_demo{epochs}",
    "The same training, from the model in this repository": "ex_maest.py with scores_demo{epochs} "
    f"maest.arch={MODEL} module.layer_decay=0.75",
    "Embeddings of the first": f"{EXTRACT} inference.out_dir={FOLDERS[0]} "
    "maest.checkpoint={2}/model",
    "… of the second": f"{EXTRACT} inference.out_dir={FOLDERS[1]} maest.checkpoint={{3}}/model",
    "… and of the model as it comes": f"{EXTRACT} inference.out_dir={FOLDERS[2]} "
    f"maest.arch={MODEL}",
    "Which instruments are heard? A probe of plain statistics of the mel bands": "ex_tl.py with "
    f"target_scores_tl name='{MEL}' data.features=mel_statistics",
    "Probes of the three models' embeddings, side by side": "ex_tl.py compare with "
    f"target_scores_tl runs=[{{7}}] compare.embeddings_dirs=[{','.join(FOLDERS)}]",
    "Tags of a recording": f"ex_maest.py predict with maest.arch={MODEL} inference.audio={{audio}} "
    "inference.out_dir=embeddings/demo/tags inference.top=12 inference.plot=True "
    "inference.overwrite=True",
}


def run(line: str) -> int:
    """Run a command line in this process; return its exit code."""
    script, *arguments = shlex.split(line)
    typed, sys.argv = sys.argv, [str(ROOT / script), *arguments]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = typed
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def _read(folder: str | Path, name: str = "results.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, name).read_text("utf-8"))
    return content


def _groups(tags: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each group of labels, such as "Genre: Ambient 0.61, Electronic 0.58"."""
    groups: dict[str, list[str]] = {}
    for tag in tags:
        group, _, name = tag["label"].rpartition("---")
        groups.setdefault(group or "Other", []).append(f"{name} {tag['activation']:.2f}")
    return [f"{group}: {', '.join(names)}" for group, names in sorted(groups.items())] or [NO_TAG]


def _report(record: dict[str, Any], per_label: Sequence[Sequence[dict[str, Any]]]) -> Page:
    from maest.helpers.reports.plots import label_bars

    (random, finetuned), probes = record["trainings"], record["probes"]
    first, aps = probes[0], [f"{probe['ap']['mean']:.2f}" for probe in probes]
    tracks, page = first["tracks"], Page("What pre-training buys")
    page.add(
        f"The same {random['steps']} steps of training on the tags of {tracks['train']} performed "
        f"scores began (a) from random weights and (b) from {MODEL}. Probes of the embeddings then "
        f"named the instruments in {tracks['test']} clips of works that nobody had trained on "
        f"(mean ± deviation of {len(first['ap']['values'])} seeds):",
        metrics_table(
            "multi-label",
            [*((probe["name"], probe) for probe in probes), ("chance", first["chance"])],
            "features",
            {"ap": "test AP", "roc_auc": "test ROC-AUC"},
        ),
        f"In {random['seconds'] / 60:.1f} and {finetuned['seconds'] / 60:.1f} minutes, the "
        f"validation AP of the tags rose to {random['val_ap']:.2f} from random weights and to "
        f"{finetuned['val_ap']:.2f} by fine-tuning, and the probes' AP to {aps[0]} and {aps[1]}; "
        f"without this training it is {aps[2]}. Instruments are among the labels that (a), (b) and "
        "(c) were trained on: a known task, on unknown works.",
    )
    bars = {  # NaN: no test track has the label
        probe["name"]: [row["ap"]["mean"] if row["ap"] else math.nan for row in rows]
        for probe, rows in zip(probes, per_label, strict=True)
    }
    labels, title = [row["label"] for row in per_label[0]], "average precision of each instrument"
    page.picture(label_bars(REPORT.with_name("demo-instruments.png"), labels, bars, title))
    for track in record["tracks"]:
        page.add(f"{track['track']}, as {MODEL} hears it:")
        page.facts(*_groups(track["labels"]))
    page.picture(REPORT.with_name("demo-tags.png"))
    page.write(REPORT)
    return page


def main() -> int:
    """Run all steps, print the report, and write it to exp_logs/demo/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "audio",
        nargs="?",
        metavar="audio=PATH",
        default=os.path.relpath(EXCERPT),
        type=lambda text: text.removeprefix("audio="),
        help="music to tag, a file or a folder (default: an excerpt of 30 s)",
    )
    parser.add_argument("--works", help="scores in the data set (default: some hundreds)")
    parser.add_argument("--epochs", type=int, help="epochs of training (default: scores_demo's)")
    parser.add_argument("--record", type=Path, help="keep report and figures here, as .json, .md …")
    parser.add_argument("--start", type=int, default=1, help="go on with the step of this number")
    args = parser.parse_args()
    try:
        keys = list(find_tracks(args.audio).tracks.keys)[:TRACKS]
    except InputError as error:  # now rather than after minutes
        parser.error(str(error))
    words = {"works": f" --works {args.works}" if args.works else ""}
    words["epochs"] = f" trainer.max_epochs={args.epochs}" if args.epochs else ""
    words["audio"] = shlex.quote(args.audio)
    kept = LOG_DIR / "demo.json"  # folder and seconds of each step
    done = json.loads(kept.read_text("utf-8"))[: args.start - 1] if args.start > 1 else []
    for number, (title, line) in list(enumerate(STEPS.items(), 1))[args.start - 1 :]:
        line = line.format("", *(step["folder"] for step in done), **words)
        line += " ckpt_path=last" * (number == args.start and number in TRAININGS)
        print(f"\n── {number}/{len(STEPS)} {title}\n$ python {line}\n", flush=True)
        started = time.monotonic()
        if code := run(line):
            typed = shlex.join(word for word in sys.argv[1:] if not word.startswith("--start="))
            again = f"python -m maest.experiments.demo {typed}".rstrip()
            print(f"\nTo go on with the demo:\n  {again} --start={number}", file=sys.stderr)
            return code
        runs = (path for path in LOG_DIR.glob("[0-9]*") if path.name.isdigit())
        folder = str(max(runs, key=lambda path: int(path.name), default=LOG_DIR))
        done.append({"title": title, "folder": folder, "seconds": time.monotonic() - started})
        write_json(kept, done)

    folders = [Path(step["folder"]) for step in done]
    probes = [_read(folders[7] / f"probe-{i}") for i in (1, 2, 3)] + [_read(folders[6])]
    for probe, name in zip(probes, (*NAMES, MEL), strict=True):
        probe["name"] = name
    tags = Path(_read(folders[8], "run.json")["result"]["folder"])
    REPORT.parent.mkdir(exist_ok=True)
    shutil.copy(tags / f"{keys[0]}.predictions.png", REPORT.with_name("demo-tags.png"))
    seconds = {step["title"]: round(step["seconds"], 1) for step in done}
    columns = ("name", "ap", "roc_auc", "chance", "tracks")
    trainings = (_read(folders[number - 1]) for number in TRAININGS)
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions("torch", "pytorch-lightning", "symusic"),
        "model": MODEL,
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
        "trainings": [{k: v for k, v in t.items() if k != "per_label"} for t in trainings],
        "probes": [{k: probe[k] for k in columns} for probe in probes],
        "tracks": [read_predictions(tags / f"{key}.predictions.json") for key in keys],
    }
    page = _report(record, [probe["per_label"] for probe in probes])
    print(f"\n{page.text}\n\nthis report:    {REPORT}")
    print(f"side by side:   {folders[7]}/comparison.md\ntags:           {tags}")
    print(f"the model:      {folders[2]}/model\ndone in {sum(seconds.values()) / 60:.1f} minutes")
    if args.record:
        write_json(args.record, record)
        for path in REPORT.parent.glob("demo-*.png"):
            shutil.copy(path, args.record.parent)
        shutil.copy(REPORT, args.record.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
