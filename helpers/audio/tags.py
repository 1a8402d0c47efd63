"""What an audio file says about itself: artist, album, title."""

from pathlib import Path

import av


def read_tags(path: str | Path) -> dict[str, str]:
    """Read a file's tags, names in lower case → text; {} if there are none or it cannot be read.

    Ogg keeps them in the stream, most other formats in the container, which comes first here.
    """
    try:
        options = {"protocol_whitelist": "none"}  # no playlist opens other files or addresses
        with (
            Path(path).open("rb") as file,
            av.open(file, metadata_errors="replace", options=options) as container,
        ):
            streams = [stream.metadata for stream in container.streams.audio]
            pairs = [pair for tags in (*streams, container.metadata) for pair in tags.items()]
    except (av.FFmpegError, OSError):
        return {}
    return {name.lower(): text.strip() for name, text in pairs if text.strip()}
