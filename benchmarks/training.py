"""How long a training step takes, how much memory, and how much of the machine it uses.

python benchmarks/training.py [--lengths 10 30] [--record benchmarks/records/training-cpu.json]
python benchmarks/training.py --device cuda --largest --record benchmarks/records/training-gpu.json

The networks are of the same size, with random weights, on random clips. They take turns within a
run, and so does the measurement of what matrix products reach here.

- ours: a step as `models.module.MaestModule` does it, with the paper's augmentation and patchout:
  fused attention and fused AdamW; on CUDA with fp16 or bf16, and with compiled blocks
- eager: the same step, network and patchout, with attention written out (softmax(q k^T) v) and
  AdamW one operation and one tensor at a time; on CUDA in fp16
- eager, foreach AdamW (CUDA): the same with the AdamW that PyTorch chooses there by itself
- AST: `transformers.ASTForAudioClassification` with its own attention and PyTorch's own AdamW,
  which has no patchout; without augmentation; on CUDA in fp16

A step: a batch goes from (pinned) host memory to the device, and through augmentation, network,
loss, backward and optimiser. On a CPU each measurement is a process of its own, and memory is its
highest resident set above that before the network is built; on CUDA it is what PyTorch allocated.
Utilisation: FLOPs that the network needs (AST: with all its tokens), over the measured ceiling in
the same precision.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from maest import config  # noqa: E402
from maest.datasets.batches import ClipBatch  # noqa: E402
from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.melspectrogram import N_MELS  # noqa: E402
from maest.helpers.report import machine, versions  # noqa: E402
from maest.helpers.throughput import fast_math, matmul_ceiling, synchronise, training_flops  # noqa: E402
from maest.models import get_maest  # noqa: E402
from maest.models.archs import find_arch, input_frames  # noqa: E402
from maest.models.maest import grid_size  # noqa: E402
from maest.models.training import MaestModule  # noqa: E402

CLASSES = 400
PATCHOUT = {5: 15, 10: 30, 20: 60, 30: 90}  # the paper's, in columns
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Way:
    """A way to train: whose network, in which precision, and what is fast about it."""

    network: str = "ours"  # or "eager", "ast"
    precision: str = "fp32"
    compile: bool = False
    foreach: bool = False  # AdamW of the eager network
    attention: str | None = None  # which fused attention: "flash", "cudnn"; None: PyTorch's choice


CPU_WAYS = {"ours": Way(), "eager": Way("eager"), "AST": Way("ast")}
CUDA_WAYS = {
    "ours, bf16, compiled": Way(precision="bf16", compile=True),
    "ours, bf16": Way(precision="bf16"),
    "ours, fp16, compiled": Way(precision="fp16", compile=True),
    "ours, fp16": Way(precision="fp16"),
    "eager, fp16": Way("eager", "fp16"),
    "eager, fp16, foreach AdamW": Way("eager", "fp16", foreach=True),
    "AST, fp16": Way("ast", "fp16"),
}
# Of benchmarks/gpu.py: ours alone, in order of worth.
GPU_WAYS = {
    "bf16": Way(precision="bf16"),
    "fp16": Way(precision="fp16"),
    "bf16, compiled": Way(precision="bf16", compile=True),
    "bf16, Flash": Way(precision="bf16", attention="flash"),
    "bf16, cuDNN": Way(precision="bf16", attention="cudnn"),
    "fp16, compiled": Way(precision="fp16", compile=True),
}
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class Case:
    """What is measured of a way."""

    arch: str
    length: int  # seconds of a clip
    batch: int
    device: str
    warmup: int
    steps: int
    backend: str = "inductor"  # of torch.compile
    mode: str | None = None


def tokens(way: Way, case: Case) -> int:
    """How many the blocks get."""
    rows, frames = grid_size(N_MELS), input_frames(case.length)
    if way.network == "ast":  # the released models' length, one frame more
        return 2 + rows * grid_size(frames + 1)
    return 2 + rows * (grid_size(frames) - PATCHOUT[case.length])


def flops_per_clip(way: Way, case: Case) -> float:
    arch = find_arch(case.arch)
    return training_flops(
        tokens=tokens(way, case), embed_dim=arch.embed_dim, depth=arch.depth, outputs=CLASSES
    )


# ---------------------------------------------------------------- a step


def our_loss(way: Way, case: Case) -> tuple[torch.nn.Module, Callable[[ClipBatch], torch.Tensor]]:
    """Our network on the device, and what computes a batch's loss."""
    frames = input_frames(case.length)
    net = get_maest(
        case.arch, n_classes=CLASSES, input_t=frames, s_patchout_t=PATCHOUT[case.length]
    )
    if way.network == "eager":
        for block in net.blocks:
            block.attn.fused_attn = False
    if way.compile:
        torch.compiler.reset()  # of networks before: this one's sizes are the first seen
        net.compile_blocks(backend=case.backend, mode=case.mode)
    recipe = config.MAEST["module"] | config.MAEST_NAMED["paper_recipe"]["module"]
    module = MaestModule(net, **recipe).to(case.device).train()
    module.log = lambda *args, **options: None  # there is no trainer to log to
    return net, lambda batch: module.training_step(batch, 0)


def ast_loss(case: Case) -> tuple[torch.nn.Module, Callable[[ClipBatch], torch.Tensor]]:
    """The same of transformers' AST."""
    from transformers import ASTConfig, ASTForAudioClassification

    arch = find_arch(case.arch)
    sizes = ASTConfig(
        hidden_size=arch.embed_dim,
        num_hidden_layers=arch.depth,
        num_attention_heads=arch.num_heads,
        intermediate_size=4 * arch.embed_dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_mel_bins=N_MELS,
        max_length=input_frames(case.length) + 1,
        time_stride=10,
        frequency_stride=10,
        layer_norm_eps=1e-6,
        num_labels=CLASSES,
    )
    net = ASTForAudioClassification(sizes).to(case.device).train()
    mean, std = net_norm()

    def loss(batch: ClipBatch) -> torch.Tensor:
        mel = F.pad((batch.mel.float() - mean) / (2 * std), (0, 0, 0, 1))
        return F.binary_cross_entropy_with_logits(net(mel).logits.float(), batch.targets)

    return net, loss


def net_norm() -> tuple[float, float]:
    """Mean and deviation that the released models take off their input."""
    norm = config.MAEST_NAMED["paper_recipe"]["maest"]
    return norm["norm_mean"], norm["norm_std"]


def training_step(way: Way, case: Case) -> Callable[[], None]:
    """A network and its optimiser; what is returned takes one step."""
    torch.manual_seed(0)
    device = torch.device(case.device)
    net, loss_of = ast_loss(case) if way.network == "ast" else our_loss(way, case)
    kind = {
        "ours": {"fused": True},
        "eager": {"fused": False, "foreach": way.foreach},
        "ast": {},
    }[way.network]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-5, weight_decay=1e-4, **kind)
    scaler = torch.amp.GradScaler(device.type, enabled=way.precision == "fp16")
    mixed = nullcontext()
    if way.precision != "fp32":
        mixed = torch.autocast(device.type, DTYPES[way.precision], cache_enabled=False)
    mel = torch.rand(case.batch, input_frames(case.length), N_MELS).mul_(4).half()
    batch = ClipBatch(mel, (torch.rand(case.batch, CLASSES) < 0.01).float())
    if device.type == "cuda":
        batch = batch.pin_memory()

    def step() -> None:
        optimizer.zero_grad()
        chosen = sdpa_kernel(_BACKENDS[way.attention]) if way.attention else nullcontext()
        with mixed, chosen:
            loss = loss_of(batch.to(device, non_blocking=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


# ---------------------------------------------------------------- its measurement


def measure(way: Way, case: Case) -> dict[str, Any]:
    """Seconds of each step, MiB at the peak, and which operation computes attention."""
    device = torch.device(case.device)
    cuda = device.type == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resident()
    step = training_step(way, case)
    started = time.perf_counter()
    for _ in range(case.warmup):
        step()
    synchronise(device)
    warmup = time.perf_counter() - started
    seconds = []
    # A GPU is given steps without a break, as in training, and is asked once.
    for _ in range(1 if cuda else case.steps):
        started = time.perf_counter()
        for _ in range(case.steps if cuda else 1):
            step()
        synchronise(device)
        seconds.append((time.perf_counter() - started) / (case.steps if cuda else 1))
    peak = torch.cuda.max_memory_allocated() if cuda else highest_resident()
    return {"seconds": seconds, "warmup_seconds": warmup, "peak_mib": (peak - before) / 2**20}


def resident() -> int:
    """Bytes of this process in memory, Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def highest_resident() -> int:
    """The most that it had, bytes. (``ru_maxrss`` would start from that of the parent process.)"""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def measure_apart(way: Way, case: Case) -> dict[str, Any]:
    """The same in a process of its own."""
    request = json.dumps({"way": vars(way), "case": vars(case)})
    worker = [sys.executable, __file__, "--worker", request]
    done = subprocess.run(worker, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}, {case}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def attention_operations(way: Way, case: Case) -> list[str]:
    """The fused attention that PyTorch chooses in a step; none where it is written out."""
    step = training_step(way, case)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    names = {event.key.removeprefix("aten::") for event in profiler.key_averages()}
    return sorted(name for name in names if "attention" in name and name.startswith("_"))


def waits(way: Way, case: Case) -> str | None:
    """What in a CUDA step makes the host wait for the device, in PyTorch's words; None: nothing."""
    step = training_step(way, case)
    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def largest_batch(way: Way, case: Case) -> int:
    """The largest multiple of 4 that trains on the GPU, within a few per cent."""

    def peak(batch: int) -> float | None:
        try:
            trial = Case(**vars(case) | {"batch": batch, "warmup": 1, "steps": 1})
            return measure(way, trial)["peak_mib"]
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


def compare(
    ways: dict[str, Way], cases: dict[str, Case], repetitions: int
) -> dict[str, dict[str, Any]]:
    """Median figures of each way; they take turns, and the ceiling's measurement with them."""
    device = next(iter(cases.values())).device
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    ceilings: dict[str, list[float]] = {way.precision: [] for way in ways.values()}
    for _ in range(repetitions):
        for precision, found in ceilings.items():
            found.append(matmul_ceiling(device, DTYPES[precision]))
        for name, way in ways.items():
            run = measure if device == "cuda" else measure_apart
            runs[name].append(run(way, cases[name]))
    rows = {}
    for name, way in ways.items():
        case = cases[name]
        every = [second for run in runs[name] for second in run["seconds"]]
        rate = case.batch / statistics.median(every)
        flops, ceiling = flops_per_clip(way, case), max(ceilings[way.precision])
        rows[name] = {
            "precision": way.precision,
            "batch": case.batch,
            "tokens": tokens(way, case),
            "gflop_per_clip": flops / 1e9,
            "seconds_per_step": statistics.median(every),
            "clips_per_second": rate,
            "peak_mib": statistics.median(run["peak_mib"] for run in runs[name]),
            "ceiling_tflops": ceiling / 1e12,
            "utilisation": rate * flops / ceiling,
            "warmup_seconds": [round(run["warmup_seconds"], 2) for run in runs[name]],
            "all_seconds": [round(second, 5) for second in every],
            "all_ceilings_tflops": [round(c / 1e12, 4) for c in ceilings[way.precision]],
        }
    return rows


# ---------------------------------------------------------------- the whole run


def show(title: str, rows: dict[str, dict[str, Any]], eager: str) -> None:
    print(f"\n{title}")
    print(f"{'':28s} batch  s/step  clips/s   x eager   peak MiB  utilisation")
    for name, row in rows.items():
        ratio = row["clips_per_second"] / rows[eager]["clips_per_second"]
        row["times_eager"] = ratio
        print(
            f"{name:28s} {row['batch']:5d} {row['seconds_per_step']:7.3f} "
            f"{row['clips_per_second']:8.2f} {ratio:9.2f} {row['peak_mib']:10.0f} "
            f"{row['utilisation']:12.2f}",
            flush=True,
        )


def chosen_ways(args: argparse.Namespace) -> dict[str, Way]:
    if args.device == "cuda":
        ways = dict(CUDA_WAYS)
    else:
        ways = dict(CPU_WAYS)
        if args.compile:
            ways["ours, compiled"] = Way(compile=True)
    if args.ways:
        unknown = sorted(set(args.ways) - set(ways))
        if unknown:
            raise SystemExit(f"no such way: {unknown}; there are {sorted(ways)}")
        ways = {name: way for name, way in ways.items() if name in args.ways}
    if not any(way.network == "eager" for way in ways.values()):
        raise SystemExit("one of the ways must be eager: it is what the others are compared with")
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arch", default="maest_base", help="maest_tiny for a quick trial")
    parser.add_argument(
        "--lengths", type=int, nargs="+", choices=sorted(PATCHOUT), default=[10, 30]
    )
    parser.add_argument(
        "--batch", type=int, help="clips; 12 on CUDA, on a CPU 4 of 10 s, 2 of 30 s"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each way")
    parser.add_argument("--warmup", type=int, help="steps before the clock; 5 on CUDA, 1 on a CPU")
    parser.add_argument("--steps", type=int, help="of a turn; 20 on CUDA, 2 on a CPU")
    parser.add_argument("--ways", nargs="+", help="some of them, by name")
    parser.add_argument("--compile", action="store_true", help="on a CPU too: with compiled blocks")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--mode", help="of torch.compile: reduce-overhead, max-autotune …")
    parser.add_argument(
        "--largest", action="store_true", help="CUDA: also with the largest batch that fits"
    )
    parser.add_argument("--record", type=Path, help="write the figures to this JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        request = json.loads(args.worker)
        print(json.dumps(measure(Way(**request["way"]), Case(**request["case"]))))
        return
    cuda = args.device == "cuda"
    if args.largest and not cuda:
        raise SystemExit("--largest is for --device cuda")
    if cuda and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here")
    if cuda:
        fast_math()
    ways = chosen_ways(args)
    packages = ["torch", "timm", "transformers"]
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: no AST")
        ways = {name: way for name, way in ways.items() if way.network != "ast"}
        packages.remove("transformers")
    eager = next(name for name, way in ways.items() if way.network == "eager")
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(*packages),
        "threads": torch.get_num_threads(),
        "arch": args.arch,
        "repetitions": args.repetitions,
        "lengths": {},
    }

    def write() -> None:
        if args.record:
            write_json(args.record, record)

    for length in args.lengths:
        batch = args.batch or (12 if cuda else 2 if length > 10 else 4)
        warmup = (5 if cuda else 1) if args.warmup is None else args.warmup
        steps = args.steps or (20 if cuda else 2)
        case = Case(args.arch, length, batch, args.device, warmup, steps, args.backend, args.mode)
        found: dict[str, Any] = {"patchout_columns": PATCHOUT[length]}
        record["lengths"][f"{length} s"] = found
        # Which operations these are is no question of size; all have heads of 64 channels.
        small = Case(**vars(case) | {"arch": "maest_tiny", "batch": 2})
        found["attention"] = {n: attention_operations(way, small) for n, way in ways.items()}
        if cuda:
            found["waits_for_device"] = {n: waits(way, small) for n, way in ways.items()}
        found["ways"] = compare(ways, dict.fromkeys(ways, case), args.repetitions)
        show(f"{length} s, batch {batch}", found["ways"], eager)
        write()
        if args.largest:
            cases = {
                name: Case(**vars(case) | {"batch": largest_batch(way, case), "steps": 5})
                for name, way in ways.items()
            }
            found["largest_batch"] = compare(ways, cases, args.repetitions)
            show(f"{length} s, the largest batch that fits", found["largest_batch"], eager)
            write()


if __name__ == "__main__":
    main()
