"""Extraction that is killed, stopped or shared out: what is there is whole, and comes once."""

import json
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
from folders import rows
from music import (
    RATE,
    arrays,
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
from maest.helpers.files.atomic import TEMPORARY
from maest.helpers.results.writer import ResultWriter
from maest.models import engines
from maest.models.extraction import Extraction

ROOT = Path(__file__).resolve().parents[2]
TRACKS = 40


@dataclass
class Place:
    """Music, a model, and what an unbroken run makes of them."""

    root: Path
    seconds: float = 0.0  # that extraction takes, without the start of the process

    def arguments(self, out: str = "out", extra: str = "") -> list[str]:
        line = (
            f"extract_embeddings with maest.checkpoint={self.root}/model "
            f"inference.audio={self.root}/music inference.out_dir={self.root}/{out} "
            "inference.transformer_block=[0,2] inference.outputs=[embeddings,logits] "
            f"inference.pool=none trainer.accelerator=cpu {extra}"
        )
        return line.split()

    def start(self, *prepare, out: str = "out", extra: str = ""):
        return training_process.start(self.root, self.arguments(out, extra), *prepare)


@dataclass
class Timed:
    """Writes down how long extraction takes."""

    path: Path

    def __call__(self) -> None:
        original, path = Extraction.results, self.path

        def results(self, tracks):
            path.write_text(str(time.monotonic()))
            return original(self, tracks)

        Extraction.results = results


@dataclass
class KilledAfter:
    """SIGKILL so many seconds after extraction has begun."""

    seconds: float

    def __call__(self) -> None:
        original, seconds = Extraction.results, self.seconds

        def results(self, tracks):
            kill = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
            return original(self, tracks)

        Extraction.results = results


@dataclass
class KilledAtFile:
    """SIGKILL before the n-th result is written, counted from 0."""

    n: int

    def __call__(self) -> None:
        save, calls = np.save, 0

        def killing_save(*args, **options) -> None:
            nonlocal calls
            if calls == self.n:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            save(*args, **options)

        np.save = killing_save


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("extraction"))
    write_music(place.root / "music", TRACKS)
    save_small_model(place.root / "model")
    begun = place.root / "begun"
    place.start(Timed(begun), out="expected").wait()
    place.seconds = time.monotonic() - float(begun.read_text())
    return place


def visible(folder: Path) -> list[Path]:
    """The files under their final names."""
    return [p for p in folder.rglob("*.*") if not p.name.startswith(".") and p.is_file()]


def watch(run, folder: Path) -> int:
    """Look at each file as soon as it is seen, until a run is over; how many were looked at."""
    seen: set[tuple[Path, int]] = set()
    while alive := run.process.is_alive():
        for path in visible(folder):
            look = path, path.stat().st_mtime_ns
            if look not in seen:
                assert_whole(path)
                seen.add(look)
        run.process.join(0.005)
    assert not alive
    for path in visible(folder):
        assert_whole(path)
    return len(seen)


def check_what_is_there(found: Path, expected: Path) -> int:
    """Every file under a final name is whole, and what the unbroken run has; how many there are."""
    other = arrays(expected)
    own = [path for path in found.rglob("*.npy") if not path.name.startswith(TEMPORARY)]
    for path in own:
        values = other[path.relative_to(found).as_posix()]
        scale = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(np.load(path), values, rtol=0, atol=1e-5 * scale)
    return len(own)


def kill_and_resume(place: Place, kills: int, seed: int) -> None:
    out = f"killed-{seed}"
    found, expected, rng = place.root / out, place.root / "expected", random.Random(seed)
    before: dict[str, int] = {}  # when the files of complete tracks were written
    killed = looks = 0
    while killed < kills:
        left = 1 - len(before) / (3 * TRACKS)
        run = place.start(KilledAfter(rng.uniform(0, left * place.seconds)), out=out)
        looks += watch(run, found)
        assert run.process.exitcode in (-signal.SIGKILL, 0), run.text
        check_what_is_there(found, expected)
        assert {path: stamp for path, stamp in stamps(found).items() if path in before} == before
        if run.process.exitcode == 0:  # it was over by then: once more from the start
            shutil.rmtree(found)
            before = {}
            continue
        killed += 1
        before = {p: stamp for p, stamp in stamps(found).items() if is_complete(Path(p), found)}
    assert looks
    assert "0 failed" in place.start(out=out).wait()
    for path in found.rglob(f"{TEMPORARY}*"):  # of the kills; the next day's run removes them
        path.unlink()
    assert_same_results(found, expected)
    times = {p.relative_to(expected): p.read_text() for p in expected.rglob("*.times.csv")}
    assert len(times) == 3 * TRACKS
    assert times == {p.relative_to(found): p.read_text() for p in found.rglob("*.times.csv")}


def is_complete(path: Path, folder: Path) -> bool:
    """Whether all outputs of the track that a file is of are there."""
    if path.name.startswith(TEMPORARY):
        return False
    key = path.relative_to(folder / "2sec")
    key = Path(*key.parts[1:]).as_posix().rsplit(".", 2)[0]
    files = [folder / "2sec" / level / f"{key}.embeddings.npy" for level in "02"]
    return all(p.exists() for p in [*files, folder / "2sec" / "logits" / f"{key}.logits.npy"])


def test_killed_at_random_instants(place):
    kill_and_resume(place, 5, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_killed_at_many_random_instants(place, seed):
    kill_and_resume(place, 5, seed)


@pytest.mark.slow
def test_predict_killed_at_random_instants(place):
    """JSON, CSV and PNG are whole at any time, and in the end what an unbroken run makes."""
    music = place.root / "few"
    write_music(music, 8)

    def start(out: str, *prepare):
        line = (
            f"predict with maest.checkpoint={place.root}/model inference.audio={music} "
            f"inference.out_dir={place.root}/{out} inference.plot=True inference.top=2 "
            "trainer.accelerator=cpu"
        )
        return training_process.start(place.root, line.split(), *prepare)

    begun, rng = place.root / "predict-begun", random.Random(1)
    start("unbroken", Timed(begun)).wait()
    seconds = time.monotonic() - float(begun.read_text())
    found, expected = (place.root / out / "2sec/predictions" for out in ("broken", "unbroken"))
    killed = looks = 0
    while killed < 3:
        run = start("broken", KilledAfter(rng.uniform(0, seconds * (3 - killed) / 3)))
        looks += watch(run, found)
        assert run.process.exitcode in (-signal.SIGKILL, 0), run.text
        if run.process.exitcode == 0:
            shutil.rmtree(found)
            continue
        killed += 1
    assert looks
    start("broken").wait()
    for path in found.rglob(f"{TEMPORARY}*"):
        path.unlink()
    names = sorted(path.relative_to(expected) for path in visible(expected))
    assert len(names) == 3 * 8 + 2  # with tracks.csv and the manifest
    assert sorted(path.relative_to(found) for path in visible(found)) == names
    for name in (name for name in names if name.suffix == ".json" and name.parent != Path()):
        one, other = (
            json.loads((folder / name).read_text("utf-8")) for folder in (found, expected)
        )
        assert one.keys() == other.keys()
        parts = zip([one, *one["patches"]], [other, *other["patches"]], strict=True)
        for own, true in parts:
            labels = [entry["label"] for entry in true["labels"]]
            assert [entry["label"] for entry in own["labels"]] == labels
            figures = ([entry["activation"] for entry in p["labels"]] for p in (own, true))
            np.testing.assert_allclose(*figures, atol=1e-5)
    tables = (rows(folder / "tracks.csv") for folder in (found, expected))
    assert [[row["track"] for row in table] for table in tables] == [
        sorted(path.relative_to(music).as_posix() for path in music.rglob("*.flac"))
    ] * 2


@pytest.mark.parametrize("track", [0, 7])
def test_killed_between_the_files_of_a_track(place, track):
    """Some of its outputs are there: it is made again."""
    out = f"between-{track}"
    place.start(KilledAtFile(3 * track + 2), out=out).wait(-signal.SIGKILL)
    assert check_what_is_there(place.root / out, place.root / "expected") == 3 * track + 2
    said = place.start(out=out).wait()
    assert f"{TRACKS - track} tracks done" in said
    assert f"{track} there already" in said
    for path in (place.root / out).rglob(f"{TEMPORARY}*"):
        path.unlink()
    assert_same_results(place.root / out, place.root / "expected")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_with_a_word_on_how_to_go_on(place, number):
    out = f"stopped-{number}"
    run = place.start(Before(ResultWriter, "put", 12, Signal((number,))), out=out)
    said = run.wait(128 + number)
    assert f"{signal.Signals(number).name}: stopped." in said
    assert "The tracks that were done are kept. To go on:" in said
    assert "python ex_maest.py extract_embeddings with maest.checkpoint=" in said
    assert "Traceback" not in said
    there = check_what_is_there(place.root / out, place.root / "expected")
    assert 3 * 12 <= there < 3 * TRACKS
    assert not list((place.root / out).rglob(f"{TEMPORARY}*"))
    said = place.start(out=out).wait()
    assert f"{there // 3} there already" in said
    assert_same_results(place.root / out, place.root / "expected")


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
    ("name", "when"),
    [
        ("engine", Before(engines.OnnxEngine, "__init__", 0, Signal((signal.SIGINT,)))),
        ("writer", Before(ResultWriter, "__init__", 0, Signal((signal.SIGINT,)))),
        ("start", Before(Extraction, "results", 0, Signal((signal.SIGINT,)))),
        ("end", WhileTheWriterFinishes(signal.SIGINT)),
        ("report", Before(ExtractionJob, "write_failures", 0, Signal((signal.SIGINT,)))),
    ],
)
def test_stopped_before_and_after_the_work(place, name, when):
    """Also where the network does not compute; and what was to be overwritten is so once."""
    out = f"stopped-{name}"
    line = f"inference.overwrite=True trainer.max_epochs={len(name)}"
    run = place.start(when, out=out, extra=line)
    said = run.wait(128 + signal.SIGINT)
    assert "SIGINT: stopped." in said
    assert "To go on:" in said
    assert "Traceback" not in said
    typed = re.search(r"^ *python ex_maest.py (.*)$", said, re.MULTILINE)[1]
    assert "inference.overwrite" not in typed
    assert f"trainer.max_epochs={len(name)}" in typed
    there = check_what_is_there(place.root / out, place.root / "expected")
    for path in (place.root / out).rglob(f"{TEMPORARY}*"):  # of a file that was being written
        path.unlink()
    before = stamps(place.root / out)
    complete = {p for p in before if is_complete(Path(p), place.root / out)}
    training_process.start(place.root, shlex.split(typed)).wait()
    assert len(before) == there
    after = stamps(place.root / out)
    assert {p: after[p] for p in complete} == {p: before[p] for p in complete}
    assert_same_results(place.root / out, place.root / "expected")


def test_no_reading_process_outlives_the_run(place):
    """Even where it was killed."""
    killed = Before(ResultWriter, "put", 5, Signal((signal.SIGKILL,)))
    run = place.start(killed, out="orphans", extra="datamodule.num_workers=3")
    run.wait(-signal.SIGKILL)
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


def in_two_ranks(place: Place, arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "ex_maest.py", *arguments, "trainer.devices=2"],
        cwd=place.root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_two_ranks_and_a_bad_file(place):
    """The second process's failure, too, is in the list, the summary and the exit code."""
    music = place.root / "with-bad"
    names = write_music(music, 5)
    (music / "b/000.flac").write_bytes(b"no music")  # after the three of "a": the fourth of six
    line = (
        f"predict with maest.checkpoint={place.root}/model inference.audio={music} "
        f"inference.out_dir={place.root}/bad-ranks trainer.accelerator=cpu"
    )
    done = in_two_ranks(place, line.split())
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("5 tracks done, 1 failed") == 1
    assert done.stdout.count("tracks done") == 1
    folder = place.root / "bad-ranks/2sec/predictions"
    assert [row["key"] for row in rows(folder / "failed.csv")] == ["b/000.flac"]
    assert [row["track"] for row in rows(folder / "tracks.csv")] == names


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "inference.shard=2/3"])
def test_two_ranks_are_one_run(place, extra):
    """Started by Lightning; each writes its own tracks."""
    out = "ranks" + extra[-3:].replace("/", "of")
    done = in_two_ranks(place, place.arguments(out, extra))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    count = TRACKS if not extra else len(range(TRACKS)[1::3])
    assert done.stdout.count(f"{count} tracks done") == 1
    if extra:
        for shard in ("1/3", "3/3"):
            place.start(out=out, extra=f"inference.shard={shard}").wait()
    assert_same_results(place.root / out, place.root / "expected")


# ---------------------------------------------------------------- memory, GPU


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
    out = place.root / f"memory-{music.name}"
    line = (
        f"extract_logits with maest.checkpoint={place.root}/model inference.audio={music} "
        f"inference.out_dir={out} datamodule.num_workers=0 trainer.accelerator=cpu"
    )
    peak = place.root / f"peak-{music.name}"
    training_process.start(place.root, line.split(), Peak(peak)).wait()
    assert list(out.rglob("*.npy"))
    return float(peak.read_text())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells the memory")
def test_memory_does_not_grow_with_the_number_of_tracks(place):
    for number in (10, 300):
        write_music(place.root / f"short-{number}", number, (0.5, 3))
    few, many = (peak_of(place, place.root / f"short-{number}") for number in (10, 300))
    assert many - few < 60


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells the memory")
def test_memory_does_not_grow_with_the_length_of_a_track(place):
    peaks, minute = [], tone(60, 0)
    for minutes in (1, 20):
        path = place.root / f"{minutes}-minutes.flac"
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        peaks.append(peak_of(place, path))
    assert peaks[1] - peaks[0] < 60


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no GPU")
def test_a_gpu_in_16_bits_gives_what_a_cpu_gives(place):
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    code = "import torch; print(torch.cuda.is_available())"
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    if b"True" not in asked.stdout:
        pytest.skip("there is no GPU that torch can use")
    for out, extra in (
        ("on-cpu", "trainer.accelerator=cpu"),
        ("on-gpu", "trainer.accelerator=gpu trainer.precision=16-mixed"),
    ):
        line = (
            f"extract_logits with maest.checkpoint={place.root}/model {extra} "
            f"inference.audio={place.root}/music inference.out_dir={place.root}/{out}"
        )
        done = subprocess.run(
            [sys.executable, ROOT / "ex_maest.py", *line.split()],
            cwd=place.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, other = (arrays(place.root / out / "2sec/logits") for out in ("on-cpu", "on-gpu"))
    assert len(one) == TRACKS
    assert list(one) == list(other)
    for name, values in one.items():
        product = float(values @ other[name])
        assert product > 0.999 * np.linalg.norm(values) * np.linalg.norm(other[name]), name
