"""The HEAR 2021 common API: our models, as HEAR's evaluation kit and others' benchmarks take them.

    python -m heareval.embeddings.runner models.hear --model exp_logs/latest/model

or, in Python:

>>> from maest.models.hear import get_scene_embeddings, get_timestamp_embeddings, load_model
>>> model = load_model("exp_logs/latest/model")
>>> scenes = get_scene_embeddings(audio, model)  # [S, samples] → [S, 3·D]
>>> embeddings, timestamps = get_timestamp_embeddings(audio, model)  # [S, K, 3·D], [S, K] ms

J. Turian et al., "HEAR: Holistic Evaluation of Audio Representations", PMLR 176, 2022;
https://hearbenchmark.com/hear-api.html. An embedding is what a transformer block makes of a piece
of sound: its cls token, its dist token and the mean of its other tokens.

Shapes: S sounds, K timestamps; the other letters are those of `models/maest.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers import patches
from maest.helpers.chunks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.patches import PATCH_SIZE
from maest.models import get_maest
from maest.models.maest import Maest, grid_size, inference

DEFAULT_ARCH = "discogs-maest-30s-pw-129e"  # what `load_model()` gives

# A timestamp's embedding is that of the frames around it. One column of patches is the shortest
# input of the network (256 ms between the outer edges of its 16 hops), so it tells best *when*
# something is heard, it fits every model whatever its input length, and it costs 11 tokens.
# PaSST, the parent network, also takes one column of patches there (160 ms, at its rate).
WINDOW_FRAMES = PATCH_SIZE  # 16 frames: 256 ms, of which the first and the last see 8 ms more
# HEAR asks for 50 ms or less (the tolerance of its transcription task). 50 ms is no whole number
# of frames, and 3 frames are: all windows can be cut from one spectrogram, computed once.
HOP_FRAMES = 3
HOP_SAMPLES = HOP_FRAMES * HOP_LENGTH  # 768
HOP_MS = 1000 * HOP_SAMPLES / SAMPLE_RATE  # 48 ms, exactly

# From a window's centre to the centre of its first or last frame: 7.5 hops of 16 ms. Half a hop,
# because an even number of frames has its centre between two of them.
_REACH_SAMPLES = (WINDOW_FRAMES - 1) * HOP_LENGTH // 2  # 1920

# So many tokens go through the network at a time, whatever the length and number of sounds: about
# 0.6 GB of activations in the base model; 1489 windows, or 9 patches of 30 s.
_TOKENS_PER_PASS = 16_384


class HearModel(nn.Module):
    """A MAEST network with what HEAR reads off a model.

    Args:
        net: the network.
        transformer_block: whose output is the embedding: the zero-based number of a block, or -1
            for the final embedding. None: block 7, or the last one of a shallower network.

    Attributes:
        sample_rate: of the audio that is expected, in Hz: 16000.
        scene_embedding_size, timestamp_embedding_size: 3·D, or D for block -1.

    Raises:
        InputError: the network has no such block.
    """

    def __init__(self, net: Maest, transformer_block: int | None = None) -> None:
        super().__init__()
        chosen = chosen_blocks(transformer_block, net.depth, "transformer_block")
        if len(chosen) != 1:
            raise InputError(
                f"{transformer_block!r}: expected one block",
                hint=f"Pass load_model(..., transformer_block=…), 0 to {net.depth - 1}.",
                setting="transformer_block",
            )
        (transformer_block,) = chosen
        self.net = net
        self.transformer_block = transformer_block
        self.sample_rate = SAMPLE_RATE
        size = net.embed_dim if transformer_block == -1 else 3 * net.embed_dim
        self.scene_embedding_size = size
        self.timestamp_embedding_size = size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.cls_token.device

    def forward(self, mel: Tensor) -> Tensor:
        """Normalised log-mel patches, [B, F, T frames] → their embeddings, float32 [B, 3·D]."""
        _, embeddings = self.net(mel, transformer_block=self.transformer_block)
        return embeddings.float()


def load_model(model_file_path: str | Path = "", transformer_block: int | None = None) -> HearModel:
    """Load a model, on the CPU, in eval mode.

    Args:
        model_file_path: a model folder or a checkpoint file; or the name of an architecture with
            published weights (`models.ARCHS`), which are fetched if need be; or "", for
            "discogs-maest-30s-pw-129e". A file or folder goes before an architecture of that name.
        transformer_block: whose output is the embedding: the zero-based number of a block, or -1
            for the final embedding; None for block 7, or the last one of a shallower network. The
            evaluation kit passes it on: ``--model-options '{"transformer_block": 6}'``.

    Raises:
        InputError: there is no such file, folder or architecture, it has no weights, is
            no MAEST model, or it has no such block.
    """
    # Weights are asked for by name, too: embeddings of random ones would look like any others.
    net = get_maest(str(model_file_path) or DEFAULT_ARCH, pretrained=True)
    return HearModel(net, transformer_block).eval()


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding for each sound: the mean over its patches, weighted by their seconds.

    Patches are cut as everywhere (`helpers.patches.cut`): one after the other, of the model's input
    length; a remainder of a second or more is a shorter patch.

    Args:
        audio: float tensor [n_sounds, n_samples], mono, 16 kHz, in -1..1; any length from one
            sample on. On any device: a sound at a time goes to the model's.
        model: what :func:`load_model` returned.

    Returns:
        float32 tensor [n_sounds, model.scene_embedding_size], on the model's device. A sound's
        embedding does not depend on the other sounds in ``audio``, but for rounding.

    Raises:
        TypeError: if ``audio`` is no tensor or ``model`` not from :func:`load_model`.
        InputError: for audio of another shape or type, an empty one, NaN or infinite values.
    """
    _check(audio, model)
    with inference(model):
        mels = torch.stack([_melspectrogram(sound, model) for sound in audio])  # [S, F, T]
        cuts = patches.cut(mels.shape[-1], model.net.input_t)
        lengths = [last - first for first, last in cuts]
        # All patches but the last are of one length: those go through the network together.
        whole = lengths.count(lengths[0])
        embeddings = _embed(mels[..., : cuts[whole - 1][1]], lengths[0], lengths[0], model)
        if whole < len(cuts):
            rest = _embed(mels[..., slice(*cuts[-1])], lengths[-1], lengths[-1], model)
            embeddings = torch.cat((embeddings, rest), dim=1)  # [S, patches, 3·D]
        weights = torch.tensor(lengths, dtype=torch.float32, device=model.device) / sum(lengths)
        return (embeddings * weights[:, None]).sum(dim=1)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """An embedding every 48 ms, of the 256 ms around it.

    A window is 16 frames of the spectrogram of the whole sound, 8 before its timestamp and 8 after;
    beyond both of its ends the sound is taken to be silent. The outer frames of a window thus hear
    the sound around it (all frames together: 136 ms before the timestamp and 136 ms after) as the
    frames of a clip do in training, which is also cut from a spectrogram. A spectrogram of the
    window's samples alone would have a fade that is not in the sound, at both ends of every window.

    Args:
        audio: as for :func:`get_scene_embeddings`.
        model: what :func:`load_model` returned.

    Returns:
        ``(embeddings, timestamps)``, both on the model's device:

        - float32 [n_sounds, K, model.timestamp_embedding_size], K = 1 + floor(n_samples / 768).
          Like a scene's, they do not depend on the other sounds;
        - float32 [n_sounds, K]: the windows' centres, in milliseconds: 0, 48, 96 … up to the end
          of the sound.

    Raises:
        as :func:`get_scene_embeddings`.
    """
    _check(audio, model)
    sounds, samples = audio.shape
    count = 1 + samples // HOP_SAMPLES
    # Moves the grid of frames so that 7.5 of its steps lie before the first timestamp, 0, and as
    # many behind the last; fewer than 768 samples are behind the last timestamp, so all is seen.
    behind = (count - 1) * HOP_SAMPLES + _REACH_SAMPLES - samples
    with inference(model):
        mels = torch.stack(
            [_melspectrogram(F.pad(sound, (_REACH_SAMPLES, behind)), model) for sound in audio]
        )  # [S, F, 3 (K - 1) + 16]
        embeddings = _embed(mels, WINDOW_FRAMES, HOP_FRAMES, model)
    timestamps = HOP_MS * torch.arange(count, dtype=torch.float32, device=model.device)
    return embeddings, timestamps.repeat(sounds, 1)


def _melspectrogram(sound: Tensor, model: HearModel) -> Tensor:
    """[samples] on any device → normalised log-mel [F, T] on the model's.

    One sound at a time: the transform of a large batch would need many times the batch's memory.
    """
    return model.net.melspectrogram(sound.to(model.device))


def _embed(mels: Tensor, length: int, hop: int, model: HearModel) -> Tensor:
    """Embed all stretches of ``length`` frames, ``hop`` frames apart: [S, F, T] → [S, K, 3·D].

    Some at a time, over the sounds: many short sounds and one long sound take the same memory.
    """
    stretches = mels.unfold(-1, length, hop)  # [S, F, K, length], a view
    per_sound = stretches.shape[2]
    total = len(mels) * per_sound
    columns = grid_size(max(length, PATCH_SIZE))
    together = max(1, _TOKENS_PER_PASS // (2 + grid_size(mels.shape[1]) * columns))
    out = []
    for first in range(0, total, together):
        index = torch.arange(first, min(first + together, total), device=mels.device)
        out.append(model(stretches[index // per_sound, :, index % per_sound]))  # [B, F, length]
    return torch.cat(out).unflatten(0, (len(mels), per_sound))


def _check(audio: Tensor, model: HearModel) -> None:
    if not isinstance(model, HearModel):
        raise TypeError(f"model is a {type(model).__name__}: expected what load_model returned")
    if not isinstance(audio, Tensor):
        raise TypeError(
            f"audio is a {type(audio).__name__}: expected a torch.Tensor (torch.from_numpy makes "
            "one)"
        )
    if audio.ndim != 2 or audio.numel() == 0:
        raise InputError(
            f"shape {list(audio.shape)}: expected [n_sounds, n_samples]",
            hint="Give at least one sound of one sample; one sound is audio[None].",
            setting="audio",
        )
    if not audio.is_floating_point():
        raise InputError(
            f"{audio.dtype}: expected floating point, in -1..1",
            hint="Divide 16-bit samples by 32768.",
            setting="audio",
        )
    finite = torch.isfinite(audio).all(dim=1)
    if not finite.all():
        raise InputError(
            f"NaN or infinite values, first in sound {int((~finite).nonzero()[0])}",
            kind="corrupt",
            hint="Replace them, or leave that sound out.",
            setting="audio",
        )
