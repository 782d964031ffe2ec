"""How fast parcels come from a node over TLS, beside SFTP and TCP alone; and the driver's memory.

    python -m tests.benchmarks.bench_pull [--parcel 1073741824] [--file 268435456] [--small]

The node is a light host: its network is this machine's memory. For a round trip of 30 ms a relay
of a few lines stands between, which holds back what passes; no more than 6 MiB are on their way in
a connection, as Debian's TCP allows by default. Then the node's link is made one of 1 Gbit/s. The
smallest size is the line without a relay. Needs root.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cahlib.engine.certificates import KeyPair
from cahlib.engine.cluster import ClusterAddress
from cahlib.engine.remote import remote_engine
from cahlib.swarm import install
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import user_data
from cahlib.swarm.ssh import Login, ssh_session
from tests.benchmarks.common import Absent, note, parser, rss, serving
from tests.world import hosts, jobs

_ROUNDS = 2

#: Milliseconds of a round trip, and bytes on their way in a connection.
_DELAY, _WINDOW = 30, 6 << 20

#: A server's link, as `tc` says it; without one, the two cores are the limit, which do the work of
#: both sides and of the relay.
_RATE = "1gbit"

#: Bytes that the relay passes on at once.
_CHUNK = 1 << 18

#: Where the node offers the file of `_sftp` once, and how; the shell waits until it does.
_PORT = 9900
_SERVE = f"""import os, socket
listening = socket.create_server(("", {_PORT}))
os.fork() and os._exit(0)
listening.accept()[0].sendfile(open("/home/crawl/big", "rb"))"""


class Sizes(NamedTuple):
    """Bytes of a parcel, and of the file that SFTP and TCP alone bring."""

    parcel: int
    file: int


@dataclass(frozen=True, slots=True)
class _Keys(SwarmKeys):
    """Whose nodes are believed to be where the relays are, too."""

    relays: str

    def node(self, name: str, *addresses: str) -> KeyPair:
        return SwarmKeys.node(self, name, *addresses, self.relays)

    def scheduler(self, *addresses: str) -> KeyPair:
        return SwarmKeys.scheduler(self, *addresses, self.relays)


def main(arguments: Sequence[str]) -> None:
    made = parser(__doc__, arguments, parcel=(1 << 30, 1 << 20), file=(256 << 20, 1 << 20))
    options = made.parse_args(arguments)
    sizes = Sizes(options.parcel, options.file)
    if reason := hosts.lacking():
        raise Absent(reason)
    with tempfile.TemporaryDirectory() as folder, hosts.Hosts(Path(folder)) as machines:
        keys = _Keys(Path(folder) / "keys", relays=machines.address)
        host = machines.boot("node", user_data(keys, "node"))
        login = Login(name="node", address=host.address, keys=keys)
        install.set_up_node(
            login,
            install.make_package(Path(folder) / "wheel"),
            head=login,
            networks_for=hosts.admitted([login]),
        )
        print(f"the driver's memory: {rss()} MiB before")
        near = [f"{host.address}:{port}" for port in (install.SCHEDULER_PORT, 22, _PORT)]
        _measure("near", "0 ms", login, near, sizes)
        if options.small:
            return
        with ExitStack() as stack:
            worker, *far = (
                stack.enter_context(serving(relay, machines.address, place, _DELAY / 2000))
                for place in (f"{host.address}:9000", *near)
            )
            _by_relay(host, login, worker)
            _measure("far", f"{_DELAY} ms", login, far, sizes)
            shaped = f"qdisc add dev eth0 root tbf rate {_RATE} burst 1m latency 100ms"
            subprocess.run(["tc", "-n", host.space, *shaped.split()], check=True)
            _measure("limited", f"{_DELAY} ms, {_RATE}", login, far, sizes)


def _measure(name: str, line: str, login: Login, places: list[str], sizes: Sizes) -> None:
    """Parcels in pieces, a file by SFTP and one by TCP alone, all over one line."""
    scheduler, ssh, bare = places
    with tempfile.TemporaryDirectory() as folder:
        speed, memory = _pulled(login, scheduler, Path(folder), sizes.parcel)
        sftp, way = _sftp(login, ssh, Path(folder), sizes.file), _bare(login, bare, sizes.file)
    note(f"pull-{name}", rate=speed, sftp=sftp, tcp=way, driver=max(memory))
    print(
        f"{line}: {speed:.0f} MiB/s in pieces, {sftp:.0f} by SFTP, "
        f"{way:.0f} by TCP alone (pieces: {speed / way:.0%}); "
        f"the driver's memory after each parcel: {memory} MiB",
        flush=True,
    )


def _pulled(login: Login, scheduler: str, folder: Path, size: int) -> tuple[float, list[int]]:
    """MiB a second, from the first piece to the parcel's name, its checksum included."""
    reach = ClusterAddress(
        address=f"tls://{scheduler}", keys=login.keys, parcel_folder=str(folder / "away")
    )
    with remote_engine(reach, folder / "home") as scrapers:
        scrapers.await_nodes([login.name], timeout=60)
        spent, memory = 0.0, []
        for n in range(_ROUNDS):
            scrapers.submit(
                f"parcel{n}", jobs.write_parcel, size + n, "", scrapers.folder, limit=120
            )
            jobs.until(lambda n=n: scrapers._jobs[f"parcel{n}"].fetching)
            started = time.monotonic()
            _, parcel = scrapers.take(timeout=120)
            spent += time.monotonic() - started
            memory.append(rss())
            assert parcel.path.stat().st_size == size + n
    return _ROUNDS * size / spent / (1 << 20), memory


def _sftp(login: Login, place: str, folder: Path, size: int) -> float:
    address, port = place.split(":")
    with ssh_session(replace(login, address=address, port=int(port))) as node:
        node.run(f"head -c {size} /dev/urandom > /home/crawl/big")
        started = time.monotonic()
        node.get("/home/crawl/big", folder / "big")
        seconds = time.monotonic() - started
    assert (folder / "big").stat().st_size == size
    return size / seconds / (1 << 20)


def _bare(login: Login, place: str, size: int) -> float:
    """What the way itself can do: a file's bytes, neither encrypted nor checked."""
    with ssh_session(login) as node:
        node.run(f"python3 -c '{_SERVE}' > /dev/null 2>&1")
    host, port = place.split(":")
    got, room, started = 0, bytearray(1 << 20), time.monotonic()
    with socket.create_connection((host, int(port))) as stream:
        while more := stream.recv_into(room):
            got += more
    assert got == size
    return got / (time.monotonic() - started) / (1 << 20)


def _by_relay(host: hosts.Host, login: Login, contact: str) -> None:
    """Start the node's worker so that others reach it through a relay."""
    unit = host.base / "etc/crawl.service"
    ports = "--worker-port 9000:9049 --nanny-port 9050:9099"
    own = f"--listen-address tls://{host.address}:9000 --contact-address tls://{contact}"
    text = unit.read_text().replace("--host ${ADDRESS} ", "").replace(ports, own)
    unit.write_text(text)
    install.restart_service(login)


def relay(address: str, target: str, delay: float) -> None:
    """Pass on what comes for a target, for ever; print the relay's HOST:PORT first."""
    asyncio.run(_relay(address, target, delay))


async def _relay(address: str, target: str, delay: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection(*target.split(":"), limit=_WINDOW)
        await asyncio.gather(_held(reader, onward[1], delay), _held(onward[0], writer, delay))

    server = await asyncio.start_server(connected, address, 0, limit=_WINDOW)
    print(f"{address}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def _held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass on what comes, later; half a window is on its way in half a round trip."""
    clock, going = asyncio.get_running_loop().time, asyncio.Queue()
    room, held = asyncio.Event(), 0

    async def send() -> None:
        nonlocal held
        while True:
            due, data = await going.get()
            await asyncio.sleep(due - clock())
            held -= len(data)
            room.set()
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    sending = asyncio.create_task(send())
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            while held > _WINDOW // 2:
                room.clear()
                await room.wait()
            held += len(data)
            going.put_nowait((clock() + delay, data))
    going.put_nowait((clock() + delay, b""))
    with suppress(OSError):
        await sending


if __name__ == "__main__":
    main(sys.argv[1:])
