"""A tiny SoundFont 2 file: a looped wave for each preset."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

RATE, PERIOD, PERIODS = 44_100, 100, 40  # samples a second; samples in a period; periods
ROOT_KEY = 69  # MIDI pitch of the wave: 441 Hz, which is A4 but for 4 cents
KEY_RANGE, SAMPLE_ID, SAMPLE_MODES, INSTRUMENT = 43, 53, 54, 41  # generators


def write_soundfont(
    path: Path, programs: Mapping[int, int], keys: tuple[int, int] = (0, 127)
) -> Path:
    """Write presets of bank 0: program → harmonics of its wave, sounding in ``keys`` only."""
    waves, gap = [], np.zeros(46, "<i2")  # the format asks for silence after each sample
    for harmonics in programs.values():
        phase = 2 * np.pi * np.arange(PERIOD * PERIODS) / PERIOD
        wave = sum(np.sin(k * phase) / k for k in range(1, harmonics + 1))
        waves += [np.round(wave / np.abs(wave).max() * 20_000).astype("<i2"), gap]
    size = PERIOD * PERIODS

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
        "shdr": b"".join(
            struct.pack(
                "<20sIIIIIBbHH",
                *(b"wave", start, start + size, start + PERIOD, start + size - PERIOD),
                *(RATE, ROOT_KEY, 0, 0, 1),
            )
            for start in range(0, count * (size + len(gap)), size + len(gap))
        )
        + struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    lists = [
        (b"INFO", _chunk(b"ifil", struct.pack("<HH", 2, 1)) + _chunk(b"INAM", b"tiny\0\0")),
        (b"sdta", _chunk(b"smpl", np.concatenate(waves).tobytes())),
        (b"pdta", b"".join(_chunk(name.encode(), data) for name, data in tables.items())),
    ]
    body = b"".join(_chunk(b"LIST", name + data) for name, data in lists)
    path.write_bytes(_chunk(b"RIFF", b"sfbk" + body))
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
