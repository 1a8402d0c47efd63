"""Reading pickles of plain data without ever running code from them.

The usual way to read such a file, ``pickle.load``, runs whatever code the file asks for. Here a
pickle is data only. It passes two gates:

1. ``_Unpickler``, in Python (no declared size makes it allocate more than the file holds), knows
   the opcodes of plain data only. It answers each global that the file names with an inert
   stand-in, or refuses it. No function of NumPy's, nor of anybody else's, ever receives arguments
   chosen by the file.
2. ``_Resolver`` turns the stand-ins into arrays, once they are complete and checked.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import reprlib
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError

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


def _plain(name: str) -> str:
    """A name from a pickle, safe to print: without quotes, control characters or great length."""
    return _REPR.repr(name)[1:-1]


# --- The stand-ins ----------------------------------------------------------------------

_DTYPES = frozenset(
    ["b1", *(kind + size for kind in "iu" for size in "1248"), *("f" + size for size in "248")]
)
_TEXT = re.compile("U[0-9]{1,4}")  # of NumPy strings (keys that stood in an array)
_MAX_DIMENSIONS = 32


class _StandIn:
    """An object that a pickle may hold and pass on, and that does nothing.

    The unpickler can do four things to an object on its stack: call it (REDUCE, OBJ, INST), set
    its state (BUILD), and append to it or set its items (APPENDS, SETITEMS). A stand-in has no
    ``__dict__``, answers BUILD itself, and offers no method for the others.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"the file sets the state of {self!r}, which has none")

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
            raise _Refused(f"the file calls {self._name}")
        return self._make(*args)

    def __repr__(self) -> str:
        return self._name


class _DType(_StandIn):
    """Stands for a ``numpy.dtype`` of kind bool, integer or float, or text of fixed length."""

    __slots__ = ("_built", "dtype")

    def __init__(self, spec: object) -> None:
        if not isinstance(spec, str) or not (spec in _DTYPES or _TEXT.fullmatch(spec)):
            raise _Refused(f"NumPy dtype {short_repr(spec)} is refused")
        self.dtype = np.dtype(spec)
        self._built = False

    def __setstate__(self, state: object) -> None:
        match state:
            # The last three, size, alignment and flags, are -1, -1, 0 but for text.
            case (3, ("<" | ">" | "|" | "=") as order, None, None, None, int(), int(), int()):
                if not self._built:
                    self.dtype = self.dtype.newbyteorder(order)
                    self._built = True
                    return
        raise _Refused(f"unexpected state of {self!r}: {short_repr(state)}")

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
                raise _Refused(f"unexpected state of a NumPy array: {short_repr(state)}")

    def fill(self, raw: object, dtype: _DType, shape: tuple, order: str) -> _Array:
        """Take the parts in. Raises _Refused if they do not fit, or if it has them."""
        if self.dtype is not None:
            raise _Refused("the file sets the state of one NumPy array twice")
        if isinstance(raw, _Latin1):
            raw = raw.text
        if not isinstance(raw, bytes | bytearray | str):
            raise _Refused(f"a NumPy array made of {short_repr(raw)} instead of raw bytes")
        if dtype.dtype.kind == "U":
            raise _Refused("a NumPy array of text")
        if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise _Refused(f"a NumPy array of impossible shape {short_repr(shape)}")
        if math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise _Refused(
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
        raise _Refused(f"a NumPy array of class {short_repr(kind)} instead of numpy.ndarray")
    return _Array()


def _dtype(spec: object, align: object = False, copy: object = True) -> _DType:
    """``dtype("b1", False, True)``; its byte order follows (BUILD)."""
    return _DType(spec)


def _scalar(dtype: object, raw: object) -> bool | int | float | str:
    """``scalar(dtype, b"\\x01")``: a NumPy number or string, given as a Python one."""
    if isinstance(raw, _Latin1):
        raw = raw.text
    if not isinstance(dtype, _DType) or not isinstance(raw, bytes | str):
        raise _Refused(f"a NumPy number made of {short_repr(dtype)} and {short_repr(raw)}")
    if len(raw) != dtype.dtype.itemsize:
        raise _Refused(f"a NumPy number of dtype {dtype.dtype} with {len(raw)} bytes")
    if isinstance(raw, str):  # Python 2 wrote bytes as strings
        raw = raw.encode("latin1")
    value = np.frombuffer(raw, dtype.dtype).item()
    # The same text is one object, however often a few bytes of the file ask for it.
    return sys.intern(value) if isinstance(value, str) else value


def _frombuffer(raw: object, dtype: object, shape: object, order: object, *axes: object) -> _Array:
    """``_frombuffer(data, dtype, shape, "C")``: a whole array (protocol 5)."""
    if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise _Refused(f"a NumPy array of dtype {short_repr(dtype)}, shape {short_repr(shape)}")
    if order not in ("C", "F") or axes not in ((), (None,)):
        raise _Refused(f"a NumPy array in order {short_repr(order)} instead of 'C' or 'F'")
    return _Array().fill(raw, dtype, shape, order)


def _encode(text: object, encoding: object = None) -> _Latin1:
    """``_codecs.encode("...", "latin1")``: bytes, as protocols 0 to 2 write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"_codecs.encode with encoding {short_repr(encoding)}, not 'latin1'")
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


# --- Gate 1: the opcodes ------------------------------------------------------------------------

# INST, OBJ and NEWOBJ are let through so that the class, which comes before them, is refused by its
# name. Not LONG4: numbers of more than 255 bytes.
_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    GLOBAL STACK_GLOBAL REDUCE BUILD INST OBJ NEWOBJ NEWOBJ_EX
""".split()  # noqa: SIM905
_SCALARS = frozenset([bool, int, float, str, bytes, bytearray, type(None)])


class _Exactly(io.BytesIO):
    """A file that ends too early is an error, wherever it ends."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size:
            raise EOFError(f"truncated: {size - len(data)} bytes are missing")
        return data


class _Dispatch(dict):
    """Opcode → method."""

    def __missing__(self, opcode: int) -> Any:
        names = [info.name for info in pickletools.opcodes if ord(info.code) == opcode]
        if names:
            raise _Refused(f"refused pickle opcode {names[0]}")
        raise pickle.UnpicklingError(f"unknown opcode {opcode:#x}")


_InPython: Any = pickle._Unpickler  # typeshed has few of its methods


class _Unpickler(_InPython):
    """Knows the globals of ``_ALLOWED`` and no other; imports nothing.

    The unpickler in Python is half as fast as the one in C, which allocates what a file declares
    (a ten-byte pickle can ask it for 64 GB), and whose stack overflows at deeply nested keys.
    """

    dispatch = _Dispatch(
        (code, _InPython.dispatch[code]) for code in (getattr(pickle, name)[0] for name in _OPCODES)
    )

    def load_plain(self) -> Any:
        """The file's object. Raises whatever a damaged pickle leads to; _Refused for others."""
        value = self.load()
        try:
            self.read(1)
        except EOFError:
            return value
        raise pickle.UnpicklingError("the pickle ends, and more bytes follow it")

    def find_class(self, module: str, name: str) -> _Constructor:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"refused global {_plain(module)}.{_plain(name)}") from None

    def load_bytearray8(self) -> None:
        super().load_binbytes8()
        self.stack[-1] = bytearray(self.stack[-1])

    def load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def _check_keys(self, keys: Collection[object]) -> None:
        """Only what can be hashed without recursion, which the interpreter does not bound."""
        if not _SCALARS.issuperset(map(type, keys)):
            kinds = {type(key).__name__ for key in keys if type(key) not in _SCALARS}
            raise _Refused(f"a key of type {', '.join(sorted(kinds))}, expected a string")

    for _name in ("BYTEARRAY8", "DICT", "SETITEM", "SETITEMS"):
        dispatch[getattr(pickle, _name)[0]] = locals()[f"load_{_name.lower()}"]


# --- Gate 2: the arrays -------------------------------------------------------------------------

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
            _Refused: a stand-in that is no array, or nesting that is too deep.
        """
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind in (list, tuple) and _SCALARS.issuperset(map(type, value)):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if depth > _MAX_DEPTH:
            raise _Refused(f"containers nested more than {_MAX_DEPTH} deep")
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
            raise _Refused(f"the file holds {what}, which is no data")
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
        InputError: the file cannot be read, is no whole pickle (bytes after its end count as
            damage: ``pickle.load`` would drop them in silence), or holds anything else.
    """
    path = Path(path)
    again = "Write it again, or get it again."
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            "no such file",
            kind="missing",
            path=path,
            hint="Check the path, or make the file with the data set's preprocess.py.",
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            kind="access",
            path=path,
            hint="Check that it is a file, and that you may read it.",
        ) from None
    if not data:
        raise InputError("the file is empty", kind="corrupt", path=path, hint=again)
    try:
        return _Resolver().resolve(_Unpickler(_Exactly(data), encoding="latin1").load_plain())
    except _Refused as error:
        raise InputError(str(error), kind="unsupported", path=path, hint=_RESAVE) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"not a pickle, or a damaged one ({type(error).__name__}: {error})",
            kind="corrupt",
            path=path,
            hint=f"Expected a whole pickled dict. {again}",
        ) from None
