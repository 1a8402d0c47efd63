"""Probes that are trained together: each is what plain PyTorch makes of it alone."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.config.probe import ProbeTraining
from maest.config.settings import Schedule
from maest.helpers.reports import metrics
from maest.models import probe
from maest.models.probe import SELECTION, ProbeBank, layer_normalized

WIDTH, SETS, BATCH, EPOCHS = 6, 2, 16, 4
SEEDS = (3, 5)
LR, DECAY = 0.02, 0.1
RAMP = {"warmup_epochs": 1.0, "ramp_start": 1.0, "ramp_end": 4.0, "last_lr_factor": 0.1}
# Mixing is another network, not another task.
KINDS = [*((task, False) for task in SELECTION), ("multi-label", True)]

pytestmark = pytest.mark.usefixtures("one_thread")

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def made_up(task: str, noise: float = 1.0, n_sets: int = SETS, n_train: int = 70) -> Splits:
    """Three targets that depend on all sets of the features, and on noise."""
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(n_sets * WIDTH, 3))
    found = {}
    for split, n_tracks in (("train", n_train), ("val", 30), ("test", 25)):
        x = rng.normal(size=(n_tracks, n_sets, WIDTH)).astype(np.float32)
        values = x.reshape(n_tracks, -1) @ rule + noise * rng.normal(size=(n_tracks, 3))
        targets = {
            "multi-label": values > 0,
            "single-label": np.eye(3)[values.argmax(axis=1)],
            "regression": values * [1, 10, 0.1] + [0, 500, -3],
        }[task]
        found[split] = (x, targets.astype(np.float32))
    return found


def new_bank(
    task: str, splits: Splits, seeds: Sequence[int] = SEEDS, mix: bool = False, **options
) -> ProbeBank:
    x, targets = splits["train"]
    options = {"hidden": 8, "dropout": 0.5, "n_blocks" if mix else "n_sets": x.shape[1]} | options
    return ProbeBank(x.shape[2], targets.shape[1], seeds, task=task, **options)


class Trained:
    """A bank that has been trained, its test outputs, and its probes after each epoch."""

    def __init__(
        self, bank: ProbeBank, splits: Splits, epochs: int = EPOCHS, lr: float = LR, **options
    ) -> None:
        if "mix" in bank.weights:
            splits = {
                s: (layer_normalized(x.copy()), targets) for s, (x, targets) in splits.items()
            }
        self.bank = bank
        self.epochs: list[list[dict[str, Tensor]]] = []
        bank.fit(
            splits["train"],
            splits["val"],
            lr=lr,
            weight_decay=options.pop("weight_decay", DECAY),
            lr_factor=Schedule(**RAMP | options).factor,
            batch_size=BATCH,
            max_epochs=epochs,
            after_epoch=lambda: self.epochs.append(list(map(bank.state, range(len(bank))))),
        )
        self.outputs = bank.predict(splits["test"][0])


def trained(task: str, splits: Splits, mix: bool = False, **options) -> Trained:
    return Trained(new_bank(task, splits, mix=mix), splits, **options)


def probe_input(splits: Splits, split: str, index: int, bank: ProbeBank) -> Tensor:
    """The input of a single probe: its set, or all blocks unnormalized."""
    x = torch.from_numpy(splits[split][0])
    return x if "mix" in bank.weights else x[:, index // len(bank.seeds)]


class Alone(nn.Module):
    """A probe of a bank in plain PyTorch; of a mix, of features as they are."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.scale, self.shift = state["scale"], state["shift"]
        self.mix = nn.Parameter(state["mix"]) if "mix" in state else None
        (hidden, inputs), outputs = state["net.0.weight"].shape, len(self.scale)
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        self.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})

    def standardised(self, x: Tensor, dropout: Tensor | float = 1.0) -> Tensor:
        if self.mix is not None:
            shares = self.mix.exp() / self.mix.exp().sum()
            blocks = (F.layer_norm(x[:, i], (WIDTH,)) for i in range(SETS))
            x = sum(share * block for share, block in zip(shares, blocks, strict=True))
        return self.net[2](self.net[:2](x) * dropout)

    def loss(self, z: Tensor, y: Tensor, task: str) -> Tensor:
        if task == "single-label":
            return F.cross_entropy(z, y.argmax(dim=1))
        if task == "regression":
            return F.mse_loss(z, (y - self.shift) / self.scale)
        return F.binary_cross_entropy_with_logits(z, y)

    @torch.no_grad()
    def predict(self, x: Tensor) -> np.ndarray:
        return (self.standardised(x) * self.scale + self.shift).numpy()

    def state(self) -> dict[str, Tensor]:
        state = {name: v.detach() for name, v in self.state_dict().items()}
        return state | {"scale": self.scale, "shift": self.shift}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "mix", "onednn"), [*((*kind, True) for kind in KINDS), ("regression", False, False)]
)
def test_training_is_that_of_plain_pytorch(monkeypatch, task, mix, onednn):
    """70 tracks are four batches of 16 and one of 6."""
    if not onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    splits = made_up(task)
    targets = torch.from_numpy(splits["train"][1])
    units = {"scale": torch.ones(3), "shift": torch.zeros(3)}
    if task == "regression":
        targets[:, 2] = 0.1  # a constant: its deviation counts as 1
        units["scale"][:2] = targets[:, :2].std(dim=0, correction=0)
        units["shift"] = targets.mean(dim=0)
    together = trained(task, splits, mix)
    fresh, masks = new_bank(task, splits, mix=mix), new_bank(task, splits, mix=mix)
    drawn = [masks._dropout_factors(n) for _ in range(EPOCHS) for n in (16, 16, 16, 16, 6)]
    rates = [math.exp(-5 / 4), 1, 0.7, 0.4]  # the warm-up is at least half an epoch old
    assert len(together.bank) == (2 if mix else 4)
    for index in range(len(together.bank)):
        x = probe_input(splits, "train", index, together.bank)
        alone = Alone(fresh.state(index) | units)
        groups = [{"params": list(alone.net.parameters())}]
        if mix:
            groups.append({"params": [alone.mix], "lr": 10 * LR, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, LR, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: (*rates, 0)[epoch])
        orders = torch.Generator().manual_seed(SEEDS[index % 2])
        dropout = iter(drawn)
        for epoch in range(EPOCHS):
            total = 0.0
            for batch in torch.randperm(70, generator=orders).split(BATCH):
                z = alone.standardised(x[batch], next(dropout)[index % 2])
                loss = alone.loss(z, targets[batch], task)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            schedule.step()
            assert_close(together.epochs[epoch][index], alone.state())
            train_loss = together.bank.histories[index][epoch]["train_loss"]
            assert train_loss == pytest.approx(total / 70, rel=1e-4)


def test_the_default_recipe_is_the_papers():
    size = {"hidden": 512, "dropout": 0.5, "batch_size": 128, "max_epochs": 60}
    schedule = {"warmup_epochs": 10, "ramp_start": 10, "ramp_end": 60, "last_lr_factor": 1e-7}
    recipe = {"lr": 1e-4, "weight_decay": 1e-3, "accelerator": "auto"}
    assert ProbeTraining() == ProbeTraining(**size, **schedule, **recipe)


def test_first_weights_are_drawn_as_those_of_linear_layers():
    bank = ProbeBank(50, 40, (0, 1), hidden=200, dropout=0.5, n_sets=2)
    plain = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 40))
    for name, expected in plain.state_dict().items():
        own = [bank.state(i)[f"net.{name}"] for i in range(4)]
        assert torch.equal(own[0], own[2])  # of another set, the same seed
        assert not torch.equal(own[0], own[1])
        bound = (50 if name.startswith("0") else 200) ** -0.5
        assert 0.9 * bound < own[0].abs().max() <= bound
        assert own[0].std() == pytest.approx(expected.std(), rel=0.25)
        assert own[0].mean().abs() < bound / 4


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "mix"), KINDS)
def test_the_best_epochs_weights_are_kept(task, mix):
    splits = made_up(task, noise=6.0, n_train=24)
    bank = new_bank(task, splits, range(4), mix)
    together = Trained(bank, splits, 10, 0.05, ramp_start=10, ramp_end=20)
    assert len(set(bank.best_epochs)) > 1
    assert min(bank.best_epochs) < 10
    for index, history in enumerate(bank.histories):
        scores = [row[f"val_{SELECTION[task]}"] for row in history]
        assert [row["epoch"] for row in history] == list(range(1, 11))
        assert bank.best_scores[index] == max(scores)
        assert bank.best_epochs[index] == 1 + scores.index(max(scores))
        kept, best = bank.state(index), bank.best_epochs[index] - 1
        assert_close(kept, together.epochs[best][index], atol=0)
        test, val = (
            Alone(kept).predict(probe_input(splits, s, index, bank)) for s in ("test", "val")
        )
        np.testing.assert_allclose(together.outputs[index], test, rtol=1e-4, atol=1e-4)
        expected = metrics.evaluate(task, splits["val"][1], val).figures
        shown = {f"val_{k}": v for k, v in expected.items() if not k.endswith("_left_out")}
        found = {name: v for name, v in history[best].items() if name.startswith("val_")}
        assert found == pytest.approx(shown, rel=1e-3)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.3, 0.9, 0.9], 2),
        ([np.nan, 0.3, 0.9], 3),
        ([0.9, np.nan, 0.3], 1),
        ([0.3, 0.9, np.nan], 2),
        ([np.nan] * 3, 3),
    ],
)
def test_which_epoch_is_the_best(monkeypatch, scores, best):
    """The first of equal ones; never one without a score, unless none has any."""
    given = iter(np.repeat(scores, 4).tolist())
    evaluation = lambda *_: metrics.Evaluation({"ap": 0.0, "roc_auc": next(given)}, {})  # noqa: E731
    monkeypatch.setattr(probe, "evaluate", evaluation)
    together = trained("multi-label", made_up("multi-label"), epochs=3)
    assert together.bank.best_epochs.tolist() == [best] * 4
    np.testing.assert_array_equal(together.bank.best_scores, [scores[best - 1]] * 4)
    for index in range(4):
        assert_close(together.bank.state(index), together.epochs[best - 1][index], atol=0)


def test_evaluation_in_parts_is_the_evaluation_of_the_whole(monkeypatch):
    splits = made_up("multi-label")
    whole = trained("multi-label", splits, epochs=2)
    monkeypatch.setattr(probe, "_EVALUATED_AT_ONCE", 7)
    parts = trained("multi-label", splits, epochs=2)
    assert parts.outputs.shape == (4, 25, 3)
    np.testing.assert_allclose(parts.outputs, whole.outputs, rtol=1e-5, atol=1e-6)
    assert parts.bank.best_scores == pytest.approx(whole.bank.best_scores)


def test_blocks_are_normalized_where_they_are():
    x = np.random.default_rng(0).normal(7, [[1], [100]], (1030, SETS, WIDTH)).astype(np.float32)
    expected = F.layer_norm(torch.from_numpy(x.copy()), (WIDTH,)).numpy()
    assert layer_normalized(x) is x
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(("task", "mix"), KINDS)
def test_a_bank_takes_the_weights_of_another(task, mix):
    splits = made_up(task)
    bank = trained(task, splits, mix, epochs=1).bank
    kept = [0, 1] if mix else [2, 3]
    x = splits["test"][0] if mix else splits["test"][0][:, 1:]
    loaded = ProbeBank(WIDTH, 3, (0, 0), hidden=8, task=task, n_blocks=SETS if mix else None)
    loaded.load([bank.state(index) for index in kept])
    outputs = bank.predict(splits["test"][0])[kept]
    np.testing.assert_allclose(loaded.predict(x), outputs, rtol=1e-5, atol=1e-5)
    z = torch.from_numpy(outputs)
    functions = {"multi-label": torch.sigmoid, "single-label": partial(torch.softmax, dim=-1)}
    expected = functions.get(task, torch.clone)(z).mean(0).numpy()
    np.testing.assert_allclose(loaded.activations(x), expected, rtol=1e-5, atol=1e-5)
    other = ProbeBank(WIDTH, 4, (0, 0), hidden=8, task=task, n_blocks=SETS if mix else None)
    with pytest.raises(RuntimeError):
        other.load([bank.state(index) for index in kept])


def transparent(dropout: float, seeds: Sequence[int] = SEEDS, hidden: int = 50) -> ProbeBank:
    """Probes whose outputs are their dropout."""
    bank = ProbeBank(1, hidden, seeds, hidden=hidden, dropout=dropout, n_sets=2)
    with torch.no_grad():
        bank.weights["net.0.weight"].zero_()
        bank.weights["net.0.bias"].fill_(1)
        bank.weights["net.2.weight"].copy_(torch.eye(hidden).expand(len(bank), -1, -1))
        bank.weights["net.2.bias"].zero_()
    return bank


@torch.no_grad()
def applied(bank: ProbeBank, batch: int = 399, training: bool = True) -> Tensor:
    return bank.forward(torch.zeros(1, batch, 2, 1), training)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.75])
def test_dropout_leaves_out_as_much_as_it_says(dropout):
    bank = transparent(dropout)
    found = applied(bank)
    assert (applied(bank, training=False) == 1).all()
    values = found.unique()
    assert values.tolist() == pytest.approx([0, 1 / (1 - dropout)], rel=1e-4)
    lost = (found == 0).double()
    deviation = math.sqrt(dropout * (1 - dropout))

    def near(share: Tensor, draws: int) -> bool:
        return bool((share - dropout).abs().max() < 5 * deviation / math.sqrt(draws))

    for own in lost[:2]:
        assert near(own.mean(), 399 * 50)
        assert near(own.mean(dim=0), 399)  # of each hidden value
        assert near(own.mean(dim=1), 50)  # of each track
        neighbours = ((own[:, 1:] - dropout) * (own[:, :-1] - dropout)).mean() / deviation**2
        assert neighbours.abs() < 5 / math.sqrt(399 * 49)


def test_no_dropout_is_none():
    assert (applied(transparent(0.0)) == 1).all()
    assert (applied(transparent(1e-7)) != 0).double().mean() > 0.999
    assert (applied(transparent(1 - 1e-7)) == 0).double().mean() > 0.999
