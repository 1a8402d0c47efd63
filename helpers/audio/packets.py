"""What a file sounds like, apart from its tags: a hash of its audio packets."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.container import InputContainer

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
    # Of a disk, errors raise again below.
    with suppress(av.FFmpegError, ValueError, OSError), opened(path) as container:
        return _packets(container)
    with Path(path).open("rb") as file:
        digest = hashlib.blake2b(b"file ", digest_size=_BYTES)
        while block := file.read(_READ):
            digest.update(block)
        return Packets(digest.digest())


def _packets(container: InputContainer) -> Packets:
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
    return Packets(digest.digest(), seconds, texts(container))


def read_texts(path: str | Path) -> dict[str, str]:
    """Return a file's tags as `Packets.tags`; none of a file that FFmpeg cannot read."""
    with suppress(av.FFmpegError, ValueError, OSError), opened(path) as container:
        return texts(container)
    return {}


@contextmanager
def opened(path: str | Path) -> Iterator[InputContainer]:
    """Open a file for FFmpeg, which opens no other for it."""
    options = {"protocol_whitelist": "none"}  # of a playlist: no files and no addresses
    with (
        Path(path).open("rb") as file,
        av.open(file, "r", metadata_errors="surrogateescape", options=options) as container,
    ):
        yield container


def texts(container: InputContainer) -> dict[str, str]:
    """Return an opened file's tags as `Packets.tags`; what is no UTF-8 is read as Latin-1."""
    # Ogg keeps tags in the stream, most other formats in the container, which comes first here.
    sources = [*(stream.metadata for stream in container.streams.audio[:1]), container.metadata]
    pairs = [(name, _text(text)) for source in sources for name, text in source.items()]
    return {name.lower(): text for name, text in pairs if text}


def _text(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    with suppress(UnicodeDecodeError):
        return raw.decode().strip()
    return raw.decode("latin-1").strip()
