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
    """Return the factor of an exponential warm-up and a linear ramp down at a fractional epoch.

    The warm-up is exp(-5 (1 - e/W)²) over W epochs, with e at least 0.5 (S. Laine & T. Aila,
    "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, as used by PaSST and MAEST). The
    ramp leaves 1 at ``ramp_start`` and reaches ``last_factor`` at ``ramp_end``; at once if that is
    no later.
    """
    warmup = 1.0
    if epoch < warmup_epochs and warmup_epochs > 0.5:
        warmup = math.exp(-5 * (1 - max(epoch, 0.5) / warmup_epochs) ** 2)
    if epoch <= ramp_start:
        return warmup
    if epoch >= ramp_end:
        return warmup * last_factor
    done = (epoch - ramp_start) / (ramp_end - ramp_start)
    return warmup * (1 + done * (last_factor - 1))
