"""What a teacher is: data sets ask one for tags, and models are ones."""

from typing import Protocol

import numpy as np


class Teacher(Protocol):
    """Maps music to the probabilities of C labels in each of N consecutive windows."""

    name: str
    labels: tuple[str, ...]  # C
    window_seconds: float  # whole frames of 16 ms
    version: str  # of the weights: the same version gives the same probabilities, but for rounding

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Map float32 [samples], mono at 16 kHz, to float32 [N, C].

        What is left behind the last whole window is padded with silence to one more if it is half a
        window or longer, and else left out; shorter audio is one window. InputError: no samples,
        NaN or infinite ones, or another shape.
        """
        ...
