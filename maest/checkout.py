"""Keep the older names of a checkout's packages importable, as in `from models import get_maest`.

Both names give the same modules, not copies, so that a class is one class.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Modules that have moved since the older names were in use
_MOVED = {"helpers.audio": "helpers.audio.reading", "helpers.melspectrogram": "helpers.audio.mel"}


class _Finder(MetaPathFinder, Loader):
    """Finds ``models.x`` as ``maest.models.x``, once `alias` was called for ``models``."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(self, fullname: str, *place: Any) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        known = package in self.packages and module and find_spec(_new_name(fullname))
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_new_name(spec.name))
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has set the older name's spec


def _new_name(older: str) -> str:
    return f"maest.{_MOVED.get(older, older)}"


_FINDER = _Finder()


def alias(package: str) -> None:
    """Make ``package`` and all its modules the same as ``maest.<package>``, and warn."""
    warnings.warn(
        f"'{package}' is now 'maest.{package}': write 'from maest.{package} import …'",
        DeprecationWarning,
        stacklevel=3,
    )
    _FINDER.packages.add(package)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    sys.modules[package] = importlib.import_module(f"maest.{package}")
