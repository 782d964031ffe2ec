"""The lock of a dataset's folder: one process at a time writes to it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full
from cahlib.core.run_directory import RunDirectory


@contextmanager
def lock_dataset(folder: Path) -> Iterator[None]:
    """Hold a dataset's lock; raise ConfigError if the folder is in use or not writable."""
    try:
        path = RunDirectory(folder).lock
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(folder) from error
        raise ConfigError(
            f"output: {folder} cannot be written ({error.strerror}); choose another folder."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise locked_error(folder) from error
        yield


def locked_error(folder: Path) -> ConfigError:
    """Return the error for a folder that another process writes to."""
    return ConfigError(
        f"another command is writing to {folder}; wait for it, or choose another folder."
    )


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the dataset's lock, without creating a file."""
    path = RunDirectory(folder).lock
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
