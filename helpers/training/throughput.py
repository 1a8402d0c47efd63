"""Measure the speed of training: clips per second, and on a GPU model-FLOPs utilisation (MFU).

MFU (A. Chowdhery et al., "PaLM", 2022, arXiv 2204.02311, appendix B) is the floating-point
operations that the network needs, over those that the device can do in that time.
"""

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch

from maest.helpers.audio.patches import PATCH_SIZE

log = logging.getLogger(__name__)

_SKIPPED_STEPS = 3  # the first steps compile, choose kernels and get memory
_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def clip_flops(
    *,
    tokens: int,
    embed_dim: int,
    depth: int,
    outputs: int,
    mlp_ratio: float = 4.0,
    training: bool = False,
    frozen_blocks: int = 0,
) -> float:
    """Count the floating-point operations of one clip's pass; in training, forward and backward.

    Counts matrix products and attention, with multiplication and addition as two; the rest is a few
    per mille. For logits the last block computes two tokens, for an embedding all. Backward costs
    twice as much as forward (gradients of weights and of the input, which patches do not need);
    patches and the first ``frozen_blocks`` blocks have none if any are frozen. ``tokens`` is N
    after patchout, two of them not patches; ``outputs`` the logits of all heads in use, or 0 for
    the embedding of block ``depth - 1``.
    """

    def block(queries: int) -> float:
        qkv = 2 * tokens * embed_dim * 3 * embed_dim
        attention = 2 * 2 * queries * tokens * embed_dim  # queries on keys, weights on values
        hidden = int(embed_dim * mlp_ratio)
        return qkv + attention + 2 * queries * embed_dim * (embed_dim + 2 * hidden)  # proj; fc1, 2

    patches = 2.0 * (tokens - 2) * PATCH_SIZE**2 * embed_dim
    blocks = [block(tokens)] * (depth - 1) + [block(2 if outputs else tokens)]
    frozen, trained = sum(blocks[:frozen_blocks]), sum(blocks[frozen_blocks:])
    trained += 2 * embed_dim * outputs
    if not training:
        return patches + frozen + trained
    return (1 if frozen_blocks else 2) * patches + frozen + 3 * trained


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has finished its queued work; a CPU queues none."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def matmul_ceiling(
    device: torch.device | str, dtype: torch.dtype = torch.float32, seconds: float = 0.4
) -> float:
    """Measure the device's speed on a large square matrix product, in FLOP/s.

    The best of several runs after a warm-up, fp32 on CUDA in TF32 if that is on. Other programs on
    the device lower it. The global random state is not touched.
    """
    device = torch.device(device)
    size, products = (8192, 8) if device.type == "cuda" else (1536, 1)
    # Random values: on a GPU a product of constants draws less power, and is faster.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in "ab")
    c = torch.empty_like(a)

    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < seconds:  # the first is a warm-up
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=c)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 * products / min(times[1:])


def fast_math() -> None:
    """Let CUDA multiply fp32 matrices in TF32 (10 bits of mantissa), as training may."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


class Throughput(pl.Callback):
    """Logs ``clips_per_second`` of all processes together, and on a GPU ``mfu``.

    Logs every ``every`` batches, over the epoch so far, and at its end. Time includes waiting for
    data, but not validation and the first steps of a run. The device is synchronised only where an
    epoch or a validation begins or ends; in between, host and device keep the same pace.
    ``len(batch)`` must be its number of clips. ``mfu`` is the share, 0 to 1, of ``ceiling``
    (FLOP/s; None: measured on CUDA when training starts) that ``flops_per_clip`` of
    :func:`clip_flops` reach.
    """

    def __init__(
        self, flops_per_clip: float, ceiling: float | None = None, every: int = 20
    ) -> None:
        self.flops_per_clip, self.ceiling, self.every = flops_per_clip, ceiling, every
        self._to_skip = _SKIPPED_STEPS
        self._clips, self._seconds = 0, 0.0  # of the epoch; seconds up to where the clock stopped
        self._started: float | None = None  # when the clock started; None: it is stopped

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ceiling is None and pl_module.device.type == "cuda":
            dtype = _DTYPES.get(str(trainer.precision), torch.float32)
            self.ceiling = matmul_ceiling(pl_module.device, dtype)
            log.info(
                "this GPU's matrix products reach %.3g TFLOP/s in %s; mfu (model-FLOPs "
                "utilisation) is the share of it that training uses",
                *(self.ceiling / 1e12, str(dtype).removeprefix("torch.")),
            )

    def on_train_epoch_start(self, *_: Any) -> None:
        self._clips, self._seconds, self._started = 0, 0.0, None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self._started is None and self._to_skip <= 0:
            synchronise(pl_module.device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._started is None:
            self._to_skip -= 1
            return
        self._clips += len(batch) * trainer.world_size
        if (batch_idx + 1) % self.every == 0:
            running = time.perf_counter() - self._started
            self._log(trainer, pl_module, self._seconds + running, on_step=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._started is not None:
            synchronise(pl_module.device)
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)  # stops the clock
        if self._clips:
            self._log(trainer, pl_module, self._seconds, on_step=False)

    def _log(self, trainer: pl.Trainer, pl_module: Any, seconds: float, on_step: bool) -> None:
        # On the CPU: Lightning would fetch them from a GPU after each batch.
        rate = torch.tensor(self._clips / seconds)
        metrics = {"clips_per_second": rate}
        if self.ceiling is not None:
            metrics["mfu"] = rate / trainer.world_size * self.flops_per_clip / self.ceiling
        options = {"on_step": on_step, "on_epoch": not on_step, "batch_size": 1}
        pl_module.log_dict(metrics, prog_bar=True, **options)
