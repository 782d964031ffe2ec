"""The connection to a swarm's head: an engine as soon as workers of the nodes have joined it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cahlib.core.errors import RunError
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import RemoteEngine, remote_engine
from cahlib.swarm.provisioning import Provisioner
from cahlib.swarm.startup import Startup, check_wanted

#: Seconds in which the scheduler must answer, and then workers join.
_JOIN_TIMEOUT = 60


@contextmanager
def joined_engine(
    address: ClusterAddress,
    folder: Path,
    startup: Startup,
    provisioner: Provisioner,
    *,
    report: Callable[[str], None],
) -> Iterator[RemoteEngine]:
    """Open the engine of a swarm whose nodes are up; parcels end up in ``folder``.

    Raise RunError if no worker joins, and Stopped if the servers are no longer wanted by then: they
    may have reached their cost limit, and be deleted already.
    """
    with ExitStack() as opened:
        try:
            engine = opened.enter_context(remote_engine(address, folder, timeout=_JOIN_TIMEOUT))
            _await_workers(engine, startup.up(), report)
        except RunError:
            check_wanted(provisioner)
            raise
        yield engine


def _await_workers(
    engine: RemoteEngine, names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Wait for the workers of nodes; raise RunError if none joins."""
    missing = engine.await_nodes(names, timeout=_JOIN_TIMEOUT)
    if len(missing) == len(names):
        raise RunError("no worker joined the swarm; see `cah swarm logs` or run/swarm/logs.")
    if missing:
        report(f"{', '.join(sorted(missing))}: no worker has joined; continuing without.")
