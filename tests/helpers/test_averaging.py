"""Averages of weights: what they are of, and where they go."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
from folders import read_json
from torch import Tensor
from training_process import CLOCK

from command_line import good, newest, read_history, settings  # isort: skip

from maest.experiments import pretrain
from maest.helpers.training.averaging import PREFIX
from maest.models.archs import ARCHS, Arch

EPOCHS, STEPS, START = 4, 3, 2  # the average is of epochs 2 and 3
LINE = (
    f"maest.arch=maest_toy maest.s_patchout_t=2 datamodule.clip_length=1.5 module.mixup_alpha=0.3 "
    f"datamodule.clips_per_epoch={4 * STEPS} datamodule.batch_size_train=4 "
    f"trainer.max_epochs={EPOCHS}"
)


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
    watch: Watch

    def __post_init__(self) -> None:
        self.folder = newest(self.home)
        self.model, self.path = self.folder / "model", self.folder / "checkpoints" / "last.ckpt"
        self.rows = read_history(self.folder / "history.csv")
        self.last = torch.load(self.path, weights_only=True)["state_dict"]
        self.results = read_json(self.folder / "results.json")

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.last.items() if k.startswith(prefix)}

    def weights(self, name: str) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.model / f"{name}.safetensors")

    def mean(self, first: int, last: int) -> dict[str, Tensor]:
        """The plain mean of the weights of some epochs."""
        seen = self.watch.weights[first : last + 1]
        assert len(seen) == last + 1 - first
        return {name: sum(weights[name] for weights in seen) / len(seen) for name in seen[0]}


@pytest.fixture(scope="module")
def train(toy, tmp_path_factory) -> Iterator[Callable[..., Training]]:
    """Train with some settings more, and watch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "maest_toy", Arch(embed_dim=64, num_heads=1, depth=2))
        build = pretrain.build_trainer

        def run(changes: str = "") -> Training:
            home, watch = tmp_path_factory.mktemp("run"), Watch()

            def watched(settings: Any, folder: Path, callbacks: Any, logger: Any) -> pl.Trainer:
                # before the callbacks of the run: nothing that they do is seen
                return build(settings, folder, [watch, *callbacks], logger)

            patch.setattr(pretrain, "build_trainer", watched)
            good("ex_maest.py", f"with {settings(toy)} {LINE} {changes}", home)
            patch.setattr(pretrain, "build_trainer", build)
            return Training(home, watch)

        yield run


@pytest.fixture(scope="module")
def plain(train) -> Training:
    return train()


@pytest.fixture(scope="module")
def averaged(train) -> Training:
    return train(f"module.swa_start={START}")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-7) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=0, atol=atol)


def test_it_is_the_mean_of_the_weights_at_the_ends_of_epochs(averaged):
    found = averaged.part(PREFIX)
    assert_close(found, averaged.mean(START, EPOCHS - 1))
    moved = found["head.1.weight"] - averaged.last["net.head.1.weight"]
    assert moved.abs().max() > 1e-4  # it is no copy


def test_the_weights_themselves_are_as_without_it(averaged, plain):
    assert_close(averaged.part("net."), plain.part("net."), atol=0)
    assert {name.partition(".")[0] for name in averaged.last} == {"net", "net_swa"}
    assert {name.partition(".")[0] for name in plain.last} == {"net"}
    assert averaged.watch.rates == plain.watch.rates
    for ours, theirs in zip(averaged.rows, plain.rows, strict=True):
        names = [name for name in theirs if name not in CLOCK]
        assert [ours[name] for name in names] == [theirs[name] for name in names]


def test_both_are_validated(averaged):
    rows = averaged.rows
    assert ["val_ap" in row for row in rows] == [True] * EPOCHS
    for figure in ("ap", "roc_auc", "loss"):
        assert [f"val_swa_{figure}" in row for row in rows] == [False, False, True, True]
    # of one epoch it is that epoch's weights
    assert rows[2]["val_swa_loss"] == pytest.approx(rows[2]["val_loss"], rel=1e-6)
    assert rows[3]["val_swa_loss"] != pytest.approx(rows[3]["val_loss"], rel=1e-4)


def test_the_best_average_is_in_results_and_in_the_model_folder(averaged):
    swa, rows = averaged.results["swa"], averaged.rows
    best = max((2, 3), key=lambda epoch: rows[epoch]["val_swa_ap"])
    assert (swa["epoch"], swa["steps"]) == (best + 1, (best + 1) * STEPS)
    assert swa["val_ap"] == rows[best]["val_swa_ap"]
    assert_close(averaged.weights("model-swa"), averaged.mean(START, best))
    raw = max(range(EPOCHS), key=lambda epoch: rows[epoch]["val_ap"])
    assert averaged.results["best_epoch"] == raw + 1
    assert_close(averaged.weights("model"), averaged.mean(raw, raw))


@pytest.mark.parametrize("average", [True, False])
def test_a_test_of_the_average(averaged, toy, average):
    """On the validation split: the metrics of the training."""
    line = f"test with {settings(toy)} datamodule.groundtruth_test={toy.groundtruth('validation')}"
    flag = "" if average else "maest.checkpoint_swa_weigts=False"  # as older scripts spell it
    good("ex_maest.py", f"{line} {flag} maest.checkpoint={averaged.path}", averaged.home)
    results = read_json(newest(averaged.home) / "results.json")
    assert results["average"] is average
    for figure in ("ap", "roc_auc"):
        expected = averaged.rows[-1][f"val_swa_{figure}" if average else f"val_{figure}"]
        assert results[f"test_{figure}"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("average", "name"), [(None, "model-swa"), (False, "model")])
def test_fine_tuning_starts_from_the_average_by_default(averaged, toy, tmp_path, average, name):
    line = f"with {settings(toy)} {LINE} maest.arch=None trainer.max_epochs=1 module.lr=1e-12 "
    line += f"module.weight_decay=0 maest.checkpoint={averaged.model} "
    good("ex_maest.py", f"{line} maest.checkpoint_swa_weights={average}", tmp_path)
    found = safetensors.torch.load_file(newest(tmp_path) / "model" / "model.safetensors")
    assert_close(found, averaged.weights(name))


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_rate_of_its_own(train, interval):
    """From the first step of epoch 2 on; before, the schedule's: a ramp from 1 to 0 in 4 epochs."""
    schedule = "module.lr=1e-3 module.warmup_epochs=0 module.ramp_start=0 module.ramp_end=4"
    schedule += f" module.last_lr_factor=0 module.lr_interval={interval}"
    found = train(f"{schedule} module.swa_start={START} module.swa_lr=3e-4")
    steps = np.arange(EPOCHS * STEPS) / STEPS  # in epochs
    ramp = 1e-3 * (1 - (steps if interval == "step" else np.floor(steps)) / 4)
    assert found.watch.rates == pytest.approx(np.where(steps >= START, 3e-4, ramp).tolist())
    assert_close(found.part(PREFIX), found.mean(START, EPOCHS - 1))


def test_a_training_that_ends_before_it_begins(train, plain):
    found = train(f"module.swa_start={EPOCHS} module.swa_lr=1e-5")
    assert_close(found.last, plain.last, atol=0)
    assert found.watch.rates == plain.watch.rates
    assert not any(name.startswith("val_swa") for row in found.rows for name in row)
    assert "swa" not in found.results
    names = {"config.json", "golden.json", "model.safetensors"}
    assert {path.name for path in found.model.iterdir()} == names
