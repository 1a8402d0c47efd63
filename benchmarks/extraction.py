"""How fast embeddings come out of music, in how much memory, and what is lost on the way.

python benchmarks/extraction.py [--lengths 30 10 5] [--against TREE] [--record FILE.json]

Music is made for it: 44.1 kHz stereo FLAC of notes and noise. The network is of the base model's
size with random weights, the same in all ways, on the CPU (for a GPU: gpu.py). Parts:

- embeddings: embeddings of block 6 (the seventh) from audio files to result files. ``seconds`` are
  those with the model loaded: of the whole, less those of a track of one second
  - ours: the command extract_embeddings, called from Python; float32; also in int8, with every
    second patch column only, and by PyTorch in place of onnxruntime
  - AST: `transformers.ASTForAudioClassification` of the same weights on the same log-mels, one
    track at a time, with its own attention; it has no way to stop before the last block
  - plain: our own network, one track at a time, with attention written out (softmax(q k^T) v); all
    12 blocks, as the original does, or the 7 that are needed
- memory: highest resident set for few tracks and many, and for a short track and a long one
- latency: a song, from Python with the model loaded, and by predict from the command line
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

import harness
from harness import Bench, Figures, Way, times_as_fast

BLOCK = 6  # whose embeddings are computed: blocks 0 to 6 are seven
RATE = 44_100
TRAINED = "maest-tiny-music"
PLAIN = "plain, 7 blocks"  # what the others are compared with
INT8: dict[str, Any] = {"inference": {"quantize": "int8"}}
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, int8": INT8,
    "ours, every 2nd column": {"maest": {"s_patchout_t_interleaved": 2}},
    "PyTorch engine": {"inference": {"engine": "pytorch"}},
    "AST": {"network": "AST"},
    "plain, 12 blocks": {"network": "plain"},
    PLAIN: {"network": "plain", "all_blocks": False},
}

# ---------------------------------------------------------------- measurements


def command(model: str, music: str, settings: dict[str, Any], out: str = "all") -> Figures:
    """Extraction by the command: a track of a second, then the music."""
    import ex_maest

    weights = {"checkpoint": f"{model}/model"} if Path(model).is_dir() else {"arch": model}

    def run(audio: str | Path, folder: str) -> float:
        inference = {"audio": str(audio), "out_dir": folder, "transformer_block": [BLOCK]}
        changes = {"maest": weights, "trainer": {"accelerator": "cpu"}, "inference": inference}
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
    shutil.rmtree(out, ignore_errors=True)  # what is there already would be kept
    return {"seconds": run(music, out) - start, "start_seconds": start, "loaded_mib": loaded}


def one_by_one(network: str, model: str, music: str, out: str, all_blocks: bool = True) -> Figures:
    """A track at a time, as one writes it oneself."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from maest.helpers.audio.mel import MelSpectrogram
    from maest.helpers.audio.reading import read_audio
    from maest.models import get_maest

    net, front_end = get_maest(checkpoint=f"{model}/model"), MelSpectrogram()
    mean, std = float(net.norm_mean), float(net.norm_std)
    if network == "AST":
        from transformers import ASTForAudioClassification

        hub = ASTForAudioClassification.from_pretrained(f"{model}/hub").eval()

    def patches(path: Path) -> torch.Tensor:
        mel, length = front_end(torch.from_numpy(read_audio(path))), net.input_t
        mel = (mel[:, : mel.shape[1] // length * length] - mean) / (2 * std)
        return mel.unflatten(1, (-1, length)).movedim(1, 0)

    def embed(mel: torch.Tensor) -> torch.Tensor:
        if network == "AST":
            used = mel.mT[:, : hub.config.max_length]
            x = hub(used, output_hidden_states=True).hidden_states[BLOCK + 1]
            return torch.cat((x[:, :2], x[:, 2:].mean(1, keepdim=True)), dim=1)
        return net.encode(mel, (BLOCK,), logits=all_blocks).embeddings[BLOCK]

    attention = sdpa_kernel(SDPBackend.MATH) if network == "plain" else nullcontext()
    tracks = sorted(Path(music).iterdir())
    Path(out).mkdir(parents=True, exist_ok=True)
    loaded = harness.memory_mib("VmHWM")
    with torch.inference_mode(), attention:
        embed(patches(tracks[0])[:1])  # warms up
        started = time.perf_counter()
        for path in tracks:
            np.save(Path(out, f"{path.name}.npy"), embed(patches(path)).mean(0).numpy())
    return {"seconds": time.perf_counter() - started, "loaded_mib": loaded}


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
    return harness.command([*line, f"inference.audio={song}", "trainer.accelerator=cpu"])


# ---------------------------------------------------------------- what they are made on


def write_track(path: Path, length: float, seed: int) -> Path:
    """A stereo file: a minute of notes with some noise, again and again."""
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


def write_music(folder: Path, tracks: int, length: float, different: int = 8) -> str:
    """A folder of tracks; beyond the different ones, further names of the same files."""
    music = folder / f"music-{tracks}-{length:g}"
    music.mkdir(exist_ok=True)
    for i in range(tracks):
        path = music / f"{i:04d}.flac"
        if i < different:
            write_track(path, length, i)
        elif not path.exists():
            os.link(music / f"{i % different:04d}.flac", path)
    return str(music)


def write_model(folder: Path, arch: str, length: int) -> str:
    """A model of random weights, as a model folder and in transformers' layout."""
    import torch

    from maest.models import get_maest, save_model
    from maest.models.archs import input_frames
    from maest.models.huggingface import export_huggingface

    folder = folder / f"model-{length}"
    if folder.exists():
        return str(folder)
    torch.manual_seed(0)
    sizes = {"n_classes": 400, "pretrained": False}
    net = get_maest(arch, input_t=input_frames(length), **sizes)
    save_model(folder / "model", net, arch)
    # That layout wants inputs of as many frames as the last of its positions needs: fewer of both,
    # so that all compute the same patches. A patch has 16 frames, every 10.
    state, columns = net.state_dict(), (net.input_t - 16) // 10 + 1
    state["time_new_pos_embed"] = state["time_new_pos_embed"][..., :columns]
    short = get_maest(arch, input_t=(columns - 1) * 10 + 16, **sizes)
    short.load_state_dict(state)
    export_huggingface(folder / "hub", short)
    return str(folder)


def compared(plain: str, out: str) -> Figures:
    """Largest difference, and the lowest cosine similarity of a token of a track."""
    one, other = (
        np.stack([np.load(path) for path in sorted(Path(folder).rglob("*.npy"))], dtype=np.float64)
        for folder in (plain, out)
    )
    cosines = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    return {
        "largest_value": float(abs(one).max()),
        "largest_difference": float(abs(one - other).max()),
        "lowest_cosine": float(cosines.min()),
    }


# ---------------------------------------------------------------- the parts


def embeddings(bench: Bench, folder: Path) -> None:
    args = bench.args
    music = write_music(folder, args.tracks, args.track_seconds)
    columns = {
        "seconds": "{seconds:.2f}",
        "x real time": "{times_real_time:.1f}",
        "times as fast": "{times_as_fast:.2f}",
        "largest difference": "{largest_difference:.1e}",
        "cosine": "{lowest_cosine:.6f}",
        "MiB": "{peak_mib:.0f}",
    }
    for length in args.lengths:
        given = {"model": write_model(folder, args.arch, length), "music": music}
        outs = {name: f"{folder}/out/{length}/{name}" for name in WAYS}
        ways = {
            name: Way(one_by_one, given | options | {"out": outs[name]})
            if "network" in options
            else Way(command, given | {"settings": options, "out": outs[name]})
            for name, options in WAYS.items()
        }
        rows = bench.measure(ways)
        times_as_fast(rows, "ours")
        for name, row in rows.items():
            row["times_real_time"] = args.tracks * args.track_seconds / row["seconds"]
            if name in ways and PLAIN in rows:
                row |= compared(outs[PLAIN], outs[name])
        title = f"Embeddings, patches of {length} s; differences and cosines are to '{PLAIN}'"
        bench.show(title, rows, columns)


def memory(bench: Bench, folder: Path) -> None:
    quick, arch = bench.args.quick, bench.args.arch
    few, many, short, long = (2, 6, 20, 60) if quick else (10, 1000, 600, 3600)
    cases = {f"{TRAINED}, {n} tracks of 8 s": (TRAINED, {}, n, 8) for n in (few, many)}
    cases |= {f"{TRAINED}, {s / 60:g} min": (TRAINED, {}, 1, s) for s in (short, long)}
    base, seconds = write_model(folder, arch, bench.args.lengths[0]), 8 if quick else 90
    cases |= {f"{arch}, {few} tracks of {seconds} s": (base, {}, few, seconds)}
    cases |= {f"{arch}, int8, {few} tracks of {seconds} s": (base, INT8, few, seconds)}
    ways = {}
    for name, (model, settings, tracks, length) in cases.items():
        given = {"model": model, "settings": settings}
        ways[f"ours, {name}"] = Way(command, given | {"music": write_music(folder, tracks, length)})
    columns = {
        "with the model loaded, MiB": "{loaded_mib:.0f}",
        "highest, MiB": "{peak_mib:.0f}",
        "a reading process, MiB": "{child_peak_mib:.0f}",
        "seconds": "{seconds:.1f}",
    }
    bench.show("Highest resident set", bench.measure(ways), columns)


def latency(bench: Bench, folder: Path) -> None:
    seconds, length = 10 if bench.args.quick else 180, bench.args.lengths[0]
    song, arch = f"{write_music(folder, 1, seconds)}/0000.flac", bench.args.arch
    ways = {}
    for label, model in ((TRAINED, TRAINED), (arch, write_model(folder, arch, length))):
        given = {"model": model, "song": song}
        ways[f"ours, {label}: Extractor"] = Way(first_result, given | {"quantize": None})
        ways[f"ours, {label}: Extractor, int8"] = Way(first_result, given | {"quantize": "int8"})
        ways[f"ours, {label}: the command predict"] = Way(predict, given)
    columns = {"first": "{first_seconds:.2f}", "seconds": "{seconds:.2f}"}
    title = f"Seconds to the result of a song of {seconds} s; {arch}: patches of {length} s"
    bench.show(title, bench.measure(ways), columns)


PARTS = {part.__name__: part for part in (embeddings, memory, latency)}


def main(given: list[str] | None = None) -> dict[str, Any]:
    bench = Bench(
        __doc__,
        given,
        ("torch", "timm", "av", "soxr", "transformers", "onnxruntime"),
        parts=(list(PARTS), list(PARTS)),
        arch=("maest_base", "maest_tiny"),
        lengths=([30, 10, 5], [5]),
        tracks=(4, 2),
        track_seconds=(90.0, 10.0),  # whole patches
    )
    with tempfile.TemporaryDirectory(prefix="maest-extraction-") as temporary:
        for part in bench.args.parts:
            PARTS[part](bench, Path(temporary))
    return bench.record


if __name__ == "__main__":
    main()
