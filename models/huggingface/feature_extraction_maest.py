"""The front end of an exported model, for `transformers`.

Copied into the folder of each exported model, beside the files of the front end that it imports:
``AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)``.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

from .mel_constants import NORM_MEAN, NORM_STD
from .melspectrogram import MelSpectrogram


class MaestFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms → normalised log-mel spectrograms of one length.

    ``max_length`` frames of ``num_mel_bins`` bands, as ``(x - mean) / (2 * std)``; what is added to
    short audio is silence, a log-mel of ``padding_value``.
    """

    model_input_names: ClassVar[list[str]] = ["input_values"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        num_mel_bins: int = 96,
        max_length: int = 1876,
        mean: float = NORM_MEAN,
        std: float = NORM_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.num_mel_bins, self.max_length = num_mel_bins, max_length
        self.mean, self.std = mean, std

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = "np",
        **kwargs: Any,
    ) -> BatchFeature:
        """Audio → ``input_values``, float32 [B, max_length frames, num_mel_bins].

        ``raw_speech`` is mono: float [samples], a batch of it [B, samples], or a list of B arrays
        of any lengths. What is longer than an input is cut off. Another ``sampling_rate`` than the
        model's is refused.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"the audio is sampled at {sampling_rate} Hz, and the model takes "
                f"{self.sampling_rate} Hz: resample it"
            )
        batch = [raw_speech] if np.ndim(raw_speech[0]) == 0 else raw_speech
        shape = len(batch), self.max_length, self.num_mel_bins
        inputs, spectrogram = np.full(shape, self.padding_value, np.float32), MelSpectrogram()
        for row, audio in zip(inputs, batch, strict=True):
            waveform = torch.as_tensor(np.asarray(audio, np.float32))
            if waveform.ndim != 1:
                raise ValueError(f"audio of shape {list(waveform.shape)}: expected mono, [samples]")
            frames = spectrogram(waveform).T[: self.max_length].numpy()
            row[: len(frames)] = frames
        values = (inputs - self.mean) / (2 * self.std)
        return BatchFeature({"input_values": values.astype(np.float32)}, tensor_type=return_tensors)
