"""Our models behind the HEAR 2021 common API, for its evaluation kit and other benchmarks.

>>> from maest.models.hear import get_scene_embeddings, get_timestamp_embeddings, load_model
>>> model = load_model("exp_logs/latest/model")
>>> scenes = get_scene_embeddings(audio, model)  # [S, samples] → [S, 3·D]
>>> embeddings, timestamps = get_timestamp_embeddings(audio, model)  # [S, K, 3·D], [S, K] ms

    python -m heareval.embeddings.runner maest.models.hear --model exp_logs/latest/model

J. Turian et al., "HEAR: Holistic Evaluation of Audio Representations", PMLR 176, 2022;
https://hearbenchmark.com/hear-api.html. An embedding is a transformer block's cls token, its dist
token and the mean of its other tokens. Shapes: S sounds, P patches, K timestamps.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.audio import patches
from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE, n_frames
from maest.helpers.audio.patches import PATCH_SIZE
from maest.helpers.blocks import chosen_blocks
from maest.models import get_maest
from maest.models.inputs import as_waveforms
from maest.models.maest import Maest, inference
from maest.models.sizes import invalid

DEFAULT_ARCH = "discogs-maest-30s-pw-129e"  # of `load_model()`

# A timestamp's embedding is that of the 16 frames around it, one patch column, as in PaSST: the
# shortest input locates a sound best, and fits every model. They are of the whole sound's
# spectrogram: one of the window alone would fade in and out, as no clip does in training. HEAR asks
# for a hop of 50 ms or less: 3 frames are 48 ms.
WINDOW_FRAMES, HOP_FRAMES = PATCH_SIZE, 3
HOP_SAMPLES = HOP_FRAMES * HOP_LENGTH
# From a window's centre, between two frames, to the centre of its first or last frame: 7.5 hops.
_REACH_SAMPLES = (WINDOW_FRAMES - 1) * HOP_LENGTH // 2


class HearModel(nn.Module):
    """A MAEST network with the sample rate and embedding sizes that HEAR reads.

    ``transformer_block``: a number from 0; -1 for the final embedding, [D] instead of [3·D]; None:
    block 7, or the last one of a shallower network.
    """

    def __init__(self, net: Maest, transformer_block: int | None = None) -> None:
        super().__init__()
        block, *others = chosen_blocks(transformer_block, net.depth, "transformer_block")
        if others:
            raise invalid("transformer_block", transformer_block, "Give one number.")
        self.net, self.transformer_block, self.sample_rate = net, block, SAMPLE_RATE
        self.scene_embedding_size = (1 if block < 0 else 3) * net.embed_dim
        self.timestamp_embedding_size = self.scene_embedding_size

    def forward(self, mels: list[Tensor]) -> Tensor:
        """Embed P normalised log-mel patches [F, T frames]: float32 [P, 3·D]."""
        _, embeddings = self.net.encode_patches(mels, (self.transformer_block,), logits=False)
        return embeddings[self.transformer_block].flatten(1).float()


def load_model(model_file_path: str | Path = "", transformer_block: int | None = None) -> HearModel:
    """Load a model as `get_maest` does, on the CPU; "" is ``DEFAULT_ARCH``.

    The evaluation kit passes ``--model-options '{"transformer_block": 6}'``. InputError: no such
    model or block, or a model without weights.
    """
    # pretrained: embeddings of random weights would look like any others.
    net = get_maest(str(model_file_path) or DEFAULT_ARCH, pretrained=True)
    return HearModel(net, transformer_block).eval()


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Embed each sound: the mean over its patches, weighted by their seconds.

    ``audio``: floats [S, samples] in -1..1, mono at 16 kHz, of any length, on any device. Returns
    float32 [S, model.scene_embedding_size] on the model's device. Sounds do not affect each other,
    but for rounding. InputError (a TypeError, too, if it is no tensor of numbers): wrong shape,
    empty audio, NaN or infinite values.
    """
    audio = as_waveforms(audio, 2, "audio")
    spans = patches.cut(n_frames(audio.shape[1]), model.net.input_t)
    embeddings = _windows(audio, spans, model)  # [P, S, 3·D]
    pooled = patches.pooled(embeddings.cpu().numpy(), patches.new_frames(spans))
    return torch.from_numpy(pooled).to(embeddings.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embed the 256 ms around each timestamp, one every 48 ms; silence is beyond the sound.

    Arguments and errors are those of :func:`get_scene_embeddings`. Returns, on the model's device,
    ``(embeddings, timestamps)``: float32 [S, K, model.timestamp_embedding_size] with
    K = 1 + floor(samples / 768), and float32 [S, K], the windows' centres in ms: 0, 48, 96 … up to
    the end of the sound.
    """
    audio = as_waveforms(audio, 2, "audio")
    sounds, samples = audio.shape
    count = 1 + samples // HOP_SAMPLES
    # Padding puts 7.5 hops before the first timestamp, 0, and as many behind the last. Fewer than
    # 768 samples lie behind that, so windows cover the whole sound.
    behind = (count - 1) * HOP_SAMPLES + _REACH_SAMPLES - samples
    spans = [(HOP_FRAMES * i, HOP_FRAMES * i + WINDOW_FRAMES) for i in range(count)]
    embeddings = _windows(F.pad(audio, (_REACH_SAMPLES, behind)), spans, model).transpose(0, 1)
    hop = 1000 * HOP_SAMPLES / SAMPLE_RATE  # milliseconds
    timestamps = hop * torch.arange(count, dtype=torch.float32, device=embeddings.device)
    return embeddings, timestamps.repeat(sounds, 1)


def _windows(audio: Tensor, spans: list[tuple[int, int]], model: HearModel) -> Tensor:
    """Embed the same windows, in frames, of S sounds: [len(spans), S, 3·D]."""
    net = model.net
    with inference(model):
        mels = [net.melspectrogram(sound.to(net.cls_token.device)) for sound in audio]
        embeddings: Tensor = model([mel[:, first:last] for first, last in spans for mel in mels])
    return embeddings.view(len(spans), len(mels), -1)
