"""Sounds whose pitch gives the position, and files of them in any format."""

from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

RATE = 44_100
_CODECS = {  # of what soundfile does not write
    **dict.fromkeys((".m4a", ".m4v", ".mov", ".mka", ".mkv", ".aac"), "aac"),
    **{".mp2": "mp2", ".avi": "mp2", ".ac3": "ac3", ".eac3": "eac3", ".wv": "wavpack"},
    ".tta": "tta",
}


def chords(seconds: float, rate: int = RATE, channels: int = 2) -> np.ndarray:
    """[frames, channels] float32: chords that change twice a second, over noise; it fades in."""
    rng = np.random.default_rng(0)
    n = round(seconds * rate)
    t = np.arange(n) / rate
    notes = rng.integers(40, 80, (int(2 * seconds) + 1, 3))
    tones = 440 * 2 ** ((notes[(2 * t).astype(int)] - 69) / 12)
    phase = 2 * np.pi * np.cumsum(tones, axis=0) / rate
    sound = 0.15 * (np.sin(phase) + 0.3 * np.sin(3 * phase)).sum(axis=1, keepdims=True)
    sound = sound + 0.02 * rng.standard_normal((n, channels))
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.1)
    return (sound * fade[:, None]).astype(np.float32)


def sweep(seconds: float, rate: int = RATE, channels: int = 2, start: float = 300) -> np.ndarray:
    """A tone that rises by 200 Hz a second: its pitch gives the position."""
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (start * t + 100 * t * t))
    return np.tile(tone[:, None], (1, channels)).astype(np.float32)


def pitch(samples: np.ndarray, second: float) -> float:
    """The mean pitch of the tenth of a second from there on, in Hz; samples at 16 kHz."""
    part = samples[int(second * 16_000) :][:1_600] * np.hanning(1_600)
    return float(np.abs(np.fft.rfft(part, 16_000)).argmax())


def at_16_khz(sound: np.ndarray, rate: int = RATE) -> np.ndarray:
    """What it is mixed to mono and resampled at once."""
    return soxr.resample(sound.mean(axis=1), rate, 16_000, quality="HQ")


def centre_of(samples: np.ndarray, seconds: float) -> np.ndarray:
    keep = round(seconds * 16_000)
    return samples[(len(samples) - keep) // 2 :][:keep]


def write(
    path: Path, sound: np.ndarray, rate: int = RATE, codec: str = "", muxer=None, **options: str
) -> bytes:
    """Write a file in the format of its suffix; return its content."""
    codec = codec or _CODECS.get(path.suffix, "")
    if path.suffix == ".opus":
        soundfile.write(path, sound, rate, format="OGG", subtype="OPUS")
    elif not codec:
        soundfile.write(path, sound, rate, **options)
    else:
        with av.open(str(path), "w", options=muxer or {}) as container:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[1]]
            stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", layout)
            frame.sample_rate, frame.pts = rate, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    return path.read_bytes()
