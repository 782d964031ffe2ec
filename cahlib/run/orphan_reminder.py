"""A reminder of orphaned servers: those of runs that nobody works with any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from cahlib.core.errors import CahError
from cahlib.core.secret_store import run_name_file

#: Seconds that a command waits at its end for a slow cloud.
_TIMEOUT = 4.0


@contextmanager
def orphan_reminder(
    token: str, own: Path | None, report: Callable[[str], None], *, run: str = ""
) -> Iterator[None]:
    """Report orphaned servers, while a command does something else.

    The command is delayed by at most a few seconds, and never fails because of it. Not reported are
    the servers of ``run``, and of the run with the swarm directory ``own``. Without a token nothing
    happens.
    """
    if not token:
        yield
        return
    asking = threading.Event()
    name = run_name_file(own) if own else None
    named = {name.read_text()} if name and name.exists() else set[str]()
    target = partial(_report, token, named | {run}, report, asking)
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        yield
    finally:
        asking.wait()  # imports end; only the cloud may be too slow
        thread.join(_TIMEOUT)


def _report(
    token: str, but: set[str], report: Callable[[str], None], asking: threading.Event
) -> None:
    with suppress(CahError, ModuleNotFoundError, OSError):
        try:
            from cahlib.run.scrapers import cloud_accounts
            from cahlib.swarm.provider import usable_accounts
            from cahlib.swarm.runs import orphan_warnings
        finally:
            asking.set()
        good, _ = usable_accounts(cloud_accounts(token))
        for sentence in orphan_warnings(good, but=but):
            report(f"cah: {sentence}")
