"""A process that imports once what jobs need, and of which each worker process is a fork.

A worker that starts anew takes 2 CPU seconds until its first job, a fork a few hundredths. So the
server may be started first of all: it imports while its driver does. It has no threads, which a
fork would lack, and ends with its driver, as do the workers.

That of multiprocessing is one for the whole process: it takes on every variable, secrets too, and
its workers import the script or the command that is running once more.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from typing import TypeAlias

from cahlib.core.child_process import python_command, unsignalled

#: What a worker sends: that it runs, a report of its job, the job's result; each with its bytes.
STARTED, REPORT, RESULT = b"s", b"r", b"d"

#: By these numpy starts no thread a core in each worker; what the environment says comes first.
_SINGLE = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

#: Seconds that workers have to end once they are asked to.
_GRACE = 2.0

#: Runs a job's bytes, with a function that takes the bytes of a report; returns those of a result.
Run: TypeAlias = Callable[[bytes, Callable[[bytes], None]], bytes]

_SERVE = "from cahlib.engine.fork_server import serve_forks; serve_forks(*sys.argv[1:])"


class ForkServer:
    """A server whose workers run jobs by ``run``, named MODULE:FUNCTION.

    It imports ``modules`` for them, and hands no variable that is ``hidden`` on to them.
    """

    def __init__(self, run: str, modules: Sequence[str], *, hidden: Collection[str] = ()) -> None:
        self._run, self._modules, self._hidden = run, modules, hidden
        self._lock = threading.Lock()
        self._has_forked = self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # it is started when a worker is needed, or that says why not
            self._start()

    def _start(self) -> None:
        own = {name: os.environ[name] for name in os.environ if name not in self._hidden}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as failing:
            failing.callback(self._control.close)
            with theirs, unsignalled():
                self._process = subprocess.Popen(
                    python_command(_SERVE, str(theirs.fileno()), self._run, *self._modules),
                    stdin=subprocess.DEVNULL,
                    env=_SINGLE | own,
                    pass_fds=[theirs.fileno()],
                )
            failing.pop_all()

    def fork(self) -> Connection:
        """Return the connection of a new worker; raise OSError if none can be started."""
        with self._lock:
            if self._closed:
                raise BrokenPipeError("the fork server is closed")
            self._has_forked = True
            ours, theirs = Pipe()
            with theirs:
                try:
                    socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
                except OSError:  # e.g. the kernel has killed it, for its memory
                    self._end(0)
                    self._start()
                    socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
            return ours

    def close(self) -> None:
        """End it and its workers, whatever they do, and wait for that."""
        with self._lock:
            # without workers it may still be importing
            self._end(2 * _GRACE if self._has_forked else 0)
            self._closed = True

    def _end(self, grace: float) -> None:
        self._control.close()
        if self._process:
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def serve_forks(number: str, run: str, *modules: str) -> None:
    """Be the server whose driver has the other end of this socket; never returns."""
    control = socket.socket(fileno=int(number))
    gc.disable()  # there is no garbage in what is being imported, and a fork would copy it all
    place, _, name = run.partition(":")
    for module in (place, *modules):
        import_module(module)
    gc.freeze()
    children = set[int]()
    while True:
        data, files, _, _ = socket.recv_fds(control, 16, 1)
        _reap(children)
        if not data:
            break
        if not (child := os.fork()):
            control.close()
            gc.enable()
            _work(Connection(files[0]), getattr(sys.modules[place], name))
        children.add(child)
        os.close(files[0])
    _end(children, signal.SIGTERM)  # by which a worker ends at once, whatever it does
    deadline = time.monotonic() + _GRACE
    while children and time.monotonic() < deadline:
        time.sleep(0.005)
        _reap(children)
    _end(children, signal.SIGKILL)
    os._exit(0)


def _end(children: set[int], number: signal.Signals) -> None:
    for child in children:
        os.kill(child, number)


def _reap(children: set[int]) -> None:
    """Forget the children that have ended."""
    while children and (ended := os.waitpid(-1, os.WNOHANG)[0]):
        children.discard(ended)


def _work(driver: Connection, run: Run) -> None:
    """Be a worker until its driver ends or closes the connection; never returns."""
    jobs = queue.SimpleQueue[bytes]()
    sending = threading.Lock()

    def receive() -> None:
        with suppress(EOFError, OSError):
            while True:
                jobs.put(driver.recv_bytes())
        os._exit(0)

    def send(kind: bytes, data: bytes = b"") -> None:
        with sending:
            driver.send_bytes(kind + data)

    with suppress(OSError):  # the driver is gone
        send(STARTED)
        threading.Thread(target=receive, daemon=True).start()
        while True:
            send(RESULT, run(jobs.get(), lambda report: send(REPORT, report)))
    os._exit(1)
