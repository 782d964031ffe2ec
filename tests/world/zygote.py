"""The zygote: a process that has imported what tests need, and of which other Pythons are forks.

To import torch, Dask and the rest takes 4 CPU seconds, and each of pytest-xdist's processes needs
it twice: itself, and in its fork server (`tests.world.forks`); so do runs that a notebook starts,
kernels, and the scrapers of all of them. `Zygote` has it done once for all: its ``interpreter`` is
an executable that takes the arguments of a Python, and is a fork of the zygote with the caller's
files, environment and namespaces, to which it hands on the signals that it is sent.

Another zygote has imported what Dask's processes on a node need beside cahlib: `become_node` makes
those of a host its forks, which import the cahlib that was brought there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

from tests.world import forks

#: The most files that a Python is started with.
_MOST_FILES = 64

#: Waits for a fork of the zygote; what it was started with is the fork's alone.
_INTERPRETER = """#!{python} -IS
import os, signal, sys

given = sys.argv[1:]
while given[:1] in (["-B"], ["-u"]):
    del given[0]
if given[:1] not in (["-c"], ["-m"]) or not given[1].startswith({forked!r}):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])

import json, socket

handed = {{signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}}
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, handed)
files = []
for name in os.listdir("/proc/self/fd"):
    try:
        os.fstat(int(name))
        files.append(int(name))
    except OSError:  # of the listing itself
        pass
spaces = [os.open("/proc/self/ns/" + name, os.O_RDONLY) for name in ("net", "mnt")]
zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
zygote.connect({place!r})
told = dict(
    line=given, env=dict(os.environ), cwd=os.getcwd(), files=files, blocked=[*map(int, blocked)],
    python={own!r}, sites={sites!r},
)
socket.send_fds(zygote, [json.dumps(told).encode()], [*spaces, *files])
for number in (*spaces, *files):
    os.close(number)
fork = int(zygote.recv(20) or 0)
def hand(number, frame):
    try:
        os.kill(fork, number)
    except ProcessLookupError:  # it has just ended
        pass
for each in handed if fork else ():
    signal.signal(each, hand)
signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
code = int(zygote.recv(20) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


_SERVER = f"import sys, {__name__} as it; it.serve(int(sys.argv[1]), sys.argv[2])"

#: What each zygote imports, by its name.
_LOADS = {"cahlib": forks.load, "node": forks.load_node}
#: How lines begin that are done on a host by forks: Dask's processes, and what these start.
_ON_NODES = ("distributed.cli.", "from multiprocessing.")


class Zygote:
    """A zygote that ends with this process, or when it is closed."""

    def __init__(self, folder: Path, name: str) -> None:
        place = str(folder / name)
        # as a node's, for what reads its settings when it is imported
        settings = {"DASK_CONFIG": str(forks.ROOT / "cahlib/swarm/node")} if name == "node" else {}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(place)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(listener.fileno()), name],
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                cwd=forks.ROOT,
                pass_fds=[listener.fileno()],
            )

    def close(self) -> None:
        """End it; its forks go on."""
        self._process.communicate()


def start(folder: Path) -> list[Zygote]:
    """Start both; the interpreter is the file "python" of the folder."""
    _write(
        folder / "python", own=str(folder / "python"), python=forks.PYTHON,
        place=str(folder / "cahlib"), forked="", sites=[],
    )  # fmt: skip
    return [Zygote(folder, name) for name in _LOADS]


def become_node(venv: Path, home: Path) -> None:
    """Let the Python of a host's environment, which is at ``home`` there, be a fork for Dask."""
    if interpreter() == forks.PYTHON:
        return
    (venv / "bin/python").rename(venv / "bin/own")
    found = (home / each.relative_to(venv) for each in (venv / "lib").glob("python*/site-*"))
    sites = [*map(str, found), str(forks.ROOT)]
    _write(
        venv / "bin/python", own=str(home / "bin/python"), python=str(home / "bin/own"),
        place=str(Path(interpreter()).with_name("node")), forked=_ON_NODES, sites=sites,
    )  # fmt: skip


def _write(path: Path, **told: Any) -> None:
    path.write_text(_INTERPRETER.format(**told))
    path.chmod(0o700)


@functools.cache
def interpreter() -> str:
    """Return a Python whose start costs nothing: a fork that has imported what cahlib needs.

    What is measured by coverage starts anew.
    """
    if forks.interpreter == forks.PYTHON and "coverage" not in sys.modules:
        folder = Path(tempfile.mkdtemp(prefix="zygote-"))
        atexit.register(shutil.rmtree, folder)
        for each in start(folder):
            atexit.register(each.close)
        forks.interpreter = str(folder / "python")
    return forks.interpreter


def serve(number: int, name: str) -> None:
    """Fork for whoever connects to this listener, until standard input ends."""
    listener = socket.socket(fileno=number)
    if name == "node" and 0 in select.select([0, listener], [], [])[0]:
        os._exit(0)  # not every session has hosts
    _LOADS[name]()
    woken, wakes = os.pipe()
    for each in (woken, wakes):
        os.set_blocking(each, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([0, woken, listener, *children.values()], [], [])
        if 0 in ready:
            os._exit(0)
        if listener in ready:
            _fork(listener.accept()[0], (listener.fileno(), woken, wakes), children)
        for pid, caller in children.items():
            if caller in ready:  # it was killed, maybe with its group, in which the fork is not
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError):
                        kill(pid, signal.SIGKILL)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 1024)
        while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with children.pop(ended[0]) as caller, contextlib.suppress(OSError):
                caller.send(str(os.waitstatus_to_exitcode(ended[1])).encode())


def _fork(caller: socket.socket, own: tuple[int, ...], children: dict[int, socket.socket]) -> None:
    data, given, _, _ = socket.recv_fds(caller, 1 << 20, _MOST_FILES)
    if not data:  # it was killed before it had said what it is
        caller.close()
        return
    if (pid := os.fork()) == 0:
        for number in (*own, caller.fileno(), *(each.fileno() for each in children.values())):
            os.close(number)
        _be(json.loads(data), given)
    children[pid] = caller
    with contextlib.suppress(OSError):  # it was killed meanwhile
        caller.send(str(pid).encode())
    for number in given:
        os.close(number)


def _be(told: dict[str, Any], given: list[int]) -> None:
    """Be the Python that a caller started; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # each signal comes to it once, from its caller
        _enter(given[:2])
        top = 1 + max(told["files"])
        kept = [fcntl.fcntl(number, fcntl.F_DUPFD, top) for number in given[2:]]
        for number in given:
            os.close(number)
        for number, target in zip(kept, told["files"], strict=True):
            os.dup2(number, target)
            os.close(number)
        sys.path[:0] = told["sites"]
        forks.interpreter = told["python"]
        forks.become(told["line"], told["env"], told["cwd"], told["blocked"])
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = -signal.SIGINT
        traceback.print_exc()
    except BaseException:  # noqa: BLE001 - printed, as at any end
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at any end
            sys.stdout.flush()
            sys.stderr.flush()
        if code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)


def _enter(spaces: list[int]) -> None:
    """Enter the caller's network and mounts, where they are others than the zygote's."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is Python 3.12
    for number, name in zip(spaces, ("net", "mnt"), strict=True):
        if os.fstat(number).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            if libc.setns(number, 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
