"""How long a training step takes, how much memory, and how much of the machine it uses.

python benchmarks/training.py [--lengths 10 30] [--against TREE] [--record FILE.json]
python benchmarks/training.py --device cuda --precision bf16 --compiled

The networks are of the same size, with random weights, on random clips.

- ours: a step as `models.training.MaestModule` does it, with the paper's augmentation and patchout:
  fused attention and fused AdamW
- eager: the same step, network and patchout, with attention written out (softmax(q k^T) v) and
  AdamW one operation and one tensor at a time
- AST: `transformers.ASTForAudioClassification` with its own attention and PyTorch's own AdamW,
  which has no patchout; without augmentation

A step: a batch goes from (pinned) host memory to the device, and through augmentation, network,
loss, backward and optimiser. Memory is the highest resident set above that before the network is
built; on CUDA what PyTorch allocated.
Utilisation: FLOPs that the network needs (AST: with all its tokens), over what a large matrix
product reaches in the same precision, measured in turn with the steps.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import harness
from harness import Figures, Way, in_turns, show, with_before

CLASSES, BANDS, MEAN, STD = 400, 96, 2.06755686098554, 1.268292820667291
PATCHOUT = {5: 15, 10: 30, 20: 60, 30: 90}  # the paper's, in columns
RECIPE: dict[str, Any] = {  # the paper's
    "lr": 2e-5, "weight_decay": 1e-4, "betas": (0.9, 0.999), "warmup_epochs": 5, "ramp_start": 50,
    "ramp_end": 100, "last_lr_factor": 0.01, "lr_interval": "epoch", "mixup_alpha": 0.3,
    "time_masks": 20, "time_mask_width": 8, "freq_masks": 8, "freq_mask_width": 5,
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "written out": SDPBackend.MATH,
}
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "eager": {"network": "eager", "attention": "written out"},
    "AST": {"network": "AST"},
}


def tokens(length: int, network: str = "ours") -> int:
    """How many the blocks get: cls, dist, and patches of 16 x 16, every 10."""
    frames = round(length * 62.5)
    columns = (frames + 1 if network == "AST" else frames) - 16  # the released models' length
    return 2 + 9 * (columns // 10 + 1 - (0 if network == "AST" else PATCHOUT[length]))


def flops_per_clip(arch: str, length: int, network: str = "ours") -> float:
    from maest.helpers.throughput import clip_flops
    from maest.models.archs import find_arch

    sizes = find_arch(arch)
    return clip_flops(
        training=True,
        tokens=tokens(length, network),
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        outputs=CLASSES,
    )


Loss = Callable[[Any], torch.Tensor]


def our_loss(arch: str, length: int, device: str, compiled: bool) -> tuple[torch.nn.Module, Loss]:
    """Our network on the device, and what computes a batch's loss."""
    from maest.models import get_maest

    frames = round(length * 62.5)
    net = get_maest(
        arch, pretrained=False, n_classes=CLASSES, input_t=frames, s_patchout_t=PATCHOUT[length]
    )
    if compiled:
        torch.compiler.reset()  # of networks before: this one's sizes are the first seen
        net.compile_blocks()
    from maest.config.settings import Recipe
    from maest.models.training import MaestModule

    module = MaestModule(net, Recipe(**RECIPE))
    module = module.to(device).train()
    module.log = lambda *args, **options: None  # there is no trainer to log to
    return net, lambda batch: module.training_step(batch, 0)


def ast_loss(arch: str, length: int, device: str) -> tuple[torch.nn.Module, Loss]:
    """The same of transformers' AST."""
    from transformers import ASTConfig, ASTForAudioClassification

    from maest.models.archs import find_arch

    sizes = find_arch(arch)
    config = ASTConfig(
        hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=4 * sizes.embed_dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_mel_bins=BANDS,
        max_length=round(length * 62.5) + 1,
        time_stride=10,
        frequency_stride=10,
        layer_norm_eps=1e-6,
        num_labels=CLASSES,
    )
    net = ASTForAudioClassification(config).to(device).train()

    def loss(batch: Any) -> torch.Tensor:
        mel = F.pad((batch.mel.float() - MEAN) / (2 * STD), (0, 0, 0, 1))
        return F.binary_cross_entropy_with_logits(net(mel).logits.float(), batch.targets)

    return net, loss


def step_seconds(
    arch: str,
    length: int,
    batch: int,
    device: str,
    warmup: int,
    steps: int,
    network: str = "ours",
    precision: str = "fp32",
    attention: str | None = None,
    compiled: bool = False,
) -> Figures:
    """Seconds of a step, MiB at the peak; the first steps apart."""
    from maest.datasets.batches import ClipBatch
    from maest.helpers.throughput import fast_math, synchronise

    fast_math()
    cuda = device == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else harness.memory_mib()
    torch.manual_seed(0)
    if network == "AST":
        net, loss_of = ast_loss(arch, length, device)
    else:
        net, loss_of = our_loss(arch, length, device, compiled)
    kind: dict[str, Any] = {"ours": {"fused": True}, "eager": {"foreach": False}}
    optimizer = torch.optim.AdamW(
        net.parameters(), 2e-5, weight_decay=1e-4, **kind.get(network, {})
    )
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    mel = torch.rand(batch, round(length * 62.5), BANDS).mul_(4).half()
    clips = ClipBatch(mel, (torch.rand(batch, CLASSES) < 0.01).float())
    if cuda:
        clips = clips.pin_memory()

    def step() -> None:
        optimizer.zero_grad()
        with ExitStack() as around:
            if precision != "fp32":
                mixed = torch.autocast(device, DTYPES[precision], cache_enabled=False)
                around.enter_context(mixed)
            if attention:
                torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
                around.enter_context(sdpa_kernel(ATTENTION[attention]))
            loss = loss_of(clips.to(torch.device(device), non_blocking=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def timed(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step()
        synchronise(torch.device(device))
        return time.perf_counter() - started

    first = timed(warmup)
    # A GPU is given steps without a break, as in training, and is asked once.
    every = [timed(steps) / steps] if cuda else [timed(1) for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else harness.memory_mib("VmHWM")
    return {
        "seconds": statistics.median(every),
        "warmup_seconds": first,
        "peak_mib": peak - before,
        "clips_per_second": batch / statistics.median(every),
    }


def ceiling(device: str, precision: str) -> Figures:
    """FLOP/s of a large matrix product."""
    from maest.helpers.throughput import fast_math, matmul_ceiling

    fast_math()
    return {"flops": matmul_ceiling(device, DTYPES[precision])}


def compare(ways: dict[str, Way], repeats: int, apart: bool) -> dict[str, Figures]:
    """Medians of the ways, in turns with the ceilings that their utilisation is of."""
    precisions = {name: way.arguments.get("precision", "fp32") for name, way in ways.items()}
    device = next(iter(ways.values())).arguments["device"]
    ceilings = {
        f"torch.mm, {precision}": Way(ceiling, {"device": device, "precision": precision})
        for precision in dict.fromkeys(precisions.values())
    }
    runs = in_turns(ceilings | ways, repeats, apart)
    rows = harness.medians({name: runs[name] for name in ways})
    for name, row in rows.items():
        case = ways[name].arguments
        network = case.get("network", "ours")
        flops = flops_per_clip(case["arch"], case["length"], network)
        row["batch"], row["tokens"] = case["batch"], tokens(case["length"], network)
        best = max(run["flops"] for run in runs[f"torch.mm, {precisions[name]}"])
        row["ceiling_tflops"], row["gflop_per_clip"] = best / 1e12, flops / 1e9
        row["utilisation"] = row["clips_per_second"] * flops / best
    eager = next((name for name in rows if name.startswith("eager")), next(iter(rows)))
    for row in rows.values():
        row["times_eager"] = row["clips_per_second"] / rows[eager]["clips_per_second"]
    columns = {
        "batch": "{batch}",
        "s/step": "{seconds:.3f}",
        "clips/s": "{clips_per_second:.2f}",
        f"x {eager}": "{times_eager:.2f}",
        "peak MiB": "{peak_mib:.0f}",
        "utilisation": "{utilisation:.2f}",
    }
    show(f"Training on clips of {next(iter(ways.values())).arguments['length']} s", rows, columns)
    return rows


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = harness.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arch", default="maest_base", help="maest_tiny for a quick trial")
    parser.add_argument("--lengths", type=int, nargs="+", choices=PATCHOUT, default=[10, 30])
    parser.add_argument("--batch", type=int, help="12 on CUDA, on a CPU 4 of 10 s, 2 of 30 s")
    parser.add_argument("--steps", type=int, help="of a turn; 20 on CUDA, 2 on a CPU")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--compiled", action="store_true", help="ours with compiled blocks")
    args = parser.parse_args(given)
    cuda = args.device == "cuda"
    if args.quick:
        args.arch, args.lengths, args.batch, args.steps, args.repeats = "maest_tiny", [5], 2, 1, 1
    record = harness.start_record(args, "torch", "timm", "transformers") | {"lengths": {}}
    for length in args.lengths:
        case = {
            "arch": args.arch,
            "length": length,
            "batch": args.batch or (12 if cuda else 2 if length > 10 else 4),
            "device": args.device,
            "warmup": 5 if cuda else 1,
            "steps": args.steps or (20 if cuda else 2),
            "precision": args.precision,
        }
        ways = {name: Way(step_seconds, case | way) for name, way in WAYS.items()}
        if args.compiled:
            ways["ours, compiled"] = Way(step_seconds, case | {"compiled": True})
        ways = with_before(harness.chosen(ways, args.ways), args.against)
        rows = compare(ways, args.repeats, not args.quick)
        record["lengths"][f"{length} s"] = {"patchout_columns": PATCHOUT[length], "ways": rows}
        harness.save(args, record)
    return record


if __name__ == "__main__":
    main()
