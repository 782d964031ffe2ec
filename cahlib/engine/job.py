"""The part of an engine that runs in workers: one job, within its limit.

A job runs in a worker's only job thread. If it does not report for longer than its limit, though
its own deadlines should have ended it, the worker is killed from within by `faulthandler`, which
works even while C code holds the interpreter's lock, and the engine starts the job again in a new
one.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
from collections.abc import Callable
from typing import Any

from cahlib.core.errors import (
    ConfigError,
    MachineFault,
    RunError,
    ShardError,
    describe_machine_fault,
    is_disk_full,
)
from cahlib.core.records import Parcel
from cahlib.engine import wire
from cahlib.engine.wire import JobResult, RemoteError

#: Seconds over its limit after which a job's process is killed.
_GRACE = 60

#: Names of errors by which a damaged machine or installation shows.
_MACHINE_ERRORS = {"ImportError", "ModuleNotFoundError", "SystemError", "MemoryError"}


def job_error(error: BaseException) -> BaseException:
    """Return the error of a job that its workers could not finish, by what Dask raised."""
    if isinstance(error, RemoteError) and error.kind == "KilledWorker":
        return repeated_death_error()
    if isinstance(error, RemoteError) and error.kind in _MACHINE_ERRORS:
        return MachineFault(str(error))
    if type(error) is Exception and any(isinstance(each, bytes) for each in error.args):
        return ShardError("a machine sent an error in an invalid form.")
    return error


def repeated_death_error() -> ShardError:
    """Return the error of a job whose worker processes died again and again."""
    return ShardError("the scraper process died on it repeatedly.")


def run_local_job(job: bytes, send: Callable[[bytes], None]) -> bytes:
    """Run a pickled job in a worker of this machine; return the bytes of a `JobResult`.

    ``send`` takes those of its reports.
    """
    key, function, arguments, limit = pickle.loads(job)
    return wire.run_and_encode(
        lambda: job_result(run_guarded(key, function, arguments, limit, send))
    )


def job_result(result: Any) -> JobResult:
    """Return the result of a job that has succeeded."""
    return JobResult(parcel=result) if isinstance(result, Parcel) else JobResult(value=result)


def run_guarded(
    key: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    limit: float,
    send: Callable[[bytes], None],
) -> Any:
    """Run a job in a worker, under its limit.

    The job keeps the limit itself, since some of its time may not count; its process is killed when
    the job has not reported for that long.
    """
    with open(os.devnull, "w") as nowhere:

        def arm() -> None:
            faulthandler.dump_traceback_later(limit + _GRACE, exit=True, file=nowhere)

        def report(message: Any) -> None:
            send(wire.encode_report(key, message))
            arm()

        arm()
        try:
            return function(*arguments, limit=limit, report=report)
        except (RunError, ConfigError, MachineFault):
            raise
        except Exception as error:  # its causes are not sent to another process
            if (fault := describe_machine_fault(error)) and not is_disk_full(error):
                raise MachineFault(f"{fault} ({error})") from error
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
