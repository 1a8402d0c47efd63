"""How fast training is: what is counted, when the clock runs, and that it changes nothing."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maest.helpers.training import throughput
from maest.helpers.training.throughput import Throughput, clip_flops, fast_math, matmul_ceiling
from maest.models import Maest

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(training: bool, frozen: int = 0, frames: int = 165, **options) -> tuple[float, int]:
    """FLOPs of a clip as PyTorch counts them, and how many tokens the blocks got."""
    sizes = {"n_classes": 7, "input_t": 165, "embed_dim": 48, "num_heads": 3, "depth": 3}
    model = Maest(**(sizes | options)).train(training)
    if frozen:
        model.requires_grad_(False)
        for module in (*model.blocks[frozen:], model.norm, model.head):
            module.requires_grad_(True)
    tokens = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    # Of fused attention it counts what backward computes again.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits, _ = model(torch.randn(2, 96, frames))
        if training:
            torch.cat(logits if isinstance(logits, tuple) else [logits]).sum().backward()
    return counter.get_total_flops() / 2, tokens[0]


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({}, {}),
        ({"mlp_ratio": 2.5, "embed_dim": 60}, {"mlp_ratio": 2.5, "embed_dim": 60}),
        ({"depth": 1, "distilled_type": "separated"}, {"depth": 1, "outputs": 14}),
    ],
)
@pytest.mark.parametrize("frames", [165, 60])
@pytest.mark.parametrize("training", [False, True])
def test_flops_are_what_pytorch_counts(options, figures, frames, training):
    figures = {"embed_dim": 48, "depth": 3, "outputs": 7} | figures
    found, tokens = counted(training, frames=frames, **options)
    assert found == clip_flops(tokens=tokens, training=training, **figures)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_frozen_blocks_have_no_backward(frozen):
    found, tokens = counted(training=True, frozen=frozen)
    sizes = {"tokens": tokens, "embed_dim": 48, "depth": 3, "outputs": 7}
    assert found == clip_flops(training=True, frozen_blocks=frozen, **sizes)


def test_the_ceiling_is_what_products_reach_and_draws_nothing(monkeypatch):
    state = torch.get_rng_state()
    ceiling = matmul_ceiling("cpu", torch.float32, seconds=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < ceiling < 1e14


def test_fast_math_is_for_cuda(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    fast_math()
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fast_math()
    assert asked == ["high"]


class Clock:
    """Stands in for the time module: a second passes only where somebody says so."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Toy(pl.LightningModule):
    """A linear map with dropout. A training step takes a second, a validation step a thousand."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.clock = torch.nn.Linear(6, 2), clock

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.clock.now += 1
        return self.layer(F.dropout(torch.stack(batch), 0.5)).square().mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.clock.now += 1000

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Listener(pl.loggers.logger.DummyLogger):
    """Keeps what is sent to a logger. Lightning sends the last figure until there is another."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, list[float]] = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.sent.setdefault(name, []).append(float(value))


def fit(
    clock: Clock, callbacks: list, clips: int, validated: int = 0, **options: Any
) -> tuple[pl.Trainer, dict[str, list[float]]]:
    """Train on batches of 4 clips; what was logged."""
    generator, listener = torch.Generator().manual_seed(1), Listener()
    train, val = (
        torch.utils.data.DataLoader(torch.randn(n, 6, generator=generator), 4, collate_fn=list)
        for n in (clips, max(1, validated))
    )
    off = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    given = {"max_epochs": 1, "log_every_n_steps": 1, "logger": listener, "accelerator": "cpu"}
    given |= dict.fromkeys(off, False) | options
    trainer = pl.Trainer(callbacks=callbacks, num_sanity_val_steps=1, **given)
    trainer.fit(Toy(clock), train, val if validated else None)
    return trainer, listener.sent


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_clips_a_second_in_an_epoch_and_of_it(clock):
    """4 clips a second, 2 in the last batch; the first three batches are not measured."""
    trainer, sent = fit(clock, [Throughput(10.0, 100.0, every=5)], 4 * 14 + 2)
    # of batches 4 and 5, 4 to 10 and 4 to 15; Lightning sends the last again until the next
    assert sent["clips_per_second"] == pytest.approx([4] * 10 + [46 / 12] * 2)
    assert sent["mfu"] == pytest.approx([0.4] * 10 + [46 / 120] * 2)
    assert trainer.callback_metrics["clips_per_second"] == pytest.approx(46 / 12)


@pytest.mark.parametrize(
    ("every", "clips", "options"),
    [
        (3, 48, {"max_epochs": 2, "val_check_interval": 0.25}),  # validation within an epoch
        (2, 24, {"max_epochs": 3}),  # and saving after it
        (4, 60, {"accumulate_grad_batches": 3}),  # batches count, not optimiser steps
    ],
)
def test_nothing_but_training_batches_counts(clock, every, clips, options):
    class Slow(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            clock.now += 500

    measured = Throughput(10.0, 100.0, every=every)
    _, sent = fit(clock, [measured, Slow()], clips, 8, **options)
    assert set(sent["clips_per_second"]) == {4}


def test_a_short_run_and_a_cpu_have_no_figures(clock):
    trainer, _ = fit(clock, [Throughput(10.0)], 40)
    assert trainer.callback_metrics["clips_per_second"] == 4
    assert "mfu" not in trainer.callback_metrics
    trainer, _ = fit(clock, [Throughput(10.0, 100.0)], 12)  # over before it is measured
    assert "clips_per_second" not in trainer.callback_metrics


def test_measuring_changes_nothing():
    found = []
    for callbacks in ([], [Throughput(1e3, every=1)]):
        torch.manual_seed(5)
        trainer, _ = fit(Clock(), callbacks, 40, 4, max_epochs=2)
        found.append((trainer.lightning_module.layer.weight, torch.get_rng_state()))
    (plain, state), (measured, other_state) = found
    assert torch.equal(plain, measured)
    assert torch.equal(state, other_state)
