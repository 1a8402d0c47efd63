"""Read pieces of several files as one file."""

import os
from typing import BinaryIO


class Pieces:
    """Joined pieces of open files: (file, first byte, one past the last byte) of each."""

    def __init__(self, pieces: list[tuple[BinaryIO, int, int]]) -> None:
        self._pieces, self._at = pieces, 0
        self._size = sum(end - start for _, start, end in pieces)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._size if size < 0 else size
        content, before = b"", 0
        for file, start, end in self._pieces:
            first = start + self._at - before
            if first < end and len(content) < size:
                file.seek(first)
                block = file.read(min(size - len(content), end - first))
                self._at += len(block)
                content += block
            before += end - start
        return content
