"""Real machines: Debian booted by systemd-nspawn, with the real cloud-init on our user-data.

Each is an overlay of a tree that debootstrap made (`python -m tests.world.machines` does, in two
minutes an image), with a NoCloud seed and a static address on a bridge. They reach no registry.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from cahlib.swarm import server_image, wheel
from tests.world.hosts import SUBNET

#: Where the trees are kept; they outlive the tests.
TREES = Path(os.environ.get("CAHLIB_TEST_TREES", "/var/tmp/cahnode"))

#: All machines of tests are in it.
NETWORK = f"{SUBNET}.0.0/16"

#: Debian's name of each image.
SUITES = {"debian-12": "bookworm", "debian-13": "trixie"}

_FIRST = (
    "systemd,systemd-sysv,dbus,openssh-server,python3-venv,python3-pip,iproute2,sudo,locales,"
    "netbase,ca-certificates,libpam-systemd"
)

_NETWORK = """[Match]
Name=host0
[Network]
Address={address}/24
LinkLocalAddressing=no
"""


@dataclass(frozen=True)
class Image:
    """What machines are made of, by the cloud's name for it."""

    name: str
    python: str

    packages: tuple[str, ...] = ()  #: of Debian, beside those of a node
    extra: str = ""  #: of cahlib, beside what a node needs

    @property
    def tree(self) -> Path:
        """Its files."""
        return TREES / "-".join((self.name, *self.packages))

    @property
    def wheels(self) -> Path:
        """What it needs beside cahlib's own wheel, for its Python."""
        return TREES / "-".join(filter(None, (self.name, self.extra, "wheels")))

    def lacking(self) -> str:
        """Return why there can be no such machines here, as a sentence; "" if there can."""
        if os.geteuid() != 0:
            return "real machines need root."
        if not shutil.which("systemd-nspawn"):
            return "real machines need systemd-nspawn (apt-get install systemd-container)."
        if not (self.tree / ".done").exists():
            return f"there is no tree of Debian at {self.tree}; `make test-nodes` makes it."
        if not _is_filled(self.wheels):
            return f"the wheels at {self.wheels} are not the pins; `make test-nodes` renews them."
        return ""

    def make(self) -> None:
        """Make the tree and fetch the pinned wheels, if they are not there."""
        if not _is_filled(self.wheels):
            shutil.rmtree(self.wheels, ignore_errors=True)
            self.wheels.mkdir(parents=True)
            pins = self.wheels / "pins.txt"
            pins.write_text(wheel.pip_constraints())
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--dest", self.wheels,
                 "--python-version", self.python, "--only-binary=:all:", "--no-deps",
                 "--requirement", pins],
                check=True,
            )  # fmt: skip
            if self.extra:
                self._fetch_extra()
            (self.wheels / ".done").touch()
        if (self.tree / ".done").exists():
            return
        if self.packages:
            plain = replace(self, packages=(), extra="")
            plain.make()
            subprocess.run(["cp", "-a", plain.tree, self.tree], check=True)
            (self.tree / ".done").unlink()
            self._install(*self.packages)
            return
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_FIRST}", SUITES[self.name],
             self.tree],
            check=True,
        )  # fmt: skip
        for path in Path("/etc/apt/apt.conf.d").iterdir():  # proxies of this machine
            shutil.copy(path, self.tree / "etc/apt/apt.conf.d")
        shutil.copy("/etc/resolv.conf", self.tree / "etc/resolv.conf")
        self._install("cloud-init", "unbound", "nftables")

    def _install(self, *packages: str) -> None:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["chroot", self.tree, "apt-get", *words], check=True, env=quiet)
        (self.tree / ".done").touch()

    def _fetch_extra(self) -> None:
        """Fetch what an extra needs, at the newest versions, for the image's Python."""
        needed = [Requirement(each) for each in requires("cahlib") or ()]
        found = [
            f"{each.name}[{','.join(each.extras)}]{each.specifier}"
            for each in needed
            if each.marker and each.marker.evaluate({"extra": self.extra})
            and not each.marker.evaluate({"extra": ""})
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--dest", self.wheels,
             "--find-links", self.wheels, "--python-version", self.python,
             "--only-binary=:all:", *found],
            check=True,
        )  # fmt: skip


IMAGES = [Image(name, python) for python, name in server_image.IMAGES.items()]
#: What `server.sh` installs; caddy and the database are there already.
SERVERS = [replace(each, packages=("postgresql", "caddy"), extra="tracker") for each in IMAGES[-1:]]


def _is_filled(wheels: Path) -> bool:
    return (wheels / ".done").exists() and (
        wheels / "pins.txt"
    ).read_text() == wheel.pip_constraints()


@dataclass(eq=False)
class Machine:
    """One machine."""

    name: str
    address: str
    base: Path
    link: str
    nspawn: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """Its file system, as seen from here."""
        return self.base / "root"

    @property
    def home(self) -> Path:
        return self.root / "home/crawl"

    @property
    def log(self) -> str:
        path = self.home / "crawl.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def cable(self, *, plugged: bool) -> None:
        """Cut its link, or mend it."""
        _ip("link", "set", self.link, "up" if plugged else "down")

    def _first(self) -> list[str]:
        """Its own first process, by its id here."""
        assert self.nspawn is not None
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")
        return children.read_text().split()

    def run(self, *line: str) -> subprocess.CompletedProcess[str]:
        """Run a command on it as root; its output holds its errors."""
        enter = ["nsenter", "--all", "--target", *self._first(), "--"]
        return subprocess.run(
            [*enter, *line], text=True, check=False, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={"PATH": "/usr/sbin:/usr/bin", "HOME": "/root"},
        )  # fmt: skip

    def off(self) -> None:
        """Cut its power: kill -9 of its own first process; killing nspawn alone leaves it."""
        if self.nspawn is None:
            return
        try:
            for pid in self._first():
                os.kill(int(pid), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
        try:
            self.nspawn.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.nspawn.kill()
            self.nspawn.wait()
        self.nspawn = None


@dataclass(eq=False)
class Machines:
    """All real machines of a test, on one bridge; they fit `tests.world.cloud`."""

    folder: Path
    image: Image
    net: int = field(default_factory=lambda: os.getpid() % 200 + 51)
    all: dict[str, Machine] = field(default_factory=dict)
    _count: int = 0

    @property
    def address(self) -> str:
        """This machine's, on the bridge."""
        return f"{SUBNET}.{self.net}.1"

    @property
    def bridge(self) -> str:
        return f"cahmb{self.net}"

    def __enter__(self) -> Machines:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        # the overlays' upper halves: an overlay cannot lie on an overlay
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "cahlib-machines", self.folder], check=True)
        (self.folder / "cgroups").mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "none", self.folder / "cgroups"], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.all):
            self.remove(name)
        _ip("link", "delete", self.bridge)
        subprocess.run(["umount", self.folder / "cgroups"], check=True)
        subprocess.run(["umount", self.folder], check=True)

    def start(self, server: dict, user_data: str) -> str:
        """Boot a server; gives its address."""
        return self.boot(server["name"], user_data).address

    def stop(self, server: dict) -> None:
        """Delete a server."""
        self.remove(server["name"])

    def boot(self, name: str, user_data: str) -> Machine:
        """A machine with this user-data."""
        self._count += 1
        short = f"cahm{self.net}-{self._count}"
        machine = Machine(
            name=name,
            address=f"{SUBNET}.{self.net}.{self._count + 1}",
            base=self.folder / short,
            link=f"vb-{short}",
        )
        self.all[name] = machine
        for part in ("upper", "work", "root"):
            (machine.base / part).mkdir(parents=True)
        layers = {"lowerdir": self.image.tree, "upperdir": machine.base / "upper",
                  "workdir": machine.base / "work"}  # fmt: skip
        options = ",".join(f"{name}={path}" for name, path in layers.items())
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, machine.root], check=True
        )
        for path, text in (
            ("var/lib/cloud/seed/nocloud/user-data", user_data),
            (
                "var/lib/cloud/seed/nocloud/meta-data",
                f"instance-id: {short}\nlocal-hostname: {name}\n",
            ),
            ("etc/cloud/cloud.cfg.d/99-test.cfg",
             "datasource_list: [NoCloud, None]\nnetwork: {config: disabled}\n"),
            ("etc/systemd/network/10-host0.network", _NETWORK.format(address=machine.address)),
        ):  # fmt: skip
            (machine.root / path).parent.mkdir(parents=True, exist_ok=True)
            (machine.root / path).write_text(text)
        wants = machine.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        service = wants / "systemd-networkd.service"
        if not service.is_symlink():
            service.symlink_to("/lib/systemd/system/systemd-networkd.service")
        self.power(machine)
        return machine

    def power(self, machine: Machine) -> None:
        """Switch a machine on, in a cgroup of its own: shared ones refuse a login now and then."""
        group = self.folder / "cgroups" / machine.base.name
        group.mkdir(exist_ok=True)
        line = (
            f"echo $$ > {group}/cgroup.procs; "
            "export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1; "
            f"exec systemd-nspawn --quiet --register=no --keep-unit -D {machine.root} "
            f"-M {machine.base.name} --network-bridge={self.bridge} --boot --resolv-conf=off "
            "--link-journal=no"
        )
        with open(machine.base / "console.log", "ab") as log:
            machine.nspawn = subprocess.Popen(
                ["sh", "-c", line],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def remove(self, name: str) -> None:
        """Delete a machine with all that runs on it."""
        machine = self.all.pop(name, None)
        if machine is None:
            return
        machine.off()
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", machine.root], capture_output=True).returncode:
            assert time.monotonic() < deadline, f"{machine.root} cannot be unmounted"
            time.sleep(0.1)
        shutil.rmtree(machine.base)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


if __name__ == "__main__":
    for each in (*IMAGES, *SERVERS):
        each.make()
