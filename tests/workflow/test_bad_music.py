"""All that a folder of music may hold beside music: the music in it is done all the same."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import good, run
from folders import rows
from music import RATE, noise, write_audio, write_truncated
from sounds import write

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bad_music(music, tmp_path) -> tuple[Path, set[str], set[str]]:
    """The folder, and which of its files can be done and which cannot."""
    folder = tmp_path / "bad"
    shutil.copytree(music, folder)
    done = {str(path.relative_to(folder)) for path in folder.rglob("*.flac")}
    nan = noise(3, 7)
    nan[1000] = np.nan
    failed = {
        "text.mp3": lambda path: path.write_bytes(b"no music at all" * 100),
        "empty.wav": Path.touch,
        "nan.wav": lambda path: write(path, nan, RATE, subtype="FLOAT"),
        "loud.wav": lambda path: write(path, noise(3) * 30_000, RATE, subtype="FLOAT"),
        "no samples.wav": lambda path: write(path, np.zeros(0), RATE),
        "link.wav": lambda path: path.symlink_to("nowhere.wav"),
        "self.wav": lambda path: path.symlink_to("self.wav"),
        "ring 1.wav": lambda path: path.symlink_to("ring 2.wav"),
        "ring 2.wav": lambda path: path.symlink_to("ring 1.wav"),
        "x" * 246 + ".wav": write_audio,  # a name that nothing can be added to
        **{f"truncated.{s}": write_truncated for s in ("wav", "mp3", "flac", "ogg", "m4a")},
    }
    if os.geteuid():  # root may read everything
        failed["locked.wav"] = lambda path: write_audio(path).chmod(0)
    for name, make in failed.items():
        make(folder / name)
    good_sounds = {
        "silent.wav": (np.zeros(3 * RATE), RATE),
        "one sample.wav": (np.full(1, 0.5), RATE),
        "eight.wav": (noise(3, channels=8), RATE),
        "fast.wav": (noise(3, rate=192_000), 192_000),
    }
    for name, (sound, rate) in good_sounds.items():
        write(folder / name, sound, rate)
    names = ["two\nlines.wav", "same.wav", "same.flac", "UPPER.WAV", "folder.mp3/inside.wav"]
    names.append(os.fsdecode(b"b\xffytes.wav"))
    for seed, name in enumerate(names):
        write_audio(tmp_path / "a.wav", 3, seed)
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a.wav", folder / name)
    (folder / "loop").symlink_to(folder)
    (folder / "b/loop").symlink_to("..")
    (folder / "notes.txt").write_text("no audio")
    (folder / "._same.wav").write_bytes(b"")
    return folder, done | good_sounds.keys() | set(names), set(failed)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_listed_and_all_others_predicted(bad_music, model, tmp_path, workers):
    folder, done, failed = bad_music
    line = (
        f"predict with maest.checkpoint={model} inference.audio={folder} inference.out_dir=out "
        "inference.transformer_block=1 inference.outputs=[embeddings,predictions] "
        f"datamodule.num_workers={workers} inference.plot=True"
    )
    levels = {"1": ".embeddings.npy", "predictions": ".predictions.json"}
    for counts in (f"{len(done)} tracks done", f"{len(done)} there already"):  # and tried again
        ended = run("ex_maest.py", line, tmp_path)
        assert ended.code == 1, ended.out + ended.err
        assert "Traceback" not in ended.err
        assert counts in ended.out
        assert f"{len(failed)} failed" in ended.out
        for level, end in levels.items():
            results = tmp_path / "out/2sec" / level
            paths = results.rglob(f"*{end}")
            assert {str(p.relative_to(results)).removesuffix(end) for p in paths} == done
            reasons = {row["key"]: row["reason"] for row in rows(results / "failed.csv")}
            assert reasons.keys() == failed
            assert all(reasons.values())
    for name in failed:
        (folder / name).unlink()
    good("ex_maest.py", line, tmp_path)
    assert not list((tmp_path / "out").rglob("failed.csv"))
