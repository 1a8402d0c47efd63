"""MusiCNN in PyTorch: tags of every three seconds of music, to learn from (`models.teacher`).

J. Pons and X. Serra, "musicnn: Pre-trained convolutional neural networks for music audio tagging",
late-breaking demo, ISMIR 2019 (arXiv 1909.06654). The weights, trained on MagnaTagATune and on the
Million Song Dataset, are those of the Python package musicnn (ISC licence), read without its
TensorFlow. The network's layers have the sizes of these weights unless told otherwise.

Shapes: B windows, T frames, R rows (mel bands, or channels of the layer before), C tags.
"""

import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from maest.helpers.audio.constants import N_FFT, N_MELS
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import atomic_path
from maest.models.tensor_bundle import read_tensor_bundle

PACKAGE_VERSION = "0.1.0"
WINDOW_FRAMES = 187  # of an input: 2.992 s
_EPSILON = 1e-3  # of a batch norm of TensorFlow

# Tags, in the order of the outputs; spelt as the data sets spell them
_MTT = (
    "guitar, classical, slow, techno, strings, drums, electronic, rock, fast, piano, ambient, beat,"
    " violin, vocal, synth, female, indian, opera, male, singing, vocals, no vocals, harpsichord,"
    " loud, quiet, flute, woman, male vocal, no vocal, pop, soft, sitar, solo, man, classic, choir,"
    " voice, new age, dance, male voice, female vocal, beats, harp, cello, no voice, weird,"
    " country, metal, female voice, choral"
)
_MSD = (
    "rock, pop, alternative, indie, electronic, female vocalists, dance, 00s, alternative rock,"
    " jazz, beautiful, metal, chillout, male vocalists, classic rock, soul, indie rock, Mellow,"
    " electronica, 80s, folk, 90s, chill, instrumental, punk, oldies, blues, hard rock, ambient,"
    " acoustic, experimental, female vocalist, guitar, Hip-Hop, 70s, party, country,"
    " easy listening, sexy, catchy, funk, electro, heavy metal, Progressive rock, 60s, rnb,"
    " indie pop, sad, House, happy"
)
# Folder of the weights in the package → data set and tags
NETWORKS = {
    "MTT_musicnn": tuple(f"mtt/{tag}" for tag in _MTT.split(", ")),
    "MSD_musicnn": tuple(f"msd/{tag}" for tag in _MSD.split(", ")),
}


def log_mel(audio: np.ndarray) -> Tensor:
    """Map float32 [samples], mono at 16 kHz, to float32 [1 + samples // 256, 96].

    ``log10(1 + 10000 · mel power)``, where the power is that of `librosa.feature.melspectrogram`
    with ``pad_mode="reflect"`` (its default in 2019): frames of 512 samples, periodic Hann window.
    The package rounds the power to float16, in which loud music overflows to infinity and gets
    wrong tags; here it stays float32.
    """
    mel = MelSpectrogram()
    mel.window = torch.hann_window(N_FFT)
    signal = torch.from_numpy(np.pad(audio.astype(np.float32), N_FFT // 2, mode="reflect"))
    return mel.of_padded(signal).T.contiguous()


# ---- the network ---------------------------------------------------------------------------------


class _Layer(nn.Module):
    """A convolution at every offset of its ``rows``, ReLU, batch norm; the maximum over offsets.

    For inference: the maximum comes first, which is several times faster and the same number. Where
    the norm has a negative factor, it is the minimum: the maximum with the signs of the weights
    changed.
    """

    def __init__(self, rows: int, frames: int, channels: int) -> None:
        super().__init__()
        self.rows, self.frames = rows, frames
        # The rows as channels: faster than one channel and a large kernel.
        self.conv = nn.Conv2d(rows, channels, (frames, 1))
        self.norm = nn.BatchNorm1d(channels, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, R, T] to [B, channels, T]."""
        x = F.pad(x, ((self.frames - 1) // 2, self.frames // 2))
        offsets = x.unfold(1, self.rows, 1).permute(0, 3, 2, 1)  # [B, rows, T, offsets]
        offsets = offsets.contiguous(memory_format=torch.channels_last)
        sign = torch.where(self.norm.weight < 0, -1.0, 1.0)
        bias = self.conv.get_parameter("bias") * sign
        y = F.conv2d(offsets, self.conv.weight * sign[:, None, None, None], bias)
        y = F.max_pool2d(y, (1, y.shape[3]))[..., 0]  # fast in this layout, where amax is slow
        normed: Tensor = self.norm((y * sign[:, None]).relu_())
        return normed


class Musicnn(nn.Module):
    """The network: filters for timbre and for rhythm, three layers over time, pooling, two layers.

    ``timbral``, ``temporal``, ``middle`` and ``hidden`` are numbers of channels. Its modules are
    declared in the order in which TensorFlow numbers the weights (`load_weights`).
    """

    def __init__(
        self,
        n_classes: int = 50,
        timbral: int = 204,
        temporal: int = 51,
        middle: int = 64,
        hidden: int = 200,
    ) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, _EPSILON)
        tall = [_Layer(rows, 7, timbral) for rows in (int(0.4 * N_MELS), int(0.7 * N_MELS))]
        long = [_Layer(1, frames, temporal) for frames in (128, 64, 32)]
        front = 2 * timbral + 3 * temporal
        self.front = nn.ModuleList(tall + long)
        self.middle = nn.ModuleList(_Layer(rows, 7, middle) for rows in (front, middle, middle))
        pooled = 2 * (front + 3 * middle)
        self.pooled_norm = nn.BatchNorm1d(pooled, _EPSILON)
        self.hidden = nn.Linear(pooled, hidden)
        self.hidden_norm = nn.BatchNorm1d(hidden, _EPSILON)
        self.output = nn.Linear(hidden, n_classes)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Map log-mel windows [B, T, 96] to logits [B, C]."""
        x = self.input_norm(log_mel[:, None])[:, 0].mT
        x = torch.cat([layer(x) for layer in self.front], 1)
        features = [x, self.middle[0](x)]
        for layer in self.middle[1:]:
            features.append(layer(features[-1]) + features[-1])
        x = torch.cat(features, 1)
        x = torch.stack([x.amax(2), x.mean(2)], 2).flatten(1)
        x = self.hidden_norm(self.hidden(self.pooled_norm(x)).relu())
        logits: Tensor = self.output(x)
        return logits


# ---- the weights ---------------------------------------------------------------------------------

_Names = dict[str, tuple[str, tuple[int, ...]]]
_NORM: _Names = {
    "gamma": ("weight", (0,)),
    "beta": ("bias", (0,)),
    "moving_mean": ("running_mean", (0,)),
    "moving_variance": ("running_var", (0,)),
}
# TensorFlow's name of a layer; and of its arrays, with ours and the order of the axes
_LAYERS: dict[type[nn.Module], tuple[str, _Names]] = {
    nn.BatchNorm1d: ("batch_normalization", _NORM),
    nn.BatchNorm2d: ("batch_normalization", _NORM),
    nn.Conv2d: ("conv2d", {"kernel": ("weight", (3, 1, 0, 2)), "bias": ("bias", (0,))}),
    nn.Linear: ("dense", {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))}),
}


def load_weights(net: Musicnn, arrays: Mapping[str, np.ndarray]) -> Musicnn:
    """Copy TensorFlow's arrays (``conv2d_1/kernel`` …) into a network; return it, in eval mode.

    InputError: a name or shape differs. The optimiser's arrays are ignored.
    """
    numbers: Counter[str] = Counter()
    rest = {name for name in arrays if is_weight(name)}
    for module in net.modules():
        kind, names = _LAYERS.get(type(module), ("", {}))
        layer = f"{kind}_{numbers[kind]}" if numbers[kind] else kind
        numbers[kind] += 1
        for name, (attribute, axes) in names.items():
            key, target = f"{layer}/{name}", getattr(module, attribute).detach()
            try:
                target.copy_(torch.from_numpy(arrays[key].transpose(axes).copy()))
            except (KeyError, ValueError, RuntimeError):
                raise _mismatch(f"{key} is missing, or of another shape") from None
            rest.discard(key)
    if rest:
        raise _mismatch(f"no layer is named {min(rest)}")
    return net.eval()


def is_weight(name: str) -> bool:
    """Whether an array of a checkpoint is the network's, not the optimiser's."""
    return "/Adam" not in name and not name.endswith("_power")


def _mismatch(message: str) -> InputError:
    hint = f"Use the weights of musicnn {PACKAGE_VERSION}. {_by_hand()}"
    return InputError(f"not MusiCNN's weights: {message}", kind="mismatch", hint=hint)


def cached_weights() -> Path:
    """Return the file that keeps the weights once they are read, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / f"musicnn-{PACKAGE_VERSION}.safetensors"


def read_weights() -> dict[str, np.ndarray]:
    """Return both networks' arrays: ``MTT_musicnn/conv2d/kernel`` … → float32.

    They come from the cache, else from the installed package, and are cached then. InputError:
    neither is there, or it is damaged.
    """
    cache = cached_weights()
    if cache.is_file():
        try:
            return dict(load_file(cache))
        except (OSError, safetensors.SafetensorError) as error:
            hint = f"Remove it. {_by_hand()}"
            raise InputError(str(error), kind="corrupt", hint=hint, path=cache) from None
    spec = importlib.util.find_spec("musicnn")  # finds it without an import, which needs TensorFlow
    if spec is None or not spec.submodule_search_locations:
        message = "the weights of MusiCNN are not installed"
        raise InputError(message, kind="dependency", hint=_by_hand(), setting="teacher")
    folder = Path(spec.submodule_search_locations[0])
    arrays: dict[str, np.ndarray] = {}
    for network in NETWORKS:
        bundle = read_tensor_bundle(f"{folder / network}/")
        arrays |= {f"{network}/{name}": bundle[name] for name in bundle if is_weight(name)}
    with atomic_path(cache) as temporary:
        source = {"source": f"musicnn {PACKAGE_VERSION}, J. Pons and X. Serra", "licence": "ISC"}
        save_file(arrays, temporary, source)
    return arrays


def _by_hand() -> str:
    return (
        "Run: python -m pip install --no-deps -r requirements-teacher.txt (or: --no-deps "
        f"musicnn=={PACKAGE_VERSION}; it asks for TensorFlow, which is not needed)."
    )


def load_networks() -> dict[str, Musicnn]:
    """Return both networks, in eval mode, by the name of `NETWORKS`. InputError: `read_weights`."""
    arrays, networks = read_weights(), {}
    for network, labels in NETWORKS.items():
        start = f"{network}/"
        mine = {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}
        networks[network] = load_weights(Musicnn(len(labels)), mine)
    return networks
