"""Seconds of audio per second and core, from an audio file to its log-mel file, against Essentia.

    python benchmarks/preprocessing.py [--repeats 5] [--record FILE.json]

Files: synthetic music, 44.1 kHz stereo, as WAV, FLAC and MP3, one of each length. All run in one
process on one core with one thread, files in the page cache; the ways take turns, and medians are
compared. Time is the process's own, so that what else the machine does counts less. Each way ends
with a float16 array on disk.

- ours: `helpers.audio.read_audio`, `MelSpectrogram`, `write_mel`: what datasets/preprocess.py does
- Essentia: MonoLoader (decodes, mixes, resamples), FrameGenerator and TensorflowInputMusiCNN, frame
  by frame as in its documentation

"whole" makes log-mels of all of each file. "central 300 s", the default of datasets/preprocess.py,
keeps the centre of files that are longer: ours decodes that part only, while MonoLoader has no
such thing, so that Essentia decodes all and its feature is computed of the part. Speed is counted
in seconds of the files there, not of the parts.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402

from maest.datasets.melspectrograms import open_mel, write_mel  # noqa: E402
from maest.helpers.audio import read_audio  # noqa: E402
from maest.helpers.files import write_json  # noqa: E402
from maest.helpers.melspectrogram import SAMPLE_RATE, MelSpectrogram  # noqa: E402
from maest.helpers.report import machine, table, versions  # noqa: E402

LENGTHS = (30, 400)  # seconds: a clip, and a track longer than what is kept of it
FORMATS = ("wav", "flac", "mp3")
CENTRAL = 300.0  # seconds
RATE = 44_100
SAME_BANDS = 85  # above, about 7 kHz, the two resamplers roll off differently
Way = Callable[[Path, Path, float | None], None]


def synthesize(seconds: int, seed: int) -> np.ndarray:
    """[frames, 2] float32: chords with overtones, changing twice a second, over drum-like noise."""
    rng = np.random.default_rng(seed)
    n = seconds * RATE
    sound = np.zeros((n, 2), np.float32)
    half = RATE // 2
    t = np.arange(half) / RATE
    for start in range(0, n, half):
        decay = np.exp(-6 * t)
        chord = sum(
            np.sin(2 * np.pi * k * 440 * 2 ** ((note - 69) / 12) * t) / k
            for note in rng.integers(40, 76, 3)
            for k in (1, 2, 3, 4)
        )
        for channel in (0, 1):
            noise = rng.standard_normal(half) * decay * 0.2
            sound[start : start + half, channel] = 0.1 * chord * np.sqrt(decay) + noise
    fade = np.minimum(1, np.arange(n) / RATE)
    return (sound * np.minimum(fade, fade[::-1])[:, None]).astype(np.float32).clip(-1, 1)


def ours() -> Way:
    front_end = MelSpectrogram()

    def make(audio: Path, target: Path, seconds: float | None) -> None:
        with torch.inference_mode():
            mel = front_end(torch.from_numpy(read_audio(audio, seconds))).T.numpy()
        write_mel(target, mel)

    return make


def essentia() -> Way:
    import essentia

    essentia.log.infoActive = essentia.log.warningActive = False
    from essentia.standard import FrameGenerator, MonoLoader, TensorflowInputMusiCNN

    bands = TensorflowInputMusiCNN()

    def make(audio: Path, target: Path, seconds: float | None) -> None:
        waveform = MonoLoader(filename=str(audio), sampleRate=SAMPLE_RATE)()
        if seconds is not None and len(waveform) > seconds * SAMPLE_RATE:
            start = (len(waveform) - round(seconds * SAMPLE_RATE)) // 2
            waveform = waveform[start : start + round(seconds * SAMPLE_RATE)]
        frames = FrameGenerator(waveform, frameSize=512, hopSize=256, startFromZero=False)
        np.array([bands(frame) for frame in frames]).astype(np.float16).tofile(target)

    return make


def difference(one: Path, other: Path) -> float:
    """Largest difference of two log-mel files in the bands that should agree, not at the ends."""
    a, b = (np.asarray(open_mel(path), np.float32)[2:-2, :SAME_BANDS] for path in (one, other))
    frames = min(len(a), len(b))
    return float(np.abs(a[:frames] - b[:frames]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write the figures to this JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    ways = {"ours": ours(), "essentia": essentia()}
    parts = {"whole": None, "central 300 s": CENTRAL}
    took: dict[tuple[str, str, int, str], list[float]] = {}
    differ: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for length in LENGTHS:
            sound = synthesize(length, length)
            for suffix in FORMATS:
                soundfile.write(folder / f"{length}.{suffix}", sound, RATE)
        for repeat in range(args.repeats + 1):  # the first warms up
            for length in LENGTHS if repeat else LENGTHS[:1]:
                for suffix in FORMATS:
                    audio = folder / f"{length}.{suffix}"
                    for part, seconds in parts.items():
                        for name, make in ways.items():
                            started = time.process_time()
                            make(audio, folder / f"{name}.mmap", seconds)
                            elapsed = time.process_time() - started
                            if repeat:
                                took.setdefault((part, suffix, length, name), []).append(elapsed)
                        if not repeat and part == "whole":
                            found = difference(folder / "ours.mmap", folder / "essentia.mmap")
                            differ[suffix] = max(differ.get(suffix, 0.0), found)
    results, rows = {}, []
    for part in parts:
        for suffix in FORMATS:
            speed = {
                name: sum(LENGTHS)
                / sum(statistics.median(took[part, suffix, length, name]) for length in LENGTHS)
                for name in ways
            }
            ratio = speed["ours"] / speed["essentia"]
            results[f"{part}, {suffix}"] = {
                "seconds_of_audio_per_second_and_core": speed,
                "ours_over_essentia": ratio,
                "seconds_taken": {
                    f"{length} s, {name}": [round(s, 4) for s in took[part, suffix, length, name]]
                    for length in LENGTHS
                    for name in ways
                },
            }
            figures = [f"{speed['ours']:.0f}", f"{speed['essentia']:.0f}", f"{ratio:.1f}"]
            rows.append([f"{part}, {suffix}", *figures])
    print(table(["seconds of audio per second and core", "ours", "Essentia", "ratio"], rows))
    print(f"largest difference in bands 0-{SAME_BANDS - 1}: {max(differ.values()):.1e}")
    if args.record:
        write_json(
            args.record,
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine(),
                "versions": versions("essentia", "torch", "av", "soxr", "numpy"),
                "repeats": args.repeats,
                "files": {"seconds": LENGTHS, "formats": FORMATS, "rate": RATE, "channels": 2},
                "largest_difference_bands_0_to_84": differ,
                "lowest_ratio": min(row["ours_over_essentia"] for row in results.values()),
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
