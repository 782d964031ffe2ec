"""The errors a run can end with; each message says in one sentence what happened and what to do.

    CahError
    ├── ConfigError    a request that cannot be met; nothing was started
    │   └── MissingSetting  a required setting is missing
    ├── ShardError     one shard failed; it is retried, and reported
    │   └── Postponed  through no fault of its own, so the attempt does not count
    │       └── MachineFault  the machine that scraped it is broken; another one may do it
    └── RunError       the run cannot continue; finished work is kept
        └── Stopped    it was asked to end before it began

A dropped candidate is not an error but a `cahlib.core.records.DropReason` in the stats. Any other
exception is a bug and is not caught.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CahError(Exception):
    """The base of all errors that cahlib raises on purpose; the message is for people."""

    #: the exit code of `cah`
    exit_code = 1


class ConfigError(CahError):
    """A setting, a file or a place that the user gave cannot be used."""

    exit_code = 2


class MissingSetting(ConfigError):
    """A required setting is missing."""


class ShardError(CahError):
    """A shard could not be read, or its parcel could not be written."""


class Postponed(ShardError):
    """A shard is returned through no fault of its own: the network or a storage is unavailable."""


class MachineFault(Postponed):
    """The machine that worked on a shard failed: its disk, memory, files or interpreter."""


class RunError(CahError):
    """The run cannot continue."""


class Stopped(RunError):
    """The user, or a limit of time or cost, ended the run before it began."""

    exit_code = 3


#: The errors of a full disk, an exhausted quota, or a file size limit (`ulimit -f`).
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: The same as SQLite words it, which does not pass on the errno. It reports a short write as a full
#: disk, but any other failure, such as in its shared memory, as an I/O error.
_FULL_SQLITE = ("database or disk is full", "disk I/O error")

#: PostgreSQL's code for it, `disk_full`.
_FULL_POSTGRES = "53100"

#: The modules of SQLite's errors, and of those that wrap them.
_SQLITE = ("sqlite3", "sqlalchemy.exc")


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if getattr(error, "sqlstate", "") == _FULL_POSTGRES:
            return True
        if type(error).__module__ in _SQLITE and any(said in str(error) for said in _FULL_SQLITE):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_read_error(error: Exception) -> str:
    """Return in words why a file that the user gave could not be read."""
    if isinstance(error, UnicodeError):
        return "it is neither UTF-8 nor UTF-16"
    cause = error.strerror if isinstance(error, OSError) else None
    return cause or str(error)


#: Errors of a failing machine, whatever the operation was.
_FAILING = {
    errno.ENOMEM: "its memory is exhausted",
    errno.EMFILE: "it has no more open files (fewer --connections or a higher ulimit -n help)",
    errno.ENFILE: "it has no more open files",
    errno.ENOBUFS: "it has no more sockets",
    errno.EIO: "its disk fails",
    errno.EROFS: "its disk has become read-only",
}


def describe_machine_fault(error: BaseException | None) -> str:
    """Return in words what is wrong with the machine if that caused an error; "" if not."""
    if is_disk_full(error):
        return "its disk is full"
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FAILING:
            return _FAILING[error.errno]
        if isinstance(error, MemoryError):
            return "its memory is exhausted"
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return "it cannot start more threads"
        if isinstance(error, ImportError | SystemError):
            return "its installation is damaged"
        error = error.__cause__ or error.__context__
    return ""


def disk_full_error(place: object) -> RunError:
    """Return the error for a full disk, the same at any time and for any file."""
    return RunError(
        f"No space is left for {place}: its disk is full, or a size limit is reached. Make room, "
        "then run the same command again."
    )


#: Disk errors that mean an unsuitable folder, not a failing disk.
_CHOICE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


#: Errors that are never a bug in cahlib, whichever file was opened.
_REFUSED = _CHOICE - {errno.ENOENT, errno.EEXIST} | {*_FAILING} | {errno.ESTALE}


def unwritable_error(error: OSError, place: object) -> CahError:
    """Return the error for a place that cannot be written: ConfigError, or RunError for a disk."""
    cause = error.strerror or str(error)
    if error.errno in _CHOICE:
        return ConfigError(f"output: {place} cannot be written ({cause}); choose another folder.")
    if is_disk_full(error):
        return disk_full_error(place)
    return RunError(
        f"{place} cannot be written ({cause}); check the disk, then run the same command again."
    )


def describe_unusable_file(error: OSError) -> str:
    """Return a sentence for a file that the system refuses to open; "" for any other error."""
    if error.errno in _REFUSED and error.filename:
        return f"{error.filename} cannot be used ({error.strerror}); check it and its permissions."
    return ""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into ConfigError (an unsuitable folder) or RunError (a full or bad disk)."""
    try:
        yield
    except OSError as error:
        raise unwritable_error(error, path) from error


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn any error caused by a folder or its disk into ConfigError or RunError."""
    try:
        yield
    except CahError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise disk_full_error(folder) from error
        named = getattr(error, "filename", None)
        if isinstance(error, OSError) and named and Path(str(named)).is_relative_to(folder):
            raise unwritable_error(error, named) from error
        raise


#: Optional libraries, by the extra that installs them.
EXTRAS = {
    "data": {"numpy", "pyarrow", "google_crc32c"},
    "query": {"numpy", "pyarrow", "google_crc32c", "duckdb"},
    "gpu": {
        "numpy",
        "pyarrow",
        "google_crc32c",
        "torch",
        "torchvision",
        "open_clip",
        "safetensors",
    },
    "similar": {"numpy", "pyarrow", "faiss"},
    "swarm": {"hcloud", "paramiko", "cryptography"},
    "kaggle": {"kaggle", "kagglesdk", "requests"},
    "tracker": {"fastapi", "uvicorn", "python_multipart", "alembic", "psycopg"},
}


def missing_library_error(error: ModuleNotFoundError, wanted: str = "") -> ConfigError:
    """Return the error for a library that is not installed, with the command that installs it.

    ``wanted`` is the command's extra, preferred if it has the library. Raise the error itself for a
    module that is in no extra: that is a bug.
    """
    library = (error.name or "").partition(".")[0]
    extras = [extra for extra, libraries in EXTRAS.items() if library in libraries]
    if not extras:
        raise error
    extra = wanted if wanted in extras else extras[0]
    return ConfigError(
        f"{library} is not installed; type: pip install 'cahlib[{extra}]' "
        f"(or, in a checkout, pip install '.[{extra}]')."
    )
