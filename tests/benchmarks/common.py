"""What the benchmarks share: their options, programs and what these take, and the peers.

Every benchmark has a function ``main`` that takes the arguments of its command line. With
``--small`` all sizes are the smallest at which it still does all its work, no peer is asked, and
our side runs in this process where it can, for a process of its own needs four CPU seconds to
import torch: so `tests.benchmarks.test_benchmarks` runs them all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import psutil

from cahlib.commands.cli import main as cah

ROOT = Path(__file__).parent.parent.parent

#: The command `cah`.
CAH = (sys.executable, "-m", "cahlib.commands.cli")

#: The variable of the environment that names the file of figures.
FIGURES = "CAH_FIGURES"

#: Numbers about a program, by name: ``wall`` and ``cpu`` are seconds, memory is MiB.
Found = dict[str, Any]


class Absent(SystemExit):
    """This machine lacks what a benchmark needs; the message says what."""


def parser(
    doc: str | None, arguments: Sequence[str], *, peer: bool = False, **sizes: tuple[Any, Any]
) -> argparse.ArgumentParser:
    """The options that all benchmarks have; of each size the usual and the smallest value."""
    small = "--small" in arguments
    made = argparse.ArgumentParser(
        description=(doc or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--small", action="store_true", help="all sizes at their smallest, no peer")
    made.add_argument("--inputs", type=Path, default=ROOT / ".bench", help="kept between runs")
    if peer:
        made.add_argument("--peer", action=argparse.BooleanOptionalAction, default=not small)
    for name, (usual, smallest) in sizes.items():
        made.add_argument(f"--{name}", type=type(usual), default=smallest if small else usual)
    return made


def note(name: str, **values: float) -> None:
    """Keep a set of figures, if `tests.benchmarks.__main__` has named a file for them."""
    if path := os.environ.get(FIGURES):
        rounded = {what: float(f"{value:.4g}") for what, value in values.items()}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({name: rounded}) + "\n")


def beside(ours: Found, peer: Found | None) -> Found:
    """The figures of both sides as `note` takes them."""
    return {**ours, **{f"peer_{what}": value for what, value in (peer or {}).items()}}


def kept(path: Path, make: Callable[[Path], object]) -> Path:
    """What lies there from an earlier run; else it is made, whole or not at all."""
    if not path.exists():
        part = path.with_name(f"part-{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.is_dir():
            shutil.rmtree(part)
        make(part)
        part.rename(path)
    return path


def timed(
    act: Callable[[], object],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    least: int = 1,
) -> list[float]:
    """How long each call took, sorted; as many calls as the seconds allow."""
    each: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(each) < least:
        started = clock()
        act()
        each.append(clock() - started)
    return sorted(each)


@contextmanager
def one_core() -> Iterator[None]:
    """This thread and what it starts stay on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def spent(*whose: int) -> float:
    """CPU seconds so far: of this process, of the children that it has waited for, or of both."""
    used = map(resource.getrusage, whose or (resource.RUSAGE_SELF,))
    return sum(each.ru_utime + each.ru_stime for each in used)


def apart(act: Callable[..., Found], *work: Any, small: bool = False) -> Found:
    """Call a benchmark's function in a process of its own: what it returns, and what that took."""
    if not small:
        return measured(line(act, *work))
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    start, before = time.perf_counter(), spent(*both)
    found = act(*json.loads(json.dumps(work, default=str)))
    wall, cpu = time.perf_counter() - start, spent(*both) - before
    return {"wall": wall, "cpu": cpu, "rss": rss(), **found}


@contextmanager
def serving(act: Callable[..., object], *work: Any) -> Iterator[str]:
    """A benchmark's function that serves for ever, in its process; the line that it prints."""
    with subprocess.Popen(line(act, *work), stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def line(act: Callable[..., object], *work: Any) -> list[str]:
    """The command that calls a benchmark's function and prints what it returns."""
    module = act.__globals__["__spec__"].name  # not __module__: that is __main__ in a command
    told = json.dumps(work, default=str)
    return [sys.executable, "-m", "tests.benchmarks.common", module, act.__name__, told]


def measured(command: Sequence[object]) -> Found:
    """Run a program: what it and its children took, and the JSON in its last line, if any."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, _started(command, said) as program:
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
        text = _told(program.returncode, said)
    told = json.loads(text.splitlines()[-1]) if text.strip().endswith("}") else {}
    return {"wall": wall, "cpu": cpu, "rss": used.ru_maxrss >> 10, **told}


def watched(command: Sequence[object], *, small: bool = False) -> Found:
    """Run a program and see what its processes take: wall, cpu, and what `_Watch` sees.

    If it is ``small``, the command `cah` runs in this process.
    """
    whose = [resource.RUSAGE_CHILDREN, *[resource.RUSAGE_SELF] * small]
    start, before = time.perf_counter(), spent(*whose)
    with tempfile.TemporaryFile("w+") as said:
        if small:
            watch = _Watch(os.getpid(), every=2)
            with watch, redirect_stdout(said), redirect_stderr(said):
                code = cah([str(word) for word in command[len(CAH) :]])
        else:
            with _started(command, said) as program, _Watch(program.pid) as watch:
                code = program.wait()
        wall, cpu = time.perf_counter() - start, spent(*whose) - before
        _told(code, said)
    return {"wall": wall, "cpu": cpu, **watch.seen}


def _started(command: Sequence[object], said: IO[str]) -> subprocess.Popen[str]:
    # Waiting threads sleep: on a machine that is not idle, spinning ones cost both sides half.
    quiet = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    words = [str(word) for word in command]
    return subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=quiet, cwd=ROOT)


def _told(code: int, said: IO[str]) -> str:
    said.seek(0)
    text = said.read()
    if code:
        raise SystemExit(text)
    return text


class _Watch:
    """Looks at a process and its children, five times a second if not said otherwise.

    ``own``: CPU seconds of the process itself. ``memory``: the most of all together, by their
    proportional shares (PSS). ``rss`` and ``child``: the most of the process, and of any child.
    """

    def __init__(self, pid: int, *, every: float = 0.2) -> None:
        self.seen: Found = {"own": 0.0, "memory": 0, "rss": 0, "child": 0}
        self._process, self._every = psutil.Process(pid), every
        self._before = sum(self._process.cpu_times()[:2])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            with suppress(psutil.Error):  # it is ending
                self._look()

    def _look(self) -> None:
        children = self._process.children(recursive=True)
        now = {
            "own": sum(self._process.cpu_times()[:2]) - self._before,
            "memory": sum(_memory(each, "pss") for each in [self._process, *children]),
            "rss": _memory(self._process, "rss"),
            "child": max((_memory(each, "rss") for each in children), default=0),
        }
        self.seen = {name: max(value, now[name]) for name, value in self.seen.items()}


def _memory(process: psutil.Process, kind: str) -> int:
    try:
        return int(getattr(process.memory_full_info(), kind)) >> 20
    except psutil.Error:
        return 0


def rss() -> int:
    """MiB of this process now."""
    return int(psutil.Process().memory_info().rss) >> 20


def venv(home: Path, *packages: str, borrows: bool = False) -> Path:
    """The Python of an environment with a peer in it; it may borrow what is installed here."""
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        if borrows:
            site = next((home / "lib").glob("python*")) / "site-packages"
            (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (home / "ready").touch()
    return python


if __name__ == "__main__":
    module, name, told = sys.argv[1:]
    found = getattr(import_module(module), name)(*json.loads(told))
    print(json.dumps(found))
