"""Seeds of random draws that depend on where a run is, and not on how it came there."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """Hash numbers of 0 or more (a run's seed, an epoch, a step, …) to a seed of 64 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
