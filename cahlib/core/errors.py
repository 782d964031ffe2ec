"""The errors a run can end with; each message says in one sentence what happened and what to do.

    CahError
    ├── ConfigError    the user asked for something that cannot be; nothing was started
    │   └── MissingSetting  a setting is not given without which nothing can be done
    ├── ShardError     one shard is lost for now; it is tried again, and reported
    │   └── Postponed  not by its own fault, so that the attempt does not count
    │       └── MachineFault  the machine that scraped it fails; another one may do it
    └── RunError       the run cannot go on; what is done stays done
        └── Stopped    it was asked to end before it could begin its work

A candidate that is dropped is not an error but a `cahlib.core.records.DropReason` in the stats.
Any other exception is a bug and is not caught.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CahError(Exception):
    """What cahlib raises on purpose; its text is meant for people."""

    #: what the command `cah` exits with
    exit_code = 1


class ConfigError(CahError):
    """A setting, a file or a place that the user named cannot be used."""

    exit_code = 2


class MissingSetting(ConfigError):
    """A setting that is needed is not given."""


class ShardError(CahError):
    """A shard could not be read, or its parcel could not be written."""


class Postponed(ShardError):
    """A shard is given back for what is no fault of its own: the network, or a storage, is away."""


class MachineFault(Postponed):
    """The machine failed that worked on a shard: its disk, memory, files or interpreter."""


class RunError(CahError):
    """The run cannot go on."""


class Stopped(RunError):
    """The user, or a limit of time or cost, ended the run before it could begin its work."""

    exit_code = 3


#: What a disk, a quota or a limit on the size of files (`ulimit -f`) says when it is exhausted.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: The same in the words of SQLite, which passes no number of the system on. It takes a write that
#: was cut short for a full disk, but any other one, as into its shared memory, for a faulty one.
_FULL_SQLITE = ("database or disk is full", "disk I/O error")

#: PostgreSQL's code for it, `disk_full`.
_FULL_POSTGRES = "53100"

#: Where SQLite's errors are defined, and those that pass them on.
_SQLITE = ("sqlite3", "sqlalchemy.exc")


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if getattr(error, "sqlstate", "") == _FULL_POSTGRES:
            return True
        if type(error).__module__ in _SQLITE and any(said in str(error) for said in _FULL_SQLITE):
            return True
        error = error.__cause__ or error.__context__
    return False


#: What the system says when a machine fails, whatever it was asked for.
_FAILING = {
    errno.ENOMEM: "its memory is exhausted",
    errno.EMFILE: "it has no more open files (fewer --connections or a higher ulimit -n help)",
    errno.ENFILE: "it has no more open files",
    errno.ENOBUFS: "it has no more sockets",
    errno.EIO: "its disk fails",
    errno.EROFS: "its disk takes nothing any more",
}


def machine_fault(error: BaseException | None) -> str:
    """Return what is wrong with the machine if that led to an error, in words; "" if not."""
    if is_full(error):
        return "its disk is full"
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FAILING:
            return _FAILING[error.errno]
        if isinstance(error, MemoryError):
            return "its memory is exhausted"
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return "it can start no more threads"
        if isinstance(error, ImportError | SystemError):
            return "what is installed there is damaged"
        error = error.__cause__ or error.__context__
    return ""


def no_space(place: object) -> RunError:
    """Return the error for a full disk, the same at any moment and for any file."""
    return RunError(
        f"No space is left for {place}: its disk is full, or a limit on its size is reached. Make "
        "room, then give the same command again."
    )


#: Errors of a disk that mean a wrong choice of folder, not a disk in trouble.
_CHOICE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


#: What is never a fault of ours, whatever file is asked for.
_REFUSED = _CHOICE - {errno.ENOENT, errno.EEXIST} | {*_FAILING} | {errno.ESTALE}


def unwritable(error: OSError, place: object) -> CahError:
    """Return the error for a place that cannot be written: a choice of the user's, or a disk's."""
    cause = error.strerror or str(error)
    if error.errno in _CHOICE:
        return ConfigError(f"output: {place} cannot be written ({cause}); choose another folder.")
    if is_full(error):
        return no_space(place)
    return RunError(
        f"{place} cannot be written ({cause}); see to the disk, then run the same command again."
    )


def unusable(error: OSError) -> str:
    """Return a sentence for a file that the system does not let us use; "" for any other error."""
    if error.errno in _REFUSED and error.filename:
        return f"{error.filename} cannot be used ({error.strerror}); see to it, or to its rights."
    return ""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into ConfigError (an unsuitable folder) or RunError (a full or bad disk)."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, path) from error


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise a sentence for whatever fails in here for the disk or the folder that is written to."""
    try:
        yield
    except CahError:
        raise
    except Exception as error:
        if is_full(error):
            raise no_space(folder) from error
        named = getattr(error, "filename", None)
        if isinstance(error, OSError) and named and Path(str(named)).is_relative_to(folder):
            raise unwritable(error, named) from error
        raise


#: Libraries that not every place needs, by the extra that brings them.
EXTRAS = {
    "data": {"numpy", "pyarrow", "google_crc32c"},
    "gpu": {
        "numpy",
        "pyarrow",
        "google_crc32c",
        "torch",
        "torchvision",
        "open_clip",
        "safetensors",
    },
    "swarm": {"hcloud", "paramiko", "cryptography"},
    "kaggle": {"kaggle", "kagglesdk", "requests"},
    "tracker": {"fastapi", "uvicorn", "python_multipart", "alembic", "psycopg"},
}


def missing(error: ModuleNotFoundError, wanted: str = "") -> ConfigError:
    """Return what to type for a library that is not installed.

    ``wanted`` is the extra of the command, named if it brings the library. Raises the error itself
    for a module that no extra brings: that is a bug.
    """
    library = (error.name or "").partition(".")[0]
    extras = [extra for extra, libraries in EXTRAS.items() if library in libraries]
    if not extras:
        raise error
    extra = wanted if wanted in extras else extras[0]
    return ConfigError(
        f"{library} is not installed; type: pip install 'cahlib[{extra}]' "
        f"(or, where its source lies, pip install '.[{extra}]')."
    )
