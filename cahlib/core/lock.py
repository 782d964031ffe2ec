"""The lock of a dataset's folder: one process at a time makes or changes what is in it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cahlib.core.errors import ConfigError, is_full, no_space


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else writes to the dataset meanwhile. Raises ConfigError if that cannot be."""
    try:
        (folder / "run").mkdir(parents=True, exist_ok=True)
        lock = open(folder / "run" / "lock", "w")
    except OSError as error:
        if is_full(error):
            raise no_space(folder) from error
        raise ConfigError(
            f"output: {folder} cannot be written ({error.strerror}); choose another folder."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy(folder) from error
        yield


def busy(folder: Path) -> ConfigError:
    """Return the error for a folder to which somebody else writes."""
    return ConfigError(
        f"output: another command is writing to {folder}; wait for it, or name another folder."
    )


def is_held(folder: Path) -> bool:
    """Return whether a process writes to the dataset now; a look makes no file there."""
    path = folder / "run" / "lock"
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
