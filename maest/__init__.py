"""MAEST, the Music Audio Efficient Spectrogram Transformer.

>>> from maest import get_maest
>>> model = get_maest("discogs-maest-30s-pw-129e")
>>> activations, labels = model.predict_labels(waveform)  # tensor or array, mono, 16 kHz
>>> for song in maest.tag("music"):  # a file or a folder; so does the command `maest tag music`
...     print(song.path, song.tags)

Names are imported on first use: `import maest` alone does not import PyTorch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maest.analysis import Analyser as Analyser
    from maest.analysis import embed as embed
    from maest.analysis import tag as tag
    from maest.helpers.audio.mel import MelSpectrogram as MelSpectrogram
    from maest.helpers.audio.reading import read_audio as read_audio
    from maest.helpers.errors import InputError as InputError
    from maest.helpers.results.tracks import TrackResult as TrackResult
    from maest.library import Library as Library
    from maest.models import get_maest as get_maest
    from maest.models import list_models as list_models
    from maest.models import save_model as save_model
    from maest.models.extraction import Extractor as Extractor
    from maest.models.maest import Maest as Maest

__version__ = "1.0.0"
_PUBLIC = {
    "Analyser": "analysis",
    "Extractor": "models.extraction",
    "InputError": "helpers.errors",
    "Library": "library",
    "Maest": "models.maest",
    "MelSpectrogram": "helpers.audio.mel",
    "TrackResult": "helpers.results.tracks",
    "embed": "analysis",
    "get_maest": "models",
    "list_models": "models",
    "read_audio": "helpers.audio.reading",
    "save_model": "models",
    "tag": "analysis",
}
__all__ = ["__version__", *_PUBLIC]

_HERE = Path(__file__).resolve().parent
if not (_HERE / "models").is_dir():  # a checkout: the subpackages are its top-level folders
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"maest.{_PUBLIC[name]}"), name)
