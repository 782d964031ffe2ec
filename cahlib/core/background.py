"""Background threads: a function called at intervals, and outcomes handed to another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")


class BackgroundLoop:
    """Calls a function every so many seconds on a daemon thread, while a ``with`` block runs.

    ``start`` and `stop` do the same without a block. The loop also ends once a call returns True.
    """

    def __init__(
        self, seconds: float, look: Callable[[], object], *, name: str = "", at_once: bool = False
    ) -> None:
        """``at_once``: the first call does not wait."""
        self._seconds, self._look, self._at_once = seconds, look, at_once
        self.stopping = threading.Event()  #: set once the loop is to end
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name or None, daemon=True)

    def __enter__(self) -> BackgroundLoop:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Make the next call now."""
        self._due.set()

    def stop(self, *, timeout: float | None = None) -> None:
        """Make no more calls; wait for one in progress, for ``timeout`` seconds at most."""
        self.stopping.set()
        self._due.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def is_running(self) -> bool:
        """Return whether the thread was started and has not ended."""
        return self._thread.is_alive()

    def _run(self) -> None:
        if self._at_once:
            self._due.set()
        while True:
            self._due.wait(self._seconds)
            self._due.clear()
            if self.stopping.is_set() or self._look() is True:
                return


def capture(call: Callable[[], _T]) -> Future[_T]:
    """Return the outcome of a call, to be passed to another thread or kept until its turn.

    Its ``result()`` returns what the call returned, or raises what it raised.
    """
    future: Future[_T] = Future()
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised again by ``result()``
        future.set_exception(error)
    else:
        future.set_result(result)
    try:
        return future
    finally:
        del future  # which its error's traceback would otherwise keep in a reference cycle
