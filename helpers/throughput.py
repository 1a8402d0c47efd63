"""How fast training is: clips a second, and how much of the machine's arithmetic that uses.

Model-FLOPs utilisation (MFU), A. Chowdhery et al., "PaLM", 2022 (arXiv 2204.02311), appendix B:
the floating-point operations that the network needs, over what the device could do in that time.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch

from maest.helpers.patches import PATCH_SIZE

log = logging.getLogger(__name__)

_SKIPPED_STEPS = 3  # the first steps compile, choose kernels and get memory
_DTYPES = {
    **{"16-mixed": torch.float16, "16-true": torch.float16, "64-true": torch.float64},
    **{"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16},
}


def forward_flops(
    *,
    tokens: int,
    embed_dim: int,
    depth: int,
    outputs: int,
    mlp_ratio: float = 4.0,
    patch_dim: int = PATCH_SIZE**2,
) -> float:
    """Floating-point operations of one clip's way through the network.

    For logits, the last block computes two tokens; for a block's embedding, all of them.

    Matrix products and attention are counted, a multiplication and an addition as two; the rest is
    a few per mille.

    Args:
        tokens: N, of which two are no patches; with patchout, what it leaves.
        embed_dim: channels D.
        depth: number of blocks.
        outputs: logits of all heads in use: C, or 2 · C where two heads are trained; 0 for the
            embedding of block ``depth - 1``.
        mlp_ratio: hidden width of a block's MLP over D.
        patch_dim: values of a patch.
    """
    patches, blocks, heads = _parts(tokens, embed_dim, depth, outputs, mlp_ratio, patch_dim)
    return patches + sum(blocks) + heads


def training_flops(
    *,
    tokens: int,
    embed_dim: int,
    depth: int,
    outputs: int,
    mlp_ratio: float = 4.0,
    patch_dim: int = PATCH_SIZE**2,
    frozen_blocks: int = 0,
) -> float:
    """Floating-point operations that one clip takes in training, forward and backward.

    Backward costs twice as much as forward: a gradient of the weights, and one of the input (which
    patches do not need). What a program computes again, or drops later, is not counted.

    Args:
        tokens, embed_dim, depth, outputs, mlp_ratio, patch_dim: of :func:`forward_flops`.
        frozen_blocks: the patch embedding and so many first blocks are not trained, and have no
            backward; 0: all are trained.
    """
    patches, blocks, heads = _parts(tokens, embed_dim, depth, outputs, mlp_ratio, patch_dim)
    frozen, trained = sum(blocks[:frozen_blocks]), sum(blocks[frozen_blocks:]) + heads
    return (1 if frozen_blocks else 2) * patches + frozen + 3 * trained


def _parts(
    tokens: int, embed_dim: int, depth: int, outputs: int, mlp_ratio: float, patch_dim: int
) -> tuple[float, list[float], float]:
    """FLOPs forward of the patch embedding, of each block, and of the heads."""
    hidden = int(embed_dim * mlp_ratio)

    def block(queries: int) -> float:
        qkv = 2 * tokens * embed_dim * 3 * embed_dim
        attention = 2 * 2 * queries * tokens * embed_dim  # queries on keys, weights on values
        return qkv + attention + 2 * queries * embed_dim * (embed_dim + 2 * hidden)  # proj; fc1, 2

    patches = 2.0 * (tokens - 2) * patch_dim * embed_dim
    last = block(2 if outputs else tokens)
    return patches, [block(tokens)] * (depth - 1) + [last], 2 * embed_dim * outputs


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has done what it was given; a CPU has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


@torch.no_grad()
def matmul_ceiling(
    device: torch.device | str, dtype: torch.dtype = torch.float32, seconds: float = 0.4
) -> float:
    """What the device reaches on nothing but a large square matrix product, in FLOP/s.

    The best of several runs after a warm-up; fp32 on CUDA with TF32 where that is switched on.
    Where other programs run, it is lower than it could be, and a utilisation computed with it may
    be above 1. torch's random numbers stay where they are.

    Args:
        device: where to measure; "cuda" is the current one.
        dtype: of the matrices.
        seconds: how long to measure, about; the warm-up comes before that.
    """
    device = torch.device(device)
    size, products = (8192, 8) if device.type == "cuda" else (1536, 1)
    # Random values: on a GPU a product of constants draws less power, and is faster.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in "ab")
    c = torch.empty_like(a)

    def run(times: int) -> float:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b, out=c)
        synchronise(device)
        return (time.perf_counter() - started) / times

    run(products)
    best, until = run(products), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, run(products))
    return 2 * size**3 / best


def fast_math() -> None:
    """Let CUDA compute products of fp32 matrices in TF32 (10 bits of mantissa), as training may.

    For what mixed precision leaves in fp32; CPUs and other devices stay as they are.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


class Throughput(pl.Callback):
    """Measures clips a second and utilisation in training: on the progress bar, and in the log.

    ``clips_per_second`` (of all processes together) and ``mfu`` (0 to 1) are logged after each
    ``every`` batches, over these; and at the end of an epoch over all of it, before the callbacks
    that come after this one. Time is that of training with its waiting for data, without validation
    and without a run's first steps. The clock alone is read, and the device is waited for only
    where an epoch or a validation begins or ends: between those, the host and the device keep the
    same pace. A batch must say its number of clips, ``len(batch)``.

    Args:
        flops_per_clip: of :func:`training_flops`.
        ceiling: what a device can do, in FLOP/s; None: :func:`matmul_ceiling` in the precision of
            the training, measured when that starts.
        every: batches from one figure to the next.

    Raises:
        ValueError: if ``every`` is below 1.
    """

    def __init__(
        self, flops_per_clip: float, ceiling: float | None = None, every: int = 20
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}: expected at least 1 batch")
        self.flops_per_clip = flops_per_clip
        self.ceiling = ceiling
        self.every = every
        self._to_skip = _SKIPPED_STEPS
        self._clips, self._seconds = 0, 0.0  # of the epoch, up to where the clock was stopped
        self._started: float | None = None  # when the clock was; None: it stands
        self._running_clips = 0  # since then
        self._window = (0.0, 0, 0)  # where it began: time, running clips; its batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._to_skip, self._started = _SKIPPED_STEPS, None
        if self.ceiling is None:
            dtype = _DTYPES.get(str(trainer.precision), torch.float32)
            self.ceiling = matmul_ceiling(pl_module.device, dtype)
            name = str(dtype).removeprefix("torch.")
            log.info("matrix products reach %.3g TFLOP/s in %s", self.ceiling / 1e12, name)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clips, self._seconds, self._started = 0, 0.0, None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._started is None and self._to_skip <= 0:
            synchronise(pl_module.device)
            self._started, self._running_clips = time.perf_counter(), 0
            self._window = (self._started, 0, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._started is None:
            self._to_skip -= 1
            return
        self._running_clips += len(batch) * trainer.world_size
        since, clips, batches = self._window
        if batches + 1 < self.every:
            self._window = (since, clips, batches + 1)
            return
        now = time.perf_counter()
        figures = self._figures(trainer, self._running_clips - clips, now - since)
        pl_module.log_dict(figures, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
        self._window = (now, self._running_clips, 0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop(pl_module)
        if self._clips:
            figures = self._figures(trainer, self._clips, self._seconds)
            pl_module.log_dict(figures, prog_bar=True, on_step=False, on_epoch=True, batch_size=1)

    def _stop(self, pl_module: pl.LightningModule) -> None:
        if self._started is None:
            return
        synchronise(pl_module.device)
        self._seconds += time.perf_counter() - self._started
        self._clips += self._running_clips
        self._started = None

    def _figures(self, trainer: pl.Trainer, clips: int, seconds: float) -> dict[str, torch.Tensor]:
        # On the CPU, where Lightning leaves them: from a GPU it would fetch them after each batch.
        per_second = torch.tensor(clips / seconds)
        mfu = per_second / trainer.world_size * self.flops_per_clip / self.ceiling
        return {"clips_per_second": per_second, "mfu": mfu}
