"""How fast clips come from the store to a masked batch on the device, against the usual way.

python benchmarks/loading.py [--device cuda] [--against TREE] [--record FILE.json]

All read random crops of the same store of random values, which is made in a temporary folder (1.1
GB by default), in batches of 12.

- ours: the data module's training loader, whose workers read and crop; the batch is normalised and
  masked on the device, at once
- ours, loader alone: the same without what the device does, which on a CPU is most of it: what the
  loader could give to a faster device
- one call a mask: workers map the file, crop, convert to float32, normalise, and call torchaudio's
  masks one by one, 20 of time and 8 of frequency to a clip; default collation

Warm: everything is in the page cache. Cold: it is dropped from there before, and each clip is of
another track. A worker's start is not measured. Memory: private pages of the process and of its
workers after each of several epochs, over 210,000 keys.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import harness
from harness import Figures, Way, chosen, in_turns, measure, show, with_before

OURS, ALONE, USUAL = "ours", "ours, loader alone", "one call a mask"
BATCH, N_CLASSES, FRAMES_PER_SECOND = 12, 400, 62.5
MEAN, STD = 2.06755686098554, 1.268292820667291
MASKS = {"time_masks": 20, "time_width": 8, "freq_masks": 8, "freq_width": 5}
LINKS = 700  # names of the store's folder: with 300 tracks, 210,000 keys
EPOCHS, EPOCH_CLIPS = 6, 2400  # of which memory is measured


class OneCallAMask(Dataset):
    """The usual way."""

    def __init__(self, folder: Path, keys: list[str], targets: np.ndarray, frames: int) -> None:
        from torchaudio.transforms import FrequencyMasking, TimeMasking

        self.folder, self.keys, self.targets, self.frames = folder, keys, targets, frames
        self.masks = [TimeMasking(MASKS["time_width"], iid_masks=True)] * MASKS["time_masks"]
        self.masks += [FrequencyMasking(MASKS["freq_width"], iid_masks=True)] * MASKS["freq_masks"]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mel = np.memmap(self.folder / self.keys[index], np.float16, mode="r").reshape(-1, 96)
        start = int(torch.randint(len(mel) - self.frames + 1, ()))
        clip = torch.from_numpy(mel[start : start + self.frames].astype(np.float32)).T[None]
        clip = (clip - MEAN) / (2 * STD)
        for mask in self.masks:
            clip = mask(clip)
        return clip, torch.from_numpy(self.targets[index].astype(np.float32))


def loader_of(way: str, folder: Path, frames: int, workers: int, clips: int, device: str) -> Any:
    """A training loader, of ``clips`` an epoch."""
    from maest.datasets.datamodule import MaestDataModule
    from maest.datasets.groundtruth import read_groundtruth

    tracks = read_groundtruth(folder / "groundtruth.pk")
    data = MaestDataModule(
        {"train": tracks},
        base_dir=folder,
        clip_frames=frames,
        batch_size_train=BATCH,
        clips_per_epoch=clips,
        num_workers=workers,
    )
    if way != USUAL:
        return data.train_dataloader()
    return DataLoader(
        dataset := OneCallAMask(folder, list(tracks.keys), tracks.targets, frames),
        batch_size=BATCH,
        sampler=torch.utils.data.RandomSampler(dataset, True, clips),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )


def epoch(way: str, loader: Any, device: str, limit: int | None = None) -> float:
    """Seconds of an epoch, or of its first batches: clips that are normalised, masked, there."""
    from maest.helpers.augment import spec_augment

    started = time.perf_counter()
    for number, batch in enumerate(loader, 1):
        if way == USUAL:
            for tensor in batch:
                tensor.to(device, non_blocking=True)
        elif way == OURS:
            mel = batch.to(device).mel
            spec_augment(((mel.float() - MEAN) / (2 * STD)).transpose(1, 2), **MASKS)
        if number == limit:
            break
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def speed(
    way: str, folder: str, frames: int, workers: int, clips: int, device: str, cold: bool
) -> Figures:
    """Clips a second of one epoch, with workers that are at work already."""
    torch.set_num_threads(1)  # the cores are the workers'
    loader = loader_of(way, Path(folder), frames, workers, clips, device)
    epoch(way, loader, device, None if clips <= 240 else 20)
    warm(Path(folder), cold)
    if way != USUAL:
        loader.sampler.set_epoch(1)
    seconds = epoch(way, loader, device)
    return {"seconds": seconds, "clips_per_second": clips / seconds}


def memory(way: str, folder: str, frames: int, workers: int, clips: int, device: str) -> Figures:
    """Private MiB of the main process and of its workers together, after each epoch."""
    loader = loader_of(way, Path(folder, "many"), frames, workers, clips, device)
    found: dict[str, list[float]] = {"main": [], "workers": []}
    for _ in range(EPOCHS):
        epoch(way, loader, device)
        children = multiprocessing.active_children()
        found["main"].append(round(private_mib("self"), 1))
        found["workers"].append(round(sum(private_mib(child.pid) for child in children), 1))
    return found


def private_mib(process: int | str | None) -> float:
    """The pages that a process has for itself, MiB."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) / 1024


# ---------------------------------------------------------------- the store


def write_store(folder: Path, tracks: int, seconds: float) -> None:
    """Tracks of random values of a log-mel's size, their ground truth, and one of many keys."""
    from maest.datasets.groundtruth import write_groundtruth

    rng = np.random.default_rng(0)
    highest = int(np.float16(5).view(np.uint16))  # bits of values from 0 to 5
    (folder / "mels").mkdir()
    (folder / "many").mkdir()
    names = [f"{i:05d}.mmap" for i in range(tracks)]
    for name in names:
        size = (int(seconds * FRAMES_PER_SECOND), 96)
        rng.integers(highest, size=size, dtype=np.uint16).tofile(folder / "mels" / name)
    targets = (rng.random((tracks, N_CLASSES)) < 0.01).astype(np.uint8)
    truth = {f"mels/{name}": target for name, target in zip(names, targets, strict=True)}
    write_groundtruth(folder / "groundtruth.pk", truth)
    target, truth = np.eye(10, dtype=np.uint8), {}
    for i in range(LINKS):
        link = f"a-folder-of-the-store-{i:04d}"
        (folder / "many" / link).symlink_to(folder / "mels")
        truth |= {f"{link}/{name}": target[i % 10] for name in names}
    write_groundtruth(folder / "many/groundtruth.pk", truth)
    os.sync()  # pages that are not written yet cannot be dropped


def warm(folder: Path, cold: bool) -> None:
    """Bring the store's files into the page cache, or drop them from there."""
    for path in (folder / "mels").iterdir():
        if cold:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            path.read_bytes()


def main(given: list[str] | None = None) -> dict[str, Any]:
    parser = harness.parser(__doc__, repeats=5)
    parser.add_argument("--tracks", type=int, default=300)
    parser.add_argument("--track-seconds", type=float, default=300)
    parser.add_argument("--clip-seconds", type=float, nargs="+", default=[10, 30])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=2400, help="in a warm epoch of ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where the store is made (a temporary folder)")
    args = parser.parse_args(given)
    record = harness.start_record(args, "torch", "torchaudio", "numpy") | {"median": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        write_store(Path(temporary), args.tracks, args.track_seconds)
        given_all = {"folder": temporary, "device": args.device}
        frames = int(args.clip_seconds[0] * FRAMES_PER_SECOND)
        case = given_all | {"frames": frames, "workers": max(args.workers)}
        case["clips"] = min(EPOCH_CLIPS, args.clips)
        ways = chosen({w: Way(memory, case | {"way": w}) for w in (OURS, USUAL)}, args.ways)
        runs = in_turns(with_before(ways, args.against), 1, not args.quick)
        record["private_mib_after_each_epoch"] = {name: found[0] for name, found in runs.items()}
        for name, found in runs.items():
            print(f"private MiB after each epoch, {name}: {found[0]}", flush=True)
        for cold, seconds, workers in product((False, True), args.clip_seconds, args.workers):
            case = given_all | {"workers": workers, "cold": cold}
            case["frames"] = int(seconds * FRAMES_PER_SECOND)
            clips = {OURS: args.clips, ALONE: args.clips, USUAL: args.clips // 20}
            ways = {
                name: Way(speed, case | {"way": name, "clips": args.tracks if cold else n})
                for name, n in clips.items()
            }
            rows = measure(chosen(ways, args.ways), args)
            base = USUAL if USUAL in rows else OURS
            for row in rows.values():
                row["ratio"] = row["clips_per_second"] / rows[base]["clips_per_second"]
            title = f"{'cold' if cold else 'warm'}, clips of {seconds:g} s, {workers} workers"
            columns = {"clips/s": "{clips_per_second:.0f}", f"/ {base}": "{ratio:.1f}"}
            show(title, rows, columns)
            record["median"].append({"case": title, "ways": rows})
            harness.save(args, record)
    return record


if __name__ == "__main__":
    main()
