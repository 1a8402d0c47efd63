"""From a folder of audio to log-mel files: names, resume, failures, shards, kills, clusters."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_store import KEYS, NAMES, counts, listed, matches, mels, run
from dask_cluster import dask_cluster
from folders import full_disk
from made_up import refuses
from music import noise, write_audio

from maest.datasets import preprocess as module
from maest.datasets.audio_folder import find_audio, mel_key
from maest.datasets.melspectrograms import read_mel
from maest.datasets.preprocess import main
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.audio.reading import read_audio

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "preprocess.py"


def test_every_track_gets_the_front_ends_mel_under_its_name(audio, store):
    assert counts(run(audio, store)) == (7, 0, [])
    assert sorted(mels(store)) == KEYS
    for name, key in zip(NAMES, KEYS, strict=True):
        waveform = torch.from_numpy(read_audio(audio / name))
        expected = MelSpectrogram()(waveform).T.numpy()
        stored = np.asarray(read_mel(store / key), np.float32)
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-3)
    assert not list(store.rglob(".tmp-*"))
    run(audio, store.with_name("two"), num_workers=2)
    assert mels(store.with_name("two")) == mels(store)


def test_the_script_runs_anywhere_and_on_names_that_are_not_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_audio(tmp_path / "audio" / "a.wav", 0.2).rename(tmp_path / "audio" / name)
    (tmp_path / "audio" / os.fsdecode(b"bad\xff.mp3")).touch()
    done = subprocess.run(
        [sys.executable, SCRIPT, "audio", "mels"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 done (")
    assert (tmp_path / "mels" / os.fsdecode(b"caf\xe9.mmap")).stat().st_size == 14 * 192
    assert list(listed(tmp_path / "mels" / "failed.csv")) == [os.fsdecode(b"bad\xff.mp3")]


def test_a_list_of_files(audio, store):
    report = run(audio, store, files=["a/1.wav", Path("6.mp3"), "not/there.mp3"])
    assert sorted(mels(store)) == ["6.mmap", "a/1.mmap"]
    assert list(report.failed) == ["not/there.mp3"]
    for name in ("../other/1.wav", "a/../../other/1.wav", f"{audio}/5.wav"):
        with refuses("invalid"):
            run(audio, store, files=[name])


def test_all_seconds_are_kept_where_asked_for(tmp_path):
    sound = np.zeros(310 * 8_000, np.float32)
    sound[-80_000:] = noise(5)[:, 0]
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", sound, 8_000)
    for typed, frames in (("all", 19_376), ("2", 126)):
        assert main([str(tmp_path / "audio"), str(tmp_path / typed), "--seconds", typed]) == 0
        mel = read_mel(tmp_path / typed / "a.mmap")
        assert (len(mel), np.asarray(mel).any()) == (frames, typed == "all")


def test_the_store_may_be_inside_the_audio(audio):
    run(audio, audio / "mels")
    write_audio(audio / "mels" / "listen.wav")  # not a track
    assert run(audio, audio / "mels").skipped == 7
    assert counts(run(audio, audio)) == (7, 0, ["mels/listen.wav"])  # in the other store


def test_whole_files_are_skipped_others_made_again(audio, store, made):
    (store / KEYS[0]).unlink()
    (store / KEYS[1]).write_bytes(made[KEYS[1]][:-1])
    (store / KEYS[2]).write_bytes(b"")
    kept = (store / KEYS[3]).stat().st_mtime_ns
    assert counts(run(audio, store)) == (3, 4, [])
    assert mels(store) == made
    assert (store / KEYS[3]).stat().st_mtime_ns == kept
    (store / KEYS[0]).write_bytes(bytes(192))  # whole frames, but other ones
    assert run(audio, store).done == 0
    assert run(audio, store, overwrite=True).done == 7
    assert mels(store) == made


def test_a_complete_store_on_a_read_only_disk(audio, store, made, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert run(audio, store).skipped == 7


@pytest.mark.parametrize("seconds", [1.4, 0.5])
def test_replaced_audio_is_processed_again(audio, store, made, seconds):
    """Also if the new file is older, or has the old one's length."""
    os.utime(write_audio(audio / "a" / "1.wav", seconds, seed=20), (1, 1))
    (audio / "5.wav").write_bytes(b"no audio")
    with refuses("mismatch", "preprocess.json"):  # other settings do not mix
        run(audio, store, seconds=None)
    assert mels(store) == made
    assert counts(run(audio, store)) == (1, 5, ["5.wav"])
    assert matches(store / "a/1.mmap", audio / "a/1.wav")
    assert mels(store)["5.mmap"] == made["5.mmap"]
    assert run(audio, store).skipped == 6


@pytest.mark.parametrize("content", ['{"seconds": null}', "[]", None])
def test_settings_of_an_empty_store_are_replaced(audio, store, content):
    """Left by a run that failed early, or damaged."""
    store.mkdir()
    if content is None:
        run(audio, store, files=["not/there.wav"], seconds=7)
    else:
        (store / "preprocess.json").write_text(content)
    with refuses("corrupt" if content == "[]" else "mismatch", "preprocess.json"):
        run(audio, store, shard="1/2")  # another job may be at work with it
    assert run(audio, store).done == 7


def test_files_of_other_programs_are_refused(audio, store):
    (store / "a").mkdir(parents=True)
    (store / "a" / "1.mmap").write_bytes(bytes(192))
    with refuses("exists", "mels"):
        run(audio, store)
    (store / "preprocess.json").write_text("[]")
    with refuses("corrupt", "preprocess.json"):
        run(audio, store)


def test_silent_and_short_tracks_are_listed(audio, store, capsys):
    soundfile.write(audio / "0.wav", np.zeros(20_000), 16_000)
    write_audio(audio / "short.wav", 0.25)
    sound = np.random.default_rng(0).standard_normal((20_000, 1)) / 10
    soundfile.write(audio / "phase.wav", sound * [1, -1], 16_000)
    for _ in range(2):  # also where they are skipped
        assert main([str(audio), str(store), "--num-workers", "1"]) == 0
        out, err = capsys.readouterr()
        assert str(store / "warnings.csv") in out
        assert "warning: 0.wav: " in err
        assert sorted(listed(store / "warnings.csv")) == ["0.wav", "phase.wav", "short.wav"]


def test_unreadable_files_are_listed_and_the_rest_is_made(audio, store, capsys):
    long = "n" * 252 + ".au"  # the log-mel file's name has 257 bytes: too many
    soundfile.write(audio / long, np.zeros(16_000), 16_000)
    (audio / "empty.mp3").touch()
    (audio / "text.wav").write_text("not audio" * 99)
    (audio / "gone.flac").symlink_to("nowhere.flac")
    soundfile.write(audio / "loud.wav", np.full(999, 1e38), 16_000, subtype="FLOAT")
    line = [str(audio), str(store), "--num-workers", "1", "--no-progress"]
    assert main(line) == 1
    out, err = capsys.readouterr()
    assert out.startswith("7 done (")
    assert str(store / "failed.csv") in out
    assert "failed: empty.mp3: " in err
    assert sorted(mels(store)) == KEYS
    bad = sorted(listed(store / "failed.csv"))
    assert bad == ["empty.mp3", "gone.flac", "loud.wav", long, "text.wav"]
    for name in bad:
        (audio / name).unlink()
    assert main(line) == 0
    assert not (store / "failed.csv").exists()


def test_a_full_disk_ends_the_run_and_loses_nothing(audio, store):
    (audio / "0.wav").touch()
    with full_disk(14 * 1024), refuses("access", "6.mmap"):
        run(audio, store)
    assert sorted(mels(store)) == KEYS[:1]
    assert counts(run(audio, store)) == (6, 1, ["0.wav"])
    (store / "failed.csv").unlink()
    with full_disk(10), refuses("access", "failed.csv"):
        run(audio, store)


def test_an_interrupt_keeps_the_list_of_failures(audio, store, monkeypatch):
    for name in ("0.wav", "9.wav", "b.c/5.wav"):
        (audio / name).touch()
    run(audio, store, overwrite=True)
    before = listed(store / "failed.csv")
    assert sorted(before) == ["0.wav", "9.wav", "b.c/5.wav"]
    stream = module.stream_audio

    def interrupt(path, *more):
        if path.name == stop:
            raise KeyboardInterrupt
        return stream(path, *more)

    monkeypatch.setattr(module, "stream_audio", interrupt)
    stop = ""
    for last, replaced in (("0.wav", None), ("5.wav", "9.wav")):
        stop = last
        if replaced:
            write_audio(audio / replaced)
        (store / "b.c/4.mmap").unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            run(audio, store)
        before.pop(replaced, None)
        assert listed(store / "failed.csv") == before


@pytest.mark.parametrize("killed", [True, False])
def test_a_file_that_crashes_its_decoder(audio, store, monkeypatch, killed):
    stream = module.stream_audio

    def crash(path, *more):
        if path.name == "1.wav":
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("decoder")
        return stream(path, *more)

    monkeypatch.setattr(module, "stream_audio", crash)  # in the workers, too, which are forks
    for _ in range(2):  # also where no other file is left
        assert list(run(audio, store, num_workers=2).failed) == ["a/1.wav"]
        assert sorted(mels(store)) == [key for key in KEYS if key != "a/1.mmap"]


@pytest.mark.parametrize(
    ("arguments", "kind", "place", "setting"),
    [
        (["nowhere", "mels"], "missing", "nowhere", None),
        (["5.wav", "mels"], "missing", "5.wav", None),
        (["none", "mels"], "empty", "none", None),
        (["a", "5.wav"], "access", "5.wav", None),
        (["a", "5.wav", "--subfolder", "x"], "access", "5.wav/x", None),
        *(
            (["a", "mels", option, value], "invalid", None, option)
            for option, values in {
                "--seconds": ("0", "nan", "inf"),
                "--num-workers": ("0", "-3"),
                "--shard": ("5/4", "0/4", "3"),
                "--subfolder": ("", "..", "a/b"),
            }.items()
            for value in values
        ),
        (["a", "mels", "--backend", "dask"], "missing", None, "--scheduler"),
    ],
)
def test_refused_arguments(audio, monkeypatch, capsys, arguments, kind, place, setting):
    monkeypatch.chdir(audio)
    (audio / "none").mkdir()
    monkeypatch.setattr(module.commands, "run", lambda command, _program: command())
    with refuses(kind, place, setting):
        main(arguments)
    assert not (audio / "mels").exists()


def test_shards_are_disjoint_and_complete(audio, store):
    (audio / "bad.wav").touch()
    reports = [run(audio, store, shard=f"{k}/3") for k in (1, 2, 3)]
    assert sum(report.done for report in reports) == 7
    assert sorted(report.done + len(report.failed) for report in reports) == [2, 3, 3]
    assert sorted(mels(store)) == KEYS
    lists = [path.name for path in store.glob("failed*.csv")]
    assert len(lists) == 1
    assert lists[0].startswith("failed-")
    # A run over all of them replaces the shards' lists.
    run(audio, store)
    assert [path.name for path in store.glob("failed*.csv")] == ["failed.csv"]


def test_two_runs_at_once(audio, store):
    for i in range(20):
        write_audio(audio / f"more/{i}.wav", 0.3, seed=i)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, audio, store) for _ in range(2)]
        assert [run.result().failed for run in runs] == [{}, {}]
    assert run(audio, store).skipped == 27
    names = find_audio(audio).files
    assert all(matches(store / mel_key(name), audio / name) for name in names)
    lines = (store / "preprocess-index.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in lines if line} == set(names)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGKILL, -9),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_whole_files_and_can_be_resumed(tmp_path, store, sent, code):
    first = write_audio(tmp_path / "audio" / "000.wav", 40, rate=48_000)
    for i in range(1, 100):
        first.with_name(f"{i:03d}.wav").hardlink_to(first)
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "audio", "mels", "--num-workers", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(store.glob("[!.]*.mmap"))) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(sent)
    out, err = process.communicate()  # workers have ended, too: they hold the pipes
    assert process.returncode == code, err
    assert ("run the same again" in err) == (code > 0)
    assert "Traceback" not in err
    assert not out
    found = mels(store)
    assert 5 <= len(found) < 100
    assert {len(content) for content in found.values()} == {2501 * 192}
    assert code < 0 or not list(store.glob(".tmp-*"))
    report = run(tmp_path / "audio", store)
    assert (report.done, report.skipped) == (100 - len(found), len(found))
    assert len(set(mels(store).values())) == 1


def test_a_dask_cluster_makes_the_same_files(audio, made, tmp_path):
    """Scheduler and worker start outside of this repository."""
    (audio / "bad.mp3").touch()
    (tmp_path / "elsewhere").mkdir()
    with dask_cluster(tmp_path / "elsewhere") as address:
        cluster = {"num_workers": None, "backend": "dask", "scheduler": address}
        assert counts(run(audio, tmp_path / "there", **cluster)) == (7, 0, ["bad.mp3"])
    assert mels(tmp_path / "there") == made
