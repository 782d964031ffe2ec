"""The signals that ask a process to end, and how to defer them."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def termination_signals() -> list[signal.Signals]:
    """Return SIGINT, SIGTERM, and SIGHUP unless `nohup` ignores it."""
    return [
        each
        for each in _ENDING
        if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN
    ]


@contextmanager
def handle_termination(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call a handler for these signals meanwhile."""
    before = {each: signal.signal(each, handler) for each in termination_signals()}
    try:
        yield
    finally:
        for each, former in before.items():
            signal.signal(each, former)


def silence_terminal() -> None:
    """Redirect a closed terminal's output to /dev/null: after a hang-up each print is an error.

    Output to files and pipes is unaffected.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):  # it is closed already
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


def print_from_handler(sentence: str) -> None:
    """Print an error from the handler of a signal, which may have interrupted a print.

    A stream must not be entered twice: print() would raise RuntimeError.
    """
    with suppress(OSError):
        os.write(2, f"\ncah: {sentence}\n".encode())


@contextmanager
def defer_signals(explain: Callable[[], str]) -> Iterator[None]:
    """Ignore these signals meanwhile: leaving now would leave servers that cost money.

    Ctrl-C prints the sentence that ``explain`` returns.
    """

    def handle(number: int, frame: object) -> None:
        print_from_handler(explain())

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
