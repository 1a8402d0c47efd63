"""Open the tags of a music file, whatever its format, and hash its packets."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from mutagen import MutagenError

from maest.helpers.errors import InputError, first_line
from maest.tag_entries import MEND, Tags, unsupported
from maest.tag_id3 import AiffTags, Mp3Tags, WaveTags
from maest.tag_mp4 import Mp4Tags
from maest.tag_vorbis import FlacTags, OggVorbisTags, OpusTags

_FORMATS: dict[str, type[Tags]] = {
    "mp3": Mp3Tags,
    "wav": WaveTags,
    "aiff": AiffTags,
    "flac": FlacTags,
    "mov": Mp4Tags,
    "ogg vorbis": OggVorbisTags,
    "ogg opus": OpusTags,
}


def open_tags(path: Path) -> Tags:
    """Read the tags of a music file.

    Raises InputError for a format that is not written ("unsupported"), a file that is damaged or
    none ("corrupt"), or that cannot be opened ("missing", "access").
    """
    try:
        with _opened(path) as container:
            name = container.format.name.split(",")[0]
            if name == "ogg":
                name += f" {container.streams[0].codec_context.name.removeprefix('lib')}"
        if name not in _FORMATS:
            raise unsupported(f"tags of the format {name!r}")
        return _FORMATS[name](path)
    except InputError as error:
        error.path = error.path or path
        raise
    except FileNotFoundError:
        raise InputError("no such file", kind="missing", hint=MEND, path=path) from None
    except PermissionError as error:
        hint = "Check that you may read it."
        raise InputError(first_line(error), kind="access", hint=hint, path=path) from None
    except (MutagenError, av.FFmpegError, EOFError, LookupError, ValueError, struct.error) as error:
        what = f"not a whole music file ({first_line(error)})"
        raise InputError(what, kind="corrupt", hint=MEND, path=path) from None


def packets_digest(path: Path) -> bytes:
    """Return a hash of all packets, of sound, pictures and chapters, by FFmpeg: bytes and order."""
    digest = hashlib.blake2b(digest_size=16)
    with _opened(path) as container:
        for packet in container.demux():
            digest.update(struct.pack("<IQ", packet.stream_index, packet.size))
            digest.update(bytes(packet) if packet.size else b"")
    return digest.digest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    options = {"protocol_whitelist": "none"}  # no playlist opens other files or addresses
    with (
        path.open("rb") as file,
        av.open(file, metadata_errors="replace", options=options) as container,
    ):
        yield container
