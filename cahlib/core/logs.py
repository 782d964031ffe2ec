"""Logging while a command works: to the run's log file, not to the terminal.

The handlers must be in place before Dask is imported, which adds its own if the root has none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_FILE = "run.log"

#: Bytes after which the log file is rotated, keeping one old file.
_SIZE = 4_000_000

#: Our loggers whose warnings are of transient trouble, or are reported by other means.
_PASSING = ("cahlib.swarm", "cahlib.engine", "cahlib.run.scrape", "cahlib.crawl", "cahlib.fetch")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def log_to_run(home: Path | None, say: Callable[[str], None]) -> Iterator[None]:
    """Write log lines and warnings to a run directory if there is one; drop them otherwise.

    Warnings of our own that the user should see also go to ``say``, as sentences.
    """
    root = logging.getLogger()
    to_file = _File(home / LOG_FILE) if home else logging.NullHandler()
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
    """A log file that never fails: without its folder, or on a full disk, lines are lost."""

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
            with suppress(OSError, ValueError):  # the terminal is gone
                self._say(f"cah: {record.getMessage()}")
