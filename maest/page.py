"""One HTML file to hear and see tracks by their tags: `write_page`.

It needs no network and no other file than the music. Beside this module lie its parts: page.html,
page.css and page.js. What a track's picture takes stays as text until the track is opened.
"""

from __future__ import annotations

import base64
import html
import io
import json
import mimetypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from maest.helpers.files.atomic import atomic_path, refuse_others, valid_utf8, write_error

BYTES_A_TRACK = 30_000  # most bytes of a track in the page, without embedded audio
EMBEDDED_BYTES = 100_000_000  # most bytes of audio files that a page embeds

_PICTURE_COLUMNS = 1000
_QUALITIES = (75, 60, 45, 30, 15, 1)  # WebP's
_HEAT_ROWS = 12  # labels
_HEAT_COLUMNS = 200
_HERE = Path(__file__).resolve().parent
_MARK = '<meta name="generator" content="maest">'  # by which a page is known to be ours


@dataclass(frozen=True)
class PageTrack:
    """A track of a page: N windows, C labels."""

    path: Path
    title: str
    seconds: float
    tags: Sequence[tuple[str, float]]  # (label, value from 0 to 1), the best first
    mel: np.ndarray  # float16 [T, 96], not normalised; T ≥ 1
    times: np.ndarray  # float [N], the windows' centres in seconds, rising
    values: np.ndarray  # float [N, C], activations from 0 to 1
    labels: Sequence[str]  # of the C columns


@dataclass(frozen=True)
class PageSummary:
    """What a page holds: the number of its tracks, and how many of them carry their audio."""

    tracks: int
    embedded: int


def write_page(
    path: str | Path, tracks: Iterable[PageTrack], title: str, embed_audio: bool = False
) -> PageSummary:
    """Write the page, atomically, track by track as they come; return what it holds.

    Audio is linked, relative to the page. With ``embed_audio`` the page carries it, up to 100 MB in
    all; files that no longer fit are linked. InputError "exists": there is another file at
    ``path``, "access": it cannot be written. Both come before the first track is asked for.
    """
    path = Path(path)
    refuse_others(path, _MARK)
    before, after = _template(title)
    count, embedded, room = 0, 0, EMBEDDED_BYTES if embed_audio else 0
    try:
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(before)
            for track in tracks:
                audio = _audio(track.path, room)
                file.write(_track(track, path.parent, bool(audio)))
                if audio:
                    text = base64.b64encode(audio).decode()
                    file.write(f'<script type="text/plain">{text}</script>\n')
                room -= len(audio)
                count, embedded = count + 1, embedded + bool(audio)
            file.write(after)
    except OSError as error:
        raise write_error(path, error, "file") from error
    return PageSummary(count, embedded)


def _template(title: str) -> tuple[str, str]:
    """Return the page's text before and after its tracks."""
    page, style, script = (
        (_HERE / f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js")
    )
    page = page.replace("/* style */", style).replace("/* script */", script)
    page = page.replace("<!-- title -->", html.escape(valid_utf8(title)))
    before, _, after = page.partition("<!-- tracks -->\n")
    return before, after


def _audio(path: Path, room: int) -> bytes:
    """Return the content of an audio file, or b"" if it is larger than ``room`` or unreadable."""
    try:
        return path.read_bytes() if path.stat().st_size <= room else b""
    except OSError:
        return b""


def _track(track: PageTrack, folder: Path, embedded: bool) -> str:
    """Return a track's two elements: for the list, and for its picture once it is opened."""
    # Relative, as a browser resolves it: by the names, whatever links they are.
    relative = os.path.relpath(track.path, folder)
    shown: dict[str, Any] = {
        "title": track.title,
        "path": "/".join(part for part in relative.split(os.sep) if part != os.pardir),
        "seconds": round(track.seconds, 2),
        "tags": [(label, round(float(value), 3)) for label, value in track.tags],
        "link": quote(os.fsencode(relative)),  # and colons, or "a:b.mp3" would be of a scheme "a"
    }
    if embedded:
        shown["audio"] = mimetypes.guess_type(track.path.name)[0] or ""
    heat = _heat(track)
    first = _element("track", shown)
    room = BYTES_A_TRACK - len(first.encode()) - len(_element("picture", heat | {"mel": ""}))
    return first + _element("picture", heat | {"mel": _picture(track.mel, room)})


def _element(name: str, value: Any) -> str:
    """Return JSON in an element that browsers do not run; in ASCII, and without "<", to be safe."""
    text = json.dumps(_valid(value), separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" class="{name}">{text}</script>\n'


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return valid_utf8(value)
    if isinstance(value, dict):
        return {key: _valid(item) for key, item in value.items()}
    return [_valid(item) for item in value] if isinstance(value, list | tuple) else value


def _picture(mel: np.ndarray, room: int) -> str:
    """Return a grey WebP of a log-mel, low bands below, in at most ``room`` characters of base64.

    Black and white are the 1st and 99.8th percentiles. Without room even for the coarsest, "".
    """
    edges = np.linspace(0, len(mel), min(len(mel), _PICTURE_COLUMNS) + 1).astype(int)
    columns = [mel[a:b].mean(axis=0, dtype=np.float32) for a, b in pairwise(edges.tolist())]
    grey = np.stack(columns, axis=1)[::-1]  # [96, columns]
    low, high = np.percentile(grey, (1, 99.8))
    grey = np.clip((grey - low) / max(high - low, 0.5), 0, 1)  # silence stays black
    image = Image.fromarray((255 * grey + 0.5).astype(np.uint8))
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=6)
        text = base64.b64encode(file.getvalue()).decode()
        if len(text) <= room:
            return text
    return ""


def _heat(track: PageTrack) -> dict[str, Any]:
    """Return R labels over n ≤ 200 times: rows, times [n] and base64 of uint8 [R, n], 255 for 1.

    The rows are the track's tags, and the labels with the highest peaks.
    """
    values, times = np.asarray(track.values, np.float32), np.asarray(track.times, np.float64)
    columns = {label: column for column, label in enumerate(track.labels)}
    tagged = [columns[label] for label, _ in track.tags if label in columns]
    peaks = np.argsort(-values.max(axis=0, initial=0), kind="stable").tolist()
    rows = list(dict.fromkeys([*tagged, *peaks]))[:_HEAT_ROWS]
    groups = np.array_split(np.arange(len(times)), min(len(times), _HEAT_COLUMNS) or 1)
    heat = [values[group][:, rows].mean(axis=0) for group in groups if len(group)]
    bytes_ = (255 * np.clip(heat, 0, 1) + 0.5).astype(np.uint8).T.tobytes()
    return {
        "rows": [track.labels[row] for row in rows],
        "times": [round(float(times[group].mean()), 1) for group in groups if len(group)],
        "heat": base64.b64encode(bytes_).decode(),
    }
