"""What the repository's own model is worth: models side by side with statistics of mel bands.

    python benchmarks/day_one.py --models old=FOLDER new=FOLDER --work FOLDER [--parts …]

- timbres: instruments of performed scores, as the embedded set plays them, by SoundFonts that the
  models may know, and by one that they do not
- recordings: the tags that a teacher hears in a set of recordings (datasets/recordings)
- styles: probes that learn styles from one source of music and are tested on another
- blanks: how often sounds that are no music get a tag, and music gets none
- speed: `predict` of a song, in turns

Intervals are 95 % of a paired bootstrap over works or tracks; each row has its differences to the
rows before it. What has been extracted stays in --work: a second call goes on from there, and the
record keeps the parts of earlier calls, each with its own arguments and data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from day_one_features import THRESHOLD, Model, Tables, digest, keep_mel, outputs_of
from day_one_recordings import (
    held_out_sources,
    recordings,
    set_facts,
    sources_of_styles,
    styles,
)
from day_one_timbres import timbres

from harness import ROOT, Way, command, in_turns, medians, start_record
from maest.datasets.groundtruth import read_groundtruth
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.reading import read_audio
from maest.helpers.files.atomic import write_json
from maest.helpers.reports.report import table
from maest.helpers.results.predictions import best

# Settings of a run in miniature
QUICK = {"works": 48, "test": 6, "clip_seconds": 4.0, "epochs": 2, "least": 1, "resamples": 20,
         "least_validation": 0, "num_workers": 1, "repeats": 1, "song_seconds": 3.0}  # fmt: skip
VOICES = ("en-us", "en-gb", "de", "fr-fr")
SENTENCES = (
    "The next train to the coast leaves at ten past nine from platform four.",
    "Please keep your ticket until the end of the journey.",
    "It rained all night, and in the morning the river stood above its banks.",
    "She closed the book, and asked who had left the window open.",
    "Nobody had thought of bringing bread, so they turned back at noon.",
)


# ---- blanks --------------------------------------------------------------------------------------


def blanks(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    """The share of sounds, and of held-out recordings, that have a tag at its threshold or above.

    Beside each, in words, the most frequent of these tags.
    """
    root = args.work / "blanks"
    sounds = dict(_no_music())
    sounds |= {f"speech/{p.stem}.mmap": read_audio(p)[: 10 * SAMPLE_RATE] for p in _speech(args)}
    for key, sound in sounds.items():
        keep_mel(root / key, log_mel(sound.astype(np.float32)))
    kind = np.array([key.partition("/")[0] for key in sounds])
    if args.set:
        truth, held_out = (
            read_groundtruth(args.set / "tags/groundtruth-test.pk"),
            held_out_sources(args.set),
        )
        music = np.isin([key.partition("/")[0] for key in truth.keys], held_out)
    tables: Tables = {"sounds": Counter(kind.tolist())}
    for model in models:
        outputs = outputs_of(args.work, model, root, list(sounds))["activations"]
        thresholds = "its own" if model.has_thresholds else f"{THRESHOLD}, as it has none"
        rows: Tables = {"thresholds": thresholds}
        rows |= {name: _tagged(model, outputs[kind == name]) for name in dict.fromkeys(kind)}
        if args.set and music.any():
            outputs = outputs_of(args.work, model, args.set / "melspectrograms", truth.keys)
            rows["held-out recordings"] = _tagged(model, outputs["activations"][music])
        tables[model.name] = rows
    return tables


def _tagged(model: Model, activations: np.ndarray) -> dict[str, Any]:
    chosen = [best(row, len(row), "multi-label", model.thresholds) for row in activations]
    often = Counter(model.labels[i] for tags in chosen for i in tags).most_common(3)
    shares = {"with_a_tag": float(np.mean([len(tags) > 0 for tags in chosen])),
              "above_0.5": float((activations >= THRESHOLD).any(axis=1).mean())}  # fmt: skip
    return shares | {"most": "; ".join(f"{name} {count}" for name, count in often)}


def _no_music() -> Iterator[tuple[str, np.ndarray]]:
    """40 sounds of 10 s at 16 kHz."""
    rng, n = np.random.default_rng(0), 10 * SAMPLE_RATE
    t = np.arange(n) / SAMPLE_RATE
    for i, level in enumerate((0, 1e-5, 3e-5, 1e-4)):
        yield f"silence/{i}.mmap", level * rng.standard_normal(n)
    for hertz in (55, 110, 220, 440, 880, 1760, 3520, 7040):
        yield f"pure tone/{hertz}.mmap", 0.3 * np.sin(2 * np.pi * hertz * t)
    for hertz in (55, 82, 110, 165, 220, 330, 440, 880):
        wave = sum(np.sin(2 * np.pi * k * hertz * t) / k for k in range(1, 9))
        yield f"harmonic tone/{hertz}.mmap", 0.15 * wave
    root_hertz = np.sqrt(np.maximum(1, np.arange(n // 2 + 1)))
    for i, level in enumerate((0.003, 0.01, 0.03, 0.1, 0.2, 0.3)):
        white = rng.standard_normal(n)
        yield f"white noise/{i}.mmap", level * white
        pink = np.fft.irfft(np.fft.rfft(white) / root_hertz, n)
        yield f"pink noise/{i}.mmap", level * pink / pink.std()
    for period in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5):
        clicks = np.zeros(n)
        clicks[:: round(period * SAMPLE_RATE)] = 0.8
        yield f"clicks/{period}.mmap", clicks


def _speech(args: argparse.Namespace) -> list[Path]:
    """Twenty files of speech: of a folder, or espeak-ng's. Exits without both."""
    folder = args.speech or args.work / "speech"
    if not args.speech:
        if not (program := shutil.which("espeak-ng")):
            raise SystemExit("blanks: install espeak-ng (apt install espeak-ng), or give --speech")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(20):
            voice, text = VOICES[number % len(VOICES)], " ".join(SENTENCES[number % 5 :])
            line = [program, "-v", voice, "-s", str(130 + 4 * number), "-w"]
            subprocess.run([*line, folder / f"{number:02d}.wav", text], check=True)
    if not (paths := sorted(path for path in folder.rglob("*.*") if path.is_file())[:20]):
        raise SystemExit(f"blanks: no file of speech in {folder}")
    return paths


# ---- speed ---------------------------------------------------------------------------------------


def predict(model: str, seconds: float) -> dict[str, Any]:
    """Run the command on a song in the working folder."""
    import soundfile

    noise = np.random.default_rng(0).standard_normal(round(44_100 * seconds))
    soundfile.write("song.wav", 0.1 * noise, 44_100)
    line = [sys.executable, ROOT / "ex_maest.py", "predict", "with"]
    return command([*line, f"maest.checkpoint={model}", "inference.audio=song.wav"])


def speed(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    ways = {
        model.name: Way(predict, {"model": str(model.folder), "seconds": args.song_seconds})
        for model in models
    }
    return {f"a song of {args.song_seconds:g} s": medians(in_turns(ways, args.repeats, False))}


# ---- the run -------------------------------------------------------------------------------------

PARTS = {part.__name__: part for part in (timbres, recordings, styles, blanks, speed)}
NEEDS = {"timbres": ("known", "unseen"), "recordings": ("set",), "styles": ("set", "styles")}
CHECKS = {"styles": sources_of_styles, "blanks": _speech}  # which exit before any work


def data_of(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of which files a part's figures are."""
    if part == "timbres":
        fonts = {path.stem: digest(path) for path in (*args.known, args.unseen)}
        trained_on = [digest(path) for path in args.trained_on]
        return {"soundfonts_sha256": fonts, "trained_on_sha256": trained_on}
    data = {"set": set_facts(args.set)} if part != "speed" and args.set else {}
    if part == "blanks":
        data["speech"] = len(_speech(args)) if args.speech else "espeak-ng"
    return data


def show(part: str, tables: Tables) -> None:
    """Print what has figures, as tables."""

    def text(name: str, value: Any) -> str:
        if not isinstance(value, Mapping):
            return f"{value:.3f}" if isinstance(value, float) else str(value)
        star = " *" * (" minus " in name and value["low"] * value["high"] > 0)
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]{star}"

    for title, rows in tables.items():
        print(f"\n{part}: {title}")
        items = rows.items() if isinstance(rows, Mapping) else ()
        with_figures = {name: row for name, row in items if isinstance(row, Mapping)}
        if not with_figures:
            print(json.dumps(rows, ensure_ascii=False, indent=1))
            continue
        columns = list(
            dict.fromkeys(c for row in with_figures.values() for c in row if c != "all_seconds")
        )
        lines = [[name, *(text(c, row[c]) if c in row else "" for c in columns)]
                 for name, row in with_figures.items()]  # fmt: skip
        print(table(["", *columns], lines), flush=True)


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="the oldest first")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--work", type=Path, required=True, help="folder that keeps what is extracted")
    add("--record", type=Path, default=ROOT / "benchmarks/records/day-one.json")
    add("--known", type=Path, nargs="+", help="SoundFonts that the models know")
    add("--unseen", type=Path, help="SoundFont that they do not know")
    add("--trained-on", type=Path, nargs="+", default=[], help="ground truths: groups left out")
    add("--works", type=int, default=5500, help="of the corpus; two in seven are held out")
    add("--test", type=int, default=1000, help="its works, if a quarter is left to train on")
    add("--clip-seconds", type=float, default=10.0)
    add("--epochs", type=int, default=60, help="of the probes")
    add("--seeds", type=int, default=3)
    add("--set", type=Path, help="what datasets/recordings/preprocess.py wrote")
    add("--without", nargs="+", default=[], help="sources of the set that are not tested")
    add("--least", type=int, default=5, help="positives, and negatives, of a label of recordings")
    what = "positive validation tracks of such a label, of two sources"
    add("--least-validation", type=int, default=10, help=what)
    add("--styles", type=Path, help="CSV: source, style; two sources of the set to a style")
    add("--speech", type=Path, help="folder of speech; without, espeak-ng's")
    add("--resamples", type=int, default=1000)
    add("--num-workers", type=int, help="processes that perform scores")
    add("--repeats", type=int, default=3, help="turns of speed")
    add("--song-seconds", type=float, default=180.0)
    add("--quick", action="store_true", help="does it run? In miniature")
    args = parser.parse_args(given)
    vars(args).update(QUICK if args.quick else {})
    args.work = args.work.resolve()
    for part in args.parts:
        if lacking := [f"--{name}" for name in NEEDS.get(part, ()) if not getattr(args, name)]:
            parser.error(f"{part} needs {' and '.join(lacking)}")
        if part in CHECKS:
            CHECKS[part](args)
    models = [Model(*one.split("=", 1)) for one in args.models]
    digests = {model.name: model.digest for model in models}
    places = {"models", "known", "unseen", "trained_on", "set", "styles", "speech"}
    shown = {name: value for name, value in vars(args).items() if name not in places}
    packages = ("torch", "numpy", "scikit-learn", "tinysoundfont")
    made = start_record(argparse.Namespace(**shown), packages)
    record: dict[str, Any] = {"models": digests, "results": {}}
    if args.record.is_file():
        before = json.loads(args.record.read_text("utf-8"))
        if before["models"] == digests:  # of other models, nothing is kept
            record["results"] = before["results"]
    for part in args.parts:
        started = time.monotonic()
        tables = PARTS[part](args, models)
        show(part, tables)
        minutes = round((time.monotonic() - started) / 60, 2)
        of_part = made | {"minutes": minutes, "data": data_of(part, args)}
        record["results"][part] = {"made": of_part} | tables
        write_json(args.record, record)
    return record


if __name__ == "__main__":
    main()
