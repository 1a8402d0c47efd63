"""Extraction that is killed, stopped or sharded: results are whole, and written once."""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import training_process
from folders import read_json, rows
from music import (
    RATE,
    assert_same_results,
    assert_whole,
    save_small_model,
    stamps,
    tone,
    write_music,
)
from training_process import Before, Signal

from maest.experiments.extract import Progress
from maest.experiments.extract_job import ExtractionJob
from maest.helpers.results.writer import ResultWriter
from maest.models import engines
from maest.models.extraction import Extraction

ROOT = Path(__file__).resolve().parents[2]
TRACKS = 40
INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@dataclass
class Place:
    """Music, a model, and what an unbroken run makes of them in "expected"."""

    root: Path
    seconds: float = 0.0  # that extraction takes, without the start of the process

    def arguments(self, out: str, extra: str = "", command: str = "extract_embeddings") -> list:
        options = (
            "inference.transformer_block=[0,2] inference.outputs=[embeddings,logits] "
            "inference.pool=none"
        )
        return (
            f"{command} with maest.checkpoint={self.root}/model inference.audio={self.root}/music "
            f"inference.out_dir={self.root}/{out} trainer.accelerator=cpu "
            f"{options if command == 'extract_embeddings' else ''} {extra}"
        ).split()

    def start(self, *prepare, **options):
        return training_process.start(self.root, self.arguments(**options), *prepare)

    def check(self, out: str, partly: bool = True) -> int:
        """Check that the arrays equal those of the unbroken run; return their number."""
        return assert_same_results(self.root / out, self.root / "expected", partly)


@dataclass
class WhenItBegins:
    """Writes down when extraction begins; a SIGKILL ends it so many seconds later."""

    path: Path
    seconds: float | None = None

    def __call__(self) -> None:
        original, path, seconds = Extraction.results, self.path, self.seconds

        def results(self, tracks):
            path.write_text(str(time.monotonic()))
            if seconds is not None:
                kill = threading.Timer(seconds, os.kill, (os.getpid(), KILL))
                kill.daemon = True
                kill.start()
            return original(self, tracks)

        Extraction.results = results


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("extraction"))
    write_music(place.root / "music", TRACKS)
    save_small_model(place.root / "model")
    begun = place.root / "begun"
    place.start(WhenItBegins(begun), out="expected").wait()
    place.seconds = time.monotonic() - float(begun.read_text())
    return place


def visible(folder: Path) -> list[Path]:
    """The files under their final names."""
    return [p for p in folder.rglob("*.*") if not p.name.startswith(".") and p.is_file()]


def watch(run, folder: Path) -> int:
    """Look at each file as soon as it is seen, until a run is over; how many were looked at."""
    seen: set[tuple[Path, int]] = set()
    while run.process.is_alive():
        for path in visible(folder):
            look = path, path.stat().st_mtime_ns
            if look not in seen:
                assert_whole(path)
                seen.add(look)
        run.process.join(0.005)
    for path in visible(folder):
        assert_whole(path)
    return len(seen)


def kill(start, folder: Path, kills: int, seed: int, seconds: float, look=lambda: None) -> None:
    """Kill a run at random instants, watching its files; ``look`` is called after each kill."""
    rng, begun = random.Random(seed), folder.with_name(f"{folder.name}-begun")
    killed = looks = 0
    while killed < kills:
        left = seconds * (kills - killed) / kills
        run = start(WhenItBegins(begun, rng.uniform(0, left)))
        looks += watch(run, folder)
        assert run.process.exitcode in (-KILL, 0), run.text
        if run.process.exitcode == 0:  # it was over by then: once more from the start
            shutil.rmtree(folder)
        else:
            killed += 1
        look()
    assert looks


def complete(folder: Path) -> dict[str, int]:
    """When the arrays of complete tracks were written."""
    found = stamps(folder)
    level = folder / "2sec"

    def whole(path: Path) -> bool:
        key = Path(*path.relative_to(level).parts[1:]).as_posix().rsplit(".", 2)[0]
        files = [level / block / f"{key}.embeddings.npy" for block in "02"]
        return all(p.exists() for p in (*files, level / f"logits/{key}.logits.npy"))

    return {path: stamp for path, stamp in found.items() if whole(Path(path))}


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 12))]
)
def test_killed_at_random_instants(place, seed):
    """Complete tracks are not written again."""
    out, before = f"killed-{seed}", {}
    found, expected = place.root / out, place.root / "expected"

    def look() -> None:
        place.check(out)
        if found.exists():
            assert before.items() <= stamps(found).items()
        before.clear()
        before.update(complete(found))

    kill(lambda plan: place.start(plan, out=out), found, 5, seed, place.seconds, look)
    place.start(out=out).wait()
    place.check(out, partly=False)
    times = [
        {p.relative_to(f): p.read_text() for p in f.rglob("*.times.csv")} for f in (found, expected)
    ]
    assert len(times[0]) == 3 * TRACKS
    assert times[0] == times[1]


@pytest.mark.slow
def test_predict_killed_at_random_instants(place):
    """JSON, CSV and PNG are whole at any time, and in the end what an unbroken run makes."""
    begun, names = place.root / "predict-begun", write_music(place.root / "few", 8)
    extra = f"inference.audio={place.root}/few inference.plot=True inference.top=2"

    def start(*prepare, out: str = "broken"):
        return place.start(*prepare, out=out, extra=extra, command="predict")

    start(WhenItBegins(begun), out="unbroken").wait()
    seconds = time.monotonic() - float(begun.read_text())
    found, expected = (place.root / out / "2sec/predictions" for out in ("broken", "unbroken"))
    kill(start, found, 3, 1, seconds)
    start().wait()
    files = [sorted(p.relative_to(f) for p in visible(f)) for f in (found, expected)]
    assert files[0] == files[1]
    assert len(files[0]) == 3 * 8 + 2  # with tracks.csv and the manifest
    for name in names:
        one, other = (read_json(f / f"{name}.predictions.json") for f in (found, expected))
        assert one.keys() == other.keys()
        for own, true in zip([one, *one["patches"]], [other, *other["patches"]], strict=True):
            labels, activations = (
                [[entry[part] for entry in p["labels"]] for p in (own, true)]
                for part in ("label", "activation")
            )
            assert labels[0] == labels[1]
            np.testing.assert_allclose(*activations, atol=1e-5)
    assert [row["track"] for row in rows(found / "tracks.csv")] == names


@pytest.mark.parametrize("track", [0, 7])
def test_killed_between_the_files_of_a_track(place, track):
    """A track with a part of its outputs is extracted again."""
    out = f"between-{track}"
    place.start(Before("numpy", "save", 3 * track + 2, Signal((KILL,))), out=out).wait(-KILL)
    assert place.check(out) == 3 * track + 2
    assert f"{TRACKS - track} tracks done" in place.start(out=out).wait()
    place.check(out, partly=False)


@dataclass
class WhileTheWriterFinishes:
    """A signal when all results are with the writer, and some are not written yet."""

    number: int

    def __call__(self) -> None:
        save, leave, calls, number = np.save, ResultWriter.__exit__, 0, self.number
        leaving = threading.Event()

        def slow_save(*args, **options) -> None:
            nonlocal calls
            calls += 1
            if calls == 3 * (TRACKS - 4):
                assert leaving.wait(60)
                os.kill(os.getpid(), number)
                time.sleep(0.3)
            save(*args, **options)

        def told_leave(*args) -> None:
            leaving.set()
            leave(*args)

        np.save, ResultWriter.__exit__ = slow_save, told_leave


@pytest.mark.parametrize(
    ("name", "number", "when", "least"),
    [
        ("engine", INT, Before(engines.OnnxEngine, "__init__", 0, Signal((INT,))), 0),
        ("put", INT, Before(ResultWriter, "put", 12, Signal((INT,))), 3 * 12),
        ("stop", TERM, Before(ResultWriter, "put", 12, Signal((TERM,))), 3 * 12),
        ("end", INT, WhileTheWriterFinishes(INT), 3 * (TRACKS - 4) - 1),
        ("report", INT, Before(ExtractionJob, "write_failures", 0, Signal((INT,))), 3 * TRACKS),
    ],
)
def test_stopped_with_a_word_on_how_to_go_on(place, name, number, when, least):
    """Also before and after the network computes; tracks are overwritten once only."""
    out = f"stopped-{name}"
    line = f"inference.overwrite=True trainer.max_epochs={len(name)}"
    said = place.start(when, out=out, extra=line).wait(128 + number)
    assert "Traceback" not in said
    typed = re.search(r"^ *python ex_maest.py (.*)$", said, re.MULTILINE)[1]
    assert "inference.overwrite" not in typed
    assert f"trainer.max_epochs={len(name)}" in typed
    assert least <= place.check(out) <= 3 * TRACKS
    before = complete(place.root / out)
    training_process.start(place.root, shlex.split(typed)).wait()
    assert before.items() <= stamps(place.root / out).items()
    place.check(out, partly=False)


def test_no_reading_process_outlives_the_run(place):
    """Also where it was killed."""
    killed = Before(ResultWriter, "put", 5, Signal((KILL,)))
    run = place.start(killed, out="orphans", extra="datamodule.num_workers=3")
    run.wait(-KILL)
    until = time.monotonic() + 10
    while processes_with(run.output) and time.monotonic() < until:
        time.sleep(0.05)
    assert not processes_with(run.output)


def processes_with(output: Path) -> list[int]:
    """Processes that have a file open: what a run starts has its output."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if path.readlink() == output:
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


def in_two_ranks(place: Place, code: int = 0, **options) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "ex_maest.py", *place.arguments(**options), "trainer.devices=2"],
        cwd=place.root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("tracks done") == 1
    return done.stdout


@pytest.mark.slow
def test_two_ranks_and_a_bad_file(place):
    """The second process's failure, too, is in the list, the summary and the exit code."""
    names = write_music(place.root / "with-bad", 5)
    (place.root / "with-bad/b/000.flac").write_bytes(b"no music")  # the fourth of six
    extra = f"inference.audio={place.root}/with-bad"
    out = in_two_ranks(place, 1, out="bad-ranks", extra=extra, command="predict")
    assert "5 tracks done, 1 failed" in out
    folder = place.root / "bad-ranks/2sec/predictions"
    assert [row["key"] for row in rows(folder / "failed.csv")] == ["b/000.flac"]
    assert [row["track"] for row in rows(folder / "tracks.csv")] == names


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
def test_two_ranks_are_one_run(place, shards):
    out = f"ranks-{shards}"
    for shard in range(1, shards + 1):
        extra = f"inference.shard={shard}/{shards}"
        if shard == 1:
            count = len(range(TRACKS)[::shards])
            assert f"{count} tracks done" in in_two_ranks(place, out=out, extra=extra)
        else:
            place.start(out=out, extra=extra).wait()
    place.check(out, partly=False)


@dataclass
class Peak:
    """Writes down the most memory that the process has had, in MB."""

    path: Path

    def __call__(self) -> None:
        original, path = Progress.close, self.path

        def close(self) -> None:
            original(self)
            status = Path("/proc/self/status").read_text()
            path.write_text(str(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024))

        Progress.close = close


def peak_of(place: Place, music: Path) -> float:
    peak, out = place.root / f"peak-{music.name}", f"memory-{music.name}"
    extra = f"inference.audio={music} datamodule.num_workers=0"
    place.start(Peak(peak), out=out, extra=extra, command="extract_logits").wait()
    assert list((place.root / out).rglob("*.npy"))
    return float(peak.read_text())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells the memory")
def test_memory_grows_neither_with_tracks_nor_with_their_length(place):
    for number in (10, 300):
        write_music(place.root / f"short-{number}", number, (0.5, 3))
    for minutes in (1, 20):
        with soundfile.SoundFile(place.root / f"long-{minutes}.flac", "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(tone(60, 0))
    for less, more in (("short-10", "short-300"), ("long-1.flac", "long-20.flac")):
        assert peak_of(place, place.root / more) - peak_of(place, place.root / less) < 60
