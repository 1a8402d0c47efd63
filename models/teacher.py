"""Teachers: networks that tag every few seconds of music, for others to learn from.

>>> teacher = load_teacher("musicnn")  # or "maest-tiny-scores", or "exp_logs/latest/model"
>>> probabilities = teacher(waveform)  # [N windows, C], of teacher.labels
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.audio.patches import seconds
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice
from maest.helpers.results.manifest import model_hash
from maest.models import list_models
from maest.models.engines import best_device
from maest.models.extraction import Extractor
from maest.models.inputs import as_waveforms
from maest.models.musicnn import NETWORKS, WINDOW_FRAMES, load_networks
from maest.models.musicnn import log_mel as musicnn_log_mel

MUSICNN = "musicnn"
_CPU_WINDOWS, _GPU_WINDOWS = 4, 128  # at once


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


def load_teacher(name: str | Path, window_seconds: float | None = None) -> Teacher:
    """Load a teacher, on a GPU if there is one.

    ``name``: "musicnn" (windows of 2.992 s), or a model of ours that has labels: an arch with
    weights, a model folder or a checkpoint. ``window_seconds``: of our models; None: the length of
    their clips. InputError: no such model, its weights are not installed, or it has no labels or
    no probabilities.
    """
    if name == MUSICNN:
        if window_seconds not in (None, seconds(WINDOW_FRAMES)):
            message, hint = f"{window_seconds} s are not MusiCNN's window", "Leave it out."
            raise InputError(message, hint=hint, setting="window_seconds")
        return MusicnnTeacher()
    if isinstance(name, str) and not (Path(name).expanduser().exists() or "/" in name):
        check_choice("teacher", name, [MUSICNN, *list_models()])
    return MaestTeacher(name, window_seconds)


class MusicnnTeacher(Teacher):
    """MusiCNN's two networks: MagnaTagATune's 50 tags, then the Million Song Dataset's 50."""

    def __init__(self) -> None:
        self.name = MUSICNN
        self.labels = tuple(label for labels in NETWORKS.values() for label in labels)
        self.window_seconds = seconds(WINDOW_FRAMES)
        networks = torch.nn.ModuleDict(load_networks())
        self.version = model_hash(networks.state_dict(), {"frames": WINDOW_FRAMES})[:16]
        self.device = torch.device(best_device())
        self.networks = [network.to(self.device) for network in networks.children()]

    @torch.inference_mode()
    def __call__(self, audio: np.ndarray) -> np.ndarray:
        audio = _checked(audio)
        number = n_windows(len(audio), WINDOW_FRAMES)
        # Silence is 0 in the log-mel, too. Padded here, the signal's end is as MusiCNN has it.
        mel = musicnn_log_mel(audio)[: number * WINDOW_FRAMES]
        mel = torch.nn.functional.pad(mel, (0, 0, 0, number * WINDOW_FRAMES - len(mel)))
        windows = mel.unflatten(0, (number, WINDOW_FRAMES))
        size = _CPU_WINDOWS if self.device.type == "cpu" else _GPU_WINDOWS
        batches = (batch.to(self.device) for batch in windows.split(size))
        tags = [torch.cat([net(batch) for net in self.networks], 1).cpu() for batch in batches]
        return torch.cat(tags).sigmoid().numpy()


class MaestTeacher(Teacher):
    """A model of ours."""

    def __init__(self, model: str | Path, window_seconds: float | None = None) -> None:
        self.extract = Extractor(model, activations=True, patch_seconds=window_seconds, tail="drop")
        net, self.name = self.extract.extraction.net, str(model)
        if self.extract.labels is None:
            hint = "Give a model whose folder has labels."
            raise InputError("it has no labels", kind="missing", hint=hint, path=model)
        if net.task == "regression":
            hint = "Give a model for tagging or classification."
            message = "its outputs are not probabilities but a regression's values"
            raise InputError(message, kind="unsupported", hint=hint, path=model)
        self.labels = tuple(self.extract.labels)
        self.frames = self.extract.extraction.plan.length
        self.window_seconds = seconds(self.frames)
        self.version = model_hash(net.state_dict(), net.sizes() | {"frames": self.frames})[:16]

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        audio = _checked(audio)
        samples = n_windows(len(audio), self.frames) * self.frames * HOP_LENGTH
        result = self.extract(np.pad(audio[:samples], (0, max(0, samples - len(audio)))))
        assert result.patch_activations is not None  # it was asked for
        return result.patch_activations


def n_windows(samples: int, frames: int) -> int:
    """Count the windows of ``frames`` frames in a signal, as `Teacher` says."""
    whole, rest = divmod(samples, frames * HOP_LENGTH)
    return max(1, whole + (2 * rest >= frames * HOP_LENGTH))


def _checked(audio: np.ndarray) -> np.ndarray:
    audio = as_waveforms(audio, 1, "audio").numpy()
    if not len(audio):
        hint = f"Give one or more, mono at {SAMPLE_RATE} Hz."
        raise InputError("the waveform has no samples", kind="empty", hint=hint, setting="audio")
    return audio
