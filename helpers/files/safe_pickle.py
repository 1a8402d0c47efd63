"""Read pickles of plain data without running code from them, unlike ``pickle.load``.

`pickle_reader` refuses what is not plain data while it reads.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import read_bytes
from maest.helpers.files.pickle_reader import Reader, Refused

_RESAVE = "Only dicts, lists, tuples, strings, numbers and NumPy arrays of numbers are read, and "
_RESAVE += "nothing else in the file was run: if you trust it, re-save it with those."


def load_pickle(path: str | Path) -> Any:
    """Read a pickle of plain data, without running any code that it names.

    Reads protocols 0 to 5 of Python 2 (strings as latin1) and 3: dicts, lists, tuples, str, bytes,
    numbers, None, and read-only arrays of NumPy 1.x and 2.x (bool, integer, float). NumPy numbers
    become Python numbers. InputError: the file cannot be read, is truncated or damaged, has bytes
    after its end (which ``pickle.load`` drops in silence), or holds anything else.

    Callers check types: a hostile file may nest containers deeply, or leave what the reader uses
    (a dtype, an array without its values) in them.
    """
    data = read_bytes(path, "Check the path, or make the file with the data set's preprocess.py.")
    reader = Reader(data)
    try:
        value = reader.load()
        with suppress(EOFError):
            raise ValueError(f"more bytes follow its end, {reader.read(1)!r}")
    except Refused as error:
        what = f"refused: {error}"
        raise InputError(what, kind="unsupported", path=path, hint=_RESAVE) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        message = f"not a pickle, or a damaged one ({type(error).__name__}: {error})"
        hint = "Expected a whole pickled dict. Write it again, or get it again."
        raise InputError(message, kind="corrupt", path=path, hint=hint) from None
    return value
