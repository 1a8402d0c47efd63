"""Training and evaluation of the network and of the probe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

import config
from datasets.datamodule import FeatureDataModule, collate_tracks
from helpers.metrics import tagging_scores
from models.maest import Maest
from models.module import MaestModule, TrainingOptions
from models.probe import Probe, ProbeOptions


def training_options(**changes) -> TrainingOptions:
    return TrainingOptions(**config.module.DEFAULTS | changes)


def probe_options(**changes) -> ProbeOptions:
    recipe = {k: v for k, v in config.probe.DEFAULTS["probe"].items() if k in PROBE_FIELDS}
    return ProbeOptions(**recipe | changes)


PROBE_FIELDS = {field.name for field in dataclasses.fields(ProbeOptions)}
PLAIN = training_options(mixup_alpha=0, time_masks=0, freq_masks=0)


def network(**options) -> Maest:
    torch.manual_seed(0)
    sizes = {"n_classes": 3, "input_t": 62, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return Maest(**sizes, **options).eval()


def mels(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((length, 96)).astype(np.float16) for length in lengths]


def test_loss_is_cross_entropy_on_the_normalised_spectrogram():
    net = network()
    module = MaestModule(net, PLAIN)
    module.log = lambda *args, **kwargs: None
    mel = torch.from_numpy(np.stack(mels(62, 62, 62, 62)))
    targets = torch.eye(4)[:, :3]
    loss = module.training_step((mel, targets), 0)
    x = (mel.float().transpose(1, 2) - 2.06755686098554) / (2 * 1.268292820667291)
    expected = F.binary_cross_entropy_with_logits(net(x)[0], targets)
    torch.testing.assert_close(loss, expected)


def test_separated_heads_share_the_loss():
    net = network(distilled_type="separated").train()
    module = MaestModule(net, PLAIN)
    module.log = lambda *args, **kwargs: None
    targets = torch.eye(4)[:, :3]
    loss = module.training_step((torch.from_numpy(np.stack(mels(62, 62, 62, 62))), targets), 0)
    loss.backward()
    assert net.head[1].weight.grad.abs().sum() > 0
    assert net.head_dist.weight.grad.abs().sum() > 0


def test_whole_tracks_are_averaged_by_seconds():
    net = network()
    module = MaestModule(net, patches_per_pass=2)
    a, b, c = mels(62, 62, 62), mels(62, 30), mels(20)
    targets = np.eye(3, dtype=np.float32)
    batch = collate_tracks([("a", a, targets[0]), ("b", b, targets[1]), ("c", c, targets[2])])
    with torch.no_grad():
        module._evaluate(batch)
        own = [
            [net(net.normalise(torch.from_numpy(p).float().T[None]))[0][0] for p in pieces]
            for pieces in (a, b, c)
        ]
    logits, activations, targets = module._evaluated[0]
    for i, (values, pieces) in enumerate(zip(own, (a, b, c), strict=True)):
        weights = [len(p) for p in pieces]
        for found, each in ((logits, values), (activations, [v.sigmoid() for v in values])):
            expected = np.average(torch.stack(each).numpy(), axis=0, weights=weights)
            np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert targets.tolist() == np.eye(3).tolist()


@pytest.mark.parametrize(("output", "shape"), [("logits", (3,)), (-1, (64,)), (1, (3, 64))])
def test_prediction_keeps_the_order_of_patches(output, shape):
    net = network()
    module = MaestModule(net, patches_per_pass=2)
    module.predict_output = output
    a, b = mels(62, 62, 62, 40), mels(25)
    batch = collate_tracks([("a", a, np.zeros(3)), ("b", b, np.zeros(3))])
    with torch.no_grad():
        found = module.predict_step(batch, 0)
    assert found.keys == ["a", "b"]
    assert found.outputs[0].shape == (4, *shape)
    np.testing.assert_allclose(found.seconds[0], np.array([62, 62, 62, 40]) / 62.5)
    for piece, value in zip(a + b, [*found.outputs[0], *found.outputs[1]], strict=True):
        x = net.normalise(torch.from_numpy(piece).float().T[None])
        with torch.no_grad():
            logits, embeddings = net(x, -1 if output == "logits" else output)
        expected = logits if output == "logits" else embeddings
        np.testing.assert_allclose(value.ravel(), expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(("interval", "expected"), [("epoch", [0, 1, 2]), ("step", [0, 0.25, 0.5])])
def test_learning_rate_moves_with_epochs_or_steps(interval, expected):
    options = training_options(
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
    batches = [(mel, torch.zeros(2, 3))] * 4
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    found = rates[:3] if interval == "step" else rates[::4]
    assert found == pytest.approx([1 - epoch / 10 for epoch in expected])


def test_probe_learns_keeps_its_best_epoch_and_is_the_recipe():
    rng = np.random.default_rng(0)
    y = rng.random((300, 4)) < 0.3
    x = rng.standard_normal((300, 16)) + y @ rng.standard_normal((4, 16)) * 2
    x = x.astype(np.float32)
    parts = {"train": slice(200), "val": slice(200, 250), "test": slice(250, 300)}
    splits = {name: (x[part], y[part]) for name, part in parts.items()}
    pl.seed_everything(0, verbose=False)
    probe = Probe(16, 4, probe_options(lr=1e-2))
    kinds = [type(layer).__name__ for layer in probe.net]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear"]
    assert (probe.net[0].out_features, probe.net[2].p) == (512, 0.5)
    trainer = pl.Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = FeatureDataModule(splits, 128, seed=0)
    trainer.fit(probe, data)
    aucs = [row["val_roc_auc"] for row in probe.history]
    assert len(aucs) == 12
    assert probe.best_roc_auc == max(aucs)
    assert probe.best_epoch == aucs.index(max(aucs))
    probe.restore_best()
    trainer.test(probe, data, verbose=False)
    with torch.no_grad():
        expected = tagging_scores(y[250:], probe.eval()(torch.from_numpy(x[250:])).numpy())
    assert probe.scores.macro_ap == pytest.approx(expected.macro_ap)
    assert probe.scores.macro_roc_auc > 0.8
    with torch.no_grad():
        val = tagging_scores(y[200:250], probe(torch.from_numpy(x[200:250])).numpy())
    assert val.macro_roc_auc == pytest.approx(probe.best_roc_auc)
