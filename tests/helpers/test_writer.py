"""Results of a track are on disk, whole, or the reason why they are not."""

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from folders import Killed, full_disk, killed_at, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import refuses

from maest.datasets.embeddings import read_tokens
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import read_failures, remove_leftovers
from maest.helpers.results.outputs import SUFFIXES, Output, is_done
from maest.helpers.results.predictions import read_predictions
from maest.helpers.results.tracks import TrackResult
from maest.helpers.results.writer import MAX_WAITING, ResultWriter, tidy_warnings

D, C, P = 8, 3, 4
KEY = "a/b.mp3"


def outputs(root: Path) -> list[Output]:
    kinds = ("embeddings", 7), ("embeddings", -1), ("logits", None), ("predictions", None)
    names = ("7", "final", "logits", "predictions")
    return [Output(*kind, root / name) for kind, name in zip(kinds, names, strict=True)]


def result(key: str = KEY, pooled: bool = True, fill: float = 0.5, warnings=()) -> TrackResult:
    """A track of 4 patches of 2 s."""
    shape = () if pooled else (P,)
    times = np.array([(2 * i, 2 * i + 1, 2 * i + 2) for i in range(P)], np.float64)
    return TrackResult(
        *(key, 0, 8.0, times),
        embeddings={
            7: np.full((*shape, 3, D), fill, np.float32),
            -1: np.full((*shape, D), fill, np.float32),
        },
        logits=np.full((*shape, C), fill, np.float16),
        activations=np.full(C, fill, np.float32),
        patch_activations=np.full((P, C), fill, np.float32),
        picture=np.zeros((96, 10), np.float32),
        warnings=list(warnings),
    )


def write(outputs: list[Output], *results: TrackResult, **options) -> ResultWriter:
    with ResultWriter(outputs, **options) as writer:
        for one in results:
            writer.put(one)
    return writer


@pytest.mark.parametrize("pooled", [True, False])
def test_files_of_a_track(tmp_path, pooled):
    wanted = outputs(tmp_path)
    writer = write(wanted, result(pooled=pooled), labels=["x", "y", "z"], top=2, plot=True)
    assert (writer.written, writer.failed) == (1, {})
    arrays = ["7/a/b.mp3.embeddings", "final/a/b.mp3.embeddings", "logits/a/b.mp3.logits"]
    names = {f"{name}.npy" for name in arrays}
    names |= {f"predictions/a/b.mp3.predictions.{suffix}" for suffix in ("csv", "json", "png")}
    if not pooled:
        names |= {f"{output.folder.name}/a/b.mp3.times.csv" for output in wanted[:3]}
        assert (tmp_path / "7/a/b.mp3.times.csv").read_text().splitlines()[:2] == [
            "patch,start,centre,end",
            "0,0.000,1.000,2.000",
        ]
    assert set(tree(tmp_path)) == names
    found = [np.load(output.path(KEY)) for output in wanted[:3]]
    # Of patches after the final norm [P, 1, D]: three of them are not taken for three tokens.
    shapes = [(3, D), (D,), (C,)] if pooled else [(P, 3, D), (P, 1, D), (P, C)]
    assert [array.shape for array in found] == shapes
    assert {array.dtype for array in found} == {np.dtype(np.float32)}
    for output in wanted[:2]:
        np.testing.assert_array_equal(read_tokens(output.path(KEY)), 0.5)
    labels = read_predictions(wanted[3].path(KEY))["labels"]
    assert [entry["label"] for entry in labels] == ["x", "y"]


def test_files_of_other_settings_are_removed(tmp_path):
    wanted = outputs(tmp_path)
    write(wanted, result(pooled=False), result("other", pooled=False), plot=True)
    before = set(tree(tmp_path))
    write(wanted, result())
    assert before - set(tree(tmp_path)) == {
        *(f"{level}/a/b.mp3.times.csv" for level in ("7", "final", "logits")),
        "predictions/a/b.mp3.predictions.png",
    }
    (tmp_path / "logits/c.times.csv").mkdir()  # a folder of music that is called so
    assert not write(wanted, result("c")).failed
    assert (tmp_path / "logits/c.times.csv").is_dir()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.permutations(range(5)), st.booleans())
def test_any_order_of_results_gives_the_same_folder(order, pooled):
    def folder(numbers) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as root:
            tracks = [result(f"{i}", pooled, i / 9, ["silent"] * (i % 2)) for i in range(5)]
            write(outputs(Path(root)), *(tracks[i] for i in numbers), *tracks[:2])
            for output in outputs(Path(root))[:3]:
                tidy_warnings(output.folder / "warnings.csv")
            return tree(Path(root))

    assert folder(order) == folder(range(5))


def test_done_means_all_files_and_none_older_than_the_audio(tmp_path):
    audio, wanted = tmp_path / "b.mp3", outputs(tmp_path / "out")
    audio.write_text("x")
    assert not is_done(KEY, wanted)
    write(wanted, result())
    assert is_done(KEY, wanted, audio)
    assert not is_done(KEY, wanted, plot=True)
    assert is_done(KEY, wanted[:3], audio, plot=True)
    assert is_done(KEY, wanted, tmp_path / "missing")
    assert not is_done("nul\0", wanted)
    assert not is_done(KEY, [])
    stamp = audio.stat().st_mtime_ns
    for output in wanted:
        os.utime(output.path(KEY), ns=(stamp, stamp - 1))
        assert not is_done(KEY, wanted, audio)
        os.utime(output.path(KEY), ns=(stamp, stamp))
        assert is_done(KEY, wanted, audio)


@pytest.mark.parametrize("pooled", [True, False])
def test_damaged_files_are_not_done(tmp_path, pooled):
    wanted = outputs(tmp_path)
    write(wanted, result(pooled=pooled), plot=True)
    for name, whole in tree(tmp_path).items():
        path = tmp_path / name
        damaged = [b"", whole[:100], whole[:-1], whole[:-30], b"x" * 300]
        if path.suffix == ".npy":
            damaged += whole + b"x", whole[:6] + b"\2" + whole[7:], whole.replace(b"), }", b"([ }")
        if name.endswith("times.csv"):  # a row for each patch
            damaged = [whole[: whole.rindex(b"3,6")], whole[:26], b""]
        for content in damaged:
            path.write_bytes(content)
            assert not is_done(KEY, wanted, plot=True), name
        path.unlink()
        assert not is_done(KEY, wanted, plot=True), name
        path.mkdir()
        assert not is_done(KEY, wanted, plot=True), name
        path.rmdir()
        os.mkfifo(path)
        assert name.endswith("times.csv") or not is_done(KEY, wanted, plot=True), name
        path.unlink()
        path.write_bytes(whole)
        assert is_done(KEY, wanted, plot=True), name


@pytest.mark.parametrize("n", range(8))
def test_a_kill_between_files_is_noticed(tmp_path, n):
    """Times and array, three times; then CSV and JSON."""
    wanted = outputs(tmp_path)
    with killed_at(n, os, "replace"):
        write(wanted, result(pooled=False))
    names = tree(tmp_path)
    assert len(names) == n
    assert not is_done(KEY, wanted)
    for name in names:  # no array of patches without their times
        assert not name.endswith(".npy") or name.rsplit(".", 2)[0] + ".times.csv" in names
    write(wanted, result(pooled=False))
    assert is_done(KEY, wanted)


def test_a_kill_while_older_files_are_replaced_is_noticed(tmp_path):
    wanted, audio = outputs(tmp_path / "out"), tmp_path / "b.mp3"
    write(wanted, result())
    stamp = time.time_ns() - 10**10
    for output in wanted:
        os.utime(output.path(KEY), ns=(stamp, stamp))
    audio.write_text("a new one")
    os.utime(audio, ns=(stamp + 1, stamp + 1))
    for n in range(5):
        with killed_at(n, os, "replace"):
            write(wanted, result())
        assert is_done(KEY, wanted, audio) == (n == 5)


def listed(path: Path) -> dict[str, str]:
    tidy_warnings(path)
    return read_failures(path, value="warnings")


def test_warnings_stand_beside_the_results_and_are_the_last_ones(tmp_path):
    runs = [
        ({"a": ["silent"], "b": ["silent", "0.1 s only"], "c": ["channels cancel"]}, 3),
        ({"ä\n\udcff": [], "a": [], "b": ["0.1 s only"]}, 1),
    ]
    for tracks, warned in runs:
        found = [result(key, warnings=why) for key, why in tracks.items()]
        assert write(outputs(tmp_path), *found).warned == warned
    for level in ("7", "final", "logits"):
        found = listed(tmp_path / level / "warnings.csv")
        assert list(found.items()) == [("b", "0.1 s only"), ("c", "channels cancel")]
    assert not (tmp_path / "predictions/warnings.csv").exists()
    write(outputs(tmp_path), result("b"), result("c"))
    assert listed(tmp_path / "7/warnings.csv") == {}


def test_warnings_of_shards_are_joined(tmp_path):
    for shard, key in enumerate("ab", 1):
        track = result(key, warnings=["silent"])
        write(outputs(tmp_path), track, warnings=f"warnings-{shard}-of-2.csv")
    path = tmp_path / "7/warnings.csv"
    path.write_text("key,warnings\r\nc,silent\r\nd", newline="")  # cut off
    tidy_warnings(path, sorted(path.parent.glob("warnings-*-of-*.csv")))
    assert read_failures(path, value="warnings") == dict.fromkeys("abc", "silent")


@pytest.mark.parametrize("where", [0, 1, 2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_track_with_values_that_are_not_finite_fails(tmp_path, where, value):
    bad, wanted = result("bad"), outputs(tmp_path)
    arrays = (*bad.embeddings.values(), bad.logits, bad.activations, bad.patch_activations)
    arrays[where].flat[-1] = value
    writer = write(wanted, bad, result("good"))
    assert writer.written == 1
    assert writer.failed.keys() == {"bad"}
    assert not any("bad" in name for name in tree(tmp_path))
    others = [o for i, o in enumerate(wanted) if i != min(where, 3)]
    assert write(others, bad).written == 1  # what is not written need not be finite
    reason = write(wanted, bad).failed["bad"]
    assert reason != writer.failed["bad"]  # it names the older files
    assert is_done("bad", others)


def test_tracks_whose_names_no_file_can_have_fail(tmp_path):
    wanted = outputs(tmp_path)
    bad = {"n" * 245, "file.txt/x", "a/" + "d" * 300 + "/x", "nul\0", "lone\ud800", "folder"}
    for output in wanted:
        output.path("folder").mkdir(parents=True)
        (output.folder / "file.txt").write_text("a file")
        (output.folder / "loop").symlink_to("loop")
    good = ["good 1", "n\n\udcff", "$x_\n.mp3"]
    tracks = [result(key, pooled=False) for key in (good[0], *bad, "loop/x", *good[1:])]
    writer = write(wanted, *tracks)
    assert (set(writer.failed), writer.written) == ({*bad, "loop/x"}, 3)
    assert len(tree(tmp_path)) == 3 * 8 + 4
    assert all(is_done(key, wanted) for key in good)


@pytest.mark.parametrize(
    ("size", "file"), [(60, "7"), (300, "7"), (600, "predictions"), (1000, "predictions")]
)
def test_a_full_disk_ends_the_run(tmp_path, size, file):
    """In the times, an array, a CSV and a JSON."""
    wanted = outputs(tmp_path)
    write(wanted, result("before"))
    with (
        full_disk(size),
        refuses("access", "") as caught,
        ResultWriter(wanted) as writer,
    ):
        for i in range(10 * MAX_WAITING):  # more than can wait: `put` does not hang
            writer.put(result(f"track {i}", pooled=False))
    assert caught.value.path.parent == tmp_path / file
    assert caught.value.path.name.startswith("track 0.")
    assert writer.written == 0
    assert is_done("before", wanted)
    assert not is_done("track 0", wanted)
    with pytest.raises((RuntimeError, InputError)):
        writer.put(result())


def test_a_track_whose_picture_cannot_be_drawn_fails(tmp_path):
    track = result()
    track.picture = np.zeros(3)
    writer = write(outputs(tmp_path), track, result("b"), plot=True)
    assert (list(writer.failed), writer.written) == ([KEY], 1)
    assert not is_done(KEY, outputs(tmp_path))


def test_few_results_wait_and_all_are_written_after_an_exception(tmp_path, monkeypatch):
    go_on, save, count = threading.Event(), np.save, []
    monkeypatch.setattr(np, "save", lambda *a: go_on.wait(10) and save(*a))

    def put(writer: ResultWriter) -> None:
        for i in range(MAX_WAITING + 5):
            writer.put(result(str(i)))
            count.append(i)

    with pytest.raises(Killed), ResultWriter(outputs(tmp_path)) as writer:  # noqa: PT012
        thread = threading.Thread(target=put, args=(writer,))
        thread.start()
        thread.join(0.2)
        assert len(count) <= MAX_WAITING
        go_on.set()
        thread.join()
        raise Killed
    assert writer.written == MAX_WAITING + 5


def test_an_error_of_the_last_track_is_raised_at_the_end(tmp_path):
    with full_disk(60), refuses("access", "7/a/b.mp3.embeddings.npy"):
        write(outputs(tmp_path), result(pooled=False))


def test_the_first_error_is_raised_with_the_other_as_a_note(tmp_path):
    writer = ResultWriter(outputs(tmp_path))
    with pytest.raises(Killed) as caught, full_disk(60), writer:  # noqa: PT012
        writer.put(result())
        raise Killed
    assert len(caught.value.__notes__) == 1


def test_leftovers_of_yesterday_are_removed(tmp_path):
    ours = (
        f".tmp-{digit * 16}{suffix}"
        for digit, suffix in (("0", ".npy"), ("f", ".csv"), ("e", ".txt"))
    )
    names = (*ours, "x.npy", ".tmp-my own numbers.npy")
    past = time.time() - 2 * 24 * 3600
    for name in names:
        (tmp_path / name).write_text("x")
        if not name.endswith(".csv"):
            os.utime(tmp_path / name, (past, past))
    remove_leftovers(tmp_path, SUFFIXES)
    assert set(tree(tmp_path)) == set(names[1:])
    remove_leftovers(tmp_path / "missing", SUFFIXES)
