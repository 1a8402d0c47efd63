"""Probes that are trained together: each is what plain PyTorch makes of it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from made_up import refuses
from torch import Tensor, nn
from torch.nn import functional as F

from maest import config
from maest.datasets import datamodule
from maest.datasets.datamodule import FeatureDataModule
from maest.helpers import metrics
from maest.models import cpu, probe
from maest.models.cpu import grouped_linear
from maest.models.probe import SELECTION, Probe, ProbeBank, ProbeOptions, normalised

WIDTH, SETS, BATCH, EPOCHS = 6, 2, 16, 4
SEEDS = (3, 5)
OPTIONS = ProbeOptions(
    hidden=8,
    dropout=0.5,
    lr=0.02,
    weight_decay=0.1,
    warmup_epochs=1.0,
    ramp_start=1.0,
    ramp_end=4.0,
    last_lr_factor=0.1,
)
TASKS = tuple(SELECTION)
# Mixing is another network, not another task.
KINDS = [*((task, False) for task in TASKS), ("multi-label", True)]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*log_every_n_steps.*"),
]

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def made_up(task: str, noise: float = 1.0, n_sets: int = SETS, n_train: int = 70) -> Splits:
    """Three targets that depend on all sets of the features, and on noise."""
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(n_sets * WIDTH, 3))
    found = {}
    for split, n_tracks in (("train", n_train), ("val", 30), ("test", 25)):
        x = rng.normal(size=(n_tracks, n_sets, WIDTH)).astype(np.float32)
        values = x.reshape(n_tracks, -1) @ rule + noise * rng.normal(size=(n_tracks, 3))
        if task == "multi-label":
            targets = values > 0
        elif task == "single-label":
            targets = np.eye(3)[values.argmax(axis=1)]
        else:
            targets = values * [1, 10, 0.1] + [0, 500, -3]
        found[split] = (x, targets.astype(np.float32))
    return found


def new_bank(
    task: str,
    splits: Splits,
    seeds: Sequence[int] = SEEDS,
    options: ProbeOptions = OPTIONS,
    mix: bool = False,
) -> ProbeBank:
    x, targets = splits["train"]
    own = {}
    if task == "regression":
        own = {"scale": targets.std(axis=0), "shift": targets.mean(axis=0)}
    n_sets = x.shape[1]
    own |= {"n_sets": 1, "n_blocks": n_sets} if mix else {"n_sets": n_sets}
    return ProbeBank(x.shape[2], targets.shape[1], options, seeds, task=task, **own)


def train(
    bank: ProbeBank,
    splits: Splits,
    epochs: int = EPOCHS,
    watch: Sequence[pl.Callback] = (),
    sanity_steps: int = 0,
) -> ProbeBank:
    """Train it, and test what was best."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=sanity_steps,
        callbacks=list(watch),
    )
    if bank.n_blocks is not None:
        splits = {
            split: (normalised(torch.from_numpy(x)).numpy(), targets)
            for split, (x, targets) in splits.items()
        }
    data = FeatureDataModule(splits, BATCH, bank.seeds)
    trainer.fit(bank, data)
    bank.restore_best()
    trainer.test(bank, data, verbose=False)
    return bank


def probe_input(splits: Splits, split: str, index: int, bank: ProbeBank) -> Tensor:
    """What a probe alone is given: its own set, or all blocks as they are."""
    x = torch.from_numpy(splits[split][0])
    return x if bank.n_blocks is not None else x[:, index // len(bank.seeds)]


def state(bank: ProbeBank, index: int) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bank.probe(index).state_dict().items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 2e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=name)


class Watch(pl.Callback):
    """What the probes' weights were, step by step and epoch by epoch, and the learning rates."""

    def __init__(self) -> None:
        self.steps: list[list[dict[str, Tensor]]] = []
        self.epochs: list[list[dict[str, Tensor]]] = []
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        self.steps.append([state(module, i) for i in range(len(module))])

    def on_train_epoch_start(self, trainer, module) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_validation_end(self, trainer, module) -> None:
        self.epochs.append([state(module, i) for i in range(len(module))])


# ---- the same as alone ---------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "mix"), KINDS)
def test_a_probe_of_a_bank_is_the_one_trained_alone(task, mix):
    splits = made_up(task)
    together = train(new_bank(task, splits, mix=mix), splits)
    assert len(together) == (2 if mix else 4)
    for index in range(len(together)):
        number, seed = divmod(index, len(SEEDS))
        own = splits
        if not mix:
            own = {s: (x[:, number : number + 1], y) for s, (x, y) in splits.items()}
        alone = train(new_bank(task, own, SEEDS[seed : seed + 1], mix=mix), own)
        assert_close(state(together, index), state(alone, 0))
        np.testing.assert_allclose(together.outputs[index], alone.outputs[0], rtol=1e-3, atol=1e-4)
        assert together.best_epochs[index] == alone.best_epochs[0]
        assert len(together.histories[index]) == EPOCHS
        for one, other in zip(together.histories[index], alone.histories[0], strict=True):
            assert one == pytest.approx(other, rel=1e-3)
    states = [state(together, i)["net.0.weight"] for i in range(len(together))]
    assert not any(torch.equal(one, other) for one in states[1:] for other in states[:1])


def by_hand(z: Tensor, y: Tensor, task: str, scale: Tensor, shift: Tensor) -> Tensor:
    if task == "single-label":
        return F.cross_entropy(z, y.argmax(dim=1))
    if task == "regression":
        return F.mse_loss(z, (y - shift) / scale)
    return F.binary_cross_entropy_with_logits(z, y)


@pytest.mark.parametrize(("task", "mix"), KINDS)
def test_every_step_is_that_of_plain_pytorch(task, mix):
    """70 tracks are four batches of 16 and one of 6."""
    splits, seen = made_up(task), Watch()
    bank = new_bank(task, splits, mix=mix)
    fresh, masks = new_bank(task, splits, mix=mix), new_bank(task, splits, mix=mix)
    train(bank, splits, watch=[seen])
    assert len(seen.steps) == EPOCHS * 5
    drawn = [masks._dropout(len_) for _ in range(EPOCHS) for len_ in (16, 16, 16, 16, 6)]
    rates = [math.exp(-5 / 4), 1, 0.7, 0.4]  # the warm-up is at least half an epoch old
    targets = torch.from_numpy(splits["train"][1])
    for index in range(len(bank)):
        x = probe_input(splits, "train", index, bank)
        start = fresh.probe(index)
        net = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))
        net.load_state_dict(start.net.state_dict())
        groups = [{"params": list(net.parameters())}]
        weights = torch.zeros(SETS, requires_grad=True)
        if mix:
            groups.append({"params": [weights], "lr": 10 * OPTIONS.lr, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, OPTIONS.lr, weight_decay=OPTIONS.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: (*rates, 0)[epoch])
        orders = torch.Generator().manual_seed(SEEDS[index % 2])
        step = 0
        for _ in range(EPOCHS):
            for batch in torch.randperm(70, generator=orders).split(BATCH):
                inputs = x[batch]
                if mix:
                    shares = weights.exp() / weights.exp().sum()
                    blocks = (F.layer_norm(inputs[:, i], (WIDTH,)) for i in range(SETS))
                    inputs = sum(share * b for share, b in zip(shares, blocks, strict=True))
                hidden = net[1](net[0](inputs)) * drawn[step][index % 2]
                loss = by_hand(net[2](hidden), targets[batch], task, bank.scale, bank.shift)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                expected = {f"net.{name}": v.detach() for name, v in net.state_dict().items()}
                expected |= {"scale": bank.scale, "shift": bank.shift}
                expected |= {"mix": weights.detach()} if mix else {}
                assert_close(seen.steps[step][index], expected)
                step += 1
            schedule.step()


@pytest.mark.parametrize("task", TASKS)
def test_a_probes_gradient_is_that_of_its_own_mean_loss(task):
    splits = made_up(task)
    bank = new_bank(task, splits, options=replace(OPTIONS, dropout=0.0))
    x, targets = (torch.from_numpy(part[:16]) for part in splits["train"])
    bank.training_step((x.expand(2, -1, -1, -1), targets.expand(2, -1, -1)), 0).backward()
    for index in range(4):
        net = bank.probe(index).net
        by_hand(net(x[:, index // 2]), targets, task, bank.scale, bank.shift).backward()
        torch.testing.assert_close(bank.weight1.grad[index], net[0].weight.grad)
        torch.testing.assert_close(bank.bias2.grad[index], net[2].bias.grad)


def test_probes_do_not_reach_each_other():
    splits = made_up("multi-label")
    other = {s: (x.copy(), y) for s, (x, y) in splits.items()}
    for x, _ in other.values():
        x[:, 1] *= 1000
    one, two = (train(new_bank("multi-label", own), own) for own in (splits, other))
    for index in (0, 1):
        assert all(torch.equal(v, state(two, index)[k]) for k, v in state(one, index).items())
    assert not np.allclose(one.outputs[2:], two.outputs[2:])


@pytest.mark.parametrize("mix", [False, True])
def test_the_same_seeds_give_the_same_weights_bit_for_bit(mix):
    splits, found = made_up("multi-label"), []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        found.append(train(new_bank("multi-label", splits, mix=mix), splits))
    for name, value in found[0].state_dict().items():
        assert torch.equal(value, found[1].state_dict()[name]), name
    assert np.array_equal(found[0].outputs, found[1].outputs)
    assert found[0].histories == found[1].histories
    other = train(new_bank("multi-label", splits, (4, 5), mix=mix), splits)
    assert not np.array_equal(other.outputs[0], found[0].outputs[0])
    assert np.array_equal(other.outputs[1], found[0].outputs[1])


def test_the_default_recipe_is_the_papers():
    recipe = dict(config.TL["probe"])
    assert recipe.pop("accelerator") == "auto"
    assert (recipe.pop("batch_size"), recipe.pop("max_epochs")) == (128, 60)
    assert ProbeOptions(**recipe) == ProbeOptions(512, 0.5, 1e-4, 1e-3, 10, 10, 60, 1e-7)


def test_first_weights_are_drawn_as_those_of_linear_layers():
    options = replace(OPTIONS, hidden=200)
    bank = ProbeBank(50, 40, options, (0, 1), n_sets=2)
    plain = nn.Sequential(nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 40))
    for name, expected in plain.state_dict().items():
        own = [bank.probe(i).net.state_dict()[name] for i in range(4)]
        assert torch.equal(own[0], own[2])  # of another set, the same seed
        assert not torch.equal(own[0], own[1])
        bound = (50 if name.startswith("0") else 200) ** -0.5
        assert 0.9 * bound < own[0].abs().max() <= bound
        assert own[0].std() == pytest.approx(expected.std(), rel=0.25)
        assert own[0].mean().abs() < bound / 4


# ---- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "mix"), KINDS)
def test_the_best_epochs_weights_are_tested_and_given_out(task, mix):
    splits, seen = made_up(task, noise=6.0, n_train=24), Watch()
    options = replace(OPTIONS, lr=0.05, ramp_start=10, ramp_end=20)
    bank = train(new_bank(task, splits, range(4), options, mix), splits, 10, [seen])
    monitor = f"val_{SELECTION[task]}"
    assert len(set(bank.best_epochs)) > 1
    assert min(bank.best_epochs) < 10
    for index in range(len(bank)):
        figures = [row[monitor] for row in bank.histories[index]]
        assert [row["epoch"] for row in bank.histories[index]] == list(range(1, 11))
        assert bank.best_figures[index] == max(figures)
        assert bank.best_epochs[index] == 1 + figures.index(max(figures))
        own = bank.probe(index)
        assert_close(own.state_dict(), seen.epochs[bank.best_epochs[index] - 1][index], atol=0)
        assert not own.training
        with torch.no_grad():
            test = own(probe_input(splits, "test", index, bank)).numpy()
            val = own(probe_input(splits, "val", index, bank)).numpy()
        np.testing.assert_allclose(bank.outputs[index], test, rtol=1e-4, atol=1e-4)
        expected = metrics.evaluate(task, splits["val"][1], val).figures
        row = bank.histories[index][bank.best_epochs[index] - 1]
        shown = {name: v for name, v in expected.items() if not name.endswith("_left_out")}
        assert {name.removeprefix("val_"): v for name, v in row.items() if "val_" in name} == (
            pytest.approx(shown, rel=1e-3)
        )


def test_of_equal_figures_the_first_is_best():
    splits = made_up("single-label", noise=0, n_sets=1)
    splits["val"] = tuple(part[:4] for part in splits["val"])
    bank = train(new_bank("single-label", splits), splits, 12)
    for index in range(len(bank)):
        figures = [row["val_accuracy"] for row in bank.histories[index]]
        assert figures.count(max(figures)) > 1
        assert bank.best_epochs[index] == 1 + figures.index(max(figures))


def test_a_label_that_validation_lacks_has_no_say():
    splits = made_up("multi-label")
    x, targets = splits["val"]
    targets[:, 1] = 0
    bank = train(new_bank("multi-label", splits), splits, 2)
    with torch.no_grad():
        outputs = bank.probe(0)(torch.from_numpy(x[:, 0])).numpy()
    roc_auc = metrics.evaluate("multi-label", targets, outputs).per_label["roc_auc"]
    assert np.isnan(roc_auc).tolist() == [False, True, False]
    assert bank.best_figures[0] == pytest.approx(np.nanmean(roc_auc))


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_without_any_figure_the_last_epoch_counts(task):
    splits, seen = made_up(task), Watch()
    splits["val"][1][:] = 0
    bank = train(new_bank(task, splits), splits, 3, [seen])
    assert np.isnan(bank.best_figures).all()
    assert bank.best_epochs.tolist() == [3] * 4
    for index in range(4):
        assert_close(state(bank, index), seen.epochs[2][index], atol=0)


def test_an_epoch_without_a_figure_is_never_the_best(monkeypatch):
    """Wherever it stands among the others."""
    splits = made_up("multi-label")
    for scores, best in (([np.nan, 0.3, 0.9], 3), ([0.9, np.nan, 0.3], 1), ([0.3, 0.9, np.nan], 2)):
        figures = iter([{"ap": score, "roc_auc": score} for score in scores for _ in range(4)])
        with monkeypatch.context() as patch:
            patch.setattr(probe, "_figures", lambda *_, figures=figures: next(figures))
            bank = train(new_bank("multi-label", splits), splits, 3)
        assert bank.best_epochs.tolist() == [best] * 4
        assert bank.best_figures.tolist() == [0.9] * 4


def test_a_trial_validation_before_training_is_no_epoch():
    splits = made_up("multi-label")
    plain, tried = (
        train(new_bank("multi-label", splits), splits, sanity_steps=steps) for steps in (0, 2)
    )
    assert tried.histories == plain.histories
    assert np.array_equal(tried.outputs, plain.outputs)


@pytest.mark.parametrize("task", TASKS)
def test_the_training_loss_is_the_mean_over_the_tracks(task):
    """Weights that do not move, and a last batch that is smaller than the others."""
    splits = made_up(task)
    still = replace(OPTIONS, lr=0.0, dropout=0.0)
    bank = train(new_bank(task, splits, options=still), splits, 1)
    x, targets = (torch.from_numpy(part) for part in splits["train"])
    for index in range(4):
        with torch.no_grad():
            logits = bank.probe(index).net(x[:, index // 2])
        expected = by_hand(logits, targets, task, bank.scale, bank.shift).item()
        assert bank.histories[index][0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_in_parts_is_the_evaluation_of_the_whole(monkeypatch):
    splits = made_up("multi-label")
    whole = train(new_bank("multi-label", splits), splits, 2)
    monkeypatch.setattr(datamodule, "_EVALUATED_AT_ONCE", 7)
    parts = train(new_bank("multi-label", splits), splits, 2)
    assert parts.outputs.shape == (4, 25, 3)
    np.testing.assert_allclose(parts.outputs, whole.outputs, rtol=1e-5, atol=1e-6)
    assert parts.best_figures == pytest.approx(whole.best_figures)


def test_a_training_that_diverges_is_told():
    splits = made_up("regression")
    wild = new_bank("regression", splits, options=replace(OPTIONS, lr=1e30))
    with refuses("diverged", setting="probe.lr"):
        train(wild, splits)


def test_the_learning_rate_of_each_epoch():
    splits, seen = made_up("multi-label"), Watch()
    options = replace(OPTIONS, lr=2.0, warmup_epochs=2.0, ramp_start=2.0, ramp_end=4.0)
    train(new_bank("multi-label", splits, options=options, mix=True), splits, 6, [seen])
    expected = [math.exp(-5 * 0.75**2), math.exp(-5 * 0.5**2), 1, 0.55, 0.1, 0.1]
    assert [layers for layers, _ in seen.rates] == pytest.approx([2 * f for f in expected])
    assert [mix for _, mix in seen.rates] == pytest.approx([20 * f for f in expected])


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_what_can_be_learned_is_learned(task):
    splits = made_up(task, noise=0.0, n_sets=1, n_train=300)
    options = replace(OPTIONS, hidden=32, dropout=0.1, weight_decay=1e-3, ramp_end=15)
    bank = train(new_bank(task, splits, options=options), splits, 15)
    targets, monitor = splits["test"][1], SELECTION[task]
    chance = metrics.baseline(task, splits["train"][1], targets).figures[monitor]
    for outputs in bank.outputs:  # of a regression in the units of the targets
        figure = metrics.evaluate(task, targets, outputs).figures[monitor]
        assert figure > {"multi-label": 0.97, "single-label": 0.8, "regression": 0.9}[task]
        assert figure > chance + 0.3


def test_what_cannot_be_learned_is_chance():
    splits = made_up("multi-label", n_sets=1, n_train=300)
    rng = np.random.default_rng(0)
    splits = {s: (rng.permutation(x), y) for s, (x, y) in splits.items()}
    bank = train(new_bank("multi-label", splits, range(8)), splits)
    targets = splits["test"][1]
    scores = [
        metrics.evaluate("multi-label", targets, own).figures["roc_auc"] for own in bank.outputs
    ]
    assert 0.3 < np.mean(scores) < 0.7


def test_the_mix_moves_to_the_block_that_tells():
    """With the default recipe, too, in the few hundred steps of a small data set."""
    recipe = {k: v for k, v in config.TL["probe"].items() if k in ProbeOptions.__annotations__}
    splits = made_up("multi-label", noise=0, n_sets=1, n_train=128)
    rng = np.random.default_rng(1)
    for split, (x, targets) in splits.items():
        noise = rng.normal(size=(len(x), 2, WIDTH)).astype(np.float32)
        splits[split] = (np.concatenate([noise[:, :1], x, noise[:, 1:]], axis=1), targets)
    options, seen = ProbeOptions(**recipe | {"hidden": 64}), Watch()
    train(new_bank("multi-label", splits, options=options, mix=True), splits, 60, [seen])
    for own in seen.epochs[-1]:
        shares = own["mix"].softmax(dim=0).tolist()
        assert shares[1] > 1.1 * max(shares[0], shares[2])
    faster = replace(options, lr=2e-3)
    bank = train(new_bank("multi-label", splits, options=faster, mix=True), splits, 30)
    assert (bank.mix.detach().softmax(dim=1)[:, 1] > 0.6).all()


def test_a_mix_alone_normalises_its_blocks():
    torch.manual_seed(0)
    probe = Probe(WIDTH, 3, 8, n_blocks=SETS)
    with torch.no_grad():
        probe.mix.copy_(torch.tensor([0.5, -1.0]))
    x = torch.randn(5, SETS, WIDTH) * torch.tensor([[1.0], [100.0]]) + 7
    shares = torch.tensor([0.5, -1.0]).exp()
    shares /= shares.sum()
    centred = x - x.mean(dim=2, keepdim=True)
    even = centred / (centred.pow(2).mean(dim=2, keepdim=True) + 1e-5).sqrt()
    expected = probe.net(shares[0] * even[:, 0] + shares[1] * even[:, 1])
    torch.testing.assert_close(probe(x), expected)
    with pytest.raises(ValueError, match="2 sets"):
        ProbeBank(WIDTH, 3, OPTIONS, n_sets=2, n_blocks=2)


# ---- dropout -------------------------------------------------------------------------------------


def transparent(dropout: float, seeds: Sequence[int] = SEEDS, hidden: int = 50) -> ProbeBank:
    """Probes whose outputs are their dropout."""
    bank = ProbeBank(1, hidden, replace(OPTIONS, dropout=dropout, hidden=hidden), seeds, n_sets=2)
    with torch.no_grad():
        bank.weight1.zero_()
        bank.bias1.fill_(1)
        bank.weight2.copy_(torch.eye(hidden).expand(len(bank), -1, -1))
        bank.bias2.zero_()
    return bank


@torch.no_grad()
def applied(bank: ProbeBank, batch: int = 399) -> Tensor:
    return bank(torch.zeros(1, batch, 2, 1))


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.75])
def test_dropout_leaves_out_as_much_as_it_says(dropout):
    bank = transparent(dropout)
    found = applied(bank)
    assert found.shape == (4, 399, 50)
    assert (applied(bank.eval()) == 1).all()
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


def test_dropout_is_that_of_the_seed():
    one, two = transparent(0.5), transparent(0.5, (5, 9))
    for _ in range(2):
        found, other = applied(one, 3), applied(two, 3)
        assert torch.equal(found[:2], found[2:])  # another set, the same seeds
        assert torch.equal(found[1], other[0])
        assert not torch.equal(found[0], found[1])
    assert not torch.equal(applied(one, 3), found)


def test_no_dropout_is_none():
    assert (applied(transparent(0.0)) == 1).all()
    assert (applied(transparent(1e-7)) != 0).double().mean() > 0.999
    assert (applied(transparent(1 - 1e-7)) == 0).double().mean() > 0.999


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5])
def test_a_dropout_that_is_none_is_refused(dropout):
    with refuses("invalid", setting="probe.dropout"):
        transparent(dropout)


# ---- many linear layers at once ------------------------------------------------------------------


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


CONTIGUOUS: Callable[[], tuple[Tensor, Tensor]] = partial(drawn, 4, 9, 7), partial(drawn, 4, 5, 7)
INPUTS = {
    "contiguous": CONTIGUOUS,
    "one group": (partial(drawn, 1, 9, 7), partial(drawn, 1, 5, 7)),
    "one row": (partial(drawn, 4, 1, 7), partial(drawn, 4, 5, 7)),
    "one feature": (partial(drawn, 4, 9, 1), partial(drawn, 4, 1, 1)),
    "transposed": (
        lambda: drawn(4, 7, 9).transpose(1, 2),
        lambda: drawn(7, 5, 4).permute(2, 1, 0),
    ),
    "expanded": (lambda: drawn(1, 9, 7).expand(4, 9, 7), lambda: drawn(1, 5, 7).expand(4, 5, 7)),
    "part": (lambda: drawn(4, 12, 20)[:, 1:10, 2:16:2], lambda: drawn(8, 6, 7)[::2, 1:]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x_learns", [True, False])
@pytest.mark.parametrize("kind", INPUTS)
def test_grouped_linear_is_one_linear_layer_for_each(kind, x_learns, dtype):
    x, weight = (make().to(dtype) for make in INPUTS[kind])
    bias = drawn(*weight.shape[:2]).to(dtype)
    upstream = drawn(*x.shape[:2], weight.shape[1]).to(dtype)
    found, expected = [], []
    for results, function in (
        (found, grouped_linear),
        (expected, lambda x, w, b: torch.stack([F.linear(*one) for one in zip(x, w, b)])),  # noqa: B905
    ):
        own = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        own[0].requires_grad_(x_learns)
        y = function(*own)
        (y * upstream).sum().backward()
        results += [y.detach(), *(tensor.grad for tensor in own if tensor.requires_grad)]
    assert len(found) == len(expected) == 3 + x_learns
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_grouped_linear_without_gradients():
    x, weight = (make() for make in CONTIGUOUS)
    bias = drawn(4, 5)
    expected = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(grouped_linear(x, weight, bias), expected)


@pytest.mark.skipif(not cpu.available(), reason="needs an x86 CPU and oneDNN")
def test_grouped_linear_has_no_second_derivative_that_is_wrong():
    x, weight = (make().requires_grad_() for make in CONTIGUOUS)
    y = grouped_linear(x, weight, drawn(4, 5)).pow(2).sum()
    (gradient,) = torch.autograd.grad(y, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.pow(2).sum().backward()


def test_probes_on_a_machine_without_onednn(monkeypatch):
    splits = made_up("multi-label")
    fast = train(new_bank("multi-label", splits), splits)
    monkeypatch.setattr(cpu, "available", lambda: False)
    plain = train(new_bank("multi-label", splits), splits)
    for index in range(4):
        assert_close(state(plain, index), state(fast, index))
