"""From music to embeddings, logits and activations: file → waveform → patches → outputs.

>>> from models.extraction import Extractor
>>> extract = Extractor("exp_logs/latest/model", blocks=[7])  # or "maest-tiny-scores"
>>> embedding = extract("song.mp3").embeddings[7]  # [3, D]: cls token, dist token, mean of others

The same, rung by rung:

>>> waveform = read_audio("song.mp3")  # helpers.audio: float32 [samples], mono, 16 kHz
>>> chunks = extract.patches(waveform)  # helpers.chunks.Chunk, as many patches as are held at once
>>> result = extract.outputs(chunks)  # helpers.chunks.TrackResult

For many tracks, `models.batching.Batcher` lets patches of different tracks share a pass.
Neither Sacred nor Lightning is needed. Shapes are those of `models/maest.py`; P patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.audio import AudioError, stream_audio
from helpers.chunks import FINAL, Chunk, Cutting, TrackResult, stream_patches
from helpers.patches import FRAMES_PER_SECOND, PATCH_SIZE, TAILS, seconds
from helpers.settings import check_choice
from models import ARCHS, Maest, get_maest
from models.batching import Batcher, Encoder, Failure, Wanted
from models.cpu import speed_up
from models.maest import grid_size, inference

PATCHES_PER_CHUNK = 8  # of a track, read at once


class Extractor:
    """Embeddings, logits and activations of music, track by track.

    Args:
        model: a network; a model folder or checkpoint file; or the name of an arch with weights.
        blocks: whose embeddings are wanted: a number from 0, or -1 for the one after the final
            norm; several of them; or "all".
        logits, activations, pool: as in :class:`Wanted`.
        patch_seconds: length of a patch; the model's, if None.
        hop_seconds: from one patch to the next; ``patch_seconds`` if None.
        tail: what becomes of a remainder: "keep", "drop" or "pad" (`helpers.patches.cut`).
        patches_per_pass: see :class:`Batcher`.
        quantize: "int8" (CPU); None for the weights as they are.
        device: to compute on; a network's own, or else a GPU where there is one.

    Attributes:
        labels: of the model's C classes, if known.

    Raises:
        InputError, ValueError: of `get_maest`, and for options that are none.
    """

    def __init__(
        self,
        model: Maest | str | Path,
        *,
        blocks: int | Sequence[int] | str = (FINAL,),
        logits: bool = False,
        activations: bool = False,
        pool: str = "mean",
        patch_seconds: float | None = None,
        hop_seconds: float | None = None,
        tail: str = "keep",
        patches_per_pass: int | None = None,
        quantize: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(model, Maest):
            known = isinstance(model, str) and model in ARCHS and not Path(model).exists()
            model = get_maest(model) if known else get_maest(checkpoint=model)
            if device is None:
                device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = model if device is None else model.to(device)
        self.labels = model.labels
        if isinstance(blocks, int):
            blocks = [blocks]
        chosen = tuple(range(model.depth)) if blocks == "all" else tuple(blocks)
        self.wanted = Wanted(chosen, logits, activations, pool)
        self.cutting = cutting(self.net, patch_seconds, hop_seconds, tail)
        if self.net.cls_token.device.type == "cpu":
            speed_up(self.net)
        self.encoder = Encoder(self.net, self.wanted, quantize)
        self.patches_per_pass = patches_per_pass

    def __call__(self, path: str | Path) -> TrackResult:
        """A file's result; its length is no question of memory.

        Raises:
            AudioError: (an InputError) it cannot be read, or is too short for ``tail="drop"``.
        """
        try:
            return self.outputs(self.patches(stream_audio(path), str(path)))
        except AudioError as error:
            raise AudioError(f"{path}: {error}") from None

    def patches(
        self, waveform: np.ndarray | Tensor | Iterable[np.ndarray], key: str = ""
    ) -> Iterator[Chunk]:
        """Cut a waveform into patches.

        Args:
            waveform: float32 [samples], mono at 16 kHz; or consecutive pieces of one.
            key: what the track is called.
        """
        if isinstance(waveform, Tensor):
            waveform = waveform.detach().cpu().numpy()
        if isinstance(waveform, np.ndarray):
            if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
                raise ValueError(
                    f"waveform is {waveform.dtype} {waveform.shape}: expected floats [samples], "
                    "mono at 16 kHz"
                )
            waveform = [waveform.astype(np.float32, copy=False)]
        return stream_patches(waveform, self.cutting, PATCHES_PER_CHUNK, key, 0)

    def outputs(self, chunks: Iterable[Chunk]) -> TrackResult:
        """The result of one track's chunks.

        Raises:
            AudioError: there is none.
        """
        batcher = self._batcher()
        with inference(self.net):
            found = [result for chunk in chunks for result in self._feed(batcher, chunk)]
            found += batcher.flush()
        if isinstance(found[0], Failure):
            raise AudioError(found[0].reason)
        return found[0]

    def _feed(self, batcher: Batcher, chunk: Chunk) -> list[TrackResult | Failure]:
        return batcher.feed(chunk.to(self.net.cls_token.device))

    def _batcher(self) -> Batcher:
        return Batcher(self.encoder, self.patches_per_pass)


def cutting(
    net: Maest, patch_seconds: float | None, hop_seconds: float | None, tail: str
) -> Cutting:
    """How tracks are cut for a network, in frames.

    Raises:
        ValueError: a patch that the network has no positions for, a hop of no frame, no such tail.
    """
    longest = net.input_t if patch_seconds is None else int(patch_seconds * FRAMES_PER_SECOND)
    hop = None if hop_seconds is None else round(hop_seconds * FRAMES_PER_SECOND)
    if longest < PATCH_SIZE or grid_size(longest) > net.time_new_pos_embed.shape[-1]:
        raise ValueError(
            f"patches of {patch_seconds} s: the model takes {seconds(PATCH_SIZE):.2f} to "
            f"{seconds(net.input_t):g} s"
        )
    if hop is not None and hop < 1:
        raise ValueError(f"patches every {hop_seconds} s: expected 0.016 (a frame) or more")
    check_choice("tail", tail, TAILS)
    return Cutting(longest, hop, tail)
