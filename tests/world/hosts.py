"""Light hosts: machines that share this one's kernel and disk, each with its own network and sshd.

A host is a network namespace on a bridge, with Debian's sshd in it and a /home/crawl of its own.
What cloud-init would do at the first boot is done here from the same user-data: files, keys, user.
A `systemctl` of a few lines stands in for systemd: it runs a unit's ExecStart again and again; and,
but where a test is about it, one of as many for pip, and forks for Dask's processes, which else
take a second of processor each to import what they need.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cahlib.core.retry import wait_until
from cahlib.swarm import install
from cahlib.swarm.ssh import Login
from cahlib.swarm.startup import Startup
from tests.world import forks, zygote

ROOT = Path(__file__).parent.parent.parent
SUBNET = "198.18"  # RFC 2544: for tests of devices, never on the internet
_BRIDGE = "cahbr"
#: Where coverage has what it measures, for the processes that the tests start.
_MEASURED = "COVERAGE_PROCESS_CONFIG"
_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or ""

#: What pip need not do for a wheel beside all that the tests have: half of its 4.7 s of processor.
_PIP = "PIP_NO_WARN_CONFLICTS=0 PIP_NO_COMPILE=0"  # pip reads these as whether it warns, compiles

#: What stands in for pip, which takes two seconds of processor. Packages are unpacked once for all
#: hosts, so that Python compiles them once.
_UNPACK = """import os, sys, sysconfig, zipfile
wheel = sys.argv[-1]
shared, part = (f"@SHARED@/{kind}{os.path.basename(wheel)}" for kind in ("", f"{os.getpid()}-"))
if not os.path.exists(shared):
    zipfile.ZipFile(wheel).extractall(part)
    try:
        os.rename(part, shared)
    except OSError:  # another host was first
        assert os.path.exists(shared)
for name in os.listdir(shared):
    own = os.path.join(sysconfig.get_path("purelib"), name)
    os.path.lexists(own) or os.symlink(f"{shared}/{name}", own)
"""

_SYSTEMCTL = r"""#!/bin/bash
# systemctl VERB UNIT, for services with one ExecStart; restarts what ends, as Restart=always does
verb=$1 unit=$2 pid=@BASE@/$2.pid
[ "$verb" = enable ] && exit 0
if [ -f $pid ]; then kill -9 -- -$(cat $pid) 2>/dev/null; rm $pid; fi
[ "$verb" = stop ] && exit 0
line=$(sed -n 's#/usr/local/lib/cahlib#@BASE@/etc#; s/^ExecStart=//p' @BASE@/etc/$unit.service)
asked=$(sed -n 's#^ConditionFileNotEmpty=/etc/cahlib#@BASE@/etc#p' @BASE@/etc/$unit.service)
[ -z "$asked" ] || [ -s "$asked" ] || exit 0
cat > @BASE@/$unit.sh <<EOT
set -a; . /home/crawl/crawl.env; DASK_CONFIG=@BASE@/etc
CREDENTIALS_DIRECTORY=@BASE@/etc; STATE_DIRECTORY=@BASE@
cd /home/crawl
while :; do $line; sleep 0.5; done
EOT
setsid bash @BASE@/$unit.sh >> /home/crawl/crawl.log 2>&1 < /dev/null &
echo $! > $pid
"""


@cache
def lacking() -> str:
    """Why there can be no light hosts here, as a sentence; "" if there can."""
    if os.geteuid() != 0:
        return "light hosts need root for their network namespaces."
    if not _SSHD or not shutil.which("ip"):
        return "light hosts need openssh-server and iproute2 (apt-get install)."
    name = f"cah-try{os.getpid()}"  # other tests may be trying at the same time
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}."


@dataclass(eq=False)
class Host:
    """One machine."""

    name: str
    number: int
    address: str
    base: Path
    sshd: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """Its /home/crawl, as seen from here."""
        return self.base / "home"

    @property
    def log(self) -> str:
        path = self.home / "crawl.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def cable(self, *, plugged: bool) -> None:
        """Cut its link, or mend it."""
        _ip("link", "set", f"cah{self.number}", "up" if plugged else "down")

    def processes(self, word: str = "") -> list[int]:
        """Ids of what runs on it, by a word of the command line."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True
        ).stdout.split()
        return [int(pid) for pid in listed if word in _line(pid)]

    def kill(self, word: str = "", how: signal.Signals = signal.SIGKILL) -> int:
        """Signal what runs on it; gives how many there were."""
        pids = self.processes(word)
        for pid in pids:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                pass
        return len(pids)

    def end(self) -> None:
        """Have its services end by themselves, so that `make coverage` gets their figures."""
        self.kill(f"{self.base}/crawl")  # these would start them again
        self.kill("distributed.cli", signal.SIGTERM)
        wait_until(lambda: not self.processes("distributed.cli"), timeout=10, pause=0.05)

    def off(self) -> None:
        """Cut its power, as far as processes go."""
        if self.sshd:
            self.sshd.kill()  # it may not have come into its namespace yet
            self.sshd.wait()
        while self.kill():  # a restart loop may be between two processes
            pass

    @property
    def space(self) -> str:
        return f"cah{self.number}"


@dataclass(eq=False)
class Hosts:
    """All light hosts of a test, on one bridge; ``start`` and ``stop`` fit `tests.world.cloud`."""

    folder: Path
    net: int = 0  #: which of the subnets, the first one that no other test has
    dark: bool = False  #: whether machines come without a cable from now on
    real: bool = False  #: whether machines have pip itself, and no forks
    all: dict[str, Host] = field(default_factory=dict)
    _count: int = 0

    @property
    def address(self) -> str:
        """This machine's, on the bridge."""
        return f"{SUBNET}.{self.net}.1"

    @property
    def bridge(self) -> str:
        return f"{_BRIDGE}{self.net}"

    def __enter__(self) -> Hosts:
        self.net = next(net for net in range(1, 51) if _bridged(f"{_BRIDGE}{net}"))
        _ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.all):
            self.remove(name)
        _ip("link", "delete", self.bridge)

    def start(self, server: dict, user_data: str) -> str:
        """Boot a server; gives its address. A stranger's is only listed."""
        if not user_data:
            return "192.0.2.1"
        return self.boot(server["name"], user_data).address

    def stop(self, server: dict) -> None:
        """Delete a server."""
        self.remove(server["name"])

    def boot(self, name: str, user_data: str) -> Host:
        """A machine with this user-data."""
        self._count += 1
        number = self.net * 100 + self._count
        host = Host(
            name=name,
            number=number,
            address=f"{SUBNET}.{self.net}.{self._count + 1}",
            base=self.folder / name,
        )
        self.all[name] = host
        _prepare(host, json.loads(user_data.partition("\n")[2]))
        if not self.real:
            _site(host.home / "venv").joinpath("pip.py").write_text(
                _UNPACK.replace("@SHARED@", _shared())
            )
            zygote.become_node(host.home / "venv", Path("/home/crawl/venv"))
        _ip("netns", "add", host.space)
        _ip("link", "add", f"cah{number}", "type", "veth", "peer", "eth0", "netns", host.space)
        _ip("link", "set", f"cah{number}", "master", self.bridge)
        for words in (
            ("addr", "add", f"{host.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", host.space, *words)
        host.cable(plugged=not self.dark)
        self.power(host)
        return host

    def power(self, host: Host) -> None:
        """Switch a machine on."""
        started = list(host.base.glob("*.pid"))  # before its power was cut
        units = "".join(f"{host.base}/bin/systemctl restart {pid.stem} && " for pid in started)
        for pid in started:
            pid.unlink()
        # a mount namespace of its own comes with `ip netns exec`
        script = (
            f"mkdir -p /home/crawl && mount --bind {host.home} /home/crawl && "
            f"mount --bind {host.base}/passwd /etc/passwd && mkdir -p /run/sshd /etc/cahlib && "
            f"mount --bind {host.base}/etc /etc/cahlib && "
            f"{units} exec {_SSHD} -D -e -f {host.base}/sshd_config"
        )
        # what is installed there counts, not the tree that the tests run in
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with open(host.base / "sshd.log", "ab") as log:
            host.sshd = subprocess.Popen(
                ["ip", "netns", "exec", host.space, "sh", "-c", script], env=own,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def remove(self, name: str) -> None:
        """Delete a machine with all that runs on it."""
        host = self.all.pop(name, None)
        if host is None:
            return
        if _MEASURED in os.environ:
            host.end()
        host.off()
        subprocess.run(["ip", "link", "delete", f"cah{host.number}"], capture_output=True)
        _ip("netns", "delete", host.space)


def set_up(logins: list[Login], package: install.Package) -> dict[str, Exception]:
    """Make nodes of machines that are there, the first one the head; gives what went wrong."""
    startup = Startup(
        lambda login, head: install.set_up_node(
            login, package, head=head, networks_for=admitted(logins)
        )
    )
    startup.start(logins, logins[0])
    startup.wait()
    return startup.errors()


def admitted(logins: list[Login]) -> install.NetworkSource:
    """Return how the ports of machines are opened to them, and to this one."""
    return lambda driver: [*(each.address for each in logins), driver]


def _prepare(host: Host, told: dict) -> None:
    """What cloud-init does at the first boot."""
    user, tools, etc = told["users"][0], host.base / "bin", host.base / "etc"
    for folder in (host.home / ".ssh", tools, etc):
        folder.mkdir(parents=True)
    for each in told["write_files"]:
        path = Path(each["path"])
        if path.parts[1:3] == ("etc", "cahlib") or path.suffix in (".service", ".py"):
            (etc / path.name).write_text(each["content"])
        if path.name in ("crawl-peers", "crawl-scheduler"):
            (tools / path.name).write_text(each["content"])
            (tools / path.name).chmod(0o755)
    (host.home / ".ssh/authorized_keys").write_text("\n".join(user["ssh_authorized_keys"]) + "\n")
    (host.home / "booted").touch()
    (host.base / "host_key").write_text(told["ssh_keys"]["ed25519_private"])
    for path in (host.home / ".ssh/authorized_keys", host.base / "host_key"):
        path.chmod(0o600)
    for folder in (host.home, host.home / ".ssh"):
        folder.chmod(0o700)
    # the user is root by another name: the interpreter of the tests may lie where only root reads
    passwd = Path("/etc/passwd").read_text()
    (host.base / "passwd").write_text(
        f"{passwd}crawl:x:0:0::/home/crawl:/bin/bash\ncrawl-head:x:0:0::/:/bin/sh\n"
    )
    for name, text in (
        ("systemctl", _SYSTEMCTL.replace("@BASE@", str(host.base))),
        ("sudo", '#!/bin/bash\nexec "${1##*/}" "${@:2}"\n'),
        ("cloud-init", "#!/bin/sh\necho status: done\n"),
        ("nft", "#!/bin/sh\n"),
        ("nproc", "#!/bin/sh\necho 1\n"),
        ("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (host.base / "sshd_config").write_text(
        f"HostKey {host.base}/host_key\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nAllowUsers crawl\n"
        "Subsystem sftp internal-sftp\nUsePAM no\nPidFile none\nStrictModes no\n"
        f"SetEnv PATH={tools}:/usr/sbin:/usr/bin:/sbin:/bin {_PIP}\n"
    )
    _venv(host.home / "venv")


def _venv(folder: Path) -> None:
    """A venv that sees what the tests see, so that only the wheel itself has to be installed."""
    venv.create(folder, symlinks=True)
    lines = [sysconfig.get_path("purelib"), str(ROOT)]
    if measured := os.environ.get(_MEASURED):  # sshd hands no variable on
        lines.append(
            f"import os, coverage; os.environ[{_MEASURED!r}] = {measured!r}; "
            "coverage.process_startup()"
        )
    (_site(folder) / "tests.pth").write_text("\n".join(lines))


def _site(folder: Path) -> Path:
    return next((folder / "lib").glob("python*")) / "site-packages"


@cache
def _shared() -> str:
    if zygote.interpreter() != forks.PYTHON:  # for all processes of the tests
        return str(Path(forks.interpreter).parent)
    folder = tempfile.mkdtemp(prefix="cah-wheels-")
    atexit.register(shutil.rmtree, folder)
    return folder


def _bridged(name: str) -> bool:
    """Make a bridge; whether nobody else had one of its name."""
    line = ["ip", "link", "add", name, "type", "bridge"]
    return subprocess.run(line, capture_output=True).returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
