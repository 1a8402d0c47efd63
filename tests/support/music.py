"""A small folder of music, and a small model for it."""

import json
import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from folders import rows

from maest.helpers.files.atomic import atomic_path
from maest.models import Maest, save_model

RATE = 16_000
LABELS = ["low", "middle", "high"]
PATCH = 125  # frames: 2 s


def save_small_model(folder: Path, labels: list[str] = LABELS) -> Path:
    """A model folder: three blocks of 32 channels, patches of 2 s, three labels."""
    torch.manual_seed(0)
    sizes = {"n_classes": len(labels), "input_t": PATCH, "embed_dim": 32, "num_heads": 2}
    net = Maest(**sizes, depth=3, labels=labels, head_eps=1e-5)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return save_model(folder, net)


def tone(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """float32 [samples, channels]: a chord with some noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate))[:, None] / rate
    pitches = rng.uniform(100, 2_000, (3, channels))
    sound = sum(np.sin(2 * np.pi * pitch * t) for pitch in pitches) * 0.1
    return (sound + rng.normal(0, 0.01, sound.shape)).astype(np.float32)


def melody(seconds: float, seed: int) -> np.ndarray:
    """Notes that change every two thirds of a second, over some noise: float32 [samples]."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    step = (1.5 * t).astype(int)
    pitches = 110 * 2 ** (rng.integers(0, 48, step.max() + 1)[step] / 12)
    level = rng.uniform(0.02, 0.4, step.max() + 1)[step]
    sound = level * np.sin(2 * np.pi * np.cumsum(pitches) / RATE)
    return (sound + 0.005 * rng.standard_normal(len(t))).astype(np.float32)


def noise(seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """float32 [samples, channels]."""
    size = round(seconds * rate), channels
    return (0.1 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def write_audio(
    path: Path, seconds: float = 1.0, seed: int = 0, rate: int = 22_050, channels: int = 2
) -> Path:
    """Noise in the format of the suffix; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed, rate, channels), rate)
    return path


def write_music(folder: Path, tracks: int, seconds: tuple[float, float] = (0.5, 7)) -> list[str]:
    """FLAC files of several lengths, in two folders; their names."""
    names = []
    for i in range(tracks):
        name = f"{'ab'[i % 2]}/{i:03d}.flac"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        length = seconds[0] + (seconds[1] - seconds[0]) * (i * 7 % tracks) / max(1, tracks - 1)
        with atomic_path(folder / name) as temporary:
            soundfile.write(temporary, tone(length, i), RATE)
        names.append(name)
    return sorted(names, key=os.fsencode)


def _results(folder: Path) -> list[Path]:
    """Arrays under their final names; what a killed run leaves is hidden."""
    return sorted(p for p in folder.rglob("*.npy") if not p.name.startswith("."))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All results below a folder, by their names relative to it."""
    return {path.relative_to(folder).as_posix(): np.load(path) for path in _results(folder)}


def stamps(folder: Path) -> dict[str, int]:
    """When each array below a folder was written, by its path."""
    return {str(path): path.stat().st_mtime_ns for path in _results(folder)}


def assert_whole(path: Path) -> None:
    """A result under its final name can be read to its end; times are as many as patches."""
    if path.suffix == ".npy":
        values = np.load(path)
        times = path.with_name(f"{path.name.rsplit('.', 2)[0]}.times.csv")
        assert not times.exists() or len(rows(times)) == len(values), path
    elif path.suffix == ".json":
        assert json.loads(path.read_text("utf-8")), path
    elif path.suffix == ".csv":
        table = rows(path)
        assert path.read_bytes().endswith(b"\n"), path
        assert all(None not in row and None not in row.values() for row in table), path
    elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path


def assert_same_results(found: Path, expected: Path, partly: bool = False) -> int:
    """The same files, with the same values but for 1e-5 of the largest of each; how many.

    Of the largest: embeddings reach 250, where one step of float32 is 1.5e-5 already. Where no
    value is above 1, 1e-5 is absolute. ``partly``: files may be missing.
    """
    one, other = arrays(found), arrays(expected)
    assert partly or list(one) == list(other)
    for name, own in one.items():
        values = other[name]
        most = 1e-5 * np.where(np.abs(values) < 1, 1, max(1.0, np.abs(values).max()))
        assert (np.abs(own - values) <= most).all(), name
    return len(one)


def write_truncated(path: Path, seconds: float = 5, kept: float = 0.5) -> None:
    """The first part of an audio file in the format of the suffix."""
    sound = tone(seconds, 20)
    if path.suffix == ".m4a":
        import av

        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("aac", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    else:
        soundfile.write(path, sound, RATE)
    os.truncate(path, int(kept * path.stat().st_size))
