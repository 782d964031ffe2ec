"""What loggers say while a command works: for the log of the run, not for the terminal.

It has to be in place before they are imported: Dask gives its loggers handlers of their own where
there is none at the root.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE = "run.log"

#: Bytes after which the log begins anew, beside the one before.
_SIZE = 4_000_000

#: Ours whose warnings are of passing trouble, or are told by other means.
_PASSING = ("cahlib.swarm", "cahlib.engine", "cahlib.run.scrape", "cahlib.crawl", "cahlib.fetch")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def kept(home: Path | None, say: Callable[[str], None]) -> Iterator[None]:
    """Keep log lines and warnings in the folder of a run, if it is there; drop them otherwise.

    A warning of our own that the user should see is said as a sentence as well.
    """
    root = logging.getLogger()
    to_file = _File(home / FILE) if home else logging.NullHandler()
    to_user = _Said(say)
    logging.captureWarnings(True)
    root.addHandler(to_file)
    root.addHandler(to_user)
    try:
        yield
    finally:
        root.removeHandler(to_user)
        root.removeHandler(to_file)
        logging.captureWarnings(False)
        to_file.close()


class _File(RotatingFileHandler):
    """A log that ends nothing: where its folder is not, or the disk is full, lines are lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_SIZE, backupCount=1, encoding="utf-8", delay=True)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter(_FORMAT))

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Said(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("cahlib") and not record.name.startswith(_PASSING):
            with suppress(OSError, ValueError):  # the terminal has gone
                self._say(f"cah: {record.getMessage()}")
