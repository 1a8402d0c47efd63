"""What a batch is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets import datamodule
from datasets.datamodule import FeatureDataModule, MaestDataModule, collate_tracks
from datasets.groundtruth import write_groundtruth, write_labels
from datasets.melspectrograms import MelFileError
from datasets.teacher import TeacherFileError, read_teacher_logits
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


# --- Tasks, and a teacher -----------------------------------------------------------------------


def test_targets_of_each_task(toy, tmp_path):
    data = MaestDataModule(clip_frames=40, task="single-label", **toy.settings())
    assert data.groundtruth("train").task == "single-label"
    write_groundtruth(tmp_path / "two.pk", {"test/00.mmap": [1, 1, 0]})
    values = {"test/00.mmap": [0.5, -2.0], "test/01.mmap": [1.5, 3.0]}
    write_groundtruth(tmp_path / "values.pk", values, task="regression")

    def module(name: str, task: str) -> MaestDataModule:
        path = tmp_path / name
        splits = {f"groundtruth_{split}": path for split in ("train", "test", "predict")}
        return MaestDataModule(base_dir=toy.mels, clip_frames=40, task=task, **splits)

    with pytest.raises(InputError, match=r"key 'test/00\.mmap': found 2 labels"):
        module("two.pk", "single-label").groundtruth("train")
    regression = module("values.pk", "regression")
    _, targets = next(iter(regression.train_dataloader()))
    assert targets.dtype == torch.float32
    assert sorted(targets.tolist()) == sorted(values.values())
    batch = next(iter(regression.test_dataloader()))
    assert batch.targets.tolist() == list(values.values())
    # What is only listened to may be labelled in any way.
    for name, task in (("two.pk", "single-label"), ("values.pk", "multi-label")):
        assert len(module(name, task).groundtruth("predict")) > 0
    (tmp_path / "bad.pk").write_bytes(b"no pickle")
    with pytest.raises(InputError, match=r"bad\.pk"):
        module("bad.pk", "multi-label").groundtruth("predict")


def test_settings_that_do_not_go_together(toy):
    given = {"clip_frames": 40, "task": "regression", **toy.settings()}
    with pytest.raises(InputError, match=r"datamodule\.balanced_sampling=True .*maest\.task"):
        MaestDataModule(balanced_sampling=True, **given)
    with pytest.raises(InputError, match=r"datamodule\.teacher_dir .*maest\.task"):
        MaestDataModule(teacher_dir="logits", **given)
    given["groundtruth_train"] = None  # no training, no matter
    MaestDataModule(balanced_sampling=True, teacher_dir="logits", **given)


@pytest.fixture
def teacher(toy, tmp_path):
    """Logits for the toy set's training tracks: the track's number, times -1, 0 and 1."""
    for i in range(36):
        path = tmp_path / f"train/{i:02d}.mmap.logits.npy"
        path.parent.mkdir(exist_ok=True)
        logits = np.array([-i, 0, i], np.float32)
        np.save(path, logits if i % 2 else np.stack([logits - 1, logits + 1]))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_teachers_logits_stand_beside_their_tracks(toy, teacher, workers):
    def data(**options) -> MaestDataModule:
        return MaestDataModule(clip_frames=40, num_workers=workers, **toy.settings(), **options)

    taught, plain = data(teacher_dir=teacher), data()
    taught.setup("fit")
    numbers = []
    for (mel, targets, logits), (own_mel, own_targets) in zip(
        taught.train_dataloader(), plain.train_dataloader(), strict=True
    ):
        assert torch.equal(mel, own_mel)
        assert torch.equal(targets, own_targets)
        assert (logits.shape, logits.dtype) == ((len(mel), 3), torch.float32)
        assert (logits[:, 0] == -logits[:, 2]).all()  # also of the mean over patches
        numbers += logits[:, 2].int().tolist()
        assert (logits[:, 2] % 3 == targets.argmax(1)).all()
    assert sorted(numbers) == list(range(36))
    assert len(next(iter(taught.val_dataloader())).targets) == 8


def test_missing_logits_are_counted_before_a_training(toy, teacher):
    for i in (3, 5, 7, 9):
        (teacher / f"train/{i:02d}.mmap.logits.npy").unlink()
    data = MaestDataModule(clip_frames=40, teacher_dir=teacher, **toy.settings())
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
    with pytest.raises(TeacherFileError, match=found) as error:
        read_teacher_logits(tmp_path, "a/b.mmap", 3)
    assert str(error.value).startswith(f"{path}: ")
    assert "extract_logits" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_logits_are_told_by_a_worker_process(toy, teacher):
    np.save(teacher / "train/04.mmap.logits.npy", np.zeros(9, np.float32))
    data = MaestDataModule(
        clip_frames=40, num_workers=1, teacher_dir=teacher, batch_size_train=36, **toy.settings()
    )
    with pytest.raises(TeacherFileError, match=r"04\.mmap\.logits\.npy: holds float32 \(9,\)"):
        next(iter(data.train_dataloader()))
