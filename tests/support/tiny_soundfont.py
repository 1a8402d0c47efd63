"""A tiny SoundFont, .sf2 or .sf3: a looped wave for each preset."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

RATE, PERIOD, PERIODS = 44_100, 100, 40  # samples a second; samples in a period; periods
ROOT_KEY = 69  # MIDI pitch of the wave: 441 Hz, which is A4 but for 4 cents
KEY_RANGE, SAMPLE_ID, SAMPLE_MODES, INSTRUMENT = 43, 53, 54, 41  # generators


def write_soundfont(
    path: Path, programs: Mapping[int, int], keys: tuple[int, int] = (0, 127)
) -> Path:
    """Write presets of bank 0: program → harmonics of its wave, sounding in ``keys`` only."""
    samples, headers = b"", b""
    version = struct.pack("<HH", 3 if path.suffix == ".sf3" else 2, 1)
    for harmonics in programs.values():
        phase = 2 * np.pi * np.arange(PERIOD * PERIODS) / PERIOD
        wave = sum(np.sin(k * phase) / k for k in range(1, harmonics + 1))
        wave = np.round(wave / np.abs(wave).max() * 20_000).astype("<i2")
        loop = np.array([PERIOD, len(wave) - PERIOD])
        if path.suffix == ".sf3":  # Ogg Vorbis: where it lies in bytes, its loop in samples
            file, kind, start = io.BytesIO(), 0x11, len(samples)
            soundfile.write(file, wave, RATE, format="OGG", subtype="VORBIS")
            samples += file.getvalue()
            end = len(samples)
        else:  # in samples; the format asks for silence after each
            kind, start = 1, len(samples) // 2
            end, loop = start + len(wave), loop + start
            samples += wave.tobytes() + bytes(2 * 46)
        fields = start, end, *loop.tolist(), RATE, ROOT_KEY, 0, 0, kind
        headers += struct.pack("<20sIIIIIBbHH", b"wave", *fields)

    presets = b"".join(
        struct.pack("<20sHHHIII", b"preset", program, 0, i, 0, 0, 0)
        for i, program in enumerate(programs)
    )
    count = len(programs)
    lo, hi = keys
    tables = {
        "phdr": presets + struct.pack("<20sHHHIII", b"EOP", 0, 0, count, 0, 0, 0),
        "pbag": b"".join(struct.pack("<HH", i, 0) for i in range(count + 1)),
        "pmod": bytes(10),
        "pgen": b"".join(struct.pack("<HH", INSTRUMENT, i) for i in range(count)) + bytes(4),
        "inst": b"".join(struct.pack("<20sH", b"wave", i) for i in range(count))
        + struct.pack("<20sH", b"EOI", count),
        "ibag": b"".join(struct.pack("<HH", 3 * i, 0) for i in range(count + 1)),
        "imod": bytes(10),
        "igen": b"".join(
            struct.pack("<HBBHHHH", KEY_RANGE, lo, hi, SAMPLE_MODES, 1, SAMPLE_ID, i)
            for i in range(count)
        )
        + bytes(4),
        "shdr": headers + struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    lists = [
        (
            b"INFO",
            _chunk(b"ifil", version) + _chunk(b"INAM", b"tiny\0\0"),
        ),
        (b"sdta", _chunk(b"smpl", samples)),
        (b"pdta", b"".join(_chunk(name.encode(), data) for name, data in tables.items())),
    ]
    body = b"".join(_chunk(b"LIST", name + data) for name, data in lists)
    path.write_bytes(_chunk(b"RIFF", b"sfbk" + body))
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
