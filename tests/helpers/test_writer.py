"""What the network says of a track is on disk, whole, or the reason why it is not."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maest.datasets.embeddings import read_tokens, select_tokens
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import read_failures, remove_leftovers
from maest.helpers.reports import activation_plot
from maest.helpers.results import writer as module
from maest.helpers.results.predictions import read_predictions
from maest.helpers.results.tracks import TrackResult
from maest.helpers.results.writer import SUFFIXES, Output, ResultWriter, is_done, tidy_warnings

D, C, P = 8, 3, 4


def outputs(root: Path) -> list[Output]:
    return [
        Output("embeddings", 7, root / "7"),
        Output("embeddings", -1, root / "final"),
        Output("logits", None, root / "logits"),
        Output("predictions", None, root / "predictions"),
    ]


def result(key: str = "a/b.mp3", pooled: bool = True, fill: float = 0.5) -> TrackResult:
    """A track of 4 patches of 2 s."""
    shape = () if pooled else (P,)
    times = np.array([(2 * i, 2 * i + 1, 2 * i + 2) for i in range(P)], np.float64)
    return TrackResult(
        key,
        0,
        8.0,
        times,
        embeddings={
            7: np.full((*shape, 3, D), fill, np.float32),
            -1: np.full((*shape, D), fill, np.float32),
        },
        logits=np.full((*shape, C), fill, np.float32),
        activations=np.full(C, fill, np.float32),
        patch_activations=np.full((P, C), fill, np.float32),
        picture=np.zeros((96, 10), np.float32),
    )


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---- what is written -----------------------------------------------------------------------------


def test_pooled(tmp_path):
    with ResultWriter(outputs(tmp_path), labels=["x", "y", "z"], top=2) as writer:
        writer.put(result())
    assert (writer.written, writer.failed) == (1, {})
    assert files(tmp_path) == [
        "7/a/b.mp3.embeddings.npy",
        "final/a/b.mp3.embeddings.npy",
        "logits/a/b.mp3.logits.npy",
        "predictions/a/b.mp3.predictions.csv",
        "predictions/a/b.mp3.predictions.json",
    ]
    shapes = [np.load(o.path("a/b.mp3")).shape for o in outputs(tmp_path)[:3]]
    assert shapes == [(3, D), (D,), (C,)]
    found = read_predictions(outputs(tmp_path)[3].path("a/b.mp3"))
    assert [entry["label"] for entry in found["labels"]] == ["x", "y"]


def test_of_each_patch(tmp_path):
    with ResultWriter(outputs(tmp_path)[:3]) as writer:
        writer.put(result(pooled=False))
    assert files(tmp_path) == [
        "7/a/b.mp3.embeddings.npy",
        "7/a/b.mp3.times.csv",
        "final/a/b.mp3.embeddings.npy",
        "final/a/b.mp3.times.csv",
        "logits/a/b.mp3.logits.npy",
        "logits/a/b.mp3.times.csv",
    ]
    shapes = [np.load(o.path("a/b.mp3")).shape for o in outputs(tmp_path)[:3]]
    assert shapes == [(P, 3, D), (P, 1, D), (P, C)]
    assert (tmp_path / "7/a/b.mp3.times.csv").read_text().splitlines() == [
        "patch,start,centre,end",
        "0,0.000,1.000,2.000",
        "1,2.000,3.000,4.000",
        "2,4.000,5.000,6.000",
        "3,6.000,7.000,8.000",
    ]
    for output, types in zip(outputs(tmp_path)[:2], ("cdt", "c"), strict=True):
        embedding = select_tokens(read_tokens(output.path("a/b.mp3")), types, "mean")
        np.testing.assert_array_equal(embedding, np.full(D, 0.5))


def test_three_patches_are_not_taken_for_three_tokens(tmp_path):
    three = result(pooled=False)
    three.times, three.embeddings = three.times[:3], {-1: three.embeddings[-1][:3]}
    output = Output("embeddings", -1, tmp_path)
    with ResultWriter([output]) as writer:
        writer.put(three)
    assert np.load(output.path("a/b.mp3")).shape == (3, 1, D)


def test_float32_whatever_comes(tmp_path):
    half = result()
    half.logits = half.logits.astype(np.float16)
    output = Output("logits", None, tmp_path)
    with ResultWriter([output]) as writer:
        writer.put(half)
    assert np.load(output.path("a/b.mp3")).dtype == np.float32


def test_picture_comes_before_the_json(tmp_path, monkeypatch):
    output = Output("predictions", None, tmp_path)
    with ResultWriter([output], top=2, plot=True) as writer:
        writer.put(result("$x_\udcff\n.mp3"))
    assert writer.failed == {}
    assert sorted(os.path.splitext(name)[1] for name in files(tmp_path)) == [
        ".csv",
        ".json",
        ".png",
    ]
    assert is_done("$x_\udcff\n.mp3", [output], plot=True)
    monkeypatch.setattr(activation_plot, "activation_plot", lambda *_: 1 / 0)
    with ResultWriter([output], plot=True) as writer:
        writer.put(result("b"))
    assert writer.failed == {
        "b": "its files cannot be written: ZeroDivisionError: division by zero"
    }
    assert not output.path("b").exists()


def test_what_does_not_belong_to_the_new_files_goes(tmp_path):
    with ResultWriter(outputs(tmp_path), plot=True) as writer:
        writer.put(result(pooled=False))
        writer.put(result("other", pooled=False))
    before = files(tmp_path)
    assert sum(name.endswith((".times.csv", ".png")) for name in before) == 8
    with ResultWriter(outputs(tmp_path)) as writer:
        writer.put(result())
    gone = set(before) - set(files(tmp_path))
    assert gone == {
        *(f"{level}/a/b.mp3.times.csv" for level in ("7", "final", "logits")),
        "predictions/a/b.mp3.predictions.png",
    }
    (tmp_path / "logits" / "c.times.csv").mkdir()  # a folder of music that is called so
    (tmp_path / "predictions" / "c.predictions.png").mkdir()
    with ResultWriter(outputs(tmp_path)) as writer:
        writer.put(result("c"))
    assert (writer.written, writer.failed) == (1, {})
    assert (tmp_path / "logits" / "c.times.csv").is_dir()


# ---- done, or not --------------------------------------------------------------------------------


def test_done_means_all_files(tmp_path):
    audio, wanted = tmp_path / "b.mp3", outputs(tmp_path / "out")
    audio.write_text("x")
    assert not is_done("a/b.mp3", wanted)
    with ResultWriter(wanted) as writer:
        writer.put(result())
    assert is_done("a/b.mp3", wanted, audio)
    assert not is_done("a/b.mp3", wanted, plot=True)
    assert is_done("a/b.mp3", wanted[:3], audio, plot=True)
    assert is_done("a/b.mp3", wanted, tmp_path / "not there")
    for output in wanted:
        path = output.path("a/b.mp3")
        before = path.read_bytes()
        for truncated in (b"", before[:100], before[:-1], before[:-30], before + b"x", b"x" * 300):
            path.write_bytes(truncated)
            assert not is_done("a/b.mp3", wanted, audio)
        path.unlink()
        assert not is_done("a/b.mp3", wanted, audio)
        path.mkdir()
        assert not is_done("a/b.mp3", wanted, audio)
        path.rmdir()
        path.write_bytes(before)
        assert is_done("a/b.mp3", wanted, audio)
        stamp = audio.stat().st_mtime_ns
        os.utime(path, ns=(stamp, stamp - 1))
        assert not is_done("a/b.mp3", wanted, audio)
        os.utime(path, ns=(stamp, stamp))
        assert is_done("a/b.mp3", wanted, audio)
    assert not is_done("nul\0", wanted)
    assert not is_done("a/b.mp3", [])


@pytest.mark.parametrize("level", ["7", "final", "logits"])
def test_patches_without_all_their_times_are_not_done(tmp_path, level):
    wanted = outputs(tmp_path)
    with ResultWriter(wanted) as writer:
        writer.put(result(pooled=False))
    assert is_done("a/b.mp3", wanted)
    times = tmp_path / level / "a/b.mp3.times.csv"
    lines = times.read_bytes().splitlines(keepends=True)
    for left in (lines[:-1], lines[:1], []):
        times.write_bytes(b"".join(left))
        assert not is_done("a/b.mp3", wanted)
    times.unlink()
    assert not is_done("a/b.mp3", wanted)


def test_a_damaged_csv_or_picture_is_not_done(tmp_path):
    wanted = outputs(tmp_path)[3:]
    with ResultWriter(wanted, plot=True) as writer:
        writer.put(result())
    for suffix in (".csv", ".png"):
        path = wanted[0].path("a/b.mp3").with_suffix(suffix)
        before = path.read_bytes()
        path.write_bytes(before[:-5])
        assert not is_done("a/b.mp3", wanted, plot=True)
        path.write_bytes(before)
        assert is_done("a/b.mp3", wanted, plot=True)


# ---- warnings ------------------------------------------------------------------------------------


def warned(key: str, *warnings: str) -> TrackResult:
    found = result(key)
    found.warnings = list(warnings)
    return found


def listed(path: Path) -> dict[str, str]:
    tidy_warnings(path)
    return read_failures(path, value="warnings")


def test_warnings_stand_beside_the_results(tmp_path):
    with ResultWriter(outputs(tmp_path), top=1) as writer:
        for one in (
            warned("ä\n\udcff"),
            warned("b", "silent", "0.1 s only"),
            warned("a", "silent"),
        ):
            writer.put(one)
    assert (writer.written, writer.warned) == (3, 2)
    for level in ("7", "final", "logits"):
        found = listed(tmp_path / level / "warnings.csv")
        assert list(found.items()) == [("a", "silent"), ("b", "silent; 0.1 s only")]
    assert not (tmp_path / "predictions/warnings.csv").exists()
    prediction = tmp_path / "predictions/b.predictions.json"
    assert read_predictions(prediction)["warnings"] == ["silent", "0.1 s only"]


def test_a_track_that_is_made_again_has_its_new_warnings(tmp_path):
    path = tmp_path / "7/warnings.csv"
    with ResultWriter(outputs(tmp_path)) as writer:
        for one in (warned("a", "silent"), warned("b", "silent"), warned("c", "channels cancel")):
            writer.put(one)
    with ResultWriter(outputs(tmp_path)) as writer:  # another run, after one that did not end well
        for one in (warned("a"), warned("b", "0.1 s only"), warned("d")):
            writer.put(one)
    assert listed(path) == {"b": "0.1 s only", "c": "channels cancel"}
    with ResultWriter(outputs(tmp_path)) as writer:
        writer.put(warned("b"))
        writer.put(warned("c"))
    assert listed(path) == {}


def test_warnings_of_shards_are_joined(tmp_path):
    for shard, key in enumerate("ab", 1):
        with ResultWriter(outputs(tmp_path), warnings=f"warnings-{shard}-of-2.csv") as writer:
            writer.put(warned(key, "silent"))
    path = tmp_path / "7/warnings.csv"
    tidy_warnings(path, sorted(path.parent.glob("warnings-*-of-*.csv")))
    assert listed(path) == {"a": "silent", "b": "silent"}


def test_a_list_of_warnings_that_was_cut_off(tmp_path):
    path = tmp_path / "warnings.csv"
    path.write_text("key,warnings\r\na,silent\r\nb", newline="")
    assert listed(path) == {"a": "silent"}


# ---- done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", range(8))
def test_a_kill_between_files_is_noticed(tmp_path, monkeypatch, killed_at):
    """Times and array, three times; then CSV and JSON."""
    wanted, rename, count = outputs(tmp_path), os.replace, iter(range(100))

    def killed(*paths):
        if next(count) >= killed_at:
            raise KeyboardInterrupt
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt), ResultWriter(wanted) as writer:
            writer.put(result(pooled=False))
    assert writer.written == 0
    assert len(files(tmp_path)) == killed_at
    assert not is_done("a/b.mp3", wanted)
    for output in wanted[:3]:  # no array of patches without their times
        if output.path("a/b.mp3").exists():
            assert (output.folder / "a/b.mp3.times.csv").exists()
    with ResultWriter(wanted) as writer:
        writer.put(result(pooled=False))
    assert is_done("a/b.mp3", wanted)
    assert len(files(tmp_path)) == 8


def test_a_kill_while_older_files_are_replaced_is_noticed(tmp_path, monkeypatch):
    wanted, audio = outputs(tmp_path / "out"), tmp_path / "b.mp3"
    with ResultWriter(wanted) as writer:
        writer.put(result())
    stamp = time.time_ns() - 10**10
    for output in wanted:
        os.utime(output.path("a/b.mp3"), ns=(stamp, stamp))
    audio.write_text("a new one")
    os.utime(audio, ns=(stamp + 1, stamp + 1))
    monkeypatch.setattr(module, "write_predictions", full)
    with pytest.raises(InputError), ResultWriter(wanted) as writer:
        writer.put(result())
    assert not is_done("a/b.mp3", wanted, audio)


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 1, 2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, where, value):
    bad = result("bad")
    arrays = (*bad.embeddings.values(), bad.logits, bad.activations, bad.patch_activations)
    arrays[where].flat[-1] = value
    with ResultWriter(outputs(tmp_path)) as writer:
        writer.put(bad)
        writer.put(result("good"))
    assert writer.written == 1
    assert writer.failed.keys() == {"bad"}
    assert "NaN or infinite values (of fp16: try trainer.precision=32-true)" in writer.failed["bad"]
    assert not any("bad" in name for name in files(tmp_path))
    with ResultWriter(outputs(tmp_path)) as writer:
        arrays[where].flat[-1] = 0
        writer.put(bad)
    assert writer.written == 1
    arrays[where].flat[-1] = value
    with ResultWriter(outputs(tmp_path)) as writer:
        writer.put(bad)
    assert writer.failed["bad"].endswith("; its files from before are kept")


def test_what_was_not_asked_for_need_not_be_finite(tmp_path):
    other = result()
    other.logits[:] = np.nan
    with ResultWriter(outputs(tmp_path)[:2]) as writer:
        writer.put(other)
    assert writer.written == 1


def test_names_that_no_file_can_have_cost_their_tracks_only(tmp_path):
    wanted = outputs(tmp_path)
    bad = ["n" * 245, "file.txt/x", "a/" + "d" * 300 + "/x", "nul\0", "lone\ud800", "folder"]
    for output in wanted:
        output.path("folder").mkdir(parents=True)
        (output.folder / "file.txt").write_text("a file")
        (output.folder / "loop").symlink_to("loop")
    with ResultWriter(wanted) as writer:
        for key in ("good 1", *bad, "loop/x", "n\n\udcff", "good 2"):
            writer.put(result(key, pooled=False))
    assert set(writer.failed) == {*bad, "loop/x"}
    assert writer.written == 3
    assert writer.failed[bad[0]] == "its file cannot be written: File name too long"
    made = [name for name in files(tmp_path) if not name.endswith(("file.txt", "loop"))]
    assert len(made) == 3 * 8
    assert all(is_done(key, wanted) for key in ("good 1", "n\n\udcff", "good 2"))


@pytest.mark.parametrize(
    "fail", [full, lambda *_: np.zeros(100_000).tofile("/dev/full")], ids=["system", "numpy"]
)
@pytest.mark.parametrize("what", ["_write_array", "write_times", "write_predictions"])
def test_full_disk(tmp_path, monkeypatch, fail, what):
    wanted = outputs(tmp_path)
    with ResultWriter(wanted) as writer:
        writer.put(result("before"))
    monkeypatch.setattr(module, what, fail)
    with (  # noqa: PT012
        pytest.raises(InputError) as caught,
        ResultWriter(wanted) as writer,
    ):
        for i in range(10 * module.MAX_WAITING):  # more than can wait: `put` does not hang
            writer.put(result(f"track {i}", pooled=False))
    assert caught.value.kind == "access"
    assert str(caught.value.path).startswith(f"{tmp_path}/")
    assert "track 0." in str(caught.value.path)
    assert "disk is full" in str(caught.value)
    assert writer.written == 0
    assert is_done("before", wanted)
    assert not is_done("track 0", wanted)
    with pytest.raises((RuntimeError, InputError)):
        writer.put(result())


def test_folder_that_takes_no_files(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(module, "_write_array", refused)
    with pytest.raises(InputError) as error, ResultWriter(outputs(tmp_path)) as writer:
        writer.put(result())
    assert error.value.kind == "access"
    assert "b.mp3.embeddings.npy" in str(error.value.path)
    assert "inference.out_dir" in error.value.hint


def test_a_slip_in_the_program_surfaces(tmp_path):
    other = result()
    del other.embeddings[7]
    with pytest.raises(KeyError), ResultWriter(outputs(tmp_path)) as writer:
        writer.put(other)


def test_what_waits_is_written_after_an_exception(tmp_path, monkeypatch):
    held, write = threading.Event(), module._write_array

    def slowly(*arguments):
        held.wait(10)
        write(*arguments)

    monkeypatch.setattr(module, "_write_array", slowly)
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        ResultWriter(outputs(tmp_path)) as writer,
    ):
        for i in range(5):
            writer.put(result(str(i)))
        assert writer.written == 0
        held.set()
        raise KeyboardInterrupt
    assert writer.written == 5
    assert all(is_done(str(i), outputs(tmp_path)) for i in range(5))


def test_the_first_error_is_the_one_to_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_write_array", full)
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt) as caught,
        ResultWriter(outputs(tmp_path)) as writer,
    ):
        writer.put(result())
        raise KeyboardInterrupt
    assert "the disk is full" in caught.value.__notes__[0]


def test_no_more_than_some_wait(tmp_path, monkeypatch):
    held = threading.Event()

    def slowly(*_):
        held.wait(10)

    monkeypatch.setattr(module, "_write_array", slowly)
    count = []

    def put():
        for i in range(module.MAX_WAITING + 5):
            logits = np.zeros(1, np.float32)
            writer.put(TrackResult(str(i), i, 1.0, np.zeros((1, 3)), logits=logits))
            count.append(i)

    with ResultWriter([Output("logits", None, tmp_path)]) as writer:
        thread = threading.Thread(target=put)
        thread.start()
        until = time.monotonic() + 10
        while len(count) < module.MAX_WAITING and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(count) == module.MAX_WAITING
        held.set()
        thread.join()
    assert writer.written == module.MAX_WAITING + 5


def test_leftovers_of_yesterday_are_removed(tmp_path):
    names = (".tmp-1.npy", ".tmp-2.csv", "x.npy", ".tmp-notes.txt")
    old, new, *mine = (tmp_path / "a" / name for name in names)
    old.parent.mkdir()
    for path in (old, new, *mine):
        path.write_text("x")
    past = time.time() - 2 * 24 * 3600
    for path in (old, *mine):
        os.utime(path, (past, past))
    remove_leftovers(tmp_path, SUFFIXES)
    assert files(tmp_path) == ["a/.tmp-2.csv", "a/.tmp-notes.txt", "a/x.npy"]
    remove_leftovers(tmp_path / "not there", SUFFIXES)
