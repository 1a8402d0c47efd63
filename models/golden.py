"""A model's golden pair: what it gives for an input that anybody can make, to verify it elsewhere.

The input is a formula, without random numbers and files: x(t) is the sum over k = 0 … 7 of
0.1 sin(2π 55 2^k t) (1 + sin(π (k + 1) t)) / 2, t in seconds, at 16 kHz: the octaves of A, each
swelling at a pace of its own. ``golden.json`` in a model folder holds its length in frames and, for
the model and the average beside it, if any: the logits, and the embeddings of block 7 (or a
shallower network's last) and after the final norm, in float32.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maest.helpers.audio.constants import HOP_LENGTH, N_MELS, SAMPLE_RATE
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.blocks import FINAL, chosen_blocks
from maest.helpers.errors import InputError
from maest.models.maest import Maest, Outputs

GOLDEN_NAME = "golden.json"
MODEL, AVERAGE = "model", "average"  # keys of its pairs
_INPUT = "octaves-1"  # of the formula: another one gets another name
_LONGEST = 1875  # frames: 30 s
# The error that each way to compute may have: the distance from the golden output, as a share of
# its length. Measured on the shipped model: float32 3e-7, an ONNX file with the front end, whose
# log-mel is not rounded to 16 bits, 4e-5, bfloat16 2e-3, int8 5e-3. Deeper networks, and int8 of 7
# bits (`engines`), are less exact; other weights are off by about 1.
TOLERANCES = {"fp32": 1e-4, "ONNX": 1e-3, "half": 0.05, "int8": 0.2}


@dataclass(frozen=True)
class Check:
    """One way to compute the golden input, held against the model's golden output."""

    way: str  # of `TOLERANCES`
    detail: str  # what computed it; or why it cannot be computed here
    output: str = ""  # the one of the largest error; "" if it was not computed
    error: float = 0.0
    tolerance: float = 0.0

    @property
    def same(self) -> bool | None:
        """Whether all outputs are within the tolerance; None if they were not computed."""
        return self.error <= self.tolerance if self.output else None


def waveform(frames: int) -> np.ndarray:
    """Return the input of so many frames: float32 [samples]."""
    time = np.arange(max(1, (frames - 1) * HOP_LENGTH)) / SAMPLE_RATE
    octaves = np.stack(
        [
            np.sin(2 * np.pi * 55 * 2**k * time) * (1 + np.sin(np.pi * (k + 1) * time)) / 2
            for k in range(8)
        ]
    )
    return np.asarray(0.1 * octaves.sum(axis=0), np.float32)


@lru_cache(maxsize=2)
def _log_mel(frames: int) -> np.ndarray:
    return log_mel(waveform(frames))


def _input(net: Maest, frames: int) -> Tensor:
    mel = torch.from_numpy(_log_mel(frames)).float()
    return net.normalise(mel).T[None]


def _arrays(outputs: Outputs) -> dict[str, Tensor]:
    arrays = {} if outputs.logits is None else {"logits": outputs.logits}
    return arrays | {f"block {block}": values for block, values in outputs.embeddings.items()}


# ---- making it -----------------------------------------------------------------------------------


def golden_text(nets: Mapping[str, Maest], patchout: bool = False) -> str | None:
    """Return the content of ``golden.json`` for a model and its average (`MODEL`, `AVERAGE`).

    They are computed in float32, and without patchout, as a file of their weights is, unless
    ``patchout`` keeps what is always dropped. None: there is no such pair, as the model takes other
    inputs than the front end's, or its outputs are not finite.
    """
    frames = min(nets[MODEL].input_t, _LONGEST)
    ours = {key: net for key, net in nets.items() if net.input_f == N_MELS}
    pairs = {key: _pair(net, frames, patchout) for key, net in ours.items()}
    if pairs.keys() != nets.keys() or None in pairs.values():
        return None
    return json.dumps({"input": _INPUT, "frames": frames, "pairs": pairs}) + "\n"


def _pair(net: Maest, frames: int, patchout: bool) -> dict[str, Any] | None:
    clean = Maest.without_weights(**net.sizes())
    weights = {name: tensor.detach().cpu().float() for name, tensor in net.state_dict().items()}
    clean.load_state_dict(weights, assign=True)
    clean.patchout = copy.deepcopy(net.patchout) if patchout else clean.patchout
    blocks = (*chosen_blocks(None, clean.depth), FINAL)
    with torch.inference_mode():
        outputs = clean.eval().encode(_input(clean, frames), blocks)
    arrays = _arrays(outputs)
    if not all(values.isfinite().all() for values in arrays.values()):
        return None
    return {name: _rounded(values[0].tolist()) for name, values in arrays.items()}


def _rounded(values: Any) -> Any:
    return [_rounded(v) for v in values] if isinstance(values, list) else float(f"{values:.7g}")


# ---- comparing -----------------------------------------------------------------------------------


def verify(model: str | Path) -> list[Check]:
    """Compute a model's golden input in each way that is possible here, and compare.

    ``model`` is as for `get_maest`, or an ONNX file. The ways, which share the front end: PyTorch
    and onnxruntime in float32; int8; 16 bits (float16 on CUDA, else bfloat16). Of labels of one's
    own (`models.learned`), the base model is computed: the rest is one linear layer.

    InputError: there is no such model, or ("missing") it has no golden pair.
    """
    if Path(model).suffix == ".onnx":
        place = Path(model).expanduser()
        frames, expected = _read(place.parent / GOLDEN_NAME, MODEL, place)
        found = _onnx_outputs(place, frames)
        return [_compared("ONNX", f"onnxruntime, {place.name}", found, expected)]
    from maest.models import engines, get_maest
    from maest.models.download import fetch
    from maest.models.learned import is_learned, load_base, load_learned
    from maest.models.weights import load_checkpoint

    if is_learned(model):
        learned = load_learned(model)
        load_base(learned, model)  # whose weights must be those of then
        return verify(learned.base)
    is_path = "/" in str(model) or Path(model).expanduser().exists()
    checkpoint = load_checkpoint(model) if is_path else fetch(str(model))
    place = checkpoint.path
    folder = place if place.is_dir() else place.parent
    average = checkpoint.average or place.stem.endswith("-swa")
    frames, expected = _read(folder / GOLDEN_NAME, AVERAGE if average else MODEL, place)
    net = get_maest(checkpoint=checkpoint)
    cuda = torch.cuda.is_available()
    half = {"device": "cuda" if cuda else "cpu", "precision": f"{'' if cuda else 'bf'}16-mixed"}
    ways: dict[str, dict[str, Any]] = {
        "fp32": {"engine": "pytorch", "device": "cpu"},
        "ONNX": {"engine": "onnxruntime"},
        "int8": {"quantize": "int8"},
        "half": {"engine": "pytorch", **half},
    }
    blocks = [int(name.split()[1]) for name in expected if name.startswith("block ")]
    checks = []
    for way, options in ways.items():
        try:
            engine = engines.create(net, blocks=blocks, **options)
        except InputError as error:  # onnxruntime cannot compute the network
            checks.append(Check(way, f"not here: {error.reason}"))
            continue
        where = "" if engine.device.type in engine.name else f" on {engine.device.type}"
        arrays = _arrays(engine(_input(net, frames)))
        checks.append(_compared(way, engine.name + where, arrays, expected))
    return checks


def _read(path: Path, key: str, model: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Read the input's frames and the golden outputs, by name."""
    again = "Save or export the model again, with this version."
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["input"] != _INPUT:
            message = f"its input is {content['input']!r}, which this version does not have"
            raise InputError(message, kind="unsupported", path=path, hint=again)
        pair = content["pairs"][key]
        return int(content["frames"]), {name: np.array(pair[name], np.float64) for name in pair}
    except FileNotFoundError:
        message = f"no golden pair ({GOLDEN_NAME}) beside its weights: it cannot be verified"
        raise InputError(message, kind="missing", path=model, hint=again) from None
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"is damaged ({type(error).__name__}: {error})"
        raise InputError(message, kind="corrupt", path=path, hint=again) from None


def _onnx_outputs(path: Path, frames: int) -> dict[str, Tensor]:
    from onnxruntime import InferenceSession

    try:
        session = InferenceSession(path, providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        mean, std = float(about["norm_mean"]), float(about["norm_std"])
    except Exception as error:  # onnxruntime's own
        what = f"no ONNX file of this program ({type(error).__name__})"
        raise InputError(what, kind="corrupt", hint="Export it again.", path=path) from None
    name, given = session.get_inputs()[0].name, waveform(frames)
    if name == "melspectrogram":
        given = (_log_mel(frames).astype(np.float32).T - np.float32(mean)) / np.float32(2 * std)
    names = [one.name.replace("embeddings_", "block ") for one in session.get_outputs()]
    values = map(torch.from_numpy, session.run(None, {name: given[None]}))
    return {n.replace("final", str(FINAL)): v for n, v in zip(names, values, strict=True)}


def _compared(
    way: str, detail: str, found: Mapping[str, Tensor], expected: Mapping[str, np.ndarray]
) -> Check:
    """Compare outputs of one patch [1, …]."""
    errors = {}
    for name in found.keys() & expected.keys():
        one, other = found[name][0].double().cpu().numpy(), expected[name]
        apart = np.linalg.norm(one - other) if one.shape == other.shape else np.inf
        errors[name] = float(np.nan_to_num(apart / np.linalg.norm(other), nan=np.inf))
    worst = max(errors, key=lambda name: (errors[name], name))
    return Check(way, detail, worst, errors[worst], TOLERANCES[way])
