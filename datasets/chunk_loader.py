"""Reads tracks in several processes, and goes on without one that is killed.

This is not torch's DataLoader, for three reasons. When a worker of that is killed, it raises an
error in whatever code the main process is running at that moment, the network's included, and what
other workers had read is lost. It passes tensors through /dev/shm, of which a container has 64 MB
by default: four minutes of waveforms take 15 MB. And it does not say which item killed its worker.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

from datasets.tracks import TrackSource
from helpers.chunks import Chunk, Cutting
from helpers.parallel import KILLED_TWICE, ParallelError, leave_signals_to_the_main_process

_NUMBER = 8  # bytes of a track's number in the queue
_QUEUE = 500  # tracks in the queue, at most: less than the smallest pipe takes, 4096 bytes
_BARREN = 3  # times that every process may end, one after another, and none begin a track
_PATIENCE = 5  # seconds, for a process to end by itself


class ChunkLoader:
    """Chunks of tracks, as they are read. To be iterated over, any number of times.

    Each process reads a track at a time, the next one that nobody has begun, so that a long track
    holds up nobody. Chunks of one track come in order, those of different tracks in any mixture.
    A process holds no more than one chunk.

    A process that is killed (a decoder that crashes, memory that is short) is replaced, and the
    track that it was at is read again when all others are done, alone, with ``attempt`` 1. If that
    is killed too, the track comes as a chunk with ``error``.

    Args:
        source: of the tracks. It is pickled where processes are not forks.
        indices: of the tracks to read, each once.
        cutting: how they are cut into patches.
        per_chunk: patches in a chunk, at most.
        num_workers: reading processes; 0 to read in this one.
        waveforms: whether chunks of audio are waveforms rather than log-mels.
        pin_memory: whether the patches are in page-locked memory, which a GPU copies faster.
        start_method: of processes: "fork", "spawn" or "forkserver"; None for multiprocessing's own.

    Raises:
        ParallelError: when iterating: processes end before they read anything.
    """

    def __init__(
        self,
        source: TrackSource,
        indices: Sequence[int],
        cutting: Cutting,
        *,
        per_chunk: int,
        num_workers: int,
        waveforms: bool = False,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        self.source, self.indices, self.cutting = source, indices, cutting
        self.per_chunk, self.num_workers, self.waveforms = per_chunk, num_workers, waveforms
        self.pin_memory, self.start_method = pin_memory, start_method

    def __iter__(self) -> Iterator[Chunk]:
        if not self.num_workers:
            for index in self.indices:
                for chunk in self.source.chunks(
                    index, self.cutting, self.per_chunk, self.waveforms
                ):
                    yield chunk.pin_memory() if self.pin_memory else chunk
            return
        killed: list[int] = []
        yield from self._read(self.indices, self.num_workers, 0, killed)
        for index in killed:
            again: list[int] = []
            yield from self._read([index], 1, 1, again)
            if again:
                yield Chunk(self.source.keys[index], index, attempt=1, error=KILLED_TWICE)

    def _read(
        self, indices: Sequence[int], num_workers: int, attempt: int, killed: list[int]
    ) -> Iterator[Chunk]:
        """Read tracks; those whose process was killed are added to ``killed``."""
        waiting, unfinished = iter(indices), set[int]()  # the latter: queued or being read
        job = (self.source, self.cutting, self.per_chunk, self.waveforms)
        readers = _Readers(multiprocessing.get_context(self.start_method), job)
        try:
            for _ in range(min(num_workers, len(indices))):
                readers.start()
            while True:
                for index in islice(waiting, _QUEUE - len(unfinished)):
                    readers.put(index)
                    unfinished.add(index)
                if len(unfinished) < _QUEUE:
                    readers.no_more()
                if not unfinished:
                    return
                if not readers:  # killed between taking a track and saying so
                    killed.extend(sorted(unfinished))
                    return
                for reader in readers.ready():
                    try:
                        chunk = reader.receive(self.pin_memory)
                    except (EOFError, OSError):
                        if reader.track is not None:
                            killed.append(reader.track)
                            unfinished.discard(reader.track)
                        if readers.remove(reader) and unfinished:
                            readers.replace(reader)
                        continue
                    if chunk is not None:
                        if chunk.last:
                            unfinished.discard(chunk.index)
                        chunk.attempt = attempt
                        yield chunk
        finally:
            readers.close()


@dataclass(eq=False)
class _Reader:
    """A reading process, seen from the main process.

    Attributes:
        process: itself.
        results: what it sends comes out here.
        track: the one that it has in hand.
        began: whether it has begun any.
    """

    process: BaseProcess
    results: Connection
    track: int | None = None
    began: bool = False

    def receive(self, pin_memory: bool) -> Chunk | None:
        """Take a chunk, or word of a track that is begun.

        Raises:
            EOFError, OSError: the process has ended.
        """
        message = self.results.recv()
        if isinstance(message, int):
            self.track, self.began = message, True
            return None
        chunk, shape, dtype = message
        if shape is not None:
            chunk.patches = torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
            left = _bytes_of(chunk.patches)
            while len(left):
                count = os.readv(self.results.fileno(), [left])
                if not count:
                    raise EOFError
                left = left[count:]
        if chunk.last:
            self.track = None
        return chunk


class _Readers:
    """Reading processes, and the queue from which they take tracks.

    The queue is a pipe of numbers of 8 bytes, of which the kernel gives each to one reader. There
    is no lock, which a process that is killed would hold for ever. Each process sends what it reads
    through a socket of its own: what it had sent before it was killed arrives.
    """

    def __init__(self, context: BaseContext, job: tuple[Any, ...]) -> None:
        self._context, self._job = context, job
        self._queue_out, self._queue_in = context.Pipe(duplex=False)
        self._readers: list[_Reader] = []
        self._barren = 0  # processes in a row that were killed before they began a track
        self._owner = os.getpid()
        # If this process ends first: multiprocessing itself sends one SIGTERM, and waits.
        self._at_exit = Finalize(None, self.close, exitpriority=10)

    def __len__(self) -> int:
        return len(self._readers)

    def start(self) -> None:
        """Start one more process."""
        own_end, its_end = self._context.Pipe()
        # A fork has all of this process's ends too. It must close them: a pipe ends when the last
        # process closes it, and that is how processes learn that this one is gone.
        fork = self._context.get_start_method() == "fork"
        others = [reader.results for reader in self._readers]
        unneeded = [self._queue_in, own_end, *others] if fork else []
        process = self._context.Process(
            target=_read_tracks, args=(self._job, self._queue_out, its_end, unneeded), daemon=True
        )
        # A fork must not collect this process's garbage: what stands for threads, such as a session
        # of onnxruntime, would wait for ever for those that a fork does not have.
        collects = gc.isenabled()
        gc.disable()
        try:
            process.start()
        finally:
            if collects:
                gc.enable()
            its_end.close()
        self._readers.append(_Reader(process, own_end))

    def put(self, track: int) -> None:
        """Put a track into the queue."""
        os.write(self._queue_in.fileno(), int(track).to_bytes(_NUMBER, "little"))

    def no_more(self) -> None:
        """Let the processes end once the queue is empty; may be called again."""
        if not self._queue_in.closed:
            self._queue_in.close()

    def ready(self) -> list[_Reader]:
        """Wait for processes that have something to say, or have ended."""
        by_end = {reader.results: reader for reader in self._readers}
        return [by_end[end] for end in wait(list(by_end))]

    def remove(self, reader: _Reader) -> bool:
        """Forget a process that has ended; whether it did so before its time."""
        self._readers.remove(reader)
        reader.results.close()
        reader.process.join(_PATIENCE)
        if reader.process.exitcode is None:
            reader.process.kill()
            reader.process.join()
        return reader.process.exitcode != 0 or reader.track is not None

    def replace(self, reader: _Reader) -> None:
        """Start another process in the place of one that was killed.

        Raises:
            ParallelError: one after another is killed before it begins a track.
            OSError: there is none left, and none can be started.
        """
        self._barren = 0 if reader.began else self._barren + 1
        if self._barren > _BARREN * (1 + len(self._readers)):
            raise ParallelError(
                "reading processes end before they read anything (exit code "
                f"{reader.process.exitcode}; a negative one is the signal that killed it). Their "
                "own messages are above. Set datamodule.num_workers=0 to read in the main process"
            )
        try:
            self.start()
        except OSError:  # no memory for it: the others go on
            if not self._readers:
                raise

    def close(self) -> None:
        """End all processes, at once."""
        if os.getpid() != self._owner:  # a copy, in a fork
            return
        self._at_exit.cancel()
        for reader in self._readers:
            reader.process.kill()
        for reader in self._readers:
            reader.process.join()
            reader.results.close()
        self._readers.clear()
        self.no_more()
        self._queue_out.close()


# ---- in a reading process ------------------------------------------------------------------------


def _read_tracks(
    job: tuple[TrackSource, Cutting, int, bool],
    queue: Connection,
    results: Connection,
    unneeded: Sequence[Connection],
) -> None:
    """Read tracks from the queue until it ends, or until nobody wants the results."""
    gc.freeze()  # what there is now is the main process's
    gc.enable()
    for end in unneeded:
        if not end.closed:
            end.close()
    leave_signals_to_the_main_process()
    torch.set_num_threads(1)
    source, *how = job
    try:
        while number := os.read(queue.fileno(), _NUMBER):
            index = int.from_bytes(number, "little")
            results.send(index)
            for chunk in source.chunks(index, *how):
                _send(results, chunk)
    except (BrokenPipeError, ConnectionResetError):
        return


def _send(results: Connection, chunk: Chunk) -> None:
    """Send a chunk, and its patches as bytes after it."""
    if chunk.patches is None:
        results.send((chunk, None, None))
        return
    patches = chunk.patches.contiguous()
    results.send((replace(chunk, patches=None), patches.shape, patches.dtype))
    left = _bytes_of(patches)
    while len(left):
        left = left[os.write(results.fileno(), left) :]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.numpy().reshape(-1).view(np.uint8))
