"""The pictures of a dataset, each read alone from the tar of its shard, here or at a URL.

No file says where in a tar a picture begins, and to read all of a tar's headers would be thousands
of requests at a URL. But a tar has its pairs in the order of the metadata, and each header names
its pair: so the place of a row is guessed from the places known around it, a window is read there,
and the headers in it tell how far off it was. Two or three reads find a row, and neighbours are in
the same window.

A picture may contain what looks like a header. Such a one counts only if it names a pair of this
shard that belongs between the places around it.
"""

from __future__ import annotations

import re
import tarfile
import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cahlib.core.errors import RunError
from cahlib.dataset.manifest import ShardManifest, tar_path
from cahlib.dataset.storage.files import DatasetFiles, files_at
from cahlib.image.header import ImageHeader, read_header

#: The types that are served, by format.
CONTENT_TYPES = {
    "jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "avif": "image/avif",
}  # fmt: skip

_BLOCK = tarfile.BLOCKSIZE
#: Bytes that are read at a time: at a URL a request costs more than what it brings.
_WINDOW, _WINDOW_OF_URL = 128 << 10, 512 << 10
#: The largest picture that is read.
_LARGEST = 64 << 20
#: Windows that are kept of each tar, none of them larger, and tars whose places are known.
_KEPT, _LARGEST_KEPT, _TARS = 2, 2 << 20, 64
#: The magic of a header, and where it is there.
_MAGIC, _MAGIC_AT = b"ustar", 257
_MEMBER = re.compile(r"([0-9a-f]{32})\.(jpg|png|webp|avif|json|txt)")


class StoredPicture(NamedTuple):
    """A picture as the dataset has it."""

    data: bytes
    content_type: str


class PictureUnreadable(RunError):
    """A picture is not where it should be, or is none."""


class PictureFiles:
    """The pictures of a dataset. Thread-safe."""

    def __init__(
        self, manifests: Sequence[ShardManifest], place: str, uids: Callable[[str], Sequence[str]]
    ) -> None:
        """Take the manifests at a place; ``uids`` returns those of a shard's rows, by its id."""
        self._tars = {
            each.shard.id: (each.place or place, path, each.files[path].size)
            for each in manifests
            if (path := tar_path(each))
        }
        self._uids = uids
        self._open: OrderedDict[str, _Tar] = OrderedDict()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Return whether the dataset stores pictures in tars."""
        return bool(self._tars)

    def read(self, shard: str, position: int) -> StoredPicture:
        """Return the picture of a pair; raise PictureUnreadable, or RunError for its place."""
        if shard not in self._tars:
            raise PictureUnreadable("This dataset stores no pictures in tars.")
        data = self._tar(shard).read(position)
        header = read_header(data)
        if not isinstance(header, ImageHeader):
            raise PictureUnreadable(f"{self._tars[shard][1]} holds no image for this pair.")
        return StoredPicture(data, CONTENT_TYPES[header.format])

    def _tar(self, shard: str) -> _Tar:
        with self._lock:
            if found := self._open.get(shard):
                self._open.move_to_end(shard)
                return found
        place, path, size = self._tars[shard]
        made = _Tar(files_at(place), path, size, self._uids(shard))
        with self._lock:
            found = self._open.setdefault(shard, made)
            while len(self._open) > _TARS:
                self._open.popitem(last=False)
        return found


class _Tar:
    """One tar, of which some places are known."""

    def __init__(self, files: DatasetFiles, path: str, size: int, uids: Sequence[str]) -> None:
        self._files, self._path, self._size = files, path, size
        self._uids = uids
        self._rows: Mapping[str, int] = {uid: row for row, uid in enumerate(uids)}
        self._window = _WINDOW if files.folder else _WINDOW_OF_URL
        self._known: list[tuple[int, int]] = [(0, 0)]  #: rows, and where their pairs begin
        self._windows: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, row: int) -> bytes:
        """Return the content of a row's picture."""
        with self._lock:
            start = self._find(row)
            member = self._member(self._bytes(start, _BLOCK), 0)
            if member is None or member[0] != self._uids[row] or member[1] in ("json", "txt"):
                raise self._damaged()
            if member[2] > _LARGEST:
                raise PictureUnreadable(f"A picture in {self._path} is larger than 64 MiB.")
            data = self._bytes(start + _BLOCK, member[2])
        if len(data) != member[2]:
            raise self._damaged()
        return data

    def _find(self, row: int) -> int:
        """Return where the pair of a row begins."""
        while True:
            number = bisect_right(self._known, (row, self._size)) - 1
            below, start = self._known[number]
            if below == row:
                return start
            above, end = (
                self._known[number + 1]
                if number + 1 < len(self._known)
                else (len(self._uids), self._size)
            )
            # the middle of the pair before it, so that its own header is in the window
            guess = start + int((end - start) * (row - below - 0.5) / (above - below))
            guess -= guess % _BLOCK
            if guess - start < self._window:
                self._walk(below, start, row)
            else:
                self._look(guess, (below, start), (above, end))

    def _walk(self, row: int, start: int, wanted: int) -> None:
        """Follow the headers from a known row to the next ones, as far as a window reaches."""
        begin, limit, seen = start, start + self._window, row
        while seen < wanted and (begin < limit or seen == row):
            member = self._member(self._bytes(begin, _BLOCK), 0)
            if member is None:
                raise self._damaged()
            found = self._rows.get(member[0])
            if found is None or found not in (seen, seen + 1):
                raise self._damaged()
            if found == seen + 1:
                self._note(found, begin)
                seen = found
            begin += _BLOCK + member[2] + -member[2] % _BLOCK

    def _look(self, guess: int, below: tuple[int, int], above: tuple[int, int]) -> None:
        """Read windows from a guess on until one has a pair's first header, and note them."""
        begin = guess
        while begin < above[1]:
            data = self._bytes(begin, self._window)
            found = [
                (row, begin + at)
                for at, uid, kind in self._headers(data)
                if kind not in ("json", "txt")
                and below[0] < (row := self._rows.get(uid, -1)) < above[0]
            ]
            if found:
                for row, at in found:
                    self._note(row, at)
                return
            begin += max(self._window - _BLOCK, _BLOCK)
        # no pair begins after the guess: the one before it is large, and so is found from below
        self._walk(below[0], below[1], below[0] + 1)

    def _note(self, row: int, start: int) -> None:
        number = bisect_left(self._known, (row, 0))
        if number == len(self._known) or self._known[number][0] != row:
            insort(self._known, (row, start))

    def _headers(self, data: bytes) -> Iterator[tuple[int, str, str]]:
        """Yield the headers in a window: where, the pair's uid, and the kind of the member."""
        at = data.find(_MAGIC)
        while at >= 0:
            start = at - _MAGIC_AT
            if start >= 0 and start % _BLOCK == 0 and (member := self._member(data, start)):
                yield start, member[0], member[1]
            at = data.find(_MAGIC, at + 1)

    def _member(self, data: bytes, at: int) -> tuple[str, str, int] | None:
        """Return uid, kind and size of the member whose header is there, or None."""
        try:
            info = tarfile.TarInfo.frombuf(data[at : at + _BLOCK], "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            return None
        named = _MEMBER.fullmatch(info.name)
        return (named[1], named[2], info.size) if named and info.size >= 0 else None

    def _bytes(self, start: int, size: int) -> bytes:
        """Return bytes of the tar, from a kept window or a new one; fewer at its end."""
        end = min(start + size, self._size)
        for begin, data in self._windows.items():
            if begin <= start and end <= begin + len(data):
                self._windows.move_to_end(begin)
                return data[start - begin : end - begin]
        until = min(max(end, start + self._window), self._size)
        data = self._files.read_range(self._path, start, until)
        if len(data) <= _LARGEST_KEPT:
            self._windows[start] = data
        while len(self._windows) > _KEPT:
            self._windows.popitem(last=False)
        return data[: end - start]

    def _damaged(self) -> PictureUnreadable:
        return PictureUnreadable(
            f"{self._path} is not as its manifest says: it has changed since this page was opened, "
            "or is damaged; reload the dataset, and see `cah verify`."
        )
