"""Which log-mel file of a store is whose: names, formats, folders, and stores that moved."""

import json
import os
from pathlib import Path

import pytest
from audio_store import KEYS, counts, listed, matches, mels, run
from folders import tree, unreadable
from made_up import refuses
from music import write_audio

from maest.datasets.mel_store import store_keys


def before_the_index(store: Path) -> None:
    """Turn a store into one of an earlier version."""
    for path in store.glob("preprocess-index*.jsonl"):
        path.unlink()
    recipe = json.loads((store / "preprocess.json").read_text())
    del recipe["source"]
    (store / "preprocess.json").write_text(json.dumps(recipe))


def test_files_that_differ_in_their_suffix(audio, store):
    write_audio(audio / "a" / "1.flac", seed=20)
    write_audio(audio / "a" / "2.mp3", seed=21)
    run(audio, store, shard="1/2")
    assert run(audio, store).failed == {}
    assert sorted(mels(store)) == sorted([*KEYS, "a/1.wav.mmap", "a/2.mp3.mmap"])
    for key, name in [
        ("a/1.mmap", "a/1.flac"),
        ("a/1.wav.mmap", "a/1.wav"),
        ("a/2.mmap", "a/2.FLAC"),
        ("a/2.mp3.mmap", "a/2.mp3"),
    ]:
        assert matches(store / key, audio / name)
        assert store_keys(store, [name]) == [key]
    assert run(audio, store).skipped == 9


@pytest.mark.parametrize("indexed", [True, False])
def test_a_log_mel_keeps_its_name_when_a_second_format_is_added(audio, store, made, indexed):
    write_audio(audio / "a" / "1.flac", seed=20)
    if not indexed:
        before_the_index(store)
    for shard in ("1/2", "2/2", None):
        run(audio, store, shard=shard)
    after = mels(store)
    assert after.items() >= made.items()
    assert after.keys() - made.keys() == {"a/1.flac.mmap"}
    assert matches(store / "a/1.flac.mmap", audio / "a/1.flac")
    # Without an index, the files alone tell which belongs to which.
    before_the_index(store)
    assert run(audio, store).skipped == 8
    assert mels(store) == after


def test_another_format_replaces_a_deleted_one(audio, store, made):
    (audio / "a" / "1.wav").unlink()
    os.utime(write_audio(audio / "a" / "1.flac", seed=20), (0, 0))  # older than the log-mel
    assert counts(run(audio, store)) == (1, 6, [])
    assert matches(store / "a/1.mmap", audio / "a/1.flac")


def test_only_files_whose_names_clash_fail(audio, store):
    write_audio(audio / "a" / "1.flac.mp3", seed=20)  # a/1.flac.mmap, by its own name
    run(audio, store)
    write_audio(audio / "a" / "1.flac", seed=21)  # has that name, too, as 1.wav has 1.mmap
    assert counts(run(audio, store)) == (0, 8, ["a/1.flac"])
    shards = [run(audio, store, shard=f"{k}/2") for k in (1, 2)]
    assert sum(report.skipped for report in shards) == 8
    assert sum(len(report.failed) for report in shards) == 1


def test_a_second_folder_is_refused_unless_it_has_a_subfolder(audio, store, made, tmp_path):
    second = tmp_path / "second"
    for i, name in enumerate(("5.wav", "new.wav")):
        os.utime(write_audio(second / name, seed=30 + i), (0, 0))
    for folder in (second, audio / "a"):
        with refuses("conflict", "mels"):
            run(folder, store)
    before = tree(store)
    assert run(second, store, subfolder="other").done == 2
    assert run(second, store, subfolder="other").skipped == 2
    assert tree(store).items() >= before.items()
    assert matches(store / "other/5.mmap", second / "5.wav")
    assert store_keys(store, ["other/5.wav", "5.wav"]) == ["other/5.mmap", "5.mmap"]
    assert run(audio, store).warnings == {}
    with refuses("conflict", "other"):
        run(audio, store, subfolder="other")
    with refuses("exists", "a", "--subfolder"):
        run(second, store, subfolder="a")
    with refuses("mismatch", "preprocess.json"):
        run(second, store, subfolder="x", seconds=5)
    # A folder of that name in the first one: its files are not confused with the other's.
    write_audio(audio / "other" / "deep" / "5.wav", seed=40)
    assert list(run(audio, store).failed) == ["other/deep/5.wav"]


def test_a_store_of_parts_of_a_folder_is_that_of_the_folder(audio, store):
    run(audio, store, files=["5.wav"])
    run(audio / "a", store / "a")
    assert counts(run(audio, store)) == (3, 4, [])


def test_a_store_and_its_audio_may_be_moved(audio, store, made, tmp_path):
    (tmp_path / "moved").mkdir()
    audio, store = (path.rename(tmp_path / "moved" / path.name) for path in (audio, store))
    assert run(audio, store).skipped == 7
    audio = audio.rename(tmp_path / "music")
    with refuses("conflict", "mels"):
        run(audio, store)
    path = store / "preprocess.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": str(audio)}))
    assert run(audio, store).skipped == 7


def test_a_store_of_an_earlier_version_is_adopted_once(audio, store, made, tmp_path):
    before_the_index(store)
    second = write_audio(tmp_path / "second" / "new.wav").parent
    with refuses("conflict", "mels"):  # nothing of it is in the store
        run(second, store)
    report = run(audio, store, shard="1/2")
    assert (report.done, report.skipped, len(report.notes)) == (0, 4, 1)
    report = run(audio, store)
    assert (report.done, report.skipped, len(report.notes)) == (0, 7, 0)
    assert mels(store) == made
    with refuses("conflict", "mels"):
        run(second, store)
    os.utime(audio / "5.wav", (1, 1))
    assert run(audio, store).done == 1


def test_a_damaged_index(audio, store, made):
    index = store / "preprocess-index.jsonl"
    os.truncate(index, index.stat().st_size - 20)
    with index.open("ab") as file:
        file.write(b'\n[1]\n{"path": 3}\n\xff')
    write_audio(audio / "new.wav", seed=20)
    assert counts(run(audio, store)) == (1, 7, [])
    for name in ("new.wav", "5.wav"):
        os.utime(audio / name, (1, 1))
    assert run(audio, store).done == 2


def test_log_mels_whose_audio_is_gone_are_listed(audio, store, made):
    (audio / "5.wav").rename(audio / "7.wav")
    assert run(audio, store).failed == {}
    assert list(listed(store / "warnings.csv")) == ["5.mmap"]
    (store / "5.mmap").unlink()
    with unreadable("a"):  # its files may still exist
        assert counts(run(audio, store)) == (0, 4, ["a/"])
    assert not (store / "warnings.csv").exists()


def test_names_that_differ_in_case(audio, store):
    write_audio(audio / "A" / "1.wav", seed=9)
    assert run(audio, store).done == 8
    # On a disk that ignores case, the recipe is also found under another one.
    (store / "PREPROCESS.JSON").touch()
    assert counts(run(audio, store)) == (0, 7, ["a/1.wav"])
