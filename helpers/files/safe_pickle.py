"""Read pickles of plain data without running code from them, unlike ``pickle.load``.

Only the opcodes of plain data remain of Python's reader, and those that call or change something
are checked. A file may name a few functions of NumPy and Python; methods that check every argument
stand in for them. No declared size allocates more than the file's size.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import reprlib
import struct
import types
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import read_bytes

_RESAVE = (
    "Only dicts, lists, tuples, strings, numbers and bool, integer or float NumPy arrays are read, "
    "and nothing else in the file was run: if you trust it, re-save it with plain lists or NumPy "
    "arrays."
)
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 80, 80, 80
_MAX_DEPTH = 50
_DTYPES = {"b1", "f2", "f4", "f8", *(kind + size for kind in "iu" for size in "1248")}
_SCALARS = frozenset([bool, int, float, str, bytes, bytearray, type(None)])
# What the file may name → the method of `_Reader` that stands in for it
_GLOBALS = {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype", "_codecs.encode": "encode"}
for _core in ("core", "_core"):  # NumPy 1.x, NumPy 2.x
    _GLOBALS[f"numpy.{_core}.multiarray._reconstruct"] = "reconstruct"
    _GLOBALS[f"numpy.{_core}.multiarray.scalar"] = "scalar"
    _GLOBALS[f"numpy.{_core}.numeric._frombuffer"] = "array"
_KEPT = frozenset(  # opcodes that run as in Python's reader
    """
    PROTO FRAME STOP MARK PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET NONE NEWTRUE
    NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT GLOBAL STACK_GLOBAL
    """.split()  # noqa: SIM905
)


class _Refused(Exception):
    """A pickle holds something that plain data does not need."""


def short_repr(value: object) -> str:
    """Return ``repr(value)``, bounded in length and depth."""
    return _REPR.repr(value)


class _Whole(io.BytesIO):
    """A file that raises EOFError where a read comes back short."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if len(data) < (size or 0):
            raise EOFError("truncated")
        return data


class _Unfinished:
    """A dtype, or an array (None), whose state may follow (BUILD). The memo refers to it."""

    def __init__(self, value: np.dtype[Any] | None) -> None:
        self.value: np.ndarray[Any, Any] | np.dtype[Any] | None = value
        self.built = False


class _Memo(dict[int, Any]):
    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        finished = type(value) is _Unfinished and value.value is not None
        return value.value if finished else value


class _Reader(pickle._Unpickler):  # Python's reader: a dict as memo, and a table of opcodes
    """Raises `_Refused` at anything but plain data; damage may raise any error."""

    stack: list[Any]  # type stubs know the reader in C alone
    read: Any
    append: Any
    pop_mark: Any
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(_Whole(data), encoding="latin1")  # strings of Python 2
        self.memo, self.budget = _Memo(), 4 * len(data)

    def whole(self) -> Any:
        value = self.load()
        try:
            self.read(1)
        except EOFError:
            _check_data(value, set())
            return value
        raise ValueError("the pickle ends, and more bytes follow it")

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS or "." in name:
            raise _Refused(f"refused global {short_repr(f'{module}.{name}')[1:-1]}")
        return getattr(self, _GLOBALS[f"{module}.{name}"])

    # ---- opcodes

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not types.MethodType or type(arguments) is not tuple:
            raise _Refused(f"the file calls a {type(function).__name__}")
        self.append(function(*arguments))

    def load_build(self) -> None:
        state, unfinished = self.stack.pop(), self.stack.pop()
        if type(unfinished) is not _Unfinished or unfinished.built:
            raise _Refused(f"the file sets the state of a {type(unfinished).__name__}")
        unfinished.built = True
        match unfinished.value, state:
            case None, (1, tuple() as shape, dtype, (True | False) as fortran, raw):
                unfinished.value = self.array(raw, dtype, shape, "F" if fortran else "C")
            # The last three, size, alignment and flags, are -1, -1, 0 but for text.
            case (
                np.dtype() as dtype,
                (3, ("<" | ">" | "|" | "=") as order, None, None, None, int(), int(), int()),
            ):
                unfinished.value = dtype.newbyteorder(order)
            case _:
                raise _Refused(f"unexpected state of an array or a dtype: {short_repr(state)}")
        self.append(unfinished.value)

    def load_append(self) -> None:
        self.extend([self.stack.pop()])

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise _Refused(f"the file appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.update(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def load_setitems(self) -> None:
        self.update(self.pop_mark())

    def update(self, items: list[Any]) -> None:
        # Keys: only what is hashed without recursion, which CPython does not bound.
        if type(self.stack[-1]) is not dict or not _SCALARS.issuperset(map(type, items[::2])):
            raise _Refused("the file has keys that are no strings or numbers")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    # ---- stand-ins for functions of NumPy and Python

    def ndarray(self, *_arguments: Any) -> Any:
        raise _Refused("the file calls numpy.ndarray")

    def reconstruct(self, kind: Any, _shape: Any = (), _typecode: Any = "") -> _Unfinished:
        """``_reconstruct(ndarray, (0,), b"b")``: an empty array, whose state follows."""
        if kind != self.ndarray:
            raise _Refused(f"a NumPy array of class {short_repr(kind)} instead of numpy.ndarray")
        return _Unfinished(None)

    def dtype(self, spec: Any, _align: Any = False, _copy: Any = True) -> _Unfinished:
        """``dtype("b1", False, True)``; its byte order follows."""
        # Keys that stood in an array are text of fixed length.
        text = type(spec) is str and spec[:1] == "U" and spec[1:].isdecimal() and len(spec) < 6
        if type(spec) is not str or not (text or spec in _DTYPES):
            raise _Refused(f"NumPy dtype {short_repr(spec)} is refused")
        return _Unfinished(np.dtype(spec))

    def encode(self, text: Any, encoding: Any = None) -> bytes | bytearray:
        """``_codecs.encode("...", "latin1")``: bytes, as protocols 0 to 2 write them."""
        if type(text) is not str or encoding != "latin1":
            raise _Refused(f"_codecs.encode with encoding {short_repr(encoding)}, not 'latin1'")
        return self.raw_bytes(text)

    def scalar(self, dtype: Any, raw: Any) -> Any:
        """``scalar(dtype, b"\\x01")``: a NumPy number or string, given as a Python one."""
        dtype, raw = self.as_dtype(dtype), self.raw_bytes(raw)
        if len(raw) != dtype.itemsize:
            raise _Refused(f"a NumPy number of dtype {dtype} with {len(raw)} bytes")
        self.spend(len(raw))
        return np.frombuffer(raw, dtype).item()

    def array(
        self, raw: Any, dtype: Any, shape: Any, order: Any, _axes: Any = None
    ) -> np.ndarray[Any, Any]:
        """``_frombuffer(data, dtype, shape, "C")``: a whole array (protocol 5)."""
        dtype, raw = self.as_dtype(dtype), self.raw_bytes(raw)
        whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if not whole or order not in ("C", "F"):
            raise _Refused(f"a NumPy array of shape {short_repr(shape)}, {short_repr(order)}")
        if dtype.kind == "U" or math.prod(shape) * dtype.itemsize != len(raw):
            raise _Refused(f"a NumPy array {shape} of dtype {dtype} with {len(raw)} bytes of data")
        return np.frombuffer(raw, dtype).reshape(shape, order=order)

    def as_dtype(self, value: Any) -> np.dtype[Any]:
        value = value.value if type(value) is _Unfinished else value
        if not isinstance(value, np.dtype):
            raise _Refused(f"a {type(value).__name__} instead of a NumPy dtype")
        return value

    def raw_bytes(self, value: Any) -> bytes | bytearray:
        if type(value) is str:  # of Python 2, or of protocols 0 to 2
            self.spend(len(value))
            return value.encode("latin1")
        if type(value) not in (bytes, bytearray):
            raise _Refused(f"a {type(value).__name__} instead of raw bytes")
        return value

    def spend(self, count: int) -> None:
        """Bound the work: a few bytes of a file could convert one long text again and again."""
        self.budget -= count
        if self.budget < 0:
            raise _Refused("the file converts the same text again and again")


def _refuse(opcode: str, _reader: _Reader) -> None:
    raise _Refused(f"refused pickle opcode {opcode}")


for _opcode in pickletools.opcodes:
    if _opcode.name not in _KEPT:
        _own = vars(_Reader).get(f"load_{_opcode.name.lower()}")
        _Reader.dispatch[ord(_opcode.code)] = _own or partial(_refuse, _opcode.name)


def _check_data(value: Any, seen: set[int], depth: int = 0) -> None:
    """Raise `_Refused` unless ``value`` holds only containers, arrays and scalars, not too deep."""
    if type(value) in _SCALARS or type(value) is np.ndarray:
        return
    if type(value) not in (dict, list, tuple):
        raise _Refused(f"the file holds a {type(value).__name__}, which is no data")
    items = value.values() if type(value) is dict else value
    if id(value) in seen or _SCALARS.issuperset(map(type, items)):
        return
    if depth == _MAX_DEPTH:
        raise _Refused(f"containers nested more than {_MAX_DEPTH} deep")
    seen.add(id(value))
    for item in items:
        _check_data(item, seen, depth + 1)


def load_pickle(path: str | Path) -> Any:
    """Read a pickle of plain data, without running any code that it names.

    Reads protocols 0 to 5 of Python 2 (strings as latin1) and 3: dicts, lists, tuples, str, bytes,
    numbers, None, and read-only arrays of NumPy 1.x and 2.x (bool, integer, float). NumPy numbers
    become Python numbers. InputError: the file cannot be read, is truncated or damaged, has bytes
    after its end (which ``pickle.load`` drops in silence), or holds anything else.
    """
    data = read_bytes(path, "Check the path, or make the file with the data set's preprocess.py.")
    try:
        return _Reader(data).whole()
    except _Refused as error:
        raise InputError(str(error), kind="unsupported", path=path, hint=_RESAVE) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        message = f"not a pickle, or a damaged one ({type(error).__name__}: {error})"
        hint = "Expected a whole pickled dict. Write it again, or get it again."
        raise InputError(message, kind="corrupt", path=path, hint=hint) from None
