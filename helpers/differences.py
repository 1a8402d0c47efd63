"""Differences of settings, in words."""

import json
import re
from collections.abc import Mapping
from typing import Any

_SHOWN = 60  # characters of a setting


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Describe each differing setting, at any depth: ``hop_seconds 30.0, now 15.0``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in {**old, **new}
            for line in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))
        ]
    if isinstance(old, list) and isinstance(new, list):
        # Only the first item that differs
        pairs = zip(old, new, strict=False)
        old, new = next((pair for pair in pairs if pair[0] != pair[1]), (old, new))
    return [] if old == new else [f"{name} {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if re.fullmatch(r"[0-9a-f]{32,}", text):
        return text[:12]
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
