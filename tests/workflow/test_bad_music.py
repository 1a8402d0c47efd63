"""All that a folder of music may hold beside music: the music in it is done all the same."""

import os
import shutil

import numpy as np
import pytest
import soundfile
from command_line import good, run
from folders import rows
from music import RATE, tone, write_truncated

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bad_music(music, tmp_path):
    """All that a folder of music may hold beside music; and which of it can be done."""
    folder = tmp_path / "bad music"
    shutil.copytree(music, folder)
    done = {str(path.relative_to(folder)) for path in folder.rglob("*.flac")}
    failed = {"text.mp3", "empty.wav", "nan.wav", "truncated.wav", "loud.wav", "link.wav"}
    (folder / "text.mp3").write_bytes(b"no music at all" * 100)
    (folder / "empty.wav").touch()
    noise = tone(3, 7)[:, 0]
    noise[1000] = np.nan
    soundfile.write(folder / "nan.wav", noise, RATE, subtype="FLOAT")
    soundfile.write(folder / "truncated.wav", tone(5, 8), RATE)
    os.truncate(folder / "truncated.wav", 60_000)
    soundfile.write(folder / "loud.wav", tone(3, 9) * 30_000, RATE, subtype="FLOAT")
    (folder / "link.wav").symlink_to(folder / "nowhere.wav")
    (folder / "self.wav").symlink_to("self.wav")
    (folder / "ring 1.wav").symlink_to("ring 2.wav")
    (folder / "ring 2.wav").symlink_to("ring 1.wav")
    failed |= {"self.wav", "ring 1.wav", "ring 2.wav"}
    for suffix in ("mp3", "flac", "ogg", "m4a"):
        write_truncated(folder / f"truncated.{suffix}")
        failed.add(f"truncated.{suffix}")
    soundfile.write(folder / "no samples.wav", np.zeros(0), RATE)
    long = "x" * 246 + ".wav"  # a name that nothing can be added to
    soundfile.write(folder / long, tone(3, 17), RATE)
    failed |= {"no samples.wav", long}
    if os.geteuid():  # root may read everything
        soundfile.write(folder / "locked.wav", tone(3, 18), RATE)
        (folder / "locked.wav").chmod(0)
        failed.add("locked.wav")
    # What can be done
    soundfile.write(folder / "silent.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(folder / "one sample.wav", np.full(1, 0.5), RATE)
    soundfile.write(folder / "eight.wav", tone(3, 10, channels=8), RATE)
    soundfile.write(folder / "fast.wav", tone(3, 11, rate=192_000), 192_000)
    soundfile.write(folder / "two\nlines.wav", tone(3, 12), RATE)
    soundfile.write(folder / "same.wav", tone(3, 13), RATE)
    soundfile.write(folder / "same.flac", tone(3, 14), RATE)
    soundfile.write(folder / "UPPER.WAV", tone(3, 15), RATE, format="WAV")
    raw = os.fsencode(folder) + b"/b\xffytes.wav"
    shutil.copy(folder / "same.wav", raw)
    (folder / "folder.mp3").mkdir()
    soundfile.write(folder / "folder.mp3/inside.wav", tone(3, 16), RATE)
    (folder / "loop").symlink_to(folder)
    (folder / "b/loop").symlink_to("..")
    (folder / "notes.txt").write_text("no audio")
    (folder / "._same.wav").write_bytes(b"")
    done |= {"silent.wav", "one sample.wav", "eight.wav", "fast.wav", "two\nlines.wav"}
    done |= {"same.wav", "same.flac", "UPPER.WAV", os.fsdecode(b"b\xffytes.wav")}
    done |= {"folder.mp3/inside.wav"}
    return folder, done, failed


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_cost_themselves_and_nothing_else(bad_music, model, tmp_path, workers):
    folder, done, failed = bad_music
    (tmp_path / "bad").symlink_to(folder)  # without a space, as lines are split here
    line = (
        f"predict with maest.checkpoint={model} inference.audio={tmp_path}/bad "
        "inference.out_dir=out inference.transformer_block=1 "
        f"inference.outputs=[embeddings,predictions] datamodule.num_workers={workers} "
        "inference.plot=True"
    )
    ended = run("ex_maest.py", line, tmp_path)
    assert ended.code == 1, ended.out + ended.err
    assert "Traceback" not in ended.err
    assert f"{len(done)} tracks done" in ended.out
    assert f"{len(failed)} failed" in ended.out
    for level, end in (("1", ".embeddings.npy"), ("predictions", ".predictions.json")):
        results = tmp_path / "out/2sec" / level
        found = {str(p.relative_to(results)).removesuffix(end) for p in results.rglob(f"*{end}")}
        assert found == done
        reasons = {row["key"]: row["reason"] for row in rows(results / "failed.csv")}
        assert reasons.keys() == failed
        assert all(reasons.values())
        assert "denied" in reasons.get("locked.wav", "denied")
    again = run("ex_maest.py", line, tmp_path)
    assert again.code == 1  # they are tried again
    assert f"{len(failed)} failed, {len(done)} there already" in again.out


def test_without_a_failure_the_list_goes(line, music, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(music, folder)
    (folder / "bad.wav").write_bytes(b"no")
    line = line.replace(str(music), str(folder))
    assert run("ex_maest.py", f"extract_logits {line}", tmp_path).code == 1
    failures = tmp_path / "2sec/logits/failed.csv"
    assert failures.is_file()
    soundfile.write(folder / "bad.wav", tone(3, 1), RATE)
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert not failures.exists()
