"""How fast parcels come from a node, over TLS, beside SFTP.

The node is a light host: its network is this machine's memory. Needs root.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cahlib.swarm import install
from cahlib.swarm.cluster import Reach
from cahlib.swarm.keys import Keys
from cahlib.swarm.node import user_data
from cahlib.swarm.remote import remote
from cahlib.swarm.ssh import Login, session
from tests.world import hosts, jobs

_SIZE = 256 << 20
_ROUNDS = 4


def main() -> None:
    if reason := hosts.lacking():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder, hosts.Hosts(Path(folder)) as machines:
        keys = Keys(Path(folder) / "keys")
        host = machines.boot("node", user_data(keys, "node"))
        login = Login(name="node", address=host.address, keys=keys)
        install.bring_up(login, install.package(Path(folder) / "wheel"), head=login)
        before = _memory()
        for delay in (0, 30):
            if delay and not _delayed(host, delay):
                print(f"{delay} ms: this kernel has no netem, so it was not measured")
                continue
            print(f"{delay} ms: {_pulled(login, Path(folder)):.0f} MiB/s in pieces")
            print(f"{delay} ms: {_sftp(login, Path(folder)):.0f} MiB/s by SFTP")
        print(f"the driver's memory: {_memory()} MiB at most, {before} MiB before")


def _pulled(login: Login, folder: Path) -> float:
    """MiB a second, from the first piece to the parcel's name, its checksum included."""
    reach = Reach(
        address=f"tls://{login.address}:{install.PORT}", keys=login.keys, away=str(folder / "away")
    )
    with remote(reach, folder / "home") as scrapers:
        scrapers.gather([login.name], timeout=30)
        spent = 0.0
        for n in range(_ROUNDS):
            scrapers.submit(
                f"parcel{n}", jobs.write_parcel, _SIZE + n, "", scrapers.folder, limit=60
            )
            jobs.until(lambda n=n: scrapers._jobs[f"parcel{n}"].coming, seconds=60)
            started = time.monotonic()
            scrapers.take(timeout=120)
            spent += time.monotonic() - started
    return _ROUNDS * _SIZE / spent / (1 << 20)


def _sftp(login: Login, folder: Path) -> float:
    with session(login) as node:
        node.run(f"head -c {_SIZE} /dev/urandom > /home/crawl/big")
        started = time.monotonic()
        node.get("/home/crawl/big", folder / "big")
        return _SIZE / (time.monotonic() - started) / (1 << 20)


def _delayed(host: hosts.Host, milliseconds: int) -> bool:
    line = ["tc", "qdisc", "add", "dev", host.space, "root", "netem", "delay", f"{milliseconds}ms"]
    return subprocess.run(line, capture_output=True).returncode == 0


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
