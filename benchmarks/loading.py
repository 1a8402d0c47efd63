"""How fast clips come from the store to a masked batch on the device, against the usual way.

python benchmarks/loading.py [--device cuda] [--record FILE.json]

All read random crops of the same store of random values, which is made in a temporary folder (1.1
GB by default), in batches of 12.

- ours: the data module's training loader, whose workers read and crop; the batch is normalised and
  masked on the device, at once
- ours, loader alone: the same without what the device does, which on a CPU is most of it: what the
  loader could give to a faster device
- one call a mask: workers map the file, crop, convert to float32, normalise, and call torchaudio's
  masks one by one, 20 of time and 8 of frequency to a clip; default collation

Warm: everything is in the page cache. Cold: it is dropped from there before, and each clip is of
another track. A worker's start is not measured.
"""

from __future__ import annotations

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

from harness import Bench, Figures, Way, times_as_fast

WAYS = OURS, ALONE, USUAL = "ours", "ours, loader alone", "one call a mask"
BATCH, N_CLASSES, FRAMES_PER_SECOND = 12, 400, 62.5
MEAN, STD = 2.06755686098554, 1.268292820667291
MASKS = {"time_masks": 20, "time_width": 8, "freq_masks": 8, "freq_width": 5}


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
    from maest.helpers.training.augment import spec_augment

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


def speed(cold: bool, way: str, folder: str, clips: int, device: str, **sizes: int) -> Figures:
    """Clips a second of one epoch, with workers that are at work already."""
    torch.set_num_threads(1)  # the cores are the workers'
    loader = loader_of(way, Path(folder), clips=clips, device=device, **sizes)
    epoch(way, loader, device, None if clips <= 240 else 20)
    warm(Path(folder), cold)
    if way != USUAL:
        loader.sampler.set_epoch(1)
    seconds = epoch(way, loader, device)
    return {"seconds": seconds / clips, "clips_per_second": clips / seconds}


# ---------------------------------------------------------------- the store


def write_store(folder: Path, tracks: int, seconds: float) -> None:
    """Tracks of random values of a log-mel's size, and their ground truth."""
    from maest.datasets.groundtruth import write_groundtruth

    rng = np.random.default_rng(0)
    highest = int(np.float16(5).view(np.uint16))  # bits of values from 0 to 5
    (folder / "mels").mkdir()
    names = [f"{i:05d}.mmap" for i in range(tracks)]
    for name in names:
        size = (int(seconds * FRAMES_PER_SECOND), 96)
        rng.integers(highest, size=size, dtype=np.uint16).tofile(folder / "mels" / name)
    targets = (rng.random((tracks, N_CLASSES)) < 0.01).astype(np.uint8)
    truth = {f"mels/{name}": target for name, target in zip(names, targets, strict=True)}
    write_groundtruth(folder / "groundtruth.pk", truth)
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
    bench = Bench(
        __doc__,
        given,
        ("torch", "torchaudio", "numpy"),
        repeats=5,
        tracks=(300, 8),
        track_seconds=(300.0, 20.0),
        clip_seconds=([10.0, 30.0], [5.0]),
        workers=([0, 1, 2], [1]),
        clips=(2400, 48),  # in a warm epoch of ours
        device=("cpu", "cpu"),
    )
    args = bench.args
    with tempfile.TemporaryDirectory() as temporary:
        write_store(Path(temporary), args.tracks, args.track_seconds)
        case: dict[str, Any] = {"folder": temporary, "device": args.device}
        columns = {"clips/s": "{clips_per_second:.0f}", "times as fast": "{times_as_fast:.1f}"}
        for cold, seconds, workers in product((False, True), args.clip_seconds, args.workers):
            case |= {"workers": workers, "cold": cold, "frames": int(seconds * FRAMES_PER_SECOND)}
            clips = {way: args.clips // 20 if way == USUAL else args.clips for way in WAYS}
            ways = {
                way: Way(speed, case | {"way": way, "clips": args.tracks if cold else number})
                for way, number in clips.items()
            }
            rows = bench.measure(ways)
            times_as_fast(rows, USUAL)
            title = f"{'cold' if cold else 'warm'}, clips of {seconds:g} s, {workers} workers"
            bench.show(title, rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
