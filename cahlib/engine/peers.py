"""Authorization within a swarm: Dask asks for a certificate, then trusts every message.

    driver ──► scheduler ◄──► workers, nannies ◄── driver

A certificate's name is its holder's role. The scheduler does what drivers ask, and accepts from a
node only messages about itself. Workers and nannies talk to the scheduler, to drivers and within
their machine, and do not even complete a handshake with other nodes, so a node that was taken over
cannot use the others. Dask checks no addresses either: connections opened here require a
certificate for that very address.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import dask
from distributed.comm.addressing import get_address_host
from distributed.comm.registry import backends
from distributed.comm.tcp import TLSBackend, TLSConnector, TLSListener

from cahlib.engine.message_limits import (
    MAX_WORKER_MESSAGE,
    BoundedConnector,
    BoundedTLS,
    limit_messages,
)
from cahlib.engine.wire import (
    DRIVER_NAMES,
    PROGRESS_TOPIC,
    SCHEDULER_NAME,
    InvalidMessage,
    printable,
)

#: Requests of a node to the scheduler, with the field that names a process; it must be its own.
_REQUESTS: Mapping[str, str] = {
    "register-worker": "address",
    "register_nanny": "address",
    "heartbeat_worker": "address",
    "unregister": "address",
    "set_resources": "worker",  # its machine fails, or works again
    "identity": "",  # the list of workers: all that a node learns of others
    "close": "",
}

#: Messages of its workers, once registered. None about results of others, which no job needs.
_MESSAGES = {
    "close-stream",
    "keep-alive",
    "log-event",
    "long-running",
    "release-worker-data",
    "reschedule",
    "steal-response",
    "task-erred",
    "task-finished",
    "worker-status-change",
}

#: Bytes of the longest report of a job. The scheduler keeps 1,000 events for each topic.
_MAX_REPORT = 1 << 14

#: Resources that a worker may claim.
_RESOURCES: Sequence[Mapping[str, float]] = ({}, {"slot": 0}, {"slot": 1})


def dask_setup(server: Any) -> None:
    """Check the names in certificates; Dask calls this before the process connects."""
    if context := server.connection_args.get("ssl_context"):
        context.check_hostname = True


def is_worker_of(worker: str, node: str) -> bool:
    """Return whether a worker belongs to a node: Dask appends -0, -1 … to the node's name."""
    return worker == node or worker.rpartition("-")[0] == node


def guard_scheduler() -> None:
    """Let the scheduler in this process accept from a node only messages about itself."""

    class Listener(TLSListener):
        comm_class = _FilteredTLS

    limit_messages()
    _register_backend(BoundedConnector, Listener)


def guard_worker() -> None:
    """Let workers and nannies in this process talk only to their scheduler and drivers."""
    own = Path(dask.config.get("distributed.comm.tls.worker.cert")).read_text()
    only = _AllowedPeers(ssl.PEM_cert_to_DER_cert(own))

    class Connector(TLSConnector):
        async def connect(self, address: str, *rest: Any, **named: Any) -> Any:
            comm = await super().connect(address, *rest, **named)
            if not only.knows(comm.stream.socket):
                comm.abort()
                raise ConnectionRefusedError(
                    f"{address} is neither the scheduler nor this machine."
                )
            return comm

    class Listener(TLSListener):
        async def _prepare_stream(self, stream: Any, address: str) -> Any:
            stream = await super()._prepare_stream(stream, address)
            if stream is not None and not only.knows(stream.socket):
                stream.close()  # before anything is read, since workers unpickle messages
                return None
            return stream

    _register_backend(Connector, Listener)


def _register_backend(connector: type[TLSConnector], listener: type[TLSListener]) -> None:
    class Backend(TLSBackend):
        _connector_class = connector
        _listener_class = listener

    backends["tls"] = Backend()


class _AllowedPeers:
    """Drivers, the scheduler, and the machine with this certificate."""

    def __init__(self, own: bytes) -> None:
        self._own = own

    def knows(self, socket: ssl.SSLSocket) -> bool:
        name = _common_name(socket.getpeercert() or {})
        return name in (*DRIVER_NAMES, SCHEDULER_NAME) or socket.getpeercert(True) == self._own


class _FilteredTLS(BoundedTLS):
    """An incoming connection of the scheduler."""

    _registered = False  #: as a worker, whose stream this is from then on

    async def read(self, deserializers: Any = None) -> Any:
        peer = self.extra_info.get("peercert") or {}
        drives = _common_name(peer) in DRIVER_NAMES
        self.most = inf if drives else MAX_WORKER_MESSAGE
        message = await super().read(deserializers)
        if not drives and self.remote_info:  # after the handshake
            if self._registered:
                lines = message if isinstance(message, tuple | list) else (message,)
                for each in lines:
                    _check_message(each)
                return [each for each in lines if not _is_noise(each)]
            _check_request(message, _common_name(peer), _address_check(peer))
            drop_unbounded_names(message)
            self._registered = message.get("op") == "register-worker"
        return message


def _check_request(message: Any, name: str, mine: Callable[[Any], bool]) -> None:
    """Raise InvalidMessage for a request that a node of this name may not make."""
    if (
        isinstance(message, dict) and "op" not in message
    ):  # an answer, e.g. of a nanny that has started
        return
    if not isinstance(message, dict) or message["op"] not in _REQUESTS:
        what = message["op"] if isinstance(message, dict) else type(message).__name__
        raise InvalidMessage(f"{name} may not ask for {printable(str(what), 80)}.")
    field, nanny = _REQUESTS[message["op"]], message.get("nanny")
    if not ((not field or mine(message.get(field))) and (nanny is None or mine(nanny))):
        raise InvalidMessage(f"{name} sent a message about another machine.")
    if message["op"] == "register-worker" and not is_worker_of(str(message.get("name")), name):
        raise InvalidMessage(f"{name} calls itself {printable(str(message.get('name')), 80)}.")
    if message.get("resources", {}) not in _RESOURCES:
        raise InvalidMessage(f"{name} claims to have more than one slot.")


def drop_unbounded_names(message: dict[str, Any]) -> None:
    """Remove from a heartbeat what the scheduler accumulates forever, under any name."""
    message.pop("host_info", None)
    message.pop("extensions", None)
    if isinstance(metrics := message.get("metrics"), dict):
        metrics["digests_total_since_heartbeat"] = {}
        metrics["bandwidth"] = {"total": 100e6, "workers": {}, "types": {}}  # Dask's first guess


def _check_message(message: Any) -> None:
    """Raise InvalidMessage for a message that a worker may not send."""
    if message == "OK":
        return
    if (
        not isinstance(message, dict)
        or message.get("op") not in _MESSAGES
        or {"worker", "client"} & {*message}
    ):
        what = message.get("op") if isinstance(message, dict) else type(message).__name__
        raise InvalidMessage(f"A worker may not send {printable(str(what), 80)}.")


def _is_noise(message: Any) -> bool:
    """Return whether it is an event that no driver reads, such as Dask's own."""
    if not isinstance(message, dict) or message.get("op") != "log-event":
        return False
    report = message.get("msg")
    return (
        message.get("topic") != PROGRESS_TOPIC
        or not isinstance(report, bytes)
        or len(report) > _MAX_REPORT
    )


def _common_name(certificate: Mapping[str, Any]) -> str:
    subject = dict(pair for each in certificate.get("subject", ()) for pair in each)
    return str(subject.get("commonName", ""))


def _address_check(certificate: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Return a predicate: whether an address belongs to the machine with this certificate."""
    own = {value for kind, value in certificate.get("subjectAltName", ()) if "IP" in kind}
    return lambda address: isinstance(address, str) and get_address_host(address) in own
