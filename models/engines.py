"""How a pass of the network is computed: by PyTorch, or by onnxruntime in float32 or int8.

On x86 CPUs onnxruntime's float32 is faster than PyTorch's, and differs by rounding alone. int8 is
faster still: the blocks' weights are int8, with one scale per output channel, and layer inputs are
quantised dynamically (no calibration), with one scale per layer and patch. Attention, norms, GELU,
sums, patch convolution and heads stay float32.
"""

import copy
import logging
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.errors import InputError
from maest.helpers.names import check_choice
from maest.models.maest import Maest, Outputs

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

PRECISIONS = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_X86 = ("x86_64", "AMD64")
_COMPARED = 3750  # frames on which int8 is compared with float32: a minute


class Engine(Protocol):
    """Computes B patches [B, F, T]: normalised log-mels, no longer than the positions hold."""

    name: str  # for people
    device: torch.device  # where its outputs are
    # int8 only, after the first pass: output ("block 7", "logits") → lowest cosine similarity to
    # float32 of a patch
    similarity: dict[str, float] | None = None

    def __call__(self, mels: Tensor) -> Outputs: ...


def create(
    net: Maest,
    *,
    device: torch.device | str = "auto",
    engine: str = "auto",
    quantize: str | None = None,
    precision: str | None = None,
    blocks: Sequence[int] = (-1,),
    logits: bool = True,
    compile: bool = False,
) -> Engine:
    """Create the engine for some outputs of a network, whose weights must not change.

    ``device`` "auto": a GPU if there is one, but a CPU for onnxruntime. ``engine`` "auto":
    onnxruntime for float32 on x86 CPUs, if it can compute the network. ``quantize`` "int8":
    onnxruntime on a CPU. ``precision``: "32-true", or PyTorch's "16-mixed" (not on a CPU) or
    "bf16-mixed"; None: float16 on CUDA, else float32.

    InputError: options do not go together, or onnxruntime is asked for and cannot compute the
    network.
    """
    check_choice("engine", engine, ("auto", "pytorch", "onnxruntime"))
    check_choice("quantize", quantize, (None, "int8"))
    check_choice("precision", precision, (None, *PRECISIONS))
    by_onnx = quantize is not None or engine == "onnxruntime"
    device = torch.device(("cpu" if by_onnx else best_device()) if device == "auto" else device)
    precision = precision or ("16-mixed" if device.type == "cuda" else "32-true")
    plain = device.type == "cpu" and precision == "32-true"
    half = device.type == "cpu" and precision == "16-mixed"  # slower and less exact than float32
    if half or (by_onnx and (not plain or engine == "pytorch")):
        message = f"{quantize or engine}, {device.type} and {precision} do not go together"
        hint = "onnxruntime and int8 are for a CPU in 32-true; PyTorch has bf16-mixed there."
        setting = "quantize" if quantize else "engine" if by_onnx else "precision"
        raise InputError(message, kind="unsupported", hint=hint, setting=setting)
    x86 = platform.machine() in _X86 and sys.platform != "darwin"
    if by_onnx or (engine == "auto" and x86 and plain and not compile):
        try:
            return OnnxEngine(net, blocks, logits, quantize)
        except InputError as error:
            if by_onnx:
                raise
            log.info("PyTorch computes the network: %s", error)
    return TorchEngine(net, blocks, logits, device, precision, compile)


def best_device() -> str:
    """The best device here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class TorchEngine(Engine):
    """PyTorch, on any device, with any layers in the network."""

    def __init__(
        self,
        net: Maest,
        blocks: Sequence[int],
        logits: bool,
        device: torch.device,
        precision: str = "32-true",
        compile: bool = False,
    ) -> None:
        self.name, self.device = f"PyTorch, {precision}", device
        # The copy stays in eval mode, whatever `net` does. It shares weights that need not move.
        same = device == net.cls_token.device
        shared = {id(t): t for t in (*net.parameters(), *net.buffers())} if same else {}
        self._net = copy.deepcopy(net, shared).to(device).eval()
        if compile:
            self._net.compile_blocks()
        self._outputs, self._dtype = (tuple(blocks), logits), PRECISIONS[precision]

    @torch.no_grad()
    def __call__(self, mels: Tensor) -> Outputs:
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            return self._net.encode(mels.to(self.device), *self._outputs)


class OnnxEngine(Engine):
    """onnxruntime, in float32 or int8, on a CPU.

    It computes patch by patch: no slower, with less memory, and independently of other patches.
    Idle threads sleep, so that other processes can have the cores.
    """

    def __init__(
        self, net: Maest, blocks: Sequence[int], logits: bool, quantize: str | None
    ) -> None:
        from onnxruntime import InferenceSession, OrtValue, SessionOptions

        from maest.models import graph

        self.name, self.device = f"onnxruntime, {quantize or 'float32'}", torch.device("cpu")
        self._blocks, self._logits = tuple(blocks), logits
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        self._exact = None  # in float32, for one comparison with int8
        if quantize:
            self._exact = TorchEngine(net, blocks, logits, self.device)
            content = _in_int8(graph.build(net, blocks, logits, fused=True))
        else:  # weights outside the message take less time and memory
            weights: dict[str, np.ndarray] = {}
            model = graph.build(net, blocks, logits, fused=True, apart=weights)
            values = [OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
            content = model.SerializeToString()
        self._session = InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, mels: Tensor) -> Outputs:
        patches = mels.detach().cpu().float().numpy()[:, None]
        rows = [self._session.run(None, {"melspectrogram": one}) for one in patches]
        values = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*rows, strict=True)]
        logits = values.pop(0) if self._logits else None
        outputs = Outputs(logits, dict(zip(self._blocks, values, strict=True)))
        if self._exact is not None:
            exact = self._exact(mels[: max(1, _COMPARED // mels.shape[-1])])
            self._exact, self.similarity = None, _similarity(outputs, exact)
        return outputs


def _similarity(found: Outputs, exact: Outputs) -> dict[str, float]:
    """By output, the lowest cosine similarity of the patches that ``exact`` has, the first ones."""
    pairs = {f"block {b}": (found.embeddings[b], values) for b, values in exact.embeddings.items()}
    if found.logits is not None and exact.logits is not None:
        pairs["logits"] = found.logits, exact.logits
    similarity = {}
    for name, (a, b) in pairs.items():
        a, b = a[: len(b)].flatten(1).double(), b.flatten(1).double()
        similarity[name] = F.cosine_similarity(a, b).min().item()
    return similarity


def _in_int8(model: "onnx.ModelProto") -> bytes:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(model)  # or it advises a step that this graph does not need
    with tempfile.TemporaryDirectory(prefix="maest-int8-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=_adds_in_16_bits(),
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[n.name for n in model.graph.node if n.name.startswith("head")],
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )
        return path.read_bytes()


def _adds_in_16_bits() -> bool:
    """Whether sums of 8-bit products may overflow (x86 without VNNI): weights then get 7 bits."""
    if platform.machine() not in _X86:
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return True
