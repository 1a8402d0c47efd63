"""How long it takes to load a base model, and how much memory, against the usual ways.

python benchmarks/loading_models.py [--repeats 5] [--against TREE] [--record FILE.json]

Each measurement is a process of its own that has imported everything before the clock starts.
Memory is the highest anonymous resident set (what is no page of a file) above that before loading;
files are in the page cache.

- ours: `get_maest(checkpoint=…)`, for each kind of file
- plain: build the network with fresh weights, read the file, copy it over (`torch.load`, or
  safetensors, and `load_state_dict`), as is usual
- transformers: `ASTForAudioClassification.from_pretrained` on the same hub folder
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from harness import Bench, Figures, Way, memory_mib

FILES = {
    "ours, model folder": ("ours", "model"),
    "ours, hub folder": ("ours", "hub"),
    "ours, safetensors": ("ours", "model/model.safetensors"),
    "ours, flat .pt": ("ours", "flat.pt"),
    "ours, Lightning .ckpt": ("ours", "lightning.ckpt"),
    "plain, flat .pt": ("plain", "flat.pt"),
    "plain, safetensors": ("plain", "model/model.safetensors"),
    "transformers, hub folder": ("transformers", "hub"),
}


def write_files(folder: Path, arch: str) -> None:
    """A model of 10 s, in every kind of file."""
    import torch

    from maest.models import get_maest, save_model
    from maest.models.huggingface import export_huggingface

    model = get_maest(arch, n_classes=400, pretrained=False)
    state = model.state_dict()
    save_model(folder / "model", model)
    export_huggingface(folder / "hub", model)
    torch.save(state, folder / "flat.pt")
    optimizer = {"exp_avg": {name: torch.zeros_like(value) for name, value in state.items()}}
    nested = {f"net.{name}": value for name, value in state.items()}
    torch.save({"state_dict": nested, "optimizer_states": [optimizer]}, folder / "lightning.ckpt")


def loader(program: str, path: Path, arch: str) -> Callable[[], Any]:
    """What is measured; its imports are done."""
    import safetensors.torch
    import torch

    from maest.models import get_maest

    if program == "ours":
        return lambda: get_maest(checkpoint=path)
    if program == "transformers":
        from transformers import ASTForAudioClassification

        return lambda: ASTForAudioClassification.from_pretrained(path).eval()

    def plain() -> torch.nn.Module:
        model = get_maest(arch, n_classes=400, pretrained=False)
        if path.suffix == ".pt":
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            state = {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
        model.load_state_dict(state)
        return model

    return plain


def load(program: str, path: str, arch: str) -> Figures:
    """Seconds, and MiB at the peak above what there was before."""
    work, before = loader(program, Path(path), arch), memory_mib("RssAnon")
    with harness.watching(lambda: memory_mib("RssAnon"), every=0.001) as highest:
        started = time.perf_counter()
        model = work()
        seconds = time.perf_counter() - started
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    peak = highest[0] - before
    return {"seconds": seconds, "peak_mib": peak, "copies": peak / weights, "weights_mib": weights}


def main(given: list[str] | None = None) -> dict[str, Any]:
    packages = ("torch", "safetensors", "timm", "transformers")
    bench = Bench(__doc__, given, packages, repeats=5, arch=("maest_base", "maest_tiny"))
    arch = bench.args.arch
    with tempfile.TemporaryDirectory() as temporary:
        write_files(Path(temporary), arch)
        ways = {
            name: Way(load, {"program": program, "path": f"{temporary}/{file}", "arch": arch})
            for name, (program, file) in FILES.items()
        }
        rows = bench.measure(ways)
    columns = {"seconds": "{seconds:.2f}", "MiB": "{peak_mib:.0f}", "copies": "{copies:.2f}"}
    bench.show(f"Loading {arch}", rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
