"""Faster float32 inference on x86 CPUs: the transformer blocks through oneDNN, on plain threads.

Why: PyTorch sends float32 products to MKL, which reaches half of oneDNN's speed on AMD's CPUs, and
its attention spends a third more time than these products do. Both libraries are in PyTorch.

How a block is computed (B patches of N tokens, H heads):

1. by rows of [B·N, D]: norm, queries, keys and values;
2. by patch, head and part of the queries: attention, whose products are oneDNN's as well. The
   scores of one part at a time exist, few enough to stay in a core's cache;
3. by rows again: projection, sum, norm, the MLP with its GELU inside the product, sum.

Each step's parts go to as many threads as PyTorch is set to (`torch.set_num_threads`), and each
thread computes its parts alone. So threads wait for each other three times a block. A product that
is shared by threads makes them wait in each of some 150 products of a block; where another process
takes a core for a while, as reading processes do, that was measured to be ten times slower.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from threading import Barrier, Lock
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from maest.models.blocks import is_standard
from maest.models.maest import Maest

# Rows of one product: enough for full speed (512 were up to 15 % slower, 2048 no faster), and an
# MLP's hidden values of 12 MB a thread in the base model.
_ROWS = 1024
# Queries of one part of attention: measured from 64 to 1676, of 272 to 1676 tokens. Less is slower
# by up to 15 %; much more no longer fits the cache.
_QUERIES = 448
# oneDNN compiles code for every new shape, and keeps it: some megabytes for each number of tokens.
# So products have whole units of rows and keys. What that adds is left out again.
_UNIT = 32
# Fewer rows than this are no work for a second thread.
_FEWEST_ROWS = 64


def speed_up(net: Maest) -> bool:
    """Let a network's blocks compute through oneDNN wherever that is possible, in place.

    It is used for float32 on the CPU, in eval mode, where no gradient is wanted (`torch.no_grad`,
    `torch.inference_mode`), and is followed by `torch.set_num_threads`. In all other cases
    (training, autocast, another type or device, `torch.compile`, export, tracing, modules that were
    replaced or have hooks, a dispatch mode such as a FLOP counter) the blocks do what they did
    before. Parameters, their names, the modules, copying and pickling stay as they are.

    Args:
        net: the network; a second call changes nothing.

    Returns:
        Whether it did: False on other CPUs than x86, or in a PyTorch without oneDNN.
    """
    if not available():
        return False
    for block in net.blocks:
        if type(block) is Block:
            block.__class__ = _OnednnBlock
    return any(isinstance(block, _OnednnBlock) for block in net.blocks)


def available() -> bool:
    """Whether this machine and this PyTorch have what :func:`speed_up` uses."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def matmul_ceiling(seconds: float = 1.0) -> float:
    """FLOP/s of the fastest float32 matrix product that PyTorch has on this CPU.

    The best of MKL's (`torch.mm`) and, where there is one, oneDNN's, of square matrices of 1024,
    1536 and 2048, on as many threads as PyTorch is set to: what a share of the ceiling is of.

    Args:
        seconds: how long to measure, at least; each of the products runs three times in any case.
    """
    products: list[Callable[[Tensor, Tensor], Tensor]] = [torch.mm]
    if available():
        products.append(_product)
    best, count = 0.0, 0
    matrices = [torch.randn(2, size, size, device="cpu") for size in (1024, 1536, 2048)]
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while count < 3 or time.perf_counter() < end:
            count += 1
            for a, b in matrices:
                for product in products:
                    start = time.perf_counter()
                    product(a, b)
                    best = max(best, 2 * len(a) ** 3 / (time.perf_counter() - start))
    return best


class _OnednnBlock(Block):
    """timm's block, computed through oneDNN where that gives the same result."""

    computes_as_block = True  # for `is_standard`

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        # The first test is for the compiler too: it sees nothing of what follows.
        if torch.compiler.is_compiling() or attn_mask is not None or is_causal:
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        if not _applies(self, x):
            return super().forward(x)
        return _compute(self, x)


def _applies(block: Block, x: Tensor) -> bool:
    """Whether the fast way is possible, and gives what the modules would."""
    if block.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if type(x) is not Tensor or x.ndim != 3 or not x.numel():
        return False
    if not is_standard(block):
        return False
    attn, mlp = block.attn, block.mlp
    layers = (attn.qkv, attn.proj, mlp.fc1, mlp.fc2, block.norm1, block.norm2)
    return all(_plain(tensor) for tensor in (x, *(layer.weight for layer in layers)))


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layers side by side, each of its own input, for training.

    Through oneDNN where it can be, and else by `torch.baddbmm`; the same but for the last bits.

    Args:
        x: float [G, B, D].
        weight: [G, H, D].
        bias: [G, H].

    Returns:
        [G, B, H].
    """
    if available() and all(_plain(tensor) for tensor in (x, weight, bias)):
        return _GroupedLinear.apply(x, weight, bias)
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


class _GroupedLinear(torch.autograd.Function):
    """Twice as fast as MKL's batched product on an AMD CPU, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.stack([_product(*one) for one in zip(x, weight, bias, strict=True)])

    @staticmethod
    @once_differentiable  # a second derivative would be wrong in silence
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        inputs = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        weights = torch.empty_like(weight)
        for i, own in enumerate(gradient):
            weights[i] = _product(own.T, x[i].T)
            if inputs is not None:
                inputs[i] = _product(own, weight[i].T)
        return inputs, weights, gradient.sum(dim=1)


def _plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return _product(x, layer.weight, layer.bias)


def _linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """The exact GELU (of the error function), inside the product."""
    op = torch.ops.mkldnn._linear_pointwise
    return op(x, layer.weight, layer.bias, "gelu", [], "none")


def _linear_add(layer: nn.Linear, x: Tensor, other: Tensor) -> Tensor:
    op = torch.ops.mkldnn._linear_pointwise.binary
    return op(x, other, layer.weight, layer.bias, "add")


def _compute(block: Block, x: Tensor) -> Tensor:
    """[B, N, D] → [B, N, D], in eval mode."""
    attn, mlp = block.attn, block.mlp
    batch, n, channels = x.shape
    heads, width = attn.num_heads, attn.head_dim
    total, keys = batch * n, _round_up(n)
    threads = max(1, min(torch.get_num_threads(), total // _FEWEST_ROWS))
    # Steps read and write whole units of rows. What lies behind the last token is never looked at,
    # but must be numbers that are fast to compute with: what is in new memory may not be.
    padded = _round_up(total) + _UNIT
    given = x.reshape(total, channels)
    # Heads first: then the tokens of one head of one patch lie beside each other.
    q, k, v = (torch.empty(heads, padded, width) for _ in range(3))
    mixed = torch.empty(padded, attn.attn_dim)
    result = torch.empty(padded, channels)
    q[:, total:], k[:, total:], mixed[total:] = 0, 0, 0

    def tokens(rows: slice) -> Tensor:
        return F.pad(given[rows], (0, 0, 0, max(0, rows.stop - total)))

    def project(rows: slice) -> None:
        qkv = _linear(attn.qkv, block.norm1(tokens(rows)))
        parts = qkv.view(-1, 3, heads, width).permute(1, 2, 0, 3)
        torch.mul(parts[0], attn.scale, out=q[:, rows])
        k[:, rows] = parts[1]
        v[:, rows] = parts[2]

    def attend(part: tuple[int, int, slice]) -> None:
        head, first, rows = part
        count = min(rows.stop, n) - rows.start
        queries = q[head, first + rows.start : first + rows.stop]
        scores = _product(queries, k[head, first : first + keys])
        scores[:, n:] = -torch.inf  # of the next patch's keys
        values = F.pad(v[head, first : first + n].T, (0, keys - n))
        columns = slice(head * width, (head + 1) * width)
        found = _product(scores.softmax(-1), values.contiguous())[:count]
        mixed[first + rows.start : first + rows.start + count, columns] = found

    def finish(rows: slice) -> None:
        y = _linear_add(attn.proj, mixed[rows], tokens(rows))
        result[rows] = _linear_add(mlp.fc2, _linear_gelu(mlp.fc1, block.norm2(y)), y)

    _each(project, _parts(total, _ROWS, threads), threads)
    parts = [
        (head, first, queries)
        for first in range(0, total, n)
        for head in range(heads)
        for queries in _parts(n, _QUERIES)
    ]
    _each(attend, parts, threads)
    _each(finish, _parts(total, _ROWS, threads), threads)
    return result[:total].view(batch, n, channels)


def _round_up(rows: int) -> int:
    return -(-rows // _UNIT) * _UNIT


def _parts(length: int, size: int, at_least: int = 1) -> list[slice]:
    """``length`` rows in parts of about ``size``, all of one size but for one unit.

    A multiple of ``at_least`` of them where there is a unit for each, for as many threads. The last
    part is whole units as well: it ends up to a unit behind ``length``.
    """
    units = -(-length // _UNIT)
    count = max(1, round(length / size))
    count = min(units, -(-count // at_least) * at_least)
    return [slice(*edge) for edge in pairwise(i * units // count * _UNIT for i in range(count + 1))]


def _each(work: Callable, parts: Sequence, threads: int) -> None:
    """``work(part)`` for each part, shared out to the threads evenly and in order."""
    if threads == 1:
        for part in parts:
            work(part)
        return
    inference_mode = torch.is_inference_mode_enabled()

    def run(share: Sequence) -> None:
        with torch.inference_mode(inference_mode), torch.no_grad():  # both are a thread's own
            for part in share:
                work(part)

    pool = _pool(os.getpid(), threads)
    edges = [i * len(parts) // threads for i in range(threads + 1)]
    shares = [parts[slice(*edge)] for edge in pairwise(edges)]
    for future in [pool.submit(run, share) for share in shares]:
        future.result()


_making = Lock()


def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """Threads whose products are theirs alone. After a fork there are none left: one for each."""
    with _making:
        return _make_pool(pid, threads)


@lru_cache(maxsize=2)
def _make_pool(_pid: int, threads: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    ready = Barrier(threads + 1)

    def start() -> None:
        # A thread takes the process's number at its first look, and would in the middle of things.
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "blocks", start)
    try:
        for _ in range(threads):
            pool.submit(int)
        ready.wait()
    except BaseException:  # no more threads to be had: those that wait must not wait for ever
        ready.abort()
        raise
    finally:
        # It is a thread's own number, and also the default of threads that come later: put back.
        torch.set_num_threads(before)
    return pool
