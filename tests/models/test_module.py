"""Training and evaluation of the network."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from command_line import read_history  # isort: skip

from maest.config.settings import Recipe
from maest.datasets.batches import ClipBatch, collate_tracks
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.melspectrograms import write_mel
from maest.helpers.errors import InputError
from maest.helpers.reports.metrics import baseline
from maest.helpers.training.augment import mixup
from maest.helpers.training.history import History, ProgressLines, epoch_line
from maest.models.evaluation import task_loss
from maest.models.maest import Maest
from maest.models.sizes import TASKS
from maest.models.training import MaestModule, derived_seed, teacher_targets


def recipe(**changes: Any) -> Recipe:
    return replace(Recipe(), **changes)


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(**quiet | options)


def loader(batches: list) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(batches, batch_size=None)


def step(module: MaestModule, *batch: torch.Tensor) -> torch.Tensor:
    """The loss of the first training step."""
    module.log = lambda *args, **kwargs: None
    return module.training_step(ClipBatch(*batch), 0)


def seed_of_first_step() -> None:
    torch.manual_seed(derived_seed(0, 0, 0, 0))  # in training positions begin at a random column


def training_logits(net: Maest, mel: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """The logits that such a step makes, without augmentation."""
    seed_of_first_step()
    return net.train()(net.normalise(mel.float()).transpose(1, 2))[0]


PLAIN = recipe(mixup_alpha=0, time_masks=0, freq_masks=0)


def network(**options) -> Maest:
    torch.manual_seed(0)
    sizes = {"n_classes": 3, "input_t": 62, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return Maest(**sizes | options).eval()


def mels(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((length, 96)).astype(np.float16) for length in lengths]


def test_loss_is_cross_entropy_on_the_normalised_spectrogram():
    net = network()
    module = MaestModule(net, PLAIN)
    mel = torch.from_numpy(np.stack(mels(62, 62, 62, 62)))
    targets = torch.eye(4)[:, :3]
    loss = step(module, mel, targets)
    x = (mel.float().transpose(1, 2) - 2.06755686098554) / (2 * 1.268292820667291)
    expected = F.binary_cross_entropy_with_logits(net(x)[0], targets)
    torch.testing.assert_close(loss, expected)


def test_separated_heads_share_the_loss():
    net = network(distilled_type="separated").train()
    module = MaestModule(net, PLAIN)
    targets = torch.eye(4)[:, :3]
    loss = step(module, torch.from_numpy(np.stack(mels(62, 62, 62, 62))), targets)
    loss.backward()
    assert net.head[1].weight.grad.abs().sum() > 0
    assert net.head_dist.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("interval", "expected"), [("epoch", [0, 1, 2]), ("step", [0, 0.25, 0.5])])
def test_learning_rate_moves_with_epochs_or_steps(interval, expected):
    options = recipe(
        lr=1, warmup_epochs=0, ramp_start=0, ramp_end=10, last_lr_factor=0, lr_interval=interval
    )
    module = MaestModule(network(), options)
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    mel = torch.from_numpy(np.stack(mels(62, 62)))
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )
    batches = [ClipBatch(mel, torch.zeros(2, 3))] * 4
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    found = rates[:3] if interval == "step" else rates[::4]
    assert found == pytest.approx([1 - epoch / 10 for epoch in expected])


# --- Tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distilled_type", ["mean", "separated"])
def test_loss_of_each_task_by_hand(task, distilled_type):
    net = network(task=task, distilled_type=distilled_type)
    mel = torch.from_numpy(np.stack(mels(62, 62, 62, 62)))
    targets = torch.tensor([[1, 0, 0], [0.6, 0.4, 0], [0, 0, 1], [0, 1, 0]])  # one of mixup
    logits = training_logits(net, mel)
    heads = logits if distilled_type == "separated" else (logits,)

    def by_hand(z: torch.Tensor) -> torch.Tensor:
        if task == "single-label":
            return -(targets * (z - z.exp().sum(1, keepdim=True).log())).sum(1).mean()
        if task == "regression":
            return ((z - targets) ** 2).mean()
        p = 1 / (1 + (-z).exp())
        return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()

    expected = sum(by_hand(z) for z in heads) / len(heads)
    torch.testing.assert_close(step(MaestModule(net, PLAIN), mel, targets), expected)


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Tracks with two real values: the loudness of the low bands, and of the high ones."""
    root = tmp_path_factory.mktemp("levels")
    rng = np.random.default_rng(0)
    splits = {}
    for split, tracks in (("train", 96), ("val", 24)):
        groundtruth = {}
        for i in range(tracks):
            low, high = rng.uniform(-1, 1, 2)
            mel = rng.random((62, 96), np.float32)
            mel[:, :48] += 2 * low
            mel[:, 48:] += 2 * high
            write_mel(root / f"{split}/{i}.mmap", mel)
            groundtruth[f"{split}/{i}.mmap"] = [low, 3 * high + 1]
        write_groundtruth(root / f"{split}.pk", groundtruth, task="regression")
        splits[split] = read_groundtruth(root / f"{split}.pk", task="regression")
    return {"base_dir": root, "splits": splits}


def learn(net: Maest, data: MaestDataModule, epochs: int, **changes) -> dict[str, float]:
    """Train; return the last validation's figures."""
    pl.seed_everything(0, verbose=False)
    flat = {"mixup_alpha": 0.3, "warmup_epochs": 0, "ramp_start": 100, "ramp_end": 101}
    module = MaestModule(net.train(), recipe(**flat | changes))
    run = trainer(max_epochs=epochs)
    run.fit(module, data)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def test_single_label_is_learnt(toy):
    data = MaestDataModule(clip_frames=62, **toy.data("single-label"))
    figures = learn(network(task="single-label"), data, 6)
    split = (data.splits[name].targets for name in ("train", "val"))
    assert baseline("single-label", *split).figures["accuracy"] < 0.4
    assert figures["val_accuracy"] > 0.9
    assert figures["val_macro_f1"] > 0.9
    assert figures["val_loss"] < 0.7 * np.log(3)


def test_regression_is_learnt(levels):
    data = MaestDataModule(clip_frames=62, **levels)
    figures = learn(network(task="regression", n_classes=2), data, 20, mixup_alpha=0)
    split = (data.splits[name].targets for name in ("train", "val"))
    constant = baseline("regression", *split).figures
    assert constant["r2"] <= 0
    assert figures["val_r2"] > 0.7
    assert figures["val_mse"] < constant["mse"] / 2
    assert figures["val_loss"] == pytest.approx(figures["val_mse"], rel=1e-4)


# --- A teacher ----------------------------------------------------------------------------------


def test_teacher_targets_by_hand():
    at = np.log(0.45 / 0.55)  # the logit of the threshold
    logits = [[at + 0.01, at - 0.01, 5.0], [-9.0, at - 0.01, -3.0], [-9.0, -8.0, -8.5], [9, 8, 7]]
    expected = [[1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 1, 1]]
    found = teacher_targets(torch.tensor(logits), 0.45)
    assert found.dtype == torch.float32
    assert found.tolist() == expected
    assert teacher_targets(torch.tensor(logits), 0.46).tolist()[0] == [0, 0, 1]


def test_a_teacher_teaches_the_dist_head_alone():
    net = network(distilled_type="separated")
    mel = torch.from_numpy(np.stack(mels(62, 62)))
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    logits = torch.tensor([[-4.0, 2, 3], [-3, -2, -9]])
    cls, dist = training_logits(net, mel)
    first = F.binary_cross_entropy_with_logits(cls, targets)
    second = F.binary_cross_entropy_with_logits(dist, torch.tensor([[0.0, 1, 1], [0, 1, 0]]))
    module = MaestModule(net, PLAIN)
    torch.testing.assert_close(step(module, mel, targets, logits), (first + second) / 2)
    # at another threshold the first clip's second label is none
    second = F.binary_cross_entropy_with_logits(dist, torch.tensor([[0.0, 0, 1], [0, 1, 0]]))
    module = MaestModule(net, replace(PLAIN, teacher_threshold=0.9))
    torch.testing.assert_close(step(module, mel, targets, logits), (first + second) / 2)


def test_a_teachers_targets_are_mixed_as_the_clips_are():
    net = network(distilled_type="separated").train()
    mel = torch.from_numpy(np.stack(mels(62, 62, 62, 62)))
    targets, of_teacher = torch.eye(4)[:, :3], torch.eye(4)[:, [3, 2, 1]]
    of_teacher[0] = torch.tensor([1, 0, 0])
    seed_of_first_step()
    x, both = mixup(
        net.normalise(mel.float()).transpose(1, 2), torch.cat((targets, of_teacher), 1), 0.3
    )
    assert ((both > 0) & (both < 1)).any()
    cls, dist = net(x)[0]
    first = F.binary_cross_entropy_with_logits(cls, both[:, :3])
    second = F.binary_cross_entropy_with_logits(dist, both[:, 3:])
    module = MaestModule(net, replace(PLAIN, mixup_alpha=0.3))
    loss = step(module, mel, targets, (of_teacher - 0.5) * 9)
    torch.testing.assert_close(loss, (first + second) / 2)


def test_a_teacher_needs_a_head_of_its_own():
    targets = torch.zeros(2, 3)
    with pytest.raises(InputError) as error:
        task_loss(network(distilled_type="mean"), targets, targets, targets)
    assert (error.value.kind, error.value.setting) == ("conflict", "distilled_type")


def test_training_with_a_teacher_from_disk(toy, tmp_path):
    for i in range(36):  # a teacher that knows the labels, and is wrong by one
        path = tmp_path / f"train/{i:02d}.mmap.logits.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, (np.arange(3) == (i + 1) % 3).astype(np.float32) * 10 - 5)
    data = MaestDataModule(clip_frames=62, teacher_dir=tmp_path, **toy.data())
    net = network(distilled_type="separated")
    learn(net, data, 6, mixup_alpha=0)
    batch = next(iter(data.test_dataloader()))
    mel, track = batch.groups[0]
    with torch.no_grad():
        cls, dist = training_logits(net, mel)
    labels = batch.targets[track].argmax(1)
    assert (cls.argmax(1) == labels).float().mean() > 0.9
    assert (dist.argmax(1) == (labels + 1) % 3).float().mean() > 0.9


# --- Layers -------------------------------------------------------------------------------------


def test_learning_rates_decay_from_the_head_down(tmp_path):
    net = network(depth=3).train()
    options = recipe(
        lr=1.0,
        layer_decay=0.5,
        lr_interval="epoch",
        warmup_epochs=0,
        ramp_start=0,
        ramp_end=10,
        last_lr_factor=0,
    )
    module = MaestModule(net, options)
    rates: list[dict[str, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            groups = trainer.optimizers[0].param_groups
            of = {id(p): group["lr"] for group in groups for p in group["params"]}
            rates.append({n: of[id(p)] for n, p in net.named_parameters() if p.requires_grad})

    history = History(tmp_path / "history.csv", record=print)
    batches = [ClipBatch(torch.from_numpy(np.stack(mels(62, 62))), torch.zeros(2, 3))]
    trainer(max_epochs=2, callbacks=[Watch(), history]).fit(module, loader(batches))
    expected = {
        "cls_token": 1 / 16,
        "dist_token": 1 / 16,
        "new_pos_embed": 1 / 16,
        "freq_new_pos_embed": 1 / 16,
        "time_new_pos_embed": 1 / 16,
        "patch_embed.proj.weight": 1 / 16,
        "blocks.0.norm1.weight": 1 / 8,
        "blocks.0.mlp.fc2.bias": 1 / 8,
        "blocks.1.attn.qkv.weight": 1 / 4,
        "blocks.2.attn.proj.weight": 1 / 2,
        "norm.weight": 1,
        "head.0.weight": 1,
        "head.1.bias": 1,
    }
    for epoch, factor in enumerate((1, 0.9)):  # the schedule is the same for all
        for name, rate in expected.items():
            assert rates[epoch][name] == pytest.approx(rate * factor), name
        assert set(rates[epoch].values()) == {factor / 2**i for i in range(5)}
    assert [row["lr"] for row in read_history(history.path)] == pytest.approx([0.9, 0.8])


def test_one_group_without_decay_or_frozen_blocks():
    module = MaestModule(network(), PLAIN)
    (group,) = module.optimiser.groups()
    used = [p for n, p in module.net.named_parameters() if not n.startswith("head_dist")]
    for own, parameter in zip(group["params"], used, strict=True):
        assert own is parameter


@pytest.mark.parametrize(("blocks", "decay"), [(1, 1.0), (2, 0.5), (3, 1.0)])
def test_frozen_blocks_stay_as_they_are(blocks, decay):
    # time columns are dropped, and dropout acts, where nothing is frozen
    net = network(depth=3, drop_rate=0.5, drop_path_rate=0.5, s_patchout_t=1).train()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    module = MaestModule(net, replace(PLAIN, lr=0.1, freeze_blocks=blocks, layer_decay=decay))
    modes: list[list[bool]] = []
    parts = [net.patch_embed, net.pos_drop, *net.blocks]

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            assert net.training
            modes.append([part.training for part in parts])
            for part in parts:
                assert {module.training for module in part.modules()} == {part.training}

    batch = ClipBatch(torch.from_numpy(np.stack(mels(*[62] * 8))), torch.ones(8, 3))
    tracks = [collate_tracks([("a", mels(62), np.ones(3, np.float32))])]
    run = trainer(max_epochs=2, callbacks=[Watch()])
    run.fit(module, loader([batch]), loader(tracks))
    frozen = ["cls_token", "dist_token", "new_pos_embed", "freq_new_pos_embed"]
    frozen += ["time_new_pos_embed", "patch_embed.", *(f"blocks.{i}." for i in range(blocks))]
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        fixed = name.startswith((*frozen, "head_dist."))  # which "mean" does not use
        assert parameter.requires_grad is not fixed
        assert (id(parameter) in held) is not fixed
        assert torch.equal(parameter, before[name]) is fixed, name
    assert modes == [[False] * (2 + blocks) + [True] * (3 - blocks)] * 2


@pytest.mark.parametrize("options", [{"freeze_blocks": 3}, {"swa_lr": 1e-5}])
def test_options_that_do_not_go_with_the_network_or_each_other(options):
    (name,) = options
    with pytest.raises(InputError) as caught:
        MaestModule(network(), recipe(**options))
    assert caught.value.setting == f"module.{name}"
    assert caught.value.hint


def test_an_epochs_line_has_the_metrics_of_the_task():
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 2.0, "seconds": 3.0}
    start = "epoch   1  train loss 1.0000  val loss 2.0000  "
    for metrics, expected in (
        (
            {"val_ap": 0.25, "val_roc_auc": 0.5, "val_classes_left_out": 1.0},
            "val AP 0.2500  val ROC-AUC 0.5000  3 s",
        ),
        (
            {"val_accuracy": 0.25, "val_macro_f1": 0.5},
            "val accuracy 0.2500  val macro F1 0.5000  3 s",
        ),
        ({"val_r2": -0.25, "val_mse": 2.0}, "val R² -0.2500  val MSE 2.0000  3 s"),
    ):
        assert epoch_line(row | metrics) == start + expected


def test_a_line_of_progress_within_an_epoch(caplog):
    mel = torch.from_numpy(np.stack(mels(62, 62)))
    module = MaestModule(network().train(), PLAIN)
    run = trainer(max_epochs=2, callbacks=[ProgressLines(steps=6, every=0)])
    with caplog.at_level(logging.INFO):
        run.fit(module, loader([ClipBatch(mel, torch.zeros(2, 3))] * 3))
    lines = [r.getMessage() for r in caplog.records if r.name == "maest.helpers.training.history"]
    starts = [f"epoch {1 + i // 3}, step {i + 1} of 6: " for i in range(6)]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert all("nan" not in line for line in lines)
    assert lines[-1].endswith("about 0 s to go")


def test_units_hold_in_sixteen_bits():
    """1990 ± 20 and 100,000 ± 30,000 do not fit into half precision."""
    scale = {"target_mean": [1990, 1e5, 0], "target_std": [20, 3e4, 1]}
    net = network(task="regression", **scale)
    x = torch.randn(4, 96, 62)
    with torch.no_grad():
        expected = net(x)[0]
        with torch.autocast("cpu", dtype=torch.float16):
            found = net(x)[0]
    deviations = (found - expected) / torch.tensor(scale["target_std"])
    assert deviations.abs().max() < 0.05
