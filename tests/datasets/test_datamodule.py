"""What a batch is made of."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from maest.config.settings import TrainerSettings
from maest.datasets.batches import ClipBatch, CropDataset, PackedStrings, TrackBatch, collate_tracks
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import (
    labels_beside,
    read_groundtruth,
    write_groundtruth,
    write_labels,
)
from maest.datasets.teacher import read_teacher_logits
from maest.experiments import devices, runs
from maest.helpers.audio.patches import cut, times, write_times
from maest.helpers.errors import InputError


def test_a_training_batch_is_crops_as_they_are_on_disk(toy):
    data = MaestDataModule(clip_frames=40, batch_size_train=8, **toy.data())
    batch = next(iter(data.train_dataloader()))
    mel, targets = batch.mel, batch.targets
    assert (len(batch), batch.teacher, batch.errors) == (8, None, {})
    assert (mel.shape, mel.dtype) == ((8, 40, 96), torch.float16)
    assert (targets.shape, targets.dtype) == ((8, 3), torch.float32)
    loud = mel.float().reshape(8, 40, 3, 32).mean((1, 3))
    assert (loud.argmax(1) == targets.argmax(1)).all()  # labels stand beside their clips


def test_batches_are_the_same_whatever_the_workers(toy):
    def batches(workers: int) -> list[torch.Tensor]:
        data = MaestDataModule(clip_frames=40, num_workers=workers, seed=5, **toy.data())
        return [batch.mel for batch in data.train_dataloader()]

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone, shared)


def test_a_batch_is_the_clips_that_its_items_ask_for(toy):
    """Each by itself from the file, mapped into memory as a whole."""
    data = MaestDataModule(clip_frames=100, batch_size_train=7, seed=3, **toy.data())
    groundtruth, loader = data.splits["train"], data.train_dataloader()
    items = list(loader.sampler)
    rows = [row for batch in loader for row in zip(batch.mel, batch.targets, strict=True)]
    assert len(rows) == len(items) == 36
    padded = 0
    for (index, seed), (clip, target) in zip(items, rows, strict=True):
        track = np.fromfile(toy.mels / groundtruth.keys[index], np.float16).reshape(-1, 96)
        if len(track) >= 100:
            start = np.random.default_rng(seed).integers(len(track) - 99)
            expected = track[start : start + 100]
        else:
            before = (100 - len(track)) // 2
            expected = np.pad(track, ((before, 100 - before - len(track)), (0, 0)))
            padded += 1
        np.testing.assert_array_equal(clip, expected)
        assert target.tolist() == groundtruth.targets[index].tolist()
    assert 0 < padded < 36


def test_npy_tracks_of_another_type_may_be_among_them(tmp_path):
    rng = np.random.default_rng(0)
    mels = {"a.mmap": rng.random((30, 96)).astype(np.float16), "b.npy": rng.random((30, 96))}
    mels["a.mmap"].tofile(tmp_path / "a.mmap")
    np.save(tmp_path / "b.npy", mels["b.npy"])
    write_groundtruth(tmp_path / "gt.pk", {"a.mmap": [1, 0], "b.npy": [0, 1]})
    groundtruth = read_groundtruth(tmp_path / "gt.pk")
    batch = CropDataset(groundtruth, tmp_path, 30).__getitems__([(1, 0), (0, 0), (1, 5)])
    assert batch.mel.dtype == torch.float64
    for clip, key in zip(batch.mel.numpy(), ("b.npy", "a.mmap", "b.npy"), strict=True):
        np.testing.assert_array_equal(clip, mels[key])
    alone = CropDataset(groundtruth, tmp_path, 30).__getitems__([(0, 0)])
    assert (alone.mel.dtype, len(alone)) == (torch.float16, 1)


def test_batches_move_as_a_whole():
    clips = ClipBatch(torch.ones(2, 4, 96).half(), torch.ones(2, 3), torch.zeros(2, 3), {"a": "b"})
    tracks = TrackBatch(
        ["a"], torch.ones(1, 3), [(torch.ones(2, 4, 96), torch.zeros(2))], {"c": "d"}
    )
    moved = clips.to("meta")
    assert {moved.mel.device.type, moved.targets.device.type, moved.teacher.device.type} == {"meta"}
    assert moved.errors == clips.errors
    moved = tracks.to("meta", non_blocking=False)
    (mel, track), *_ = moved.groups
    assert {mel.device.type, track.device.type, moved.targets.device.type} == {"meta"}
    assert (moved.keys, moved.errors) == (tracks.keys, tracks.errors)
    assert clips.to("cpu").mel.dtype == torch.float16
    assert ClipBatch(clips.mel, clips.targets).to("meta").teacher is None


def test_copies_to_a_gpu_do_not_wait():
    class Recorder(torch.Tensor):
        def to(self, device, **options):
            self.options = options
            return self

    mel, targets, teacher = Recorder(), Recorder(), Recorder()
    for device, given, expected in (
        ("cuda:0", {}, True),
        (torch.device("cuda", 1), {"non_blocking": False}, False),
        ("cpu", {}, False),  # a copy from a GPU must be there before it is looked at
    ):
        ClipBatch(mel, targets, teacher).to(device, **given)
        TrackBatch([], targets, [(mel, teacher)], {}).to(device, **given)
        for tensor in (mel, targets, teacher):
            assert tensor.options == {"non_blocking": expected}


def test_packed_strings():
    strings = ["a/b.mmap", "", "Dvořák – Žalm/ß.mmap", "\udce9.mmap", "", "c"]
    packed = PackedStrings(strings)
    assert list(packed) == strings
    assert [packed[np.int64(i)] for i in range(6)] == strings
    assert packed[-1] == "c"
    with pytest.raises(IndexError):
        packed[6]
    assert list(PackedStrings([])) == []


def test_a_track_batch_groups_patches_of_one_length():
    items = [
        ("a", [np.full((10, 96), 1.0), np.full((10, 96), 2.0), np.full((7, 96), 3.0)], np.ones(2)),
        ("b", [np.full((7, 96), 4.0)], np.zeros(2)),
        ("c", InputError("c: no such file", hint="Look."), np.zeros(2)),
        ("d", [np.full((10, 96), 5.0)], np.ones(2)),
    ]
    batch = collate_tracks(items)
    assert batch.keys == ["a", "b", "d"]
    assert len(batch) == 3
    assert batch.errors == {"c": "c: no such file. Look."}
    assert batch.targets.tolist() == [[1, 1], [0, 0], [1, 1]]
    (long, long_track), (short, short_track) = batch.groups
    assert (long.shape, short.shape) == ((3, 10, 96), (2, 7, 96))
    assert long[:, 0, 0].tolist() == [1, 2, 5]
    assert long_track.tolist() == [0, 0, 2]
    assert short[:, 0, 0].tolist() == [3, 4]
    assert short_track.tolist() == [0, 1]


def test_a_batch_in_which_nothing_could_be_read():
    batch = collate_tracks([("c", InputError("gone", hint="Look."), np.zeros(2))])
    assert len(batch) == 0
    assert batch.groups == []
    assert batch.targets.shape == (0, 2)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_stops_at_a_bad_file_or_tells_it_with_the_others(toy, tmp_path, split):
    path = tmp_path / "gt.pk"
    write_groundtruth(path, {"test/00.mmap": [1, 0, 0], "gone.mmap": [1, 0, 0]})

    def loader(**options) -> DataLoader:
        splits = {split: read_groundtruth(path)}
        data = MaestDataModule(splits, base_dir=toy.mels, clip_frames=40, **options)
        return getattr(data, f"{split}_dataloader")()

    with pytest.raises(InputError, match=r"gone\.mmap"):
        next(iter(loader()))
    batch = next(iter(loader(on_error="skip")))
    assert batch.keys == ["test/00.mmap"]
    assert list(batch.errors) == ["gone.mmap"]
    assert "no such file" in batch.errors["gone.mmap"]


# --- Files that cannot be read ------------------------------------------------------------------


@contextmanager
def loading(loader: DataLoader) -> Iterator[DataLoader]:
    """Ends worker processes at once, which after an error wait for a garbage collection."""
    try:
        yield loader
    finally:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


@pytest.fixture
def faulty(toy, tmp_path):
    """Settings of a copy of the toy set with six bad training files, and their reasons."""
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
    return replace(toy, root=tmp_path / "copy").data(), bad


FAULTS = ("no such file", "truncated", "NaN", "is empty", "no such file", "truncated")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_bad_files(faulty, workers):
    settings, bad = faulty

    def epochs() -> list[list[ClipBatch]]:
        data = MaestDataModule(
            clip_frames=40, num_workers=workers, on_error="skip", clips_per_epoch=72, **settings
        )
        loader = data.train_dataloader()
        return [(loader.sampler.set_epoch(epoch), list(loader))[1] for epoch in range(2)]

    first, again = epochs(), epochs()
    for epoch in first:
        assert sum(map(len, epoch)) == 72
        told = {key: reason for batch in epoch for key, reason in batch.errors.items()}
        assert told.keys() == bad.keys()
        assert all(bad[key] in reason and key in reason for key, reason in told.items())
        for batch in epoch:  # a substitute has its own labels beside it
            loud = batch.mel.float().reshape(-1, 40, 3, 32).mean((1, 3))
            assert (loud.argmax(1) == batch.targets.argmax(1)).all()
    for batch, same in zip(chain(*first), chain(*again), strict=True):
        assert torch.equal(batch.mel, same.mel)
        assert batch.errors == same.errors


def test_other_clips_are_those_of_an_undisturbed_run(faulty, toy):
    settings, bad = faulty
    options = {"clip_frames": 40, "batch_size_train": 36, "seed": 2}
    whole = MaestDataModule(**options, **toy.data())
    keys = whole.splits["train"].keys
    index = [index for index, _ in whole.train_dataloader().sampler]
    skipping = MaestDataModule(**options, on_error="skip", **settings)
    one, other = (next(iter(data.train_dataloader())).mel for data in (whole, skipping))
    same = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
    assert same == [keys[i] not in bad for i in index]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_on_without_bad_files(faulty, workers):
    settings, _ = faulty
    data = MaestDataModule(clip_frames=40, num_workers=workers, on_error="skip", **settings)
    for loader, bad in (
        (data.val_dataloader(), "validation/05.mmap"),
        (data.test_dataloader(), "test/03.mmap"),
    ):
        batches = list(loader)
        assert sum(map(len, batches)) == 11
        assert [key for batch in batches for key in batch.errors] == [bad]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_stops_a_training_by_its_name(faulty, workers):
    settings, _ = faulty
    data = MaestDataModule(clip_frames=40, num_workers=workers, **settings)
    with pytest.raises(InputError) as error, loading(data.train_dataloader()) as loader:
        list(loader)
    message = runs._message(error.value)
    assert message.startswith(settings["base_dir"])
    assert any(f"/{key}: " in message for key in faulty[1])
    assert "preprocess.py" in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_a_file_that_goes_bad_in_the_middle_of_an_epoch(toy, tmp_path):
    shutil.copytree(toy.root, tmp_path / "copy")
    settings = replace(toy, root=tmp_path / "copy").data()
    batches = {}
    for on_error in ("raise", "skip"):
        options = {"clip_frames": 40, "batch_size_train": 4, "on_error": on_error}
        data = MaestDataModule(**options, **settings)
        items = list(data.train_dataloader().sampler)
        victim = tmp_path / "copy" / "mels" / data.splits["train"].keys[items[-1][0]]
        content = victim.read_bytes()
        iterator = iter(data.train_dataloader())
        batches[on_error] = [next(iterator) for _ in range(8)]
        victim.write_bytes(content[:-1])
        if on_error == "raise":
            with pytest.raises(InputError, match=victim.name):
                next(iterator)
        else:
            last = next(iterator)
            assert len(last) == 4
            assert list(last.errors) == [f"train/{victim.name}"]
        victim.write_bytes(content)
    for one, other in zip(*batches.values(), strict=True):
        assert torch.equal(one.mel, other.mel)


def test_skipping_ends_where_nothing_can_be_read(toy, tmp_path):
    tracks = {f"{i}.mmap": [1, 0] for i in range(500)}
    write_groundtruth(tmp_path / "many.pk", tracks)
    write_groundtruth(tmp_path / "few.pk", dict(list(tracks.items())[:4]))
    for name, tried in (("many", "50 of 500"), ("few", "4 of 4")):
        data = MaestDataModule(
            {"train": read_groundtruth(tmp_path / f"{name}.pk")},
            base_dir=tmp_path,
            clip_frames=40,
            on_error="skip",
        )
        with pytest.raises(InputError, match=tried) as error:
            next(iter(data.train_dataloader()))
        assert error.value.kind == "empty"
    np.ones((50, 96), np.float16).tofile(tmp_path / "3.mmap")  # one good file of the few is found
    assert len(next(iter(data.train_dataloader()))) == 4


# --- Several processes, and resumed epochs ------------------------------------------------------


def attached(data: MaestDataModule, rank: int, world_size: int) -> MaestDataModule:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_nodes=1)
    return data


def test_each_process_loads_its_share(toy):
    def data(rank: int, world_size: int) -> MaestDataModule:
        # 36 clips for 5 processes: 7 each, and one is left out
        made = MaestDataModule(clip_frames=40, batch_size_train=3, seed=1, **toy.data())
        return attached(made, rank, world_size)

    whole = torch.cat([batch.mel for batch in data(0, 1).train_dataloader()])
    loaders = [data(rank, 5).train_dataloader() for rank in range(5)]
    parts = [torch.cat([batch.mel for batch in loader]) for loader in loaders]
    assert [len(loader) for loader in loaders] == [3] * 5
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole[:35])
    for split in ("val", "test"):  # 12 tracks: each process has 3, and some are read twice
        loaders = [getattr(data(rank, 5), f"{split}_dataloader")() for rank in range(5)]
        keys = [[key for batch in loader for key in batch.keys] for loader in loaders]
        assert {key for part in keys for key in part} == set(data(0, 1).splits[split].keys)
        assert [len(part) for part in keys] == [3] * 5


def test_workers_are_shared_by_the_processes_of_a_machine(monkeypatch):
    def workers(cpus: int, cores: int, local: int = 1, wanted: int | None = None) -> int:
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(devices, "cores", lambda: cores)
        return devices.find_devices(TrainerSettings(devices=local)).workers(wanted)

    assert workers(32, 32) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert workers(32, 32) == 12
    assert workers(32, 32, 8) == 4
    assert workers(32, 32, 64) == 1
    assert workers(32, 32, wanted=3) == 3
    # tasks that a scheduler has bound to some of the cores
    assert workers(128, 8, 4) == 8
    assert workers(128, 1, 4) == 1
    assert workers(128, 128, 16) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_begins_at_its_batch(toy, workers, monkeypatch):
    def data() -> MaestDataModule:
        options = {"clip_frames": 40, "batch_size_train": 5, "num_workers": workers, "seed": 4}
        return MaestDataModule(**options, **toy.data())

    loader = data().train_dataloader()
    whole = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        whole.append([batch.mel for batch in loader])
    resumed = data()
    resumed.start_at(2, 3)
    loader = resumed.train_dataloader()
    assert len(loader) == 8
    read = []
    fetch = CropDataset.__getitems__
    record = lambda self, items: (read.extend(items), fetch(self, items))[1]  # noqa: E731
    monkeypatch.setattr(CropDataset, "__getitems__", record)  # which worker processes have not
    rest = [batch.mel for batch in loader]
    if not workers:
        assert len(read) == 36 - 3 * 5  # nothing is read of what is skipped
    for one, other in zip(rest, whole[2][3:], strict=True):
        assert torch.equal(one, other)
    loader.sampler.set_epoch(3)
    for one, other in zip(loader, whole[3], strict=True):
        assert torch.equal(one.mel, other)
    done = data()
    done.start_at(0, 8)  # of which the last is a smaller one
    assert list(done.train_dataloader()) == []


def test_skipped_batches_are_those_of_this_process(toy):
    def data() -> MaestDataModule:
        made = MaestDataModule(clip_frames=40, batch_size_train=5, **toy.data())
        return attached(made, 1, 2)

    whole = [batch.mel for batch in data().train_dataloader()]
    resumed = data()
    resumed.start_at(0, 2)
    for one, other in zip(resumed.train_dataloader(), whole[2:], strict=True):
        assert torch.equal(one.mel, other)


class Listener(pl.LightningModule):
    """Notes the clips of each training batch; may save, or stop, after so many of them."""

    def __init__(self, save_after: dict | None = None, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.save_after, self.stop_after = save_after or {}, stop_after
        self.seen: list[tuple[int, torch.Tensor]] = []  # epoch, clips

    def training_step(self, batch: ClipBatch, index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.mel))
        return self.weight * 0

    def on_train_batch_end(self, *args) -> None:
        if len(self.seen) in self.save_after:
            self.trainer.save_checkpoint(self.save_after[len(self.seen)])
        if self.stop_after == len(self.seen):
            self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0)


def listened(toy, folder, workers=0, save=None, stop=None, resume=None, epochs=3, **options):
    """What a real training sees, and its trainer."""
    own = {"clip_frames": 40, "batch_size_train": 5, "num_workers": workers, "seed": 4}
    splits = {"train": toy.data()["splits"]["train"]}
    data = MaestDataModule(splits, base_dir=toy.mels, **own)
    module = Listener(save, stop)
    trainer = pl.Trainer(
        max_epochs=epochs,
        min_epochs=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module.seen, trainer


def assert_same(seen, expected) -> None:
    assert [epoch for epoch, _ in seen] == [epoch for epoch, _ in expected]
    for (_, clips), (_, other) in zip(seen, expected, strict=True):
        assert torch.equal(clips, other)


def state(path) -> dict[str, int]:
    found = torch.load(path, weights_only=False)["MaestDataModule"]
    return {name: found[name] for name in ("epoch", "batches")}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("reload", [0, 1])
def test_a_resumed_training_sees_the_rest_of_its_epoch(toy, tmp_path, workers, reload):
    """Saved after 3 of the 8 batches of the second epoch, and at its end; resumed by Lightning."""
    options = {"reload_dataloaders_every_n_epochs": reload}
    middle, end = tmp_path / "middle.ckpt", tmp_path / "end.ckpt"
    whole, _ = listened(toy, tmp_path, workers, save={11: middle, 16: end}, **options)
    assert [epoch for epoch, _ in whole] == [0] * 8 + [1] * 8 + [2] * 8
    assert not torch.equal(whole[0][1], whole[8][1])
    assert state(middle) == {"epoch": 1, "batches": 3}
    assert state(end) == {"epoch": 2, "batches": 0}
    for path, seen in ((middle, 11), (end, 16)):
        rest, _ = listened(toy, tmp_path, workers, resume=path, **options)
        assert_same(rest, whole[seen:])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_that_was_ended_early_is_done(toy, tmp_path, workers):
    """Lightning counts it, and goes on with the next one, of which nothing is left out."""
    path = tmp_path / "last.ckpt"
    whole, trainer = listened(toy, tmp_path, epochs=3)
    trainer.save_checkpoint(path)
    assert state(path) == {"epoch": 3, "batches": 0}
    begun, trainer = listened(toy, tmp_path, stop=11)
    assert_same(begun, whole[:11])
    trainer.save_checkpoint(path)
    assert state(path) == {"epoch": 2, "batches": 0}
    rest, _ = listened(toy, tmp_path, workers, resume=path)
    assert_same(rest, whole[16:])


def test_a_loader_that_is_made_again_skips_nothing(toy):
    data = MaestDataModule(clip_frames=40, batch_size_train=5, **toy.data())
    data.start_at(0, 3)
    assert len(list(data.train_dataloader())) == 5
    assert len(list(data.train_dataloader())) == 8


def test_labels_come_from_beside_the_ground_truth(toy, tmp_path):
    assert labels_beside(read_groundtruth(toy.groundtruth("train"))) == list(toy.labels)
    write_groundtruth(tmp_path / "gt.pk", {"a": [1, 0]})
    other = read_groundtruth(tmp_path / "gt.pk")
    assert labels_beside(other) is None
    write_labels(tmp_path / "labels.json", ["only one"])
    with pytest.raises(InputError, match=r"labels\.json"):
        labels_beside(other)


def test_the_embedded_data_set_is_built_only_where_it_is_wanted_and_missing(
    toy, tmp_path, monkeypatch
):
    from maest.datasets import scores
    from maest.datasets.scores import preprocess

    built = []
    monkeypatch.setattr(preprocess, "build", lambda: built.append(True))
    monkeypatch.setattr(scores, "DATA_DIR", tmp_path)

    def prepare(path) -> None:
        scores.build_if_missing([None, path])

    prepare(toy.groundtruth("train"))
    prepare(tmp_path.parent / "elsewhere.pk")
    assert not built
    prepare(tmp_path / "style" / "groundtruth-train.pk")
    assert built == [True]
    (tmp_path / "report.json").touch()  # a build is there: a mistyped name is no reason for another
    prepare(tmp_path / "style" / "groundtruth-trian.pk")
    assert built == [True]


def test_of_several_processes_one_builds(tmp_path, monkeypatch):
    from maest.datasets import scores
    from maest.datasets.scores import preprocess

    built = []

    def build() -> None:
        built.append(True)
        time.sleep(0.2)
        (tmp_path / "data" / "report.json").touch()

    monkeypatch.setattr(preprocess, "build", build)
    monkeypatch.setattr(scores, "DATA_DIR", tmp_path / "data")
    path = tmp_path / "data" / "style" / "groundtruth-train.pk"
    threads = [threading.Thread(target=scores.build_if_missing, args=([path],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [True]


# --- Tasks, and a teacher -----------------------------------------------------------------------


def test_targets_of_each_task(toy, tmp_path):
    assert toy.data("single-label")["splits"]["train"].task == "single-label"
    values = {"test/00.mmap": [0.5, -2.0], "test/01.mmap": [1.5, 3.0]}
    write_groundtruth(tmp_path / "values.pk", values, task="regression")
    values_of = read_groundtruth(tmp_path / "values.pk", task="regression")
    splits = {"train": values_of, "test": values_of}
    regression = MaestDataModule(splits, base_dir=toy.mels, clip_frames=40)
    targets = next(iter(regression.train_dataloader())).targets
    assert targets.dtype == torch.float32
    assert sorted(targets.tolist()) == sorted(values.values())
    batch = next(iter(regression.test_dataloader()))
    assert batch.targets.tolist() == list(values.values())


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
    def data(**options) -> MaestDataModule:
        return MaestDataModule(clip_frames=40, num_workers=workers, **toy.data(), **options)

    taught, plain = data(teacher_dir=teacher), data()
    taught.setup("fit")
    numbers = []
    for batch, own in zip(taught.train_dataloader(), plain.train_dataloader(), strict=True):
        logits, targets = batch.teacher, batch.targets
        assert torch.equal(batch.mel, own.mel)
        assert torch.equal(targets, own.targets)
        assert (logits.shape, logits.dtype) == ((len(batch), 3), torch.float32)
        assert (logits[:, 0] == -logits[:, 2]).all()  # also of the mean over patches
        numbers += logits[:, 2].int().tolist()
        assert (logits[:, 2] % 3 == targets.argmax(1)).all()
    assert sorted(numbers) == list(range(36))
    assert len(next(iter(taught.val_dataloader())).targets) == 8


def test_missing_logits_are_counted_before_a_training(toy, teacher):
    for i in (3, 5, 7, 9):
        (teacher / f"train/{i:02d}.mmap.logits.npy").unlink()
    data = MaestDataModule(clip_frames=40, teacher_dir=teacher, **toy.data())
    data.setup("test")
    with pytest.raises(InputError) as error:
        data.setup("fit")
    for part in (
        "4 of 36 training tracks",
        "(train/03.mmap.logits.npy, train/05.mmap.logits.npy, train/07.mmap.logits.npy, ...)",
        "datamodule.teacher_dir",
        "python ex_maest.py extract_logits",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.zeros(4, np.float32), r"holds float32 \(4,\); expected floats \[3\]"),
        (np.zeros((2, 4)), r"holds float64 \(2, 4\)"),
        (np.zeros((1, 2, 3)), r"holds float64 \(1, 2, 3\)"),
        (np.zeros((0, 3)), r"holds float64 \(0, 3\)"),
        (np.float32(0), r"holds float32 \(\)"),
        (np.zeros(3, int), "holds int64"),
        (np.array([0, np.nan, 0]), "NaN or infinite values"),
        (np.array([0, None, 0]), "cannot be read"),
        (b"", "cannot be read"),
        (b"\x93NUMPY half", "cannot be read"),
        (None, "no such file"),
    ],
)
def test_bad_logits(tmp_path, content, found):
    path = tmp_path / "a" / "b.mmap.logits.npy"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=found) as error:
        read_teacher_logits(tmp_path, "a/b.mmap", 3)
    assert str(error.value).startswith(f"{path}: ")
    assert "extract_logits" in str(error.value)
    assert "\n" not in str(error.value)


def test_logits_of_patches_are_pooled_as_extraction_pools_them(tmp_path):
    """31.1 s: a patch of 30 s, and one of 70 frames."""
    path = tmp_path / "b.mmap.logits.npy"
    np.save(path, np.array([[1.0, 0, 2], [0, 1, 2]], np.float32))
    with pytest.raises(InputError) as error:
        read_teacher_logits(tmp_path, "b.mmap", 3)
    assert (error.value.kind, error.value.path) == ("missing", tmp_path / "b.mmap.times.csv")
    write_times(tmp_path / "b.mmap.times.csv", np.array(times(cut(1945, 1875), 1945)))
    expected = [1875 / 1945, 70 / 1945, 2]
    np.testing.assert_allclose(read_teacher_logits(tmp_path, "b.mmap", 3), expected, rtol=1e-6)


def test_bad_logits_are_told_by_a_worker_process(toy, teacher):
    np.save(teacher / "train/04.mmap.logits.npy", np.zeros(9, np.float32))
    data = MaestDataModule(
        clip_frames=40, num_workers=1, teacher_dir=teacher, batch_size_train=36, **toy.data()
    )
    name = r"04\.mmap\.logits\.npy"
    with pytest.raises(InputError, match=name), loading(data.train_dataloader()) as loader:
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_tracks_without_logits_are_passed_over(toy, teacher, workers, caplog):
    (teacher / "train/03.mmap.logits.npy").unlink()
    np.save(teacher / "train/04.mmap.logits.npy", np.zeros(9, np.float32))
    data = MaestDataModule(
        clip_frames=40, num_workers=workers, teacher_dir=teacher, on_error="skip", **toy.data()
    )
    data.setup("fit")
    assert "1 of 36 training tracks have no logits" in caplog.text
    batches = list(data.train_dataloader())
    errors = {key: reason for batch in batches for key, reason in batch.errors.items()}
    assert set(errors) == {"train/03.mmap", "train/04.mmap"}
    assert "holds float32 (9,)" in errors["train/04.mmap"]
    numbers = torch.cat([batch.teacher for batch in batches])[:, 2].int()
    assert len(numbers) == 36
    assert not {3, 4} & set(numbers.tolist())
    assert (numbers % 3 == torch.cat([batch.targets for batch in batches]).argmax(1)).all()
