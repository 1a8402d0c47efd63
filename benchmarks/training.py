"""How long a training step takes, how much memory, and how much of the machine it uses.

python benchmarks/training.py [--lengths 10 30] [--record FILE.json]

The networks are of the same size, with random weights, on random clips. For a GPU: gpu.py.

- ours: a step as `models.training.MaestModule` does it, with the paper's augmentation and patchout:
  fused attention and fused AdamW
- eager: the same step, network and patchout, with attention written out (softmax(q k^T) v) and
  AdamW one operation and one tensor at a time
- AST: `transformers.ASTForAudioClassification` with its own attention and PyTorch's own AdamW,
  which has no patchout; without augmentation

A step: a batch goes from (pinned) host memory to the device, and through augmentation, network,
loss, backward and optimiser. Memory is the highest resident set above that before the network is
built; on CUDA what PyTorch allocated. Utilisation: FLOPs that the network needs (AST: with all its
tokens), over what a large matrix product reaches in the same precision, right after the steps.
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
from harness import Bench, Figures, Way, times_as_fast

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
# A network, what computes a batch's loss, and how many tokens its blocks get of a clip
Trained = tuple[torch.nn.Module, Callable[[Any], torch.Tensor], int]


def our_network(arch: str, length: int, device: str, compiled: bool) -> Trained:
    from maest.config.settings import Recipe
    from maest.models import get_maest
    from maest.models.training import MaestModule

    frames, out = round(length * 62.5), PATCHOUT[length]
    net = get_maest(arch, pretrained=False, n_classes=CLASSES, input_t=frames, s_patchout_t=out)
    if compiled:
        torch.compiler.reset()  # of networks before: this one's sizes are the first seen
        net.compile_blocks()
    module = MaestModule(net, Recipe(**RECIPE)).to(device).train()
    module.log = lambda *args, **options: None  # there is no trainer to log to
    return net, lambda batch: module.training_step(batch, 0), net.n_tokens(frames)


def ast_network(arch: str, length: int, device: str) -> Trained:
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

    embeddings = net.audio_spectrogram_transformer.embeddings
    return net, loss, embeddings.position_embeddings.shape[1]


def train(
    arch: str,
    length: int,
    batch: int,
    warmup: int,
    steps: int,
    device: str = "cpu",
    network: str = "ours",
    precision: str = "fp32",
    attention: str | None = None,
    compiled: bool = False,
) -> Figures:
    """Seconds of a step, MiB at the peak, utilisation; the first steps apart."""
    from maest.datasets.batches import ClipBatch
    from maest.helpers.training.throughput import clip_flops, fast_math, matmul_ceiling, synchronise
    from maest.models.archs import find_arch

    fast_math()
    cuda = device == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else harness.memory_mib()
    torch.manual_seed(0)
    if network == "AST":
        net, loss_of, tokens = ast_network(arch, length, device)
    else:
        net, loss_of, tokens = our_network(arch, length, device, compiled)
    kind: dict[str, Any] = {"ours": {"fused": True}, "eager": {"foreach": False}, "AST": {}}
    optimizer = torch.optim.AdamW(net.parameters(), 2e-5, weight_decay=1e-4, **kind[network])
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
    seconds = statistics.median(every)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else harness.memory_mib("VmHWM")
    depth, width = find_arch(arch).depth, find_arch(arch).embed_dim
    flops = clip_flops(tokens=tokens, embed_dim=width, depth=depth, outputs=CLASSES, training=True)
    ceiling = matmul_ceiling(device, DTYPES[precision])
    return {
        "seconds": seconds,
        "warmup_seconds": first,
        "peak_mib": peak - before,
        "batch": batch,
        "tokens": tokens,
        "clips_per_second": batch / seconds,
        "gflop_per_clip": flops / 1e9,
        "ceiling_tflops": ceiling / 1e12,
        "utilisation": batch / seconds * flops / ceiling,
    }


def main(given: list[str] | None = None) -> dict[str, Any]:
    bench = Bench(
        __doc__,
        given,
        ("torch", "timm", "transformers"),
        arch=("maest_base", "maest_tiny"),
        lengths=([10, 30], [5]),
        steps=(2, 1),  # of a turn
    )
    columns = {
        "s/step": "{seconds:.3f}",
        "clips/s": "{clips_per_second:.2f}",
        "times as fast": "{times_as_fast:.2f}",
        "peak MiB": "{peak_mib:.0f}",
        "utilisation": "{utilisation:.2f}",
    }
    for length in bench.args.lengths:
        case = {"arch": bench.args.arch, "length": length, "batch": 2 if length > 10 else 4}
        case |= {"warmup": 1, "steps": bench.args.steps}
        rows = bench.measure({name: Way(train, case | way) for name, way in WAYS.items()})
        times_as_fast(rows, "eager")
        title = f"Clips of {length} s, batch {case['batch']}; beside eager"
        bench.show(title, rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
