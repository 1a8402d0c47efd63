"""The parts of the training recipe, each against an independent statement of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from maest import config
from maest.config.settings import Recipe, Schedule
from maest.helpers.blocks import chosen_blocks
from maest.helpers.reports.metrics import (
    FIGURE_NAMES,
    MONITOR,
    baseline,
    chance_scores,
    evaluate,
)
from maest.helpers.training.augment import mixup, spec_augment
from maest.helpers.training.averaging import WeightAverage
from maest.models.maest import Maest
from maest.models.sizes import TASKS
from maest.models.training import MaestModule

PAPER = {"warmup_epochs": 5, "ramp_start": 50, "ramp_end": 100, "last_lr_factor": 0.01}


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, math.exp(-5 * 0.9**2)),  # epochs count as at least 0.5
        (0.5, math.exp(-5 * 0.9**2)),
        (1, math.exp(-5 * 0.8**2)),
        (2.5, math.exp(-5 * 0.5**2)),
        (4, math.exp(-5 * 0.2**2)),
        (5, 1),
        (49, 1),
        (50, 1),
        (75, 0.505),
        (100, 0.01),
        (129, 0.01),
    ],
)
def test_schedule_of_the_paper(epoch, factor):
    assert Schedule(**PAPER).factor(epoch) == pytest.approx(factor)


def test_schedule_without_warmup_or_ramp():
    flat = {"warmup_epochs": 0, "ramp_start": 10, "ramp_end": 10, "last_lr_factor": 1}
    assert {Schedule(**flat).factor(e) for e in range(30)} == {1}


def test_mixup_keeps_at_least_half_of_each_clip():
    torch.manual_seed(0)
    x = torch.eye(64).reshape(64, 8, 8)
    own_x, own_y = x.clone(), torch.eye(64)
    mixed, targets = mixup(x, own_y.clone(), alpha=0.3)
    torch.testing.assert_close(x, own_x)
    torch.testing.assert_close(mixed.reshape(64, 64), targets)  # one weight, one partner for both
    own = targets.diagonal()
    assert (own >= 0.5).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert len(own.unique()) > 30  # a weight for each clip
    partners = targets - torch.diag(own)
    assert ((partners > 0).sum(1) <= 1).all()


def test_mixup_weights_follow_the_beta_distribution():
    torch.manual_seed(0)
    _, targets = mixup(torch.zeros(20_000, 1), torch.ones(20_000, 1), 0.3)
    torch.testing.assert_close(targets, torch.ones_like(targets))
    x = torch.zeros(20_000, 1)
    x[::2] = 1
    # Beta(0.3, 0.3) folded at a half: the mean of max(λ, 1 - λ) by simulation
    draws = np.random.default_rng(0).beta(0.3, 0.3, 200_000)
    expected = np.maximum(draws, 1 - draws).mean()
    mixed, _ = mixup(x, x, 0.3)
    # a clip of ones keeps λ, plus 1 - λ where its partner (every second time) is of ones too
    assert mixed[::2].mean() == pytest.approx(expected + (1 - expected) / 2, abs=0.01)


def test_mixup_off():
    x, y = torch.rand(4, 3), torch.rand(4, 2)
    assert mixup(x, y, 0) == (x, y)


def runs(hidden: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], hidden.astype(int), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


def test_one_mask_has_a_uniform_width_and_lies_anywhere():
    torch.manual_seed(0)
    masked = spec_augment(torch.ones(20_000, 4, 40), 1, 8, 0, 0)
    assert (masked == masked[:, :1]).all()  # a stripe of time covers all bands
    hidden = (masked[:, 0] == 0).numpy()
    widths = np.array([sum(runs(row)) for row in hidden])
    assert all(len(runs(row)) <= 1 for row in hidden[:500])
    counts = np.bincount(widths, minlength=8)
    assert len(counts) == 8  # 0 to 7
    assert np.abs(counts / len(hidden) - 1 / 8).max() < 0.01
    starts = np.bincount([row.argmax() for row in hidden[widths == 7]], minlength=34)
    assert len(starts) == 34
    assert (starts > 0).all()
    assert starts[0] == pytest.approx(starts.mean(), rel=0.4)


def test_masks_of_a_batch():
    torch.manual_seed(0)
    mel = torch.rand(32, 96, 312) + 1
    before = mel.clone()
    masked = spec_augment(mel, 20, 8, 8, 5)
    torch.testing.assert_close(mel, before)
    hidden = masked == 0
    torch.testing.assert_close(masked[~hidden], mel[~hidden])
    time, freq = hidden.all(1), hidden.all(2)
    assert (hidden == (time[:, None] | freq[:, :, None])).all()  # nothing but stripes
    assert len({tuple(row.tolist()) for row in time}) == 32  # each clip has its own
    assert (freq.sum(1) <= 8 * 4).all()
    # 20 masks of mean width 3.5 on 312 frames, overlapping at times
    assert time.float().mean() == pytest.approx(1 - (1 - 3.5 / 312) ** 20, abs=0.03)


def test_masks_off_and_wider_than_the_input():
    mel = torch.ones(2, 96, 20)
    assert spec_augment(mel, 0, 8, 0, 5) is mel
    assert spec_augment(torch.ones(500, 3, 4), 1, 100, 1, 100).shape == (500, 3, 4)


def test_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 6)) < 0.3, rng.random((50, 6))
    metrics = evaluate("multi-label", targets, scores).figures
    assert metrics["ap"] == pytest.approx(average_precision_score(targets, scores))
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(targets, scores))
    assert metrics["classes_left_out"] == 0


def test_classes_that_cannot_be_scored_are_left_out_and_counted():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    scores = np.array([[0.9, 0.1, 0], [0.1, 0.2, 0], [0.8, 0, 0]])
    evaluation = evaluate("multi-label", targets, scores)
    assert evaluation.figures == {"ap": 1, "roc_auc": 1, "classes_left_out": 2}
    assert evaluation.left_out == 2
    assert np.isnan(evaluation.per_label["ap"][1:]).all()
    assert np.isnan(evaluate("multi-label", np.zeros((3, 1)), np.zeros((3, 1))).figures["ap"])


def test_baselines():
    rng = np.random.default_rng(0)
    targets = rng.random((3000, 2)) < [0.1, 0.4]
    constant = evaluate("multi-label", targets, np.broadcast_to([0.1, 0.4], targets.shape)).figures
    assert constant["ap"] == pytest.approx(targets.mean())
    assert constant["roc_auc"] == 0.5
    ap, roc_auc = chance_scores(targets, seed=1)
    assert (ap, roc_auc) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.5, abs=0.02))


# --- Figures of any task ------------------------------------------------------------------------


def test_every_task_has_its_figures():
    assert set(MONITOR) == set(TASKS)
    one_hot = np.eye(3)[[0, 1, 2, 0]]
    for task in TASKS:
        found = evaluate(task, one_hot, one_hot)
        assert found.figures[MONITOR[task]] == 1
        assert set(found.figures) - {"classes_left_out", "targets_left_out"} <= set(FIGURE_NAMES)
        assert found.left_out == 0
        assert all(values.shape == (3,) for values in found.per_label.values())
        with pytest.raises(ValueError, match="NaN or infinite"):
            evaluate(task, one_hot, np.full((4, 3), np.inf))
        with pytest.raises(ValueError, match="expected the same"):
            evaluate(task, one_hot, one_hot[:, :2])
    with pytest.raises(ValueError, match="task is 'tagging'"):
        evaluate("tagging", one_hot, one_hot)


def test_single_label_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    scores = rng.random((60, 6)) * 0.5 + np.eye(6)[np.where(rng.random(60) < 0.5, true, guess)]
    predicted = scores.argmax(1)
    assert set(true) == set(predicted) == set(range(4))  # classes 4 and 5 are nowhere
    found = evaluate("single-label", np.eye(6)[true], scores)
    assert found.figures["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found.figures["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert found.left_out == found.figures["classes_left_out"] == 2
    np.testing.assert_allclose(found.per_label["f1"][:4], f1_score(true, predicted, average=None))
    assert np.isnan([values[4:] for values in found.per_label.values()]).all()


def test_single_label_figures_by_hand():
    # class 0 is never predicted, class 2 is never a target; class 3 is neither
    found = evaluate("single-label", np.eye(4)[[0, 1, 1, 1]], np.eye(4)[[1, 1, 1, 2]])
    np.testing.assert_allclose(found.per_label["precision"], [np.nan, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(found.per_label["recall"], [0, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(found.per_label["f1"], [0, 2 / 3, 0, np.nan])
    assert found.figures["accuracy"] == 0.5
    assert found.figures["macro_f1"] == pytest.approx(2 / 9)


def test_regression_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets = (rng.standard_normal((40, 3)) * [1, 20, 300] + [0, 5, 1000]).astype(np.float32)
    outputs = (targets + rng.standard_normal((40, 3)) * [0.5, 40, 100]).astype(np.float32)
    found = evaluate("regression", targets, outputs)
    assert found.figures["r2"] == pytest.approx(r2_score(targets, outputs), rel=1e-5)
    assert found.figures["mse"] == pytest.approx(mean_squared_error(targets, outputs), rel=1e-5)
    assert found.per_label["r2"][1] < 0  # worse than the mean: no error, and no zero
    each = mean_squared_error(targets, outputs, multioutput="raw_values")
    np.testing.assert_allclose(found.per_label["mse"], each, rtol=1e-5)


def test_targets_that_do_not_vary_are_left_out_and_counted():
    targets = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    found = evaluate("regression", targets, np.array([[1.0, 6.0], [2.0, 7.0], [3.0, 8.0]]))
    assert found.figures == {"r2": 1, "mse": pytest.approx(1 / 3), "targets_left_out": 1}
    np.testing.assert_array_equal(found.per_label["r2"], [1, np.nan])
    alone = evaluate("regression", targets[:1], targets[:1])
    assert alone.left_out == 2
    assert np.isnan(alone.figures["r2"])


def test_baselines_of_each_task():
    rng = np.random.default_rng(0)
    train, targets = rng.random((500, 3)) < [0.1, 0.5, 0.3], rng.random((400, 3)) < 0.4
    found = baseline("multi-label", train, targets)
    assert found.figures["ap"] == pytest.approx(targets.mean())
    assert found.figures["roc_auc"] == 0.5
    train, own = np.eye(3)[[0, 1, 1, 2, 1]].astype(np.uint8), np.eye(3)[[0, 1, 2, 1]]
    assert baseline("single-label", train, own).figures["accuracy"] == 0.5
    train, own = np.array([[1.0], [2.0], [6.0]]), np.array([[2.0], [4.0]])
    found = baseline("regression", train, own).figures
    assert found == {"r2": pytest.approx(0), "mse": pytest.approx(1), "targets_left_out": 0}


# --- The paper's recipe, number by number --------------------------------------------------------


def configured(name: str) -> dict[str, dict]:
    """All settings of `ex_maest.py with <name>`."""
    changes = config.MAEST_NAMED[name]
    return {
        section: values | changes.get(section, {})
        for section, values in config.MAEST.items()
        if isinstance(values, dict)
    }


PRETRAIN = [name for name in config.MAEST_NAMED if name.startswith("maest") and "pretrain" in name]


@pytest.mark.parametrize("name", ["paper_recipe", *PRETRAIN])
def test_the_numbers_of_the_paper(name):
    found = configured(name)
    student = "teacher_student" in name
    assert found["module"] == {
        "lr": 2e-5,
        "weight_decay": 1e-4,
        "betas": [0.9, 0.999],  # PyTorch's own
        "warmup_epochs": 5,
        "ramp_start": 50,
        "ramp_end": 100,
        "last_lr_factor": 0.01,
        "lr_interval": "epoch",
        "swa_start": 50,
        "swa_lr": None,
        "roll": 0,
        "mixup_alpha": 0.3,
        "time_masks": 20,
        "time_mask_width": 8,
        "freq_masks": 8,
        "freq_mask_width": 5,
        "layer_decay": 1.0,
        "freeze_blocks": 0,
        "teacher_threshold": 0.45,
    }
    data, trainer, maest = found["datamodule"], found["trainer"], found["maest"]
    assert data["batch_size_train"] == (4 if student else 12)
    assert (data["clips_per_epoch"], data["balanced_sampling"]) == (200_000, True)
    assert trainer["max_epochs"] == 130
    assert trainer["precision"] is None  # fp16 on CUDA
    assert trainer["gradient_clip_val"] is None
    assert trainer["check_val_every_n_epoch"] == trainer["accumulate_grad_batches"] == 1
    assert (maest["norm_mean"], maest["norm_std"]) == (2.06755686098554, 1.268292820667291)
    assert maest["distilled_type"] == ("separated" if student else None)
    assert maest["drop_rate"] == maest["attn_drop_rate"] == maest["drop_path_rate"] == 0
    assert maest["s_patchout_f"] == maest["u_patchout"] == 0


FAMILY = {
    # stem: seconds, columns of a clip, columns dropped, what it starts from
    "maest_10s_random_weights": (10, 61, 30, "maest_base"),
    "maest_10s_from_deit": (10, 61, 30, "passt_deit_bd_p16_384"),
    "maest_10s_from_passt": (10, 61, 30, "passt_s_swa_p16_128_ap476"),
    "maest_5s_from_passt": (5, 30, 15, "passt_s_swa_p16_128_ap476"),
    "maest_20s_from_passt": (20, 124, 60, "passt_s_swa_p16_128_ap476"),
    "maest_30s_from_passt": (30, 186, 90, "passt_s_swa_p16_128_ap476"),
    "maest_discogs_5sec": (5, 30, 15, "passt_s_swa_p16_128_ap476"),
    "maest_discogs_30s": (30, 186, 90, "passt_s_swa_p16_128_ap476"),
    "maest_30s_teacher_student": (30, 186, 90, "passt_s_swa_p16_128_ap476"),
}


@pytest.mark.parametrize(("stem", "expected"), FAMILY.items())
def test_each_models_length_patchout_and_start(stem, expected):
    seconds, columns, dropped, start = expected
    found = configured(f"{stem}_pretrain")
    assert found["datamodule"]["clip_length"] == seconds
    assert (found["maest"]["s_patchout_t"], found["maest"]["arch"]) == (dropped, start)
    assert (seconds * 16000 // 256 - 16) // 10 + 1 == columns
    assert 0.45 < dropped / columns <= 0.5  # about half


def test_block_of_the_embeddings():
    """Block 7, or the last of a shallower network: nothing names another one."""
    assert (chosen_blocks(None, 12), chosen_blocks(None, 4)) == ((7,), (3,))
    assert config.MAEST["inference"]["transformer_block"] is None
    assert config.TL["data"]["block"] is None
    for name in config.MAEST_NAMED:
        assert configured(name)["inference"]["transformer_block"] is None, name
    for named in config.TL_NAMED.values():
        assert "block" not in named["data"]


@pytest.mark.parametrize("swa_lr", [None, 2e-5])
def test_rates_of_a_training_by_the_paper(swa_lr):
    """AdamW's rate in each of the 130 epochs; in the released code averaging holds it at 2e-5."""
    recipe = configured("paper_recipe")["module"] | {"swa_lr": swa_lr}
    net = Maest(n_classes=2, input_t=62, embed_dim=64, num_heads=1, depth=1)
    module = MaestModule(net, config.parse(Recipe, recipe))
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    assert found["lr_scheduler"]["interval"] == "epoch"
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["weight_decay"] == 1e-4
    rates = []
    for _ in range(130):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    early = {0: 3.48447e-7, 1: 8.15244e-7, 2: 3.30598e-6, 3: 8.98658e-6, 4: 1.63746e-5}
    late = {51: 1.9604e-5, 75: 1.01e-5, 99: 5.96e-7, 100: 2e-7, 129: 2e-7}
    expected = early | {5: 2e-5, 6: 2e-5, 30: 2e-5, 50: 2e-5}
    expected |= late if swa_lr is None else dict.fromkeys(late, 2e-5)
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected, rel=1e-5)


def test_the_average_begins_with_the_51st_epoch():
    average = WeightAverage(configured("paper_recipe")["module"]["swa_start"])
    module = pl.LightningModule()
    module.net, module.also_evaluated = torch.nn.Linear(1, 1), {}
    average.setup(None, module, "fit")
    counts = []
    for epoch in range(130):
        for is_last in (False, True):  # one step does not count, and the last one once
            trainer = SimpleNamespace(current_epoch=epoch, is_last_batch=is_last)
            average.on_train_batch_end(trainer, module, None, None, 0)
        counts.append(average.epochs)
    assert counts == [0] * 50 + list(range(1, 81))


def test_frequency_masks_are_narrower():
    torch.manual_seed(0)
    masked = spec_augment(torch.ones(20_000, 20, 4), 0, 8, 1, 5)
    assert (masked == masked[:, :, :1]).all()  # a stripe of bands covers all frames
    widths = (masked[:, :, 0] == 0).sum(1)
    counts = torch.bincount(widths) / len(widths)
    torch.testing.assert_close(counts, torch.full((5,), 1 / 5), atol=0.01, rtol=0)  # 0 to 4


def test_number_of_masks():
    """Where they are wide apart, each can be counted."""
    torch.manual_seed(0)
    masked = spec_augment(torch.ones(500, 1, 20_000), 20, 2, 0, 0)[:, 0]
    hidden = (masked == 0).sum(1).float()  # each mask has a width of 0 or 1
    assert hidden.max() <= 20
    assert hidden.mean() == pytest.approx(10, abs=0.4)
