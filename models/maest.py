"""The network: a vision transformer over overlapping log-mel patches, with patchout.

Music Audio Efficient Spectrogram Transformer, P. Alonso-Jiménez et al., ISMIR 2023 (arXiv
2309.16418), after PaSST, K. Koutini et al., Interspeech 2022 (arXiv 2110.05069). Parameters are
named as in the released checkpoints. Shapes: B batch, F frequency rows, T time columns (frames or
patch columns, as said), N tokens, D channels, C classes.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.audio import patches
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.audio.patches import PATCH_SIZE
from maest.helpers.errors import InputError
from maest.models.inputs import as_floats, check_finite, check_shape
from maest.models.sizes import SIZE_NAMES, STRIDE, Patchout, Sizes, invalid, on_device, whole_number

# Tokens of a pass, however long the input: about 0.6 GB of activations in the base model;
# 9 patches of 30 s, 58 of 5 s, or 1489 of 16 frames.
TOKENS_PER_PASS = 16_384


class Outputs(NamedTuple):
    """The outputs of one pass over [B, F, T]."""

    # [B, C]; of two heads in training mode [2, B, C]: cls, dist
    logits: Tensor | None
    # Block → [B, 3, D]: cls token, dist token, mean of the others; -1 → [B, D], after the norm
    embeddings: dict[int, Tensor]


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode without gradients; restore each module's mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class Attention(nn.Module):
    """Multi-head self-attention: [B, N, D] → [B, N, D], or [B, queries, D] for the first tokens."""

    def __init__(self, dim: int, num_heads: int, dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_dropout)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q = q if queries is None else q[:, :, :queries]
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # [B, heads, N, D / heads]
        x = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return x


class Block(nn.Module):
    """Transformer block with stochastic depth: [B, N, D] → [B, N, D], or [B, queries, D]."""

    def __init__(
        self, dim: int, num_heads: int, hidden: int, dropout: float, attn_drop: float, path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, attn_drop, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        mlp = {"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "drop1": nn.Dropout(dropout)}
        mlp |= {"fc2": nn.Linear(hidden, dim), "drop2": nn.Dropout(dropout)}
        self.mlp = nn.Sequential(OrderedDict(mlp))
        self.path = path

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        residual = x if queries is None else x[:, :queries]
        x = residual + self._drop_path(self.attn(self.norm1(x), queries))
        return x + self._drop_path(self.mlp(self.norm2(x)))

    def _drop_path(self, x: Tensor) -> Tensor:
        if not self.training or not self.path:
            return x
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - self.path).div_(1 - self.path)


class Maest(nn.Module):
    """The MAEST network.

    ``drop_rate`` is the dropout of projections, ``attn_drop_rate`` of attention weights, and
    ``drop_path_rate`` of whole residual branches, growing linearly over the blocks. ``options`` are
    the arguments of `sizes.Sizes` (``n_classes`` and ``input_t`` are required) and
    `sizes.Patchout`. InputError: a value has a wrong type, is out of bounds or contradicts another;
    its ``setting`` is the argument's name.
    """

    def __init__(
        self,
        *,
        labels: Sequence[str] | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        given = {name: options.pop(name) for name in SIZE_NAMES if name in options}
        self._sizes = s = Sizes(**given)
        self.patchout = Patchout(s, **options)
        rates = {"drop": drop_rate, "attn_drop": attn_drop_rate, "drop_path": drop_path_rate}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise invalid(f"{name}_rate", rate, "Give 0 or more, and less than 1.")
        if labels is not None and len(labels) != s.n_classes:
            message, hint = f"{len(labels)} names", f"Give one for each of {s.n_classes} classes."
            raise InputError(message, kind="mismatch", hint=hint, setting="labels")
        self.labels = None if labels is None else list(labels)
        # Of activations, by label: at or above it the label is a tag; None: it never is
        self.thresholds: list[float | None] | None = None
        self.uninitialized: frozenset[str] = frozenset()  # parameters that the checkpoint lacks
        self.n_classes, self.input_t, self.input_f = s.n_classes, s.input_t, s.input_f
        self.embed_dim, self.depth, self.num_heads = s.embed_dim, s.depth, s.num_heads
        self.mlp_ratio, self.distilled_type, self.task = s.mlp_ratio, s.distilled_type, s.task
        self.head_eps, self.norm_mean, self.norm_std = s.head_eps, s.norm_mean, s.norm_std
        self.target_mean, self.target_std = s.target_mean, s.target_std

        d = s.embed_dim
        self.frontend = MelSpectrogram()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, d, PATCH_SIZE, STRIDE)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, d))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, d))  # cls, dist
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, d, self.patchout.rows, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, d, 1, s.positions))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(d, s.num_heads, int(d * s.mlp_ratio), drop_rate, attn_drop_rate, rate)
            for rate in np.linspace(0, drop_path_rate, s.depth).tolist()
        )
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(d, eps=s.head_eps), nn.Linear(d, s.n_classes))
        self.head_dist = nn.Linear(d, s.n_classes)
        self.init_weights()

    @classmethod
    def without_weights(cls, **options: Any) -> Self:
        """Build on the meta device, for ``load_state_dict(..., assign=True)``."""
        with torch.device("meta"):
            model = cls(**options)
        model.frontend = MelSpectrogram()  # its constants are computed, not loaded
        return model

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw weights: truncated normal of std 0.02; the convolution keeps PyTorch's default."""
        if self.cls_token.is_meta:  # nothing to draw, and PyTorch would take a second
            return
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        tokens = self.cls_token, self.dist_token
        positions = self.new_pos_embed, self.freq_new_pos_embed, self.time_new_pos_embed
        for parameter in (*(layer.weight for layer in linear), *tokens, *positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for layer in linear:
            nn.init.zeros_(layer.bias)

    def sizes(self) -> dict[str, Any]:
        """Arguments of `Maest` for a network of the same shape and normalisation."""
        return asdict(self._sizes)

    def forward(
        self,
        x: Tensor | np.ndarray,
        transformer_block: int = -1,
        melspectrogram_input: bool = False,
    ) -> tuple[Tensor | tuple[Tensor, Tensor] | None, Tensor]:
        """Return ``(logits, embeddings)`` of audio or of spectrograms.

        ``x`` holds floats, or 16-bit PCM if it is a waveform, and is one of

        - [samples]: a mono waveform at 16 kHz of any length, cut into B patches;
        - [B, samples]: waveforms, each no longer than one patch;
        - [F, T], with ``melspectrogram_input``: a normalised log-mel spectrogram of any length,
          cut into B patches;
        - [B, F, T] or [B, 1, F, T]: such spectrograms, each no longer than one patch.

        ``transformer_block`` -1 returns logits [B, C], before any activation, and embeddings
        [B, D], the mean of the cls and dist tokens after the final norm. Two heads return a pair of
        logits (cls, dist) in training mode, their mean in eval mode. A block's number, from 0,
        returns ``None`` and [B, 3·D]: cls token, dist token, mean of the others, without norm.
        Later blocks are not computed.

        Raises:
            InputError: (a ValueError; for a wrong type a TypeError too) wrong shape, an input too
                long where it is not cut, a 2-D input that can only be meant otherwise, no such
                block, patchout that leaves no token, or, in eval mode, NaN or infinity.
        """
        block = whole_number("transformer_block", transformer_block, -1, self.depth - 1)
        mel = self._log_mel(x, melspectrogram_input)
        if mel.ndim == 2:
            pieces = [mel[:, a:b] for a, b in patches.cut(mel.shape[-1], self.input_t)]
            logits, embeddings = self.encode_patches(pieces, (block,), block < 0)
        else:
            logits, embeddings = self.encode(mel, (block,), block < 0)
        if logits is None:
            return None, embeddings[block].flatten(1)
        return ((logits[0], logits[1]) if logits.ndim == 3 else logits), embeddings[block]

    def encode(self, mel: Tensor, blocks: Sequence[int] = (-1,), logits: bool = True) -> Outputs:
        """Compute the outputs asked for in one pass; `torch.export` and `torch.compile` take it.

        ``mel``: normalised log-mel, float [B, F, T], no longer than a patch, unchecked; fewer than
        16 frames are padded with silence. ``blocks``: numbers from 0, and -1 for the final
        embedding.
        """
        embeddings: dict[int, Tensor] = {}
        needs_final, last = logits or -1 in blocks, self.depth - 1
        x = self._tokens(mel)
        for number in range(self.depth if needs_final else max(blocks) + 1):
            # Of the last block, only cls and dist are read.
            x = self.blocks[number](x, 2 if number == last and last not in blocks else None)
            if number in blocks:
                embeddings[number] = torch.cat((x[:, :2], x[:, 2:].mean(1, keepdim=True)), dim=1)
        if not needs_final:
            return Outputs(None, embeddings)
        cls, dist = self.norm(x[:, :2]).unbind(1)
        final = (cls + dist) / 2
        embeddings |= {-1: final} if -1 in blocks else {}
        if not logits:
            return Outputs(None, embeddings)
        if self.distilled_type == "mean":
            return Outputs(self.unstandardize(self.head(final)), embeddings)
        both = self.unstandardize(torch.stack((self.head(cls), self.head_dist(dist))))
        return Outputs(both if self.training else both.mean(0), embeddings)

    def encode_patches(self, mels: list[Tensor], blocks: Sequence[int], logits: bool) -> Outputs:
        """Encode patches [F, T] as `encode` does; neighbours of one length share a pass."""
        passes = []
        for length, group in groupby(mels, key=lambda mel: mel.shape[-1]):
            alike, together = list(group), TOKENS_PER_PASS // self.n_tokens(length, training=False)
            for first in range(0, len(alike), max(1, together)):
                batch = torch.stack(alike[first : first + max(1, together)])
                passes.append(self.encode(batch, blocks, logits))
        values = [one.logits for one in passes if one.logits is not None]
        joined = {block: torch.cat([one.embeddings[block] for one in passes]) for block in blocks}
        return Outputs(torch.cat(values, -2) if logits else None, joined)

    def compile_blocks(self, **options: Any) -> None:
        """Compile each transformer block in place, with ``torch.compile``."""
        for block in self.blocks:
            block.compile(**options)

    def _tokens(self, mel: Tensor) -> Tensor:
        """[B, F, T frames] → [B, N, D]: cls, dist, then the patches that patchout leaves."""
        if mel.shape[-1] < PATCH_SIZE:
            silence = -self.norm_mean / (2 * self.norm_std)
            mel = F.pad(mel, (0, PATCH_SIZE - mel.shape[-1]), value=silence)
        mel = mel[:, None].to(self.cls_token.dtype)
        x: Tensor = self.patch_embed["proj"](mel)  # [B, D, F rows, T columns]
        time, offset = self.time_new_pos_embed, 0
        if self.training:  # any run of positions, so that all of them learn
            offset = int(torch.randint(time.shape[-1] - x.shape[-1] + 1, ()))
        x = x + time[..., offset : offset + x.shape[-1]] + self.freq_new_pos_embed
        x = self.patchout(x).transpose(1, 2)
        two = torch.cat((self.cls_token, self.dist_token), dim=1) + self.new_pos_embed
        x = self.pos_drop(torch.cat((two.expand(x.shape[0], -1, -1), x), dim=1))
        return x

    def n_tokens(self, frames: int, training: bool = True) -> int:
        """The number of tokens of an input of so many frames, cls and dist included."""
        return 2 + self.patchout.n_patches(frames, training)

    def _log_mel(self, x: Tensor | np.ndarray, is_mel: bool) -> Tensor:
        # → [F, T] of one track, of any length, or [B, F, T]
        mel = as_floats(x, "x", self.cls_token.device, pcm=not is_mel)
        check_shape(mel.shape, is_mel, self._sizes)
        if mel.ndim == 4:
            mel = mel[:, 0]
        elif mel.ndim <= 2 and not is_mel:
            mel = self.normalise(self.frontend(mel))
        if not self.training and not torch.compiler.is_compiling():
            check_finite(mel, "x")
        return mel

    def melspectrogram(self, waveform: Tensor | np.ndarray) -> Tensor:
        """16 kHz waveform [(B,) samples] → normalised log-mel [(B,) F, T = 1 + ⌈samples / 256⌉]."""
        return self.normalise(self.frontend(as_floats(waveform, "waveform", self.cls_token.device)))

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Normalise log-mel values, as the front end and the files have them, for the network."""
        return (log_mel - self.norm_mean) / (2 * self.norm_std)

    def unstandardize(self, values: Tensor) -> Tensor:
        """Scale a head's values [..., C] to logits in the targets' units, if there are any."""
        if self.target_mean is None or self.target_std is None:
            return values
        scale = torch.tensor([self.target_std, self.target_mean], dtype=torch.float32)
        std, mean = on_device(scale, values.device).unbind()
        return values.float() * std + mean  # under autocast too: 16 bits do not hold every unit

    def activations(self, logits: Tensor) -> Tensor:
        """Logits [..., C] → float32 [..., C]: sigmoid, softmax, or the values of a regression."""
        if self.task == "multi-label":
            return logits.float().sigmoid()
        return logits.float().softmax(-1) if self.task == "single-label" else logits.float()

    def predict_labels(
        self, x: Tensor | np.ndarray, melspectrogram_input: bool = False
    ) -> tuple[np.ndarray, list[str] | None]:
        """Tag one track, in eval mode, without gradients: ``(activations, self.labels)``.

        ``x`` is as in :meth:`forward`; a batch is the patches of one track. Activations are float32
        [C]: the mean over patches, weighted by the seconds that each adds.
        """
        with inference(self):
            mel = self._log_mel(x, melspectrogram_input)
            activations = self.activations(self(mel, melspectrogram_input=True)[0]).cpu().numpy()
        weights = [1] * len(activations)
        if mel.ndim == 2:
            weights = patches.new_frames(patches.cut(mel.shape[-1], self.input_t))
        return patches.pooled(activations, weights), self.labels
