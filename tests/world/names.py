"""A name server, whose answers may change from one question to the next."""

import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

_KINDS = {1: socket.AF_INET, 28: socket.AF_INET6}

#: Family and address, as often as there are some; an address "" is a failure of the server.
Addresses = Sequence[tuple[int, str]]


@contextmanager
def name_server(
    table: Mapping[str, Addresses | Iterator[Addresses]],
    place: tuple[str, int] = ("127.0.0.1", 0),
    *,
    silent: threading.Event | None = None,
    alone: threading.Event | None = None,
) -> Iterator[str]:
    """A name server on loopback: names with their addresses; others do not exist.

    An iterator gives the addresses anew for each question. While ``silent``, it answers nothing;
    while ``alone``, as a forwarder without its upstream: what it has answered before, and failures.
    """
    cached = set[str]()
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind(place)

        def serve() -> None:
            while len(query := (received := server.recvfrom(512))[0]) > 12:
                if silent and silent.is_set():
                    continue
                labels, at = [], 12
                while query[at]:
                    labels.append(query[at + 1 : at + 1 + query[at]].decode())
                    at += query[at] + 1
                (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
                name = ".".join(labels).lower()
                known = table.get(name)
                if not (alone and alone.is_set()):
                    cached.add(name)
                elif name not in cached:
                    known = tuple((family, "") for family in _KINDS.values())
                if isinstance(known, Iterator):
                    known = next(known)
                given = [address for family, address in known or () if family == _KINDS.get(kind)]
                flags = 0x8180 if known is not None else 0x8183
                if "" in given:
                    flags, given = 0x8182, []
                answer = query[:2] + struct.pack(">5H", flags, 1, len(given), 0, 0)
                answer += query[12 : at + 5]
                for address in given:
                    packed = socket.inet_pton(_KINDS[kind], address)
                    answer += struct.pack(">3HIH", 0xC00C, kind, 1, 60, len(packed)) + packed
                with suppress(OSError):  # while the wire is cut
                    server.sendto(answer, received[1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "{}:{}".format(*server.getsockname()[:2])
        finally:
            server.sendto(b"", server.getsockname())
            thread.join()
