"""What a GPU does with this project, in one run that ends at its time limit.

python benchmarks/gpu.py [--minutes 8] [--parts tests training extraction audio loading]
python benchmarks/gpu.py --device cpu --quick  # does it run?

Parts, in order of worth; each figure is written to ``benchmarks/records/gpu-<part>.json`` as soon
as it is known:

- tests: those marked ``gpu``
- training: a step of the base model, clips of 10 and 30 s: fp16 and bf16, compiled or not, Flash
  against cuDNN attention, batch 12 and the largest that fits; model-FLOPs utilisation of what
  patchout leaves, as a share of a large matrix product in the same precision
- extraction: embeddings of block 7 from log-mels that lie in memory: each precision and length
- audio: log-mels from WAV files, which is what feeds extraction where nothing is preprocessed:
  readers for a GPU are the two rates' ratio; without av and soxr, left out
- loading: random crops from `.mmap` files to batches on the device
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import ROOT, start_record
from maest.helpers.files.atomic import write_json
from maest.helpers.reports.report import table
from maest.helpers.training.throughput import clip_flops, fast_math, matmul_ceiling, synchronise
from maest.models import get_maest
from maest.models.archs import input_frames
from maest.models.maest import inference
from training import train

BLOCK = 7
# Shares of the time, so that one part's compiling does not cost the others theirs.
SHARES = {"tests": 0.25, "training": 0.4, "extraction": 0.13, "audio": 0.1, "loading": 0.12}
NEEDS = {"tests": ["pytest"], "audio": ["av", "soxr"]}  # packages; a part without them is left out
# Of a training step, in order of worth
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "bf16, compiled": {"precision": "bf16", "compiled": True},
    "bf16, Flash": {"precision": "bf16", "attention": "flash"},
    "bf16, cuDNN": {"precision": "bf16", "attention": "cudnn"},
    "fp16, compiled": {"precision": "fp16", "compiled": True},
    "eager, fp16": {"network": "eager", "precision": "fp16", "attention": "written out"},
}
Figures = Iterator[tuple[str, dict[str, Any]]]


class OutOfTime(Exception):
    """The limit of a part, or of the whole run, is near."""


class Run:
    """Options, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.quick = options.quick
        self.arch = "maest_tiny" if options.quick else "maest_base"
        self.ends = self.part_ends = time.monotonic() + 60 * options.minutes
        self.shares = sum(SHARES[part] for part in options.parts)

    def begin(self, part: str) -> None:
        """Give a part its share of the time that is left; what it does not use goes on."""
        left = self.ends - time.monotonic()
        self.part_ends = time.monotonic() + left * SHARES[part] / self.shares
        self.shares -= SHARES[part]

    def left(self, needed: float = 0.0) -> float:
        """Seconds that the part has left; OutOfTime if fewer than ``needed``."""
        left = self.part_ends - time.monotonic()
        if left < needed:
            raise OutOfTime
        return left


# ---------------------------------------------------------------- parts


def tests(run: Run) -> Figures:
    """The tests that need a GPU, without the fixtures of the others."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-m",
        "gpu",
        "tests/workflow/test_gpu.py",
    ]
    command += ["-rs", "--tb=short", "-p", "no:cacheprovider"]
    environment = os.environ | {"MAEST_TEST_DEVICE": run.device.type}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                              timeout=run.left())  # fmt: skip
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = (error.stdout or b"").decode(), None
    for line in output.splitlines():
        if line.startswith(("FAILED", "ERROR", "SKIPPED", "E  ")):
            print(line)
    last = output.strip().splitlines()[-1] if output.strip() else ""
    yield "pytest", {"exit_code": code, "summary": last}


def training(run: Run) -> Figures:
    cuda = run.device.type == "cuda"
    ways = WAYS if cuda else {"fp32": {}}
    for length in [5] if run.quick else [10, 30]:
        case: dict[str, Any] = {"arch": run.arch, "length": length, "device": run.device.type}
        if run.quick:
            case |= {"batch": 2, "warmup": 1, "steps": 1}
        else:
            case |= {"batch": 12, "warmup": 5, "steps": 20}
        rates = {}
        for name, way in ways.items():
            run.left(60 if "compiled" in way else 15)
            found = train(**case | way)
            if "network" not in way:
                rates[name] = found["clips_per_second"]
            yield f"{length} s, batch {case['batch']}, {name}", found
        if cuda:
            best = max(rates, key=lambda name: rates[name])
            run.left(60)
            large = case | ways[best] | {"steps": 5}
            large["batch"] = largest_batch(large)
            yield f"{length} s, batch {large['batch']}, {best}", train(**large)


def largest_batch(case: dict[str, Any]) -> int:
    """The largest multiple of 4 that trains on the GPU, within a few per cent."""

    def peak(batch: int) -> float | None:
        try:
            return train(**case | {"batch": batch, "warmup": 1, "steps": 1})["peak_mib"]
        except torch.cuda.OutOfMemoryError:
            return None

    few, more = peak(4), peak(12)
    if few is None or more is None:
        return 4
    free = torch.cuda.mem_get_info()[1] / 2**20 * 0.95
    batch = int(12 + (free - more) / ((more - few) / 8)) // 4 * 4
    while batch > 12 and peak(batch) is None:
        batch = int(batch * 0.94) // 4 * 4
    return max(batch, 12)


def extraction(run: Run) -> Figures:
    cuda = run.device.type == "cuda"
    fast_math()
    for length in [5] if run.quick else [30, 10, 5]:
        frames = input_frames(length)
        net = get_maest(run.arch, n_classes=400, input_t=frames).to(run.device)
        flops = clip_flops(
            tokens=net.n_tokens(frames), embed_dim=net.embed_dim, depth=BLOCK + 1, outputs=0
        )
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16} if cuda else {}
        for precision, dtype in (kinds | {"fp32": torch.float32}).items():
            run.left(10)
            batch = 2 if run.quick else {30: 32, 10: 96, 5: 192}[length]
            mel = torch.rand(batch, 96, frames, device=run.device)
            calls, times = 1 if run.quick else 5, []
            with inference(net), torch.autocast(run.device.type, dtype, dtype != torch.float32):
                for _ in range(6):
                    started = time.perf_counter()
                    for _ in range(calls):
                        net(mel, BLOCK, melspectrogram_input=True)
                    synchronise(run.device)
                    times.append((time.perf_counter() - started) / calls)
            rate = batch / statistics.median(times[1:])  # the first chooses kernels
            yield (
                f"{length} s, {precision}",
                {
                    "patches_per_pass": batch,
                    "times_real_time": rate * length,
                    "tflops": rate * flops / 1e12,
                    "utilisation": rate * flops / matmul_ceiling(run.device, dtype),
                },
            )


def audio(run: Run) -> Figures:
    from maest.datasets.preprocess import preprocess

    cores = os.cpu_count() or 1
    seconds = 10 if run.quick else 60
    noise = np.random.default_rng(0).integers(-9999, 9999, 2 * 44_100 * seconds, np.int16)
    for workers in sorted({1, cores}):
        run.left(30)
        with tempfile.TemporaryDirectory() as folder:
            tracks = workers * (2 if run.quick else 16)
            for i in range(tracks):
                with wave.open(f"{folder}/{i}.wav", "wb") as file:
                    file.setparams((2, 2, 44_100, 0, "NONE", ""))
                    file.writeframes(noise.tobytes())
            started = time.perf_counter()
            mels = Path(folder, "mels")
            preprocess(Path(folder), mels, num_workers=workers, progress=False)
            rate = tracks * seconds / (time.perf_counter() - started)
        yield f"WAV, processes: {workers}", {"times_real_time": rate, "of_a_core": rate / workers}


def loading(run: Run) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "loading.json")
        # In one process, which ends at the limit
        line = [sys.executable, f"{ROOT}/benchmarks/loading.py", "--quick", f"--record={record}"]
        if not run.quick:
            line += ["--tracks=300", "--track-seconds=300", "--clips=2400", "--clip-seconds=30"]
            line += ["--workers", "0", "4", "12"]
        if importlib.util.find_spec("torchaudio") is None:
            line += ["--ways", "ours", "ours, loader alone"]
        line += ["--device", run.device.type]
        done = subprocess.run(line, capture_output=True, text=True, timeout=run.left(30))
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        for title, ways in json.loads(record.read_text("utf-8"))["results"].items():
            for way, found in ways.items():
                yield f"{title}, {way}", found


PARTS = {part.__name__: part for part in (tests, training, extraction, audio, loading)}


# ---------------------------------------------------------------- the whole run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole run")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few steps")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks/records")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(1, "benchmarks/gpu.py: PyTorch finds no CUDA device; --device cpu --quick\n")
    run, rows, failed = Run(options), [], False
    for name in options.parts:
        missing = [need for need in NEEDS.get(name, []) if not importlib.util.find_spec(need)]
        if missing:
            print(f"{name}: skipped, not installed: {', '.join(missing)}", flush=True)
            run.begin(name)
            continue
        record = start_record(options, ("torch", "numpy"))
        record |= {"device": options.device, "arch": run.arch, "figures": {}}
        try:
            run.begin(name)
            for label, figures in PARTS[name](run):
                record["figures"][label] = figures
                write_json(options.records / f"gpu-{name}.json", record)
                shown = {k: v for k, v in figures.items() if not isinstance(v, dict | list)}
                text = "  ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in shown.items()
                )
                print(f"{name}: {label}: {text}", flush=True)
                rows.append([name, label, text])
                failed |= figures.get("exit_code", 0) != 0
        except (OutOfTime, subprocess.TimeoutExpired):
            print(f"{name}: out of time after {len(record['figures'])} figures", flush=True)
        except Exception as error:  # the parts after this one may still be worth the time
            failed = True
            print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    print("\n" + table(["part", "what", "figures"], rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
