"""Sound through a lossy codec and back, in memory: what MP3, AAC and Opus leave of it."""

import io
from typing import Any, NamedTuple

import av
import numpy as np
import soxr

from maest.helpers.audio.blocks import Meter, joined
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.audio.decoding import decoded
from maest.helpers.errors import InputError


class Codec(NamedTuple):
    """An encoder of PyAV's FFmpeg, and the file format that notes its delay for the decoder."""

    encoder: str
    sample_format: str
    container: str
    rate: int  # Hz, as most music has it: an encoder's low-pass depends on it


CODECS = {
    "mp3": Codec("libmp3lame", "fltp", "mp3", 44_100),
    "aac": Codec("aac", "fltp", "mp4", 44_100),
    "opus": Codec("libopus", "flt", "ogg", 48_000),
}
BIT_RATES = (32_000, 48_000, 64_000, 96_000, 128_000)  # of mono sound, in all of them


def round_trip(audio: np.ndarray, codec: str, bit_rate: int) -> np.ndarray:
    """Encode and decode mono sound: float32 [samples] at 16 kHz → the same, aligned, as long.

    ``codec`` is a name in CODECS, ``bit_rate`` in bits a second of mono sound, for Opus a mean.
    Deterministic. 10 s take 0.3 s.
    """
    how, file = CODECS[codec], io.BytesIO()
    _encode(soxr.resample(audio, SAMPLE_RATE, how.rate), how, bit_rate, file)
    back = joined(decoded(file, Meter(), None))[: len(audio)]  # the last AAC frame is filled up
    return np.pad(back, (0, len(audio) - len(back)))


def coded(audio: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Send a share of all sounds through a codec at a bit rate, both drawn from ``rng``.

    Returns the sound, float32 [samples], and "mp3 64000" or, where it is as it was, nothing.
    """
    if rng.random() >= share:
        return audio, ""
    codec, bit_rate = str(rng.choice(sorted(CODECS))), int(rng.choice(BIT_RATES))
    return round_trip(audio, codec, bit_rate), f"{codec} {bit_rate}"


def check_codec_share(share: float) -> None:
    """Raise InputError unless it is a share."""
    if not 0 <= share <= 1:
        hint = "Give a share from 0 to 1."
        raise InputError(f"found {share}", setting="--codec-share", hint=hint)


def _encode(audio: np.ndarray, how: Codec, bit_rate: int, file: io.BytesIO) -> None:
    with av.open(file, "w", format=how.container) as container:
        stream: Any = container.add_stream(how.encoder, rate=how.rate)
        stream.format, stream.layout, stream.bit_rate = how.sample_format, "mono", bit_rate
        frame = av.AudioFrame.from_ndarray(audio[None], format=how.sample_format, layout="mono")
        frame.sample_rate, frame.pts = how.rate, 0  # the delay is noted as the time before 0
        for one in (frame, None):  # the last: what the encoder still holds
            container.mux(stream.encode(one))
