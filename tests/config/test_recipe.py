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
from maest.helpers.training.averaging import WeightAverage
from maest.models.maest import Maest
from maest.models.sizes import TASKS
from maest.models.training import MaestModule

PAPER = {"warmup_epochs": 5, "ramp_start": 50, "ramp_end": 100, "last_lr_factor": 0.01}


def test_schedule_of_the_paper():
    warmup = {0: 0.9, 0.5: 0.9, 1: 0.8, 2.5: 0.5, 4: 0.2}  # epochs count as at least 0.5
    expected = {epoch: math.exp(-5 * rest**2) for epoch, rest in warmup.items()}
    expected |= {5: 1, 49: 1, 50: 1, 75: 0.505, 100: 0.01, 129: 0.01}
    assert {e: Schedule(**PAPER).factor(e) for e in expected} == pytest.approx(expected)


def test_schedule_without_warmup_or_ramp():
    flat = {"warmup_epochs": 0, "ramp_start": 10, "ramp_end": 10, "last_lr_factor": 1}
    assert {Schedule(**flat).factor(e) for e in range(30)} == {1}


# --- Figures of any task ------------------------------------------------------------------------


def assert_approx(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == {name: pytest.approx(v, rel=1e-5, abs=1e-7) for name, v in expected.items()}


def test_multi_label_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 6)) < 0.3, rng.random((50, 6))
    expected = {"ap": average_precision_score(targets, scores), "classes_left_out": 0}
    expected["roc_auc"] = roc_auc_score(targets, scores)
    assert_approx(evaluate("multi-label", targets, scores).figures, expected)


def test_single_label_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    scores = rng.random((60, 6)) * 0.5 + np.eye(6)[np.where(rng.random(60) < 0.5, true, guess)]
    predicted = scores.argmax(1)
    assert set(true) == set(predicted) == set(range(4))  # classes 4 and 5 are nowhere
    found = evaluate("single-label", np.eye(6)[true], scores)
    expected = {"accuracy": accuracy_score(true, predicted), "classes_left_out": 2}
    expected["macro_f1"] = f1_score(true, predicted, average="macro")
    assert_approx(found.figures, expected)
    assert found.left_out == 2
    np.testing.assert_allclose(found.per_label["f1"][:4], f1_score(true, predicted, average=None))
    assert np.isnan([values[4:] for values in found.per_label.values()]).all()


def test_regression_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets = (rng.standard_normal((40, 3)) * [1, 20, 300] + [0, 5, 1000]).astype(np.float32)
    outputs = (targets + rng.standard_normal((40, 3)) * [0.5, 40, 100]).astype(np.float32)
    found = evaluate("regression", targets, outputs)
    expected = {"r2": r2_score(targets, outputs), "mse": mean_squared_error(targets, outputs)}
    assert_approx(found.figures, expected | {"targets_left_out": 0})
    assert found.per_label["r2"][1] < 0  # worse than the mean: no error, and no zero
    each = mean_squared_error(targets, outputs, multioutput="raw_values")
    np.testing.assert_allclose(found.per_label["mse"], each, rtol=1e-5)


def test_labels_that_cannot_be_scored_are_left_out_and_counted():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    found = evaluate("multi-label", targets, np.array([[0.9, 0.1, 0], [0.1, 0.2, 0], [0.8, 0, 0]]))
    assert found.figures == {"ap": 1, "roc_auc": 1, "classes_left_out": 2}
    assert np.isnan(found.per_label["ap"][1:]).all()
    assert np.isnan(evaluate("multi-label", np.zeros((3, 1)), np.zeros((3, 1))).figures["ap"])
    # class 0 is never predicted, class 2 is never a target; class 3 is neither
    found = evaluate("single-label", np.eye(4)[[0, 1, 1, 1]], np.eye(4)[[1, 1, 1, 2]])
    np.testing.assert_allclose(found.per_label["precision"], [np.nan, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(found.per_label["recall"], [0, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(found.per_label["f1"], [0, 2 / 3, 0, np.nan])
    assert_approx(found.figures, {"accuracy": 0.5, "macro_f1": 2 / 9, "classes_left_out": 1})
    targets = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    found = evaluate("regression", targets, np.array([[1.0, 6.0], [2.0, 7.0], [3.0, 8.0]]))
    assert_approx(found.figures, {"r2": 1, "mse": 1 / 3, "targets_left_out": 1})
    np.testing.assert_array_equal(found.per_label["r2"], [1, np.nan])
    alone = evaluate("regression", targets[:1], targets[:1])
    assert (alone.left_out, np.isnan(alone.figures["r2"])) == (2, True)


def test_every_task_has_its_figures():
    assert set(MONITOR) == set(TASKS)
    one_hot = np.eye(3)[[0, 1, 2, 0]]
    for task in TASKS:
        found = evaluate(task, one_hot, one_hot)
        assert found.figures[MONITOR[task]] == 1
        assert set(found.figures) - {"classes_left_out", "targets_left_out"} <= set(FIGURE_NAMES)
        assert (found.left_out, {len(v) for v in found.per_label.values()}) == (0, {3})
        for outputs in (np.full((4, 3), np.inf), one_hot[:, :2]):
            with pytest.raises(ValueError, match=r"NaN or infinite|expected the same"):
                evaluate(task, one_hot, outputs)
    with pytest.raises(ValueError, match="'tagging'"):
        evaluate("tagging", one_hot, one_hot)


def test_baselines_of_each_task():
    rng = np.random.default_rng(0)
    train, targets = rng.random((500, 3)) < [0.1, 0.5, 0.3], rng.random((3000, 3)) < 0.4
    found = baseline("multi-label", train, targets).figures
    assert_approx(found, {"ap": targets.mean(), "roc_auc": 0.5, "classes_left_out": 0})
    chance = chance_scores(targets, seed=1)
    assert chance == (pytest.approx(0.4, abs=0.02), pytest.approx(0.5, abs=0.02))
    train, own = np.eye(3)[[0, 1, 1, 2, 1]].astype(np.uint8), np.eye(3)[[0, 1, 2, 1]]
    assert baseline("single-label", train, own).figures["accuracy"] == 0.5
    train, own = np.array([[1.0], [2.0], [6.0]]), np.array([[2.0], [4.0]])
    found = baseline("regression", train, own).figures
    assert_approx(found, {"r2": 0, "mse": 1, "targets_left_out": 0})


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
    optimiser = {"lr": 2e-5, "weight_decay": 1e-4, "betas": [0.9, 0.999]}  # PyTorch's own
    optimiser |= {"lr_interval": "epoch", "swa_start": 50, "swa_lr": None}
    masks = {"time_masks": 20, "time_mask_width": 8, "freq_masks": 8, "freq_mask_width": 5}
    others = {"roll": 0, "mixup_alpha": 0.3, "teacher_threshold": 0.45}
    others |= {"layer_decay": 1.0, "freeze_blocks": 0}
    assert found["module"] == PAPER | optimiser | masks | others
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
