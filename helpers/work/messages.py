"""A result, or the error in its place, as it travels from a worker; arrays go as raw bytes."""

import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

Packed = tuple[bytes, list[Any]]  # pickle, and its buffers


def pack(function: Callable[[Any], Any], items: Sequence[Any], number: int) -> Packed:
    """Pickle the result of an item, or the error, whose note is its traceback."""
    buffers: list[Any] = []
    try:
        result = function(items[number]), None
        return pickle.dumps(result, protocol=5, buffer_callback=buffers.append), buffers
    except Exception as error:
        place = "".join(traceback.format_exception(error))
        try:
            error = pickle.loads(pickle.dumps(error))
        except Exception:  # a library's error that cannot be pickled
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"In a worker process:\n{place}")
        return pickle.dumps((None, error)), []


def unpack(packed: Packed) -> Any:
    """Return the result, whose arrays may be written to, or raise the error."""
    data, buffers = packed
    result, error = pickle.loads(data, buffers=buffers)
    if error is not None:
        raise error
    return result


def send(pipe: Connection, packed: Packed) -> None:
    data, buffers = packed
    views = [buffer.raw() for buffer in buffers]
    pipe.send((data, [view.nbytes for view in views]))
    with socket.socket(fileno=os.dup(pipe.fileno())) as raw:  # a Connection would copy them
        for view in views:
            raw.sendall(view)


def receive(pipe: Connection) -> Packed:
    """Raises EOFError or OSError if the worker has ended."""
    data, sizes = pipe.recv()
    buffers = [bytearray(size) for size in sizes]
    with socket.socket(fileno=os.dup(pipe.fileno())) as raw:
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                count = raw.recv_into(view)
                if not count:
                    raise EOFError
                view = view[count:]
    return data, buffers
