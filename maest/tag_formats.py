"""Open the tags of a music file, whatever its format, and hash its packets."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import av
from mutagen import MutagenError

from maest.helpers.audio.packets import opened, texts
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
        with opened(path) as container:
            name = container.format.name.split(",")[0]
            if name == "ogg":
                name += f" {container.streams[0].codec_context.name.removeprefix('lib')}"
            said = {name: [text] for name, text in texts(container).items()}
        if name not in _FORMATS:
            raise unsupported(f"tags of the format {name!r}")
        tags = _FORMATS[name](path)
        tags.carry(said)
        return tags
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
    with opened(path) as container:
        for packet in container.demux():
            digest.update(struct.pack("<IQ", packet.stream_index, packet.size))
            digest.update(bytes(packet) if packet.size else b"")
    return digest.digest()
