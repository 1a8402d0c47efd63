"""How long it takes to load a base model, and how much memory, against the usual ways.

python benchmarks/loading_models.py [--repeats 5] [--record benchmarks/records/loading-models.json]

Each measurement is a process of its own that has imported everything before the clock starts. The
ways take turns. Memory is the highest anonymous resident set (what is no page of a file) above that
before loading; files are in the page cache.

- ours: `get_maest(checkpoint=…)`, for each kind of file
- plain: build the network with fresh weights, read the file, copy it over (`torch.load`, or
  safetensors, and `load_state_dict`), as is usual
- transformers: `ASTForAudioClassification.from_pretrained` on the same hub folder
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.report import machine, versions  # noqa: E402
from maest.models import get_maest, save_model  # noqa: E402
from maest.models.huggingface import export_huggingface  # noqa: E402
from maest.models.saving import save_safetensors  # noqa: E402

WAYS = {
    "ours, model folder": ("model", "ours"),
    "ours, hub folder": ("hub", "ours"),
    "ours, safetensors": ("model.safetensors", "ours"),
    "ours, flat .pt": ("flat.pt", "ours"),
    "ours, Lightning .ckpt": ("lightning.ckpt", "ours"),
    "plain, flat .pt": ("flat.pt", "plain"),
    "plain, safetensors": ("model.safetensors", "plain"),
    "transformers, hub folder": ("hub", "transformers"),
}


def write_files(folder: Path) -> None:
    """A base model of 10 s, in every kind of file."""
    model = get_maest("maest_base", n_classes=400)
    state = model.state_dict()
    save_model(folder / "model", model)
    export_huggingface(folder / "hub", model)
    save_safetensors(folder / "model.safetensors", model)
    torch.save(state, folder / "flat.pt")
    optimizer = {"exp_avg": {name: torch.zeros_like(value) for name, value in state.items()}}
    nested = {f"net.{name}": value for name, value in state.items()}
    torch.save({"state_dict": nested, "optimizer_states": [optimizer]}, folder / "lightning.ckpt")


def loader(path: Path, way: str) -> Callable[[], torch.nn.Module]:
    """What is measured; its imports are done."""
    if way == "ours":
        return lambda: get_maest(checkpoint=path)
    if way == "transformers":
        from transformers import ASTForAudioClassification

        return lambda: ASTForAudioClassification.from_pretrained(path).eval()

    def plain() -> torch.nn.Module:
        model = get_maest("maest_base", n_classes=400)
        if path.suffix == ".pt":
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            import safetensors.torch

            state = {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
        model.load_state_dict(state)
        return model

    return plain


def anonymous_mib() -> float:
    """The anonymous resident memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("no RssAnon in /proc/self/status: this needs Linux")


def measure(path: Path, way: str) -> dict[str, float]:
    """Seconds, and MiB at the peak above what there was before."""
    load = loader(path, way)
    before, peak, done = anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    peak[0] = max(peak[0], anonymous_mib())
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    return {"seconds": seconds, "peak_mib": peak[0] - before, "weights_mib": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write the figures to this JSON")
    parser.add_argument("--worker", nargs=2, metavar=("PATH", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(Path(args.worker[0]), args.worker[1])))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        write_files(Path(temporary))
        for _ in range(args.repeats):
            for name, (file, way) in WAYS.items():
                worker = [sys.executable, __file__, "--worker", f"{temporary}/{file}", way]
                done = subprocess.run(worker, capture_output=True, text=True, check=True)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        | {"all_seconds": [round(run["seconds"], 3) for run in found]}
        for name, found in runs.items()
    }
    print(f"{'':26s} seconds  peak MiB  copies")
    for name, row in rows.items():
        copies = row["copies"] = row["peak_mib"] / row["weights_mib"]
        print(f"{name:26s} {row['seconds']:7.2f}  {row['peak_mib']:8.0f}  {copies:6.2f}")
    ratio = rows["plain, flat .pt"]["seconds"] / rows["ours, flat .pt"]["seconds"]
    print(f"plain / ours on the flat .pt: {ratio:.1f} x the time")
    if args.record:
        write_json(
            args.record,
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine(),
                "versions": versions("torch", "safetensors", "timm", "transformers"),
                "repeats": args.repeats,
                "median": rows,
                "plain_over_ours_flat_pt": ratio,
            },
        )


if __name__ == "__main__":
    main()
