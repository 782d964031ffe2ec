"""Jobs for the engine's tests; workers import them by name."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from cahlib.errors import ShardError


def until(true: Callable[[], bool], *, seconds: float = 20) -> None:
    """Wait for a condition; the only waiting that tests do."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def wait_for(path: Path) -> int:
    """The number that a file holds, once it is there."""
    until(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


def double(number: int, *, limit: float, report: Callable[[object], None]) -> int:
    return 2 * number


def fail(message: str, *, limit: float, report: Callable[[object], None]) -> None:
    raise ShardError(message)


def note_and_wait(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    """Write this process's id into the file 1, or 2 …, then wait for the file "go"."""
    start = next(n for n in range(1, 9) if not (folder / str(n)).exists())
    (folder / str(start)).write_text(str(os.getpid()))
    until((folder / "go").exists)
    return "done"


def tell_and_wait(folder: Path, *, limit: float, report: Callable[[object], None]) -> str:
    report({"images": 7})
    until((folder / "go").exists)
    return "done"
