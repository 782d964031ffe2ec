"""Pythons that a command starts for itself: what they run, and which signals they get."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.spawn import get_executable


def python_command(code: str, *arguments: str) -> list[str]:
    """Return the command of a Python that runs code, and imports from where this one does.

    By itself it would look in the working folder first, where anybody's files may be.
    """
    code = f"import sys; sys.path[:] = sys.argv.pop(1).split({os.pathsep!r}); {code}"
    return [os.fsdecode(get_executable()), "-c", code, os.pathsep.join(sys.path), *arguments]


@contextmanager
def unsignalled() -> Iterator[None]:
    """Block the signals of a terminal in processes that start in here, and in their children.

    It sends Ctrl-C and its end to all processes, but the command decides when the others end. They
    could not ignore them by themselves early enough: they would be killed while they start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
