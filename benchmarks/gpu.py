"""What a GPU does with this project, in one run that ends at its time limit.

python benchmarks/gpu.py [--minutes 8] [--parts tests training extraction audio loading]
python benchmarks/gpu.py --device cpu --quick  # does it run?

Parts, in order of worth; one whose packages are missing is skipped by name, and each figure is
written to ``benchmarks/records/gpu-<part>.json`` as soon as it is known:

- tests: those marked ``gpu``
- training: a step of the base model, clips of 10 and 30 s: fp16 and bf16, compiled or not, Flash
  against cuDNN attention, batch 12 and the largest that fits; model-FLOPs utilisation of what
  patchout leaves, as a share of a large matrix product in the same precision
- extraction: embeddings of block 7 from log-mels that lie in memory: each precision and length
- audio: log-mels from audio files by reading processes, in files a second and a core: with the
  encoder's rate it says which of the two is the limit
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import training as steps  # noqa: E402
from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.report import machine, table, versions  # noqa: E402
from maest.helpers.throughput import fast_math, forward_flops, matmul_ceiling, synchronise  # noqa: E402
from maest.models import get_maest  # noqa: E402
from maest.models.archs import input_frames  # noqa: E402
from maest.models.maest import inference  # noqa: E402

BLOCK = 7
NEEDS = {"tests": ["pytest", "pytorch_lightning"], "training": ["pytorch_lightning"],
         "audio": ["av", "soxr"], "loading": ["pytorch_lightning"]}  # fmt: skip
# Shares of the time, so that one part's compiling does not cost the others theirs.
SHARES = {"tests": 0.25, "training": 0.4, "extraction": 0.13, "audio": 0.1, "loading": 0.12}
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
    command = [sys.executable, "-m", "pytest", "--noconftest", "-m", "gpu", "tests/test_gpu.py"]
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
    fast_math()
    ways = dict(steps.GPU_WAYS) if cuda else {"ours, fp32": steps.Way()}
    ceilings = {
        precision: matmul_ceiling(run.device, steps.DTYPES[precision])
        for precision in dict.fromkeys(way.precision for way in ways.values())
    }
    for length in [5] if run.quick else [10, 30]:
        case = steps.Case(run.arch, length, 2 if run.quick else 12, run.device.type,
                          warmup=1 if run.quick else 5, steps=1 if run.quick else 20)  # fmt: skip
        rates = {}
        for name, way in ways.items():
            run.left(60 if way.compile else 15)
            figures = step_figures(way, case, ceilings)
            rates[name] = figures["clips_per_second"]
            yield f"{length} s, batch {case.batch}, {name}", figures
        if cuda:
            best = max(rates, key=rates.__getitem__)
            run.left(60)
            batch = steps.largest_batch(ways[best], case)
            large = replace(case, batch=batch, steps=5)
            yield f"{length} s, batch {batch}, {best}", step_figures(ways[best], large, ceilings)


def step_figures(way: Any, case: Any, ceilings: dict[str, float]) -> dict[str, Any]:
    found = steps.measure(way, case)
    rate = case.batch / statistics.median(found["seconds"])
    flops = steps.flops_per_clip(way, case)
    return {
        "clips_per_second": round(rate, 2),
        "tflops": round(rate * flops / 1e12, 2),
        "ceiling_tflops": round(ceilings[way.precision] / 1e12, 1),
        "utilisation": round(rate * flops / ceilings[way.precision], 4),
        "peak_mib": round(found["peak_mib"]),
        "first_steps_seconds": round(found["warmup_seconds"], 2),
    }


def extraction(run: Run) -> Figures:
    cuda = run.device.type == "cuda"
    fast_math()
    for length in [5] if run.quick else [30, 10, 5]:
        frames = input_frames(length)
        net = get_maest(run.arch, n_classes=400, input_t=frames).to(run.device)
        flops = forward_flops(
            tokens=net.n_tokens(frames), embed_dim=net.embed_dim, depth=BLOCK + 1, outputs=0
        )
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16} if cuda else {}
        for precision, dtype in (kinds | {"fp32": torch.float32}).items():
            run.left(10)
            batch = 2 if run.quick else {30: 32, 10: 96, 5: 192}[length]
            mel = torch.rand(batch, 96, frames, device=run.device)
            mixed = torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32)

            def one_pass(mel=mel, net=net, mixed=mixed) -> None:
                with inference(net), mixed:
                    net(mel, BLOCK, melspectrogram_input=True)

            seconds = timed(one_pass, run.device, 0.2 if run.quick else 3.0)
            rate = batch / seconds
            ceiling = matmul_ceiling(run.device, dtype)
            yield (
                f"{length} s, {precision}",
                {
                    "patches_per_pass": batch,
                    "times_real_time": round(rate * length),
                    "tflops": round(rate * flops / 1e12, 2),
                    "utilisation": round(rate * flops / ceiling, 4),
                },
            )


def timed(work: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Median seconds of one call, in runs of several without a wait between them."""
    work()
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    calls = max(1, int(seconds / 5 / (time.perf_counter() - started)))
    runs = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        runs.append((time.perf_counter() - started) / calls)
    return statistics.median(runs)


def audio(run: Run) -> Figures:
    """Log-mels from WAV files, by as many processes as there are cores."""
    from maest.datasets.preprocess import preprocess

    tracks, seconds = (4, 10) if run.quick else (16 * (os.cpu_count() or 1), 60)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "audio")
        source.mkdir()
        noise = np.random.default_rng(0).integers(-9999, 9999, 2 * 44_100 * seconds, np.int16)
        for i in range(tracks):
            with wave.open(str(source / f"{i}.wav"), "wb") as file:
                file.setparams((2, 2, 44_100, 0, "NONE", ""))
                file.writeframes(noise.tobytes())
        cores = os.cpu_count() or 1
        for workers in sorted({1, cores}):
            run.left(30)
            some = tracks if workers > 1 else max(2, tracks // cores)
            for path in sorted(source.glob("*.wav"))[some:]:
                path.rename(path.with_suffix(".later"))
            started = time.perf_counter()
            preprocess(source, Path(folder, f"mels-{workers}"), num_workers=workers, progress=False)
            took = time.perf_counter() - started
            for path in source.glob("*.later"):
                path.rename(path.with_suffix(".wav"))
            rate = some * seconds / took
            yield (
                f"WAV, {workers} processes",
                {"times_real_time": round(rate), "of_a_core": round(rate / workers)},
            )


def loading(run: Run) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "loading.json")
        command = [sys.executable, str(ROOT / "benchmarks/loading.py"), "--record", str(record)]
        command += ["--device", run.device.type]
        command += ["--repeats", "1", "--clip-seconds", "5" if run.quick else "30"]
        if run.quick:
            command += ["--tracks", "8", "--track-seconds", "20", "--clips", "48", "--workers", "1"]
        else:
            command += ["--workers", "0", "4", "12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=run.left(30))
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        yield "benchmarks/loading.py", json.loads(record.read_text("utf-8"))


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
        missing = [p for p in NEEDS.get(name, []) if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{name}: skipped, not installed: {', '.join(missing)}", flush=True)
            run.begin(name)
            continue
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": versions("torch", "numpy"),
            "device": options.device,
            "arch": run.arch,
            "figures": {},
        }
        try:
            run.begin(name)
            for label, figures in PARTS[name](run):
                record["figures"][label] = figures
                write_json(options.records / f"gpu-{name}.json", record)
                shown = {k: v for k, v in figures.items() if not isinstance(v, dict | list)}
                text = "  ".join(f"{key} {value}" for key, value in shown.items())
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
