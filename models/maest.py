"""The network: a vision transformer over log-mel patches, with patchout.

Music Audio Efficient Spectrogram Transformer, P. Alonso-Jiménez et al., ISMIR 2023
(arXiv 2309.16418), after PaSST, K. Koutini et al., Interspeech 2022 (arXiv 2110.05069).
Parameter names are those of the released checkpoints.

Shapes in comments: B batch, F frequency rows, T time columns (frames or patch columns, as said),
N tokens, D channels, C classes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers import patches
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import (
    N_MELS,
    NORM_MEAN,
    NORM_STD,
    SAMPLE_RATE,
    MelSpectrogram,
    n_frames,
)
from maest.helpers.patches import PATCH_SIZE
from maest.models.blocks import is_standard, two_tokens

STRIDE = 10  # frames and bands from one patch to the next
DISTILLED_TYPES = ("mean", "separated")
# What the targets are: any number of labels, exactly one label, or C real values.
TASKS = ("multi-label", "single-label", "regression")
# The arguments that make a network of the same shape, normalisation and heads: what a model folder
# keeps. Patchout and dropout are settings of a run, not of a model.
SIZE_NAMES = (
    *("n_classes", "input_t", "input_f", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("distilled_type", "head_eps", "norm_mean", "norm_std"),
    *("task", "target_mean", "target_std"),
)

# Patchout that leaves less than this share of a clip's patches is a slip.
_LEAST_SHARE = 0.05
# A long waveform is computed this many patches at a time, so that its length is no question of
# memory (16 patches of 30 s take about 2 GB in the base model).
_PATCHES_PER_PASS = 16


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, and eval mode, whatever mode the model is in; that comes back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Send a small tensor from the CPU to where it is used.

    The host does not wait for a CUDA device to take it, as it does where memory is not pinned.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def grid_size(size: int) -> int:
    """How many patches the strided convolution makes of ``size`` bands or frames."""
    return (size - PATCH_SIZE) // STRIDE + 1


class Outputs(NamedTuple):
    """What one pass computes of [B, F, T].

    Attributes:
        logits: [B, C], or None where they were not asked for. In training mode, of a network with
            two heads, [2, B, C]: the cls token's and the dist token's.
        embeddings: by block, [B, 3, D]: cls token, dist token, mean of all others; and of -1, after
            the final norm, [B, D].
    """

    logits: Tensor | None
    embeddings: dict[int, Tensor]


class PatchEmbed(nn.Module):
    """Overlapping patches of the spectrogram, each projected to D channels."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, embed_dim, kernel_size=PATCH_SIZE, stride=STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # [B, 1, F bands, T frames] → [B, D, F rows, T columns]


class Maest(nn.Module):
    """The MAEST network.

    Args:
        n_classes: number of labels C.
        input_t: longest input, in frames (62.5 a second).
        input_f: mel bands of an input.
        embed_dim: channels D.
        depth: number of transformer blocks.
        num_heads: attention heads of a block.
        mlp_ratio: hidden width of a block's MLP over D.
        distilled_type: "mean": one head on the mean of the cls and dist tokens; "separated": a head
            for each (teacher-student training).
        head_eps: epsilon of the head's LayerNorm.
        s_patchout_t, s_patchout_f: structured patchout: time columns and frequency rows dropped at
            random in training, the same for a whole batch.
        u_patchout: single patches dropped at random in training.
        s_patchout_t_indices, s_patchout_f_indices: columns and rows that are always dropped, by
            number; columns that a short input does not have are no error.
        s_patchout_t_interleaved, s_patchout_f_interleaved: keep only every k-th column or row.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of projections, of attention weights, and
            of whole residual branches (the last one's rate grows linearly over the blocks).
        norm_mean, norm_std: normalisation of the input, ``(x - mean) / (2 · std)``.
        task: what the logits are for: "multi-label" (sigmoid), "single-label" (softmax) or
            "regression" (as they are).
        target_mean, target_std: of regression targets, C values each: the heads learn standardised
            values, and logits are in the targets' own units. None: they are standardised already.
        labels: the C label names, if known.

    Raises:
        InputError: for a value of another type or out of its bounds, and for patchout that leaves
            next to nothing. It is a ValueError; its ``setting`` is the argument's name.
    """

    def __init__(
        self,
        *,
        n_classes: int,
        input_t: int,
        input_f: int = N_MELS,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        distilled_type: str = "mean",
        head_eps: float = 1e-5,
        s_patchout_t: int = 0,
        s_patchout_f: int = 0,
        u_patchout: int = 0,
        s_patchout_t_indices: Sequence[int] = (),
        s_patchout_f_indices: Sequence[int] = (),
        s_patchout_t_interleaved: int = 0,
        s_patchout_f_interleaved: int = 0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_mean: float = NORM_MEAN,
        norm_std: float = NORM_STD,
        task: str = "multi-label",
        target_mean: Sequence[float] | None = None,
        target_std: Sequence[float] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        _check_choice("task", task, TASKS)
        _check_choice("distilled_type", distilled_type, DISTILLED_TYPES)
        n_classes, depth = _whole("n_classes", n_classes, 1), _whole("depth", depth, 1)
        input_t = _whole("input_t", input_t, PATCH_SIZE)
        input_f = _whole("input_f", input_f, PATCH_SIZE)
        num_heads, embed_dim = _whole("num_heads", num_heads, 1), _whole("embed_dim", embed_dim, 1)
        if embed_dim % num_heads:
            raise InputError(
                f"{num_heads} heads do not divide {embed_dim} channels",
                kind="conflict",
                hint="Give heads of 64 channels, as is usual.",
                setting="num_heads",
            )
        if (target_mean is None) != (target_std is None):
            raise InputError(
                "target_mean and target_std go together",
                kind="conflict",
                hint="Give both or none.",
                setting="target_mean",
            )
        if target_mean is not None:
            lengths = {len(target_mean), len(target_std)}
            if task != "regression" or lengths != {n_classes} or not min(target_std) > 0:
                raise InputError(
                    f"found {len(target_mean)} means and {len(target_std)} deviations, for {task}",
                    kind="conflict",
                    hint=f"They are for regression, {n_classes} values each, and deviations above "
                    "0.",
                    setting="target_mean",
                )
        for name, value in (
            ("mlp_ratio", mlp_ratio),
            ("head_eps", head_eps),
            ("norm_std", norm_std),
            ("norm_mean", norm_mean),
        ):
            if not math.isfinite(value) or (value <= 0 and name != "norm_mean"):
                kind = "a number" if name == "norm_mean" else "a number above 0"
                raise InputError(f"{value} is out of bounds", hint=f"Give {kind}.", setting=name)
        for name, value in (
            ("drop_rate", drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("drop_path_rate", drop_path_rate),
        ):
            if not 0 <= value < 1:
                raise InputError(
                    f"{value} is out of bounds",
                    hint="Give 0 or more, and less than 1.",
                    setting=name,
                )
        if labels is not None and len(labels) != n_classes:
            raise InputError(
                f"{len(labels)} labels for {n_classes} classes",
                kind="mismatch",
                hint="Give a name for each class.",
                setting="labels",
            )

        self.n_classes = n_classes
        self.input_f = input_f
        self.input_t = input_t
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.distilled_type = distilled_type
        self.head_eps = head_eps
        self.norm_mean = norm_mean
        self.norm_std = norm_std
        self.task = task
        self.target_mean = None if target_mean is None else [float(v) for v in target_mean]
        self.target_std = None if target_std is None else [float(v) for v in target_std]
        self.labels = None if labels is None else list(labels)
        # Parameters that a checkpoint left as they were drawn (`models.weights.load_into`).
        self.fresh: frozenset[str] = frozenset()

        rows, columns = grid_size(input_f), input_t // STRIDE
        clip = grid_size(input_t)  # columns of a whole clip: one fewer than positions, at times
        self.s_patchout_t = _check_patchout("s_patchout_t", s_patchout_t, clip)
        self.s_patchout_f = _check_patchout("s_patchout_f", s_patchout_f, rows)
        self.u_patchout = _check_patchout("u_patchout", u_patchout, rows * clip)
        # Which columns and rows the two deterministic settings leave, of the longest input's.
        self.kept_columns = _kept(
            "s_patchout_t", columns, s_patchout_t_indices, s_patchout_t_interleaved
        )
        self.kept_rows = _kept("s_patchout_f", rows, s_patchout_f_indices, s_patchout_f_interleaved)
        self._check_patches_left(rows * clip)

        self.frontend = MelSpectrogram()
        self.patch_embed = PatchEmbed(embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, embed_dim))  # of cls and of dist
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, rows, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, 1, columns))
        self.pos_drop = nn.Dropout(drop_rate)

        block_norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=True,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=float(rate),
                norm_layer=block_norm,
            )
            for rate in np.linspace(0, drop_path_rate, depth)
        )
        self.norm = block_norm(embed_dim)
        self.head = nn.Sequential(
            nn.LayerNorm(embed_dim, eps=head_eps), nn.Linear(embed_dim, n_classes)
        )
        self.head_dist = nn.Linear(embed_dim, n_classes)
        self.init_weights()

    @classmethod
    def without_weights(cls, **sizes) -> Maest:
        """The network's shape alone: its parameters have no memory until weights are assigned.

        ``load_state_dict(..., assign=True)`` gives it weights: neither time nor memory goes into
        fresh ones that would be overwritten.
        """
        with torch.device("meta"):
            model = cls(**sizes)
        model.frontend = MelSpectrogram()  # its constants are computed, not loaded
        return model

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights: truncated normal of std 0.02; the convolution keeps PyTorch's own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.dist_token, std=0.02)
        nn.init.trunc_normal_(self.new_pos_embed, std=0.02)
        nn.init.trunc_normal_(self.freq_new_pos_embed, std=0.02)
        nn.init.trunc_normal_(self.time_new_pos_embed, std=0.02)

    def compile_blocks(self, **options) -> None:
        """Compile the transformer blocks with ``torch.compile``, in place; a run's setting.

        The blocks are compiled one by one, and all but about 1 % of the arithmetic is theirs. They
        are of one shape, so that one graph serves all of them and compiling takes seconds; what is
        random or depends on the input's length comes before them, and breaks no graph. Parameters,
        their names and the state dict stay as they are; a copy or a saved model is not compiled.

        Each rate of stochastic depth (``drop_path_rate``) takes a graph of its own, and dropout
        draws other random numbers than without compiling.

        Args:
            options: of ``torch.compile``: mode, backend, dynamic ….
        """
        for block in self.blocks:
            block.compile(**options)

    # ---------------------------------------------------------------- from the outside

    def forward(
        self, x: Tensor, transformer_block: int = -1, melspectrogram_input: bool = False
    ) -> tuple[Tensor | tuple[Tensor, Tensor] | None, Tensor]:
        """Compute logits and embeddings.

        Args:
            x: floats, or 16-bit PCM if it is a waveform, as a tensor or a NumPy array; one of

                - [samples]: a mono waveform at 16 kHz of any length, cut into B patches
                  (`helpers.patches.cut`);
                - [B, samples]: a batch of waveforms, each no longer than one patch;
                - [F, T], with ``melspectrogram_input``: a normalised log-mel spectrogram of any
                  length T, cut into B patches;
                - [B, F, T] or [B, 1, F, T]: a batch of normalised log-mel spectrograms, each no
                  longer than one patch.

                Inputs of fewer than 16 frames are padded with silence to 16.
            transformer_block: whose output to return: -1 for logits and the final embedding, or
                the zero-based number of a block. Later blocks are not computed.
            melspectrogram_input: says that a 2-D ``x`` is a spectrogram, not waveforms.

        Returns:
            ``(logits, embeddings)``. For block -1: logits [B, C] (before the sigmoid) and
            embeddings [B, D], the mean of the cls and dist tokens after the final norm. For a
            block: ``None`` and [B, 3·D]: cls token, dist token, mean of all other tokens, without
            the final norm. With ``distilled_type="separated"`` logits are the pair (cls head, dist
            head) in training mode and the mean of the two in eval mode.

        Raises:
            TypeError: if ``x`` is neither a tensor nor an array of such numbers.
            InputError: for an empty input, another number of bands or dimensions, an input that is
                too long where it is not cut, a 2-D input that can only be meant otherwise, no such
                block, patchout that leaves no token, and, in eval mode outside compile and export,
                NaN or infinite values. (It is a ValueError.)
        """
        transformer_block = _whole("transformer_block", transformer_block, -1, self.depth - 1)
        x = self._as_input(x, melspectrogram_input)
        if x.ndim == 1 and melspectrogram_input:
            raise InputError(
                "it has one dimension, and a log-mel spectrogram has two",
                hint="Give [F, T], or leave melspectrogram_input out for a waveform.",
                setting="x",
            )
        if x.ndim == 1:
            return self._forward_long(self.melspectrogram(x), transformer_block)
        if x.ndim == 2 and melspectrogram_input:
            return self._forward_long(x, transformer_block)
        if x.ndim == 2:
            self._check_waveforms(x)
            x = self.melspectrogram(x)
        if x.ndim == 4:
            if x.shape[1] != 1:
                raise InputError(
                    f"its shape is {list(x.shape)}",
                    hint="Spectrograms have one channel: [B, 1, F, T].",
                    setting="x",
                )
            x = x[:, 0]
        self._check_bands(x)
        self._check_finite(x)
        return self._forward_patches(x, transformer_block)

    def outputs(
        self, x: Tensor, blocks: Sequence[int] = (), logits: bool = False
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Several outputs of one pass, with no more blocks computed than they need.

        Args:
            x: float [B, F, T], normalised log-mel spectrograms, each no longer than one patch.
            blocks: whose embeddings are wanted: numbers from 0, and -1 for the final one.
            logits: whether logits are.

        Returns:
            ``(logits, embeddings)``: logits [B, C] (as :meth:`forward`'s), or None; embeddings by
            block: [B, 3, D], cls token, dist token, mean of all others; of block -1 [B, D].

        Raises:
            TypeError, InputError: as :meth:`forward`, and if nothing is asked for.
        """
        blocks = [_whole("blocks", block, -1, self.depth - 1) for block in blocks]
        if not blocks and not logits:
            raise InputError(
                "nothing is asked for", kind="empty", hint="Name a block.", setting="blocks"
            )
        x = self._as_input(x, True)
        if x.ndim != 3:
            raise InputError(
                f"its shape is {list(x.shape)}", hint="Give spectrograms [B, F, T].", setting="x"
            )
        self._check_bands(x)
        self._check_finite(x)
        found, embeddings = self._run(x, set(blocks), logits, shortcut=not self.training)
        return found, {
            block: values if block < 0 else values.unflatten(1, (3, self.embed_dim))
            for block, values in embeddings.items()
        }

    def encode(self, mel: Tensor, blocks: Sequence[int] = (-1,), logits: bool = True) -> Outputs:
        """One pass, with no more computed than is asked for; it can be exported and compiled.

        Nothing is checked: not the shape, the length or the values of ``mel``.

        Args:
            mel: float [B, F, T], normalised log-mel spectrograms, each no longer than one patch.
            blocks: whose embeddings to return: numbers from 0, and -1 for the final one.
            logits: whether to return logits.
        """
        found, embeddings = self._run(mel, set(blocks), logits, shortcut=not self.training)
        found = torch.stack(found) if isinstance(found, tuple) else found
        return Outputs(
            found,
            {
                block: values if block < 0 else values.unflatten(1, (3, self.embed_dim))
                for block, values in embeddings.items()
            },
        )

    def melspectrogram(self, waveform: Tensor) -> Tensor:
        """Waveform at 16 kHz, [samples] or [B, samples] → normalised log-mel, [F, T] or [B, F, T].

        T = 1 + ceil(samples / 256). What the network takes as spectrogram input.
        """
        return self.normalise(self.frontend(self._as_input(waveform)))

    def normalise(self, log_mel: Tensor) -> Tensor:
        """Log-mel values as they are on disk → as the network takes them."""
        return (log_mel - self.norm_mean) / (2 * self.norm_std)

    def predict_labels(
        self, x: Tensor, melspectrogram_input: bool = False
    ) -> tuple[np.ndarray, list[str] | None]:
        """Tag one track.

        Args:
            x: as :meth:`forward`; a waveform [samples] of any length, usually. A batch is taken
                for the patches of one track.
            melspectrogram_input: as :meth:`forward`.

        Returns:
            ``(activations, labels)``: float32 array [C], the mean over patches, weighted by their
            seconds, of :meth:`activations`; and ``self.labels``.
        """
        x = self._as_input(x, melspectrogram_input)
        with inference(self):
            logits, _ = self(x, melspectrogram_input=melspectrogram_input)
        weights = np.ones(len(logits))
        if x.ndim == 1 or (x.ndim == 2 and melspectrogram_input):
            frames = n_frames(len(x)) if x.ndim == 1 else x.shape[-1]
            weights = np.array([last - first for first, last in patches.cut(frames, self.input_t)])
        activations = self.activations(logits).cpu().numpy()
        return np.average(activations, axis=0, weights=weights).astype(np.float32), self.labels

    def in_units(self, values: Tensor) -> Tensor:
        """What a head gives, [..., C] → logits: in the targets' units, if they have any."""
        if self.target_mean is None:
            return values
        values = values.float()  # under autocast too: 16 bits do not hold every unit
        std, mean = torch.tensor([self.target_std, self.target_mean], dtype=torch.float32)
        return values * on_device(std, values.device) + on_device(mean, values.device)

    def activations(self, logits: Tensor) -> Tensor:
        """Logits [..., C] → float32 [..., C]: the sigmoid for many labels, the softmax for one.

        Between 0 and 1 then; for regression, the predicted values, as they are.
        """
        if self.task == "multi-label":
            return logits.float().sigmoid()
        return logits.float().softmax(-1) if self.task == "single-label" else logits.float()

    def n_tokens(self, frames: int, training: bool = True) -> int:
        """How many tokens the blocks get of an input of ``frames``, at least 16.

        With ``training``, after random patchout too; cls and dist are counted.
        """
        grid = []
        for name, available, kept in (
            ("s_patchout_t", grid_size(frames), self.kept_columns),
            ("s_patchout_f", grid_size(self.input_f), self.kept_rows),
        ):
            left = available if kept is None else int((kept < available).sum())
            grid.append(max(0, left - getattr(self, name)) if training else left)
        return 2 + math.prod(grid) - (self.u_patchout if training else 0)

    def sizes(self) -> dict[str, int | float | str | list[float] | None]:
        """What `Maest(**sizes)` needs to build a network of the same shape and normalisation."""
        return {name: getattr(self, name) for name in SIZE_NAMES}

    # ---------------------------------------------------------------- inside

    def _as_input(self, x: Tensor | np.ndarray, melspectrogram_input: bool = False) -> Tensor:
        """A waveform or spectrogram as floats; an array goes to where the network is."""
        if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
            x = torch.from_numpy(np.ascontiguousarray(x, x.dtype.newbyteorder("=")))
            x = x.to(self.cls_token.device)
        if not isinstance(x, Tensor):
            what = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(f"x is of type {what}: expected a tensor or an array of floats")
        if x.dtype == torch.int16 and x.ndim <= 2 and not melspectrogram_input:
            x = x.float() / 32768
        if not x.is_floating_point():
            raise TypeError(f"x is of type {x.dtype}: expected floats, or waveforms of 16-bit PCM")
        if x.dtype == torch.float64:
            x = x.float()
        if not 1 <= x.ndim <= 4 or x.numel() == 0:
            empty = x.numel() == 0 and x.ndim
            raise InputError(
                f"it {'is empty' if empty else f'has {x.ndim} dimensions'} (shape {list(x.shape)})",
                kind="empty" if empty else "invalid",
                hint="Give a waveform [samples], waveforms [B, samples], or log-mel spectrograms "
                "[F, T], [B, F, T] or [B, 1, F, T].",
                setting="x",
            )
        return x

    def _check_waveforms(self, x: Tensor) -> None:
        """Raise InputError for [B, samples] that can only be meant as something else."""
        hint = None
        if x.shape[1] <= 8 < x.shape[0]:
            hint = "Audio of several channels, [samples, channels]? Mix it down to one: x.mean(1)."
        elif x.shape[0] == self.input_f and x.shape[1] < SAMPLE_RATE:
            hint = (
                "A log-mel spectrogram [F, T]? Give melspectrogram_input=True. (For so many short "
                "waveforms: model(model.melspectrogram(x)).)"
            )
        elif x.shape[1] == self.input_f < x.shape[0]:
            hint = "A log-mel spectrogram [T, F]? Give x.T and melspectrogram_input=True."
        elif grid_size(n_frames(x.shape[1])) > self.time_new_pos_embed.shape[-1]:
            hint = "Cut them, or give one track as [samples], which is cut into patches."
            if 1 < x.shape[0] <= 8:
                hint = f"Audio of several channels? Mix it down to one: x.mean(0). {hint}"
        if hint:
            raise InputError(
                f"its shape is {list(x.shape)}, which would be {x.shape[0]} waveforms of "
                f"{x.shape[1] / SAMPLE_RATE:.3g} s, of at most "
                f"{patches.seconds(self.input_t):.3g} s each",
                hint=hint,
                setting="x",
            )

    def _check_patches_left(self, patches: int) -> None:
        """Raise InputError if patchout leaves next to nothing of a clip's patches."""
        left = max(0, self.n_tokens(self.input_t) - 2)
        if left < max(1, _LEAST_SHARE * patches):
            raise InputError(
                f"patchout leaves {left} of a clip's {patches} patches",
                hint="Lower s_patchout_t, s_patchout_f, u_patchout or what is always dropped, or "
                "use longer clips.",
                setting="s_patchout_t",
            )

    def _forward_long(self, mel: Tensor, block: int):
        """[F, T] of any length: cut, and compute the patches of one length together."""
        self._check_bands(mel)
        self._check_finite(mel)
        cuts = patches.cut(mel.shape[-1], self.input_t)
        whole = [mel[:, first:last] for first, last in cuts if last - first == self.input_t]
        groups = [
            torch.stack(whole[i : i + _PATCHES_PER_PASS])
            for i in range(0, len(whole), _PATCHES_PER_PASS)
        ]
        if len(whole) < len(cuts):
            groups.append(mel[None, :, slice(*cuts[-1])])
        outputs = [self._forward_patches(group, block) for group in groups]
        embeddings = torch.cat([embedding for _, embedding in outputs])
        logits = [logit for logit, _ in outputs]
        if logits[0] is None:
            return None, embeddings
        if isinstance(logits[0], tuple):
            return tuple(torch.cat(part) for part in zip(*logits, strict=True)), embeddings
        return torch.cat(logits), embeddings

    def _forward_patches(self, mel: Tensor, block: int):
        """[B, F, T frames], no longer than one patch."""
        logits, embeddings = self._run(mel, {block}, block < 0)
        return logits, embeddings[block]

    def _run(self, mel: Tensor, wanted: Collection[int], logits: bool, shortcut: bool = False):
        """One pass of [B, F, T frames]: logits, and embeddings by block, -1 the final one.

        With ``shortcut``, the last block computes no more than is read of it, unless its layers
        were replaced or have hooks.
        """
        missing = PATCH_SIZE - mel.shape[-1]
        if missing > 0:
            silence = -self.norm_mean / (2 * self.norm_std)
            mel = F.pad(mel, (0, missing), value=silence)
        columns = grid_size(mel.shape[-1])
        if columns > self.time_new_pos_embed.shape[-1]:
            limit = self.time_new_pos_embed.shape[-1]
            raise InputError(
                f"an input of {mel.shape[-1]} frames makes {columns} patch columns, and the model "
                f"has positions for {limit} (input_t = {self.input_t} frames)",
                hint="Cut it, or give one track as a waveform [samples] or a spectrogram [F, T]: "
                "those are cut into patches.",
                setting="x",
            )
        embeddings: dict[int, Tensor] = {}
        to_the_end = logits or -1 in wanted
        last = self.depth - 1
        x = self._tokens(mel)
        for block in range(self.depth if to_the_end else max(wanted) + 1):
            few = shortcut and block == last and block not in wanted
            if few and is_standard(self.blocks[block]):
                x = two_tokens(self.blocks[block], x)
            else:
                x = self.blocks[block](x)
            if block in wanted:
                average = x[:, 2:].mean(dim=1)
                embeddings[block] = torch.cat((x[:, 0], x[:, 1], average), dim=1)
        if not to_the_end:
            return None, embeddings

        x = self.norm(x[:, :2])  # only the two tokens are read from here on
        cls, dist = x[:, 0], x[:, 1]
        final = (cls + dist) / 2
        if -1 in wanted:
            embeddings[-1] = final
        if not logits:
            return None, embeddings
        if self.distilled_type == "mean":
            return self.in_units(self.head(final)), embeddings
        both = self.in_units(self.head(cls)), self.in_units(self.head_dist(dist))
        return (both if self.training else (both[0] + both[1]) / 2), embeddings

    def _tokens(self, mel: Tensor) -> Tensor:
        """[B, F, T frames] → [B, N, D]: cls, dist, then the patches that patchout leaves."""
        x = self.patch_embed(mel[:, None].to(self.cls_token.dtype))  # [B, D, F rows, T columns]
        time = self.time_new_pos_embed
        offset = 0
        if self.training:  # any run of positions, so that all of them learn
            offset = int(torch.randint(time.shape[-1] - x.shape[-1] + 1, ()))
        x = x + time[..., offset : offset + x.shape[-1]] + self.freq_new_pos_embed

        kept = self._kept_grid(*x.shape[2:])
        x = x.flatten(2)  # [B, D, F·T], frequency-major
        if kept is not None:
            x = x.index_select(2, on_device(kept, x.device))
        x = x.transpose(1, 2)
        single = self._select("u_patchout", x.shape[1], None)
        if single is not None:
            x = x.index_select(1, on_device(single, x.device))

        two = torch.cat((self.cls_token, self.dist_token), dim=1) + self.new_pos_embed
        return self.pos_drop(torch.cat((two.expand(x.shape[0], -1, -1), x), dim=1))

    def _kept_grid(self, rows: int, columns: int) -> Tensor | None:
        """Which patches structured patchout leaves, frequency-major; None for all of them.

        Whole columns and rows go: what is left is still a grid.
        """
        t = self._select("s_patchout_t", columns, self.kept_columns)
        f = self._select("s_patchout_f", rows, self.kept_rows)
        if t is None and f is None:
            return None
        grid = torch.arange(rows * columns).view(rows, columns)
        grid = grid if t is None else grid[:, t]
        return (grid if f is None else grid[f]).flatten()

    def _select(self, name: str, available: int, kept: Tensor | None) -> Tensor | None:
        """Which of ``available`` positions stay, sorted; None for all of them.

        Those that are ``kept`` (None for all), and, in training, less as many at random as the
        setting of that name says.
        """
        dropped = getattr(self, name) if self.training else 0
        if kept is None and not dropped:
            return None
        indices = torch.arange(available) if kept is None else kept[kept < available]
        if len(indices) <= dropped:
            raise InputError(
                f"it leaves nothing of an input with {available} positions: {len(indices)} are "
                f"kept, and {dropped} of them are to be dropped at random",
                hint=f"Lower {name}, or use longer clips.",
                setting=name,
            )
        if dropped:
            indices = indices[torch.randperm(len(indices))[dropped:].sort().values]
        return indices

    def _check_bands(self, mel: Tensor) -> None:
        if mel.shape[-2] != self.input_f:
            hint = " Is it transposed?" if mel.shape[-1] == self.input_f else ""
            raise InputError(
                f"a spectrogram of {mel.shape[-2]} bands x {mel.shape[-1]} frames",
                kind="mismatch",
                hint=f"The model takes {self.input_f} bands, [..., F, T].{hint}",
                setting="x",
            )

    def _check_finite(self, x: Tensor) -> None:
        if self.training or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if not torch.isfinite(x).all():
            raise InputError(
                "it has NaN or infinite values",
                kind="corrupt",
                hint="Look for what made them; np.nan_to_num replaces them.",
                setting="x",
            )


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number, NumPy's too, as an int; True is none."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        what = "is no whole number" if number is None else "is out of bounds"
        above = " or more" if most is None else f" to {most}"
        raise InputError(f"{value!r} {what}", hint=f"Give {least}{above}.", setting=name)
    return number


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(
            f"{value!r} is unknown",
            kind="unknown",
            hint=f"Choose from {', '.join(choices)}.",
            setting=name,
        )


def _check_patchout(name: str, dropped: Any, available: int) -> int:
    """How many of ``available`` positions are dropped at random; at least one stays."""
    return _whole(name, dropped, 0, available - 1)


def _kept(name: str, available: int, indices: Any, every: Any) -> Tensor | None:
    """The columns or rows that the deterministic patchout keeps, sorted; None for all of them."""
    indices = indices if isinstance(indices, Sequence | np.ndarray) else [indices]
    dropped = {_whole(f"{name}_indices", i, 0, available - 1) for i in indices}
    every = _whole(f"{name}_interleaved", every, 0) or 1
    kept = [i for i in range(0, available, every) if i not in dropped]
    if not kept:
        raise InputError(
            f"with {name}_interleaved, it leaves nothing of {available}",
            hint="Drop fewer of them.",
            setting=f"{name}_indices",
        )
    return torch.tensor(kept, device="cpu") if len(kept) < available else None
