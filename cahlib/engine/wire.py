"""What a machine that works tells the one that drives it: declared bytes, in MessagePack.

It may have been taken over by what it scraped, so nothing that it says is executed, and nothing is
believed that its driver knows better: it names none of the driver's files, only the number of one.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

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

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 60)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A\w[\w.=+-]{0,250}\Z")]
_Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]

#: Where workers tell how far their jobs are.
PROGRESS_TOPIC = "cahlib-progress"

#: Parcels that come at the same time, pieces of each that are on their way, and bytes of a piece.
MAX_PULLS, PIECES_AHEAD, PIECE_SIZE = 2, 4, 16 << 20

#: Errors that a job may end with, by their names; of others the driver hears the text.
JOB_ERRORS = {
    each.__name__: each for each in (ShardError, Postponed, MachineFault, RunError, ConfigError)
}


#: The names of certificates that are no node's: a driver's, one elsewhere, and the scheduler's.
DRIVER_NAMES, SCHEDULER_NAME = ("driver", "guest"), "scheduler"


class InvalidMessage(TypeError):
    """Another machine sent what is not read. A TypeError, as Dask knows from broken pickles."""


class RemoteError(RuntimeError):
    """An error that another machine told of, by the name of its class and its message."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(printable(f"{kind}: {message}" if message else kind, 2000))


class OfferedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that waits to be fetched."""

    name: _Name
    folder: str  #: on its machine; at a shared place it is the driver that knows which
    size: _Count
    sha256: _Digest


class JobResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a job ended: with a parcel, a plain value, or an error; or that it could not begin."""

    parcel: Parcel | None = None
    value: Any = None
    error: str | None = None  #: the name of its class
    message: str = ""  #: of the error
    host: str = ""  #: the machine that speaks
    files: tuple[OfferedFile, ...] = ()  #: that belong to the parcel: its manifest, then its tar
    lacks: tuple[_Count, ...] = ()  #: which of the job's files it cannot begin without

    def result(self) -> Any:
        """The parcel, the value, or the exception."""
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
    told: dict[str, _Counts | float | int]


def encode(message: Any) -> bytes:
    """The bytes of an answer or a report."""
    return msgspec.msgpack.encode(message, enc_hook=_encode_hook)


def encode_report(key: str, told: dict[str, Any]) -> bytes:
    """How far a job is, as it tells it itself."""
    return encode({"key": key, "told": told})


def decode_report(data: object) -> tuple[str, dict[str, Any]]:
    """The inverse of `encode_report`; raises Refused."""
    said: _Report = _decode(data, _Report)
    told: dict[str, Any] = msgspec.to_builtins(said.told)
    try:
        Stats.from_dict(told)
    except (KeyError, TypeError) as error:
        raise InvalidMessage("It sent a report of something that is not counted.") from error
    return said.key, told


def run_and_encode(act: Callable[[], JobResult]) -> bytes:
    """The answer of a job, as bytes; an exception is one."""
    try:
        return encode(act())
    except Exception as error:  # noqa: BLE001 - the job's own, or a bug: the driver's to judge
        known = next((each for each in type(error).__mro__ if each.__name__ in JOB_ERRORS), None)
        if known is None and is_disk_full(error):
            return encode(
                JobResult(error="RunError", message=str(disk_full_error("a machine that scrapes")))
            )
        if known is None and (fault := describe_machine_fault(error)):
            return encode(JobResult(error="MachineFault", message=f"{fault} ({error})"))
        if known is None:  # a bug: whoever reads of it needs to know where
            told = "".join(traceback.format_exception(error))
            return encode(JobResult(error=type(error).__name__, message=f"{error}\n{told[-1500:]}"))
        return encode(JobResult(error=known.__name__, message=str(error)))


def decode_result(data: object) -> JobResult:
    """The inverse of `encode`; raises Refused for anything else than an answer."""
    said: JobResult = _decode(data, JobResult)
    return said


def printable(text: str, length: int) -> str:
    """A text of another machine as a terminal may show it."""
    return re.sub(r"[^\n -~\u00a1-\ud7ff\uf900-\uffef]", "?", text[:length])


def _decode(data: object, kind: Any) -> Any:
    if isinstance(data, InvalidMessage):
        raise data
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidMessage(f"It sent a {type(data).__name__} instead of bytes.")
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_decode_hook)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidMessage(
            f"It sent bytes that say nothing ({printable(str(error), 200)})."
        ) from error


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no answer of a job")


def _decode_hook(kind: Any, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    members = {Counter[Stage]: Stage, Counter[DropReason]: DropReason}[kind]
    return Counter(msgspec.convert(value, dict[members, _Count]))  # type: ignore[valid-type]
