"""Savings in the process of a command, since nothing else lives in it.

Python looks for garbage several times before it exits. To import torch and open_clip and leave
takes 5.3 CPU seconds on a busy small server, and 2.9 if what was imported is frozen. pandas, which
pyarrow imports where it is installed, takes 0.4 more.
"""

from __future__ import annotations

import atexit
import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType

_is_own = False


def begin_own_process() -> None:
    """Declare that this process ends with the command that begins."""
    global _is_own
    _is_own = True
    # Frozen objects are not looked at when Python looks for garbage before it exits.
    atexit.register(gc.freeze)


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without garbage collection: there is none, and what is imported stays."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def pandas_hidden() -> Iterator[None]:
    """Let this thread find no pandas, if this process is a command's own.

    pyarrow looks for it when it converts its first list, and from then on only to make its tables.
    """
    if not _is_own or "pandas" in sys.modules:
        yield
        return
    hiding = _NoPandas()
    sys.meta_path.insert(0, hiding)
    try:
        yield
    finally:
        sys.meta_path.remove(hiding)


class _NoPandas(MetaPathFinder):
    """Find no pandas on the thread that made this."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raise ModuleNotFoundError for pandas."""
        if name == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(name=name)
