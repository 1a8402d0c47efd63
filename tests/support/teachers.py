"""A teacher that needs no weights."""

import numpy as np

RATE = 16_000
TAGS = ("mtt/guitar", "msd/guitar", "mtt/techno", "mtt/weird")


class Stand:
    """Hears how loud each second is (mtt/guitar), twice that, and its noise."""

    name, labels, window_seconds, version = "stand-in", TAGS, 1.0, "1"

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        n = max(1, len(audio) // RATE + (len(audio) % RATE >= RATE // 2))
        sound = np.pad(audio[: n * RATE], (0, max(0, n * RATE - len(audio)))).reshape(n, RATE)
        loud = np.abs(sound).mean(axis=1)
        noise = np.abs(np.diff(sound, axis=1)).mean(axis=1) / np.maximum(loud, 1e-6)
        columns = (loud, 2 * loud, noise / 2, 0 * loud)
        return np.clip(np.stack(columns, axis=1), 0, 1).astype(np.float32)


def load(name: str) -> Stand:
    assert name == "stand-in"
    return Stand()


class Newer(Stand):
    version = "2"


def load_newer(name: str) -> Stand:
    return Newer()


def load_none(name: str) -> Stand:
    raise AssertionError("no teacher is needed")
