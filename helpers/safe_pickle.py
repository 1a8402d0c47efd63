"""Reading pickles of plain data without ever running code from them.

The usual way to read such a file, ``pickle.load``, runs whatever code the file asks for. Here a
pickle is data only. It passes three gates:

1. ``_check_opcodes`` walks over the file without executing it, and refuses what plain data never
   needs and every declared size that the file cannot hold (a ten-byte pickle can otherwise ask
   for 64 GB).
2. ``_Unpickler`` answers each global that the file names with an inert stand-in, or refuses it.
   No function of NumPy's, nor of anybody else's, ever receives arguments chosen by the file.
3. ``_Resolver`` turns the stand-ins into arrays, once they are complete and checked.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from helpers.errors import InputError

_NEXT_STEP = (
    "Only dicts, lists, tuples, strings, numbers and bool, integer or float NumPy arrays are let "
    "in, and nothing else in the file was run: if you trust it, re-save the file with plain lists "
    "or NumPy arrays"
)


class PickleError(InputError):
    """A pickle that is refused, or damaged; the message names the file and the reason."""


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 80, 80, 80


def short_repr(value: object) -> str:
    """``repr(value)``, of bounded length and depth."""
    return _REPR.repr(value)


def _plain(name: str) -> str:
    """A name from a pickle, safe to print: without quotes, control characters or great length."""
    return _REPR.repr(name)[1:-1]


# --- Gate 1: the opcodes ------------------------------------------------------------------------

# Opcodes of fixed length, which need no check of their own, in runs (millions of them: this is
# where the time goes). NEWOBJ, NEWOBJ_EX and OBJ are let through so that the unpickler, which
# then meets the class before them, can refuse it by its name.
_RUN = re.compile(
    rb"(?:(?:K.)+|[N\x88\x89(\])}ltd\x85\x86\x87aesu\x94Rb\x93\x81\x92o]+"
    rb"|[qh].|M.{2}|[Jj].{4}|G.{8})*+",
    re.DOTALL,
)
# Opcodes followed by a little-endian length and as many bytes: the width of the length.
_SIZED = {
    **dict.fromkeys([pickle.SHORT_BINSTRING, pickle.SHORT_BINBYTES, pickle.SHORT_BINUNICODE], 1),
    **dict.fromkeys([pickle.BINSTRING, pickle.BINBYTES, pickle.BINUNICODE, pickle.LONG4], 4),
    **dict.fromkeys([pickle.BINBYTES8, pickle.BINUNICODE8, pickle.BYTEARRAY8], 8),
    pickle.LONG1: 1,
}
# Opcodes followed by lines of text: how many.
_LINES = {
    **dict.fromkeys([pickle.INT, pickle.LONG, pickle.FLOAT, pickle.GET, pickle.PUT], 1),
    **dict.fromkeys([pickle.STRING, pickle.UNICODE], 1),
    **dict.fromkeys([pickle.GLOBAL, pickle.INST], 2),
}
_NUMBERS = frozenset([pickle.INT, pickle.LONG, pickle.FLOAT, pickle.GET, pickle.PUT])
_MAX_LONG_BYTES = 16
_MAX_NUMBER_CHARACTERS = 64
_OPCODE_NAMES = {info.code.encode("latin1"): info.name for info in pickletools.opcodes}


def _check_opcodes(data: bytes) -> None:
    """Refuse a pickle whose opcodes are not those of plain data, or do not fit into the file.

    What passes makes the unpickler allocate no more than a small multiple of the file's size:
    its C code would otherwise take declared sizes and memo indices at their word. (One thing
    is left to a hostile file, and it is no code: a dict key of several 100,000 nested tuples makes
    the interpreter itself overflow its stack and end, while it hashes the key.)

    Raises:
        PickleError: an opcode that plain data does not need.
        pickle.UnpicklingError: no pickle, or a damaged one.
    """

    def damage(found: str) -> pickle.UnpicklingError:
        return pickle.UnpicklingError(f"{found} at byte {start}")

    start, frame_end = 0, 0
    while True:
        # No opcode may cross the end of its frame: readers disagree on what that means.
        limit = frame_end if start < frame_end else len(data)
        start = _RUN.match(data, start, limit).end()
        if start == limit:
            if limit < len(data):
                continue
            raise damage("truncated: no STOP opcode")
        opcode = data[start : start + 1]
        name = _OPCODE_NAMES.get(opcode)
        body = start + 1
        if opcode == pickle.STOP:
            if body != len(data):
                extra = len(data) - body
                start = body
                raise damage(f"the pickle ends, and {extra} more bytes follow it")
            return
        if opcode == pickle.PROTO:
            end = body + 1
        elif opcode == pickle.FRAME:
            if start < frame_end:
                raise damage("a frame inside a frame")
            end = body + 8
            frame_end = end + int.from_bytes(data[body:end], "little")
            limit = len(data)
            if frame_end > limit:
                raise damage("truncated: a frame that is longer than the file")
        elif opcode == pickle.LONG_BINPUT:
            end = body + 4
            _check_memo_index(int.from_bytes(data[body:end], "little"), data, damage)
        elif opcode in _SIZED:
            width = _SIZED[opcode]
            size = int.from_bytes(data[body : body + width], "little")
            end = body + width + size
            if opcode in (pickle.LONG1, pickle.LONG4) and size > _MAX_LONG_BYTES:
                raise damage(f"a number of {size} bytes")
        elif opcode in _LINES:
            end = body
            for _ in range(_LINES[opcode]):
                end = data.find(b"\n", end, limit) + 1 or limit + 1
            if opcode in _NUMBERS and end - body > _MAX_NUMBER_CHARACTERS:
                raise damage(f"a number of {end - body} characters")
            if opcode == pickle.PUT:
                index = data[body : end - 1]
                _check_memo_index(int(index) if index.isdigit() else -1, data, damage)
        elif name is not None and opcode not in b"KqhMJjG":
            raise PickleError(f"refused pickle opcode {name} at byte {start}")
        elif name is not None:
            end = limit + 1
        else:
            raise damage(f"unknown opcode {opcode!r}")
        if end > limit:
            raise damage(f"truncated: opcode {name} needs {end - limit} more bytes")
        start = end


def _check_memo_index(index: int, data: bytes, damage: Callable[[str], Exception]) -> None:
    """Refuse a memo index beyond the file's size: the unpickler's memo is an array that grows."""
    if not 0 <= index <= len(data):
        raise damage(f"a memo index out of range ({index})")


# --- Gate 2: the stand-ins ----------------------------------------------------------------------

_DTYPES = frozenset(
    ["b1", *(kind + size for kind in "iu" for size in "1248"), *("f" + size for size in "248")]
)
_MAX_DIMENSIONS = 32


class _StandIn:
    """An object that a pickle may hold and pass on, and that does nothing.

    The unpickler can do four things to an object on its stack: call it (REDUCE, OBJ, INST), set
    its state (BUILD), and append to it or set its items (APPENDS, SETITEMS). A stand-in has no
    ``__dict__``, answers BUILD itself, and offers no method for the others. Having no hash, it
    cannot be hidden in a dict key.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __setstate__(self, state: object) -> None:
        raise PickleError(f"the file sets the state of {self!r}, which has none")

    def __repr__(self) -> str:
        raise NotImplementedError  # each says in words what it stands for


class _Constructor(_StandIn):
    """Stands for a function or class of NumPy's: called, it makes a stand-in of the result."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., object] | None = None) -> None:
        self._name = name
        self._make = make

    def __call__(self, *args: object) -> object:
        if self._make is None:
            raise PickleError(f"the file calls {self._name}")
        return self._make(*args)

    def __repr__(self) -> str:
        return self._name


class _DType(_StandIn):
    """Stands for a ``numpy.dtype`` of kind bool, integer or float."""

    __slots__ = ("_built", "dtype")

    def __init__(self, spec: object) -> None:
        if not isinstance(spec, str) or spec not in _DTYPES:
            raise PickleError(
                f"NumPy dtype {short_repr(spec)} is refused (bool, integers and floats only)"
            )
        self.dtype = np.dtype(spec)
        self._built = False

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, ("<" | ">" | "|" | "=") as order, None, None, None, -1, -1, 0):
                if not self._built:
                    self.dtype = self.dtype.newbyteorder(order)
                    self._built = True
                    return
        raise PickleError(f"unexpected state of {self!r}: {short_repr(state)}")

    def __repr__(self) -> str:
        return f"NumPy dtype {self.dtype.str!r}"


class _Latin1(_StandIn):
    """Stands for bytes that protocols 0 to 2 write as text; encoded later, once per text."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "bytes"


class _Array(_StandIn):
    """Stands for an array: dtype, shape, order and raw bytes, checked against each other."""

    __slots__ = ("dtype", "order", "raw", "shape")

    def __init__(self) -> None:
        self.dtype: np.dtype | None = None  # None until its parts have come

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, tuple() as shape, _DType() as dtype, (True | False) as fortran, raw):
                self.fill(raw, dtype, shape, "F" if fortran else "C")
            case _:
                raise PickleError(f"unexpected state of a NumPy array: {short_repr(state)}")

    def fill(self, raw: object, dtype: _DType, shape: tuple, order: str) -> _Array:
        """Take the parts in. Raises PickleError if they do not fit, or if it has them."""
        if self.dtype is not None:
            raise PickleError("the file sets the state of one NumPy array twice")
        if isinstance(raw, _Latin1):
            raw = raw.text
        if not isinstance(raw, bytes | bytearray | str):
            raise PickleError(f"a NumPy array made of {short_repr(raw)} instead of raw bytes")
        if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise PickleError(f"a NumPy array of impossible shape {short_repr(shape)}")
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise PickleError(
                f"a NumPy array of shape {short_repr(shape)} and dtype {dtype.dtype} "
                f"with {len(raw)} bytes of data"
            )
        self.dtype, self.shape, self.order, self.raw = dtype.dtype, shape, order, raw
        return self

    def __repr__(self) -> str:
        return "an unfinished NumPy array" if self.dtype is None else "a NumPy array"


def _reconstruct(kind: object, shape: object = (), typecode: object = "") -> _Array:
    """``_reconstruct(ndarray, (0,), b"b")``: an empty array, whose state follows (BUILD)."""
    if kind is not _NDARRAY:
        raise PickleError(f"a NumPy array of class {short_repr(kind)} instead of numpy.ndarray")
    return _Array()


def _dtype(spec: object, align: object = False, copy: object = True) -> _DType:
    """``dtype("b1", False, True)``; its byte order follows (BUILD)."""
    return _DType(spec)


def _scalar(dtype: object, raw: object) -> bool | int | float:
    """``scalar(dtype, b"\\x01")``: a NumPy number, given as a Python one."""
    if isinstance(raw, _Latin1):
        raw = raw.text
    if isinstance(raw, str) and len(raw) <= 8:  # Python 2 wrote bytes as strings
        raw = raw.encode("latin1")
    if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
        raise PickleError(f"a NumPy number made of {short_repr(dtype)} and {short_repr(raw)}")
    if len(raw) != dtype.dtype.itemsize:
        raise PickleError(f"a NumPy number of dtype {dtype.dtype} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype.dtype).item()


def _frombuffer(raw: object, dtype: object, shape: object, order: object, *axes: object) -> _Array:
    """``_frombuffer(data, dtype, shape, "C")``: a whole array (protocol 5)."""
    if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise PickleError(f"a NumPy array of dtype {short_repr(dtype)}, shape {short_repr(shape)}")
    if order not in ("C", "F") or axes not in ((), (None,)):
        raise PickleError(f"a NumPy array in order {short_repr(order)} instead of 'C' or 'F'")
    return _Array().fill(raw, dtype, shape, order)


def _encode(text: object, encoding: object = None) -> _Latin1:
    """``_codecs.encode("...", "latin1")``: bytes, as protocols 0 to 2 write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleError(f"_codecs.encode with encoding {short_repr(encoding)}, not 'latin1'")
    return _Latin1(text)


_NDARRAY = _Constructor("numpy.ndarray")
_ALLOWED: dict[tuple[str, str], _Constructor] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Constructor("numpy.dtype", _dtype),
    ("_codecs", "encode"): _Constructor("_codecs.encode", _encode),
} | {
    (f"numpy.{core}.{module}", name): _Constructor(f"numpy.{core}.{module}.{name}", make)
    for core in ("core", "_core")  # NumPy 1.x, NumPy 2.x
    for module, name, make in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _frombuffer),
    )
}


class _Unpickler(pickle.Unpickler):
    """Knows the globals of ``_ALLOWED`` and no other; imports nothing."""

    def find_class(self, module: str, name: str) -> _Constructor:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise PickleError(f"refused global {_plain(module)}.{_plain(name)}") from None


# --- Gate 3: the arrays -------------------------------------------------------------------------

_SCALARS = frozenset([bool, int, float, str, bytes, bytearray, type(None)])
_MAX_DEPTH = 50


class _Resolver:
    """Replaces the stand-ins in what was unpickled. An object met twice is resolved once."""

    def __init__(self) -> None:
        self._done: dict[int, object] = {}
        self._kept: list[object] = []  # alive, so that no id is given out again
        self._encoded: dict[str, bytes] = {}

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """``value`` with arrays for stand-ins; dicts and lists are changed in place.

        Raises:
            PickleError: a stand-in that is no array, or nesting that is too deep.
        """
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind in (list, tuple) and _SCALARS.issuperset(map(type, value)):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if depth > _MAX_DEPTH:
            raise PickleError(f"containers nested more than {_MAX_DEPTH} deep")
        self._kept.append(value)
        if kind is tuple:
            result: Any = tuple([self.resolve(item, depth + 1) for item in value])
            self._done[id(value)] = result
        elif kind in (list, dict):
            self._done[id(value)] = result = value
            for key, item in value.items() if kind is dict else enumerate(value):
                value[key] = self.resolve(item, depth + 1)
        elif kind is _Latin1:
            self._done[id(value)] = result = self._encode(value.text)
        elif kind is _Array and value.dtype is not None:
            raw = self._encode(value.raw) if isinstance(value.raw, str) else value.raw
            array = np.frombuffer(raw, value.dtype).reshape(value.shape, order=value.order)
            self._done[id(value)] = result = array
        else:
            what = repr(value) if isinstance(value, _StandIn) else kind.__name__
            raise PickleError(f"the file holds {what}, which is no data")
        return result

    def _encode(self, text: str) -> bytes:
        if text not in self._encoded:
            self._encoded[text] = text.encode("latin1")
        return self._encoded[text]


def load_pickle(path: str | Path) -> Any:
    """Read a pickle of plain data, without running any code that it asks for.

    Protocols 0 to 5, of Python 2 and 3, with arrays of NumPy 1.x and 2.x. Strings of Python 2 are
    read as latin1.

    Args:
        path: the file.

    Returns:
        dicts, lists, tuples, str, bytes, numbers, None, and NumPy arrays of bool, integers or
        floats (not to be written to; NumPy numbers come as Python ones).

    Raises:
        PickleError: the file cannot be read, is no whole pickle (bytes after its end count
            as damage: ``pickle.load`` would drop them in silence), or holds anything else.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PickleError(
            f"{path}: no such file. Check the path, or make it with the data set's preprocess.py"
        ) from None
    except OSError as error:
        raise PickleError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise PickleError(f"{path}: the file is empty. Write it again")
    try:
        _check_opcodes(data)
        # BufferedReader for its peek(), without which unframed protocols are read byte by byte.
        stream = io.BufferedReader(io.BytesIO(data), buffer_size=1 << 17)
        return _Resolver().resolve(_Unpickler(stream, encoding="latin1").load())
    except PickleError as error:
        raise PickleError(f"{path}: {error}. {_NEXT_STEP}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise PickleError(
            f"{path}: not a pickle, or a damaged one ({type(error).__name__}: {error}). "
            "Expected a whole pickled dict: write the file again"
        ) from None
