"""What a batch is made of."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from made_up import refuses
from torch.utils.data import DataLoader

from maest.config.settings import TrainerSettings
from maest.datasets import scores
from maest.datasets.batches import ClipBatch, PackedStrings, TrackBatch, collate_tracks
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.scores import preprocess
from maest.datasets.teacher_logits import read_teacher_logits
from maest.experiments import devices
from maest.helpers.audio.patches import cut, times, write_times
from maest.helpers.errors import InputError


def module(toy: Any, **options: Any) -> MaestDataModule:
    return MaestDataModule(**{"clip_frames": 40, "seed": 4, **toy.data(), **options})


def labels_are_beside(batch: ClipBatch) -> bool:
    """Whether the loud band of each clip is its label."""
    loud = batch.mel.float().reshape(len(batch), -1, 3, 32).mean((1, 3))
    return bool((loud.argmax(1) == batch.targets.argmax(1)).all())


def test_batches_of_short_and_of_full_clips_take_turns(toy):
    data = module(toy, clip_frames=60, short_frames=30, batch_size_train=2, clips_per_epoch=120)
    loader = data.train_dataloader()
    items, batches = list(loader.sampler), list(loader)
    lengths = [batch.mel.shape[1] for batch in batches]
    assert lengths == [30 if seed % 2 else 60 for _, seed in items[::2]]
    assert set(lengths) == {30, 60}
    assert all(labels_are_beside(batch) for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_the_clips_that_its_items_ask_for(toy, workers):
    """Each equals the frames of the file on disk."""
    data = module(toy, clip_frames=100, batch_size_train=7, num_workers=workers)
    groundtruth, loader = data.splits["train"], data.train_dataloader()
    items, batches = list(loader.sampler), list(loader)
    assert [len(batch) for batch in batches] == [7] * 5 + [1]
    assert all(labels_are_beside(batch) for batch in batches)
    assert (batches[0].targets.dtype, batches[0].teacher) == (torch.float32, None)
    clips = torch.cat([batch.mel for batch in batches])
    assert clips.dtype == torch.float16
    padded = 0
    for (index, seed), clip in zip(items, clips, strict=True):
        track = np.fromfile(toy.mels / groundtruth.keys[index], np.float16).reshape(-1, 96)
        if len(track) >= 100:
            start = np.random.default_rng(seed).integers(len(track) - 99)
            expected = track[start : start + 100]
        else:
            before = (100 - len(track)) // 2
            expected = np.pad(track, ((before, 100 - before - len(track)), (0, 0)))
            padded += 1
        np.testing.assert_array_equal(clip, expected)
    assert 0 < padded < 36


def test_batches_move_as_a_whole_and_a_gpu_is_not_waited_for():
    class Recorder(torch.Tensor):
        def to(self, device, **options):
            self.moved = device, options["non_blocking"]
            return self

    mel, targets, track = Recorder(), Recorder(), Recorder()
    for device, given_, expected in (
        ("cuda:0", {}, True),
        (torch.device("cuda", 1), {"non_blocking": False}, False),
        ("cpu", {}, False),  # a copy from a GPU is complete before it is read
    ):
        ClipBatch(mel, targets, track).to(device, **given_)
        assert {tensor.moved for tensor in (mel, targets, track)} == {(device, expected)}
        moved = TrackBatch(["a"], targets, [(mel, track)], {"b": "c"}).to(device, **given_)
        assert {tensor.moved for tensor in (mel, targets, track)} == {(device, expected)}
        assert (moved.keys, moved.errors) == (["a"], {"b": "c"})
    assert ClipBatch(mel, targets).to("cpu").teacher is None


@examples(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_characters="\0"))))
def test_packed_strings(strings):
    packed = PackedStrings(strings)
    assert list(packed) == strings
    for i in range(len(strings)):
        assert packed[np.int64(i)] == packed[i - len(strings)] == strings[i]
    with pytest.raises(IndexError):
        packed[len(strings)]


def test_a_track_batch_groups_patches_of_one_length():
    tracks = [
        ("a", [np.full((10, 96), 1.0), np.full((10, 96), 2.0), np.full((7, 96), 3.0)], np.ones(2)),
        ("b", [np.full((7, 96), 4.0)], np.zeros(2)),
        ("d", [np.full((10, 96), 5.0)], np.ones(2)),
    ]
    batch = collate_tracks(tracks, {"c": "gone"})
    assert (len(batch), batch.keys, batch.errors) == (3, ["a", "b", "d"], {"c": "gone"})
    assert batch.targets.tolist() == [[1, 1], [0, 0], [1, 1]]
    found = [(mel.shape[1], mel[:, 0, 0].tolist(), track.tolist()) for mel, track in batch.groups]
    assert found == [(10, [1, 2, 5], [0, 0, 2]), (7, [3, 4], [0, 1])]


@contextmanager
def loading(loader: DataLoader) -> Iterator[DataLoader]:
    """Ends worker processes at once, which after an error wait for a garbage collection."""
    try:
        yield loader
    finally:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


FAULTS = ("no such file", "truncated", "NaN", "is empty", "no such file", "truncated")


@pytest.fixture
def faulty(toy, tmp_path):
    """A copy of the toy set with six bad training files, and their reasons."""
    shutil.copytree(toy.root, tmp_path / "copy")
    mels = tmp_path / "copy" / "mels"
    bad = {f"train/{i:02d}.mmap": reason for i, reason in enumerate(FAULTS)}
    for key, reason in bad.items():
        path = mels / key
        if reason == "no such file":
            path.unlink()
        elif reason == "NaN":
            np.full((200, 96), np.nan, np.float16).tofile(path)
        else:
            path.write_bytes(path.read_bytes()[:1001] if reason == "truncated" else b"")
    (mels / "test/03.mmap").unlink()
    (mels / "validation/05.mmap").write_bytes(bytes(7))
    return replace(toy, root=tmp_path / "copy"), bad


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_bad_files(faulty, toy, workers):
    damaged, bad = faulty

    def epoch(toy_set: Any) -> tuple[list[str], list[ClipBatch]]:
        data = module(toy_set, num_workers=workers, on_error="skip", clips_per_epoch=72)
        loader = data.train_dataloader()
        return [data.splits["train"].keys[i] for i, _ in loader.sampler], list(loader)

    (keys, whole), (_, first), (_, again) = epoch(toy), epoch(damaged), epoch(damaged)
    errors = {key: reason for batch in first for key, reason in batch.errors.items()}
    assert errors.keys() == bad.keys()
    assert all(key in reason for key, reason in errors.items())
    assert all(labels_are_beside(batch) for batch in first)  # also of a substitute
    whole, first, again = (torch.cat([b.mel for b in batches]) for batches in (whole, first, again))
    assert torch.equal(first, again)
    # other clips are those of an undisturbed run
    same = [torch.equal(one, other) for one, other in zip(whole, first, strict=True)]
    assert same == [key not in bad for key in keys]


def test_a_bad_file_is_refused_by_its_name(faulty):
    with refuses("missing", "test/03.mmap"):
        list(module(faulty[0]).test_dataloader())
    with pytest.raises(InputError) as error:
        list(module(faulty[0]).train_dataloader())
    assert str(Path(error.value.path).relative_to(faulty[0].mels)) in faulty[1]


def test_skipping_ends_where_nothing_can_be_read(tmp_path):
    def batches(tracks: int) -> DataLoader:
        write_groundtruth(tmp_path / "gt.pk", {f"{i}.mmap": [1, 0] for i in range(tracks)})
        splits = {"train": read_groundtruth(tmp_path / "gt.pk")}
        options = {"base_dir": tmp_path, "clip_frames": 40, "on_error": "skip"}
        return MaestDataModule(splits, **options).train_dataloader()

    for tracks in (500, 4):
        with refuses("empty", setting="datamodule.on_error"):
            next(iter(batches(tracks)))
    np.ones((50, 96), np.float16).tofile(tmp_path / "3.mmap")  # one good file is enough
    assert len(next(iter(batches(4)))) == 4


def test_targets_of_a_regression(toy, tmp_path):
    values = {"test/00.mmap": [0.5, -2.0], "test/01.mmap": [1.5, 3.0]}
    write_groundtruth(tmp_path / "values.pk", values, task="regression")
    split = read_groundtruth(tmp_path / "values.pk", task="regression")
    data = module(toy, splits={"train": split, "test": split})
    targets = next(iter(data.train_dataloader())).targets
    assert targets.dtype == torch.float32
    assert sorted(targets.tolist()) == sorted(values.values())
    assert next(iter(data.test_dataloader())).targets.tolist() == list(values.values())


@pytest.fixture
def teacher(toy, tmp_path):
    """Logits for the toy set's training tracks: the track's number, times -1, 0 and 1."""
    for i in range(36):
        path = tmp_path / f"train/{i:02d}.mmap.logits.npy"
        path.parent.mkdir(exist_ok=True)
        logits = np.array([-i, 0, i], np.float32)
        np.save(path, logits if i % 2 else np.stack([logits - 1, logits + 1]))
        write_times(path.with_name(f"{i:02d}.mmap.times.csv"), np.array([[0, 1, 2], [2, 3, 4]]))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_teachers_logits_stand_beside_their_tracks(toy, teacher, workers):
    taught, plain = (
        module(toy, num_workers=workers, teacher_dir=folder) for folder in (teacher, None)
    )
    taught.setup("fit")
    numbers: list[int] = []
    for batch, own in zip(taught.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(batch.mel, own.mel)
        assert torch.equal(batch.targets, own.targets)
        assert batch.teacher.dtype == torch.float32
        assert (batch.teacher[:, 0] == -batch.teacher[:, 2]).all()  # also of the mean over patches
        assert (batch.teacher[:, 2] % 3 == batch.targets.argmax(1)).all()
        numbers += batch.teacher[:, 2].int().tolist()
    assert sorted(numbers) == list(range(36))


@pytest.mark.parametrize("workers", [0, 2])
def test_tracks_without_logits_are_skipped_or_refused(toy, teacher, workers):
    np.save(teacher / "train/04.mmap.logits.npy", np.zeros(9, np.float32))
    options = {"num_workers": workers, "teacher_dir": teacher, "batch_size_train": 36}
    data = module(toy, **options)
    data.setup("fit")  # which opens none
    name = r"04\.mmap\.logits\.npy: "
    with pytest.raises(InputError, match=name), loading(data.train_dataloader()) as loader:
        next(iter(loader))
    (teacher / "train/03.mmap.logits.npy").unlink()
    data.setup("test")
    with refuses("missing", str(teacher), "datamodule.teacher_dir"):
        data.setup("fit")
    data = module(toy, **options, on_error="skip")
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert set(chain.from_iterable(batch.errors for batch in batches)) == {
        *("train/03.mmap", "train/04.mmap"),
    }
    numbers = torch.cat([batch.teacher for batch in batches])[:, 2].int()
    assert len(numbers) == 36
    assert not {3, 4} & set(numbers.tolist())
    assert (numbers % 3 == torch.cat([batch.targets for batch in batches]).argmax(1)).all()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        *(
            (np.zeros(shape, np.float32), "mismatch")
            for shape in [4, (2, 4), (1, 2, 3), (0, 3), ()]
        ),
        (np.zeros(3, int), "mismatch"),
        (np.array([0, np.nan, 0]), "mismatch"),
        (np.array([0, None, 0]), "corrupt"),
        *((content, "corrupt") for content in (b"", b"\x93NUMPY half")),
        (None, "missing"),
    ],
)
def test_bad_logits(tmp_path, content, kind):
    path = tmp_path / "a" / "b.mmap.logits.npy"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with refuses(kind, str(path)) as error:
        read_teacher_logits(tmp_path, "a/b.mmap", 3)
    assert "\n" not in str(error.value)


def test_logits_of_patches_are_pooled_as_extraction_pools_them(tmp_path):
    """31.1 s: a patch of 30 s, and one of 70 frames."""
    np.save(tmp_path / "b.mmap.logits.npy", np.array([[1.0, 0, 2], [0, 1, 2]], np.float32))
    with refuses("missing", "b.mmap.times.csv"):
        read_teacher_logits(tmp_path, "b.mmap", 3)
    write_times(tmp_path / "b.mmap.times.csv", np.array(times(cut(1945, 1875), 1945)))
    expected = [1875 / 1945, 70 / 1945, 2]
    np.testing.assert_allclose(read_teacher_logits(tmp_path, "b.mmap", 3), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("cpus", "cores", "processes", "wanted", "expected"),
    [
        (32, 32, 1, None, 12),
        (32, 32, 8, None, 4),
        (32, 32, 64, None, 1),
        (32, 32, 1, 3, 3),
        (128, 8, 4, None, 8),  # tasks that a scheduler has bound to some of the cores
        (128, 1, 4, None, 1),
        (128, 128, 16, None, 8),
    ],
)
def test_workers_are_shared_by_the_processes_of_a_machine(
    monkeypatch, cpus, cores, processes, wanted, expected
):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    found = devices.find_devices(TrainerSettings(devices=processes))
    assert found.workers(wanted) == (wanted or 0)  # without a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = devices.find_devices(TrainerSettings(devices=processes))
    assert found.workers(wanted) == expected


def test_the_embedded_set_is_built_once_where_it_is_wanted_and_missing(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(scores, "DATA_DIR", tmp_path / "data")

    def build() -> None:
        built.append(True)
        time.sleep(0.1)
        (tmp_path / "data" / "report.json").touch()

    monkeypatch.setattr(preprocess, "build", build)
    scores.build_if_missing([None, tmp_path / "elsewhere.pk"])
    assert not built
    paths = [tmp_path / "data" / "style" / "groundtruth-train.pk"]
    threads = [threading.Thread(target=scores.build_if_missing, args=(paths,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # a mistyped name is no reason for another
    scores.build_if_missing([tmp_path / "data" / "style" / "groundtruth-trian.pk"])
    assert built == [True]
