"""The evaluation of whole tracks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from made_up import refuses
from networks import tiny
from torch.nn import functional as F

from maest.config import Settings
from maest.datasets.batches import TrackBatch, collate_tracks
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.experiments.evaluate import evaluate as run_evaluation
from maest.helpers.reports.metrics import evaluate
from maest.models.evaluation import Scored, TrackScores, track_means
from maest.models.maest import Maest
from maest.models.sizes import TASKS

network = partial(tiny, input_t=62)


def mels(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((length, 96)).astype(np.float16) for length in lengths]


def batch_of(tracks: list[list[np.ndarray]], targets: np.ndarray, keys="abcdefgh") -> TrackBatch:
    return collate_tracks(list(zip(keys[: len(tracks)], tracks, targets, strict=True)))


@torch.no_grad()
def score(nets: dict[str, Maest], *batches: TrackBatch) -> dict[str, Scored]:
    scores = TrackScores(nets, patches_per_pass=2)
    for batch in batches:
        scores.add(batch)
    return scores.result()


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_means_loss_and_metrics_are_the_tasks(task):
    """Tracks are averages of their patches by seconds, two patches at once."""
    net, sizes = network(task=task), []
    targets = np.eye(3, dtype=np.float32) * (7 if task == "regression" else 1)
    tracks = [mels(62, 62, 40), mels(62, 30), mels(20)]
    logits, outputs = [], []
    for patches in tracks:
        seconds = [len(patch) for patch in patches]
        own = [net(net.normalise(torch.from_numpy(p).float().T[None]))[0][0] for p in patches]
        logits.append(np.average(np.stack(own), axis=0, weights=seconds))
        outputs.append(np.average([net.activations(z) for z in own], axis=0, weights=seconds))
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for found, expected in zip(
        track_means(net, batch_of(tracks, targets), 2), (logits, outputs), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert max(sizes) == 2
    scored = score({"": net}, batch_of(tracks, targets))[""]
    np.testing.assert_allclose(scored.outputs, outputs, atol=1e-5)
    assert (scored.outputs.dtype, scored.outputs.shape) == (np.float32, (3, 3))
    np.testing.assert_array_equal(scored.targets, targets)
    assert scored.evaluation.figures == evaluate(task, targets, scored.outputs).figures
    loss = {
        "multi-label": F.binary_cross_entropy_with_logits,
        "single-label": lambda z, y: F.cross_entropy(z, y.argmax(1)),
        "regression": F.mse_loss,
    }[task](torch.from_numpy(np.stack(logits)).float(), torch.from_numpy(targets))
    assert scored.loss == pytest.approx(loss.item(), abs=1e-5)


def test_batches_and_networks_are_scored_together():
    tracks, targets = [mels(62, 20, seed=i) for i in range(4)], np.eye(4, 3, dtype=np.float32)
    nets = {"": network(), "swa": network(1)}
    parts = batch_of(tracks[:3], targets[:3]), batch_of(tracks[3:], targets[3:], "d")
    together = score(nets, *parts)
    for name, net in nets.items():
        alone = score({"": net}, batch_of(tracks, targets))[""]
        assert together[name].loss == pytest.approx(alone.loss, rel=1e-5)
        np.testing.assert_allclose(together[name].outputs, alone.outputs, atol=1e-6)
        np.testing.assert_array_equal(together[name].targets, targets)
    assert together[""].loss != pytest.approx(together["swa"].loss, rel=1e-4)


def test_outputs_that_are_no_numbers():
    net = network()
    torch.nn.init.constant_(net.head[1].bias, float("nan"))
    with pytest.raises(FloatingPointError):
        score({"": net}, batch_of([mels(62)], np.eye(1, 3)))


def test_processes_put_their_tracks_together(monkeypatch):
    """Three (here threads) have tracks 0 and 3, 1 and 4, 2 and, once more, 0; one skips a file."""
    tracks, targets = [mels(62, 20, seed=i) for i in range(5)], np.eye(5, 3, dtype=np.float32)
    alone = score({"": network()}, batch_of(tracks, targets))[""]
    several = [TrackScores({"": network()}) for _ in range(3)]
    all_there, sent = threading.Barrier(3, timeout=60), {}

    def gather(parts: list, own: tuple) -> None:
        sent[own[0][0][0]] = own
        all_there.wait()
        parts[:] = [sent[key] for key in "abc"]

    @torch.no_grad()
    def run(scores: TrackScores, own: list[int], errors: dict[str, str]) -> Scored:
        batch = batch_of([tracks[i] for i in own], targets[own], "".join("abcde"[i] for i in own))
        batch.errors = errors
        scores.add(batch)
        return scores.result()[""]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    gone = {"f": "f: no such file"}
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(run, several, ([0, 3], [1, 4], [2, 0]), ({}, gone, {})))
    for scores, found in zip(several, results, strict=True):
        np.testing.assert_array_equal(found.targets, targets)
        np.testing.assert_allclose(found.outputs, alone.outputs, atol=1e-6)
        assert found.evaluation.figures == pytest.approx(alone.evaluation.figures)
        assert found.loss == pytest.approx(alone.loss, rel=1e-5)
        assert scores.skipped == gone


def test_unreadable_files_are_skipped_and_named(toy, tmp_path):
    tracks = {f"test/{i:02d}.mmap": np.eye(3, dtype=int)[i % 3].tolist() for i in range(4)}

    def run(groundtruth: dict) -> tuple[Scored, dict[str, str]]:
        write_groundtruth(tmp_path / "gt.pk", groundtruth)
        splits, skipped = {"test": read_groundtruth(tmp_path / "gt.pk")}, {}
        data = MaestDataModule(splits, base_dir=toy.mels, clip_frames=62, on_error="skip")
        return run_evaluation(network(), data.test_dataloader(), None, Settings(), skipped), skipped

    scored, skipped = run(tracks | {"gone.mmap": [1, 0, 0]})
    assert scored.targets.shape == scored.outputs.shape == (4, 3)
    assert list(skipped) == ["gone.mmap"]
    with refuses("empty", setting="datamodule.on_error"):
        run({"gone.mmap": [1, 0, 0]})


def test_a_part_of_the_batches(toy):
    data = MaestDataModule(clip_frames=62, batch_size_eval=3, **toy.data())
    for limit, tracks in ((2, 6), (0.5, 6), (0.01, 3), (9, 12), (None, 12)):
        scored = run_evaluation(network(), data.test_dataloader(), limit, Settings(), {})
        assert len(scored.targets) == tracks
