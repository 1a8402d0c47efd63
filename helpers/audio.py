"""Audio files: any format, rate and number of channels in; mono float32 at 16 kHz out.

soundfile (libsndfile) reads WAV, FLAC, Ogg, Opus, MP3, AIFF and their kin; PyAV (FFmpeg) reads the
others, such as AAC in M4A, and the sound of films. Channels are averaged, and soxr resamples ("HQ",
what librosa uses too): up to 7 kHz the log-mel bands are those of Essentia's loader to 2e-3.

A file goes through block by block: `stream_audio` hands these on, and holds as much of ten hours as
of ten minutes; `read_audio` puts them together, so that an hour is never in memory at its own rate.
Of its central part no more is decoded than that part, where the format allows.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from helpers.audio_blocks import (
    MARGIN,
    AudioError,
    Meter,
    Part,
    central,
    cut_central,
    cut_part,
    frames_at_a_time,
    joined,
    regrouped,
    resampled,
)
from helpers.audio_headers import mp3_without_length, ogg_chained, ogg_without_end, seconds_by_bytes
from helpers.mel_constants import SAMPLE_RATE

if TYPE_CHECKING:
    import av

# fmt: off
SOUNDFILE_SUFFIXES = frozenset({
    ".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2",
    ".mp1", ".mpa", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".sph", ".paf",
    ".8svx",
})
FFMPEG_SUFFIXES = frozenset({
    ".m4a", ".m4b", ".m4r", ".m4v", ".mp4", ".mov", ".3gp", ".3g2", ".aac", ".wma", ".wmv", ".asf",
    ".ape", ".wv", ".mka", ".mkv", ".webm", ".weba", ".ac3", ".eac3", ".dts", ".thd", ".tta",
    ".tak", ".shn", ".mpc", ".dsf", ".dff", ".amr", ".awb", ".spx", ".ra", ".rm", ".oma", ".avi",
    ".flv", ".ogv", ".ogx", ".mpg", ".mpeg",
})
# fmt: on
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES

_NO_LENGTH = 2**62  # frames, or more, of a file that does not tell: FLAC as it was streamed
# Both may be missing at the end: what encoders and taggers are at odds about.
_MISSING_SECONDS, _MISSING_SHARE = 0.5, 0.01
_LOUDEST = 16.0  # full scale is 1; a float mix may be above it, but not by 24 dB


def read_audio(path: str | Path, seconds: float | None = None) -> np.ndarray:
    """Read an audio file as mono at 16 kHz.

    Args:
        path: the file.
        seconds: length of the central part to read; None, or more than there is, for all of it.

    Returns:
        float32 [samples], at least one, in the file's own scale (-1 to 1 for integer formats).
        A part is what the whole has at its centre; in AAC (M4A, MP4) it begins up to 130 samples
        aside, because the container's length is not that of all that the decoder gives.

    Raises:
        AudioError: no such file, no permission, a folder, a format that nothing here reads, damage
            that the decoder reports, an end that is missing, no audio, too little for one sample
            at 16 kHz, NaN or infinite samples, or samples far above full scale.
    """
    return read_with_warnings(path, seconds)[0]


def read_with_warnings(
    path: str | Path, seconds: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """What `read_audio` returns, and the ``warnings`` of `AudioStream` about it."""
    if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
        raise ValueError(f"seconds: expected a positive length, found {seconds}")
    meter = Meter()
    samples = joined(_blocks(Path(path), meter, seconds))
    finite = np.isfinite(samples)
    if not finite.all():
        raise AudioError(f"{np.count_nonzero(~finite)} of {len(samples)} samples are NaN or inf")
    _refuse_loud(samples)
    return samples, meter.warnings(len(samples) / SAMPLE_RATE)


class AudioStream:
    """An audio file as blocks of mono at 16 kHz: see `stream_audio`.

    Attributes:
        warnings: why results of it may mean nothing (`helpers.audio_blocks.sound_warnings`):
            complete once the last block has been read.
    """

    def __init__(self, path: Path, seconds: float | None = None) -> None:
        self.warnings: list[str] = []
        self._blocks = self._read(path, seconds)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._blocks)

    def close(self) -> None:
        self._blocks.close()

    def _read(self, path: Path, seconds: float | None) -> Generator[np.ndarray]:
        meter, done = Meter(), 0
        # Closed here: the traceback of an error would keep a generator alive, and its file open.
        with closing(_blocks(path, meter, seconds)) as blocks:
            for block in blocks:
                finite = np.isfinite(block)
                if not finite.all():
                    second = (done + int(finite.argmin())) / SAMPLE_RATE
                    raise AudioError(f"NaN or infinite samples at about second {second:.1f}")
                _refuse_loud(block)
                yield block
                done += len(block)
        self.warnings += meter.warnings(done / SAMPLE_RATE)


def stream_audio(path: str | Path, seconds: float | None = None) -> AudioStream:
    """Read an audio file block by block, as mono at 16 kHz; memory does not grow with its length.

    The file is opened when the first block is asked for, and closed after the last, at an error, or
    by ``close()``.

    Args:
        path: the file.
        seconds: of the central part to read, which is one block; None for all.

    Returns:
        an iterator of float32 [samples], at least one sample and at most some 70,000 (4 s). Put
        together they are what ``read_audio(path)`` returns. After the last, its ``warnings`` say
        "silent", "channels cancel" or "0.1 s only" of a track that results can hardly mean much of.

    Raises:
        AudioError: as `read_audio` does, from the iterator, as soon as it is known: bytes that are
            missing at the end before the first block, where the header tells how many there are;
            damage, NaN or infinite samples when they are reached.
    """
    return AudioStream(Path(path), seconds)


def _refuse_loud(samples: np.ndarray) -> None:
    peak = max(samples.max(), -samples.min())
    if peak > _LOUDEST:
        raise AudioError(
            f"samples of up to {peak:.3g}, where full scale is 1: floats on the scale of 16-bit "
            "integers? Then divide by 32768 and write the file again"
        )


def _blocks(path: Path, meter: Meter, seconds: float | None = None) -> Generator[np.ndarray]:
    """All of a file block by block, or its central part as one; their values are not checked."""
    empty = True
    try:
        _look_at(path)
        for block in _decoded(path, meter, seconds):
            if len(block):
                empty = False
                yield block
    except OSError as error:
        raise AudioError(_reason(error)) from None
    if empty:
        raise AudioError("no audio in it (0 samples)")


def _look_at(path: Path) -> None:
    """Raise AudioError for what can be told without decoding."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise AudioError("it is a folder, not a file")
    if not stat.S_ISREG(mode):  # to open a pipe is to wait until somebody writes to it
        raise AudioError("it is a pipe, a socket or a device, not a file")
    with path.open("rb") as file:
        if ogg_without_end(file):
            raise AudioError("its end is missing: the last page of the Ogg stream is not there")


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ELOOP):
        return "no such file, or a link that leads nowhere"
    return error.strerror or str(error)


def _decoded(path: Path, meter: Meter, seconds: float | None) -> Iterator[np.ndarray]:
    why = ""
    if path.suffix.lower() not in FFMPEG_SUFFIXES:
        try:
            # A name need not be text: bytes go through as they are.
            file = soundfile.SoundFile(os.fsencode(path))
        except soundfile.LibsndfileError:
            why = "; nor can libsndfile"
        else:
            with file:
                # Of some MP3s and Oggs libsndfile would read a part only.
                doubt = {"MP3": mp3_without_length, "OGG": ogg_chained}.get(file.format)
                if file.frames < _NO_LENGTH and not (doubt and doubt(path)):
                    _refuse_missing_end(*seconds_by_bytes(path, file))
                    yield from _from_soundfile(file, meter, seconds)
                    return
    if not path.stat().st_size:
        raise AudioError("the file is empty (0 bytes)")
    try:
        import av
    except ImportError:
        raise AudioError(
            f"{path.suffix} needs PyAV, which is not installed: pip install av, or convert the "
            "file to FLAC"
        ) from None
    try:
        yield from _from_ffmpeg(path, meter, seconds)
    except av.FFmpegError as error:
        raise AudioError(f"FFmpeg cannot decode it ({error.strerror}){why}") from None


def _refuse_missing_end(found: float, promised: float) -> None:
    """Raise AudioError if too much is missing; both in seconds."""
    missing = promised - found
    if missing > _MISSING_SECONDS and missing > _MISSING_SHARE * promised:
        raise AudioError(
            f"its end is missing: {found:.1f} s of audio, where the file promises {promised:.1f} s"
        )


# ---- the two libraries ---------------------------------------------------------------------------


def _whole(
    blocks: Iterable[np.ndarray], promised: float | None, seconds: float | None
) -> Iterator[np.ndarray]:
    """All blocks at 16 kHz, or their centre as one; refused if they are less than was promised.

    ``promised`` is in seconds; None where the file does not tell.
    """
    if seconds is not None:
        yield cut_central(joined(_whole(blocks, promised, None)), seconds)
        return
    made = 0
    for block in blocks:
        made += len(block)
        yield block
    if promised is not None:
        _refuse_missing_end(made / SAMPLE_RATE, promised)


def _from_soundfile(
    file: soundfile.SoundFile, meter: Meter, seconds: float | None
) -> Iterator[np.ndarray]:
    rate = file.samplerate
    try:
        if seconds is not None and file.seekable() and file.frames > seconds * rate:
            part = central(file.frames, rate, seconds)
            file.seek(part.first)
            kept = cut_part(
                joined(resampled(_soundfile_blocks(file, meter, part.count), rate)), part
            )
            if kept is not None:
                yield kept
                return
            file.seek(0)  # shorter than it says: the centre is that of what is there
        yield from _whole(
            resampled(_soundfile_blocks(file, meter), rate), file.frames / rate, seconds
        )
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"damaged: libsndfile stopped decoding ({error.error_string.rstrip('.')})"
        ) from None


def _soundfile_blocks(
    file: soundfile.SoundFile, meter: Meter, count: int | None = None
) -> Iterator[np.ndarray]:
    """Mono blocks from where the file stands; ``count`` frames, or all there are."""
    size = frames_at_a_time(file.samplerate)
    buffer = np.empty((size, file.channels), np.float32)
    left = math.inf if count is None else count
    while left > 0:
        block = file.read(out=buffer[: int(min(size, left))])
        if not len(block):
            return
        left -= len(block)
        with np.errstate(all="ignore"):  # inf and NaN are refused later, in words
            mono = meter.mix(block)
        yield mono


def _from_ffmpeg(path: Path, meter: Meter, seconds: float | None) -> Iterator[np.ndarray]:
    import av

    with path.open("rb") as raw, av.open(raw, metadata_errors="replace") as container:
        if not container.streams.audio or not container.streams.audio[0].rate:
            raise AudioError(f"no audio in it (FFmpeg takes it for {container.format.name})")
        stream = container.streams.audio[0]
        rate = stream.rate

        def decoded(part: Part | None = None) -> Iterator[np.ndarray]:
            frames = _ffmpeg_blocks(container, stream, meter, part)
            return resampled(regrouped(frames, frames_at_a_time(rate)), rate)

        # Only some containers know where everything is; of others the length is a guess.
        indexed = "mp4" in container.format.name or "matroska" in container.format.name
        promised = float(stream.duration * stream.time_base) if stream.duration else None
        if seconds is not None and indexed and promised:
            frames = int(stream.duration * stream.time_base * rate)
            if frames > seconds * rate:
                part = central(frames, rate, seconds)
                before = max(0, part.first / rate - MARGIN)
                container.seek(int(before / stream.time_base), stream=stream)
                kept = cut_part(joined(decoded(part)), part)
                if kept is not None:
                    yield kept
                    return
                container.seek(0, stream=stream)
        yield from _whole(decoded(), promised if indexed else None, seconds)


def _ffmpeg_blocks(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    meter: Meter,
    part: Part | None = None,
) -> Iterator[np.ndarray]:
    """Mono blocks of all that comes, or of a part; nothing if it cannot be told where that is."""
    import av

    rate = stream.rate  # of the first frames; it follows the decoder
    converter = kind = None
    position = None  # of the next frame, at the stream's rate
    for packet in container.decode(stream):
        if position is None and part is not None:
            if packet.pts is None:
                return
            start = 0 if stream.start_time is None else stream.start_time
            position = round((packet.pts - start) * stream.time_base * rate)
            if position > part.first:
                return
        found = (packet.format.name, packet.layout.name, packet.sample_rate)
        if found != kind:  # at the start, and where pieces of another make are joined on
            converter, kind = av.AudioResampler(format="fltp", rate=rate), found
        for frame in converter.resample(packet):
            block = meter.mix(frame.to_ndarray().T)
            if part is None:
                yield block
                continue
            own = block[max(0, part.first - position) : part.first + part.count - position]
            position += len(block)
            if len(own):
                yield own
        if part is not None and position >= part.first + part.count:
            return
