"""Audio files: any format, rate and number of channels in; mono float32 at 16 kHz out.

soundfile (libsndfile) reads WAV, FLAC, Ogg, Opus, MP3, AIFF and their kin; PyAV (FFmpeg) reads the
others, such as AAC in M4A, and the sound of films. Channels are averaged, and soxr resamples ("HQ",
what librosa uses too): up to 7 kHz the log-mel bands are those of Essentia's loader to 2e-3.

A file goes through block by block, so that an hour of it is never in memory at its own rate; and
of its central part no more is decoded than that part, where the format allows.
"""

from __future__ import annotations

import errno
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from helpers.errors import InputError
from helpers.melspectrogram import SAMPLE_RATE

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

_BLOCK = 65_536  # frames decoded at a time: they stay in the processor's cache
# Decoded on both sides of a part and dropped again: more than a resampler's filter is long, and
# than what a decoder of a compressed format needs to get into its stride.
_MARGIN = 0.25  # seconds
_LENGTH_TAGS = (b"Xing", b"Info")
_NO_LENGTH = 2**62  # frames, or more, of a file that does not tell: FLAC as it was streamed
_NO_SIZE = 0x7FFF_0000  # bytes, or more, that stand for "not known" in a WAV or AIFF
# Both may be missing at the end: what encoders and taggers are at odds about.
_MISSING_SECONDS, _MISSING_SHARE = 0.5, 0.01
_LOUDEST = 16.0  # full scale is 1; a float mix may be above it, but not by 24 dB


class AudioError(InputError):
    """An audio file that cannot be read; the message is the reason, without the file's name."""


class _Part(NamedTuple):
    """A stretch of a file, and what of it is kept after resampling.

    Attributes:
        first, count: frames to decode, at the file's own rate.
        skip, keep: samples at 16 kHz to drop from the start, and to keep after them.
    """

    first: int
    count: int
    skip: int
    keep: int


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
        AudioError: no such file, no permission, a format that nothing here reads, damage that the
            decoder reports, an end that is missing, no audio, NaN or infinite samples, or samples
            far above full scale.
    """
    path = Path(path)
    if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
        raise ValueError(f"seconds: expected a positive length, found {seconds}")
    try:
        with path.open("rb"):
            pass
        samples = _read(path, seconds)
    except OSError as error:
        raise AudioError(_reason(error)) from None
    if not len(samples):
        raise AudioError("no audio in it (0 samples)")
    finite = np.isfinite(samples)
    if not finite.all():
        raise AudioError(f"{np.count_nonzero(~finite)} of {len(samples)} samples are NaN or inf")
    peak = max(samples.max(), -samples.min())
    if peak > _LOUDEST:
        raise AudioError(
            f"samples of up to {peak:.3g}, where full scale is 1: floats on the scale of 16-bit "
            "integers? Then divide by 32768 and write the file again"
        )
    return samples


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ELOOP):
        return "no such file, or a link that leads nowhere"
    return error.strerror or str(error)


def _read(path: Path, seconds: float | None) -> np.ndarray:
    why = ""
    if path.suffix.lower() not in FFMPEG_SUFFIXES:
        try:
            # A name need not be text: bytes go through as they are.
            file = soundfile.SoundFile(os.fsencode(path))
        except soundfile.LibsndfileError:
            why = "; nor can libsndfile"
        else:
            with file:
                mp3 = file.format == "MP3"
                if file.frames < _NO_LENGTH and not (mp3 and _mp3_without_length(path)):
                    _refuse_missing_bytes(path, file)
                    return _read_soundfile(file, seconds)
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
        return _read_ffmpeg(path, seconds)
    except av.FFmpegError as error:
        raise AudioError(f"FFmpeg cannot decode it ({error.strerror}){why}") from None


# ---- how long a file says it is ------------------------------------------------------------------


def _refuse_missing_end(found: float, promised: float) -> None:
    """Raise AudioError if too much is missing; both in seconds."""
    missing = promised - found
    if missing > _MISSING_SECONDS and missing > _MISSING_SHARE * promised:
        raise AudioError(
            f"its end is missing: {found:.1f} s of audio, where the file promises {promised:.1f} s"
        )


def _refuse_missing_bytes(path: Path, file: soundfile.SoundFile) -> None:
    """The same by the bytes, for formats that say how many there are: nothing is decoded."""
    with path.open("rb") as raw:
        start = raw.read(12)
        if start[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
            promised, there = _chunk_bytes(raw, "<" if start[:4] in (b"RIFF", b"RF64") else ">")
            seconds = file.frames / file.samplerate  # of what is there
            known = promised < _NO_SIZE or start[:4] == b"RF64"
            if known and 0 < there < promised:
                _refuse_missing_end(seconds, seconds * promised / there)
        elif file.format == "MP3":
            promised, there = _xing_bytes(raw)
            seconds = file.frames / file.samplerate  # of what is promised
            if there < promised:
                _refuse_missing_end(seconds * there / promised, seconds)


def _mp3_without_length(path: Path) -> bool:
    """Whether an MP3 does not say how long it is.

    libsndfile goes by an estimate then, and would stop there; FFmpeg reads on to the end.
    """
    with path.open("rb") as file:
        start = _mp3_start(file)[1]
    return not any(tag in start for tag in _LENGTH_TAGS)


def _mp3_start(file: BinaryIO) -> tuple[int, bytes]:
    """Where an MP3's frames begin, behind its ID3 tag, and the first bytes of them."""
    file.seek(0)
    head, first = file.read(10), 0
    if len(head) == 10 and head.startswith(b"ID3"):
        first = 10 + sum((byte & 0x7F) << 7 * i for i, byte in enumerate(reversed(head[6:])))
    file.seek(first)
    return first, file.read(4096)


def _xing_bytes(file: BinaryIO) -> tuple[int, int]:
    """How many bytes of frames an MP3's Xing header promises (0: it does not), and there are."""
    first, start = _mp3_start(file)
    there = file.seek(0, os.SEEK_END) - first
    found = re.search(rb"(?:Xing|Info)\0\0\0([\x02\x03\x06\x07\x0a\x0b\x0e\x0f])", start)
    if not found:
        return 0, there
    at = found.end() + (4 if found[1][0] & 1 else 0)  # behind the number of frames
    return int.from_bytes(start[at : at + 4], "big"), there


def _chunk_bytes(file: BinaryIO, order: str) -> tuple[int, int]:
    """How many bytes of audio a WAV or AIFF promises (0: no such chunk), and there are."""
    end, long_size = file.seek(0, os.SEEK_END), 0
    at = 12
    while at + 8 <= end:
        file.seek(at)
        name, size = struct.unpack(f"{order}4sI", file.read(8))
        if name == b"ds64":  # RF64: the sizes that need 64 bits
            long_size = struct.unpack("<8xQ", file.read(16))[0]
        if name in (b"data", b"SSND"):
            return (long_size if size == 0xFFFF_FFFF and long_size else size), end - at - 8
        at += 8 + size + size % 2
    return 0, 0


# ---- a part of a file ----------------------------------------------------------------------------


def _resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz that soxr makes of so many frames: rounded to the nearest."""
    return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)


def _central(frames: int, rate: int, seconds: float) -> _Part:
    """The central part of a file, with its margins.

    It starts where both rates have a sample at the same moment, so that resampling the part gives
    the very samples that resampling the whole gives there.
    """
    divisor = math.gcd(rate, SAMPLE_RATE)
    step_in, step_out = rate // divisor, SAMPLE_RATE // divisor
    keep = round(seconds * SAMPLE_RATE)
    start = (_resampled_length(frames, rate) - keep) // 2
    margin = math.ceil(_MARGIN * rate)
    step = max(0, start // step_out - math.ceil(margin / step_in))
    first = step * step_in
    last = min(frames, math.ceil((start + keep) * rate / SAMPLE_RATE) + margin)
    return _Part(first, last - first, start - step * step_out, keep)


def _cut_central(samples: np.ndarray, seconds: float | None) -> np.ndarray:
    keep = len(samples) if seconds is None else round(seconds * SAMPLE_RATE)
    start = max(0, len(samples) - keep) // 2
    return samples[start : start + keep]


def _cut_part(samples: np.ndarray, part: _Part) -> np.ndarray | None:
    """What is kept of a decoded part; None if less came than the file's length promised."""
    kept = samples[part.skip : part.skip + part.keep]
    return kept if len(kept) == part.keep else None


def _mix(block: np.ndarray) -> np.ndarray:
    """[frames, channels] → [frames], the mean of the channels. (`mean` is 20 times slower.)"""
    if block.shape[1] == 1:
        return block[:, 0].copy()
    mono = block[:, 0] + block[:, 1]
    for channel in range(2, block.shape[1]):
        mono += block[:, channel]
    mono *= np.float32(1 / block.shape[1])
    return mono


def _resample(blocks: Iterable[np.ndarray], rate: int) -> np.ndarray:
    """Mono float32 blocks at some rate → one signal at 16 kHz."""
    if rate == SAMPLE_RATE:
        pieces = list(blocks)
    else:
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        pieces = [stream.resample_chunk(block) for block in blocks]
        pieces.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


# ---- the two libraries ---------------------------------------------------------------------------


def _read_soundfile(file: soundfile.SoundFile, seconds: float | None) -> np.ndarray:
    rate = file.samplerate
    try:
        if seconds is not None and file.seekable() and file.frames > seconds * rate:
            part = _central(file.frames, rate, seconds)
            file.seek(part.first)
            kept = _cut_part(_resample(_soundfile_blocks(file, part.count), rate), part)
            if kept is not None:
                return kept
            file.seek(0)  # shorter than it says: the centre is that of what is there
        samples = _resample(_soundfile_blocks(file), rate)
        _refuse_missing_end(len(samples) / SAMPLE_RATE, file.frames / rate)
        return _cut_central(samples, seconds)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"damaged: libsndfile stopped decoding ({error.error_string.rstrip('.')})"
        ) from None


def _soundfile_blocks(file: soundfile.SoundFile, count: int | None = None) -> Iterator[np.ndarray]:
    """Mono blocks from where the file stands; ``count`` frames, or all there are."""
    buffer = np.empty((_BLOCK, file.channels), np.float32)
    left = math.inf if count is None else count
    while left > 0:
        block = file.read(out=buffer[: int(min(_BLOCK, left))])
        if not len(block):
            return
        left -= len(block)
        yield _mix(block)


def _read_ffmpeg(path: Path, seconds: float | None) -> np.ndarray:
    import av

    with path.open("rb") as raw, av.open(raw, metadata_errors="replace") as container:
        if not container.streams.audio or not container.streams.audio[0].rate:
            raise AudioError(f"no audio in it (FFmpeg takes it for {container.format.name})")
        stream = container.streams.audio[0]
        rate = stream.rate
        # Only some containers know where everything is; of others the length is a guess.
        indexed = "mp4" in container.format.name or "matroska" in container.format.name
        if seconds is not None and indexed and stream.duration:
            frames = int(stream.duration * stream.time_base * rate)
            if frames > seconds * rate:
                part = _central(frames, rate, seconds)
                before = max(0, part.first / rate - _MARGIN)
                container.seek(int(before / stream.time_base), stream=stream)
                blocks = _ffmpeg_blocks(container, stream, part)
                kept = _cut_part(_resample(blocks, rate), part)
                if kept is not None:
                    return kept
                container.seek(0, stream=stream)
        samples = _resample(_ffmpeg_blocks(container, stream), rate)
        if indexed and stream.duration:
            promised = float(stream.duration * stream.time_base)
            _refuse_missing_end(len(samples) / SAMPLE_RATE, promised)
        return _cut_central(samples, seconds)


def _ffmpeg_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, part: _Part | None = None
) -> Iterator[np.ndarray]:
    """Mono blocks of all that comes, or of a part; nothing if it cannot be told where that is."""
    import av

    converter = av.AudioResampler(format="fltp", rate=stream.rate)
    position = None  # of the next frame, at the stream's rate
    for packet in container.decode(stream):
        if position is None and part is not None:
            if packet.pts is None:
                return
            start = 0 if stream.start_time is None else stream.start_time
            position = round((packet.pts - start) * stream.time_base * stream.rate)
            if position > part.first:
                return
        for frame in converter.resample(packet):
            block = _mix(frame.to_ndarray().T)
            if part is None:
                yield block
                continue
            own = block[max(0, part.first - position) : part.first + part.count - position]
            position += len(block)
            if len(own):
                yield own
        if part is not None and position >= part.first + part.count:
            return
