"""How fast the network itself is on a CPU: log-mel patches through the engines, without files.

python benchmarks/engines.py [--lengths 5 10 30] [--against TREE] [--record FILE.json]
python benchmarks/engines.py --quick  # does it run?

Embeddings of block 6 (the seventh) of random weights, of the tiny and the base model. ``seconds``
are those of the passes, ``start_seconds`` those from the network to the first patch's result. An
older checkout, without engines, computes as its extraction does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import harness
from harness import Figures, Way, chosen, measure, show, times_as_fast

BLOCK = 6
ENGINES: dict[str, dict[str, str]] = {
    "ours": {},
    "ours, int8": {"quantize": "int8"},
    "PyTorch": {"engine": "pytorch"},
}


def passes(arch: str, frames: int, patches: int, options: dict[str, str], passes: int) -> Figures:
    """Patches through an engine: the least time of some passes, each of the same patches."""
    import torch

    from maest.models import get_maest

    torch.manual_seed(0)
    net = get_maest(arch, n_classes=400, input_t=frames, pretrained=False).eval()
    mels = torch.randn(patches, net.input_f, frames)
    started = time.perf_counter()
    embed = engine(net, options)
    embed(mels[:1])
    figures: Figures = {"start_seconds": time.perf_counter() - started}
    times = []
    for _ in range(passes):
        started = time.perf_counter()
        embed(mels)
        times.append(time.perf_counter() - started)
    return figures | {"seconds": min(times)}


def engine(net: Any, options: dict[str, str]) -> Callable[[Any], Any]:
    """What computes [B, F, T]: an engine, or in an older checkout its `Encoder`."""
    import torch

    try:
        from maest.models.engines import create
    except ImportError:
        from maest.models.batching import Encoder, Wanted
        from maest.models.cpu import speed_up

        speed_up(net)
        encoder = Encoder(net, Wanted((BLOCK,)), options.get("quantize"))
        one_pass = max(1, 4096 // net.n_tokens(net.input_t, training=False))

        def embed(mels: Any) -> None:
            log_mels = mels.transpose(1, 2) * (2 * net.norm_std) + net.norm_mean
            with torch.no_grad():
                for part in log_mels.split(one_pass):
                    encoder(part)

        return embed
    return create(net, device="cpu", blocks=[BLOCK], logits=False, **options)


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = harness.parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", help="of patches, in seconds")
    parser.add_argument("--archs", nargs="+", default=["maest_tiny", "maest_base"])
    parser.add_argument("--seconds", type=float, default=120.0, help="of audio in a pass")
    args = parser.parse_args(given)
    args.lengths = args.lengths or ([5] if args.quick else [5, 10, 30])
    if args.quick:
        args.archs, args.seconds = ["maest_tiny"], 10.0
    record = harness.start_record(args, "torch", "onnxruntime")
    for arch in args.archs:
        for length in args.lengths:
            frames, patches = int(62.5 * length), max(1, round(args.seconds / length))
            sizes = {"arch": arch, "frames": frames, "patches": patches, "passes": 3}
            ways = {n: Way(passes, sizes | {"options": o}) for n, o in ENGINES.items()}
            rows = measure(chosen(ways, args.ways), args)
            times_as_fast(rows, next(iter(rows)))
            columns = {
                "seconds": "{seconds:.2f}",
                "times as fast": "{times_as_fast:.2f}",
                "start, seconds": "{start_seconds:.2f}",
                "MiB": "{peak_mib:.0f}",
            }
            show(f"{arch}: {patches} patches of {length} s", rows, columns)
            record[f"{arch}, {length} s"] = rows
            harness.save(args, record)
    return record


if __name__ == "__main__":
    main()
