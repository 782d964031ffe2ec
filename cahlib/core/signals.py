"""The signals that ask a process to end: which are heard, and when they have to wait."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ending() -> list[signal.Signals]:
    """Ctrl-C, SIGTERM and the hang-up of a terminal, unless `nohup` keeps the latter away."""
    return [
        each
        for each in _ENDING
        if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN
    ]


def hush() -> None:
    """Print to nowhere from now on, after a hang-up: at a closed terminal each print is an error.

    What is printed into files or pipes still gets there.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):  # it was closed before
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


@contextmanager
def undisturbed(told: Callable[[], str]) -> Iterator[None]:
    """Let all of them wait: leaving now would leave servers that cost money.

    Whoever presses Ctrl-C is ``told`` so.
    """

    def heard(number: int, frame: object) -> None:
        with suppress(OSError):  # not by print, in the middle of which the signal may come
            os.write(2, f"\ncah: {told()}\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
