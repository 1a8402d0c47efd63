"""What a file sounds like, apart from its tags: a hash of its audio packets."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import av

_BYTES = 16  # of a hash
_READ = 1 << 20  # bytes at a time


@dataclass(frozen=True)
class Packets:
    hash: bytes  # 16 bytes
    seconds: float = 0.0  # by the header or an estimate; 0 if unknown
    tags: dict[str, str] = field(default_factory=dict)  # names in lower case → text, not empty


def read_packets(path: str | Path) -> Packets:
    """Hash the packets of a file's first audio stream; read its length and tags on the way.

    Nothing is decoded. The hash stays when tags are written, or when the same packets move to
    another container (MP4 to Matroska, FLAC to Ogg). A file that FFmpeg cannot read to the end is
    hashed byte by byte.

    Raises OSError if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size:
            options = {"protocol_whitelist": "none"}  # no playlist opens other files or addresses
            with (
                suppress(av.FFmpegError, ValueError, OSError),  # a disk's raise again below
                av.open(file, "r", metadata_errors="replace", options=options) as container,
            ):
                return _packets(container)
        file.seek(0)
        digest = hashlib.blake2b(b"file ", digest_size=_BYTES)
        while block := file.read(_READ):
            digest.update(block)
        return Packets(digest.digest())


def _packets(container: av.container.InputContainer) -> Packets:
    """Raise ValueError for a file without audio."""
    streams = [stream for stream in container.streams.audio if stream.rate]
    if not streams:
        raise ValueError("no audio")
    stream = streams[0]
    what = stream.codec_context.codec.canonical_name
    if what.startswith("pcm"):  # only the header tells what these bytes sound like
        what += f" {stream.rate} {stream.codec_context.channels}"
    digest, size = hashlib.blake2b(f"{what} ".encode(), digest_size=_BYTES), 0
    for packet in container.demux(stream):
        digest.update(bytes(packet))
        size += packet.size
    if not size:
        raise ValueError("no packets")
    seconds = float((stream.duration or 0) * (stream.time_base or 0))
    seconds = seconds or (container.duration or 0) / 1e6
    return Packets(digest.digest(), seconds, _texts(container, stream))


def read_texts(path: str | Path) -> dict[str, str]:
    """Return a file's tags as `Packets.tags`; none of a file that FFmpeg cannot read."""
    options = {"protocol_whitelist": "none"}
    with (
        suppress(av.FFmpegError, ValueError, OSError),
        Path(path).open("rb") as file,
        av.open(file, "r", metadata_errors="replace", options=options) as container,
    ):
        return _texts(container, container.streams.audio[0]) if container.streams.audio else {}
    return {}


def _texts(container: av.container.InputContainer, stream: av.AudioStream) -> dict[str, str]:
    # Ogg keeps tags in the stream, most other formats in the container, which comes first here.
    pairs = [*stream.metadata.items(), *container.metadata.items()]
    return {name.lower(): text.strip() for name, text in pairs if text.strip()}
