"""What a batch is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets import datamodule
from datasets.datamodule import FeatureDataModule, MaestDataModule, collate_tracks
from datasets.groundtruth import write_groundtruth, write_labels
from datasets.melspectrograms import MelFileError
from helpers.errors import InputError


def test_a_training_batch_is_crops_as_they_are_on_disk(toy):
    data = MaestDataModule(clip_frames=40, batch_size_train=8, **toy.settings())
    mel, targets = next(iter(data.train_dataloader()))
    assert (mel.shape, mel.dtype) == ((8, 40, 96), torch.float16)
    assert (targets.shape, targets.dtype) == ((8, 3), torch.float32)
    loud = mel.float().reshape(8, 40, 3, 32).mean((1, 3))
    assert (loud.argmax(1) == targets.argmax(1)).all()  # labels stand beside their clips


def test_batches_are_the_same_whatever_the_workers(toy):
    def batches(workers: int) -> list[torch.Tensor]:
        data = MaestDataModule(clip_frames=40, num_workers=workers, seed=5, **toy.settings())
        return [mel for mel, _ in data.train_dataloader()]

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone, shared)


def test_a_track_batch_groups_patches_of_one_length():
    items = [
        ("a", [np.full((10, 96), 1.0), np.full((10, 96), 2.0), np.full((7, 96), 3.0)], np.ones(2)),
        ("b", [np.full((7, 96), 4.0)], np.zeros(2)),
        ("c", MelFileError("c: no such file"), np.zeros(2)),
        ("d", [np.full((10, 96), 5.0)], np.ones(2)),
    ]
    batch = collate_tracks(items)
    assert batch.keys == ["a", "b", "d"]
    assert len(batch) == 3
    assert batch.errors == {"c": "c: no such file"}
    assert batch.targets.tolist() == [[1, 1], [0, 0], [1, 1]]
    (long, long_track), (short, short_track) = batch.groups
    assert (long.shape, short.shape) == ((3, 10, 96), (2, 7, 96))
    assert long[:, 0, 0].tolist() == [1, 2, 5]
    assert long_track.tolist() == [0, 0, 2]
    assert short[:, 0, 0].tolist() == [3, 4]
    assert short_track.tolist() == [0, 1]


def test_a_batch_in_which_nothing_could_be_read():
    batch = collate_tracks([("c", MelFileError("gone"), np.zeros(2))])
    assert len(batch) == 0
    assert batch.groups == []


def test_evaluation_stops_at_a_bad_file_and_extraction_goes_on(toy, tmp_path):
    write_groundtruth(tmp_path / "gt.pk", {"test/00.mmap": [1, 0, 0], "gone.mmap": [1, 0, 0]})
    data = MaestDataModule(
        base_dir=toy.mels,
        clip_frames=40,
        groundtruth_test=tmp_path / "gt.pk",
        groundtruth_predict=tmp_path / "gt.pk",
    )
    with pytest.raises(MelFileError, match=r"gone\.mmap: no such file"):
        next(iter(data.test_dataloader()))
    batch = next(iter(data.predict_dataloader()))
    assert batch.keys == ["test/00.mmap"]
    assert "no such file" in batch.errors["gone.mmap"]


def test_labels_come_from_beside_the_ground_truth(toy, tmp_path):
    data = MaestDataModule(clip_frames=40, **toy.settings())
    assert data.labels("train") == list(toy.labels)
    write_groundtruth(tmp_path / "gt.pk", {"a": [1, 0]})
    other = MaestDataModule(base_dir=".", clip_frames=40, groundtruth_val=tmp_path / "gt.pk")
    assert other.labels("val") is None
    write_labels(tmp_path / "labels.json", ["only one"])
    with pytest.raises(InputError, match=r"1 labels, and gt\.pk beside it has 2"):
        other.labels("val")
    with pytest.raises(InputError, match=r"datamodule\.groundtruth_test is not set"):
        other.groundtruth("test")


def test_the_embedded_data_set_is_built_only_where_it_is_wanted_and_missing(
    toy, tmp_path, monkeypatch
):
    from datasets.scores import preprocess

    built = []
    monkeypatch.setattr(preprocess, "build", lambda: built.append(True))
    monkeypatch.setattr(datamodule, "SCORES_DIR", tmp_path)

    def prepare(path) -> None:
        MaestDataModule(base_dir=".", clip_frames=40, groundtruth_train=path).prepare_data()

    prepare(toy.groundtruth("train"))
    prepare(tmp_path.parent / "elsewhere.pk")
    assert not built
    prepare(tmp_path / "style" / "groundtruth-train.pk")
    assert built == [True]
    (tmp_path / "report.json").touch()  # a build is there: a mistyped name is no reason for another
    prepare(tmp_path / "style" / "groundtruth-trian.pk")
    assert built == [True]


def test_features_in_memory():
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.eye(10, dtype=np.uint8)
    data = FeatureDataModule({"train": (x, y), "val": (x, y), "test": (x, y)}, 4, seed=0)
    order = torch.cat([features for features, _ in data.train_dataloader()])[:, 0]
    assert sorted(order.tolist()) == x[:, 0].tolist()
    assert order.tolist() != x[:, 0].tolist()
    assert [len(features) for features, _ in data.val_dataloader()] == [4, 4, 2]
    features, targets = next(iter(data.test_dataloader()))
    assert features.tolist() == x[:4].tolist()
    assert (targets.dtype, targets.shape) == (torch.float32, (4, 10))
