"""How fast training is: what is counted, when the clock runs, and that it changes nothing."""

from __future__ import annotations

import csv

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maest.helpers.training import throughput
from maest.helpers.training.history import History
from maest.helpers.training.throughput import (
    Throughput,
    clip_flops,
    fast_math,
    matmul_ceiling,
)
from maest.models import Maest

pytestmark = pytest.mark.usefixtures("one_thread")

# ------------------------------------------------------------------ floating-point operations


def counted(training: bool, frozen: int = 0, frames: int = 165, **options) -> tuple[float, int]:
    """FLOPs of a clip as PyTorch counts them, and how many tokens the blocks got."""
    sizes = {"n_classes": 7, "input_t": 165, "embed_dim": 48, "num_heads": 3, "depth": 3}
    model = Maest(**(sizes | options)).train(training)
    for module in [model.patch_embed, *model.blocks[:frozen]] if frozen else []:
        module.requires_grad_(False)
    if frozen:
        for name in ("cls_token", "dist_token"):
            getattr(model, name).requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "pos_embed" in name:
                parameter.requires_grad_(False)
    tokens = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    # Of fused attention it counts what backward computes again.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.randn(2, 96, frames))
        if training:
            sum(
                part.sum() for part in (logits if isinstance(logits, tuple) else [logits])
            ).backward()
    return counter.get_total_flops() / 2, tokens[0]


SIZES = [
    ({}, {}),
    ({"mlp_ratio": 2.5, "embed_dim": 60}, {"mlp_ratio": 2.5, "embed_dim": 60}),
    ({"depth": 1, "distilled_type": "separated"}, {"depth": 1, "outputs": 14}),
]


@pytest.mark.parametrize(("options", "figures"), SIZES)
@pytest.mark.parametrize("frames", [165, 60])
def test_flops_are_what_pytorch_counts(options, figures, frames):
    figures = {"embed_dim": 48, "depth": 3, "outputs": 7} | figures
    found, tokens = counted(training=False, frames=frames, **options)
    assert found == clip_flops(tokens=tokens, **figures)
    found, tokens = counted(training=True, frames=frames, **options)
    assert found == clip_flops(training=True, tokens=tokens, **figures)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_frozen_blocks_have_no_backward(frozen):
    found, tokens = counted(training=True, frozen=frozen)
    expected = clip_flops(
        training=True, tokens=tokens, embed_dim=48, depth=3, outputs=7, frozen_blocks=frozen
    )
    assert found == expected


def test_patchout_leaves_less_to_do():
    found, tokens = counted(training=True, s_patchout_t=6, s_patchout_f=2, u_patchout=3)
    assert tokens == 2 + 9 * 7 - 3
    expected = clip_flops(training=True, tokens=tokens, embed_dim=48, depth=3, outputs=7)
    # The patches that are dropped have been projected, forward and for the weights' gradient.
    dropped = 9 * 15 - (tokens - 2)
    assert found == expected + dropped * 2 * 2 * 256 * 48


@pytest.mark.parametrize(
    ("columns", "depth", "outputs", "gflop"),
    [(187, 12, 0, 391), (187, 7, 0, 228), (62, 12, 0, 107), (187, 12, 400, 365)],
)
def test_flops_of_the_released_networks(columns, depth, outputs, gflop):
    sizes = {"tokens": 2 + 9 * columns, "depth": depth, "embed_dim": 768, "outputs": outputs}
    found = clip_flops(**sizes)
    assert found / 1e9 == pytest.approx(gflop, rel=0.004)
    trained = clip_flops(training=True, **sizes)
    assert trained / found == pytest.approx(3, rel=0.004)


# ------------------------------------------------------------------ the ceiling


def test_the_ceiling_is_what_products_reach_and_draws_nothing():
    state = torch.get_rng_state()
    ceiling = matmul_ceiling("cpu", torch.float32, seconds=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < ceiling < 1e14
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_fast_math_is_for_cuda(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    fast_math()
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fast_math()
    assert asked == ["high"]


# ------------------------------------------------------------------ the callback


class Clock:
    """Stands in for the time module: a second passes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Batch(tuple):
    """(inputs, targets), whose length is its number of clips."""

    def __len__(self) -> int:
        return tuple.__getitem__(self, 0).shape[0]


def collate(items) -> Batch:
    x, y = zip(*items, strict=True)
    return Batch((torch.stack(x), torch.stack(y)))


class Toy(pl.LightningModule):
    """A linear map with dropout. A training step takes a second, a validation step a thousand."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 2)
        self.clock = clock or Clock()
        self.logged: list[dict[str, float]] = []  # of each step

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        self.clock.now += 1
        x, y = tuple.__getitem__(batch, 0), tuple.__getitem__(batch, 1)
        return F.mse_loss(self.layer(F.dropout(x, 0.5)), y)

    def validation_step(self, batch, batch_idx):
        self.clock.now += 1000
        self.log("val_loss", 1.0, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Listener(pl.loggers.logger.DummyLogger):
    """Keeps what is sent to a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.sent.append((step, dict(metrics)))

    def of(self, name: str) -> list[float]:
        """Lightning sends the last figure again until there is another."""
        return [float(metrics[name]) for _, metrics in self.sent if name in metrics]


def loader(clips: int, batch: int, shuffle: bool = False) -> torch.utils.data.DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(clips, 6, generator=generator), torch.randn(clips, 2, generator=generator)
    )
    return torch.utils.data.DataLoader(data, batch, shuffle=shuffle, collate_fn=collate)


def fit(module: Toy, callbacks, train, val=None, **options) -> pl.Trainer:
    quiet = {"logger": False, "max_epochs": 1, "log_every_n_steps": 1} | options
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet.setdefault("enable_checkpointing", False)
    ckpt_path = quiet.pop("ckpt_path", None)
    trainer = pl.Trainer(callbacks=callbacks, num_sanity_val_steps=1, **quiet)
    trainer.fit(module, train, val, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_clips_a_second_in_an_epoch_and_of_it(clock):
    """4 clips a second, 2 in the last batch; the first three batches are not measured."""
    listener = Listener()
    trainer = fit(
        Toy(clock), [Throughput(10.0, 100.0, every=5)], loader(4 * 14 + 2, 4), logger=listener
    )
    # of batches 4 and 5, 4 to 10 and 4 to 15; Lightning sends the last again until the next
    assert listener.of("clips_per_second") == pytest.approx([4] * 10 + [46 / 12] * 2)
    assert listener.of("mfu") == pytest.approx([0.4] * 10 + [46 / 120] * 2)
    assert trainer.callback_metrics["clips_per_second"] == pytest.approx(46 / 12)


def test_a_cpu_has_no_utilisation(clock):
    trainer = fit(Toy(clock), [Throughput(10.0)], loader(40, 4))
    assert trainer.callback_metrics["clips_per_second"] == 4
    assert "mfu" not in trainer.callback_metrics


def test_validation_does_not_count_wherever_it_is(clock):
    listener = Listener()
    fit(
        Toy(clock),
        [Throughput(10.0, 100.0, every=3)],
        loader(48, 4),
        loader(8, 4),
        logger=listener,
        max_epochs=2,
        val_check_interval=0.25,
    )
    assert set(listener.of("clips_per_second")) == {4}
    assert "val_loss" in {name for _, metrics in listener.sent for name in metrics}


def test_saving_after_validation_does_not_count(clock):
    class Slow(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            clock.now += 500

    listener = Listener()
    measured = Throughput(10.0, 100.0, every=2)
    callbacks = [measured, Slow()]
    fit(Toy(clock), callbacks, loader(24, 4), loader(4, 4), logger=listener, max_epochs=3)
    assert set(listener.of("clips_per_second")) == {4}


def test_batches_count_and_not_optimiser_steps(clock):
    listener = Listener()
    callback = Throughput(10.0, 100.0, every=4)
    fit(Toy(clock), [callback], loader(60, 4), logger=listener, accumulate_grad_batches=3)
    assert set(listener.of("clips_per_second")) == {4}


def test_a_run_that_is_over_before_it_is_measured_has_no_figures(clock):
    trainer = fit(Toy(clock), [Throughput(10.0, 100.0)], loader(12, 4))
    assert "mfu" not in trainer.callback_metrics


def test_a_run_continued_within_an_epoch(clock, tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 8:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                trainer.should_stop = True

    callback = Throughput(10.0, 100.0, every=4)
    options = {"min_epochs": 0, "enable_checkpointing": True}
    fit(Toy(clock), [callback, Stop()], loader(80, 4), default_root_dir=tmp_path, **options)
    listener = Listener()
    callback = Throughput(10.0, 100.0, every=4)
    trainer = fit(
        Toy(clock),
        [callback],
        loader(80, 4),
        logger=listener,
        ckpt_path=tmp_path / "middle.ckpt",
        default_root_dir=tmp_path,
        enable_checkpointing=True,
    )
    assert trainer.global_step == 20
    assert set(listener.of("clips_per_second")) == {4}


def test_an_epoch_is_in_its_row_of_the_history(clock, tmp_path):
    history = History(tmp_path / "history.csv", record=print)
    callbacks = [Throughput(10.0, 100.0, every=50), history]
    fit(Toy(clock), callbacks, loader(40, 4), loader(4, 4), max_epochs=2)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["clips_per_second"]) for row in rows] == [4, 4]
    assert [float(row["mfu"]) for row in rows] == pytest.approx([0.4, 0.4])


def test_measuring_changes_nothing():
    """Not a bit of the weights."""
    found = []
    for callbacks in ([], [Throughput(1e3, every=1)]):
        module = Toy()
        torch.manual_seed(5)
        fit(module, callbacks, loader(40, 4, shuffle=True), loader(4, 4), max_epochs=2)
        found.append((module.state_dict(), torch.get_rng_state()))
    (plain, state), (measured, other_state) = found
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    assert torch.equal(state, other_state)


def test_the_device_is_waited_for_only_around_epochs_and_validations(clock, monkeypatch):
    waits = []
    monkeypatch.setattr(throughput, "synchronise", waits.append)
    fit(Toy(clock), [Throughput(1.0, 1.0, every=1)], loader(160, 4), loader(4, 4), max_epochs=2)
    assert len(waits) == 4  # the clock is started and stopped, once an epoch
