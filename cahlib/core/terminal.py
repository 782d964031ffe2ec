"""The terminal: streams that may be closed, notes, questions, and the end of a stopped run."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

#: Set while a command prints results and errors only.
_quiet = threading.Event()


class _RobustStream:
    """A stream that ignores failed writes: its reader is gone, or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def robust_streams(*, output: bool) -> Iterator[None]:
    """Ignore failed writes to stderr and, with ``output``, to stdout.

    Without ``output``, a failed write to stdout is an error, as whoever reads the output has to
    know that it is incomplete.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack … or –
            stream.reconfigure(errors="replace")
    with open(os.devnull, "w") as nowhere:
        out, err = (stream or nowhere for stream in before)  # a closed stream is None
        sys.stderr = cast(TextIO, _RobustStream(err))
        sys.stdout = cast(TextIO, _RobustStream(out)) if output else out
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before
            for stream in (out, err):
                try:
                    stream.flush()
                except OSError:  # Python would try again at exit
                    os.dup2(nowhere.fileno(), stream.fileno())


def is_quiet() -> bool:
    """Return whether a command prints results and errors only."""
    return _quiet.is_set()


@contextmanager
def quiet_output(quiet: bool) -> Iterator[None]:
    """Suppress notes and progress meanwhile, if ``quiet``."""
    if quiet:
        _quiet.set()
    try:
        yield
    finally:
        _quiet.clear()


def print_note(*lines: str) -> None:
    """Print lines to stderr that are not a command's result, unless quiet."""
    if not _quiet.is_set():
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def report_stopped(left: int = 0, total: int = 0) -> int:
    """Print that work is left, and return the exit code for that."""
    told = f": {left:,} of {total:,} shards are left" if left else ""
    print_note(f"Stopped early{told}; run the same command again to continue.")
    return 3


def confirm(question: str, *, yes: bool = False) -> bool:
    """Return whether the user agrees; asked only in a terminal, where Ctrl-D means no."""
    if yes or not sys.stdin.isatty():
        return True
    try:
        print(question, "[y/N]", end=" ", file=sys.stderr, flush=True)
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        print(file=sys.stderr)
        return False
