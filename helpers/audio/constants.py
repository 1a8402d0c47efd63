"""Constants of the front end (`helpers.audio.mel`), without importing PyTorch."""

import math

SAMPLE_RATE = 16_000  # Hz
N_FFT = 512  # samples in a frame: 32 ms
HOP_LENGTH = 256  # samples between frame centres: 16 ms, 62.5 frames a second
N_MELS = 96  # bands, 0 Hz to 8 kHz
FRONT_END_VERSION = 1  # raise it when the values that the front end computes change

# Mean and half-scale of the log-mel values of the original pre-training data (Discogs20).
# The network's input is (x - NORM_MEAN) / (2 * NORM_STD).
NORM_MEAN = 2.06755686098554
NORM_STD = 1.268292820667291


def n_frames(n_samples: int) -> int:
    """Return the number of frames of a signal: 1 + ceil(n_samples / 256)."""
    return 1 + math.ceil(n_samples / HOP_LENGTH)
