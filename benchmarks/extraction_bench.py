"""What benchmarks/extraction.py makes for its measurements, how it has them made, and tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks import extraction_ways
from benchmarks.extraction_ways import Case, Way
from maest.helpers.parallel import cores
from maest.helpers.patches import PATCH_SIZE
from maest.helpers.report import table
from maest.models import get_maest, save_model
from maest.models.archs import input_frames
from maest.models.huggingface import export_huggingface
from maest.models.maest import STRIDE, grid_size

CLASSES = 400
RATE = 44_100


def write_track(path: Path, length: float, seed: int) -> None:
    """A stereo FLAC: a minute of notes with some noise, again and again."""
    rng = np.random.default_rng(seed)
    t = np.arange(RATE // 2)[:, None] / RATE
    pitches = rng.uniform(60, 2_000, (120, 3, 1, 2))  # of half a second each
    notes = np.sin(2 * np.pi * pitches * t).sum(1) * np.exp(-4 * t)
    sound = notes.reshape(-1, 2) * 0.15 + rng.normal(0, 0.01, (60 * RATE, 2))
    left = round(length * RATE)
    with soundfile.SoundFile(path, "w", RATE, channels=2, subtype="PCM_16") as file:
        while left > 0:
            file.write(sound[:left])
            left -= len(sound)


class Bench:
    """The settings of a run, what it has made in its folder, and how it measures."""

    def __init__(self, args: Any, folder: Path, ways: dict[str, Way]) -> None:
        self.args, self.folder, self.ways = args, folder, ways
        self.cuda = args.device == "cuda"
        # As many as the command has.
        self.workers = min(cores(), 12) if self.cuda else 1
        self._number = count()

    @property
    def main(self) -> str:
        """The way that others are compared with."""
        return next(iter(self.ways))

    def music(self, tracks: int, length: float, different: int = 8) -> Path:
        """A folder of tracks; beyond the different ones, further names of the same files."""
        folder = self.folder / f"music-{tracks}-{length:g}"
        if not folder.is_dir():
            folder.mkdir()
            for i in range(tracks):
                path = folder / f"{i:04d}.flac"
                if i < different:
                    write_track(path, length, i)
                else:
                    os.link(folder / f"{i % different:04d}.flac", path)
        return folder

    def model(self, length: int) -> Path:
        """A model of random weights, as a model folder and in transformers' layout."""
        folder = self.folder / f"model-{length}"
        if not folder.is_dir():
            torch.manual_seed(0)
            sizes = {"n_classes": CLASSES, "pretrained": False}
            net = get_maest(self.args.arch, input_t=input_frames(length), **sizes)
            save_model(folder / "model", net, self.args.arch)
            # That layout wants inputs of as many frames as the last of its positions needs: fewer
            # of both, so that all compute the same patches.
            state, columns = net.state_dict(), grid_size(net.input_t)
            state["time_new_pos_embed"] = state["time_new_pos_embed"][..., :columns]
            used = (columns - 1) * STRIDE + PATCH_SIZE
            short = get_maest(self.args.arch, input_t=used, **sizes)
            short.load_state_dict(state)
            export_huggingface(folder / "hub", short)
        return folder

    def measure(self, task: str, way: Way, model: Path | str, audio: Path, **options: Any):
        """One measurement; ``options`` are those of `Case`."""
        out = self.folder / "results" / str(next(self._number))
        options = {"device": self.args.device, "workers": self.workers} | options
        case = Case(str(model), str(audio), str(out), **options)
        request = {"task": task, "way": vars(way), "case": vars(case)}
        if self.args.quick:
            return extraction_ways.work(request) | {"out": out}
        worker = [sys.executable, extraction_ways.__file__, json.dumps(request)]
        done = subprocess.run(worker, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{request}:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1]) | {"out": out}

    def in_turns(self, works: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict]]:
        """Each of these as often as is asked for, in turns."""
        found: dict[str, list[dict]] = {name: [] for name in works}
        for turn in range(self.args.repeats):
            for name, work in works.items():
                print(f"  turn {turn + 1}: {name}", file=sys.stderr, flush=True)
                found[name].append(work())
        return found


def medians(runs: list[dict[str, Any]], digits: int = 4) -> dict[str, Any]:
    """Median of each figure, and all seconds."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    found = {name: statistics.median(run[name] for run in runs) for name in names}
    if "seconds" in names:
        found["all_seconds"] = [round(run["seconds"], digits) for run in runs]
    return found


def show(title: str, rows: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
    """A table on the screen; a cell is empty where its figure is not there."""

    def cell(form: str, row: dict[str, Any]) -> str:
        try:
            return form.format(**row)
        except KeyError:
            return ""

    lines = [[name, *(cell(form, row) for form in columns.values())] for name, row in rows.items()]
    print(f"\n{title}\n\n{table(['', *columns], lines)}", flush=True)
