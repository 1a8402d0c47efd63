"""Training of the network."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from made_up import refuses
from torch.nn import functional as F

from command_line import read_history  # isort: skip

from maest.config.settings import Recipe
from maest.datasets.batches import ClipBatch, collate_tracks
from maest.helpers.training.augment import mixup
from maest.helpers.training.blank import blank
from maest.helpers.training.history import History, ProgressLines
from maest.helpers.training.robustness import distorted
from maest.models.evaluation import task_loss
from maest.models.maest import Maest
from maest.models.sizes import TASKS
from maest.models.training import MaestModule, derived_seed, parameter_groups, teacher_targets

PLAIN = replace(Recipe(), mixup_alpha=0, time_masks=0, freq_masks=0)
RAMP = {"warmup_epochs": 0, "ramp_start": 0, "ramp_end": 10, "last_lr_factor": 0}


def network(**options: Any) -> Maest:
    torch.manual_seed(0)
    sizes = {"n_classes": 3, "input_t": 62, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return Maest(**sizes | options).eval()


def mels(clips: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((clips, 62, 96)).astype(np.float16))


def step(net: Maest, *batch: torch.Tensor, **changes: Any) -> torch.Tensor:
    """The loss of the first training step."""
    module = MaestModule(net, replace(PLAIN, **changes))
    module.log = lambda *args, **kwargs: None
    return module.training_step(ClipBatch(*batch), 0)


def training_input(net: Maest, mel: torch.Tensor) -> torch.Tensor:
    """What the network gets in such a step, before augmentation, with the random state it has."""
    torch.manual_seed(derived_seed(0, 0, 0, 0))  # in training positions begin at a random column
    return net.train().normalise(mel.float()).transpose(1, 2)


def fit(module: MaestModule, *data: Any, callbacks: Any = (), epochs: int = 2) -> pl.Trainer:
    loaders = (torch.utils.data.DataLoader(d, batch_size=None) for d in data)
    if isinstance(data[0], pl.LightningDataModule):
        loaders = data
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    options = dict.fromkeys(off, False) | {"accelerator": "cpu", "num_sanity_val_steps": 0}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **options)
    trainer.fit(module, *loaders)
    return trainer


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distilled_type", ["mean", "separated"])
def test_loss_of_each_task_by_hand(task, distilled_type):
    net = network(task=task, distilled_type=distilled_type)
    targets = torch.tensor([[1, 0, 0], [0.6, 0.4, 0], [0, 0, 1], [0, 1, 0]])  # one of mixup
    x = (mels(4).float().transpose(1, 2) - 2.06755686098554) / (2 * 1.268292820667291)
    torch.testing.assert_close(training_input(net, mels(4)), x)
    logits = net(x)[0]
    heads = logits if distilled_type == "separated" else (logits,)

    def by_hand(z: torch.Tensor) -> torch.Tensor:
        if task == "single-label":
            return -(targets * (z - z.exp().sum(1, keepdim=True).log())).sum(1).mean()
        if task == "regression":
            return ((z - targets) ** 2).mean()
        p = 1 / (1 + (-z).exp())
        return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()

    loss = step(net, mels(4), targets)
    torch.testing.assert_close(loss, sum(by_hand(z) for z in heads) / len(heads))
    loss.backward()
    assert net.head[1].weight.grad.abs().sum() > 0
    if distilled_type == "separated":
        assert net.head_dist.weight.grad.abs().sum() > 0


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


def test_clips_are_distorted_and_some_are_blank():
    """Before normalisation; with the teacher's targets, which are none then either."""
    net = network(distilled_type="separated")
    targets, teacher = torch.tensor([[1.0, np.nan, 0]] * 4), torch.tensor([[5.0, -5, -5]] * 4)
    changes = {"gain": 6.0, "tilt": 9.0, "noise_share": 0.5, "noise_snr": 3.0, "pitch_shift": 1.0}
    changes |= {"tempo_shift": 0.1, "reverb_share": 0.5, "band_limit_share": 0.5}
    training_input(net, mels(4))  # seeds
    both = torch.cat((targets, (teacher > 0).float()), dim=1)
    mel, both = blank(mels(4).float(), both, 0.5)
    x = net.normalise(distorted(mel, **changes).float()).transpose(1, 2)
    expected = task_loss(net, net(x)[0], both[:, :3], both[:, 3:])
    assert (both[:2] == 0).all()
    loss = step(net, mels(4), targets, teacher, blank_share=0.5, **changes)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_clips_are_distorted_in_mixed_precision_too():
    changes = {"blank_share": 0.5, "gain": 6.0, "tilt": 9.0, "noise_share": 0.5, "pitch_shift": 1.0}
    changes |= {"tempo_shift": 0.1, "reverb_share": 0.5, "band_limit_share": 0.5}
    expected = step(net := network(), mels(4), torch.ones(4, 3), **changes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(net, mels(4), torch.ones(4, 3), **changes)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"multi-label"}))
def test_blank_clips_need_a_task_in_which_a_clip_may_have_no_label(task):
    with refuses("conflict", setting="module.blank_share"):
        step(network(task=task), mels(2), torch.zeros(2, 3), blank_share=0.1)


# --- A teacher ----------------------------------------------------------------------------------


def test_teacher_targets_by_hand():
    at = np.log(0.45 / 0.55)  # the logit of the threshold
    logits = [[at + 0.01, at - 0.01, 5.0], [-9.0, at - 0.01, -3.0], [-9.0, -8.0, -8.5], [9, 8, 7]]
    found = teacher_targets(torch.tensor(logits), 0.45)
    assert found.dtype == torch.float32
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 1, 1]]
    assert teacher_targets(torch.tensor(logits), 0.46).tolist()[0] == [0, 0, 1]


@pytest.mark.parametrize(("threshold", "second"), [(0.45, [0.0, 1, 1]), (0.9, [0.0, 0, 1])])
@pytest.mark.parametrize("alpha", [0, 0.3])
def test_a_teacher_teaches_the_dist_head_alone(threshold, second, alpha):
    """With targets that are mixed as the clips are."""
    net = network(distilled_type="separated")
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    of_teacher = torch.tensor([second, [0.0, 1, 0]])
    x, both = mixup(training_input(net, mels(2)), torch.cat((targets, of_teacher), 1), alpha)
    cls, dist = net(x)[0]
    expected = F.binary_cross_entropy_with_logits(cls, both[:, :3])
    expected += F.binary_cross_entropy_with_logits(dist, both[:, 3:])
    logits = torch.tensor([[-4.0, 2, 3], [-3, -2, -9]])
    changes = {"teacher_threshold": threshold, "mixup_alpha": alpha}
    torch.testing.assert_close(step(net, mels(2), targets, logits, **changes), expected / 2)


# --- Layers -------------------------------------------------------------------------------------


def test_learning_rates_decay_from_the_head_down(tmp_path):
    net = network(depth=3).train()
    options = {"lr": 1.0, "layer_decay": 0.5, "lr_interval": "epoch", **RAMP}
    rates: list[dict[str, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            groups = trainer.optimizers[0].param_groups
            of = {id(p): group["lr"] for group in groups for p in group["params"]}
            rates.append({n: of[id(p)] for n, p in net.named_parameters() if p.requires_grad})

    history = History(tmp_path / "history.csv", record=print)
    module, batches = (
        MaestModule(net, replace(Recipe(), **options)),
        [ClipBatch(mels(2), torch.zeros(2, 3))],
    )
    fit(module, batches, callbacks=[Watch(), history])
    parts = {"blocks.0.": 1 / 8, "blocks.1.": 1 / 4, "blocks.2.": 1 / 2, "norm.": 1, "head.": 1}
    for found, factor in zip(rates, (1, 0.9), strict=True):  # the schedule is the same for all
        for name, rate in found.items():
            expected = next((r for part, r in parts.items() if name.startswith(part)), 1 / 16)
            assert rate == pytest.approx(expected * factor), name
    assert [row["lr"] for row in read_history(history.path)] == pytest.approx([0.9, 0.8])


def test_one_group_without_decay_or_frozen_blocks():
    module = MaestModule(network(), PLAIN)
    (group,) = parameter_groups(module.net, PLAIN)
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
            modes.append([part.training for part in parts])
            for part in parts:
                assert {module.training for module in part.modules()} == {part.training}

    tracks = collate_tracks([("a", list(mels(1).numpy()), np.ones(3, np.float32))])
    run = fit(module, [ClipBatch(mels(8), torch.ones(8, 3))], [tracks], callbacks=[Watch()])
    frozen = ["cls_token", "dist_token", "new_pos_embed", "freq_new_pos_embed"]
    frozen += ["time_new_pos_embed", "patch_embed.", *(f"blocks.{i}." for i in range(blocks))]
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        fixed = name.startswith((*frozen, "head_dist."))  # which "mean" does not use
        assert parameter.requires_grad is not fixed
        assert (id(parameter) in held) is not fixed
        assert torch.equal(parameter, before[name]) is fixed, name
    assert modes == [[False] * (2 + blocks) + [True] * (3 - blocks)] * 2


@pytest.mark.parametrize(
    ("name", "value", "kind"), [("freeze_blocks", 3, "invalid"), ("swa_lr", 1e-5, "conflict")]
)
def test_options_that_do_not_go_with_the_network_or_each_other(name, value, kind):
    with refuses(kind, setting=f"module.{name}"):
        MaestModule(network(), replace(Recipe(), **{name: value}))


def test_lines_of_progress_within_an_epoch(caplog):
    module, batches = MaestModule(network().train(), PLAIN), [ClipBatch(mels(2), torch.zeros(2, 3))]
    with caplog.at_level(logging.INFO):
        fit(module, batches * 3, callbacks=[ProgressLines(steps=6, every=0)])
    lines = [r.getMessage() for r in caplog.records if r.name == ProgressLines.__module__]
    assert len(lines) == 6  # one a step
    assert all("nan" not in line for line in lines)
