"""The older names of a checkout's packages: `from models import get_maest` goes on working.

They are the same modules under two names, not copies: a class is one class, whichever way it is
imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

OLDER = ("config", "datasets", "helpers", "models")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``models.x`` as ``maest.models.x``, once `alias` has been called for ``models``."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages or "." not in fullname:
            return None
        if importlib.util.find_spec(f"maest.{fullname}") is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.spec = importlib.import_module(f"maest.{spec.name}").__spec__
        return sys.modules[f"maest.{spec.name}"]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has put the older name's there


_FINDER = _Finder()


def alias(package: str) -> None:
    """Make ``package`` the same as ``maest.<package>``, with all its modules, and warn."""
    warnings.warn(
        f"'{package}' is now 'maest.{package}': write 'from maest.{package} import …'",
        DeprecationWarning,
        stacklevel=3,
    )
    _FINDER.packages.add(package)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    sys.modules[package] = importlib.import_module(f"maest.{package}")
