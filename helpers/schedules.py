"""Learning-rate schedules, as factors of the base rate."""

from __future__ import annotations

import math


def warmup_ramp_factor(
    epoch: float,
    *,
    warmup_epochs: float,
    ramp_start: float,
    ramp_end: float,
    last_factor: float,
) -> float:
    """Exponential warm-up, then level, then a linear ramp down, then level.

    The warm-up is exp(-5 (1 - e/W)²), with e at least 0.5 (S. Laine & T. Aila, "Temporal Ensembling
    for Semi-Supervised Learning", ICLR 2017, as used by PaSST and MAEST).

    Args:
        epoch: epochs done, whole or in part.
        warmup_epochs: W, the length of the warm-up; 0 for none.
        ramp_start: where the ramp leaves 1.
        ramp_end: where the ramp reaches ``last_factor``; the ramp is a step if it is not later.
        last_factor: the factor from there on.
    """
    warmup = 1.0
    if epoch < warmup_epochs:
        warmup = (
            math.exp(-5 * (1 - max(epoch, 0.5) / warmup_epochs) ** 2)
            if warmup_epochs > 0.5
            else 1.0
        )
    if epoch <= ramp_start:
        return warmup
    if epoch >= ramp_end:
        return warmup * last_factor
    done = (epoch - ramp_start) / (ramp_end - ramp_start)
    return warmup * (1 + done * (last_factor - 1))
