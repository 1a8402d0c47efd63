"""How fast clips come from the store to a masked batch on the device, against the usual way.

python benchmarks/loading.py [--device cuda] [--record benchmarks/records/loading.json]

Both sides read the same random crops of the same store of random values, which is made in a
temporary folder (1.1 GB by default), in batches of 12, and take turns.

- ours: the data module's training loader, whose workers read and crop; the batch is normalised and
  masked on the device, at once
- ours, loader alone: the same without what the device does, which on a CPU is most of it: what the
  loader could give to a faster device
- one call a mask: workers map the file, crop, convert to float32, normalise, and call torchaudio's
  masks one by one, 20 of time and 8 of frequency to a clip; default collation

Warm: everything is in the page cache. Cold: it is dropped from there before each measurement, and
each clip is of another track. A worker's start is not measured. Memory: that of each process alone
(private pages) after each of several epochs, over 210,000 keys.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchaudio.transforms import FrequencyMasking, TimeMasking  # noqa: E402

from maest.datasets.datamodule import MaestDataModule  # noqa: E402
from maest.datasets.groundtruth import write_groundtruth  # noqa: E402
from maest.datasets.sampling import ClipSampler  # noqa: E402
from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.masking import spec_augment  # noqa: E402
from maest.helpers.patches import FRAMES_PER_SECOND  # noqa: E402
from maest.helpers.report import machine, table, versions  # noqa: E402

OURS, ALONE, USUAL = "ours", "ours, loader alone", "one call a mask"
WAYS = (OURS, ALONE, USUAL)
BATCH = 12
N_CLASSES = 400
MEAN, STD = 2.06755686098554, 1.268292820667291
MASKS = {"time_masks": 20, "time_width": 8, "freq_masks": 8, "freq_width": 5}
LINKS = 700  # names of the store's folder: with 300 tracks, 210,000 keys
MEMORY_EPOCHS = 6
MEMORY_CLIPS = 2400  # in an epoch


class OneCallAMask(Dataset):
    """The usual way; an item is ``(index, seed of the crop)``, as ours is asked for."""

    def __init__(self, folder: Path, keys: list[str], targets: np.ndarray, frames: int) -> None:
        self.folder, self.keys, self.targets, self.frames = folder, keys, targets, frames
        self.masks = [TimeMasking(MASKS["time_width"], iid_masks=True)] * MASKS["time_masks"]
        self.masks += [FrequencyMasking(MASKS["freq_width"], iid_masks=True)] * MASKS["freq_masks"]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = item
        mel = np.memmap(self.folder / self.keys[index], np.float16, mode="r").reshape(-1, 96)
        start = np.random.default_rng(seed).integers(len(mel) - self.frames + 1)
        clip = torch.from_numpy(mel[start : start + self.frames].astype(np.float32)).T[None]
        clip = (clip - MEAN) / (2 * STD)
        for mask in self.masks:
            clip = mask(clip)
        return clip, torch.from_numpy(self.targets[index].astype(np.float32))


def loader_of(way: str, folder: Path, frames: int, workers: int, clips: int, device: str):
    """A training loader of one of the two ways."""
    groundtruth = folder / "groundtruth.pk"
    data = MaestDataModule(
        base_dir=folder,
        clip_frames=frames,
        groundtruth_train=groundtruth,
        batch_size_train=BATCH,
        clips_per_epoch=clips,
        num_workers=workers,
    )
    if way != USUAL:
        return data.train_dataloader()
    tracks = data.groundtruth("train")
    return DataLoader(
        OneCallAMask(folder, tracks.keys, tracks.targets, frames),
        batch_size=BATCH,
        sampler=ClipSampler(tracks.targets, clips, False, 0),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )


def ready(way: str, batch: Any, device: str) -> tuple[Tensor, Tensor]:
    """Normalised and masked clips on the device, and their targets; as they are of the loader."""
    if way == USUAL:
        mel, targets = batch
        return mel.to(device, non_blocking=True), targets.to(device, non_blocking=True)
    if way == ALONE:
        return batch.mel, batch.targets
    batch = batch.to(device)
    mel = ((batch.mel.float() - MEAN) / (2 * STD)).transpose(1, 2)
    return spec_augment(mel, **MASKS), batch.targets


def epoch(way: str, loader: DataLoader, device: str) -> float:
    """Go through an epoch; seconds."""
    started = time.perf_counter()
    for batch in loader:
        ready(way, batch, device)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


# --- The store ----------------------------------------------------------------------------------


def write_store(folder: Path, tracks: int, seconds: float) -> None:
    """Tracks of random values of a log-mel's size, and their ground truth."""
    rng = np.random.default_rng(0)
    frames = int(seconds * FRAMES_PER_SECOND)
    highest = int(np.float16(5).view(np.uint16))  # bits of values from 0 to 5
    (folder / "mels").mkdir()
    for i in range(tracks):
        path = folder / "mels" / f"{i:05d}.mmap"
        rng.integers(highest, size=(frames, 96), dtype=np.uint16).tofile(path)
    targets = (rng.random((tracks, N_CLASSES)) < 0.01).astype(np.uint8)
    keys = [f"mels/{i:05d}.mmap" for i in range(tracks)]
    write_groundtruth(folder / "groundtruth.pk", dict(zip(keys, targets, strict=True)))
    os.sync()  # pages that are not written yet cannot be dropped


def many_keys(folder: Path) -> None:
    """Make a ground truth of many keys for the same files, in a folder of its own."""
    folder, store = folder / "many", folder
    folder.mkdir()
    names = sorted(path.name for path in (store / "mels").iterdir())
    target = np.eye(10, dtype=np.uint8)
    tracks = {}
    for i in range(LINKS):
        (folder / f"a-folder-of-the-store-{i:04d}").symlink_to(store / "mels")
        tracks |= {f"a-folder-of-the-store-{i:04d}/{name}": target[i % 10] for name in names}
    write_groundtruth(folder / "groundtruth.pk", tracks)


def each_file(folder: Path, do: Callable[[int], bool]) -> float:
    """Do something with each open file; the share of those for which it is true."""
    done = []
    for path in sorted((folder / "mels").iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            done.append(do(descriptor))
        finally:
            os.close(descriptor)
    return statistics.mean(done)


def drop(descriptor: int) -> bool:
    """Drop a file from the page cache."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def is_cold(descriptor: int) -> bool:
    """Whether a read from the middle of a file would have to wait for the disk."""
    try:
        os.preadv(descriptor, [bytearray(1)], os.fstat(descriptor).st_size // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    return False


def warm(descriptor: int) -> bool:
    """Bring a file into the page cache."""
    while os.read(descriptor, 2**24):
        pass
    return True


# --- Measurements -------------------------------------------------------------------------------


def measure(
    way: str, folder: Path, frames: int, workers: int, clips: int, device: str, cold: bool
) -> float:
    """Clips a second of one epoch."""
    loader = loader_of(way, folder, frames, workers, clips, device)
    first = min(clips, 2 * BATCH * max(1, workers))
    loader.sampler.skip(clips - first)  # so much of another epoch that every worker is at work
    loader.sampler.set_epoch(1)
    epoch(way, loader, device)
    loader.sampler.set_epoch(0)
    if cold:
        each_file(folder, drop)
        share = each_file(folder, is_cold)
        if share < 0.9:
            raise OSError(f"only {share:.0%} of the files could be dropped from the page cache")
    return clips / epoch(way, loader, device)


def private_mib(process: int | str) -> float:
    """The pages that a process has for itself, MiB."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) / 1024


def memory(way: str, folder: Path, frames: int, workers: int, device: str) -> dict[str, list]:
    """Private MiB of the main process and of its workers together, after each epoch."""
    loader = loader_of(way, folder / "many", frames, workers, MEMORY_CLIPS, device)
    found: dict[str, list] = {"main": [], "workers": []}
    for i in range(MEMORY_EPOCHS):
        loader.sampler.set_epoch(i)
        epoch(way, loader, device)
        found["main"].append(round(private_mib("self"), 1))
        children = multiprocessing.active_children()
        found["workers"].append(round(sum(private_mib(child.pid) for child in children), 1))
    return found


def all_speeds(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Of both ways under all conditions, with the ratio of the medians."""
    rows = []
    for cold in (False, True):
        for seconds in args.clip_seconds:
            frames = int(seconds * FRAMES_PER_SECOND)
            for workers in args.workers:
                clips = {OURS: args.clips, ALONE: args.clips, USUAL: args.clips // 20}
                if cold:
                    clips = dict.fromkeys(clips, args.tracks)
                else:
                    each_file(folder, warm)
                speeds: dict[str, list[float]] = {way: [] for way in clips}
                for _ in range(args.repeats):
                    for way, number in clips.items():
                        speed = measure(way, folder, frames, workers, number, args.device, cold)
                        speeds[way].append(speed)
                rows.append(
                    {
                        "page_cache": "cold" if cold else "warm",
                        "clip_seconds": seconds,
                        "workers": workers,
                        "clips_per_second": {w: statistics.median(s) for w, s in speeds.items()},
                        "per_worker": {
                            w: statistics.median(s) / max(1, workers) for w, s in speeds.items()
                        },
                        "ratio_to_one_call_a_mask": {
                            way: statistics.median(
                                a / b for a, b in zip(speeds[way], speeds[USUAL], strict=True)
                            )
                            for way in (OURS, ALONE)
                        },
                        "all": {w: [round(x, 1) for x in s] for w, s in speeds.items()},
                    }
                )
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "all"}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tracks", type=int, default=300)
    parser.add_argument("--track-seconds", type=float, default=300)
    parser.add_argument("--clip-seconds", type=float, nargs="+", default=[10, 30])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=2400, help="in a warm epoch of ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where the store is made (a temporary folder)")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON")
    parser.add_argument("--memory", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the cores are the workers'
    frames = int(args.clip_seconds[0] * FRAMES_PER_SECOND)
    if args.memory:
        folder, way = args.memory
        print(json.dumps(memory(way, Path(folder), frames, max(args.workers), args.device)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        write_store(folder, args.tracks, args.track_seconds)
        many_keys(folder)
        memories = {}
        options = ["--device", args.device, "--workers", *map(str, args.workers)]
        options += ["--clip-seconds", *map(str, args.clip_seconds)]
        for way in (OURS, USUAL):  # each in a process of its own
            child = [sys.executable, __file__, *options, "--memory", temporary, way]
            done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
            memories[way] = json.loads(done.stdout.splitlines()[-1])
            print(f"private MiB after each epoch, {way}: {memories[way]}", flush=True)
        rows = all_speeds(args, folder)
    header = ["clips/s: page cache, clip, workers", *WAYS, "ratio", "ratio, loader alone"]
    lines = [
        [
            f"{row['page_cache']}, {row['clip_seconds']:g} s, {row['workers']}",
            *(f"{row['clips_per_second'][way]:.0f}" for way in WAYS),
            *(f"{ratio:.1f}" for ratio in row["ratio_to_one_call_a_mask"].values()),
        ]
        for row in rows
    ]
    print(table(header, lines))
    if args.record:
        write_json(
            args.record,
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine(),
                "versions": versions("torch", "torchaudio", "numpy"),
                "device": args.device,
                "tracks": args.tracks,
                "track_seconds": args.track_seconds,
                "batch": BATCH,
                "repeats": args.repeats,
                "median": rows,
                "private_mib_after_each_epoch": {
                    "keys": args.tracks * LINKS,
                    "workers": max(args.workers),
                    "clips_in_an_epoch": MEMORY_CLIPS,
                    **memories,
                },
            },
        )


if __name__ == "__main__":
    main()
