"""Launches of the command `cah` that cost no start: each is the fork of one that has all loaded.

One can be killed before its n-th change of a file below a folder, which is the same point each
time, or at a moment, and pressed Ctrl-C.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import cahlib.commands.cli
import cahlib.dataset.maintain.repair
import cahlib.model.frameworks
import cahlib.run.pipeline
import cahlib.run.scrapers
from tests.world import small
from tests.world.command import ROOT
from tests.world.wires import Wires

_LIMIT = 600  # seconds after which a launch hangs
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command, and what happens to it."""

    arguments: tuple[str, ...]
    cwd: Path
    kill_at: int = 0  #: the change of a file before which it is killed; 0: never
    below: tuple[Path, ...] = ()  #: where changes count
    processes: bool = False  #: whether the scrapers are processes, as they are for users
    #: after so many seconds each happens to the process: seconds, function
    events: tuple[tuple[float, Callable[[Any], None]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a launch ended."""

    code: int  #: negative: by this signal
    said: str
    faults: tuple[str, ...] = field(default=())


class Launcher:
    """Starts launches, in a network namespace if wires are given."""

    def __init__(self, work: Path, space: str = "") -> None:
        os.environ["PYTHONPATH"] = str(ROOT)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._log, self._space = work / "said.txt", space

    def __call__(self, launch: Launch) -> Ended:
        """Run it to its end."""
        self._log.unlink(missing_ok=True)
        told = {
            "arguments": launch.arguments, "cwd": str(launch.cwd), "log": str(self._log),
            "space": self._space, "kill_at": launch.kill_at, "processes": launch.processes,
            "below": tuple(map(str, launch.below)),
        }  # fmt: skip
        process = self._context.Process(target=child, args=(told,))
        process.start()
        started, faults = time.monotonic(), []
        for after, happens in launch.events:
            process.join(max(0.0, started + after - time.monotonic()))
            if process.is_alive():
                happens(process)
        process.join(_LIMIT)
        if process.is_alive():
            faults.append(f"{' '.join(launch.arguments[:1])} hangs")
            process.kill()
            process.join()
        if left := _left(process.pid or 0):
            faults.append(f"processes outlive a launch: {left}")
        said = self._log.read_text(errors="replace") if self._log.exists() else ""
        return Ended(code=process.exitcode or 0, said=said, faults=tuple(faults))


def press_ctrl_c(process: Any) -> None:
    """Do what a terminal does at Ctrl-C: the signal goes to the whole group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)


def kill(process: Any) -> None:
    """End it at once."""
    process.kill()


def kill_scraper(process: Any) -> None:
    """End one of its scrapers."""
    with suppress(psutil.Error):
        for each in reversed(psutil.Process(process.pid).children(recursive=True)):
            if "fork_server" in " ".join(each.cmdline()):
                each.kill()
                return


def child(told: Mapping[str, Any]) -> None:
    """Be the launched process."""
    os.setsid()
    log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    faulthandler.dump_traceback_later(_LIMIT - 30, exit=True)
    os.environ["CAH_CONTACT"] = "tests@example.org"
    os.chdir(told["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not told["processes"]:
        cahlib.run.scrapers.open_scrapers = _here  # type: ignore[assignment]
    if told["kill_at"]:
        _die_at(told["kill_at"], told["below"])
    wires = Wires()
    with wires.inside(told["space"]) if told["space"] else nullcontext():
        code = cahlib.commands.cli.main(told["arguments"])
        sys.stdout.flush()
        sys.exit(code)


def _here(job: Any, *, stop: Any, swarm_status: Any, **_: Any) -> Any:
    return small.scraping(job, stop=stop, swarm_status=swarm_status)


def _die_at(number: int, below: tuple[str, ...]) -> None:
    """Be killed before this change of a file."""
    left = [number]

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(below):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


def _left(session: int, timeout: float = 60) -> list[str]:
    """Return the processes of a session that do not end."""
    end = time.monotonic() + timeout
    while True:
        left = []
        for each in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(each.pid) == session and each.status() != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(each.cmdline())[:80])
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)
