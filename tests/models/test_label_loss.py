"""The loss of labels that are soft, or unknown: against NumPy, and the same bits without them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maest.helpers.training.augment import mixup
from maest.models.evaluation import label_loss
from maest.models.probe import ProbeBank

NAN = float("nan")


def partial(shape: tuple[int, ...], share: float = 0.4, seed: int = 0) -> np.ndarray:
    """Targets of which some are soft, some unknown, and the last label's all."""
    rng = np.random.default_rng(seed)
    targets = np.where(rng.random(shape) < 0.5, rng.random(shape).round(1), rng.random(shape) < 0.3)
    targets[rng.random(shape) < share] = NAN
    targets[..., -1] = NAN
    return targets.astype(np.float32)


def by_numpy(z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Loss, and its gradient, of [N, C]: one known target after the other."""
    p, gradient, losses = 1 / (1 + np.exp(-z.astype(float))), np.zeros(z.shape), []
    cells = [cell for cell in np.ndindex(*z.shape) if not np.isnan(y[cell])]
    for cell in cells:
        losses.append(-(y[cell] * np.log(p[cell]) + (1 - y[cell]) * np.log(1 - p[cell])))
        gradient[cell] = (p[cell] - y[cell]) / len(cells)
    return (float(np.mean(losses)) if cells else 0.0), gradient


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_loss_and_gradient_are_those_of_the_known_targets(share):
    y, z = partial((9, 5), share), np.random.default_rng(1).normal(size=(9, 5)) * 3
    logits = torch.from_numpy(z).requires_grad_()
    loss = label_loss(logits, torch.from_numpy(y))
    loss.backward()
    expected, gradient = by_numpy(z, y)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (7, 519), (12, 400), (33, 101)])
def test_complete_targets_have_the_loss_and_gradient_of_plain_pytorch_bit_for_bit(shape):
    logits = (torch.randn(shape) * 4).requires_grad_()
    for targets in ((torch.rand(shape) < 0.3).float(), torch.rand(shape)):
        found, expected = (
            (loss := function(logits, targets), *torch.autograd.grad(loss, logits))
            for function in (label_loss, F.binary_cross_entropy_with_logits)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_mixing_with_an_unknown_label_gives_an_unknown_one():
    torch.manual_seed(0)
    targets = torch.tensor([[1.0, NAN], [0, 1], [1, 0], [NAN, 1]]).repeat(20, 1)
    marks = torch.eye(80)
    _, mixed = mixup(marks, torch.cat((targets, marks), 1), 0.3)
    for row, shares in zip(mixed[:, :2], mixed[:, 2:], strict=True):
        own = [(share, targets[i]) for i, share in enumerate(shares) if share > 0]
        torch.testing.assert_close(row, sum(s * y for s, y in own), equal_nan=True)
    assert mixed[:, :2].isnan().any(dim=0).all()


def test_a_bank_of_probes_learns_from_known_targets():
    """Each probe's first gradient is that of its own batch, by NumPy."""
    rng = np.random.default_rng(0)
    bank = ProbeBank(6, 5, (0, 1), hidden=8, n_sets=2)
    x, y = rng.normal(size=(2, 9, 2, 6)).astype(np.float32), partial((2, 9, 5))
    y[1, :, 1:] = NAN  # the second seed's batch knows less
    bias = bank.weights["net.2.bias"].requires_grad_()
    outputs = bank.forward(torch.from_numpy(x))
    losses = bank.loss(outputs, torch.from_numpy(y))
    losses.sum().backward()
    for i, z in enumerate(outputs.detach().numpy()):
        expected, gradient = by_numpy(z, y[i % 2])
        assert losses[i].item() == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(bias.grad[i], gradient.sum(axis=0), rtol=1e-4, atol=1e-7)
