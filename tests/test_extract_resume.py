"""Extraction that is killed, stopped or shared out: what is there is whole, and comes once."""

import os
import random
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
import training_process
from music import arrays, assert_same_results, save_small_model, write_music
from training_process import Before, Signal

from helpers.collect import Collect
from helpers.files import TEMPORARY
from helpers.writer import ResultWriter

ROOT = Path(__file__).resolve().parent.parent
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
        original, path = Collect.on_predict_start, self.path

        def on_predict_start(self, *args) -> None:
            original(self, *args)
            path.write_text(str(time.monotonic()))

        Collect.on_predict_start = on_predict_start


@dataclass
class KilledAfter:
    """SIGKILL so many seconds after extraction has begun."""

    seconds: float

    def __call__(self) -> None:
        original, seconds = Collect.on_predict_start, self.seconds

        def on_predict_start(self, *args) -> None:
            original(self, *args)
            kill = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()

        Collect.on_predict_start = on_predict_start


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


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.npy"))}


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
    killed = 0
    while killed < kills:
        left = 1 - len(before) / (3 * TRACKS)
        run = place.start(KilledAfter(rng.uniform(0, left * place.seconds)), out=out)
        run.process.join(120)
        assert run.process.exitcode in (-signal.SIGKILL, 0), run.text
        check_what_is_there(found, expected)
        assert {path: stamp for path, stamp in stamps(found).items() if path in before} == before
        if run.process.exitcode == 0:  # it was over by then: once more from the start
            shutil.rmtree(found)
            before = {}
            continue
        killed += 1
        before = {p: stamp for p, stamp in stamps(found).items() if is_complete(Path(p), found)}
    assert "0 failed" in place.start(out=out).wait()
    for path in found.rglob(f"{TEMPORARY}*"):  # of the kills; the next day's run removes them
        path.unlink()
    assert_same_results(found, expected)
    times = {p.relative_to(expected): p.read_text() for p in expected.rglob("*.times.csv")}
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
    assert "tracks were done, and are kept. To go on:" in said
    assert "python ex_maest.py extract_embeddings with maest.checkpoint=" in said
    assert "Traceback" not in said
    there = check_what_is_there(place.root / out, place.root / "expected")
    assert 3 * 12 <= there < 3 * TRACKS
    assert not list((place.root / out).rglob(f"{TEMPORARY}*"))
    said = place.start(out=out).wait()
    assert f"{there // 3} there already" in said
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


@pytest.mark.parametrize(
    "extra", ["", pytest.param("inference.shard=2/3", marks=pytest.mark.slow)]
)
def test_two_ranks_are_one_run(place, extra):
    """Started by Lightning; each writes its own tracks."""
    out = "ranks" + extra[-3:].replace("/", "of")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "ex_maest.py"),
            *place.arguments(out, f"trainer.devices=2 {extra}"),
        ],
        cwd=place.root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    count = TRACKS if not extra else len(range(TRACKS)[1::3])
    assert done.stdout.count(f"{count} tracks done") == 1
    if extra:
        for shard in ("1/3", "3/3"):
            place.start(out=out, extra=f"inference.shard={shard}").wait()
    assert_same_results(place.root / out, place.root / "expected")
