"""Teachers: networks that tag every few seconds of music, for others to learn from.

>>> teacher = load_teacher("musicnn")  # or "maest-tiny-music", or "exp_logs/latest/model"
>>> probabilities = teacher(waveform)  # [N windows, C], of teacher.labels
"""

from pathlib import Path

import numpy as np
import torch

from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.audio.patches import seconds
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice
from maest.helpers.results.manifest import model_hash
from maest.helpers.teacher import Teacher
from maest.models.archs import current_name, list_models
from maest.models.engines import best_device
from maest.models.extraction import Extractor
from maest.models.inputs import as_waveforms
from maest.models.musicnn import NETWORKS, WINDOW_FRAMES, load_networks
from maest.models.musicnn import log_mel as musicnn_log_mel

MUSICNN = "musicnn"
_CPU_WINDOWS, _GPU_WINDOWS = 4, 128  # at once


def load_teacher(name: str | Path) -> Teacher:
    """Load a teacher, on a GPU if there is one.

    ``name``: "musicnn" (windows of 2.992 s), or a model of ours that has labels (windows as long
    as its clips): an arch with weights, a model folder or a checkpoint. InputError: no such model,
    its weights are not installed, or it has no labels or no probabilities.
    """
    if name == MUSICNN:
        return MusicnnTeacher()
    is_path = "/" in str(name) or Path(name).expanduser().exists()
    if not is_path and current_name(str(name)) not in list_models():
        check_choice("teacher", str(name), [MUSICNN, *list_models()])
    return MaestTeacher(name)


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

    def __init__(self, model: str | Path) -> None:
        self.extract = Extractor(model, activations=True, tail="drop")
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
