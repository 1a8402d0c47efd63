"""The reader of `safe_pickle`: Python's own, reduced to plain data.

Only the opcodes of plain data remain of Python's reader, and those that call or change something
are checked. A file may name a few functions of NumPy and Python; methods that check every argument
stand in for them. No declared size allocates more than the file's size.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import types
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from maest.helpers.names import short_repr

_DTYPES = {"b1", "f2", "f4", "f8", *(kind + size for kind in "iu" for size in "1248")}
_SCALARS = frozenset([bool, int, float, str, bytes, bytearray, type(None)])
# What the file may name → the method of `Reader` that stands in for it
_GLOBALS = {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype", "_codecs.encode": "encode"}
for _core in ("core", "_core"):  # NumPy 1.x, NumPy 2.x
    _GLOBALS[f"numpy.{_core}.multiarray._reconstruct"] = "reconstruct"
    _GLOBALS[f"numpy.{_core}.multiarray.scalar"] = "scalar"
    _GLOBALS[f"numpy.{_core}.numeric._frombuffer"] = "array"
# Opcodes that run as in Python's reader
_KEPT = """
    PROTO FRAME STOP MARK PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET NONE NEWTRUE
    NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT GLOBAL STACK_GLOBAL
""".split()  # noqa: SIM905


class Refused(Exception):
    """A pickle holds something that plain data does not need."""


class _Whole(io.BytesIO):
    """A file that raises EOFError where a read comes back short."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if len(data) < (size or 0):
            raise EOFError("truncated")
        return data


@dataclass(eq=False)
class _Unfinished:
    """A dtype, or an array (None), whose state may follow (BUILD). The memo refers to it."""

    value: np.ndarray[Any, Any] | np.dtype[Any] | None
    built: bool = False


class _Memo(dict[int, Any]):
    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        finished = type(value) is _Unfinished and value.value is not None
        return value.value if finished else value


class Reader(pickle._Unpickler):  # Python's reader: a dict as memo, and a table of opcodes
    """Raises `Refused` at anything but plain data; damage may raise any error."""

    stack: list[Any]  # type stubs know the reader in C alone
    read: Any
    append: Any
    pop_mark: Any
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(_Whole(data), encoding="latin1")  # strings of Python 2
        self.memo, self.budget = _Memo(), 4 * len(data)

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS or "." in name:
            raise Refused(f"global {short_repr(f'{module}.{name}')[1:-1]}")
        return getattr(self, _GLOBALS[f"{module}.{name}"])

    # ---- opcodes

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not types.MethodType or type(arguments) is not tuple:
            raise Refused(f"the file calls a {type(function).__name__}")
        self.append(function(*arguments))

    def load_build(self) -> None:
        state, unfinished = self.stack.pop(), self.stack.pop()
        require(type(unfinished) is _Unfinished and not unfinished.built, "state of an object")
        unfinished.built = True
        match unfinished.value, state:
            case None, (1, tuple() as shape, dtype, bool() as fortran, raw):
                unfinished.value = self.array(raw, dtype, shape, "F" if fortran else "C")
            # More follows: size, alignment and flags, which only text has.
            case np.dtype() as dtype, (3, ("<" | ">" | "|" | "=") as order, None, None, None, *_):
                unfinished.value = dtype.newbyteorder(order)
            case _:
                raise Refused(f"the state of an array or a dtype is {short_repr(state)}")
        self.append(unfinished.value)

    def load_append(self) -> None:
        self.put([self.stack.pop()])

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def load_appends(self) -> None:
        self.put(self.pop_mark())

    load_setitems = load_appends

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.put(items)

    def put(self, items: list[Any]) -> None:
        """Put items into the list on the stack, or keys and values into the dict."""
        container = self.stack[-1]
        if type(container) is list:
            container.extend(items)
            return
        # Keys: only what is hashed without recursion, which CPython does not bound.
        plain = type(container) is dict and _SCALARS.issuperset(map(type, items[::2]))
        require(plain, "items of what is no list or dict, or keys that are no strings or numbers")
        container.update(zip(items[::2], items[1::2], strict=True))

    # ---- stand-ins for functions of NumPy and Python

    def ndarray(self, *_arguments: Any) -> Any:
        raise Refused("a call of numpy.ndarray")

    def reconstruct(self, kind: Any, _shape: Any = (), _typecode: Any = "") -> _Unfinished:
        """``_reconstruct(ndarray, (0,), b"b")``: an empty array, whose state follows."""
        require(kind == self.ndarray, "an array of another class than numpy.ndarray")
        return _Unfinished(None)

    def dtype(self, spec: Any, _align: Any = False, _copy: Any = True) -> _Unfinished:
        """``dtype("b1", False, True)``; its byte order follows."""
        # Keys that stood in an array are text of fixed length: U and its digits.
        if type(spec) is not str or not (spec in _DTYPES or re.fullmatch("U[0-9]{1,4}", spec)):
            raise Refused(f"NumPy dtype {short_repr(spec)}")
        return _Unfinished(np.dtype(spec))

    def encode(self, text: Any, encoding: Any = None) -> bytes | bytearray:
        """``_codecs.encode("...", "latin1")``: bytes, as protocols 0 to 2 write them."""
        require(type(text) is str and encoding == "latin1", "_codecs.encode not to latin1")
        return self.raw_bytes(text)

    def scalar(self, dtype: Any, raw: Any) -> Any:
        """``scalar(dtype, b"\\x01")``: a NumPy number or string, given as a Python one."""
        value = self.frombuffer(raw, dtype)
        require(value.size == 1, "a NumPy number of several")
        self.spend(value.nbytes)
        return value.item()

    def array(
        self, raw: Any, dtype: Any, shape: Any, order: Any, _axes: Any = None
    ) -> np.ndarray[Any, Any]:
        """``_frombuffer(data, dtype, shape, "C")``: a whole array (protocol 5)."""
        value = self.frombuffer(raw, dtype)
        whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        fits = whole and order in ("C", "F") and math.prod(shape) == value.size
        require(fits and value.dtype.kind != "U", "a NumPy array that misfits its data, or text")
        return value.reshape(shape, order=order)

    def frombuffer(self, raw: Any, dtype: Any) -> np.ndarray[Any, Any]:
        """Raw bytes as a 1-D array."""
        dtype, raw = dtype.value if type(dtype) is _Unfinished else dtype, self.raw_bytes(raw)
        whole = isinstance(dtype, np.dtype) and not len(raw) % (dtype.itemsize or 1)
        require(whole, "a NumPy value without a dtype, or of another size")
        return np.frombuffer(raw, dtype)

    def raw_bytes(self, value: Any) -> bytes | bytearray:
        if type(value) is str:  # of Python 2, or of protocols 0 to 2
            self.spend(len(value))
            value = value.encode("latin1")
        require(type(value) in (bytes, bytearray), "raw bytes of another type")
        return value

    def spend(self, count: int) -> None:
        """Bound the work: a few bytes of a file could convert one long text again and again."""
        self.budget -= count
        require(self.budget >= 0, "the same text, converted again and again")


def require(good: bool, otherwise: str) -> None:
    if not good:
        raise Refused(otherwise)


def _refuse(opcode: str, _reader: Reader) -> None:
    raise Refused(f"pickle opcode {opcode}")


for _opcode in pickletools.opcodes:
    if _opcode.name not in _KEPT:
        _checked = vars(Reader).get(f"load_{_opcode.name.lower()}")
        Reader.dispatch[ord(_opcode.code)] = _checked or partial(_refuse, _opcode.name)
