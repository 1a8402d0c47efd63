"""Reading pickles of plain data without ever running code from them.

The usual way to read such a file, ``pickle.load``, runs whatever code the file asks for. Here the
opcodes of plain data are interpreted, and no others. Of the functions that a file may name, five
of NumPy's and Python's are known, and stood in for by methods of the interpreter, which check every
argument: no function of NumPy's, nor of anybody else's, ever receives arguments chosen by the file.
No size that the file declares makes anything larger than the file itself.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
import reprlib
import types
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError
from maest.helpers.files import read_bytes

_RESAVE = (
    "Only dicts, lists, tuples, strings, numbers and bool, integer or float NumPy arrays are read, "
    "and nothing else in the file was run: if you trust it, re-save it with plain lists or NumPy "
    "arrays."
)


class _Refused(Exception):
    """Something in a pickle that plain data does not need."""


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 80, 80, 80


def short_repr(value: object) -> str:
    """``repr(value)``, of bounded length and depth."""
    return _REPR.repr(value)


_MAX_DIMENSIONS, _MAX_DEPTH = 32, 50
_DTYPES = frozenset(
    ["b1", *(kind + size for kind in "iu" for size in "1248"), *("f" + size for size in "248")]
)
_SCALARS = frozenset([bool, int, float, str, bytes, bytearray, type(None)])
# What the file may name → the method of `_Interpreter` that stands in for it
_GLOBALS = {"numpy ndarray": "ndarray", "numpy dtype": "dtype", "_codecs encode": "encode"}
for _core in ("core", "_core"):  # NumPy 1.x, NumPy 2.x
    _GLOBALS[f"numpy.{_core}.multiarray _reconstruct"] = "reconstruct"
    _GLOBALS[f"numpy.{_core}.multiarray scalar"] = "scalar"
    _GLOBALS[f"numpy.{_core}.numeric _frombuffer"] = "frombuffer"

_OPCODES = {info.code.encode("latin1"): info for info in pickletools.opcodes}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset(  # opcodes that push what stands behind them
    """
    INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    """.split()  # noqa: SIM905
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Unfinished:
    """A dtype, or an array (None), whose state may follow (BUILD). The memo refers to it."""

    def __init__(self, value: np.dtype[Any] | None) -> None:
        self.value: np.ndarray[Any, Any] | np.dtype[Any] | None = value
        self.built = False


class _Interpreter:
    """Executes the opcodes of plain data; raises `_Refused` at others, and anything at damage."""

    def __init__(self, data: bytes) -> None:
        self.file, self.size = io.BytesIO(data), len(data)
        self.frame = self.size  # where it ends
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}  # no list: an index takes no room for those before it
        self.budget = 4 * self.size

    def run(self) -> Any:
        file = self.file
        while True:
            start = file.tell()
            info = _OPCODES[file.read(1)]
            argument = None
            if info.name == "STRING":  # of Python 2; pickletools reads ASCII alone
                raw = pickletools.read_stringnl(file, decode=False)
                argument = codecs.escape_decode(raw)[0].decode("latin1")
            elif info.arg is not None:
                argument = info.arg.reader(file)
            if start < self.frame < file.tell():
                raise EOFError("something crosses the end of a frame")
            if info.name == "STOP":
                break
            self.execute(info.name, argument)
        [value] = self.stack
        if file.tell() != self.size:
            raise ValueError("the pickle ends, and more bytes follow it")
        _check_data(value)
        return value

    def execute(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _ARGUMENTS:
            stack.append(argument)
            return
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                index = len(self.memo) if argument is None else argument
                if index < 0:
                    raise ValueError("a memo index below 0")
                self.memo[index] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                value = self.memo[argument]
                finished = type(value) is _Unfinished and value.value is not None
                stack.append(value.value if finished else value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[name])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.pop_mark()))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(_TUPLES[name])))
            case "REDUCE":
                function, arguments = self.pop(2)
                if type(function) is not types.MethodType or type(arguments) is not tuple:
                    raise _Refused(f"the file calls a {type(function).__name__}")
                stack.append(function(*arguments))
            case "BUILD":
                stack.append(self.build(*self.pop(2)))
            case "GLOBAL":
                self.find(argument)
            case "STACK_GLOBAL":
                module, function = self.pop(2)
                both = type(module) is type(function) is str
                self.find(f"{module} {function}" if both else "no name")
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self.pop_mark())
            case "APPEND" | "APPENDS":
                items = self.pop(1) if name == "APPEND" else self.pop_mark()
                if type(stack[-1]) is not list:
                    raise _Refused(f"the file appends to a {type(stack[-1]).__name__}")
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT" | "SETITEM" | "SETITEMS":
                items = self.pop(2) if name == "SETITEM" else self.pop_mark()
                if name == "DICT":
                    stack.append({})
                # Keys: only what is hashed without recursion, which CPython does not bound.
                if type(stack[-1]) is not dict or not _SCALARS.issuperset(map(type, items[::2])):
                    raise _Refused("the file has keys that are no strings or numbers")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "PROTO":
                if argument > 5:
                    raise ValueError("unknown protocol")
            case "FRAME":
                self.frame = self.file.tell() + argument
                if self.frame > self.size:
                    raise EOFError("truncated")
            case _:
                raise _Refused(f"refused pickle opcode {name}")

    def pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0:
            raise IndexError("the stack is empty")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_mark(self) -> list[Any]:
        return self.pop(len(self.stack) - self.marks.pop())

    def find(self, name: str) -> None:
        if name not in _GLOBALS:
            raise _Refused(f"refused global {short_repr(name.replace(' ', '.'))[1:-1]}")
        self.stack.append(getattr(self, _GLOBALS[name]))

    def build(self, unfinished: Any, state: Any) -> Any:
        """Set the state of an array or a dtype, once."""
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
        return unfinished.value

    # ---- what stands in for functions of NumPy's and Python's

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

    def frombuffer(self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
        """``_frombuffer(data, dtype, shape, "C")``: a whole array (protocol 5)."""
        if axes is not None:
            raise _Refused(f"a NumPy array with axes {short_repr(axes)}")
        return self.array(raw, dtype, shape, order)

    def array(self, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
        dtype, raw = self.as_dtype(dtype), self.raw_bytes(raw)
        whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if not whole or len(shape) > _MAX_DIMENSIONS or order not in ("C", "F"):
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
        """A few bytes of a file could have a long text of it converted again and again."""
        self.budget -= count
        if self.budget < 0:
            raise _Refused("the file converts the same text again and again")


def _check_data(value: Any) -> None:
    """Containers, arrays and scalars alone, and not too deep."""
    level: list[Any] = [[value]]
    seen = set()
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            items = container.values() if type(container) is dict else container
            if id(container) in seen or _SCALARS.issuperset(map(type, items)):
                continue
            seen.add(id(container))
            for item in items:
                if type(item) in (list, tuple, dict):
                    below.append(item)
                elif type(item) not in _SCALARS and type(item) is not np.ndarray:
                    raise _Refused(f"the file holds a {type(item).__name__}, which is no data")
        if not below:
            return
        level = below
    raise _Refused(f"containers nested more than {_MAX_DEPTH} deep")


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
        InputError: the file cannot be read, is no whole pickle (bytes after its end count as
            damage: ``pickle.load`` would drop them in silence), or holds anything else.
    """
    path = Path(path)
    again = "Write it again, or get it again."
    missing = "Check the path, or make the file with the data set's preprocess.py."
    data = read_bytes(path, missing)
    if not data:
        raise InputError("the file is empty", kind="corrupt", path=path, hint=again)
    try:
        return _Interpreter(data).run()
    except _Refused as error:
        raise InputError(str(error), kind="unsupported", path=path, hint=_RESAVE) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"not a pickle, or a damaged one ({type(error).__name__}: {error})",
            kind="corrupt",
            path=path,
            hint=f"Expected a whole pickled dict. {again}",
        ) from None
