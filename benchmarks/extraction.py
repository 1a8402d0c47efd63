"""How fast embeddings come out of music, in how much memory, and what is lost on the way.

python benchmarks/extraction.py [--threads] [--record benchmarks/records/extraction-cpu.json]
python benchmarks/extraction.py --device cuda --parts embeddings encoder readers
python benchmarks/extraction.py --quick  # does it run?

Music is made for it: 44.1 kHz stereo FLAC of notes and noise. The network is of the base model's
size with random weights, the same in all ways. Each measurement is a process of its own with the
model loaded and warm; ways take turns; figures are medians over `--repeats`. Parts:

- embeddings: embeddings of block 6 (the seventh) from audio files to result files
  - ours: the engine of the commands: reading processes, passes shared by tracks, a writing thread;
    float32; also in int8, with every second patch column only, and with PyTorch's own products
  - AST: `transformers.ASTForAudioClassification` of the same weights on the same log-mels, one
    track at a time, with its own attention; it has no way to stop before the last block
  - plain: our own network, one track at a time, with attention written out (softmax(q k^T) v); all
    12 blocks, as the original does, or the 7 that are needed
- encoder: the seven blocks alone, as a share of what matrix products reach here in that run: of
  PyTorch's own (torch.mm), and of the fastest there is (`models.cpu.matmul_ceiling`)
- trained: int8 against fp32 on a trained model and music that it was not trained on
- readers: how fast the reading processes are when nobody computes anything
- memory: highest resident set for few tracks and many, and for a short track and a long one
- latency: a 3-minute song, from Python with the model loaded, and from the command line
- threads (with --threads): reading processes x threads of PyTorch
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.extraction_bench import Bench, medians, show  # noqa: E402
from benchmarks.extraction_ways import BLOCK, Way, cosine, spread  # noqa: E402
from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.parallel import cores  # noqa: E402
from maest.helpers.report import machine, versions  # noqa: E402

TRAINED = "maest-tiny-scores"
CLIPS = ROOT / "datasets/scores/data/melspectrograms"
CPU_WAYS = {
    "ours": Way(),
    "ours, int8": Way(quantize="int8"),
    "ours, every 2nd column": Way(every=2),
    "ours, PyTorch's products": Way(onednn=False),
    "AST": Way("AST"),
    "plain, 12 blocks": Way("plain", depth=12),
    "plain, 7 blocks": Way("plain"),
}
_HALF = {"fp16": "16-mixed", "bf16": "bf16-mixed"}
CUDA_WAYS = {
    **{f"ours, {name}": Way(precision=p) for name, p in _HALF.items()},
    **{f"ours, {name}, compiled": Way(precision=p, compile=True) for name, p in _HALF.items()},
    "ours, fp16, every 2nd column": Way(precision="16-mixed", every=2),
    "ours, fp32": Way(),
    "AST, fp16": Way("AST", "16-mixed"),
    "plain, 12 blocks, fp16": Way("plain", "16-mixed", depth=12),
    "plain, 7 blocks, fp16": Way("plain", "16-mixed"),
}

# ---------------------------------------------------------------- the parts


def embeddings(bench: Bench) -> Iterator[tuple[str, Any]]:
    args = bench.args
    audio = bench.music(args.tracks, args.track_seconds)
    heard = args.tracks * args.track_seconds
    for length in args.lengths:
        model, works = bench.model(length), {}
        for name, way in bench.ways.items():
            # A compiled network must have seen all sizes of a pass before the clock starts.
            options = {"warmup": args.tracks} if way.compile else {}
            works[name] = partial(bench.measure, "embed", way, model, audio, **options)
        runs = bench.in_turns(works)
        arrays = {
            name: [np.load(path) for path in sorted(found[-1]["out"].glob("*.npy"))]
            for name, found in runs.items()
        }
        # What differences are of: the plainest in fp32; and cosines: our fp32.
        full = {n: w for n, w in bench.ways.items() if w.precision == "32-true"}
        ours = next((n for n, w in full.items() if w == replace(Way(), compile=w.compile)), None)
        plain = next((n for n, w in full.items() if w == Way("plain")), ours)
        rows = {name: medians(found) for name, found in runs.items()}
        for name, row in rows.items():
            row["times_real_time"] = heard / row["seconds"]
            row["seconds_over_ours"] = row["seconds"] / rows[bench.main]["seconds"]
            if plain:
                pairs = list(zip(arrays[plain], arrays[name], strict=True))
                row["largest_value"] = max(float(abs(b).max()) for _, b in pairs)
                row["largest_difference"] = max(float(abs(a - b).max()) for a, b in pairs)
                row["relative_difference"] = row["largest_difference"] / max(
                    float(abs(a).max()) for a, _ in pairs
                )
            if ours:
                pairs = zip(arrays[ours], arrays[name], strict=True)
                row["cosine"] = spread([cosine(a, b) for a, b in pairs])
        show(
            f"Embeddings of block {BLOCK} of {args.tracks} x {args.track_seconds:g} s, patches of "
            f"{length} s; differences are to '{plain}', cosines to '{ours}'",
            rows,
            {
                "seconds": "{seconds:.2f}",
                "x real time": "{times_real_time:.1f}",
                "time / ours": "{seconds_over_ours:.2f}",
                "largest difference": "{largest_difference:.1e}",
                "relative": "{relative_difference:.1e}",
                "cosine": "{cosine[lowest]:.5f}",
                "MiB": "{peak_mib:.0f}",
            },
        )
        yield f"{length} s", {"differences_to": plain, "cosine_to": ours, "ways": rows}


def encoder(bench: Bench) -> Iterator[tuple[str, Any]]:
    audio = bench.music(bench.args.tracks, bench.args.track_seconds)
    own = {name: way for name, way in bench.ways.items() if way.network == "ours"}
    rounds = 1 if bench.args.quick else 3
    for length in bench.args.lengths:
        one = partial(bench.measure, "encode", model=bench.model(length), audio=audio)
        runs = bench.in_turns({n: partial(one, way=w, rounds=rounds) for n, w in own.items()})
        # Of each precision, the best of the whole run.
        best: dict[tuple[str, str], float] = {}
        for name, found in runs.items():
            for run in found:
                for kind, ceilings in run["ceilings_tflops"].items():
                    key = bench.ways[name].precision, kind
                    best[key] = max(best.get(key, 0.0), *ceilings)
        rows = {}
        for name, found in runs.items():
            row = rows[name] = medians(found)
            row["ceilings_tflops"] = {
                kind: best[bench.ways[name].precision, kind] for kind in found[0]["ceilings_tflops"]
            }
            row["all_ceilings_tflops"] = [run["ceilings_tflops"] for run in found]
            for part, tflop in found[0]["tflop"].items():
                every = [s for run in found for s in run[f"{part}_seconds"]]
                row[part] = {
                    "tflop": tflop,
                    "seconds": statistics.median(every),
                    "all_seconds": every,
                    "tflops": tflop / statistics.median(every),
                }
                # Of int8 the share would be of a ceiling that is not its own.
                if bench.ways[name].quantize is None:
                    row[part]["share_of_ceiling"] = {
                        kind: row[part]["tflops"] / ceiling
                        for kind, ceiling in row["ceilings_tflops"].items()
                    }
        title = f"The network alone, {BLOCK + 1} blocks, patches of {length} s"
        parts = [(n, part) for n in rows for part in ("blocks", "encoder") if part in rows[n]]
        columns = {
            "patches": "{batch:.0f}",
            "seconds": "{seconds:.4f}",
            "TFLOP/s": "{tflops:.3f}",
            "of torch.mm": "{share_of_ceiling[torch.mm]:.3f}",
        }
        if not bench.cuda:
            columns["of the fastest"] = "{share_of_ceiling[fastest]:.3f}"
        show(title, {f"{n}: {part}": rows[n] | rows[n][part] for n, part in parts}, columns)
        yield f"{length} s", rows


def trained(bench: Bench) -> Iterator[tuple[str, Any]]:
    built = CLIPS.is_dir() and not bench.args.quick
    audio = CLIPS if built else bench.music(2 if bench.args.quick else 16, 20, 16)
    found = bench.measure("compare_int8", Way(), TRAINED, audio, device="cpu", workers=1)
    found.pop("out")
    what = "clips of the embedded data set" if built else "generated notes and noise"
    kinds = {name: row for name, row in found.items() if isinstance(row, dict)}
    show(
        f"int8 against fp32, {TRAINED} on {found['tracks']} {what}: cosine similarity of a track",
        kinds,
        {"lowest": "{lowest:.5f}", "median": "{median:.5f}"},
    )
    difference = found["largest_difference_of_an_activation"]
    print(f"largest difference of an activation: {difference:.4f}")
    yield from ({"model": TRAINED, "music": what} | found).items()


def readers(bench: Bench) -> Iterator[tuple[str, Any]]:
    args = bench.args
    audio = bench.music(args.tracks, args.track_seconds)
    model = bench.model(args.lengths[0])
    numbers = sorted({1, 2, bench.workers})
    one = partial(bench.measure, "read", Way(), model, audio)
    runs = bench.in_turns({str(n): partial(one, workers=n) for n in numbers})
    rows = {name: medians(found) for name, found in runs.items()}
    for row in rows.values():
        row["times_real_time"] = args.tracks * args.track_seconds / row["seconds"]
    what = "waveforms" if bench.cuda else "log-mels"
    columns = {"seconds": "{seconds:.2f}", "x real time": "{times_real_time:.0f}"}
    show(f"Reading alone, to {what}; reading processes", rows, columns)
    yield from rows.items()


def memory(bench: Bench) -> Iterator[tuple[str, Any]]:
    quick = bench.args.quick
    few, many, short, long = (2, 6, 20, 60) if quick else (10, 1000, 600, 3600)
    works = {f"{n} tracks of 8 s": bench.music(n, 8) for n in (few, many)}
    works |= {f"a track of {s / 60:g} min": bench.music(1, s) for s in (short, long)}
    one = partial(bench.measure, "remember", bench.ways[bench.main], TRAINED, warmup=0)
    works = {f"{TRAINED}, {name}": partial(one, audio) for name, audio in works.items()}
    length, audio = bench.args.lengths[0], bench.music(few, 8 if quick else 90)
    for name in (n for n, way in bench.ways.items() if n == bench.main or way.quantize):
        works[f"{bench.args.arch}, {length} s, {name}: {few} tracks"] = partial(
            bench.measure, "remember", bench.ways[name], bench.model(length), audio, warmup=0
        )
    runs = bench.in_turns(works)
    rows = {name: medians(found) for name, found in runs.items()}
    for name, row in rows.items():
        row["all_peak_mib"] = [run["peak_mib"] for run in runs[name]]
    columns = {
        "with the model loaded, MiB": "{loaded_mib:.0f}",
        "highest, MiB": "{peak_mib:.0f}",
        "a reading process, MiB": "{reader_peak_mib:.0f}",
        "seconds": "{seconds:.1f}",
    }
    show("Highest resident set", rows, columns)
    yield from rows.items()


def latency(bench: Bench) -> Iterator[tuple[str, Any]]:
    length = bench.args.lengths[0]
    song = bench.music(1, 10 if bench.args.quick else 180) / "0000.flac"
    models: dict[str, Path | str] = {
        f"{bench.args.arch}, {length} s": bench.model(length),
        TRAINED: TRAINED,
    }
    ways = {
        name: way
        for name, way in bench.ways.items()
        if name == bench.main or way.network == "plain" or way.quantize
    }
    works: dict[str, Callable[[], dict[str, Any]]] = {}
    for label, model in models.items():
        for name, way in ways.items():
            one = partial(bench.measure, "first_result", way, model, song, rounds=1)
            works[f"{label}: {name}"] = one
        works[f"{label}: the command predict"] = partial(command, bench, model, song)
    rows = {name: medians(found) for name, found in bench.in_turns(works).items()}
    show(
        "Seconds to the result of one song of 3 minutes, with the model loaded (but the command)",
        rows,
        {"first": "{first:.2f}", "later": "{later:.2f}"},
    )
    yield from rows.items()


def command(bench: Bench, model: Path | str, song: Path) -> dict[str, Any]:
    """The whole command by the clock, from a shell."""
    name = f"maest.checkpoint={model}/model" if isinstance(model, Path) else f"maest.arch={model}"
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        line = [sys.executable, ROOT / "ex_maest.py", "predict", "with", name]
        line += [f"inference.audio={song}", "inference.out_dir=out"]
        line += [f"trainer.accelerator={'gpu' if bench.cuda else 'cpu'}"]
        started = time.perf_counter()
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
        took = time.perf_counter() - started
        if done.returncode or not list(Path(folder).glob("out/*/*/*.json")):
            raise RuntimeError(f"{line}:\n{done.stdout}{done.stderr}")
    return {"first": took}


def threads(bench: Bench) -> Iterator[tuple[str, Any]]:
    args = bench.args
    audio = bench.music(args.tracks, args.track_seconds)
    for model in (bench.model(args.lengths[0]), TRAINED):
        label = model if model == TRAINED else f"{args.arch}, {args.lengths[0]} s"
        one = partial(bench.measure, "embed", bench.ways[bench.main], model, audio)
        works = {
            f"{workers} reading, {n} of PyTorch": partial(one, workers=workers, threads=n)
            for workers in (0, 1, 2)
            for n in sorted({1, max(1, cores() // 2), cores()})
        }
        rows = {name: medians(found) for name, found in bench.in_turns(works).items()}
        for row in rows.values():
            row["times_real_time"] = args.tracks * args.track_seconds / row["seconds"]
        columns = {"seconds": "{seconds:.2f}", "x real time": "{times_real_time:.1f}"}
        show(f"Processes and threads, {label}", rows, columns)
        yield str(label), rows


PARTS = {
    part.__name__: part
    for part in (embeddings, encoder, trained, readers, memory, latency, threads)
}


# ---------------------------------------------------------------- the whole run


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arch", default="maest_base", help="maest_tiny for a quick trial")
    parser.add_argument("--lengths", type=int, nargs="+", help="seconds of a patch; 30 10 5, or 30")
    parser.add_argument("--tracks", type=int, help="4; on CUDA 32")
    parser.add_argument("--track-seconds", type=float, help="90; on CUDA 180")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    parser.add_argument("--ways", nargs="+", help="some of them, by name")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="all but threads")
    parser.add_argument("--threads", action="store_true", help="that part, too")
    parser.add_argument("--quick", action="store_true", help="a tiny network, in one process")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON")
    args = parser.parse_args(given)
    cuda = args.device == "cuda"
    if args.quick:
        args.arch, args.repeats = "maest_tiny", 1
        args.lengths, args.tracks, args.track_seconds = args.lengths or [5], 2, 10.0
    args.lengths = args.lengths or ([30] if cuda else [30, 10, 5])
    args.tracks = args.tracks or (32 if cuda else 4)
    args.track_seconds = args.track_seconds or (180.0 if cuda else 90.0)
    if args.repeats < 1 or args.tracks < 1:
        parser.error("--repeats and --tracks: expected 1 or more")
    if min(args.lengths) < 1 or args.track_seconds < 1:
        parser.error("--lengths and --track-seconds: expected 1 or more")
    args.parts = args.parts or [
        name
        for name in PARTS
        if not (cuda and name == "trained") and (name != "threads" or args.threads)
    ]
    return args


def chosen_ways(args: argparse.Namespace) -> dict[str, Way]:
    ways = dict(CUDA_WAYS if args.device == "cuda" else CPU_WAYS)
    unknown = sorted(set(args.ways or ()) - set(ways))
    if unknown:
        raise SystemExit(f"no such way: {unknown}; there are {sorted(ways)}")
    if args.ways:
        ways = {name: way for name, way in ways.items() if name in args.ways}
    for package, needs in (
        ("transformers", lambda way: way.network == "AST"),
        ("onnxruntime", lambda way: way.quantize == "int8"),
    ):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: some ways are left out")
            ways = {name: way for name, way in ways.items() if not needs(way)}
    if not any(way.network == "ours" for way in ways.values()):
        raise SystemExit("one of the ways must be ours: the first of them is compared with")
    return ways


def main(given: list[str] | None = None) -> dict[str, Any]:
    args = arguments(given)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here")
    ways = chosen_ways(args)
    if "trained" in args.parts and importlib.util.find_spec("onnxruntime") is None:
        args.parts.remove("trained")
    packages = ["torch", "timm", "av", "soxr"]
    packages += [p for p in ("transformers", "onnxruntime") if importlib.util.find_spec(p)]
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine() | {"usable_cores": cores()},
        "versions": versions(*packages),
        "threads": torch.get_num_threads(),
        "arguments": {
            name: value for name, value in vars(args).items() if name not in ("record", "threads")
        },
        "ways": {name: vars(way) for name, way in ways.items()},
    }
    with tempfile.TemporaryDirectory(prefix="maest-extraction-") as temporary:
        bench = Bench(args, Path(temporary), ways)
        record["reading_processes"] = bench.workers
        for part in args.parts:
            print(f"{part} …", file=sys.stderr, flush=True)
            found = record[part] = {}
            for name, figures in PARTS[part](bench):
                found[name] = figures
                if args.record:
                    write_json(args.record, record)
    return record


if __name__ == "__main__":
    main()
