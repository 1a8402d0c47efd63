"""The evaluation of whole tracks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from maest.datasets.batches import TrackBatch, collate_tracks
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import write_groundtruth
from maest.helpers.errors import InputError
from maest.helpers.metrics import evaluate
from maest.models.evaluation import TrackEvaluation
from maest.models.maest import TASKS, Maest


class Evaluator(TrackEvaluation, pl.LightningModule):
    """Evaluates, and nothing else; notes what is logged."""

    def __init__(self, net: Maest, patches_per_pass: int = 32) -> None:
        super().__init__(net, patches_per_pass)
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: float, **options) -> None:
        self.logged[name] = float(value)


def network(seed: int = 0, **options) -> Maest:
    torch.manual_seed(seed)
    sizes = {"n_classes": 3, "input_t": 62, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return Maest(**sizes | options).eval()


def mels(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((length, 96)).astype(np.float16) for length in lengths]


def batch_of(tracks: list[list[np.ndarray]], targets: np.ndarray, keys="abcdefgh") -> TrackBatch:
    return collate_tracks(list(zip(keys[: len(tracks)], tracks, targets, strict=True)))


@torch.no_grad()
def own_logits(net: Maest, patch: np.ndarray) -> np.ndarray:
    """[C], of one patch, by itself."""
    return net(net.normalise(torch.from_numpy(patch).float().T[None]))[0][0].numpy()


@torch.no_grad()
def test_every_patch_goes_through_the_network_once():
    net = network()
    a, b = mels(62, 62, 62, 40), mels(25)
    batch = batch_of([a, b], np.zeros((2, 3)))
    logits, track, seconds = Evaluator(net, patches_per_pass=2).run_patches(batch.groups)
    assert track.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(seconds, np.array([62, 62, 62, 40, 25]) / 62.5)
    assert (logits.shape, logits.dtype) == ((5, 3), torch.float32)
    for found, patch in zip(logits, a + b, strict=True):
        np.testing.assert_allclose(found, own_logits(net, patch), atol=1e-5)
    other, _, _ = Evaluator(network(1)).run_patches(batch.groups, net)
    torch.testing.assert_close(other, logits)


def test_whole_tracks_are_averaged_by_seconds():
    net = network()
    tracks = [mels(62, 62, 62), mels(62, 30), mels(20)]
    with torch.no_grad():
        logits, activations = Evaluator(net, patches_per_pass=2).track_means(
            batch_of(tracks, np.eye(3))
        )
    for i, patches in enumerate(tracks):
        weights, values = [len(p) for p in patches], np.stack([own_logits(net, p) for p in patches])
        for found, each in ((logits, values), (activations, 1 / (1 + np.exp(-values)))):
            expected = np.average(each, axis=0, weights=weights)
            np.testing.assert_allclose(found[i], expected, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_logs_the_figures_of_the_task(task):
    net = network(task=task)
    module = Evaluator(net)
    targets = np.eye(3, dtype=np.float32)
    if task == "regression":
        targets = targets * 7 - 3
    tracks = [mels(62, 62, 40), mels(62, 30), mels(20)]
    with torch.no_grad():
        module.validation_step(batch_of(tracks, targets), 0)
        module.on_validation_epoch_end()
    own = [[torch.from_numpy(own_logits(net, p)) for p in patches] for patches in tracks]
    seconds = [[len(piece) for piece in pieces] for pieces in tracks]
    expected = [
        np.average([net.activations(z).numpy() for z in zs], axis=0, weights=weights)
        for zs, weights in zip(own, seconds, strict=True)
    ]
    np.testing.assert_allclose(module.outputs, expected, atol=1e-5)
    assert (module.outputs.dtype, module.outputs.shape) == (np.float32, (3, 3))
    np.testing.assert_array_equal(module.targets, targets)
    figures = {
        "multi-label": {"ap", "roc_auc", "classes_left_out"},
        "single-label": {"accuracy", "macro_f1", "classes_left_out"},
        "regression": {"r2", "mse", "targets_left_out"},
    }[task]
    assert set(module.logged) == {f"val_{name}" for name in figures | {"loss"}}
    found = evaluate(task, targets, module.outputs).figures
    for name in figures:
        assert module.logged[f"val_{name}"] == pytest.approx(found[name])
    logits = torch.from_numpy(
        np.stack([np.average(z, axis=0, weights=w) for z, w in zip(own, seconds, strict=True)])
    ).float()
    loss = {
        "multi-label": F.binary_cross_entropy_with_logits,
        "single-label": lambda z, y: F.cross_entropy(z, y.argmax(1)),
        "regression": F.mse_loss,
    }[task](logits, torch.from_numpy(targets))
    assert module.logged["val_loss"] == pytest.approx(loss.item(), abs=1e-5)


@torch.no_grad()
def test_batches_are_scored_together_and_forgotten_at_the_end():
    tracks, targets = [mels(62, 20, seed=i) for i in range(4)], np.eye(4, 3, dtype=np.float32)
    whole, parts = Evaluator(network()), Evaluator(network())
    whole.test_step(batch_of(tracks, targets), 0)
    whole.on_test_epoch_end()
    for _ in range(2):  # a second epoch has nothing of the first
        parts.test_step(batch_of(tracks[:3], targets[:3]), 0)
        parts.test_step(batch_of(tracks[3:], targets[3:], "d"), 1)
        parts.on_test_epoch_end()
        assert parts.logged == pytest.approx(whole.logged, rel=1e-5)
        np.testing.assert_allclose(parts.outputs, whole.outputs, atol=1e-6)
        np.testing.assert_array_equal(parts.targets, targets)
    assert {"test_loss", "test_ap", "test_roc_auc"} < whole.logged.keys()


@torch.no_grad()
def test_other_networks_are_evaluated_beside_it():
    tracks, targets = [mels(62, 20, seed=i) for i in range(4)], np.eye(4, 3, dtype=np.float32)
    module, alone = Evaluator(network()), Evaluator(network(1))
    module.also_evaluated["swa"] = network(1)
    for evaluator in (module, alone):
        evaluator.validation_step(batch_of(tracks, targets), 0)
        evaluator.on_validation_epoch_end()
    for name, value in alone.logged.items():
        assert module.logged[name.replace("val_", "val_swa_")] == pytest.approx(value)
    assert module.logged["val_loss"] != pytest.approx(module.logged["val_swa_loss"], rel=1e-4)
    assert module.other_evaluations["swa"].figures == pytest.approx(alone.evaluation.figures)
    assert set(module.other_evaluations) == {"swa"}


def test_processes_put_their_tracks_together(monkeypatch):
    """Three (here threads) have tracks 0 and 3, 1 and 4, 2 and, once more, 0; one skips a file."""
    tracks, targets = [mels(62, 20, seed=i) for i in range(5)], np.eye(5, 3, dtype=np.float32)
    alone, several = Evaluator(network()), [Evaluator(network()) for _ in range(3)]
    all_there, sent = threading.Barrier(3, timeout=60), {}

    def gather(parts: list, own: tuple) -> None:
        sent[own[0][0]] = own
        all_there.wait()
        parts[:] = [sent[key] for key in "abc"]

    @torch.no_grad()
    def run(module: Evaluator, own: list[int], errors: dict[str, str]) -> None:
        keys = "".join("abcde"[i] for i in own)
        batch = batch_of([tracks[i] for i in own], targets[own], keys)
        batch.errors = errors
        module.validation_step(batch, 0)
        module.on_validation_epoch_end()

    run(alone, [0, 1, 2, 3, 4], {})
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    gone = {"f": "f: no such file"}
    shares = zip(several, ([0, 3], [1, 4], [2, 0]), ({}, gone, {}), strict=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(run, *share) for share in shares]:
            done.result()
    for module in several:
        np.testing.assert_array_equal(module.targets, targets)
        np.testing.assert_allclose(module.outputs, alone.outputs, atol=1e-6)
        assert module.logged == pytest.approx(alone.logged, rel=1e-5)
        assert module.skipped == gone


def test_files_that_are_passed_over_are_told(toy, tmp_path, caplog):
    tracks = {f"test/{i:02d}.mmap": np.eye(3, dtype=int)[i % 3].tolist() for i in range(4)}
    write_groundtruth(tmp_path / "gt.pk", tracks | {"gone.mmap": [1, 0, 0]})
    write_groundtruth(tmp_path / "none.pk", {"gone.mmap": [1, 0, 0]})
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)

    def data(name: str) -> MaestDataModule:
        path = {"groundtruth_test": tmp_path / name}
        return MaestDataModule(base_dir=toy.mels, clip_frames=62, on_error="skip", **path)

    module = Evaluator(network())
    trainer.test(module, data("gt.pk"), verbose=False)
    assert module.targets.shape == module.outputs.shape == (4, 3)
    assert list(module.skipped) == ["gone.mmap"]
    assert "skipped: " in caplog.text
    assert "gone.mmap: no such file" in caplog.text
    with pytest.raises(InputError, match=r"gone\.mmap"):
        trainer.test(Evaluator(network()), data("none.pk"), verbose=False)
