"""The parts of the training recipe, each against an independent statement of it."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from maest import config
from maest.config.settings import Recipe, Schedule
from maest.helpers.blocks import chosen_blocks
from maest.helpers.training.averaging import WeightAverage
from maest.models.maest import Maest
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


def configured(name: str) -> dict[str, dict]:
    """All settings of `ex_maest.py with <name>`."""
    changes = config.MAEST_NAMED[name]
    return {
        section: values | changes.get(section, {})
        for section, values in config.plain(config.Settings()).items()
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
    shares = ("band_limit_share", "noise_share", "reverb_share", "blank_share")
    others |= dict.fromkeys(("gain", "tilt", "pitch_shift", "tempo_shift", *shares), 0)
    others |= {"noise_snr": 10}
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
    """Block 7, or the last of a shallower network; no named config has another."""
    assert (chosen_blocks(None, 12), chosen_blocks(None, 4)) == ((7,), (3,))
    assert config.Settings().inference.transformer_block is None
    assert config.ProbeSettings().data.block is None
    for name in config.MAEST_NAMED:
        assert configured(name)["inference"]["transformer_block"] is None, name
    for named in config.TL_NAMED.values():
        assert "block" not in named["data"]


@pytest.mark.parametrize("swa_lr", [None, 2e-5])
def test_rates_of_a_training_by_the_paper(swa_lr):
    """AdamW's rate in each of the 130 epochs; averaging may hold it at 2e-5."""
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
