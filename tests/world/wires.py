"""Two machines and the wires between them: a scraper near, the world far, and cuts where one likes.

Each machine is a network namespace. Threads of this process stand in one or the other, and so do
the sockets and threads that they make.

    near eth0 ── port ── br0 with the world's addresses far
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_NEWNET = 0x40000000
_SPACE = "/proc/thread-self/ns/net"
WEB, OTHER, NAMES = "93.184.216.34", "93.184.216.35", "93.184.216.53"
NOBODY = "93.184.216.99"
WEB6, NOBODY6 = "2606:2800:220:1::34", "2606:2800:220:1::99"


class Wires:
    """The two machines, from entering on."""

    def __init__(self, families: str = "46") -> None:
        """``families``: which of IPv4 and IPv6 the scraper's machine has."""
        self._families = families
        self.near, self.far = f"cahnear{os.getpid()}", f"cahfar{os.getpid()}"

    def __enter__(self) -> "Wires":
        for space in (self.near, self.far):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", self.near, "link", "add", "eth0", "type", "veth",
           "peer", "port", "netns", self.far)  # fmt: skip
        for line in (
            "link add br0 type bridge", "link set port master br0", "link set port up",
            "link set br0 up", *(f"addr add {each}/24 dev br0" for each in (WEB, OTHER, NAMES)),
            f"addr add {WEB6}/64 dev br0 nodad",
        ):  # fmt: skip
            ip("-n", self.far, *line.split())
        # IPv6 addresses outlive a cut, as they do where they are configured
        self._set(self.far, "net.ipv6.conf.br0.keep_addr_on_down=1")
        self._set(self.near, "net.ipv6.conf.eth0.keep_addr_on_down=1")
        # that nobody is at an address is known after 0.3 s, not 3
        for family in ("ipv4", "ipv6"):
            self._set(self.near, f"net.{family}.neigh.eth0.retrans_time_ms=100")
        if "4" in self._families:
            ip("-n", self.near, *"addr add 93.184.216.2/24 dev eth0".split())
        if "6" in self._families:
            ip("-n", self.near, *"addr add 2606:2800:220:1::2/64 dev eth0 nodad".split())
        self.plug()
        return self

    def __exit__(self, *_: object) -> None:
        for space in (self.near, self.far):
            ip("netns", "delete", space)

    def unplug(self) -> None:
        """Take the scraper's interface down; its routes go with it."""
        ip("-n", self.near, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Take it up, with the routes that DHCP would bring."""
        ip("-n", self.near, "link", "set", "eth0", "up")
        if "4" in self._families:
            ip("-n", self.near, *f"route replace default via {WEB}".split())
        if "6" in self._families:
            ip("-n", self.near, *f"-6 route replace default via {WEB6}".split())

    def cut(self) -> None:
        """Take the far end down, which the scraper's machine does not notice."""
        ip("-n", self.far, "link", "set", "br0", "down")

    def mend(self) -> None:
        """Take the far end up."""
        ip("-n", self.far, "link", "set", "br0", "up")

    @contextmanager
    def inside(self, space: str) -> Iterator[None]:
        """Let this thread stand in a machine."""
        with open(_SPACE) as here, open(f"/run/netns/{space}") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def start(self, function):
        """Run a function on a thread of the scraper's machine; gives its future."""

        def there():
            with self.inside(self.near):
                return function()

        pool = ThreadPoolExecutor(1)
        future = pool.submit(there)
        pool.shutdown(wait=False)
        return future

    def _set(self, space: str, setting: str) -> None:
        line = ["ip", "netns", "exec", space, "sysctl", "-qw", setting]
        subprocess.run(line, check=True, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _enter(space: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space, _NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
