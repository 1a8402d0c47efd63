"""How fast the network itself is on a CPU: log-mel patches through the engines, without files.

python benchmarks/engines.py [--lengths 5 10 30] [--against TREE] [--record FILE.json]

Embeddings of block 6 (the seventh) of random weights, of the tiny and the base model. ``seconds``
are those of the passes, ``start_seconds`` those from the network to the first patch's result.
"""

from __future__ import annotations

import time
from typing import Any

from harness import Bench, Figures, Way, times_as_fast

BLOCK = 6
ENGINES: dict[str, dict[str, str]] = {
    "ours": {},
    "ours, int8": {"quantize": "int8"},
    "PyTorch": {"engine": "pytorch"},
}


def passes(arch: str, frames: int, patches: int, options: dict[str, str]) -> Figures:
    """Patches through an engine: the least time of three passes, each of the same patches."""
    import torch

    from maest.models import get_maest
    from maest.models.engines import create

    torch.manual_seed(0)
    net = get_maest(arch, n_classes=400, input_t=frames, pretrained=False).eval()
    mels = torch.randn(patches, net.input_f, frames)
    started = time.perf_counter()
    embed = create(net, device="cpu", blocks=[BLOCK], logits=False, **options)
    embed(mels[:1])
    start, times = time.perf_counter() - started, []
    for _ in range(3):
        started = time.perf_counter()
        embed(mels)
        times.append(time.perf_counter() - started)
    return {"start_seconds": start, "seconds": min(times)}


def main(given: list[str] | None = None) -> dict[str, Any]:
    bench = Bench(
        __doc__,
        given,
        ("torch", "onnxruntime"),
        archs=(["maest_tiny", "maest_base"], ["maest_tiny"]),
        lengths=([5, 10, 30], [5]),
        seconds=(120.0, 10.0),  # of audio in a pass
    )
    columns = {
        "seconds": "{seconds:.2f}",
        "times as fast": "{times_as_fast:.2f}",
        "start, seconds": "{start_seconds:.2f}",
        "MiB": "{peak_mib:.0f}",
    }
    for arch in bench.args.archs:
        for length in bench.args.lengths:
            patches = max(1, round(bench.args.seconds / length))
            sizes = {"arch": arch, "frames": int(62.5 * length), "patches": patches}
            ways = {n: Way(passes, sizes | {"options": o}) for n, o in ENGINES.items()}
            rows = bench.measure(ways)
            times_as_fast(rows, next(iter(rows)))
            bench.show(f"{arch}, {patches} patches of {length} s", rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
