"""Read the arrays of a TensorFlow checkpoint without TensorFlow, which takes 1.3 GB.

A checkpoint is a "tensor bundle". ``.index`` is a table of names in the format of LevelDB
(https://github.com/google/leveldb/blob/main/doc/table_format.md); its values are protocol buffers,
``BundleEntryProto`` of tensorflow/core/protobuf/tensor_bundle.proto. ``.data-00000-of-00001`` holds
the arrays, one after another.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last bytes of a table
_FOOTER = 48  # bytes
_FLOAT32 = 1  # of TensorFlow's types
# Fields of the messages, by number
_DTYPE, _SHAPE, _OFFSET, _SIZE, _DIM, _LENGTH = 1, 2, 4, 5, 2, 1


def read_tensor_bundle(prefix: str | Path) -> dict[str, np.ndarray]:
    """Read the float32 arrays of ``<prefix>.index`` and ``<prefix>.data-00000-of-00001``, by name.

    Arrays of other types are left out. The table must not be compressed, as TensorFlow's is not.
    InputError: a file is missing or damaged.
    """
    index, data = Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")
    try:
        table, values = index.read_bytes(), data.read_bytes()
    except OSError as error:
        raise _refusal(error.strerror or "cannot be read", error.filename) from None
    try:
        return dict(_arrays(table, values))
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as error:
        raise _refusal(f"no TensorFlow checkpoint ({error})", index) from None


def _refusal(message: str, path: str | Path) -> InputError:
    hint = "Install the package that the file belongs to again."
    return InputError(message, kind="corrupt", hint=hint, path=path)


def _arrays(table: bytes, values: bytes) -> Iterator[tuple[str, np.ndarray]]:
    if len(table) < _FOOTER or not table.endswith(_MAGIC):
        raise ValueError("the end of its index is missing")
    _, _, first, size = _varints(table[-_FOOTER:], 4)
    for _, place in _entries(table, first, size):
        for name, entry in _entries(table, *_varints(place, 2)):
            fields = dict(_fields(entry))
            if not name or fields[_DTYPE] != _FLOAT32:  # the name of the header is empty
                continue
            dims = (value for number, value in _fields(fields.get(_SHAPE, b"")) if number == _DIM)
            shape = tuple(dict(_fields(dim)).get(_LENGTH, 0) for dim in dims)
            offset, size = fields.get(_OFFSET, 0), fields.get(_SIZE, 0)  # zeros are not written
            if size != 4 * math.prod(shape) or offset + size > len(values):
                raise ValueError(f"the data of {name.decode()} are not whole")
            array = np.frombuffer(values, "<f4", math.prod(shape), offset)
            yield name.decode(), array.reshape(shape)


def _entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; a key repeats the start of the one before it."""
    (restarts,) = struct.unpack_from("<I", table, offset + size - 4)
    at, end, key = offset, offset + size - 4 * (1 + restarts), b""
    while at < end:
        shared, at = _varint(table, at)
        unshared, at = _varint(table, at)
        length, at = _varint(table, at)
        key = key[:shared] + table[at : at + unshared]
        at += unshared + length
        yield key, table[at - length : at]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value, an int or bytes, of the fields of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        yield number, message[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(data: bytes, count: int) -> list[int]:
    numbers, at = [], 0
    for _ in range(count):
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers
