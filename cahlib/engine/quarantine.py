"""Quarantine machines that fail jobs: their workers get no more until they are repaired.

It runs in the workers. The scheduler learns of it by a missing resource and a metric, so that the
health monitor can restart the service or replace the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import get_worker
from distributed.comm.addressing import get_address_host

from cahlib.core.errors import MachineFault, describe_machine_fault

#: The metric in which a worker reports why it is drained.
FAULT_METRIC = "cahlib-ill"

#: Seconds after which a worker that nobody repaired tries again; and to reach the scheduler.
_RETRY_AFTER, _SCHEDULER_TIMEOUT = 600.0, 10.0


def require_healthy() -> None:
    """Raise MachineFault in a drained worker: jobs that wait for it are done elsewhere."""
    worker: Any = get_worker()
    if why := worker.metrics.get(FAULT_METRIC):
        raise MachineFault(why(worker))


@contextmanager
def quarantined() -> Iterator[None]:
    """Raise MachineFault for a fault of the worker's machine, and drain its workers."""
    try:
        yield
    except Exception as error:
        if not (fault := describe_machine_fault(error)):
            raise
        worker: Any = get_worker()
        message = error if isinstance(error, MachineFault) else f"{fault} ({error})"
        why = f"{get_address_host(worker.address)}: {message}"
        worker.metrics[FAULT_METRIC] = lambda _: why
        with suppress(Exception):  # the scheduler is unreachable: the next job is rejected here
            _run_on_loop(worker, _drain(worker))
        raise MachineFault(why) from error


def _run_on_loop(worker: Any, action: Any) -> None:
    """Run a coroutine on a worker's event loop, from one of its threads."""
    asyncio.run_coroutine_threadsafe(action, worker.loop.asyncio_loop).result(_SCHEDULER_TIMEOUT)


async def _drain(worker: Any) -> None:
    """Take the slots of the machine's workers, until this one tries again."""
    await _set_slots(worker, 0)
    worker.loop.call_later(_RETRY_AFTER, lambda: asyncio.ensure_future(_recover(worker)))


async def _recover(worker: Any) -> None:
    worker.metrics.pop(FAULT_METRIC, None)
    with suppress(Exception):
        await _set_slots(worker, 1)


async def _set_slots(worker: Any, count: int) -> None:
    """Set the number of slots of each worker on this machine."""
    host = get_address_host(worker.address)
    for address, each in (await worker.scheduler.identity())["workers"].items():
        if each["host"] == host:
            await worker.scheduler.set_resources(worker=address, resources={"slot": count})
