"""How fast embeddings come out of music, in how much memory, and what is lost on the way.

python benchmarks/extraction.py [--lengths 30 10 5] [--against TREE] [--record FILE.json]
python benchmarks/extraction.py --device cuda --parts embeddings
python benchmarks/extraction.py --quick  # does it run?

Music is made for it: 44.1 kHz stereo FLAC of notes and noise. The network is of the base model's
size with random weights, the same in all ways. Parts:

- embeddings: embeddings of block 6 (the seventh) from audio files to result files. ``seconds`` are
  those with the model loaded: of the whole, less those of a track of one second
  - ours: the command extract_embeddings, called from Python; float32; also in int8, with every
    second patch column only, and by PyTorch in place of onnxruntime
  - AST: `transformers.ASTForAudioClassification` of the same weights on the same log-mels, one
    track at a time, with its own attention; it has no way to stop before the last block
  - plain: our own network, one track at a time, with attention written out (softmax(q k^T) v); all
    12 blocks, as the original does, or the 7 that are needed
- memory: highest resident set for few tracks and many, and for a short track and a long one
- latency: a 3-minute song, from Python with the model loaded, and by predict from the command line
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import harness
from harness import Figures, Way, measure, show, times_as_fast

BLOCK = 6  # whose embeddings are computed: blocks 0 to 6 are seven
RATE = 44_100
TRAINED = "maest-tiny-scores"
INT8: dict[str, Any] = {"inference": {"quantize": "int8"}}
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, int8": INT8,
    "ours, every 2nd column": {"maest": {"s_patchout_t_interleaved": 2}},
    "PyTorch engine": {"inference": {"engine": "pytorch"}},
    "AST": {"network": "AST"},
    "plain, 12 blocks": {"network": "plain"},
    "plain, 7 blocks": {"network": "plain", "all_blocks": False},
}
ON_CPU = ("ours, int8", "PyTorch engine")
DTYPES = {"32-true": "float32", "16-mixed": "float16", "bf16-mixed": "bfloat16"}

# ---------------------------------------------------------------- measurements


def command(
    model: str, music: str, out: str, device: str, precision: str, settings: dict[str, Any]
) -> Figures:
    """Extraction by the command: a track of a second, then the music."""
    import ex_maest

    weights = {"checkpoint": f"{model}/model"} if Path(model).is_dir() else {"arch": model}
    computing = {"accelerator": "gpu" if device == "cuda" else "cpu", "precision": precision}

    def run(audio: Path, folder: str) -> float:
        inference = {"audio": str(audio), "out_dir": folder, "transformer_block": [BLOCK]}
        changes = {"maest": weights, "trainer": computing, "inference": inference}
        for section, values in settings.items():
            changes[section] = changes[section] | values
        started = time.perf_counter()
        done = ex_maest.ex.run(
            "extract_embeddings", config_updates=changes, options={"--loglevel": "ERROR"}
        )
        if done.status != "COMPLETED":
            raise RuntimeError(f"{changes}: {done.status}")
        return time.perf_counter() - started

    second = write_track(Path("second.flac"), 1, 0)
    run(second, "first")
    start = min(run(second, folder) for folder in ("second", "third"))
    loaded = harness.memory_mib("VmHWM")
    whole = run(Path(music), "all")
    keep("all", out)
    return {"seconds": whole - start, "start_seconds": start, "loaded_mib": loaded}


def one_by_one(
    network: str,
    model: str,
    music: str,
    out: str,
    device: str,
    precision: str,
    all_blocks: bool = True,
) -> Figures:
    """A track at a time, as one writes it oneself."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from maest.helpers.audio import read_audio
    from maest.helpers.melspectrogram import MelSpectrogram
    from maest.models import get_maest

    net = get_maest(checkpoint=f"{model}/model").to(device)
    front_end, length = MelSpectrogram().to(device), net.input_t
    mean, std = float(net.norm_mean), float(net.norm_std)
    if network == "AST":
        from transformers import ASTForAudioClassification

        hub = ASTForAudioClassification.from_pretrained(f"{model}/hub").to(device).eval()

    def patches(path: Path) -> torch.Tensor:
        mel = (front_end(torch.from_numpy(read_audio(path)).to(device)) - mean) / (2 * std)
        return mel[:, : mel.shape[1] // length * length].unflatten(1, (-1, length)).movedim(1, 0)

    def embed(mel: torch.Tensor) -> torch.Tensor:
        if network == "AST":
            used = mel.mT[:, : hub.config.max_length]
            x = hub(used, output_hidden_states=True).hidden_states[BLOCK + 1]
            return torch.cat((x[:, :2], x[:, 2:].mean(1, keepdim=True)), dim=1)
        return net.encode(mel, (BLOCK,), logits=all_blocks).embeddings[BLOCK]

    mixed = torch.autocast(device, getattr(torch, DTYPES[precision]), precision != "32-true")
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    attention = sdpa_kernel(SDPBackend.MATH) if network == "plain" else nullcontext()
    tracks = sorted(Path(music).iterdir())
    Path("all").mkdir()
    loaded = harness.memory_mib("VmHWM")
    with torch.inference_mode(), mixed, attention:
        embed(patches(tracks[0])[:1])  # warms up
        started = time.perf_counter()
        for path in tracks:
            rows = embed(patches(path)).float().cpu().numpy()
            np.save(f"all/{path.name}.embeddings.npy", rows.mean(0))
        seconds = time.perf_counter() - started
    keep("all", out)
    return {"seconds": seconds, "loaded_mib": loaded}


def keep(folder: str, out: str) -> None:
    """Keep what was extracted, in place of what a turn before kept."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for path in Path(folder).rglob("*.npy"):
        shutil.move(path, Path(out, path.name))


def first_result(model: str, song: str, quantize: str | None) -> Figures:
    """One song with a model that is loaded: the first call, and the median of calls after it."""
    from maest.models.extraction import Extractor

    name = f"{model}/model" if Path(model).is_dir() else model
    extract = Extractor(name, blocks=[BLOCK], quantize=quantize, device="cpu")
    times = []
    for _ in range(4):
        started = time.perf_counter()
        extract(song)
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times[1:]), "first_seconds": times[0]}


def predict(model: str, song: str) -> Figures:
    """The whole command by the clock, from a shell."""
    name = f"checkpoint={model}/model" if Path(model).is_dir() else f"arch={model}"
    line = [sys.executable, harness.TREE / "ex_maest.py", "predict", "with", f"maest.{name}"]
    line += [f"inference.audio={song}", "inference.out_dir=out", "trainer.accelerator=cpu"]
    found = harness.command(line, Path.cwd())
    if found["exit_code"] or not list(Path("out").rglob("*.predictions.json")):
        raise RuntimeError(found["output"])
    return {name: found[name] for name in ("seconds", "cpu_seconds")}


# ---------------------------------------------------------------- what they are made on


def write_track(path: Path, length: float, seed: int) -> Path:
    """A stereo FLAC: a minute of notes with some noise, again and again."""
    import soundfile

    rng = np.random.default_rng(seed)
    t = np.arange(RATE // 2)[:, None] / RATE
    pitches = rng.uniform(60, 2_000, (120, 3, 1, 2))  # of half a second each
    notes = np.sin(2 * np.pi * pitches * t).sum(1) * np.exp(-4 * t)
    sound = notes.reshape(-1, 2) * 0.15 + rng.normal(0, 0.01, (60 * RATE, 2))
    left = round(length * RATE)
    with soundfile.SoundFile(path, "w", RATE, channels=2) as file:
        while left > 0:
            file.write(sound[:left])
            left -= len(sound)
    return path


@dataclass
class Bench:
    """The settings of a run, and what it makes in its folder."""

    args: argparse.Namespace
    folder: Path
    outs: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def music(self, tracks: int, length: float, different: int = 8) -> Path:
        """A folder of tracks; beyond the different ones, further names of the same files."""
        folder = self.folder / f"music-{tracks}-{length:g}"
        if not folder.is_dir():
            folder.mkdir()
            for i in range(tracks):
                if i < different:
                    write_track(folder / f"{i:04d}.flac", length, i)
                else:
                    os.link(folder / f"{i % different:04d}.flac", folder / f"{i:04d}.flac")
        return folder

    def model(self, length: int) -> Path:
        """A model of random weights, as a model folder and in transformers' layout."""
        folder = self.folder / f"model-{length}"
        if not folder.is_dir():
            import torch

            from maest.models import get_maest, save_model
            from maest.models.archs import input_frames
            from maest.models.huggingface import export_huggingface

            torch.manual_seed(0)
            sizes = {"n_classes": 400, "pretrained": False}
            net = get_maest(self.args.arch, input_t=input_frames(length), **sizes)
            save_model(folder / "model", net, self.args.arch)
            # That layout wants inputs of as many frames as the last of its positions needs: fewer
            # of both, so that all compute the same patches. A patch has 16 frames, every 10.
            state, columns = net.state_dict(), (net.input_t - 16) // 10 + 1
            state["time_new_pos_embed"] = state["time_new_pos_embed"][..., :columns]
            short = get_maest(self.args.arch, input_t=(columns - 1) * 10 + 16, **sizes)
            short.load_state_dict(state)
            export_huggingface(folder / "hub", short)
        return folder

    def way(self, options: dict[str, Any], model: Path | str, music: Path) -> Way:
        """The measurement of a way, which writes to a folder of its own."""
        out = self.folder / "out" / str(next(self.outs))
        given = {"model": str(model), "music": str(music), "out": str(out)}
        given |= {"device": self.args.device, "precision": self.args.precision}
        if "network" in options:
            return Way(one_by_one, given | options)
        return Way(command, given | {"settings": options})


def arrays(way: Way) -> list[np.ndarray]:
    files = sorted(Path(way.arguments["out"]).iterdir())
    return [np.load(path).astype(np.float64) for path in files]


def compared(one: list[np.ndarray], other: list[np.ndarray]) -> Figures:
    """Largest difference, and the lowest cosine similarity of a token of a track."""
    pairs = list(zip(one, other, strict=True))
    norms = np.linalg.norm
    return {
        "largest_value": max(float(abs(a).max()) for a, _ in pairs),
        "largest_difference": max(float(abs(a - b).max()) for a, b in pairs),
        "lowest_cosine": min(
            float(((a * b).sum(-1) / (norms(a, axis=-1) * norms(b, axis=-1))).min())
            for a, b in pairs
        ),
    }


# ---------------------------------------------------------------- the parts


def embeddings(bench: Bench) -> Iterator[tuple[str, Any]]:
    args = bench.args
    music = bench.music(args.tracks, args.track_seconds)
    options = harness.chosen(WAYS, args.ways)
    for length in args.lengths:
        ways = {name: bench.way(way, bench.model(length), music) for name, way in options.items()}
        rows = measure(ways, args)
        times_as_fast(rows, next(iter(ways)))
        plain = next((name for name in ways if name.startswith("plain, 7")), next(iter(ways)))
        full = arrays(ways[plain])
        for name, row in rows.items():
            row["times_real_time"] = args.tracks * args.track_seconds / row["seconds"]
            if name in ways:
                row |= compared(full, arrays(ways[name]))
        show(
            f"Embeddings of block {BLOCK} of {args.tracks} x {args.track_seconds:g} s, patches of "
            f"{length} s; differences and cosines are to '{plain}'",
            rows,
            {
                "seconds": "{seconds:.2f}",
                "x real time": "{times_real_time:.1f}",
                "times as fast": "{times_as_fast:.2f}",
                "largest difference": "{largest_difference:.1e}",
                "cosine": "{lowest_cosine:.6f}",
                "MiB": "{peak_mib:.0f}",
            },
        )
        yield f"{length} s", {"differences_to": plain, "ways": rows}


def memory(bench: Bench) -> Iterator[tuple[str, Any]]:
    quick = bench.args.quick
    few, many, short, long = (2, 6, 20, 60) if quick else (10, 1000, 600, 3600)
    music = {f"{n} tracks of 8 s": bench.music(n, 8) for n in (few, many)}
    music |= {f"a track of {s / 60:g} min": bench.music(1, s) for s in (short, long)}
    ways = {f"ours, {TRAINED}, {name}": bench.way({}, TRAINED, m) for name, m in music.items()}
    model, some = bench.model(bench.args.lengths[0]), bench.music(few, 8 if quick else 90)
    ways |= {
        f"ours, {bench.args.arch}{name}, {few} tracks": bench.way(options, model, some)
        for name, options in (("", {}), (", int8", INT8))
    }
    rows = measure(ways, bench.args)
    columns = {
        "with the model loaded, MiB": "{loaded_mib:.0f}",
        "highest, MiB": "{peak_mib:.0f}",
        "a reading process, MiB": "{child_peak_mib:.0f}",
        "seconds": "{seconds:.1f}",
    }
    show("Highest resident set", rows, columns)
    yield from rows.items()


def latency(bench: Bench) -> Iterator[tuple[str, Any]]:
    song = bench.music(1, 10 if bench.args.quick else 180) / "0000.flac"
    length = bench.args.lengths[0]
    ways = {}
    for model in (bench.model(length), TRAINED):
        label = model if model == TRAINED else f"{bench.args.arch}, {length} s"
        given = {"model": str(model), "song": str(song)}
        for name, quantize in (("Extractor", None), ("Extractor, int8", "int8")):
            ways[f"ours, {label}: {name}"] = Way(first_result, given | {"quantize": quantize})
        ways[f"ours, {label}: the command predict"] = Way(predict, given)
    rows = measure(ways, bench.args)
    columns = {"first": "{first_seconds:.2f}", "seconds": "{seconds:.2f}"}
    show("Seconds to the result of one song of 3 minutes", rows, columns)
    yield from rows.items()


PARTS: dict[str, Callable[[Bench], Iterator[tuple[str, Any]]]]
PARTS = {part.__name__: part for part in (embeddings, memory, latency)}


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = harness.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=DTYPES, help="32-true; on CUDA 16-mixed")
    parser.add_argument("--arch", default="maest_base", help="maest_tiny for a quick trial")
    parser.add_argument("--lengths", type=int, nargs="+", help="seconds of a patch; 30 10 5, or 30")
    parser.add_argument("--tracks", type=int, help="4; on CUDA 32")
    parser.add_argument("--track-seconds", type=float, help="whole patches; 90, on CUDA 180")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args(given)
    cuda = args.device == "cuda"
    if args.quick:
        args.arch, args.repeats, args.tracks, args.track_seconds = "maest_tiny", 1, 2, 10.0
    args.precision = args.precision or ("16-mixed" if cuda else "32-true")
    args.ways = args.ways or [name for name in WAYS if not cuda or name not in ON_CPU]
    args.lengths = args.lengths or ([5] if args.quick else [30] if cuda else [30, 10, 5])
    args.tracks = args.tracks or (32 if cuda else 4)
    args.track_seconds = args.track_seconds or (180.0 if cuda else 90.0)
    packages = ("torch", "timm", "av", "soxr", "transformers", "onnxruntime")
    record = harness.start_record(args, *packages)
    with tempfile.TemporaryDirectory(prefix="maest-extraction-") as temporary:
        bench = Bench(args, Path(temporary))
        for part in args.parts:
            record[part] = {}
            for name, figures in PARTS[part](bench):
                record[part][name] = figures
                harness.save(args, record)
    return record


if __name__ == "__main__":
    main()
