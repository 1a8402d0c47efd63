"""The network in eval mode as an ONNX graph, node by node; batch B and length T are free."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from maest.helpers.audio.constants import HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE
from maest.helpers.audio.patches import PATCH_SIZE
from maest.helpers.blocks import chosen_blocks
from maest.helpers.errors import InputError
from maest.models.archs import clip_seconds
from maest.models.maest import Maest
from maest.models.saving import label_files, own_files
from maest.models.sizes import ACTIVATIONS, STRIDE

_OPSET = 20  # the first with Gelu; LayerNormalization came with 17
_END = 2**31 - 1
_SMALL = 4096  # bytes of a weight that is always in the model
_LARGEST = 2**31 - 2**24  # bytes of weights in a model, which is one protobuf message
_MARK = b"\x12\x05maest"  # the producer, near the start of our files


def export_onnx(
    path: Path,
    model: Maest,
    blocks: Sequence[int],
    with_frontend: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network as an ONNX file, and `label_files` beside it; replace older exports.

    Inputs and outputs are those of `build`. Fewer than 16 frames are padded with silence. The
    longest input is `longest_input`: the caller cuts tracks (`helpers.audio.patches.cut`).
    ``metadata_props`` hold ``metadata`` and the properties below. The file drops the columns and
    rows that patchout always drops. Weights are float32; NaN and infinite inputs are not refused.
    The front end needs a runtime with float64 products, as onnxruntime has on a CPU.

    InputError: no such block, a network that one ONNX file cannot hold, or as `own_files`.
    """
    blocks = list(chosen_blocks(blocks, model.depth))
    if model.time_new_pos_embed.shape[-1] == 1:
        # One position would be added to every column of an input that is too long.
        message = f"{model.input_t} frames are one patch column: ONNX cannot refuse longer inputs"
        hint = "Export a model with an input_t of 20 or more."
        raise InputError(message, kind="unsupported", hint=hint, setting="input_t")
    if with_frontend and model.input_f != N_MELS:
        message = f"the model takes {model.input_f} bands, and the front end makes {N_MELS}"
        hint = "Export it without the front end."
        raise InputError(message, kind="conflict", hint=hint, setting="with_frontend")
    name, length = ("waveform", "samples") if with_frontend else ("melspectrogram", "frames")
    limit = longest_input(model, with_frontend)
    properties = {
        "sample_rate": str(SAMPLE_RATE),
        "hop_length": str(HOP_LENGTH),
        "n_mels": str(model.input_f),
        "norm_mean": repr(float(model.norm_mean)),
        "norm_std": repr(float(model.norm_std)),
        "input_t": str(model.input_t),
        "task": model.task,
        "blocks": json.dumps(blocks),
        f"max_{length}": str(limit),
    }
    if model.labels is not None:
        properties["labels"] = json.dumps(model.labels, ensure_ascii=False)
    if model.thresholds is not None:
        properties["thresholds"] = json.dumps(model.thresholds)
    proto = build(model, blocks, True, waveform=with_frontend)
    helper.set_model_props(proto, dict(metadata or {}) | properties)
    proto.doc_string = (
        f"A MAEST network. Input: {name} [batch, {'' if with_frontend else 'bands, '}{length}], "
        f"of at most {limit} {length} (the model was trained on {clip_seconds(model.input_t):g} "
        "s): cut longer tracks into patches and average what they give. The activation function "
        f"of logits: {ACTIVATIONS[model.task]}."
    )
    with own_files(path, _MARK, [path.name], *label_files(model, patchout=True)) as paths:
        onnx.save(proto, paths[path.name], format="protobuf")  # whatever its suffix
        onnx.checker.check_model(paths[path.name], full_check=True)


def build(
    net: Maest,
    blocks: Sequence[int],
    logits: bool,
    *,
    waveform: bool = False,
    fused: bool = False,
    apart: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Build a network's inference as an ONNX model in float32.

    It takes ``melspectrogram`` [B, F, T], normalised, or ``waveform`` [B, samples] at 16 kHz.
    Inputs that exceed the positions fail at a node named ``input_is_longer_than_…``. Outputs are
    ``logits`` [B, C], if asked for, then those of ``blocks`` as in `Maest.encode`:
    ``embeddings_<block>`` [B, 3, D] or, for -1, ``embeddings_final`` [B, D].

    ``fused`` takes onnxruntime's attention, which never holds all scores at once. ``apart``
    receives the weights by name, as external data of the model. InputError: other layers than
    `Maest` has, or 2 GiB or more.
    """
    _check(net, apart is None)
    g = _Graph(net, apart)
    name, length = ("waveform", "samples") if waveform else ("melspectrogram", "frames")
    limit = f"input_is_longer_than_{longest_input(net, waveform)}_{length}"
    x = _tokens(g, net, _frontend(g, net, name) if waveform else name, limit)
    needs_final = logits or -1 in blocks
    outputs: dict[str, tuple[str, list[str | int | None]]] = {}
    for number in range(net.depth if needs_final else max(blocks) + 1):
        two = number == net.depth - 1 and number not in blocks  # only cls and dist are read
        x = _block(g, f"blocks.{number}", x, net.num_heads, fused, two)
        if number in blocks:
            mean = g.node("ReduceMean", g.slice(x, 2, _END, 1), [1], keepdims=1)
            embedding = g.node("Concat", g.slice(x, 0, 2, 1), mean, axis=1)
            outputs[f"embeddings_{number}"] = embedding, ["batch", 3, net.embed_dim]
    if needs_final:
        tokens = g.norm("norm", g.slice(x, 0, 2, 1))
        final = g.node("ReduceMean", tokens, [1], keepdims=0)
        outputs["embeddings_final"] = final, ["batch", net.embed_dim]
        outputs["logits"] = _logits(g, net, tokens, final), ["batch", net.n_classes]
    names = ["logits"] * logits
    names += ["embeddings_final" if b < 0 else f"embeddings_{b}" for b in blocks]
    g.nodes += [helper.make_node("Identity", [outputs[n][0]], [n]) for n in names]
    shape: list[str | int | None] = ["batch", *([] if waveform else [net.input_f]), length]
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    put_out = [helper.make_tensor_value_info(n, TensorProto.FLOAT, outputs[n][1]) for n in names]
    graph = helper.make_graph(g.nodes, "maest", [given], put_out, g.weights)
    opsets = [helper.make_opsetid("", _OPSET)]
    opsets += [helper.make_opsetid("com.microsoft", 1)] if fused else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="maest")


def longest_input(net: Maest, waveform: bool) -> int:
    """The longest input: 10 · (input_t // 10) + 15 frames, or samples of a waveform."""
    frames = net.time_new_pos_embed.shape[-1] * STRIDE + PATCH_SIZE - 1
    return (frames - 1) * HOP_LENGTH if waveform else frames


def _check(net: Maest, whole: bool) -> None:
    """Raise InputError for a network that the graph would not reproduce."""
    standard = Maest.without_weights(**net.sizes())
    types = {name: type(module) for name, module in standard.named_modules()}
    size, reason = 4 * sum(parameter.numel() for parameter in net.parameters()), ""
    if whole and size >= _LARGEST:
        reason = f"its weights are {size / 2**30:.1f} GiB in float32, of less than 2"
    for name, module in net.named_modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        if hooks or type(module) is not types.get(name):
            reason = f"its layer {name!r} was replaced, or has a hook"
    if reason:
        hint = "Merge an added layer into the original one; or use PyTorch, or safetensors."
        raise InputError(f"ONNX cannot hold the network: {reason}", kind="unsupported", hint=hint)


Value = str | Tensor | np.ndarray | float | list[int]  # a node's output, by its name; or a constant


class _Graph:
    """An ONNX graph under construction; each method returns its output's name."""

    def __init__(self, net: Maest, apart: dict[str, np.ndarray] | None) -> None:
        self.state, self.eps, self.apart = net.state_dict(), net.norm.eps, apart
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: Value, name: str = "", **options: Any) -> str:
        given = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        name = name or f"{op}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, given, [f"{name}.0"], name=name, **options))
        return f"{name}.0"

    def split(self, x: str, parts: int) -> list[str]:
        names = [f"Split.{len(self.nodes)}.{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, axis=-1, num_outputs=parts))
        return names

    def _constant(self, value: Tensor | np.ndarray | float | list[int]) -> str:
        """Add a constant: a tensor or number as float32, a list as int64, an array unchanged."""
        if isinstance(value, Tensor):
            value = value.detach().cpu().float().contiguous().numpy()
        kind = np.int64 if isinstance(value, list) else np.float32
        array = value if isinstance(value, np.ndarray) else np.array(value, kind)
        name = f"const.{len(self.weights)}"
        if self.apart is None or array.nbytes < _SMALL:
            weight = numpy_helper.from_array(array, name)
        else:
            self.apart[name] = array
            weight = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value="apart")
        self.weights.append(weight)
        return name

    def linear(self, layer: str, x: str, rows: slice = slice(None)) -> str:
        weight, bias = self.state[f"{layer}.weight"][rows], self.state[f"{layer}.bias"][rows]
        product = self.node("MatMul", x, weight.T, name=f"{layer}.{len(self.nodes)}")
        return self.node("Add", product, bias)

    def norm(self, layer: str, x: str, eps: float | None = None) -> str:
        weight, bias = self.state[f"{layer}.weight"], self.state[f"{layer}.bias"]
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps or self.eps)

    def slice(self, x: Value, start: int, end: int | str, axis: int) -> str:
        return self.node("Slice", x, [start], end if isinstance(end, str) else [end], [axis])


def _frontend(g: _Graph, net: Maest, waveform: str) -> str:
    """[B, samples] → normalised log-mel [B, F, T frames], T = 1 + ceil(samples / 256).

    Few runtimes have an FFT: a float64 product with cosines and sines replaces it. On sines of full
    scale the log-mel is off by 3e-7 (product in float32: 5e-5; FFT in float32: 1e-5).
    """
    samples = g.node("Shape", waveform, start=1, end=2)
    hops = g.node("Div", g.node("Add", samples, [HOP_LENGTH - 1]), [HOP_LENGTH])
    padded = g.node("Mul", g.node("Add", hops, [1]), [HOP_LENGTH])
    pads = g.node("Concat", [0, HOP_LENGTH, 0], g.node("Sub", padded, samples), axis=0)
    x = g.node("Reshape", g.node("Pad", waveform, pads), [0, -1, HOP_LENGTH])
    # A frame is two hops: the frames are every hop and the one after it.
    frames = g.node("Concat", g.slice(x, 0, -1, 1), g.slice(x, 1, _END, 1), axis=2)
    windowed = g.node("Cast", g.node("Mul", frames, net.frontend.window), to=TensorProto.DOUBLE)
    # Whole turns are taken off as integers: the angles are exact to float64.
    turns = torch.arange(N_FFT)[:, None] * torch.arange(N_FFT // 2 + 1) % N_FFT
    angles = turns.double() * (2 * math.pi / N_FFT)
    parts = [g.node("MatMul", windowed, f(angles).numpy()) for f in (torch.cos, torch.sin)]
    power = g.node("Add", *(g.node("Mul", part, part) for part in parts))
    power = g.node("Cast", power, to=TensorProto.FLOAT)
    mel = g.node("MatMul", power, net.frontend.filter_bank)
    log = g.node("Log", g.node("Add", 1, g.node("Mul", mel, 10_000)))
    x = g.node("Sub", g.node("Mul", log, 1 / math.log(10)), net.norm_mean)
    x = g.node("Div", x, 2 * net.norm_std)
    return g.node("Transpose", x, perm=[0, 2, 1])


def _tokens(g: _Graph, net: Maest, mel: str, limit: str) -> str:
    """[B, F, T frames] → [B, N, D]: cls, dist, then the patches that patchout leaves."""
    silence = -net.norm_mean / (2 * net.norm_std)
    missing = g.node("Sub", [PATCH_SIZE], g.node("Shape", mel, start=2, end=3))
    pads = g.node("Concat", [0, 0, 0, 0, 0], g.node("Max", missing, [0]), axis=0)
    x = g.node("Unsqueeze", g.node("Pad", mel, pads, silence), [1])
    proj = (g.state[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    x = g.node("Conv", x, *proj, strides=[STRIDE, STRIDE])
    columns = g.node("Shape", x, start=3, end=4)
    x = g.node("Add", x, g.slice(net.time_new_pos_embed, 0, columns, 3), name=limit)
    x = g.node("Add", x, net.freq_new_pos_embed)
    if net.patchout.kept_rows is not None:
        x = g.node("Gather", x, net.patchout.kept_rows.numpy(), axis=2)
    if net.patchout.kept_columns is not None:
        kept = net.patchout.kept_columns.numpy()
        # Always ask for the first: an input that has no kept column is an error.
        there = g.node("Or", g.node("Less", kept, columns), kept == kept[0])
        index = g.node("Compress", kept, there)
        x = g.node("Gather", x, index, name="patchout_leaves_no_column", axis=3)
    x = g.node("Transpose", g.node("Reshape", x, [0, 0, -1]), perm=[0, 2, 1])
    two = torch.cat((net.cls_token, net.dist_token), 1).float() + net.new_pos_embed.float()
    batch = g.node("Concat", g.node("Shape", x, start=0, end=1), [1, 1], axis=0)
    return g.node("Concat", g.node("Expand", two, batch), x, axis=1)


def _block(g: _Graph, name: str, x: str, heads: int, fused: bool, two: bool) -> str:
    """[B, N, D] → [B, N, D]; or [B, 2, D], the output for the first two tokens alone."""
    channels = g.state[f"{name}.attn.proj.bias"].numel()
    normed = g.norm(f"{name}.norm1", x)
    if two:
        x = g.slice(x, 0, 2, 1)
        q = g.linear(f"{name}.attn.qkv", g.slice(normed, 0, 2, 1), slice(0, channels))
        k, v = g.split(g.linear(f"{name}.attn.qkv", normed, slice(channels, None)), 2)
    else:
        q, k, v = g.split(g.linear(f"{name}.attn.qkv", normed), 3)
    scale = (channels // heads) ** -0.5
    if fused:
        options: dict[str, Any] = {"domain": "com.microsoft", "num_heads": heads, "scale": scale}
        mixed = g.node("MultiHeadAttention", q, k, v, **options)
    else:
        shape = [0, 0, heads, channels // heads]
        q, k, v = (g.node("Reshape", y, shape) for y in (q, k, v))
        q = g.node("Mul", g.node("Transpose", q, perm=[0, 2, 1, 3]), scale)
        scores = g.node("MatMul", q, g.node("Transpose", k, perm=[0, 2, 3, 1]))
        v = g.node("Transpose", v, perm=[0, 2, 1, 3])
        mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), v)
        mixed = g.node("Reshape", g.node("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, -1])
    x = g.node("Add", x, g.linear(f"{name}.attn.proj", mixed))
    hidden = g.node("Gelu", g.linear(f"{name}.mlp.fc1", g.norm(f"{name}.norm2", x)))
    return g.node("Add", x, g.linear(f"{name}.mlp.fc2", hidden))


def _logits(g: _Graph, net: Maest, tokens: str, final: str) -> str:
    """From the normed cls and dist tokens [B, 2, D] and their mean [B, D] → [B, C]."""
    if net.distilled_type == "mean":
        y = g.linear("head.1", g.norm("head.0", final, net.head_eps))
    else:
        cls, dist = (g.node("Gather", tokens, np.array(i), axis=1) for i in (0, 1))
        cls = g.linear("head.1", g.norm("head.0", cls, net.head_eps))
        y = g.node("Mul", g.node("Add", cls, g.linear("head_dist", dist)), 0.5)
    if net.target_std is None or net.target_mean is None:
        return y
    std, mean = torch.tensor(net.target_std), torch.tensor(net.target_mean)
    return g.node("Add", g.node("Mul", y, std), mean)
