"""The package musicnn in miniature: checkpoints of few channels, in TensorFlow's format."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SIZES = {"timbral": 4, "temporal": 3, "middle": 5, "hidden": 6}  # of `Musicnn`
_LAYERS = ["conv2d", *(f"conv2d_{i}" for i in range(1, 8))]
_NORMS = ["batch_normalization", *(f"batch_normalization_{i}" for i in range(1, 11))]


def arrays(seed: int = 0, n_classes: int = 50) -> dict[str, np.ndarray]:
    """Arrays of a miniature network, and some of an optimiser, by TensorFlow's names."""
    rng = np.random.default_rng(seed)
    tall, long, middle, hidden = SIZES.values()
    front = 2 * tall + 3 * long
    kernels = [(7, 38, tall), (7, 67, tall), (128, 1, long), (64, 1, long), (32, 1, long)]
    kernels += [(7, front, middle), (7, middle, middle), (7, middle, middle)]
    pooled = 2 * (front + 3 * middle)
    made = {"beta1_power": np.float32(0.9) * np.ones((), np.float32)}

    def layer(name: str, shape: tuple[int, ...]) -> None:
        size = np.prod(shape[:-1])
        made[f"{name}/kernel"] = rng.normal(0, size**-0.5, shape).astype(np.float32)
        made[f"{name}/bias"] = rng.normal(0, 0.3, shape[-1]).astype(np.float32)
        made[f"{name}/kernel/Adam_1"] = np.ones(shape, np.float32)

    for name, (frames, rows, channels) in zip(_LAYERS, kernels, strict=True):
        layer(name, (frames, rows, 1, channels))
    layer("dense", (pooled, hidden))
    layer("dense_1", (hidden, n_classes))
    channels = [1, *(kernel[-1] for kernel in kernels), pooled, hidden]
    for name, size in zip(_NORMS, channels, strict=True):
        made[f"{name}/gamma"] = rng.normal(0.3, 1, size).astype(np.float32)  # some are negative
        made[f"{name}/beta"] = rng.normal(0, 0.3, size).astype(np.float32)
        made[f"{name}/moving_mean"] = rng.normal(0, 0.3, size).astype(np.float32)
        made[f"{name}/moving_variance"] = rng.uniform(0.3, 2, size).astype(np.float32)
    return made


def reference(w: Mapping[str, np.ndarray], log_mel: np.ndarray) -> np.ndarray:
    """Compute the probabilities [C] of a window [T, 96], step by step, in float64."""

    def norm(x: np.ndarray, number: int) -> np.ndarray:
        name = _NORMS[number]
        scale = w[f"{name}/gamma"] / np.sqrt(w[f"{name}/moving_variance"] + 1e-3)
        return (x - w[f"{name}/moving_mean"]) * scale + w[f"{name}/beta"]

    def conv(x: np.ndarray, number: int) -> np.ndarray:
        """[T, R] → [T, channels]"""
        kernel = w[f"{_LAYERS[number]}/kernel"][:, :, 0]
        frames, rows, _ = kernel.shape
        x = np.pad(x, (((frames - 1) // 2, frames // 2), (0, 0)))
        places = np.lib.stride_tricks.sliding_window_view(x, (frames, rows))
        y = np.tensordot(places, kernel, 2) + w[f"{_LAYERS[number]}/bias"]
        return norm(np.maximum(y, 0), number + 1).max(axis=1)

    x = norm(log_mel.astype(np.float64)[..., None], 0)[..., 0]
    x = np.concatenate([conv(x, number) for number in range(5)], axis=1)
    first = conv(x, 5)
    second = conv(first, 6) + first
    third = conv(second, 7) + second
    x = np.concatenate([x, first, second, third], axis=1)
    x = norm(np.stack([x.max(axis=0), x.mean(axis=0)], axis=1).reshape(-1), 9)
    x = norm(np.maximum(x @ w["dense/kernel"] + w["dense/bias"], 0), 10)
    return 1 / (1 + np.exp(-(x @ w["dense_1/kernel"] + w["dense_1/bias"])))


def write_package(folder: Path) -> Path:
    """Write ``musicnn/`` with both networks' checkpoints into a folder, to be put on `sys.path`."""
    (folder / "musicnn").mkdir()
    (folder / "musicnn" / "__init__.py").write_text("raise ImportError('it needs TensorFlow')")
    for seed, network in enumerate(("MTT_musicnn", "MSD_musicnn")):
        (folder / "musicnn" / network).mkdir()
        write_bundle(folder / "musicnn" / network, arrays(seed))
    return folder


# ---- TensorFlow's format -------------------------------------------------------------------------


def write_bundle(folder: Path, content: Mapping[str, np.ndarray], per_block: int = 40) -> None:
    """Write ``.index`` (a table of blocks of so many names) and ``.data-00000-of-00001``."""
    data, entries = b"", [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    for name, array in sorted(content.items()):
        shape = b"".join(_field(2, b"\x08" + _varint(size)) for size in array.shape)
        entry = b"\x08\x01" + _field(2, shape)
        entry += b"\x20" + _varint(len(data)) if data else b""  # zeros are not written
        entry += b"\x28" + _varint(array.nbytes) + b"\x35" + bytes(4)  # of a check sum
        entries.append((name.encode(), entry))
        data += array.astype("<f4").tobytes()
    table, places = b"", []
    for first in range(0, len(entries), per_block):
        block = _block(entries[first : first + per_block])
        place = _varint(len(table)) + _varint(len(block))
        places.append((entries[min(first + per_block, len(entries)) - 1][0], place))
        table += block + bytes(5)
    index = _block(places)
    footer = bytes(2) + _varint(len(table)) + _varint(len(index))
    table += index + bytes(5) + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    (folder / ".index").write_bytes(table)
    (folder / ".data-00000-of-00001").write_bytes(data)


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    block, before, restarts = b"", b"", []
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % 16:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            restarts.append(len(block))
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
        block += key[shared:] + value
        before = key
    return block + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _field(number: int, message: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(message)) + message


def _varint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])
