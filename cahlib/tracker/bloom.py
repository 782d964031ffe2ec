"""Bloom filters that are their file: mapped into memory, shared by processes, in rbloom's format.

A filter says of a line either that it was never added, or that it probably was. The file is 8
bytes with the number of hashes, then the bits, as `rbloom.Bloom.save` writes it, so a filter can
be handed on as a block list. Adding takes the file's lock; asking needs none, as bits only grow.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full

#: rbloom's generator of positions: a linear congruential one over 128 bits.
_FACTOR, _MASK = 47026247687942121848144207491837418733, (1 << 128) - 1


def key_of(line: str) -> int:
    """The 128 bits that stand for a line: an md5 in hex for itself, anything else by its md5."""
    if len(line) == 32:
        try:
            return int.from_bytes(bytes.fromhex(line), "big", signed=True)
        except ValueError:
            pass
    return int.from_bytes(hashlib.md5(line.encode()).digest(), "big", signed=True)


def create(path: Path, *, items: int, error: float) -> None:
    """Make an empty filter for so many items, which errs that often once it is full."""
    bits = -items * math.log(error) / math.log(2) ** 2
    size = 8 * math.ceil(bits / 64)
    try:
        with open(path, "xb") as file:
            file.write(struct.pack("<Q", max(int(bits / items * math.log(2)), 1)))
            # all of it now: a page that the disk has no room for kills who writes to it (SIGBUS)
            os.posix_fallocate(file.fileno(), 0, 8 + size)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; choose another name.") from None
    except OSError as failure:
        if is_disk_full(failure):
            path.unlink()
            raise disk_full_error(path) from failure
        raise ConfigError(f"{path} cannot be written ({failure.strerror}).") from failure


class Filter:
    """One filter on disk; safe for several threads and processes."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        if size <= 8 or size % 8:
            raise ConfigError(f"{path} is not a Bloom filter of cahlib or rbloom.")
        self._file = open(path, "r+b")
        self._map = mmap.mmap(self._file.fileno(), size)
        self._hashes = struct.unpack_from("<Q", self._map)[0]
        self._bits = (size - 8) * 8
        self._counter = open(path.with_suffix(".count"), "a+b")
        self._lock = threading.Lock()

    def missing(self, lines: Iterable[str]) -> list[str]:
        """The lines that the filter does not hold."""
        return [line for line in lines if not self._holds(key_of(line))]

    def add(self, lines: Iterable[str]) -> int:
        """Add lines; how many were not held before. On disk when it returns."""
        with self._lock:  # flock is between processes, not between threads
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                fresh = sum(self._set(key_of(line)) for line in lines)
                self._map.flush()
                self._write_count(self.count + fresh)
                return fresh
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    @property
    def count(self) -> int:
        """How many lines were added that were not held before."""
        return int.from_bytes(os.pread(self._counter.fileno(), 8, 0), "little")

    def info(self) -> dict[str, int]:
        """The filter's numbers, as the old service named them."""
        return {
            "Number of items inserted": self.count,
            "Number of bits": self._bits,
            "Number of hashes": self._hashes,
        }

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        self._file.close()
        self._counter.close()

    def _write_count(self, count: int) -> None:
        # A file opened for appending cannot be written in place; its name can.
        with open(self._counter.name, "r+b") as file:
            file.write(count.to_bytes(8, "little"))

    def _positions(self, state: int) -> Iterator[int]:
        state &= _MASK
        for _ in range(self._hashes):
            state = (state * _FACTOR + 1) & _MASK
            yield ((state >> 32) & 0xFFFF_FFFF_FFFF_FFFF) % self._bits

    def _holds(self, key: int) -> bool:
        return all(self._map[8 + (p >> 3)] >> (p & 7) & 1 for p in self._positions(key))

    def _set(self, key: int) -> bool:
        fresh = False
        for position in self._positions(key):
            place, bit = 8 + (position >> 3), 1 << (position & 7)
            if not self._map[place] & bit:
                self._map[place] |= bit
                fresh = True
        return fresh


def open_all(folder: Path) -> dict[str, Filter]:
    """The filters in a folder, by their names."""
    return {path.stem: Filter(path) for path in sorted(folder.glob("*.bloom"))}
