"""What benchmarks/extraction.py measures, each in a process of its own: a request in, figures out.

python benchmarks/extraction_ways.py '{"task": "embed", "way": {…}, "case": {…}}'
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from maest.datasets.chunk_loader import ChunkLoader  # noqa: E402
from maest.datasets.tracks import MelTracks, TrackSource, find_tracks  # noqa: E402
from maest.helpers.audio import read_audio  # noqa: E402
from maest.helpers.chunks import FINAL, Cutting, TrackResult  # noqa: E402
from maest.helpers.melspectrogram import MelSpectrogram, n_frames  # noqa: E402
from maest.helpers.patches import cut, fresh  # noqa: E402
from maest.helpers.throughput import forward_flops, matmul_ceiling, synchronise  # noqa: E402
from maest.helpers.writer import Output, ResultWriter  # noqa: E402
from maest.models import Maest, cpu, get_maest, load_checkpoint  # noqa: E402
from maest.models.batching import Batcher, Encoder, Failure, Wanted  # noqa: E402
from maest.models.extraction import PATCHES_PER_CHUNK, Extractor  # noqa: E402
from maest.models.maest import grid_size  # noqa: E402

BLOCK = 6  # whose embeddings are wanted: blocks 0 to 6 are seven
PIDS = ("Pid", "PPid")  # in /proc: a process's number, and its parent's
# Those of trainer.precision that are measured; the others are autocast's.
DTYPES = {"32-true": torch.float32, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Way:
    """A way to get embeddings.

    Attributes:
        network: "ours", "plain" (our network, attention written out, a track at a time) or "AST".
        precision: as trainer.precision.
        quantize: as inference.quantize.
        every: as maest.s_patchout_t_interleaved.
        onednn: whether the blocks compute through `models.cpu`, on a CPU.
        compile: whether the blocks are compiled.
        depth: of "plain", how many blocks are computed: those that are needed, or all.
    """

    network: str = "ours"
    precision: str = "32-true"
    quantize: str | None = None
    every: int = 0
    onednn: bool = True
    compile: bool = False
    depth: int = BLOCK + 1


@dataclass(frozen=True)
class Case:
    """What is to be done.

    Attributes:
        model: a folder that holds a model folder "model", and the same for transformers in "hub";
            or the name of an arch that has weights.
        audio: a file, or a folder.
        out: where results go.
        device: "cpu" or "cuda".
        workers: reading processes of ours.
        threads: of PyTorch; None for its own choice.
        warmup: tracks that are done before the clock starts, and once more after that.
        rounds: how often a round of short measurements is made.
    """

    model: str
    audio: str
    out: str
    device: str = "cpu"
    workers: int = 1
    threads: int | None = None
    warmup: int = 1
    rounds: int = 3


def load(way: Way, case: Case) -> Maest:
    """Our network, on its device, as the way has it."""
    where = {"checkpoint": case.model + "/model"} if Path(case.model).is_dir() else {}
    if not where:
        where = {"arch": case.model}
    net = get_maest(**where, s_patchout_t_interleaved=way.every).to(case.device)
    if way.network == "plain":
        for block in net.blocks:
            block.attn.fused_attn = False
    elif case.device == "cpu" and way.onednn:
        cpu.speed_up(net)
    if way.compile:
        net.compile_blocks()
    return net


def mixed(way: Way, case: Case) -> AbstractContextManager:
    """What Lightning puts around a step."""
    if way.precision == "32-true":
        return nullcontext()
    return torch.autocast(case.device, DTYPES[way.precision])


def chunks(net: Maest, case: Case, tracks: TrackSource, some: Iterable[int]) -> ChunkLoader:
    """The tracks' patches, read as the command reads them."""
    cuda, some = case.device == "cuda", list(some)
    return ChunkLoader(
        tracks,
        some,
        Cutting(net.input_t),
        per_chunk=PATCHES_PER_CHUNK,
        num_workers=min(case.workers, len(some)),
        waveforms=cuda,
        pin_memory=cuda,
    )


def results(encoder: Encoder, way: Way, case: Case, loader: ChunkLoader) -> Iterator[TrackResult]:
    """The command's engine, without Lightning."""
    batcher = Batcher(encoder)

    def checked(found: list[TrackResult | Failure]) -> Iterator[TrackResult]:
        for result in found:
            if isinstance(result, Failure):
                raise RuntimeError(f"{result.key}: {result.reason}")
            yield result

    with torch.inference_mode():
        for chunk in loader:
            with mixed(way, case):
                found = batcher.feed(chunk.to(case.device))
            yield from checked(found)
        with mixed(way, case):
            found = batcher.flush()
        yield from checked(found)


# ---------------------------------------------------------------- embeddings from audio

Run = Callable[[TrackSource, Iterable[int], Path], None]


def ours(way: Way, case: Case) -> Run:
    net = load(way, case)
    encoder = Encoder(net, Wanted((BLOCK,)), way.quantize)

    def run(tracks: TrackSource, some: Iterable[int], out: Path) -> None:
        with ResultWriter([Output("embeddings", BLOCK, out)]) as writer:
            for result in results(encoder, way, case, chunks(net, case, tracks, some)):
                writer.put(result)

    return run


def one_by_one(way: Way, case: Case, embed: Callable[[Tensor], Tensor], longest: int) -> Run:
    """Whole track after whole track: ``embed`` makes [P, 3, D] of a waveform."""

    def run(tracks: TrackSource, some: Iterable[int], out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for index in some:
            waveform = torch.from_numpy(read_audio(tracks.path(index)))
            with torch.inference_mode(), mixed(way, case):
                rows = embed(waveform.to(case.device)).float().cpu().numpy()
            spans = cut(n_frames(len(waveform)), longest)
            mean = np.average(rows, axis=0, weights=fresh(spans))
            np.save(out / f"{tracks.keys[index]}.embeddings.npy", mean.astype(np.float32))

    return run


def plain(way: Way, case: Case) -> Run:
    net = load(way, case)
    seen: list[Tensor] = []

    def embed(waveform: Tensor) -> Tensor:
        mel = net.melspectrogram(waveform)
        if way.depth == BLOCK + 1:
            return net(mel, BLOCK, melspectrogram_input=True)[1].unflatten(-1, (3, -1))
        seen.clear()  # all blocks: the one that is wanted is read on the way
        net(mel, melspectrogram_input=True)
        return torch.cat(seen)

    if way.depth != BLOCK + 1:
        net.blocks[BLOCK].register_forward_hook(lambda *given: seen.append(pooled(given[2])))
    return one_by_one(way, case, embed, net.input_t)


def pooled(tokens: Tensor) -> Tensor:
    """[B, N, D] → [B, 3, D]: cls token, dist token, mean of the others."""
    return torch.cat((tokens[:, :2], tokens[:, 2:].mean(1, keepdim=True)), dim=1)


def ast(way: Way, case: Case) -> Run:
    """`transformers`' network of the same weights, as its users write it: all hidden states."""
    from transformers import ASTForAudioClassification

    net = ASTForAudioClassification.from_pretrained(case.model + "/hub").to(case.device).eval()
    sizes = load_checkpoint(case.model + "/model").sizes
    longest, used = sizes["input_t"], net.config.max_length
    mean, std = sizes["norm_mean"], sizes["norm_std"]
    frontend = MelSpectrogram().to(case.device)

    def embed(waveform: Tensor) -> Tensor:
        mel = ((frontend(waveform) - mean) / (2 * std)).T
        spans = cut(len(mel), longest)
        batch = mel.new_full((len(spans), used, mel.shape[1]), -mean / (2 * std))  # silence
        for patch, (first, last) in zip(batch, spans, strict=True):
            patch[: last - first] = mel[first:last][:used]
        return pooled(net(batch, output_hidden_states=True).hidden_states[BLOCK + 1])

    return one_by_one(way, case, embed, longest)


WAYS = {"ours": ours, "plain": plain, "AST": ast}


def embed(way: Way, case: Case) -> dict[str, Any]:
    """Seconds from the first file that is opened to the last result that is written."""
    tracks, out = find_tracks(case.audio).tracks, Path(case.out)
    run = WAYS[way.network](way, case)
    device, every = torch.device(case.device), range(len(tracks))
    before = highest_resident()["own"]
    started = time.perf_counter()
    run(tracks, every[: case.warmup], out / "warmup")
    synchronise(device)
    warmup = time.perf_counter() - started
    started = time.perf_counter()
    run(tracks, every, out)
    took = time.perf_counter() - started
    found = {"seconds": took, "warmup_seconds": warmup}
    # Programs, libraries and the model are most of it.
    found |= {"loaded_mib": before, "peak_mib": highest_resident()["own"]}
    if device.type == "cuda":
        found["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def remember(way: Way, case: Case) -> dict[str, Any]:
    """The same, and the most that one of the reading processes had in memory."""
    with reader_peaks() as peaks:
        found = embed(way, case)
    return found | {"reader_peak_mib": max(peaks.values(), default=0.0)}


def highest_resident() -> dict[str, float]:
    """The most that this process ("own") and its children (by number) had in memory, MiB; Linux.

    A fork has its parent's memory to begin with, and shares it.
    """
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended
            text = status.read_text()
            process, parent = (int(re.search(rf"^{n}:\s*(\d+)", text, re.M)[1]) for n in PIDS)
            peak = re.search(r"VmHWM:\s*(\d+) kB", text)
            if peak and os.getpid() in (process, parent):
                name = "own" if process == os.getpid() else str(process)
                found[name] = int(peak[1]) / 1024
    return found


@contextmanager
def reader_peaks() -> Iterator[dict[str, float]]:
    """Highest MiB of each child process, as long as the block runs."""
    peaks: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        # multiprocessing has a list too, but to ask it is to wait for those that have ended.
        while not done.wait(0.05):
            for name, peak in highest_resident().items():
                if name != "own":
                    peaks[name] = max(peaks.get(name, 0.0), peak)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


# ---------------------------------------------------------------- parts of it


def encode(way: Way, case: Case) -> dict[str, Any]:
    """The network alone, on whole patches, as many as share a pass: how much of the ceiling it has.

    A round measures the ceilings, the seven blocks, and all from log-mel to embeddings.
    """
    device, dtype = torch.device(case.device), DTYPES[way.precision]
    net = load(way, case)
    encoder = Encoder(net, Wanted((BLOCK,)), way.quantize)
    batch = Batcher(encoder)._limit(grid_size(net.input_t))  # no setting: its own choice
    tokens = net.n_tokens(net.input_t, training=False)
    mel = torch.rand(batch, net.input_t, net.input_f, device=device) * 4
    x = torch.randn(batch, tokens, net.embed_dim, device=device)
    steps = 10 if device.type == "cuda" else 1

    def blocks() -> None:
        y = x
        for block in net.blocks[: BLOCK + 1]:
            y = block(y)

    def timed(work: Callable[[], Any]) -> float:
        with torch.inference_mode(), mixed(way, case):
            synchronise(device)
            started = time.perf_counter()
            for _ in range(steps):
                work()
            synchronise(device)
        return (time.perf_counter() - started) / steps

    works = {"encoder": lambda: encoder(mel)}
    if way.quantize is None:
        works["blocks"] = blocks
    found: dict[str, list[float]] = {f"{name}_seconds": [] for name in works}
    ceilings: dict[str, list[float]] = {"torch.mm": []}
    if device.type == "cpu":
        ceilings["fastest"] = []
    for work in works.values():
        timed(work)
    for _ in range(case.rounds):
        ceilings["torch.mm"].append(matmul_ceiling(device, dtype))
        if device.type == "cpu":
            ceilings["fastest"].append(cpu.matmul_ceiling())
        for name, work in works.items():
            found[f"{name}_seconds"].append(timed(work))
    sizes = {"tokens": tokens, "embed_dim": net.embed_dim, "depth": BLOCK + 1, "outputs": 0}
    flops = {
        "encoder": batch * forward_flops(**sizes, mlp_ratio=net.mlp_ratio),
        "blocks": batch * forward_flops(**sizes, mlp_ratio=net.mlp_ratio, patch_dim=0),
    }
    return {
        "batch": batch,
        "tokens": tokens,
        "tflop": {name: flops[name] / 1e12 for name in works},
        "ceilings_tflops": {name: [c / 1e12 for c in cs] for name, cs in ceilings.items()},
        **found,
    }


def read(way: Way, case: Case) -> dict[str, Any]:
    """Decoding alone (on a CPU with the log-mel): nobody computes anything of the patches."""
    tracks, net = find_tracks(case.audio).tracks, load(way, case)
    for _ in chunks(net, case, tracks, range(min(len(tracks), case.warmup))):
        pass
    started = time.perf_counter()
    for chunk in chunks(net, case, tracks, range(len(tracks))):
        if chunk.error:
            raise RuntimeError(f"{chunk.key}: {chunk.error}")
    return {"seconds": time.perf_counter() - started}


def first_result(way: Way, case: Case) -> dict[str, Any]:
    """One song with a model that is loaded: the first call, and calls after it."""
    if way.network == "ours":
        options = {"quantize": way.quantize, "precision": way.precision}
        extract = Extractor(load(way, case), blocks=[BLOCK], **options)
        if way.compile:
            extract.net.compile_blocks()

        def call() -> None:
            extract(case.audio)
    else:
        run, tracks = WAYS[way.network](way, case), find_tracks(case.audio).tracks

        def call() -> None:
            run(tracks, [0], Path(case.out))

    found = []
    for _ in range(1 + case.rounds):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return {"first": found[0], "later": statistics.median(found[1:]), "all": found}


def compare_int8(way: Way, case: Case) -> dict[str, Any]:
    """int8 against fp32 on a model, each track by itself; ``audio`` may hold log-mel files."""
    mels = sorted(Path(case.audio).rglob("*.mmap"))
    tracks: TrackSource = find_tracks(case.audio).tracks if not mels else None
    if mels:
        some = mels[:: max(1, len(mels) // 64)][:64]
        keys = [path.relative_to(case.audio).as_posix() for path in some]
        tracks = MelTracks(case.audio, keys)
    net = load(way, case)
    wanted = Wanted((BLOCK, FINAL), logits=True, activations=True)
    both = []
    for quantize in (None, "int8"):
        encoder = Encoder(net, wanted, quantize)
        loader = chunks(net, case, tracks, range(len(tracks)))
        both.append({result.key: result for result in results(encoder, way, case, loader)})
    values = {
        f"block {BLOCK}": lambda result: result.embeddings[BLOCK],
        "final": lambda result: result.embeddings[FINAL],
        "logits": lambda result: result.logits,
    }
    pairs = [(result, both[1][key]) for key, result in both[0].items()]
    found: dict[str, Any] = {
        name: spread([cosine(value(exact), value(int8)) for exact, int8 in pairs])
        for name, value in values.items()
    }
    difference = max(np.abs(a.activations - b.activations).max() for a, b in pairs)
    found["largest_difference_of_an_activation"] = float(difference)
    found["tracks"] = len(pairs)
    found["minutes"] = sum(exact.seconds for exact, _ in pairs) / 60
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The lowest cosine similarity of the rows of two arrays, or of two vectors."""
    a, b = (torch.from_numpy(np.atleast_2d(x)).double() for x in (a, b))
    return float(F.cosine_similarity(a, b).min())


def spread(cosines: list[float]) -> dict[str, float]:
    return {"lowest": min(cosines), "median": statistics.median(cosines)}


TASKS = {
    "embed": embed,
    "remember": remember,
    "encode": encode,
    "read": read,
    "first_result": first_result,
    "compare_int8": compare_int8,
}


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request says: a task, a way and a case."""
    way, case = Way(**request["way"]), Case(**request["case"])
    if case.threads:
        torch.set_num_threads(case.threads)
    return TASKS[request["task"]](way, case)


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
