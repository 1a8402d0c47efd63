"""Averages of weights: what they are of, and where they go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from command_line import bad, good, newest, read_history, settings  # isort: skip

from maest.datasets.groundtruth import read_groundtruth
from maest.datasets.melspectrograms import read_patches
from maest.experiments import pretrain
from maest.models import Maest, get_maest, load_checkpoint
from maest.models.archs import ARCHS, Arch

EPOCHS, STEPS, START = 4, 3, 2  # the average is of epochs 2 and 3
LINE = (
    f"maest.arch=maest_toy maest.s_patchout_t=2 datamodule.clip_length=1.5 module.mixup_alpha=0.3 "
    f"datamodule.clips_per_epoch={4 * STEPS} datamodule.batch_size_train=4 "
    f"trainer.max_epochs={EPOCHS}"
)
CLOCK = ("seconds", "clips_per_second", "mfu")  # columns of the history that a clock decides


@dataclass
class Watch(pl.Callback):
    """Keeps the weights at the ends of epochs, and each step's learning rate."""

    weights: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx + 1 == STEPS:
            state = pl_module.net.state_dict()
            self.weights.append({name: value.double().clone() for name, value in state.items()})


@dataclass
class Training:
    """A finished run, and what was seen of it."""

    home: Path
    folder: Path
    watch: Watch

    @property
    def rows(self) -> list[dict[str, float]]:
        return read_history(self.folder / "history.csv")

    @property
    def last(self) -> dict[str, Tensor]:
        path = self.folder / "checkpoints" / "last.ckpt"
        return torch.load(path, weights_only=True)["state_dict"]

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    def mean(self, first: int, last: int) -> dict[str, Tensor]:
        """The plain mean of the weights of some epochs."""
        own = self.watch.weights[first : last + 1]
        assert len(own) == last + 1 - first
        return {name: sum(weights[name] for weights in own) / len(own) for name in own[0]}


@pytest.fixture(scope="module")
def train(toy, tmp_path_factory) -> Iterator[Any]:
    """Train with some settings more, and watch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "maest_toy", Arch(embed_dim=64, num_heads=1, depth=2))
        build = pretrain.build_trainer

        def run(name: str, changes: str) -> Training:
            home, watch = tmp_path_factory.mktemp(name), Watch()

            def watched(settings: Any, folder: Path, callbacks: Any, logger: Any) -> pl.Trainer:
                # before the callbacks of the run: nothing that they do is seen
                return build(settings, folder, [watch, *callbacks], logger)

            patch.setattr(pretrain, "build_trainer", watched)
            good("ex_maest.py", f"with {settings(toy)} {LINE} {changes}", home)
            patch.setattr(pretrain, "build_trainer", build)
            return Training(home, newest(home), watch)

        yield run


@pytest.fixture(scope="module")
def plain(train) -> Training:
    return train("plain", "")


@pytest.fixture(scope="module")
def averaged(train) -> Training:
    return train("averaged", f"module.swa_start={START}")


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=0, atol=1e-7)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def average_precision(net: Maest, toy) -> float:
    """On the validation split, track by track."""
    groundtruth = read_groundtruth(toy.groundtruth("validation"))
    scores = []
    for key in groundtruth.keys:
        pieces = read_patches(toy.mels, key, net.input_t)
        with torch.no_grad():
            own = [net(net.normalise(torch.from_numpy(p).float().T[None]))[0] for p in pieces]
        activations = [logits[0].sigmoid().numpy() for logits in own]
        scores.append(np.average(activations, axis=0, weights=[len(p) for p in pieces]))
    return average_precision_score(groundtruth.targets, np.stack(scores))


def test_it_is_the_mean_of_the_weights_at_the_ends_of_epochs(averaged):
    expected = averaged.mean(START, EPOCHS - 1)
    found = part(averaged.last, "net_swa.")
    assert_close(found, expected)
    moved = found["head.1.weight"] - averaged.last["net.head.1.weight"]
    assert moved.abs().max() > 1e-4  # it is no copy


def test_the_weights_themselves_are_as_without_it(averaged, plain):
    assert_equal(part(averaged.last, "net."), part(plain.last, "net."))
    assert {name.partition(".")[0] for name in averaged.last} == {"net", "net_swa"}
    assert {name.partition(".")[0] for name in plain.last} == {"net"}
    assert averaged.watch.rates == plain.watch.rates
    for ours, theirs in zip(averaged.rows, plain.rows, strict=True):
        without = {k: v for k, v in ours.items() if not k.startswith("val_swa")}
        assert {k: v for k, v in without.items() if k not in CLOCK} == {
            k: v for k, v in theirs.items() if k not in CLOCK
        }


def test_both_are_validated(averaged, toy):
    rows = averaged.rows
    assert ["val_ap" in row for row in rows] == [True] * EPOCHS
    for figure in ("ap", "roc_auc", "loss"):
        assert [f"val_swa_{figure}" in row for row in rows] == [False, False, True, True]
    # of one epoch it is that epoch's weights
    assert rows[2]["val_swa_loss"] == pytest.approx(rows[2]["val_loss"], rel=1e-6)
    assert rows[3]["val_swa_loss"] != pytest.approx(rows[3]["val_loss"], rel=1e-4)
    net = get_maest(checkpoint=averaged.folder / "model", checkpoint_swa_weights=False)
    for epoch in (2, 3):
        net.load_state_dict(averaged.mean(START, epoch))
        assert rows[epoch]["val_swa_ap"] == pytest.approx(average_precision(net, toy), abs=1e-6)


def test_the_best_average_is_in_results_and_in_the_model_folder(averaged):
    swa, rows = averaged.results["swa"], averaged.rows
    best = max((2, 3), key=lambda epoch: rows[epoch]["val_swa_ap"])
    assert (swa["epoch"], swa["steps"]) == (best + 1, (best + 1) * STEPS)
    assert swa["val_ap"] == rows[best]["val_swa_ap"]
    model = averaged.folder / "model"
    assert_close(
        safetensors.torch.load_file(model / "model-swa.safetensors"), averaged.mean(START, best)
    )
    raw = max(range(EPOCHS), key=lambda epoch: rows[epoch]["val_ap"])
    assert averaged.results["best_epoch"] == raw + 1
    assert_close(safetensors.torch.load_file(model / "model.safetensors"), averaged.mean(raw, raw))


def test_it_is_loaded_from_a_checkpoint_and_from_a_model_folder(averaged):
    last = averaged.folder / "checkpoints" / "last.ckpt"
    for average, prefix in ((None, "net_swa."), (True, "net_swa."), (False, "net.")):
        net = get_maest(checkpoint=load_checkpoint(last, average=average))
        assert_equal(net.state_dict(), part(averaged.last, prefix))
    model = averaged.folder / "model"
    for average, name in ((None, "model-swa"), (True, "model-swa"), (False, "model")):
        net = get_maest(checkpoint=load_checkpoint(model, average=average))
        assert_equal(net.state_dict(), safetensors.torch.load_file(model / f"{name}.safetensors"))


@pytest.mark.parametrize("path", ["model", "checkpoints/last.ckpt"])
def test_where_there_is_none(plain, averaged, toy, path):
    line = f"test with {settings(toy)} maest.checkpoint_swa_weights=True"
    message = bad("ex_maest.py", f"{line} maest.checkpoint={plain.folder / path}", plain.home)
    assert str(plain.folder / path) in message
    assert "maest.checkpoint_swa_weights" in message
    good("ex_maest.py", f"{line} maest.checkpoint={averaged.folder / path}", averaged.home)


def test_a_test_of_the_average(averaged, toy):
    """On the validation split: what the training said of it."""
    line = f"test with {settings(toy)} datamodule.groundtruth_test={toy.groundtruth('validation')}"
    last = averaged.folder / "checkpoints" / "last.ckpt"
    found = {}
    for average in (True, False):
        flag = "" if average else "maest.checkpoint_swa_weigts=False"  # as older scripts spell it
        flag += f" maest.checkpoint={last}"
        good("ex_maest.py", f"{line} {flag}", averaged.home)
        found[average] = json.loads((newest(averaged.home) / "results.json").read_text())
    row = averaged.rows[-1]
    assert [found[average]["average"] for average in (True, False)] == [True, False]
    for figure in ("ap", "roc_auc"):
        assert found[True][f"test_{figure}"] == pytest.approx(row[f"val_swa_{figure}"], abs=1e-6)
        assert found[False][f"test_{figure}"] == pytest.approx(row[f"val_{figure}"], abs=1e-6)


def test_extraction_takes_the_average_unless_told_otherwise(averaged, toy):
    line = f"extract_embeddings with {settings(toy)} maest.checkpoint={averaged.folder / 'model'} "
    line += "inference.transformer_block=1"
    good("ex_maest.py", f"{line} inference.out_dir=swa", averaged.home)
    raw = "inference.out_dir=raw maest.checkpoint_swa_weights=False"
    good("ex_maest.py", f"{line} {raw}", averaged.home)
    key = "test/05.mmap"
    for name, kind in (("model", "raw"), ("model-swa", "swa")):
        net = get_maest(checkpoint=averaged.folder / "model")
        weights = safetensors.torch.load_file(averaged.folder / "model" / f"{name}.safetensors")
        net.load_state_dict(weights)
        pieces = read_patches(toy.mels, key, net.input_t)
        with torch.no_grad():
            own = [net(net.normalise(torch.from_numpy(p).float().T[None]), 1)[1] for p in pieces]
        expected = np.average(torch.cat(own).numpy(), axis=0, weights=[len(p) for p in pieces])
        found = np.load(averaged.home / kind / "1.5sec" / "1" / f"{key}.embeddings.npy")
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-5)


@pytest.mark.parametrize(("average", "name"), [(None, "model-swa"), (False, "model")])
def test_fine_tuning_starts_from_the_average_unless_told_otherwise(
    averaged, toy, tmp_path, average, name
):
    line = f"with {settings(toy)} {LINE} maest.arch=None trainer.max_epochs=1 module.lr=1e-12 "
    line += f"module.weight_decay=0 maest.checkpoint={averaged.folder / 'model'} "
    good("ex_maest.py", f"{line} maest.checkpoint_swa_weights={average}", tmp_path)
    found = safetensors.torch.load_file(newest(tmp_path) / "model" / "model.safetensors")
    expected = safetensors.torch.load_file(averaged.folder / "model" / f"{name}.safetensors")
    assert_close(found, expected)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_rate_of_its_own(train, interval):
    """From the first step of epoch 2 on; before, the schedule's: a ramp from 1 to 0 in 4 epochs."""
    schedule = "module.lr=1e-3 module.warmup_epochs=0 module.ramp_start=0 module.ramp_end=4"
    schedule += f" module.last_lr_factor=0 module.lr_interval={interval}"
    found = train(interval, f"{schedule} module.swa_start={START} module.swa_lr=3e-4")
    steps = np.arange(EPOCHS * STEPS) / STEPS  # in epochs
    ramp = 1e-3 * (1 - (steps if interval == "step" else np.floor(steps)) / 4)
    assert found.watch.rates == pytest.approx(np.where(steps >= START, 3e-4, ramp).tolist())
    assert_close(part(found.last, "net_swa."), found.mean(START, EPOCHS - 1))


def test_a_training_that_ends_before_it_begins(train, plain):
    found = train("never", f"module.swa_start={EPOCHS} module.swa_lr=1e-5")
    assert_equal(found.last, plain.last)
    assert found.watch.rates == plain.watch.rates
    assert not any(name.startswith("val_swa") for row in found.rows for name in row)
    assert "swa" not in found.results
    assert {path.name for path in (found.folder / "model").iterdir()} == {
        *("config.json", "model.safetensors"),
    }
    names = {path.name.partition("-epoch")[0] for path in (found.folder / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "best"}


def test_the_prefix_is_the_one_that_checkpoints_are_read_by():
    """`helpers` and `models` each have it."""
    from maest.helpers.training.averaging import PREFIX
    from maest.models.weights import AVERAGE

    assert PREFIX == AVERAGE
