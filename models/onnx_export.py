"""Our network → one ONNX file, with or without the front end.

The graph is made by PyTorch's own exporter from the same modules that train. It takes any batch and
any length up to the longest that the positions hold, and has no external data.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.chunks import chosen_blocks
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE
from maest.helpers.patches import PATCH_SIZE
from maest.models.archs import clip_seconds
from maest.models.maest import STRIDE, Maest
from maest.models.saving import own_files

# Bytes: an ONNX file without external data is one protobuf message; less 16 MiB for the graph.
_LARGEST = 2**31 - 2**24


def export_onnx(
    path: str | Path,
    model: Maest,
    blocks: Sequence[int],
    *,
    with_frontend: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network as an ONNX file.

    The input, float32, one of

    - ``melspectrogram`` [batch, F, frames]: normalised log-mel, as ``model(x)`` takes [B, F, T];
    - ``waveform`` [batch, samples], with ``with_frontend``: mono at 16 kHz, as ``model(x)`` takes
      [B, samples].

    Batch and time are free. As in ``model(x)``, fewer than 16 frames are padded with silence, and
    the longest input is that which the time positions hold: n = input_t // 10 patch columns, so
    10 · n + 15 frames, or 256 · (10 · n + 14) samples. For a longer one the runtime raises an
    error, of shapes that cannot be added, at a node whose name says the limit. Cutting a track is
    left to the caller (`helpers.patches.cut`).

    The outputs, float32:

    - ``logits`` [batch, C]: those of ``model.eval()(x)``, before the sigmoid or softmax, and for a
      teacher-student model the mean of its two heads;
    - ``embeddings_<block>`` [batch, 3, D] for each of ``blocks``: cls token, dist token, mean of
      all other tokens;
    - ``embeddings_final`` [batch, D] for block -1: the mean of the cls and dist tokens after the
      final norm.

    The file's ``metadata_props`` say what is needed to use it: sample_rate (Hz), hop_length
    (samples), n_mels, norm_mean, norm_std, input_t (frames), max_frames (of an input; with the
    front end, max_samples), task, blocks (JSON list), labels (JSON list; absent if the model has
    none), and what is in ``metadata``. How it is used stands in the file's ``doc_string``.

    What the format carries of patchout: the columns and rows that are always dropped are dropped
    here too; what is dropped at random, in training, is no part of the file. What it does not
    carry: the type of the weights (those of a half-precision model are written as float32), and the
    refusal of NaN and infinite values. The front end needs a runtime with float64 products, as
    onnxruntime has on the CPU.

    Args:
        path: where to; an older export is replaced once the new one is whole and valid.
        model: the network; its mode, device and weights are left as they are.
        blocks: whose embeddings to put out: zero-based numbers, and -1 for the final embedding, in
            any order. None at all leaves the logits alone.
        with_frontend: take a waveform. The transform is then a part of the file.
        metadata: further entries of the file's ``metadata_props``.

    Returns:
        ``path``.

    Raises:
        InputError: for a block that is not there or is named twice, a name in ``metadata`` that is
            taken, a front end for other than 96 bands, a network that one ONNX file cannot hold (of
            2 GiB or more, or with positions for one column only), another file at ``path``, and
            one that cannot be written.
        RuntimeError: if the exporter fails; nothing is written then.
    """
    import onnx  # here: it is slow to import, and the networks are used without it

    path = Path(path)
    blocks = list(chosen_blocks(blocks, model.depth))
    longest = model.time_new_pos_embed.shape[-1] * STRIDE + PATCH_SIZE - 1  # frames
    name, time, limit = "melspectrogram", "frames", longest
    if with_frontend:
        name, time, limit = "waveform", "samples", (longest - 1) * HOP_LENGTH
    properties = _properties(model, blocks, {f"max_{time}": str(limit)}, metadata or {})
    _check_fits(model, with_frontend)
    network = _ExportNetwork(_float32_copy(model), blocks, with_frontend).eval()
    if with_frontend:
        example = torch.zeros(2, limit, device="cpu")
    else:
        example = torch.zeros(2, model.input_f, limit, device="cpu")
    batch = torch.export.Dim("batch", min=1)
    shape = {0: batch, example.ndim - 1: torch.export.Dim(time, min=1, max=limit)}
    with own_files(path.parent, [path.name], _is_own(path)) as paths:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), _silence():
            proto = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=[name],
                output_names=["logits", *(_output_name(block) for block in blocks)],
                dynamic_shapes=(shape,),
            ).model_proto
        dimensions = [
            d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim
        ]
        if [dimensions[0], dimensions[-1]] != ["batch", time]:  # it can fix them and say nothing
            raise RuntimeError(f"torch.onnx.export made an input of fixed size {dimensions}")
        _strip(proto)
        _name_limit(proto, f"input_is_longer_than_{limit}_{time}")
        onnx.helper.set_model_props(proto, properties)
        proto.doc_string = _usage(model, name, time, limit)
        onnx.save(proto, paths[path.name], format="protobuf")  # whatever its suffix
        onnx.checker.check_model(paths[path.name], full_check=True)
    return path


def _is_own(path: Path) -> bool:
    """Whether a file is such an export: its metadata, which are at its end, have these names."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**22))
            end = file.read()
    except OSError:
        return False
    return all(name.encode() in end for name in ("hop_length", "norm_mean", "norm_std", "input_t"))


def _name_limit(proto, name: str) -> None:
    """Name the node that fails for an input that is too long: runtimes name it in their error."""
    columns = {out for node in proto.graph.node if node.op_type == "Conv" for out in node.output}
    for node in proto.graph.node:
        if node.op_type == "Add" and columns & set(node.input):
            node.name = name


def _usage(model: Maest, name: str, time: str, limit: int) -> str:
    """What the file says to people."""
    values = {
        "multi-label": "Their sigmoid is the activation of each label.",
        "single-label": "Their softmax is the probability of each label.",
        "regression": "They are the predicted values.",
    }[model.task]
    return (
        f"A MAEST network. Input: {name} [batch, {'' if time == 'samples' else 'bands, '}{time}], "
        f"of at most {limit} {time} (the model was trained on {clip_seconds(model.input_t):g} s): "
        f"cut longer tracks into patches and average what they give. logits: {values}"
    )


class _ExportNetwork(nn.Module):
    """One pass through a network, for all outputs at once; written so that all sizes stay free.

    Holds only what an exporter can follow: `Maest.forward` has one output at a time, checks the
    values of its input, and takes random decisions in training.
    """

    def __init__(self, net: Maest, blocks: Sequence[int], with_frontend: bool) -> None:
        super().__init__()
        self.net = net
        self.chosen = list(blocks)
        self.frontend = _MatrixMelSpectrogram(net) if with_frontend else None
        # The indices are constants of the graph. Buffers, or the exporter would not find them.
        self.register_buffer("kept_columns", net.kept_columns)
        self.register_buffer("kept_rows", net.kept_rows)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        net = self.net
        if self.frontend is not None:
            x = net.normalise(self.frontend(x))
        x = self._tokens(x)
        embeddings = {}
        for block, layer in enumerate(net.blocks):
            x = layer(x)
            if block in self.chosen:
                embeddings[block] = torch.stack((x[:, 0], x[:, 1], x[:, 2:].mean(dim=1)), dim=1)
        x = net.norm(x[:, :2])
        cls, dist = x[:, 0], x[:, 1]
        embeddings[-1] = (cls + dist) / 2
        if net.distilled_type == "mean":
            logits = net.unstandardize(net.head(embeddings[-1]))
        else:
            logits = net.unstandardize((net.head(cls) + net.head_dist(dist)) / 2)
        return logits, *(embeddings[block] for block in self.chosen)

    def _tokens(self, mel: Tensor) -> Tensor:
        """[B, F, T frames] → [B, N, D], as `Maest._tokens` does in eval mode."""
        net = self.net
        silence = -net.norm_mean / (2 * net.norm_std)
        mel = F.pad(mel, (0, torch.sym_max(PATCH_SIZE - mel.shape[-1], 0)), value=silence)
        x = net.patch_embed(mel[:, None])  # [B, D, F rows, T columns]
        columns = x.shape[-1]
        # An input that is too long has more columns than positions here: the sum fails.
        x = x + net.time_new_pos_embed[..., :columns] + net.freq_new_pos_embed
        if self.kept_columns is not None:
            there = self.kept_columns < columns
            # The first one is always asked for: an input without any column that is kept is an
            # error, as in the network, and no mean of nothing.
            there = there | (self.kept_columns == self.kept_columns[0])
            x = x[..., self.kept_columns[there]]
        if self.kept_rows is not None:
            x = x[:, :, self.kept_rows]
        x = x.flatten(2).transpose(1, 2)
        two = torch.cat((net.cls_token, net.dist_token), dim=1) + net.new_pos_embed
        return torch.cat((two.expand(x.shape[0], -1, -1), x), dim=1)


class _MatrixMelSpectrogram(nn.Module):
    """`helpers.melspectrogram.MelSpectrogram` without the FFT, which few runtimes have.

    Same padding, frames, window, filter bank and order of operations; the transform is a product
    with the matrix of cosines and sines. [B, samples] → [B, 96 bands, T frames], log-mel before
    normalisation, T = 1 + ceil(samples / 256).

    That product alone is float64. In float32 it loses more than an FFT does, where a band is quiet
    beside a loud tone. Measured on sines of full scale: the log-mel is off by 5e-5 with the product
    in float32, by 1e-5 with the network's own FFT, by 3e-7 with the product in float64. In a
    network of maest_base's size, its weights perturbed until embeddings reached 45, a sine of 1 kHz
    then differed by 3e-4 in the last block (float32) and by 4e-5 (float64), which is what the
    blocks alone differ by.
    """

    def __init__(self, net: Maest) -> None:
        super().__init__()
        self.register_buffer("window", net.frontend.window)
        self.register_buffer("filter_bank", net.frontend.filter_bank)
        sample = torch.arange(N_FFT, device="cpu")
        frequency = torch.arange(N_FFT // 2 + 1, device="cpu")
        # Whole turns are taken off as integers: the angles are exact to float64.
        angle = (sample[:, None] * frequency % N_FFT).double() * (2 * math.pi / N_FFT)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, waveform: Tensor) -> Tensor:
        samples = waveform.shape[-1]
        frames = 1 + (samples + HOP_LENGTH - 1) // HOP_LENGTH
        # Half a frame of silence before; after, up to half a frame after the last frame's centre.
        signal = F.pad(waveform, (HOP_LENGTH, frames * HOP_LENGTH - samples))
        # A frame is two hops: the frames are every hop and the one after it.
        hops = signal.reshape(-1, frames + 1, HOP_LENGTH)
        windowed = (torch.cat((hops[:, :-1], hops[:, 1:]), dim=-1) * self.window).double()
        power = (windowed @ self.cos).square() + (windowed @ self.sin).square()
        mel = power.float() @ self.filter_bank
        return torch.log10(1 + 10_000 * mel).transpose(-1, -2)


def _float32_copy(model: Maest) -> Maest:
    """The same network on the CPU in float32, in eval mode; the model itself is only read."""
    network = Maest.without_weights(**model.sizes())
    state = {
        name: value.detach().to("cpu", torch.float32) for name, value in model.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    network.patchout = copy.deepcopy(model.patchout)
    return network.eval()


def _output_name(block: int) -> str:
    return "embeddings_final" if block < 0 else f"embeddings_{block}"


def _check_fits(model: Maest, with_frontend: bool) -> None:
    """Raise InputError for what one ONNX file does not carry."""
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size >= _LARGEST:
        raise InputError(
            f"the weights are {size / 2**30:.1f} GiB in float32, and one ONNX file holds less than "
            "2 GiB",
            kind="unsupported",
            hint="Keep this model as a model folder, or export it with export.format=safetensors.",
            setting="format",
        )
    if model.time_new_pos_embed.shape[-1] == 1:
        # One position would be added to every column of an input that is too long.
        raise InputError(
            f"{model.input_t} frames are one patch column: ONNX cannot refuse a longer input then",
            kind="unsupported",
            hint="Export a model with an input_t of 20 or more.",
            setting="input_t",
        )
    if with_frontend and model.input_f != N_MELS:
        raise InputError(
            f"the model takes {model.input_f} bands, and the front end makes {N_MELS}",
            kind="conflict",
            hint="Export it without the front end.",
            setting="with_frontend",
        )


def _properties(
    model: Maest, blocks: list[int], limit: dict[str, str], metadata: Mapping[str, str]
) -> dict[str, str]:
    """What the file says about itself."""
    properties = {
        "sample_rate": str(SAMPLE_RATE),
        "hop_length": str(HOP_LENGTH),
        "n_mels": str(model.input_f),
        "norm_mean": repr(float(model.norm_mean)),
        "norm_std": repr(float(model.norm_std)),
        "input_t": str(model.input_t),
        "task": model.task,
        "blocks": json.dumps(blocks),
        **limit,
    }
    if taken := sorted({*properties, "labels"} & set(metadata)):
        raise InputError(
            f"the export writes {', '.join(taken)} itself",
            kind="conflict",
            hint="Give these other names.",
            setting="metadata",
        )
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InputError(
                f"{name!r}: {value!r} is no text", hint="ONNX holds text only.", setting="metadata"
            )
    if model.labels is not None:
        properties["labels"] = json.dumps(model.labels, ensure_ascii=False)
    return properties | dict(metadata)


def _strip(proto) -> None:
    """Take out what the exporter notes about each node: its source line, file paths included."""
    del proto.metadata_props[:]
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing from the exporter on the console: what matters it raises."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
