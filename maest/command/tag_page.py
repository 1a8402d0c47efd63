"""The page of ``maest tag --page``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from maest.analysis import Tagged
from maest.command.common import count, tell
from maest.helpers.audio.packets import read_texts
from maest.page import PageTrack, write_page


def write_tag_page(
    path: Path, songs: Iterable[Tagged], labels: Sequence[str], embed_audio: bool
) -> None:
    """Write a page of songs as they come."""

    def tracks() -> Iterator[PageTrack]:
        for song in songs:
            result = song.result
            assert result is not None
            assert result.picture is not None
            assert result.patch_activations is not None
            yield PageTrack(
                song.path,
                _title(song.path),
                song.seconds,
                song.tags,
                result.picture.T,
                result.times[:, 1],
                result.patch_activations,
                labels,
            )

    done = write_page(path, tracks(), "Tags", embed_audio)
    embedded = f", {done.embedded} with its sound" if embed_audio else ""
    tell(f"{path}: {count(done.tracks, 'track')}{embedded}")


def _title(path: Path) -> str:
    """Return artist and title by the file's tags, or its name."""
    tags = read_texts(path)
    return " - ".join(tags[name] for name in ("artist", "title") if name in tags) or path.stem
