"""Seconds of audio per second and core, from an audio file to its log-mel file, against Essentia.

    python benchmarks/preprocessing.py [--repeats 5] [--against TREE] [--record FILE.json]

Files: notes and noise, 44.1 kHz stereo, as WAV, FLAC and MP3, one of each length. A process on one
core with one thread makes all of them; files are in the page cache; the ways take turns. Time is
the process's own, so that what else the machine does counts less. Each way ends with a float16
array on disk.

- ours: `read_audio`, `MelSpectrogram`, `write_mel`: what datasets/preprocess.py does
- Essentia: MonoLoader (decodes, mixes, resamples), FrameGenerator and TensorflowInputMusiCNN, frame
  by frame as in its documentation

"whole" makes log-mels of all of each file. "central 300 s", the default of datasets/preprocess.py,
keeps the centre of files that are longer: ours decodes that part only, while MonoLoader has no
such thing, so that Essentia decodes all and its feature is computed of the part. Speed is counted
in seconds of the files, not of the parts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from extraction import write_track
from harness import Bench, Figures, Way

FORMATS = ("wav", "flac", "mp3")
PARTS = {"whole": None, "central 300 s": 300.0}
SAMPLE_RATE = 16_000
Make = Callable[[Path, Path, float | None], None]


def ours() -> Make:
    import torch

    from maest.datasets.melspectrograms import write_mel
    from maest.helpers.audio.mel import MelSpectrogram
    from maest.helpers.audio.reading import read_audio

    torch.set_num_threads(1)
    front_end = MelSpectrogram()

    def make(audio: Path, target: Path, seconds: float | None) -> None:
        with torch.inference_mode():
            mel = front_end(torch.from_numpy(read_audio(audio, seconds))).T.numpy()
        write_mel(target, mel)

    return make


def essentia() -> Make:
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


def make_all(program: str, music: str, out: str) -> Figures:
    """Seconds of audio per second, of each part and format."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    make = {"ours": ours, "essentia": essentia}[program]()
    files = sorted(Path(music).iterdir(), key=lambda path: path.stat().st_size)
    make(files[0], Path(out, "first"), None)  # warms up
    figures = {}
    for (part, seconds), suffix in product(PARTS.items(), FORMATS):
        some = [path for path in files if path.suffix == f".{suffix}"]
        started = time.process_time()
        for path in some:
            make(path, Path(out, f"{part}-{path.name}-{program}"), seconds)
        length = sum(int(path.stem) for path in some)
        figures[f"{part}, {suffix}"] = length / (time.process_time() - started)
    return figures


def main(given: list[str] | None = None) -> dict[str, Any]:
    packages = ("essentia", "torch", "av", "soxr", "numpy")
    # A clip, and more than what is kept of a track
    bench = Bench(__doc__, given, packages, repeats=5, lengths=([30, 400], [3, 8]))
    with tempfile.TemporaryDirectory() as temporary:
        music, out = Path(temporary, "music"), Path(temporary, "out")
        music.mkdir(), out.mkdir()
        for length, suffix in product(bench.args.lengths, FORMATS):
            write_track(music / f"{length}.{suffix}", length, length)
        folders = {"music": str(music), "out": str(out)}
        ways = {name: Way(make_all, {"program": name} | folders) for name in ("ours", "essentia")}
        found = {n.replace(":", ""): row for n, row in bench.measure(ways, apart=True).items()}
    rows: dict[str, Figures] = {f"{part}, {s}": {} for part, s in product(PARTS, FORMATS)}
    columns = {name: f"{{{name}:.0f}}" for name in found} | {"ratio": "{ours_over_essentia:.1f}"}
    for case, row in rows.items():
        row |= {name: speeds[case] for name, speeds in found.items()}
        row["ours_over_essentia"] = row["ours"] / row["essentia"]
    bench.show("Seconds of audio per second and core", rows, columns)
    return bench.record


if __name__ == "__main__":
    main()
