"""Inference in 8 bits on the CPU: the Linear layers of the transformer blocks, by onnxruntime.

Weights are int8, with one scale an output channel; what goes into a layer is quantised as it comes,
with one scale a layer and patch (dynamic quantisation: there is nothing to calibrate). Patches are
computed one by one, which takes no longer: a scale shared by several, or a batched convolution's
last bits, would let a patch's result depend on the others. Attention, norms, GELU, sums, the patch
convolution and the heads stay float32.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.errors import InputError
from maest.models.blocks import is_standard, sharing_copy
from maest.models.maest import Maest, inference

# Bytes: what one graph holds of weights, in float32. A protobuf message ends at 2 GiB.
_LARGEST = 2**30
_OPSET = 20  # the first with Gelu; LayerNormalization came with 17


class Int8Encoder:
    """A network's embeddings and logits, with the Linear layers of its blocks in int8.

    Only the blocks that are needed are made. Where the last block is read for the cls and dist
    tokens alone (logits, or the final embedding), it stays float32, as little of it is computed.
    The network is used for all else: it must stay where it is and keep its weights; patchout, modes
    and its blocks are left as they are.

    Args:
        net: the network, float32, on the CPU.
        blocks: whose embeddings :meth:`encode` gives: numbers from 0, and -1 for the final one.
        logits: whether it gives logits.
        threads: of onnxruntime; None for as many as PyTorch uses. They sleep when idle, so that
            other processes can have the cores.

    Raises:
        InputError: without onnxruntime, and for a network that is not float32 on the CPU, or whose
            blocks have been changed.
    """

    def __init__(
        self, net: Maest, blocks: Sequence[int], logits: bool = False, threads: int | None = None
    ) -> None:
        try:
            import onnxruntime  # noqa: F401, here: networks are used without it
        except ImportError as error:
            raise InputError(
                "int8 needs onnxruntime, which is not installed",
                kind="dependency",
                hint="Install it: pip install onnxruntime",
                setting="quantize",
            ) from error
        self.blocks, self.logits = list(blocks), logits
        last = net.depth - 1
        to_the_end = logits or -1 in self.blocks
        count = net.depth if to_the_end else max(self.blocks) + 1
        if to_the_end and last not in self.blocks:
            count -= 1
        for name, parameter in net.named_parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                raise InputError(
                    f"{name} is {parameter.dtype} on {parameter.device}, and int8 is made of "
                    "float32 weights on the CPU",
                    kind="unsupported",
                    hint="Convert the network: net.float().cpu()",
                    setting="quantize",
                )
        for number, block in enumerate(net.blocks[:count]):
            if not is_standard(block):
                raise InputError(
                    f"a layer of block {number} was replaced, or has a hook: int8 cannot tell what "
                    "it computes",
                    kind="unsupported",
                    hint="Leave quantize out, or merge the layer into the original one.",
                    setting="quantize",
                )
        # The same network but for its blocks. A run of blocks of which only the last one is read
        # is one graph, which stands in the last one's place; the others pass on what they get.
        self._net = sharing_copy(net)
        blocks = list(net.blocks)
        runs = _runs(net, count, set(self.blocks))
        threads = threads or torch.get_num_threads()
        for first, end in runs:
            blocks[first : end - 1] = [nn.Identity() for _ in range(first, end - 1)]
            blocks[end - 1] = _Int8Blocks(net, first, end, threads, alone=len(runs) == 1)
        self._net.blocks = nn.ModuleList(blocks)

    def encode(self, mel: Tensor) -> tuple[Tensor | None, dict[int, Tensor]]:
        """Compute what was asked for.

        Args:
            mel: float [B, F, T], normalised log-mel spectrograms, each no longer than one patch;
                batch and length are free from call to call.

        Returns:
            ``(logits, embeddings)``, as `Maest.outputs` gives: logits float32 [B, C], or None; by
            block, float32 [B, 3, D] (cls token, dist token, mean of all others), and for block -1
            [B, D].

        Raises:
            TypeError, ValueError: as `Maest.outputs`.
        """
        # What is no batch is refused by the network.
        single = mel.split(1) if isinstance(mel, Tensor) and mel.ndim == 3 and len(mel) else [mel]
        with inference(self._net):
            found = [self._net.outputs(one, self.blocks, self.logits) for one in single]
        embeddings = {block: torch.cat([own[block] for _, own in found]) for block in found[0][1]}
        return torch.cat([own for own, _ in found]) if self.logits else None, embeddings


def similarity(a: Tensor, b: Tensor) -> float:
    """The lowest cosine similarity of the patches in ``a`` and ``b``, both [B, ...].

    All of a patch's values are one vector.
    """
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).min().item()


class _Int8Blocks(nn.Module):
    """Some blocks in a row: float32 [B, N, D] → [B, N, D]."""

    def __init__(self, net: Maest, first: int, end: int, threads: int, alone: bool) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        self.options = onnxruntime.RunOptions()
        if not alone:  # a session keeps the memory it has used once, and here there are several
            self.options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        with tempfile.TemporaryDirectory(prefix="maest-int8-") as folder:
            path = Path(folder) / "int8.onnx"
            _quantise(_graph(net, first, end), path)
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def forward(self, x: Tensor) -> Tensor:
        given = {"tokens": x.contiguous().numpy()}
        return torch.from_numpy(self.session.run(None, given, self.options)[0])


def _runs(net: Maest, count: int, wanted: set[int]) -> list[tuple[int, int]]:
    """The first ``count`` blocks as (first, end): a run ends where a block's output is read."""
    size = 4 * sum(parameter.numel() for parameter in net.blocks[0].parameters())
    runs, first = [], 0
    for block in range(count):
        full = (block + 2 - first) * size > _LARGEST
        if block in wanted or block == count - 1 or full:
            runs.append((first, block + 1))
            first = block + 1
    return runs


def _graph(net: Maest, first: int, end: int):
    """Blocks as an ONNX model, float32 tokens [B, N, D] → [B, N, D], B and N free.

    Written out node by node: PyTorch's exporter takes 10 s for it, and writes attention as products
    whose scores exist all at once. MultiHeadAttention is onnxruntime's own operator.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []

    def node(op: str, inputs: Sequence[str], outputs: int = 1, **attributes) -> list[str]:
        names = [f"{op}.{len(nodes)}.{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op, inputs, names, name=f"{op}.{len(nodes)}", **attributes))
        return names

    def constant(tensor: Tensor) -> str:
        name = f"weight.{len(weights)}"
        weights.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def linear(layer: nn.Linear, x: str) -> str:
        (product,) = node("MatMul", [x, constant(layer.weight.T)])
        return node("Add", [product, constant(layer.bias)])[0]

    def norm(layer: nn.LayerNorm, x: str) -> str:
        given = [x, constant(layer.weight), constant(layer.bias)]
        return node("LayerNormalization", given, axis=-1, epsilon=layer.eps)[0]

    x = "tokens"
    for block in net.blocks[first:end]:
        attention, mlp = block.attn, block.mlp
        qkv = linear(attention.qkv, norm(block.norm1, x))
        (mixed,) = node(
            "MultiHeadAttention",
            node("Split", [qkv], outputs=3, axis=-1, num_outputs=3),
            domain="com.microsoft",
            num_heads=attention.num_heads,
        )
        (x,) = node("Add", [x, linear(attention.proj, mixed)])
        (hidden,) = node("Gelu", [linear(mlp.fc1, norm(block.norm2, x))])
        (x,) = node("Add", [x, linear(mlp.fc2, hidden)])
    shape = ["batch", "tokens", net.embed_dim]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=min(onnx.IR_VERSION, 10))


def _quantise(model, path: Path) -> None:
    """Write ``model`` with its weights' products in int8."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(model)  # or it advises a step that these graphs do not need
    # Without VNNI, x86 CPUs add pairs of 8-bit products in 16 bits, which overflow: 7 bits then.
    x86 = platform.machine() in ("x86_64", "AMD64")
    quantize_dynamic(
        model,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=x86 and not torch.cpu._is_vnni_supported(),
        op_types_to_quantize=["MatMul"],
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
    )
