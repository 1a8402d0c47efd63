"""From a folder of audio to log-mel files: names, resume, failures, shards, kills, clusters."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from dask_cluster import dask_cluster

from maest.datasets import collection as module_of_collection
from maest.datasets import preprocess as module
from maest.datasets.collection import find_audio, mel_key
from maest.datasets.mel_store import store_keys
from maest.datasets.melspectrograms import read_mel
from maest.datasets.preprocess import main, parse_seconds, parse_shard, preprocess
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.audio.reading import read_audio
from maest.helpers.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "datasets" / "preprocess.py")
QUIET = {"progress": False, "num_workers": 1}


def write_audio(path: Path, seconds: float = 1.0, seed: int = 0, rate: int = 22_050) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sound = 0.1 * rng.standard_normal((round(seconds * rate), 2))
    soundfile.write(path, sound, rate)
    return path


@pytest.fixture
def collection(tmp_path) -> Path:
    """Seven tracks of three formats in three folders."""
    audio = tmp_path / "audio"
    names = [
        "a/1.wav",
        "a/2.FLAC",
        "a/deep/er/3.mp3",
        "b.c/4.wav",
        "b.c/no.4.ogg",
        "5.wav",
        "6.mp3",
    ]
    for seed, name in enumerate(names):
        write_audio(audio / name, 1 + 0.2 * seed, seed)
    return audio


KEYS = [
    "5.mmap",
    "6.mmap",
    "a/1.mmap",
    "a/2.mmap",
    "a/deep/er/3.mmap",
    "b.c/4.mmap",
    "b.c/no.4.mmap",
]


def mels(folder: Path) -> dict[str, bytes]:
    """The log-mel files of a folder, leftovers of killed runs not among them."""
    paths = [path for path in folder.rglob("*.mmap") if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def failures(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def refused(*arguments, **options) -> InputError:
    with pytest.raises(InputError) as error:
        preprocess(*arguments, **QUIET, **options)
    assert error.value.hint.endswith(".")
    return error.value


def run_script(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# ---- what is made --------------------------------------------------------------------------------


def test_every_track_gets_the_front_ends_mel_under_its_name(collection, tmp_path):
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert (report.done, report.skipped, report.failed, report.failed_csv) == (7, 0, {}, None)
    assert sorted(mels(tmp_path / "mels")) == KEYS
    assert report.seconds == pytest.approx(sum(1 + 0.2 * i for i in range(7)), abs=0.3)
    for name in find_audio(collection):
        waveform = torch.from_numpy(read_audio(collection / name))
        stored = read_mel(tmp_path / "mels" / mel_key(name))
        expected = MelSpectrogram()(waveform).T.numpy()
        assert stored.shape == (1 + -(-len(waveform) // 256), 96)
        np.testing.assert_allclose(np.asarray(stored, np.float32), expected, rtol=1e-3, atol=1e-3)
    assert not list((tmp_path / "mels").rglob(".tmp-*"))


def test_central_seconds_are_kept(tmp_path):
    rate = 16_000
    sound = np.zeros(10 * rate, np.float32)
    sound[4 * rate : 6 * rate] = 0.1 * np.random.default_rng(0).standard_normal(2 * rate)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", sound, rate)
    preprocess(tmp_path / "audio", tmp_path / "mels", seconds=2, **QUIET)
    loud = read_mel(tmp_path / "mels" / "a.mmap")
    assert len(loud) == 126
    assert float(loud[2:-2].mean(axis=1).min()) > 0.5
    preprocess(tmp_path / "audio", tmp_path / "whole", seconds=None, **QUIET)
    whole = read_mel(tmp_path / "whole" / "a.mmap")
    assert len(whole) == 626
    assert not np.asarray(whole[:240]).any()


def test_processes_do_not_change_the_files(collection, tmp_path):
    preprocess(collection, tmp_path / "one", **QUIET)
    preprocess(collection, tmp_path / "two", progress=False, num_workers=2)
    assert mels(tmp_path / "one") == mels(tmp_path / "two")


def test_the_script_runs_anywhere_and_says_what_it_did(collection, tmp_path):
    done = run_script("audio", "mels", "--num-workers", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7 done (")
    assert ", 0 skipped, 0 failed; " in done.stdout
    assert sorted(mels(tmp_path / "mels")) == KEYS
    again = run_script("audio", "mels", cwd=tmp_path)
    assert again.stdout.startswith("0 done (0.00 h of audio), 7 skipped, 0 failed")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b.mp3", "a/b.mmap"),
        ("a/b.WAV", "a/b.mmap"),
        ("a.b/c.d.flac", "a.b/c.d.mmap"),
        ("a/b.mmap", "a/b.mmap"),
        ("a/b", "a/b"),
        ("a.mp3/b", "a.mp3/b"),
        ("a/.mp3", "a/.mp3"),
        ("87/4887.mmap", "87/4887.mmap"),
        ("a/vol. 2", "a/vol. 2"),
    ],
)
def test_key_of_a_path(path, key):
    assert mel_key(path) == key


# ---- again, and what is in the way ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["../other/1.wav", "a/../../other/1.wav", "/other/1.wav"])
def test_files_that_are_not_below_the_folder_of_audio(collection, tmp_path, name):
    write_audio(tmp_path / "other" / "1.wav")
    name = f"{tmp_path}{name}" if name[0] == "/" else name
    with pytest.raises(InputError) as refused:
        preprocess(collection, tmp_path / "mels", files=[name], **QUIET)
    assert (refused.value.kind, refused.value.setting) == ("invalid", "files")
    assert not list(tmp_path.rglob("*.mmap"))


def test_a_complete_store_on_a_read_only_disk(collection, tmp_path, monkeypatch):
    preprocess(collection, tmp_path / "mels", **QUIET)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert (report.done, report.skipped) == (0, len(KEYS))


def test_what_is_whole_is_skipped_and_what_is_not_is_made(collection, tmp_path):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    before = mels(store)
    (store / KEYS[0]).unlink()
    (store / KEYS[1]).write_bytes(before[KEYS[1]][:-1])
    (store / KEYS[2]).write_bytes(b"")
    kept = (store / KEYS[3]).stat().st_mtime_ns
    report = preprocess(collection, store, **QUIET)
    assert (report.done, report.skipped) == (3, 4)
    assert mels(store) == before
    assert (store / KEYS[3]).stat().st_mtime_ns == kept


def test_what_is_older_than_its_audio_is_made_again(collection, tmp_path):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    before, later = mels(store), time.time() + 60
    write_audio(collection / "a" / "1.wav", 2, seed=77)
    write_audio(collection / "5.wav", 2).write_bytes(b"no audio")
    for name in ("a/1.wav", "5.wav"):
        os.utime(collection / name, (later, later))
    report = preprocess(collection, store, **QUIET)
    assert (report.done, report.skipped) == (1, 5)
    assert report.failed["5.wav"].endswith("; its log-mel file from before is kept")
    after = mels(store)
    assert {key for key in after if after[key] != before[key]} == {"a/1.mmap"}


def test_overwrite_makes_all_again(collection, tmp_path):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    before = mels(store)
    (store / KEYS[0]).write_bytes(bytes(192))
    assert preprocess(collection, store, **QUIET).done == 0
    options = ["--overwrite", "--num-workers", "1", "--no-progress"]
    assert main([str(collection), str(store), *options]) == 0
    assert mels(store) == before


def test_other_settings_do_not_mix(collection, tmp_path):
    preprocess(collection, tmp_path / "mels", **QUIET)
    before = mels(tmp_path / "mels")
    error = refused(collection, tmp_path / "mels", seconds=None)
    assert (error.kind, error.path) == ("mismatch", tmp_path / "mels" / "preprocess.json")
    assert "seconds 300.0" in error.message
    assert mels(tmp_path / "mels") == before


@pytest.mark.parametrize("content", ['{"seconds": null}', "[]", None])
def test_settings_of_no_file_are_replaced(collection, tmp_path, content):
    """A run that failed early, or a file of settings that never was right, poisons nothing."""
    store = tmp_path / "mels"
    store.mkdir()
    if content is None:
        preprocess(collection, store, files=["not/there.wav"], seconds=7, **QUIET)
    else:
        (store / "preprocess.json").write_text(content)
    # Another job may be at work with it.
    assert refused(collection, store, shard=(1, 2)).kind in ("mismatch", "corrupt")
    assert preprocess(collection, store, **QUIET).done == 7
    assert json.loads((store / "preprocess.json").read_text())["seconds"] == 300


def test_a_job_of_an_array_does_not_look_for_every_file(collection, tmp_path, monkeypatch):
    """Whether the store is empty, or has its settings, takes one look."""
    looked = []
    exists = Path.exists

    def look(path, **options):
        looked.append(path.name)
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", look)
    preprocess(collection, tmp_path / "mels", shard=(1, 2), files=["gone.wav"], **QUIET)
    (tmp_path / "mels" / "other").touch()
    preprocess(collection, tmp_path / "mels", shard=(2, 2), **QUIET)
    assert "preprocess.json" in looked
    assert not set(looked) & {Path(key).name for key in KEYS}


def test_files_of_unknown_making_are_not_taken_for_ours(collection, tmp_path):
    (tmp_path / "mels" / "a").mkdir(parents=True)
    (tmp_path / "mels" / "a" / "1.mmap").write_bytes(bytes(192))
    error = refused(collection, tmp_path / "mels")
    assert (error.kind, error.path) == ("exists", tmp_path / "mels")
    assert "a/1.mmap" in error.message
    (tmp_path / "mels" / "preprocess.json").write_text("[]")
    error = refused(collection, tmp_path / "mels")
    assert (error.kind, error.path) == ("corrupt", tmp_path / "mels" / "preprocess.json")


def test_case_counts_where_the_disk_tells_it_apart(collection, tmp_path):
    write_audio(collection / "A" / "1.wav", seed=9)
    assert preprocess(collection, tmp_path / "mels", **QUIET).done == 8
    # A disk that does not: the recipe is found under any case.
    (tmp_path / "mels" / "PREPROCESS.JSON").touch()
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert (report.skipped, list(report.failed)) == (7, ["a/1.wav"])


# ---- files of one name, other folders, replaced audio --------------------------------------------


def matches(mel: Path, audio: Path) -> bool:
    """Whether a log-mel file is that of an audio file."""
    expected = log_mel(read_audio(audio)).astype(np.float16)
    return mel.read_bytes() == expected.tobytes()


def test_files_that_differ_in_their_suffix_are_all_made(collection, tmp_path):
    store = tmp_path / "mels"
    write_audio(collection / "a" / "1.flac", seed=20)
    write_audio(collection / "a" / "2.mp3", seed=21)
    report = preprocess(collection, store, shard=(1, 2), **QUIET)
    report = preprocess(collection, store, **QUIET)
    assert (report.failed, report.orphans) == ({}, [])
    assert sorted(mels(store)) == sorted([*KEYS, "a/1.wav.mmap", "a/2.mp3.mmap"])
    for key, audio in [
        ("a/1.mmap", "a/1.flac"),
        ("a/1.wav.mmap", "a/1.wav"),
        ("a/2.mmap", "a/2.FLAC"),
        ("a/2.mp3.mmap", "a/2.mp3"),
    ]:
        assert matches(store / key, collection / audio)
        assert store_keys(store, [audio]) == [key]
    assert preprocess(collection, store, **QUIET).skipped == 9


@pytest.mark.parametrize("indexed", [True, False])
def test_a_log_mel_keeps_its_name_when_a_second_format_is_added(collection, tmp_path, indexed):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    before = mels(store)
    write_audio(collection / "a" / "1.flac", seed=20)
    if not indexed:
        as_before_the_index(store)
    for shard in ((1, 2), (2, 2), None):
        preprocess(collection, store, shard=shard, **QUIET)
    after = mels(store)
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() == {"a/1.flac.mmap"}
    assert matches(store / "a/1.flac.mmap", collection / "a/1.flac")
    assert store_keys(store, ["a/1.flac", "a/1.wav"]) == ["a/1.flac.mmap", "a/1.mmap"]
    # Nothing but the files tells whose is whose, and that is enough.
    as_before_the_index(store)
    assert preprocess(collection, store, **QUIET).skipped == 8
    assert mels(store) == after
    (collection / "a" / "1.wav").unlink()
    report = preprocess(collection, store, **QUIET)
    assert (report.skipped, report.orphans) == (7, ["a/1.mmap"])


def test_another_format_takes_the_place_of_one_that_is_gone(collection, tmp_path):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    (collection / "a" / "1.wav").unlink()
    os.utime(write_audio(collection / "a" / "1.flac", seed=20), (0, 0))  # older than the log-mel
    report = preprocess(collection, store, **QUIET)
    assert (report.done, report.skipped, report.orphans) == (1, 6, [])
    assert matches(store / "a/1.mmap", collection / "a/1.flac")


def test_a_clash_costs_the_files_that_clash(collection, tmp_path):
    store = tmp_path / "mels"
    write_audio(collection / "a" / "1.flac.mp3", seed=20)  # a/1.flac.mmap, by its own name
    preprocess(collection, store, **QUIET)
    write_audio(collection / "a" / "1.flac", seed=21)  # has that name, too, as 1.wav has 1.mmap
    report = preprocess(collection, store, **QUIET)
    assert (report.skipped, list(report.failed)) == (8, ["a/1.flac"])
    shards = [preprocess(collection, store, shard=(k, 2), **QUIET) for k in (1, 2)]
    assert sum(report.skipped for report in shards) == 8
    assert sorted(len(report.failed) for report in shards) == [0, 1]


def test_a_second_folder_is_refused_unless_it_has_a_subfolder(collection, tmp_path, capsys):
    store, second = tmp_path / "mels", tmp_path / "second"
    (collection / "bad.wav").touch()
    preprocess(collection, store, **QUIET)
    first = tree(store)
    for i, name in enumerate(("5.wav", "new.wav")):
        os.utime(write_audio(second / name, seed=30 + i), (0, 0))
    for folder in (second, collection / "a"):
        error = refused(folder, store)
        assert (error.kind, error.path) == ("conflict", store)
        assert "--subfolder" in error.hint
    for _ in range(2):
        options = ["--subfolder", "other", "--num-workers", "1", "--no-progress"]
        assert main([str(second), str(store), *options]) == 0
    assert ", 2 skipped, 0 failed" in capsys.readouterr().out
    assert {name: text for name, text in tree(store).items() if "other/" not in name} == first
    assert matches(store / "other/5.mmap", second / "5.wav")
    assert store_keys(store, ["other/5.wav", "5.wav"]) == ["other/5.mmap", "5.mmap"]
    assert preprocess(collection, store, **QUIET).orphans == []

    assert refused(collection, store, subfolder="other").kind == "conflict"
    error = refused(second, store, subfolder="a")
    assert (error.kind, error.path) == ("exists", store / "a")
    error = refused(second, store, subfolder="x", seconds=5)
    assert (error.kind, error.path) == ("mismatch", store / "preprocess.json")
    # The first folder gets a folder of that name: its files are not taken for the other's.
    write_audio(collection / "other" / "5.wav", seed=40)
    report = preprocess(collection, store, **QUIET)
    assert sorted(report.failed) == ["bad.wav", "other/5.wav"]
    assert matches(store / "other/5.mmap", second / "5.wav")


def test_a_store_of_parts_of_a_folder_is_that_of_the_folder(collection, tmp_path):
    preprocess(collection, tmp_path / "mels", files=["5.wav"], **QUIET)
    preprocess(collection / "a", tmp_path / "mels" / "a", **QUIET)
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert (report.done, report.skipped, report.failed) == (3, 4, {})


def test_a_store_and_its_audio_may_be_moved(collection, tmp_path):
    preprocess(collection, tmp_path / "mels", **QUIET)
    (tmp_path / "moved").mkdir()
    for name in ("audio", "mels"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert preprocess(tmp_path / "moved/audio", tmp_path / "moved/mels", **QUIET).skipped == 7
    (tmp_path / "moved" / "audio").rename(tmp_path / "music")
    assert refused(tmp_path / "music", tmp_path / "moved/mels").kind == "conflict"
    path = tmp_path / "moved" / "mels" / "preprocess.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": str(tmp_path / "music")}))
    assert preprocess(tmp_path / "music", tmp_path / "moved/mels", **QUIET).skipped == 7


@pytest.mark.parametrize("size", ["same", "other"])
def test_audio_replaced_by_an_older_file_is_made_again(collection, tmp_path, size):
    store, audio = tmp_path / "mels", collection / "a" / "1.wav"
    preprocess(collection, store, **QUIET)
    write_audio(audio, 1.4 if size == "same" else 0.5, seed=20)
    os.utime(audio, (1, 1))
    report = preprocess(collection, store, **QUIET)
    assert (report.done, report.skipped) == (1, 6)
    assert matches(store / "a/1.mmap", audio)
    assert preprocess(collection, store, **QUIET).skipped == 7


def as_before_the_index(store: Path) -> None:
    """Make a store what earlier versions made."""
    for path in store.glob("preprocess-index*.jsonl"):
        path.unlink()
    recipe = json.loads((store / "preprocess.json").read_text())
    del recipe["source"]
    (store / "preprocess.json").write_text(json.dumps(recipe))


def test_a_store_of_an_earlier_version_is_taken_over_once(collection, tmp_path):
    store, second = tmp_path / "mels", tmp_path / "second"
    preprocess(collection, store, **QUIET)
    before = tree(store)
    as_before_the_index(store)
    write_audio(second / "new.wav")
    assert refused(second, store).kind == "conflict"  # nothing of it is in the store
    report = preprocess(collection, store, shard=(1, 2), **QUIET)
    assert (report.done, report.skipped, len(report.notes)) == (0, 4, 1)
    report = preprocess(collection, store, **QUIET)
    assert (report.done, report.skipped, report.notes) == (0, 7, [])
    assert {name: tree(store)[name] for name in KEYS} == {name: before[name] for name in KEYS}
    assert refused(second, store).kind == "conflict"
    os.utime(collection / "5.wav", (1, 1))
    assert preprocess(collection, store, **QUIET).done == 1


def test_a_line_that_was_cut_off_costs_itself_only(collection, tmp_path):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    index = store / "preprocess-index.jsonl"
    os.truncate(index, index.stat().st_size - 20)
    with index.open("ab") as file:
        file.write(b'\n[1]\n{"path": 3}\n\xff')
    write_audio(collection / "new.wav", seed=20)
    report = preprocess(collection, store, **QUIET)
    assert (report.done, report.skipped) == (1, 7)
    for name in ("new.wav", "5.wav"):
        os.utime(collection / name, (1, 1))
    assert preprocess(collection, store, **QUIET).done == 2


def test_log_mels_whose_audio_is_gone_are_listed(collection, tmp_path, capsys, monkeypatch):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    (collection / "5.wav").rename(collection / "7.wav")
    assert main([str(collection), str(store), "--num-workers", "1", "--no-progress"]) == 0
    assert f"; 1 without audio (listed in {store / 'warnings.csv'}); " in capsys.readouterr().out
    assert list(failures(store / "warnings.csv")) == ["5.mmap"]
    assert preprocess(collection, store, files=["6.mp3"], **QUIET).orphans == []
    (store / "5.mmap").unlink()
    scandir = os.scandir

    def refuse(path):
        if Path(path) == collection / "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # what cannot be seen is not gone
    report = preprocess(collection, store, **QUIET)
    assert (report.skipped, report.orphans) == (4, [])
    monkeypatch.undo()
    assert preprocess(collection, store, **QUIET).warnings_csv is None
    assert not (store / "warnings.csv").exists()


def test_silent_and_short_tracks_are_listed(collection, tmp_path, capsys):
    store = tmp_path / "mels"
    soundfile.write(collection / "0.wav", np.zeros(20_000), 16_000)
    write_audio(collection / "short.wav", 0.25)
    sound = np.random.default_rng(0).standard_normal((20_000, 1)) / 10
    soundfile.write(collection / "phase.wav", sound * [1, -1], 16_000)
    expected = {"0.wav": "silent", "phase.wav": "channels cancel", "short.wav": "0.25 s only"}
    for _ in range(2):  # of those that were made before, too
        assert main([str(collection), str(store), "--num-workers", "1", "--no-progress"]) == 0
        out, err = capsys.readouterr()
        assert f"; 3 with warnings (listed in {store / 'warnings.csv'}); " in out
        assert "warning: 0.wav: silent" in err
        assert failures(store / "warnings.csv") == expected


def test_two_runs_at_once(collection, tmp_path):
    store = tmp_path / "mels"
    for i in range(20):
        write_audio(collection / f"more/{i}.wav", 0.3, seed=i)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(preprocess, collection, store, **QUIET) for _ in range(2)]
        assert [run.result().failed for run in runs] == [{}, {}]
    assert preprocess(collection, store, **QUIET).skipped == 27
    for name in find_audio(collection):
        assert matches(store / mel_key(name), collection / name)
    lines = (store / "preprocess-index.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in lines if line} == set(find_audio(collection))


# ---- what cannot be read or written --------------------------------------------------------------


def test_bad_files_cost_themselves_only(collection, tmp_path, capsys):
    store = tmp_path / "mels"
    (collection / "empty.mp3").touch()
    (collection / "text.wav").write_text("not audio" * 99)
    (collection / "gone.flac").symlink_to("nowhere.flac")
    (collection / "loud.wav").symlink_to(tmp_path / "loud.wav")
    soundfile.write(tmp_path / "loud.wav", np.full(999, 1e38), 16_000, subtype="FLOAT")
    assert main([str(collection), str(store), "--num-workers", "1", "--no-progress"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("7 done (")
    assert f"4 failed (listed with reasons in {store / 'failed.csv'})" in out
    assert "failed: empty.mp3: " in err
    assert sorted(mels(store)) == KEYS
    found = failures(store / "failed.csv")
    assert sorted(found) == ["empty.mp3", "gone.flac", "loud.wav", "text.wav"]
    for name in found:
        (collection / name).unlink()
    assert main([str(collection), str(store), "--no-progress"]) == 0
    assert not (store / "failed.csv").exists()


@pytest.mark.parametrize(("code", "costs"), [(errno.ENAMETOOLONG, 1), (errno.ENOSPC, None)])
def test_a_full_disk_ends_the_run_and_a_long_name_does_not(
    collection, tmp_path, monkeypatch, code, costs
):
    write = module.write_mel

    def fail(path, mel):
        if path.name == "1.mmap":
            raise OSError(code, os.strerror(code))
        write(path, mel)

    monkeypatch.setattr(module, "write_mel", fail)
    if costs is None:
        assert refused(collection, tmp_path / "mels").kind == "access"
    else:
        assert list(preprocess(collection, tmp_path / "mels", **QUIET).failed) == ["a/1.wav"]
    monkeypatch.undo()
    preprocess(collection, tmp_path / "mels", **QUIET)
    assert sorted(mels(tmp_path / "mels")) == KEYS


def test_a_full_disk_is_told_as_such(collection, tmp_path, monkeypatch):
    """NumPy's `tofile` gives neither number nor text then; and failed.csv has no room either."""

    def fill(path, mel):
        np.zeros(100_000).tofile("/dev/full")
        raise AssertionError

    def no_room(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_mel", fill)
    error = refused(collection, tmp_path / "mels")
    assert (error.kind, error.path) == ("access", tmp_path / "mels" / "5.mmap")
    (collection / "0.wav").touch()  # a failure to write down
    monkeypatch.setattr(module, "write_failures", no_room)
    error = refused(collection, tmp_path / "mels")
    assert (error.kind, error.path) == ("access", tmp_path / "mels" / "5.mmap")
    monkeypatch.setattr(module, "write_mel", lambda path, mel: None)
    error = refused(collection, tmp_path / "mels")
    assert (error.kind, error.path) == ("access", tmp_path / "mels" / "failed.csv")


def test_an_interrupt_keeps_what_is_known_of_failures(collection, tmp_path, monkeypatch):
    store = tmp_path / "mels"
    for name in ("0.wav", "9.wav", "b.c/5.wav"):
        (collection / name).touch()
    preprocess(collection, store, overwrite=True, **QUIET)
    before = failures(store / "failed.csv")
    assert sorted(before) == ["0.wav", "9.wav", "b.c/5.wav"]

    def interrupt(name, *arguments):
        if name == stop:
            raise KeyboardInterrupt
        return make(name, *arguments)

    make = module._make
    monkeypatch.setattr(module, "_make", interrupt)
    for last, mended in (("0.wav", None), ("b.c/5.wav", "9.wav")):
        stop = last, mel_key(last)
        if mended:
            write_audio(collection / mended)
        with pytest.raises(KeyboardInterrupt):
            preprocess(collection, store, **QUIET)
        before.pop(mended, None)
        assert failures(store / "failed.csv") == before


def test_a_file_that_crashes_its_decoder_costs_itself_only(collection, tmp_path, monkeypatch):
    """Loaded by the workers: a PyAV that ends the process at a file of that name."""
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "av.py").write_text(
        f"import os, sys\n"
        f"here = sys.modules.pop('av')\n"
        f"sys.path.remove({str(shim)!r})\n"
        f"import av\n"
        f"sys.path.insert(0, {str(shim)!r})\n"
        f"whole = av.open\n"
        f"def crash(file, *rest, **options):\n"
        f"    files = [piece[0] for piece in getattr(file, '_pieces', [(file,)])]\n"
        f"    if any(str(getattr(f, 'name', '')).endswith('a/1.wav') for f in files):\n"
        f"        os.abort()\n"
        f"    return whole(file, *rest, **options)\n"
        f"av.open = crash\n"
    )
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from maest.datasets.preprocess import main; "
        "sys.exit(main(sys.argv[3:]))"
    )
    store = tmp_path / "mels"
    for _ in range(2):  # and again, when it alone is left
        done = subprocess.run(
            [sys.executable, "-c", code, str(shim), str(ROOT), str(collection), str(store)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 1, done.stderr
        assert "failed: a/1.wav: " in done.stderr
        assert sorted(mels(store)) == [key for key in KEYS if key != "a/1.mmap"]
        assert list(failures(store / "failed.csv")) == ["a/1.wav"]


# ---- the collection ------------------------------------------------------------------------------


def test_what_is_found(tmp_path):
    audio = tmp_path / "audio"
    for name in ("b/z.wav", "b/a.WAV", "a.mp3", ".hidden/x.wav"):
        write_audio(audio / name, 0.1)
    for name in ("notes.txt", "cover.jpg"):
        (audio / name).touch()
    (audio / "b" / "round").symlink_to(audio)
    (tmp_path / "other").mkdir()
    write_audio(tmp_path / "other" / "linked.wav", 0.1)
    (audio / "other").symlink_to(tmp_path / "other")
    (audio / "folder.wav").mkdir()
    os.mkfifo(audio / "pipe.wav")
    others = Counter()
    expected = [".hidden/x.wav", "a.mp3", "b/a.WAV", "b/z.wav", "other/linked.wav"]
    assert find_audio(audio, others=others) == expected
    assert others == {".txt": 1, ".jpg": 1}


MUSIC = [
    "...And Justice for All/01 Blackened.mp3",
    "...Baby One More Time.wav",
    ".38 Special/..hold on.flac",
    "..But Seriously.ogg",
    "__MACOSX.wav",
    "a #recycle/x.wav",
]
NOT_MUSIC = {
    "._a.mp3": "._*",
    "b/._a.mp3": "._*",
    ".AppleDouble/a.mp3": ".AppleDouble",
    ".Trashes/501/a.mp3": ".Trashes",
    ".Trash-1000/files/a.mp3": ".Trash-1000",
    ".Spotlight-V100/a.wav": ".Spotlight-V100",
    "__MACOSX/b/a.mp3": "__MACOSX",
    "b/@eaDir/a.mp3/SYNOAUDIO_01APIC.mp3": "@eaDir",
    "#recycle/a.mp3": "#recycle",
    "$RECYCLE.BIN/a.mp3": "$RECYCLE.BIN",
}


def test_a_leading_dot_is_music_and_what_systems_keep_is_not(tmp_path):
    for name in (*MUSIC, *NOT_MUSIC):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    others = Counter()
    assert find_audio(tmp_path, others=others) == sorted(MUSIC)
    assert others == Counter(NOT_MUSIC.values())


def test_what_is_left_out_is_counted(collection, tmp_path):
    for name in ("a.dsf", "a/c.AMR", "d.3gp", "e.mov", "f.spx", "g.shn"):
        (collection / name).touch()
    for suffix, count in (("txt", 5), ("Jpg", 3), ("xyz", 1)):
        for i in range(count):
            (collection / "a" / f"{i}.{suffix}").touch()
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert len(report.failed) == 6  # they are taken for audio, which they are not
    assert "; 9 files left out: .jpg 3, .txt 5, .xyz 1; " in str(report)
    for suffix in "uvw":
        (collection / f"a.{suffix}").touch()
    (collection / "README").touch()
    told = str(preprocess(collection, tmp_path / "mels", **QUIET))
    assert "; 13 files left out: " in told
    assert ".jpg 3" in told
    assert ", and 2 more kinds; " in told


def test_names_that_are_not_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write_audio(tmp_path / "audio" / "a.wav", 0.2).rename(tmp_path / "audio" / name)
    (tmp_path / "audio" / os.fsdecode(b"bad\xff.mp3")).touch()
    done = run_script("audio", "mels", "--num-workers", 1, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 done (")
    assert (tmp_path / "mels" / os.fsdecode(b"caf\xe9.mmap")).stat().st_size == 14 * 192
    assert list(failures(tmp_path / "mels" / "failed.csv")) == [os.fsdecode(b"bad\xff.mp3")]


def test_a_folder_that_cannot_be_read_is_a_failure(collection, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "b.c":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("maest.datasets.collection.os.scandir", refuse)
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert report.done == 5
    assert list(report.failed.values()) == ["the folder cannot be read: Permission denied"]


def test_links_that_lead_in_a_circle_cost_themselves_only(collection, tmp_path):
    for name, target in (("a/self.mp3", "self.mp3"), ("self", "self"), ("x", "y"), ("y", "x")):
        (collection / name).symlink_to(target)
    (collection / "ring.wav").symlink_to("ring2.wav")
    (collection / "ring2.wav").symlink_to("ring.wav")
    failed, others = {}, Counter()
    names = find_audio(collection, failed=failed, others=others)
    assert {"a/self.mp3", "ring.wav", "ring2.wav"} < set(names)
    assert sorted(failed) == ["self", "x", "y"]
    assert not others
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert sorted(mels(tmp_path / "mels")) == KEYS
    found = failures(tmp_path / "mels" / "failed.csv")
    assert found == report.failed
    assert sorted(found) == ["a/self.mp3", "ring.wav", "ring2.wav", "self", "x", "y"]
    assert "link" in found["a/self.mp3"]
    assert found["self"].startswith("cannot be looked at: ")


def test_a_folder_in_one_that_may_be_listed_and_not_entered(collection, tmp_path, monkeypatch):
    identity = module_of_collection._identity

    def refuse(path):
        if path.name == "b.c":
            raise PermissionError(errno.EACCES, "Permission denied")
        return identity(path)

    monkeypatch.setattr(module_of_collection, "_identity", refuse)
    report = preprocess(collection, tmp_path / "mels", **QUIET)
    assert report.done == 5
    assert list(report.failed.values()) == ["cannot be looked at: Permission denied"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may enter any folder")
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_without_permission(collection, tmp_path, mode):
    closed = collection / "closed"
    write_audio(closed / "in" / "1.wav")
    write_audio(closed / "2.wav")
    closed.chmod(mode)
    try:
        report = preprocess(collection, tmp_path / "mels", **QUIET)
    finally:
        closed.chmod(0o755)
    assert sorted(mels(tmp_path / "mels")) == KEYS
    assert sorted(report.failed) == (["closed/"] if mode == 0 else ["closed/2.wav", "closed/in"])
    assert all("Permission denied" in reason for reason in report.failed.values())


def test_the_store_may_be_inside_the_collection(collection):
    store = collection / "mels"
    preprocess(collection, store, **QUIET)
    write_audio(store / "listen.wav")  # somebody's; not a track
    assert preprocess(collection, store, **QUIET).skipped == 7
    report = preprocess(collection, collection, **QUIET)  # and may be the collection
    assert (report.done, list(report.failed)) == (7, ["mels/listen.wav"])  # in the other store


def test_only_the_files_named(collection, tmp_path):
    files = ["a/1.wav", Path("6.mp3"), "not/there.mp3"]
    report = preprocess(collection, tmp_path / "mels", files=files, **QUIET)
    assert sorted(mels(tmp_path / "mels")) == ["6.mmap", "a/1.mmap"]
    assert list(report.failed) == ["not/there.mp3"]


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["nowhere", "mels"], "nowhere: "),
        (["file.wav", "mels"], "file.wav: "),
        (["none", "mels"], "none: "),
        (["audio", "file.wav"], "file.wav: "),
        (["audio", "mels", "--seconds", "0"], "--seconds: "),
        (["audio", "mels", "--seconds", "nan"], "--seconds: "),
        (["audio", "mels", "--seconds", "inf"], "--seconds: "),
        (["audio", "mels", "--num-workers", "0"], "--num-workers"),
        (["audio", "mels", "--num-workers", "-3"], "--num-workers"),
        (["audio", "mels", "--shard", "5/4"], "--shard: "),
        (["audio", "mels", "--shard", "0/4"], "--shard: "),
        (["audio", "mels", "--backend", "dask"], "--scheduler"),
        *((["audio", "mels", "--subfolder", name], "--subfolder: ") for name in ("", "..", "a/b")),
        (["audio", "file.wav", "--subfolder", "x"], "file.wav/x: "),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, arguments, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    write_audio(tmp_path / "audio" / "a.wav", 0.1)
    write_audio(tmp_path / "file.wav", 0.1)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert place in err
    assert not out
    assert not (tmp_path / "mels").exists()


def test_seconds_as_typed(capsys):
    assert (parse_seconds("all"), parse_seconds("2.5")) == (None, 2.5)
    with pytest.raises(SystemExit):
        main(["audio", "mels", "--seconds", "abc"])
    assert "--seconds: 'abc'" in capsys.readouterr().err


# ---- parts, kills, clusters ----------------------------------------------------------------------


def test_shards_are_disjoint_and_complete(collection, tmp_path):
    (collection / "bad.wav").touch()
    made: list[str] = []
    for k in (1, 2, 3):
        preprocess(collection, tmp_path / "mels", shard=(k, 3), **QUIET)
        now = mels(tmp_path / "mels")
        made += [key for key in now if key not in made]
        alone = preprocess(collection, tmp_path / f"alone{k}", shard=(k, 3), **QUIET)
        assert alone.done + len(alone.failed) in (2, 3)
    assert sorted(made) == KEYS
    parts = [set(mels(tmp_path / f"alone{k}")) for k in (1, 2, 3)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 7
    lists = sorted(path.name for path in (tmp_path / "mels").glob("failed*.csv"))
    assert len(lists) == 1
    assert lists[0].startswith("failed-")
    # A run over all of them replaces the shards' lists.
    preprocess(collection, tmp_path / "mels", **QUIET)
    assert [path.name for path in (tmp_path / "mels").glob("failed*.csv")] == ["failed.csv"]


def test_shard_as_typed():
    assert parse_shard("3/100") == (3, 100)
    for wrong in ("3", "3/", "a/b", "3/100/2", "-1/3"):
        with pytest.raises(Exception, match="expected K/N"):
            parse_shard(wrong)


def start_long_run(tmp_path: Path, **options) -> subprocess.Popen:
    for i in range(120):
        target = tmp_path / "audio" / f"{i:03d}.wav"
        if i == 0:
            write_audio(target, 40, rate=48_000)
        else:
            target.hardlink_to(tmp_path / "audio" / "000.wav")
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "audio", "mels", "--num-workers", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("mels/[!.]*.mmap"))) < 5:  # without unfinished ones
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def check_whole_and_finish(tmp_path: Path) -> None:
    deadline = time.monotonic() + 30
    found = mels(tmp_path / "mels")
    while time.monotonic() < deadline:  # workers finish the file they are at
        time.sleep(0.5)
        now = mels(tmp_path / "mels")
        if now.keys() == found.keys():
            break
        found = now
    assert 5 <= len(found) < 120
    assert {len(content) for content in found.values()} == {2501 * 192}
    report = preprocess(tmp_path / "audio", tmp_path / "mels", **QUIET)
    assert (report.done, report.skipped) == (120 - len(found), len(found))
    assert len(set(mels(tmp_path / "mels").values())) == 1


def test_a_killed_run_leaves_whole_files_and_is_taken_up(tmp_path):
    process = start_long_run(tmp_path)
    process.kill()
    process.wait(30)
    check_whole_and_finish(tmp_path)


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_says_how_to_go_on(tmp_path, sent):
    process = start_long_run(tmp_path, start_new_session=True)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if sent == signal.SIGINT else 143), err
    assert "run the same again to go on" in err
    assert "Traceback" not in err
    assert not out
    check_whole_and_finish(tmp_path)
    assert not list(tmp_path.glob("mels/.tmp-*"))


def test_leftovers_of_killed_runs_go_after_a_day(collection, tmp_path):
    store = tmp_path / "mels"
    preprocess(collection, store, **QUIET)
    old, new = store / "a" / ".tmp-old.mmap", store / "a" / ".tmp-new.mmap"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    preprocess(collection, store, **QUIET)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_dask_cluster_makes_the_same_files(collection, tmp_path):
    """Scheduler and worker start in another folder, and know nothing of this repository."""
    (collection / "bad.mp3").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with dask_cluster(elsewhere) as address:
        options = ["--backend", "dask", "--scheduler", address, "--no-progress"]
        done = run_script("audio", "mels", *options, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("7 done ("), done.stdout + done.stderr
    assert list(failures(tmp_path / "mels" / "failed.csv")) == ["bad.mp3"]
    preprocess(collection, tmp_path / "here", **QUIET)
    assert mels(tmp_path / "mels") == mels(tmp_path / "here")
