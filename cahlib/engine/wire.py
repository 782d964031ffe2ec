"""The messages that a worker's machine sends to the driver: declared types in MessagePack.

The machine may have been taken over by what it scraped, so nothing it sends is executed, and the
driver believes nothing that it knows better itself: a message names the driver's files by number.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from cahlib.core.background import capture
from cahlib.core.errors import (
    ConfigError,
    MachineFault,
    Postponed,
    RunError,
    ShardError,
    describe_machine_fault,
    disk_full_error,
    is_disk_full,
)
from cahlib.core.records import DropReason, Parcel, Stage, Stats

_T = TypeVar("_T")
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A\w[\w.=+-]{0,250}\Z")]
_Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]

#: The topic of the workers' progress reports.
PROGRESS_TOPIC = "cahlib-progress"

#: Parcels fetched at the same time, pieces of each in flight, and bytes of a piece.
MAX_PULLS, PIECES_AHEAD, PIECE_SIZE = 2, 4, 16 << 20

#: Errors that a job may end with, by name; of others the driver gets the text.
JOB_ERRORS = {
    each.__name__: each for each in (ShardError, Postponed, MachineFault, RunError, ConfigError)
}


#: The common names of certificates that are not a node's: of drivers and the scheduler.
DRIVER_NAMES, SCHEDULER_NAME = ("driver", "guest"), "scheduler"


class InvalidMessage(TypeError):
    """Another machine sent an invalid message. A TypeError, as Dask expects of broken pickles."""


class RemoteError(RuntimeError):
    """An error of another machine, by the name of its class and its message."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(printable(f"{kind}: {message}" if message else kind, 2000))


class OfferedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that is ready to be fetched."""

    name: _Name
    folder: str  #: on its machine; with staging, the driver knows where
    size: _Count
    sha256: _Digest


class JobResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of a job: with a parcel, a plain value, an error, or for lack of input files."""

    parcel: Parcel | None = None
    value: Any = None
    error: str | None = None  #: the name of its class
    message: str = ""  #: of the error
    host: str = ""  #: the sender
    files: tuple[OfferedFile, ...] = ()  #: of the parcel: its manifest, then its tar
    missing: tuple[_Count, ...] = ()  #: the numbers of the job's files that the machine lacks

    def result(self) -> Any:
        """Return the parcel, the value, or the exception."""
        if self.error is None:
            return self.value if self.parcel is None else self.parcel
        message = printable(self.message, 2000)
        kind = JOB_ERRORS.get(self.error)
        return kind(message) if kind else RemoteError(self.error, message)


class _Counts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The counts of a stage, as `Stats.as_dict` has them."""

    entered: _Count = msgspec.field(name="in")
    left: _Count = msgspec.field(name="out")
    lost: dict[str, _Count]


class _Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    progress: dict[str, _Counts | float | int]


def encode(message: Any) -> bytes:
    """Return the bytes of a result or a report."""
    return msgspec.msgpack.encode(message, enc_hook=_encode_hook)


def encode_report(key: str, progress: dict[str, Any]) -> bytes:
    """Return the bytes of a job's progress report."""
    return encode({"key": key, "progress": progress})


def decode_report(data: object) -> tuple[str, dict[str, Any]]:
    """Return a job's key and its progress; raise InvalidMessage."""
    report = _decode(data, _reports)
    progress: dict[str, Any] = msgspec.to_builtins(report.progress)
    try:
        Stats.from_dict(progress)
    except (KeyError, TypeError) as error:
        raise InvalidMessage("It sent a report with unknown counts.") from error
    return report.key, progress


def run_and_encode(act: Callable[[], JobResult]) -> bytes:
    """Return the encoded result of a job; an exception is a result too."""
    encoded = capture(lambda: encode(act()))
    error = encoded.exception()
    if not isinstance(error, Exception):
        return encoded.result()
    return encode(_failure(error))


def _failure(error: Exception) -> JobResult:
    known = next((each for each in type(error).__mro__ if each.__name__ in JOB_ERRORS), None)
    if known is None and is_disk_full(error):
        return JobResult(error="RunError", message=str(disk_full_error("a machine that scrapes")))
    if known is None and (fault := describe_machine_fault(error)):
        return JobResult(error="MachineFault", message=f"{fault} ({error})")
    if known is None:  # a bug, so its traceback is needed
        trace = "".join(traceback.format_exception(error))
        return JobResult(error=type(error).__name__, message=f"{error}\n{trace[-1500:]}")
    return JobResult(error=known.__name__, message=str(error))


def decode_result(data: object) -> JobResult:
    """Return the result that `encode` encoded; raise InvalidMessage for anything else."""
    return _decode(data, _results)


def printable(text: str, length: int) -> str:
    """Return a text of another machine without what could control a terminal."""
    return re.sub(r"[^\n -~\u00a1-\ud7ff\uf900-\uffef]", "?", text[:length])


def _decode(data: object, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    if isinstance(data, InvalidMessage):
        raise data
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidMessage(f"It sent a {type(data).__name__} instead of bytes.")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidMessage(
            f"It sent bytes that are not a valid message ({printable(str(error), 200)})."
        ) from error


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not a result of a job")


def _decode_hook(kind: Any, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    return Counter(_counters[kind].decode(msgspec.msgpack.encode(value)))


# Made here: two threads that decode a type for the first time at once would crash.
_counters: dict[Any, msgspec.msgpack.Decoder[Any]] = {
    Counter[each]: msgspec.msgpack.Decoder(dict[each, _Count])  # type: ignore[valid-type]
    for each in (Stage, DropReason)
}
_results = msgspec.msgpack.Decoder(JobResult, dec_hook=_decode_hook)
_reports = msgspec.msgpack.Decoder(_Report)
